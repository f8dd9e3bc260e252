//! A GGUF file: metadata, tensor infos, the config that they amount to, the tokenizer.

use std::path::Path;

use trimtab::base::Base;

use super::{config, forms, put, safetensors};

/// The whole input is the file.
pub fn run(input: &[u8], folder: &Path) {
    let path = folder.join("model.gguf");
    put(&path, &forms::gguf(input));
    let Ok(base) = Base::open(&path) else { return };
    if let Some(checkpoint) = &base.checkpoint {
        safetensors::read(checkpoint);
    }
    config::structure(&base.config);
    if let Ok(tokenizer) = base.tokenizer() {
        config::encode(&tokenizer);
    }
}
