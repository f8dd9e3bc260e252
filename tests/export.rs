//! GGUF files that are written: read back by the reader, every family, type and tokenizer; with adapters merged or alone; and what
//! is refused. That llama.cpp reads them the same way is checked by scripts/llama-cpp.sh.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::command::run;
use common::scratch::{Scratch, copy};
use serde_json::Value;
use trimtab::base::Base;
use trimtab::bench::operands::Random;
use trimtab::config::{Flags, RunConfig};
use trimtab::data::tokenizer::Tokenizer;
use trimtab::dtype::DType;
use trimtab::peft::{AdapterConfig, Targets, lora::Lora};
use trimtab::quant::ggml::{self, GgmlType};
use trimtab::quant::ggml_encode;
use trimtab::run::export::{self, FileType};
use trimtab::run::merge::{How, compare, merge};
use trimtab::session::{Options, Planned};
use trimtab::weights::gguf::Gguf;
use trimtab::weights::{Checkpoint, HostTensor};

fn config(model: &Path, adapter: Option<&Path>, out: &Path) -> RunConfig {
    let text = |path: &Path| path.display().to_string();
    let mut flags = vec![("model", text(model)), ("out", text(out)), ("device", "cpu".into())];
    flags.extend(adapter.map(|adapter| ("adapter", text(adapter))));
    RunConfig::resolve(None, &Flags(flags)).unwrap()
}

