//! The optimizers: steps equal bitsandbytes', runs equal PyTorch's and transformers', every one trains, takes the
//! memory that it should, repeats bit for bit and skips a step that is not finite.

mod common;

use std::path::{Path, PathBuf};

use common::devices::{Device, devices};
use common::golden::Golden;
use trimtab::bench::watched::Run;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::dtype::{DType, Ty};
use trimtab::graph::LeafKind;
use trimtab::models;
use trimtab::nn::Role;
use trimtab::ops::{Attr, OpDef, optim};
use trimtab::peft::files::read_adapter;
use trimtab::peft::{Method, full::Full, lora::Lora};
use trimtab::plan::Plan;
use trimtab::quant::dynamic::{DynamicMap, signed, unsigned};
use trimtab::tasks::causal_lm::layout;
use trimtab::train::optimizer::{Bits, MIN_8BIT, Optimizer, Rule};
use trimtab::train::step::{Micro, Step};
use trimtab::train::trainer::{StepReport, Trainer};
use trimtab::weights::{Checkpoint, HostTensor, load};

fn path(p: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(p)
}

// ---- single steps against bitsandbytes ----------------------------------------------------------------------------

/// A tensor of the file, filled up to whole blocks.
fn padded(golden: &Golden, name: &str, len: usize) -> Vec<f32> {
    let mut x = golden.f32(name);
    x.resize(len.max(x.len()), 0.0);
    x
}

/// One state after a step: what bitsandbytes stored, and the values it encoded.
struct Encoded<'a> {
    map: &'a DynamicMap,
    codes: &'a [u8],
    values: Vec<f64>,
}

/// Our codes are those of the nearest values, but for rounding at an edge. bitsandbytes on the CPU first moves a value to
/// the nearest of 65536 points of [−1, 1], which is coarse for the smallest codes; so its codes are those of the points.
/// Returns the share of its codes that this explains, the others being within rounding of a point's end, and the share
/// that equal ours.
fn compare_codes(what: &str, got: &[u8], absmax: &[f32], want: &Encoded) -> (f64, f64) {
    let (mut explained, mut equal) = (0, 0);
    for (i, &theirs) in want.codes.iter().enumerate() {
        let scale = absmax[i / optim::BLOCK] as f64;
        let x = if scale > 0.0 { want.values[i] / scale } else { 0.0 };
        let away = |code: u8| (want.map.values[code as usize] as f64 - x).abs();
        let nearest = away(want.map.code_f64(x));
        assert!(away(got[i]) <= nearest + 1e-6 * x.abs() + 1e-12, "{what}: element {i} is {x}, got code {}", got[i]);
        let point = ((x + 1.0) * 0.5 * 65535.0 + 0.5).floor() * 2.0 / 65535.0 - 1.0;
        explained += usize::from(theirs == want.map.code_f64(point));
        equal += usize::from(got[i] == theirs);
    }
    let share = |count: usize| count as f64 / want.codes.len() as f64;
    (share(explained), share(equal))
}

