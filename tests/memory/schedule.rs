//! Transfers by way of staging memory, walked: no byte is touched by two at a time, and what was stored is read only once it
//! is written.

use std::collections::HashMap;
use std::ops::Range;

use trimtab::backend::null::Null;
use trimtab::backend::{Backend, Target};
use trimtab::memory::{self, Ahead, Choices};
use trimtab::plan::{Move, Plan, Schedule, Step};

use crate::{Cpu, chosen, setups};

/// What a transfer under way holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fetching,
    Storing,
    Writing,
}

fn meets(a: Range<u64>, b: Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn staging(m: &Move) -> Range<u64> {
    m.staging..m.staging + m.place.bytes
}

fn of_leaf(m: &Move) -> Range<u64> {
    m.offset..m.offset + m.place.bytes
}

/// Walks the steps of a phase as the executor does them, and says what is wrong; else how many stores have launches between
/// their start and the writing, and between that and its end.
fn walk(schedule: &Schedule, steps: &[Step]) -> Result<[usize; 2], String> {
    let mut under_way: HashMap<usize, (State, usize)> = HashMap::new();
    let (mut runs, mut beside) = (0, [0, 0]);
    for step in steps {
        let (m, begins) = match step {
            Step::Run(_) => {
                runs += 1;
                continue;
            }
            Step::Start(m) => (*m, Some(State::Fetching)),
            Step::Store(m) => (*m, Some(State::Storing)),
            Step::Wait(m) | Step::Write(m) | Step::Written(m) => (*m, None),
        };
        let own = &schedule.moves[m];
        if let Some(state) = begins {
            for (other, (theirs, _)) in &under_way {
                let other = &schedule.moves[*other];
                if meets(staging(own), staging(other)) {
                    return Err(format!("{step:?} in the staging memory of another"));
                }
                let stored = state == State::Fetching && *theirs != State::Fetching;
                if stored && own.leaf == other.leaf && meets(of_leaf(own), of_leaf(other)) {
                    return Err(format!("{step:?} reads what is not written"));
                }
            }
            if under_way.insert(m, (state, runs)).is_some() {
                return Err(format!("{step:?} twice"));
            }
            continue;
        }
        let (state, since) = under_way.remove(&m).ok_or(format!("{step:?} of nothing"))?;
        match (step, state) {
            (Step::Wait(_), State::Fetching) => {}
            (Step::Write(_), State::Storing) => {
                beside[0] += usize::from(runs > since);
                under_way.insert(m, (State::Writing, runs));
            }
            (Step::Written(_), State::Writing) => beside[1] += usize::from(runs > since),
            _ => return Err(format!("{step:?} too early")),
        }
    }
    if under_way.is_empty() { Ok(beside) } else { Err(format!("{} transfers do not end", under_way.len())) }
}

#[test]
fn stores_end_in_order_and_share_no_staging() {
    let mut beside = [0, 0];
    for setup in setups() {
        let (_, step) = setup.step();
        let (layers, blocks) = (memory::layers(&step.program), memory::blocks(&step.program));
        let plain = Choices::default();
        for choices in [
            Choices { page: 256, ..plain },
            Choices { offload: true, all: layers, ..plain },
            Choices { all: layers, stream: blocks, ahead: Ahead::Nothing, offload: true, page: 1024, selective: 0 },
            Choices { all: layers, stream: blocks, ahead: Ahead::Block, offload: true, page: 1024, selective: 0 },
        ] {
            let step = chosen(step.clone(), &choices);
            let plan = Plan::new(&step.program.graph, Null::new().caps()).unwrap();
            let schedule = &plan.schedule;
            let stores = |steps: &[Step]| steps.iter().filter(|s| matches!(s, Step::Store(_))).count();
            assert!(schedule.phases.iter().any(|steps| stores(steps) > 2), "{setup:?} {choices:?}");
            for steps in &schedule.phases {
                let own = walk(schedule, steps).unwrap_or_else(|wrong| panic!("{setup:?} {choices:?}: {wrong}"));
                beside = [0, 1].map(|i| beside[i] + own[i]);
                // The controls: a step that is left out, and two stores in one place, are found.
                for at in (0..steps.len()).filter(|&at| !matches!(steps[at], Step::Run(_))) {
                    let rest = [&steps[..at], &steps[at + 1..]].concat();
                    assert!(walk(schedule, &rest).is_err(), "nothing misses {:?}", steps[at]);
                }
                let mut moved = schedule.clone();
                moved.moves.iter_mut().for_each(|m| m.staging = 0);
                assert!(stores(steps) < 2 || walk(&moved, steps).is_err(), "{setup:?} {choices:?}");
            }
            // Where the device's memory is the process's own, a store is over at its node.
            let here = Plan::new(&step.program.graph, Cpu::new().caps()).unwrap();
            assert_eq!(here.caps.target, Target::Host);
            let later = |s: &Step| matches!(s, Step::Write(_) | Step::Written(_));
            assert!(!here.schedule.phases.iter().flatten().any(later));
        }
    }
    assert!(beside[0] > 20 && beside[1] > 20, "{beside:?} stores have launches beside them");
}
