//! Whole models against what transformers and PEFT computed: logits, loss and every gradient, on every device.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use trimtab::nn::{Build, Hooks, Inputs};
use trimtab::tasks::causal_lm::CausalLm;
use trimtab::tasks::{Shape, Task};

use common::devices::{Device, devices};
use common::golden::Golden;
use trimtab::backend::Backend;
use trimtab::dtype::{DType, Ty};
use trimtab::exec::Exec;
use trimtab::graph::{LeafKind, Phase, Val};
use trimtab::models;
use trimtab::nn::{Nn, Role, Weight};
use trimtab::ops::{Attr, Linear, linear};
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::files::{base_layer, read_adapter};
use trimtab::peft::{Frozen, Method, full::Full, lora::Lora};
use trimtab::plan::Plan;
use trimtab::train::step::Step;
use trimtab::weights::{Checkpoint, HostTensor, load};

/// f32 arithmetic in another order: the goldens themselves are that far from float64.
const TOLERANCE: f64 = 1e-5;

fn fixture(path: &str) -> PathBuf {
    common::root("tests/fixtures").join(path)
}

fn as_f32(_: &str, _: Role) -> DType {
    DType::F32
}

/// Sequences of equal length, packed.
struct Packed {
    ids: Vec<i32>,
    positions: Vec<i32>,
    key_range: Vec<i32>,
    /// What each token is to predict: the next label of its sequence.
    labels: Vec<i32>,
}

impl Packed {
    fn new(ids: &[i64], labels: &[i64], length: usize) -> Packed {
        let at = |i: usize| (i / length * length, i % length);
        let target = |i: usize| if at(i).1 + 1 < length { labels[i + 1] as i32 } else { -100 };
        Packed {
            ids: ids.iter().map(|&i| i as i32).collect(),
            positions: (0..ids.len()).map(|i| at(i).1 as i32).collect(),
            key_range: (0..ids.len()).flat_map(|i| [at(i).0 as i32, (at(i).0 + length) as i32]).collect(),
            labels: (0..ids.len()).map(target).collect(),
        }
    }

    fn upload(&self, exec: &mut Exec, inputs: &Inputs) {
        for input in &inputs.leaves {
            let name = input.field.name.as_str();
            let values = match name {
                "input_ids" => self.ids.clone(),
                "positions" => self.positions.clone(),
                "key_range" => self.key_range.clone(),
                "labels" => self.labels.clone(),
                _ => match name.strip_prefix("rope_rows.").and_then(|short| short.parse().ok()) {
                    // All sequences are of one length.
                    Some(short) => {
                        let first = if self.positions.iter().all(|&p| p < short) { 0 } else { short };
                        self.positions.iter().map(|p| first + p).collect()
                    }
                    None => panic!("the program reads {name}"),
                },
            };
            exec.upload(input.val, bytemuck::cast_slice(&values)).unwrap();
        }
    }
}

/// What stands on the base model.
#[derive(Default)]
struct Given {
    adapter: Option<BTreeMap<String, HostTensor>>,
    /// Weights of the base that the adapter's method changed before it was trained (PiSSA, OLoRA), by name.
    residuals: Vec<(String, Vec<f32>)>,
}

impl Given {
    fn adapter(tensors: BTreeMap<String, HostTensor>) -> Given {
        Given { adapter: Some(tensors), residuals: Vec::new() }
    }
}

fn fill(exec: &mut Exec, weights: &[Weight], base: &Checkpoint, given: &Given) {
    let from = load::Sources { base: Some(base), std: 0.0, adapter: given.adapter.as_ref(), seed: 0 };
    load::load(exec, weights, &from, &mut |_, _| Ok(())).unwrap();
    for (name, data) in &given.residuals {
        let weight = weights.iter().find(|w| w.name == *name).unwrap_or_else(|| panic!("no weight {name}"));
        exec.upload(weight.val, bytemuck::cast_slice(data)).unwrap();
    }
}