/// Runs one step of an optimizer of the file from bitsandbytes' own state before it; `decay` as told. The largest
/// difference of a parameter, in units of what is allowed, and the smallest shares of [`compare_codes`].
fn step(device: &Device, golden: &Golden, name: &str, t: i32, decay: f64) -> (f64, (f64, f64)) {
    let (op, states, lr, beta1, beta2): (&'static OpDef, &[&DynamicMap], f64, f64, f64) = match name {
        "adamw8bit" => (&optim::ADAMW_8BIT, &[signed(), unsigned()], 1e-2, 0.9, 0.999),
        "lion8bit" => (&optim::LION_8BIT, &[signed()], 1e-3, 0.9, 0.99),
        _ => (&optim::ADAMW, &[], 1e-2, 0.9, 0.999),
    };
    let key = |what: &str, t: i32| format!("{name}.{what}{t}");
    let len = golden.f32(&key("grad", 1)).len();
    let n = len.next_multiple_of(optim::BLOCK);
    let blocks = n / optim::BLOCK;
    let (before, grad) = (padded(golden, &key("param", t - 1), n), padded(golden, &key("grad", t), n));
    let bytes = |x: &[f32]| bytemuck::cast_slice::<f32, u8>(x).to_vec();
    let mut ins = vec![(Ty::f32(&[n]), bytes(&before)), (Ty::f32(&[n]), bytes(&grad))];
    let mut encoded = Vec::new();
    for s in 1..=2 {
        if let Some(&map) = states.get(s - 1) {
            let (codes, absmax) = match t {
                1 => (vec![0u8; n], vec![0.0; blocks]),
                _ => {
                    (golden.bytes(&key(&format!("state{s}."), t - 1)), golden.f32(&key(&format!("absmax{s}."), t - 1)))
                }
            };
            let (rate, power) =
                if s == 1 && op.name == "adamw_8bit" { (1.0 - beta1, 1) } else { (1.0 - beta2, s as i32) };
            let value = |i: usize| {
                let old = map.values[codes[i] as usize] as f64 * absmax[i / optim::BLOCK] as f64;
                old + rate * ((grad[i] as f64).powi(power) - old)
            };
            encoded.push((map, (0..len).map(value).collect::<Vec<f64>>(), s));
            let mut codes = codes;
            codes.resize(n, if s == 1 { 127 } else { 0 });
            ins.extend([(Ty::u32(&[n / 4]), codes), (Ty::f32(&[blocks]), bytes(&absmax))]);
        } else if states.is_empty() {
            let state = if t == 1 { vec![0.0; n] } else { padded(golden, &key(&format!("state{s}."), t - 1), n) };
            ins.push((Ty::f32(&[n]), bytes(&state)));
        }
    }
    let bias = |beta: f64| 1.0 - beta.powi(t);
    let hyper = [lr, 1.0 - beta1, 1.0 - beta2, 1e-8, decay, bias(beta1), bias(beta2), 0.0].map(|x| x as f32);
    ins.extend([(Ty::f32(&[1]), bytes(&[1.0])), (Ty::f32(&[8]), bytes(&hyper))]);
    let ins = ins.iter().map(|(ty, b)| (ty.clone(), b.as_slice())).collect();
    let run = Run { op, attr: &Attr::None, ins, shared: op.in_place };
    let outs = run.on(&mut *device.open()).unwrap();

    let floats = |b: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(b);
    let want = golden.f32(&key("param", t));
    // A few roundings of the parameter, and of its change.
    let off = |i: usize, got: f32| {
        let change = (want[i] - before[i]).abs() as f64;
        (got - want[i]).abs() as f64 / (2e-7 * want[i].abs() as f64 + 4e-6 * change + 1e-9)
    };
    let worst = floats(&outs[0])[..len].iter().enumerate().map(|(i, &got)| off(i, got)).fold(0.0, f64::max);
    let mut shares = (1f64, 1f64);
    for (k, (map, values, s)) in encoded.into_iter().enumerate() {
        let what = format!("{name} on {}, step {t}, state {s}", device.name);
        let (codes, absmax) = (&outs[1 + 2 * k], floats(&outs[2 + 2 * k]));
        for (a, b) in absmax.iter().zip(golden.f32(&key(&format!("absmax{s}."), t))) {
            assert!((a - b).abs() <= 1e-6 * b, "{what}: absmax {a}, theirs {b}");
        }
        let theirs = golden.bytes(&key(&format!("state{s}."), t));
        let want = Encoded { map, codes: &theirs, values };
        let (explained, equal) = compare_codes(&what, &codes[..len], &absmax, &want);
        shares = (shares.0.min(explained), shares.1.min(equal));
    }
    (worst, shares)
}

#[test]
fn steps_equal_bitsandbytes() {
    let golden = Golden::open(path("fixtures/bnb/optim_golden.safetensors"));
    for device in devices().into_iter().chain(Device::ptx(80)) {
        for name in ["adamw8bit", "lion8bit", "adamw32bit"] {
            for t in 1..=3 {
                let (worst, (explained, equal)) = step(&device, &golden, name, t, 0.1);
                assert!(worst <= 1.0, "{name} on {}, step {t}: off by {worst} times the allowed", device.name);
                assert!(explained > 0.998, "{name} on {}, step {t}: {explained} of the codes", device.name);
                assert!(equal > 0.95, "{name} on {}, step {t}: {equal} of the codes are ours", device.name);
            }
        }
    }
}

/// The comparison sees another weight decay.
#[test]
fn control_another_decay_is_seen() {
    let golden = Golden::open(path("fixtures/bnb/optim_golden.safetensors"));
    for name in ["adamw8bit", "lion8bit", "adamw32bit"] {
        assert!(step(&Device::cpu(), &golden, name, 2, 0.11).0 > 1.0, "{name}");
    }
}

