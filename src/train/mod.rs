//! Training: the graph of a step, the trainer, and the run that feeds it.

pub mod metrics;
pub mod optimizer;
pub mod profile;
pub mod progress;
pub mod run;
pub mod schedule;
pub mod step;
pub mod svg;
pub mod trainer;
mod update;
