//! Whole training runs: equal to PyTorch's, equal however they are packed, equal to themselves.

mod common;

use std::path::PathBuf;

use common::devices::{Device, devices};
use common::golden::Golden;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::dtype::DType;
use trimtab::models;
use trimtab::nn::Role;
use trimtab::peft::files::read_adapter;
use trimtab::peft::{Method, full::Full, lora::Lora};
use trimtab::plan::Plan;
use trimtab::tasks::causal_lm::layout;
use trimtab::train::optimizer::Optimizer;
use trimtab::train::step::{Micro, Step};
use trimtab::train::trainer::{StepReport, Trainer};
use trimtab::weights::{Checkpoint, HostTensor, load};

fn path(p: &str) -> PathBuf {
    common::root("tests").join(p)
}

/// What a run is made of besides the device.
struct Setup {
    lora: bool,
    quantize: bool,
    dropout: f64,
    tokens: usize,
    act: DType,
    optimizer: Optimizer,
}

impl Setup {
    fn trainer(&self, device: &Device) -> Trainer {
        let base = Checkpoint::open(path("fixtures/golden/base")).unwrap();
        let adapter = read_adapter(&path("fixtures/golden/lora")).unwrap();
        let mut config = adapter.config.clone();
        config.dropout = self.dropout;
        let method: Box<dyn Method> = if self.lora { Box::new(Lora { config }) } else { Box::new(Full) };
        let model = models::read(base.config(), 64).unwrap();
        let backend = device.open();
        let storage = |_: &str, role: Role| match self.quantize && role.is_block_linear() {
            true => DType::Nf4Dq,
            false => DType::F32,
        };
        let (micro, caps) = (Micro { tokens: self.tokens, single: false }, backend.caps());
        let step = Step::with(&*model, &*method, &storage, self.act, micro, self.optimizer, caps).unwrap();
        let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
        let total = plan.account.total;
        let mut trainer = Trainer::new(backend, step, plan, 7).unwrap();
        assert_eq!(trainer.exec.backend.memory(), total, "the account is not what was allocated");
        let weights = trainer.weights().to_vec();
        let from = load::Sources { base: Some(&base), std: 0.0, adapter: Some(&adapter.tensors), seed: 7 };
        load::load(&mut trainer.exec, &weights, &from, &mut |_, _| Ok(())).unwrap();
        trainer
    }
}

type Trained = Vec<(String, HostTensor)>;

fn run(trainer: &mut Trainer, steps: &[Vec<MicroBatch>], lr: impl Fn(usize) -> f64) -> (Vec<StepReport>, Trained) {
    let memory = trainer.exec.backend.memory();
    let reports = steps.iter().enumerate().map(|(i, micro)| trainer.step(micro, lr(i)).unwrap()).collect();
    assert_eq!(trainer.exec.backend.memory(), memory, "a step allocated");
    (reports, trainer.trained().unwrap())
}

/// Largest difference, and the differences' mean, both absolute.
fn differences(got: &[f32], want: &[f32]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let d: Vec<f64> = got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).abs()).collect();
    assert!(got.iter().all(|g| g.is_finite()));
    (d.iter().fold(0.0, |m, x| m.max(*x)), d.iter().sum::<f64>() / d.len().max(1) as f64)
}

/// (golden, LoRA or all weights, weight decay, bound on the largest difference of a parameter, bound on the mean).
/// The key_range are about ten times how far PyTorch's own float32 run is from its float64 run: AdamW divides by the
/// root of a second moment that can be arbitrarily small, so single parameters drift although the run does not.
const RUNS: [(&str, bool, f64, f64, f64); 3] = [
    ("parity_lora", true, 0.01, 5e-4, 2e-6),
    ("parity_lora_linear", true, 0.01, 1e-5, 2e-7),
    ("parity_full", false, 0.1, 1e-4, 1e-6),
];

