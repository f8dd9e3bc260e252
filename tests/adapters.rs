//! Bottleneck adapters: AdapterHub's files in and out, where training starts, runs. What they compute is checked by
//! `families.rs`, against AdapterHub's library.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::devices::Device;
use common::families2::{Case, folders};
use serde_json::Value;
use trimtab::config::{Flags, RunConfig};
use trimtab::dtype::DType;
use trimtab::error::Error;
use trimtab::peft::bottleneck::Kind;
use trimtab::peft::folder::Heads;
use trimtab::peft::{self, Bottleneck, adapter::Adapter, files};
use trimtab::run::folder::Start;
use trimtab::run::training::run;
use trimtab::session::{Options, Planned};
use trimtab::weights::HostTensor;

/// The cases of AdapterHub's.
fn cases() -> Vec<PathBuf> {
    let cases: Vec<PathBuf> = folders().into_iter().filter(|f| f.parent().unwrap().ends_with("adapterhub")).collect();
    assert_eq!(cases.len(), 14);
    cases
}

/// A folder of this test's own. `gen_adapterhub.py ../families2 ../adapterhub target/tmp` loads what was saved there.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
}

/// What AdapterHub wrote is read, loaded, saved, and the same: every tensor, every key of the configs.
#[test]
fn folders_come_and_go_as_adapterhub_has_them() {
    for folder in cases() {
        let Case { name, base, method, adapter, task, .. } = Case::open(&folder).unwrap();
        let (from, dir, base) = (folder.join("adapter"), scratch(&name), Arc::new(base));
        let options = Options { max_seq_len: 32, micro_tokens: 64, ..Options::default() };
        let planned = Planned::of(&base, vec![method], &*task, options, Device::cpu().open()).unwrap();
        peft::open(&from).unwrap().check(&from, &planned.trained()).unwrap();
        let mut session = planned.start(adapter.as_ref(), &mut |_, _| Ok(())).unwrap();
        session.save(&dir, DType::F32).unwrap();
        let head = from.join("head_config.json").exists();
        for file in ["adapter_config.json", "head_config.json"] {
            let (theirs, mut ours) = (json(&from.join(file)), json(&dir.join(file)));
            if file == "head_config.json" && head && ours["label2id"].is_null() {
                // Names of labels are the task's, which writes them beside.
                ours["label2id"] = theirs["label2id"].clone();
            }
            assert_eq!(ours, theirs, "{name}: {file}");
        }
        for file in ["adapter.safetensors", "model_head.safetensors"].into_iter().take(1 + usize::from(head)) {
            let read = |dir: &Path| files::read_file(&dir.join(file)).unwrap();
            assert_eq!(read(&dir), read(&from), "{name}: {file}");
        }
        assert_eq!(dir.join("model_head.safetensors").exists(), head, "{name}");
        assert_eq!(peft::open(&dir).unwrap().tensors, adapter.unwrap(), "{name}");
    }
}

/// A model with a parallel adapter starts as the model; with another it starts close to it. Dropout is there in training
/// and only there.
#[test]
fn training_starts_from_the_base_model() {
    let device = Device::cpu();
    for of in ["bert-parallel", "gpt2-parallel", "t5-parallel", "llama-parallel"] {
        let folder = common::root("tests/fixtures/adapterhub").join(of);
        let (want, _) = Case::bare(&folder).unwrap().evaluated(&device).unwrap();
        let start = |kind: Kind, dropout: f64| {
            let config = Bottleneck::new(kind, Some(4.0), None, dropout).unwrap();
            let mut case = Case::bare(&folder).unwrap();
            case.method = Box::new(Adapter::new(config, Heads::default()));
            (case.evaluated(&device).unwrap().0, case.gradients(&device).unwrap().0)
        };
        assert_eq!(start(Kind::Parallel, 0.0).0, want, "{of}");
        for kind in [Kind::Houlsby, Kind::Pfeiffer] {
            let (loss, trained) = start(kind, 0.0);
            assert!(loss != want && (loss - want).abs() < 0.02 * want, "{of} {kind:?}: {loss} and {want}");
            assert!((loss - trained).abs() < 1e-5 * loss, "{of} {kind:?}");
            let (dropped, trained) = start(kind, 0.5);
            assert!(dropped == loss && trained != loss, "{of} {kind:?}: {dropped} and {trained}");
        }
    }
}

