//! How prompt tuning starts: as PEFT's RANDOM, TEXT and SAMPLE_VOCAB, and what the saved config says of it.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trimtab::config::{Flags, RunConfig};
use trimtab::data::tokenizer::Tokenizer;
use trimtab::peft::{self, prompt::KEY};
use trimtab::run::folder::Start;
use trimtab::run::training::run;
use trimtab::weights::Checkpoint;

/// Of PEFT: tests/golden/generate_prompt.py.
fn golden() -> Vec<Value> {
    let text = std::fs::read_to_string(common::root("tests/golden/prompt.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(case: &Value) -> Vec<usize> {
    case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize).collect()
}

/// The virtual tokens and the config that a run without a step to speak of saves.
fn saved(name: &str, more: &[(&str, &str)]) -> (Vec<Vec<f32>>, Value, PathBuf) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("data.jsonl"), "{\"text\": \"Full fathom five thy father lies;\"}\n").unwrap();
    let [base, data, out] =
        [common::root("assets/base"), dir.join("data.jsonl"), dir.join("out")].map(|p| p.display().to_string());
    let same = [
        ("model", base.as_str()),
        ("data", &data),
        ("out", &out),
        ("steps", "1"),
        ("lr", "0"),
        ("max_seq_len", "32"),
        ("device", "cpu"),
    ];
    // An adapter has its own.
    let own = more.iter().any(|(name, _)| *name == "adapter");
    let tokens = if own { &[][..] } else { &[("virtual_tokens", "11")] };
    let flags = Flags::of(&[&same[..], tokens, more].concat()).unwrap();
    run(&RunConfig::resolve(None, &flags).unwrap(), Start::Overwrite, &mut |_| Ok(())).unwrap();
    let dir = dir.join("out");
    let opened = peft::open(&dir).unwrap();
    let tensor = &opened.tensors[KEY];
    assert_eq!(tensor.shape[0], 11);
    let rows = tensor.data.chunks(tensor.shape[1]).map(<[f32]>::to_vec).collect();
    (rows, Value::Object(opened.config), dir)
}

/// A text is tokenized as a whole one is, with the special tokens around it, and its tokens repeat.
#[test]
fn a_text_gives_the_tokens_that_it_gives_peft() {
    let mut special = 0;
    for case in golden() {
        let folder = case["tokenizer"].as_str().unwrap();
        let tokenizer = Tokenizer::from_folder(common::root(folder)).unwrap();
        let encode = |special| tokenizer.encode(case["text"].as_str().unwrap(), special).unwrap();
        let want = ids(&case);
        let got: Vec<usize> = encode(true).iter().map(|&id| id as usize).cycle().take(want.len()).collect();
        assert_eq!(got, want, "{folder}");
        special += usize::from(encode(false) != encode(true));
    }
    assert_eq!(special, 4, "the control: tokenizers that add something");
}

#[test]
fn virtual_tokens_start_as_the_tokens_of_a_text() {
    let cases = golden();
    let case = cases.iter().rfind(|c| c["tokenizer"] == "assets/base" && c["tokens"] == 11).unwrap();
    let text = case["text"].as_str().unwrap();
    let (rows, config, dir) = saved("prompt_text", &[("method", "prompt"), ("prompt_init_text", text)]);
    let base = Checkpoint::open(common::root("assets/base")).unwrap();
    let mut want = vec![0f32; rows[0].len()];
    for (row, id) in rows.iter().zip(ids(case)) {
        base.read_rows("model.embed_tokens.weight", id..id + 1, &mut want).unwrap();
        assert_eq!(*row, want, "token {id}");
    }
    assert_eq!((&config["prompt_tuning_init"], &config["prompt_tuning_init_text"]), (&"TEXT".into(), &text.into()));
    // PEFT takes no TEXT without a tokenizer.
    let model = common::root("assets/base").display().to_string();
    assert_eq!(config["tokenizer_name_or_path"], model.as_str());
    assert_eq!(config["base_model_name_or_path"], model.as_str());
    // A run that goes on from it says the same.
    let dir = dir.display().to_string();
    let (again, config_again, _) = saved("prompt_text_again", &[("adapter", &dir)]);
    assert_eq!((again, config_again), (rows, config));
}

#[test]
fn virtual_tokens_start_as_tokens_of_the_vocabulary() {
    let start =
        |name: &str, seed: &str| saved(name, &[("method", "prompt"), ("prompt_init", "sample-vocab"), ("seed", seed)]);
    let (rows, config, _) = start("prompt_sampled", "7");
    assert_eq!(
        (&config["prompt_tuning_init"], &config["prompt_tuning_init_text"]),
        (&"SAMPLE_VOCAB".into(), &Value::Null)
    );
    let base = Checkpoint::open(common::root("assets/base")).unwrap();
    let table = base.read("model.embed_tokens.weight").unwrap();
    let place = |row: &Vec<f32>| table.chunks(row.len()).position(|r| r == row.as_slice());
    let found: BTreeSet<usize> = rows.iter().map(|row| place(row).expect("a row of the table")).collect();
    assert!(found.len() > 8 && found.iter().any(|&id| id > 1024), "{found:?}");
    assert_eq!(start("prompt_sampled_again", "7").0, rows);
    assert_ne!(start("prompt_sampled_other", "8").0, rows);
}

#[test]
fn virtual_tokens_start_drawn() {
    let (rows, config, _) = saved("prompt_random", &[("method", "prompt")]);
    assert_eq!(config["prompt_tuning_init"], "RANDOM");
    assert_eq!(config["tokenizer_name_or_path"], Value::Null);
    let all = rows.concat();
    let mean = |f: &dyn Fn(f32) -> f32| all.iter().map(|&x| f(x)).sum::<f32>() / all.len() as f32;
    assert!(mean(&|x| x).abs() < 0.1 && (mean(&|x| x * x) - 1.0).abs() < 0.1);
}
