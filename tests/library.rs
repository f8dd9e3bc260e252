//! What a program that embeds the engine may hand it: numbers out of range, micro-batches made by hand, bytes that are cut.
//! Each is an error that names what is wrong, and takes nothing: no panic, and no weight that is not finite.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use common::devices::{Device, devices};
use trimtab::base::Base;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::{Dataset, Example, INPUT_IDS, LABELS};
use trimtab::dtype::DType;
use trimtab::generate::Room;
use trimtab::nn::inputs::Column;
use trimtab::peft::bottleneck::{Kind, Scaling};
use trimtab::peft::{self, AdapterConfig, Bottleneck, METHODS, Method, Settings, Targets, lora::Lora, prompt};
use trimtab::session::{Options, Planned, Session};
use trimtab::train::loraplus::LoraPlus;
use trimtab::train::optimizer::{Bits, Optimizer, Rule};
use trimtab::{Error, Result};

fn base() -> Arc<Base> {
    Arc::new(Base::open(common::root("tests/fixtures/golden/base")).unwrap())
}

fn lora() -> Box<dyn Method> {
    Box::new(Lora { config: AdapterConfig::lora(2, 4.0, Targets::AllLinear) })
}

fn options() -> Options {
    Options { evaluate: true, max_seq_len: 16, micro_tokens: 32, ..Options::default() }
}

fn started(device: &Device, method: Box<dyn Method>, options: Options) -> Result<Session> {
    Planned::new(&base(), method, options, device.open())?.start(None, &mut |_, _| Ok(()))
}

fn micro(session: &Session, ids: &[u32]) -> Result<Vec<MicroBatch>> {
    let mut data = Dataset::default();
    data.push(&Example::whole(ids.to_vec()))?;
    pack(&data, &[0], session.layout()?, true)
}

const IDS: [u32; 6] = [5, 9, 14, 8, 30, 21];

/// The error of `f`, which must be one and no panic, and say `part`.
fn refused<T>(what: &str, part: &str, f: impl FnOnce() -> Result<T>) {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Err(Error::Cancelled)) => panic!("{what}: cancelled"),
        Ok(Err(error)) => {
            let error = error.to_string();
            assert!(error.contains(part), "{what}: {error}, expected {part:?} in it");
        }
        Ok(Ok(_)) => panic!("{what}: allowed"),
        Err(_) => panic!("{what}: a panic"),
    }
}

#[test]
fn rates_of_a_step() {
    for device in devices() {
        let plus = Optimizer { loraplus: Some(LoraPlus { ratio: 16.0, embedding: 1.0 }), ..Optimizer::default() };
        let mut session = started(&device, lora(), Options { optimizer: plus, ..options() }).unwrap();
        let step = micro(&session, &IDS).unwrap();
        session.step(&step, 1e-3).unwrap();
        let before = session.state().unwrap();
        for lr in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-3, 1e39, f64::MAX, 1e38] {
            refused(&format!("lr {lr}"), "lr", || session.step(&step, lr));
        }
        refused("no micro-batches", "micro-batches", || session.step(&[], 1e-3));
        assert_eq!(session.state().unwrap(), before, "{}: something was taken", device.name);
        // The controls: the ends of what is allowed.
        for lr in [0.0, 1e-300, 1e-3] {
            session.step(&step, lr).unwrap();
        }
        assert_ne!(session.state().unwrap(), before);
    }
}

#[test]
fn sizes_and_formats_of_a_session() {
    let room = |tokens, source, chunk| Options { generate: Some(Room { tokens, source, chunk }), ..options() };
    const HUGE: [usize; 4] = [0, (1 << 23) + 1, u32::MAX as usize + 1, usize::MAX];
    let mut table: Vec<(&str, Options)> = Vec::new();
    for n in HUGE {
        table.push(("max_seq_len", Options { max_seq_len: n, ..options() }));
        table.push(("micro_tokens", Options { micro_tokens: n, ..options() }));
        table.push(("micro_targets", Options { micro_targets: Some(n), ..options() }));
        table.push(("micro_sequences", Options { micro_sequences: Some(n), ..options() }));
        table.push(("generate: tokens", room(n, 8, 8)));
    }
    table.push(("generate: source", room(8, usize::MAX, 8)));
    table.push(("generate: chunk", room(8, 8, usize::MAX)));
    for dtype in [DType::I32, DType::U32, DType::Nf4, DType::Nf4Dq] {
        table.push(("dtype", Options { dtype, ..options() }));
    }
    for dtype in [DType::I32, DType::U32] {
        table.push(("quantize", Options { quantize: Some(dtype), ..options() }));
    }
    for (name, options) in table {
        let what = format!("{name} of {options:?}");
        refused(&what, name, || Planned::new(&base(), lora(), options, Device::cpu().open()));
    }
    // The controls.
    for options in [
        options(),
        room(8, 0, 0),
        room(8, 8, 1),
        Options { micro_sequences: Some(1), micro_targets: Some(1), step_tokens: Some(0), ..options() },
        Options { max_seq_len: 1, micro_tokens: 1, ..options() },
        Options { quantize: Some(DType::Nf4Dq), dtype: DType::F16, ..options() },
    ] {
        started(&Device::cpu(), lora(), options.clone()).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    }
}

