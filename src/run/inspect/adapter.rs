//! An adapter: PEFT's folder, AdapterHub's, or a GGUF file of llama.cpp.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Found, TensorLine, broken};
use crate::peft::{self, AdapterConfig};
use crate::quant::ggml;
use crate::weights::gguf::Gguf;

/// Keys of adapter_config.json that are shown where they say something.
const SHOWN: [&str; 14] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "bias",
    "target_modules",
    "feedforward_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "num_virtual_tokens",
    "layers_to_transform",
    "task_type",
];

/// An adapter's folder.
pub fn folder(path: &Path) -> Found {
    let opened = match peft::open(path) {
        Ok(opened) => opened,
        Err(error) => return broken("adapter", error),
    };
    let mut found = Found::new("adapter");
    found.say("method", opened.method.def().name);
    let empty = |v: &Value| v.is_null() || *v == json!([]) || *v == json!({}) || *v == json!(false);
    for key in SHOWN {
        if let Some(value) = opened.config.get(key).filter(|v| !empty(v)) {
            found.say(key, value.clone());
        }
    }
    let base = ["base_model_name_or_path", "model_name"].iter().find_map(|key| opened.config.get(*key));
    found.say("base model", base.cloned().unwrap_or_default());
    for (name, tensor) in &opened.tensors {
        if let Some(x) = tensor.data.iter().find(|x| !x.is_finite()) {
            found.faults.push(format!("{name} has a value of {x}"));
        }
        let bytes = 4 * tensor.data.len() as u64;
        found.tensors.push(TensorLine { name: name.clone(), shape: tensor.shape.clone(), stored: "f32".into(), bytes });
    }
    if opened.method.def().name == "lora" {
        found.faults.extend(unlike(&opened.config, &found.tensors));
    }
    if found.tensors.is_empty() {
        found.faults.push("no tensors".into());
    }
    found.count();
    found
}

/// A factor whose rank is not the one that the config gives its module.
fn unlike(config: &Map<String, Value>, tensors: &[TensorLine]) -> Option<String> {
    let config = AdapterConfig::parse(&Value::Object(config.clone()).to_string()).ok()?;
    tensors.iter().find_map(|t| {
        let module = t.name.strip_suffix(".lora_A.weight")?;
        let wanted = config.spec(peft::files::tensor(module)).ok()?.rank;
        let other = tensors.iter().find(|other| other.name == format!("{module}.lora_B.weight"));
        let ranks = (t.shape.first().copied(), other.and_then(|b| b.shape.get(1).copied()));
        (ranks != (Some(wanted), Some(wanted))).then(|| match other {
            Some(b) => format!("factors {:?} and {:?} of {module}, whose rank is {wanted}", t.shape, b.shape),
            None => format!("{} without its other factor", t.name),
        })
    })
}

/// A GGUF file of an adapter.
pub fn gguf(gguf: &Gguf) -> Found {
    let mut found = Found::new("gguf adapter");
    let text = |key: &str| gguf.string(key).ok().flatten().map(str::to_string);
    found.say("method", text("adapter.type"));
    found.say("alpha", gguf.float("adapter.lora.alpha").ok().flatten());
    found.say("family", text("general.architecture"));
    for t in gguf.tensors() {
        let mut values = vec![0f32; t.shape.iter().product()];
        ggml::dequantize(t.ty, gguf.data(t), &mut values);
        found.faults.extend(values.iter().find(|x| !x.is_finite()).map(|x| format!("{} has a value of {x}", t.name)));
        let (shape, stored, bytes) = (t.shape.clone(), t.ty.name().into(), t.bytes.len() as u64);
        found.tensors.push(TensorLine { name: t.name.clone(), shape, stored, bytes });
    }
    found.count();
    found
}
