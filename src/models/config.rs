//! Reading a Hugging Face config.json: keys with defaults, and errors that name the key.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::Activation;

/// The most features of a layer, or rows of a table. The bytes of all weights of [`MOST_LAYERS`] layers fit in 64 bits.
pub const MOST_FEATURES: usize = 1 << 22;
/// The most layers: what is known of each is in a list, and a model is written layer by layer.
pub const MOST_LAYERS: usize = 10_000;
/// The longest sequence or distance: no size is made of it alone.
const MOST_POSITIONS: usize = u32::MAX as usize;

/// A positive whole number that weights' shapes are made of; without a default it must be there.
pub fn size(config: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    up_to(MOST_FEATURES, config, key, default)
}

/// A number of layers; without a default it must be there.
pub fn layer_count(config: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    up_to(MOST_LAYERS, config, key, default)
}

/// A number of positions that no weight's shape is made of; without a default it must be there.
pub fn position_count(config: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    up_to(MOST_POSITIONS, config, key, default)
}

fn up_to(most: usize, config: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    match (config.get(key), default) {
        (None | Some(Value::Null), Some(d)) => Ok(d),
        (Some(Value::Number(n)), _) if n.as_u64().is_some_and(|n| (1..=most as u64).contains(&n)) => {
            Ok(n.as_u64().unwrap_or(1) as usize)
        }
        (found, _) => {
            Err(bad(key, found.map_or("nothing".into(), |v| v.to_string()), format!("a whole number from 1 to {most}")))
        }
    }
}

/// Features of all heads of a layer, whose number `key` is.
pub fn head_features(key: &str, heads: usize, head_dim: usize) -> Result<usize> {
    match heads.saturating_mul(head_dim) {
        all @ ..=MOST_FEATURES => Ok(all),
        _ => Err(bad(key, heads, format!("at most {MOST_FEATURES} features of all heads, which have {head_dim} each"))),
    }
}

/// A number, if it is there.
pub fn number(config: &Value, key: &str) -> Option<f64> {
    config.get(key).and_then(Value::as_f64)
}

/// The row of an embedding of `vocab` that learns nothing from being read: transformers has `pad_token_id` for PyTorch's
/// `padding_idx`, which counts from the end below 0. `default`: the id where the key is absent.
pub fn padding(config: &Value, vocab: usize, default: Option<i64>) -> Option<usize> {
    let id = config.get("pad_token_id").map_or(default, Value::as_i64)?;
    let row = if id < 0 { id.checked_add(vocab as i64)? } else { id };
    usize::try_from(row).ok().filter(|row| *row < vocab)
}

/// A boolean; false if it is not there.
pub fn flag(config: &Value, key: &str) -> bool {
    config.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// A string, if it is there.
pub fn text<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

/// An activation by transformers' name for it.
pub fn activation(config: &Value, key: &str, default: &str) -> Result<Activation> {
    let name = text(config, key).unwrap_or(default);
    activation_named(name).ok_or_else(|| bad(key, name, ACTIVATIONS))
}

/// The names of activations.
pub const ACTIVATIONS: &str = "gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu, swish or tanh";

/// The activation that transformers calls so.
pub fn activation_named(name: &str) -> Option<Activation> {
    match name {
        "gelu" => Some(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Activation::GeluTanh),
        "quick_gelu" => Some(Activation::QuickGelu),
        "relu" => Some(Activation::Relu),
        "silu" | "swish" => Some(Activation::Silu),
        "tanh" => Some(Activation::Tanh),
        _ => None,
    }
}

/// A rate of dropout, and what it is where the config does not say.
pub fn rate(config: &Value, key: &str, default: f32) -> Result<f32> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => match v.as_f64() {
            Some(p) if (0.0..1.0).contains(&p) => Ok(p as f32),
            _ => Err(bad(key, v, "a number from 0 to below 1")),
        },
    }
}

/// An error about a key.
pub fn bad(key: &str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::config(format!("config.json: {key}"), found.to_string(), expected)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models;

    /// What is made of a size, and the bytes of all weights together, fits in 64 bits.
    #[test]
    fn sizes_that_are_none_are_errors() {
        let llama = json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
            "num_hidden_layers": 1, "vocab_size": 8});
        let t5 = json!({"model_type": "t5", "d_model": 4, "d_kv": 2, "d_ff": 6, "num_layers": 1, "num_heads": 2,
            "vocab_size": 8});
        let bert = json!({"model_type": "bert", "hidden_size": 4, "num_attention_heads": 2, "vocab_size": 8});
        let roberta = json!({"model_type": "roberta", "vocab_size": 8});
        let gpt2 = json!({"model_type": "gpt2"});
        let table = [
            (&llama, "num_hidden_layers", json!(10_000), json!(10_001)),
            (&llama, "hidden_size", json!(1 << 22), json!((1 << 22) + 1)),
            (&llama, "head_dim", json!(1 << 21), json!(1 << 22)),
            (&llama, "max_position_embeddings", json!(u32::MAX), json!(1u64 << 32)),
            (&llama, "vocab_size", json!(8), json!(0)),
            (&llama, "vocab_size", json!(8), json!(8.5)),
            (&llama, "intermediate_size", json!(1), json!(-1)),
            (&t5, "num_layers", json!(10_000), json!(10_001)),
            (&t5, "num_decoder_layers", json!(10_000), json!(u64::MAX)),
            (&t5, "num_heads", json!(1 << 21), json!(1 << 22)),
            (&bert, "num_hidden_layers", json!(10_000), json!(10_001)),
            (&bert, "max_position_embeddings", json!(1 << 22), json!(1u64 << 32)),
            (&roberta, "pad_token_id", json!(-1), json!(-2)),
            (&roberta, "pad_token_id", json!(511), json!(512)),
            (&roberta, "pad_token_id", json!(0), json!(i64::MAX)),
            (&gpt2, "n_layer", json!(10_000), json!(10_001)),
        ];
        for (config, key, right, wrong) in table {
            let with = |value: &Value| {
                let mut config = config.clone();
                config[key] = value.clone();
                models::read(&config, 16).map(drop)
            };
            with(&right).unwrap();
            let error = with(&wrong).unwrap_err().to_string();
            // The features of all heads are told of their number.
            assert!(error.contains(key) || key == "head_dim" && error.contains("heads"), "{key} = {wrong}: {error}");
        }
    }
}
