//! Tests of the settings table and of how a run's settings are resolved.

use super::*;
use crate::backend::{Backend, null::Null};
use crate::peft::METHODS;
use crate::session::activations;

fn resolve(toml: &str, flags: &[(&str, &str)]) -> Result<RunConfig> {
    RunConfig::resolve_text(toml, Path::new("run.toml"), &Flags::of(flags)?)
}

fn file() -> Origin {
    Origin::File("run.toml".into())
}

#[test]
fn the_table_is_well_formed() {
    for (i, field) in FIELDS.iter().enumerate() {
        assert!(FIELDS[..i].iter().all(|f| f.name != field.name), "{} twice", field.name);
        assert!(field.help.len() < 120 && !field.help.ends_with('.'), "{}: {}", field.name, field.help);
        assert!(!field.value_name.is_empty());
        assert!(field.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
        // Rows of a group are together: a heading is printed once.
        let first = FIELDS.iter().position(|f| f.group == field.group).unwrap();
        assert!(FIELDS[first..=i].iter().all(|f| f.group == field.group), "{} is torn", field.group);
    }
    RunConfig::default().check().unwrap();
}

#[test]
fn flags_override_the_file_and_the_file_the_defaults() {
    let config = resolve("rank = 4\nlr = 1e-3\nbatch-size = 2", &[("rank", "64"), ("seed", "7")]).unwrap();
    assert_eq!((config.rank, config.lr, config.batch_size, config.seed), (64, Some(1e-3), 2, 7));
    assert_eq!(config.alpha, 128.0, "the default follows the rank that counts");
    let origins = ["rank", "lr", "batch_size", "seed", "alpha"].map(|n| config.origin(n).unwrap().clone());
    assert_eq!(origins, [Origin::Flag, file(), file(), Origin::Flag, Origin::Default]);
    // The last of two equal flags counts, as on every command line.
    assert_eq!(resolve("", &[("rank", "1"), ("rank", "2")]).unwrap().rank, 2);
    assert_eq!(resolve("max_seq_len = 64", &[]).unwrap().max_target_len, 64);
}

#[test]
fn steps_and_epochs() {
    let length = |toml: &str, flags: &[(&str, &str)]| resolve(toml, flags).map(|c| (c.steps, c.epochs)).ok();
    assert_eq!(length("", &[]), Some((None, None)));
    assert_eq!(length("steps = 5", &[]), Some((Some(5), None)));
    assert_eq!(length("epochs = 2", &[]), Some((None, Some(2))));
    assert_eq!(length("epochs = 2", &[("steps", "5")]), Some((Some(5), None)), "a flag puts the file's other one out");
    assert_eq!(length("steps = 5", &[("epochs", "2")]), Some((None, Some(2))));
    assert_eq!(length("steps = 5\nepochs = 2", &[]), None);
    assert_eq!(length("", &[("steps", "5"), ("epochs", "2")]), None);
    assert_eq!(length("", &[("steps", "0")]), None);
}

#[test]
fn what_makes_no_sense_is_an_error_that_names_the_key() {
    type Flags<'a> = &'a [(&'a str, &'a str)];
    let table: &[(&str, Flags, &str)] = &[
        ("rnak = 4", &[], "`rank`"),
        ("batch_sise = 4", &[], "`batch-size`"),
        ("batch_size = 4\nbatch-size = 4", &[], "twice"),
        ("[section]\nrank = 4", &[], "section"),
        ("rank = 'four'", &[], "run.toml: rank"),
        ("rank = -4", &[], "run.toml: rank"),
        ("rank = 1.5", &[], "run.toml: rank"),
        ("rank =", &[], "run.toml"),
        ("model = ''", &[], "model"),
        ("targets = []", &[], "targets"),
        ("targets = [1]", &[], "targets"),
        ("trainable-tokens = 5", &[], "trainable-tokens"),
        ("trainable-tokens = [-5]", &[], "trainable-tokens"),
        ("", &[("trainable_tokens", "5;17")], "--trainable-tokens"),
        ("", &[("trainable_tokens", "5,5")], "each once"),
        ("lr = nan", &[], "lr"),
        ("lr = inf", &[], "lr"),
        ("", &[("rank", "four")], "--rank"),
        ("", &[("rank", "0")], "rank"),
        ("", &[("lr", "-1")], "lr"),
        ("", &[("dropout", "1")], "dropout"),
        ("", &[("warmup", "1.5")], "warmup"),
        ("", &[("device", "gpu")], "--device"),
        ("", &[("device", "wgpu:x")], "--device"),
        ("tune = true", &[], "off, auto or the path"),
        ("", &[("method", "qlora")], "lora or full"),
        ("", &[("targets", "(")], "--targets"),
        ("", &[("micro_tokens", "100")], "micro-tokens"),
        ("", &[("task", "translation")], "one of causal-lm, sequence-classification"),
        ("", &[("columns", "text")], "text=review"),
        ("", &[("format", "yaml")], "one of parquet, jsonl, json, csv, tsv, text"),
        ("", &[("adapter_kind", "prefix")], "houlsby or pfeiffer or parallel"),
        ("", &[("reduction_factor", "0")], "reduction-factor"),
        ("", &[("prompt_init", "vocabulary")], "random or text or sample-vocab"),
        ("", &[("method", "prompt"), ("prompt_init", "text")], "--prompt-init-text"),
        ("prompt-init-text = 'x'", &[("method", "prompt"), ("prompt_init", "random")], "no text"),
        ("train = ['norm']", &[], "method full"),
        ("train = []", &[("method", "full")], "layers.3-5"),
        ("", &[("method", "full"), ("train", "norm//bias")], "--train"),
        ("", &[("non_linearity", "sin")], "gelu_new"),
        ("eval-every = 5", &[], "eval-every"),
        ("split = 1", &[], "split"),
        ("split = 0.1", &[("eval_data", "e.jsonl")], "one of the two"),
        ("data = []", &[], "an array of paths"),
        ("", &[("too_long", "split")], "cut or drop or error"),
        ("", &[("double_quant", "true")], "double-quant"),
        ("", &[("method", "full"), ("quantize", "nf4")], "quantize"),
        ("", &[("optimizer", "adam")], "adamw or adamw8bit"),
        ("", &[("momentum", "-1")], "momentum"),
        ("", &[("loraplus_lr_ratio", "0")], "loraplus-lr-ratio"),
        ("method = 'full'", &[("loraplus_lr_ratio", "16")], "method lora"),
        ("lr = 0", &[("loraplus_lr_ratio", "16")], "loraplus-lr-ratio"),
        ("nesterov = true", &[("optimizer", "sgd")], "nesterov"),
        ("patience = 2", &[("eval_data", "x")], "patience"),
        ("", &[("keep_best", "true")], "keep-best"),
        ("nesterov = true", &[("optimizer", "sgd"), ("momentum", "0.9"), ("dampening", "0.1")], "nesterov"),
        ("", &[("adafactor_decay_rate", "0.8")], "adafactor-decay-rate"),
        ("", &[("seed", "18446744073709551615")], "seed"),
        ("", &[("nonsense", "1")], "nonsense"),
        ("", &[("adapter", "no/such/folder")], "no/such/folder"),
    ];
    for (toml, flags, part) in table {
        let error = resolve(toml, flags).map(|c| c.to_toml()).unwrap_err().to_string();
        assert!(error.contains(part), "{toml:?} {flags:?}: {error}");
    }
    // The control: the same keys with values that make sense.
    let good = [("rank", "4"), ("device", "wgpu:1"), ("warmup", "0.5"), ("quantize", "nf4"), ("double_quant", "true")];
    assert_eq!(resolve("targets = ['q_proj']", &good).unwrap().device, Device::Wgpu(Some(1)));
}

/// Every setting differs from its default, and survives being written and read.
#[test]
fn the_saved_file_repeats_the_run() {
    let flags = [
        ("model", "a \"quoted\" \\ path"),
        ("data", "d.jsonl"),
        ("out", "runs/x"),
        ("init", "random"),
        ("quantize", "nf4"),
        ("double_quant", "true"),
        ("rank", "3"),
        ("alpha", "7.5"),
        ("dropout", "0.05"),
        ("rslora", "true"),
        ("dora", "true"),
        ("bias", "lora_only"),
        ("ensure_weight_tying", "true"),
        ("targets", r".*\.(q|v)_proj"),
        ("trainable_tokens", "5, 17"),
        ("task", "masked_lm"),
        ("columns", "text=review, label=stars"),
        ("format", "csv"),
        ("split", "0.05"),
        ("too_long", "drop"),
        ("chat_template", "chatml"),
        ("train_on", "all"),
        ("max_target_len", "50"),
        ("doc_stride", "11"),
        ("mask_share", "0.2"),
        ("qa_padding", "true"),
        ("qa_token_types", "true"),
        ("max_skips", "3"),
        ("save_every", "7"),
        ("keep", "4"),
        ("report_examples", "5"),
        ("samples", "3"),
        ("steps", "9"),
        ("batch_size", "3"),
        ("max_seq_len", "100"),
        ("micro_tokens", "300"),
        ("lr", "1.2345678901234e-5"),
        ("schedule", "linear"),
        ("warmup", "4"),
        ("weight_decay", "1e-3"),
        ("loraplus_lr_ratio", "16"),
        ("loraplus_lr_embedding", "1e-5"),
        ("max_grad_norm", "0"),
        ("adam_beta1", "0.8"),
        ("adam_beta2", "0.95"),
        ("optimizer", "lion8bit"),
        ("memory", "700MiB"),
        ("recompute", "selective"),
        ("stream", "on"),
        ("page_optimizer", "off"),
        ("offload", "on"),
        ("host_memory", "24GiB"),
        ("seed", "9223372036854775807"),
        ("shuffle", "false"),
        ("dtype", "bf16"),
        ("device", "wgpu:2"),
        ("tune", "tiles.json"),
        ("profile", "true"),
        ("log_tensorboard", "true"),
    ];
    // Each counts with another method or optimizer.
    let apart = [
        &[("method", "prefix"), ("virtual_tokens", "7"), ("prefix_projection", "true")][..],
        &[("method", "prompt"), ("prompt_init_text", "a text"), ("prompt_init", "text")],
        &[("method", "adapter"), ("adapter_kind", "parallel"), ("reduction_factor", "7.5"), ("non_linearity", "gelu")],
        &[("method", "full"), ("save_dtype", "bf16"), ("adam_eps", "1e-6")],
        &[("optimizer", "sgd"), ("momentum", "0.7"), ("dampening", "0.1")],
        &[
            ("optimizer", "adafactor"),
            ("adafactor_decay_rate", "-0.7"),
            ("adafactor_eps", "1e-20"),
            ("adafactor_clip", "2"),
        ],
    ];
    for flags in apart.into_iter().chain([&flags[..]]) {
        let config = resolve("", flags).unwrap();
        let text = config.to_toml();
        let again = resolve(&text, &[]).unwrap();
        assert_eq!(again.to_json(), config.to_json(), "{text}");
        for (name, _) in flags {
            let field = find(name).unwrap();
            assert_ne!((field.get)(&config), (field.get)(&RunConfig::default()), "{name}");
            assert_eq!(again.origin(name), Some(&file()), "{name}");
        }
    }
    // Each excludes some of the rest, or needs another of these.
    let unset = ["adapter", "epochs", "nesterov", "eval_data", "eval_every", "keep_best", "patience", "train"];
    for field in FIELDS {
        let typed = apart.iter().copied().flatten().chain(&flags).any(|(name, _)| *name == field.name);
        assert!(typed != unset.contains(&field.name), "{}: not in this test", field.name);
    }
    // Lists too, and full training.
    let data = [("data", "a.jsonl:0.3"), ("data", "b.parquet:0.7"), ("split", "0.1")];
    let config = resolve("data = 'c.jsonl'\neval-every = 5", &data).unwrap();
    assert_eq!(config.data, Some(Sources(vec!["a.jsonl:0.3".into(), "b.parquet:0.7".into()])));
    assert_eq!(resolve(&config.to_toml(), &[]).unwrap().data, config.data);
    let config = resolve("targets = ['q_proj', 'v_proj']", &[]).unwrap();
    assert_eq!(resolve(&config.to_toml(), &[]).unwrap().targets, config.targets);
    let full = resolve(
        "method = 'full'\ntrain = ['layers.0-1/bias', 'head']\nepochs = 3\neval-data = 'e.jsonl'\neval-every = 5\n\
         keep-best = true\npatience = 3",
        &[],
    )
    .unwrap();
    assert_eq!(resolve(&full.to_toml(), &[]).unwrap().to_json(), full.to_json());
}

#[test]
fn the_printed_settings_say_where_they_come_from() {
    let text = resolve("lr = 1e-3", &[("rank", "4")]).unwrap().to_toml();
    let line = |key: &str| text.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
    let table = [
        ("rank = 4 ", "# flag --rank"),
        ("lr = 1e-3 ", "# run.toml"),
        ("batch-size = 8 ", "# default"),
        ("adam-eps = 1e-8 ", "# default"),
        ("# adapter is not set ", "# default"),
    ];
    for (key, origin) in table {
        assert!(line(key).ends_with(origin), "{}", line(key));
    }
}

#[test]
fn an_adapter_sets_the_method() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft/rslora");
    let path = dir.to_str().unwrap();
    let config = resolve("", &[("adapter", path)]).unwrap();
    assert_eq!((config.rank, config.alpha, config.rslora), (4, 8.0, true));
    assert_eq!(config.targets, Targets::List(vec!["v_proj".into(), "q_proj".into()]));
    assert_eq!(config.origin("rank"), Some(&Origin::Adapter(dir.clone())));
    // Its own values may be repeated, as the saved config does; others contradict it. Dropout is free.
    let again = resolve(&config.to_toml(), &[("dropout", "0.1")]).unwrap();
    assert_eq!((again.rank, again.dropout), (4, 0.1));
    let adapter = again.adapter_config().unwrap().unwrap();
    assert_eq!((adapter.rank, adapter.rslora, adapter.dropout), (4, true, 0.1));
    let error = resolve("", &[("adapter", path), ("rank", "8")]).unwrap_err().to_string();
    assert!(error.contains("rank") && error.contains('8') && error.contains('4'), "{error}");
    assert!(resolve("", &[("adapter", path), ("method", "full")]).is_err());
}

