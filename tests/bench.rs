//! `trimtab bench`, as a user meets it: kernels are judged and timed on cpu and wgpu, steps and texts are measured on a small model,
//! results come in four forms and are compared with earlier ones.

mod common;

use std::path::Path;

use common::command;
use common::scratch::Scratch;
use serde_json::{Value, json};

fn run(args: &[&str]) -> (i32, String, String) {
    command::run(&[&["bench"], args].concat())
}

fn ok(args: &[&str]) -> String {
    command::ok(&[&["bench"], args].concat())
}

fn json_of(args: &[&str]) -> Value {
    let said = ok(&[args, &["--json"]].concat());
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"))
}

/// Kernels at sizes that take no time.
const SMALL: [&str; 4] =
    ["--shapes", "m=16,k=64,n=128,heads=4,kv_heads=2,head_dim=32,vocab=256,rank=8,params=4096", "--time", "0.002"];

fn kernels(more: &[&str]) -> Vec<String> {
    ["kernels"].iter().chain(&SMALL).chain(more).map(|s| s.to_string()).collect()
}

/// Every row of the op table has a time, is right, and is held against the roofs.
fn every_kernel(device: &str) {
    let args = kernels(&["--device", device, "--cache", "hot"]);
    let report = json_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let float = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
    for key in ["copy_gb_s", "multiply_add_gflop_s", "product_f32_gflop_s"] {
        assert!(float(&report["facts"], key) > 0.0);
    }
    for key in ["device", "threads", "system", "version"] {
        assert!(!report["environment"][key].is_null(), "{key}");
    }
    let rows = report["rows"].as_array().unwrap();
    for op in trimtab::ops::table() {
        assert!(rows.iter().any(|row| row["op"] == op.name), "{} has no row", op.name);
    }
    for row in rows {
        assert!(float(row, "median") > 0.0 && float(row, "p20") <= float(row, "p80"), "{row}");
        assert!(float(row, "error") <= 1.0 && float(row, "samples") >= 5.0, "{row}");
        assert!(float(row, "bytes") > 0.0 && float(row, "of_ceiling") >= 0.0, "{row}");
    }
}

#[test]
fn every_kernel_is_timed_on_the_cpu() {
    every_kernel("cpu");
}

#[test]
fn every_kernel_is_timed_on_wgpu() {
    if common::devices::Device::wgpu().is_some() {
        every_kernel("wgpu");
    }
}