// ---- runs ---------------------------------------------------------------------------------------------------------

/// The sequences that every golden run is trained on, two to a step.
fn steps(count: usize) -> Vec<Vec<MicroBatch>> {
    let data = Golden::open(path("golden/parity_lora.safetensors")).dataset();
    (0..count).map(|i| pack(&data, &[2 * i, 2 * i + 1], &layout(48), true).unwrap()).collect()
}

fn trainer(device: &Device, lora: bool, optimizer: Optimizer) -> Trainer {
    let base = Checkpoint::open(path("fixtures/golden/base")).unwrap();
    let adapter = read_adapter(&path("fixtures/golden/lora")).unwrap();
    let mut config = adapter.config.clone();
    config.dropout = 0.0;
    let method: Box<dyn Method> = if lora { Box::new(Lora { config }) } else { Box::new(Full) };
    let model = models::read(base.config(), 64).unwrap();
    let backend = device.open();
    let storage = |_: &str, _: Role| DType::F32;
    let step = Step::with(
        &*model,
        &*method,
        &storage,
        DType::F32,
        Micro { tokens: 48, single: false },
        optimizer,
        backend.caps(),
    )
    .unwrap();
    let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
    let (total, state) = (plan.account.total, state_bytes(&step));
    let in_account = plan.account.rows.iter().find(|r| r.0 == "optimizer state").map_or(0, |r| r.1);
    assert_eq!(in_account, state, "{:?}: the account's state", optimizer.rule);
    let mut trainer = Trainer::new(backend, step, plan, 7).unwrap();
    assert_eq!(trainer.exec.backend.memory(), total, "the account is not what was allocated");
    let weights = trainer.weights().to_vec();
    let from = load::Sources { base: Some(&base), std: 0.0, adapter: Some(&adapter.tensors), seed: 7 };
    load::load(&mut trainer.exec, &weights, &from, &mut |_, _| Ok(())).unwrap();
    trainer
}

/// The state's bytes, by the rule alone: tensors on multiples of 64 elements or, in 8 bits, of 256; each leaf rounded up
/// to 256 bytes.
fn state_bytes(step: &Step) -> u64 {
    let shapes: Vec<Vec<usize>> =
        step.program.weights.iter().filter(|w| w.trainable).map(|w| step.program.graph.shape(w.val).to_vec()).collect();
    let len = |s: &Vec<usize>| s.iter().product::<usize>();
    let in_8 = |s: &Vec<usize>| step.leaves.optimizer.rule.in_8_bits(len(s));
    let total = |small: bool, boundary: usize| -> usize {
        shapes.iter().filter(|s| in_8(s) != small).map(|s| len(s).next_multiple_of(boundary)).sum()
    };
    let (n8, n32) = (total(false, 256), total(true, 64));
    let leaf = |bytes: usize| bytes.next_multiple_of(256);
    let moment = leaf(n8) + leaf(4 * n8 / 256) + leaf(4 * n32);
    let all = match step.leaves.optimizer.rule {
        Rule::AdamW { .. } => 2 * moment,
        Rule::Lion { .. } => moment,
        Rule::Sgd { momentum: 0.0, .. } => 0,
        Rule::Sgd { .. } => moment,
        Rule::Adafactor { .. } => {
            let cols = |s: &Vec<usize>| *s.last().unwrap();
            leaf(4 * shapes.iter().map(|s| len(s) / cols(s)).sum::<usize>())
                + leaf(4 * shapes.iter().map(cols).sum::<usize>())
        }
    };
    all as u64
}

type Trained = Vec<(String, HostTensor)>;

fn run(trainer: &mut Trainer, steps: &[Vec<MicroBatch>], lr: f64) -> (Vec<StepReport>, Trained) {
    let reports = steps.iter().map(|micro| trainer.step(micro, lr).unwrap()).collect();
    (reports, trainer.trained().unwrap())
}

fn sgd(momentum: f64, dampening: f64, nesterov: bool) -> Rule {
    Rule::Sgd { momentum, dampening, nesterov }
}

