//! The engine as a program that embeds it uses it: train, evaluate, generate on one session's weights, keep its state
//! elsewhere, and stop when asked to.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trimtab::Error;
use trimtab::backend::Backend;
use trimtab::backend::cpu::Cpu;
use trimtab::base::Base;
use trimtab::data::pack::{MicroBatch, pack_sized};
use trimtab::data::{DECODER_INPUT_IDS, Dataset, Example, INPUT_IDS, LABELS};
use trimtab::dtype::DType;
use trimtab::generate::sample::Sampling;
use trimtab::generate::{Ask, Room};
use trimtab::memory::{Level, Request, Toggle};
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::{self, Method, full::Full, lora::Lora};
use trimtab::session::{Options, Planned, Session};
use trimtab::tasks::{self, Setup, Task};
use trimtab::train::optimizer::{Bits, Optimizer, Rule};

/// A model with its task.
struct Subject {
    base: Arc<Base>,
    task: Box<dyn Task>,
    method: fn() -> Box<dyn Method>,
}

fn lora(dora: bool) -> Box<dyn Method> {
    let mut config = AdapterConfig::lora(3, 6.0, Targets::AllLinear);
    (config.dora, config.dropout) = (dora, 0.1);
    Box::new(Lora { config })
}

impl Subject {
    fn new(folder: &str, task: &str, method: fn() -> Box<dyn Method>) -> Subject {
        let base = Base::open(common::root(&format!("tests/fixtures/{folder}"))).unwrap();
        let model = base.model(64).unwrap();
        let def = tasks::TASKS.iter().find(|t| t.name == task).unwrap();
        let (config, facts) = (&base.config, model.facts());
        let task =
            (def.make)(&Setup { config, facts, qa_padding: false, qa_token_types: true, stride: 0, mask_share: 0.15 })
                .unwrap();
        Subject { base: Arc::new(base), task, method }
    }

    fn all() -> Vec<Subject> {
        vec![
            Subject::new("golden/base", "causal-lm", || lora(false)),
            Subject::new("golden/base", "causal-lm", || lora(true)),
            Subject::new("families2/gpt2-full/model", "causal-lm", || Box::new(Full)),
            Subject::new("families2/t5-relu-lora/model", "seq2seq", || lora(false)),
        ]
    }

    fn planned(&self, options: Options) -> Planned {
        let backend: Box<dyn Backend> = Box::new(Cpu::new());
        Planned::of(&self.base, vec![(self.method)()], &*self.task, options, backend).unwrap()
    }

    fn start(&self, options: Options) -> Session {
        self.planned(options).start(None, &mut |_, _| Ok(())).unwrap()
    }

    /// Steps of two micro-batches.
    fn steps(&self, session: &Session) -> Vec<Vec<MicroBatch>> {
        let mut data = Dataset::default();
        for i in 0..12i32 {
            let n = [20, 7, 16, 11][i as usize % 4];
            let ids: Vec<i32> = (0..n).map(|j| 5 + (i * 13 + j * 7) % 40).collect();
            let mut example = Example::labelled(ids.clone(), ids.clone());
            if self.task.def().name == "seq2seq" {
                *example.ints_mut(DECODER_INPUT_IDS) = [0].into_iter().chain(ids).take(n as usize).collect();
            }
            data.push(&example).unwrap();
        }
        let step = |first: usize| pack_sized(&data, &[first, first + 1, first + 2], session.layouts(), true).unwrap();
        let steps: Vec<_> = [0, 3, 6, 9].map(step).to_vec();
        assert!(steps.iter().all(|s| s.len() > 1));
        assert!([INPUT_IDS, LABELS].iter().all(|name| data.total(name) > 0));
        steps
    }
}

fn options() -> Options {
    Options {
        evaluate: true,
        generate: Some(Room { tokens: 24, source: 24, chunk: 4 }),
        max_seq_len: 32,
        micro_tokens: 32,
        micro_smaller: vec![16],
        ..Options::default()
    }
}

fn inference() -> Options {
    Options { train: false, ..options() }
}

