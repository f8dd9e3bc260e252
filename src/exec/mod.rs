//! From a plan to a running step.

mod lower;

pub use lower::{Operands, lower};
