//! Adapters combined into one: PEFT's results by every way, what PEFT refuses or loses, the command, and that what is written is
//! an adapter like any other.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::command::run;
use common::scratch::Scratch;
use serde_json::Value;
use trimtab::config::{Flags, RunConfig};
use trimtab::peft::combine::{Combined, How, Sign, WAYS, Weighted, combine};
use trimtab::peft::{self, AdapterConfig, Bias, Targets, files};
use trimtab::run::merge::compare;
use trimtab::weights::HostTensor;

fn golden() -> PathBuf {
    common::root("tests/golden/combined")
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn read(name: &str, weight: f64) -> Weighted {
    Weighted::read(&golden().join(name), weight).unwrap()
}

/// The adapters of a case, and how they are combined.
fn case(case: &Value) -> (Vec<Weighted>, How) {
    let names = case["adapters"].as_array().unwrap();
    let weights = case["weights"].as_array().unwrap();
    let adapters =
        names.iter().zip(weights).map(|(name, weight)| read(name.as_str().unwrap(), weight.as_f64().unwrap()));
    let mut how = How::named(case["combination_type"].as_str().unwrap()).unwrap();
    how.density = case["density"].as_f64();
    how.sign = case["majority_sign_method"].as_str().map(|_| Sign::Frequency);
    how.rank = case["svd_rank"].as_u64().map(|rank| rank as usize);
    (adapters.collect(), how)
}

/// B·A of each module.
fn products(tensors: &BTreeMap<String, HostTensor>) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    for (name, a) in tensors {
        let Some((module, end)) = name.split_once(".lora_A").or(name.split_once(".lora_embedding_A")) else { continue };
        let b = &tensors[&name.replace("_A", "_B")];
        assert!(end.is_empty() || end == ".weight");
        let (rank, columns) = (a.shape[0], a.shape[1]);
        let mut product = Vec::new();
        for row in b.data.chunks_exact(rank) {
            let one = |c: usize| {
                row.iter().enumerate().map(|(k, b)| f64::from(*b) * f64::from(a.data[k * columns + c])).sum()
            };
            product.extend((0..columns).map(|c| {
                let x: f64 = one(c);
                x as f32
            }));
        }
        found.insert(files::tensor(module).to_string(), product);
    }
    found
}

fn apart(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Values of the results are 0.3 at most. What is computed value by value is PEFT's to the bit; products are those of its
/// singular value decomposition in f32, whose rounding (1e-7 of the largest singular value, about 1) is the bound.
#[test]
fn every_way_has_the_results_of_peft() {
    let wanted = files::read_file(&golden().join("combined.safetensors")).unwrap();
    let cases = json(golden().join("cases.json"));
    let (mut ways, mut tensors, mut refused, mut wrong) = (Vec::new(), 0, 0, Vec::new());
    for (name, settings) in cases.as_object().unwrap() {
        let (adapters, how) = case(settings);
        let found = combine(&adapters, &how);
        if settings.get("error").is_some() {
            found.expect_err(name);
            refused += 1;
            continue;
        }
        let Combined { config, tensors: found, .. } = found.unwrap();
        assert_eq!(config.rank as u64, settings["rank"].as_u64().unwrap(), "{name}");
        assert_eq!((config.alpha, config.rslora, config.rank_pattern.len()), (config.rank as f64, false, 0), "{name}");
        match &config.targets {
            Targets::List(names) => {
                let mut names = names.clone();
                names.sort();
                assert_eq!(serde_json::json!(names), settings["targets"], "{name}");
            }
            targets => assert_eq!(targets.to_string(), settings["targets"].as_str().unwrap(), "{name}"),
        }
        ways.push(how.way.name);
        let of = format!("{name}|");
        let wanted: Vec<(&str, &HostTensor)> =
            wanted.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&of)?, tensor))).collect();
        let products = products(&found);
        let by_product = products.contains_key(wanted[0].0);
        let (count, bound) = if by_product { (products.len(), 1e-6) } else { (found.len(), 0.0) };
        assert_eq!(wanted.len(), count, "{name}");
        for (key, tensor) in wanted {
            let found = if by_product { &products[key] } else { &found[key].data };
            let apart = apart(found, &tensor.data);
            if apart > bound {
                wrong.push(format!("{name} {key}: {apart:e}"));
            }
            tensors += 1;
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let missing: Vec<&str> = WAYS.iter().map(|way| way.name).filter(|way| !ways.contains(way)).collect();
    assert_eq!(missing, [""; 0]);
    assert!(tensors > 100 && refused == 3, "{tensors} {refused}");
    // The control: other weights, another density and another way of electing are another result.
    let (mut adapters, how) = case(&cases["ties-svd-frequency"]);
    let first = products(&combine(&adapters, &how).unwrap().tensors);
    let differs = |adapters: &[Weighted], how: How| {
        let other = products(&combine(adapters, &how).unwrap().tensors);
        first.iter().map(|(name, x)| apart(x, &other[name])).fold(0.0, f32::max) > 1e-3
    };
    assert!(!differs(&adapters, how));
    assert!(differs(&adapters, How { density: Some(0.31), ..how }));
    assert!(differs(&adapters, How { sign: None, ..how }));
    adapters[0].weight += 0.1;
    assert!(differs(&adapters, how));
}