/// Each kind learns, saves what it learnt, and goes on from there; a run knows the adapter's kind by its folder.
#[test]
fn runs_learn_and_go_on() {
    let data = scratch("adapter_run").join("data.jsonl");
    std::fs::write(&data, "{\"text\": \"Full fathom five thy father lies;\"}\n").unwrap();
    let base = common::root("assets/base").display().to_string();
    let data = data.display().to_string();
    for kind in ["houlsby", "pfeiffer", "parallel"] {
        let out = scratch(&format!("adapter_{kind}")).display().to_string();
        let run_of = |more: &[(&str, &str)]| {
            let all =
                [("model", base.as_str()), ("data", &data), ("max_seq_len", "32"), ("device", "cpu"), ("steps", "8")];
            let flags = Flags::of(&[&all[..], more].concat()).unwrap();
            run(&RunConfig::resolve(None, &flags).unwrap(), Start::Overwrite, &mut |_| Ok(())).unwrap()
        };
        let lr = ("lr", "1e-2");
        let first = run_of(&[("method", "adapter"), ("adapter_kind", kind), ("out", out.as_str()), lr]);
        assert!(first.last_loss < 0.9 * first.first_loss, "{kind}: {} and {}", first.first_loss, first.last_loss);
        let config = json(&Path::new(&out).join("adapter_config.json"));
        assert_eq!(
            (&config["model_class"], &config["model_name"]),
            (&"LlamaForCausalLM".into(), &base.as_str().into())
        );
        assert_eq!(config["config"]["mh_adapter"], kind == "houlsby");
        assert!(!Path::new(&out).join("model_head.safetensors").exists());
        let more = scratch(&format!("adapter_{kind}_more")).display().to_string();
        let next = run_of(&[("adapter", out.as_str()), ("out", more.as_str()), lr]);
        assert!(next.first_loss < first.last_loss, "{kind}: {} and {}", first.last_loss, next.first_loss);
    }
}

/// What `save_adapter` writes unless asked for safetensors: the same tensors.
#[test]
fn pickled_folders_are_those_of_safetensors() {
    let (from, dir) = (common::root("tests/fixtures/adapterhub/bert-pfeiffer/adapter"), scratch("adapter_pickled"));
    for file in ["adapter_config.json", "head_config.json"] {
        std::fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let pickles = common::root("tests/golden/pickled");
    for (file, name) in [("adapterhub_adapter", "pytorch_adapter"), ("adapterhub_model_head", "pytorch_model_head")] {
        std::fs::copy(pickles.join(format!("{file}.bin")), dir.join(format!("{name}.bin"))).unwrap();
    }
    let (theirs, ours) = (peft::open(&from).unwrap(), peft::open(&dir).unwrap());
    assert_eq!(ours.tensors, theirs.tensors);
    assert_eq!(ours.config, theirs.config);
    // The control: without its head it is another adapter.
    std::fs::remove_file(dir.join("pytorch_model_head.bin")).unwrap();
    assert_ne!(peft::open(&dir).unwrap().tensors, theirs.tensors);
}

/// What is not read is refused, by what it is, and with what to do.
#[test]
fn other_folders_are_refused() {
    let from = common::root("tests/fixtures/adapterhub/bert-pfeiffer/adapter");
    let changed = |name: &str, change: &dyn Fn(&Path, &mut Value)| {
        let dir = scratch(name);
        for file in ["adapter.safetensors", "model_head.safetensors", "head_config.json"] {
            std::fs::copy(from.join(file), dir.join(file)).unwrap();
        }
        let mut config = json(&from.join("adapter_config.json"));
        change(&dir, &mut config);
        std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
        match peft::open(&dir) {
            Err(Error::Unsupported { what, hint }) => format!("{what}: {hint}"),
            Err(e) => e.to_string(),
            Ok(_) => "read".into(),
        }
    };
    let inverse = changed("adapter_inverse", &|_, config| config["config"]["inv_adapter"] = "nice".into());
    assert!(inverse.contains("inv_adapter") && inverse.contains("seq_bn"), "{inverse}");
    let prefix = changed("adapter_prefix", &|_, config| config["config"]["architecture"] = "prefix_tuning".into());
    assert!(prefix.contains("prefix_tuning"), "{prefix}");
    let pickled = changed("adapter_not_a_pickle", &|dir, _| {
        std::fs::rename(dir.join("adapter.safetensors"), dir.join("pytorch_adapter.bin")).unwrap();
    });
    assert!(pickled.contains("pytorch_adapter.bin"), "{pickled}");
    let bare = changed("adapter_bare", &|dir, _| std::fs::remove_file(dir.join("adapter.safetensors")).unwrap());
    assert!(bare.contains("adapter_model.safetensors"), "{bare}");
    let flexible = changed("adapter_flexible", &|dir, _| {
        let tensors = [("heads.task.1.weight".to_string(), HostTensor { shape: vec![1], data: vec![0.5] })];
        files::write_tensors(&dir.join("model_head.safetensors"), &tensors).unwrap();
    });
    assert!(flexible.contains("heads.task.1.weight") && flexible.contains("with_head=False"), "{flexible}");
    assert!(changed("adapter_nameless", &|_, config| config["name"] = Value::Null).contains("name"));
    // The control, also with the name that AdapterHub's own class gives T5's layers.
    assert_eq!(changed("adapter_same", &|_, _| {}), "read");
    let dir = scratch("adapter_t5");
    let from = common::root("tests/fixtures/adapterhub/t5-parallel/adapter");
    std::fs::copy(from.join("adapter_config.json"), dir.join("adapter_config.json")).unwrap();
    let tensors = peft::open(&from).unwrap().tensors;
    let wrapped = tensors.iter().map(|(n, t)| (format!("transformer.{n}"), t.clone()));
    files::write_tensors(&dir.join("adapter.safetensors"), &wrapped.collect::<Vec<_>>()).unwrap();
    assert_eq!(peft::open(&dir).unwrap().tensors, tensors);
}
