//! The rotary settings of a config.json: `rope_parameters` as transformers 5 writes it, or `rope_theta` and
//! `rope_scaling` of older files. As in transformers 5.23, `rope_scaling` wins where a file has both, and nothing of the
//! other is read then; what the settings lack is at the top of the file. Either may be nested: settings for each type of
//! layers.

use serde_json::{Map, Value};

use super::config::bad;
use crate::error::{Error, Result};
use crate::ops::rope::{RopeScaling, RopeSpec, Yarn};

/// The two places of the settings, that which wins first.
const PLACES: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// What the settings may hold.
const KEYS: [&str; 16] = [
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "partial_rotary_factor",
];

/// Settings and what they are called.
#[derive(Clone, Copy)]
struct Settings<'a> {
    config: &'a Value,
    place: &'static str,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Settings<'a> {
    fn of(config: &'a Value) -> Result<Settings<'a>> {
        for place in PLACES {
            match config.get(place) {
                None | Some(Value::Null) => {}
                Some(Value::Object(map)) if map.is_empty() => {}
                Some(Value::Object(map)) => return Ok(Settings { config, place, map: Some(map) }),
                Some(other) => return Err(bad(place, other, "an object")),
            }
        }
        Ok(Settings { config, place: PLACES[1], map: None })
    }

    /// Those for layers of a type.
    fn of_layer(self, kind: &str) -> Result<Settings<'a>> {
        let Some(map) = self.map.filter(|map| map.values().any(Value::is_object)) else { return Ok(self) };
        match map.get(kind) {
            Some(Value::Object(own)) => Ok(Settings { map: Some(own), ..self }),
            found => {
                let found = found.map_or("nothing".into(), |v| v.to_string());
                Err(bad(&format!("{}.{kind}", self.place), found, "an object: settings for layers of that type"))
            }
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.and_then(|map| map.get(key)).filter(|v| !v.is_null())
    }

    fn error(&self, key: &str, found: impl ToString, expected: &str) -> Error {
        bad(&format!("{}.{key}", self.place), found, expected)
    }

    /// A number of the settings.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.error(key, v, "a number")),
        }
    }

    /// A number that must be there.
    fn needed(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.error(key, "nothing", "a number"))
    }

    /// A number of the settings, or of the top of the file.
    fn or_top(&self, key: &str) -> Result<Option<f64>> {
        match (self.number(key)?, self.config.get(key)) {
            (None, Some(v)) if !v.is_null() => v.as_f64().map(Some).ok_or_else(|| bad(key, v, "a number")),
            (own, _) => Ok(own),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<f64>> {
        let numbers = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(v) => numbers(v).ok_or_else(|| self.error(key, v, "a list of numbers")),
        }
    }
}

/// The rotation of layers of the type `kind` (`full_attention`, `sliding_attention`).
pub fn spec(config: &Value, kind: &str, head_dim: usize, max_positions: usize) -> Result<RopeSpec> {
    let all = Settings::of(config)?;
    let settings = all.of_layer(kind)?;
    let theta = settings.or_top("rope_theta")?.unwrap_or(10_000.0);
    if settings.or_top("partial_rotary_factor")?.is_some_and(|p| p != 1.0) {
        return Err(Error::unsupported("a partial rotary embedding", "use a model whose heads are rotated whole"));
    }
    // A top-level original length overrides the one of settings for all layers; without either it is the config's length.
    let top = config.get("original_max_position_embeddings").and_then(Value::as_f64);
    let own = settings.number("original_max_position_embeddings")?;
    let nested = all.map != settings.map;
    let original = if nested { own } else { top.or(own) }.map_or(max_positions, |n| n as usize);
    let name = settings.get("rope_type").or(settings.get("type"));
    let name = name.map_or(Ok("default"), |v| v.as_str().ok_or_else(|| settings.error("rope_type", v, "a name")))?;
    let scaling = match name {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: settings.needed("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: settings.needed("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: settings.needed("factor")?,
            low_freq_factor: settings.needed("low_freq_factor")?,
            high_freq_factor: settings.needed("high_freq_factor")?,
            original_max_positions: original,
        },
        "yarn" => {
            let defaults = Yarn::new(settings.number("factor")?, original);
            // Zero means the default, as `or` does in Python.
            let beta = |key: &str| Ok::<_, Error>(settings.number(key)?.filter(|b| *b != 0.0));
            RopeScaling::Yarn(Yarn {
                attention_factor: settings.number("attention_factor")?,
                mscale: settings.number("mscale")?,
                mscale_all_dim: settings.number("mscale_all_dim")?,
                beta_fast: beta("beta_fast")?.unwrap_or(defaults.beta_fast),
                beta_slow: beta("beta_slow")?.unwrap_or(defaults.beta_slow),
                truncate: settings.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                ..defaults
            })
        }
        "longrope" | "su" => RopeScaling::Longrope {
            short_factor: settings.list("short_factor")?,
            long_factor: settings.list("long_factor")?,
            factor: settings.number("factor")?,
            attention_factor: settings.number("attention_factor")?,
            original_max_positions: original,
        },
        other => return Err(settings.error("rope_type", other, "default, linear, dynamic, llama3, yarn or longrope")),
    };
    Ok(RopeSpec { theta, dim: head_dim, max_positions, scaling })
}