fn logits(
    backend: Box<dyn Backend>,
    base: &Checkpoint,
    method: &dyn Method,
    given: &Given,
    storage: &dyn Fn(&str, Role) -> DType,
    packed: &Packed,
    longest: usize,
) -> Vec<f32> {
    let model = models::read(base.config(), longest).unwrap();
    let tokens = packed.ids.len();
    let stack: &[&dyn Hooks] = &[method];
    let mut nn = Nn::new(Build { stack, storage, act: DType::F32 });
    nn.begin(Phase::EVAL, CausalLm.layout(Shape::of(tokens))).unwrap();
    let logits = nn.g.leaf(LeafKind::Io, "logits", Ty::f32(&[tokens, model.facts().vocab]));
    let hidden = model.hidden(&mut nn).unwrap();
    let head = model.lm_head(&mut nn, hidden).unwrap().w;
    nn.g.node_into(&linear::LINEAR, Attr::Linear(Linear::default()), &[hidden, head], &[Some(logits)]).unwrap();
    let plan = Plan::new(&nn.g, backend.caps()).unwrap();
    let inputs = nn.inputs();
    let Nn { g: graph, weights, .. } = nn;
    let mut exec = Exec::new(backend, graph, plan).unwrap();
    fill(&mut exec, &weights, base, given);
    packed.upload(&mut exec, &inputs);
    exec.run(Phase::EVAL).unwrap();
    exec.download_f32(logits).unwrap()
}

/// The loss and every gradient, by the name of what it is the gradient of.
fn gradients(
    backend: Box<dyn Backend>,
    base: &Checkpoint,
    method: &dyn Method,
    given: &Given,
    packed: &Packed,
    longest: usize,
) -> (f32, BTreeMap<String, Vec<f32>>) {
    let model = models::read(base.config(), longest).unwrap();
    let step = Step::new(&*model, method, &as_f32, DType::F32, packed.ids.len(), backend.caps()).unwrap();
    let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
    let names: Vec<(String, Val)> = (0..step.program.graph.values.len() as u32)
        .map(Val)
        .filter_map(|v| Some((step.program.graph.value(v).name.strip_prefix("grad.")?.to_string(), v)))
        .filter(|(name, _)| !name.contains(':'))
        .collect();
    let mut exec = Exec::new(backend, step.program.graph, plan).unwrap();
    fill(&mut exec, &step.program.weights, base, given);
    packed.upload(&mut exec, &step.leaves.inputs);
    let count = packed.labels.iter().filter(|&&t| t != -100).count();
    exec.upload(step.leaves.inv_count, bytemuck::bytes_of(&(1.0 / count as f32))).unwrap();
    exec.run(Phase::MICRO).unwrap();
    let loss = exec.download_f32(step.leaves.loss).unwrap()[0];
    let grads = names.into_iter().map(|(n, v)| (n, exec.download_f32(v).unwrap())).collect();
    (loss, grads)
}

/// Largest difference relative to the largest value.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-30f32, |m, w| m.max(w.abs())) as f64;
    // A NaN is as far off as can be.
    let off = |g: f32, w: f32| if g.is_nan() { f64::INFINITY } else { (g as f64 - w as f64).abs() };
    got.iter().zip(want).map(|(&g, &w)| off(g, w)).fold(0.0, f64::max) / scale
}

fn check(what: &str, got: &[f32], want: &[f32]) {
    let d = distance(got, want);
    assert!(d <= TOLERANCE, "{what}: off by {d:.2e} relative to the largest value, more than {TOLERANCE:.0e}");
}

fn on_every_device(f: impl Fn(&Device)) {
    for device in devices() {
        f(&device);
    }
}

#[test]
fn base_logits_and_full_gradients() {
    let golden = Golden::open(fixture("golden/base/golden.safetensors"));
    let (ids, labels) = (golden.i64("input_ids"), golden.i64("labels"));
    let packed = Packed::new(&ids, &labels, 12);
    for folder in ["golden/base", "base_sharded"] {
        let base = Checkpoint::open(fixture(folder)).unwrap();
        on_every_device(|d| {
            let got = logits(d.open(), &base, &Frozen, &Given::default(), &as_f32, &packed, 64);
            check(&format!("{folder} logits on {}", d.name), &got, &golden.f32("logits"));
            let (loss, _) = gradients(d.open(), &base, &Full, &Given::default(), &packed, 64);
            check(&format!("{folder} loss on {}", d.name), &[loss], &golden.f32("loss"));
        });
    }
}

