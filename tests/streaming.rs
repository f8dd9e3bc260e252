//! The simulation of a step's transfers (`examples/streaming`): schedules whose times are worked out by hand, and that no
//! step is slower for a faster part.

#[path = "../examples/streaming/files.rs"]
mod files;
#[path = "common/scratch.rs"]
mod scratch;
#[path = "../examples/streaming/simulation.rs"]
mod simulation;
#[path = "../examples/costs/step.rs"]
mod step;

use scratch::Scratch;
use simulation::{Rates, Simulation};
use trimtab::backend::cuda;
use trimtab::error::Error;
use trimtab::graph::{Phase, Val};
use trimtab::memory::Request;
use trimtab::plan::{Move, Place, Plan, Step};
use trimtab::session::Planned;

/// For moves of [`BYTES`]: half a second to the card, and the same from it; a quarter to read and to write.
const RATES: Rates = Rates { up: 8.0, down: 8.0, read: 16.0, threads: 1.0, write: 16.0 };
const BYTES: u64 = 4;

/// A move of [`BYTES`] of a leaf, by way of this part of the staging memory.
fn moved(leaf: u32, part: u64) -> Move {
    let place = Place { buffer: 0, offset: 0, bytes: BYTES };
    Move { leaf: Val(leaf), offset: 0, place, staging: part * BYTES }
}

/// When all is done, if launch number n takes n + 1 quarters of a second.
fn end(moves: &[Move], steps: &[Step], rates: Rates) -> f64 {
    let mut simulation = Simulation::new(moves, &[], rates);
    simulation.phase(steps, &|launches| launches.map(|n| 0.25 * (n + 1) as f64).sum());
    simulation.end()
}

/// A launch of so many quarters of a second.
fn run(quarters: usize) -> Step {
    Step::Run(quarters - 1..quarters)
}

#[test]
fn a_fetch_hides_beside_kernels_that_take_longer() {
    let moves = [moved(0, 0)];
    let took = |steps: &[Step], rates| end(&moves, steps, rates);
    let ahead = |quarters| [Step::Start(0), run(quarters), Step::Wait(0), run(1)];
    // Read until 0.25, copied until 0.75, before the kernel ends.
    assert_eq!(took(&ahead(4), RATES), 1.25);
    // The kernel ends before.
    assert_eq!(took(&ahead(2), RATES), 1.0);
    // A reader of half the rate, and then a link of half the rate, are waited for.
    assert_eq!(took(&ahead(4), Rates { read: 4.0, ..RATES }), 1.75);
    assert_eq!(took(&ahead(4), Rates { up: 4.0, ..RATES }), 1.5);
    // The place is free only after the first kernel: what is fetched after it is copied after it, and hides nowhere.
    assert_eq!(took(&[run(4), Step::Start(0), Step::Wait(0), run(1)], RATES), 1.75);
    // Of two kernels, the copy waits for that before its start.
    assert_eq!(took(&[run(4), Step::Start(0), run(4), Step::Wait(0), run(1)], RATES), 2.25);
}

#[test]
fn staging_memory_is_filled_again_once_it_is_copied() {
    let steps = [Step::Start(0), Step::Wait(0), run(1), Step::Start(1), Step::Wait(1), run(1)];
    let took = |parts: [u64; 2]| {
        let moves = [moved(0, parts[0]), moved(1, parts[1])];
        end(&moves, &steps, RATES)
    };
    // Read 0.25, copied 0.75, kernel 1; the second: read 1, copied after the kernel until 1.5, kernel 1.75.
    assert_eq!(took([0, 0]), 1.75);
    // Its own part of the memory is read into from 0.25 to 0.5, but the copy waits for the kernel all the same.
    assert_eq!(took([0, 1]), 1.75);
    // Where reading takes as long as copying, the copy waits for it: 0.5, 1, 1.25; until 1.5, 2, 2.25, or read from 0.5 to 1.
    let slow = Rates { read: 8.0, ..RATES };
    let took = |parts: [u64; 2]| {
        let moves = [moved(0, parts[0]), moved(1, parts[1])];
        end(&moves, &steps, slow)
    };
    assert_eq!(took([0, 0]), 2.25);
    assert_eq!(took([0, 1]), 2.0);
}