#[test]
fn constants_of_optimizers() {
    let adamw = |beta1, beta2, eps| Rule::AdamW { beta1, beta2, eps, bits: Bits::B32 };
    let lion = |beta1, beta2| Rule::Lion { beta1, beta2, bits: Bits::B8 };
    let sgd = |momentum, dampening| Rule::Sgd { momentum, dampening, nesterov: true };
    let adafactor = |decay_rate, eps, clip_threshold| Rule::Adafactor { decay_rate, eps, clip_threshold };
    let of = |rule: Rule| Optimizer::from(rule);
    let plus = |ratio, embedding| Optimizer { loraplus: Some(LoraPlus { ratio, embedding }), ..Optimizer::default() };
    let mut table: Vec<(&str, Optimizer)> = Vec::new();
    for x in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39] {
        table.push(("weight_decay", Optimizer { weight_decay: x, ..Optimizer::default() }));
        table.push(("max_grad_norm", Optimizer { max_grad_norm: x, ..Optimizer::default() }));
        table.push(("beta1", of(adamw(x, 0.9, 1e-8))));
        table.push(("beta2", of(adamw(0.9, x, 1e-8))));
        table.push(("eps", of(adamw(0.9, 0.9, x))));
        table.push(("beta1", of(lion(x, 0.9))));
        table.push(("beta2", of(lion(0.9, x))));
        table.push(("momentum", of(sgd(x, 0.0))));
        table.push(("dampening", of(sgd(0.9, x))));
        table.push(("decay_rate", of(adafactor(x, 1e-30, 1.0))));
        table.push(("eps", of(adafactor(-0.8, x, 1.0))));
        table.push(("clip_threshold", of(adafactor(-0.8, 1e-30, x))));
        table.push(("ratio", plus(x, 1e-6)));
        table.push(("embedding", plus(16.0, x)));
    }
    table.extend([
        ("weight_decay", Optimizer { weight_decay: -0.1, ..Optimizer::default() }),
        ("max_grad_norm", Optimizer { max_grad_norm: -1.0, ..Optimizer::default() }),
        ("beta1", of(adamw(1.0, 0.9, 1e-8))),
        ("beta2", of(adamw(0.9, -0.1, 1e-8))),
        ("eps", of(adamw(0.9, 0.9, 0.0))),
        // Zero as f32.
        ("eps", of(adamw(0.9, 0.9, 1e-50))),
        ("decay_rate", of(adafactor(0.8, 1e-30, 1.0))),
        ("ratio", plus(0.0, 1.0)),
    ]);
    for (name, optimizer) in table {
        let options = Options { optimizer, ..options() };
        refused(&format!("{optimizer:?}"), name, || Planned::new(&base(), lora(), options, Device::cpu().open()));
    }
    // The controls: the ends of what is allowed give finite weights.
    for optimizer in [
        Optimizer { weight_decay: 0.0, max_grad_norm: 0.0, ..Optimizer::default() },
        of(adamw(0.0, 0.0, 1e-30)),
        of(lion(0.0, 0.0)),
        of(sgd(0.0, 0.0)),
        of(adafactor(0.0, 1e-30, 1.0)),
        plus(1e-3, 0.0),
    ] {
        let mut session = started(&Device::cpu(), lora(), Options { optimizer, ..options() }).unwrap();
        let step = micro(&session, &IDS).unwrap();
        (0..3).for_each(|_| assert!(session.step(&step, 1e-3).unwrap().is_finite()));
        let trained = session.trainer.trained().unwrap();
        assert!(trained.iter().all(|(_, t)| t.data.iter().all(|x| x.is_finite())), "{optimizer:?}");
    }
}

/// A change of a micro-batch, and what its error says.
type Change = (&'static str, &'static str, fn(&mut MicroBatch));

