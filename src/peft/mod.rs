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
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Nn, Role, Site};
use crate::session::Base;

pub use config::{AdapterConfig, LoraSpec, Targets};
pub use tokens::Tokens;

/// A way to fine-tune. Every hook's default leaves the model as it is.
pub trait Method {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Whether a weight of the base model is trained itself.
    fn trains(&self, _name: &str, _role: Role) -> bool {
        false
    }

    /// Under which name the method keeps a weight of the base model that it trains.
    fn key(&self, name: &str) -> String {
        name.to_string()
    }

    /// Under which name the method writes a weight of the base model that it does not train, if it does.
    fn keeps(&self, _name: &str, _role: Role) -> Result<Option<String>> {
        Ok(None)
    }

    /// Whether the method can be set on a model.
    fn check(&self, _model: &dyn Model) -> Result<()> {
        Ok(())
    }

    /// Writes what was trained in the method's own format.
    fn save(&self, _save: &mut Save) -> Result<()> {
        Err(Error::unsupported("saving a model that was not trained", "use method lora or full"))
    }

    /// The linear layer at `site`.
    fn linear(&self, nn: &mut Nn, _site: &Site, x: Val, w: Val, bias: Option<Val>) -> Result<Val> {
        nn.plain_linear(x, w, bias, None)
    }

    /// What the tokens of the batch become at `site`: rows of `table`, times `scale`.
    fn embed(&self, nn: &mut Nn, _site: &Site, table: Val, scale: f32) -> Result<Val> {
        nn.plain_embed(table, scale)
    }

    /// The weight of the output head at `site`, which is that of the module `tied` if there is one.
    fn head(&self, _nn: &mut Nn, _site: &Site, _tied: Option<&str>, w: Val) -> Result<Val> {
        Ok(w)
    }
}

/// What there is to save.
pub struct Save<'a> {
    pub dir: &'a Path,
    pub base: &'a Base,
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

impl Method for Frozen {
    fn name(&self) -> &'static str {
        "none"
    }
}
