//! Rows out of JSON: the objects of a file, each with its line, whether a line has one or an array holds them all; and what
//! a row that is no JSON is instead.

use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::{FormatDef, Input, On, Start, quoted};
use crate::data::values::no_json;
use crate::error::{Error, Result};

/// JSON Lines: an object a line.
pub static LINES: FormatDef = FormatDef {
    name: "jsonl",
    endings: &ENDINGS,
    cells: false,
    is: |start| layout(start) == Some(Layout::Lines),
    rows: Some(|input, on| rows(input, Layout::Lines, on)),
};

/// Objects over several lines, or an array of objects.
pub static JSON: FormatDef = FormatDef {
    name: "json",
    endings: &ENDINGS,
    cells: false,
    is: |start| layout(start).is_some(),
    rows: Some(|mut input, on| {
        let start = input.bytes.fill_buf().map_err(|e| Error::io(input.name, e))?;
        let array = start.trim_ascii_start().starts_with(b"[");
        rows(input, if array { Layout::Array } else { Layout::Objects }, on)
    }),
};

/// A file with such a name holds rows, whatever else its first bytes may mean.
const ENDINGS: [&str; 3] = ["jsonl", "ndjson", "json"];

/// How a file holds its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// One a line.
    Lines,
    /// One after another; each may be over several lines.
    Objects,
    /// In an array.
    Array,
}

/// The layout of a file that begins so; none if that is no JSON.
fn layout(start: &Start) -> Option<Layout> {
    let named = ENDINGS.contains(&start.ending.as_str());
    let body = start.bytes.trim_ascii_start();
    match body {
        [b'{', rest @ ..] if named || rest.trim_ascii_start().starts_with(b"\"") => Some(objects(body)),
        [b'[', rest @ ..] if named || object(rest) => Some(Layout::Array),
        [] if named => Some(Layout::Lines),
        _ => None,
    }
}

/// Whether `text` begins as an object with a key does.
fn object(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\""))
}

/// Whether each object of a text is on a line of its own.
fn objects(text: &[u8]) -> Layout {
    let mut scan = Scan::default();
    let end = text.iter().position(|&byte| byte == b'\n' && !scan.in_string || scan.ends(byte));
    match end {
        // An object ended; another may follow it on the line.
        Some(end) if text[end] == b'}' => match text[end + 1..].iter().find(|b| !b" \t\r".contains(b)) {
            Some(b'{') => Layout::Objects,
            _ => Layout::Lines,
        },
        Some(_) => Layout::Objects,
        None => Layout::Lines,
    }
}