fn ints<'a>(batch: &'a mut MicroBatch, name: &str) -> &'a mut Vec<i32> {
    match &mut batch.fields.iter_mut().find(|f| f.0 == name).unwrap().1 {
        Column::Ints(values) => values,
        Column::Floats(_) => panic!("{name} holds floats"),
    }
}

const CHANGES: [Change; 10] = [
    ("no fields", "no field", |b| b.fields.clear()),
    ("a field less", "no field labels", |b| b.fields.retain(|f| f.0 != LABELS)),
    ("too short", "31 whole numbers of input_ids", |b| ints(b, INPUT_IDS).truncate(31)),
    ("too long", "33 whole numbers of labels", |b| ints(b, LABELS).push(0)),
    ("empty", "0 whole numbers", |b| ints(b, "positions").clear()),
    ("floats", "32 floats of input_ids", |b| {
        b.fields.iter_mut().filter(|f| f.0 == INPUT_IDS).for_each(|f| f.1 = Column::Floats(vec![0.0; 32]));
    }),
    ("an id that the model has not", "numbers below", |b| ints(b, INPUT_IDS)[3] = i32::MAX),
    ("the first that it has not", "numbers below", |b| ints(b, INPUT_IDS)[0] = vocab() as i32),
    ("a label that it has not", "4000 in labels", |b| ints(b, LABELS)[1] = 4000),
    ("a position beyond the longest sequence", "16 in positions", |b| ints(b, "positions")[2] = 16),
];

fn vocab() -> usize {
    base().model(16).unwrap().facts().vocab
}

#[test]
fn micro_batches_made_by_hand() {
    for device in devices() {
        let mut session = started(&device, lora(), options()).unwrap();
        let good = micro(&session, &IDS).unwrap();
        let (before, loss) = (session.state().unwrap(), session.eval(&good[0]).unwrap());
        for (what, part, change) in CHANGES {
            let mut batch = good[0].clone();
            change(&mut batch);
            refused(what, part, || session.eval(&batch));
            refused(what, part, || session.first_not_finite(std::slice::from_ref(&batch)));
            refused(what, part, || session.step(&[good[0].clone(), batch], 1e-3));
        }
        // What is out of place but can be computed with is no panic either.
        for change in [
            (|b| ints(b, INPUT_IDS)[0] = -7) as fn(&mut MicroBatch),
            |b| ints(b, LABELS).fill(-100),
            |b| ints(b, "key_range").fill(i32::MAX),
            |b| ints(b, "key_range").fill(-1),
            |b| ints(b, "query_range").fill(i32::MIN),
            |b| b.placed.clear(),
            |b| b.placed.iter_mut().flatten().for_each(|p| (p.start, p.pad, p.lead) = (usize::MAX, 9, usize::MAX)),
            |b| (b.tokens, b.trained) = (0, 0),
        ] {
            let mut batch = good[0].clone();
            let has = catch_unwind(AssertUnwindSafe(|| change(&mut batch))).is_ok();
            if has {
                session.eval(&batch).unwrap();
                session.step(&[batch], 0.0).unwrap();
            }
        }
        let again = session.eval(&good[0]).unwrap();
        assert_eq!(again, loss, "{}", device.name);
        session.set_state(&before).unwrap();
        assert_eq!(session.state().unwrap(), before);
    }
    // Sequences that are longer than the session was planned for do not pass as shorter ones, though the micro-batch has
    // room; those of exactly its length do, and what methods put before them has places of its own.
    let long: Vec<u32> = (0..17).map(|i| 5 + i).collect();
    let mut session = started(&Device::cpu(), lora(), options()).unwrap();
    let step = micro(&session, &long).unwrap();
    refused("17 tokens", "16 in positions", || session.step(&step, 1e-3));
    for method in ["prompt", "prefix"] {
        let method = (peft::named(method).unwrap().new)(&settings()).unwrap();
        let mut session = started(&Device::cpu(), method, options()).unwrap();
        let step = micro(&session, &long[..16]).unwrap();
        session.step(&step, 1e-3).unwrap();
    }
}

fn settings() -> Settings {
    Settings {
        lora: AdapterConfig::lora(2, 4.0, Targets::AllLinear),
        targets: Targets::AllLinear,
        trainable_tokens: Some(vec![5, 9]),
        virtual_tokens: 4,
        prompt_start: prompt::Start::Random,
        seed: 1,
        prefix_projection: false,
        encoder_hidden: None,
        train: None,
        bottleneck: Bottleneck::new(Kind::Pfeiffer, Some(4.0), None, 0.0).unwrap(),
        encoder_decoder: false,
        task_type: Some("CAUSAL_LM".into()),
        heads: &[],
        base_model: None,
        facts: base().model(16).unwrap().facts().clone(),
    }
}

