//! Runs of twelve AdamW steps against PyTorch with PEFT, on models of other sizes than those of `families.rs`: the loss and
//! the gradient's norm of each step, and how the trained tensors end. A folder of the fixtures is a run.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use common::devices::Device;
use trimtab::Result;
use trimtab::config::{Flags, RunConfig};
use trimtab::data::pack::pack;
use trimtab::peft::{self, full::Full};
use trimtab::run::data::RunData;
use trimtab::run::job::Job;
use trimtab::run::micro::Micro;
use trimtab::run::options::options;
use trimtab::session::{Options, Planned};

/// How far losses, norms and trained tensors end from PyTorch's, relative; of tensors, relative to how far training moved
/// them. Rounding of f32 grows with the steps, most of all through AdamW's first ones, whose size is 1 whatever the gradient.
const LOSS: f64 = 2e-5;
const NORM: f64 = 2e-4;
const MOVED: f64 = 5e-3;

fn folders() -> Vec<PathBuf> {
    let root = std::env::var("TRIMTAB_STEPS").map_or_else(|_| common::root("tests/fixtures/steps"), PathBuf::from);
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    folders.retain(|p| p.join("steps.json").is_file());
    folders.sort();
    folders
}

/// The run of a folder at `times` its learning rate: what is wrong.
fn run(dir: &Path, device: &Device, times: f64) -> Result<Result<(), String>> {
    let known: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("steps.json")).unwrap()).unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (model, data, adapter) = (path("model"), path("data.jsonl"), path("adapter"));
    let whole = !dir.join("adapter").is_dir();
    let mut flags = vec![("model", &*model), ("data", &data), ("qa_padding", "true")];
    flags.extend([("max_seq_len", "64"), ("micro_tokens", "192")]);
    let number = |value: &Value| value.as_f64().unwrap_or(0.0).to_string();
    let (rate, decay) = (number(&known["lr"]), number(&known["weight_decay"]));
    flags.extend([("lr", &*rate), ("weight_decay", &decay), ("max_grad_norm", "0")]);
    let plus = &known["loraplus"];
    let (ratio, embedding) = (number(&plus["loraplus_lr_ratio"]), number(&plus["loraplus_lr_embedding"]));
    if plus.is_object() {
        flags.extend([("loraplus_lr_ratio", &*ratio), ("loraplus_lr_embedding", &embedding)]);
    }
    flags.push(if whole { ("method", "full") } else { ("adapter", &adapter) });
    let config = RunConfig::resolve(None, &Flags::of(&flags)?)?;
    let given = RunData::open(&config)?;
    let job = Job::open(&config, !whole, Some(&given.train))?;
    let rows = job.examples(&config, &given.train, None)?.0;
    let (method, start): (Box<dyn peft::Method>, _) = match whole {
        true => (Box::new(Full), None),
        false => {
            let opened = peft::open(Path::new(&adapter))?;
            (opened.method, Some(opened.tensors))
        }
    };
    let options = Options { step_tokens: None, ..options(&config, &Micro::fixed(&config)) };
    let planned = Planned::of(&job.base, vec![method], &*job.task, options, device.open())?;
    if let Some(tensors) = &start {
        peft::check(Path::new(&adapter), tensors, &planned.trained())?;
    }
    let mut session = planned.start(start.as_ref(), &mut |_, _| Ok(()))?;
    let before = peft::files::read_bytes(dir, &session.adapter()?)?;

    let size = known["rows"].as_u64().unwrap() as usize;
    let layout = session.layout()?.clone();
    let (mut losses, mut norms) = (0f64, 0f64);
    for (i, (loss, norm)) in
        known["losses"].as_array().unwrap().iter().zip(known["norms"].as_array().unwrap()).enumerate()
    {
        let step: Vec<usize> = (i * size..(i + 1) * size).collect();
        let micro = pack(&rows, &step, &layout, true)?;
        let report = session.step(&micro, known["lr"].as_f64().unwrap() * times)?;
        // No op of any family, task or method makes what is not finite on the way; and looking changes nothing.
        if i == 1 {
            assert_eq!(session.first_not_finite(&micro)?, None, "{}", dir.display());
        }
        let off = |got: f32, want: &Value| {
            let (got, want) = (f64::from(got), want.as_f64().unwrap());
            if got.is_nan() { f64::INFINITY } else { (got - want).abs() / want.abs() }
        };
        losses = losses.max(off(report.loss, loss));
        norms = norms.max(off(report.grad_norm, norm));
    }
    let after = peft::files::read_bytes(dir, &session.adapter()?)?;
    let moved = moved(&peft::files::read_file(&dir.join("trained.safetensors"))?, &before, &after);
    let found = format!("losses off by {losses:.1e}, norms by {norms:.1e}, tensors by {moved:.1e}");
    Ok(if losses <= LOSS && norms <= NORM && moved <= MOVED { Ok(()) } else { Err(found) })
}

/// Biases whose gradient is zero in exact arithmetic, since the softmax after them takes no notice of a shift: what rounding
/// leaves, AdamW makes into steps of full size.
const SHIFTS: [&str; 5] = ["key.bias", "k_lin.bias", "key.base_layer.bias", "attn.c_attn.bias", "qa_outputs.bias"];

type Tensors = BTreeMap<String, trimtab::weights::HostTensor>;

/// The distance of all trained tensors from where they should be, relative to how far they should have moved. Tensors that
/// the reference writes and does not train (the weight under an adapted table) are not among ours.
fn moved(want: &Tensors, before: &Tensors, after: &Tensors) -> f64 {
    let (mut off, mut way) = (0f64, 0f64);
    let key =
        |name: &str| if want.contains_key(name) { name.to_string() } else { name.replace("base_model.model.", "") };
    for (name, got) in after.iter().filter(|(name, _)| !SHIFTS.iter().any(|shift| name.ends_with(shift))) {
        let Some(wanted) = want.get(&key(name)) else { return f64::INFINITY };
        for ((got, want), from) in got.data.iter().zip(&wanted.data).zip(&before[name].data) {
            off += f64::from(got - want).powi(2);
            way += f64::from(want - from).powi(2);
        }
    }
    (off / way).sqrt()
}

fn all(device: &Device, wanted: impl Fn(usize) -> bool) -> usize {
    let (mut right, mut wrong) = (0, Vec::new());
    for (_, dir) in folders().iter().enumerate().filter(|(i, _)| wanted(*i)) {
        let name = dir.file_name().unwrap().to_string_lossy();
        match run(dir, device, 1.0) {
            Ok(Ok(())) => right += 1,
            Ok(Err(what)) => wrong.push(format!("{name}: {what}")),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{} runs are wrong, {right} right:\n{}", wrong.len(), wrong.join("\n"));
    right
}

#[test]
fn twelve_steps_are_those_of_pytorch() {
    assert!(all(&Device::cpu(), |_| true) >= 12, "too few runs");
}

#[test]
fn some_of_them_on_wgpu() {
    if let Some(device) = Device::wgpu() {
        assert!(all(&device, |i| i % 4 == 1) >= 3, "too few runs");
    }
}

/// The control: a learning rate that is a percent larger is seen.
#[test]
fn another_learning_rate_is_seen() {
    for dir in folders() {
        assert!(run(&dir, &Device::cpu(), 1.01).unwrap().is_err(), "{}", dir.display());
    }
}