#[test]
fn families_give_transformers_logits_loss_and_gradients() {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(fixture("families")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 8, "the families' fixtures are missing");
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let base = Checkpoint::open(&folder).unwrap();
        let golden = Golden::open(folder.join("golden.safetensors"));
        let (ids, labels) = (golden.i64("input_ids"), golden.i64("labels"));
        let packed = Packed::new(&ids, &labels, ids.len());
        on_every_device(|d| {
            let got = logits(d.open(), &base, &Frozen, &Given::default(), &as_f32, &packed, ids.len());
            check(&format!("{name} logits on {}", d.name), &got, &golden.f32("logits"));
            let (loss, grads) = gradients(d.open(), &base, &Full, &Given::default(), &packed, ids.len());
            check(&format!("{name} loss on {}", d.name), &[loss], &golden.f32("loss"));
            let expected = golden.names().into_iter().filter(|n| n.starts_with("grad."));
            for key in expected {
                let got = grads.get(&key["grad.".len()..]).unwrap_or_else(|| panic!("{name}: no {key}"));
                check(&format!("{name} {key} on {}", d.name), got, &golden.f32(&key));
            }
        });
    }
}

/// A golden adapter as its files give it.
fn from_files(name: &str, _: &Golden) -> (Lora, Given) {
    let adapter = read_adapter(&fixture(name)).unwrap();
    (Lora { config: adapter.config }, Given::adapter(adapter.tensors))
}

/// The same of an adapter whose method changed the base first: here PEFT's own rest of the base is given, and it is plain
/// LoRA on that.
fn on_a_residual(name: &str, golden: &Golden) -> (Lora, Given) {
    let text = std::fs::read_to_string(fixture(&format!("{name}/adapter_config.json"))).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["init_lora_weights"] = true.into();
    let config = AdapterConfig::parse(&config.to_string()).unwrap();
    let mut given = Given::adapter(read_adapter(&fixture(name)).unwrap().tensors);
    for key in golden.names() {
        if let Some(module) = key.strip_prefix("residual.base_model.model.") {
            given.residuals.push((module.replace(".base_layer", ""), golden.f32(&key)));
        }
    }
    assert!(!given.residuals.is_empty());
    (Lora { config }, given)
}

type Read = fn(&str, &Golden) -> (Lora, Given);

/// The adapter `name` on `base` gives its golden's logits, loss, and the gradient of every tensor that PEFT trains.
fn agrees(base: &Checkpoint, packed: &Packed, name: &str, read: Read) {
    let golden = Golden::open(fixture(&format!("{name}/golden.safetensors")));
    let (method, given) = read(name, &golden);
    on_every_device(|d| {
        let got = logits(d.open(), base, &method, &given, &as_f32, packed, 64);
        check(&format!("{name} logits on {}", d.name), &got, &golden.f32("logits"));
        let (loss, grads) = gradients(d.open(), base, &method, &given, packed, 64);
        check(&format!("{name} loss on {}", d.name), &[loss], &golden.f32("loss"));
        let expected: Vec<String> = golden.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
        assert_eq!(expected.len(), grads.len(), "{name}: not the tensors that PEFT trains");
        for key in expected {
            // While it trains, PEFT keeps such a module beside the original, and magnitudes as a module's weight; its
            // file does not say so.
            let file_key = key["grad.".len()..].replace(".modules_to_save", "");
            let file_key = file_key.replace("magnitude_vector.weight", "magnitude_vector");
            let got = grads.get(&file_key).unwrap_or_else(|| panic!("{name}: no {key}"));
            check(&format!("{name} {key} on {}", d.name), got, &golden.f32(&key));
        }
    });
}

#[test]
fn lora_adapters_give_peft_logits_loss_and_gradients() {
    let table: [(&str, Read); 13] = [
        ("lora", from_files),
        ("rslora", from_files),
        ("lora_rankpattern", from_files),
        ("dora", from_files),
        ("lora_bias", from_files),
        ("lora_modules_to_save", from_files),
        ("lora_embed", from_files),
        ("lora_lmhead", from_files),
        ("lora_trainable_tokens", from_files),
        ("pissa", on_a_residual),
        ("olora", on_a_residual),
        ("pissa", from_files),
        ("olora", from_files),
    ];
    let base = Checkpoint::open(fixture("golden/base")).unwrap();
    let tokens = Golden::open(fixture("golden/base/golden.safetensors"));
    let packed = Packed::new(&tokens.i64("input_ids"), &tokens.i64("labels"), 12);
    for (name, read) in table {
        agrees(&base, &packed, &format!("golden/{name}"), read);
    }
}

