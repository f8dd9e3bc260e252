//! Whole runs of the program: choices that save memory, each under other schedules of the interpreter, come to the same
//! bits; the driver gives what the account says; a run whose card is lost goes on.

use std::path::Path;

use serde_json::Value;

use crate::Training;

/// (what a group's runs have in common, how they differ otherwise; they come to the same bits).
const GROUPS: &[(&[&str], &[&[&str]])] = &[
    (
        &["--dtype", "f32"],
        &[
            &[],
            &["--recompute", "all"],
            &["--stream", "on"],
            &["--stream", "on", "--host-memory", "1MiB"],
            // Activations, and some of the weights.
            &["--stream", "on", "--host-memory", "30KiB", "--offload", "on"],
            &["--offload", "on", "--page-optimizer", "on", "--host-memory", "1MiB"],
            &["--offload", "on"],
            &["--page-optimizer", "on"],
            &["--memory", "400000"],
        ],
    ),
    (
        &["--quantize", "nf4", "--double-quant", "--optimizer", "adamw8bit", "--dropout", "0.1"],
        &[&[], &["--stream", "on", "--offload", "on", "--page-optimizer", "on", "--recompute", "all"]],
    ),
    (&["--method", "full", "--dtype", "bf16"], &[&["--profile"], &["--page-optimizer", "on", "--stream", "on"]]),
];

/// The weights that a run leaves.
pub fn weights(run: &Path) -> Vec<u8> {
    let files = ["adapter_model.safetensors", "model.safetensors"].map(|name| run.join(name));
    let file = files.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no weights in {}", run.display()));
    std::fs::read(file).unwrap()
}

/// The bytes of the account, as a run says them before it begins.
pub fn account(err: &str) -> u64 {
    let line = err.lines().find(|l| l.trim_start().starts_with("total ")).unwrap_or_else(|| panic!("{err}"));
    line.split_whitespace().last().unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn what_saves_memory_changes_no_bit_and_the_account_is_what_the_driver_gave() {
    let Some(training) = Training::new("whole") else { return };
    let sizes = ["--steps", "2", "--batch-size", "3", "--device", "cuda"];
    let mut schedule = 0;
    let mut seen = Vec::new();
    for (common, choices) in GROUPS {
        let mut first = None;
        for choice in *choices {
            let own = [&sizes[..], common, choice].concat();
            schedule += 1;
            let ran = training.run("run", &own, &[("FAKECUDA_SCHEDULE", &schedule.to_string())]);
            assert_eq!(ran.code, Some(0), "{own:?}: {}{}", ran.out, ran.err);
            assert_eq!(ran.report["peak"], account(&ran.err), "{own:?}: {}", ran.err);
            assert_eq!(ran.report["used"], 0, "{own:?}");
            // What is fetched need not wait for the kernels since its place is free; full training streams no weights, and its
            // state is one page.
            let fetches = ["--stream", "--offload", "--memory"].iter().any(|flag| choice.contains(flag));
            let travels = fetches && !common.contains(&"full");
            assert_eq!(ran.report["beside"].as_u64() > Some(0), travels, "{own:?}: {}", ran.report);
            let rows = [("weights", "--stream"), ("activations", "--offload"), ("optimizer state", "--page-optimizer")];
            for (row, flag) in rows {
                let held = choice.contains(&"--host-memory") && choice.contains(&flag);
                assert_eq!(ran.err.contains(&format!("held {row}")), held, "{own:?}: {}", ran.err);
            }
            let result = (weights(&training.card.path("run")), training.card.steps("run"));
            match &first {
                None => first = Some(result),
                Some(first) => assert!(*first == result, "{own:?} comes to other bits"),
            }
        }
        seen.push(first);
    }
    // The control: what is not such a choice does change bits.
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
}

/// Host memory that no weight has a use for, and such as the system does not give: the latter is an error, not a slower run than
/// was planned.
#[test]
fn weights_are_held_or_it_is_said() {
    let Some(training) = Training::new("held") else { return };
    let own = ["--steps", "1", "--batch-size", "1", "--device", "cuda", "--stream", "on", "--host-memory", "1MiB"];
    let whole = training.ok("whole", &own, &[]);
    for (stream, memory, said) in [
        ("off", "1MiB", Some("all is on the device")),
        ("on", "1KiB", Some("the least of what is off the device has")),
        ("on", "1MiB", None),
    ] {
        let own = [&own[..6], &["--stream", stream, "--host-memory", memory, "--dry-run"]].concat();
        let ran = training.run("planned", &own, &[]);
        let found = ran.err.split("--host-memory holds nothing: ").nth(1);
        let right = match said {
            Some(said) => found.is_some_and(|found| found.starts_with(said)),
            None => found.is_none(),
        };
        assert!(ran.code == Some(0) && right, "{stream} {memory}: {}", ran.err);
    }
    // The control: without it, there is less to allocate.
    let call = "cuMemHostAlloc";
    let few = training.ok("few", &own[..8], &[]);
    let pinned = |report: &Value| report["calls"][call].as_u64().unwrap();
    assert!(pinned(&whole) > pinned(&few), "{whole} {few}");
    let ran = training.run("broken", &own, &[("FAKECUDA_FAIL", &format!("{call}:{}:2", pinned(&whole)))]);
    assert!(ran.code == Some(1) && ran.err.contains("--host-memory asks for"), "{:?} {}", ran.code, ran.err);
}

#[test]
fn a_run_whose_card_is_lost_goes_on_to_the_same_bits() {
    let Some(training) = Training::new("lost") else { return };
    let own = ["--steps", "4", "--batch-size", "2", "--save-every", "1", "--device", "cuda"];
    // And where the optimizer's state is in host memory only.
    let held = ["--page-optimizer", "on", "--host-memory", "1MiB"];
    for own in [&own[..], &[&own[..], &held].concat()] {
        let kernels = training.ok("whole", own, &[])["kernels"].as_u64().unwrap();
        let lose = (kernels * 5 / 8).to_string();
        let ran = training.run("lost", own, &[("FAKECUDA_LOSE", &lose)]);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        assert!(ran.err.contains("CUDA_ERROR_LAUNCH_FAILED"), "{}", ran.err);
        let done = training.card.steps("lost").len();
        assert!((1..4).contains(&done), "lost after step {done}");
        let (_, report) = training.card.ok(&["train", "--resume", "lost"], &[]);
        assert!(report["kernels"].as_u64().unwrap() < kernels, "it began anew");
        let path = |run: &str| training.card.path(run);
        assert!(weights(&path("whole")) == weights(&path("lost")));
        assert_eq!(training.card.steps("whole"), training.card.steps("lost"));
    }
}
