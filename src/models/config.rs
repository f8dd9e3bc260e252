//! Reading a Hugging Face config.json: keys with defaults, and errors that name the key.

use serde_json::Value;

use crate::error::{Error, Result};

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

/// An error about a key.
pub fn bad(key: &str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::config(format!("config.json: {key}"), found.to_string(), expected)
}