#[test]
fn results_come_in_four_forms_and_are_compared() {
    let dir = Scratch::new("bench-forms");
    let args = kernels(&["--device", "cpu", "--filter", "^(add|scale),"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let report = json_of(&args);
    // Hot and cold.
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert!(names.len() >= 4 && names.iter().any(|n| n.ends_with("hot")) && names.iter().any(|n| n.ends_with("cold")));
    let args = [&args[..], &["--cache", "hot"]].concat();
    let with = |more: &[&str]| ok(&[&args[..], more].concat());
    assert!(with(&["--md"]).contains("\n|---|"), "markdown");
    assert!(with(&["--csv"]).starts_with("name,unit,better,median"), "csv");
    assert!(with(&[]).contains("device: cpu"), "text");

    let path = dir.0.join("before.json");
    let file = path.to_str().unwrap();
    // A machine that was a thousand times as fast: everything is worse now, and that is exit code 1.
    let scaled = |factor: f64| {
        let mut before = report.clone();
        for row in before["rows"].as_array_mut().unwrap() {
            for key in ["median", "p20", "p80"] {
                row[key] = json!(row[key].as_f64().unwrap() * factor);
            }
        }
        std::fs::write(&path, before.to_string()).unwrap();
        run(&[&args[..], &["--against", file]].concat())
    };
    let (code, _, err) = scaled(1e-3);
    assert!(code == 1 && err.contains("worse: add") && err.contains(" worse, 0 better"), "{code}: {err}");
    // The control: one that was a thousand times as slow.
    let (code, _, err) = scaled(1e3);
    assert!(code == 0 && err.contains("better: add") && err.contains("0 worse"), "{code}: {err}");
    // Wrong names are found before anything is measured.
    let (code, said, err) = run(&[&args[..], &["--against", "nowhere.json"]].concat());
    assert!(code == 1 && said.is_empty() && err.contains("nowhere.json"), "{err}");
}

#[test]
fn what_is_not_there_is_refused() {
    let cases: [(&[&str], &str); 6] = [
        (&["kernels", "--filter", "no such kernel"], "--list"),
        (&["kernels", "--filter", "("], "regular expression"),
        (&["kernels", "--shapes", "llama-9b"], "smollm2"),
        (&["kernels", "--dtype", "int3"], "nf4"),
        (&["step"], "--model"),
        (&["step", "--like", "llama-9b"], "llama-8b"),
    ];
    for (args, what) in cases {
        let (code, said, err) = run(args);
        assert!(code != 0 && said.is_empty() && err.contains(what), "{args:?}: {err}");
    }
    assert!(ok(&["kernels", "--list", "--filter", "^linear"]).lines().any(|line| line == "linear, nf4 lora"));
}

/// The CPU, and wgpu where there is an adapter.
fn devices() -> Vec<&'static str> {
    std::iter::once("cpu").chain(common::devices::Device::wgpu().map(|_| "wgpu")).collect()
}

#[test]
fn steps_are_measured() {
    let model = common::root("assets/base");
    let methods = [&["--method", "lora", "--quantize", "nf4"][..], &["--method", "full"]];
    for (device, method) in devices().into_iter().flat_map(|device| methods.map(|method| (device, method))) {
        let small = ["--batch-size", "2", "--max-seq-len", "32", "--time", "0.1", "--device", device];
        let args = [&["step", "--model", model.to_str().unwrap()][..], method, &small].concat();
        let report = json_of(&args);
        let facts = &report["facts"];
        assert_eq!(facts["tokens_a_step"], 64, "{facts}");
        for key in
            ["tokens_per_second", "model_flop_utilisation", "seconds_to_the_end_of_the_first_step", "device_works"]
        {
            assert!(facts[key].as_f64().unwrap() > 0.0, "{key}: {facts}");
        }
        assert!(facts["launches_a_step"].as_u64().unwrap() > 50 && facts["account_bytes"].as_u64().unwrap() > 1 << 20);
        let rows = report["rows"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert!(names.starts_with(&["tokens a second", "step"]) && names.contains(&"linear"), "{names:?}");
        let shares: f64 = rows.iter().filter_map(|row| row["share"].as_f64()).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{shares}");
    }
}

/// The task is the model's: an encoder that classifies, and an encoder-decoder.
#[test]
fn steps_of_other_tasks_are_measured() {
    for (case, method, tokens) in [("bert-classify-lora", "lora", 32), ("t5-ia3", "ia3", 32)] {
        let model = common::root(&format!("tests/fixtures/families2/{case}/model"));
        let args =
            ["step", "--model", model.to_str().unwrap(), "--method", method, "--time", "0.05", "--device", "cpu"];
        let report = json_of(&[&args[..], &["--batch-size", "2", "--max-seq-len", "16"]].concat());
        assert_eq!(report["facts"]["tokens_a_step"], tokens, "{case}: {report}");
    }
}

#[test]
fn texts_and_links_are_measured() {
    let model = common::root("assets/base");
    let args =
        ["generate", "--model", model.to_str().unwrap(), "--prompt-tokens", "16", "--tokens", "4", "--time", "0.05"];
    for device in devices() {
        let report = json_of(&[&args[..], &["--device", device]].concat());
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.iter().map(|row| row["name"].as_str().unwrap()).collect::<Vec<_>>(), ["pp16", "tg4"]);
        assert!(rows.iter().all(|row| row["median"].as_f64().unwrap() > 0.0));
    }

    let dir = Scratch::new("bench-links");
    let folder = dir.0.clone();
    for device in devices() {
        let args =
            ["links", "--folder", folder.to_str().unwrap(), "--most", "1MiB", "--time", "0.01", "--device", device];
        let report = json_of(&args);
        let rows = report["rows"].as_array().unwrap();
        for link in ["memory read", "host to device, 1.0 MiB", "device to host", "file written", "file read"] {
            let row = rows.iter().find(|row| row["name"].as_str().unwrap().starts_with(link));
            assert!(row.is_some_and(|row| row["median"].as_f64().unwrap() > 0.0), "{link}: {report}");
        }
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "the file of the test is gone");
}

#[test]
fn a_roofline_is_drawn() {
    let dir = Scratch::new("bench-roofline");
    let (svg, json) = (dir.0.join("roofline.svg"), dir.0.join("kernels.json"));
    let args = kernels(&["--device", "cpu", "--cache", "cold", "--filter", "^(add|rms_norm),", "--json"]);
    let report = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    std::fs::write(&json, report).unwrap();
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    ok(&["roofline", "--from", &path(&json), "--out", &path(&svg)]);
    let text = std::fs::read_to_string(&svg).unwrap();
    assert!(
        text.starts_with("<svg") && text.contains("<title>add, residual, cold") && text.contains("copy, "),
        "{text}"
    );
}
