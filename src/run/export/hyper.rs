//! The metadata of a GGUF file that a config.json amounts to: sizes, rotary settings, and the architecture.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::{self, config, rope};
use crate::ops::rope::{RopeScaling, RopeSpec};
use crate::weights::from_gguf::llama3_factor;
use crate::weights::gguf_names::{ARCHITECTURES, Architecture, ROPE_FREQUENCIES};
use crate::weights::gguf_write::Meta;

/// What a model is to llama.cpp.
pub struct Hyper {
    /// The conventions of its tensors.
    pub architecture: &'static Architecture,
    /// `ARCHITECTURE.*`.
    pub entries: Vec<(String, Meta)>,
    /// Heads of queries, and of keys and values.
    pub heads: (usize, usize),
    /// Number of layers.
    pub layers: usize,
    /// Rotary frequency factors, which are in the file as [`ROPE_FREQUENCIES`].
    pub frequencies: Option<Vec<f32>>,
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::unsupported(what, "keep the Hugging Face folder: llama.cpp has no such model")
}

impl Hyper {
    /// Of a config.json.
    pub fn of(config: &Value) -> Result<Hyper> {
        let facts = models::read(config, 2)?.facts().clone();
        let kind = config::text(config, "model_type").unwrap_or_default();
        // llama.cpp calls Mistral llama.
        let name = if kind == "mistral" { "llama" } else { kind };
        let Some(architecture) = ARCHITECTURES.iter().find(|a| a.name == name) else {
            let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
            let hint = format!("a model of {} or mistral", known.join(", "));
            return Err(Error::unsupported(format!("a GGUF file of model_type {kind}"), hint));
        };
        let act = config::text(config, "hidden_act");
        let usual = act.is_none_or(|act| act == architecture.activation || name == "gemma" && act == "gelu");
        if !usual {
            return Err(unsupported(format!("a GGUF file of a {kind} with hidden_act {}", act.unwrap_or_default())));
        }
        let heads = config::size(config, "num_attention_heads", None)?;
        let mut entries = Vec::new();
        let mut set = |key: &str, value: Meta| entries.push((format!("{name}.{key}"), value));
        let uint = |n: usize| Meta::Uint(n as u32);
        set("context_length", uint(facts.max_positions));
        set("embedding_length", uint(facts.hidden));
        set("block_count", uint(facts.layers));
        set("feed_forward_length", uint(config::size(config, "intermediate_size", None)?));
        set("attention.head_count", uint(heads));
        set("attention.head_count_kv", uint(facts.kv_heads));
        set("attention.key_length", uint(facts.head_dim));
        set("attention.value_length", uint(facts.head_dim));
        let eps = config::number(config, "rms_norm_eps").unwrap_or(1e-6);
        set("attention.layer_norm_rms_epsilon", Meta::Float(eps as f32));
        set("vocab_size", uint(facts.vocab));
        if let Some(window) = window(config, kind)? {
            set("attention.sliding_window", uint(window));
        }
        let rope = rope::spec(config, "full_attention", facts.head_dim, facts.max_positions)?;
        set("rope.dimension_count", uint(facts.head_dim));
        set("rope.freq_base", Meta::Float(rope.theta as f32));
        let mut frequencies = None;
        match &rope.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => {
                set("rope.scaling.type", Meta::String("linear".into()));
                set("rope.scaling.factor", Meta::Float(*factor as f32));
            }
            RopeScaling::Llama3 { .. } => frequencies = Some(llama3(&rope)),
            RopeScaling::Yarn(yarn) if yarn.truncate && yarn.mscale.is_none() && yarn.mscale_all_dim.is_none() => {
                let ratio = facts.max_positions as f64 / yarn.original_max_positions.max(1) as f64;
                let factor = yarn.factor.unwrap_or(ratio);
                set("rope.scaling.type", Meta::String("yarn".into()));
                set("rope.scaling.factor", Meta::Float(factor as f32));
                set("rope.scaling.original_context_length", uint(yarn.original_max_positions));
                set("rope.scaling.yarn_beta_fast", Meta::Float(yarn.beta_fast as f32));
                set("rope.scaling.yarn_beta_slow", Meta::Float(yarn.beta_slow as f32));
                if let Some(attention) = yarn.attention_factor {
                    // llama.cpp multiplies by it what YaRN has on its own.
                    let own = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                    set("rope.scaling.attn_factor", Meta::Float((attention / own) as f32));
                }
            }
            other => {
                let name = format!("{other:?}");
                let name = name.split([' ', '(', '{']).next().unwrap_or_default().to_lowercase();
                return Err(unsupported(format!("a GGUF file with rotary settings of type {name}")));
            }
        }
        Ok(Hyper { architecture, entries, heads: (heads, facts.kv_heads), layers: facts.layers, frequencies })
    }

    /// The tensor of rotary frequency factors, if there is one: its name and values.
    pub fn frequencies(&self) -> Option<(&'static str, &[f32])> {
        self.frequencies.as_deref().map(|factors| (ROPE_FREQUENCIES, factors))
    }
}

/// The window of all layers, if they have one.
fn window(config: &Value, kind: &str) -> Result<Option<usize>> {
    let windows = models::llama::windows(config, kind, config::layer_count(config, "num_hidden_layers", None)?)?;
    match windows.split_first() {
        Some((first, rest)) if rest.iter().all(|w| w == first) => Ok(*first),
        Some(_) => Err(unsupported("a GGUF file with windows that differ by layer")),
        None => Ok(None),
    }
}

/// What llama3's scaling divides each frequency by.
fn llama3(rope: &RopeSpec) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = rope.scaling else {
        return Vec::new();
    };
    let n = rope.dim / 2;
    let frequency = |i: usize| rope.theta.powf(-(i as f64) / n as f64);
    let one = |i| llama3_factor(frequency(i), factor, low_freq_factor, high_freq_factor, original_max_positions as f64);
    (0..n).map(|i| one(i) as f32).collect()
}
