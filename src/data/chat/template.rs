//! A chat template: what Jinja source makes of a conversation, as `apply_chat_template` of transformers 5.23 renders it.

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error as Jinja, ErrorKind, State};
use serde_json::{Map, Value as Json};

use super::clock::Moment;
use super::python::{self, Dumps};
use super::{methods, source};
use crate::error::{Error, Result};

/// Stand around generated text while it is rendered. Unicode will never make them characters, and a conversation that has
/// them all the same is refused.
const MARKS: [char; 2] = ['\u{10fffe}', '\u{10ffff}'];

/// The name that minijinja knows a template by; an ending would have a meaning.
const NAME: &str = "chat";

/// What a template is given.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// The messages: objects with a role.
    pub messages: &'a [Json],
    /// The tools that the model may call, as JSON schemas.
    pub tools: Option<&'a [Json]>,
    /// Other variables: `chat_template_kwargs`.
    pub variables: &'a Map<String, Json>,
}

/// Why a conversation has no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The template says that it cannot be (`raise_exception`).
    Raised(String),
    /// The template fails.
    Failed(String),
    /// It has a text, of which nobody can say where the model's turns are.
    Lost(String),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Raised(message) => write!(f, "a chat that the chat template refuses: {message}"),
            Refused::Failed(message) => write!(f, "a chat at which the chat template fails: {message}"),
            Refused::Lost(message) => {
                write!(f, "a chat whose turns have no place in what the template writes: {message}")
            }
        }
    }
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The bytes that the template marks as written by the model.
    pub generated: Vec<Range<usize>>,
}

/// A template, compiled.
pub struct Template {
    environment: Environment<'static>,
    /// Whether it says which text the model writes.
    marks: bool,
    /// Variables of the tokenizer's special tokens.
    special: Vec<(String, String)>,
}

impl Template {
    /// Compiles a template; `name` is what errors call it, `special` the tokenizer's special tokens by their names
    /// (`bos_token`).
    pub fn new(name: &str, source: &str, special: Vec<(String, String)>) -> Result<Template> {
        Template::at(name, source, special, Moment::now())
    }

    fn at(name: &str, source: &str, special: Vec<(String, String)>, now: Moment) -> Result<Template> {
        // Jinja reads every kind of line end as a line feed.
        let (source, marks) = source::rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let compiled = environment(now).and_then(|mut environment| {
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        });
        let environment = compiled.map_err(|e| {
            let at = e.line().map_or(String::new(), |line| format!("line {line}: "));
            Error::file(name, format!("{at}{}", what(&e)), "a chat template in Jinja")
        })?;
        Ok(Template { environment, marks, special })
    }

    /// Sets the clock that the template reads, in seconds since the beginning of 1970 by it. Otherwise it stands at the
    /// moment at which the template was compiled.
    pub fn set_clock(&mut self, seconds: i64) {
        add_clock(&mut self.environment, Moment { seconds, micros: 0 });
    }

    /// Whether the template marks what the model writes (`{% generation %}`).
    pub fn marks(&self) -> bool {
        self.marks
    }

    /// The text of a conversation; `prompt` if what begins the model's next turn is to follow it.
    pub fn render(&self, chat: &Chat, prompt: bool) -> Result<String, Refused> {
        self.run(chat, prompt, false)
    }

    /// The text of a conversation, and what of it the template marks as generated.
    pub fn render_marked(&self, chat: &Chat) -> Result<Rendered, Refused> {
        let text = self.render(chat, false)?;
        if !self.marks {
            return Ok(Rendered { text, generated: Vec::new() });
        }
        if text.contains(MARKS) {
            return Err(Refused::Failed("it has U+10FFFE or U+10FFFF, which are no characters".into()));
        }
        let marked = self.run(chat, false, true)?;
        let changed = || Refused::Lost("it changes text that it marks as generated, or marks none of it".into());
        let (mut plain, mut generated, mut from) = (String::with_capacity(text.len()), Vec::new(), None);
        for part in marked.split_inclusive(MARKS) {
            plain.push_str(part.trim_end_matches(MARKS));
            match (part.chars().next_back(), from) {
                (Some(mark), None) if mark == MARKS[0] => from = Some(plain.len()),
                (Some(mark), Some(start)) if mark == MARKS[1] => {
                    generated.push(start..plain.len());
                    from = None;
                }
                (Some(mark), _) if MARKS.contains(&mark) => return Err(changed()),
                _ => {}
            }
        }
        // Text with marks in it can be cut or counted otherwise than text without.
        if plain != text || from.is_some() {
            return Err(changed());
        }
        Ok(Rendered { text, generated })
    }

    fn run(&self, chat: &Chat, prompt: bool, marked: bool) -> Result<String, Refused> {
        let list = |items: &[Json]| python::value(&Json::Array(items.to_vec()));
        let messages: Vec<Json> = chat.messages.iter().map(message).collect();
        let own = [
            ("messages", python::value(&Json::Array(messages))),
            ("tools", chat.tools.map_or(Value::from(()), list)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(prompt)),
        ];
        let special = self.special.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str())));
        let variables = chat.variables.iter().map(|(name, value)| (name.clone(), python::value(value)));
        let marks = source::MARKS.into_iter().zip(MARKS).filter(|_| marked);
        let marks = marks.map(|(name, mark)| (name.to_owned(), Value::from(mark.to_string())));
        // Later ones count.
        let all = special.chain(variables).chain(own.map(|(name, value)| (name.to_owned(), value))).chain(marks);
        let template = self.environment.get_template(NAME).map_err(|e| refused(&e))?;
        template.render(Value::from_pairs(all.collect::<Vec<_>>())).map_err(|e| refused(&e))
    }
}