/// What is left out by chance has the sum of the adapters as its mean: over many seeds, each value within five standard
/// errors, as far as all values together allow.
#[test]
fn dare_has_the_right_mean() {
    let adapters = [read("a", 0.7), read("c", 0.3)];
    let wanted = products(&combine(&adapters, &How { rank: Some(8), ..How::named("svd").unwrap() }).unwrap().tensors);
    let how = How { density: Some(0.5), rank: Some(24), ..How::named("dare_linear_svd").unwrap() };
    const SEEDS: u64 = 200;
    let mut sums: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for seed in 0..SEEDS {
        for (name, values) in products(&combine(&adapters, &How { seed, ..how }).unwrap().tensors) {
            let sums = sums.entry(name).or_insert_with(|| vec![(0.0, 0.0); values.len()]);
            sums.iter_mut().zip(values).for_each(|(s, x)| *s = (s.0 + f64::from(x), s.1 + f64::from(x * x)));
        }
    }
    let far = |factor: f64| {
        let values = sums.iter().flat_map(|(name, sums)| sums.iter().zip(&wanted[name]));
        values
            .filter(|((sum, squares), wanted)| {
                let (mean, n) = (sum / SEEDS as f64, SEEDS as f64);
                let error = ((squares / n - mean * mean).max(0.0) / n).sqrt() + 1e-7;
                (mean - factor * f64::from(**wanted)).abs() > 5.0 * error
            })
            .count()
    };
    assert_eq!(far(1.0), 0);
    // The control: without the factor that keeps the mean.
    assert!(far(0.5) > 100, "{}", far(0.5));
}

/// Makes an adapter one that does not combine.
type Change<T> = fn(&mut T);