const PROMPT: [u32; 6] = [5, 9, 14, 8, 30, 21];

fn text(session: &mut Session) -> Vec<u32> {
    let ask = Ask { max_tokens: 10, sampling: Sampling::default(), stop: &[] };
    session.generate(&PROMPT, &ask, &mut |_| Ok(true)).unwrap()
}

fn train(session: &mut Session, steps: &[Vec<MicroBatch>]) -> Vec<(f32, f32)> {
    steps.iter().map(|step| session.step(step, 2e-2).map(|r| (r.loss, r.grad_norm)).unwrap()).collect()
}

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&dir).ok();
    dir
}

#[test]
fn a_session_goes_from_thread_to_thread() {
    fn send<T: Send>() {}
    send::<Session>();
    send::<Planned>();
}

/// What a session finds on its own weights is what a session finds that has them from its adapter, before and after
/// training; and evaluation and generation between steps change no bit of training.
#[test]
fn evaluation_and_generation_see_the_weights_as_they_are() {
    for (i, subject) in Subject::all().iter().enumerate() {
        let mut session = subject.start(options());
        let steps = subject.steps(&session);
        let only = Options { evaluate: false, generate: None, ..options() };
        let mut plain = subject.start(only);
        let mut losses = Vec::new();
        for step in &steps {
            let eval = session.eval(&step[0]).unwrap();
            let mut other = subject.start(inference());
            other.set_adapter(&session.adapter().unwrap()).unwrap();
            let again = other.eval(&step[0]).unwrap();
            assert_eq!((eval.units, &eval.outputs), (step[0].trained, &again.outputs), "{i}");
            // An inference session may compute what depends on weights once, in another order (DoRA's norms).
            assert!((eval.loss - again.loss).abs() <= 1e-5 * eval.loss, "{i}: {} and {}", eval.loss, again.loss);
            assert_eq!(text(&mut session), text(&mut other), "{i}");
            losses.push(eval.loss);
            assert_eq!(
                train(&mut session, std::slice::from_ref(step)),
                train(&mut plain, std::slice::from_ref(step)),
                "{i}"
            );
        }
        assert_eq!(session.adapter().unwrap(), plain.adapter().unwrap(), "{i}");
        // The control: training moves them.
        assert_ne!(session.eval(&steps[0][0]).unwrap().loss, losses[0], "{i}");
    }
}

/// The whole of the account is allocated, phases that evaluate and generate included.
#[test]
fn the_account_counts_every_phase() {
    for subject in Subject::all() {
        for options in [options(), inference()] {
            let planned = subject.planned(options.clone());
            let total = planned.account().total;
            let session = planned.start(None, &mut |_, _| Ok(())).unwrap();
            assert_eq!(session.trainer.exec.backend.memory(), total);
            // The control: a longer text needs a larger cache.
            let room = Room { tokens: 48, ..options.generate.unwrap() };
            assert!(subject.planned(Options { generate: Some(room), ..options }).account().total > total);
        }
    }
}

