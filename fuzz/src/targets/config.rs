//! The small files of a model folder: config.json and what is made of it, up to the graph of small models; the tokenizer.

use std::path::Path;

use serde_json::Value;
use trimtab::data::tokenizer::Tokenizer;
use trimtab::dtype::DType;
use trimtab::graph::Phase;
use trimtab::models;
use trimtab::nn::{Build, Hooks, Nn, Role};
use trimtab::peft::Frozen;
use trimtab::tasks::{self, Setup, Shape, causal_lm::CausalLm, labels};

use super::{put, split};

/// In the order of the parts.
const FILES: [&str; 10] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Parts: see [`FILES`].
pub fn run(input: &[u8], folder: &Path) {
    let mut parts = split(input);
    for file in FILES {
        put(&folder.join(file), parts.next().unwrap_or_default());
    }
    if let Ok(config) = trimtab::weights::read_config(folder) {
        structure(&config);
    }
    if let Ok(tokenizer) = Tokenizer::from_folder(folder) {
        encode(&tokenizer);
    }
}

/// What is made of a config.json.
pub(super) fn structure(config: &Value) {
    let _ = models::notes(config);
    let Ok(model) = models::read(config, 16) else { return };
    for task in tasks::TASKS {
        let mut config = config.clone();
        if labels::settle(task, &mut config, false, None).is_err() {
            continue;
        }
        let setup = Setup {
            config: &config,
            facts: model.facts(),
            qa_padding: false,
            qa_token_types: true,
            stride: 2,
            mask_share: 0.15,
        };
        let _ = (task.make)(&setup);
    }
    let _ = graph(config, &*model, &[&Frozen]);
}

/// Writes the model's graph, if it is small: a large one only takes longer.
pub(super) fn graph(config: &Value, model: &dyn models::Model, stack: &[&dyn Hooks]) -> trimtab::Result<()> {
    let layers = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"];
    let many = |key: &&str| config.get(*key).and_then(Value::as_f64).is_some_and(|n| n > 2.0);
    if model.facts().layers > 2 || layers.iter().any(many) {
        return Ok(());
    }
    let storage = |_: &str, _: Role| DType::F32;
    let mut nn = Nn::new(Build { stack, storage: &storage, act: DType::F32 });
    nn.begin(Phase::EVAL, tasks::Task::layout(&CausalLm, Shape::of(4)))?;
    let hidden = model.hidden(&mut nn)?;
    model.lm_head(&mut nn, hidden)?;
    Ok(())
}

/// Texts to ids and back.
pub(super) fn encode(tokenizer: &Tokenizer) {
    const TEXT: &str = "Hello  there, 12\n\u{fe0f}\u{1F926}<s>";
    if let Ok(ids) = tokenizer.encode(TEXT, true) {
        let _ = tokenizer.decode(&ids, true);
        if let Ok(mut stream) = tokenizer.decode_stream(&[], false) {
            for &id in &ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX], false);
    let _ = tokenizer.encode_prompt("a b");
    let _ = tokenizer.encode_pair("a b", Some("c"), 3);
    let _ = tokenizer.encode_words(&["Hello", "", "x"], 8);
    let _ = (tokenizer.pad(), tokenizer.mask(), tokenizer.warning(), tokenizer.vocab_size());
}
