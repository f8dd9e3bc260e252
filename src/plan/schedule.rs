//! When transfers start and when they are waited for, among the launches of each phase.
//!
//! A fetch starts at its node and is waited for before its first reader. Where the device's memory is the process's own, a
//! store is done at its node. Elsewhere bytes go through staging memory, whose places are found like the arena's, and a store
//! only starts at its node (`departures`).

use std::collections::HashMap;
use std::ops::Range;

use super::departures::Departures;
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

impl Move {
    /// Whether bytes of the leaf are moved by both.
    fn meets(&self, other: &Move) -> bool {
        let ends = |m: &Move| m.offset + m.place.bytes;
        self.leaf == other.leaf && self.offset < ends(other) && other.offset < ends(self)
    }
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
    /// Moves off the device, after the launches before. Where there is staging memory, only starts to.
    Store(usize),
    /// Waits until a store is in the staging memory, and starts to write it to its file.
    Write(usize),
    /// Waits until that is written.
    Written(usize),
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
        let staged = caps.target != Target::Host;
        let mut departures: Vec<Departures> = std::iter::repeat_with(Departures::default).take(phases).collect();
        let (mut open, mut next, mut last) = (vec![0; phases], vec![0; phases], vec![0; phases]);
        for (index, node) in g.nodes.iter().enumerate() {
            let phase = node.phase.0;
            last[phase] = index;
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
                let own = Move { leaf, offset, place, staging: 0 };
                schedule.moves.push(own);
                let live = Interval { first: index, last: index };
                let bytes = place.bytes.next_multiple_of(PAGE);
                used.push(Storage { bytes, live, values: Vec::new(), work_of: None, fixed: None });
                let leaving = &mut departures[phase];
                let over = if fetch {
                    pending.insert(on, m);
                    let over = leaving.end(|store, _| schedule.moves[store].meets(&own), &mut steps);
                    steps.push(Step::Start(m));
                    over
                } else {
                    steps.push(Step::Store(m));
                    if staged { leaving.store(m, next[phase], &mut steps) } else { Vec::new() }
                };
                over.into_iter().for_each(|m| used[m].live.last = index);
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
            let over = departures[phase].end(|_, _| true, steps);
            over.into_iter().for_each(|m| used[m].live.last = last[phase]);
        }
        if staged && !used.is_empty() {
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
