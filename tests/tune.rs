//! Tiles that are chosen by timing: a run with any of them is the run without, to the bit, and choices are kept.

mod common;
#[cfg(feature = "cuda")]
#[path = "../examples/costs/step.rs"]
mod step;

use std::path::PathBuf;
use std::process::Command;

use common::devices::Device;
use common::scratch::Scratch;
use serde_json::Value;

/// A folder with data, and the runs in it.
struct Runs(Scratch);

/// What is said before tiles are timed.
const TIMES: &str = "products are timed";

impl Runs {
    fn new(name: &str) -> Runs {
        let scratch = Scratch::new(name);
        let row = |row: usize| {
            let ids: Vec<String> = (0..9 + row % 8).map(|i| (1 + (row * 7 + i * 5) % 90).to_string()).collect();
            format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
        };
        std::fs::write(scratch.0.join("data.jsonl"), (0..12).map(row).collect::<String>()).unwrap();
        Runs(scratch)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }

    /// Exit code and standard error.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.args(args).current_dir(&self.0.0).env("TRIMTAB_CACHE", self.path("cache"));
        let ran = command.output().unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    }

    /// Trains into folder `out`: micro-batches of two sizes, with products of many kinds.
    fn train(&self, out: &str, tune: &str, more: &[&str]) -> (Option<i32>, String) {
        let model = common::root("tests/fixtures/golden/base").display().to_string();
        let args = ["train", "--model", &model, "--data", "data.jsonl", "--out", out, "--tune", tune];
        let sizes = [
            "--batch-size",
            "6",
            "--max-seq-len",
            "16",
            "--micro-tokens",
            "64",
            "--steps",
            "2",
            "--schedule",
            "constant",
        ];
        let method = ["--method", "full", "--device", "wgpu", "--report-examples", "0"];
        self.run(&[&args[..], &sizes, &method, more].concat())
    }

    /// The same, which succeeds: what it says, and the weights that it leaves.
    fn ok(&self, out: &str, tune: &str) -> (String, Vec<u8>) {
        let (code, said) = self.train(out, tune, &[]);
        assert_eq!(code, Some(0), "--tune {tune}: {said}");
        (said, std::fs::read(self.path(out).join("model.safetensors")).unwrap())
    }

    fn choices(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    /// Chooses `tiling` for all that `file` has.
    fn all(&self, file: &str, tiling: &str) {
        let mut all = self.choices(file);
        let choices = all["tilings"].as_object_mut().unwrap();
        choices.values_mut().for_each(|choice| *choice = tiling.into());
        std::fs::write(self.path(file), all.to_string()).unwrap();
    }
}

#[test]
fn a_run_has_the_same_bits_whatever_the_tiles() {
    let Some(runs) = Device::wgpu().map(|_| Runs::new("bits")) else { return };
    let (said, off) = runs.ok("off", "off");
    assert!(!said.contains(TIMES), "{said}");
    let (said, timed) = runs.ok("timed", "tiles.json");
    assert!(said.contains(TIMES) && said.contains("kept in tiles.json"), "{said}");
    assert!(timed == off, "timing changes bits");
    let choices = runs.choices("tiles.json");
    let keys: Vec<&String> = choices["tilings"].as_object().unwrap().keys().collect();
    for op in ["linear(", "linear_dx(", "matmul(", "linear_cross_entropy("] {
        assert!(keys.iter().any(|key| key.starts_with(op)), "{op} is not timed: {keys:?}");
    }
    // The model is so small that the estimate is the smaller tile everywhere: now each product has another.
    assert!(keys.iter().all(|key| !key.contains("LARGE")), "{keys:?}");
    for tiling in ["large", "middle"] {
        runs.all("tiles.json", tiling);
        let (said, found) = runs.ok(tiling, "tiles.json");
        assert!(!said.contains(TIMES), "the file's choices are not taken: {said}");
        assert!(found == off, "{tiling} tiles change bits");
    }
    assert_eq!(runs.choices("tiles.json")["tilings"].as_object().unwrap().len(), keys.len());

    // A file of another device, or of none.
    let whole = std::fs::read_to_string(runs.path("tiles.json")).unwrap();
    for damaged in [whole.replace("\"kernels\":\"", "\"kernels\":\"not "), whole[..whole.len() / 2].to_owned()] {
        std::fs::write(runs.path("tiles.json"), damaged).unwrap();
        let (code, said) = runs.train("never", "tiles.json", &[]);
        assert!(code == Some(1) && said.contains("tiles.json") && said.contains("delete it"), "{code:?} {said}");
    }
}

