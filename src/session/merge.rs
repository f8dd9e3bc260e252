//! A whole model with what was trained merged into its weights.

use std::collections::BTreeMap;
use std::path::Path;

use super::Session;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Source, Weight, WeightRef};
use crate::peft::merge::{Own, Target};
use crate::peft::{Method, Save, full};
use crate::weights::{HostTensor, load};

impl Session {
    /// Writes the base model with the method merged into its weights, tensor by tensor, in `dtype`: the model's own class
    /// then computes what model and method compute here. Weights come from the base model's files, whatever they are held
    /// in. An error if the method cannot be merged (prompts, prefixes, bottlenecks).
    pub fn save_merged(&mut self, dir: &Path, dtype: DType) -> Result<()> {
        let weights: Vec<Weight> = self.trainer.weights().to_vec();
        let mut tensors = BTreeMap::new();
        for weight in weights.iter().filter(|w| w.trainable && !matches!(w.source, Source::Base { .. })) {
            let shape = self.trainer.exec.graph.shape(weight.val).to_vec();
            let data = self.trainer.exec.download_f32(weight.val)?;
            tensors.insert(weight.name.clone(), HostTensor { shape, data });
        }
        let base: Vec<&Weight> = weights.iter().filter(|w| matches!(w.source, Source::Base { .. })).collect();
        let places = base.iter().filter_map(|weight| match &weight.source {
            Source::Base { tensor, role, .. } => {
                Some((WeightRef { name: tensor, role: *role }, self.trainer.exec.graph.shape(weight.val)))
            }
            _ => None,
        });
        check_places(places, &self.methods, &tensors, &self.ties)?;

        let (files, methods) = (self.base.checkpoint.as_ref(), &self.methods);
        let exec = &mut self.trainer.exec;
        let mut stored = Vec::with_capacity(base.len());
        for weight in &base {
            if let Source::Base { tensor, .. } = &weight.source {
                stored.push((tensor.clone(), weight.stored(exec.graph.shape(weight.val))));
            }
        }
        let mut own = Own::new(&tensors);
        let mut whole: (usize, Vec<f32>) = (usize::MAX, Vec::new());
        let read = &mut |i: usize, first: usize, into: &mut [f32]| {
            if whole.0 != i {
                let ty = exec.graph.ty(base[i].val).clone();
                let turned = base[i].source.is_transposed() && ty.shape.len() == 2;
                let name = &stored[i].0;
                let less = match &base[i].source {
                    Source::Base { less, transposed, .. } => less.map(|taken| (taken, *transposed)),
                    _ => None,
                };
                let mut values = match files.filter(|files| from_files(base[i]) && files.info(name).is_some()) {
                    Some(files) if let Some((taken, transposed)) = less => {
                        load::read_less(files, name, transposed, taken, DType::F32)?
                    }
                    Some(files) if turned => load::transpose(&files.read(name)?, stored[i].1[1]),
                    Some(files) => files.read(name)?,
                    None => load::decode(&exec.download(base[i].val)?, &ty)?,
                };
                if let Source::Base { tensor, role, .. } = &base[i].source {
                    let w = WeightRef { name: tensor, role: *role };
                    let mut target = Target { w, shape: &ty.shape, first: 0, values: &mut values };
                    methods.iter().try_for_each(|m| m.merge(&mut target, &mut own))?;
                }
                whole = (i, if turned { load::transpose(&values, ty.cols()) } else { values });
            }
            into.copy_from_slice(&whole.1[first..first + into.len()]);
            Ok(())
        };
        let tokenizer = &|folder: &Path| self.base.tokenizer()?.save_folder(folder);
        let (config, base, facts) = (&self.base.config, self.base.path.as_path(), &self.facts);
        let (trained, frozen, ties) = (&[][..], &stored[..], &self.ties[..]);
        let (transposed, kept) = (&[][..], &[][..]);
        let mut save =
            Save { dir, base, config, tokenizer, dtype, trained, frozen, transposed, read, kept, ties, facts };
        full::write(&mut save)
    }
}

/// Whether a weight is that of the base model's files.
fn from_files(weight: &Weight) -> bool {
    !weight.trainable && !matches!(weight.source, Source::Base { held: Some(_), .. })
}

/// Whether each of a method's own tensors has a place in one of the base model's weights, which come with their shapes.
pub(super) fn check_places<'a>(
    base: impl Iterator<Item = (WeightRef<'a>, &'a [usize])>,
    methods: &[Box<dyn Method>],
    tensors: &BTreeMap<String, HostTensor>,
    ties: &[(String, String)],
) -> Result<()> {
    let mut own = Own::new(tensors);
    for (w, shape) in base {
        let before = own.merged();
        let mut target = Target { w, shape, first: 0, values: &mut [] };
        methods.iter().try_for_each(|m| m.merge(&mut target, &mut own))?;
        if own.merged() == before {
            continue;
        }
        for (head, _) in ties.iter().filter(|(_, embedding)| embedding == w.module()) {
            for method in methods {
                if !method.merges_tied(head, w.module())? {
                    let hint = "keep the adapter: the two are one weight in the model's file";
                    return Err(Error::unsupported("merging into an embedding that is tied to the head", hint));
                }
            }
        }
    }
    match own.left() {
        Some(name) => {
            let hint = "the base model has no weight that it could go into; keep the adapter";
            Err(Error::unsupported(format!("merging {name}"), hint))
        }
        None => Ok(()),
    }
}
