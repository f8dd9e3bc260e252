//! Model families, tasks and methods against what transformers, PEFT and AdapterHub computed: every folder of the fixtures is a case.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::devices::Device;
use common::families2::{Case, Why, folders};
use trimtab::base::Base;
use trimtab::dtype::DType;
use trimtab::peft::{self, Method};
use trimtab::session::{Options, Planned, Session};
use trimtab::weights::safetensors::{Dtype, Tensor, write_safetensors};
use trimtab::weights::{Checkpoint, load};

/// At least so many cases are checked: fewer means that something that was there is not found any more.
const FLOOR: usize = 70;

/// What is wrong with a case on a device: with its base, then with what was put on it.
fn verdict(folder: &Path, device: &Device) -> Result<(), Why> {
    Case::bare(folder)?.check_bare(device)?;
    Case::open(folder)?.check(device)
}

/// Runs the cases that `wanted` picks by number; each is right, or needs something that is not there.
fn every_case(device: &Device, wanted: impl Fn(usize) -> bool) -> usize {
    let only = std::env::var("TRIMTAB_CASE").unwrap_or_default();
    let (mut right, mut wrong, mut missing) = (0, Vec::new(), Vec::new());
    for (i, folder) in folders().iter().enumerate() {
        let name = folder.file_name().unwrap().to_string_lossy();
        if !wanted(i) || !name.contains(&only) {
            continue;
        }
        match verdict(folder, device) {
            Ok(()) => right += 1,
            Err(Why::Missing(what)) => missing.push(format!("{name}: {what}")),
            Err(Why::Wrong(what)) => wrong.push(format!("{name}: {what}")),
        }
    }
    eprintln!("{}: {right} cases are right; {} were left out", device.name, missing.len());
    missing.iter().for_each(|m| eprintln!("SKIPPED {m}"));
    assert!(wrong.is_empty(), "{} cases are wrong on {}:\n{}", wrong.len(), device.name, wrong.join("\n"));
    if only.is_empty() { right } else { usize::MAX }
}

#[test]
fn every_case_gives_transformers_loss_outputs_and_gradients() {
    assert!(every_case(&Device::cpu(), |_| true) >= FLOOR, "too few cases");
}

#[test]
fn a_third_of_the_cases_on_wgpu() {
    if let Some(device) = Device::wgpu() {
        assert!(every_case(&device, |i| i % 3 == 0) >= FLOOR / 4, "too few cases");
    }
}

/// The control: an adapter whose tensors are two percent too large is seen in every case.
#[test]
fn an_adapter_of_another_scale_is_seen() {
    let mut seen = 0;
    for folder in folders() {
        let Ok(mut case) = Case::open(&folder) else { continue };
        let Some(adapter) = &mut case.adapter else { continue };
        adapter.values_mut().flat_map(|t| &mut t.data).for_each(|x| *x *= 1.02);
        match case.check(&Device::cpu()) {
            Err(Why::Wrong(_)) => seen += 1,
            Err(Why::Missing(_)) => {}
            Ok(()) => panic!("{} is right with it", case.name),
        }
    }
    assert!(seen >= FLOOR - 5, "too few cases");
}