#[test]
fn the_cache_keeps_choices_and_may_be_damaged() {
    let Some(runs) = Device::wgpu().map(|_| Runs::new("cache")) else { return };
    let (said, first) = runs.ok("first", "auto");
    assert!(said.contains(TIMES), "{said}");
    let entries: Vec<PathBuf> =
        std::fs::read_dir(runs.path("cache/tiles")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    let (said, again) = runs.ok("again", "auto");
    assert!(!said.contains(TIMES) && again == first, "{said}");
    std::fs::write(&entries[0], "{\"about\":").unwrap();
    let (said, anew) = runs.ok("anew", "auto");
    assert!(said.contains(TIMES) && anew == first, "{said}");
    // A run that was begun without choices goes on with them.
    let (code, said) = runs.train("stopped", "off", &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = runs.run(&["train", "--resume", "stopped", "--steps", "3", "--tune", "auto"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = runs.train("whole", "off", &["--steps", "3"]);
    assert_eq!(code, Some(0), "{said}");
    let weights = |run: &str| std::fs::read(runs.path(run).join("model.safetensors")).unwrap();
    assert!(weights("stopped") == weights("whole"));
}

#[test]
fn what_does_not_train_takes_the_same_choices() {
    let Some(runs) = Device::wgpu().map(|_| Runs::new("eval")) else { return };
    let model = common::root("tests/fixtures/golden/base").display().to_string();
    let loss = |tune: &str| {
        let args = ["eval", "--model", &model, "--data", "data.jsonl", "--device", "wgpu", "--json", "--tune", tune];
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        let ran = command.args(args).current_dir(&runs.0.0).env("TRIMTAB_CACHE", runs.path("cache")).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{said}");
        let row: Value = serde_json::from_slice(&ran.stdout).unwrap();
        (row["loss"].as_f64().unwrap(), said)
    };
    let (off, said) = loss("off");
    assert!(!said.contains(TIMES), "{said}");
    let (timed, said) = loss("tiles.json");
    assert!(timed == off && said.contains(TIMES), "{timed} {off} {said}");
    runs.all("tiles.json", "large");
    let (large, said) = loss("tiles.json");
    assert!(large == off && !said.contains(TIMES), "{large} {off} {said}");
}

#[test]
fn the_cpu_has_nothing_to_choose() {
    let runs = Runs::new("cpu");
    let (code, said) = runs.train("run", "auto", &["--device", "cpu"]);
    assert!(code == Some(0) && said.contains("nothing to choose on cpu"), "{code:?} {said}");
}

/// Products by wgmma have two tiles to choose from, alone and together; what decides nothing is not timed.
#[cfg(feature = "cuda")]
#[test]
fn a_hopper_has_tiles_to_choose_for_every_wide_product() {
    use trimtab::backend::{Kernel, Launch, Tiling, cuda};
    let mut caps = cuda::caps("a card".into(), 90);
    (caps.multiprocessors, caps.memory) = (Some(132), Some(80 << 30));
    let planned = step::planned("llama-8b", 2048, 16, caps, Default::default()).unwrap();
    let (graph, plan) = planned.plan();
    let tiles = |launches: &[Launch]| -> Vec<i64> {
        let calls = launches.iter().filter_map(|launch| match &launch.kernel {
            Kernel::Cuda(call) if call.entry.ends_with("_wgmma") => Some(call),
            _ => None,
        });
        calls.flat_map(|call| &call.defines).filter(|(name, _)| *name == "TILE").map(|&(_, tile)| tile).collect()
    };
    let mut products = 0;
    for batch in plan.variants(graph).unwrap() {
        let all = |wanted: i64| {
            batch.ways.iter().any(|(_, way)| !tiles(way).is_empty() && tiles(way).iter().all(|&tile| tile == wanted))
        };
        if !tiles(&batch.ways[0].1).is_empty() {
            products += 1;
            assert!(batch.ways[0].0 == Tiling::Estimated && all(0) && all(1), "{}", batch.key);
        }
    }
    // Forward and backward: q, k and v; o; gate and up; down. And the loss.
    assert!(products >= 9, "{products} kinds of products");
}