#[test]
fn adamw_steps_equal_pytorch() {
    for (name, lora, weight_decay, largest, mean) in RUNS {
        let golden = Golden::open(path(&format!("golden/{name}.safetensors")));
        let data = golden.dataset();
        let (losses, norms, lrs) = (golden.f32("loss"), golden.f32("grad_norm"), golden.f32("lr"));
        let steps: Vec<Vec<MicroBatch>> =
            (0..losses.len()).map(|i| pack(&data, &[2 * i, 2 * i + 1], &layout(48), true).unwrap()).collect();
        for device in devices() {
            let optimizer = Optimizer { weight_decay, ..Optimizer::default() };
            let setup = Setup { lora, quantize: false, dropout: 0.0, tokens: 48, act: DType::F32, optimizer };
            let (reports, trained) = run(&mut setup.trainer(&device), &steps, |i| lrs[i] as f64);
            for (i, r) in reports.iter().enumerate() {
                let near = |got: f32, want: f32| ((got - want) / want).abs() < 1e-4;
                assert!(
                    near(r.loss, losses[i]),
                    "{name} on {}: step {i} loss {} not {}",
                    device.name,
                    r.loss,
                    losses[i]
                );
                assert!(near(r.grad_norm, norms[i]), "{name}: step {i} norm {} not {}", r.grad_norm, norms[i]);
            }
            let expected = golden.names().iter().filter(|n| n.starts_with("param.")).count();
            assert_eq!(trained.len(), expected, "{name}: not the tensors that PyTorch trained");
            for (key, HostTensor { data: got, .. }) in &trained {
                let (max, avg) = differences(got, &golden.f32(&format!("param.{key}")));
                assert!(
                    max < largest && avg < mean,
                    "{name} on {}: {key} off by {max:.1e}, mean {avg:.1e}",
                    device.name
                );
            }
        }
    }
}

/// A CUDA card's plan of whole steps, every launch interpreted.
#[test]
fn interpreted_cuda_steps_equal_pytorch() {
    let Some(device) = Device::ptx(80) else { return };
    let golden = Golden::open(path("golden/parity_lora.safetensors"));
    let data = golden.dataset();
    let (losses, norms, lrs) = (golden.f32("loss"), golden.f32("grad_norm"), golden.f32("lr"));
    let steps: Vec<Vec<MicroBatch>> =
        (0..2).map(|i| pack(&data, &[2 * i, 2 * i + 1], &layout(48), true).unwrap()).collect();
    let optimizer = Optimizer { weight_decay: RUNS[0].2, ..Optimizer::default() };
    let setup = Setup { lora: true, quantize: false, dropout: 0.0, tokens: 48, act: DType::F32, optimizer };
    let (reports, _) = run(&mut setup.trainer(&device), &steps, |i| lrs[i] as f64);
    for (i, r) in reports.iter().enumerate() {
        let near = |got: f32, want: f32| ((got - want) / want).abs() < 1e-4;
        assert!(near(r.loss, losses[i]), "step {i}: loss {} not {}", r.loss, losses[i]);
        assert!(near(r.grad_norm, norms[i]), "step {i}: norm {} not {}", r.grad_norm, norms[i]);
    }
}

/// (What opens a device, what it keeps activations in, relative key_range on a step's loss and on its gradient's norm). Each of the
/// some thirty roundings of an activation on the way through the model moves it by up to 2⁻⁹ (bf16) or 2⁻¹² (f16) of its
/// size: together by about six times that. The loss, a mean over tokens, moves by less, the gradient, which goes
/// through the model twice, by two to three times as much.
type Narrow = (fn() -> Option<Device>, DType, f32, f32);
const NARROW: [Narrow; 4] = [
    (|| Some(Device::cpu()), DType::BF16, 0.01, 0.04),
    (|| Device::ptx(80), DType::BF16, 0.01, 0.04),
    (|| Device::ptx(75), DType::F16, 0.0015, 0.005),
    (Device::wgpu, DType::F16, 0.0015, 0.005),
];

#[test]
fn steps_with_activations_in_16_bits_are_near_those_in_f32() {
    let golden = Golden::open(path("golden/parity_lora.safetensors"));
    let data = golden.dataset();
    let steps: Vec<Vec<MicroBatch>> =
        (0..2).map(|i| pack(&data, &[2 * i, 2 * i + 1], &layout(48), true).unwrap()).collect();
    let start = |device: &Device, act: DType| {
        let optimizer = Optimizer::default();
        Setup { lora: true, quantize: true, dropout: 0.1, tokens: 48, act, optimizer }.trainer(device)
    };
    let run_on = |device: &Device, act: DType| {
        let mut trainer = start(device, act);
        (run(&mut trainer, &steps, |_| 1e-3).0, trainer.exec.backend.memory())
    };
    let wide = run_on(&Device::cpu(), DType::F32).0;
    for (open, act, loss, norm) in NARROW {
        let Some(device) = open() else { continue };
        let (narrow, less) = run_on(&device, act);
        if ["cpu", "wgpu"].contains(&&*device.name) {
            let more = start(&device, DType::F32).exec.backend.memory();
            assert!(less < more, "{act} on {}: {less} bytes, {more} in f32", device.name);
        }
        for (w, n) in wide.iter().zip(&narrow) {
            let off = |got: f32, want: f32| ((got - want) / want).abs();
            assert!(w.loss != n.loss, "{act}: nothing was rounded");
            assert!(off(n.loss, w.loss) < loss, "{act}: loss {} not {}", n.loss, w.loss);
            assert!(off(n.grad_norm, w.grad_norm) < norm, "{act}: norm {} not {}", n.grad_norm, w.grad_norm);
        }
    }
}

