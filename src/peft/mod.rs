//! Methods: what is trained, and what is added to the model for it. One file a method, hooks at sites.

pub mod config;
mod dora;
mod embedding;
pub mod files;
pub mod full;
pub mod lora;
pub mod tokens;

use std::path::Path;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Hooks, Site};

pub use config::{AdapterConfig, LoraSpec, Targets};
pub use tokens::Tokens;

/// A way to fine-tune. Every hook's default leaves the model as it is.
pub trait Method: Hooks {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Whether the method can be set on a model with these sites.
    fn check(&self, _sites: &[Site]) -> Result<()> {
        Ok(())
    }

    /// Writes what was trained in the method's own format.
    fn save(&self, _save: &mut Save) -> Result<()> {
        Err(Error::unsupported("saving a model that was not trained", "use method lora or full"))
    }
}

/// What there is to save.
pub struct Save<'a> {
    pub dir: &'a Path,
    /// Of the base model: its folder or file, its config.json, and what writes its tokenizer.json.
    pub base: &'a Path,
    pub config: &'a serde_json::Value,
    pub tokenizer: &'a dyn Fn(&Path) -> Result<()>,
    /// How whole models are written; adapters are always f32.
    pub dtype: DType,
    /// Names and shapes of what was trained.
    pub trained: &'a [(String, Vec<usize>)],
    /// Reads values of the tensor of a number in `trained`, from one of a number on: a whole model is read piece by
    /// piece, so that saving it needs no memory that training did not need.
    pub read: &'a mut Read<'a>,
    /// What [`Method::keeps`] named.
    pub kept: &'a [Trained],
}

/// (tensor, first value, where to)
pub type Read<'a> = dyn FnMut(usize, usize, &mut [f32]) -> Result<()> + 'a;

/// A trained (or kept) tensor: name, shape and values.
pub type Trained = (String, Vec<usize>, Vec<f32>);

/// Nothing is trained: the base model as it is.
pub struct Frozen;

impl Hooks for Frozen {}

impl Method for Frozen {
    fn name(&self) -> &'static str {
        "none"
    }
}