#[test]
fn what_host_memory_holds_is_not_read() {
    let moves = [moved(0, 0), moved(1, 0)];
    let steps = [Step::Start(0), run(1), Step::Wait(0), run(1), Step::Start(1), Step::Wait(1), run(1)];
    let took = |held: &[Val]| {
        let mut simulation = Simulation::new(&moves, held, Rates { read: 4.0, ..RATES });
        simulation.phase(&steps, &|launches| 0.25 * launches.len() as f64);
        simulation.end()
    };
    // Read 1, copied 1.5, kernel 1.75; the second: read from 1.5, when the staging is free, to 2.5, copied 3, kernel 3.25.
    assert_eq!(took(&[]), 3.25);
    // Copied 0.5, kernel 0.75; the second: read from 0 to 1, copied 1.5, kernel 1.75.
    assert_eq!(took(&[Val(0)]), 1.75);
    // Copied 0.5, kernel 0.75, copied 1.25, kernel 1.5.
    assert_eq!(took(&[Val(0), Val(1)]), 1.5);
}

#[test]
fn what_host_memory_holds_is_not_written() {
    let moves = [moved(0, 0), moved(0, 1)];
    let ends = [Step::Write(0), Step::Written(0)];
    let steps = [&[run(2), Step::Store(0)], &ends[..], &[Step::Start(1), Step::Wait(1), run(1)]].concat();
    let took = |held: &[Val]| {
        let mut simulation = Simulation::new(&moves, held, RATES);
        simulation.phase(&steps, &|launches| launches.map(|n| 0.25 * (n + 1) as f64).sum());
        simulation.end()
    };
    // Kernel 0.5, copied 1, written 1.25, read 1.5, copied 2, kernel 2.25.
    assert_eq!(took(&[]), 2.25);
    // Kernel 0.5, copied 1 and back until 1.5, kernel 1.75.
    assert_eq!(took(&[Val(0)]), 1.75);
}

#[test]
fn a_store_holds_up_kernels_by_its_copy_alone() {
    let moves = [moved(0, 0), moved(0, 1), moved(1, 2)];
    let took = |steps: &[Step]| end(&moves, steps, RATES);
    // 1 s of the kernel, 0.5 off the card, then the other kernel.
    assert_eq!(took(&[run(4), Step::Store(0), run(4)]), 2.5);
    // Its writing begins once it has arrived, at 1.5, and ends beside the other kernel; alone, it is what is waited for.
    let ends = [Step::Write(0), Step::Written(0)];
    assert_eq!(took(&[&[run(4), Step::Store(0), run(4)], &ends[..]].concat()), 2.5);
    assert_eq!(took(&[&[run(4), Step::Store(0)], &ends[..]].concat()), 1.75);
    // The host that waits for it gives no kernels meanwhile: until 1.75, and then 0.25.
    assert_eq!(took(&[&[run(4), Step::Store(0)], &ends[..], &[run(1)]].concat()), 2.0);
    // What is stored is read once it is written: until 1.75, 2, 2.5, 2.75.
    let back = |m| [Step::Wait(m), run(1)];
    assert_eq!(took(&[&[run(4), Step::Store(0)], &ends[..], &[Step::Start(1)], &back(1)[..]].concat()), 2.75);
    // Another leaf is read before: the host is on at 1.75, copied until 2.25.
    assert_eq!(took(&[&[run(4), Step::Store(0), Step::Start(2)], &ends[..], &back(2)[..]].concat()), 2.5);
}

/// A store has arrived and is written at 1, in a quarter of a second; another at 1.5, when a leaf comes that is read for half a second.
#[test]
fn reads_have_the_threads_that_do_not_write() {
    let moves = [moved(0, 0), moved(1, 1), moved(2, 2)];
    let stores = [run(2), Step::Store(0), Step::Store(1), Step::Write(0), Step::Write(1)];
    let took =
        |threads: f64, rest: &[Step]| end(&moves, &[&stores[..], rest].concat(), Rates { read: 8.0, threads, ..RATES });
    let read = [Step::Start(2), Step::Wait(2)];
    // One thread reads until 2, and copies end at 2.5; three of four read a quarter of a second less 1/16 until 1.75, the rest after.
    assert_eq!(took(1.0, &read), 2.5);
    assert_eq!(took(4.0, &read), 2.5 + 1.0 / 16.0);
    // Its writing waits until the one thread has read.
    let written = [Step::Start(2), Step::Written(1)];
    assert_eq!(took(1.0, &written), 2.25);
    assert_eq!(took(4.0, &written), 1.75);
}

