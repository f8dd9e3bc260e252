//! What is told of a run before it begins: `preview`, `train --dry-run`, and the lines before the first step.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::scratch::Scratch;
use serde_json::Value;

fn run(scratch: &Scratch, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trimtab")).args(args).current_dir(&scratch.0).output().unwrap()
}

/// Standard output and standard error of a command that ended with `code`.
fn told(output: &Output, code: i32) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path).display().to_string()
}

fn base() -> String {
    common::root("assets/base").display().to_string()
}

/// What is learnt of an example of each task: by the labels of the fixtures' rows, or for texts by hand.
#[test]
fn what_is_learnt_is_marked_for_every_task() {
    let scratch = Scratch::new("preview-tasks");
    let rows = |name: &str| fixture(&format!("families2/{name}/batch.jsonl"));
    for name in ["bert-mlm-lora", "bert-tokens-lora", "bert-qa-lora", "bert-multilabel-lora", "llama-classify-lora"] {
        let model = fixture(&format!("families2/{name}/model"));
        let args = ["preview", "--model", &model, "--data", &rows(name), "-n", "100", "--json", "--max-seq-len", "64"];
        let (out, _) = told(&run(&scratch, &args), 0);
        let found: Value = serde_json::from_str(&out).unwrap();
        let given: Vec<Value> =
            std::fs::read_to_string(rows(name)).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let examples = found["examples"].as_array().unwrap();
        assert_eq!(examples.len(), given.len(), "{name}");
        let mut all = 0;
        for (example, row) in examples.iter().zip(&given) {
            let pieces: Vec<&Value> =
                example["texts"].as_array().unwrap().iter().flat_map(|t| t.as_array().unwrap()).collect();
            let ids = |trained: bool| -> Vec<i64> {
                let texts = pieces.iter().filter(|p| !trained || p["trained"] == true);
                texts
                    .flat_map(|p| p["text"].as_str().unwrap().split_whitespace())
                    .map(|id| id.parse().unwrap())
                    .collect()
            };
            let given = |name: &str| -> Vec<i64> {
                row[name].as_array().into_iter().flatten().map(|v| v.as_i64().unwrap()).collect()
            };
            let attended = |ids: Vec<i64>| -> Vec<i64> {
                let mask = given("attention_mask");
                ids.into_iter().enumerate().filter(|(i, _)| mask.get(*i) != Some(&0)).map(|(_, id)| id).collect()
            };
            let (input, labels) = (attended(given("input_ids")), attended(given("labels")));
            assert!(input.starts_with(&ids(false)), "{name}: {input:?} {example}");
            let want: Vec<i64> = match (row.get("labels"), row.get("start_position").and_then(Value::as_u64)) {
                (_, Some(start)) => {
                    let end = row["end_position"].as_u64().unwrap();
                    input[start as usize..=end as usize].to_vec()
                }
                (Some(_), _) => input.iter().zip(&labels).filter(|(_, l)| **l != -100).map(|(id, _)| *id).collect(),
                _ => Vec::new(),
            };
            assert_eq!(ids(true), want, "{name}: {example}");
            assert_eq!(example["trained"], want.len(), "{name}");
            assert_eq!(example["answer"].is_null(), row.get("label").is_none(), "{name}: {example}");
            assert_eq!(pieces.iter().any(|p| p.get("tag").is_some()), name == "bert-tokens-lora", "{name}: {example}");
            all += want.len();
        }
        assert_eq!(found["trained"], all, "{name}");
    }
}

#[test]
fn texts_are_shown_with_what_is_learnt_in_brackets() {
    let scratch = Scratch::new("preview-texts");
    let data = "{\"prompt\": \"Say \", \"completion\": \"yes\"}\n{\"text\": \"all of it\"}\n";
    std::fs::write(scratch.0.join("data.jsonl"), data).unwrap();
    let (base, args) = (base(), ["preview", "--data", "data.jsonl", "-n", "1", "--model"]);
    let (out, err) = told(&run(&scratch, &[&args[..], &[&base]].concat()), 0);
    assert!(out.contains("Say") && out.contains('⟦') && out.contains("yes"), "{out}");
    assert!(out.find('⟦') > out.find("Say") && out.find('⟦') <= out.find("yes"), "{out}");
    // One of two was asked for; lengths are of both.
    assert!(!out.contains("all of it") && out.contains("2 examples of "), "{out}");
    assert!(err.contains("1 prompt ends in a space") && err.contains("data.jsonl"), "{err}");
    // Where all is learnt, that is all but the first token, which has none before it.
    let all = run(&scratch, &[&args[..], &[&base, "--train-on", "all", "--json"]].concat());
    let all: Value = serde_json::from_str(&told(&all, 0).0).unwrap();
    let [tokens, trained] = ["tokens", "trained"].map(|key| all["examples"][0][key].as_u64().unwrap());
    assert_eq!(trained, tokens - 1);
    assert!(
        out.contains(&format!("─── 1: {tokens} tokens, ")) && !out.contains(&format!(" {trained} learnt\n")),
        "{out}"
    );
}

