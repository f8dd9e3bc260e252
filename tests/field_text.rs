//! Texts, tokenizers and rows as people have them (fixtures/field), with the values of transformers 5.23.

#[path = "common/scratch.rs"]
mod scratch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scratch::Scratch;
use serde_json::{Value, json};
use trimtab::data::tokenizer::Tokenizer;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

impl Scratch {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The base model of 128 tokens, with these files of cases beside it, as the folder `m`.
    fn model(&self, files: &[&str]) {
        std::fs::create_dir_all(self.path("m")).unwrap();
        for entry in std::fs::read_dir(fixture("golden/base")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, self.path("m").join(path.file_name().unwrap())).unwrap();
        }
        for file in files {
            let path = fixture("field").join(file);
            std::fs::copy(&path, self.path("m").join(path.file_name().unwrap())).unwrap();
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trimtab")).args(args).current_dir(&self.0).output().unwrap()
    }

    /// One step without a change on all of `data`: (tokens, trained, loss, standard error).
    fn step(&self, data: &str) -> (u64, u64, f64, String) {
        let sizes = ["--device", "cpu", "--steps", "1", "--lr", "0", "--batch-size", "64", "--max-seq-len", "64"];
        let args = ["train", "--model", "m", "--data", data, "--out", "o", "--overwrite", "--no-shuffle"];
        let ran = self.run(&[&args[..], &sizes].concat());
        let error = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(0), "{data}: {error}");
        let text = std::fs::read_to_string(self.path("o/metrics.jsonl")).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let step = lines.rfind(|line| line.get("loss").is_some()).unwrap();
        let number = |key: &str| step[key].as_u64().unwrap_or_else(|| panic!("{key} of {step}"));
        (number("tokens"), number("trained_tokens"), step["loss"].as_f64().unwrap(), error)
    }

    fn generate(&self, prompt: &str) -> Result<String, String> {
        let args = ["generate", "--model", "m", "--prompt", prompt, "--max-tokens", "6", "--temperature", "0"];
        let ran = self.run(&[&args[..], &["--device", "cpu"]].concat());
        match ran.status.code() {
            Some(0) => Ok(String::from_utf8(ran.stdout).unwrap()),
            _ => Err(String::from_utf8(ran.stderr).unwrap()),
        }
    }
}

fn data(path: &str) -> String {
    fixture("field").join(path).display().to_string()
}

#[track_caller]
fn near(got: f64, expected: f64) {
    assert!((got - expected).abs() < 2e-5, "{got} is not {expected}");
}

const ADDED: &str = "added_tokens_in_tokenizer_config";

#[test]
fn a_token_that_only_tokenizer_config_has() {
    let scratch = Scratch::new("added");
    scratch.model(&[&format!("{ADDED}/tokenizer.json"), &format!("{ADDED}/tokenizer_config.json")]);
    let tokenizer = Tokenizer::from_folder(scratch.path("m")).unwrap();
    assert_eq!(tokenizer.eos_ids().first(), Some(&127));
    for name in ["data.jsonl", "data_literal.jsonl"] {
        let (tokens, trained, loss, _) = scratch.step(&data(&format!("{ADDED}/{name}")));
        assert_eq!((tokens, trained), (5, 4), "{name}");
        near(loss, 4.878078);
    }
}

