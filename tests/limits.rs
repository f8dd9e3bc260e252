//! No value of a setting makes the tool panic, abort or take memory without end: it is refused, or the run works. And steps
//! whose numbers are not finite are skipped, counted, and end the run.

mod common;

use common::scratch::Scratch;
use serde_json::Value;
use trimtab::config::{FIELDS, Field, Flags, RunConfig};
use trimtab::run::folder::Start;
use trimtab::run::metrics::{Event, METRICS_FILE};
use trimtab::run::training;
use trimtab::{Error, Result};

impl Scratch {
    /// The settings of a small run, with others.
    fn config(&self, more: &[(&str, &str)]) -> Result<RunConfig> {
        let at = |path: &str| common::root("tests/fixtures").join(path).to_str().unwrap().to_string();
        let (model, data) = (at("golden/base"), at("field/adapters_peft_loads/data.jsonl"));
        let out = self.0.to_str().unwrap().to_string();
        let mut flags = vec![("model", model.as_str()), ("data", &data), ("out", &out), ("device", "cpu")];
        if !more.iter().any(|(name, _)| *name == "max_seq_len") {
            flags.push(("max_seq_len", "24"));
        }
        flags.extend_from_slice(more);
        RunConfig::resolve(None, &Flags::of(&flags)?)
    }
}

/// Runs until the first step is done.
fn one_step(config: &RunConfig) -> Result<()> {
    let ended = training::run(config, Start::Overwrite, &mut |event| match event {
        Event::Step(_) => Err(Error::Cancelled),
        _ => Ok(()),
    });
    match ended {
        Err(Error::Cancelled) => Ok(()),
        other => other.map(drop),
    }
}

const VALUES: [&str; 19] = [
    "0",
    "1",
    "2",
    "0.5",
    "-1",
    "-0.5",
    "65536",
    "4096",
    "8388608",
    "8388609",
    "4294967296",
    "1000000000000000",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "1e15",
    "1e308",
    "NaN",
    "inf",
];

/// A setting with what it counts with, if it does not with the usual method and optimizer.
fn counted(field: &Field, value: &'static str) -> Vec<(&'static str, &'static str)> {
    let with = match field.name {
        "virtual_tokens" => Some(("method", "prefix")),
        "reduction_factor" => Some(("method", "adapter")),
        "momentum" | "dampening" => Some(("optimizer", "sgd")),
        "adafactor_decay_rate" | "adafactor_eps" | "adafactor_clip" => Some(("optimizer", "adafactor")),
        _ => None,
    };
    with.into_iter().chain([(field.name, value)]).collect()
}

/// The settings that are numbers: those that take one of the values and not a word.
fn numeric(field: &&Field) -> bool {
    let takes = |value| RunConfig::resolve(None, &Flags::of(&counted(field, value)).unwrap()).is_ok();
    !field.is_switch
        && field.choices.is_empty()
        && (takes("1") || takes("2") || takes("0.5") || takes("-0.5"))
        && !takes("word")
}

/// What a micro-batch or the factors are made of: a value that is allowed may still be too much for this test's memory.
const SIZES: [&str; 5] = ["max_seq_len", "max_target_len", "micro_tokens", "rank", "virtual_tokens"];

#[test]
fn every_number_is_refused_or_works() {
    let scratch = Scratch::new("numbers");
    let fields: Vec<&Field> = FIELDS.iter().filter(numeric).collect();
    assert!(fields.len() > 30, "{}", fields.len());
    let (mut refused, mut planned, mut ran) = (0, 0, 0);
    for field in fields {
        for value in VALUES {
            let config = scratch.config(&counted(field, value));
            let Ok(config) = config else {
                refused += 1;
                continue;
            };
            match training::forecast(&config) {
                Ok(_) => planned += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    continue;
                }
            }
            let small = value.parse::<f64>().is_ok_and(|v| v <= 2.0);
            if small || !SIZES.contains(&field.name) {
                // An error is an answer too; a panic is not.
                ran += usize::from(one_step(&config).is_ok());
            }
        }
    }
    assert!(refused > 150 && planned > 100 && ran > 100, "{refused} refused, {planned} planned, {ran} ran");
}

