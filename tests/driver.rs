//! The driver code of the CUDA backend, executed: the built program opens `tests/fakecuda` as its driver, which checks every
//! call and its order, and interprets the kernels.
#![cfg(target_os = "linux")]

mod common;

use common::card::Card;

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

/// Sums in f32 of the model's few dozen terms, in another order: some roundings of 2⁻²⁴.
const F32: f64 = 1e-5;

#[test]
fn steps_and_texts_equal_the_cpus() {
    let Some(card) = Card::new("equal") else { return };
    card.write("data.jsonl", &rows());
    let model = fixture("golden/base");
    let common =
        ["train", "--model", &model, "--data", "data.jsonl", "--steps", "2", "--batch-size", "2", "--rank", "4"];
    let sizes = ["--micro-tokens", "8", "--max-seq-len", "8", "--report-examples", "0"];
    let train = |device: &str| {
        let own = ["--device", device, "--out", device];
        card.ok(&[&common[..], &sizes, &own].concat(), &[]).1
    };
    assert!(train("cpu").is_null(), "a run on the cpu asks no driver");
    let report = train("cuda");
    assert!(report["kernels"].as_u64().unwrap() > 300, "{report}");
    assert_eq!(report["used"], 0, "{report}");
    let (here, there) = (card.steps("cpu"), card.steps("cuda"));
    assert_eq!((here.len(), there.len()), (2, 2));
    for (step, (here, there)) in here.iter().zip(&there).enumerate() {
        let near = |a: f64, b: f64| (a - b).abs() < F32 * b.abs();
        assert!(near(there.0, here.0) && near(there.1, here.1), "step {step}: {there:?}, on the cpu {here:?}");
    }
    let base = format!("{}/assets/base", env!("CARGO_MANIFEST_DIR"));
    let say = |device: &str| {
        let args = ["generate", "--model", &base, "--prompt", "ROMEO:", "--max-tokens", "4", "--temperature", "0"];
        card.ok(&[&args[..], &["--device", device]].concat(), &[]).0
    };
    assert_eq!(say("cuda"), say("cpu"));
}
