//! Training: the graph of a step, its optimizer, and the trainer that runs it; evaluation.

pub mod eval;
mod feed;
pub mod finite;
mod gradients;
pub mod loraplus;
pub mod optimizer;
pub mod scale;
pub mod schedule;
pub mod step;
pub mod trainer;
mod update;
