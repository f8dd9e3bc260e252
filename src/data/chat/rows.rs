//! Rows that hold conversations: `messages`, ShareGPT's `conversations`, Alpaca's `instruction`, and `prompt` and
//! `completion` that are lists of messages.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::template::Chat;
use crate::data::INPUT_IDS;
use crate::data::row::Row;
use crate::data::values::shown;
use crate::error::Result;

/// A conversation of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Objects with a role.
    pub messages: Vec<Value>,
    /// What the model may call.
    pub tools: Option<Vec<Value>>,
    /// Other variables of the template.
    pub variables: Map<String, Value>,
    /// Messages that are given: no turn of them is trained.
    pub given: usize,
    /// Other turns of the assistant that are not trained.
    pub untrained: Vec<usize>,
}

impl Conversation {
    /// What a template is given of the first `messages`.
    pub fn chat(&self, messages: usize) -> Chat<'_> {
        let messages = &self.messages[..messages.min(self.messages.len())];
        Chat { messages, tools: self.tools.as_deref(), variables: &self.variables }
    }

    /// The roles of its messages, for messages.
    pub fn roles(&self) -> String {
        let roles = self.messages.iter().filter_map(|message| message.get("role")?.as_str());
        roles.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Whether message `i` is the assistant's.
    pub fn is_assistant(&self, i: usize) -> bool {
        self.messages[i].get("role").and_then(Value::as_str) == Some("assistant")
    }
}

/// The fields that a row of a conversation has, for messages.
pub const ROWS: &str = "messages; conversations; instruction and output (with or without input)";

/// The conversation of a row; none if it is a row of another kind. What is written out as a text or as tokens counts, whatever
/// else the row has.
pub fn conversation(row: &Row) -> Result<Option<Conversation>> {
    let list = |name: &str| row.fields.get(name).is_some_and(Value::is_array);
    if row.has("text") || row.has(INPUT_IDS) {
        return Ok(None);
    }
    if row.has("completion") && ["messages", "conversations"].iter().any(|name| row.has(name)) {
        let expected = "a chat or a completion: --columns other=completion passes that over";
        return Err(row.wrong(format!("the fields {}", row.names()), expected));
    }
    if ["prompt", "completion"].iter().all(|name| row.has(name) && !list(name)) {
        return Ok(None);
    }
    let (mut messages, mut given) = match () {
        () if row.has("messages") => (messages(row, "messages")?, 0),
        () if row.has("conversations") => (shared(row)?, 0),
        () if list("prompt") || list("completion") => {
            let (mut prompt, completion) = (messages(row, "prompt")?, messages(row, "completion")?);
            let given = prompt.len();
            prompt.extend(completion);
            (prompt, given)
        }
        () if row.has("instruction") && row.has("output") => alpaca(row)?,
        () => return Ok(None),
    };
    if messages.is_empty() {
        return Err(row.wrong("a chat without a message", "at least one"));
    }
    let mut untrained = weights(row, &mut messages)?;
    if let Some(system) = row.get::<String>("system")?.filter(|text| !text.is_empty()) {
        let own = |message: &Value| message.get("role").is_some_and(|role| role == "system" || role == "developer");
        if messages.iter().any(own) {
            return Err(row.wrong("a system, and a message of the system", "one of them"));
        }
        messages.insert(0, json!({"role": "system", "content": system}));
        given += usize::from(given > 0);
        untrained.iter_mut().for_each(|i| *i += 1);
    }
    Ok(Some(Conversation { messages, tools: tools(row)?, variables: variables(row)?, given, untrained }))
}

/// A list of messages, each an object with a role.
fn messages(row: &Row, name: &str) -> Result<Vec<Value>> {
    let values: Vec<Value> = row.need(name)?;
    for (i, value) in values.iter().enumerate() {
        if value.get("role").and_then(Value::as_str).is_none() {
            let expected = "an object with role and content";
            return Err(row.wrong(format!("{name}[{i}] {}", shown(value)), expected));
        }
        if let Some(kind) = medium(value) {
            let expected = "parts of text: causal-lm reads no images, audio or video";
            return Err(row.wrong(format!("{name}[{i}] with a part of type {kind}"), expected));
        }
    }
    Ok(values)
}

/// Takes the `weight` away that OpenAI's files give turns; the assistant's turns that have 0.
fn weights(row: &Row, messages: &mut [Value]) -> Result<Vec<usize>> {
    let mut untrained = Vec::new();
    for (i, message) in messages.iter_mut().enumerate() {
        let Some(weight) = message.as_object_mut().and_then(|fields| fields.shift_remove("weight")) else { continue };
        let assistant = message.get("role").is_some_and(|role| role == "assistant");
        match weight.as_f64() {
            None if weight.is_null() => {}
            Some(0.0) => untrained.extend(assistant.then_some(i)),
            Some(1.0) if assistant => {}
            _ => {
                let found = format!("weight {} of message {}", shown(&weight), i + 1);
                return Err(row.wrong(found, "1 for a turn of the assistant that is trained, 0 for others"));
            }
        }
    }
    Ok(untrained)
}

