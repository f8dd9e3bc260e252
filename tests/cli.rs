//! The command line as a user meets it: what it prints where, its exit codes, and settings that can be traced.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::scratch::Scratch;
use serde_json::Value;
use trimtab::config::{FIELDS, Flags, RunConfig};

impl Scratch {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_trimtab")).args(args).current_dir(&self.0).output().unwrap();
        Ran { args: args.join(" "), output }
    }
}

struct Ran {
    args: String,
    output: Output,
}

impl Ran {
    fn out(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }
    fn err(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }
    /// Standard output of a command that succeeded.
    fn ok(self) -> String {
        assert_eq!(self.output.status.code(), Some(0), "{}: {}", self.args, self.err());
        self.out()
    }
    /// Standard error of a command that ended with `code` and printed no result.
    fn fails(self, code: i32) -> String {
        let (out, err) = (self.out(), self.err());
        assert_eq!(self.output.status.code(), Some(code), "{}: {out}{err}", self.args);
        assert_eq!(out, "", "{}", self.args);
        assert!(err.starts_with("error: ") && !err.contains("panicked"), "{}: {err}", self.args);
        err
    }
}

fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path).display().to_string()
}

#[test]
fn predictions_are_an_object_a_row() {
    let scratch = Scratch::new("predict");
    let case = |path: &str| fixture(&format!("families2/llama-classify-lora/{path}"));
    let (model, adapter, data) = (case("model"), case("adapter"), case("batch.jsonl"));
    let args = ["predict", "--model", &model, "--adapter", &adapter, "--data", &data, "--device", "cpu"];
    let ran = scratch.run(&args);
    assert!(ran.err().contains("task sequence-classification, 3 labels: LABEL_0, LABEL_1, LABEL_2"), "{}", ran.err());
    let lines: Vec<Value> = ran.ok().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let golden = common::golden::Golden::open(case("golden.safetensors"));
    let logits = golden.f32("logits");
    assert_eq!(lines.len(), 3);
    for (line, logits) in lines.iter().zip(logits.chunks(3)) {
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let best = (0..3).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(line["label"], format!("LABEL_{best}"));
        for (i, &x) in logits.iter().enumerate() {
            let got = line["scores"][format!("LABEL_{i}")].as_f64().unwrap();
            assert!((got - f64::from(x).exp() / sum).abs() < 1e-5, "{line}");
        }
    }
    let model = ["predict", "--model", &model];
    assert!(scratch.run(&model).fails(2).contains("neither --data nor a text"));
    assert!(scratch.run(&[&model[..], &["--text", "a", "--data", &data]].concat()).fails(2).contains("both --data"));
    assert!(
        scratch.run(&[&model[..], &["--data", &data, "--task", "causal-lm"]].concat()).fails(1).contains("causal-lm")
    );
}

/// Encoders and GPT-2 train and predict from the command line; a sequence for which there are no positions is an error.
#[test]
fn a_model_with_a_table_of_positions_takes_no_longer_sequences() {
    let scratch = Scratch::new("positions");
    let case = |path: &str| fixture(&format!("families2/{path}"));
    for (name, most) in [("bert-classify-lora", 64), ("roberta-classify-lora", 64), ("gpt2-conv1d-lora", 64)] {
        let (model, data) = (case(&format!("{name}/model")), case(&format!("{name}/batch.jsonl")));
        let train = |data: &str, out: &str| {
            let sizes = ["--steps", "2", "--micro-tokens", "128", "--max-seq-len", "128", "--device", "cpu"];
            let args = ["train", "--model", &model, "--data", data, "--out", out, "--overwrite"];
            scratch.run(&[&args[..], &sizes].concat())
        };
        train(&data, name).ok();
        let adapter = trimtab::peft::open(&scratch.0.join(name)).unwrap();
        assert_eq!(adapter.config["fan_in_fan_out"], name.starts_with("gpt2"));
        let row = |tokens: usize| {
            let ids = vec!["7"; tokens].join(",");
            format!("{{\"input_ids\": [{ids}], \"label\": 1}}\n")
        };
        scratch.write("fits.jsonl", &row(most));
        scratch.write("long.jsonl", &row(most + 1));
        train("fits.jsonl", "fits").ok();
        // What a run has told before it read its data comes first.
        let ran = train("long.jsonl", "long");
        let error = ran.err();
        assert_eq!(ran.output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("--max-seq-len {most}")), "{error}");
    }
}

