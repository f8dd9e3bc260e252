//! scripts/gpu-check.sh where no card is, with programs that only say what they are: what matters most runs first, a part that
//! takes too long is ended, what the time does not reach is left out, and the one file says all of it.

#![cfg(unix)]

#[path = "common/scratch.rs"]
mod scratch;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scratch::Scratch;
use serde_json::Value;

const TRIMTAB: &str = r#"case "$*" in
*"bench kernels"*) echo '{"facts": {}, "rows": [{"name": "linear, bf16, hot", "median": 0.001}]}' ;;
*"bench step"*) exit 3 ;;
*bench*) echo '{"rows": []}' ;;
esac"#;

fn there(program: &str) -> bool {
    let ran = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

#[test]
fn the_gpu_script_ends_in_time_and_says_what_it_did() {
    if !there("bash") || !there("python3") || !there("timeout") {
        return eprintln!("SKIPPED: no bash, python3 or timeout");
    }
    let scratch = Scratch::new("gpu-script");
    let stubs = [
        ("trimtab", TRIMTAB),
        ("op_matrix", "echo 'test on_the_cpu ... ok'"),
        ("training", "echo 'test steps ... FAILED'; exit 101"),
        ("gradients", "sleep 600"),
        ("models", "echo 'test models ... ok'"),
    ];
    for (name, text) in stubs {
        let path = scratch.0.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let out = scratch.0.join("out.json");
    let began = Instant::now();
    let root = env!("CARGO_MANIFEST_DIR");
    let status = Command::new("bash")
        .arg(format!("{root}/scripts/gpu-check.sh"))
        .args([&scratch.0, &out])
        .envs([("TRIMTAB_GPU_DEVICE", "cpu"), ("TRIMTAB_GPU_LIMIT", "12"), ("TRIMTAB_NVRTC", "none")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(status.code(), Some(1), "parts failed");
    let report: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let names =
        |kind: &str| -> Vec<&str> { report[kind].as_array().unwrap().iter().filter_map(Value::as_str).collect() };
    assert!(names("passed").contains(&"op_matrix") && names("passed").contains(&"bench_kernels"), "{report}");
    for failed in ["training", "bench_step_none"] {
        assert!(names("failed").contains(&failed), "{failed}: {report}");
    }
    assert!(names("timed_out").contains(&"gradients"), "{report}");
    assert!(names("left_out").contains(&"bench_rest") && !names("passed").contains(&"models"), "{report}");
    let steps = &report["steps"];
    assert_eq!(steps["op_matrix"]["tests"]["on_the_cpu"], "ok");
    assert_eq!(steps["training"]["tests"]["steps"], "FAILED");
    assert_eq!(steps["bench_kernels"]["result"]["rows"][0]["median"], 0.001);
    assert!(steps["op_matrix"]["seconds"].as_f64().is_some_and(|s| s < 12.0));
}
