pub mod dtype;
pub mod error;
pub use error::{Error, Result};
