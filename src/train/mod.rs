//! Training: the graph of a step, the trainer, and the run that feeds it.

pub mod step;
pub mod trainer;