/// On a model whose head is its embedding, which it scales: LoRA leaves the head alone, trained tokens do not, unless
/// the head has tokens of its own.
#[test]
fn adapters_of_a_tied_embedding_give_peft_logits_loss_and_gradients() {
    let base = Checkpoint::open(fixture("families/gemma")).unwrap();
    let tokens = Golden::open(fixture("families/gemma/golden.safetensors"));
    let ids = tokens.i64("input_ids");
    let packed = Packed::new(&ids, &tokens.i64("labels"), ids.len());
    for name in ["lora_embed", "tokens", "two_lists", "head_tokens"] {
        agrees(&base, &packed, &format!("golden_tied/{name}"), from_files);
    }
}

/// PEFT loads the table that it wrote beside an adapted embedding; so a file with another one is another model.
#[test]
fn the_table_in_an_adapter_is_the_one_that_counts() {
    let base = Checkpoint::open(fixture("golden/base")).unwrap();
    let golden = Golden::open(fixture("golden/lora_embed/golden.safetensors"));
    let tokens = Golden::open(fixture("golden/base/golden.safetensors"));
    let packed = Packed::new(&tokens.i64("input_ids"), &tokens.i64("labels"), 12);
    let (method, mut given) = from_files("golden/lora_embed", &golden);
    let table = base_layer("model.embed_tokens");
    let got = |given: &Given| logits(Device::cpu().open(), &base, &method, given, &as_f32, &packed, 64);
    let tensors = given.adapter.as_mut().unwrap();
    assert_eq!(tensors[&table].data, base.read("model.embed_tokens.weight").unwrap());
    tensors.get_mut(&table).unwrap().data.iter_mut().for_each(|x| *x *= 1.01);
    assert!(distance(&got(&given), &golden.f32("logits")) > TOLERANCE);
    // Without it, the base's own counts.
    given.adapter.as_mut().unwrap().remove(&table);
    check("logits", &got(&given), &golden.f32("logits"));
}

#[test]
fn bitsandbytes_checkpoints_give_the_logits_of_their_dequantized_twins() {
    let golden = Golden::open(common::root("tests/golden/tiny_bnb4_logits.safetensors"));
    let ids = golden.i64("input_ids");
    let packed = Packed::new(&ids, &ids, 12);
    for (folder, key) in [("tiny_llama_bnb4", "bnb4.logits"), ("tiny_llama_bnb4_dq", "bnb4_dq.logits")] {
        let base = Checkpoint::open(fixture(folder)).unwrap();
        let stored = |name: &str, _: Role| match base.nf4(name).unwrap() {
            Some((dtype, _)) => dtype,
            None => DType::BF16,
        };
        on_every_device(|d| {
            let got = logits(d.open(), &base, &Frozen, &Given::default(), &stored, &packed, 64);
            check(&format!("{folder} on {}", d.name), &got, &golden.f32(key));
        });
    }
}

#[test]
fn a_wrong_scale_is_seen() {
    // The control: the same adapter at another scale must be further off than the tolerance.
    let base = Checkpoint::open(fixture("golden/base")).unwrap();
    let golden = Golden::open(fixture("golden/lora/golden.safetensors"));
    let tokens = Golden::open(fixture("golden/base/golden.safetensors"));
    let packed = Packed::new(&tokens.i64("input_ids"), &tokens.i64("labels"), 12);
    let adapter = read_adapter(&fixture("golden/lora")).unwrap();
    let method = Lora { config: AdapterConfig::lora(4, 8.01, Targets::AllLinear) };
    let got = logits(Device::cpu().open(), &base, &method, &Given::adapter(adapter.tensors), &as_f32, &packed, 64);
    assert!(distance(&got, &golden.f32("logits")) > TOLERANCE);
}