/// Smaller micro-batches have the memory of the largest, and whatever is chosen to save memory, their bits are the same; a
/// step of them is that of larger ones, but for rounding.
#[test]
fn smaller_micro_batches_are_in_the_plan_of_the_largest() {
    let requests = [
        Request::default(),
        Request { recompute: Some(Level::All), ..Request::default() },
        Request { stream: Toggle::On, page_optimizer: Toggle::On, offload: Toggle::On, ..Request::default() },
    ];
    for (i, subject) in Subject::all().iter().enumerate() {
        let with = |memory, micro_smaller: &[usize]| {
            let planned = subject.planned(Options { memory, micro_smaller: micro_smaller.to_vec(), ..options() });
            (planned.sizes(), planned.account().total, planned.start(None, &mut |_, _| Ok(())).unwrap())
        };
        let (_, total, mut whole) = with(requests[0], &[]);
        let steps = subject.steps(&whole);
        let want = train(&mut whole, &steps);
        let mut first: Option<Vec<(f32, f32)>> = None;
        for memory in requests {
            // A size that is not smaller is none.
            let (sizes, narrow, mut session) = with(memory, &[64, 24, 16]);
            assert_eq!((sizes, session.layouts().len()), (vec![32, 24, 16], 3), "{i}");
            assert!(memory != requests[0] || narrow == total, "{i}: {narrow} bytes, and {total} without");
            let steps = subject.steps(&session);
            let lens: BTreeSet<usize> = steps.iter().flatten().map(|micro| micro.ints(INPUT_IDS).len()).collect();
            assert!(lens.len() > 1, "{i}: {lens:?}");
            let got = train(&mut session, &steps);
            for ((loss, norm), (their_loss, their_norm)) in got.iter().zip(&want) {
                assert!((loss - their_loss).abs() <= 1e-4 * their_loss, "{i}: {got:?} and {want:?}");
                assert!((norm - their_norm).abs() <= 1e-3 * their_norm, "{i}: {got:?} and {want:?}");
            }
            assert_eq!(*first.get_or_insert(got.clone()), got, "{i}: {memory:?}");
        }
        // A micro-batch of another program's size is none of this one.
        let (_, _, mut other) = with(requests[0], &[16]);
        let (_, _, narrow) = with(requests[0], &[24]);
        let strange = subject.steps(&narrow).into_iter().flatten().find(|m| m.ints(INPUT_IDS).len() == 24);
        assert!(other.eval(&strange.unwrap()).is_err());
    }
}

/// A run that is stopped, kept as bytes and begun again ends in the bits of one that was not, whatever was chosen to save
/// memory, with every optimizer.
#[test]
fn state_goes_on_to_the_same_bits() {
    let rules: [Optimizer; 4] =
        [Rule::ADAMW, Rule::ADAMW.with_bits(Bits::B8), Rule::LION, Rule::ADAFACTOR].map(Optimizer::from);
    for subject in Subject::all() {
        for optimizer in rules {
            let options = Options { optimizer, ..options() };
            let saving = Options {
                memory: Request { page_optimizer: Toggle::On, stream: Toggle::On, ..Request::default() },
                evaluate: false,
                ..options.clone()
            };
            let mut whole = subject.start(options.clone());
            let steps = subject.steps(&whole);
            let first = train(&mut whole, &steps[..2]);
            let state = whole.state().unwrap();
            assert_eq!(state, whole.state().unwrap());
            let rest = train(&mut whole, &steps[2..]);
            for options in [&options, &saving] {
                let mut resumed = subject.start(options.clone());
                resumed.set_state(&state).unwrap();
                assert_eq!(resumed.trainer.steps, 2);
                assert_eq!(train(&mut resumed, &steps[2..]), rest);
                assert_eq!(resumed.adapter().unwrap(), whole.adapter().unwrap());
                assert_eq!(resumed.state().unwrap(), whole.state().unwrap());
            }
            // The control: with the adapter alone it goes on otherwise.
            let mut other = subject.start(options.clone());
            assert_eq!(train(&mut other, &steps[..2]), first);
            let adapter = other.adapter().unwrap();
            let mut other = subject.start(options);
            other.set_adapter(&adapter).unwrap();
            assert_ne!(train(&mut other, &steps[2..]), rest);
        }
    }
}

/// The bytes of an adapter are those of the file that is saved.
#[test]
fn adapters_as_bytes_are_those_of_files() {
    let subject = &Subject::all()[0];
    let mut session = subject.start(options());
    let steps = subject.steps(&session);
    train(&mut session, &steps[..1]);
    let dir = scratch("session_adapter");
    session.save(&dir, DType::F32).unwrap();
    assert_eq!(std::fs::read(dir.join("adapter_model.safetensors")).unwrap(), session.adapter().unwrap());
    let opened = peft::open(&dir).unwrap();
    let mut other = subject.planned(inference()).start(Some(&opened.tensors), &mut |_, _| Ok(())).unwrap();
    assert_eq!(text(&mut other), text(&mut session));
}

