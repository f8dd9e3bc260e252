//! A step whose numbers leave the finite ones: the op where that begins is named, on every device and under every choice
//! that saves memory, and looking for it leaves no trace.

mod common;

use std::sync::Arc;

use common::devices::{Device, devices};
use trimtab::base::Base;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::{Dataset, Example};
use trimtab::dtype::DType;
use trimtab::graph::{LeafKind, Val};
use trimtab::memory::{Level, Request, Toggle};
use trimtab::peft::{AdapterConfig, Targets, lora::Lora};
use trimtab::session::{Options, Planned, Session};
use trimtab::train::finite::{NotFinite, Pass};

/// LoRA with dropout on the small model, with this alpha.
fn start(device: &Device, alpha: f64, options: Options) -> Session {
    let base = Arc::new(Base::open(common::root("tests/fixtures/golden/base")).unwrap());
    let mut config = AdapterConfig::lora(4, alpha, Targets::AllLinear);
    config.dropout = 0.1;
    let options = Options { max_seq_len: 32, micro_tokens: 32, ..options };
    let planned = Planned::new(&base, Box::new(Lora { config }), options, device.open()).unwrap();
    planned.start(None, &mut |_, _| Ok(())).unwrap()
}

/// A step of two micro-batches.
fn step(session: &Session) -> Vec<MicroBatch> {
    let mut data = Dataset::default();
    for i in 0..4u32 {
        data.push(&Example::whole((0..14).map(|j| 5 + (i * 13 + j * 7) % 40).collect())).unwrap();
    }
    let micro = pack(&data, &[0, 1, 2, 3], session.layout().unwrap(), true).unwrap();
    assert_eq!(micro.len(), 2);
    micro
}

/// Changes the values of every weight whose name ends so. What they were; None if one is in the model's file and not on the
/// device.
fn change(session: &mut Session, end: &str, to: impl Fn(f32) -> f32) -> Option<Vec<(Val, Vec<u8>)>> {
    let weights: Vec<_> = session.trainer.weights().iter().filter(|w| w.name.ends_with(end)).map(|w| w.val).collect();
    assert!(!weights.is_empty(), "{end}");
    let exec = &mut session.trainer.exec;
    if weights.iter().any(|&val| exec.is_away(val)) {
        return None;
    }
    let changed = weights
        .into_iter()
        .map(|val| {
            let before = exec.download(val).unwrap();
            assert_eq!(exec.graph.ty(val).dtype, DType::F32);
            let new: Vec<f32> = bytemuck::pod_collect_to_vec::<u8, f32>(&before).into_iter().map(&to).collect();
            exec.upload(val, bytemuck::cast_slice(&new)).unwrap();
            (val, before)
        })
        .collect();
    Some(changed)
}

/// How a step is brought out of the finite numbers, and what is to be found.
struct Broken {
    /// The end of the weights' names.
    weight: &'static str,
    to: fn(f32) -> f32,
    alpha: f64,
    /// Op, end of the site, pass, and whether NaN.
    found: (&'static str, &'static str, Pass, bool),
    operand: Option<LeafKind>,
}

const FROZEN: Option<LeafKind> = Some(LeafKind::Frozen);

fn broken() -> Vec<Broken> {
    let row = |weight, to, alpha, found, operand| Broken { weight, to, alpha, found, operand };
    vec![
        row(
            "layers.1.mlp.up_proj.weight",
            |_| f32::NAN,
            8.0,
            ("linear", "layers.1.mlp.up_proj", Pass::Forward, true),
            FROZEN,
        ),
        row(
            "layers.0.input_layernorm.weight",
            |_| f32::NAN,
            8.0,
            ("rms_norm", "layers.0.input_layernorm", Pass::Forward, true),
            FROZEN,
        ),
        // Finite itself: its products are not.
        row("model.norm.weight", |_| 3e38, 8.0, ("rms_norm", "model.norm", Pass::Forward, false), None),
        row(
            "layers.1.mlp.up_proj.lora_A.weight",
            |_| f32::INFINITY,
            8.0,
            ("linear", "layers.1.mlp.up_proj", Pass::Forward, true),
            Some(LeafKind::Param),
        ),
        // B is zero, so the forward pass is that of the base; B's gradient is that of the output times alpha / rank times A's
        // part.
        row("model.norm.weight", |_| 1e20, 1e30, ("", "layers.1.mlp.down_proj", Pass::Backward, false), None),
        row(
            "layers.1.mlp.down_proj.lora_A.weight",
            |x| x * 1e12,
            1e12,
            ("sum_squares", "optimizer", Pass::Update, false),
            None,
        ),
    ]
}