#[test]
fn help_tells_every_setting_and_its_default() {
    let scratch = Scratch::new("help");
    for command in ["train", "plan", "quickstart"] {
        let help = scratch.run(&[command, "--help"]).ok();
        let words: Vec<&str> = help.split_whitespace().collect();
        let help = words.join(" "); // lines are folded
        for field in FIELDS {
            let on_by_default = field.is_switch && field.default_text().as_deref() == Some("true");
            let flag = format!("--{}{}", if on_by_default { "no-" } else { "" }, field.key());
            assert!(words.contains(&flag.as_str()) || help.contains(&format!("{flag}[=")), "{command}: {flag}");
            assert!(help.contains(field.help), "{command}: {}", field.help);
            let default = field.default_text().filter(|_| !field.is_switch);
            assert!(default.is_none_or(|d| help.contains(&format!("[default: {d}]"))), "{command}: default of {flag}");
        }
    }
    let help = scratch.run(&["--help"]).ok();
    assert!(["train", "generate", "plan", "devices", "quickstart"].iter().all(|c| help.contains(c)), "{help}");
    let help = scratch.run(&["generate", "--help"]).ok();
    let flags = ["model", "adapter", "prompt", "max-tokens", "temperature", "top-p", "top-k", "seed", "device"];
    assert!(flags.iter().all(|f| help.contains(&format!("--{f} "))), "{help}");
    assert!(!help.contains("--rank"));
    assert!(scratch.run(&["--version"]).ok().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn calls_that_make_no_sense_exit_with_2() {
    let scratch = Scratch::new("usage");
    scratch.write("typo.toml", "rnak = 4\n");
    scratch.write("broken.toml", "rank = \n");
    scratch.write("clash.toml", "steps = 4\nepochs = 1\n");
    let table: &[(&[&str], &[&str])] = &[
        (&["trian"], &["trian", "train"]),
        (&["train", "--rnak", "4"], &["--rnak", "--rank"]),
        (&["train", "--method", "qlora"], &["qlora", "lora, full"]),
        (&["train", "--rank", "four"], &["--rank", "four", "hint: expected a whole number"]),
        (&["train", "--rank", "-1"], &["--rank", "-1"]),
        (&["train", "--lr", "nan"], &["lr", "hint: "]),
        (&["train", "--config", "typo.toml"], &["typo.toml", "`rnak`", "`rank`"]),
        (&["train", "--config", "broken.toml"], &["broken.toml"]),
        (&["train", "--config", "clash.toml"], &["steps and epochs"]),
        (&["train", "--config", "nowhere.toml"], &["nowhere.toml"]),
        (&["train"], &["--out"]),
        (&["train", "--out", "x"], &["--model"]),
        (&["train", "--out", "x", "--model", "m"], &["--data"]),
        (&["train", "--quantize", "nf4", "--method", "full"], &["quantize"]),
        (&["train", "--double-quant"], &["double-quant"]),
        (&["quickstart", "--config", "typo.toml"], &["--config"]),
        (&["plan"], &["--model"]),
        (&["plan", "--device", "gpu"], &["--device", "wgpu:N"]),
        (&["generate", "--model", "m"], &["--prompt"]),
        (&["generate", "--prompt", "x"], &["--model"]),
        (&["generate", "--model", "m", "--prompt", "x", "--top-p", "0"], &["--top-p"]),
        (&["generate", "--model", "m", "--prompt", "x", "--temperature", "-1"], &["--temperature"]),
        (&["generate", "--model", "m", "--prompt", "x", "--rank", "4"], &["--rank"]),
    ];
    for (args, parts) in table {
        let error = scratch.run(args).fails(2);
        assert!(parts.iter().all(|p| error.contains(p)), "{args:?}: {error}");
    }
    assert!(!scratch.0.join("x").exists(), "a run folder for a run that was not begun");
}

#[test]
fn work_that_fails_exits_with_1() {
    let scratch = Scratch::new("work");
    scratch.write("data.jsonl", "{\"input_ids\": [1, 2, 3], \"labels\": [1, 2, 3]}\n");
    std::fs::create_dir(scratch.0.join("empty")).unwrap();
    let rest = ["--data", "data.jsonl", "--out", "x", "--device", "cpu"];
    for model in ["nowhere", "empty"] {
        let error = scratch.run(&[&["train", "--model", model][..], &rest].concat()).fails(1);
        assert!(error.contains(model), "{error}");
        let error = scratch.run(&["plan", "--model", model, "--device", "cpu"]).fails(1);
        assert!(error.contains(model), "{error}");
        let error = scratch.run(&["generate", "--model", model, "--prompt", "x", "--device", "cpu"]).fails(1);
        assert!(error.contains(model), "{error}");
    }
    assert!(!scratch.0.join("x").exists());
}

/// The value and the origin of each line of `--show-config`.
fn shown(text: &str) -> Vec<(String, String, String)> {
    let settings = text.lines().filter(|l| l.contains(" = ") && !l.starts_with('#'));
    settings
        .map(|l| {
            let (key, rest) = l.split_once(" = ").unwrap();
            let (value, origin) = rest.rsplit_once(" # ").unwrap();
            (key.into(), value.trim().into(), origin.into())
        })
        .collect()
}

#[test]
fn show_config_says_what_counts_and_where_it_comes_from() {
    let scratch = Scratch::new("show");
    scratch.write("run.toml", "rank = 4\nlr = 1e-3\nshuffle = false\ntargets = ['q_proj', 'v_proj']\n");
    let args = ["train", "--config", "run.toml", "--rank", "8", "--quantize", "nf4", "--double-quant", "--show-config"];
    let text = scratch.run(&args).ok();
    let lines = shown(&text);
    let get = |key: &str| lines.iter().find(|l| l.0 == key).map(|l| (l.1.as_str(), l.2.as_str()));
    let table = [
        ("rank", "8", "flag --rank"),
        ("lr", "1e-3", "run.toml"),
        ("shuffle", "false", "run.toml"),
        ("targets", "[\"q_proj\", \"v_proj\"]", "run.toml"),
        ("quantize", "\"nf4\"", "flag --quantize"),
        ("double-quant", "true", "flag --double-quant"),
        ("alpha", "16.0", "default"),
        ("seed", "42", "default"),
    ];
    for (key, value, origin) in table {
        assert_eq!(get(key), Some((value, origin)), "{key} in {text}");
    }
    assert!(text.contains("# model is not set"));

    // What is shown, saved to a file, is the same settings, all from that file.
    scratch.write("again.toml", &text);
    let again = scratch.run(&["train", "--config", "again.toml", "--show-config"]).ok();
    let values =
        |lines: &[(String, String, String)]| lines.iter().map(|l| (l.0.clone(), l.1.clone())).collect::<Vec<_>>();
    assert_eq!(values(&shown(&again)), values(&lines));
    assert!(shown(&again).iter().all(|l| l.2 == "again.toml"), "{again}");

    // Switches, on and off, the last one counting.
    let table: &[(&[&str], &str)] = &[
        (&[], "true"),
        (&["--no-shuffle"], "false"),
        (&["--shuffle"], "true"),
        (&["--shuffle=false"], "false"),
        (&["--no-shuffle", "--shuffle"], "true"),
        (&["--shuffle", "--no-shuffle"], "false"),
        (&["--config", "run.toml"], "false"),
        (&["--config", "run.toml", "--shuffle"], "true"),
    ];
    for (flags, expected) in table {
        let text = scratch.run(&[&["train", "--show-config"], *flags].concat()).ok();
        let found = shown(&text).into_iter().find(|l| l.0 == "shuffle").unwrap().1;
        assert_eq!(found, *expected, "{flags:?}");
    }
    // Flags may be repeated.
    let text = scratch.run(&["train", "--show-config", "--rank", "1", "--rank", "2"]).ok();
    assert_eq!(shown(&text).iter().find(|l| l.0 == "rank").unwrap().1, "2");
}

#[test]
fn the_command_line_and_the_library_mean_the_same() {
    let scratch = Scratch::new("same");
    let text = scratch.run(&["plan", "--show-config", "--rank=3", "--alpha", "-2", "--device", "wgpu:1"]).ok();
    let flags = Flags::of(&[("rank", "3"), ("alpha", "-2"), ("device", "wgpu:1")]).unwrap();
    assert_eq!(text, RunConfig::resolve(None, &flags).unwrap().to_toml());
}

#[test]
fn an_adapter_is_followed() {
    let scratch = Scratch::new("adapter");
    let adapter = fixture("peft/rslora");
    let text = scratch.run(&["train", "--show-config", "--adapter", &adapter]).ok();
    let rank = shown(&text).into_iter().find(|l| l.0 == "rank").unwrap();
    assert_eq!(rank.1, "4");
    assert!(rank.2.ends_with("adapter_config.json"), "{}", rank.2);
    let error = scratch.run(&["train", "--show-config", "--adapter", &adapter, "--rank", "8"]).fails(2);
    assert!(error.contains("rank") && error.contains("hint: expected 4"), "{error}");
    let error = scratch.run(&["train", "--show-config", "--adapter", &fixture("peft/lora_target_parameters")]).fails(2);
    assert!(error.contains("target_parameters") && error.contains("hint: "), "{error}");
}

#[test]
fn devices_says_what_auto_takes_and_why() {
    let scratch = Scratch::new("devices");
    let text = scratch.run(&["devices"]).ok();
    assert!(text.starts_with("cpu "), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("auto ") && last.contains(" takes ") && last.contains(": "), "{text}");
}

#[test]
fn plan_prints_the_account() {
    let scratch = Scratch::new("plan");
    let model = fixture("golden/base");
    // Of several micro-batches, whose gradients have a place of their own.
    let sizes = ["--max-seq-len", "32", "--micro-tokens", "32"];
    let args = [&["plan", "--model", &model, "--device", "cpu", "--rank", "4"], &sizes[..]].concat();
    let table = scratch.run(&args).ok();
    let json: Value = serde_json::from_str(&scratch.run(&[&args[..], &["--json"]].concat()).ok()).unwrap();
    let rows = json["rows"].as_object().unwrap();
    let total: u64 = rows.values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(json["total"], total);
    for class in ["frozen weights", "trainable weights", "gradients", "optimizer state", "activations"] {
        assert!(rows.get(class).is_some_and(|b| b.as_u64() > Some(0)) && table.contains(class), "{class}: {table}");
    }
    assert!(table.contains("total"));
    // Four times the rank, four times the adapter: the account is of this run and not of another.
    let wide: Value =
        serde_json::from_str(&scratch.run(&[&args[..], &["--json", "--rank", "16"]].concat()).ok()).unwrap();
    assert_eq!(wide["rows"]["trainable weights"].as_u64(), rows["trainable weights"].as_u64().map(|b| 4 * b));
}

/// An adapter is of no use where a frozen part of the model was drawn: it is said when it is trained.
#[test]
fn a_frozen_part_that_the_files_lack_is_said() {
    use trimtab::weights::{Checkpoint, safetensors};
    let scratch = Scratch::new("pooler");
    let case = |path: &str| fixture(&format!("families2/bert-classify-lora/{path}"));
    std::fs::create_dir_all(scratch.0.join("model")).unwrap();
    std::fs::copy(case("model/config.json"), scratch.0.join("model/config.json")).unwrap();
    let whole = Checkpoint::open(case("model")).unwrap();
    let kept = whole.names().filter(|name| !name.contains("pooler"));
    let tensors = kept.map(|name| safetensors::Tensor {
        name: name.into(),
        dtype: safetensors::Dtype::F32,
        shape: whole.info(name).unwrap().shape.clone(),
        bytes: bytemuck::cast_slice::<f32, u8>(&whole.read(name).unwrap()).to_vec().into(),
    });
    let path = scratch.0.join("model/model.safetensors");
    safetensors::write_safetensors(&path, &Default::default(), tensors).unwrap();
    for (model, said) in [("model".to_string(), true), (case("model"), false)] {
        let args = ["train", "--model", &model, "--data", &case("batch.jsonl"), "--out", "run", "--overwrite"];
        let ran = scratch.run(&[&args[..], &["--steps", "1", "--max-seq-len", "64", "--device", "cpu"]].concat());
        let talk = ran.err();
        ran.ok();
        assert_eq!(talk.contains("pooler.dense.weight is not in the model's files"), said, "{talk}");
    }
}

const DATA: &str = "{\"input_ids\": [1, 5, 9, 13, 2], \"labels\": [-100, 5, 9, 13, 2]}\n\
                    {\"input_ids\": [1, 7, 7, 2], \"labels\": [1, 7, 7, 2]}\n\
                    {\"input_ids\": [1, 90, 80, 70, 60, 50, 2], \"labels\": [-100, -100, -100, 70, 60, 50, 2]}\n";

#[test]
fn a_run_leaves_its_folder_and_can_be_repeated() {
    let scratch = Scratch::new("run");
    scratch.write("data.jsonl", DATA);
    let model = fixture("golden/base");
    let args =
        ["train", "--model", &model, "--data", "data.jsonl", "--device", "cpu", "--steps", "3", "--batch-size", "2"];
    let more = ["--max-seq-len", "16", "--rank", "4", "--dropout", "0.1", "--out", "runs/a"];
    let ran = scratch.run(&[&args[..], &more].concat());
    let talk = ran.err();
    assert!(ran.ok().contains("3 steps"));
    // The account comes before the first step.
    let (plan, step) = (talk.find("frozen weights"), talk.find("step 1/3"));
    assert!(plan.is_some() && plan < step, "{talk}");
    assert!(talk.contains("step 3/3") && talk.contains("tokens/s") && !talk.contains('\x1b'), "{talk}");

    let metrics = String::from_utf8(scratch.read("runs/a/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["run", "examples", "step", "step", "step", "examples", "end"]);
    for line in [&lines[1], &lines[5]] {
        let measured = line["examples"].as_array().unwrap();
        assert_eq!(measured.len(), 3);
        assert!(
            measured.iter().all(|e| e["loss"].as_f64() > Some(0.0) && e["text"].as_str().unwrap().contains('⟦')),
            "{line}"
        );
    }
    assert_ne!(lines[1]["examples"][0]["loss"], lines[5]["examples"][0]["loss"]);
    assert_eq!((&lines[0]["event"], &lines[0]["config"]["rank"]), (&"run".into(), &4.into()));
    assert!(lines[0]["device"].is_string() && lines[0]["versions"]["trimtab"].is_string());
    for (i, line) in lines[2..5].iter().enumerate() {
        assert_eq!((&line["event"], &line["step"]), (&"step".into(), &(i + 1).into()));
        for key in ["loss", "lr", "grad_norm", "tokens", "tokens_per_second"] {
            assert!(line[key].is_number(), "{key} in {line}");
        }
    }
    for file in ["adapter_config.json", "README.md"] {
        assert!(!scratch.read(&format!("runs/a/{file}")).is_empty());
    }

    // The saved settings repeat the run to the bit; another seed does not.
    scratch.run(&["train", "--config", "runs/a/config.toml", "--out", "runs/b"]).ok();
    scratch.run(&["train", "--config", "runs/a/config.toml", "--out", "runs/c", "--seed", "1"]).ok();
    let weights = |run: &str| scratch.read(&format!("runs/{run}/adapter_model.safetensors"));
    assert!(weights("a") == weights("b"), "the same run gave other bytes");
    assert!(weights("a") != weights("c"), "another seed gave the same bytes");

    // Training goes on from the adapter, which sets the method.
    let rest = ["--data", "data.jsonl", "--device", "cpu", "--steps", "1", "--max-seq-len", "16"];
    scratch.run(&[&["train", "--model", &model, "--adapter", "runs/a", "--out", "runs/d"][..], &rest].concat()).ok();
    let rank = |run: &str| -> Value {
        serde_json::from_slice(&scratch.read(&format!("runs/{run}/adapter_config.json"))).unwrap()
    };
    assert_eq!(rank("a")["r"], rank("d")["r"]);
}

#[test]
fn some_tokens_are_trained() {
    let scratch = Scratch::new("tokens");
    scratch.write("data.jsonl", DATA);
    let model = fixture("golden/base");
    let rest = ["--data", "data.jsonl", "--device", "cpu", "--steps", "2", "--max-seq-len", "16", "--lr", "0.01"];
    let train = |more: &[&str]| scratch.run(&[&["train", "--model", &model][..], more, &rest].concat());
    let method = ["--method", "trainable-tokens", "--out", "a", "--overwrite"];
    assert!(train(&method).fails(1).contains("trainable-tokens"));
    train(&[&method[..], &["--trainable-tokens", "7,90,3"]].concat()).ok();
    let config: Value = serde_json::from_slice(&scratch.read("a/adapter_config.json")).unwrap();
    let found = ["peft_type", "token_indices", "target_modules"].map(|key| config[key].to_string());
    assert_eq!(found, ["\"TRAINABLE_TOKENS\"", "[7,90,3]", "\"model.embed_tokens\""]);
    // Training goes on from there.
    train(&["--adapter", "a", "--out", "b"]).ok();
    assert!(scratch.read("a/adapter_model.safetensors") != scratch.read("b/adapter_model.safetensors"));
    let head = ["--trainable-tokens", "7", "--targets", "embed_tokens,lm_heat"];
    assert!(train(&[&method[..], &head].concat()).fails(1).contains("model.embed_tokens or lm_head"));
}

#[test]
fn a_profile_tells_the_time_of_each_op_and_changes_nothing() {
    let scratch = Scratch::new("profile");
    scratch.write("data.jsonl", DATA);
    let model = fixture("golden/base");
    let args = ["train", "--model", &model, "--data", "data.jsonl", "--device", "cpu", "--batch-size", "2"];
    let train = |out: &str, more: &[&str]| {
        let ran = scratch.run(&[&args[..], &["--max-seq-len", "16", "--rank", "4", "--out", out], more].concat());
        let talk = ran.err();
        ran.ok();
        let metrics = String::from_utf8(scratch.read(&format!("{out}/metrics.jsonl"))).unwrap();
        let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        (talk, lines.into_iter().find(|l| l["event"] == "profile"))
    };
    let (talk, profile) = train("with", &["--steps", "3", "--profile"]);
    let profile = profile.expect("a line of the profile");
    assert!(talk.contains("time by op") && talk.contains("the rest"), "{talk}");
    assert_eq!(profile["steps"], 2, "the first step counts");
    let ops = profile["ops"].as_array().unwrap();
    let mut sum = 0.0;
    for op in ops {
        assert!(talk.contains(op["op"].as_str().unwrap()), "{op} is not in {talk}");
        // Phases of the step run once a micro-batch or once a step.
        assert!(op["launches"].as_u64().unwrap() >= 2 && op["bytes"].as_u64().unwrap() > 0, "{op}");
        sum += op["seconds"].as_f64().unwrap();
    }
    let whole = profile["seconds"].as_f64().unwrap();
    assert!(sum > 0.0 && sum <= whole, "{sum} s in ops of {whole} s");
    for op in ["linear", "attention_bwd", "linear_cross_entropy", "adamw"] {
        let found = ops.iter().find(|o| o["op"] == op).unwrap_or_else(|| panic!("no {op} in {profile}"));
        assert!(found["flops"].as_u64().unwrap() > 0, "{found}");
    }
    // One step is all there is to time.
    assert_eq!(train("one", &["--steps", "1", "--profile"]).1.unwrap()["steps"], 1);
    // The control: a run that is not asked says nothing, and trains the same.
    let (talk, none) = train("without", &["--steps", "3"]);
    assert!(none.is_none() && !talk.contains("time by op"), "{talk}");
    let weights = |run: &str| scratch.read(&format!("{run}/adapter_model.safetensors"));
    assert!(weights("with") == weights("without"), "the profile changed the result");
    assert!(weights("with") != weights("one"));
}

/// The shipped config and tokenizer, with weights of one step from random ones: nonsense, but text.
#[test]
fn a_model_made_here_continues_a_text() {
    let scratch = Scratch::new("generate");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (base, data) = (root.join("assets/base"), root.join("assets/shakespeare.txt"));
    let paths = ["--model", base.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let small = ["--steps", "1", "--warmup", "0", "--batch-size", "1", "--max-seq-len", "32", "--device", "cpu"];
    let full = ["train", "--method", "full", "--init", "random", "--out", "base"];
    scratch.run(&[&full[..], &paths, &small].concat()).ok();
    let lora = ["train", "--model", "base", "--data", data.to_str().unwrap(), "--quantize", "nf4", "--out", "adapter"];
    scratch.run(&[&lora[..], &small, &["--lr", "0.1"]].concat()).ok();

    let text = |more: &[&str]| {
        let args = ["generate", "--model", "base", "--prompt", "ROMEO:", "--max-tokens", "12", "--device", "cpu"];
        scratch.run(&[&args[..], more].concat()).ok()
    };
    let first = text(&[]);
    assert!(first.starts_with("ROMEO:") && first.ends_with('\n') && first.len() > "ROMEO:\n".len(), "{first:?}");
    assert_eq!(first, text(&[]), "the same call, another text");
    assert_ne!(first, text(&["--seed", "7"]));
    assert_ne!(first, text(&["--adapter", "adapter"]), "the adapter changes nothing");
    // The likeliest token does not depend on the seed, nor does the only candidate.
    let greedy = text(&["--temperature", "0"]);
    assert_eq!(greedy, text(&["--temperature", "0", "--seed", "7"]));
    assert_eq!(greedy, text(&["--top-k", "1"]));
    assert_eq!(text(&["--max-tokens", "0"]), "ROMEO:\n");
    // What is trained on the embedding is told by its adapter, and goes on from there.
    for (name, flags) in [("tokens", ["--trainable-tokens", "5,17"]), ("table", ["--targets", "q_proj,embed_tokens"])] {
        let train = ["train", "--model", "base", "--data", data.to_str().unwrap(), "--lr", "0.1", "--out"];
        scratch.run(&[&train[..], &[name], &small, &flags].concat()).ok();
        assert_ne!(first, text(&["--adapter", name]), "{name} changes nothing");
        scratch.run(&[&train[..], &["further", "--overwrite", "--adapter", name], &small].concat()).ok();
        let config = |dir: &str| -> Value {
            serde_json::from_slice(&scratch.read(&format!("{dir}/adapter_config.json"))).unwrap()
        };
        assert_eq!(config(name), config("further"));
    }
    // More than the model was made for is a setting that makes no sense to it.
    let args = ["generate", "--model", "base", "--prompt", "x", "--max-tokens", "1000000", "--device", "cpu"];
    assert!(scratch.run(&args).fails(1).contains("--max-tokens"));
}

/// Rows of several files with weights, rows that are held out, rows on standard input: the run says what it reads, and goes on
/// after a stop as if there had been none.
#[test]
fn data_comes_from_several_files_and_standard_input() {
    let scratch = Scratch::new("several");
    let base = fixture("golden/base");
    let rows = |from: u32, to: u32| {
        (from..to).map(|i| format!("{{\"input_ids\": [5, {}, 7, {i}]}}\n", i % 9)).collect::<String>()
    };
    std::fs::create_dir(scratch.0.join("more")).unwrap();
    scratch.write("a.jsonl", &rows(10, 22));
    scratch.write("more/b.csv", "input_ids,note\n\"[1, 2, 3, 4]\",x\n\"[4, 3, 2, 1]\",\n");
    scratch.write("more/c.jsonl", &rows(30, 36));
    let shape = [
        "--model",
        &base,
        "--max-seq-len",
        "16",
        "--rank",
        "2",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--save-every",
        "1",
    ];
    let train = |out: &str, more: &[&str]| scratch.run(&[&["train", "--out", out][..], &shape, more].concat());
    let data = ["--data", "a.jsonl:0.3", "more:0.7", "--split", "0.2", "--epochs", "2"];
    let whole = train("whole", &data);
    let told = whole.err();
    assert!(
        told.contains("data a.jsonl (jsonl), more/b.csv (csv), more/c.jsonl (jsonl), of which 0.2 is held out"),
        "{told}"
    );
    assert!(told.contains(" rows to evaluate on") && told.contains("perplexity"), "{told}");
    whole.ok();
    // The saved settings repeat it; a run that is stopped and goes on ends in the same bytes.
    scratch.run(&["train", "--config", "whole/config.toml", "--out", "again"]).ok();
    train("part", &[&data[..5], &["--steps", "3", "--schedule", "constant"]].concat()).ok();
    train("long", &[&data[..5], &["--steps", "6", "--schedule", "constant"]].concat()).ok();
    scratch.run(&["train", "--resume", "part", "--steps", "6"]).ok();
    let adapter = |run: &str| scratch.read(&format!("{run}/adapter_model.safetensors"));
    assert!(adapter("again") == adapter("whole") && adapter("part") == adapter("long"));
    // Other weights are other examples.
    let error = scratch.run(&["train", "--resume", "part", "--data", "a.jsonl:0.4", "more:0.6", "--steps", "7"]);
    assert!(error.err().contains("--resume: data"), "{}", error.err());

    // A row that comes several times in a step, longer than all that would be there without shares.
    scratch.write("long.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]}\n");
    scratch.write("short.jsonl", &"{\"input_ids\": [5, 6]}\n".repeat(6));
    let often = ["--data", "long.jsonl:0.9", "short.jsonl:0.1", "--steps", "4", "--max-seq-len", "64"];
    train("often", &often).ok();

    let piped = |out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.args(["train", "--out", out, "--data", "-", "--steps", "2"]).args(shape).current_dir(&scratch.0);
        command.stdin(std::fs::File::open(scratch.0.join("a.jsonl")).unwrap()).output().unwrap()
    };
    let output = piped("piped");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains("data standard input (jsonl)"), "{told}");
    train("named", &["--data", "a.jsonl", "--steps", "2"]).ok();
    assert!(adapter("piped") == adapter("named") && adapter("piped") != adapter("long"));
}

/// Words, and commands that begin with a slash, from a program instead of a keyboard.
#[test]
fn lines_lead_a_conversation() {
    let scratch = Scratch::new("talk");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (model, data) = (root.join("assets/base"), root.join("assets/shakespeare.txt"));
    let [model, data] = [&model, &data].map(|path| path.to_str().unwrap());
    let length = ["--steps", "2", "--lr", "0.05", "--batch-size", "2", "--max-seq-len", "32", "--device", "cpu"];
    scratch.run(&[&["train", "--model", model, "--data", data, "--out", "other"][..], &length].concat()).ok();
    let talk = |lines: &str, more: &[&str]| {
        scratch.write("lines", lines);
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.args([
            "chat",
            "--model",
            model,
            "--chat-template",
            "chatml",
            "--temperature",
            "0",
            "--max-tokens",
            "6",
        ]);
        command.args(["--device", "cpu"]).args(more).current_dir(&scratch.0);
        let output = command.stdin(std::fs::File::open(scratch.0.join("lines")).unwrap()).output().unwrap();
        Ran { args: format!("chat {more:?} < {lines:?}"), output }
    };
    let first = talk("Who is there?\n", &[]).ok();
    assert!(first.len() > 1 && first.ends_with('\n'), "{first:?}");
    // What was forgotten has no part in the answer, and an adapter has until it is taken away.
    let all = talk("Who is there?\n/adapter other\n/reset\nWho is there?\n/base\n/reset\nWho is there?\n", &[]).ok();
    let adapted = talk("Who is there?\n", &["--adapter", "other"]).ok();
    assert_eq!(all, format!("{first}{adapted}{first}"));
    assert_ne!(adapted, first);
    // What was not forgotten is read again.
    let context = ["--context", "80"];
    assert_eq!(talk("Who is there?\n/reset\nWho is there?\n", &context).ok(), format!("{first}{first}"));
    let ran = talk("Who is there?\nWho is there?\n", &context);
    assert!(ran.output.status.code() == Some(1) && ran.err().contains("/reset begins anew"), "{}", ran.err());
    assert!(talk("/nonsense\n", &[]).fails(1).contains("/system TEXT"));
    assert!(talk("Hello\n", &["--chat-template", "none.jinja"]).err().contains("none.jinja"));
}

/// The commands that `trimtab --help` lists.
fn commands(scratch: &Scratch) -> Vec<String> {
    let help = scratch.run(&["--help"]).ok();
    let (list, _) = help.split_once("Options:\n").unwrap();
    let lines = list.lines().filter(|line| line.starts_with("  "));
    let names: Vec<String> = lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    assert!(names.len() > 12 && names.contains(&"help".into()), "{names:?}");
    names.into_iter().filter(|name| name != "help").collect()
}

#[test]
fn shells_and_the_manual_know_every_command() {
    let scratch = Scratch::new("shells");
    let commands = commands(&scratch);
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let text = scratch.run(&["completions", shell]).ok();
        assert!(commands.iter().all(|command| text.contains(command.as_str())), "{shell}");
        assert!(text.contains("max-seq-len") && !text.contains("no-such-flag"), "{shell}");
    }
    assert!(scratch.run(&["completions", "tcsh"]).fails(2).contains("zsh"));
    let page = scratch.run(&["man"]).ok();
    assert!(page.contains(".TH trimtab 1") && !page.contains("no\\-such\\-command"), "{page}");
    assert!(scratch.run(&["man", "--out", "man1"]).ok().starts_with(&format!("{} pages", commands.len() + 1)));
    for command in &commands {
        assert!(page.contains(&format!("trimtab\\-{command}(1)")), "{command} is not in {page}");
        let own = String::from_utf8(scratch.read(&format!("man1/trimtab-{command}.1"))).unwrap();
        assert!(own.contains(&format!("trimtab\\-{command}")), "{own}");
    }
    assert!(scratch.read("man1/trimtab.1") == page.into_bytes());
}

#[test]
fn help_ends_with_examples() {
    let scratch = Scratch::new("examples");
    let help = scratch.run(&["--help"]).ok();
    assert!(help.contains("\nExamples:\n  trimtab quickstart\n"), "{help}");
    assert_eq!(scratch.run(&["help"]).ok(), help);
    for command in commands(&scratch) {
        let help = scratch.run(&[&command, "--help"]).ok();
        let (usage, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("no examples in {help}"));
        assert!(usage.contains("Usage: trimtab"), "{help}");
        assert!(examples.lines().next().unwrap().starts_with(&format!("  trimtab {command}")), "{help}");
        // The same by the other way, and in short.
        assert_eq!(scratch.run(&["help", &command]).ok(), help);
        let short = scratch.run(&[&command, "-h"]).ok();
        assert!(short.len() <= help.len() && short.contains("\nExamples:\n"), "{short}");
    }
}

/// What is told to be quiet says its result, or its error, and nothing else.
#[test]
fn a_quiet_run_says_the_result() {
    let scratch = Scratch::new("quiet");
    scratch.write("data.jsonl", DATA);
    let model = fixture("golden/base");
    let args = ["train", "--model", &model, "--data", "data.jsonl", "--device", "cpu", "--steps", "2", "--rank", "2"];
    let train = |more: &[&str]| scratch.run(&[&args[..], &["--max-seq-len", "16"], more].concat());
    let ran = train(&["--out", "quiet", "--quiet"]);
    assert_eq!(ran.err(), "");
    assert!(ran.ok().starts_with("2 steps, loss "));
    let error = train(&["--out", "quiet", "-q"]).fails(1);
    assert!(error.contains("which holds a run"), "{error}");
    // The control.
    let ran = train(&["--out", "talking"]);
    assert!(ran.err().contains("step 2/2"));
    ran.ok();
    let weights = |run: &str| scratch.read(&format!("{run}/adapter_model.safetensors"));
    assert!(weights("quiet") == weights("talking"));
    // Every command knows the flag, before its name and after it. Those that say anything else without it are controls.
    let of = ["--model", &model, "--adapter", "quiet", "--device", "cpu"];
    let eval = [&["eval"], &of[..], &["--data", "data.jsonl", "--max-seq-len", "16"]].concat();
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/base");
    let generate = ["generate", "--model", base, "--device", "cpu", "--prompt", "a", "--max-tokens", "2"];
    let preview = ["preview", "--model", &model, "--data", "data.jsonl"];
    for args in [&eval[..], &generate, &preview] {
        let (quiet, talking) = (scratch.run(&[&["-q"], args].concat()), scratch.run(args));
        assert!(quiet.err().is_empty() && !talking.err().is_empty(), "{args:?}: {}", quiet.err());
        assert_eq!(scratch.run(&[args, &["--quiet"]].concat()).ok(), talking.ok(), "{args:?}");
    }
}

/// Colours only where they are wanted, and no complaints of drivers.
#[test]
fn what_is_said_is_plain() {
    let scratch = Scratch::new("plain");
    let run = |args: &[&str], set: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
        command.args(args).current_dir(&scratch.0).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command.env_remove("XDG_RUNTIME_DIR").env_remove("WAYLAND_DISPLAY").envs(set.iter().copied());
        Ran { args: args.join(" "), output: command.output().unwrap() }
    };
    let forced = ("CLICOLOR_FORCE", "1");
    for (args, code) in [(&["train", "--help"][..], 0), (&["trian"], 2)] {
        let coloured = |set: &[(&str, &str)]| {
            let ran = run(args, set);
            assert_eq!(ran.output.status.code(), Some(code));
            (ran.out() + &ran.err()).contains('\x1b')
        };
        assert!(!coloured(&[]) && !coloured(&[forced, ("NO_COLOR", "1")]), "{args:?}");
        // The control: who forces colours gets them.
        assert!(coloured(&[forced]), "{args:?}");
    }
    // Libraries of drivers write to standard error where nobody can stop them.
    let ran = run(&["devices"], &[]);
    assert_eq!(ran.err(), "");
    ran.ok();
}

/// The whole tour, on a model that is made here; the shipped one takes a minute.
#[test]
fn quickstart_shows_before_and_after() {
    let scratch = Scratch::new("quickstart");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/base");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/shakespeare.txt");
    let small = ["--steps", "1", "--batch-size", "1", "--max-seq-len", "32", "--device", "cpu"];
    let full = ["train", "--method", "full", "--init", "random", "--out", "base"];
    let paths = ["--model", root.to_str().unwrap(), "--data", data.to_str().unwrap()];
    scratch.run(&[&full[..], &paths, &small].concat()).ok();
    let ran = scratch.run(&[&["quickstart", "--model", "base", "--out", "tour"][..], &small].concat());
    let talk = ran.err();
    let out = ran.ok();
    let order = ["before", "frozen weights", "step 1/1", "after"].map(|part| talk.find(part));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?} in {talk}");
    for file in
        ["adapter_model.safetensors", "adapter_config.json", "loss.svg", "report.html", "metrics.jsonl", "config.toml"]
    {
        assert!(!scratch.read(&format!("tour/{file}")).is_empty());
    }
    assert!(out.contains("tour/report.html") && out.contains("Next:"), "{out}");
    assert!(String::from_utf8(scratch.read("tour/loss.svg")).unwrap().starts_with("<svg"));
}

