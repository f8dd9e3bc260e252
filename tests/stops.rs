//! Runs that are asked to stop after any step or evaluation go on to the bits of a run that was not, with every evaluation made once.

mod common;

use std::collections::BTreeMap;

use common::scratch::Scratch;
use serde_json::Value;
use trimtab::Error;
use trimtab::config::{Flags, RunConfig};
use trimtab::run::folder::Start;
use trimtab::run::metrics::{Event, METRICS_FILE};
use trimtab::run::training;

/// A rate at which the third step is the best.
const HIGH: [(&str, &str); 3] = [("optimizer", "lion"), ("lr", "0.03"), ("schedule", "constant")];

/// Settings of runs: evaluations that decide when it ends and which weights stay, and one at the end only.
const RUNS: [&[(&str, &str)]; 3] = [
    &[("eval_every", "1"), ("keep_best", "true"), ("patience", "2"), ("save_every", "2")],
    &[("eval_every", "3"), ("keep_best", "true"), ("save_every", "4")],
    &[("save_every", "3")],
];

fn config(scratch: &Scratch, out: &str, more: &[(&str, &str)]) -> RunConfig {
    let at = |path: &str| common::root("tests/fixtures").join(path).to_str().unwrap().to_string();
    let (model, data) = (at("golden/base"), at("field/adapters_peft_loads/data.jsonl"));
    let out = scratch.0.join(out).to_str().unwrap().to_string();
    let usual = [("model", model.as_str()), ("data", &data), ("eval_data", &data), ("out", &out), ("device", "cpu")];
    let sizes = [("max_seq_len", "24"), ("batch_size", "2"), ("steps", "7"), ("report_examples", "0")];
    RunConfig::resolve(None, &Flags::of(&[&usual[..], &sizes, &HIGH, more].concat()).unwrap()).unwrap()
}

/// Runs until event `stop` of those that may be answered with the wish to stop; how many there were.
fn run(config: &RunConfig, start: Start, stop: usize) -> usize {
    let mut seen = 0;
    let ended = training::run(config, start, &mut |event| match event {
        Event::Step(_) | Event::Eval { .. } => {
            seen += 1;
            if seen == stop { Err(Error::Cancelled) } else { Ok(()) }
        }
        _ => Ok(()),
    });
    assert!(matches!(ended, Ok(_) | Err(Error::Cancelled)), "{ended:?}");
    seen
}

/// The weights that a run leaves, and its evaluations by step.
fn result(config: &RunConfig) -> (Vec<u8>, BTreeMap<u64, Vec<String>>) {
    let run = config.out.as_deref().unwrap();
    let mut evaluations = BTreeMap::<u64, Vec<String>>::new();
    for line in std::fs::read_to_string(run.join(METRICS_FILE)).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["event"] == "eval" {
            evaluations.entry(event["step"].as_u64().unwrap()).or_default().push(event["loss"].to_string());
        }
    }
    (std::fs::read(run.join("adapter_model.safetensors")).unwrap(), evaluations)
}

#[test]
fn a_run_that_was_asked_to_stop_leaves_out_no_evaluation() {
    let scratch = Scratch::new("stops");
    for (number, more) in RUNS.into_iter().enumerate() {
        let whole = config(&scratch, &format!("whole-{number}"), more);
        let events = run(&whole, Start::New, usize::MAX);
        let right = result(&whole);
        assert!(right.1.values().all(|losses| losses.len() == 1), "{right:?}");
        for first in 1..=events {
            // And once more, right after it went on.
            for second in [usize::MAX, 1] {
                let stopped = config(&scratch, &format!("stopped-{number}-{first}-{second}"), more);
                run(&stopped, Start::New, first);
                run(&stopped, Start::Resume, second);
                if second == 1 {
                    run(&stopped, Start::Resume, usize::MAX);
                }
                assert!(result(&stopped) == right, "{more:?}: stopped at event {first}, then at {second}");
            }
        }
    }
}

/// The control: the first of these runs ends early, with the weights of an evaluation before its last.
#[test]
fn evaluations_decide() {
    let scratch = Scratch::new("decide");
    let of = |name: &str, more: &[(&str, &str)]| {
        let config = config(&scratch, name, more);
        run(&config, Start::New, usize::MAX);
        result(&config)
    };
    let (kept, evaluations) = of("kept", RUNS[0]);
    let least = evaluations.iter().min_by(|a, b| a.1.cmp(b.1)).unwrap().0;
    assert!(evaluations.len() < 7 && *least < evaluations.len() as u64, "{evaluations:?}");
    let last: Vec<(&str, &str)> = RUNS[0].iter().copied().filter(|(name, _)| *name != "keep_best").collect();
    assert!(of("last", &last).0 != kept);
}