fn matches(row: &Broken, found: &NotFinite) -> bool {
    let (op, site, pass, nan) = row.found;
    let site = found.site.ends_with(site);
    let operand = found.operand.as_ref().map(|o| o.1) == row.operand;
    (op.is_empty() || found.op.starts_with(op)) && site && found.pass == pass && found.value.is_nan() == nan && operand
}

fn choices() -> [Options; 4] {
    let plain = Options::default();
    let saving = |memory| Options { memory, ..plain.clone() };
    [
        plain.clone(),
        saving(Request { recompute: Some(Level::All), stream: Toggle::On, ..Request::default() }),
        saving(Request { offload: Toggle::On, page_optimizer: Toggle::On, ..Request::default() }),
        Options { evaluate: true, memory: Request { stream: Toggle::On, ..Request::default() }, ..plain.clone() },
    ]
}

#[test]
fn the_first_op_that_is_not_finite_is_named() {
    for device in devices() {
        for (c, options) in choices().into_iter().enumerate() {
            let mut rows = 0;
            for (i, row) in broken().iter().enumerate() {
                let mut session = start(&device, row.alpha, options.clone());
                let micro = step(&session);
                let Some(before) = change(&mut session, row.weight, row.to) else { continue };
                rows += 1;
                let adapter = session.adapter().unwrap();
                assert!(!session.step(&micro, 1e-3).unwrap().is_finite(), "{}: {i}", device.name);
                let memory = session.trainer.exec.backend.memory();
                let found = session.first_not_finite(&micro).unwrap().unwrap();
                assert!(matches(row, &found), "{} {c} {i}: {found:?}, expected {:?}", device.name, row.found);
                assert_eq!(found.micro_batch, if found.pass == Pass::Update { 1 } else { 0 });
                assert!(found.to_string().contains(&found.site) && !found.hint().is_empty());
                assert_eq!(session.trainer.exec.backend.memory(), memory, "{} {c} {i}", device.name);
                assert_eq!(session.adapter().unwrap(), adapter, "{} {c} {i}", device.name);
                // The control: with the weights as they were, all is finite, and no other row's place is found.
                before.into_iter().for_each(|(val, bytes)| session.trainer.exec.upload(val, &bytes).unwrap());
                if row.alpha == 8.0 {
                    assert_eq!(session.first_not_finite(&micro).unwrap(), None, "{} {c} {i}", device.name);
                }
                assert_eq!(broken().iter().filter(|other| matches(other, &found)).count(), 1, "{i}");
            }
            assert!(rows >= 5, "{rows} rows with choice {c}");
        }
    }
}

/// The step after it is that of a session which never looked: dropout, sums of gradients and optimizer state included.
#[test]
fn looking_leaves_no_trace() {
    for device in devices() {
        for options in choices() {
            let (mut one, mut other) = (start(&device, 8.0, options.clone()), start(&device, 8.0, options));
            let micro = step(&one);
            for _ in 0..3 {
                let reports = [&mut one, &mut other].map(|s| s.step(&micro, 1e-2).unwrap());
                assert_eq!(reports[0], reports[1], "{}", device.name);
                assert_eq!(one.first_not_finite(&micro).unwrap(), None, "{}", device.name);
            }
            assert_eq!(one.state().unwrap(), other.state().unwrap(), "{}", device.name);
        }
    }
}

