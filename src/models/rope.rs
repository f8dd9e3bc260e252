//! The rotary settings of a config.json: `rope_parameters` as transformers 5 writes it, or `rope_theta` and
//! `rope_scaling` of older files.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::rope::{RopeScaling, RopeSpec, Yarn};

pub fn spec(config: &Value, head_dim: usize, max_positions: usize) -> Result<RopeSpec> {
    let settings = ["rope_parameters", "rope_scaling"].iter().find_map(|k| config.get(*k).filter(|v| v.is_object()));
    let number = |key: &str| settings.and_then(|s| s.get(key)).and_then(Value::as_f64);
    let factor = |key: &str| {
        number(key).ok_or_else(|| Error::config(format!("config.json: rope_scaling.{key}"), "nothing", "a number"))
    };
    let theta = number("rope_theta").or(config.get("rope_theta").and_then(Value::as_f64)).unwrap_or(10_000.0);
    let partial = number("partial_rotary_factor").or(config.get("partial_rotary_factor").and_then(Value::as_f64));
    if partial.is_some_and(|p| p != 1.0) {
        return Err(Error::unsupported("a partial rotary embedding", "use a model whose heads are rotated whole"));
    }
    // A top-level original length overrides the nested one; without either it is the length of the config.
    let original = config.get("original_max_position_embeddings").and_then(Value::as_f64);
    let original = original.or(number("original_max_position_embeddings")).map_or(max_positions, |n| n as usize);
    let list = |key: &str| -> Vec<f64> {
        let found = settings.and_then(|s| s.get(key)).and_then(Value::as_array);
        found.map_or(Vec::new(), |a| a.iter().filter_map(Value::as_f64).collect())
    };
    let kind = settings.and_then(|s| s.get("rope_type").or(s.get("type"))).and_then(Value::as_str).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: factor("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: factor("factor")?,
            low_freq_factor: factor("low_freq_factor")?,
            high_freq_factor: factor("high_freq_factor")?,
            original_max_positions: original,
        },
        "yarn" => {
            let defaults = Yarn::new(number("factor"), original);
            RopeScaling::Yarn(Yarn {
                attention_factor: number("attention_factor"),
                mscale: number("mscale"),
                mscale_all_dim: number("mscale_all_dim"),
                beta_fast: number("beta_fast").unwrap_or(defaults.beta_fast),
                beta_slow: number("beta_slow").unwrap_or(defaults.beta_slow),
                truncate: settings.and_then(|s| s.get("truncate")).and_then(Value::as_bool).unwrap_or(true),
                ..defaults
            })
        }
        "longrope" | "su" => RopeScaling::Longrope {
            short_factor: list("short_factor"),
            long_factor: list("long_factor"),
            factor: number("factor"),
            attention_factor: number("attention_factor"),
            original_max_positions: original,
        },
        other => {
            return Err(Error::config(
                "config.json: rope_type",
                other,
                "default, linear, dynamic, llama3, yarn or longrope",
            ));
        }
    };
    Ok(RopeSpec { theta, dim: head_dim, max_positions, scaling })
}