#[test]
fn an_adapter_names_its_tokens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft/lora_trainable_tokens");
    let path = dir.to_str().unwrap();
    let config = resolve("", &[("adapter", path)]).unwrap();
    assert_eq!(config.trainable_tokens, Some(vec![1, 5, 9]));
    let again = resolve(&config.to_toml(), &[]).unwrap();
    assert_eq!(again.adapter_config().unwrap().unwrap().tokens, Some(Tokens::Embedding(vec![1, 5, 9])));
    assert!(resolve("trainable-tokens = [1, 5]", &[("adapter", path)]).is_err());
    let new = resolve("", &[("trainable_tokens", "17, 5")]).unwrap().adapter_config().unwrap().unwrap();
    assert_eq!(new.tokens, Some(Tokens::Embedding(vec![17, 5])));
}

#[test]
fn the_adapter_to_train() {
    let config = resolve("", &[("rank", "4"), ("targets", "q_proj"), ("dropout", "0.1"), ("model", "m")]).unwrap();
    let adapter = config.adapter_config().unwrap().unwrap();
    assert_eq!((adapter.rank, adapter.alpha, adapter.dropout), (4, 8.0, 0.1));
    assert_eq!(adapter.base_model.as_deref(), Some("m"));
    assert!(resolve("method = 'full'", &[]).unwrap().adapter_config().unwrap().is_none());
}

