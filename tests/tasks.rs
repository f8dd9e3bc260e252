//! Tasks against what transformers and PEFT computed: outputs, loss and every gradient of a batch, packed without padding.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::devices::Device;
use common::golden::Golden;
use serde_json::Value;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::reader;
use trimtab::data::row::{Codec, Row};
use trimtab::data::{Dataset, INPUT_IDS};
use trimtab::dtype::DType;
use trimtab::exec::Exec;
use trimtab::graph::{Phase, Val};
use trimtab::models::{self, Model};
use trimtab::nn::{Build, Hooks, Inputs, Role};
use trimtab::peft::files::read_adapter;
use trimtab::peft::{Frozen, Method, lora::Lora};
use trimtab::plan::Plan;
use trimtab::tasks::{self, Setup, Shape, Task, labels};
use trimtab::train::eval::{Evaluation, Evaluator};
use trimtab::train::optimizer::Optimizer;
use trimtab::train::step::{Parts, Step};
use trimtab::weights::{Checkpoint, HostTensor, load};

/// f32 arithmetic in another order, relative to the largest value; gradients relative to their norm.
const TOLERANCE: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;

fn as_f32(_: &str, _: Role) -> DType {
    DType::F32
}

/// A case of the fixtures: a model, an adapter, a batch, and what came of it.
struct Case {
    name: String,
    dir: PathBuf,
    base: Checkpoint,
    golden: Golden,
    model: Box<dyn Model>,
    task: Box<dyn Task>,
    data: Dataset,
}

fn none(_: &str) -> trimtab::Result<Vec<u32>> {
    panic!("the rows are tokenized")
}

fn codec(vocab: usize) -> Codec<'static> {
    Codec {
        encode: &none,
        tokenizer: None,
        bos: None,
        eos: None,
        vocab,
        max_len: 64,
        max_target_len: 64,
        unlabelled: false,
    }
}

impl Case {
    fn open(name: &str, qa_padding: bool) -> Case {
        let dir = common::root("tests/fixtures/families2").join(name);
        let base = Checkpoint::open(dir.join("model")).unwrap();
        let mut config = base.config().clone();
        let class = config["architectures"][0].as_str().unwrap().to_owned();
        let def = tasks::of_architecture(&class).unwrap_or_else(|| panic!("{class} is no task"));
        let rows = dir.join("batch.jsonl");
        let mut each = |on: &mut dyn FnMut(&Row) -> trimtab::Result<bool>| reader::rows(&rows, &[], on);
        labels::settle(def, &mut config, Some(&mut each)).unwrap();
        let model = models::read(&config, 64).unwrap();
        let task = (def.make)(&Setup { config: &config, facts: model.facts(), qa_padding }).unwrap();
        let make = |row: &Row, codec: &Codec| task.examples(row, codec).map(|made| (made.examples, made.cut));
        let data = reader::read(&rows, &codec(model.facts().vocab), &make, &[]).unwrap().0;
        let golden = Golden::open(dir.join("golden.safetensors"));
        Case { name: name.into(), dir, base, golden, model, task, data }
    }

    /// The adapter, if the case has one; every weight trains if not.
    fn adapter(&self) -> (Lora, BTreeMap<String, HostTensor>) {
        let adapter = read_adapter(&self.dir.join("adapter")).unwrap();
        (Lora { config: adapter.config }, adapter.tensors)
    }

    fn load(&self, exec: &mut Exec, weights: &[trimtab::nn::Weight], adapter: Option<&BTreeMap<String, HostTensor>>) {
        let from = load::Sources { base: Some(&self.base), std: 0.02, adapter, seed: 0 };
        load::load(exec, weights, &from, &mut |_, _| Ok(())).unwrap();
    }

    /// All rows in one micro-batch that has room for more.
    fn batch(&self, inputs: &Inputs) -> MicroBatch {
        let all: Vec<usize> = (0..self.data.len()).collect();
        let mut micro = pack(&self.data, &all, &inputs.layout, true).unwrap();
        assert_eq!(micro.len(), 1, "{}", self.name);
        micro.remove(0)
    }

    fn shape(&self) -> Shape {
        Shape { tokens: 75, targets: 50, sequences: 5 }
    }

    /// The loss, and the outputs of each row.
    fn evaluated(
        &self,
        device: &Device,
        method: &dyn Method,
        adapter: Option<&BTreeMap<String, HostTensor>>,
    ) -> (f32, Vec<Vec<f32>>) {
        let stack: &[&dyn Hooks] = &[method];
        let build = Build { stack, storage: &as_f32, act: DType::F32 };
        let evaluation = Evaluation::new(&*self.model, &*self.task, build, self.shape()).unwrap();
        let batch = self.batch(&evaluation.inputs);
        let mut evaluator = Evaluator::new(device.open(), evaluation).unwrap();
        let weights = evaluator.weights().to_vec();
        self.load(&mut evaluator.exec, &weights, adapter);
        let got = evaluator.run(&batch).unwrap();
        ((got.loss / got.units as f64) as f32, got.outputs.into_iter().map(|o| o.1).collect())
    }

