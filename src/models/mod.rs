//! Model families, one file each, found by `model_type` of config.json.

pub mod bert;
pub mod config;
pub mod gpt2;
mod keys;
pub mod llama;
pub mod rope;
pub mod t5;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::Nn;
use crate::nn::layers::Pool;

/// What there is to know of a model besides its graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Features of a hidden state.
    pub hidden: usize,
    /// Layers of the stack whose hidden states the task reads.
    pub layers: usize,
    /// Heads of keys and values, in a layer.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Longest sequence that the positions of the base model were made for.
    pub max_positions: usize,
    /// Positions are rows of a table: there are none beyond.
    pub bounded: bool,
    /// Standard deviation with which a fresh weight is drawn.
    pub init_std: f32,
    /// The module that holds all but the heads; a checkpoint of the bare model has its tensors without it.
    pub prefix: &'static str,
    /// Modules of heads that PEFT does not know for heads, so that an adapter's config has to name them.
    pub heads: &'static [&'static str],
    /// An encoder: every token sees all of its sequence, and text is not continued.
    pub encoder: bool,
    /// The token before the first target, in encoder-decoders.
    pub decoder_start: Option<i32>,
    /// The modules of the head over the vocabulary and of the embedding.
    pub head: [String; 2],
    /// Whether those two have one weight.
    pub tied: bool,
}

/// The head over the vocabulary: `x Wᵀ (+ bias)`.
#[derive(Clone, Copy, Debug)]
pub struct LmHead {
    /// `[T, hidden]`
    pub x: Val,
    /// `[vocabulary, hidden]`
    pub w: Val,
    /// `[vocabulary]`
    pub bias: Option<Val>,
}

/// A model as a graph: from the inputs of `nn` to hidden states, and the heads that turn them into logits.
pub trait Model: Send + Sync {
    /// What there is to know besides.
    fn facts(&self) -> &Facts;

    /// The hidden states [T, hidden] of the main stream's tokens, after the last norm.
    fn hidden(&self, nn: &mut Nn) -> Result<Val>;

    /// The head over the vocabulary; its weight is the embedding itself where they are tied.
    fn lm_head(&self, nn: &mut Nn, x: Val) -> Result<LmHead>;

    /// Logits [sequences, labels] of whole sequences. Decoders read the last token, and the head is `score` without
    /// bias (transformers' `GenericForSequenceClassification`).
    fn classify(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        let last = nn.pool(x, Pool::Last)?;
        nn.head_linear("score", last, labels, false, self.facts().init_std)
    }

    /// Logits [T, labels] of tokens. The head of decoders is `score` with a bias (`GenericForTokenClassification`).
    fn tag(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        nn.head_linear("score", x, labels, true, self.facts().init_std)
    }

    /// Logits [T, 2] of the first and last token of an answer (`qa_outputs`).
    fn span(&self, nn: &mut Nn, x: Val) -> Result<Val> {
        nn.head_linear("qa_outputs", x, 2, true, self.facts().init_std)
    }

    /// The encoder of an encoder-decoder, and keys and values of its tokens kept for the decoder: what generation runs
    /// once.
    fn encode(&self, _nn: &mut Nn) -> Result<()> {
        Err(Error::unsupported("an encoder of a model that has none", "a model with an encoder and a decoder"))
    }
}

/// A family: the `model_type`s it reads, the keys it knows, and how it reads a config for sequences of at most `positions`
/// tokens.
pub struct Family {
    /// The values of `model_type` in config.json.
    pub types: &'static [&'static str],
    /// The keys of config.json that it knows, and what each does.
    pub keys: &'static [keys::Row],
    /// The model of a checked config.json, for sequences of at most so many tokens; an error names the key at fault.
    pub read: fn(&Value, usize) -> Result<Box<dyn Model>>,
}

/// Every family.
pub static FAMILIES: &[Family] = &[llama::FAMILY, gpt2::FAMILY, t5::FAMILY, bert::FAMILY];

/// The family of a config, and its type.
fn family(config: &Value) -> Result<(&'static Family, &str)> {
    let found = config.get("model_type").and_then(Value::as_str).unwrap_or("nothing");
    match FAMILIES.iter().find(|f| f.types.contains(&found)) {
        Some(family) => Ok((family, found)),
        None => {
            let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.types).copied().collect();
            Err(Error::config("config.json: model_type", found, format!("one of {}", known.join(", "))))
        }
    }
}

/// The model that `config` (a Hugging Face config.json) describes.
pub fn read(config: &Value, positions: usize) -> Result<Box<dyn Model>> {
    let (family, kind) = family(config)?;
    keys::check(family.keys, config)?;
    (family.read)(&keys::named(kind, config), positions)
}

/// What there is to say of a config: values that are not applied, keys that nobody knows.
pub fn notes(config: &Value) -> Vec<String> {
    family(config).map_or(Vec::new(), |(family, _)| keys::notes(family.keys, config))
}

/// `config` with the head tied to the embedding, or not. T5 scales what enters the head by what its file says, not by this.
pub fn set_tied(config: &mut Value, tied: bool) {
    let t5 = config.get("model_type").and_then(Value::as_str) == Some("t5");
    let Some(map) = config.as_object_mut() else { return };
    let before = map.insert("tie_word_embeddings".into(), tied.into());
    if t5 {
        let scaled = before.and_then(|v| v.as_bool()).unwrap_or(true);
        map.entry("scale_decoder_outputs").or_insert(scaled.into());
    }
}