/// (golden, LoRA or all weights, rule, rate, weight decay, bound on the largest difference of a parameter). The key_range
/// are ten times how far the reference's float32 run is from its float64 run, as generate_optim.py prints it.
const RUNS: [(&str, bool, Rule, f64, f64, f64); 6] = [
    ("sgd", true, Rule::SGD, 0.3, 0.01, 6.3e-7),
    ("sgd_momentum", true, Rule::Sgd { momentum: 0.9, dampening: 0.5, nesterov: false }, 0.3, 0.01, 2.3e-6),
    ("sgd_nesterov", true, Rule::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true }, 0.1, 0.0, 1.2e-6),
    ("lion", true, Rule::LION, 1e-3, 0.1, 1.9e-6),
    ("adafactor", true, Rule::ADAFACTOR, 1e-2, 0.01, 2.0e-6),
    ("adafactor_full", false, Rule::ADAFACTOR, 1e-3, 0.1, 5.7e-6),
];

/// What is wrong with a run; None: nothing.
fn wrong(golden: &Golden, name: &str, (reports, trained): &(Vec<StepReport>, Trained), bound: f64) -> Option<String> {
    let (losses, norms) = (golden.f32(&format!("{name}.loss")), golden.f32(&format!("{name}.grad_norm")));
    assert_eq!(reports.len(), losses.len());
    for (i, r) in reports.iter().enumerate() {
        let near = |got: f32, want: f32| ((got - want) / want).abs() < 1e-5;
        if !near(r.loss, losses[i]) || !near(r.grad_norm, norms[i]) {
            return Some(format!("step {i}: {r:?}, expected loss {} and norm {}", losses[i], norms[i]));
        }
    }
    let keys = golden.names().into_iter().filter_map(|n| Some(n.strip_prefix(&format!("{name}.param."))?.to_owned()));
    let mut compared = 0;
    for key in keys {
        let want = golden.f32(&format!("{name}.param.{key}"));
        let got = &trained.iter().find(|t| t.0 == key).unwrap_or_else(|| panic!("{key} is not trained")).1.data;
        assert_eq!(got.len(), want.len());
        let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        // NaN is not below it either.
        if !matches!((off as f64).partial_cmp(&bound), Some(std::cmp::Ordering::Less)) {
            return Some(format!("{key} is off by {off:.1e}, allowed {bound:.1e}"));
        }
        compared += 1;
    }
    assert!(compared > 5, "{name}: {compared} tensors compared");
    None
}

#[test]
fn runs_equal_the_reference_libraries() {
    let golden = Golden::open(path("golden/parity_optim.safetensors"));
    for (name, lora, rule, lr, weight_decay, bound) in RUNS {
        let steps = steps(golden.f32(&format!("{name}.loss")).len());
        for device in devices() {
            let optimizer = Optimizer { weight_decay, ..rule.into() };
            let result = run(&mut trainer(&device, lora, optimizer), &steps, lr);
            if let Some(what) = wrong(&golden, name, &result, bound) {
                panic!("{name} on {}: {what}", device.name);
            }
        }
    }
}

/// The comparison sees every one of the constants.
#[test]
fn control_other_constants_are_seen() {
    let golden = Golden::open(path("golden/parity_optim.safetensors"));
    let others: [(usize, Rule, f64); 6] = [
        (0, Rule::SGD, 0.02),
        (1, sgd(0.9, 0.0, false), 0.01),
        (2, sgd(0.9, 0.0, false), 0.0),
        (3, Rule::Lion { beta1: 0.9, beta2: 0.999, bits: Bits::B32 }, 0.1),
        (4, Rule::Adafactor { decay_rate: -0.8, eps: 1e-30, clip_threshold: 0.9 }, 0.01),
        (4, Rule::Adafactor { decay_rate: -0.7, eps: 1e-30, clip_threshold: 1.0 }, 0.01),
    ];
    for (i, rule, weight_decay) in others {
        let (name, lora, _, lr, _, bound) = RUNS[i];
        let optimizer = Optimizer { weight_decay, ..rule.into() };
        let result = run(&mut trainer(&Device::cpu(), lora, optimizer), &steps(12), lr);
        assert!(wrong(&golden, name, &result, bound).is_some(), "{name} with {optimizer:?}");
    }
}

/// Every rule with a rate that suits it.
fn rules() -> [(Rule, f64); 7] {
    [
        (Rule::ADAMW, 3e-3),
        (Rule::ADAMW.with_bits(Bits::B8), 3e-3),
        (Rule::LION, 1e-3),
        (Rule::LION.with_bits(Bits::B8), 1e-3),
        (Rule::SGD, 0.3),
        (sgd(0.9, 0.0, false), 0.05),
        (Rule::ADAFACTOR, 3e-3),
    ]
}

