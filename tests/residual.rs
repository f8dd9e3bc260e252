//! Adapters of PiSSA and OLoRA, which belong to what is left of the base model's weights: PEFT's results when it loads them, what is
//! left in f32 and bf16, streamed, merged and saved; and where they are refused.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::devices::Device;
use common::golden::Golden;
use common::scratch::Scratch;
use trimtab::base::Base;
use trimtab::config::{Flags, RunConfig};
use trimtab::dtype::DType;
use trimtab::exec::Exec;
use trimtab::generate::Room;
use trimtab::graph::Phase;
use trimtab::memory::Toggle;
use trimtab::nn::{Build, Hooks, Nn};
use trimtab::peft::{self, lora::Lora};
use trimtab::plan::Plan;
use trimtab::quant::ggml::GgmlType;
use trimtab::run::export;
use trimtab::run::merge::{How, merge};
use trimtab::session::{Options, Planned, Session};
use trimtab::tasks::causal_lm::CausalLm;
use trimtab::tasks::{Shape, Task};
use trimtab::weights::{Checkpoint, load};
use trimtab::{Error, Result, models};

const CASES: [(&str, &str); 3] = [
    ("llama-pissa", "golden/base"),
    ("llama-olora", "golden/base"),
    ("gpt2-pissa", "families2/gpt2-conv1d-lora/model"),
];

fn golden() -> Golden {
    Golden::open(common::root("tests/golden/residual/residual.safetensors"))
}

fn adapter(case: &str) -> PathBuf {
    common::root("tests/golden/residual").join(case)
}

fn model(path: &str) -> PathBuf {
    common::root("tests/fixtures").join(path)
}

/// The model with an adapter, as a session that generates.
fn session(model: &Path, adapter: &Path, change: impl FnOnce(&mut Options)) -> Result<Session> {
    let base = Arc::new(Base::open(model)?);
    let opened = peft::open(adapter)?;
    let room = Room { tokens: 16, source: 0, chunk: 1 };
    let mut options =
        Options { train: false, generate: Some(room), max_seq_len: 16, micro_tokens: 16, ..Options::default() };
    change(&mut options);
    let planned = Planned::new(&base, opened.method, options, Device::cpu().open())?;
    peft::check(adapter, &opened.tensors, &planned.trained())?;
    planned.start(Some(&opened.tensors), &mut |_, _| Ok(()))
}

fn logits(session: &mut Session, ids: &[i64]) -> Vec<f32> {
    let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    session.logits(&ids).unwrap().concat()
}

