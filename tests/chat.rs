//! Chats: templates against transformers' rendering, byte for byte; masks, losses and gradients against TRL's SFTTrainer.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::scratch::Scratch;
use serde_json::{Map, Value, json};
use trimtab::Result;
use trimtab::config::{Flags, RunConfig};
use trimtab::data::chat::{Chat, Refused, Template};
use trimtab::data::tokenizer::Tokenizer;
use trimtab::run::folder::Start;
use trimtab::run::job::Job;
use trimtab::run::metrics::Event;
use trimtab::run::training::run;
use trimtab::run::{data, export, merge};
use trimtab::weights::gguf::Gguf;

type Special = Vec<(String, String)>;

/// The templates that `open` gives over the conversations of tests/golden/chat, against the file that
/// tests/golden/generate_chat.py wrote of them, with the clock moved by so many seconds. Returns what differs, and how many
/// texts, refusals and marks are right.
fn differences(
    open: &dyn Fn(&str, Special) -> Result<Template>,
    golden: &Path,
    late: i64,
) -> (Vec<String>, [usize; 3]) {
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let chats = read(&root().join("tests/golden/chat/conversations.json"));
    let chats: BTreeMap<&str, &Value> =
        chats.as_array().unwrap().iter().map(|chat| (chat["name"].as_str().unwrap(), chat)).collect();
    let golden = read(golden);
    let special: Special =
        serde_json::from_value::<BTreeMap<String, String>>(golden["special"].clone()).unwrap().into_iter().collect();
    let mut templates: BTreeMap<String, Template> = BTreeMap::new();
    let (mut complaints, mut right) = (Vec::new(), [0; 3]);
    for case in golden["cases"].as_array().unwrap() {
        let (name, chat) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        if !templates.contains_key(name) {
            match open(name, special.clone()) {
                Ok(mut template) => {
                    template.set_clock(golden["clock"].as_i64().unwrap() + late);
                    templates.insert(name.into(), template);
                }
                Err(e) => {
                    complaints.push(format!("{name}: {e}"));
                    continue;
                }
            }
        }
        let template = &templates[name];
        let empty = Map::new();
        let given = Chat {
            messages: chats[chat]["messages"].as_array().unwrap(),
            tools: chats[chat].get("tools").map(|tools| tools.as_array().unwrap().as_slice()),
            variables: chats[chat].get("variables").map_or(&empty, |v| v.as_object().unwrap()),
        };
        let prompt = case["prompt"].as_bool().unwrap();
        let got = template.render(&given, prompt);
        let fits = match &got {
            Ok(text) => case.get("text").is_some_and(|want| want == text.as_str()),
            Err(Refused::Raised(message)) => case.get("raised").is_some_and(|want| want == message.as_str()),
            Err(Refused::Failed(_) | Refused::Lost(_)) => case.get("failed").is_some(),
        };
        right[usize::from(got.is_err())] += usize::from(fits);
        if !fits {
            let [got, case] = [format!("{got:?}"), case.to_string()].map(|s| s.chars().take(2000).collect::<String>());
            complaints.push(format!("{name} {chat}, prompt {prompt}\n  got {got}\n  not {case}"));
            continue;
        }
        if let Some(want) = case.get("generated").filter(|_| !prompt) {
            let rendered = template.render_marked(&given);
            let bytes = |at: &Value| {
                let text = case["text"].as_str().unwrap();
                text.char_indices().nth(at.as_u64().unwrap() as usize).map_or(text.len(), |(byte, _)| byte)
            };
            let want: Vec<_> = want.as_array().unwrap().iter().map(|span| bytes(&span[0])..bytes(&span[1])).collect();
            match rendered {
                Ok(rendered) if rendered.generated == want => right[2] += 1,
                other => complaints.push(format!("{name} {chat}: {other:?} is not marked {want:?}")),
            }
        }
    }
    (complaints, right)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn in_folder(folder: PathBuf) -> impl Fn(&str, Special) -> Result<Template> {
    move |name, special| Template::new(name, &std::fs::read_to_string(folder.join(name)).unwrap(), special)
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let (open, golden) = (in_folder(root().join("tests/golden/chat")), root().join("tests/golden/chat.json"));
    let (complaints, [texts, refusals, marks]) = differences(&open, &golden, 0);
    assert!(complaints.is_empty(), "{} differ\n{}", complaints.len(), complaints.join("\n"));
    assert!(texts > 200 && refusals > 20 && marks > 20, "only {texts} texts, {refusals} refusals, {marks} with marks");
    // The control: an hour later a template that writes the time differs, one that writes the day does not.
    let (complaints, _) = differences(&open, &golden, 3600);
    let of = |name: &str| complaints.iter().filter(|complaint| complaint.starts_with(name)).count();
    assert_eq!((of("corners") > 10, complaints.len() - of("corners")), (true, 0), "{complaints:?}");
}

/// Templates that packages carry; scripts/chat-templates.sh installs one and sets the folder.
#[test]
fn published_templates_render_as_transformers_renders_them() {
    let Some(folder) = std::env::var_os("TRIMTAB_CHAT_TEMPLATES").map(PathBuf::from) else {
        eprintln!("skipped: scripts/chat-templates.sh sets TRIMTAB_CHAT_TEMPLATES");
        return;
    };
    let golden = folder.join("golden.json");
    let (complaints, right) = differences(&in_folder(folder), &golden, 0);
    assert!(complaints.is_empty(), "{} differ, {right:?} are right\n{}", complaints.len(), complaints.join("\n"));
    assert!(right[0] > 500, "only {right:?}");
}

#[test]
fn a_models_own_template_renders_as_transformers_renders_it() {
    let model = root().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !model.exists() {
        eprintln!("skipped: {} is not there (scripts/get-smollm2.sh)", model.display());
        return;
    }
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&model).unwrap()).unwrap();
    assert!(tokenizer.special_tokens().contains(&("eos_token".into(), "<|im_end|>".into())));
    let open = |_: &str, _: Special| tokenizer.templates().compile(false, tokenizer.special_tokens());
    let (complaints, [texts, ..]) = differences(&open, &root().join("tests/golden/chat_smollm2.json"), 0);
    assert!(complaints.is_empty() && texts > 10, "{texts} are right\n{}", complaints.join("\n"));
}

