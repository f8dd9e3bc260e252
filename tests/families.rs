//! Model families, tasks and methods against what transformers and PEFT computed: every folder of the fixtures is a case.

mod common;

use std::path::Path;

use common::devices::Device;
use common::families2::{Case, Why, folders};

/// At least so many cases are checked: fewer means that something that was there is not found any more.
const FLOOR: usize = 5;

/// What is wrong with a case on a device.
fn verdict(folder: &Path, device: &Device) -> Result<(), Why> {
    Case::open(folder)?.check(device)
}

/// Runs the cases that `wanted` picks by number; each is right, or needs something that is not there.
fn every_case(device: &Device, wanted: impl Fn(usize) -> bool) -> usize {
    let only = std::env::var("TRIMTAB_CASE").unwrap_or_default();
    let (mut right, mut wrong, mut missing) = (0, Vec::new(), Vec::new());
    for (i, folder) in folders().iter().enumerate() {
        let name = folder.file_name().unwrap().to_string_lossy();
        if !wanted(i) || !name.contains(&only) {
            continue;
        }
        match verdict(folder, device) {
            Ok(()) => right += 1,
            Err(Why::Missing(what)) => missing.push(format!("{name}: {what}")),
            Err(Why::Wrong(what)) => wrong.push(format!("{name}: {what}")),
        }
    }
    eprintln!("{}: {right} cases are right; {} were left out", device.name, missing.len());
    missing.iter().for_each(|m| eprintln!("SKIPPED {m}"));
    assert!(wrong.is_empty(), "{} cases are wrong on {}:\n{}", wrong.len(), device.name, wrong.join("\n"));
    if only.is_empty() { right } else { usize::MAX }
}

#[test]
fn every_case_gives_transformers_loss_outputs_and_gradients() {
    assert!(every_case(&Device::cpu(), |_| true) >= FLOOR, "too few cases");
}

#[test]
fn a_third_of_the_cases_on_wgpu() {
    if let Some(device) = Device::wgpu() {
        assert!(every_case(&device, |i| i % 3 == 0) >= FLOOR / 5, "too few cases");
    }
}