/// The shape of a model of some MiB.
const SHAPE: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "initializer_range": 0.02, "tie_word_embeddings": false}"#;

/// What the process may take beside its account.
const BESIDE: u64 = 60_000_000;

#[test]
fn a_model_made_up_trains_within_its_budget() {
    let scratch = Scratch::new("budget");
    scratch.write("shape.json", SHAPE);
    for (out, more) in [("m", &[][..]), ("again", &[]), ("other", &["--seed", "7"]), ("plain", &["--quantize", "none"])]
    {
        let mut args = vec!["synth", "--like", "shape.json", "--out", out, "--quantize", "nf4", "--dtype", "f32"];
        if out == "plain" {
            args.truncate(5);
        } else {
            args.push("--double-quant");
        }
        assert!(scratch.run(&[&args[..], more].concat()).ok().starts_with("wrote "));
    }
    let file = |folder: &str| scratch.read(&format!("{folder}/model.safetensors"));
    assert!(file("m") == file("again"), "the same seed gave other bytes");
    assert!(file("m") != file("other"), "the control: another seed gave the same bytes");
    let err = scratch.run(&["synth", "--like", "llama-9b", "--out", "x"]).fails(2);
    assert!(err.contains("tinyllama") && err.contains("config.json"), "{err}");

    let line = |i: u32| {
        let ids: Vec<u32> = (0..120).map(|j| (i * 977 + j * 31) % 4096).collect();
        format!("{{\"input_ids\": {ids:?}, \"labels\": {ids:?}}}\n")
    };
    scratch.write("data.jsonl", &(0..6).map(line).collect::<String>());
    let sizes = ["--max-seq-len", "128", "--micro-tokens", "128", "--batch-size", "2"];
    let common = [&["--data", "data.jsonl", "--device", "cpu"], &sizes[..]].concat();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&scratch.run(args).ok()).unwrap() };
    for (model, method) in [("m", "lora"), ("plain", "full")] {
        let run = ["--model", model, "--method", method, "--steps", "2"];
        let plan = |more: &[&str]| json(&[&["plan", "--json"], &common[..], &run, more].concat());
        let whole = plan(&[])["total"].as_u64().unwrap();
        // As much less as halves what may be saved.
        let budget = |bytes: u64| format!("{}", bytes + trimtab::memory::budget::PROCESS);
        let tight = budget(whole * 6 / 10);
        let fitted = plan(&["--memory", &tight, "--svg", "arena.svg"]);
        assert!(
            fitted["total"].as_u64().unwrap() <= whole * 6 / 10 && !fitted["choices"].as_array().unwrap().is_empty()
        );
        let svg = String::from_utf8(scratch.read("arena.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains(">peak<") && !svg.contains("NaN"));

        let mut losses = Vec::new();
        for (out, more) in [("loose", &[][..]), ("tight", &["--memory", &tight])] {
            let ran = scratch.run(&[&["train", "--overwrite", "--out", out], &common[..], &run, more].concat());
            let talk = ran.err();
            ran.ok();
            assert_eq!(talk.contains("to save memory"), out == "tight", "{talk}");
            let metrics = String::from_utf8(scratch.read(&format!("{out}/metrics.jsonl"))).unwrap();
            let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            losses.push([&lines[1], &lines[2]].map(|l| (l["loss"].clone(), l["grad_norm"].clone())));
            let end = lines.last().unwrap();
            assert_eq!(end["fetched_bytes"].as_u64() > Some(0), out == "tight", "{end}");
            if let (Some(peak), Some(account)) = (end["peak_resident_bytes"].as_u64(), end["account_bytes"].as_u64()) {
                assert!(peak <= account + BESIDE, "{model} {out}: {peak} bytes resident, an account of {account}");
            }
            let left: Vec<_> =
                std::fs::read_dir(scratch.0.join(out)).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(!left.iter().any(|f| f.to_string_lossy().contains("spill")), "{left:?}");
        }
        assert_eq!(losses[0], losses[1], "{model}: the budget changed the result");
        let err = scratch.run(&[&["train", "--out", "x", "--memory", &budget(1 << 20)], &common[..], &run].concat());
        let err = err.fails(1);
        assert!(err.contains("smallest --memory"), "{err}");
    }
}

/// A run's texts and examples, before and after, are on its page; the losses are those that `eval` finds.
#[test]
fn a_report_shows_texts_and_examples_before_and_after() {
    let scratch = Scratch::new("examined");
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/base").display().to_string();
    let row = |i: usize| format!("{{\"prompt\": \"Question {i}:\", \"completion\": \" The answer is <b>{i}</b>.\"}}\n");
    scratch.write("data.jsonl", &(0..12).map(row).collect::<String>());
    scratch.write("third.jsonl", &row(4));
    let args = ["train", "--model", &base, "--data", "data.jsonl", "--device", "cpu", "--steps", "30", "--lr", "2e-3"];
    let more = ["--batch-size", "4", "--report-examples", "3", "--samples", "2", "--out", "run"];
    let ran = scratch.run(&[&args[..], &more].concat());
    let talk = ran.err();
    ran.ok();
    assert_eq!(talk.matches("--- before the first step").count(), 2, "{talk}");
    assert_eq!(talk.matches("--- after the last step").count(), 2, "{talk}");
    let metrics = String::from_utf8(scratch.read("run/metrics.jsonl")).unwrap();
    let events: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| -> Vec<&Value> { events.iter().filter(|e| e["event"] == kind).collect() };
    let (examples, samples) = (of("examples"), of("sample"));
    assert_eq!((examples.len(), samples.len()), (2, 4));
    let numbers: Vec<u64> =
        examples[0]["examples"].as_array().unwrap().iter().map(|e| e["example"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 4, 8]);
    let loss = |event: &Value| event["examples"][1]["loss"].as_f64().unwrap();
    assert!(loss(examples[1]) < 0.5 * loss(examples[0]), "{examples:?}");
    for (adapter, event) in [(&[][..], examples[0]), (&["--adapter", "run"][..], examples[1])] {
        let eval = ["eval", "--model", &base, "--data", "third.jsonl", "--device", "cpu", "--json"];
        let found: Value = serde_json::from_str(&scratch.run(&[&eval[..], adapter].concat()).ok()).unwrap();
        let found = found["loss"].as_f64().or(found[0]["loss"].as_f64()).unwrap();
        assert!((found - loss(event)).abs() < 1e-4 * found, "{found} {event}");
    }
    assert!(samples.iter().all(|s| s["prompt"].as_str().unwrap().contains("Question")), "{samples:?}");
    assert!(samples[2]["text"].as_str().unwrap().contains("The answer is"), "{samples:?}");
    let page = String::from_utf8(scratch.read("run/report.html")).unwrap();
    assert!(page.contains("<h2>Texts</h2>") && page.contains("<h2>Examples</h2>"), "{page}");
    assert!(page.contains("&lt;b>") && !page.contains("<b>"), "what a model writes is no markup");
    let none = scratch.run(&[&args[..], &["--report-examples", "0", "--out", "none"]].concat());
    none.ok();
    let page = String::from_utf8(scratch.read("none/report.html")).unwrap();
    assert!(!page.contains("<h2>Texts") && !page.contains("<h2>Examples"), "{page}");
}

/// Gradients of a step of one micro-batch are written, those of several are added up: the steps are the same, for tensors of
/// any length.
#[test]
fn steps_of_one_micro_batch_and_of_several_are_the_same() {
    let scratch = Scratch::new("one-or-several");
    scratch.write("data.jsonl", DATA);
    let model = fixture("golden/base");
    for method in ["ia3", "lora", "prompt", "prefix", "adapter", "full"] {
        let losses = |micro: &str| -> Vec<f64> {
            let out = format!("{method}-{micro}");
            let args = ["train", "--model", &model, "--data", "data.jsonl", "--method", method, "--out", &out];
            let more = ["--steps", "6", "--lr", "0.03", "--max-seq-len", "8", "--batch-size", "3", "--device", "cpu"];
            let few: &[&str] = if ["prompt", "prefix"].contains(&method) { &["--virtual-tokens", "3"] } else { &[] };
            scratch.run(&[&args[..], &more, few, &["--micro-tokens", micro]].concat()).ok();
            let metrics = String::from_utf8(scratch.read(&format!("{out}/metrics.jsonl"))).unwrap();
            let events = metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
            events.filter(|e| e["event"] == "step").map(|e| e["loss"].as_f64().unwrap()).collect()
        };
        let (one, several) = (losses("24"), losses("8"));
        assert!((one[0] - one[5]).abs() > 1e-3 * one[0], "{method} learns nothing: {one:?}");
        for (a, b) in one.iter().zip(&several) {
            assert!((a - b).abs() < 1e-4 * a, "{method}: {one:?} {several:?}");
        }
    }
}