fn bits(trained: &Trained) -> Vec<u32> {
    trained.iter().flat_map(|t| t.1.data.iter().map(|x| x.to_bits())).collect()
}

#[test]
fn every_optimizer_trains_all_weights_and_repeats() {
    // The same sequences again and again, so that the loss says something.
    let steps: Vec<Vec<MicroBatch>> = vec![steps(1).remove(0); 6];
    for device in devices() {
        let mut last = Vec::new();
        for (rule, lr) in rules() {
            let once = run(&mut trainer(&device, false, rule.into()), &steps, lr);
            let twice = run(&mut trainer(&device, false, rule.into()), &steps, lr);
            assert_eq!(bits(&once.1), bits(&twice.1), "{rule:?} on {}", device.name);
            let (first, end) = (once.0[0].loss, once.0[5].loss);
            assert!(end < first - 0.1, "{rule:?} on {}: loss {first} to {end}", device.name);
            last.push((end, bits(&once.1)));
        }
        // 8 bits are another run than 32, but not far from it.
        for (wide, narrow) in [(0, 1), (2, 3)] {
            assert_ne!(last[wide].1, last[narrow].1);
            let apart = (last[wide].0 - last[narrow].0).abs();
            assert!(apart < 0.05, "{}: {:?} in 8 bits ends {apart} away", device.name, rules()[wide].0);
        }
    }
}

#[test]
fn every_optimizer_skips_a_step_that_is_not_finite() {
    let micro = steps(1).remove(0);
    for device in devices() {
        for (rule, lr) in rules() {
            let mut trainer = trainer(&device, true, rule.into());
            let weight = trainer.weights().iter().find(|w| w.name == "model.norm.weight").unwrap().val;
            let states: Vec<_> = (0..trainer.exec.graph.values.len() as u32)
                .map(trimtab::graph::Val)
                .filter(|&v| trainer.exec.graph.value(v).def == trimtab::graph::Def::Leaf(LeafKind::Optim))
                .collect();
            trainer.step(&micro, lr).unwrap();
            let all = |t: &mut Trainer| -> (Vec<u32>, Vec<Vec<u8>>) {
                let state = states.iter().map(|&v| t.exec.download(v).unwrap()).collect();
                (bits(&t.trained().unwrap()), state)
            };
            let before = all(&mut trainer);
            let good = trainer.exec.download(weight).unwrap();
            trainer.exec.upload(weight, &[0xff; 4]).unwrap();
            assert!(!trainer.step(&micro, lr).unwrap().grad_norm.is_finite());
            assert!(before == all(&mut trainer), "{rule:?} on {}: trained on a NaN", device.name);
            trainer.exec.upload(weight, &good).unwrap();
            assert!(trainer.step(&micro, lr).unwrap().grad_norm.is_finite());
            assert!(before != all(&mut trainer));
        }
    }
}

/// Tensors below the limit keep f32 state, and the bytes of 8-bit state are a quarter of it and the scales.
#[test]
fn eight_bit_state_is_what_bitsandbytes_takes() {
    let rule = Rule::ADAMW.with_bits(Bits::B8);
    assert!(!rule.in_8_bits(MIN_8BIT - 1) && rule.in_8_bits(MIN_8BIT) && !Rule::ADAMW.in_8_bits(1 << 20));
    let n = 1 << 20;
    let tys = [Ty::f32(&[n]), Ty::f32(&[n]), Ty::u32(&[n / 4]), Ty::f32(&[n / 256]), Ty::u32(&[n / 4])];
    let rest = [Ty::f32(&[n / 256]), Ty::f32(&[1]), Ty::f32(&[8])];
    let outs = optim::ADAMW_8BIT.types(&Attr::None, &[&tys[..], &rest].concat()).unwrap();
    let state: usize = outs[1..].iter().map(Ty::bytes).sum();
    assert_eq!(state, 2 * n + 8 * n / 256);
    let odd = [Ty::f32(&[n - 1]), Ty::f32(&[n - 1])];
    assert!(optim::ADAMW_8BIT.types(&Attr::None, &[&odd[..], &tys[2..], &rest].concat()).is_err());
}