    /// The loss and every gradient, by the name of what it is the gradient of.
    fn gradients(
        &self,
        device: &Device,
        method: &dyn Method,
        adapter: Option<&BTreeMap<String, HostTensor>>,
    ) -> (f32, BTreeMap<String, Vec<f32>>) {
        let stack: &[&dyn Hooks] = &[method];
        let build = Build { stack, storage: &as_f32, act: DType::F32 };
        let (model, task) = (&*self.model, &*self.task);
        let parts = Parts { model, task, build, shape: self.shape(), optimizer: Optimizer::default() };
        let backend = device.open();
        let step = Step::of(&parts, backend.caps()).unwrap();
        let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
        let names: Vec<(String, Val)> = (0..step.program.graph.values.len() as u32)
            .map(Val)
            .filter_map(|v| Some((step.program.graph.value(v).name.strip_prefix("grad.")?.to_string(), v)))
            .filter(|(name, _)| !name.contains(':'))
            .collect();
        let batch = self.batch(&step.inputs);
        let mut exec = Exec::new(backend, step.program.graph, plan).unwrap();
        self.load(&mut exec, &step.program.weights, adapter);
        for input in &step.inputs.leaves {
            exec.upload(input.val, batch.get(&input.field.name).unwrap().bytes()).unwrap();
        }
        exec.upload(step.inv_count, bytemuck::bytes_of(&(1.0 / batch.trained as f32))).unwrap();
        exec.run(Phase::MICRO).unwrap();
        let loss = exec.download_f32(step.loss).unwrap()[0];
        (loss, names.into_iter().map(|(n, v)| (n, exec.download_f32(v).unwrap())).collect())
    }

    /// What the golden says of each row's outputs, without padding.
    fn wanted(&self, prefix: &str) -> Vec<Vec<f32>> {
        let names = ["logits", "start_logits", "end_logits"].map(|n| format!("{prefix}{n}"));
        let known = self.golden.names();
        let tensors: Vec<&String> = names.iter().filter(|n| known.contains(n)).collect();
        let row = |i: usize| -> Vec<f32> {
            let parts = tensors.iter().map(|name| {
                let shape = self.golden.shape(name);
                let len: usize = shape[1..].iter().product();
                self.golden.f32(name)[i * len..(i + 1) * len].to_vec()
            });
            let parts: Vec<Vec<f32>> = parts.collect();
            let length = self.data.len_of(i, INPUT_IDS);
            match &parts[..] {
                [start, end] => start.iter().zip(end).take(length).flat_map(|(s, e)| [*s, *e]).collect(),
                [logits] if self.golden.shape(tensors[0]).len() == 3 => {
                    let width = self.golden.shape(tensors[0])[2];
                    logits[..length * width].to_vec()
                }
                [logits] => logits.clone(),
                _ => panic!("{}: no outputs", self.name),
            }
        };
        (0..self.data.len()).map(row).collect()
    }
}

/// Largest difference relative to the largest value.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-30f32, |m, w| m.max(w.abs())) as f64;
    // A NaN is as far off as can be.
    let off = |g: f32, w: f32| if g.is_nan() { f64::INFINITY } else { (g as f64 - w as f64).abs() };
    got.iter().zip(want).map(|(&g, &w)| off(g, w)).fold(0.0, f64::max) / scale
}

/// Norm of the difference relative to the norm; both may be zero.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(&g, &w)| g as f64 - w as f64));
    let off = if off.is_nan() { f64::INFINITY } else { off };
    off / norm(&mut want.iter().map(|&w| w as f64)).max(1e-30)
}

fn check(what: &str, got: &[f32], want: &[f32]) {
    let d = distance(got, want);
    assert!(d <= TOLERANCE, "{what}: off by {d:.2e} relative to the largest value, more than {TOLERANCE:.0e}");
}

/// Outputs and loss of the base, of the adapter, and the gradient of every tensor that PEFT trains.
fn agrees(name: &str, qa_padding: bool) {
    let case = Case::open(name, qa_padding);
    let device = Device::cpu();
    let golden = &case.golden;
    let (method, tensors) = case.adapter();
    let runs: [(&str, &dyn Method, Option<&BTreeMap<String, HostTensor>>); 2] =
        [("base.", &Frozen, None), ("", &method, Some(&tensors))];
    for (prefix, method, adapter) in runs {
        let (loss, outputs) = case.evaluated(&device, method, adapter);
        check(&format!("{name} {prefix}loss"), &[loss], &golden.f32(&format!("{prefix}loss")));
        if !outputs.is_empty() {
            let want = case.wanted(prefix);
            check(&format!("{name} {prefix}outputs"), &outputs.concat(), &want.concat());
        }
    }
    let (loss, grads) = case.gradients(&device, &method, Some(&tensors));
    check(&format!("{name} loss of the step"), &[loss], &golden.f32("loss"));
    let expected: Vec<String> = golden.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
    assert_eq!(expected.len(), grads.len(), "{name}: not the tensors that PEFT trains");
    for key in expected {
        let file_key = key["grad.".len()..].replace(".modules_to_save", "");
        let got = grads.get(&file_key).unwrap_or_else(|| panic!("{name}: no {key}"));
        let want = golden.f32(&key);
        // Exactly zero in real arithmetic: a shift of all positions.
        let tiny = want.iter().all(|w| w.abs() < 1e-6) && got.iter().all(|g| g.abs() < 1e-6);
        let d = relative(got, &want);
        assert!(d <= GRADIENT || tiny, "{name} {key}: off by {d:.2e} of its norm, more than {GRADIENT:.0e}");
    }
}

#[test]
fn decoders_classify_as_transformers() {
    agrees("llama-classify-lora", false);
}

#[test]
fn rewards_are_regression() {
    agrees("qwen2-reward-lora", false);
}
