//! Full training: every weight of the base model.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype;

use super::{Method, Save};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::Role;
use crate::weights::{Tensor, write_safetensors};

pub struct Full;

impl Method for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn trains(&self, _: &str, _: Role) -> bool {
        true
    }

    /// A Hugging Face folder: model.safetensors, config.json, and the tokenizer's files as they were, or a
    /// tokenizer.json made from what a GGUF file holds.
    fn save(&self, save: &Save) -> Result<()> {
        std::fs::create_dir_all(save.dir).map_err(|e| Error::io(save.dir, e))?;
        let (dtype, name) = match save.dtype {
            DType::BF16 => (Dtype::BF16, "bfloat16"),
            DType::F16 => (Dtype::F16, "float16"),
            _ => (Dtype::F32, "float32"),
        };
        let tensors = save.trained.iter().map(|(name, shape, data)| Tensor {
            name: name.clone(),
            dtype,
            shape: shape.clone(),
            bytes: Cow::Owned(match dtype {
                Dtype::BF16 => data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                Dtype::F16 => data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                _ => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            }),
        });
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_safetensors(save.dir.join("model.safetensors"), &metadata, tensors)?;
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
            let from = save.base.path.join(file);
            if from.is_file() {
                std::fs::copy(&from, save.dir.join(file)).map_err(|e| Error::io(&from, e))?;
            }
        }
        // A GGUF file holds its tokenizer inside.
        if save.base.path.is_file() {
            save.base.tokenizer()?.save(save.dir.join("tokenizer.json"))?;
        }
        let mut config = save.base.config.clone();
        if let Some(config) = config.as_object_mut() {
            // Whatever the base was stored as, this is not it any more.
            config.shift_remove("quantization_config");
            config.shift_remove("torch_dtype");
            config.insert("dtype".into(), name.into());
        }
        let path = save.dir.join("config.json");
        std::fs::write(&path, format!("{config:#}\n")).map_err(|e| Error::io(&path, e))
    }
}
