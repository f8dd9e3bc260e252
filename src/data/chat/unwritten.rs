//! What of a conversation its text does not have: templates pass over what they were not written for.

use serde_json::Value;

use super::rows::Conversation;
use super::template::{Chat, Template};
use crate::data::notes::Note;

/// What messages have besides a content, under all its names, which not every template writes.
const FIELDS: [&[&str]; 3] = [&["tool_calls"], &["function_call"], &["reasoning_content", "thinking", "reasoning"]];

/// What there is to say of a conversation that became this text; `trained` are the turns that are trained.
pub(super) fn notes(
    template: &Template,
    conversation: &Conversation,
    text: &str,
    trained: impl Fn(usize) -> bool,
) -> Vec<Note> {
    let unwritten = unwritten(template, conversation, text);
    let turns = (0..).zip(&conversation.messages).filter(|(i, _)| trained(*i)).map(|(_, message)| message);
    let empty = turns.filter(|message| says_nothing(message, &unwritten)).count() > 0;
    unwritten.into_iter().map(Note::Unwritten).chain(empty.then_some(Note::EmptyTurn)).collect()
}

/// The fields without which the text is the same. Rows that have none of them are not rendered again.
fn unwritten(template: &Template, conversation: &Conversation, text: &str) -> Vec<&'static str> {
    let given = conversation.chat(conversation.messages.len());
    let same = |chat: Chat| template.render(&chat, false).is_ok_and(|other| other == text);
    let mut found = Vec::new();
    if given.tools.is_some() && same(Chat { tools: None, ..given }) {
        found.push("tools");
    }
    for names in FIELDS {
        let has = |name: &&str| given.messages.iter().any(|message| holds(message, name));
        let Some(name) = names.iter().copied().find(has) else { continue };
        let mut messages = given.messages.to_vec();
        for fields in messages.iter_mut().filter_map(Value::as_object_mut) {
            fields.retain(|key, _| !names.contains(&key.as_str()));
        }
        if same(Chat { messages: &messages, ..given }) {
            found.push(name);
        }
    }
    let parts =
        |message: &Value| message.get("content").and_then(Value::as_array).is_some_and(|p| !p.iter().all(is_text));
    if given.messages.iter().any(parts) {
        let mut messages = given.messages.to_vec();
        for parts in messages.iter_mut().filter_map(|message| message.get_mut("content")?.as_array_mut()) {
            parts.retain(is_text);
        }
        if same(Chat { messages: &messages, ..given }) {
            found.push("parts of content that are no text");
        }
    }
    found
}

/// Whether a message has something in a field.
fn holds(message: &Value, name: &str) -> bool {
    match message.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    }
}

/// Whether a part of a content is a text.
fn is_text(part: &Value) -> bool {
    part.is_string() || part.get("text").is_some_and(Value::is_string)
}

/// Whether nothing of a message is written but its role.
fn says_nothing(message: &Value, unwritten: &[&str]) -> bool {
    let blank = |text: &Value| text.as_str().is_some_and(|text| text.trim().is_empty());
    let content = match message.get("content") {
        None | Some(Value::Null) => true,
        Some(Value::Array(parts)) => parts.iter().all(|part| blank(part.get("text").unwrap_or(part))),
        Some(content) => blank(content),
    };
    let written = |name: &&str| holds(message, name) && !unwritten.contains(name);
    content && !FIELDS.concat().iter().any(written)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_template_passes_over_is_named() {
        let plain = "{% for m in messages %}{{ m.role }}: {{ m.content if m.content is string }};{% endfor %}";
        let calls =
            "{{ tools }}{% for m in messages %}{{ m.content or '' }}{{ m.tool_calls }}{{ m.thinking }};{% endfor %}";
        let asked = json!({"role": "user", "content": "a"});
        let call = json!([asked, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]}]);
        let thought = json!([asked, {"role": "assistant", "content": "b", "reasoning_content": "c"}]);
        let parts = json!([asked, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]);
        let table = [
            (plain, &call, true, vec![Note::Unwritten("tools"), Note::Unwritten("tool_calls"), Note::EmptyTurn]),
            (calls, &call, true, vec![]),
            (plain, &call, false, vec![Note::Unwritten("tool_calls"), Note::EmptyTurn]),
            (plain, &thought, false, vec![Note::Unwritten("reasoning_content")]),
            (calls, &thought, false, vec![]),
            (plain, &parts, false, vec![Note::Unwritten("parts of content that are no text")]),
            (plain, &json!([asked, {"role": "assistant", "content": " "}]), false, vec![Note::EmptyTurn]),
            (plain, &json!([asked, {"role": "assistant", "content": "b", "tool_calls": []}]), false, vec![]),
        ];
        for (source, messages, tools, want) in table {
            let template = Template::new("t", source, Vec::new()).unwrap();
            let tools = tools.then(|| vec![json!({"name": "f"})]);
            let messages = messages.as_array().unwrap().clone();
            let conversation = Conversation { messages, tools, ..Conversation::default() };
            let chat = conversation.chat(conversation.messages.len());
            let text = template.render(&chat, false).unwrap();
            assert_eq!(notes(&template, &conversation, &text, |i| i == 1), want, "{source} {chat:?}");
        }
    }
}