#[test]
fn settings_of_methods() {
    type Spoil = fn(&mut Settings);
    let bad: [(&str, &str, Spoil); 24] = [
        ("lora", "rank", |s| s.lora.rank = 0),
        ("lora", "rank", |s| s.lora.rank = usize::MAX),
        ("lora", "rank", |s| s.lora.rank_pattern = vec![("q_proj".into(), 0)]),
        ("lora", "alpha", |s| s.lora.alpha = f64::NAN),
        ("lora", "alpha", |s| s.lora.alpha = f64::INFINITY),
        ("lora", "alpha", |s| s.lora.alpha = 1e300),
        ("lora", "alpha", |s| s.lora.alpha_pattern = vec![("q_proj".into(), f64::NAN)]),
        ("lora", "dropout", |s| s.lora.dropout = f64::NAN),
        ("lora", "dropout", |s| s.lora.dropout = 1.0),
        ("lora", "dropout", |s| s.lora.dropout = -0.1),
        ("lora", "", |s| s.lora.targets = Targets::Regex("(".into())),
        ("lora", "targets", |s| s.lora.targets = Targets::List(Vec::new())),
        ("prompt", "virtual-tokens", |s| s.virtual_tokens = 0),
        ("prompt", "virtual-tokens", |s| s.virtual_tokens = usize::MAX),
        ("prefix", "virtual-tokens", |s| s.virtual_tokens = 0),
        ("prefix", "virtual-tokens", |s| s.virtual_tokens = usize::MAX),
        ("prefix", "encoder_hidden", |s| (s.prefix_projection, s.encoder_hidden) = (true, Some(0))),
        ("adapter", "dropout", |s| s.bottleneck.dropout = f32::NAN),
        ("adapter", "dropout", |s| s.bottleneck.dropout = 1.5),
        ("adapter", "scaling", |s| s.bottleneck.scaling = Scaling::Fixed(f32::NAN)),
        ("trainable-tokens", "", |s| s.trainable_tokens = None),
        ("trainable-tokens", "none", |s| s.trainable_tokens = Some(Vec::new())),
        ("trainable-tokens", "more than once", |s| s.trainable_tokens = Some(vec![5, 9, 5])),
        ("trainable-tokens", "", |s| s.trainable_tokens = Some(vec![5, usize::MAX])),
    ];
    let plan = |name: &str, settings: &Settings| {
        let method = (peft::named(name)?.new)(settings)?;
        started(&Device::cpu(), method, options())
    };
    for (i, (name, part, spoil)) in bad.into_iter().enumerate() {
        let mut spoilt = settings();
        spoil(&mut spoilt);
        refused(&format!("{i}: {name}"), part, || plan(name, &spoilt));
    }
    for reduction in [f64::NAN, 0.0, -1.0] {
        refused(&format!("reduction {reduction}"), "", || Bottleneck::new(Kind::Pfeiffer, Some(reduction), None, 0.0));
    }
    // The control: every method, with settings that are none of these.
    for def in METHODS {
        if def.name != "bitfit" {
            plan(def.name, &settings()).unwrap_or_else(|e| panic!("{}: {e}", def.name));
        }
    }
}

/// Bytes of an adapter that are cut, or whose header lies, anywhere.
#[test]
fn damaged_adapters() {
    let mut session = started(&Device::cpu(), lora(), options()).unwrap();
    let (adapter, state) = (session.adapter().unwrap(), session.state().unwrap());
    for cut in (0..adapter.len()).step_by(97).chain([adapter.len() - 1]) {
        refused(&format!("{cut} bytes"), "adapter", || session.set_adapter(&adapter[..cut]));
    }
    for cut in (0..state.len()).step_by(997).chain([state.len() - 1]) {
        refused(&format!("{cut} bytes of state"), "state", || session.set_state(&state[..cut]));
    }
    // Numbers that are not finite are no adapter and no state.
    let (mut spoilt, end) = (adapter.clone(), adapter.len());
    spoilt[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused("NaN", "NaN", || session.set_adapter(&spoilt));
    let longer = [&adapter[..], &[0; 4]].concat();
    refused("longer", "adapter", || session.set_adapter(&longer));
    assert_eq!((session.adapter().unwrap(), session.state().unwrap()), (adapter.clone(), state.clone()));
    session.set_adapter(&adapter).unwrap();
    session.set_state(&state).unwrap();
}
