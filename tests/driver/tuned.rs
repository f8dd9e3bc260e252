//! Runs whose tiles are timed on the card: they come to the bits of a run without, in the memory of the account.

use serde_json::Value;

use crate::Training;
use crate::whole::{account, weights};

#[test]
fn tiles_are_timed_and_change_no_bit() {
    let Some(training) = Training::new("tuned") else { return };
    let own = ["--steps", "1", "--batch-size", "4", "--micro-tokens", "24", "--device", "cuda"];
    for dtype in ["f32", "bf16"] {
        let run = |tune: &str| {
            let own = [&own[..], &["--dtype", dtype, "--tune", tune]].concat();
            let ran = training.run("run", &own, &[]);
            assert_eq!(ran.code, Some(0), "{own:?}: {}{}", ran.out, ran.err);
            assert_eq!(
                (&ran.report["peak"], &ran.report["used"]),
                (&account(&ran.err).into(), &0.into()),
                "{}",
                ran.err
            );
            let result = (weights(&training.card.path("run")), training.card.steps("run"));
            (result, ran.report["kernels"].as_u64().unwrap(), ran.err)
        };
        let file = format!("{dtype}.json");
        let (off, launched, _) = run("off");
        let (timed, more, said) = run(&file);
        assert!(timed == off, "{dtype}: timing changes bits");
        assert!(more > launched && said.contains("products are timed"), "{more} {launched} {said}");
        let path = training.card.path(&file);
        let mut choices: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let tilings = choices["tilings"].as_object_mut().unwrap();
        for op in ["linear(", "linear_dx(", "linear_cross_entropy("] {
            assert!(tilings.keys().any(|key| key.starts_with(op)), "{dtype}: {op} {tilings:?}");
        }
        assert!(tilings.keys().all(|key| !key.contains("TILE=0")), "{tilings:?}");
        tilings.values_mut().for_each(|choice| *choice = "large".into());
        training.card.write(&file, &choices.to_string());
        let (large, same, said) = run(&file);
        assert!(large == off, "{dtype}: large tiles change bits");
        assert!(same == launched && !said.contains("products are timed"), "{same} {launched} {said}");
    }
}
