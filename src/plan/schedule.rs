//! When transfers start and when they are waited for, among the launches of each phase.
//!
//! A fetch starts at its node and is waited for before its first reader. A store is done at its node. Where the
//! device's memory is not the process's own, bytes go through staging memory, whose places are found like the arena's.

use std::collections::HashMap;
use std::ops::Range;

use super::liveness::{Interval, Storage};
use super::{Place, Plan, arena};
use crate::backend::{Caps, Target};
use crate::error::Result;
use crate::graph::op::OpRole;
use crate::graph::{Graph, Val};

/// What places in staging memory are multiples of: a page, so that of two neighbours one may be filled while a device reads
/// the other, page by page.
const PAGE: u64 = 4096;

/// One transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The leaf off the device.
    pub leaf: Val,
    /// First byte of the leaf that moves; as many move as `place` has.
    pub offset: u64,
    /// Where they are on the device.
    pub place: Place,
    /// Where they are in the staging memory, if there is any.
    pub staging: u64,
}

/// A piece of a phase. Numbers are indices into [`Schedule::moves`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Launches of the phase, by index.
    Run(Range<usize>),
    /// Starts to fetch, beside the launches that follow.
    Start(usize),
    /// Waits until a fetch has ended.
    Wait(usize),
    /// Moves off the device, after the launches before.
    Store(usize),
}

/// The transfers of a plan and their order among its launches.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Every transfer.
    pub moves: Vec<Move>,
    /// By phase.
    pub phases: Vec<Vec<Step>>,
    /// Bytes of staging memory.
    pub staging: u64,
}

impl Schedule {
    /// `counts`: the number of launches of each node.
    pub(super) fn new(g: &Graph, plan: &Plan, counts: &[usize], caps: &Caps) -> Result<Schedule> {
        let phases = g.phases();
        let mut schedule = Schedule { phases: vec![Vec::new(); phases], ..Schedule::default() };
        let mut used: Vec<Storage> = Vec::new();
        // By fetched value: its move, while it is under way.
        let mut pending: HashMap<Val, usize> = HashMap::new();
        let (mut open, mut next) = (vec![0; phases], vec![0; phases]);
        for (index, node) in g.nodes.iter().enumerate() {
            let phase = node.phase.0;
            let mut steps = Vec::new();
            for &v in &node.ins {
                if let Some(m) = pending.remove(&g.root(v).0) {
                    used[m].live.last = index;
                    steps.push(Step::Wait(m));
                }
            }
            if let OpRole::Fetch | OpRole::Store = node.op.role {
                let m = schedule.moves.len();
                let fetch = node.op.role == OpRole::Fetch;
                let (off, on) = if fetch { (node.ins[0], node.outs[0]) } else { (node.outs[0], node.ins[0]) };
                let place = plan.place(g, on)?;
                let (leaf, offset) =
                    g.offloaded(off).ok_or_else(|| g.refuse(node.op.name, "nothing off the device".into()))?;
                schedule.moves.push(Move { leaf, offset, place, staging: 0 });
                let live = Interval { first: index, last: index };
                let bytes = place.bytes.next_multiple_of(PAGE);
                used.push(Storage { bytes, live, values: Vec::new(), work_of: None, fixed: None });
                if fetch {
                    pending.insert(on, m);
                }
                steps.push(if fetch { Step::Start(m) } else { Step::Store(m) });
            }
            if !steps.is_empty() {
                if open[phase] < next[phase] {
                    schedule.phases[phase].push(Step::Run(open[phase]..next[phase]));
                    open[phase] = next[phase];
                }
                schedule.phases[phase].append(&mut steps);
            }
            next[phase] += counts[index];
        }
        for (phase, steps) in schedule.phases.iter_mut().enumerate() {
            if open[phase] < next[phase] {
                steps.push(Step::Run(open[phase]..next[phase]));
            }
        }
        if caps.target != Target::Host && !used.is_empty() {
            let offsets = arena::assign(&used, u64::MAX, caps)?;
            schedule.staging = used.iter().zip(&offsets).map(|(s, o)| o + s.bytes).max().unwrap_or(0);
            for (m, offset) in schedule.moves.iter_mut().zip(offsets) {
                m.staging = offset;
            }
        }
        Ok(schedule)
    }

    /// The launches of a phase that are recorded together.
    pub fn runs(&self, phase: usize) -> impl Iterator<Item = Range<usize>> {
        self.phases[phase].iter().filter_map(|s| match s {
            Step::Run(r) => Some(r.clone()),
            _ => None,
        })
    }
}