/// Ids and text as transformers has them with the same files.
#[test]
fn tokens_beside_the_tokenizer() {
    const TEXT: &str = "we <x> go<y>on <z> </s>a<w>the";
    let token = |text: &str, more: Value| {
        let mut token = json!({
            "content": text, "lstrip": false, "rstrip": false, "normalized": false, "single_word": false,
            "special": true,
        });
        for (key, value) in more.as_object().unwrap() {
            token[key] = value.clone();
        }
        token
    };
    let with = |more: Value| {
        let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<e>"});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let none = json!({});
    let spelled = "1 71 3 0 27 0 78 0 28 0 18 17 3 0 29 0 3 2 30 0 26 0 23 11 8";
    /// tokenizer_config.json, other files, ids, text, end.
    type Beside<'a> = (Value, &'a [(&'a str, Value)], &'a str, &'a str, u32);
    let cases: [Beside; 9] = [
        (with(none.clone()), &[], spelled, "we x goyon z  awthe", 127),
        (
            with(json!({"added_tokens_decoder": {
                "130": token("<x>", none.clone()), "128": token("<y>", json!({"special": false}))}})),
            &[],
            "1 71 3 128 3 78 127 65 3 0 29 0 3 2 30 0 26 0 23 11 8",
            "we   go<y> on z  awthe",
            129,
        ),
        (
            with(json!({"added_tokens_decoder": {
                "130": token("<x>", json!({"lstrip": true, "rstrip": true})),
                "2": token("</s>", json!({"lstrip": true}))}})),
            &[],
            "1 71 127 78 0 28 0 18 17 3 0 29 0 2 30 0 26 0 23 11 8",
            "we goyon z awthe",
            128,
        ),
        (
            with(json!({"extra_special_tokens": ["<z>", "<x>"]})),
            &[],
            "1 71 3 129 3 78 0 28 0 18 17 3 128 3 3 2 30 0 26 0 23 11 8",
            "we   goyon    awthe",
            127,
        ),
        (
            with(json!({"extra_special_tokens": {"im_token": "<z>"}})),
            &[],
            "1 71 3 0 27 0 78 0 28 0 18 17 3 128 3 3 2 30 0 26 0 23 11 8",
            "we x goyon    awthe",
            127,
        ),
        (
            with(json!({
                "additional_special_tokens": ["<z>", token("<x>", json!({"lstrip": true}))], "img_token": "<w>"})),
            &[],
            "1 71 130 3 78 0 28 0 18 17 3 129 3 3 2 30 128 49 11 8",
            "we  goyon    a the",
            127,
        ),
        (
            with(none.clone()),
            &[("added_tokens.json", json!({"<x>": 127, "<z>": 128, "<e>": 129}))],
            "1 71 127 78 0 28 0 18 17 128 3 2 30 0 26 0 23 11 8",
            "",
            129,
        ),
        (
            with(none.clone()),
            &[
                ("added_tokens.json", json!({"<x>": 128, "<z>": 127})),
                ("special_tokens_map.json", json!({"eos_token": "<z>", "additional_special_tokens": ["<w>"]})),
            ],
            "1 71 128 78 0 28 0 18 17 3 127 3 3 2 30 129 49 11 8",
            "",
            127,
        ),
        (
            with(json!({"added_tokens_decoder": {"128": token("the", none.clone())}})),
            &[],
            "1 71 3 0 27 0 78 0 28 0 18 17 3 0 29 0 3 2 30 0 26 0 127",
            "we x goyon z  aw",
            128,
        ),
    ];
    for (i, (config, files, ids, text, end)) in cases.iter().enumerate() {
        let scratch = Scratch::new(&format!("beside{i}"));
        std::fs::copy(fixture(&format!("field/{ADDED}/tokenizer.json")), scratch.path("tokenizer.json")).unwrap();
        scratch.write("tokenizer_config.json", &config.to_string());
        files.iter().for_each(|(name, value)| scratch.write(name, &value.to_string()));
        let tokenizer = Tokenizer::from_folder(&scratch.0).unwrap();
        let found = tokenizer.encode(TEXT, true).unwrap();
        let shown: Vec<String> = found.iter().map(u32::to_string).collect();
        assert_eq!(shown.join(" "), *ids, "case {i}");
        // Of a token that is looked for in the normalized text, tokenizers 0.23 writes the normalized form, 0.22 the token.
        if !text.is_empty() {
            assert_eq!(tokenizer.decode(&found, true).unwrap(), *text, "case {i}");
        }
        assert_eq!(tokenizer.eos_ids().first(), Some(end), "case {i}");
        if i > 0 {
            assert_ne!(*ids, spelled, "the control");
        }
    }
}

const SPM: &str = "spm_tokenizer";

fn sentence_piece(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    scratch.model(&[&format!("{SPM}/tokenizer.json"), &format!("{SPM}/tokenizer_config.json")]);
    scratch
}

#[test]
fn what_is_generated_keeps_its_first_space() {
    let scratch = sentence_piece("space");
    assert_eq!(scratch.generate("go on").unwrap(), "go on on on on on y me\n");
    for prompt in ["hi", "no", "oh ok"] {
        let text = scratch.generate(prompt).unwrap();
        assert!(text[prompt.len()..].starts_with(' '), "{text:?}");
    }
}

#[test]
fn a_beginning_in_the_text_is_not_doubled() {
    let scratch = sentence_piece("begin");
    for name in ["bos.jsonl", "nobos.jsonl"] {
        let (tokens, trained, loss, _) = scratch.step(&data(&format!("{SPM}/{name}")));
        assert_eq!((tokens, trained), (5, 4), "{name}");
        near(loss, 4.834857);
    }
    let tokenizer = Tokenizer::from_folder(scratch.path("m")).unwrap();
    assert_eq!(tokenizer.encode_prompt("<s>we").unwrap(), tokenizer.encode_prompt("we").unwrap());
    assert_eq!(tokenizer.encode_prompt("we").unwrap(), [1, 71]);
    assert_eq!(scratch.generate("<s>go on").unwrap(), "<s>go on on on on on y me\n");
}

#[test]
fn prompt_and_completion_are_one_text() {
    let scratch = sentence_piece("joined");
    let (tokens, trained, loss, _) = scratch.step(&data(&format!("{SPM}/completion.jsonl")));
    assert_eq!((tokens, trained), (5, 2));
    near(loss, 4.363832);
    // A token with letters of both is of the completion, and its space was the prompt's.
    scratch.write("space.jsonl", "{\"prompt\": \"we go \", \"completion\": \"on\"}\n");
    let (tokens, trained, same, _) = scratch.step("space.jsonl");
    assert_eq!((tokens, trained, same), (5, 2, loss));
}

#[test]
fn padding_is_neither_learnt_nor_seen() {
    let scratch = Scratch::new("mask");
    scratch.model(&[]);
    for name in ["right.jsonl", "left.jsonl"] {
        let (tokens, trained, loss, _) = scratch.step(&data(&format!("attention_mask_ignored/{name}")));
        assert_eq!((tokens, trained), (10, 9), "{name}");
        near(loss, 5.195051);
    }
    for (row, expected) in [
        (json!({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}), "0 at 1 between ones"),
        (json!({"input_ids": [1, 2, 3], "attention_mask": [1, 1]}), "3 input_ids and 2 values of attention_mask"),
        (json!({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 2]}), "2 in attention_mask"),
    ] {
        scratch.write("wrong.jsonl", &format!("{row}\n"));
        let ran = scratch.run(&["train", "--model", "m", "--data", "wrong.jsonl", "--out", "w", "--device", "cpu"]);
        let error = String::from_utf8(ran.stderr).unwrap();
        assert!(ran.status.code() == Some(1) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_prompt_with_a_token_that_has_no_row_is_an_error() {
    let scratch = Scratch::new("row");
    scratch.model(&["generate_token_out_of_range/tokenizer.json", &format!("{SPM}/tokenizer_config.json")]);
    let error = scratch.generate("<|user|>hi").unwrap_err();
    assert!(error.contains("token id 128 (<|user|>)") && error.contains("0 to 127"), "{error}");
    assert!(scratch.generate("hi").is_ok(), "the control");
}

/// A base that holds a chat's template and more is saved with all of it.
#[test]
fn a_full_model_is_saved_whole() {
    let scratch = Scratch::new("full");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(scratch.path("m")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(root.join("assets/base").join(file), scratch.path("m").join(file)).unwrap();
    }
    let more = [
        ("chat_template.jinja", "{{ messages }}\n"),
        ("added_tokens.json", "{}"),
        ("tokenizer.model", "pieces"),
        ("special_tokens_map.json", "{}"),
        ("generation_config.json", "{}"),
    ];
    more.iter().for_each(|(name, text)| scratch.write(&format!("m/{name}"), text));
    scratch.write("d.jsonl", "{\"text\": \"Call me Ishmael.\"}\n");
    let train = |model: &str, out: &str| {
        let args = ["train", "--model", model, "--data", "d.jsonl", "--out", out, "--device", "cpu", "--steps", "1"];
        let ran = scratch.run(&[&args[..], &["--max-seq-len", "64", "--method", "full"]].concat());
        assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8(ran.stderr).unwrap());
    };
    train("m", "o");
    for name in more.map(|(name, _)| name).into_iter().chain(["tokenizer.json", "tokenizer_config.json"]) {
        let read = |folder: &str| std::fs::read(scratch.path(folder).join(name)).unwrap();
        assert!(read("m") == read("o"), "{name}");
    }
    let left = std::fs::read_dir(scratch.path("o")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains(".tmp")));

    // A GGUF file has its tokenizer inside: the folder that is made of it opens as the same one.
    for name in ["llama", "gemma"] {
        let file = root.join(format!("tests/golden/gguf_{name}.gguf"));
        let inside = Tokenizer::from_gguf(&trimtab::weights::gguf::Gguf::open(&file).unwrap()).unwrap();
        match name {
            "gemma" => train(file.to_str().unwrap(), name),
            // Its model lacks weights; its tokenizer is another kind.
            _ => {
                std::fs::create_dir_all(scratch.path(name)).unwrap();
                inside.save_folder(&scratch.path(name)).unwrap();
            }
        }
        let saved = Tokenizer::from_folder(scratch.path(name)).unwrap();
        assert_eq!((saved.bos(), saved.pad()), (inside.bos(), inside.pad()));
        assert_eq!(saved.eos_ids().first(), inside.eos_ids().first());
        assert_eq!(saved.chat_template(), inside.chat_template());
        let text = "the <s>cat</s> sat <|im_start|>in";
        assert_eq!(saved.encode(text, true).unwrap(), inside.encode(text, true).unwrap());
        assert!(scratch.path(name).join("tokenizer_config.json").exists());
    }
}

/// The words of a byte-level tokenizer are a guess where the file does not name them.
#[test]
fn a_gguf_file_without_a_pre_tokenizer_is_told_of() {
    let scratch = Scratch::new("pre");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_gemma.gguf");
    let mut bytes = std::fs::read(golden).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    scratch.write("d.jsonl", "{\"prompt\": \"the cat \", \"completion\": \"\"}\n");
    let run = |command: &[&str]| {
        let ran = scratch.run(&[command, &["--model", "x.gguf", "--device", "cpu"]].concat());
        let error = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(0), "{error}");
        error
    };
    let train = ["train", "--data", "d.jsonl", "--out", "o", "--overwrite", "--steps", "1", "--max-seq-len", "32"];
    let generate = ["generate", "--prompt", "the", "--max-tokens", "2"];
    std::fs::write(scratch.path("x.gguf"), &bytes).unwrap();
    assert!(!run(&train).contains("tokenizer.ggml.pre") && !run(&generate).contains("tokenizer.ggml.pre"));
    bytes[at] = b'T';
    std::fs::write(scratch.path("x.gguf"), &bytes).unwrap();
    for command in [&train[..], &generate] {
        assert_eq!(run(command).matches("no tokenizer.ggml.pre").count(), 1, "{command:?}");
    }
    let error = run(&train);
    assert!(error.contains("1 prompt ends in a space, the first at d.jsonl:1"), "{error}");
    assert!(error.contains("1 completion is empty, the first at d.jsonl:1"), "{error}");
}
