//! What CPU kernels are built from.

pub mod math;
pub mod par;
pub mod simd;
pub mod tile;
