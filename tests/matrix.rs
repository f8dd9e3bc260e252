//! Every method on every family, for every task, over every format of the base: what must hold of each. The tables are
//! walked, so a new row is tested by being there.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use common::devices::Device;
use trimtab::base::Base;
use trimtab::config::{Flags, RunConfig};
use trimtab::data::Dataset;
use trimtab::data::pack::{MicroBatch, pack_sized};
use trimtab::error::{Error, Result};
use trimtab::models::FAMILIES;
use trimtab::nn::Weight;
use trimtab::peft::{self, Frozen, METHODS, Method};
use trimtab::run::data::RunData;
use trimtab::run::job::Job;
use trimtab::run::micro::Micro;
use trimtab::run::options;
use trimtab::run::training::method;
use trimtab::session::{Options, Planned, Session};
use trimtab::tasks::TASKS;

/// A small model of each kind.
const MODELS: [(&str, &str); 6] = [
    ("llama", "families2/llama-loraplus/model"),
    ("gpt2", "families2/gpt2-full/model"),
    ("bert", "families2/bert-classify-full/model"),
    ("roberta", "families2/roberta-mlm-lora/model"),
    ("distilbert", "families2/distilbert-tokens-lora/model"),
    ("t5", "families2/t5-full/model"),
];

/// Names and values of flags.
type Typed = &'static [(&'static str, &'static str)];

/// Flags of a new method besides its name.
const VARIANTS: [(&str, Typed); 10] = [
    ("trainable-tokens", &[("trainable_tokens", "5,12,39,46,67,70")]),
    ("adapter", &[("adapter_kind", "houlsby")]),
    ("adapter", &[("adapter_kind", "pfeiffer"), ("reduction_factor", "4")]),
    ("adapter", &[("adapter_kind", "parallel")]),
    ("lora", &[("rank", "4"), ("alpha", "16")]),
    ("lora", &[("rank", "2"), ("dora", "true"), ("dropout", "0.2")]),
    ("lora", &[("rank", "2"), ("rslora", "true"), ("targets", "all-linear")]),
    ("prefix", &[("virtual_tokens", "3")]),
    ("prefix", &[("virtual_tokens", "2"), ("prefix_projection", "true")]),
    ("prompt", &[("virtual_tokens", "3")]),
];

/// The ways to make a method of a name.
fn variants(name: &str) -> Vec<Typed> {
    let found: Vec<_> = VARIANTS.iter().filter(|v| v.0 == name).map(|v| v.1).collect();
    if found.is_empty() { vec![&[]] } else { found }
}

/// Formats of the base's weights and of activations, and how far rounding to them moves a loss (of about 4): a trained tensor
/// is f32, the one that it starts as may not be.
const FORMATS: [(&str, Typed, f64); 3] =
    [("f32", &[], 0.0), ("bf16", &[("dtype", "bf16")], 0.03), ("nf4", &[("quantize", "nf4")], 0.0)];

