//! What a path holds and whether it is sound: what `trimtab inspect` does. Nothing is computed with it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::checkpoint;
use super::folder;
use super::metrics::METRICS_FILE;
use crate::error::{Error, Result};
use crate::paths;
use crate::peft::{adapterhub, files};
use crate::weights::gguf::Gguf;
use crate::weights::safetensors::SafetensorsFile;

mod adapter;
mod data;
mod model;
mod run;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What it is: `model`, `adapter`, `gguf adapter`, `tensors`, `data`, `run`, `checkpoint`.
    pub kind: &'static str,
    /// What there is to say of it, in order.
    pub facts: Map<String, Value>,
    /// Its tensors.
    pub tensors: Vec<TensorLine>,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub stored: String,
    /// Bytes in the file; of bitsandbytes' weights, of all their parts.
    pub bytes: u64,
}

impl Found {
    fn new(kind: &'static str) -> Found {
        Found { kind, ..Found::default() }
    }

    fn say(&mut self, what: &str, value: impl Into<Value>) {
        self.facts.insert(what.into(), value.into());
    }

    /// Number of values and bytes of the tensors, in all and by type.
    fn count(&mut self) {
        let values = |t: &TensorLine| t.shape.iter().product::<usize>() as u64;
        let mut types: Vec<(&str, u64, u64)> = Vec::new();
        for t in &self.tensors {
            match types.iter_mut().find(|(name, ..)| *name == t.stored) {
                Some((_, n, bytes)) => (*n, *bytes) = (*n + values(t), *bytes + t.bytes),
                None => types.push((&t.stored, values(t), t.bytes)),
            }
        }
        let types: Vec<Value> =
            types.iter().map(|(name, n, bytes)| json!({"type": name, "parameters": n, "bytes": bytes})).collect();
        let (n, bytes) =
            (self.tensors.iter().map(values).sum::<u64>(), self.tensors.iter().map(|t| t.bytes).sum::<u64>());
        self.say("tensors", self.tensors.len());
        self.say("parameters", n);
        self.say("bytes", bytes);
        self.say("types", types);
    }

    /// As one JSON object.
    pub fn to_json(&self, path: &Path, tensors: bool) -> Value {
        let mut object = Map::new();
        object.insert("path".into(), json!(path.display().to_string()));
        object.insert("kind".into(), json!(self.kind));
        object.insert("sound".into(), json!(self.faults.is_empty()));
        object.insert("faults".into(), json!(self.faults));
        object.extend(self.facts.clone());
        if tensors {
            let one = |t: &TensorLine| json!({"name": t.name, "shape": t.shape, "type": t.stored, "bytes": t.bytes});
            object.insert("all_tensors".into(), self.tensors.iter().map(one).collect());
        }
        Value::Object(object)
    }
}

/// Looks at a folder or file of any kind. With `values`, every value of a model's weights is read; those of an adapter are
/// anyway. An error is one of the system: what is wrong with the files is among the faults.
pub fn inspect(path: &Path, values: bool) -> Result<Found> {
    paths::need(path, "a model, an adapter, a GGUF file, data, a run or a checkpoint", true)?;
    let has = |name: &str| path.join(name).exists();
    if path.is_dir() {
        return Ok(match () {
            () if checkpoint::is_folder(path) => run::checkpoint(path),
            () if has(METRICS_FILE) || has(folder::CONFIG_FILE) && has("run.lock") => run::run(path),
            () if has(files::CONFIG_FILE) || adapterhub::is_folder(path) => adapter::folder(path),
            // What else a folder is instead of a model's is told by opening it as one.
            () => model::open(path, values),
        });
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    Ok(match extension {
        "gguf" => match Gguf::open(path) {
            Ok(gguf) if gguf.string("general.type").ok().flatten() == Some("adapter") => adapter::gguf(&gguf),
            Ok(_) => model::open(path, values),
            Err(error) => broken("model", error),
        },
        "safetensors" => match SafetensorsFile::open(path) {
            Ok(file) => model::tensors(&file),
            Err(error) => broken("tensors", error),
        },
        _ => data::file(path),
    })
}

/// What cannot be opened.
fn broken(kind: &'static str, error: Error) -> Found {
    Found { faults: vec![error.to_string()], ..Found::new(kind) }
}
