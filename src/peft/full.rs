//! Full training: every weight of the base model, or the parts of it that a [`Selection`] names. The whole model is saved.

use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use super::{Method, MethodDef, Rate, Save, Selection, merge};
use crate::dtype::DType;
use crate::durable;
use crate::error::{Error, Result};
use crate::nn::{Hooks, WeightRef};
use crate::weights::{output_bias, write_shards};

/// The base model's files that go along as they are: those of its tokenizer, and how it generates.
pub const KEPT: [&str; 14] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Values that are read and written at a time.
const PIECE: usize = 1 << 20;

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "full",
    peft_type: None,
    same_at_start: true,
    rate: Rate { at_4096: 2e-5, power: 0.78, most: 2e-4 },
    new: |settings| {
        Ok(match &settings.train {
            Some(train) => Box::new(Partial { train: train.clone() }),
            None => Box::new(Full),
        })
    },
    read: |_| Err(Error::unsupported("an adapter of full training", "open its folder as a model")),
};

/// Every weight.
pub struct Full;

/// The weights that `train` names, the others staying as they are.
pub struct Partial {
    /// The weights that are trained.
    pub train: Selection,
}

impl Hooks for Full {
    fn trains(&self, w: WeightRef) -> Option<String> {
        Some(w.name.to_string())
    }
}

impl Method for Full {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn merge(&self, _: &mut merge::Target, _: &mut merge::Own) -> Result<()> {
        Ok(())
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        write(save)
    }
}

impl Hooks for Partial {
    fn trains(&self, w: WeightRef) -> Option<String> {
        self.train.contains(w).then(|| w.name.to_string())
    }
}

impl Method for Partial {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn merge(&self, _: &mut merge::Target, _: &mut merge::Own) -> Result<()> {
        Ok(())
    }

    fn check_weights(&self, weights: &[WeightRef]) -> Result<()> {
        self.train.check(weights)
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        write(save)
    }
}

/// Writes a Hugging Face folder: model.safetensors, config.json, and the tokenizer's files as they were, or those
/// made from what a GGUF file holds.
pub(crate) fn write(save: &mut Save) -> Result<()> {
    write_sharded(save, u64::MAX).map(drop)
}

/// The same with files of at most `most` bytes; returns their number.
pub(crate) fn write_sharded(save: &mut Save, most: u64) -> Result<usize> {
    std::fs::create_dir_all(save.dir).map_err(|e| Error::io(save.dir, e))?;
    let (dtype, name) = match save.dtype {
        DType::BF16 => (Dtype::BF16, "bfloat16"),
        DType::F16 => (Dtype::F16, "float16"),
        _ => (Dtype::F32, "float32"),
    };
    let path = save.dir.join("model.safetensors");
    check_finite(save, dtype, &path)?;
    // Where head and embedding are apart, encoders of transformers add a bias that is not tied to the other one either.
    let apart = save.config.get("tie_word_embeddings").is_some_and(|tied| tied == false);
    let held = save.trained.iter().chain(save.frozen).enumerate();
    let names = |(i, (name, shape)): (usize, &(String, Vec<usize>))| {
        let twin = output_bias(name).filter(|_| apart);
        [Some(name.as_str()), twin].map(|name| Some((i, name?.to_string(), shape.clone())))
    };
    let all: Vec<(usize, String, Vec<usize>)> = held.flat_map(names).flatten().collect();
    let infos = all.iter().map(|(_, name, shape)| vec![(name.clone(), dtype, shape.clone())]).collect();
    let (mut values, mut bytes) = (vec![0f32; PIECE], Vec::with_capacity(4 * PIECE));
    let files = write_shards(save.dir, infos, most, &mut |i, out| {
        let (tensor, len): (usize, usize) = (all[i].0, all[i].2.iter().product());
        for first in (0..len).step_by(PIECE) {
            let values = &mut values[..PIECE.min(len - first)];
            (save.read)(tensor, first, values)?;
            bytes.clear();
            match dtype {
                Dtype::BF16 => bytes.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
                Dtype::F16 => bytes.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
                _ => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            }
            out.write_all(&bytes).map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    })?;
    write_kept(save.base, save.dir, save.tokenizer)?;
    let mut config = save.config.clone();
    if let Some(config) = config.as_object_mut() {
        // Whatever the base was stored as, this is not it any more.
        config.shift_remove("quantization_config");
        config.shift_remove("torch_dtype");
        config.insert("dtype".into(), name.into());
    }
    let path = save.dir.join("config.json");
    durable::write(&path, format!("{config:#}\n").as_bytes())?;
    Ok(files)
}

/// Copies the files of the base model's tokenizer into a folder; `tokenizer` writes those of a GGUF file, which holds it
/// inside.
pub(crate) fn write_kept(base: &Path, dir: &Path, tokenizer: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    for file in KEPT {
        let (from, into) = (base.join(file), dir.join(file));
        // Where the model is saved over its base, they are there.
        if from.is_file() && !same(&from, &into) {
            let bytes = std::fs::read(&from).map_err(|e| Error::io(&from, e))?;
            durable::write(&into, &bytes)?;
        }
    }
    if base.is_file() { tokenizer(dir) } else { Ok(()) }
}

/// Whether two paths are of one file.
fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// An error if a trained value is not finite, or not in the type that it is to be written in.
fn check_finite(save: &mut Save, dtype: Dtype, path: &Path) -> Result<()> {
    let largest = if dtype == Dtype::F16 { f16::MAX.to_f32() } else { f32::MAX };
    let mut values = vec![0f32; PIECE];
    for (i, (name, shape)) in save.trained.iter().enumerate() {
        let len: usize = shape.iter().product();
        for first in (0..len).step_by(PIECE) {
            let values = &mut values[..PIECE.min(len - first)];
            (save.read)(i, first, values)?;
            if let Some(x) = values.iter().find(|x| x.is_nan() || x.abs() > largest) {
                let found = format!("{x} in {name}: the run diverged");
                let expected = format!("numbers of at most {largest:e}; nothing was written (try a lower lr)");
                return Err(Error::file(path, found, expected));
            }
        }
    }
    Ok(())
}