#[test]
fn warmup_in_steps_or_as_a_share() {
    let steps = |warmup: &str| resolve("", &[("warmup", warmup)]).unwrap().warmup_steps(100);
    assert_eq!(["0", "0.03", "0.025", "1", "50"].map(steps), [0, 3, 3, 1, 50]);
}

#[test]
fn needs_are_named() {
    let config = resolve("", &[("model", "m")]).unwrap();
    assert_eq!(config.need("model").unwrap(), Path::new("m"));
    assert!(config.need_data().unwrap_err().to_string().contains("--data"));
}

/// Each name gives its rule, with the constants of the settings and, where none is set, of the reference libraries.
#[test]
fn every_optimizer_has_its_rule() {
    let of = |flags: &[(&str, &str)]| resolve("", flags).unwrap().optimizer();
    let table = [
        ("adamw", Rule::ADAMW),
        ("adamw8bit", Rule::ADAMW.with_bits(Bits::B8)),
        ("lion", Rule::LION),
        ("lion8bit", Rule::LION.with_bits(Bits::B8)),
        ("sgd", Rule::SGD),
        ("adafactor", Rule::ADAFACTOR),
    ];
    assert_eq!(table.map(|row| row.0), Optimizer::CHOICES);
    for (name, rule) in table {
        assert_eq!(of(&[("optimizer", name)]), rule.into(), "{name}");
        assert_ne!(of(&[("optimizer", name), ("weight_decay", "0.1")]), rule.into());
    }
    let flags = [("optimizer", "sgd"), ("momentum", "0.9"), ("nesterov", "true")];
    assert_eq!(of(&flags).rule, Rule::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true });
    let config = resolve("", &flags).unwrap();
    assert_eq!(resolve(&config.to_toml(), &[]).unwrap().to_json(), config.to_json());
    assert_eq!(
        of(&[("optimizer", "lion"), ("adam_beta2", "0.98")]).rule,
        Rule::Lion { beta1: 0.9, beta2: 0.98, bits: Bits::B32 }
    );
}