/// A message as templates see it: without what is null, and with its reasoning under the names that templates read.
fn message(message: &Json) -> Json {
    const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Json::Object(fields) = message else { return message.clone() };
    let mut fields: Map<String, Json> = fields.clone();
    fields.retain(|_, value| !value.is_null());
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else {
        return Json::Object(fields);
    };
    let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    all.extend(fields);
    all.insert("reasoning_content".into(), reasoning);
    Json::Object(all)
}

/// What `raise_exception` said.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// What an error of minijinja's says, without the name of the template.
fn what(error: &Jinja) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

fn refused(error: &Jinja) -> Refused {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut inner = error;
    while let Some(one) = cause {
        if let Some(Raised(message)) = one.downcast_ref() {
            return Refused::Raised(message.clone());
        }
        inner = one.downcast_ref().unwrap_or(inner);
        cause = one.source();
    }
    let at = inner.line().map_or(String::new(), |line| format!("line {line}: "));
    Refused::Failed(format!("{at}{}", what(inner)))
}

fn wrong(what: impl Into<String>) -> Jinja {
    Jinja::new(ErrorKind::InvalidOperation, what.into())
}

fn add_clock(environment: &mut Environment, now: Moment) {
    environment.add_function("strftime_now", move |format: &str| {
        now.strftime(format).map_err(|c| wrong(format!("strftime_now knows no %{c}")))
    });
}

/// Jinja as transformers sets it up.
fn environment(now: Moment) -> std::result::Result<Environment<'static>, Jinja> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, _, value| match value.is_undefined() {
        true => Ok(()),
        false => out.write_str(&python::text(value)).map_err(Jinja::from),
    });

    add_clock(&mut environment, now);
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Jinja> {
        let message = python::text(&message);
        Err(wrong(message.clone()).with_source(Raised(message)))
    });
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter("trim", |value: &Value, chars: Option<&str>| methods::strip(&python::text(value), chars));
    environment.add_filter("join", join);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", |state: &State, value: &Value, default: Option<Value>, named: Kwargs| {
        let made = minijinja::filters::int(state, &bare(value), None, named.get("base")?, nothing());
        or_default(made, default, &named, 0.into())
    });
    environment.add_filter("float", |state: &State, value: &Value, default: Option<Value>, named: Kwargs| {
        or_default(minijinja::filters::float(state, &bare(value), None, nothing()), default, &named, 0.0.into())
    });
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| {
        let kind = value.kind();
        kind != ValueKind::None && (kind == ValueKind::String || value.try_iter().is_ok())
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    Ok(environment)
}

/// No named arguments.
fn nothing() -> Kwargs {
    Kwargs::from_iter(std::iter::empty::<(&str, Value)>())
}

/// What was made of a value; where that failed, the default of a filter.
fn or_default(
    made: Result<Value, Jinja>,
    default: Option<Value>,
    named: &Kwargs,
    usual: Value,
) -> Result<Value, Jinja> {
    let default = default.or(named.get("default")?).unwrap_or(usual);
    named.assert_all_used()?;
    Ok(made.unwrap_or(default))
}

/// A text without the white space around it, which Python's numbers may have.
fn bare(value: &Value) -> Value {
    value.as_str().map_or_else(|| value.clone(), |text| methods::strip(text, None).into())
}

/// `default(value, default_value, boolean)`.
fn default(value: &Value, other: Option<Value>, boolean: Option<Value>, named: Kwargs) -> Result<Value, Jinja> {
    let other = other.or(named.get("default_value")?).unwrap_or_else(|| "".into());
    let boolean = boolean.or(named.get("boolean")?);
    named.assert_all_used()?;
    let missing = value.is_undefined() || boolean.is_some_and(|b| b.is_true()) && !value.is_true();
    Ok(if missing { other } else { value.clone() })
}

/// `join(value, d, attribute)`.
fn join(value: &Value, between: Option<Value>, attribute: Option<&str>, named: Kwargs) -> Result<String, Jinja> {
    let between = match between {
        Some(between) => between,
        None => named.get::<Option<Value>>("d")?.unwrap_or_else(|| "".into()),
    };
    let attribute = match attribute {
        Some(name) => Some(name.to_owned()),
        None => named.get::<Option<String>>("attribute")?,
    };
    named.assert_all_used()?;
    let item = |item: Value| match &attribute {
        Some(name) => item.get_item(&Value::from(name.as_str())).map(|held| python::text(&held)),
        None => Ok(python::text(&item)),
    };
    let items = value.try_iter()?.map(item).collect::<Result<Vec<_>, _>>()?;
    Ok(items.join(&python::text(&between)))
}

/// transformers' `tojson`: Python's `json.dumps`, which escapes nothing for HTML.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Jinja> {
    let argument = |at: usize, name: &str| match positional.get(at) {
        Some(value) => Ok(value.clone()),
        None => named.get::<Option<Value>>(name).map(|value| value.unwrap_or(Value::from(()))),
    };
    let (ascii, indent) = (argument(0, "ensure_ascii")?, argument(1, "indent")?);
    let (separators, sorted) = (argument(2, "separators")?, argument(3, "sort_keys")?);
    named.assert_all_used()?;
    let indent = match (indent.is_none(), indent.as_str()) {
        (true, _) => None,
        (_, Some(text)) => Some(text.to_owned()),
        _ => Some(" ".repeat(usize::try_from(indent)?.min(64))),
    };
    let separators = match separators.is_none() {
        true => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        false => (python::text(&separators.get_item_by_index(0)?), python::text(&separators.get_item_by_index(1)?)),
    };
    let dumps = Dumps { ascii: ascii.is_true(), indent, separators, sorted: sorted.is_true() };
    dumps.dump(value).map_err(|kind| wrong(format!("tojson of a value that is {kind}")))
}
