//! The backend's verbs, called directly on a card, in a process of their own: the loader's path that has the driver must be
//! there when a process begins.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use trimtab::Error;
use trimtab::backend::cuda::{Cuda, caps};
use trimtab::backend::{Backend, Caps, Launch, Slice};
use trimtab::base::Base;
use trimtab::bench::ceiling::products;
use trimtab::bench::operands::{decode, operands};
use trimtab::bench::stats::Patience;
use trimtab::bench::truth::allowed;
use trimtab::bench::watched::Run;
use trimtab::data::pack::pack_sized;
use trimtab::data::{Dataset, Example};
use trimtab::dtype::{DType, Ty};
use trimtab::generate::sample::Sampling;
use trimtab::generate::{Ask, Room};
use trimtab::ops;
use trimtab::peft::Method;
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::lora::Lora;
use trimtab::session::{Options, Planned};
use trimtab::tasks::{self, Setup};

use crate::common;
use crate::common::card::{Card, Ran};
use crate::common::devices::Device;

/// The folder of the driver, for the test below; without it, that one has nothing to do.
const CHILD: &str = "TRIMTAB_DRIVER_CHILD";
const SAYS: &str = "on the card: ";

fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes, {:016x}", bytes.len(), hasher.finish())
}

/// What two steps of two micro-batches each, an evaluation and a text come to: bits.
fn session(backend: Box<dyn Backend>, dtype: DType) -> Vec<String> {
    let base = Arc::new(Base::open(common::root("tests/fixtures/golden/base")).unwrap());
    let model = base.model(64).unwrap();
    let (config, facts) = (&base.config, model.facts());
    let def = tasks::TASKS.iter().find(|t| t.name == "causal-lm").unwrap();
    let setup = Setup { config, facts, qa_padding: false, qa_token_types: true, stride: 0, mask_share: 0.15 };
    let task = (def.make)(&setup).unwrap();
    let mut config = AdapterConfig::lora(3, 6.0, Targets::AllLinear);
    config.dropout = 0.1;
    let method: Box<dyn Method> = Box::new(Lora { config });
    let options = Options {
        evaluate: true,
        generate: Some(Room { tokens: 16, source: 16, chunk: 4 }),
        max_seq_len: 16,
        micro_tokens: 16,
        micro_smaller: vec![8],
        dtype,
        ..Options::default()
    };
    let planned = Planned::of(&base, vec![method], &*task, options, backend).unwrap();
    let mut session = planned.start(None, &mut |_, _| Ok(())).unwrap();
    let mut data = Dataset::default();
    for i in 0..6i32 {
        let ids: Vec<i32> = (0..[10, 7, 5][i as usize % 3]).map(|j| 5 + (i * 13 + j * 7) % 40).collect();
        data.push(&Example::labelled(ids.clone(), ids)).unwrap();
    }
    let mut says = Vec::new();
    for first in [0, 3] {
        let micro = pack_sized(&data, &[first, first + 1, first + 2], session.layouts(), true).unwrap();
        assert!(micro.len() > 1);
        let report = session.step(&micro, 1e-3).unwrap();
        says.push(format!("loss {:08x}, norm {:08x}", report.loss.to_bits(), report.grad_norm.to_bits()));
        let evaluated = session.eval(&micro[0]).unwrap();
        says.push(format!("evaluated {evaluated:?}"));
    }
    says.push(format!("state of {}", digest(&session.state().unwrap())));
    let ask = Ask { max_tokens: 6, sampling: Sampling::default(), stop: &[] };
    says.push(format!("{:?}", session.generate(&[5, 9, 14, 8, 30, 21], &ask, &mut |_| Ok(true)).unwrap()));
    says
}

/// Bytes that differ from place to place.
fn pattern(n: usize, seed: u32) -> Vec<u8> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// Copies from staging memory, which is filled anew once it is settled.
fn staged(card: &mut Cuda) {
    let bytes = 8192;
    let (buffer, memory) = (card.alloc(2 * bytes as u64).unwrap(), card.staging(bytes as u64).unwrap().unwrap());
    let at = |half: u64| Slice { buffer, offset: half * bytes as u64, bytes: bytes as u64 };
    for half in 0..2 {
        let point = card.point().unwrap();
        card.settle(memory).unwrap();
        // SAFETY: memory of this size, which the card does not read any more.
        let whole = unsafe { std::slice::from_raw_parts_mut(memory.ptr, bytes) };
        whole.copy_from_slice(&pattern(bytes, half));
        card.upload_after(point, at(half.into()), whole).unwrap();
    }
    let mut read = vec![0; 2 * bytes];
    card.download(Slice { bytes: 2 * bytes as u64, ..at(0) }, &mut read).unwrap();
    assert!(read == [pattern(bytes, 0), pattern(bytes, 1)].concat());
    card.free(buffer);
}

