//! DoRA as a whole: what its layer computes while it drops out, where training starts, and that what was trained is what
//! is saved and generates.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use common::devices::{Device, devices};
use common::interpret::Values;
use trimtab::bench::operands::Random;
use trimtab::cpu::philox::Mask;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::{Dataset, Example};
use trimtab::dtype::{DType, Ty};
use trimtab::exec::Exec;
use trimtab::generate::{Generation, Room};
use trimtab::graph::{LeafKind, Phase};
use trimtab::nn::{Build, Hooks, Nn, Role};
use trimtab::ops::{Dropout, Tensor};
use trimtab::peft::files::read_adapter;
use trimtab::peft::{AdapterConfig, Frozen, Method, Targets, lora::Lora};
use trimtab::plan::Plan;
use trimtab::session::{Base, Options, Planned, Session};
use trimtab::tasks::causal_lm::layout;
use trimtab::weights::{HostTensor, load};

type Tensors = BTreeMap<String, HostTensor>;

fn config() -> AdapterConfig {
    let mut config = AdapterConfig::lora(4, 8.0, Targets::AllLinear);
    config.dora = true;
    config.rank_pattern = vec![("v_proj".into(), 2)];
    config
}

/// The definition as `peft/tuners/lora/dora.py` and `variants.py` have it, on one layer in float64:
/// `y = W x + bias + (m/‖W + sBA‖ − 1)∘W x̃ + (m/‖W + sBA‖)∘s·B A x̃`, x̃ being x where nothing is dropped.
#[test]
fn the_layer_is_that_of_peft() {
    let (t, n, k, r) = (5, 7, 12, 3);
    for (p, rslora) in [(0.0, false), (0.25, true)] {
        let mut config = AdapterConfig::lora(r, 6.0, Targets::AllLinear);
        (config.dora, config.dropout, config.rslora) = (true, p, rslora);
        let scale = if rslora { 6.0 / (r as f32).sqrt() } else { 2.0 } as f64;
        let method = Lora { config };
        let storage = |_: &str, _: Role| DType::F32;
        let stack: &[&dyn Hooks] = &[&method];
        let build = Build { stack, storage: &storage, act: DType::F32 };
        let mut nn = Nn::new(build);
        nn.begin(Phase::MICRO, layout(t)).unwrap();
        let x = nn.g.leaf(LeafKind::Io, "x", Ty::f32(&[t, k]));
        let y = nn.linear("layer", Role::Q, x, n, true).unwrap();

        let mut random = Random::new(1);
        let mut given = BTreeMap::new();
        for val in nn.weights.iter().map(|w| (w.val, w.name.clone())).chain([(x, "x".to_string())]) {
            let shape = nn.g.shape(val.0).to_vec();
            let draw = || if val.1 == "minus_one" { -1.0 } else { random.normal() };
            let data = std::iter::repeat_with(draw).take(shape.iter().product()).collect();
            given.insert(val.1, (val.0, Tensor::new(&shape, data)));
        }
        let key = [9.0, 8.0, 7.0, 6.0];
        let leaves = given.values().cloned().chain([(nn.rng(), Tensor::new(&[4], key.to_vec()))]);
        let got = Values::of(&nn.g, leaves).get(y);

        let get = |name: &str| &given[name].1;
        let [a, b, m] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
            .map(|name| get(&format!("base_model.model.layer.{name}")));
        let (x, w, bias) = (get("x"), get("layer.weight"), get("layer.bias"));
        let mask = Mask::new(key.map(|k| k as u32), Dropout { p: p as f32, site: 1 });
        let kept = |i: usize, c: usize| x.at(i, c) * if p > 0.0 { mask.factor(i * k + c) as f64 } else { 1.0 };
        let low = |j: usize, c: usize| scale * (0..r).map(|l| b.at(j, l) * a.at(l, c)).sum::<f64>();
        for j in 0..n {
            let gain = m.data[j] / (0..k).map(|c| (w.at(j, c) + low(j, c)).powi(2)).sum::<f64>().sqrt();
            for i in 0..t {
                let sum = |f: &dyn Fn(usize) -> f64| (0..k).map(f).sum::<f64>();
                let want = sum(&|c| x.at(i, c) * w.at(j, c))
                    + bias.data[j]
                    + (gain - 1.0) * sum(&|c| kept(i, c) * w.at(j, c))
                    + gain * sum(&|c| kept(i, c) * low(j, c));
                // The scale of the graph is f32: some 6e-8 of the low-rank part.
                assert!(
                    (got.at(i, j) - want).abs() < 1e-5 * want.abs().max(1.0),
                    "p = {p}: {} not {want}",
                    got.at(i, j)
                );
            }
        }
    }
}

fn base() -> Arc<Base> {
    Arc::new(Base::open(common::root("tests/fixtures/golden/base")).unwrap())
}

const IDS: [u32; 9] = [1, 17, 5, 60, 33, 8, 90, 12, 44];

/// One sequence, of which the last token is trained.
fn micro() -> Vec<MicroBatch> {
    let ids: Vec<i32> = IDS.iter().map(|&id| id as i32).collect();
    let mut labels = vec![-100; IDS.len()];
    labels[IDS.len() - 1] = ids[IDS.len() - 1];
    let mut data = Dataset::default();
    data.push(&Example::labelled(ids, labels)).unwrap();
    pack(&data, &[0], &layout(16), true).unwrap()
}