#[test]
fn loraplus_is_relative_to_the_rate() {
    let of = |flags: &[(&str, &str)]| resolve("", flags).unwrap().optimizer().loraplus;
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[("loraplus_lr_embedding", "1e-3")]), None);
    let flags = [("loraplus_lr_ratio", "16"), ("loraplus_lr_embedding", "1e-3"), ("lr", "2e-3")];
    assert_eq!(of(&flags), Some(LoraPlus { ratio: 16.0, embedding: 0.5 }));
}

#[test]
fn bytes_are_read_with_their_units() {
    let table: [(&str, Option<u64>); 12] = [
        ("6GiB", Some(6 << 30)),
        ("700MiB", Some(700 << 20)),
        ("1.5KiB", Some(1536)),
        ("24GB", Some(24_000_000_000)),
        ("8 MB", Some(8_000_000)),
        ("1048576", Some(1 << 20)),
        ("512B", Some(512)),
        ("0", None),
        ("-1GiB", None),
        ("GiB", None),
        ("1e30TiB", None),
        ("much", None),
    ];
    for (text, want) in table {
        let got = Bytes::from_text(text).ok();
        assert_eq!(got.map(|b| b.0), want, "{text}");
        // What is written is read back to the same.
        if let Some(bytes) = got {
            assert_eq!(Bytes::from_toml(&bytes.to_toml().unwrap()), Ok(bytes), "{text}");
        }
    }
}

