//! Rows of text become what transformers makes of them, and a run learns from them; the losses of all tasks are checked
//! in families.rs.

mod common;

use common::scratch::Scratch;
use serde_json::{Value, json};
use trimtab::config::{Flags, RunConfig, Sources};
use trimtab::data::row::{Codec, Row};
use trimtab::data::tokenizer::Tokenizer;
use trimtab::data::{Example, INPUT_IDS, TOKEN_TYPE_IDS};
use trimtab::models::Facts;
use trimtab::run::folder::Start;
use trimtab::run::metrics::Event;
use trimtab::run::predict::{Input, predict};
use trimtab::run::training::run;
use trimtab::tasks::{self, Made, Setup};

/// Rows of text become what transformers' examples make of them.
#[test]
fn texts_become_transformers_features() {
    let folder = |name: &str| common::root("tests/golden/tokenizers").join(name);
    let [bert, t5] = ["bert", "t5"].map(|name| Tokenizer::from_folder(folder(name)).unwrap());
    let text = std::fs::read_to_string(common::root("tests/golden/rows.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let facts = Facts { vocab: 1000, ..Facts::default() };
    let config = json!({"num_labels": 3, "problem_type": "single_label_classification", "decoder_start_token_id": 0});
    let examples = |name: &str, tokenizer: &Tokenizer, case: &Value| -> Made {
        let encode = |text: &str| tokenizer.encode(text, false);
        let max_len = case["max_len"].as_u64().unwrap() as usize;
        let stride = case["stride"].as_u64().unwrap_or(0) as usize;
        let setup =
            Setup { config: &config, facts: &facts, qa_padding: false, qa_token_types: true, stride, mask_share: 0.15 };
        let task = (tasks::named(name).unwrap().make)(&setup).unwrap();
        let fields = case["row"].as_object().unwrap().clone();
        let max_target_len = case["max_target_len"].as_u64().unwrap_or(64) as usize;
        let codec = Codec {
            encode: &encode,
            tokenizer: Some(tokenizer),
            chats: None,
            bos: None,
            eos: None,
            vocab: facts.vocab,
            max_len,
            max_target_len,
            unlabelled: false,
            traced: false,
        };
        task.examples(&Row { path: "rows".as_ref(), line: 1, fields, cells: false }, &codec).unwrap()
    };
    let ints = |v: &Value| -> Vec<i32> { v.as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i32).collect() };
    let types = |example: &Example, want: &Value| {
        // All of the first text: the column is left out.
        let (got, want) = (example.ints(TOKEN_TYPE_IDS), ints(want));
        assert!(got == want || got.is_empty() && want.iter().all(|&kind| kind == 0), "{got:?} {want:?}");
    };
    let cases = |kind: &str| golden[kind].as_array().unwrap().clone();
    assert!(cases("squad").iter().any(|c| c["windows"].as_array().unwrap().len() > 2));
    for case in cases("squad") {
        let made = examples("question-answering", &bert, &case);
        let windows = case["windows"].as_array().unwrap();
        assert_eq!(made.examples.len(), windows.len());
        for (got, want) in made.examples.iter().zip(windows) {
            assert_eq!(got.ints(INPUT_IDS), ints(&want["input_ids"]));
            assert_eq!(got.ints("span"), ints(&want["span"]), "{case}");
            types(got, &want["token_type_ids"]);
        }
    }
    for case in cases("ner") {
        let made = examples("token-classification", &bert, &case);
        assert_eq!(made.examples[0].ints(INPUT_IDS), ints(&case["example"]["input_ids"]));
        assert_eq!(made.examples[0].ints("labels"), ints(&case["example"]["labels"]));
    }
    let mut cut = 0;
    for case in cases("glue") {
        let made = examples("sequence-classification", &bert, &case);
        assert_eq!(made.examples[0].ints(INPUT_IDS), ints(&case["example"]["input_ids"]));
        assert_eq!(made.examples[0].ints("label"), [case["row"]["label"].as_i64().unwrap() as i32]);
        types(&made.examples[0], &case["example"]["token_type_ids"]);
        cut += usize::from(made.cut);
    }
    assert_eq!(cut, 1);
    for case in cases("seq2seq") {
        let made = examples("seq2seq", &t5, &case);
        let (got, labels) = (&made.examples[0], ints(&case["labels"]));
        assert_eq!(got.ints(INPUT_IDS), ints(&case["input_ids"]));
        assert_eq!(got.ints("labels"), labels);
        let shifted: Vec<i32> = std::iter::once(0).chain(labels.iter().copied()).take(labels.len()).collect();
        assert_eq!(got.ints("decoder_input_ids"), shifted);
    }
}

impl Scratch {
    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

fn config(flags: &[(&str, &str)]) -> RunConfig {
    RunConfig::resolve(None, &Flags::of(flags).unwrap()).unwrap()
}

fn sources(path: impl AsRef<std::path::Path>) -> Sources {
    Sources(vec![path.as_ref().to_str().unwrap().into()])
}

fn predicted(config: &RunConfig, input: &Input) -> trimtab::Result<Vec<Value>> {
    let mut all = Vec::new();
    predict(config, input, &mut |answer| {
        all.push(answer.clone());
        Ok(true)
    })?;
    Ok(all)
}

/// Texts with labels by name, in columns of other names: trained, evaluated, saved, and predicted from the files.
#[test]
fn a_decoder_learns_to_classify_texts() {
    let scratch = Scratch::new("classify");
    let texts =
        [("calm and mild", "day"), ("dark and deep", "night"), ("mild and warm", "day"), ("deep and cold", "night")];
    let lines: String = texts.iter().map(|(t, l)| format!("{}\n", json!({"line": t, "kind": l}))).collect();
    let data = scratch.write("data.jsonl", &lines);
    let base = common::root("assets/base").display().to_string();
    let out = scratch.path("out");
    let flags = [
        ("model", base.as_str()),
        ("task", "sequence_classification"),
        ("data", &data),
        ("eval_data", &data),
        ("eval_every", "20"),
        ("columns", "text=line,label=kind"),
        ("out", &out),
        ("steps", "40"),
        ("batch_size", "4"),
        ("max_seq_len", "32"),
        ("lr", "5e-3"),
        ("device", "cpu"),
    ];
    let settings = config(&flags);
    let mut evals = Vec::new();
    run(&settings, Start::Overwrite, &mut |event| {
        if let Event::Eval { step, evaluated } = event {
            evals.push((step, evaluated));
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(evals.iter().map(|e| e.0).collect::<Vec<_>>(), [20, 40]);
    let last = &evals[1].1;
    assert_eq!((last.units, last.metrics[0]), (4, ("accuracy", 1.0)));
    assert!(last.loss < 0.1, "{last:?}");
    let kept = std::fs::read_to_string(scratch.0.join("out/metrics.jsonl")).unwrap();
    assert_eq!(kept.lines().filter(|l| l.starts_with(r#"{"event":"eval","step":"#)).count(), 2);

    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(scratch.0.join("out").join(name)).unwrap()).unwrap()
    };
    let saved = read("config.json");
    assert_eq!(saved["id2label"], json!({"0": "day", "1": "night"}));
    assert_eq!(saved["architectures"], json!(["LlamaForSequenceClassification"]));
    let adapter = read("adapter_config.json");
    assert_eq!(adapter["task_type"], "SEQ_CLS");
    assert_eq!(adapter["modules_to_save"], json!(["classifier", "score"]));

    // The adapter says which task it is for; rows need no labels.
    let unlabelled: String = texts.iter().map(|(t, _)| format!("{}\n", json!({"text": t}))).collect();
    let unlabelled = scratch.write("texts.jsonl", &unlabelled);
    let settings = config(&[("model", &base), ("adapter", &out), ("batch_size", "3"), ("max_seq_len", "32")]);
    let answers = predicted(&settings, &Input::Rows(&sources(&unlabelled))).unwrap();
    let labels: Vec<&str> = answers.iter().map(|a| a["label"].as_str().unwrap()).collect();
    assert_eq!(labels, texts.map(|t| t.1));
    let sum: f64 = answers[0]["scores"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let one = Input::Row(json!({"text": texts[0].0}).as_object().unwrap().clone());
    assert_eq!(predicted(&settings, &one).unwrap(), answers[..1]);

    // A head that nobody trained is refused; so are labels that the adapter does not have.
    let bare = config(&[("model", &base), ("task", "sequence-classification"), ("columns", "label=kind,text=line")]);
    let error = predicted(&bare, &Input::Rows(&sources(&data))).unwrap_err().to_string();
    assert!(error.contains("no score.weight in the model"), "{error}");
    let other = scratch.write("other.jsonl", &format!("{}\n", json!({"text": "x", "label": "dawn"})));
    let error = predicted(&settings, &Input::Rows(&sources(&other))).unwrap_err().to_string();
    assert!(error.contains(r#"label "dawn", expected 0 to 1, or one of day, night"#), "{error}");
}