/// Where in an object a reader is.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Takes one more byte; whether the object ends with it.
    fn ends(&mut self, byte: u8) -> bool {
        if self.in_string {
            (self.in_string, self.escaped) = (self.escaped || byte != b'"', !self.escaped && byte == b'\\');
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Gives the rows of a file to `on`.
fn rows(input: Input, layout: Layout, on: On) -> Result<()> {
    let mut values = Values::new(input.name, input.bytes, layout);
    let mut first = true;
    while let Some((line, bytes)) = values.next()? {
        let fields = fields(input.name, line, bytes)?;
        if std::mem::take(&mut first) {
            nested(input.name, &fields)?;
        }
        if !on(line, fields)? {
            break;
        }
    }
    Ok(())
}

/// An error if what should be the first row is an object that holds the rows.
fn nested(path: &Path, fields: &Map<String, Value>) -> Result<()> {
    const NAMES: [&str; 6] = ["data", "rows", "train", "examples", "instances", "items"];
    let holds = |name: &&&str| {
        let rows = fields.get(**name).and_then(Value::as_array);
        rows.is_some_and(|rows| rows.first().is_some_and(Value::is_object))
    };
    match NAMES.iter().find(holds) {
        None => Ok(()),
        Some(name) => {
            let expected = format!("the rows: `jq -c '.{name}[]' {} > rows.jsonl` takes them out", path.display());
            Err(Error::file(path, format!("an object that holds the rows in its field {name}"), expected))
        }
    }
}

/// Cuts a file into its objects, one at a time.
struct Values<'a, R> {
    path: &'a Path,
    input: R,
    layout: Layout,
    /// Lines before the next byte.
    lines: usize,
    /// Objects that were given out.
    count: usize,
    bytes: Vec<u8>,
}

impl<'a, R: BufRead> Values<'a, R> {
    /// Of a file of rows; `input` is after its byte order mark.
    fn new(path: &'a Path, input: R, layout: Layout) -> Values<'a, R> {
        Values { path, input, layout, lines: 0, count: 0, bytes: Vec::new() }
    }

    /// The next object and its first line, from 1; none at the end.
    fn next(&mut self) -> Result<Option<(usize, &[u8])>> {
        let found = match self.layout {
            Layout::Lines => self.line()?,
            _ => self.object()?,
        };
        self.count += usize::from(found.is_some());
        Ok(found.map(|line| (line, self.bytes.as_slice())))
    }

    fn line(&mut self) -> Result<Option<usize>> {
        loop {
            self.bytes.clear();
            let read = self.input.read_until(b'\n', &mut self.bytes).map_err(|e| Error::io(self.path, e))?;
            if read == 0 {
                return Ok(None);
            }
            self.lines += 1;
            if !self.bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(self.lines));
            }
        }
    }

    fn object(&mut self) -> Result<Option<usize>> {
        let array = self.layout == Layout::Array;
        let mut next = self.solid()?;
        if array {
            match (self.count, next) {
                (0, Some(b'[')) | (1.., Some(b',')) => {
                    self.take();
                    next = self.solid()?;
                }
                (_, None | Some(b']')) => {}
                (_, Some(_)) => {
                    let found = self.rest()?;
                    return Err(self.wrong(self.lines + 1, found, "a comma, or the end of the array"));
                }
            }
            if next == Some(b']') {
                return self.after_array();
            }
        }
        let line = self.lines + 1;
        match next {
            None if array => {
                return Err(self.wrong(line, "an array that does not end", "a `]`: the file is cut short"));
            }
            None => return Ok(None),
            Some(b'{') => {}
            Some(_) => {
                let found = self.rest()?;
                return Err(self.wrong(line, found, "an object with the fields of a row"));
            }
        }
        self.bytes.clear();
        let mut scan = Scan::default();
        loop {
            let buffer = self.input.fill_buf().map_err(|e| Error::io(self.path, e))?;
            if buffer.is_empty() {
                return Err(self.wrong(
                    line,
                    "an object that does not end",
                    "a `}`: the file is cut short, or a quote is missing",
                ));
            }
            let end = buffer.iter().position(|&byte| scan.ends(byte));
            let taken = end.map_or(buffer.len(), |end| end + 1);
            self.bytes.extend_from_slice(&buffer[..taken]);
            self.lines += buffer[..taken].iter().filter(|b| **b == b'\n').count();
            self.input.consume(taken);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }

    /// The array is closed; nothing but space may follow.
    fn after_array(&mut self) -> Result<Option<usize>> {
        self.take();
        match self.solid()? {
            None => {
                self.layout = Layout::Objects;
                Ok(None)
            }
            Some(_) => Err(self.wrong(self.lines + 1, "more after the end of the array", "one array")),
        }
    }

    /// The next byte that is no space, which is left where it is.
    fn solid(&mut self) -> Result<Option<u8>> {
        loop {
            let buffer = self.input.fill_buf().map_err(|e| Error::io(self.path, e))?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let at = buffer.iter().position(|b| !b.is_ascii_whitespace());
            let (next, spaces) = (at.map(|at| buffer[at]), at.unwrap_or(buffer.len()));
            self.lines += buffer[..spaces].iter().filter(|b| **b == b'\n').count();
            self.input.consume(spaces);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// The words that come next, for messages.
    fn rest(&mut self) -> Result<String> {
        self.input.fill_buf().map(quoted).map_err(|e| Error::io(self.path, e))
    }

    /// Takes the byte that [`Values::solid`] found.
    fn take(&mut self) {
        self.input.consume(1);
    }

    fn wrong(&self, line: usize, found: impl Into<String>, expected: &str) -> Error {
        Error::file(format!("{}:{line}", self.path.display()), found, expected)
    }
}

/// Python and JavaScript write these.
const LITERALS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// The fields of an object. An error says what was found and expected, and on which line and column.
fn fields(path: &Path, line: usize, bytes: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes).or_else(|error| {
        // Numbers that JSON has not are no fault where nobody reads them.
        let lenient = replaced(bytes).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        lenient.ok_or_else(|| broken(path, line, bytes, &error))
    })
}

/// The same JSON with objects in place of numbers that JSON has not; none if it has no such number.
fn replaced(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut scan = Scan::default();
    let (mut out, mut at, mut any) = (Vec::with_capacity(bytes.len() + 64), 0, false);
    while at < bytes.len() {
        let literal = LITERALS.iter().find(|literal| !scan.in_string && bytes[at..].starts_with(literal));
        if let Some(literal) = literal {
            let text = String::from_utf8_lossy(literal);
            out.extend_from_slice(no_json(&text).to_string().as_bytes());
            at += literal.len();
            any = true;
            continue;
        }
        scan.ends(bytes[at]);
        out.push(bytes[at]);
        at += 1;
    }
    any.then_some(out)
}

/// What is wrong with an object that is no JSON.
fn broken(path: &Path, line: usize, bytes: &[u8], error: &serde_json::Error) -> Error {
    // serde_json counts lines from its own input.
    let line = line + error.line().saturating_sub(1);
    let place = format!("{}:{line}", path.display());
    let of = |found: String, expected: &str| Error::file(&place, found, expected);
    if let Err(e) = std::str::from_utf8(bytes) {
        let column =
            e.valid_up_to() - bytes[..e.valid_up_to()].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1) + 1;
        let expected = "UTF-8 (if it is Latin-1: `iconv -f LATIN1 -t UTF-8`)";
        return of(format!("bytes that are not UTF-8 at column {column}"), expected);
    }
    let text = bytes.trim_ascii();
    if !text.starts_with(b"{") {
        return of(quoted(text), "a JSON object");
    }
    if text[1..].trim_ascii_start().starts_with(b"'") {
        return of(format!("{}, an object of Python", quoted(text)), "JSON, with double quotes: json.dumps writes it");
    }
    if error.is_eof() {
        return of("an object that does not end".into(), "a JSON object, with its end on the same line");
    }
    let message = error.to_string();
    // "… at line 1 column 14": the line is said already.
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let column = error.column();
    match message {
        "trailing characters" if text.ends_with(b",") => {
            of("a comma after an object".into(), "one JSON object a line and nothing else")
        }
        "trailing characters" => {
            of(format!("more after the end of an object at column {column}"), "one JSON object a line")
        }
        message => of(format!("{message} at column {column}"), "a JSON object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::values::shown;

    /// A text, and its objects with their lines.
    type Cut<'a> = (Layout, &'a str, &'a [(usize, &'a str)]);

    fn cut(layout: Layout, text: &str) -> Result<Vec<(usize, String)>> {
        // A buffer of one byte: objects are over many of them.
        let input = std::io::BufReader::with_capacity(1, text.as_bytes());
        let mut values = Values::new(Path::new("f"), input, layout);
        let mut all = Vec::new();
        while let Some((line, bytes)) = values.next()? {
            all.push((line, String::from_utf8_lossy(bytes).trim().replace(['\n', ' '], "")));
        }
        assert!(values.next()?.is_none(), "something after the end");
        Ok(all)
    }

    #[test]
    fn objects_are_found_with_their_lines() {
        let table: &[Cut] = &[
            (Layout::Lines, "{\"a\":1}\n\n \r\n{\"b\":2}", &[(1, "{\"a\":1}"), (4, "{\"b\":2}")]),
            (
                Layout::Objects,
                "{\n\"a\": {\"}\": [1]}\n}\n{\"b\":2}{\"c\":\"\\\"}\"}\n",
                &[(1, "{\"a\":{\"}\":[1]}}"), (4, "{\"b\":2}"), (4, "{\"c\":\"\\\"}\"}")],
            ),
            (Layout::Array, " [\n {\"a\":\n1},\n\n{\"b\":2} ]\n", &[(2, "{\"a\":1}"), (5, "{\"b\":2}")]),
            (Layout::Array, "[ ]", &[]),
        ];
        for (format, text, want) in table {
            let want: Vec<_> = want.iter().map(|(line, text)| (*line, text.to_string())).collect();
            assert_eq!(cut(*format, text).unwrap(), want, "{text}");
        }
        let errors = [
            (Layout::Array, "[{\"a\":1},\n", "f:2: found an array that does not end"),
            (Layout::Array, "[{\"a\":1}\n{\"a\":1}]", "f:2: found `{`, expected a comma"),
            (Layout::Array, "[\n1]", "f:2: found `1`, expected an object"),
            (Layout::Array, "[{}] x", "f:1: found more after the end of the array"),
            (Layout::Objects, "{\n\"a\": \"1}\n", "f:1: found an object that does not end"),
            (Layout::Objects, "{\n}\nx", "f:3: found `x`, expected an object"),
        ];
        for (format, text, want) in errors {
            let error = cut(format, text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}\nis not: {want}");
        }
    }

    #[test]
    fn numbers_that_json_has_not_are_kept_apart() {
        let text = br#"{"text": "NaN, -Infinity", "a": NaN, "b": [1, -Infinity, {"c": Infinity}]}"#;
        let row = fields(Path::new("f"), 1, text).unwrap();
        assert_eq!(row["text"], "NaN, -Infinity");
        assert_eq!(shown(&row["a"]), "NaN");
        assert_eq!(shown(&row["b"]), r#"[1,-Infinity,{"c":Infinity}]"#);
        assert_eq!((row["a"].as_f64(), row["a"].as_str(), row["a"].is_null()), (None, None, false));
        assert!(fields(Path::new("f"), 1, b"{\"a\": NaNa}").is_err());
    }

    #[test]
    fn what_is_no_json_is_named() {
        let table: &[(&[u8], &str)] = &[
            (b"{'text': 'a'}", "f:7: found `{'text': 'a'}`, an object of Python, expected JSON, with double"),
            (b"{\"text\": \"a\"},\n", "f:7: found a comma after an object"),
            (b"{\"text\": \"a\"} x\n", "f:7: found more after the end of an object at column 15"),
            (b"{\"text\": \"caf\xE9\"}", "f:7: found bytes that are not UTF-8 at column 14"),
            (b"{\"text\": \"a", "f:7: found an object that does not end"),
            (b"{\"text\": a}", "f:7: found expected value at column 10"),
            (b"{\n\"text\": a}", "f:8: found expected value at column 9"),
            (b"prose", "f:7: found `prose`, expected a JSON object"),
            (b"[1]", "f:7: found `[1]`"),
        ];
        for (bytes, want) in table {
            let error = fields(Path::new("f"), 7, bytes).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}\nis not: {want}");
        }
    }
}