/// The cases of the reports: a step of each that is allowed is done at once.
#[test]
fn lengths_beyond_all_measure() {
    let scratch = Scratch::new("lengths");
    for (name, value, expected) in [
        ("steps", "18446744073709551615", Some("steps")),
        ("epochs", "18446744073709551615", Some("epochs")),
        ("max_seq_len", "100000000000", Some("max-seq-len")),
        ("steps", "1000000000000000", None),
        ("epochs", "1000000000000000", None),
        ("batch_size", "9223372036854775807", None),
    ] {
        match (scratch.config(&[(name, value)]), expected) {
            (Err(error), Some(key)) => assert!(error.to_string().contains(key), "{error}"),
            (Ok(config), None) => one_step(&config).unwrap_or_else(|e| panic!("{name} {value}: {e}")),
            (other, _) => panic!("{name} {value}: {:?}", other.map(drop)),
        }
    }
}

/// Rates at which the adapter grows until the model overflows.
const DIVERGES: [(&str, &str); 6] = [
    ("optimizer", "sgd"),
    ("schedule", "constant"),
    ("lr", "1e30"),
    ("max_grad_norm", "0"),
    ("steps", "40"),
    ("batch_size", "4"),
];

#[test]
fn steps_that_are_not_finite_are_skipped_and_end_the_run() {
    let scratch = Scratch::new("skips");
    for most in [3, 10] {
        let text = most.to_string();
        let mut flags = DIVERGES.to_vec();
        flags.extend((most != 10).then_some(("max_skips", text.as_str())));
        let config = scratch.config(&flags).unwrap();
        let mut finite = 0;
        let error = training::run(&config, Start::Overwrite, &mut |event| {
            if let Event::Step(step) = &event {
                finite += usize::from(step.skipped == 0);
            }
            Ok(())
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("{most} steps in a row")), "{error}");
        assert!(error.contains("is in the output of op ") && error.contains("lower lr"), "{error}");
        assert!(finite > 0, "the first step is a number");
        let lines = std::fs::read_to_string(scratch.0.join(METRICS_FILE)).unwrap();
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["skipped"], most, "{last}");
        assert!(!scratch.0.join("adapter_model.safetensors").exists());
    }
    // The control: at a rate that is none of these, nothing is skipped and the adapter is there.
    let config = scratch.config(&[("steps", "3"), ("lr", "1e-4")]).unwrap();
    training::run(&config, Start::Overwrite, &mut |event| match event {
        Event::Step(step) => {
            let _: () = assert_eq!(step.skipped, 0);
            Ok(())
        }
        _ => Ok(()),
    })
    .unwrap();
    assert!(scratch.0.join("adapter_model.safetensors").exists());
}

/// A run that is over before so many steps were skipped has come to nothing all the same.
#[test]
fn a_run_whose_last_loss_is_not_finite_ends_in_an_error() {
    let scratch = Scratch::new("ends");
    let flags = [&DIVERGES[..], &[("steps", "3")]].concat();
    let ended = training::run(&scratch.config(&flags).unwrap(), Start::Overwrite, &mut |_| Ok(()));
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("up to step 3") && error.contains("Nothing was written"), "{error}");
    assert!(!scratch.0.join("adapter_model.safetensors").exists());
}

/// Evaluation needs something to evaluate.
#[test]
fn rows_without_a_token_to_learn_are_refused_for_evaluation() {
    let (scratch, data) = (Scratch::new("nothing"), Scratch::new("nothing-data"));
    let rows = data.0.join("rows.jsonl");
    let row = |label: i32| format!("{{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, {label}]}}\n");
    let eval = [("eval_data", rows.to_str().unwrap()), ("steps", "1")];
    std::fs::write(&rows, row(-100) + &row(-100)).unwrap();
    let run = |more: &[(&str, &str)]| training::run(&scratch.config(more).unwrap(), Start::Overwrite, &mut |_| Ok(()));
    let error = run(&eval).unwrap_err().to_string();
    assert!(error.contains("2 rows") && error.contains("none with a token to learn"), "{error}");
    // The control: one is enough.
    std::fs::write(&rows, row(-100) + &row(7)).unwrap();
    run(&eval).unwrap();
}

#[test]
fn what_is_not_finite_is_never_written() {
    for method in ["lora", "full"] {
        let scratch = Scratch::new(&format!("infinite-{method}"));
        let rates = [("optimizer", "sgd"), ("lr", "3e38"), ("weight_decay", "1e30")];
        let flags = [&rates[..], &[("steps", "1"), ("method", method)]].concat();
        let error =
            training::run(&scratch.config(&flags).unwrap(), Start::Overwrite, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("the run diverged"), "{method}: {error}");
        for file in ["adapter_model.safetensors", "adapter_config.json", "model.safetensors"] {
            assert!(!scratch.0.join(file).exists(), "{method}: {file}");
        }
    }
}
