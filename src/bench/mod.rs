//! What kernels are judged by: operands of a sample, the op run on them with everything around them watched, and how far from the
//! float64 definition its results may be. Tests and benches share it.

pub mod operands;
pub mod truth;
pub mod watched;
