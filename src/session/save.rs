//! Saving what a session trained.

use std::path::Path;

use super::Session;
use crate::dtype::DType;
use crate::error::Result;
use crate::nn::Source;
use crate::peft::Save;
use crate::weights::{HostTensor, load};

impl Session {
    /// Writes what was trained: a PEFT adapter, or a whole model with its weights in `dtype`.
    pub fn save(&mut self, dir: &Path, dtype: DType) -> Result<()> {
        let weights = self.trainer.weights().to_vec();
        let exec = &mut self.trainer.exec;
        let (mut kept, mut transposed) = (Vec::new(), Vec::new());
        let (mut trained, mut frozen, mut leaves, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for weight in weights {
            let ty = exec.graph.ty(weight.val).clone();
            let turned = weight.source.is_transposed() && ty.shape.len() == 2;
            if let Source::Base { tensor, .. } = &weight.source
                && turned
            {
                transposed.push(tensor.strip_suffix(".weight").unwrap_or(tensor).to_string());
            }
            if weight.trainable {
                trained.push((weight.name.clone(), weight.stored(&ty.shape)));
                leaves.push((weight.val, turned));
                continue;
            }
            let Source::Base { tensor, held, .. } = &weight.source else { continue };
            frozen.push((tensor.clone(), weight.stored(&ty.shape)));
            others.push((weight.val, turned));
            if let Some(name) = held {
                let data = load::decode(&exec.download(weight.val)?, &ty)?;
                kept.push((name.clone(), HostTensor { shape: ty.shape, data }));
            }
        }
        // A tensor that files have transposed is read whole, once, since its rows there are columns here. What is frozen
        // comes from the base model's files, since it may be held in fewer bits; what they lack was drawn.
        let base = &self.base;
        let mut whole: (usize, Vec<f32>) = (usize::MAX, Vec::new());
        let (count, names) = (leaves.len(), frozen.clone());
        leaves.extend(others);
        let read = &mut |i: usize, first: usize, into: &mut [f32]| {
            let (val, turned) = leaves[i];
            let files = base.checkpoint.as_ref().filter(|_| i >= count);
            if let Some(files) = files.filter(|files| files.info(&names[i - count].0).is_some()) {
                return load::read_at(files, &names[i - count].0, turned, first, into);
            }
            if i < count && !turned {
                return exec.read_at(val, 4 * first as u64, bytemuck::cast_slice_mut(into));
            }
            if whole.0 != i {
                let ty = exec.graph.ty(val).clone();
                let data = load::decode(&exec.download(val)?, &ty)?;
                whole = (i, if turned { load::transpose(&data, ty.cols()) } else { data });
            }
            into.copy_from_slice(&whole.1[first..first + into.len()]);
            Ok(())
        };
        let tokenizer = &|folder: &Path| base.tokenizer()?.save_folder(folder);
        let (config, base, facts) = (&base.config, base.path.as_path(), &self.facts);
        let (trained, frozen, transposed) = (&trained[..], &frozen[..], &transposed[..]);
        let (kept, ties) = (&kept[..], &self.ties[..]);
        let mut save =
            Save { dir, base, config, tokenizer, dtype, trained, frozen, transposed, read, kept, ties, facts };
        self.methods.iter().try_for_each(|m| m.save(&mut save))
    }
}
