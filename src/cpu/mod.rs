//! What CPU kernels are built from.

pub mod par;
