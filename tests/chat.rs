//! Chats: templates against transformers' rendering, byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use trimtab::Result;
use trimtab::data::chat::{Chat, Refused, Template};
use trimtab::data::tokenizer::Tokenizer;
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
            Err(Refused::Failed(_)) => case.get("failed").is_some(),
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