#[test]
fn generated_text_that_is_changed_has_no_place() {
    let message = |content: &str| json!({"role": "assistant", "content": content});
    let table = [
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "a\u{e9}", Some(0..3)),
        (
            "{% set x %}é{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x }}",
            "a",
            Some(2..3),
        ),
        ("{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x[1:] }}", "ab", None),
        (
            "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x|length }}",
            "ab",
            None,
        ),
        ("{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x|trim }}", " b", None),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "a\u{10fffe}", None),
        ("{% generation %}a{% generation %}{% endgeneration %}{% endgeneration %}", "", None),
    ];
    let empty = Map::new();
    for (source, content, want) in table {
        let template = Template::new("t", source, Vec::new()).unwrap();
        let chat = Chat { messages: &[message(content)], tools: None, variables: &empty };
        let got = template.render_marked(&chat);
        assert_eq!(got.as_ref().ok().map(|r| r.generated.clone()), want.map(|span| vec![span]), "{source}: {got:?}");
        assert!(template.marks() && template.render(&chat, false).is_ok(), "{source}");
    }
    let broken = Template::new("t.jinja", "a\n{% if %}", Vec::new()).err().unwrap().to_string();
    assert!(broken.starts_with("t.jinja: found line 2: syntax error"), "{broken}");
}

/// The settings of a run on assets/base with the rows that TRL was given, and with others.
fn settings(more: &[(&str, &str)]) -> RunConfig {
    let path = |name: &str| root().join(name).display().to_string();
    let (base, data) = (path("assets/base"), path("tests/golden/trl.jsonl"));
    let template = path("tests/golden/chat/chatml.jinja");
    let all = [
        ("model", base.as_str()),
        ("data", &data),
        ("chat_template", &template),
        ("device", "cpu"),
        ("method", "full"),
        ("shuffle", "false"),
        ("batch_size", "2"),
        ("steps", "10"),
        ("lr", "1e-4"),
        ("schedule", "constant"),
        ("max_grad_norm", "1"),
        ("max_seq_len", "256"),
        ("micro_tokens", "256"),
    ];
    let (kept, more): (Vec<_>, _) = (all.iter().filter(|(n, _)| !more.iter().any(|(m, _)| m == n)).collect(), more);
    let flags = Flags::of(&kept.into_iter().chain(more).copied().collect::<Vec<_>>()).unwrap();
    RunConfig::resolve(None, &flags).unwrap()
}

/// Ids and labels of every row.
fn examples(config: &RunConfig) -> Result<Vec<(Vec<i32>, Vec<i32>)>> {
    let data = data::open(config, config.need_data()?)?;
    let (data, _) = Job::open(config, false, Some(&data))?.examples(config, &data, None)?;
    let example = |i| data.example(i);
    Ok((0..data.len()).map(example).map(|e| (e.ints("input_ids").to_vec(), e.ints("labels").to_vec())).collect())
}

