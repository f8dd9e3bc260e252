//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

use std::path::PathBuf;

#[cfg(all(feature = "cli", feature = "cuda", target_os = "linux"))]
pub mod card;
#[cfg(feature = "cli")]
pub mod command;
pub mod devices;
pub mod families2;
pub mod golden;
pub mod graphs;
pub mod interpret;
#[cfg(feature = "cuda")]
pub mod ptx;
pub mod scratch;

/// A path in the repository: where cargo says it is, or, for a binary that runs where it was not built, where the
/// variable of the same name says.
pub fn root(path: &str) -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(here).join(path)
}