/// Copies of one piece, of many, and at odd places; what is refused.
fn verbs(card: &mut Cuda) {
    let whole = |buffer, bytes| Slice { buffer, offset: 0, bytes };
    let free = card.free_memory().unwrap();
    let large = (9 << 20) + 12u64;
    let (a, b) = (card.alloc(large).unwrap(), card.alloc(large).unwrap());
    assert_eq!((card.memory(), card.allocated(a).unwrap()), (2 * large, large));
    assert_eq!(card.free_memory().unwrap(), free - 2 * large);
    let mut read = vec![1; large as usize];
    card.download(whole(a, large), &mut read).unwrap();
    assert!(read.iter().all(|&x| x == 0), "memory is not cleared");
    for (round, bytes) in [large, 1, 4 << 20, (4 << 20) + 1, large].into_iter().enumerate() {
        let (offset, bytes) = ((large - bytes).min(7), bytes as usize);
        let sent = pattern(bytes, round as u32);
        card.upload(Slice { buffer: a, offset, bytes: bytes as u64 }, &sent).unwrap();
        card.copy(whole(b, large), whole(a, large)).unwrap();
        card.download(Slice { buffer: b, offset, bytes: bytes as u64 }, &mut read[..bytes]).unwrap();
        assert!(read[..bytes] == sent, "{bytes} bytes at {offset}");
    }
    let outside = Slice { buffer: a, offset: 8, bytes: large };
    for refused in [
        card.upload(outside, &read),
        card.download(outside, &mut read.clone()),
        card.copy(whole(b, large), outside),
        card.upload(Slice { offset: u64::MAX, ..outside }, &[1]),
    ] {
        assert!(refused.unwrap_err().to_string().contains("is not within an allocation"));
    }
    card.free(a);
    card.free(a);
    assert!(card.download(whole(a, 4), &mut [0; 4]).is_err(), "freed memory is read");
    assert_eq!((card.memory(), card.allocated(b).unwrap()), (large, large));
    let empty = card.alloc(0).unwrap();
    card.upload(whole(empty, 0), &[]).unwrap();
    match card.alloc(1 << 40) {
        Err(Error::Memory { needed, available, .. }) => assert_eq!((needed, available), (1 << 40, free - large - 4)),
        other => panic!("{other:?}"),
    }
    card.free(b);
    card.free(empty);
    assert_eq!((card.memory(), card.free_memory()), (0, Some(free)));
}

/// Rows of the op table on a card, one that needs more shared memory than a kernel has unasked; recordings of nothing, and
/// forgotten ones.
fn kernels(card: &mut Cuda) {
    for name in ["add", "attention"] {
        let op = ops::table().find(|op| op.name == name).unwrap();
        let samples = (op.samples)();
        let sample = samples.iter().max_by_key(|s| s.ins[0].ty.shape.last().copied()).unwrap();
        let (stored, meant) = operands(op.name, sample).unwrap();
        let ins = sample.ins.iter().map(|i| i.ty.clone()).zip(stored.iter().map(Vec::as_slice)).collect();
        let outs = Run { op, attr: &sample.attr, ins, shared: &[] }.on(card).unwrap();
        let wants = (op.reference)(&sample.attr, &meant);
        let bounds = allowed(op, sample, &meant, &wants).unwrap();
        let tys: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
        for (o, ty) in op.types(&sample.attr, &tys).unwrap().iter().enumerate() {
            let got = decode(ty, &outs[o]);
            assert_eq!(got.len(), wants[o].data.len());
            let off = got.iter().zip(&wants[o].data).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
            assert!(off <= bounds[o], "{name}: output {o} is off by {off:e}, of {:e}", bounds[o]);
        }
    }
    let none: &[Launch] = &[];
    let recording = card.record(none).unwrap();
    card.replay(recording).unwrap();
    card.forget(recording);
    assert!(card.replay(recording).unwrap_err().to_string().contains("is not there"));
}