/// A row of a task, tokenized.
fn row(task: &str, i: usize, labels: usize) -> Value {
    let n = 5 + (i * 3) % 7;
    let ids: Vec<usize> = (0..n).map(|j| 5 + (i * 31 + j * 7) % 90).collect();
    match task {
        "causal-lm" => json!({"input_ids": ids}),
        "masked-lm" => {
            let labels: Vec<i64> = (0..n).map(|j| if j % 3 == 1 { ids[j] as i64 + 1 } else { -100 }).collect();
            json!({"input_ids": ids, "labels": labels})
        }
        "sequence-classification" => json!({"input_ids": ids, "label": i % labels}),
        "token-classification" => json!({"input_ids": ids, "labels": (0..n).map(|j| j % labels).collect::<Vec<_>>()}),
        "question-answering" => json!({"input_ids": ids, "start_position": i % 3, "end_position": 3 + i % 2}),
        "seq2seq" => json!({"input_ids": ids, "labels": (0..4 + i % 3).map(|j| 7 + j * 5).collect::<Vec<_>>()}),
        _ => panic!("no row of {task}: add one"),
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("matrix").join(name);
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// One cell: a method on a model, for a task, over a format.
struct Cell {
    name: String,
    config: RunConfig,
    job: Job,
    data: Dataset,
}

fn set(flags: &mut Flags, name: &str, value: &str) {
    let field = trimtab::config::FIELDS.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no {name}"));
    flags.0.push((field.name, value.to_string()));
}

impl Cell {
    fn open(name: String, model: &Path, task: &str, flags: &[(&str, &str)]) -> Result<Cell> {
        let dir = scratch(&name);
        let config = std::fs::read_to_string(model.join("config.json")).map_err(|e| Error::io(model, e))?;
        let config: Value = serde_json::from_str(&config).unwrap();
        let labels = config["id2label"].as_object().map_or(3, |names| names.len());
        let rows: Vec<String> = (0..8).map(|i| row(task, i, labels).to_string()).collect();
        let data = dir.join("data.jsonl");
        std::fs::write(&data, rows.join("\n")).unwrap();
        let mut typed = Flags::default();
        let model = model.to_string_lossy();
        let all = [("model", &*model), ("task", task), ("max_seq_len", "16"), ("micro_tokens", "32"), ("steps", "4")];
        all.iter().chain(flags).for_each(|(name, value)| set(&mut typed, name, value));
        set(&mut typed, "data", &data.to_string_lossy());
        let config = RunConfig::resolve(None, &typed)?;
        let given = RunData::open(&config)?;
        let job = Job::open(&config, true, Some(&given.train))?;
        let data = job.examples(&config, &given.train, None)?.0;
        Ok(Cell { name, config, job, data })
    }

    fn planned(&self, method: Box<dyn Method>, train: bool, device: &Device) -> Result<Planned> {
        let options = Options { train, evaluate: true, step_tokens: None, ..options(&self.config) };
        let planned = Planned::of(&self.job.base, vec![method], &*self.job.task, options, device.open())?;
        assert_eq!(planned.sizes(), SIZES, "{}: {:?}", self.name, planned.notes());
        Ok(planned)
    }

    fn fresh(&self, device: &Device) -> Result<Session> {
        self.planned(method(&self.config, &self.job)?, true, device)?.start(None, &mut |_, _| Ok(()))
    }

    /// A session from the adapter of a folder.
    fn again(&self, dir: &Path, train: bool, device: &Device) -> Result<Session> {
        let opened = peft::open(dir)?;
        let planned = self.planned(opened.method, train, device)?;
        peft::check(dir, &opened.tensors, &planned.trained())?;
        planned.start(Some(&opened.tensors), &mut |_, _| Ok(()))
    }

    fn step(&self, session: &Session, i: usize) -> Vec<MicroBatch> {
        let examples: Vec<usize> = (0..4).map(|j| (4 * i + j) % self.data.len()).collect();
        pack_sized(&self.data, &examples, session.layouts(), true).unwrap()
    }
}

/// Tokens of micro-batches of each size; one row fits the smaller one.
const SIZES: [usize; 2] = [32, 16];

fn options(config: &RunConfig) -> Options {
    Options { micro_smaller: SIZES[1..].to_vec(), ..options::options(config, &Micro::fixed(config)) }
}

/// Smaller micro-batches compute what larger ones do that hold the same.
fn sizes_agree(cell: &Cell, session: &mut Session, rounding: f64) -> Result<(), String> {
    let one = pack_sized(&cell.data, &[0], session.layouts(), true).unwrap();
    let [small] = &one[..] else { return Err(format!("{} micro-batches of one row", one.len())) };
    let wide = small.widened(session.layout().unwrap()).unwrap();
    if wide == *small {
        return Err("one row has a micro-batch of the largest size".into());
    }
    let [small, large] = [small, &wide].map(|micro| session.eval(micro).unwrap());
    // Sums over more rows, of which some are zero, are of other parts; an activation in bf16 may be rounded another way, by
    // 2⁻⁹ of itself a few times on its way (as src/bench/truth.rs has it).
    let bound = if rounding > 0.0 { 4.0 / 512.0 } else { 1e-6 };
    if (small.loss - large.loss).abs() > bound * large.loss.abs() || small.outputs.len() != large.outputs.len() {
        return Err(format!("a micro-batch has the loss {}, and {} in a larger one", small.loss, large.loss));
    }
    Ok(())
}

/// Loss of the first rows on the weights as they are.
fn loss(cell: &Cell, session: &mut Session) -> f64 {
    cell.step(session, 0).iter().map(|micro| session.eval(micro).unwrap().loss).sum()
}

/// The bytes of the weights that `wanted` picks, by name.
fn bytes(session: &mut Session, wanted: impl Fn(&Weight) -> bool) -> BTreeMap<String, Vec<u8>> {
    let weights: Vec<Weight> = session.trainer.weights().iter().filter(|w| wanted(w)).cloned().collect();
    weights.into_iter().map(|w| (w.name, session.trainer.exec.download(w.val).unwrap())).collect()
}

/// Everything that must hold; what is wrong.
fn check(cell: &Cell, device: &Device, rounding: f64) -> Result<(), String> {
    let say = |e: trimtab::Error| e.to_string();
    let mut session = cell.fresh(device).map_err(say)?;
    let def = method(&cell.config, &cell.job).map_err(say)?.def();
    // The start.
    let base = cell.planned(Box::new(Frozen), false, device).map_err(say)?;
    let mut base = base.start(None, &mut |_, _| Ok(())).map_err(say)?;
    let (plain, start) = (loss(cell, &mut base), loss(cell, &mut session));
    if !start.is_finite() || (def.same_at_start && (start - plain).abs() > rounding.max(1e-6) * plain) {
        return Err(format!("the loss is {start} at the start, {plain} without the method"));
    }
    // What trains.
    let (frozen, trained) = (bytes(&mut session, |w| !w.trainable), bytes(&mut session, |w| w.trainable));
    for i in 0..2 {
        let step = cell.step(&session, i);
        let report = session.step(&step, 1e-2).map_err(say)?;
        if !(report.loss.is_finite() && report.grad_norm > 0.0) {
            return Err(format!("step {i}: {report:?}"));
        }
    }
    if bytes(&mut session, |w| !w.trainable) != frozen {
        return Err("a tensor changed that is not trained".into());
    }
    let after = bytes(&mut session, |w| w.trainable);
    let still: Vec<&String> =
        trained.iter().filter(|(name, old)| after[*name] == **old).map(|(name, _)| name).collect();
    if !still.is_empty() {
        return Err(format!("trained, and as before: {still:?}"));
    }
    sizes_agree(cell, &mut session, rounding)?;
    // Saved and opened again it computes the same, and goes on to the same bits.
    let (now, state) = (loss(cell, &mut session), session.state().map_err(say)?);
    if now == start {
        return Err("training changes nothing".into());
    }
    let dir = scratch(&format!("{}/saved", cell.name));
    session.save(&dir, trimtab::dtype::DType::F32).map_err(say)?;
    let step = cell.step(&session, 2);
    let next = session.step(&step, 1e-2).map_err(say)?;
    let mut resumed = match def.peft_type {
        Some(_) => cell.again(&dir, true, device).map_err(say)?,
        None => cell.fresh(device).map_err(say)?,
    };
    if def.peft_type.is_some() {
        let got = loss(cell, &mut resumed);
        if got != now {
            return Err(format!("saved and opened again, the loss is {got}, not {now}"));
        }
        let mut only = cell.again(&dir, false, device).map_err(say)?;
        let got = loss(cell, &mut only);
        // What depends on weights may be computed in another order where they are fixed (DoRA's norms).
        if (got - now).abs() > 1e-5 * now {
            return Err(format!("without training the loss is {got}, not {now}"));
        }
    }
    merged(cell, &mut resumed, device, now)?;
    resumed.set_state(&state).map_err(say)?;
    let again = resumed.step(&step, 1e-2).map_err(say)?;
    if again != next || resumed.state().map_err(say)? != session.state().map_err(say)? {
        return Err(format!("it goes on to {again:?}, not {next:?}"));
    }
    Ok(())
}

/// Methods that can be merged equal themselves merged: the model's own class computes the same. (Weights that are held in
/// fewer bits than they are stored in would be other weights.)
fn merged(cell: &Cell, session: &mut Session, device: &Device, now: f64) -> Result<(), String> {
    let dir = scratch(&format!("{}/merged", cell.name));
    let def = method(&cell.config, &cell.job).map_err(|e| e.to_string())?.def();
    let can = !["prompt", "prefix", "adapter"].contains(&def.name);
    match session.save_merged(&dir, trimtab::dtype::DType::F32) {
        Ok(()) if can => {}
        Err(Error::Unsupported { .. }) if !can => return Ok(()),
        // A head that was drawn, and is in no file.
        Err(Error::Unsupported { what, .. }) if what.contains("stored as nf4") => return Ok(()),
        Ok(()) => return Err("merged, which is not possible".into()),
        Err(e) => return Err(e.to_string()),
    }
    if !cell.name.ends_with("f32") || def.peft_type.is_none() {
        return Ok(());
    }
    let base = Arc::new(Base::open(&dir).map_err(|e| e.to_string())?);
    let options = Options { train: false, evaluate: true, ..options(&cell.config) };
    let planned = Planned::of(&base, vec![Box::new(Frozen)], &*cell.job.task, options, device.open());
    let started = planned.and_then(|planned| planned.start(None, &mut |_, _| Ok(())));
    let got = loss(cell, &mut started.map_err(|e| e.to_string())?);
    match (got - now).abs() <= 1e-5 * now {
        true => Ok(()),
        false => Err(format!("merged, the loss is {got}, not {now}")),
    }
}

/// What is refused, and in which words.
fn refusal(method: &str, kind: &str, task: &str, format: &str) -> Option<&'static str> {
    match (method, kind, task, format) {
        ("full", _, _, "nf4") => Some("weights that are trained are kept as floats"),
        (_, "bert" | "roberta" | "distilbert", "causal-lm", _) => Some("causal-lm with an encoder"),
        (_, "t5", "causal-lm", _) => Some("causal-lm with an encoder-decoder"),
        (_, "llama" | "gpt2" | "t5", "masked-lm", _) => Some("masked-lm with a decoder"),
        (_, kind, "seq2seq", _) if kind != "t5" => Some("decoder_start_token_id"),
        // It has no biases, and no head.
        ("bitfit", "llama", "causal-lm", _) | ("bitfit", "t5", "seq2seq", _) => Some("without biases"),
        // PEFT ties encoder and decoder to the table where the class is the model itself.
        ("trainable-tokens", "t5", "sequence-classification" | "token-classification", _) => Some("without effect"),
        _ => None,
    }
}

/// On wgpu one cell of so many; `TRIMTAB_EVERY=1` walks all.
fn every() -> usize {
    std::env::var("TRIMTAB_EVERY").map_or(23, |n| n.parse().expect("a number"))
}

/// Walks the cells that `wanted` picks by number; returns how many are right.
fn walk(device: &Device, wanted: impl Fn(usize) -> bool) -> usize {
    let only = std::env::var("TRIMTAB_CELL").unwrap_or_default();
    let (mut number, mut right, mut refused, mut wrong) = (0, 0, 0, Vec::new());
    for (kind, model) in MODELS {
        let model = common::root("tests/fixtures").join(model);
        for (task, def) in TASKS.iter().flat_map(|task| METHODS.iter().map(move |def| (task, def))) {
            for (v, variant) in variants(def.name).into_iter().enumerate() {
                for (format, flags, rounding) in FORMATS {
                    number += 1;
                    let name = format!("{}/{}{v}-{kind}-{}-{format}", device.name, def.name, task.name);
                    if !wanted(number) || !name.contains(&only) {
                        continue;
                    }
                    let flags = [&[("method", def.name)][..], variant, flags].concat();
                    let checked = match Cell::open(name.clone(), &model, task.name, &flags) {
                        Ok(cell) => check(&cell, device, rounding),
                        Err(e) => Err(e.to_string()),
                    };
                    match (checked, refusal(def.name, kind, task.name, format)) {
                        (Ok(()), None) => right += 1,
                        (Err(e), Some(words)) if e.contains(words) => refused += 1,
                        (Ok(()), Some(words)) => wrong.push(format!("{name} is not refused any more: {words}")),
                        (Err(e), _) => wrong.push(format!("{name}: {e}")),
                    }
                }
            }
        }
    }
    eprintln!("{}: {right} cells are right, {refused} are refused in words", device.name);
    assert!(wrong.is_empty(), "{} of {number} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    if only.is_empty() { right } else { usize::MAX }
}

#[test]
fn every_method_on_every_family_for_every_task_over_every_format() {
    assert!(walk(&Device::cpu(), |_| true) >= 900, "too few cells");
}

#[test]
fn some_of_them_on_wgpu() {
    if let Some(device) = Device::wgpu() {
        assert!(walk(&device, |i| i % every() == 0) >= 25, "too few cells");
    }
}

/// Every family has a model here.
#[test]
fn no_family_is_left_out() {
    for family in FAMILIES {
        assert!(family.types.iter().any(|kind| MODELS.iter().any(|m| m.0 == *kind)), "{:?}", family.types);
    }
}
