//! The CUDA sources that `build.rs` put into the binary.

/// (name below `kernels/`, text), ordered.
pub static KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The text of `kernels/<name>`.
pub fn kernel(name: &str) -> Option<&'static str> {
    KERNELS.binary_search_by(|row| row.0.cmp(name)).ok().map(|i| KERNELS[i].1)
}
