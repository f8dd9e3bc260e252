//! A base model as a user names it: a folder or a file, its config, its tokenizer, its structure.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::tokenizer::Tokenizer;
use crate::dtype::DType;
use crate::error::Result;
use crate::models::{self, Model};
use crate::nn::Role;
use crate::weights::{Checkpoint, Storage};

/// A base model: its config, and its weights unless they are to be drawn at random.
pub struct Base {
    pub path: PathBuf,
    pub config: Value,
    pub checkpoint: Option<Checkpoint>,
}

impl Base {
    /// A Hugging Face folder or a GGUF file. It is mapped; nothing is read yet.
    pub fn open(path: impl AsRef<Path>) -> Result<Base> {
        let checkpoint = Checkpoint::open(&path)?;
        // What is wrong with a config is said when the model is asked for.
        let prefix = models::read(checkpoint.config(), 1).map_or("", |model| model.facts().prefix);
        let checkpoint = checkpoint.under(prefix);
        Ok(Base { path: path.as_ref().into(), config: checkpoint.config().clone(), checkpoint: Some(checkpoint) })
    }

    /// The model of a folder's config.json with random weights.
    pub fn random(path: impl AsRef<Path>) -> Result<Base> {
        let path = path.as_ref();
        Ok(Base { path: path.into(), config: crate::weights::read_config(path)?, checkpoint: None })
    }

    /// What there is to say of the config.
    pub fn notes(&self) -> Vec<String> {
        models::notes(&self.config)
    }

    /// The tokenizer that came with the model.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.checkpoint {
            Some(checkpoint) => Tokenizer::open(checkpoint),
            None => Tokenizer::from_folder(&self.path),
        }
    }

    /// The model's structure, for sequences of at most `positions` tokens.
    pub fn model(&self, positions: usize) -> Result<Box<dyn Model>> {
        models::read(&self.config, positions)
    }

    /// How a frozen weight is kept: as NF4 if the file has it so or `quantize` asks for it, in 16 bits if the file
    /// does (widening is exact) or `dtype` asks for it, else in f32.
    pub fn storage(&self, quantize: Option<DType>, dtype: DType) -> impl Fn(&str, Role) -> DType + '_ {
        move |name, role| {
            let stored = self.checkpoint.as_ref().and_then(|c| c.info(name)).map(|i| i.stored);
            match (stored, quantize) {
                (Some(Storage::As(d)), _) if d.is_quantized() => d,
                (_, Some(q)) if role.is_block_linear() => q,
                (_, _) if dtype != DType::F32 => dtype,
                (Some(Storage::As(d @ (DType::BF16 | DType::F16))), _) => d,
                _ => DType::F32,
            }
        }
    }
}
