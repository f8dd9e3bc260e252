//! Model families, one file each, found by `model_type` of config.json.

pub mod llama;
mod rope;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::Nn;

/// A language model as a graph: from the inputs of `nn` to the hidden states behind its last norm, and the weight
/// that turns them into logits.
pub trait Model {
    /// The hidden states [T, hidden] of the batch's tokens.
    fn hidden(&self, nn: &mut Nn) -> Result<Val>;
    /// The weight [vocabulary, hidden] of the output head; the embedding itself where they are tied.
    fn head(&self, nn: &mut Nn) -> Result<Val>;
    /// The module path of the embedding.
    fn embedding(&self) -> &str {
        "model.embed_tokens"
    }
    /// The module path of the output head.
    fn head_path(&self) -> &str {
        "lm_head"
    }
    /// Number of tokens in the vocabulary.
    fn vocab(&self) -> usize;
    /// Longest sequence the positions of the base model were made for.
    fn max_positions(&self) -> usize;
    /// Standard deviation with which a fresh weight is drawn.
    fn init_std(&self) -> f32;
    /// All linear layers that a method may target, by module path.
    fn linears(&self) -> Vec<String>;
    /// The sliding window, where there is one: generation needs it to choose the keys a token sees.
    fn window(&self) -> Option<usize>;
}

/// A family: the `model_type`s it reads, and how it reads a config for sequences of at most `positions` tokens.
pub struct Family {
    pub types: &'static [&'static str],
    pub read: fn(&Value, usize) -> Result<Box<dyn Model>>,
}

pub static FAMILIES: &[Family] = &[llama::FAMILY];

/// The model that `config` (a Hugging Face config.json) describes.
pub fn read(config: &Value, positions: usize) -> Result<Box<dyn Model>> {
    let found = config.get("model_type").and_then(Value::as_str).unwrap_or("nothing");
    match FAMILIES.iter().find(|f| f.types.contains(&found)) {
        Some(family) => (family.read)(config, positions),
        None => {
            let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.types).copied().collect();
            Err(Error::config("config.json: model_type", found, format!("one of {}", known.join(", "))))
        }
    }
}
