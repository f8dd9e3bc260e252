//! How fast a device is at what the engine does (`trimtab bench`), and what kernels are judged by, here and in tests: operands of
//! a sample, the op run on them with everything around them watched, and how far from the float64 definition its results
//! may be.
//!
//! Every figure is a median with its quantiles, measured until it is sure or out of time; each result says where it was
//! measured, and what the device gives at most.

pub mod against;
pub mod ceiling;
pub mod environment;
pub mod kernels;
pub mod links;
pub mod operands;
pub mod place;
pub mod roofline;
pub mod shapes;
pub mod stats;
pub mod step;
pub mod table;
pub mod text;
pub mod truth;
pub mod watched;
