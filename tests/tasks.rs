//! Tasks against what transformers and PEFT computed: outputs, loss and every gradient of a batch, packed without padding.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::devices::Device;
use common::golden::Golden;
use serde_json::{Value, json};
use trimtab::config::{Flags, RunConfig};
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::reader;
use trimtab::data::row::{Codec, Row};
use trimtab::data::tokenizer::Tokenizer;
use trimtab::data::{Dataset, Example, INPUT_IDS, TOKEN_TYPE_IDS};
use trimtab::dtype::DType;
use trimtab::exec::Exec;
use trimtab::graph::{Phase, Val};
use trimtab::models::{self, Facts, Model};
use trimtab::nn::{Build, Hooks, Inputs, Role};
use trimtab::peft::{self, Frozen, Method, full::Full};
use trimtab::plan::Plan;
use trimtab::run::metrics::{Event, Metrics};
use trimtab::run::predict::{Input, predict};
use trimtab::run::training::run;
use trimtab::tasks::{self, Made, Setup, Shape, Task, labels};
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

/// Tensors of an adapter, by name.
type Tensors = BTreeMap<String, HostTensor>;

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
        traced: false,
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
        labels::settle(def, &mut config, false, Some(&mut each)).unwrap();
        let model = models::read(&config, 64).unwrap();
        let task =
            (def.make)(&Setup { config: &config, facts: model.facts(), qa_padding, stride: 16, mask_share: 0.15 })
                .unwrap();
        let make = |row: &Row, codec: &Codec| task.examples(row, codec).map(|made| (made.examples, made.cut));
        let data = reader::read(&rows, &codec(model.facts().vocab), &make, &[]).unwrap().0;
        let golden = Golden::open(dir.join("golden.safetensors"));
        Case { name: name.into(), dir, base, golden, model, task, data }
    }

    /// The adapter, if the case has one; every weight trains if not.
    fn adapter(&self) -> (Box<dyn Method>, Option<Tensors>) {
        let dir = self.dir.join("adapter");
        match dir.exists() {
            true => {
                let adapter = peft::open(&dir).unwrap();
                (adapter.method, Some(adapter.tensors))
            }
            false => (Box::new(Full), None),
        }
    }

    fn load(&self, exec: &mut Exec, weights: &[trimtab::nn::Weight], adapter: Option<&Tensors>) {
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
    fn evaluated(&self, device: &Device, method: &dyn Method, adapter: Option<&Tensors>) -> (f32, Vec<Vec<f32>>) {
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
        adapter: Option<&Tensors>,
    ) -> (f32, BTreeMap<String, Vec<f32>>) {
        let stack: &[&dyn Hooks] = &[method];
        let build = Build { stack, storage: &as_f32, act: DType::F32 };
        let (model, task) = (&*self.model, &*self.task);
        let parts = Parts { model, task, build, shape: self.shape(), single: false, optimizer: Optimizer::default() };
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
    let runs: [(&str, &dyn Method, Option<&Tensors>); 2] = [("base.", &Frozen, None), ("", &*method, tensors.as_ref())];
    for (prefix, method, adapter) in runs {
        let (loss, outputs) = case.evaluated(&device, method, adapter);
        check(&format!("{name} {prefix}loss"), &[loss], &golden.f32(&format!("{prefix}loss")));
        if !outputs.is_empty() {
            let want = case.wanted(prefix);
            check(&format!("{name} {prefix}outputs"), &outputs.concat(), &want.concat());
        }
    }
    let (loss, grads) = case.gradients(&device, &*method, tensors.as_ref());
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

#[test]
fn encoder_decoders_learn_targets_from_sources() {
    agrees("t5-relu-lora", false);
    agrees("t5-gated-gelu-lora", false);
    agrees("t5-full", false);
}

/// Rows of text become what transformers' examples make of them.
#[test]
fn texts_become_transformers_features() {
    let folder = |name: &str| common::root("tests/golden/tokenizers").join(name);
    let [bert, t5] = ["bert", "t5"].map(|name| Tokenizer::from_folder(folder(name)).unwrap());
    let text = std::fs::read_to_string(common::root("tests/golden/rows.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let facts = Facts { vocab: 1000, ..Facts::default() };
    let config = json!({"num_labels": 3, "problem_type": "single_label_classification", "decoder_start_token_id": 0});
    let examples = |name: &str, tokenizer: &Tokenizer, case: &Value| -> Made {
        let encode = |text: &str| tokenizer.encode(text, false);
        let max_len = case["max_len"].as_u64().unwrap() as usize;
        let stride = case["stride"].as_u64().unwrap_or(0) as usize;
        let setup = Setup { config: &config, facts: &facts, qa_padding: false, stride, mask_share: 0.15 };
        let task = (tasks::named(name).unwrap().make)(&setup).unwrap();
        let fields = case["row"].as_object().unwrap().clone();
        let max_target_len = case["max_target_len"].as_u64().unwrap_or(64) as usize;
        let codec = Codec { encode: &encode, tokenizer: Some(tokenizer), max_len, max_target_len, ..codec(1000) };
        task.examples(&Row { path: "rows".as_ref(), line: 1, fields }, &codec).unwrap()
    };
    let ints = |v: &Value| -> Vec<i32> { v.as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i32).collect() };
    let types = |example: &Example, want: &Value| {
        // All of the first text: the column is left out.
        let (got, want) = (example.ints(TOKEN_TYPE_IDS), ints(want));
        assert!(got == want || got.is_empty() && want.iter().all(|&kind| kind == 0), "{got:?} {want:?}");
    };
    let cases = |kind: &str| golden[kind].as_array().unwrap().clone();
    assert!(cases("squad").iter().any(|c| c["windows"].as_array().unwrap().len() > 2));
    for case in cases("squad") {
        let made = examples("question-answering", &bert, &case);
        let windows = case["windows"].as_array().unwrap();
        assert_eq!(made.examples.len(), windows.len());
        for (got, want) in made.examples.iter().zip(windows) {
            assert_eq!(got.ints(INPUT_IDS), ints(&want["input_ids"]));
            assert_eq!(got.ints("span"), ints(&want["span"]), "{case}");
            types(got, &want["token_type_ids"]);
        }
    }
    for case in cases("ner") {
        let made = examples("token-classification", &bert, &case);
        assert_eq!(made.examples[0].ints(INPUT_IDS), ints(&case["example"]["input_ids"]));
        assert_eq!(made.examples[0].ints("labels"), ints(&case["example"]["labels"]));
    }
    let mut cut = 0;
    for case in cases("glue") {
        let made = examples("sequence-classification", &bert, &case);
        assert_eq!(made.examples[0].ints(INPUT_IDS), ints(&case["example"]["input_ids"]));
        assert_eq!(made.examples[0].ints("label"), [case["row"]["label"].as_i64().unwrap() as i32]);
        types(&made.examples[0], &case["example"]["token_type_ids"]);
        cut += usize::from(made.cut);
    }
    assert_eq!(cut, 1);
    for case in cases("seq2seq") {
        let made = examples("seq2seq", &t5, &case);
        let (got, labels) = (&made.examples[0], ints(&case["labels"]));
        assert_eq!(got.ints(INPUT_IDS), ints(&case["input_ids"]));
        assert_eq!(got.ints("labels"), labels);
        let shifted: Vec<i32> = std::iter::once(0).chain(labels.iter().copied()).take(labels.len()).collect();
        assert_eq!(got.ints("decoder_input_ids"), shifted);
    }
}

/// A folder that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("trimtab-tasks-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn config(flags: &[(&str, &str)]) -> RunConfig {
    RunConfig::resolve(None, &Flags::of(flags).unwrap()).unwrap()
}

fn predicted(config: &RunConfig, input: &Input) -> trimtab::Result<Vec<Value>> {
    let mut all = Vec::new();
    predict(config, input, &mut |answer| {
        all.push(answer.clone());
        Ok(true)
    })?;
    Ok(all)
}

/// Texts with labels by name, in columns of other names: trained, evaluated, saved, and predicted from the files.
#[test]
fn a_decoder_learns_to_classify_texts() {
    let scratch = Scratch::new("classify");
    let texts =
        [("calm and mild", "day"), ("dark and deep", "night"), ("mild and warm", "day"), ("deep and cold", "night")];
    let lines: String = texts.iter().map(|(t, l)| format!("{}\n", json!({"line": t, "kind": l}))).collect();
    let data = scratch.write("data.jsonl", &lines);
    let base = common::root("assets/base").display().to_string();
    let out = scratch.path("out");
    let flags = [
        ("model", base.as_str()),
        ("task", "sequence_classification"),
        ("data", &data),
        ("eval_data", &data),
        ("eval_every", "20"),
        ("columns", "text=line,label=kind"),
        ("out", &out),
        ("steps", "40"),
        ("batch_size", "4"),
        ("max_seq_len", "32"),
        ("lr", "5e-3"),
        ("device", "cpu"),
    ];
    let settings = config(&flags);
    let mut evals = Vec::new();
    let mut metrics = Metrics::new(&scratch.0.join("out"));
    run(&settings, &mut |event| {
        metrics.write(&event)?;
        if let Event::Eval { step, evaluated } = event {
            evals.push((step, evaluated));
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(evals.iter().map(|e| e.0).collect::<Vec<_>>(), [20, 40]);
    let last = &evals[1].1;
    assert_eq!((last.units, last.metrics[0]), (4, ("accuracy", 1.0)));
    assert!(last.loss < 0.1, "{last:?}");
    let kept = std::fs::read_to_string(scratch.0.join("out/metrics.jsonl")).unwrap();
    assert_eq!(kept.lines().filter(|l| l.starts_with(r#"{"event":"eval","step":"#)).count(), 2);

    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(scratch.0.join("out").join(name)).unwrap()).unwrap()
    };
    let saved = read("config.json");
    assert_eq!(saved["id2label"], json!({"0": "day", "1": "night"}));
    assert_eq!(saved["architectures"], json!(["LlamaForSequenceClassification"]));
    let adapter = read("adapter_config.json");
    assert_eq!(adapter["task_type"], "SEQ_CLS");
    assert_eq!(adapter["modules_to_save"], json!(["classifier", "score"]));

    // The adapter says which task it is for; rows need no labels.
    let unlabelled: String = texts.iter().map(|(t, _)| format!("{}\n", json!({"text": t}))).collect();
    let unlabelled = scratch.write("texts.jsonl", &unlabelled);
    let settings = config(&[("model", &base), ("adapter", &out), ("batch_size", "3"), ("max_seq_len", "32")]);
    let answers = predicted(&settings, &Input::File(unlabelled.as_ref())).unwrap();
    let labels: Vec<&str> = answers.iter().map(|a| a["label"].as_str().unwrap()).collect();
    assert_eq!(labels, texts.map(|t| t.1));
    let sum: f64 = answers[0]["scores"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let one = Input::Row(json!({"text": texts[0].0}).as_object().unwrap().clone());
    assert_eq!(predicted(&settings, &one).unwrap(), answers[..1]);

    // A head that nobody trained is refused; so are labels that the adapter does not have.
    let bare = config(&[("model", &base), ("task", "sequence-classification"), ("columns", "label=kind,text=line")]);
    let error = predicted(&bare, &Input::File(data.as_ref())).unwrap_err().to_string();
    assert!(error.contains("no score.weight in the model"), "{error}");
    let other = scratch.write("other.jsonl", &format!("{}\n", json!({"text": "x", "label": "dawn"})));
    let error = predicted(&settings, &Input::File(other.as_ref())).unwrap_err().to_string();
    assert!(error.contains(r#"label "dawn", expected 0 to 1, or one of day, night"#), "{error}");
}