/// The tokens that transformers finds most likely one after the other, from the cache: with the adapter, and of the base
/// alone. Where two were about as likely, what comes next is left to chance.
#[test]
fn decoders_continue_as_transformers() {
    const MARGIN: f64 = 1e-3;
    let mut same = 0;
    for folder in folders() {
        for (key, open) in [("greedy", Case::open as fn(&Path) -> _), ("greedy_base", Case::bare)] {
            let Ok(case) = open(&folder) else { continue };
            let known = &case.facts[key];
            if known["margin"].as_f64().is_none_or(|margin| margin < MARGIN) {
                continue;
            }
            let ids = |name: &str| -> Vec<u32> {
                known[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let want = ids("ids");
            let prompt = match known["row"].as_u64() {
                Some(row) if case.facts["task"] == "seq2seq" => case.source(row as usize),
                _ => ids("prompt"),
            };
            match case.continued(&Device::cpu(), &prompt, want.len()) {
                Ok(got) => assert_eq!(got, want, "{} {key}", case.name),
                Err(Why::Missing(_)) => continue,
                Err(Why::Wrong(e)) => panic!("{} {key}: {e}", case.name),
            }
            same += 1;
        }
    }
    assert!(same >= 2, "too few cases");
}

fn fixture(path: &str) -> PathBuf {
    common::root("tests/fixtures/families2").join(path)
}

/// A folder of this test's own.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A copy of a case, to be changed.
fn copied(case: &str, name: &str) -> PathBuf {
    let (from, dir) = (fixture(case), scratch(name));
    for folder in ["", "model", "adapter"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
        for entry in std::fs::read_dir(from.join(folder)).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
            std::fs::copy(&entry, dir.join(folder).join(entry.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// Writes a case's model with each tensor under the name that `name` gives it, or without it.
fn rewrite(case: &Path, checkpoint: &Checkpoint, mut name: impl FnMut(&str) -> Option<String>) {
    let tensors = checkpoint.names().filter_map(|old| {
        let shape = checkpoint.info(old).unwrap().shape.clone();
        let bytes = bytemuck::cast_slice(&checkpoint.read(old).unwrap()).to_vec().into();
        Some(Tensor { name: name(old)?, dtype: Dtype::F32, shape, bytes })
    });
    write_safetensors(case.join("model/model.safetensors"), &BTreeMap::new(), tensors).unwrap();
}

/// What a model for another task lacks is drawn: BERT's pooler and its head over the vocabulary, as transformers does it.
#[test]
fn what_comes_after_the_blocks_may_be_missing() {
    let whole = Base::open(fixture("bert-classify-lora/model")).unwrap().checkpoint.unwrap();
    for (case, kept) in [("bert-classify-lora", "bert.pooler"), ("bert-mlm-lora", "cls.")] {
        let dir = copied(case, &format!("bare_{case}"));
        let checkpoint = Base::open(fixture(case).join("model")).unwrap().checkpoint.unwrap();
        rewrite(&dir, &checkpoint, |name| (!name.starts_with(kept)).then(|| name.into()));
        // It runs, and gives something else: the fresh head.
        match Case::open(&dir).unwrap().check(&Device::cpu()) {
            Err(Why::Wrong(what)) => assert!(what.starts_with("the loss off"), "{case}: {what}"),
            other => panic!("{case}: {other:?}"),
        }
    }
    // The control: a block that is missing is an error.
    let dir = copied("bert-classify-lora", "bare_block");
    rewrite(&dir, &whole, |name| (!name.contains("layer.1.output")).then(|| name.into()));
    match Case::open(&dir).unwrap().check(&Device::cpu()) {
        Err(Why::Wrong(what)) => assert!(what.contains("no tensor bert.encoder.layer.1.output"), "{what}"),
        other => panic!("{other:?}"),
    }
}

/// The models' own dropout is there in training, and only there.
#[test]
fn configs_dropout_is_applied_in_training() {
    for (case, key) in [
        ("gpt2-conv1d-lora", "embd_pdrop"),
        ("gpt2-conv1d-lora", "resid_pdrop"),
        ("bert-classify-lora", "hidden_dropout_prob"),
        ("roberta-classify-lora", "classifier_dropout"),
        ("distilbert-classify-lora", "dropout"),
        ("distilbert-classify-lora", "seq_classif_dropout"),
    ] {
        let dir = copied(case, &format!("dropout_{case}_{key}"));
        let path = dir.join("model/config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = 0.5.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let (plain, dropped) = (Case::open(&fixture(case)).unwrap(), Case::open(&dir).unwrap());
        let device = Device::cpu();
        assert_eq!(dropped.evaluated(&device).unwrap(), plain.evaluated(&device).unwrap(), "{case} {key}");
        let (with, without) = (dropped.gradients(&device).unwrap().0, plain.gradients(&device).unwrap().0);
        assert!((with - without).abs() > 1e-3, "{case} {key}: {with} and {without}");
    }
}

/// A session of causal LM as it starts.
fn started(model: &Path, method: Box<dyn Method>, adapter: Option<&Path>, quantize: Option<DType>) -> Session {
    let base = Arc::new(Base::open(model).unwrap());
    let options = Options { quantize, max_seq_len: 32, micro_tokens: 64, ..Options::default() };
    let planned = Planned::new(&base, method, options, Device::cpu().open()).unwrap();
    let opened = adapter.map(|dir| {
        let opened = peft::open(dir).unwrap();
        opened.check(dir, &planned.trained()).unwrap();
        opened.tensors
    });
    planned.start(opened.as_ref(), &mut |_, _| Ok(())).unwrap()
}

/// Adapters that are opened and saved again hold what PEFT wrote, but for what it writes twice.
#[test]
fn adapters_are_saved_as_peft_saves_them() {
    const CASES: [(&str, usize); 14] = [
        ("bert-lora-bias-all", 2), // The classifier's bias: as the wrapper holds it, and before training.
        ("bert-dora-bias-lora_only", 0),
        ("bert-mlm-lora-bias-all", 1), // The head's bias, which is its layer's too.
        ("llama-lora-bias-all", 0),
        ("llama-lora-bias-lora_only", 0),
        ("llama-tied-lora-head", 0),
        ("llama-tied-lora-embed-head", 0),
        ("llama-tied-lora-ensure-tying", 0),
        ("llama-tied-lora-save-embed", 0),
        ("llama-tied-lora-save-head", 0),
        ("llama-tied-lora-save-embed-head", 0),
        ("llama-tied-lora-save-embed-ensure-tying", 0),
        ("llama-trainable-tokens", 0),
        ("llama-tied-trainable-tokens", 0),
    ];
    for (name, twice) in CASES {
        let (case, adapter) = (Case::open(&fixture(name)).unwrap(), fixture(name).join("adapter"));
        let options = Options { max_seq_len: 32, micro_tokens: 64, ..Options::default() };
        let base = Arc::new(case.base);
        let planned = Planned::of(&base, vec![case.method], &*case.task, options, Device::cpu().open()).unwrap();
        let opened = peft::open(&adapter).unwrap();
        opened.check(&adapter, &planned.trained()).unwrap();
        let mut session = planned.start(Some(&opened.tensors), &mut |_, _| Ok(())).unwrap();
        let out = scratch(&format!("resaved_{name}"));
        session.save(&out, DType::F32).unwrap();
        let again = peft::open(&out).unwrap();
        assert_eq!(again.tensors, opened.tensors, "{name}");
        let raw = |dir: &Path| peft::files::read_tensors(dir).unwrap();
        assert_eq!(raw(&adapter).len() - raw(&out).len(), twice, "{name}");
        if twice == 0 {
            assert_eq!(raw(&out), raw(&adapter), "{name}");
        }
        for key in ["bias", "ensure_weight_tying", "use_dora", "modules_to_save", "task_type", "r", "token_indices"] {
            let of = |config: &serde_json::Map<_, _>| config.get(key).cloned().unwrap_or(false.into());
            assert_eq!(of(&again.config), of(&opened.config), "{name}: {key}");
        }
    }
}

/// GPT-2's weights are `[in, out]` in files and `[out, in]` in the graph: both ways, whole and quantized.
#[test]
fn transposed_weights_come_and_go_as_files_have_them() {
    let model = fixture("gpt2-full/model");
    let base = Base::open(&model).unwrap();
    let dir = scratch("gpt2_full");
    started(&model, Box::new(peft::full::Full), None, None).save(&dir, DType::F32).unwrap();
    let (before, after) = (base.checkpoint.unwrap(), Base::open(&dir).unwrap().checkpoint.unwrap());
    for name in before.names() {
        assert_eq!(after.info(name), before.info(name), "{name}");
        assert_eq!(after.read(name).unwrap(), before.read(name).unwrap(), "{name}");
    }
    let name = "transformer.h.1.attn.c_attn.weight";
    let want = load::transpose(&before.read(name).unwrap(), before.info(name).unwrap().shape[1]);
    for quantize in [DType::F32, DType::BF16, DType::Nf4] {
        let (dir, quantize) = (fixture("gpt2-dora"), Some(quantize));
        let opened = peft::open(&dir.join("adapter")).unwrap();
        let mut session = started(&model, opened.method, Some(&dir.join("adapter")), quantize);
        let weight = session.trainer.weights().iter().find(|w| w.name == name).unwrap().clone();
        let ty = session.trainer.exec.graph.ty(weight.val).clone();
        assert_eq!(Some(ty.dtype), quantize);
        assert_eq!(session.trainer.exec.download(weight.val).unwrap(), load::encode(&want, &ty).unwrap(), "{ty}");
        // PEFT is told, and reads what it wrote.
        let out = scratch(&format!("gpt2_dora_{}", ty.dtype));
        session.save(&out, DType::F32).unwrap();
        let (before, after) = (peft::open(&dir.join("adapter")).unwrap(), peft::open(&out).unwrap());
        assert_eq!(after.config["fan_in_fan_out"], true);
        assert_eq!(after.tensors, before.tensors);
    }
    // The control: a model that has them as they are.
    let dir = fixture("llama-lora-patterns");
    let opened = peft::open(&dir.join("adapter")).unwrap();
    let out = scratch("llama_patterns");
    started(&dir.join("model"), opened.method, Some(&dir.join("adapter")), None).save(&out, DType::F32).unwrap();
    assert_eq!(peft::open(&out).unwrap().config["fan_in_fan_out"], false);
}

/// Checkpoints of a model without a head have their tensors without its module's name, and old ones call the parts of a
/// layer norm by older names.
#[test]
fn tensors_are_found_under_their_other_names() {
    for (case, renames) in
        [("gpt2-conv1d-lora", &[("transformer.", "")][..]), ("llama-lora-patterns", &[("model.", "")])]
    {
        let dir = copied(case, &format!("renamed_{case}"));
        let checkpoint = Base::open(fixture(case).join("model")).unwrap().checkpoint.unwrap();
        let mut renamed = 0;
        rewrite(&dir, &checkpoint, |old| {
            let name = renames.iter().fold(old.to_string(), |name, (from, to)| name.replacen(from, to, 1));
            renamed += usize::from(name != old);
            Some(name)
        });
        assert!(renamed > 0);
        Case::open(&dir).and_then(|case| case.check(&Device::cpu())).unwrap_or_else(|why| panic!("{case}: {why:?}"));
    }
}
