//! Models with an adapter merged into their weights: the same bytes as a session that holds them all writes, whatever the base
//! model is stored as, in files of any size and in memory that does not grow with the model; and what is refused.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::command::run;
use common::scratch::Scratch;
use trimtab::Error;
use trimtab::base::Base;
use trimtab::bench::operands::Random;
use trimtab::config::{Flags, RunConfig};
use trimtab::dtype::DType;
use trimtab::peft::{self, AdapterConfig, Targets, lora::Lora};
use trimtab::run::job::Job;
use trimtab::run::merge::{How, compare, merge};
use trimtab::session::{Options, Planned};
use trimtab::weights::{Checkpoint, HostTensor};

const WHOLE: How = How { dtype: Some(DType::F32), shard: u64::MAX, check: true };

fn config(model: &Path, adapter: Option<&Path>, out: &Path) -> RunConfig {
    let text = |path: &Path| path.display().to_string();
    let mut flags = vec![("model", text(model)), ("out", text(out)), ("device", "cpu".into())];
    flags.extend(adapter.map(|adapter| ("adapter", text(adapter))));
    RunConfig::resolve(None, &Flags(flags)).unwrap()
}

fn options() -> Options {
    Options { train: false, evaluate: true, max_seq_len: 16, micro_tokens: 16, ..Options::default() }
}

/// What a session writes that holds the whole model.
fn by_session(config: &RunConfig, dir: &Path) -> PathBuf {
    let job = Job::open(config, true, None).unwrap();
    let opened = peft::open(config.adapter.as_ref().unwrap()).unwrap();
    let device = common::devices::Device::cpu().open();
    let planned = Planned::of(&job.base, vec![opened.method], &*job.task, options(), device).unwrap();
    let mut session = planned.start(Some(&opened.tensors), &mut |_, _| Ok(())).unwrap();
    session.save_merged(dir, DType::F32).unwrap();
    dir.join("model.safetensors")
}

fn same_tensors(a: &Path, b: &Path) -> Result<(), String> {
    let (a, b) = (Checkpoint::open(a).unwrap(), Checkpoint::open(b).unwrap());
    let names: Vec<&str> = a.names().collect();
    if !b.names().eq(names.iter().copied()) {
        return Err("other names".into());
    }
    match names.iter().find(|name| a.info(name) != b.info(name) || a.read(name).unwrap() != b.read(name).unwrap()) {
        Some(name) => Err(format!("{name} differs")),
        None => Ok(()),
    }
}