/// Devices that keep activations in f16: a card that has no bf16, and wgpu.
fn narrow() -> impl Iterator<Item = (Device, Options)> {
    let devices = [Device::ptx(75), Device::wgpu()].into_iter().flatten();
    devices.map(|device| (device, Options { dtype: DType::F16, ..Options::default() }))
}

/// Gradients that reach 100,000 or so: f16 ends at 65504.
fn steep(session: &mut Session) {
    change(session, "model.norm.weight", |_| 3000.0).unwrap();
}

fn factor(session: &Session) -> f32 {
    session.trainer.loss_scale().unwrap().factor()
}

/// The scale falls until gradients fit, and is part of the state: a session that goes on from it comes to the same bits.
#[test]
fn steps_that_overflow_f16_lower_the_loss_scale() {
    narrow().for_each(|(device, options)| overflows(device, options));
}

fn overflows(device: Device, options: Options) {
    let mut whole = start(&device, 8.0, options.clone());
    let micro = step(&whole);
    steep(&mut whole);
    let untouched = whole.adapter().unwrap();
    let first = whole.step(&micro, 1e-3).unwrap();
    assert!(first.loss.is_finite() && !first.grad_norm.is_finite(), "{first:?}");
    assert_eq!((factor(&whole), whole.adapter().unwrap() == untouched), (512.0, true));
    // Looked for at the scale of that step, not at that of the next.
    let found = whole.first_not_finite(&micro).unwrap().unwrap();
    assert_eq!((found.pass, found.dtype), (Pass::Backward, DType::F16), "{found:?}");
    assert!(found.hint().contains("65504"), "{}", found.hint());
    whole.step(&micro, 1e-3).unwrap();
    assert_eq!(factor(&whole), 256.0);

    let state = whole.state().unwrap();
    let rest = whole.step(&micro, 1e-3).unwrap();
    assert!(rest.is_finite() && factor(&whole) == 256.0 && whole.adapter().unwrap() != untouched, "{rest:?}");
    let mut resumed = start(&device, 8.0, options.clone());
    steep(&mut resumed);
    resumed.set_state(&state).unwrap();
    assert_eq!(resumed.step(&micro, 1e-3).unwrap(), rest);
    assert_eq!(resumed.state().unwrap(), whole.state().unwrap());
    // The control: without the state's scale it overflows again. A state of f32, which has none, is one too.
    let mut other = start(&device, 8.0, options);
    steep(&mut other);
    let wide = start(&Device::cpu(), 8.0, Options::default()).state().unwrap();
    other.set_state(&wide).unwrap();
    assert!(factor(&other) == 1024.0 && !other.step(&micro, 1e-3).unwrap().is_finite());
}

/// Where activations are not f16 there is no scale, whatever dtype was asked for, and nothing of it in the state.
#[test]
fn there_is_a_loss_scale_with_f16_only() {
    for device in devices() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let f16 = dtype != DType::F32 && device.open().caps().compute_dtype == Some(DType::F16);
            let mut session = start(&device, 8.0, Options { dtype, ..Options::default() });
            let (state, key) = (session.state().unwrap(), b"loss_scale");
            let has = state.windows(key.len()).any(|w| w == key);
            assert_eq!((session.trainer.loss_scale().is_some(), has), (f16, f16), "{} {dtype}", device.name);
        }
    }
}

/// Of numbers that f16 cannot hold on the way forward, the hint says so.
#[test]
fn an_overflow_of_f16_on_the_way_forward_is_named() {
    for (device, options) in narrow() {
        let mut session = start(&device, 8.0, options);
        let micro = step(&session);
        change(&mut session, "model.norm.weight", |_| 60000.0).unwrap();
        session.step(&micro, 1e-3).unwrap();
        let found = session.first_not_finite(&micro).unwrap().unwrap();
        assert_eq!((found.op, found.site.as_str(), found.pass), ("rms_norm", "model.norm", Pass::Forward), "{found:?}");
        assert!(found.value.is_infinite() && found.hint().contains("65504"), "{found:?}");
    }
}