fn trl() -> Value {
    serde_json::from_slice(&std::fs::read(root().join("tests/golden/trl.json")).unwrap()).unwrap()
}

#[test]
fn masks_are_those_of_trl() {
    let want: Vec<(Vec<i32>, Vec<i32>)> = trl()["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let ints = |name: &str| serde_json::from_value(row[name].clone()).unwrap();
            (ints("input_ids"), ints("labels"))
        })
        .collect();
    let got = examples(&settings(&[])).unwrap();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got, want, "row {i}");
    }
    // Without marks the places come from the beginnings of the conversation: what is trained is the same, less nothing.
    let scratch = Scratch::new("masks");
    let plain = scratch.0.join("plain.jinja");
    let source = std::fs::read_to_string(root().join("tests/golden/chat/chatml.jinja")).unwrap();
    let source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "{% if true %}{% endif %}");
    std::fs::write(&plain, source).unwrap();
    let by_prefix = examples(&settings(&[("chat_template", plain.to_str().unwrap())])).unwrap();
    for (i, ((ids, labels), (want_ids, want))) in by_prefix.iter().zip(&want).enumerate() {
        assert_eq!(ids, want_ids, "row {i}");
        // A line feed after a turn's end is part of the turn here.
        let more: Vec<usize> = (0..ids.len()).filter(|&at| labels[at] != want[at]).collect();
        assert!(more.iter().all(|&at| want[at] == -100 && at > 0 && want[at - 1] != -100), "row {i}: {more:?}");
    }
    // The control: all tokens are trained if that is asked for.
    let all = examples(&settings(&[("train_on", "all")])).unwrap();
    assert!(all.iter().zip(&want).all(|(all, (ids, labels))| all.1 == *ids && all.1 != *labels));
}

/// Losses and gradient norms of ten steps. TRL's own run in float32 is so far from its run in float64; sums in another order
/// may be some times as far.
#[test]
fn ten_steps_equal_trl() {
    const TIMES: f64 = 8.0;
    let golden = trl();
    let scratch = Scratch::new("trl");
    let run_of = |more: &[(&str, &str)]| {
        let out = scratch.0.join("run").display().to_string();
        let (mut loss, mut norm) = (Vec::new(), Vec::new());
        let config = settings(&[more, &[("out", &out)]].concat());
        run(&config, Start::Overwrite, &mut |event| {
            if let Event::Step(step) = event {
                loss.push(f64::from(step.loss));
                norm.push(f64::from(step.grad_norm));
            }
            Ok(())
        })
        .unwrap();
        (loss, norm)
    };
    let (loss, norm) = run_of(&[]);
    let (other, _) = run_of(&[("train_on", "all")]);
    let off = |got: &[f64], want: &[f64]| {
        got.iter().zip(want).map(|(got, want)| ((got - want) / want).abs()).fold(0.0, f64::max)
    };
    for (name, got) in [("loss", &loss), ("grad_norm", &norm)] {
        let [single, double] =
            ["f32", "f64"].map(|run| -> Vec<f64> { serde_json::from_value(golden[run][name].clone()).unwrap() });
        assert_eq!(got.len(), double.len());
        let allowed = TIMES * off(&single, &double);
        assert!(off(got, &double) < allowed, "{name} {got:?} is not {double:?} to {allowed:e}");
        // The control: another mask is another loss, by far.
        assert!(name != "loss" || off(&other, &double) > 1000.0 * allowed, "{other:?}");
    }
}