#[test]
fn the_learning_rate_is_the_methods_and_falls_with_the_width() {
    let lr = |toml: &str, hidden: usize| resolve(toml, &[]).unwrap().settled(hidden).unwrap().lr.unwrap();
    let table = [(8192, 1.2e-4), (4096, 2e-4), (2048, 3.4e-4), (576, 9.2e-4), (256, 1.7e-3), (16, 2e-3), (0, 2e-3)];
    for (hidden, want) in table {
        assert_eq!(lr("", hidden), want, "{hidden}");
    }
    assert_eq!(lr("lr = 5e-4", 576), 5e-4);
    assert_eq!(lr("method = 'full'", 4096), 2e-5);
    assert_eq!(lr("method = 'full'", 576), 9.2e-5);
    assert_eq!(lr("method = 'full'\nlr = 3e-5", 576), 3e-5);
    for def in METHODS {
        let [wide, narrow] = [4096, 192].map(|hidden| def.rate.at(hidden));
        assert_eq!(lr(&format!("method = '{}'", def.name), 192), narrow);
        assert!(0.0 < wide && wide <= narrow && narrow <= 0.1, "{}: {wide}, {narrow}", def.name);
    }
}

#[test]
fn sixteen_bits_are_the_default_where_tensor_cores_multiply_them() {
    let caps = |target, compute_dtype| Caps { target, compute_dtype, ..Null::new().caps().clone() };
    // (kind of device, what its activations can be kept in), and what is taken without a word.
    let table = [
        (Target::Cuda, Some(DType::BF16), Dtype::Bf16),
        (Target::Cuda, Some(DType::F16), Dtype::Bf16),
        (Target::Wgsl, None, Dtype::F32),
        (Target::Wgsl, Some(DType::F16), Dtype::F32),
        (Target::Host, Some(DType::BF16), Dtype::F32),
        (Target::Null, None, Dtype::F32),
    ];
    for (target, computes, want) in table {
        let caps = caps(target, computes);
        let config = resolve("", &[]).unwrap();
        assert_eq!(config.dtype, Dtype::Auto);
        let on = config.on(&caps);
        assert_eq!(on.dtype, want, "{target:?} {computes:?}");
        assert_eq!(
            activations(on.dtype.into(), &caps),
            if want == Dtype::F32 { DType::F32 } else { computes.unwrap() }
        );
        assert_eq!(on.origin("dtype"), Some(&Origin::Device(caps.device.clone())));
        // The run's file has the answer, and says whose it is; it repeats the run on any device.
        let text = on.to_toml();
        assert!(text.contains(&format!("# auto on {}", caps.device)), "{text}");
        assert_eq!(resolve(&text, &[]).unwrap().dtype, want);
        // What is asked for stays.
        for (name, asked) in [("f32", Dtype::F32), ("bf16", Dtype::Bf16)] {
            let config = resolve("", &[("dtype", name)]).unwrap().on(&caps);
            assert_eq!((config.dtype, config.origin("dtype")), (asked, Some(&Origin::Flag)), "{target:?}");
        }
    }
}

