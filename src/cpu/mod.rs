//! What CPU kernels are built from.

pub mod act;
pub mod gemm;
pub mod isa;
pub mod math;
pub mod par;
pub mod philox;
pub mod simd;
pub mod svd;
pub mod tile;
pub mod weight;
