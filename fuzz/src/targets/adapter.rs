//! An adapter's folder, of any method, and the method on the graph of small models.

use std::path::Path;

use serde_json::{Value, json};
use trimtab::models;
use trimtab::peft::{self, adapterhub, files};

use super::{config, forms, put, split};

/// A small model of each family.
fn models() -> &'static [(Value, Box<dyn models::Model>)] {
    static MODELS: std::sync::OnceLock<Vec<(Value, Box<dyn models::Model>)>> = std::sync::OnceLock::new();
    MODELS.get_or_init(|| {
        let configs = [
            json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
                "num_hidden_layers": 1, "vocab_size": 8}),
            json!({"model_type": "t5", "d_model": 4, "d_kv": 2, "d_ff": 6, "num_layers": 1, "num_heads": 2, "vocab_size": 8}),
            json!({"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1, "n_positions": 32, "vocab_size": 8}),
            json!({"model_type": "bert", "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
                "num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 32}),
        ];
        configs.map(|config| (config.clone(), models::read(&config, 16).expect("a config that is right"))).into()
    })
}

/// Parts: adapter_config.json, PEFT's weights, the prefix encoder's, AdapterHub's, its head's, its head's config.
pub fn run(input: &[u8], folder: &Path) {
    let models = models();
    let mut parts = split(input);
    let mut part = || parts.next().unwrap_or_default();
    put(&folder.join(files::CONFIG_FILE), part());
    put(&folder.join(files::WEIGHTS_FILE), &forms::safetensors(part()));
    put(&folder.join(peft::prefix::ENCODER_FILE), &forms::safetensors(part()));
    put(&folder.join(adapterhub::WEIGHTS_FILE), &forms::safetensors(part()));
    put(&folder.join("model_head.safetensors"), &forms::safetensors(part()));
    put(&folder.join("head_config.json"), part());

    let _ = (peft::def_of(folder), peft::task_type(folder), peft::model_class(folder), adapterhub::id2label(folder));
    let _ = files::read_config(folder);
    let Ok(opened) = peft::open(folder) else { return };
    let _ = opened.check(folder, &[("base_model.model.lm_head.weight".into(), vec![8, 4])]);
    // One of the models, by the length of the input.
    let (of, model) = &models[input.len() % models.len()];
    let _ = config::graph(of, &**model, &[&*opened.method]);
}