/// The maker's library multiplies as the engine does: what it is timed for is checked first.
fn library(card: &mut Cuda) {
    let patience = Patience { warm_up: Duration::ZERO, time: Duration::ZERO, least: 1, ..Patience::default() };
    for dtype in [DType::F32, DType::BF16] {
        let memory = card.memory();
        let (own, library) = products(card, 40, dtype, &patience).unwrap();
        assert!(own > 0.0 && library.is_some_and(|rate| rate > 0.0), "{dtype}: {own} {library:?}");
        assert_eq!(card.memory(), memory);
    }
}

#[test]
#[ignore = "needs a card; verbs_and_sessions_are_right_on_a_card runs it on one that is none"]
fn on_the_card() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    // Two cards in turn, each verb in its own card's context, and dropped by another thread.
    let (mut first, mut second) = (Cuda::new(Some(0)).unwrap(), Cuda::new(Some(1)).unwrap());
    assert!(Cuda::new(Some(2)).is_err());
    staged(&mut first);
    let bytes = 5 << 20;
    let (a, b) = (first.alloc(bytes).unwrap(), second.alloc(bytes).unwrap());
    let (here, there) = (Slice { buffer: a, offset: 0, bytes }, Slice { buffer: b, offset: 0, bytes });
    let (sent, mut got) = (pattern(bytes as usize, 7), vec![0; bytes as usize]);
    first.upload(here, &sent).unwrap();
    second.upload(there, &sent[1..]).unwrap();
    first.download(here, &mut got).unwrap();
    assert!(got == sent);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut got = vec![0; bytes as usize];
            second.download(there, &mut got).unwrap();
            assert!(got[..got.len() - 1] == pattern(bytes as usize, 7)[1..]);
            second.free(b);
            verbs(&mut second);
            kernels(&mut second);
        });
    });
    first.free(a);
    verbs(&mut first);
    kernels(&mut first);
    library(&mut first);
    drop(first);
    for dtype in [DType::F32, DType::BF16] {
        for line in session(Box::new(Cuda::new(None).unwrap()), dtype) {
            println!("{SAYS}{line}");
        }
    }
}

/// Runs the test above on a card that is none.
fn child(card: &Card, told: (&str, &str)) -> Ran {
    let this = std::env::current_exe().unwrap();
    let args = ["direct::on_the_card", "--exact", "--ignored", "--nocapture"];
    card.start(&this, &args, &[(CHILD, "1"), ("FAKECUDA_CARDS", "2"), told])
}

#[test]
fn verbs_and_sessions_are_right_on_a_card() {
    let Some(card) = Card::new("direct") else { return };
    let ran = child(&card, ("FAKECUDA_SCHEDULE", "3"));
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.report["calls"]["cuFuncSetAttribute"].as_u64() > Some(0), "{}", ran.report);
    let said: Vec<&str> = ran.out.lines().filter_map(|l| Some(l.split_once(SAYS)?.1)).collect();
    // The same card, as the driver tells of it: tiles and workspaces depend on it.
    let known = caps("a card".into(), 80);
    let max_flops = known.max_flops / 108 * 16;
    let like = Caps { multiprocessors: Some(16), memory: Some(2 << 30), max_flops, ..known };
    let interpreted = Device::ptx_of("sm_80", like).unwrap();
    let expected: Vec<String> =
        [DType::F32, DType::BF16].iter().flat_map(|&dtype| session(interpreted.open(), dtype)).collect();
    assert_eq!(said, expected);
    assert_eq!(said.len(), 12, "{said:?}");
}

/// A library that multiplies nothing, or another matrix, is no roof.
#[test]
fn a_library_that_is_wrong_is_found() {
    let Some(card) = Card::new("library") else { return };
    for call in ["cublasLtMatmul", "cublasLtMatmulDescSetAttribute"] {
        let ran = child(&card, ("FAKECUDA_SKIP", call));
        let found = "in f32 is not the engine's";
        assert!(ran.code == Some(101) && ran.err.contains(found), "{call}: {:?} {}", ran.code, ran.err);
    }
}

/// What a program that does not ask for shared memory, or is in another card's context, comes to: the checks do see it.
#[test]
fn calls_that_are_left_out_are_found() {
    let Some(card) = Card::new("left-out") else { return };
    for (call, said) in [
        ("cuFuncSetAttribute", "of which it was allowed 0"),
        ("cuCtxSetCurrent:3", "is not of the context"),
        ("cuEventSynchronize:1", "of pinned memory that a copy from the host"),
    ] {
        let ran = child(&card, ("FAKECUDA_SKIP", call));
        assert!(ran.code == Some(86) && ran.err.contains(said), "{call}: {:?} {}", ran.code, ran.err);
    }
}
