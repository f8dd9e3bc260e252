//! What CPU kernels are built from.

pub mod math;
pub mod par;
pub mod philox;
pub mod gemm;
pub mod weight;