#[test]
fn what_does_not_fit_is_refused_and_takes_nothing() {
    let all = Subject::all();
    let mut session = all[0].start(options());
    let steps = all[0].steps(&session);
    train(&mut session, &steps[..1]);
    let (state, adapter) = (session.state().unwrap(), session.adapter().unwrap());
    let mut sgd = all[0].start(Options { optimizer: Rule::SGD.into(), ..options() });
    let refused = [
        session.set_state(&state[..state.len() - 1]).unwrap_err(),
        session.set_state(&adapter).unwrap_err(),
        session.set_state(b"").unwrap_err(),
        session.set_adapter(&state).unwrap_err(),
        session.set_adapter(&adapter[..20]).unwrap_err(),
        all[1].start(options()).set_adapter(&adapter).unwrap_err(),
        sgd.set_state(&state).unwrap_err(),
        all[1].start(options()).set_state(&state).unwrap_err(),
    ];
    assert!(refused.iter().all(|e| !matches!(e, Error::Cancelled)), "{refused:?}");
    assert_eq!((session.state().unwrap(), session.adapter().unwrap()), (state, adapter));
    // What was not planned.
    let mut bare = all[0].start(Options { train: false, evaluate: true, ..Options::default() });
    let ask = Ask { max_tokens: 1, sampling: Sampling::default(), stop: &[] };
    for error in [
        bare.step(&steps[0], 1e-3).unwrap_err(),
        bare.generate(&PROMPT, &ask, &mut |_| Ok(true)).unwrap_err(),
        all[0].start(Options::default()).eval(&steps[0][0]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

/// The state's bytes with another number of steps, which its header has after `steps`.
fn with_steps(state: &[u8], steps: u64) -> Vec<u8> {
    let (length, rest) = state.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    header["__metadata__"]["trimtab"] = serde_json::json!({ "steps": steps }).to_string().into();
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn a_state_has_a_next_step() {
    let subject = &Subject::all()[0];
    let mut session = subject.start(options());
    let steps = subject.steps(&session);
    train(&mut session, &steps[..1]);
    let state = session.state().unwrap();
    let before = session.trainer.steps;
    let error = session.set_state(&with_steps(&state, u64::MAX)).unwrap_err().to_string();
    assert!(error.contains("no number of steps") && session.trainer.steps == before, "{error}");
    session.set_state(&with_steps(&state, u64::MAX - 1)).unwrap();
    train(&mut session, &steps[..1]);
    assert_eq!(session.trainer.steps, u64::MAX);
}

/// A callback that says so ends loading, a step or a text; a step that was begun leaves no trace.
#[test]
fn callbacks_cancel() {
    for subject in Subject::all() {
        let stopped = subject.planned(options()).start(None, &mut |_, _| Err(Error::Cancelled));
        assert!(matches!(stopped.err(), Some(Error::Cancelled)));
        let (mut session, mut plain) = (subject.start(options()), subject.start(options()));
        let steps = subject.steps(&session);
        for step in &steps {
            let mut told = Vec::new();
            let cancelled = session.step_with(step, 2e-2, &mut |done| {
                told.push(done);
                if done == step.len() - 1 { Err(Error::Cancelled) } else { Ok(()) }
            });
            assert!(matches!(cancelled, Err(Error::Cancelled)));
            assert_eq!(told, (1..step.len()).collect::<Vec<_>>());
            assert_eq!(train(&mut session, std::slice::from_ref(step)), train(&mut plain, std::slice::from_ref(step)));
        }
        assert_eq!(session.state().unwrap(), plain.state().unwrap());
        let ask = Ask { max_tokens: 10, sampling: Sampling::default(), stop: &[] };
        let whole = text(&mut session);
        let part = session.generate(&PROMPT, &ask, &mut |id| Ok(id != whole[0])).unwrap();
        assert_eq!(part, whole[..1]);
        let ended = session.generate(&PROMPT, &ask, &mut |_| Err(Error::Cancelled));
        assert!(matches!(ended, Err(Error::Cancelled)));
        assert_eq!(text(&mut session), whole);
        // A token that ends a text is not part of it.
        let ask = Ask { stop: &whole[..1], ..ask };
        assert!(session.generate(&PROMPT, &ask, &mut |_| Ok(true)).unwrap().is_empty());
    }
}