/// A tokenizer.json of byte-level BPE without merges, with `n` tokens.
fn letters(n: usize, folder: &Path) {
    let text = std::fs::read_to_string(common::root("assets/base/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let few = vocab.iter().filter(|(_, id)| id.as_u64().unwrap() < n as u64).map(|(t, id)| (t.clone(), id.clone()));
    json["model"]["vocab"] = Value::Object(few.collect());
    json["model"]["merges"] = Value::Array(Vec::new());
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
}

/// Every family: the tensors and the settings come back as they were.
#[test]
fn every_family_comes_back_as_it_was() {
    let families = ["gemma", "linear_rope", "llama3_rope", "mistral", "qwen2", "qwen3", "yarn_rope"];
    for family in families {
        let scratch = Scratch::new(family);
        let (folder, out) = (scratch.0.join("model"), scratch.0.join("model.gguf"));
        copy(&common::root(&format!("tests/fixtures/families/{family}")), &folder);
        // A file has only the factors of llama3's scaling: lengths that no model has are not guessed from them.
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let edited =
            text.replace("\"original_max_position_embeddings\": 64", "\"original_max_position_embeddings\": 8192");
        std::fs::write(&path, if family == "llama3_rope" { edited } else { text }).unwrap();
        let ours = Checkpoint::open(&folder).unwrap();
        letters(ours.config()["vocab_size"].as_u64().unwrap() as usize, &folder);
        let report = export::model(&config(&folder, None, &out), Some(FileType::F32), false).unwrap();
        assert_eq!(report.bytes, std::fs::metadata(&out).unwrap().len(), "{family}");

        let theirs = Checkpoint::open(&out).unwrap();
        let mut moved = 0;
        for name in ours.names() {
            let Some(info) = theirs.info(name) else {
                assert!(name == "lm_head.weight" || name.contains("rotary"), "{family}: no {name}");
                continue;
            };
            assert_eq!(info.shape, ours.info(name).unwrap().shape, "{family}: {name}");
            let same =
                theirs.read(name).unwrap().iter().zip(ours.read(name).unwrap()).all(|(a, b)| (a - b).abs() <= 1e-6);
            assert!(same, "{family}: {name}");
            // The control: as it is in the file it is another tensor.
            let gguf = theirs.gguf().unwrap();
            let stored = gguf.tensors().find(|t| t.shape == info.shape && t.name.ends_with("attn_q.weight"));
            if let Some(stored) = stored.filter(|_| name.ends_with("0.self_attn.q_proj.weight")) {
                let mut raw = vec![0.0; info.shape.iter().product()];
                ggml::dequantize(stored.ty, gguf.data(stored), &mut raw);
                moved += usize::from(raw != ours.read(name).unwrap());
            }
        }
        let permuted = family.contains("rope") || family == "mistral";
        assert_eq!(moved == 1, permuted, "{family}: rows of queries are in another order for llama.cpp");
        let mut other = config(&out, None, &out);
        other.model = Some(out.clone());
        let found = compare(&config(&folder, None, &out), &other).unwrap().unwrap();
        assert!(found.largest <= 1e-5 * found.of && found.same == found.rows, "{family}: {found:?}");
    }
}

/// Every type: each tensor is what its type makes of it, and the tokenizer is the same.
#[test]
fn every_type_is_read_back_as_it_was_rounded() {
    let scratch = Scratch::new("types");
    let base = common::root("assets/base");
    let ours = Checkpoint::open(&base).unwrap();
    let golden: Value =
        serde_json::from_slice(&std::fs::read(common::root("tests/golden/texts.json")).unwrap()).unwrap();
    let lines: Vec<&str> = golden["lines"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let tokenizer = Tokenizer::from_folder(&base).unwrap();
    let mut last = 0.0;
    for (name, ty) in FileType::NAMES {
        let out = scratch.0.join(format!("{name}.gguf"));
        let report = export::model(&config(&base, None, &out), Some(ty), false).unwrap();
        let theirs = Checkpoint::open(&out).unwrap();
        let gguf = theirs.gguf().unwrap();
        assert_eq!(gguf.tensors().count(), report.tensors);
        assert_eq!(gguf.uint("general.file_type").unwrap(), Some(u64::from(ty.number())));
        for tensor in ours.names() {
            let info = theirs.info(tensor).unwrap();
            let cols = *info.shape.last().unwrap();
            let stored =
                gguf.tensors().find(|t| trimtab::weights::gguf_names::hugging_face_name(&t.name) == tensor).unwrap();
            let (mut bytes, mut want) = (Vec::new(), ours.read(tensor).unwrap());
            assert!(ggml_encode::quantize(stored.ty, &want, &mut bytes));
            ggml::dequantize(stored.ty, &bytes, &mut want);
            assert_eq!(theirs.read(tensor).unwrap(), want, "{name}: {tensor} as {} of {cols}", stored.ty.name());
            assert!(info.shape.len() == 2 || stored.ty == GgmlType::F32, "{name}: {tensor}");
        }
        let mut other = config(&base, None, &out);
        other.model = Some(out.clone());
        let found = compare(&config(&base, None, &out), &other).unwrap().unwrap();
        let bound = match ty {
            FileType::F32 | FileType::F16 => 1e-5,
            FileType::Bf16 | FileType::Q8_0 => 0.02,
            FileType::Q6K => 0.04,
            _ => 0.2,
        };
        assert!(found.largest <= bound * found.of, "{name}: {found:?}");
        last = if ty == FileType::Q4_0 { found.largest } else { last };

        let read = Tokenizer::from_gguf(gguf).unwrap();
        for line in &lines {
            assert_eq!(read.encode(line, true).unwrap(), tokenizer.encode(line, true).unwrap(), "{name}: {line:?}");
        }
        assert_eq!((read.bos(), read.eos_ids(), read.pad()), (tokenizer.bos(), tokenizer.eos_ids(), tokenizer.pad()));
    }
    assert!(last > 1e-3, "the control: four bits are seen: {last}");
}

/// An adapter of random factors of everything that llama.cpp adapts.
fn adapter(model: &Path, dir: &Path, targets: Targets, rslora: bool) {
    let base = Arc::new(Base::open(model).unwrap());
    let mut config = AdapterConfig::lora(3, 5.0, targets);
    config.rslora = rslora;
    let options = Options { train: false, evaluate: true, max_seq_len: 16, micro_tokens: 16, ..Options::default() };
    let device = common::devices::Device::cpu().open();
    let planned = Planned::new(&base, Box::new(Lora { config }), options, device).unwrap();
    let mut random = Random::named("factors");
    let mut draw = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product()).map(|_| 0.1 * random.normal() as f32).collect();
        (name, HostTensor { shape, data })
    };
    let tensors: BTreeMap<String, HostTensor> = planned.trained().into_iter().map(&mut draw).collect();
    planned.start(Some(&tensors), &mut |_, _| Ok(())).unwrap().save(dir, DType::F32).unwrap();
}

fn tensor(gguf: &Gguf, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let mut values = vec![0.0; tensor.shape.iter().product()];
    ggml::dequantize(tensor.ty, gguf.data(tensor), &mut values);
    (tensor.shape.clone(), values)
}

/// What llama.cpp adds to the base, `alpha / rank · B A`, is what merging adds, in its order of rows; merged from a folder or from
/// a GGUF file the model is the same.
#[test]
fn an_adapter_alone_adds_what_merging_adds() {
    let base = common::root("assets/base");
    for (name, rslora, ty) in
        [("plain", false, GgmlType::F32), ("rslora", true, GgmlType::F32), ("half", false, GgmlType::F16)]
    {
        let scratch = Scratch::new(name);
        let [dir, plain, merged, again, alone] =
            ["adapter", "plain.gguf", "merged.gguf", "again.gguf", "lora.gguf"].map(|n| scratch.0.join(n));
        adapter(&base, &dir, Targets::AllLinear, rslora);
        let all = Some(FileType::F32);
        export::model(&config(&base, None, &plain), all, false).unwrap();
        export::model(&config(&base, Some(&dir), &merged), all, false).unwrap();
        export::model(&config(&plain, Some(&dir), &again), all, false).unwrap();
        export::adapter(&config(&base, Some(&dir), &alone), ty, false).unwrap();
        let [plain_file, merged_file, lora] = [&plain, &merged, &alone].map(|path| Gguf::open(path).unwrap());
        assert_eq!(lora.string("general.type").unwrap(), Some("adapter"));
        let alpha = lora.float("adapter.lora.alpha").unwrap().unwrap();
        // Both factors are rounded, to 24 or 11 bits.
        let (mut changed, rounding) = (0, if ty == GgmlType::F16 { 2.0 / 2048.0 } else { 0.0 });
        for (before, after) in plain_file.tensors().zip(merged_file.tensors()) {
            assert_eq!(before.name, after.name);
            let (shape, x) = tensor(&plain_file, &before.name);
            let (_, y) = tensor(&merged_file, &before.name);
            if lora.tensor(&format!("{}.lora_a", before.name)).is_none() {
                assert_eq!(x, y, "{}", before.name);
                continue;
            }
            let (_, a) = tensor(&lora, &format!("{}.lora_a", before.name));
            let (b_shape, b) = tensor(&lora, &format!("{}.lora_b", before.name));
            let (cols, rank) = (shape[1], b_shape[1]);
            for (i, (x, y)) in x.iter().zip(&y).enumerate() {
                let pairs = (0..rank).map(|r| f64::from(b[i / cols * rank + r]) * f64::from(a[r * cols + i % cols]));
                let (product, size) = pairs.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let want = f64::from(*x) + alpha / rank as f64 * product;
                let tolerance = 1e-6 + rounding * alpha / rank as f64 * size;
                assert!((want - f64::from(*y)).abs() < tolerance, "{name}: {} at {i}", before.name);
            }
            changed += usize::from(x != y);
        }
        assert_eq!(changed, 42, "seven linear layers in each of six");
        // Merged into the GGUF file, it is merged all the same.
        let again = Gguf::open(&again).unwrap();
        for t in merged_file.tensors() {
            assert_eq!(tensor(&again, &t.name), tensor(&merged_file, &t.name), "{}", t.name);
        }
        assert_eq!(
            again.strings("tokenizer.ggml.tokens").unwrap(),
            merged_file.strings("tokenizer.ggml.tokens").unwrap()
        );

        // A GGUF file merges to a folder too, quantized or not.
        for ty in [FileType::F32, FileType::Q8_0] {
            let (file, folder) = (scratch.0.join("some.gguf"), scratch.0.join(format!("folder{}", ty.number())));
            export::model(&config(&base, None, &file), Some(ty), true).unwrap();
            let how = How { dtype: Some(DType::F32), shard: u64::MAX, check: true };
            let found = merge(&config(&file, Some(&dir), &folder), &how).unwrap().difference.unwrap();
            assert!(found.largest <= 2e-5 * found.of && found.same == found.rows, "{name}: {found:?}");
            let texts = ["To be, or not to be", " the\n\n1234 é"];
            let [a, b] = [&base, &folder].map(|dir| Tokenizer::from_folder(dir).unwrap());
            texts.iter().for_each(|text| assert_eq!(a.encode(text, true).unwrap(), b.encode(text, true).unwrap()));
        }
    }
}

/// SentencePiece's tokenizer and those that GGUF files of fixtures hold, there and back.
#[test]
fn tokenizers_come_back_as_they_were() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(common::root("tests/golden/texts.json")).unwrap()).unwrap();
    let lines: Vec<&str> = golden["lines"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let scratch = Scratch::new("tokenizers");
    for name in ["llama", "gemma"] {
        let gguf = Gguf::open(common::root(&format!("tests/golden/gguf_{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let rows = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap().len();
        let path = scratch.0.join(format!("{name}.gguf"));
        let entries = tokenizer.to_gguf(rows + 3).unwrap();
        trimtab::weights::gguf_write::write(&path, &entries, &[], &mut |_, _| Ok(())).unwrap();
        let written = Gguf::open(&path).unwrap();
        let again = Tokenizer::from_gguf(&written).unwrap();
        let mut merged = 0;
        for line in &lines {
            let ids = tokenizer.encode(line, true).unwrap();
            assert_eq!(again.encode(line, true).unwrap(), ids, "{name}: {line:?}");
            merged += usize::from(ids.len() < line.len());
        }
        assert!(merged > 5, "the control: tokens are merged");
        assert_eq!(again.chat_template(), tokenizer.chat_template());
        assert_eq!(
            written.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(),
            rows + 3,
            "unused rows have tokens"
        );
        assert!(tokenizer.to_gguf(rows - 1).unwrap_err().to_string().contains("rows of the model's embedding"));
    }
    let t5 = Tokenizer::from_folder(common::root("tests/golden/tokenizers/t5"));
    assert!(t5.unwrap().to_gguf(1 << 20).unwrap_err().to_string().contains("Unigram in a GGUF file"));
}

#[test]
fn the_command_refuses_what_has_no_place() {
    let scratch = Scratch::new("command");
    let out = |name: &str| scratch.0.join(name).display().to_string();
    let case = |name: &str| common::root(&format!("tests/fixtures/families2/{name}")).display().to_string();
    let base = common::root("assets/base").display().to_string();
    let (code, said, err) = run(&["export", "--model", &base, "--type", "q4_k", "--out", &out("a.gguf")]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(said.contains("56 tensors") && said.contains("Q5_0"), "{said}");
    let (gpt2, classifier) = (case("gpt2-full/model"), case("llama-classify-lora/model"));
    let (classify, dora) = (case("llama-classify-lora/adapter"), case("gpt2-dora/adapter"));
    let tied = [case("llama-tied-lora-head/model"), case("llama-tied-lora-head/adapter")];
    let table: [(&[&str], i32, &str); 8] = [
        (&["--model", &base], 2, "--out"),
        (&["--model", &base, "--out", &out("a.gguf")], 1, "which is there already"),
        (&["--model", &base, "--out", &out("b.gguf"), "--lora-only"], 2, "--adapter"),
        (&["--model", &base, "--out", &out("b.gguf"), "--lora-only", "--adapter", &dora], 1, "DoRA"),
        (&["--model", &gpt2, "--out", &out("b.gguf")], 1, "a GGUF file of model_type gpt2 is not supported"),
        (&["--model", &classifier, "--adapter", &classify, "--out", &out("b.gguf")], 1, "score.weight in a GGUF file"),
        (&["--model", &tied[0], "--adapter", &tied[1], "--lora-only", "--out", &out("b.gguf")], 1, "are one weight"),
        (
            &["--model", &base, "--adapter", &tied[1], "--lora-only", "--type", "q4_0", "--out", &out("b.gguf")],
            2,
            "f32 or f16",
        ),
    ];
    for (args, code, words) in table {
        let (got, said, err) = run(&[&["export"], args].concat());
        assert_eq!((got, said.as_str()), (code, ""), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }
    assert!(!Path::new(&out("b.gguf")).exists());
    let (code, ..) = run(&["export", "--model", &base, "--out", &out("a.gguf"), "--overwrite"]);
    assert_eq!(code, 0);
}
