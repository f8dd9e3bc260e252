pub mod backend;
pub mod cpu;
pub mod dtype;
pub mod error;
pub mod exec;
pub mod graph;
pub mod ops;
pub use error::{Error, Result};