/// Keys of the settings that nobody reads, with the name of the place.
pub fn unknown(config: &Value) -> Vec<String> {
    let Ok(Settings { place, map: Some(map), .. }) = Settings::of(config) else { return Vec::new() };
    let nested = map.iter().filter_map(|(_, v)| v.as_object()).flatten();
    let keys = map.iter().filter(|(_, v)| !v.is_object()).chain(nested).map(|(key, _)| key.as_str());
    keys.filter(|key| !KEYS.contains(key)).map(|key| format!("{place}.{key}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every key that transformers reads of the settings is read here.
    #[test]
    fn the_settings_keys_are_those_of_transformers() {
        let keys: Value = serde_json::from_str(include_str!("../../tests/golden/config_keys.json")).unwrap();
        let theirs: Vec<&str> = keys["rope_parameters"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(theirs.len() > 12);
        for key in theirs {
            assert!(KEYS.contains(&key), "{key}");
        }
    }

    #[test]
    fn rope_scaling_wins_and_theta_is_at_the_top() {
        let both = json!({
            "rope_theta": 5e5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rope_scaling": {"type": "linear", "factor": 4.0},
        });
        let spec = |config: &Value, kind| super::spec(config, kind, 16, 64);
        let found = spec(&both, "full_attention").unwrap();
        assert_eq!((found.theta, found.scaling), (5e5, RopeScaling::Linear { factor: 4.0 }));
        let empty = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": {}});
        assert_eq!(spec(&empty, "full_attention").unwrap().theta, 1e6);
        let nested = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default"},
        }});
        assert_eq!(spec(&nested, "full_attention").unwrap().scaling, RopeScaling::Linear { factor: 8.0 });
        assert_eq!(spec(&nested, "sliding_attention").unwrap().theta, 1e4);
        let error = spec(&nested, "chunked_attention").unwrap_err().to_string();
        assert!(error.contains("rope_parameters.chunked_attention: found nothing"), "{error}");
        for (wrong, part) in [
            (json!({"rope_scaling": "linear"}), "rope_scaling: found \"linear\""),
            (json!({"rope_scaling": {"type": "linear", "factor": "4"}}), "rope_scaling.factor: found \"4\""),
            (json!({"rope_parameters": {"rope_type": "ntk"}}), "rope_parameters.rope_type: found ntk"),
        ] {
            let error = spec(&wrong, "full_attention").unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let more = json!({"rope_scaling": {"type": "linear", "factor": 4.0, "mrope_section": [1]}});
        assert_eq!(unknown(&more), ["rope_scaling.mrope_section"]);
    }

    #[test]
    fn a_zero_beta_is_the_default() {
        let config = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 0, "beta_slow": 0.5}});
        let RopeScaling::Yarn(yarn) = super::spec(&config, "full_attention", 16, 64).unwrap().scaling else {
            panic!("not yarn")
        };
        assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.original_max_positions), (32.0, 0.5, 64));
    }
}