#[test]
fn packing_and_accumulation_change_nothing() {
    let golden = Golden::open(path("golden/parity_lora.safetensors"));
    let data = golden.dataset();
    let step: Vec<usize> = (0..8).collect();
    for device in devices() {
        let run_with = |tokens: usize, in_order: bool| {
            let setup = Setup {
                lora: true,
                quantize: false,
                dropout: 0.0,
                tokens,
                act: DType::F32,
                optimizer: Optimizer::default(),
            };
            let micro = pack(&data, &step, &layout(tokens), in_order).unwrap();
            let n = micro.len();
            (n, run(&mut setup.trainer(&device), &[micro], |_| 0.0).0[0])
        };
        // All in one micro-batch; packed into several; one sequence each.
        let (one, large) = run_with(160, true);
        assert_eq!(one, 1);
        for (tokens, in_order) in [(48, true), (32, false), (17, true)] {
            let (n, small) = run_with(tokens, in_order);
            assert!(n > 1);
            assert_eq!((small.tokens, small.trained), (large.tokens, large.trained));
            for (a, b) in [(small.loss, large.loss), (small.grad_norm, large.grad_norm)] {
                // The same sums in another order.
                assert!(((a - b) / b).abs() < 2e-6, "{}: {n} micro-batches give {a}, one gives {b}", device.name);
            }
        }
    }
}

#[test]
fn the_same_run_gives_the_same_bits() {
    let golden = Golden::open(path("golden/parity_lora.safetensors"));
    let data = golden.dataset();
    let steps: Vec<_> =
        (0..3).map(|i| pack(&data, &[4 * i, 4 * i + 1, 4 * i + 2], &layout(40), false).unwrap()).collect();
    for device in devices() {
        let setup = Setup {
            lora: true,
            quantize: true,
            dropout: 0.1,
            tokens: 40,
            act: DType::F32,
            optimizer: Optimizer::default(),
        };
        let once = run(&mut setup.trainer(&device), &steps, |_| 1e-2);
        let twice = run(&mut setup.trainer(&device), &steps, |_| 1e-2);
        assert_eq!(bits(&once.1), bits(&twice.1), "{}", device.name);
        assert_eq!(once.0, twice.0);
        // The control: without dropout it is another run.
        let other = Setup { dropout: 0.0, ..setup };
        assert_ne!(bits(&once.1), bits(&run(&mut other.trainer(&device), &steps, |_| 1e-2).1));
    }
}

fn bits(trained: &Trained) -> Vec<u32> {
    trained.iter().flat_map(|t| t.1.data.iter().map(|x| x.to_bits())).collect()
}

#[test]
fn a_step_that_is_not_finite_is_skipped() {
    let golden = Golden::open(path("golden/parity_lora.safetensors"));
    let data = golden.dataset();
    let micro = pack(&data, &[0, 1], &layout(48), true).unwrap();
    for device in devices() {
        let setup = Setup {
            lora: true,
            quantize: false,
            dropout: 0.0,
            tokens: 48,
            act: DType::F32,
            optimizer: Optimizer::default(),
        };
        let mut trainer = setup.trainer(&device);
        let weight = trainer.weights().iter().find(|w| w.name == "model.norm.weight").unwrap().val;
        let before = trainer.trained().unwrap();
        let good = trainer.exec.download(weight).unwrap();
        trainer.exec.upload(weight, &[0xff; 4]).unwrap();
        assert!(!trainer.step(&micro, 1e-2).unwrap().grad_norm.is_finite());
        assert_eq!(bits(&before), bits(&trainer.trained().unwrap()), "{}: trained on a NaN", device.name);
        // And nothing of it is left behind.
        trainer.exec.upload(weight, &good).unwrap();
        assert!(trainer.step(&micro, 1e-2).unwrap().grad_norm.is_finite());
        assert_ne!(bits(&before), bits(&trainer.trained().unwrap()));
    }
}
