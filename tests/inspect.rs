//! `trimtab inspect`, `eval` and `quantize`, as a user meets them: what is said of sound files and of damaged ones, losses that are
//! transformers' and PEFT's, and bitsandbytes folders that are read back as they were written.

mod common;

use std::path::{Path, PathBuf};

use common::command::{ok, run};
use common::golden::Golden;
use common::scratch::{Scratch, copy};
use serde_json::Value;
use trimtab::dtype::DType;
use trimtab::quant::nf4;
use trimtab::weights::{Checkpoint, Storage};

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn json(args: &[&str]) -> (i32, Value) {
    let (code, said, err) = run(&[args, &["--json"]].concat());
    (code, serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}{err}")))
}

/// Losses of the goldens, with the adapter and without, in one table.
#[test]
fn losses_are_those_of_transformers_and_peft() {
    for name in
        ["llama-lora-all-linear", "llama-lora-bias-all", "llama-classify-lora", "bert-tokens-lora", "t5-relu-lora"]
    {
        let case = common::root(&format!("tests/fixtures/families2/{name}"));
        let [model, adapter, data] = ["model", "adapter", "batch.jsonl"].map(|n| shown(&case.join(n)));
        let golden = Golden::open(case.join("golden.safetensors"));
        let args = ["eval", "--model", &model, "--adapter", &adapter, &adapter, "--data", &data, "--device", "cpu"];
        let (code, said, err) = run(&[&args[..], &["--json"]].concat());
        assert_eq!(code, 0, "{name}: {err}");
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{name}");
        let want = f64::from(golden.f32("loss")[0]);
        for line in &lines {
            let loss = line["loss"].as_f64().unwrap();
            assert!((loss - want).abs() < 1e-5 * want, "{name}: {loss} and {want}");
            if name.starts_with("llama-lora") {
                assert!((line["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-6 * loss.exp());
            }
        }
        if name == "llama-lora-all-linear" {
            let table = ok(&[&args[..], &["--base", "--memory", "200MB"]].concat());
            let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
            assert_eq!(rows[0], ["loss", "perplexity"]);
            assert_eq!((rows.len(), rows[1][0], rows[1][1]), (4, "no", "adapter"));
            let base = f64::from(golden.f32("base.loss")[0]);
            let loss: f64 = rows[1][2].parse().unwrap();
            assert!((loss - base).abs() < 1e-4 && (loss - want).abs() > 1e-3, "{table}: the base is another model");
            assert!((rows[2][1].parse::<f64>().unwrap() - want).abs() < 1e-4, "{table}");
        }
    }
    let (code, said, err) = run(&["eval", "--model", &shown(&common::root("assets/base"))]);
    assert!(code == 2 && said.is_empty() && err.contains("--data"), "{err}");
}

/// The folders of every format, inspected, and again with one fault each.
#[test]
fn sound_is_told_from_damaged() {
    let scratch = Scratch::new("damage");
    let fixture = |name: &str| common::root(&format!("tests/fixtures/{name}"));
    let base = common::root("assets/base");
    let gguf = scratch.0.join("sound.gguf");
    ok(&["export", "--model", &shown(&base), "--type", "q8_0", "--out", &shown(&gguf)]);
    let data = fixture("families2/llama-classify-lora/batch.jsonl");
    let kinds = [
        (base.clone(), "model"),
        (fixture("base_sharded"), "model"),
        (fixture("tiny_llama_bnb4_dq"), "model"),
        (fixture("families2/bert-classify-lora/model"), "model"),
        (fixture("families2/llama-lora-all-linear/adapter"), "adapter"),
        (fixture("families2/llama-lora-patterns/adapter"), "adapter"),
        (fixture("families2/t5-prompt/adapter"), "adapter"),
        (gguf.clone(), "model"),
        (base.join("model.safetensors"), "tensors"),
        (data.clone(), "data"),
    ];
    for (path, kind) in &kinds {
        let (code, said) = json(&["inspect", &shown(path), "--values", "-v"]);
        assert_eq!((code, said["kind"].as_str(), &said["sound"]), (0, Some(*kind), &Value::Bool(true)), "{said:#}");
        let text = ok(&["inspect", &shown(path)]);
        assert!(text.ends_with("  sound\n"), "{text}");
    }
    let (_, said) = json(&["inspect", &shown(&base)]);
    let expected = Checkpoint::open(&base).unwrap();
    let n: usize = expected.names().map(|name| expected.info(name).unwrap().shape.iter().product::<usize>()).sum();
    assert_eq!((said["parameters"].as_u64(), said["family"].as_str()), (Some(n as u64), Some("llama")));
    let (_, said) = json(&["inspect", &shown(&kinds[4].0)]);
    assert!(said["method"] == "lora" && said["r"].is_u64() && said["target_modules"].is_array(), "{said:#}");
    let (_, said) = json(&["inspect", &shown(&data)]);
    assert!(said["rows"] == 3 && said["fields"]["label"]["missing"] == 0, "{said:#}");

    // One fault each.
    let damaged = |from: &Path, name: &str, change: &dyn Fn(&Path)| -> PathBuf {
        let to = scratch.0.join(name);
        if from.is_dir() {
            copy(from, &to);
        } else {
            std::fs::copy(from, &to).unwrap();
        }
        change(&to);
        to
    };
    let edit = |path: &Path, f: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        f(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let nan = |bytes: &mut Vec<u8>| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    let adapter = fixture("families2/llama-lora-all-linear/adapter");
    let sharded = fixture("base_sharded");
    let table: [(PathBuf, &[&str], &str); 8] = [
        (
            damaged(&base, "cut", &|p| edit(&p.join("model.safetensors"), &|b| b.truncate(b.len() / 2))),
            &[],
            "cut short",
        ),
        (
            damaged(&sharded, "shard", &|p| std::fs::remove_file(p.join("model-00002-of-00003.safetensors")).unwrap()),
            &[],
            "not in the folder",
        ),
        (damaged(&gguf, "cut.gguf", &|p| edit(p, &|b| b.truncate(b.len() / 2))), &[], "an aligned stretch"),
        (damaged(&adapter, "nan", &|p| edit(&p.join("adapter_model.safetensors"), &nan)), &[], "has a value of NaN"),
        (
            damaged(&sharded, "values", &|p| edit(&p.join("model-00003-of-00003.safetensors"), &nan)),
            &["--values"],
            "has a value of NaN",
        ),
        (
            damaged(&base, "layers", &|p| {
                let text = std::fs::read_to_string(p.join("config.json")).unwrap();
                std::fs::write(
                    p.join("config.json"),
                    text.replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7"),
                )
                .unwrap();
            }),
            &[],
            "no tensor model.layers.6",
        ),
        (
            damaged(&adapter, "rank", &|p| {
                let text = std::fs::read_to_string(p.join("adapter_config.json")).unwrap();
                let mut json: Value = serde_json::from_str(&text).unwrap();
                json["r"] = (json["r"].as_u64().unwrap() + 1).into();
                std::fs::write(p.join("adapter_config.json"), json.to_string()).unwrap();
            }),
            &[],
            "whose rank is",
        ),
        (damaged(&data, "rows.jsonl", &|p| edit(p, &|b| b.extend(b"{\"text\": \n"))), &[], "rows.jsonl"),
    ];
    for (path, more, words) in &table {
        let (code, said, err) = run(&[&["inspect", &shown(path)], *more].concat());
        assert!(code == 1 && said.contains("not sound: ") && said.contains(words), "{words}: {said}{err}");
        assert!(err.starts_with("error: ") && err.contains("expected a sound file or folder"), "{err}");
        let (code, said) = json(&[&["inspect", &shown(path)], *more].concat());
        assert!(code == 1 && said["sound"] == false && !said["faults"].as_array().unwrap().is_empty(), "{said:#}");
    }
    // Without reading the values, this one is not seen: the control of --values.
    assert_eq!(run(&["inspect", &shown(&scratch.0.join("values"))]).0, 0);
    assert_eq!(run(&["inspect", &shown(&scratch.0.join("nothing"))]).0, 1);
}

/// A run and its checkpoint; a flipped bit in it is seen.
#[test]
fn runs_and_checkpoints_are_told() {
    let scratch = Scratch::new("run");
    let base = shown(&common::root("assets/base"));
    let out = scratch.0.join("run");
    let data = scratch.0.join("rows.jsonl");
    std::fs::write(&data, "{\"text\": \"It was the best of times.\"}\n".repeat(4)).unwrap();
    ok(&[
        "train",
        "--model",
        &base,
        "--data",
        &shown(&data),
        "--out",
        &shown(&out),
        "--steps",
        "2",
        "--save-every",
        "1",
        "--rank",
        "2",
        "--max-seq-len",
        "16",
        "--device",
        "cpu",
    ]);
    let (code, said) = json(&["inspect", &shown(&out)]);
    assert_eq!((code, said["kind"].as_str(), said["steps"].as_u64()), (0, Some("run"), Some(2)), "{said:#}");
    assert!(
        said["last loss"].is_f64() && said["settings"]["rank"] == 2 && said["result"]["method"] == "lora",
        "{said:#}"
    );
    let checkpoint = out.join("checkpoints/step-2");
    let (_, said) = json(&["inspect", &shown(&checkpoint)]);
    assert!(said["step"] == 2 && said["checksums"] == "hold", "{said:#}");
    let state = checkpoint.join("state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&state, bytes).unwrap();
    for path in [&checkpoint, &out] {
        let (code, said, _) = run(&["inspect", &shown(path)]);
        assert!(code == 1 && said.contains("hashes that are not those of the files"), "{said}");
    }
}

/// Codes and scales are those of the quantizer that is bitsandbytes', whole or in shards; that transformers reads the same values
/// is checked by scripts/exports.py.
#[test]
fn folders_of_nf4_are_read_back_as_they_were_made() {
    let base = common::root("assets/base");
    let source = Checkpoint::open(&base).unwrap();
    for (format, dtype) in [("nf4", DType::Nf4), ("nf4-dq", DType::Nf4Dq)] {
        let scratch = Scratch::new(format);
        let [one, parts] = ["one", "parts"].map(|n| scratch.0.join(n));
        let quantize = |out: &Path, more: &[&str]| {
            ok(&[&["quantize", "--model", &shown(&base), "--format", format, "--out", &shown(out)], more].concat())
        };
        let said = quantize(&one, &[]);
        assert!(said.contains("56 weights, 42 of them in nf4"), "{said}");
        quantize(&parts, &["--shard-size", "300KB"]);
        assert!(
            parts.join("model-00002-of-00005.safetensors").exists()
                || parts.join("model.safetensors.index.json").exists()
        );
        for folder in [&one, &parts] {
            let written = Checkpoint::open(folder).unwrap();
            let mut quantized = 0;
            for name in source.names() {
                let values = source.read(name).unwrap();
                match written.info(name).unwrap().stored {
                    Storage::As(stored) if stored.is_quantized() => {
                        assert_eq!(stored, dtype, "{name}");
                        let (_, bytes) = written.nf4(name).unwrap().unwrap();
                        assert!(bytes == nf4::quantize(&values, dtype == DType::Nf4Dq).unwrap(), "{name}");
                        quantized += 1;
                    }
                    _ => assert_eq!(written.read(name).unwrap(), values, "{name}"),
                }
            }
            assert_eq!(quantized, 42);
            assert_eq!(json(&["inspect", &shown(folder)]).0, 0);
        }
        let config: Value = serde_json::from_slice(&std::fs::read(one.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization_config"]["bnb_4bit_use_double_quant"], format == "nf4-dq");
    }
    let scratch = Scratch::new("nf4-refused");
    let gpt2 = shown(&common::root("tests/fixtures/families2/gpt2-full/model"));
    let (code, _, err) = run(&["quantize", "--model", &gpt2, "--format", "nf4", "--out", &shown(&scratch.0.join("x"))]);
    assert!(code == 1 && err.contains("a bitsandbytes folder of model_type gpt2 is not supported"), "{err}");
}
