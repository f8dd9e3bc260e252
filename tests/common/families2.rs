//! Cases of small models: a base, an adapter (or none: every weight trains), a batch, and what transformers, PEFT and
//! AdapterHub computed of it. A case is built as a run is: the model by its `model_type`, the task by its model class, the method by
//! the adapter's config, the batch by the reader and the packer. A case may name another, whose base and batch it takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::devices::Device;
use super::golden::Golden;
use trimtab::base::Base;
use trimtab::data::Dataset;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::reader::{self, TooLong};
use trimtab::data::row::{Codec, Row};
use trimtab::data::source::Data;
use trimtab::dtype::DType;
use trimtab::error::Error;
use trimtab::exec::Exec;
use trimtab::generate::sample::Sampling;
use trimtab::generate::{Ask, Generation, Room};
use trimtab::graph::{Graph, Phase, Val};
use trimtab::models::{self, Model};
use trimtab::nn::{Build, Hooks, Inputs, MAIN, Nn, Role, Site, Weight};
use trimtab::peft::{self, Frozen, Method, full::Full};
use trimtab::plan::Plan;
use trimtab::tasks::{self, Setup, Shape, Task, labels};
use trimtab::train::eval::Evaluation;
use trimtab::train::optimizer::Optimizer;
use trimtab::train::step::{Parts, Step};
use trimtab::weights::{HostTensor, load};

/// f32 arithmetic in another order, relative to the largest value; gradients relative to their norm.
const TOLERANCE: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;
/// What is zero in exact arithmetic (a shift of all scores) is rounding, this far below the norm of all gradients.
const NOTHING: f64 = 1e-6;

/// What is wrong, or what is not there yet.
#[derive(Debug)]
pub enum Why {
    Wrong(String),
    Missing(String),
}

impl From<Error> for Why {
    fn from(e: Error) -> Why {
        match e {
            Error::Unsupported { .. } => Why::Missing(e.to_string()),
            e => Why::Wrong(e.to_string()),
        }
    }
}

pub type Result<T> = std::result::Result<T, Why>;

pub struct Case {
    pub name: String,
    pub facts: Value,
    pub base: Base,
    pub golden: Golden,
    pub model: Box<dyn Model>,
    pub task: Box<dyn Task>,
    pub method: Box<dyn Method>,
    pub adapter: Option<BTreeMap<String, HostTensor>>,
    pub data: Dataset,
}

/// A graph that was built.
struct Built {
    graph: Graph,
    weights: Vec<Weight>,
    sites: Vec<Site>,
}

impl Built {
    fn of(nn: Nn) -> Built {
        Built { graph: nn.g, weights: nn.weights, sites: nn.sites }
    }
}

/// The folders of all cases, in order.
pub fn folders() -> Vec<PathBuf> {
    let roots = [super::root("tests/fixtures/families2"), super::root("tests/fixtures/adapterhub")];
    let entries = roots.iter().flat_map(|root| std::fs::read_dir(root).unwrap()).map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|p| p.join("case.json").is_file()).collect();
    folders.sort();
    folders
}

/// The longest sequence that models are read for.
const LONGEST: usize = 64;

fn as_f32(_: &str, _: Role) -> DType {
    DType::F32
}

fn none(_: &str) -> trimtab::Result<Vec<u32>> {
    panic!("the rows are tokenized")
}

fn codec(vocab: usize) -> Codec<'static> {
    Codec {
        encode: &none,
        tokenizer: None,
        chats: None,
        bos: None,
        eos: None,
        vocab,
        max_len: LONGEST,
        max_target_len: LONGEST,
        unlabelled: false,
        traced: false,
    }
}

impl Case {
    /// The case of a folder, with its adapter.
    pub fn open(dir: &Path) -> Result<Case> {
        Case::with(dir, true)
    }

    /// The same, of the base alone: nothing is trained.
    pub fn bare(dir: &Path) -> Result<Case> {
        Case::with(dir, false)
    }

