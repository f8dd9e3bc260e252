//! Training on the embedding and the head: LoRA on them, and single tokens. All learn, and live on in PEFT's files.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::devices::{Device, devices};
use common::scratch::Scratch;
use trimtab::Error;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::{Dataset, Example};
use trimtab::dtype::DType;
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::files::{Adapter, base_layer, embedding_a, embedding_b, read_adapter, read_config, tokens};
use trimtab::peft::{self, Tokens, lora::Lora};
use trimtab::session::{Base, Options, Planned, Session};
use trimtab::tasks::causal_lm::layout;

const EMBED: &str = "model.embed_tokens";

/// The token that is trained and the text does not have.
const ABSENT: usize = 3;

fn fixture(path: &str) -> PathBuf {
    common::root("tests/fixtures").join(path)
}

/// A model with a head of its own, and one that scales its embedding and has it for a head.
const BASES: [&str; 2] = ["golden/base", "families/gemma"];

fn lora_on(targets: &[&str]) -> AdapterConfig {
    AdapterConfig::lora(4, 8.0, Targets::List(targets.iter().map(|t| t.to_string()).collect()))
}

fn on_the_embedding() -> AdapterConfig {
    lora_on(&["embed_tokens"])
}

fn on_the_head() -> AdapterConfig {
    lora_on(&["lm_head"])
}

fn tying(mut config: AdapterConfig) -> AdapterConfig {
    config.ensure_weight_tying = true;
    config
}

/// On the embedding and the head that it is, as one.
fn on_both() -> AdapterConfig {
    tying(on_the_embedding())
}

fn on_tokens() -> AdapterConfig {
    let mut config = lora_on(&["q_proj"]);
    config.tokens = Some(Tokens::Embedding(vec![7, ABSENT, 11]));
    config
}

fn text() -> Vec<MicroBatch> {
    let mut data = Dataset::default();
    for ids in [&[1, 7, 11, 7, 40, 41][..], &[1, 11, 60, 7, 61]] {
        data.push(&Example::whole(ids.to_vec())).unwrap();
    }
    pack(&data, &[0, 1], &layout(16), true).unwrap()
}

fn planned(base: &Arc<Base>, config: AdapterConfig, device: &Device, dtype: DType) -> Result<Planned, Error> {
    let options = Options { max_seq_len: 16, micro_tokens: 16, dtype, ..Options::default() };
    Planned::new(base, Box::new(Lora { config }), options, device.open())
}

fn session(
    base: &Arc<Base>,
    config: AdapterConfig,
    device: &Device,
    dtype: DType,
    adapter: Option<&Adapter>,
) -> Session {
    let planned = planned(base, config, device, dtype).unwrap();
    if let Some(adapter) = adapter {
        adapter.check(Path::new(""), &planned.trained()).unwrap();
    }
    planned.start(adapter.map(|a| &a.tensors), &mut |_, _| Ok(())).unwrap()
}

/// Steps at rate `lr`; the loss before each.
fn losses(session: &mut Session, steps: usize, lr: f64) -> Vec<f32> {
    (0..steps).map(|_| session.step(&text(), lr).unwrap().loss).collect()
}

/// An adapter without what PEFT writes twice.
fn opened(dir: &Path) -> Adapter {
    Adapter { config: read_config(dir).unwrap(), tensors: peft::open(dir).unwrap().tensors }
}

#[test]
fn what_is_trained_on_the_embedding_learns_and_is_kept() {
    type Config = fn() -> AdapterConfig;
    let table: [(&str, Config); 4] =
        [("lora", on_the_embedding), ("tokens", on_tokens), ("head", on_the_head), ("both", on_both)];
    let lr = 1e-2;
    for device in devices() {
        for (name, config) in table {
            for (folder, dtype) in BASES.iter().zip([DType::BF16, DType::F32]) {
                let base = Arc::new(Base::open(fixture(folder)).unwrap());
                let what = format!("{name} on {folder} on {}", device.name);
                let mut run = session(&base, config(), &device, dtype, None);
                let fell = losses(&mut run, 12, lr);
                assert!(fell[11] < 0.9 * fell[0], "{what}: {fell:?}");
                // The control: at rate 0 nothing moves.
                let mut still = session(&base, config(), &device, dtype, None);
                let flat = losses(&mut still, 2, 0.0);
                assert_eq!((flat[0], flat[0]), (fell[0], flat[1]), "{what}");

                let scratch = Scratch::new(&what.replace([' ', '/'], "-"));
                run.save(&scratch.0, DType::F32).unwrap();
                let saved = opened(&scratch.0);
                assert_eq!(saved.config.tokens, config().tokens, "{what}");
                let mut again = session(&base, saved.config.clone(), &device, dtype, Some(&saved));
                assert_eq!(losses(&mut again, 1, 0.0), losses(&mut run, 1, 0.0), "{what}: not what was saved");
                let second = Scratch::new(&format!("{}-again", what.replace([' ', '/'], "-")));
                again.save(&second.0, DType::F32).unwrap();
                assert_eq!(opened(&second.0).tensors, saved.tensors, "{what}");
            }
        }
    }
}

