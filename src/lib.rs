pub mod dtype;
pub mod error;
pub mod quant;
pub mod weights;
pub use error::{Error, Result};
