//! Values of a template as Python has them: how they read when they are written (`repr`, `json.dumps`, `strftime`), and
//! dicts whose methods come before their keys.

use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, State};
use serde_json::{Map, Value as Json};

/// Python's `str.isspace` of a character: that of Unicode, and four control characters.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// JSON as a template sees it.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::from_object(List(items.iter().map(value).collect())),
        Json::Object(fields) => dict(fields),
    }
}

/// An object as a template sees it.
pub(super) fn dict(fields: &Map<String, Json>) -> Value {
    Value::from_object(Dict(fields.iter().map(|(k, v)| (k.clone(), value(v))).collect()))
}

/// Methods of a dict that Jinja finds by `.name` before it looks for a key.
const METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];

/// A dict of strings to values.
#[derive(Debug)]
struct Dict(Vec<(String, Value)>);

impl Dict {
    fn key(&self, name: &str) -> Option<Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.key(key.as_str()?)
    }

    /// What `.name` means: a method before a key.
    fn get_value_by_str(self: &Arc<Self>, name: &str) -> Option<Value> {
        match METHODS.contains(&name) {
            true => Some(Value::from_object(Bound { of: Value::from_dyn_object(self.clone()), name: name.into() })),
            false => self.key(name),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(key, _)| Value::from(key.as_str())).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&repr(&Value::from_dyn_object(self.clone())))
    }
}

/// A list.
#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&repr(&Value::from_dyn_object(self.clone())))
    }
}

/// A method of a dict that is named and not called.
#[derive(Debug)]
struct Bound {
    of: Value,
    name: String,
}

impl Object for Bound {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.of.call_method(state, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.name)
    }
}

/// Python's `str()` of a value.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.into(),
        None => repr(value),
    }
}

/// Python's `repr()` of a value; nothing for one that is undefined, as Jinja has it.
fn repr(value: &Value) -> String {
    let listed = |open: &str, close: &str| {
        let items: Vec<String> = value.try_iter().into_iter().flatten().map(|item| repr(&item)).collect();
        format!("{open}{}{close}", items.join(", "))
    };
    match value.kind() {
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => f64::try_from(value.clone()).map(float).unwrap_or_default(),
        ValueKind::Seq if value.is_tuple() && value.len() == Some(1) => listed("(", ",)"),
        ValueKind::Seq if value.is_tuple() => listed("(", ")"),
        ValueKind::Seq | ValueKind::Iterable => listed("[", "]"),
        ValueKind::Map => {
            let entry = |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
            let entries: Vec<String> = value.try_iter().into_iter().flatten().map(entry).collect();
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    }
}

/// Python's `repr()` of a string: in single quotes, unless it has those and no double ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        let code = c as u32;
        let _ = match c {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            c if c == quote => write!(out, "\\{c}"),
            c if c == ' ' || !(c.is_control() || c.is_whitespace()) => write!(out, "{c}"),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x10000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
    out
}

/// Python's `repr()` of a float: the shortest digits that give it back, with an exponent from 1e16 on and below 1e-4.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, number) = exponent.strip_prefix('-').map_or(("+", exponent), |number| ("-", number));
        return format!("{digits}e{sign}{number:0>2}");
    }
    let text = x.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// How `json.dumps` is to write.
#[derive(Clone, Debug)]
pub(super) struct Dumps {
    /// Other characters than ASCII's are written as escapes.
    pub ascii: bool,
    /// What each level is indented by, if there are lines.
    pub indent: Option<String>,
    /// Between items, and between a key and its value.
    pub separators: (String, String),
    /// Whether keys are in order.
    pub sorted: bool,
}

impl Dumps {
    /// Python's `json.dumps`; the kind of a value that has no JSON is the error.
    pub(super) fn dump(&self, value: &Value) -> Result<String, ValueKind> {
        let mut out = String::new();
        self.write(&mut out, value, 0).map(|()| out)
    }

    fn line(&self, out: &mut String, level: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
    }

    fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<(), ValueKind> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&json_float(f64::try_from(value.clone()).unwrap_or(f64::NAN))),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter().into_iter().flatten().collect();
                self.group(out, "[]", &items, level, |out, item| self.write(out, item, level + 1))?;
            }
            ValueKind::Map => {
                let keys = value.try_iter().into_iter().flatten();
                let mut entries: Vec<(String, Value)> = keys
                    .map(|key| {
                        let held = value.get_item(&key).unwrap_or_default();
                        let name = match key.kind() {
                            ValueKind::String => text(&key),
                            ValueKind::None | ValueKind::Bool | ValueKind::Number => self.dump(&key)?,
                            other => return Err(other),
                        };
                        Ok((name, held))
                    })
                    .collect::<Result<_, _>>()?;
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.group(out, "{}", &entries, level, |out, (key, held)| {
                    self.string(out, key);
                    out.push_str(&self.separators.1);
                    self.write(out, held, level + 1)
                })?;
            }
            other => return Err(other),
        }
        Ok(())
    }

    fn group<T>(
        &self,
        out: &mut String,
        brackets: &str,
        items: &[T],
        level: usize,
        mut each: impl FnMut(&mut String, &T) -> Result<(), ValueKind>,
    ) -> Result<(), ValueKind> {
        if items.is_empty() {
            out.push_str(brackets);
            return Ok(());
        }
        out.push_str(&brackets[..1]);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.separators.0);
            }
            self.line(out, level + 1);
            each(out, item)?;
        }
        self.line(out, level);
        out.push_str(&brackets[1..]);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            let _ = match c {
                '"' => write!(out, "\\\""),
                '\\' => write!(out, "\\\\"),
                '\n' => write!(out, "\\n"),
                '\r' => write!(out, "\\r"),
                '\t' => write!(out, "\\t"),
                '\x08' => write!(out, "\\b"),
                '\x0c' => write!(out, "\\f"),
                c if c < ' ' || self.ascii && c > '~' => {
                    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                c => write!(out, "{c}"),
            };
        }
        out.push('"');
    }
}

fn json_float(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        x => float(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_pythons() {
        let table = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ];
        for (x, want) in table {
            assert_eq!(float(x), want);
        }
        assert_eq!((json_float(f64::NEG_INFINITY), json_float(1e100)), ("-Infinity".into(), "1e+100".into()));
    }

    #[test]
    fn strings_read_as_pythons() {
        let table = [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("it's \"x\"", "'it\\'s \"x\"'"),
            ("\n\t\\\x01\x7f\u{a0}\u{2028}", "'\\n\\t\\\\\\x01\\x7f\\xa0\\u2028'"),
            ("é日🦀", "'é日🦀'"),
        ];
        for (text, want) in table {
            assert_eq!(quoted(text), want);
        }
    }
}
