//! LoRA+: runs equal those of PEFT's optimizer, with every rule a run repeats to the bit, and without it nothing changes.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::devices::{Device, devices};
use common::families2::Case;
use common::golden::Golden;
use trimtab::data::pack::pack;
use trimtab::graph::{Def, LeafKind, Val};
use trimtab::memory::{Request, Toggle};
use trimtab::peft;
use trimtab::session::{Options, Planned, Session};
use trimtab::train::loraplus::LoraPlus;
use trimtab::train::optimizer::{Bits, Optimizer, Rule};

/// (case, rate, LoRA+, weight decay, bounds). The bounds are ten times how far the reference's float32 run is from its float64
/// run, as generate_loraplus.py prints it: the largest difference of a parameter, and that of a loss or norm, of itself.
const RUNS: [(&str, f64, LoraPlus, f64, [f64; 2]); 2] = [
    ("llama-loraplus", 1e-3, LoraPlus { ratio: 16.0, embedding: 0.2 }, 0.1, [3.2e-5, 6.3e-4]),
    ("bert-dora-bias-lora_only", 2e-4, LoraPlus { ratio: 8.0, embedding: 1e-6 / 2e-4 }, 0.2, [7.7e-6, 3.7e-6]),
];

fn session(device: &Device, case: &str, optimizer: Optimizer, paged: Toggle) -> Session {
    let folder = common::root("tests/fixtures/families2").join(case);
    let Case { base, method, task, .. } = Case::open(&folder).unwrap();
    let memory = Request { page_optimizer: paged, ..Request::default() };
    let options = Options { max_seq_len: 32, micro_tokens: 128, optimizer, memory, ..Options::default() };
    let planned = Planned::of(&Arc::new(base), vec![method], &*task, options, device.open()).unwrap();
    let adapter = peft::open(&folder.join("adapter")).unwrap().tensors;
    planned.start(Some(&adapter), &mut |_, _| Ok(())).unwrap()
}

/// Losses and norms of steps over all rows of a case, and what was trained.
struct Ran {
    losses: Vec<f32>,
    norms: Vec<f32>,
    trained: BTreeMap<String, Vec<f32>>,
}

fn run(device: &Device, case: &str, optimizer: Optimizer, lr: f64, steps: usize) -> Ran {
    ran(session(device, case, optimizer, Toggle::Off), case, lr, steps)
}

fn ran(mut session: Session, case: &str, lr: f64, steps: usize) -> Ran {
    let data = Case::open(&common::root("tests/fixtures/families2").join(case)).unwrap().data;
    let all: Vec<usize> = (0..data.len()).collect();
    let micro = pack(&data, &all, session.layout().unwrap(), true).unwrap();
    let reports: Vec<_> = (0..steps).map(|_| session.step(&micro, lr).unwrap()).collect();
    let trained = session.trainer.trained().unwrap().into_iter().map(|(name, t)| (name, t.data)).collect();
    Ran {
        losses: reports.iter().map(|r| r.loss).collect(),
        norms: reports.iter().map(|r| r.grad_norm).collect(),
        trained,
    }
}

/// What differs from the golden run; None: nothing.
fn wrong(golden: &Golden, case: &str, ran: &Ran, [bound, relative]: [f64; 2]) -> Option<String> {
    for (what, got) in [("loss", &ran.losses), ("grad_norm", &ran.norms)] {
        let want = golden.f32(&format!("{case}.{what}"));
        assert_eq!(got.len(), want.len());
        let far = |(g, w): (&f32, &f32)| g.is_nan() || f64::from((g - w) / w).abs() >= relative;
        if let Some(i) = got.iter().zip(&want).position(far) {
            return Some(format!("{what} of step {i}: {}, expected {}", got[i], want[i]));
        }
    }
    let prefix = format!("{case}.param.");
    let names = golden.names();
    let keys: BTreeSet<&str> = names.iter().filter_map(|name| name.strip_prefix(&prefix)).collect();
    assert_eq!(keys, ran.trained.keys().map(String::as_str).collect());
    keys.iter().find_map(|key| {
        let want = golden.f32(&format!("{prefix}{key}"));
        let off = ran.trained[*key].iter().zip(&want).map(|(g, w)| (g - w).abs() as f64).fold(0.0, f64::max);
        // NaN is not below it either.
        let near = off < bound && ran.trained[*key].iter().all(|x| x.is_finite());
        (!near).then(|| format!("{key} is off by {off:.1e}, allowed {bound:.1e}"))
    })
}

