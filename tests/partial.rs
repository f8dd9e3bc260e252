//! Full training of parts of a model (`--train`): only they have gradients, and those of full training; the saved model is
//! whole and differs from its base only there.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::devices::Device;
use common::families2::Case;
use trimtab::config::{Flags, RunConfig};
use trimtab::data::pack::pack;
use trimtab::dtype::DType;
use trimtab::peft::{Method, Selection, full::Partial};
use trimtab::run::folder::Start;
use trimtab::run::training::run;
use trimtab::session::{Base, Options, Planned};
use trimtab::weights::Checkpoint;

fn method(patterns: &str) -> Box<dyn Method> {
    Box::new(Partial { train: Selection::parse(patterns.split(',')).unwrap() })
}

fn fixture(case: &str) -> PathBuf {
    common::root("tests/fixtures/families2").join(case)
}

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&dir).ok();
    dir
}

/// Of each case: patterns, and how many tensors they name.
const CASES: [(&str, &str, usize); 6] = [
    ("gpt2-full", "layers.1/attention/weight", 2),
    ("gpt2-full", "bias,transformer.wpe", 13 + 1),
    ("bert-classify-full", "layers.0/norm,head", 4 + 4),
    ("bert-classify-full", "embed", 3),
    ("t5-full", "decoder.*/layers.1,norm", 10 + 7 + 5),
    ("t5-full", "*.EncDecAttention.q", 2),
];

#[test]
fn only_parts_have_gradients_and_those_are_of_full_training() {
    for (name, patterns, count) in CASES {
        let mut case = Case::open(&fixture(name)).unwrap();
        let all = case.gradients(&Device::cpu()).unwrap().1;
        case.method = method(patterns);
        let some = case.gradients(&Device::cpu()).unwrap().1;
        assert!(some.len() < all.len());
        assert_eq!(some.len(), count, "{name} {patterns}: {:?}", some.keys());
        for (key, grad) in &some {
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let whole = norm(&mut all[key].iter().map(|&x| x as f64));
            let off = norm(&mut grad.iter().zip(&all[key]).map(|(a, b)| (a - b) as f64));
            assert!(off <= 1e-5 * whole.max(1e-6), "{name} {patterns}: {key} is off by {off:e} of {whole:e}");
        }
    }
}

/// Frozen weights may be held in 16 bits: they are saved as the base has them.
#[test]
fn the_saved_model_is_whole_and_differs_only_there() {
    for (i, (name, patterns, count)) in CASES.into_iter().enumerate() {
        let Case { base, task, data, .. } = Case::open(&fixture(name)).unwrap();
        let base = Arc::new(base);
        let dtype = if i % 2 == 0 { DType::BF16 } else { DType::F32 };
        let options = Options { dtype, max_seq_len: 32, micro_tokens: 107, ..Options::default() };
        let planned = Planned::of(&base, vec![method(patterns)], &*task, options, Device::cpu().open()).unwrap();
        let mut session = planned.start(None, &mut |_, _| Ok(())).unwrap();
        let rows: Vec<usize> = (0..data.len()).collect();
        let micro = pack(&data, &rows, session.layout().unwrap(), true).unwrap();
        let report = session.step(&micro, 1e-2).unwrap();
        assert!(report.grad_norm > 0.0, "{name}");
        let dir = scratch(&format!("partial_{i}"));
        session.save(&dir, DType::F32).unwrap();
        let after = Checkpoint::open(&dir).unwrap();
        let before = base.checkpoint.as_ref().unwrap();
        let names = |c: &Checkpoint| c.names().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(names(&after), names(before), "{name}");
        let changed: BTreeSet<String> = names(before)
            .into_iter()
            .filter(|key| {
                assert_eq!(after.info(key).unwrap().shape, before.info(key).unwrap().shape, "{name} {key}");
                after.read(key).unwrap() != before.read(key).unwrap()
            })
            .collect();
        let wanted: BTreeSet<String> = session.trainer.trained().unwrap().into_iter().map(|t| t.0).collect();
        assert_eq!((wanted.len(), &changed), (count, &wanted), "{name} {patterns}");
    }
}

#[test]
fn a_pattern_that_names_nothing_is_an_error() {
    let base = Arc::new(Base::open(common::root("assets/base")).unwrap());
    let planned = |method| Planned::new(&base, method, Options::default(), Device::cpu().open());
    let error = planned(method("norm,q_prj")).err().unwrap().to_string();
    assert!(error.contains("q_prj, which names nothing") && error.contains("such as q_proj"), "{error}");
    // The control.
    planned(method("norm,q_proj")).unwrap();
}

/// From the command line's settings on.
#[test]
fn a_run_trains_the_norms_alone() {
    let folder = scratch("partial_run");
    std::fs::create_dir_all(&folder).unwrap();
    let (data, out) = (folder.join("data.jsonl"), folder.join("out"));
    std::fs::write(&data, "{\"text\": \"Full fathom five thy father lies;\"}\n").unwrap();
    let text = |path: &Path| path.display().to_string();
    let (base, data, out) = (text(&common::root("assets/base")), text(&data), text(&out));
    let flags = [
        ("model", base.as_str()),
        ("data", &data),
        ("out", &out),
        ("method", "full"),
        ("train", "norm,layers.0/mlp"),
        ("steps", "5"),
        ("lr", "1e-2"),
        ("max_seq_len", "32"),
        ("device", "cpu"),
    ];
    let summary =
        run(&RunConfig::resolve(None, &Flags::of(&flags).unwrap()).unwrap(), Start::Overwrite, &mut |_| Ok(()))
            .unwrap();
    assert!(summary.last_loss < summary.first_loss);
    let (before, after) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&out).unwrap());
    for name in after.names() {
        let same = before.read(name).unwrap() == after.read(name).unwrap();
        assert_eq!(same, !(name.contains("norm") || name.contains("layers.0.mlp")), "{name}");
    }
}
