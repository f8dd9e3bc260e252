//! The op table: one row an op, and each fact about an op in its row only.
//!
//! The builder reads shapes from it, autograd the gradients, the planner what may share storage and what a launch
//! costs, the executor the kernels; tests and benches walk it and list no ops of their own. A family has one stem:
//! `src/ops/<family>.rs`, `shaders/<family>.wgsl`, `kernels/<family>.cu`.

mod check;
mod dense;
mod host;
pub(crate) mod launch;
mod tiles;
mod wgmma;
pub mod widen;

pub mod attention;
pub mod concat;
pub mod dora;
pub mod elementwise;
pub mod embed;
pub mod linear;
pub mod logit_loss;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod optim;
pub mod probe;
pub mod quant;
pub mod rope;
pub mod row_factor;
pub mod slice;

pub use crate::graph::attr::*;
pub use crate::graph::op::*;
pub use crate::graph::sizes::{Case, Sizes};
pub use crate::graph::tensor::{Fill, Sample, SampleIn, Tensor};

/// Every op family.
pub static FAMILIES: &[&[&OpDef]] = &[
    embed::OPS,
    linear::OPS,
    matmul::OPS,
    norm::OPS,
    rope::OPS,
    attention::OPS,
    elementwise::OPS,
    loss::OPS,
    logit_loss::OPS,
    optim::OPS,
    quant::OPS,
    row_factor::OPS,
    dora::OPS,
    concat::OPS,
    slice::OPS,
    probe::OPS,
];

/// Every row.
pub fn table() -> impl Iterator<Item = &'static OpDef> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}