#[test]
fn chats_that_cannot_be_trained_say_why() {
    let scratch = Scratch::new("errors");
    let file = |name: &str, text: &str| {
        let path = scratch.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let rows = file("a.jsonl", &format!("{chat}\n{chat}\n"));
    let strict = file("strict.jinja", "{{ raise_exception('no ' ~ messages[0].role) }}");
    let broken = file("broken.jinja", "{% if %}");
    let asked = file("b.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    let table = [
        (
            settings(&[("data", &rows), ("chat_template", &strict)]),
            "a.jsonl:1: found a chat that the chat template refuses: no user",
        ),
        (settings(&[("data", &rows), ("chat_template", &broken)]), "broken.jinja: found line 1: syntax error"),
        (settings(&[("data", &rows), ("chat_template", "none.jinja")]), "none.jinja"),
        (
            settings(&[("data", &asked)]),
            "b.jsonl (jsonl): found 1 chat with no turn of the role assistant, but of user",
        ),
    ];
    for (config, want) in table {
        let error = examples(&config).unwrap_err().to_string();
        assert!(error.contains(want), "{error}\nis not: {want}");
    }
    // A model without a template.
    let mut flags = vec![("model", root().join("assets/base").display().to_string()), ("data", rows)];
    flags.push(("device", "cpu".into()));
    let flags: Vec<(&str, &str)> = flags.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let config = RunConfig::resolve(None, &Flags::of(&flags).unwrap()).unwrap();
    let error = examples(&config).unwrap_err().to_string();
    assert!(error.contains("no chat template") && error.contains("--chat-template chatml"), "{error}");
    // ChatML is one of its own.
    let config = RunConfig::resolve(None, &Flags::of(&[&flags[..], &[("chat_template", "chatml")]].concat()).unwrap());
    assert_eq!(examples(&config.unwrap()).unwrap().len(), 2);
}

/// assets/base with a tokenizer that puts a token before every text.
fn begins(dir: &Path) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    for file in std::fs::read_dir(root().join("assets/base")).unwrap().flatten() {
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    let path = dir.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let first = "<|endoftext|>";
    let id =
        json["added_tokens"].as_array().unwrap().iter().find(|token| token["content"] == first).unwrap()["id"].clone();
    let (special, text) =
        (json!({"SpecialToken": {"id": first, "type_id": 0}}), json!({"Sequence": {"id": "A", "type_id": 0}}));
    json["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [special, text], "pair": [special, text],
        "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}},
    });
    std::fs::write(path, json.to_string()).unwrap();
    dir.into()
}

#[test]
fn another_template_goes_along_with_what_is_trained() {
    let scratch = Scratch::new("kept");
    let begins = begins(&scratch.0.join("begins"));
    let first = [root().join("assets/base"), begins].map(|base| kept_with(&base, &scratch.0.join("runs")));
    assert_eq!(first[0], first[1][1..], "only what the tokenizer begins with is more");
}

/// Trains on `base` with ChatML in all ways, and returns the ids of the first example.
fn kept_with(base: &Path, runs: &Path) -> Vec<i32> {
    std::fs::remove_dir_all(runs).ok();
    let at = |name: &str| runs.join(name).display().to_string();
    let base = base.display().to_string();
    let flags = |more: &[(&str, &str)]| {
        let few = [("method", "lora"), ("steps", "1"), ("model", &*base), ("chat_template", "chatml")];
        let few: Vec<_> = few.into_iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name)).collect();
        settings(&[&few[..], more].concat())
    };
    let plain = |more: &[(&str, &str)]| {
        let mut config = flags(more);
        config.chat_template = None;
        config
    };
    let want = examples(&flags(&[])).unwrap();
    let train = |config: &RunConfig| run(config, Start::New, &mut |_| Ok(())).map(drop);
    train(&flags(&[("out", &at("lora"))])).unwrap();
    let lora = [("adapter", &*at("lora"))];
    assert_eq!(examples(&plain(&lora)).unwrap(), want, "beside the adapter");
    // And again from there, without asking for it.
    train(&plain(&[("adapter", &at("lora")), ("out", &at("again"))])).unwrap();
    let again = std::fs::read_to_string(at("again/chat_template.jinja")).unwrap();
    assert_eq!(again, std::fs::read_to_string(at("lora/chat_template.jinja")).unwrap());

    train(&flags(&[("out", &at("full")), ("method", "full")])).unwrap();
    let how = merge::How { dtype: None, shard: u64::MAX, check: false };
    merge::merge(&plain(&[("adapter", &at("lora")), ("out", &at("merged"))]), &how).unwrap();
    export::model(&plain(&[("adapter", &at("lora")), ("out", &at("m.gguf"))]), None, false).unwrap();
    for model in ["full", "merged", "m.gguf"] {
        assert_eq!(examples(&plain(&[("model", &at(model))])).unwrap(), want, "{model}");
    }
    // The controls: without the file there is no template; one that is asked for comes first.
    let strict = root().join("tests/golden/chat/chatml.jinja").display().to_string();
    assert_ne!(examples(&flags(&[lora[0], ("chat_template", &strict)])).unwrap(), want);
    std::fs::remove_file(at("lora/chat_template.jinja")).unwrap();
    assert!(examples(&plain(&lora)).unwrap_err().to_string().contains("no chat template"));
    want[0].0.clone()
}