    fn with(dir: &Path, adapted: bool) -> Result<Case> {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let facts: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("case.json")).unwrap()).unwrap();
        let of = facts["of"].as_str().map(|of| super::root("tests/fixtures/families2").join(of));
        let of = of.as_deref().unwrap_or(dir);
        let base = Base::open(of.join("model"))?;
        let mut config = base.config.clone();
        let kind = config["model_type"].as_str().unwrap_or_default();
        if !models::FAMILIES.iter().any(|f| f.types.contains(&kind)) {
            return Err(Why::Missing(format!("no family {kind}")));
        }
        let class = facts["model_class"].as_str().unwrap_or_default();
        let def = tasks::of_architecture(class).ok_or_else(|| Why::Missing(format!("no task of {class}")))?;
        let rows = Data::of(&of.join("batch.jsonl"), None, &[])?;
        let mut each = |on: &mut dyn FnMut(&Row) -> trimtab::Result<bool>| rows.rows(on);
        labels::settle(def, &mut config, true, Some(&mut each))?;
        let model = models::read(&config, LONGEST)?;
        let folder = Some(dir.join("adapter")).filter(|folder| adapted && folder.is_dir());
        let opened = folder.map(|folder| peft::open(&folder)).transpose()?;
        let task = (def.make)(&Setup {
            config: &config,
            facts: model.facts(),
            // Transformers pads; where a decoder reads the text too, the rows are of one length.
            qa_padding: model.facts().decoder_start.is_none(),
            qa_token_types: opened.is_none(),
            stride: 0,
            mask_share: 0.15,
        })?;
        let make = |row: &Row, codec: &Codec| task.examples(row, codec);
        let data = reader::read(&rows, &codec(model.facts().vocab), &make, TooLong::Cut)?.0;
        let golden = Golden::open(dir.join("golden.safetensors"));
        let mut case = Case { name, facts, base, golden, model, task, method: Box::new(Full), adapter: None, data };
        match opened {
            Some(opened) => (case.method, case.adapter) = (opened.method, Some(opened.tensors)),
            None if !adapted => case.method = Box::new(Frozen),
            None => {}
        }
        Ok(case)
    }

    fn build<T>(&self, f: impl FnOnce(Build) -> trimtab::Result<T>) -> Result<T> {
        let stack: &[&dyn Hooks] = &[&*self.method];
        Ok(f(Build { stack, storage: &as_f32, act: DType::F32 })?)
    }

    /// A graph on a device, with its weights.
    fn loaded(&self, device: &Device, nn: Built) -> Result<Exec> {
        let backend = device.open();
        let plan = Plan::new(&nn.graph, backend.caps())?;
        let mut exec = Exec::new(backend, nn.graph, plan)?;
        self.load(&mut exec, &nn.weights)?;
        Ok(exec)
    }

    fn load(&self, exec: &mut Exec, weights: &[Weight]) -> Result<()> {
        let (base, adapter) = (self.base.checkpoint.as_ref(), self.adapter.as_ref());
        let from = load::Sources { base, std: 0.0, adapter, seed: 0 };
        Ok(load::load(exec, weights, &from, &mut |_, _| Ok(()))?)
    }

    /// Room for all rows and some more.
    fn shape(&self) -> Shape {
        Shape { tokens: 107, targets: 61, sequences: self.data.len() + 2 }
    }

    /// All rows in one micro-batch.
    fn batch(&self, inputs: &Inputs) -> Result<MicroBatch> {
        let all: Vec<usize> = (0..self.data.len()).collect();
        let mut micro = pack(&self.data, &all, &inputs.layout, true)?;
        assert_eq!(micro.len(), 1, "{}", self.name);
        Ok(micro.remove(0))
    }

    /// The loss, and the outputs of each row: the task's, or the logits of a head over the vocabulary.
    pub fn evaluated(&self, device: &Device) -> Result<(f32, Vec<Vec<f32>>)> {
        let (nn, evaluation) = self.build(|build| {
            let mut nn = Nn::new(build);
            let evaluation = Evaluation::build(&mut nn, &*self.model, &*self.task, self.shape())?;
            Ok((Built::of(nn), evaluation))
        })?;
        let batch = self.batch(&evaluation.inputs)?;
        self.method.check(&nn.sites)?;
        let mut exec = self.loaded(device, nn)?;
        let got = evaluation.run(&mut exec, &batch)?;
        let mut outputs: Vec<Vec<f32>> = got.outputs.into_iter().map(|o| o.1).collect();
        if outputs.is_empty() {
            outputs = self.logits(device)?;
        }
        Ok(((got.loss / got.units as f64) as f32, outputs))
    }

    /// The logits of each row's tokens.
    fn logits(&self, device: &Device) -> Result<Vec<Vec<f32>>> {
        let (nn, inputs, logits) = self.build(|build| {
            let mut nn = Nn::new(build);
            nn.begin(Phase::EVAL, self.task.layout(self.shape()))?;
            let hidden = self.model.hidden(&mut nn)?;
            let head = self.model.lm_head(&mut nn, hidden)?;
            let y = nn.g.linear(head.x, head.w, head.bias, None)?;
            let leaf = nn.output("logits", y)?;
            let inputs = nn.inputs();
            Ok((Built::of(nn), inputs, leaf))
        })?;
        let batch = self.batch(&inputs)?;
        let width = nn.graph.ty(logits).cols();
        let mut exec = self.loaded(device, nn)?;
        upload(&mut exec, &inputs, &batch)?;
        exec.run(Phase::EVAL)?;
        let all = exec.download_f32(logits)?;
        let own = batch.placed.iter().map(|placed| {
            let at = placed[MAIN.0];
            all[(at.start + at.lead) * width..(at.start + at.len - at.pad) * width].to_vec()
        });
        Ok(own.collect())
    }

    /// The loss and every gradient of a step, by the name of what it is the gradient of; of weights that files have
    /// transposed, as the file has them.
    pub fn gradients(&self, device: &Device) -> Result<(f32, BTreeMap<String, Vec<f32>>)> {
        let (model, task) = (&*self.model, &*self.task);
        let backend = device.open();
        let step = self.build(|build| {
            Step::of(
                &Parts { model, task, build, shape: self.shape(), single: false, optimizer: Optimizer::default() },
                backend.caps(),
            )
        })?;
        let graph = &step.program.graph;
        let plan = Plan::new(graph, backend.caps())?;
        let sums = (0..graph.values.len() as u32).map(Val).filter_map(|v| {
            let name = graph.value(v).name.strip_prefix("grad.").filter(|name| !name.contains(':'))?;
            Some((name.to_string(), v, graph.shape(v).to_vec()))
        });
        let sums: Vec<(String, Val, Vec<usize>)> = sums.collect();
        let batch = self.batch(&step.leaves.inputs)?;
        let mut exec = Exec::new(backend, step.program.graph, plan)?;
        self.load(&mut exec, &step.program.weights)?;
        upload(&mut exec, &step.leaves.inputs, &batch)?;
        exec.upload(step.leaves.inv_count, bytemuck::bytes_of(&(1.0 / batch.trained as f32)))?;
        exec.run(Phase::MICRO)?;
        let loss = exec.download_f32(step.leaves.loss)?[0];
        let mut grads = BTreeMap::new();
        for (name, val, shape) in sums {
            let mut grad = exec.download_f32(val)?;
            if step.program.weights.iter().any(|w| w.name == name && w.source.is_transposed()) {
                grad = load::transpose(&grad, shape[1]);
            }
            grads.insert(name, grad);
        }
        Ok((loss, grads))
    }

    /// The most likely `count` tokens after `prompt`, which is read in pieces; in encoder-decoders, the answer to it.
    pub fn continued(&self, device: &Device, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
        let (nn, mut generation) = self.build(|build| {
            let mut nn = Nn::new(build);
            let room = Room { tokens: prompt.len() + count + 1, source: prompt.len() + 3, chunk: 5 };
            let generation = Generation::build(&mut nn, &*self.model, room)?;
            Ok((Built::of(nn), generation))
        })?;
        let mut exec = self.loaded(device, nn)?;
        let ask = Ask { max_tokens: count, sampling: Sampling::default(), stop: &[] };
        // A text before it leaves no trace.
        generation.generate(&mut exec, &[1, 2, 3], &ask, &mut |_| Ok(false))?;
        Ok(generation.generate(&mut exec, prompt, &ask, &mut |_| Ok(true))?)
    }

    /// The tokens of row `i`.
    pub fn source(&self, i: usize) -> Vec<u32> {
        self.data.ids(i).iter().map(|&id| id as u32).collect()
    }

    /// What the golden says of each row's outputs, without padding.
    fn wanted(&self) -> Vec<Vec<f32>> {
        let known = self.golden.names();
        let names: Vec<&str> =
            ["logits", "start_logits", "end_logits"].into_iter().filter(|n| known.iter().any(|k| k == n)).collect();
        let shape = self.golden.shape(names[0]);
        let tensors: Vec<Vec<f32>> = names.iter().map(|name| self.golden.f32(name)).collect();
        let column = self.task.layout(self.shape()).streams[MAIN.0].column;
        let lens: Vec<usize> = (0..self.data.len()).map(|i| self.data.len_of(i, column)).collect();
        let longest = lens.iter().max().copied().unwrap_or(0);
        let row = |i: usize| -> Vec<f32> {
            let len: usize = shape[1..].iter().product();
            let part = |t: usize| &tensors[t][i * len..(i + 1) * len];
            match (tensors.len(), shape.len()) {
                (2, _) => part(0).iter().zip(part(1)).take(lens[i]).flat_map(|(s, e)| [*s, *e]).collect(),
                // Virtual tokens come first.
                (_, 3) => part(0)[(shape[1] - longest) * shape[2]..][..lens[i] * shape[2]].to_vec(),
                _ => part(0).to_vec(),
            }
        };
        (0..self.data.len()).map(row).collect()
    }

    /// The loss of the base alone on a device against the golden's.
    pub fn check_bare(&self, device: &Device) -> Result<()> {
        let (loss, _) = self.evaluated(device)?;
        near("the base's loss", &[loss], &self.golden.f32("base.loss"))
    }

    /// Loss, outputs and every gradient on a device against the golden's: what is wrong.
    pub fn check(&self, device: &Device) -> Result<()> {
        let want = self.golden.f32("loss");
        let (loss, outputs) = self.evaluated(device)?;
        near("the loss", &[loss], &want)?;
        near("the outputs", &outputs.concat(), &self.wanted().concat())?;
        let (loss, grads) = self.gradients(device)?;
        near("the step's loss", &[loss], &want)?;
        let expected: Vec<String> = self.golden.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
        let mut wanted: BTreeMap<String, Vec<f32>> =
            expected.iter().map(|key| (file_key(&key["grad.".len()..]), self.golden.f32(key))).collect();
        self.join_tied(&mut wanted, &grads);
        let names = |map: &BTreeMap<String, Vec<f32>>| map.keys().cloned().collect::<Vec<_>>();
        if names(&grads) != names(&wanted) {
            let lacks = |a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>| {
                a.keys().filter(|k| !b.contains_key(*k)).take(4).cloned().collect::<Vec<_>>().join(", ")
            };
            let (missing, more) = (lacks(&wanted, &grads), lacks(&grads, &wanted));
            return Err(Why::Wrong(format!("trained are not {missing}; but {more}")));
        }
        let all = wanted.values().map(|w| norm(w).powi(2)).sum::<f64>().sqrt();
        for (name, want) in &wanted {
            let got = &grads[name];
            let off = norm(&got.iter().zip(want).map(|(g, w)| g - w).collect::<Vec<f32>>());
            let nothing = norm(want).max(norm(got)) <= NOTHING * all;
            if got.len() != want.len() || !(off <= GRADIENT * norm(want) || nothing) {
                return Err(Why::Wrong(format!("the gradient of {name} off by {:.2e} of its norm", off / norm(want))));
            }
        }
        Ok(())
    }

    /// PEFT has what a head shares with its embedding under both names; the gradient of the one tensor is the sum.
    fn join_tied(&self, wanted: &mut BTreeMap<String, Vec<f32>>, got: &BTreeMap<String, Vec<f32>>) {
        let Some(embedding) = wanted.keys().find_map(|n| n.strip_suffix(".lora_embedding_A").map(str::to_string))
        else {
            return;
        };
        let shared = |name: &&String| !got.contains_key(*name) && name.contains("lm_head.lora_");
        for name in wanted.keys().filter(shared).cloned().collect::<Vec<_>>() {
            let other = if name.ends_with("lora_A.weight") { "lora_embedding_B" } else { "lora_embedding_A" };
            let cols = self.golden.shape(&format!("grad.{name}"))[1];
            let part = load::transpose(&wanted.remove(&name).unwrap(), cols);
            let sum = wanted.get_mut(&format!("{embedding}.{other}")).unwrap();
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
}

fn upload(exec: &mut Exec, inputs: &Inputs, batch: &MicroBatch) -> Result<()> {
    for input in &inputs.leaves {
        exec.upload(input.val, batch.get(&input.field.name)?.bytes())?;
    }
    Ok(())
}

/// PEFT's name of a parameter while it trains, as its file has it.
fn file_key(name: &str) -> String {
    let name = name.replace(".modules_to_save", "").replace("magnitude_vector.weight", "magnitude_vector");
    if name == "prompt_encoder.embedding.weight" { "prompt_embeddings".into() } else { name }
}

fn near(what: &str, got: &[f32], want: &[f32]) -> Result<()> {
    match distance(got, want) {
        d if d <= TOLERANCE => Ok(()),
        d => Err(Why::Wrong(format!("{what} off by {d:.2e} of the largest value"))),
    }
}

/// Largest difference relative to the largest value.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let scale = want.iter().fold(1e-30f32, |m, w| m.max(w.abs())) as f64;
    // A NaN is as far off as can be, and so is another length.
    let off = |g: f32, w: f32| if g.is_nan() { f64::INFINITY } else { (g as f64 - w as f64).abs() };
    let most = got.iter().zip(want).map(|(&g, &w)| off(g, w)).fold(0.0, f64::max) / scale;
    if got.len() == want.len() { most } else { f64::INFINITY }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| (x as f64).powi(2)).sum::<f64>().sqrt()
}