/// A small model whose weights are most of what a step of it takes, planned in a budget.
fn planned(budget: Option<u64>) -> Result<Planned, Error> {
    let scratch = Scratch::new(&format!("{budget:?}"));
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512, "rope_theta": 10000.0,
        "initializer_range": 0.02, "tie_word_embeddings": false}"#;
    let path = scratch.0.join("config.json");
    std::fs::write(&path, config).unwrap();
    let caps = cuda::caps("a card".into(), 80);
    step::planned(path.to_str().unwrap(), 16, 4, caps, Request { budget, ..Request::default() })
}

/// A step where every launch takes as long.
fn seconds(plan: &Plan, rates: Rates) -> f64 {
    let mut simulation = Simulation::new(&plan.schedule.moves, &[], rates);
    for Phase(phase) in STEP {
        simulation.phase(&plan.schedule.phases[phase], &|launches| LAUNCH * launches.len() as f64);
    }
    simulation.end()
}

const STEP: [Phase; 2] = [Phase::MICRO, Phase::UPDATE];
const LAUNCH: f64 = 5e-6;

fn fetched(plan: &Plan) -> u64 {
    let steps = STEP.iter().flat_map(|phase| &plan.schedule.phases[phase.0]);
    let bytes = steps.filter_map(|step| match step {
        Step::Start(m) => Some(plan.schedule.moves[*m].place.bytes),
        Step::Run(_) | Step::Wait(_) | Step::Store(_) | Step::Write(_) | Step::Written(_) => None,
    });
    bytes.sum()
}

/// A change that makes one part twice as fast.
type Faster = fn(Rates) -> Rates;

const FASTER: [(&str, Faster); 4] = [
    ("to the card", |r| Rates { up: 2.0 * r.up, ..r }),
    ("from the card", |r| Rates { down: 2.0 * r.down, ..r }),
    ("reading", |r| Rates { read: 2.0 * r.read, ..r }),
    ("writing", |r| Rates { write: 2.0 * r.write, ..r }),
];

#[test]
fn faster_parts_and_larger_budgets_never_cost_time() {
    let rates = Rates { up: 2e9, down: 2e9, read: 1e9, threads: 4.0, write: 1e9 };
    // Sums of other terms differ by rounding.
    let rounding = 1e-12;
    let whole = planned(None).unwrap().account().total;
    let Err(Error::Memory { needed: least, .. }) = planned(Some(1)) else { panic!("a step in one byte") };
    let between = |part: u64| least + (whole - least) * part / 4;
    let mut before = u64::MAX;
    for budget in [least, between(1), between(2), between(3), 2 * whole] {
        let planned = planned(Some(budget)).unwrap();
        let (_, plan) = planned.plan();
        assert!(fetched(plan) <= before, "{budget} bytes: {} are fetched, with fewer {before}", fetched(plan));
        before = fetched(plan);
        let kernels = LAUNCH * STEP.iter().map(|phase| plan.launches[phase.0].len()).sum::<usize>() as f64;
        let took = seconds(plan, rates);
        assert!(took >= kernels - rounding, "{budget} bytes: {took} s, of which kernels run {kernels} s");
        for (part, faster) in FASTER {
            let faster = seconds(plan, faster(rates));
            assert!(faster <= took, "{budget} bytes: {faster} s with twice the rate {part}, {took} s without");
        }
        // The control: there are transfers that take time, and without any the kernels are all there is.
        let lost = took - kernels;
        assert!(
            if budget == least { lost > kernels } else { lost > rounding || before == 0 },
            "{budget} bytes: {lost} s"
        );
    }
    assert_eq!(before, 0, "with twice the memory, bytes are fetched");
}