/// The tensors as PEFT writes and starts them: A zero, B normal, the table beside them; tokens as the table has them.
#[test]
fn first_values_and_files_are_those_of_peft() {
    for folder in BASES {
        let base = Arc::new(Base::open(fixture(folder)).unwrap());
        let table = base.checkpoint.as_ref().unwrap().read("model.embed_tokens.weight").unwrap();
        let saved = |config: AdapterConfig, name: &str| {
            let scratch = Scratch::new(&format!("{}-{name}", folder.replace('/', "-")));
            let mut run = session(&base, config, &Device::cpu(), DType::F32, None);
            run.save(&scratch.0, DType::F32).unwrap();
            let at_first = read_adapter(&scratch.0).unwrap();
            losses(&mut run, 3, 1e-2);
            run.save(&scratch.0, DType::F32).unwrap();
            (at_first, read_adapter(&scratch.0).unwrap())
        };
        let (first, last) = saved(on_the_embedding(), "lora");
        let names: Vec<_> = first.tensors.keys().cloned().collect();
        assert_eq!(names, [base_layer(EMBED), embedding_a(EMBED), embedding_b(EMBED)]);
        assert!(first.tensors[&embedding_a(EMBED)].data.iter().all(|&a| a == 0.0));
        let b = &first.tensors[&embedding_b(EMBED)].data;
        let mean = b.iter().sum::<f32>() / b.len() as f32;
        let variance = b.iter().map(|b| (b - mean).powi(2)).sum::<f32>() / b.len() as f32;
        // Of n normal numbers the mean has the deviation 1/√n, the variance √(2/n); six of them.
        let n = b.len() as f32;
        assert!(mean.abs() < 6.0 / n.sqrt() && (variance - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "{mean} {variance}");
        assert_eq!(first.tensors[&base_layer(EMBED)].data, table);
        assert_eq!(last.tensors[&base_layer(EMBED)].data, table, "{folder}: the frozen table changed");

        let (first, last) = saved(on_tokens(), "tokens");
        assert!(!first.tensors.contains_key(&base_layer(EMBED)));
        let dim = table.len() / base.model(16).unwrap().facts().vocab;
        let (first, last) = (&first.tensors[&tokens(EMBED)], &last.tensors[&tokens(EMBED)]);
        assert_eq!(first.shape, [3, dim]);
        for (i, token) in [7, ABSENT, 11].into_iter().enumerate() {
            let row = |data: &[f32], at: usize| data[at * dim..(at + 1) * dim].to_vec();
            assert_eq!(row(&first.data, i), row(&table, token), "token {token}");
            // A tied head reads every row; otherwise a token that is nowhere is not trained.
            let moves = token != ABSENT || folder == BASES[1];
            assert_eq!(row(&last.data, i) != row(&table, token), moves, "{folder}: token {token}");
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    type Change = fn(&mut AdapterConfig);
    let table: [(&[&str], Change, &str); 11] = [
        (&["embed_tokens", "q_proj"], |c| c.tokens = Some(Tokens::Embedding(vec![5])), "which is a target too"),
        (&["embed_tokens"], |c| c.lora_bias = true, "lora_bias"),
        (&["q_proj"], |c| c.tokens = Some(Tokens::Embedding(vec![5, 128])), "128"),
        (&["q_proj"], |c| c.tokens = Some(Tokens::Modules(vec![("wte".into(), vec![5])])), "wte"),
        (
            &["lm_head"],
            |c| c.tokens = Some(Tokens::Modules(vec![("lm_head".into(), vec![5])])),
            "which is a target too",
        ),
        (&["embed_tokens"], |c| c.dora = true, "DoRA on model.embed_tokens"),
        (&["lm_head"], |c| c.dora = true, "DoRA on lm_head"),
        (&["q_proj", "lm_head"], |c| c.dropout = 0.1, "dropout on lm_head"),
        (&["q_proj", "lm_head"], |c| c.lora_bias = true, "lora_bias on lm_head"),
        (&["q_proj", "embed_token"], |_| {}, "embed_tokens?"),
        (
            &["q_proj"],
            |c| {
                c.tokens = Some(Tokens::Embedding(vec![5]));
                c.modules_to_save = vec!["embed_tokens".into()];
            },
            "modules_to_save",
        ),
    ];
    let base = Arc::new(Base::open(fixture("golden/base")).unwrap());
    let plan = |config| planned(&base, config, &Device::cpu(), DType::F32).map(drop);
    for (targets, change, part) in table {
        let mut config = lora_on(targets);
        change(&mut config);
        let error = plan(config).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // The control: each of them alone.
    for config in [on_the_embedding(), on_tokens(), on_the_head(), lora_on(&["embed_tokens", "q_proj", "lm_head"])] {
        plan(config).unwrap();
    }
    let tied = Arc::new(Base::open(fixture(BASES[1])).unwrap());
    let plan = |config| planned(&tied, config, &Device::cpu(), DType::F32).map(drop);
    let saving = |names: &[&str]| {
        let mut config = lora_on(&["q_proj"]);
        config.modules_to_save = names.iter().map(|n| n.to_string()).collect();
        config
    };
    // What is named by the head alone is not found at the embedding.
    for (config, key) in [(on_the_head(), "target_modules"), (saving(&["lm_head"]), "modules_to_save")] {
        plan(config.clone()).unwrap();
        let error = plan(tying(config)).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("model.embed_tokens"), "{error}");
    }
    plan(tying(lora_on(&["embed_tokens", "lm_head"]))).unwrap();
    plan(tying(saving(&["embed_tokens", "lm_head"]))).unwrap();
    // Tokens of the head's own, where they are to be those of the embedding.
    let mut config = on_tokens();
    config.tokens = Some(Tokens::Modules(vec![("embed_tokens".into(), vec![7]), ("lm_head".into(), vec![8])]));
    plan(config.clone()).unwrap();
    assert!(plan(tying(config)).unwrap_err().to_string().contains("the same tokens"));
}

/// What learns of a token, each with the numbers of it: its row of the table, its column of A, its trained row.
const LEARNERS: [&str; 3] = ["full", "lora", "tokens"];

/// transformers gives `pad_token_id` to PyTorch's embeddings as `padding_idx`: the row is read, and does not learn of that. PEFT's
/// factors of an embedding and its trained tokens do as it does.
#[test]
fn the_padding_tokens_row_does_not_learn() {
    const PAD: usize = 7;
    let of = |learner: &str, pad: Option<i64>| -> f32 {
        let scratch = Scratch::new(&format!("padding-{learner}-{pad:?}"));
        let from = fixture("golden/base");
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(name), scratch.0.join(name)).unwrap();
        }
        let text = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["pad_token_id"] = pad.into();
        std::fs::write(scratch.0.join("config.json"), config.to_string()).unwrap();
        let vocab = config["vocab_size"].as_u64().unwrap() as usize;
        let base = Arc::new(Base::open(&scratch.0).unwrap());
        let method: Box<dyn peft::Method> = match learner {
            "full" => Box::new(peft::full::Full),
            "lora" => Box::new(Lora { config: on_the_embedding() }),
            _ => Box::new(Lora { config: on_tokens() }),
        };
        let options = Options { max_seq_len: 16, micro_tokens: 16, ..Options::default() };
        let planned = Planned::new(&base, method, options, Device::cpu().open()).unwrap();
        let mut run = planned.start(None, &mut |_, _| Ok(())).unwrap();
        let numbers = |run: &mut Session| -> Vec<f32> {
            let part = match learner {
                "full" => "embed_tokens.weight",
                "lora" => "lora_embedding_A",
                _ => "token",
            };
            let bytes = run.adapter().unwrap();
            let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let name = all.names().into_iter().find(|name| name.contains(part)).unwrap();
            let t = all.tensor(name).unwrap();
            let (columns, data): (usize, Vec<f32>) = (t.shape()[1], bytemuck::pod_collect_to_vec(t.data()));
            match learner {
                "full" => data[PAD * columns..][..columns].to_vec(),
                "lora" => data.chunks(vocab).map(|row| row[PAD]).collect(),
                _ => data[..columns].to_vec(),
            }
        };
        let before = numbers(&mut run);
        // B starts as zeros, so that A learns from the second step on.
        losses(&mut run, 3, 1e-2);
        let after = numbers(&mut run);
        before.iter().zip(&after).map(|(a, b)| (a - b).abs()).sum()
    };
    for learner in LEARNERS {
        assert_eq!(of(learner, Some(PAD as i64)), 0.0, "{learner}");
        // The control: another token's row, and no padding at all.
        assert!(of(learner, Some(-1)) > 0.0 && of(learner, None) > 0.0, "{learner}");
    }
}
