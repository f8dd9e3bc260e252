// pub mod autograd;
pub mod backend;
pub mod cpu;
pub mod dtype;
pub mod error;
pub mod exec;
pub mod graph;
// pub mod models;
// pub mod nn;
pub mod ops;
// pub mod peft;
pub mod plan;
pub mod quant;
// pub mod train;
pub mod weights;

pub use error::{Error, Result};
