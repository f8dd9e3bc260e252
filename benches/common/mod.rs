//! What the benches share. Each uses a part of it.
#![allow(dead_code)]

use std::path::PathBuf;

use trimtab::backend::{self, Backend};
use trimtab::config::{Device, Setting};

/// Names the device that benches run on, as `--device` does; the CPU if it is not set.
const DEVICE: &str = "TRIMTAB_BENCH_DEVICE";

/// The device, opened.
pub fn device() -> Box<dyn Backend> {
    let name = std::env::var(DEVICE).unwrap_or_else(|_| "cpu".into());
    let device = Device::from_text(&name).unwrap_or_else(|e| panic!("{DEVICE}={name}: expected {e}"));
    backend::open(&device).unwrap_or_else(|e| panic!("{DEVICE}={name}: {e}"))
}

/// A path in the repository: where cargo says it is, or, for a binary that runs where it was not built, where the
/// variable of the same name says.
pub fn root(path: &str) -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(here).join(path)
}