/// What would be of no effect is refused, unless it asks for what is there anyway; a flag that changes what a file was made for
/// puts the file's settings out.
#[test]
fn what_has_no_effect_is_refused() {
    let resolved = |file: &str, flags: &[(&str, &str)]| {
        RunConfig::resolve_text(file, Path::new("run.toml"), &Flags::of(flags).unwrap()).map_err(|e| e.to_string())
    };
    for (flags, decides) in [
        (&[("method", "full"), ("targets", "q_proj")][..], "method lora or ia3 or trainable-tokens"),
        (&[("method", "full"), ("dora", "true")], "method lora"),
        (&[("method", "ia3"), ("rank", "4")], "method lora"),
        (&[("method", "ia3"), ("dropout", "0.5")], "method lora or adapter"),
        (&[("method", "prompt"), ("prefix_projection", "true")], "method prefix"),
        (&[("momentum", "0.9")], "optimizer sgd"),
        (&[("optimizer", "sgd"), ("adam_beta1", "0.8")], "optimizer adamw or adamw8bit or lion"),
        (&[("optimizer", "lion"), ("adam_eps", "1e-6")], "optimizer adamw"),
        (&[("save_dtype", "bf16")], "method full"),
        (&[("virtual_tokens", "5")], "method prompt or prefix"),
        (&[("reduction_factor", "4")], "method adapter"),
    ] {
        let error = resolved("", flags).unwrap_err();
        assert!(error.contains("no effect") && error.contains(decides), "{flags:?}: {error}");
    }
    let file = "rank = 4\nalpha = 9.0\n";
    assert!(resolved(&format!("{file}method = \"ia3\""), &[]).unwrap_err().contains("rank"));
    assert_eq!(resolved(file, &[("method", "ia3")]).unwrap().method, Method::Ia3);
    for flags in
        [&[("method", "ia3"), ("rank", "16")][..], &[("method", "ia3"), ("targets", "k_proj")], &[("rank", "4")]]
    {
        resolved("", flags).unwrap();
    }
}