fn session(
    base: &Arc<Base>,
    config: AdapterConfig,
    quantize: Option<DType>,
    device: &Device,
    from: Option<&Tensors>,
) -> Session {
    let options = Options { quantize, max_seq_len: 16, micro_tokens: 16, ..Options::default() };
    let planned = Planned::new(base, Box::new(Lora { config }), options, device.open()).unwrap();
    planned.start(from, &mut |_, _| Ok(())).unwrap()
}

/// The logits behind all tokens but the last, as `generate` computes them.
fn logits(
    base: &Base,
    method: &dyn Method,
    quantize: Option<DType>,
    device: &Device,
    from: Option<&Tensors>,
) -> Vec<f32> {
    let model = base.model(16).unwrap();
    let storage = base.storage(quantize, DType::F32);
    let stack: &[&dyn Hooks] = &[method];
    let build = Build { stack, storage: &storage, act: DType::F32 };
    let mut nn = Nn::new(build);
    let room = Room { tokens: 16, source: 0, chunk: 5 };
    let mut generation = Generation::build(&mut nn, &*model, room).unwrap();
    let Nn { g: graph, weights, .. } = nn;
    let backend = device.open();
    let plan = Plan::new(&graph, backend.caps()).unwrap();
    let mut exec = Exec::new(backend, graph, plan).unwrap();
    let sources = load::Sources { base: base.checkpoint.as_ref(), std: 0.0, adapter: from, seed: 42 };
    load::load(&mut exec, &weights, &sources, &mut |_, _| Ok(())).unwrap();
    generation.begin(&mut exec, &IDS[..IDS.len() - 1]).unwrap()
}

/// Cross entropy of the last token.
fn loss(logits: &[f32]) -> f64 {
    let sum: f64 = logits.iter().map(|&l| (l as f64).exp()).sum();
    sum.ln() - logits[IDS[IDS.len() - 1] as usize] as f64
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

/// f32 sums in another order, on logits and losses of a few units.
const NEAR: f64 = 2e-5;

#[test]
fn a_run_starts_at_the_base_learns_and_is_saved_as_it_is() {
    let base = base();
    let out: PathBuf = std::env::temp_dir().join(format!("trimtab-dora-{}", std::process::id()));
    for quantize in [None, Some(DType::Nf4Dq)] {
        for device in devices() {
            let what = format!("{quantize:?} on {}", device.name);
            let method = Lora { config: config() };
            let plain = logits(&base, &Frozen, quantize, &device, None);
            let fresh = logits(&base, &method, quantize, &device, None);
            // On the CPU the magnitudes are the norms to the bit; WGSL's division may be off by 2.5 ulp.
            let allowed = if device.name == "cpu" { 0.0 } else { NEAR as f32 };
            assert!(farthest(&plain, &fresh) <= allowed, "{what}: a new adapter changes the logits");

            // Dropout too leaves a new adapter without effect.
            let mut dropping = config();
            dropping.dropout = 0.5;
            let first = session(&base, dropping, quantize, &device, None).step(&micro(), 0.0).unwrap().loss as f64;
            assert!((first - loss(&plain)).abs() < NEAR, "{what}: {first} with dropout, {} of the base", loss(&plain));

            let mut run = session(&base, config(), quantize, &device, None);
            let losses: Vec<f64> = (0..4).map(|_| run.step(&micro(), 2e-2).unwrap().loss as f64).collect();
            assert!((losses[0] - loss(&plain)).abs() < NEAR, "{what}: {losses:?}, the base {}", loss(&plain));
            assert!(losses.windows(2).all(|w| w[1] < w[0]) && losses[3] < 0.9 * losses[0], "{what}: {losses:?}");

            run.save(&out, DType::F32).unwrap();
            let adapter = read_adapter(&out).unwrap();
            assert!(adapter.config.dora);
            let trained = run.trainer.trained().unwrap();
            assert_eq!(adapter.tensors.len(), trained.len());
            assert!(trained.iter().all(|(name, tensor)| adapter.tensors[name] == *tensor));
            // Training goes on where it was, and what generates is what was trained.
            let next = run.step(&micro(), 0.0).unwrap().loss;
            let mut again = session(&base, adapter.config.clone(), quantize, &device, Some(&adapter.tensors));
            assert_eq!(again.step(&micro(), 0.0).unwrap().loss, next, "{what}");
            let saved = Lora { config: adapter.config };
            let generated = logits(&base, &saved, quantize, &device, Some(&adapter.tensors));
            assert!((loss(&generated) - next as f64).abs() < NEAR, "{what}: {} not {next}", loss(&generated));

            // The control: magnitudes that are a hundredth larger are seen.
            let mut larger = adapter.tensors.clone();
            let magnitudes = larger.iter_mut().filter(|(name, _)| name.ends_with("magnitude_vector"));
            magnitudes.flat_map(|(_, t)| &mut t.data).for_each(|m| *m *= 1.01);
            let other = logits(&base, &saved, quantize, &device, Some(&larger));
            assert!(
                (loss(&other) - next as f64).abs() > NEAR,
                "{what}: larger magnitudes give {}, {losses:?}",
                loss(&other)
            );
        }
    }
    std::fs::remove_dir_all(&out).unwrap();
}
