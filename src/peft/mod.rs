//! Methods: what is trained, and what is added to the model for it. One file a method, hooks at sites.

pub mod config;
pub mod files;
pub mod full;
pub mod lora;

use crate::error::Result;
use crate::graph::Val;
use crate::nn::{Nn, Role, Site};

pub use config::{AdapterConfig, LoraSpec, Targets};

/// A way to fine-tune. Every hook's default leaves the model as it is.
pub trait Method {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Whether a weight of the base model is trained itself.
    fn trains(&self, _name: &str, _role: Role) -> bool {
        false
    }

    /// The linear layer at `site`.
    fn linear(&self, nn: &mut Nn, _site: &Site, x: Val, w: Val, bias: Option<Val>) -> Result<Val> {
        nn.plain_linear(x, w, bias, None)
    }
}

/// Nothing is trained: the base model as it is.
pub struct Frozen;

impl Method for Frozen {
    fn name(&self) -> &'static str {
        "none"
    }
}
