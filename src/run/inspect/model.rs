//! A model's folder or GGUF file: its family, sizes and tensors, and whether those are what the family needs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::{Found, TensorLine, broken};
use crate::backend;
use crate::base::Base;
use crate::config::Device;
use crate::dtype::DType;
use crate::models;
use crate::peft::Frozen;
use crate::session::{Options, Planned};
use crate::weights::gguf::Gguf;
use crate::weights::safetensors::SafetensorsFile;
use crate::weights::{Checkpoint, Storage};

/// A model's folder or file.
pub fn open(path: &Path, values: bool) -> Found {
    let base = match Base::open(path) {
        Ok(base) => base,
        Err(error) => return broken("model", error),
    };
    let mut found = Found::new("model");
    let text = |key: &str| base.config.get(key).and_then(Value::as_str).map(str::to_string);
    found.say("format", if path.is_dir() { "Hugging Face folder" } else { "GGUF" });
    found.say("family", text("model_type"));
    let class = base.config.get("architectures").and_then(|list| list.get(0)).cloned();
    found.say("class", class.unwrap_or_default());
    match models::read(&base.config, 2) {
        Ok(model) => {
            let facts = model.facts();
            for (name, n) in [
                ("layers", facts.layers),
                ("hidden", facts.hidden),
                ("vocabulary", facts.vocab),
                ("positions", facts.max_positions),
            ] {
                found.say(name, n);
            }
            found.say("tied head", facts.tied);
        }
        Err(error) => found.faults.push(error.to_string()),
    }
    match base.tokenizer() {
        Ok(tokenizer) => {
            found.say("tokenizer", format!("{} tokens", tokenizer.vocab_size()));
            found.say("chat template", tokenizer.chat_template().is_some());
        }
        Err(_) => found.say("tokenizer", Value::Null),
    }
    if let Some(checkpoint) = &base.checkpoint {
        found.tensors = lines(checkpoint);
        found.count();
        found.faults.extend(checkpoint.gguf().and_then(overlap));
    }
    let base = Arc::new(base);
    if found.faults.is_empty() {
        found.faults.extend(lacks(&base));
    }
    if values {
        found.faults.extend(not_finite(&base));
    }
    found
}

/// What a model's own graph misses in its files. Of a model that is not a causal one nothing is asked: its task's head is no
/// part of every file.
fn lacks(base: &Arc<Base>) -> Option<String> {
    let classes = base.config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    if !classes.is_none_or(|class| class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel")) {
        return None;
    }
    let options = Options { train: false, evaluate: true, max_seq_len: 2, micro_tokens: 2, ..Options::default() };
    let planned = backend::open(&Device::Null)
        .and_then(|device| Planned::new(base, Box::new(Frozen), options, device))
        .and_then(|planned| planned.merged(BTreeMap::new()));
    planned.err().map(|error| error.to_string())
}

/// The first value that is not finite.
fn not_finite(base: &Base) -> Option<String> {
    const ROWS: usize = 1 << 18;
    let checkpoint = base.checkpoint.as_ref()?;
    for name in checkpoint.names() {
        let info = checkpoint.info(name)?;
        if matches!(info.stored, Storage::Other(_)) {
            continue;
        }
        let cols = info.shape.last().copied().unwrap_or(1).max(1);
        let rows: usize = info.shape[..info.shape.len().saturating_sub(1)].iter().product();
        let step = (ROWS / cols).max(1);
        for first in (0..rows).step_by(step) {
            let rows = first..rows.min(first + step);
            let mut values = vec![0.0; rows.len() * cols];
            if let Err(error) = checkpoint.read_rows(name, rows, &mut values) {
                return Some(error.to_string());
            }
            if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                return Some(format!("{name} has a value of {x}"));
            }
        }
        checkpoint.release();
    }
    None
}

/// The tensors of a checkpoint.
fn lines(checkpoint: &Checkpoint) -> Vec<TensorLine> {
    let line = |name: &str| {
        let info = checkpoint.info(name)?;
        let n: usize = info.shape.iter().product();
        let bytes = match info.stored {
            Storage::As(dtype) if dtype.is_float() => n * if dtype == DType::F32 { 4 } else { 2 },
            Storage::As(dtype) => dtype.bytes(n),
            Storage::Int8 => n + 4 * info.shape.first().copied().unwrap_or(0),
            Storage::Ggml(ty) => ty.bytes(n).unwrap_or(0),
            Storage::Other(dtype) => n * dtype.bitsize() / 8,
        };
        let (shape, stored) = (info.shape.clone(), info.stored.name());
        Some(TensorLine { name: name.into(), shape, stored, bytes: bytes as u64 })
    };
    checkpoint.names().filter_map(line).collect()
}

/// Two tensors of a GGUF file that share bytes.
fn overlap(gguf: &Gguf) -> Option<String> {
    let mut all: Vec<_> = gguf.tensors().filter(|t| !t.bytes.is_empty()).collect();
    all.sort_by_key(|t| t.bytes.start);
    let pair = all.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start)?;
    Some(format!("{} and {} share bytes", pair[0].name, pair[1].name))
}

/// One safetensors file.
pub fn tensors(file: &SafetensorsFile) -> Found {
    let mut found = Found::new("tensors");
    let line = |name: String| {
        let view = file.get(&name)?;
        let stored = format!("{:?}", view.dtype).to_lowercase();
        Some(TensorLine { shape: view.shape.to_vec(), stored, bytes: view.bytes.len() as u64, name })
    };
    found.tensors = file.names().into_iter().filter_map(line).collect();
    found.count();
    if !file.metadata().is_empty() {
        let metadata = file.metadata().into_iter().map(|(key, value)| (key, Value::String(value)));
        found.say("metadata", Value::Object(metadata.collect()));
    }
    found
}
