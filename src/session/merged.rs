//! A base model with an adapter merged into its weights, read piece by piece: what is held in memory are the adapter's
//! tensors and the rows that are asked for, whatever the size of the model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::merge::check_places;
use crate::base::Base;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::models::{self, Facts};
use crate::nn::{Init, Role, Source, Taken, Weight, WeightRef};
use crate::peft::merge::{Own, Target};
use crate::peft::{Method, Save, files, full};
use crate::weights::{Checkpoint, HostTensor, load};

/// Bytes of a mapped file after which its pages are given back.
const RELEASE: usize = 32 << 20;

/// See the module.
pub struct Merged {
    base: Arc<Base>,
    methods: Vec<Box<dyn Method>>,
    facts: Facts,
    config: Value,
    /// The adapter's tensors that are the base model's own, trained or kept.
    whole: BTreeMap<String, HostTensor>,
    /// Those that are merged into the base model's.
    own: BTreeMap<String, HostTensor>,
    parts: Vec<Part>,
    tensors: Vec<(String, Vec<usize>)>,
    /// The last tensor that was made whole, since files have it transposed.
    turned: (usize, Vec<f32>),
    /// The last one that a method took something out of, as the graph has it.
    less: (usize, Vec<f32>),
    unreleased: usize,
}

/// A weight of the model.
struct Part {
    /// What files call it: not as the tensor, where it is a head that the method parted from the embedding.
    name: String,
    /// The base model's tensor, and what it does.
    tensor: String,
    role: Role,
    /// The adapter's tensor that takes its place.
    key: Option<String>,
    /// As the graph has it.
    shape: Vec<usize>,
    /// Files have it as `[in, out]`.
    transposed: bool,
    /// How it starts where the base model has none.
    fresh: Option<Init>,
    /// What the method takes out of it.
    less: Option<Taken>,
}

impl Merged {
    /// Of the weights of a planned session, with their shapes; an error if the methods cannot be merged, or if `adapter`
    /// has a tensor that has no place.
    pub(super) fn new(
        base: Arc<Base>,
        methods: Vec<Box<dyn Method>>,
        facts: Facts,
        weights: &[(Weight, Vec<usize>)],
        ties: &[(String, String)],
        adapter: BTreeMap<String, HostTensor>,
    ) -> Result<Merged> {
        let (mut parts, mut tensors, mut config) = (Vec::new(), Vec::new(), base.config.clone());
        for (weight, shape) in weights {
            let Source::Base { tensor, role, held, transposed, fresh, less } = &weight.source else { continue };
            let key = [Some(&weight.name), held.as_ref()].into_iter().flatten().find(|key| adapter.contains_key(*key));
            // Biases of adapted layers are those of the layer inside PEFT's.
            let name = if weight.trainable { files::tensor(&weight.name) } else { &weight.name };
            let name = &name.replace(".base_layer.", ".");
            if name != tensor {
                // A head that the method parted from the embedding.
                models::set_tied(&mut config, false);
            }
            tensors.push((name.to_string(), weight.stored(shape)));
            let (tensor, key) = (tensor.clone(), key.cloned());
            parts.push(Part {
                name: name.to_string(),
                tensor,
                role: *role,
                key,
                shape: shape.clone(),
                transposed: *transposed && shape.len() == 2,
                fresh: *fresh,
                less: *less,
            });
        }
        let (whole, own): (BTreeMap<_, _>, BTreeMap<_, _>) =
            adapter.into_iter().partition(|(name, _)| parts.iter().any(|part| part.key.as_ref() == Some(name)));
        let places = parts.iter().map(|p| (WeightRef { name: &p.name, role: p.role }, &p.shape[..]));
        let parted = |head: &str| parts.iter().any(|p| p.name.strip_suffix(".weight") == Some(head));
        let ties: Vec<(String, String)> = ties.iter().filter(|(head, _)| !parted(head)).cloned().collect();
        check_places(places, &methods, &own, &ties)?;
        let (turned, less) = ((usize::MAX, Vec::new()), (usize::MAX, Vec::new()));
        let merged = Merged { base, methods, facts, config, whole, own, parts, tensors, turned, less, unreleased: 0 };
        merged.parts.iter().try_for_each(|part| merged.check(part))?;
        Ok(merged)
    }

    fn checkpoint(&self) -> Result<&Checkpoint> {
        self.base
            .checkpoint
            .as_ref()
            .ok_or_else(|| Error::config("model", "a model of random weights", "one with weights to merge into"))
    }

    /// Whether a part's values are there, in its shape.
    fn check(&self, part: &Part) -> Result<()> {
        if let Some(tensor) = part.key.as_ref().and_then(|key| self.whole.get(key)) {
            let turned = part.transposed && tensor.shape.iter().eq(part.shape.iter().rev());
            return match tensor.shape == part.shape || turned {
                true => Ok(()),
                false => {
                    let found = format!("shape {:?} in the adapter", tensor.shape);
                    Err(Error::config(&part.tensor, found, format!("{:?}", part.shape)))
                }
            };
        }
        let checkpoint = self.checkpoint()?;
        if part.fresh.is_some() && checkpoint.info(&part.tensor).is_none() {
            let found = format!("no {} in the model, nor in an adapter", part.tensor);
            return Err(Error::file(checkpoint.path(), found, "a model that was trained for the task"));
        }
        let mut shape = part.shape.clone();
        if part.transposed && load::is_turned(checkpoint, &part.tensor) {
            shape.reverse();
        }
        load::check(checkpoint, &part.tensor, &Ty::f32(&shape))
    }