#[test]
fn what_does_not_combine_is_refused() {
    let with = |change: fn(&mut AdapterConfig)| {
        let mut other = read("b", 0.5);
        change(&mut other.adapter.config);
        let how = How::named("svd").unwrap();
        combine(&[read("a", 0.5), other], &how).map(drop).unwrap_err().to_string()
    };
    let table: [(Change<AdapterConfig>, &str); 9] = [
        (|c| c.dora = true, "use_dora"),
        (|c| c.bias = Bias::All, "bias"),
        (|c| c.lora_bias = true, "lora_bias"),
        (|c| c.modules_to_save = vec!["lm_head".into()], "modules_to_save"),
        (|c| c.ensure_weight_tying = true, "ensure_weight_tying"),
        (|c| c.layers = Some(vec![0]), "layers_to_transform"),
        (|c| c.exclude = Some(Targets::List(vec!["k_proj".into()])), "exclude_modules"),
        (|c| c.targets = Targets::List(vec!["q_proj".into()]), "which is no target"),
        (|c| c.rank = 5, "rank 5 in both"),
    ];
    for (change, wanted) in table {
        let error = with(change);
        assert!(error.contains(wanted) && error.contains("combined/"), "{error}");
    }
    let broken = |change: fn(&mut BTreeMap<String, HostTensor>)| {
        let mut other = read("b", 0.5);
        change(&mut other.adapter.tensors);
        combine(&[read("a", 0.5), other], &How::named("svd").unwrap()).map(drop).unwrap_err().to_string()
    };
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    assert!(read("b", 1.0).adapter.tensors.contains_key(q));
    let table: [(Change<BTreeMap<String, HostTensor>>, &str); 3] = [
        (|t| drop(t.remove("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")), "without"),
        (
            |t| drop(t.insert("base_model.model.score.weight".into(), HostTensor { shape: vec![1], data: vec![1.0] })),
            "score",
        ),
        (
            |t| {
                let a = t.get_mut("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
                (a.shape, a.data) = (vec![4, 5], vec![0.0; 20]);
            },
            "24 by 24 features, and of 24 by 5",
        ),
    ];
    for (change, wanted) in table {
        let error = broken(change);
        assert!(error.contains(wanted), "{error}");
    }
    let dir = common::root("tests/fixtures/peft");
    for (name, wanted) in [("ia3", "method ia3"), ("pissa", "init_lora_weights"), ("dora", "use_dora")] {
        let found = Weighted::read(&dir.join(name), 1.0).and_then(|w| combine(&[w], &How::named("svd").unwrap()));
        let error = found.map(drop).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// The command writes an adapter that is read like any other; calls that make no sense leave nothing.
#[test]
fn the_command() {
    let scratch = Scratch::new("command");
    let path = |name: &str| scratch.0.join(name).display().to_string();
    let [a, b, c] = ["a", "b", "c"].map(|name| golden().join(name).display().to_string());
    let merge = ["adapters", "merge"];
    let (half, minus) = (format!("{a}:0.5"), format!("{c}:-1"));
    let out = path("cat");
    let (code, stdout, stderr) =
        run(&[&merge[..], &["--adapter", &half, &b, "--adapter", &minus, "--method", "cat", "--out", &out]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(&format!("0.5 × {a} + 1 × {b} + -1 × {c} by cat: 6 modules, rank 10, ")), "{stdout}");
    let opened = peft::open(Path::new(&out)).unwrap();
    let wanted = [read("a", 0.5), read("b", 1.0), read("c", -1.0)];
    let wanted = combine(&wanted, &How::named("cat").unwrap()).unwrap();
    assert_eq!(opened.tensors, wanted.tensors);
    assert_eq!(opened.config["lora_alpha"], 10);
    let card = std::fs::read_to_string(Path::new(&out).join("README.md")).unwrap();
    assert!(card.contains("Made of ") && card.contains(" by cat.") && !card.contains("Trained"), "{card}");
    let (code, _, stderr) = run(&[&merge[..], &["--adapter", &a, "--out", &path("alone")]].concat());
    assert!(code == 0 && stderr.contains("note: one adapter"), "{stderr}");
    let table: [(&[&str], i32, &str); 11] = [
        (&["--adapter", &a, &b, "--method", "ties"], 2, "--density"),
        (&["--adapter", &a, &b, "--density", "0.5"], 2, "--density"),
        (&["--adapter", &a, &b, "--method", "ties", "--density", "0"], 2, "above 0"),
        (&["--adapter", &a, &b, "--method", "ties", "--density", "nan"], 2, "above 0"),
        (&["--adapter", &a, &b, "--method", "linear", "--svd-rank", "3"], 2, "--svd-rank"),
        (&["--adapter", &a, &b, "--svd-rank", "0"], 2, "1 to 65536"),
        (&["--adapter", &a, &b, "--majority-sign", "total"], 2, "--majority-sign"),
        (&["--adapter", &a, "nowhere:inf"], 2, "nowhere:inf"),
        (&["--adapter", &a, "nowhere:0.5"], 1, "nowhere"),
        (&["--adapter", &a, &c, "--method", "linear"], 1, "4 and 2"),
        (&["--method", "linear"], 2, "--adapter"),
    ];
    for (args, wanted, word) in table {
        let (code, _, stderr) = run(&[&merge[..], args, &["--out", &path("none")]].concat());
        assert!(code == wanted && stderr.contains(word), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = run(&[&merge[..], &["--adapter", &a, &b, "--out", &a]].concat());
    assert!(code == 1 && stderr.contains("out"), "{stderr}");
    let mut left: Vec<String> =
        std::fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["alone", "cat"]);
}

/// On a model: parts of an adapter that add up to it compute what it does, by every way that is exact.
#[test]
fn parts_that_add_up_compute_the_whole() {
    let scratch = Scratch::new("parts");
    for name in ["llama-lora-all-linear", "llama-lora-patterns", "llama-lora-embed-head", "gpt2-conv1d-lora"] {
        let case = common::root("tests/fixtures/families2").join(name);
        let adapter = case.join("adapter");
        let config = |adapter: &Path| {
            let flags = [("model", case.join("model")), ("adapter", adapter.into()), ("device", "cpu".into())];
            let flags = flags.map(|(name, value): (&str, PathBuf)| (name, value.display().to_string()));
            RunConfig::resolve(None, &Flags(flags.to_vec())).unwrap()
        };
        let parts = |method: &str, weights: [f64; 2]| {
            let out = scratch.0.join(format!("{name}-{method}-{}", weights[1]));
            let adapters = weights.map(|weight| format!("{}:{weight}", adapter.display()));
            trimtab::run::combine::write(&adapters, &How::named(method).unwrap(), &out).unwrap();
            let found = compare(&config(&adapter), &config(&out)).unwrap().unwrap();
            found.largest / found.of
        };
        for method in ["cat", "svd"] {
            let apart = parts(method, [0.25, 0.75]);
            assert!(apart < 1e-5, "{name} {method}: {apart:e}");
        }
        let apart = parts("svd", [0.25, 0.5]);
        assert!(apart > 1e-4, "{name}: {apart:e}");
    }
}
