//! What the folders of all PEFT methods have in common: heads that are trained along, keys of adapter_config.json.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Settings, files};
use crate::error::{Error, Result};
use crate::nn::WeightRef;
use crate::tasks;
use crate::weights::HostTensor;

/// The modules that a method trains whole beside its own tensors, and what its config says of the base model.
#[derive(Clone, Debug, Default)]
pub struct Heads {
    /// `modules_to_save`: ends of the paths of modules that are trained whole.
    pub modules: Vec<String>,
    /// PEFT's name of the task.
    pub task_type: Option<String>,
    /// The base model's folder or name (`base_model_name_or_path`).
    pub base: Option<String>,
    /// The base model's revision on the hub; kept as it is.
    pub revision: Option<String>,
}

impl Heads {
    /// Of a new adapter: the task's head.
    pub fn new(settings: &Settings) -> Heads {
        Heads {
            modules: heads(settings),
            task_type: settings.task_type.clone(),
            base: settings.base_model.clone(),
            revision: settings.lora.revision.clone(),
        }
    }

    /// Of an adapter_config.json.
    pub fn read(config: &Map<String, Value>) -> Result<Heads> {
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
        let task_type = text("task_type");
        let mut modules = names(config, "modules_to_save")?;
        add_heads(&mut modules, task_type.as_deref());
        Ok(Heads { modules, task_type, base: text("base_model_name_or_path"), revision: text("revision") })
    }

    /// The name in the file of a weight of the base model that is trained whole, if it is. As in PEFT, a module is meant
    /// by how its name ends.
    pub fn trains(&self, w: WeightRef, prefix: &str) -> Option<String> {
        saves(&self.modules, w.module()).then(|| format!("{prefix}{}", w.name))
    }

    /// The base model's name.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// The keys that every method's config has.
    pub fn config(&self, peft_type: &str) -> Map<String, Value> {
        let modules = if self.modules.is_empty() { Value::Null } else { json!(self.modules) };
        [
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base)),
            ("inference_mode", Value::Bool(true)),
            ("modules_to_save", modules),
            ("peft_type", peft_type.into()),
            ("revision", json!(self.revision)),
            ("task_type", json!(self.task_type)),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_string(), v))
        .collect()
    }
}

/// The modules that a new adapter trains whole: the task's head.
pub fn heads(settings: &Settings) -> Vec<String> {
    // Heads that PEFT does not add to the config by itself.
    let more = settings.facts.heads.iter().filter(|_| !settings.heads.is_empty());
    settings.heads.iter().chain(more).map(|m| m.to_string()).collect()
}

/// Adds the head of an adapter's task to its modules, as PEFT's class for the task does.
pub fn add_heads(modules: &mut Vec<String>, task_type: Option<&str>) {
    let heads = task_type.and_then(tasks::of_peft).map_or(&[][..], |task| task.heads);
    let missing = heads.iter().filter(|head| !modules.iter().any(|m| m == *head)).map(|head| head.to_string());
    let missing: Vec<String> = missing.collect();
    modules.extend(missing);
}

/// Whether `modules_to_save` means the module or one that it is in. As in PEFT, a module is meant by how its name ends.
pub fn saves(modules_to_save: &[String], module: &str) -> bool {
    let ends = module.match_indices('.').map(|(end, _)| end).chain([module.len()]);
    ends.map(|end| &module[..end]).any(|path| modules_to_save.iter().any(|name| path.ends_with(name.as_str())))
}

/// Whether the module, or one that it is in, is one of `modules_to_save`: no method adapts what is in them.
pub(super) fn saves_around(modules_to_save: &[String], module: &str) -> bool {
    let path = format!(".{module}.");
    modules_to_save.iter().any(|name| path.contains(&format!(".{name}.")))
}

/// A list of names, or one name; none if the key is absent or null.
pub fn names(config: &Map<String, Value>, key: &str) -> Result<Vec<String>> {
    let text = |v: &Value| v.as_str().map(str::to_string);
    let found = match config.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(name)) => Some(vec![name.clone()]),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(_) => None,
    };
    let shown = || config.get(key).map(Value::to_string).unwrap_or_default();
    let mut names: Vec<String> =
        found.ok_or_else(|| Error::config(format!("adapter_config.json: {key}"), shown(), "a list of names"))?;
    // PEFT writes a module twice where the user names what the task adds anyway.
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// The most virtual tokens, which are listed when a graph is written.
pub const MOST_TOKENS: usize = 1 << 16;

/// A whole number from 1 to `most`.
pub fn count(config: &Map<String, Value>, key: &str, most: usize) -> Result<usize> {
    let found = config.get(key).and_then(Value::as_u64).filter(|n| (1..=most as u64).contains(n));
    let shown = || config.get(key).map_or("nothing".into(), Value::to_string);
    let expected = || format!("a whole number from 1 to {most}");
    found.map(|n| n as usize).ok_or_else(|| Error::config(format!("adapter_config.json: {key}"), shown(), expected()))
}

/// Writes a folder: keys sorted, as PEFT has them.
pub fn write(
    dir: &Path,
    mut config: Map<String, Value>,
    card: &files::Card,
    tensors: &[(String, HostTensor)],
) -> Result<()> {
    config.sort_keys();
    files::write_folder(
        dir,
        &format!("{:#}", Value::Object(config)),
        card,
        files::Tensors::held(files::by_name(tensors)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::config::{MOST_FEATURES, MOST_LAYERS};
    use crate::peft::METHODS;

    /// Sizes of which a graph is written, or lists are made, are held against limits when they are read.
    #[test]
    fn sizes_that_are_none_are_errors() {
        let prefix = json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2, "num_layers": 1, "token_dim": 4,
            "num_attention_heads": 2, "encoder_hidden_size": 4, "prefix_projection": true, "trimtab_encoder": true});
        let prompt = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2});
        let table = [
            (&prefix, "num_virtual_tokens", MOST_TOKENS),
            (&prefix, "num_layers", MOST_LAYERS),
            (&prefix, "token_dim", MOST_FEATURES),
            (&prefix, "num_attention_heads", MOST_FEATURES),
            (&prefix, "encoder_hidden_size", MOST_FEATURES),
            (&prompt, "num_virtual_tokens", MOST_TOKENS),
        ];
        for (config, key, most) in table {
            let read = |value: Value| {
                let mut config = config.as_object().unwrap().clone();
                config.insert(key.into(), value);
                let def = METHODS.iter().find(|m| m.peft_type == config["peft_type"].as_str()).unwrap();
                (def.read)(&config).map(drop)
            };
            read(json!(most)).unwrap();
            for wrong in [json!(most + 1), json!(u64::MAX), json!(0), json!(-1), json!(1.5), Value::Null] {
                let error = read(wrong.clone()).unwrap_err().to_string();
                assert!(error.contains(&format!("{key}: found {wrong}")), "{error}");
            }
        }
    }
}
