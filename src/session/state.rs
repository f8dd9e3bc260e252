//! A session's tensors as bytes, for programs that keep them elsewhere than in folders: the adapter, and all that training
//! needs to go on to the same bits.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::Session;
use crate::error::{Error, Result};
use crate::graph::{Def, LeafKind, Val};
use crate::nn::{Source, Weight};
use crate::peft::files;
use crate::weights::load;

/// The key of the files' metadata that says what they are.
const ABOUT: &str = "trimtab";

/// Bytes that are not what they should be.
fn wrong(what: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
    Error::config(format!("{what}'s bytes"), found, expected)
}

/// A safetensors file. One entry of metadata, since its order is a hash map's.
fn file<'a>(what: &str, tensors: Vec<(String, TensorView<'a>)>, about: Option<Value>) -> Result<Vec<u8>> {
    let metadata = match about {
        Some(about) => (ABOUT, about.to_string()),
        None => ("format", "pt".to_string()),
    };
    let metadata = HashMap::from([(metadata.0.to_string(), metadata.1)]);
    safetensors::serialize(tensors, Some(metadata)).map_err(|e| wrong(what, e.to_string(), "tensors of a session"))
}

fn view<'a>(what: &str, dtype: Dtype, shape: Vec<usize>, bytes: &'a [u8]) -> Result<TensorView<'a>> {
    TensorView::new(dtype, shape, bytes).map_err(|e| wrong(what, e.to_string(), "as many bytes as the shape has"))
}

impl Session {
    /// What was trained, as the bytes of a PEFT adapter's safetensors file: names and shapes are the file's, values f32.
    /// What else a folder needs (its config) is written by [`Session::save`].
    pub fn adapter(&mut self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for weight in self.trained() {
            let mut data = self.trainer.exec.download_f32(weight.val)?;
            let shape = self.trainer.exec.graph.shape(weight.val);
            if weight.source.is_transposed() && shape.len() == 2 {
                data = load::transpose(&data, shape[1]);
            }
            tensors.push((weight.name.clone(), weight.stored(shape), data));
        }
        let views = tensors.iter().map(|(name, shape, data)| {
            Ok((name.clone(), view("adapter", Dtype::F32, shape.clone(), bytemuck::cast_slice(data))?))
        });
        file("adapter", views.collect::<Result<_>>()?, None)
    }

    /// Takes the tensors of an adapter of the same method: exactly those that [`Session::adapter`] gives. The optimizer's
    /// state stays.
    pub fn set_adapter(&mut self, bytes: &[u8]) -> Result<()> {
        let tensors = files::read_bytes(Path::new("adapter"), bytes)?;
        let trained = self.trained();
        let graph = &self.trainer.exec.graph;
        let expected: Vec<_> = trained.iter().map(|w| (w.name.clone(), w.stored(graph.shape(w.val)))).collect();
        files::check(Path::new("adapter"), &tensors, &expected)?;
        for weight in trained {
            let tensor = &tensors[&weight.name];
            let turned = weight.source.is_transposed() && tensor.shape.len() == 2;
            let data = if turned { &load::transpose(&tensor.data, tensor.shape[1]) } else { &tensor.data };
            self.trainer.exec.upload(weight.val, bytemuck::cast_slice(data))?;
        }
        self.derive()
    }

    /// All that training needs to go on: trained tensors, the optimizer's state, and the number of steps, as the bytes of a
    /// safetensors file. A session of the same model, method and optimizer that takes them goes on to the same bits,
    /// whatever was chosen to save memory.
    pub fn state(&mut self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for (name, val) in self.leaves() {
            tensors.push((name, self.trainer.exec.download(val)?));
        }
        let views =
            tensors.iter().map(|(name, data)| Ok((name.clone(), view("state", Dtype::U8, vec![data.len()], data)?)));
        file("state", views.collect::<Result<_>>()?, Some(json!({ "steps": self.trainer.steps })))
    }

    /// Takes what [`Session::state`] gave.
    pub fn set_state(&mut self, bytes: &[u8]) -> Result<()> {
        let damaged = |e: safetensors::SafeTensorError| wrong("state", e.to_string(), "what Session::state gave");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let about = header.metadata().as_ref().and_then(|m| m.get(ABOUT)).and_then(|text| text.parse::<Value>().ok());
        let Some(steps) = about.as_ref().and_then(|about| about.get("steps")?.as_u64()) else {
            return Err(wrong("state", "no number of steps", "what Session::state gave"));
        };
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let leaves = self.leaves();
        // All is checked before anything is taken.
        let mut found = Vec::with_capacity(leaves.len());
        for (name, val) in &leaves {
            let expected = self.trainer.exec.graph.ty(*val).bytes();
            let Ok(view) = file.tensor(name) else {
                return Err(wrong("state", format!("no {name}"), "a session of this model, method and optimizer"));
            };
            if view.data().len() != expected {
                let found = format!("{} bytes of {name}", view.data().len());
                return Err(wrong(
                    "state",
                    found,
                    format!("{expected}, in a session of this model, method and optimizer"),
                ));
            }
            found.push(view);
        }
        if file.len() != leaves.len() {
            let found = format!("{} tensors", file.len());
            return Err(wrong("state", found, format!("the {} of this model, method and optimizer", leaves.len())));
        }
        for ((_, val), view) in leaves.iter().zip(&found) {
            self.trainer.exec.upload(*val, view.data())?;
        }
        self.trainer.steps = steps;
        self.derive()
    }

    fn trained(&self) -> Vec<Weight> {
        self.trainer.weights().iter().filter(|w| w.trainable).cloned().collect()
    }

    /// Names of trained tensors and of the optimizer's state, and their leaves.
    fn leaves(&self) -> Vec<(String, Val)> {
        let graph = &self.trainer.exec.graph;
        let all = (0..graph.values.len() as u32).map(Val);
        let optimizer = all.filter(|&v| graph.value(v).def == Def::Leaf(LeafKind::Optim));
        let trained = self.trainer.weights().iter().filter(|w| w.trainable);
        let trained = trained.map(|w| (format!("trained.{}", w.name), w.val));
        trained.chain(optimizer.map(|v| (format!("optimizer.{}", graph.value(v).name), v))).collect()
    }

    /// Computes anew what was computed from trained tensors when they were loaded.
    fn derive(&mut self) -> Result<()> {
        let derived = self.trainer.weights().iter().filter(|w| matches!(w.source, Source::RowNorms(_)));
        let derived: Vec<Weight> = derived.cloned().collect();
        let from = load::Sources { base: None, std: 0.0, adapter: None, seed: 0 };
        load::load(&mut self.trainer.exec, &derived, &from, &mut |_, _| Ok(()))
    }
}
