//! The driver code of the CUDA backend, executed: the built program opens `tests/fakecuda` as its driver, which checks every
//! call and its order, and interprets the kernels.
#![cfg(target_os = "linux")]

#[path = "driver/cards.rs"]
mod cards;
mod common;
#[path = "driver/direct.rs"]
mod direct;
#[path = "driver/skipped.rs"]
mod skipped;
#[path = "driver/tuned.rs"]
mod tuned;
#[path = "driver/whole.rs"]
mod whole;

use common::card::{Card, Ran};
use serde_json::Value;

fn fixture(path: &str) -> String {
    format!("{}/tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Six short rows, so that a micro-batch of 8 tokens has one or two.
fn rows() -> String {
    let row = |row: usize| {
        let ids: Vec<String> = (0..3 + row % 5).map(|i| (1 + (row * 7 + i * 5) % 90).to_string()).collect();
        format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
    };
    (0..6).map(row).collect()
}

/// Trains a small model on them: a few steps, each of few tokens.
struct Training {
    card: Card,
    model: String,
}

impl Training {
    fn new(name: &str) -> Option<Training> {
        let card = Card::new(name)?;
        card.write("data.jsonl", &rows());
        Some(Training { card, model: fixture("golden/base") })
    }

    /// Runs it into folder `out`.
    fn run(&self, out: &str, own: &[&str], told: &[(&str, &str)]) -> Ran {
        let model = ["train", "--model", &self.model, "--data", "data.jsonl", "--out", out, "--overwrite"];
        let sizes = ["--micro-tokens", "8", "--max-seq-len", "8", "--report-examples", "0"];
        let rank: &[&str] = if own.contains(&"--method") { &[] } else { &["--rank", "4"] };
        self.card.run(&[&model[..], &sizes, rank, own].concat(), told)
    }

    /// The same, which succeeds; the driver's report.
    fn ok(&self, out: &str, own: &[&str], told: &[(&str, &str)]) -> Value {
        let ran = self.run(out, own, told);
        assert_eq!(ran.code, Some(0), "{own:?} {told:?}: {}{}", ran.out, ran.err);
        ran.report
    }
}

/// Sums in f32 of the model's few dozen terms, in another order: some roundings of 2⁻²⁴.
const F32: f64 = 1e-5;

#[test]
fn steps_and_texts_equal_the_cpus() {
    let Some(training) = Training::new("equal") else { return };
    let card = &training.card;
    let own = ["--steps", "2", "--batch-size", "2", "--dtype", "f32", "--device"];
    let train = |device| training.ok(device, &[&own[..], &[device]].concat(), &[]);
    assert!(train("cpu").is_null(), "a run on the cpu asks no driver");
    let report = train("cuda");
    assert!(report["kernels"].as_u64().unwrap() > 250, "{report}");
    assert_eq!(report["used"], 0, "{report}");
    let (here, there) = (card.steps("cpu"), card.steps("cuda"));
    assert_eq!((here.len(), there.len()), (2, 2));
    for (step, (here, there)) in here.iter().zip(&there).enumerate() {
        let near = |a: f64, b: f64| (a - b).abs() < F32 * b.abs();
        assert!(near(there.0, here.0) && near(there.1, here.1), "step {step}: {there:?}, on the cpu {here:?}");
    }
    let base = format!("{}/assets/base", env!("CARGO_MANIFEST_DIR"));
    for choice in [&[][..], &["--quantize", "nf4", "--stream", "on"], &["--stream", "on", "--host-memory", "1MiB"]] {
        let say = |device: &str| {
            let args = ["generate", "--model", &base, "--prompt", "ROMEO:", "--max-tokens", "3", "--temperature", "0"];
            card.ok(&[&args[..], choice, &["--dtype", "f32", "--device", device]].concat(), &[]).0
        };
        assert_eq!(say("cuda"), say("cpu"), "{choice:?}");
    }
}

/// Calls of which a program asks nothing, or at its end, when nothing can be done about their failing.
const MAY_FAIL: [&str; 9] = [
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
];

/// Each call fails once, at its first time and at its last; memory runs out at each allocation; the card is lost. The
/// program ends with an error that names the driver's, and leaves nothing in the context.
#[test]
fn whatever_fails_is_an_error_and_nothing_leaks() {
    let Some(training) = Training::new("failures") else { return };
    let step = ["--steps", "1", "--batch-size", "1", "--device", "cuda"];
    let whole = training.ok("whole", &step, &[]);
    let calls = whole["calls"].as_object().unwrap();
    assert!(calls.len() > 30, "{whole}");
    let unknown = "unknown error (CUDA_ERROR_UNKNOWN)";
    // (what is told, what is said; whether the run may also go on without minding)
    let mut cases: Vec<((&str, String), &str, bool)> = Vec::new();
    for (call, count) in calls {
        let may = MAY_FAIL.contains(&call.as_str());
        let count = count.as_u64().unwrap();
        cases.push((("FAKECUDA_FAIL", format!("{call}:1:999")), unknown, may));
        if count > 1 {
            let at_the_end = matches!(call.as_str(), "cuCtxSetCurrent" | "cuStreamSynchronize");
            cases.push((("FAKECUDA_FAIL", format!("{call}:{count}:999")), unknown, may || at_the_end));
        }
    }
    for nth in 1..=calls["cuMemAlloc_v2"].as_u64().unwrap() {
        cases.push((("FAKECUDA_FAIL", format!("cuMemAlloc_v2:{nth}:2")), "has no more free memory", false));
    }
    let kernels = whole["kernels"].as_u64().unwrap();
    for (after, code, said) in [
        (0, 719, "unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED)"),
        (kernels / 2, 700, "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)"),
        (kernels - 1, 719, "unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED)"),
    ] {
        cases.push((("FAKECUDA_LOSE", format!("{after}:{code}")), said, false));
    }
    cases.push((("FAKECUDA_FAIL", "cuModuleLoadData:2:222".into()), "update the driver", false));
    let steps = training.card.steps("whole");
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|((name, value), said, may)| {
            let ran = training.run("broken", &step, &[(name, value)]);
            let refused = ran.code == Some(1) && ran.err.contains("error: ") && ran.err.contains(said);
            let went_on = *may && ran.code == Some(0) && training.card.steps("broken") == steps;
            (!(refused || went_on) || ran.err.contains("panicked"))
                .then(|| format!("{name}={value}: {:?}\n{}", ran.code, ran.err))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
