//! The folder of an adapter of AdapterHub's library (`adapters` 1.3.0): `adapter_config.json`, `adapter.safetensors`, and
//! for a task's head `head_config.json` and `model_head.safetensors`. `load_adapter(…, use_safetensors=True)` reads it. Read are
//! the pickles of the same tensors too, which `save_adapter` writes unless asked for safetensors.
//!
//! The name of the adapter is part of every key: `bert.encoder.layer.0.output.adapters.NAME.adapter_up.weight`. Heads have
//! the names of transformers' classes (`classifier.weight`); the library's own heads (`heads.NAME.…`) are other modules
//! and are refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Save, files};
use crate::durable;
use crate::error::{Error, Result};
use crate::models::t5;
use crate::weights::{HostTensor, read_json};

/// In place of PEFT's `peft_type` in the table of methods.
pub const TYPE: &str = "AdapterHub's bottleneck adapters";
/// The adapter's tensors in its folder; a head's are in another file.
pub const WEIGHTS_FILE: &str = "adapter.safetensors";
const PICKLED: &str = "pytorch_adapter.bin";
const HEAD_FILE: &str = "model_head.safetensors";
const PICKLED_HEAD: &str = "pytorch_model_head.bin";
/// What is in the file of a head.
pub const HEAD_CONFIG: &str = "head_config.json";
/// Files of the folder that no other kind of adapter has.
pub const FILES: [&str; 3] = [WEIGHTS_FILE, HEAD_FILE, HEAD_CONFIG];
const VERSION: &str = "adapters.1.3.0";
/// Key of adapter_config.json, once it is read, that names the tensors of the head.
pub const HEAD_KEY: &str = "trimtab_head";

/// What an adapter_config.json is of, if it is AdapterHub's: [`TYPE`], or the architecture of its other methods.
pub fn kind(config: &Map<String, Value>) -> Option<&str> {
    let own = config.get("config")?.as_object()?;
    Some(own.get("architecture").and_then(Value::as_str).unwrap_or(TYPE))
}

/// Whether the folder has AdapterHub's weights.
pub fn is_folder(dir: &Path) -> bool {
    [WEIGHTS_FILE, PICKLED].iter().any(|file| dir.join(file).exists())
}

/// The tensors of an adapter and of its head, by their names in the files.
pub fn read_tensors(dir: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let about = read_json(&dir.join(files::CONFIG_FILE))?;
    let class = about.as_ref().and_then(|about| about.get("model_class")?.as_str());
    let around = class.is_some_and(t5::has_module);
    let mut tensors = BTreeMap::new();
    for files in [[WEIGHTS_FILE, PICKLED], [HEAD_FILE, PICKLED_HEAD]] {
        let (_, own) = files::read_either(dir, files)?.unwrap_or_default();
        tensors.extend(own.into_iter().map(|(name, t)| (if around { name } else { plain(name) }, t)));
    }
    if let Some(name) = tensors.keys().find(|name| name.starts_with("heads.")) {
        return Err(Error::unsupported(
            format!("{}: {name}, a head of AdapterHub's own classes", dir.display()),
            "save the adapter without it (with_head=False), or train it on a class of transformers (adapters.init)",
        ));
    }
    Ok(tensors)
}

/// The name without the module that AdapterHub's own class for T5 puts around the model.
fn plain(name: String) -> String {
    let inner = name.strip_prefix("transformer.");
    match inner.filter(|inner| inner.starts_with("encoder.block.") || inner.starts_with("decoder.block.")) {
        Some(inner) => inner.to_string(),
        None => name,
    }
}

/// Names of the labels of a folder's head by their numbers, as config.json has them in `id2label`; none if it has none.
pub fn id2label(dir: &Path) -> Result<Option<Map<String, Value>>> {
    let path = dir.join(HEAD_CONFIG);
    let Some(config) = read_json(&path)? else { return Ok(None) };
    let Some(labels) = config.get("label2id").and_then(Value::as_object) else { return Ok(None) };
    Ok(Some(labels.iter().map(|(name, id)| (id.to_string(), Value::String(name.clone()))).collect()))
}

/// Whether a tensor of the files belongs to the adapter; others are the head's.
pub fn is_adapter(name: &str) -> bool {
    name.contains(".adapters.")
}

/// What the library's config of an adapter or a head says of the model.
fn about(save: &Save, base: Option<&str>, name: Option<&str>, config: Value) -> Map<String, Value> {
    let text = |key: &str| save.config.get(key).and_then(Value::as_str).unwrap_or_default();
    let class = save.config.get("architectures").and_then(|all| all.get(0)).and_then(Value::as_str);
    [
        ("config", config),
        ("hidden_size", json!(save.facts.hidden)),
        ("model_class", json!(class)),
        ("model_name", json!(base.unwrap_or_default())),
        ("model_type", json!(text("model_type"))),
        ("name", json!(name)),
        ("version", json!(VERSION)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_string(), value))
    .collect()
}

/// Writes the folder: the adapter `name` of this `config`, trained on `base`.
pub fn write(save: &mut Save, base: Option<&str>, name: &str, config: &Map<String, Value>) -> Result<()> {
    let dir = save.dir;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let (own, head): (Vec<_>, Vec<_>) = save.tensors()?.into_iter().partition(|t| is_adapter(&t.0));
    files::write_tensors(&dir.join(WEIGHTS_FILE), &own)?;
    if !head.is_empty() {
        files::write_tensors(&dir.join(HEAD_FILE), &head)?;
        let mut about = about(save, base, None, Value::Null);
        let labels = save.config.get("label2id").cloned();
        let count = labels.as_ref().and_then(Value::as_object).map(Map::len);
        about.insert("num_labels".into(), json!(count.or_else(|| head.last()?.1.shape.first().copied())));
        if let Some(labels) = labels {
            about.insert("label2id".into(), labels);
        }
        write_json(&dir.join(HEAD_CONFIG), about)?;
    }
    let about = about(save, base, Some(name), Value::Object(config.clone()));
    let class = about["model_class"].as_str().unwrap_or("AutoModel");
    durable::write(&dir.join(files::CARD_FILE), card(base, class).as_bytes())?;
    write_json(&dir.join(files::CONFIG_FILE), about)
}

/// Keys are sorted, as the library has them.
fn write_json(path: &Path, mut object: Map<String, Value>) -> Result<()> {
    object.values_mut().filter_map(Value::as_object_mut).for_each(Map::sort_keys);
    object.sort_keys();
    durable::write(path, format!("{:#}", Value::Object(object)).as_bytes())
}

/// The model card: the header by which the Hugging Face hub files an adapter, and how to load it.
fn card(base: Option<&str>, class: &str) -> String {
    // A JSON string is a YAML string.
    let quoted = |s: &str| Value::from(s).to_string();
    let of = base.map_or(String::new(), |base| format!("base_model: {}\n", quoted(base)));
    let base = quoted(base.unwrap_or("BASE_MODEL"));
    format!(
        "---\n{of}library_name: adapters\ntags:\n- adapter-transformers\n- trimtab\n---\n\n# A bottleneck adapter\n\n\
         Trained with Trimtab {}; the files are those of AdapterHub's library.\n\n```python\nimport adapters\nfrom \
         transformers import {class}\n\nmodel = {class}.from_pretrained({base})\nadapters.init(model)\n\
         model.load_adapter(\"PATH_OF_THIS_FOLDER\", use_safetensors=True, set_active=True)\n```\n",
        env!("CARGO_PKG_VERSION")
    )
}
