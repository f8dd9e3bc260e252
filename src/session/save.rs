//! Saving what a session trained.

use std::path::Path;

use super::Session;
use crate::dtype::DType;
use crate::error::Result;
use crate::nn::Source;
use crate::peft::Save;
use crate::weights::load;

impl Session {
    /// Writes what was trained: a PEFT adapter, or a whole model with its weights in `dtype`.
    pub fn save(&mut self, dir: &Path, dtype: DType) -> Result<()> {
        let weights = self.trainer.weights().to_vec();
        let exec = &mut self.trainer.exec;
        let (mut kept, mut transposed) = (Vec::new(), Vec::new());
        let (mut trained, mut leaves) = (Vec::new(), Vec::new());
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
            if let Source::Base { held: Some(name), .. } = &weight.source {
                kept.push((name.clone(), ty.shape.clone(), load::decode(&exec.download(weight.val)?, &ty)?));
            }
        }
        // A tensor that files have transposed is read whole, once, since its rows there are columns here.
        let mut whole: (usize, Vec<f32>) = (usize::MAX, Vec::new());
        let read = &mut |i: usize, first: usize, into: &mut [f32]| {
            let (val, turned) = leaves[i];
            if !turned {
                return exec.read_at(val, 4 * first as u64, bytemuck::cast_slice_mut(into));
            }
            if whole.0 != i {
                let data = exec.download_f32(val)?;
                whole = (i, load::transpose(&data, exec.graph.ty(val).cols()));
            }
            into.copy_from_slice(&whole.1[first..first + into.len()]);
            Ok(())
        };
        let base = &self.base;
        let tokenizer = &|path: &Path| base.tokenizer()?.save(path);
        let (config, base) = (&base.config, base.path.as_path());
        let (trained, transposed, kept, ties) = (&trained[..], &transposed[..], &kept[..], &self.ties[..]);
        let mut save =
            Save { dir, base, config, tokenizer, dtype, trained, transposed, read, kept, ties, facts: &self.facts };
        self.methods.iter().try_for_each(|m| m.save(&mut save))
    }
}