/// Largest difference, relative to the largest value.
fn apart(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// The bound is that of goldens in f32 (tests/models.rs), which the decomposition in f32 adds to: what is left of a weight is
/// off by 1e-6 of its largest singular value.
#[test]
fn loaded_adapters_have_the_logits_of_peft() {
    let (golden, scratch) = (golden(), Scratch::new("logits"));
    for (case, base) in CASES {
        let (ids, wanted) = (golden.i64(&format!("{case}.ids")), golden.f32(&format!("{case}.logits")));
        let mut opened = session(&model(base), &adapter(case), |_| {}).unwrap();
        let found = logits(&mut opened, &ids);
        assert!(apart(&found, &wanted) < 2e-5, "{case}: {:e}", apart(&found, &wanted));
        let streamed = |options: &mut Options| options.memory.stream = Toggle::On;
        let mut streamed = session(&model(base), &adapter(case), streamed).unwrap();
        assert!(logits(&mut streamed, &ids) == found, "{case} streamed");
        // What is saved is such an adapter again.
        let out = scratch.0.join(case);
        opened.save(&out, DType::F32).unwrap();
        let mut again = session(&model(base), &out, |_| {}).unwrap();
        assert!(logits(&mut again, &ids) == found, "{case} saved");
        // The control: as plain LoRA on the whole weight it computes something else.
        let config = std::fs::read_to_string(out.join("adapter_config.json")).unwrap();
        let kind = case.split('-').next_back().unwrap();
        let plain = config.replace(&format!("\"{kind}\""), "true");
        assert_ne!(plain, config);
        std::fs::write(out.join("adapter_config.json"), plain).unwrap();
        let mut plain = session(&model(base), &out, |_| {}).unwrap();
        assert!(apart(&logits(&mut plain, &ids), &wanted) > 1e-2, "{case}");
    }
}

/// On a model in bf16 PEFT rounds what is left: bit for bit, but where rounding in f32 decides (at most one value in 200).
#[test]
fn what_is_left_is_rounded_as_peft_rounds_it() {
    let golden = golden();
    let mut seen = 0;
    for (case, base) in CASES {
        let checkpoint = Checkpoint::open(model(base)).unwrap();
        let method = Lora { config: peft::files::read_config(&adapter(case)).unwrap() };
        let stack: &[&dyn Hooks] = &[&method];
        let family = models::read(checkpoint.config(), 16).unwrap();
        let mut nn = Nn::new(Build { stack, storage: &|_, _| DType::BF16, act: DType::F32 });
        nn.begin(Phase::EVAL, CausalLm.layout(Shape::of(16))).unwrap();
        family.hidden(&mut nn).unwrap();
        let backend = Device::cpu().open();
        let plan = Plan::new(&nn.g, backend.caps()).unwrap();
        let mut exec = Exec::new(backend, nn.g, plan).unwrap();
        let tensors = peft::files::read_tensors(&adapter(case)).unwrap();
        let from = load::Sources { base: Some(&checkpoint), std: 0.0, adapter: Some(&tensors), seed: 0 };
        load::load(&mut exec, &nn.weights, &from, &mut |_, _| Ok(())).unwrap();
        for key in golden.names() {
            let Some(module) = key.strip_prefix(&format!("{case}.bf16.")) else { continue };
            let weight = nn.weights.iter().find(|w| w.name == format!("{module}.weight")).unwrap();
            let found: Vec<u16> = bytemuck::pod_collect_to_vec(&exec.download(weight.val).unwrap());
            let mut wanted: Vec<u16> = bytemuck::pod_collect_to_vec(&golden.bytes(&key));
            let mut whole: Vec<f32> = checkpoint.read(&weight.name).unwrap();
            if weight.source.is_transposed() {
                let columns = golden.shape(&key)[1];
                let turn = |x: Vec<f32>| load::transpose(&x, columns);
                wanted = turn(wanted.iter().map(|x| f32::from(*x)).collect()).iter().map(|x| *x as u16).collect();
                whole = turn(whole);
            }
            let differ = |other: &[u16]| other.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            assert!(differ(&found) * 200 <= found.len(), "{key}: {} of {}", differ(&found), found.len());
            // The control: the whole weight.
            let whole: Vec<u16> = whole.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
            assert!(differ(&whole) * 2 > found.len(), "{key}");
            seen += 1;
        }
    }
    assert_eq!(seen, 9);
}

fn config(case: &str, base: &str, out: &Path) -> RunConfig {
    let flags = [("model", model(base)), ("adapter", adapter(case)), ("out", out.into()), ("device", "cpu".into())];
    let flags = flags.map(|(name, value): (&str, PathBuf)| (name, value.display().to_string()));
    RunConfig::resolve(None, &Flags(flags.to_vec())).unwrap()
}

/// Merged models compute what model and adapter do, by files and by a session.
#[test]
fn they_merge() {
    let scratch = Scratch::new("merge");
    for (case, base) in CASES {
        let out = scratch.0.join(case);
        let how = How { dtype: Some(DType::F32), shard: u64::MAX, check: true };
        let found = merge(&config(case, base, &out), &how).unwrap().difference.unwrap();
        assert!(found.largest < 2e-5 * found.of && found.same == found.rows, "{case}: {found:?}");
        let by_session = scratch.0.join(format!("{case}-session"));
        session(&model(base), &adapter(case), |_| {}).unwrap().save_merged(&by_session, DType::F32).unwrap();
        let [one, other] = [out, by_session].map(|dir| Checkpoint::open(&dir).unwrap());
        for name in one.names() {
            assert!(one.read(name).unwrap() == other.read(name).unwrap(), "{case}: {name}");
        }
    }
}

#[test]
fn where_there_is_no_rest_they_are_refused() {
    let scratch = Scratch::new("refused");
    let unsupported = |found: Result<()>, word: &str| match found {
        Err(Error::Unsupported { what, hint }) => assert!(what.contains(word) && !hint.is_empty(), "{what}: {hint}"),
        other => panic!("{word}: {other:?}"),
    };
    let nf4 = |options: &mut Options| options.quantize = Some(DType::Nf4);
    let [pissa, olora] = ["llama-pissa", "llama-olora"].map(adapter);
    for dir in [&pissa, &olora] {
        unsupported(session(&model("golden/base"), dir, nf4).map(drop), "PiSSA or OLoRA on model.layers.0");
    }
    // On GPT-2's weights, which files have turned, PEFT's OLoRA has factors that do not fit.
    let copy = scratch.0.join("copy");
    common::scratch::copy(&adapter("gpt2-pissa"), &copy);
    let file = copy.join("adapter_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"pissa\"", "\"olora\"")).unwrap();
    unsupported(session(&model(CASES[2].1), &copy, |_| {}).map(drop), "OLoRA's start");
    let gguf = config("llama-pissa", "golden/base", &scratch.0.join("lora.gguf"));
    unsupported(export::adapter(&gguf, GgmlType::F32, false).map(drop), "PiSSA or OLoRA");
    // An embedding or a head has no such start.
    common::scratch::copy(&pissa, &copy);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"down_proj\"", "\"lm_head\"")).unwrap();
    unsupported(session(&model("golden/base"), &copy, |_| {}).map(drop), "at lm_head");
}
