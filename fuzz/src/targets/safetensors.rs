//! A folder with a model: config.json, and weights in one file, or in two with their index.

use std::path::Path;

use trimtab::base::Base;

use super::{forms, put, split};

/// In place of an empty config.json.
const CONFIG: &[u8] = br#"{"model_type":"llama","hidden_size":4,"intermediate_size":6,"num_attention_heads":2,
"num_hidden_layers":1,"vocab_size":8,"tie_word_embeddings":true}"#;

/// A file outside of the folder, with a tensor that nothing in it may give.
const OUTSIDE: &str = "outside.safetensors";
const SECRET: &str = "of.another.folder";

/// Parts: the single file, the index, two shards, config.json.
pub fn run(input: &[u8], folder: &Path) {
    let model = folder.join("model");
    if !model.exists() {
        std::fs::create_dir_all(&model).expect("a folder for the model");
        put(&folder.join(OUTSIDE), &forms::safetensors(format!("#{SECRET} F32 1").as_bytes()));
    }
    let mut parts = split(input);
    let mut part = || parts.next().unwrap_or_default();
    put(&model.join("model.safetensors"), &forms::safetensors(part()));
    put(&model.join("model.safetensors.index.json"), part());
    put(&model.join("a.safetensors"), &forms::safetensors(part()));
    put(&model.join("b.safetensors"), &forms::safetensors(part()));
    let config = part();
    put(&model.join("config.json"), if config.is_empty() { CONFIG } else { config });

    let Ok(base) = Base::open(&model) else { return };
    let Some(checkpoint) = &base.checkpoint else { return };
    // No index reaches out of its folder.
    let typed = input.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
    assert!(typed || checkpoint.names().all(|name| name != SECRET), "a tensor of another folder");
    read(checkpoint);
}

/// Reads every tensor in every way.
pub(super) fn read(checkpoint: &trimtab::weights::Checkpoint) {
    for name in checkpoint.names() {
        let Some(info) = checkpoint.info(name) else { continue };
        let last = info.shape.last().copied().unwrap_or(1);
        if let Ok(values) = checkpoint.read(name)
            && !values.is_empty()
            && info.shape.len() > 1
        {
            let mut row = vec![0.0; last];
            checkpoint.read_rows(name, 0..1, &mut row).expect("a row of a tensor that was read whole");
            assert!(row.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: a row of other values");
        }
        let _ = checkpoint.raw(name);
        let _ = checkpoint.nf4(name);
        if let Some((_, store)) = checkpoint.store(name) {
            let _ = store.read(0, &mut [0; 8]);
        }
    }
    checkpoint.release();
}
