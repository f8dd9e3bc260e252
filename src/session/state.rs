//! A session's tensors as bytes, for programs that keep them elsewhere than in folders: the adapter, and all that training
//! needs to go on to the same bits.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::Session;
use crate::durable;
use crate::error::{Error, Result};
use crate::graph::{Def, LeafKind, Val};
use crate::nn::{Source, Weight};
use crate::peft::files;
use crate::train::scale::LossScale;
use crate::weights::load;
use crate::weights::safetensors::{SafetensorsFile, write_to};

/// The key of the state's metadata that says what it is.
const ABOUT: &str = "trimtab";
/// Bytes that are read and written at a time.
const PIECE: usize = 1 << 20;

impl Session {
    /// What was trained, as the bytes of a PEFT adapter's safetensors file: names and shapes are the file's, values f32.
    /// What else a folder needs (its config) is written by [`Session::save`].
    pub fn adapter(&mut self) -> Result<Vec<u8>> {
        let weights = self.trained();
        let exec = &mut self.trainer.exec;
        let shape = |w: &Weight| w.stored(exec.graph.shape(w.val));
        let infos = weights.iter().map(|w| (w.name.clone(), Dtype::F32, shape(w))).collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let (path, mut bytes) = (Path::new("adapter"), Vec::new());
        write_to(&mut bytes, path, &metadata, infos, &mut |i, out| {
            let mut data = exec.download_f32(weights[i].val)?;
            let shape = exec.graph.shape(weights[i].val);
            if weights[i].source.is_transposed() && shape.len() == 2 {
                data = load::transpose(&data, shape[1]);
            }
            out.write_all(bytemuck::cast_slice(&data)).map_err(|e| Error::io(path, e))
        })?;
        Ok(bytes)
    }

    /// Takes the tensors of an adapter of the same method: exactly those that [`Session::adapter`] gives. The optimizer's
    /// state stays.
    pub fn set_adapter(&mut self, bytes: &[u8]) -> Result<()> {
        let tensors = files::read_bytes(Path::new("adapter"), bytes)?;
        let trained = self.trained();
        let graph = &self.trainer.exec.graph;
        let expected: Vec<_> = trained.iter().map(|w| (w.name.clone(), w.stored(graph.shape(w.val)))).collect();
        files::check(Path::new("adapter"), &tensors, &expected)?;
        for (name, _) in &expected {
            if let Some(x) = tensors[name].data.iter().find(|x| !x.is_finite()) {
                return Err(Error::config("adapter's bytes", format!("{x} in {name}"), "finite numbers"));
            }
        }
        for weight in trained {
            let tensor = &tensors[&weight.name];
            let turned = weight.source.is_transposed() && tensor.shape.len() == 2;
            let data = if turned { &load::transpose(&tensor.data, tensor.shape[1]) } else { &tensor.data };
            self.trainer.exec.upload(weight.val, bytemuck::cast_slice(data))?;
        }
        self.derive()
    }

    /// All that training needs to go on: trained tensors, the optimizer's state, the number of steps and the loss scale, as
    /// the bytes of a safetensors file. A session of the same model, method and optimizer that takes them goes on to the same bits,
    /// whatever was chosen to save memory.
    pub fn state(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_state(Path::new("state"), &mut bytes)?;
        Ok(bytes)
    }

    /// The same into a file, a piece at a time.
    pub fn save_state(&mut self, path: &Path) -> Result<()> {
        durable::replace(path, |out| self.write_state(path, out))
    }

    fn write_state(&mut self, path: &Path, out: &mut dyn Write) -> Result<()> {
        let leaves = self.leaves();
        let mut about = Map::from_iter([("steps".to_string(), json!(self.trainer.steps))]);
        if let Some(scale) = self.trainer.loss_scale() {
            scale.save(&mut about);
        }
        let exec = &mut self.trainer.exec;
        let size = |val: Val| exec.graph.ty(val).bytes();
        let infos = leaves.iter().map(|(name, val)| (name.clone(), Dtype::U8, vec![size(*val)])).collect();
        let metadata = BTreeMap::from([(ABOUT.to_string(), Value::Object(about).to_string())]);
        let mut piece = vec![0; PIECE];
        write_to(out, path, &metadata, infos, &mut |i, out| {
            let (val, bytes) = (leaves[i].1, exec.graph.ty(leaves[i].1).bytes());
            for from in (0..bytes).step_by(PIECE) {
                let piece = &mut piece[..PIECE.min(bytes - from)];
                exec.read_at(val, from as u64, piece)?;
                out.write_all(piece).map_err(|e| Error::io(path, e))?;
            }
            Ok(())
        })
    }

    /// Takes what [`Session::state`] gave.
    pub fn set_state(&mut self, bytes: &[u8]) -> Result<()> {
        let damaged =
            |e: safetensors::SafeTensorError| Error::config("state's bytes", e.to_string(), "what Session::state gave");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let about = header.metadata().as_ref().and_then(|m| m.get(ABOUT)).cloned();
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let read = |name: &str| file.tensor(name).ok().map(|view| view.data());
        self.take_state("state's bytes", about, file.len(), &read, &|| ())
    }

    /// Takes what [`Session::save_state`] wrote, a piece at a time.
    pub fn load_state(&mut self, path: &Path) -> Result<()> {
        let file = SafetensorsFile::open(path)?;
        let (about, count) = (file.metadata().remove(ABOUT), file.names().len());
        let read = |name: &str| file.get(name).map(|view| view.bytes);
        self.take_state(&path.display().to_string(), about, count, &read, &|| file.release())
    }

    /// `read` gives the bytes of a tensor, of which there are `count`; `release` is told when some were taken.
    fn take_state<'a>(
        &mut self,
        what: &str,
        about: Option<String>,
        count: usize,
        read: &dyn Fn(&str) -> Option<&'a [u8]>,
        release: &dyn Fn(),
    ) -> Result<()> {
        let about = about.and_then(|text| text.parse::<Value>().ok());
        // The number of the next step is one more.
        let number = about.as_ref().and_then(|about| about.get("steps")?.as_u64()).filter(|&steps| steps < u64::MAX);
        let Some(steps) = number else {
            return Err(Error::config(what, "no number of steps", "what Session::state gave"));
        };
        let Some(scale) = about.as_ref().and_then(Value::as_object).and_then(LossScale::load) else {
            return Err(Error::config(what, "a loss scale that is none", "what Session::state gave"));
        };
        let leaves = self.leaves();
        let session = "a session of this model, method and optimizer";
        // All is checked before anything is taken.
        let mut found = Vec::with_capacity(leaves.len());
        for (name, val) in &leaves {
            let expected = self.trainer.exec.graph.ty(*val).bytes();
            match read(name) {
                None => return Err(Error::config(what, format!("no {name}"), session)),
                Some(data) if data.len() != expected => {
                    let found = format!("{} bytes of {name}", data.len());
                    return Err(Error::config(what, found, format!("{expected}, in {session}")));
                }
                Some(data) => found.push(data),
            }
        }
        if count != leaves.len() {
            let expected = format!("the {} of {session}", leaves.len());
            return Err(Error::config(what, format!("{count} tensors"), expected));
        }
        for ((_, val), data) in leaves.iter().zip(&found) {
            for (i, piece) in data.chunks(PIECE).enumerate() {
                self.trainer.exec.upload_at(*val, (i * PIECE) as u64, piece)?;
                release();
            }
        }
        self.trainer.steps = steps;
        self.trainer.set_loss_scale(scale);
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
