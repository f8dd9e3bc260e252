//! Reading a Hugging Face config.json: keys with defaults, and errors that name the key.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::Activation;

/// A positive whole number; without a default it must be there.
pub fn size(config: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    match (config.get(key), default) {
        (None | Some(Value::Null), Some(d)) => Ok(d),
        (Some(Value::Number(n)), _) if n.as_u64().is_some_and(|n| (1..=1 << 32).contains(&n)) => {
            Ok(n.as_u64().unwrap_or(1) as usize)
        }
        (found, _) => Err(bad(key, found.map_or("nothing".into(), |v| v.to_string()), "a positive whole number")),
    }
}

/// A number, if it is there.
pub fn number(config: &Value, key: &str) -> Option<f64> {
    config.get(key).and_then(Value::as_f64)
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