fn optimizer(rule: Rule, loraplus: LoraPlus, weight_decay: f64) -> Optimizer {
    Optimizer { weight_decay, loraplus: Some(loraplus), ..rule.into() }
}

#[test]
fn runs_equal_pefts() {
    let golden = Golden::open(common::root("tests/golden/loraplus.safetensors"));
    for device in devices() {
        for (case, lr, plus, decay, bound) in RUNS {
            let ran = run(&device, case, optimizer(Rule::ADAMW, plus, decay), lr, 12);
            if let Some(what) = wrong(&golden, case, &ran, bound) {
                panic!("{case} on {}: {what}", device.name);
            }
        }
    }
}

/// The comparison sees each rate and the decay.
#[test]
fn control_other_constants_are_seen() {
    let golden = Golden::open(common::root("tests/golden/loraplus.safetensors"));
    for (case, lr, plus, decay, bound) in RUNS {
        let embedding = LoraPlus { embedding: 1.01 * plus.embedding, ..plus };
        let others = [
            (LoraPlus { ratio: 1.01 * plus.ratio, ..plus }, decay, true),
            (plus, 1.01 * decay, true),
            (embedding, decay, case.starts_with("llama")),
        ];
        for (plus, decay, differs) in others {
            let ran = run(&Device::cpu(), case, optimizer(Rule::ADAMW, plus, decay), lr, 12);
            assert_eq!(wrong(&golden, case, &ran, bound).is_some(), differs, "{case} with {plus:?} and {decay}");
        }
    }
}

/// Every rule with a rate that suits it.
const RULES: [(Rule, f64); 6] = [
    (Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, bits: Bits::B8 }, 1e-3),
    (Rule::LION, 2e-4),
    (Rule::Lion { beta1: 0.9, beta2: 0.99, bits: Bits::B8 }, 2e-4),
    (Rule::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false }, 1e-2),
    (Rule::Sgd { momentum: 0.5, dampening: 0.0, nesterov: false }, 1e-2),
    (Rule::ADAFACTOR, 1e-3),
];

#[test]
fn every_rule_has_it() {
    let (case, bits) =
        ("llama-loraplus", |ran: &Ran| -> Vec<u32> { ran.trained.values().flatten().map(|x| x.to_bits()).collect() });
    for device in devices() {
        for (rule, lr) in RULES {
            let with = |ratio: f64| run(&device, case, optimizer(rule, LoraPlus { ratio, embedding: 0.5 }, 0.0), lr, 6);
            let (once, twice, other) = (with(8.0), with(8.0), with(4.0));
            assert_eq!(bits(&once), bits(&twice), "{rule:?} on {}", device.name);
            assert_ne!(bits(&once), bits(&other), "{rule:?} on {}", device.name);
            // State off the device is the same state.
            let optimizer = optimizer(rule, LoraPlus { ratio: 8.0, embedding: 0.5 }, 0.0);
            let paged = ran(session(&device, case, optimizer, Toggle::On), case, lr, 6);
            assert_eq!(bits(&once), bits(&paged), "{rule:?} on {}", device.name);
            assert!(once.losses[5] < once.losses[0], "{rule:?} on {}: {:?}", device.name, once.losses);
        }
    }
}

/// One launch a group: A, B, and the embedding's factors. All state is in leaves.
#[test]
fn groups_are_few_launches() {
    let count = |loraplus: Option<LoraPlus>| {
        let session =
            session(&Device::cpu(), "llama-loraplus", Optimizer { loraplus, ..Optimizer::default() }, Toggle::Off);
        let graph = &session.trainer.exec.graph;
        let state = (0..graph.values.len() as u32).filter(|&v| graph.value(Val(v)).def == Def::Leaf(LeafKind::Optim));
        (graph.nodes.iter().filter(|n| n.op.name == "adamw").count(), state.count())
    };
    assert_eq!(count(None), (1, 2));
    assert_eq!(count(Some(RUNS[0].2)), (3, 6));
}
