//! A data file, and what each task makes of its rows.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};
use trimtab::data::reader::{self, TooLong};
use trimtab::data::row::{Codec, Row};
use trimtab::data::source::Data;
use trimtab::data::tokenizer::Tokenizer;
use trimtab::models;
use trimtab::tasks::{self, Setup, Task, labels};

use super::put;

struct Ready {
    tokenizer: Tokenizer,
    /// Config and task, for each task with labels that the config has and with those of the data.
    tasks: Vec<(Value, Box<dyn Task>)>,
}

fn ready(folder: &Path) -> &'static Ready {
    static READY: OnceLock<Ready> = OnceLock::new();
    READY.get_or_init(|| {
        let words =
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "hello", "##lo", "he", ".", "i", "c", "##a"];
        put(&folder.join("vocab.txt"), words.join("\n").as_bytes());
        put(&folder.join("config.json"), br#"{"model_type":"bert"}"#);
        let tokenizer = Tokenizer::from_folder(folder).expect("a tokenizer that is right");
        let tasks = tasks::TASKS.iter().map(|task| {
            let mut config = match task.name {
                "causal-lm" => json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 6,
                    "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 14}),
                "seq2seq" => json!({"model_type": "t5", "d_model": 4, "d_kv": 2, "d_ff": 6, "num_layers": 1,
                    "num_heads": 2, "vocab_size": 14}),
                _ => json!({"model_type": "bert", "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
                    "num_hidden_layers": 1, "vocab_size": 14, "max_position_embeddings": 32,
                    "id2label": {"0": "no", "1": "yes", "2": "B-x", "3": "I-x"}}),
            };
            labels::settle(task, &mut config, true, None).expect("labels that the config has");
            let model = models::read(&config, 16).expect("a config that is right");
            let facts = model.facts();
            let setup =
                Setup { config: &config, facts, qa_padding: false, qa_token_types: true, stride: 2, mask_share: 0.15 };
            let made = (task.make)(&setup).expect("a task that fits its model");
            (config.clone(), made)
        });
        Ready { tasks: tasks.collect(), tokenizer }
    })
}

/// The first byte chooses task, kind of file, length and columns; the rest is the file.
pub fn run(input: &[u8], folder: &Path) {
    let ready = ready(folder);
    let Some((&choice, text)) = input.split_first() else { return };
    let choice = choice as usize;
    let (config, task) = &ready.tasks[choice % ready.tasks.len()];
    let choice = choice / ready.tasks.len();
    let path = folder.join(["rows.jsonl", "rows.txt", "rows", "rows.csv"][[0, 0, 0, 0, 0, 3, 1, 2][choice % 8]]);
    let choice = choice / 8;
    let columns = [vec![], vec![("text".to_string(), "label".to_string()), ("label".into(), "text".into())]];
    let columns = &columns[usize::from(choice == 1)];
    put(&path, text);

    let encode = |text: &str| ready.tokenizer.encode(text, false);
    let codec = Codec {
        encode: &encode,
        tokenizer: Some(&ready.tokenizer),
        chats: None,
        bos: Some(2),
        eos: Some(3),
        vocab: 14,
        max_len: if choice == 2 { 3 } else { 8 },
        max_target_len: 4,
        unlabelled: choice == 3,
        traced: choice == 3,
    };
    let make = |row: &Row, codec: &Codec| task.examples(row, codec);
    let Ok(data) = Data::of(&path, None, columns) else { return put(&path, &[]) };
    let _ = data.is_tokenized();
    if let Ok((data, report)) = reader::read(&data, &codec, &make, TooLong::Drop) {
        for i in 0..data.len() {
            let ids = data.ids(i);
            assert!(ids.len() <= codec.max_len && ids.iter().all(|id| (0..14).contains(id)), "{ids:?}");
        }
        let _ = report.warnings(codec.max_len);
    }
    // Labels from the data.
    let mut config = config.clone();
    config["id2label"] = Value::Null;
    let mut rows = |on: &mut dyn FnMut(&Row) -> trimtab::Result<bool>| data.rows(on);
    let _ = labels::settle(task.def(), &mut config, false, Some(&mut rows));
    put(&path, &[]);
}