/// The type of a message's first part that is no text but an image, audio or video.
fn medium(message: &Value) -> Option<&str> {
    let kinds = message.get("content")?.as_array()?.iter().filter_map(|part| part.get("type")?.as_str());
    kinds.into_iter().find(|kind| ["image", "audio", "video"].iter().any(|medium| kind.contains(medium)))
}

/// ShareGPT's names of roles, and those that its users made of them.
fn role(name: &str) -> Option<&'static str> {
    Some(match name {
        "human" | "user" | "prompter" => "user",
        "gpt" | "assistant" | "model" | "bot" | "chatgpt" | "bing" | "bard" | "function_call" => "assistant",
        "system" => "system",
        "tool" | "function" | "observation" | "function_response" => "tool",
        _ => return None,
    })
}

/// ShareGPT's turns.
fn shared(row: &Row) -> Result<Vec<Value>> {
    let turns: Vec<Value> = row.need("conversations")?;
    if turns.first().is_some_and(|turn| turn.get("role").is_some()) {
        return messages(row, "conversations");
    }
    let mut out = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let text = |name: &str| turn.get(name).and_then(Value::as_str);
        let (Some(from), Some(value)) = (text("from"), text("value")) else {
            let expected = "an object with from and value, both strings";
            return Err(row.wrong(format!("conversations[{i}] {}", shown(turn)), expected));
        };
        let Some(role) = role(from) else {
            let expected = "from human, gpt, system, tool, function_call or observation";
            return Err(row.wrong(format!("conversations[{i}] from {from}"), expected));
        };
        out.push(match from {
            "function_call" => json!({"role": role, "content": "", "tool_calls": calls(row, value)?}),
            _ => json!({"role": role, "content": value}),
        });
        if let (Some(weight), Some(Value::Object(message))) = (turn.get("weight"), out.last_mut()) {
            message.insert("weight".into(), weight.clone());
        }
    }
    Ok(out)
}

/// The calls that a turn from `function_call` has as JSON.
fn calls(row: &Row, text: &str) -> Result<Vec<Value>> {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let calls = match parsed {
        Some(Value::Array(calls)) => calls,
        Some(call @ Value::Object(_)) => vec![call],
        _ => {
            let found = format!("a function_call {}", shown(&text.into()));
            return Err(row.wrong(found, "JSON: an object with name and arguments, or a list of them"));
        }
    };
    Ok(calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect())
}

/// Alpaca's: what to do, what with, and the answer; earlier questions and answers in `history`.
fn alpaca(row: &Row) -> Result<(Vec<Value>, usize)> {
    let (instruction, output): (String, String) = (row.need("instruction")?, row.need("output")?);
    let mut out = Vec::new();
    for (question, answer) in row.get::<Vec<(String, String)>>("history")?.unwrap_or_default() {
        out.push(json!({"role": "user", "content": question}));
        out.push(json!({"role": "assistant", "content": answer}));
    }
    let asked = match row.get::<String>("input")?.filter(|text| !text.is_empty()) {
        Some(input) => format!("{instruction}\n\n{input}"),
        None => instruction,
    };
    out.push(json!({"role": "user", "content": asked}));
    let given = out.len();
    out.push(json!({"role": "assistant", "content": output}));
    Ok((out, given))
}

/// A field of JSON, or of a text that is JSON, which tables have instead.
fn parsed(row: &Row, name: &str) -> Result<Option<Value>> {
    let Some(value) = row.fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    match value.as_str() {
        Some("") => Ok(None),
        Some(text) => match serde_json::from_str(text) {
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(row.wrong(format!("{name} that are no JSON ({e})"), "a list of tools")),
        },
        None => Ok(Some(value.clone())),
    }
}

fn tools(row: &Row) -> Result<Option<Vec<Value>>> {
    match parsed(row, "tools")? {
        None => Ok(None),
        Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Ok(Some(tools)),
        Some(other) => Err(row.wrong(format!("tools {}", shown(&other)), "a list of JSON schemas")),
    }
}