/// What would be wrong with the run is wrong with its rehearsal, and nothing is written in either case.
#[test]
fn a_dry_run_finds_what_is_wrong_and_writes_nothing() {
    let scratch = Scratch::new("dry-run");
    let text = "{\"text\": \"a text to learn\"}\n".repeat(9);
    std::fs::write(scratch.0.join("data.jsonl"), text).unwrap();
    std::fs::create_dir(scratch.0.join("full")).unwrap();
    std::fs::write(scratch.0.join("full/thesis.tex"), "years of work").unwrap();
    let base = base();
    let dry = |out: &str, more: &[&str]| {
        let args = ["train", "--model", &base, "--data", "data.jsonl", "--device", "cpu", "--dry-run", "--out", out];
        run(&scratch, &[&args[..], more].concat())
    };
    let (out, err) = told(&dry("run", &["--batch-size", "4"]), 0);
    assert!(out.contains("without --dry-run it goes to run"), "{out}");
    for part in [
        "learns   9 examples of",
        "that the text ends is learnt in 9 of 9 examples",
        "the first, ⟦learnt⟧: ",
        "q_proj (lora_A, lora_B)",
        "takes    30 steps of 4 examples",
        "memory   ",
    ] {
        assert!(err.contains(part), "no {part:?} in {err}");
    }
    let wrong: &[(&str, &[&str], i32, &str)] = &[
        ("full", &[], 1, "holds something that is not a run"),
        ("run", &["--memory", "1MiB"], 1, "are needed"),
        ("run", &["--targets", "nothing"], 1, "nothing"),
        ("run", &["--resume"], 2, "--dry-run"),
    ];
    for (out, more, code, part) in wrong {
        let (_, err) = told(&dry(out, more), *code);
        assert!(err.contains(part), "{err}");
    }
    let names = |dir: &Path| -> Vec<String> {
        let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut all: Vec<String> = all.collect();
        all.sort();
        all
    };
    assert_eq!(names(&scratch.0), ["data.jsonl", "full"]);
    assert_eq!(names(&scratch.0.join("full")), ["thesis.tex"]);
}

/// Every recipe runs, from its file and from the one that `init` writes of it.
#[test]
fn recipes_run_and_init_writes_them() {
    use std::io::Write;
    use std::process::Stdio;
    let scratch = Scratch::new("recipes");
    let root = common::root("");
    let recipes: Vec<String> = std::fs::read_dir(root.join("recipes"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".toml").map(String::from))
        .collect();
    assert_eq!(recipes.len(), 5, "{recipes:?}");
    let (base, out) = (base(), scratch.0.join("run").display().to_string());
    for recipe in &recipes {
        let file = format!("recipes/{recipe}.toml");
        let args = ["train", "--config", &file, "--model", &base, "--device", "cpu", "--steps", "1", "--overwrite"];
        let args = [&args[..], &["--chat-template", "chatml"]].concat();
        let few = ["--out", &out, "--eval-data", "recipes/data/inn.jsonl", "--report-examples", "0", "--samples", "0"];
        // Of a recipe that holds rows out, as it does.
        let held = std::fs::read_to_string(root.join(&file)).unwrap().contains("\nsplit = ");
        let few = if held { [&few[..2], &few[4..]].concat() } else { few.to_vec() };
        let ran =
            Command::new(env!("CARGO_BIN_EXE_trimtab")).args([&args[..], &few].concat()).current_dir(&root).output();
        let (told_out, err) = told(&ran.unwrap(), 0);
        assert!(told_out.contains("1 steps"), "{recipe}: {told_out}{err}");

        let written = format!("{recipe}.toml");
        let mut asks = Command::new(env!("CARGO_BIN_EXE_trimtab"))
            .args(["init", "--file", &written, "--out", "runs/x"])
            .current_dir(&scratch.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = format!("{recipe}\n{base}\n\n");
        asks.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
        let (out, err) = told(&asks.wait_with_output().unwrap(), 0);
        assert!(out.contains(&format!("wrote {written}")) && err.contains("Which model? ["), "{out}{err}");
        let shown = run(&scratch, &["train", "--config", &written, "--show-config"]);
        let shown = told(&shown, 0).0;
        for part in ["data = \"data.jsonl\"", "out = \"runs/x\"", &base] {
            assert!(shown.contains(part), "{recipe}: no {part} in {shown}");
        }
        // One that is there stays.
        let (_, err) = told(&run(&scratch, &["init", "--file", &written]), 2);
        assert!(err.contains("which exists"), "{err}");
    }
    let (_, err) = told(&run(&scratch, &["init", "--file", "new.toml"]), 2);
    assert!(err.contains("an answer"), "{err}");
    assert!(!scratch.0.join("new.toml").exists());
}