/// Adapters of PEFT on every family: what is written, and that it computes the same.
#[test]
fn every_adapter_of_the_fixtures_is_merged_or_refused() {
    let refused = |name: &str| {
        name.contains("prompt")
            || name.contains("prefix")
            // What head and embedding share is merged; what one of the two has is not.
            || name.contains("tied") && !["save", "tokens", "ensure"].iter().any(|shared| name.contains(shared))
    };
    let (mut merged, mut apart, mut wrong) = (0, 0, Vec::new());
    for entry in std::fs::read_dir(common::root("tests/fixtures/families2")).unwrap() {
        let case = entry.unwrap().path();
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (model, adapter) = (case.join("model"), case.join("adapter"));
        if !adapter.is_dir() {
            continue;
        }
        let scratch = Scratch::new(&name);
        let config = config(&model, Some(&adapter), &scratch.0.join("out"));
        let report = match (merge(&config, &WHOLE), refused(&name)) {
            (Ok(report), false) => report,
            (Err(Error::Unsupported { .. }), true) => continue,
            (Ok(_), true) => {
                wrong.push(format!("{name} is not refused any more"));
                continue;
            }
            (Err(e), _) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        merged += 1;
        let Some(found) = report.difference else {
            wrong.extend((!name.contains("mlm")).then(|| format!("{name} was not compared")));
            continue;
        };
        if found.largest > 2e-5 * found.of || found.same != found.rows {
            wrong.push(format!("{name}: {found:?}"));
        }
        // The control: without the adapter it computes something else.
        let mut without = config.clone();
        without.adapter = None;
        let mut after = config.clone();
        (after.model, after.adapter) = (config.out.clone(), None);
        if let Ok(Some(other)) = compare(&without, &after) {
            if other.largest < 100.0 * found.largest {
                wrong.push(format!("{name}: {other:?} without the adapter, {found:?} with it"));
            }
            apart += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(merged >= 35 && apart >= 15, "{merged} merged, {apart} compared with the base");
}

/// A LoRA adapter of random factors for a model.
fn adapter(model: &Path, dir: &Path) {
    adapter_of(model, dir, Targets::AllLinear);
}

fn adapter_of(model: &Path, dir: &Path, targets: Targets) {
    let base = Arc::new(Base::open(model).unwrap());
    let method = Lora { config: AdapterConfig::lora(3, 6.0, targets) };
    let planned = Planned::new(&base, Box::new(method), options(), common::devices::Device::cpu().open()).unwrap();
    let mut random = Random::named(&model.display().to_string());
    let mut draw = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product()).map(|_| 0.1 * random.normal() as f32).collect();
        (name, HostTensor { shape, data })
    };
    let tensors: BTreeMap<String, HostTensor> = planned.trained().into_iter().map(&mut draw).collect();
    let mut session = planned.start(Some(&tensors), &mut |_, _| Ok(())).unwrap();
    session.save(dir, DType::F32).unwrap();
}

/// Folders of every type, shards, GGUF and bitsandbytes: merged to the bytes that a session writes, and rounded as asked for.
#[test]
fn bases_of_every_storage_are_merged_to_the_same_bytes() {
    let bases = [
        ("tests/fixtures/tiny_llama_bf16", DType::BF16),
        ("tests/fixtures/base_sharded", DType::F32),
        ("tests/fixtures/tiny_llama_bnb4", DType::F16),
        ("tests/fixtures/tiny_llama_bnb4_dq", DType::F16),
        ("tests/fixtures/tiny_llama_bnb8", DType::F16),
    ];
    for (base, usual) in bases {
        let scratch = Scratch::new(&base.replace('/', "-"));
        let [out, by, small, usually, parts] = ["out", "by", "adapter", "usual", "parts"].map(|n| scratch.0.join(n));
        let model = common::root(base);
        adapter(&model, &small);
        let with = |out: &Path| config(&model, Some(&small), out);
        let report = merge(&with(&out), &WHOLE).unwrap();
        let whole = std::fs::read(by_session(&with(&out), &by)).unwrap();
        assert!(whole == std::fs::read(out.join("model.safetensors")).unwrap(), "{base}");
        assert_eq!(std::fs::read(by.join("config.json")).unwrap(), std::fs::read(out.join("config.json")).unwrap());
        let found = report.difference.unwrap();
        assert!(found.largest <= 2e-5 * found.of, "{base}: {found:?}");
        assert!(same_tensors(&out, &model).is_err(), "the control: the adapter changes something");

        // In the base model's own type, each value rounded once.
        let report = merge(&with(&usually), &How { dtype: None, ..WHOLE }).unwrap();
        let said = report.dtype;
        assert!(said == usual || base.contains("bnb") && said == DType::BF16 || said == DType::F32, "{base}: {said}");
        let (exact, rounded) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(&usually).unwrap());
        for name in exact.names() {
            let round = |x: &f32| match said {
                DType::BF16 => half::bf16::from_f32(*x).to_f32(),
                DType::F16 => half::f16::from_f32(*x).to_f32(),
                _ => *x,
            };
            let want: Vec<f32> = exact.read(name).unwrap().iter().map(round).collect();
            assert_eq!(rounded.read(name).unwrap(), want, "{base}: {name}");
        }

        // In files of a few tensors each.
        let report = merge(&with(&parts), &How { shard: 40_000, check: false, ..WHOLE }).unwrap();
        assert!(report.files > 2 && !parts.join("model.safetensors").exists(), "{base}: {} files", report.files);
        same_tensors(&out, &parts).unwrap_or_else(|e| panic!("{base}: {e}"));
        let index = std::fs::read(parts.join("model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], 4 * report.parameters);
        let names: Vec<&String> = index["weight_map"].as_object().unwrap().keys().collect();
        assert!(exact.names().eq(names.iter().map(|n| n.as_str())), "{base}");
    }
}

/// A value that the type has no room for ends it, and nothing is left.
#[test]
fn what_does_not_fit_the_type_is_refused() {
    let scratch = Scratch::new("large");
    let (model, small, out) =
        (common::root("tests/fixtures/tiny_llama_bf16"), scratch.0.join("a"), scratch.0.join("o"));
    adapter(&model, &small);
    let path = small.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["lora_alpha"] = 1e9.into();
    std::fs::write(&path, json.to_string()).unwrap();
    let how = How { check: false, ..WHOLE };
    let error = merge(&config(&model, Some(&small), &out), &How { dtype: Some(DType::F16), ..how }).unwrap_err();
    assert!(error.to_string().contains("numbers of at most 6.55"), "{error}");
    let left: Vec<_> = std::fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["a"], "what is left");
    merge(&config(&model, Some(&small), &out), &how).unwrap();
}

/// Whatever the names of the tensors, and so their order.
#[test]
fn an_update_of_a_tied_embedding_alone_is_refused() {
    let scratch = Scratch::new("tied");
    let (model, own, out) =
        (common::root("tests/fixtures/families2/gpt2-conv1d-lora/model"), scratch.0.join("a"), scratch.0.join("o"));
    for (targets, refused) in [("c_attn", false), ("wte", true), ("c_attn,wte", true)] {
        adapter_of(&model, &own, Targets::parse(targets).unwrap());
        match merge(&config(&model, Some(&own), &out), &WHOLE) {
            Err(Error::Unsupported { what, .. }) => {
                assert!(refused && what == "merging into an embedding that is tied to the head", "{targets}: {what}");
            }
            other => assert!(!refused && other.is_ok(), "{targets}: {other:?}"),
        }
        std::fs::remove_dir_all(&out).ok();
    }
}

#[test]
fn the_command_says_what_it_wrote_and_refuses_in_words() {
    let scratch = Scratch::new("command");
    let case = |name: &str| common::root(&format!("tests/fixtures/families2/{name}")).display().to_string();
    let out = |name: &str| scratch.0.join(name).display().to_string();
    let (model, adapter) = (case("llama-lora-all-linear/model"), case("llama-lora-all-linear/adapter"));
    let merge = |more: &[&str]| run(&[&["merge", "--model", &model, "--device", "cpu"][..], more].concat());
    let (code, said, err) = merge(&["--adapter", &adapter, "--out", &out("a")]);
    assert_eq!((code, err.as_str()), (0, ""), "{said}");
    assert!(said.contains("parameters in f32") && said.contains("the highest is the same in 8 of 8 rows"), "{said}");
    let (_, said, _) = merge(&["--adapter", &adapter, "--out", &out("b"), "--no-check", "--dtype", "bf16"]);
    assert!(said.contains("in bf16") && !said.contains("compared"), "{said}");

    let inside = Path::new(&model).join("merged").display().to_string();
    let (prompt, t5) = (case("t5-prompt/adapter"), case("t5-prompt/model"));
    let table: [(&[&str], i32, &str); 6] = [
        (&["--adapter", &adapter], 2, "--out"),
        (&["--out", &out("c")], 2, "--adapter"),
        (&["--adapter", &adapter, "--out", &out("a")], 1, "a new or empty folder"),
        (&["--adapter", &adapter, "--out", &inside], 1, "the model stays as it is"),
        (&["--adapter", &adapter, "--out", &out("c"), "--shard-size", "many"], 2, "--shard-size: many"),
        (&["--model", &t5, "--adapter", &prompt, "--out", &out("c")], 1, "merging method prompt is not supported"),
    ];
    for (args, code, words) in table {
        let (got, said, err) = merge(args);
        assert_eq!((got, said.as_str()), (code, ""), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }
    assert!(!Path::new(&out("c")).exists());
}

/// Most bytes that the command was in, resident, as Linux counts them.
#[cfg(target_os = "linux")]
fn peak(args: &[&str]) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
    let mut child = command.args(args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut most = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        most = most.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{args:?}");
            return 1024 * most;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A model eight times as large takes no more memory.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_model() {
    use trimtab::synth::{self, Format};
    let scratch = Scratch::new("memory");
    let peaks = [8, 64].map(|layers| {
        let mut config = synth::like("tinyllama").unwrap();
        for (key, value) in [
            ("hidden_size", 256),
            ("intermediate_size", 1024),
            ("num_hidden_layers", layers),
            ("num_attention_heads", 4),
            ("num_key_value_heads", 4),
            ("vocab_size", 512),
        ] {
            config[key] = value.into();
        }
        let [model, small, out] = ["model", "adapter", "out"].map(|n| scratch.0.join(format!("{n}{layers}")));
        let format = Format { dtype: DType::BF16, quantize: None, seed: 1, shard: u64::MAX };
        synth::write(&model, &config, &format, &mut |_, _| Ok(())).unwrap();
        adapter(&model, &small);
        let text = [&model, &small, &out].map(|p| p.display().to_string());
        let args = ["merge", "--model", &text[0], "--adapter", &text[1], "--out", &text[2], "--device", "cpu"];
        let bytes = std::fs::metadata(model.join("model.safetensors")).unwrap().len();
        let without = peak(&[&args[..], &["--no-check"]].concat());
        std::fs::remove_dir_all(&out).unwrap();
        (bytes, without, peak(&args))
    });
    let [small, large] = peaks;
    let grew = large.0 - small.0;
    assert!(large.1 < small.1 + grew / 8, "merging alone: {peaks:?}");
    assert!(large.2 < small.2 + grew / 4, "with the comparison: {peaks:?}");
}