fn variables(row: &Row) -> Result<Map<String, Value>> {
    const NAME: &str = "chat_template_kwargs";
    match parsed(row, NAME)? {
        None => Ok(Map::new()),
        Some(Value::Object(variables)) => Ok(variables),
        Some(other) => Err(row.wrong(format!("{NAME} {}", shown(&other)), "an object of names and values")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Option<Conversation>> {
        let fields = serde_json::from_str(text).unwrap();
        conversation(&Row { path: Path::new("f"), line: 3, fields, cells: false })
    }

    #[test]
    fn every_kind_of_row_is_the_same_conversation() {
        let plain = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}]);
        let system = json!([{"role": "system", "content": "S"}, plain[0], plain[1]]);
        let table = [
            (format!(r#"{{"messages": {plain}, "tools": null}}"#), &plain, 0),
            (r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Oh"}]}"#.into(), &plain, 0),
            (format!(r#"{{"conversations": {plain}}}"#), &plain, 0),
            (
                r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Oh"}], "system": "S"}"#
                    .into(),
                &system,
                0,
            ),
            (format!(r#"{{"messages": {plain}, "system": "S"}}"#), &system, 0),
            (format!(r#"{{"messages": {plain}, "system": "", "prompt": "Hi"}}"#), &plain, 0),
            (format!(r#"{{"conversations": {plain}, "system": "S"}}"#), &system, 0),
            (format!(r#"{{"prompt": [{}], "completion": [{}]}}"#, plain[0], plain[1]), &plain, 1),
            (format!(r#"{{"prompt": [{}], "completion": [{}], "system": "S"}}"#, plain[0], plain[1]), &system, 2),
            (r#"{"instruction": "Hi", "output": "Oh"}"#.into(), &plain, 1),
            (r#"{"instruction": "Hi", "input": "", "output": "Oh", "system": "S"}"#.into(), &system, 2),
        ];
        for (text, want, given) in table {
            let got = read(&text).unwrap().unwrap();
            assert_eq!((json!(got.messages), got.given, got.tools), ((*want).clone(), given, None), "{text}");
        }
        let with = read(r#"{"instruction": "Sum", "input": "1 2", "output": "3", "history": [["a", "b"]]}"#).unwrap();
        assert_eq!(with.unwrap().messages[2]["content"], "Sum\n\n1 2");
        let weighed = read(
            r#"{"messages": [{"role": "user", "content": "a", "weight": 0}, {"role": "assistant", "content": "b", "weight": 0},
            {"role": "assistant", "content": "c", "weight": 1}, {"role": "assistant", "weight": null}], "system": "S"}"#,
        );
        let weighed = weighed.unwrap().unwrap();
        assert_eq!((&weighed.untrained, weighed.messages[2].get("weight")), (&vec![2], None));
        let shared =
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0.0}]}"#;
        assert_eq!(read(shared).unwrap().unwrap().untrained, [1]);
        let call = r#"{"conversations": [{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}]}"#;
        let call = read(call).unwrap().unwrap().messages.remove(0);
        assert_eq!(call["tool_calls"][0]["function"]["name"], "f");
        let tools = read(r#"{"messages": [{"role": "user"}], "tools": "[{\"name\": \"f\"}]"}"#).unwrap().unwrap().tools;
        assert_eq!(tools, Some(vec![json!({"name": "f"})]));
        for text in [
            r#"{"text": "a"}"#,
            r#"{"prompt": "a", "completion": "b"}"#,
            r#"{"instruction": "a"}"#,
            r#"{"text": "a", "instruction": "a", "output": "b"}"#,
            r#"{"text": "a", "messages": []}"#,
            r#"{"input_ids": [1], "messages": []}"#,
        ] {
            assert_eq!(read(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_conversation_is_named() {
        let table = [
            (r#"{"messages": []}"#, "f:3: found a chat without a message"),
            (r#"{"messages": "Hi"}"#, "f:3: found messages \"Hi\", expected a list"),
            (r#"{"messages": [{"content": "Hi"}]}"#, "f:3: found messages[0] {\"content\":\"Hi\"}, expected an object"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}"#,
                "f:3: found messages[0] with a part of type image_url, expected parts of text",
            ),
            (
                r#"{"messages": [{"role": "user"}, {"role": "assistant", "weight": 0.5}]}"#,
                "f:3: found weight 0.5 of message 2, expected 1 for a turn of the assistant",
            ),
            (r#"{"messages": [{"role": "user", "weight": 1}]}"#, "f:3: found weight 1 of message 1, expected"),
            (r#"{"conversations": [{"from": "x", "value": "Hi"}]}"#, "f:3: found conversations[0] from x, expected"),
            (r#"{"conversations": [{"value": "Hi"}]}"#, "f:3: found conversations[0] {\"value\":\"Hi\"}"),
            (r#"{"prompt": "a", "completion": [{"role": "user"}]}"#, "f:3: found prompt \"a\", expected a list"),
            (
                r#"{"messages": [{"role": "system", "content": "a"}], "system": "b"}"#,
                "f:3: found a system, and a message of the system, expected one",
            ),
            (
                r#"{"messages": [{"role": "user"}], "prompt": "a", "completion": "b"}"#,
                "f:3: found the fields messages, prompt, completion, expected a chat or a completion",
            ),
            (r#"{"messages": [{"role": "user"}], "tools": "x"}"#, "f:3: found tools that are no JSON"),
            (r#"{"messages": [{"role": "user"}], "tools": {}}"#, "f:3: found tools {}, expected a list of"),
            (r#"{"conversations": [{"from": "function_call", "value": "f()"}]}"#, "f:3: found a function_call \"f()\""),
        ];
        for (text, want) in table {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}\nis not: {want}");
        }
    }
}