    /// The base model.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Its config.json: the base model's, unless the adapter parted what was tied.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Names and shapes of all tensors, as Hugging Face's files have them.
    pub fn tensors(&self) -> &[(String, Vec<usize>)] {
        &self.tensors
    }

    /// What the tensor of a number does in the model.
    pub fn role(&self, i: usize) -> Role {
        self.parts[i].role
    }

    /// Reads values of the tensor of a number, from the `first` one on, in the order that files have them in.
    pub fn read(&mut self, i: usize, first: usize, into: &mut [f32]) -> Result<()> {
        let Part { transposed, less, ref tensor, .. } = self.parts[i];
        if let Some(taken) = less.filter(|_| self.less.0 != i) {
            self.less = (i, load::read_less(self.checkpoint()?, tensor, transposed, taken, DType::F32)?);
        }
        let part = &self.parts[i];
        if part.transposed {
            if self.turned.0 != i {
                // A row there is a column here. Models that have such are small.
                let (rows, cols) = (part.shape[0], part.shape[1]);
                let mut values = vec![0f32; rows * cols];
                self.rows(part, 0, &mut values)?;
                self.turned = (i, load::transpose(&values, cols));
            }
            into.copy_from_slice(&self.turned.1[first..first + into.len()]);
            return Ok(());
        }
        let cols = part.shape.last().copied().unwrap_or(1).max(1);
        let row = first / cols;
        if first.is_multiple_of(cols) && into.len().is_multiple_of(cols) {
            self.rows(part, row, into)?;
        } else {
            let mut values = vec![0f32; ((first + into.len()).div_ceil(cols) - row) * cols];
            self.rows(part, row, &mut values)?;
            into.copy_from_slice(&values[first - row * cols..][..into.len()]);
        }
        self.unreleased += 4 * into.len();
        if self.unreleased > RELEASE {
            self.unreleased = 0;
            self.checkpoint()?.release();
        }
        Ok(())
    }

    /// Whole rows as the graph has them, from the one of a number on.
    fn rows(&self, part: &Part, first: usize, into: &mut [f32]) -> Result<()> {
        let cols = part.shape.last().copied().unwrap_or(1).max(1);
        match part.key.as_ref().and_then(|key| self.whole.get(key)) {
            Some(tensor) if tensor.shape == part.shape => {
                into.copy_from_slice(&tensor.data[first * cols..][..into.len()]);
            }
            Some(tensor) => {
                into.copy_from_slice(&load::transpose(&tensor.data, part.shape[0])[first * cols..][..into.len()])
            }
            None if part.less.is_some() => into.copy_from_slice(&self.less.1[first * cols..][..into.len()]),
            None => {
                let checkpoint = self.checkpoint()?;
                match part.transposed && load::is_turned(checkpoint, &part.tensor) {
                    true => into.copy_from_slice(&load::transpose(&checkpoint.read(&part.tensor)?, part.shape[0])),
                    false => checkpoint.read_rows(&part.tensor, first..first + into.len() / cols, into)?,
                }
            }
        }
        let w = WeightRef { name: &part.name, role: part.role };
        // A vector has one row, of all its values.
        let mut target = Target { w, shape: &part.shape, first, values: into };
        let mut own = Own::new(&self.own);
        self.methods.iter().try_for_each(|m| m.merge(&mut target, &mut own))
    }

    /// Writes a Hugging Face folder with the weights in `dtype`, in files of at most `most` bytes, piece by piece; returns
    /// the number of files. A value that `dtype` has no room for is an error.
    pub fn save(&mut self, dir: &Path, dtype: DType, most: u64) -> Result<usize> {
        let (base, facts, config) = (self.base.clone(), self.facts.clone(), self.config.clone());
        let tensors = self.tensors.clone();
        let largest = if dtype == DType::F16 { half::f16::MAX.to_f32() } else { f32::MAX };
        let read = &mut |i: usize, first: usize, into: &mut [f32]| {
            self.read(i, first, into)?;
            match into.iter().find(|x| x.is_nan() || x.abs() > largest) {
                Some(x) => {
                    let expected =
                        format!("numbers of at most {largest:e} for {dtype}; --dtype bf16 or f32 has more room");
                    Err(Error::file(dir, format!("{x} in {}", tensors[i].0), expected))
                }
                None => Ok(()),
            }
        };
        let tokenizer = &|folder: &Path| base.tokenizer()?.save_folder(folder);
        let (base, config, facts) = (base.path.as_path(), &config, &facts);
        let (trained, transposed, kept, ties, frozen) = (&[][..], &[][..], &[][..], &[][..], &tensors[..]);
        let mut save =
            Save { dir, base, config, tokenizer, dtype, trained, frozen, transposed, read, kept, ties, facts };
        full::write_sharded(&mut save, most)
    }
}
