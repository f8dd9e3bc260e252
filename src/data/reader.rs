//! Files in, rows out, and a [`Dataset`] of what a task makes of them, in one pass.
//!
//! Rows are objects of JSON: one a line, or over several lines, or in an array. Plain text is one document, cut into
//! windows of the longest length allowed.
//!
//! What is trained is decided by position, never by token id: an end token that also serves as padding
//! is still learnt, or the model would never stop.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::format::{self, Format};
use super::long::Long;
use super::row::{Codec, Row};
use super::values::{self, Values};
use super::{Dataset, Example};
use crate::error::{Error, Result};
use crate::paths;

/// What was read, and what could not be used as it was. Lines are those of the first case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Examples cut to the longest length.
    pub truncated: usize,
    /// Line of the first of them, from 1.
    pub first_truncated: Option<usize>,
    /// Examples left out because none of their tokens would be trained.
    pub untrained: usize,
    /// Line of the first of them, from 1.
    pub first_untrained: Option<usize>,
    /// Prompts that end in a space.
    pub spaced: usize,
    /// Line of the first of them, from 1.
    pub first_spaced: Option<usize>,
    /// Completions without a text.
    pub empty: usize,
    /// Line of the first of them, from 1.
    pub first_empty: Option<usize>,
}

impl Report {
    /// A sentence for each thing a user should know.
    pub fn warnings(&self, max_seq_len: usize) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(line) = self.first_truncated {
            out.push(format!(
                "{} cut to {max_seq_len} tokens, the first at line {line}: raise --max-seq-len to keep all of it",
                some(self.truncated, "example was", "examples were")
            ));
        }
        if let Some(line) = self.first_untrained {
            out.push(format!(
                "{} left out, the first at line {line}: no token of it would be trained",
                some(self.untrained, "example was", "examples were")
            ));
        }
        if let Some(line) = self.first_spaced {
            out.push(format!(
                "{} in a space, the first at line {line}: most tokenizers have the space in the token after it, \
                 so a model asked with such a prompt sees what it has not learnt; begin the completions with the space",
                some(self.spaced, "prompt ends", "prompts end")
            ));
        }
        if let Some(line) = self.first_empty {
            out.push(format!(
                "{} empty, the first at line {line}: only the end of the text is learnt there",
                some(self.empty, "completion is", "completions are")
            ));
        }
        out
    }

    /// Counts what is odd about the texts of a row.
    fn texts(&mut self, row: &Row) {
        let text = |name: &str| row.fields.get(name).and_then(Value::as_str);
        let (Some(prompt), Some(completion)) = (text("prompt"), text("completion")) else { return };
        if prompt.ends_with(' ') {
            self.spaced += 1;
            self.first_spaced.get_or_insert(row.line);
        }
        if completion.is_empty() {
            self.empty += 1;
            self.first_empty.get_or_insert(row.line);
        }
    }
}

/// A number of things in words.
fn some(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// Makes examples of a row: none if nothing would be trained; and whether it was cut.
pub type Make<'a> = &'a dyn Fn(&Row, &Codec) -> Result<(Vec<Example>, bool)>;

/// Reads `path`: rows if it begins as JSON does, else plain text, which a file named `.jsonl`, `.ndjson` or `.json` must not
/// be. `columns` are (name that a task reads, name in the file).
pub fn read(path: &Path, codec: &Codec, make: Make, columns: &[(String, String)]) -> Result<(Dataset, Report)> {
    if codec.max_len < 2 {
        let expected = "at least 2: a token is learnt from the ones before it";
        return Err(Error::config("max_seq_len", codec.max_len.to_string(), expected));
    }
    let (input, format) = open(path)?;
    let mut reader = Reader { path, codec, make, columns, data: Dataset::default(), report: Report::default() };
    match format {
        Format::Text => reader.text(input)?,
        rows => reader.rows(input, rows)?,
    }
    let Reader { data, report, .. } = reader;
    if data.is_empty() {
        let found = match report.untrained {
            0 => "no examples".to_string(),
            n => format!("{n} examples, none with a token to train in its first {}", codec.max_len),
        };
        return Err(Error::file(path, found, "at least one example that trains a token"));
    }
    Ok((data, report))
}

/// Gives each row of the file `path` to `on`, until that returns false.
pub fn rows(path: &Path, columns: &[(String, String)], on: &mut dyn FnMut(&Row) -> Result<bool>) -> Result<()> {
    match open(path)? {
        (_, Format::Text) => Err(Error::file(path, "plain text", "JSON Lines: one object a line, with labels")),
        (input, format) => each(path, Values::new(path, input, format), columns, on),
    }
}

/// An error if `path` is neither rows nor text, or its first row is no object or lacks a column. No more of it is read.
pub fn check(path: &Path, columns: &[(String, String)]) -> Result<()> {
    match open(path)? {
        (_, Format::Text) => Ok(()),
        (input, format) => each(path, Values::new(path, input, format), columns, &mut |_| Ok(false)),
    }
}

/// Whether `path` holds rows, not plain text; an error if it is neither. Nothing but its first bytes is read.
pub fn has_rows(path: &Path) -> Result<bool> {
    open(path).map(|(_, format)| format != Format::Text)
}

/// Whether the first row holds token ids, so that no tokenizer is needed.
pub fn is_tokenized(path: &Path, columns: &[(String, String)]) -> Result<bool> {
    let (input, format) = open(path)?;
    if format == Format::Text {
        return Ok(false);
    }
    let named = columns.iter().find(|(name, _)| name == super::INPUT_IDS).map(|(_, column)| column.as_str());
    let mut tokenized = false;
    // What is wrong with a row is said when it is read.
    let _ = each(path, Values::new(path, input, format), &[], &mut |row| {
        tokenized = row.has(named.unwrap_or(super::INPUT_IDS));
        Ok(false)
    });
    Ok(tokenized)
}

/// The file after its byte order mark, and what it is.
fn open(path: &Path) -> Result<(BufReader<File>, Format)> {
    paths::need(path, "a file of JSON Lines or plain text", false)?;
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if kind.is_dir() {
        let expected = match inside(path) {
            Some(file) => format!("a file in it, such as {}", file.display()),
            None => "a file".into(),
        };
        return Err(Error::file(path, "a folder", expected));
    }
    if !kind.is_file() {
        return Err(Error::file(path, "a pipe or a device", "a file, which can be read more than once"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut input = BufReader::with_capacity(1 << 20, file);
    let start = input.fill_buf().map_err(|e| Error::io(path, e))?;
    if start.is_empty() {
        return Err(Error::file(path, "an empty file", "rows, or text"));
    }
    let mark = if start.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    let format = format::of(path, &start[mark..])?;
    input.consume(mark);
    Ok((input, format))
}

/// The first file of a folder that has the name of rows or text.
fn inside(folder: &Path) -> Option<PathBuf> {
    const NAMES: [&str; 5] = ["jsonl", "ndjson", "json", "txt", "md"];
    let named = |path: &PathBuf| path.extension().is_some_and(|e| NAMES.iter().any(|name| e == *name));
    std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(named).min()
}

struct Reader<'a> {
    path: &'a Path,
    codec: &'a Codec<'a>,
    make: Make<'a>,
    columns: &'a [(String, String)],
    data: Dataset,
    report: Report,
}

/// Gives each row of `values` to `on`, until that returns false.
fn each(
    path: &Path,
    mut values: Values<impl BufRead>,
    columns: &[(String, String)],
    on: &mut dyn FnMut(&Row) -> Result<bool>,
) -> Result<()> {
    let mut first = true;
    while let Some((line, bytes)) = values.next()? {
        let fields = values::fields(path, line, bytes)?;
        if std::mem::take(&mut first) {
            nested(path, &fields)?;
        }
        if !on(&row(path, line, fields, columns)?)? {
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

/// The row of these fields, with the names that a task reads.
fn row<'a>(
    path: &'a Path,
    line: usize,
    mut fields: Map<String, Value>,
    columns: &[(String, String)],
) -> Result<Row<'a>> {
    let wrong = |found: String, expected: String| Error::file(format!("{}:{line}", path.display()), found, expected);
    // All are taken out before any is put back, so that two may change places.
    let mut moved = Vec::with_capacity(columns.len());
    for (name, actual) in columns {
        match fields.shift_remove(actual) {
            Some(value) => moved.push((name.clone(), value)),
            None => {
                let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                let found = format!("no column {actual} among {}", names.join(", "));
                return Err(wrong(found, "the columns that --columns names, as NAME=COLUMN".into()));
            }
        }
    }
    fields.extend(moved);
    Ok(Row { path, line, fields })
}

impl Reader<'_> {
    fn rows(&mut self, input: impl BufRead, format: Format) -> Result<()> {
        let (path, columns) = (self.path, self.columns);
        each(path, Values::new(path, input, format), columns, &mut |row| {
            let (examples, cut) = (self.make)(row, self.codec)?;
            self.report.texts(row);
            if cut {
                self.report.truncated += 1;
                self.report.first_truncated.get_or_insert(row.line);
            }
            if examples.is_empty() {
                self.report.untrained += 1;
                self.report.first_untrained.get_or_insert(row.line);
            }
            examples.iter().try_for_each(|example| self.data.push(example))?;
            Ok(true)
        })
    }

    /// Plain text, read and encoded a piece at a time, with the tokens of the whole.
    fn text(&mut self, mut input: impl Read) -> Result<()> {
        const PIECE: u64 = 1 << 20;
        let start = Row { path: self.path, line: 1, fields: Map::new() };
        let mut long = Long::new(self.codec.tokenizer(&start)?);
        let mut pending: Vec<i32> = self.codec.bos.map(|id| id as i32).into_iter().collect();
        let (mut bytes, mut line, mut begun) = (Vec::new(), 1, false);
        loop {
            let read = input.by_ref().take(PIECE).read_to_end(&mut bytes).map_err(|e| Error::io(self.path, e))?;
            let last = read == 0;
            let cut = whole_characters(&bytes, last);
            let piece = std::str::from_utf8(&bytes[..cut]).map_err(|e| {
                let line = line + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
                self.wrong(
                    line,
                    "bytes that are not UTF-8",
                    "text in UTF-8 (if it is Latin-1: `iconv -f LATIN1 -t UTF-8`)",
                )
            })?;
            let mut ids = long.push(piece)?;
            if last {
                ids.extend(long.finish());
            }
            // What begins a document is there already.
            let again = usize::from(!begun && self.codec.bos.is_some() && ids.first() == self.codec.bos.as_ref());
            begun |= !ids.is_empty();
            let row = Row { path: self.path, line, fields: Map::new() };
            for id in ids.into_iter().skip(again) {
                pending.push(self.codec.token(&row, id.into())?);
            }
            if last && !pending.is_empty() {
                self.codec.end(&mut pending);
            }
            line += piece.bytes().filter(|&b| b == b'\n').count();
            bytes.drain(..cut);
            let whole = if last { pending.len() } else { pending.len() / self.codec.max_len * self.codec.max_len };
            for window in pending[..whole].chunks(self.codec.max_len) {
                // The text's last token alone trains nothing; that is no fault of the file.
                if window.len() > 1 {
                    self.data.push(&Example::labelled(window.to_vec(), window.to_vec()))?;
                }
            }
            pending.drain(..whole);
            if last {
                return Ok(());
            }
        }
    }

    fn wrong(&self, line: usize, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::file(format!("{}:{line}", self.path.display()), found, expected)
    }
}

/// Bytes up to the last whole UTF-8 character; all of them at the end of the file, where a broken one is an error.
fn whole_characters(bytes: &[u8], last: bool) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if !last && e.error_len().is_none() => e.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::tokenizer::Tokenizer;
    use super::super::{INPUT_IDS, LABELS};
    use super::*;
    use crate::nn::IGNORE;
    use crate::tasks::{Task, causal_lm::CausalLm};

    /// A byte is a token; 256 begins and 257 ends a document.
    fn bytes(text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    /// The same as a tokenizer: byte-level, without merges.
    static BYTES: LazyLock<Tokenizer> = LazyLock::new(|| {
        let mut others = 256..;
        let mut letter = |byte: u8| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => char::from(byte),
            _ => others.next().and_then(char::from_u32).unwrap(),
        };
        let vocab: Map<String, Value> = (0..=255).map(|byte| (letter(byte).to_string(), byte.into())).collect();
        let words = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
        let model = serde_json::json!({"type": "BPE", "vocab": vocab, "merges": []});
        let json = serde_json::json!({"version": "1.0", "pre_tokenizer": words, "model": model}).to_string();
        let folder = std::env::temp_dir().join(format!("trimtab-reader-bytes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tokenizer.json"), json).unwrap();
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        tokenizer
    });

    fn codec(max_len: usize) -> Codec<'static> {
        let (bos, eos) = (Some(256), Some(257));
        Codec {
            encode: &bytes,
            tokenizer: Some(&BYTES),
            bos,
            eos,
            vocab: 258,
            max_len,
            max_target_len: max_len,
            unlabelled: false,
            traced: false,
        }
    }

    fn read_with(path: &Path, codec: &Codec) -> Result<(Dataset, Report)> {
        let make = |row: &Row, codec: &Codec| CausalLm.examples(row, codec).map(|made| (made.examples, made.cut));
        read(path, codec, &make, &[])
    }

    /// Tokens and labels of each example.
    fn rows(data: &Dataset) -> Vec<(Vec<i32>, Vec<i32>)> {
        let ints = |i: usize, name| data.column(i, name).unwrap().ints().to_vec();
        (0..data.len()).map(|i| (ints(i, INPUT_IDS), ints(i, LABELS))).collect()
    }

    /// A file of its own that goes when the test ends.
    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str, content: &[u8]) -> Temp {
            let unique = format!("trimtab-reader-{}-{:?}-{name}", std::process::id(), std::thread::current().id());
            let path = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
            std::fs::write(&path, content).unwrap();
            Temp(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    fn read_as(name: &str, content: &[u8], max_seq_len: usize) -> Result<(Dataset, Report)> {
        read_with(&Temp::new(name, content).0, &codec(max_seq_len))
    }

    #[test]
    fn lines_become_tokens_and_labels() {
        const X: i32 = IGNORE;
        let table: &[(&str, &[i32], &[i32])] = &[
            (r#"{"text": "ab"}"#, &[256, 97, 98, 257], &[256, 97, 98, 257]),
            (r#"{"prompt": "ab", "completion": "c"}"#, &[256, 97, 98, 99, 257], &[X, X, X, 99, 257]),
            // The end token is learnt although the prompt has it too: masks go by position.
            (r#"{"prompt": "", "completion": ""}"#, &[256, 257], &[X, 257]),
            (r#"{"input_ids": [5, 257, 6]}"#, &[5, 257, 6], &[5, 257, 6]),
            (r#"{"labels": [-100, 7, -100], "input_ids": [5, 7, 6], "id": "x"}"#, &[5, 7, 6], &[X, 7, X]),
            (r#"{"text": "a", "prompt": null, "completion": null}"#, &[256, 97, 257], &[256, 97, 257]),
        ];
        for (line, ids, labels) in table {
            let (data, report) = read_as("a.jsonl", line.as_bytes(), 8).unwrap();
            assert_eq!(rows(&data), [(ids.to_vec(), labels.to_vec())], "{line}");
            let empty = usize::from(line.contains("\"completion\": \"\""));
            let first_empty = (empty > 0).then_some(1);
            assert_eq!(report, Report { empty, first_empty, ..Report::default() });
        }
        let all = table.iter().map(|row| row.0).collect::<Vec<_>>().join("\r\n\n");
        let (data, _) = read_as("all", format!("\u{feff} {all}").as_bytes(), 8).unwrap();
        let want: Vec<_> = table.iter().map(|row| (row.1.to_vec(), row.2.to_vec())).collect();
        assert_eq!(rows(&data), want);
        assert_eq!((data.len(), data.longest(INPUT_IDS)), (table.len(), 5));
    }

    #[test]
    fn an_end_written_out_is_not_doubled() {
        let encode = |text: &str| Ok(if text.ends_with('$') { vec![9, 3] } else { vec![9] });
        let codec = Codec { encode: &encode, bos: None, eos: Some(3), vocab: 10, ..codec(8) };
        for text in ["x$", "x"] {
            let file = Temp::new("eos.jsonl", format!("{{\"text\": \"{text}\"}}").as_bytes());
            let (data, _) = read_with(&file.0, &codec).unwrap();
            assert_eq!(data.ids(0), [9, 3]);
        }
    }

    #[test]
    fn long_and_empty_examples_are_counted() {
        let lines = [
            r#"{"prompt": "p", "completion": "c"}"#,
            r#"{"prompt": "longer than the limit", "completion": "never seen"}"#,
            r#"{"text": "123456789"}"#,
            r#"{"input_ids": [1, 2], "labels": [1, -100]}"#,
            r#"{"input_ids": []}"#,
        ];
        let (data, report) = read_as("a.jsonl", lines.join("\n").as_bytes(), 8).unwrap();
        assert_eq!(rows(&data).iter().map(|(ids, _)| ids.len()).collect::<Vec<_>>(), [4, 8]);
        let want = Report {
            truncated: 2,
            first_truncated: Some(2),
            untrained: 3,
            first_untrained: Some(2),
            ..Report::default()
        };
        assert_eq!(report, want);
        assert_eq!(report.warnings(8).len(), 2);
        let error = read_as("a.jsonl", lines[3].as_bytes(), 8).unwrap_err().to_string();
        assert!(error.contains("1 examples, none"), "{error}");
    }

    #[test]
    fn odd_texts_are_counted() {
        let lines = [
            r#"{"prompt": "p ", "completion": "c"}"#,
            r#"{"prompt": "p", "completion": ""}"#,
            r#"{"prompt": "p ", "completion": ""}"#,
        ];
        let (_, report) = read_as("a.jsonl", lines.join("\n").as_bytes(), 8).unwrap();
        let want = Report { spaced: 2, first_spaced: Some(1), empty: 2, first_empty: Some(2), ..Report::default() };
        assert_eq!(report, want);
        let warnings = report.warnings(8);
        let one = Report { truncated: 1, first_truncated: Some(3), ..Report::default() };
        assert!(one.warnings(8)[0].starts_with("1 example was cut to 8 tokens, the first at line 3"));
        assert!(warnings[0].starts_with("2 prompts end in a space, the first at line 1"), "{warnings:?}");
        assert!(warnings[1].starts_with("2 completions are empty, the first at line 2"), "{warnings:?}");
    }

    #[test]
    fn text_is_cut_into_windows() {
        // Three pieces, one without a line break in it, with characters of several bytes across the borders.
        let mut text = "käse\n".repeat(200_000);
        text.push_str(&"ü".repeat(1 << 20));
        for (length, window) in [(1, 2), (7, 3), (10, 5), (text.len() / 2 * 2, 4096)] {
            let text = &text[..text.floor_char_boundary(length)];
            let (data, report) = match read_as("a.txt", text.as_bytes(), window) {
                Ok(read) => read,
                Err(error) => panic!("{length}: {error}"),
            };
            let mut want = vec![256];
            want.extend(bytes(text).unwrap().into_iter().map(|id| id as i32));
            want.push(257);
            if want.len() % window == 1 {
                want.pop();
            }
            let rows = rows(&data);
            assert_eq!(rows.iter().flat_map(|(ids, _)| ids).copied().collect::<Vec<_>>(), want, "{length}");
            assert!(rows.iter().take(data.len() - 1).all(|(ids, _)| ids.len() == window));
            assert!(rows.iter().all(|(ids, labels)| ids == labels));
            assert_eq!(report, Report::default());
        }
    }

    #[test]
    fn tokenized_files_are_known_by_their_first_line() {
        let table: [(&str, &[u8], bool); 8] = [
            ("a.jsonl", b"\xEF\xBB\xBF\n \r\n{\"input_ids\": [1]}\n{\"text\": \"\"}", true),
            ("a", b"{\"input_ids\": []}", true),
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"input_ids\": [1]}", false),
            ("a.jsonl", b"{\"input_ids\": null}", false),
            ("a.jsonl", b"{\"input_ids\": [", false),
            ("a.txt", b"{\"input_ids\": [1]}", true),
            ("a.json", b"[\n{\"input_ids\": [1]}]", true),
            ("a.txt", b"input_ids", false),
        ];
        for (name, content, want) in table {
            assert_eq!(is_tokenized(&Temp::new(name, content).0, &[]).unwrap(), want, "{name}: {content:?}");
        }
        let columns = [("input_ids".to_string(), "ids".to_string())];
        assert!(is_tokenized(&Temp::new("a.jsonl", b"{\"ids\": [1]}").0, &columns).unwrap());
    }

    #[test]
    fn rows_are_the_same_in_every_layout() {
        let rows = [r#"{"text": "ab", "score": NaN}"#, r#"{"prompt": "a", "completion": "b", "x": {"y": [1]}}"#];
        let pretty = rows.map(|row| row.replace(", \"", ",\n  \"").replace('}', "\n}"));
        let (want, _) = read_as("a.jsonl", rows.join("\n").as_bytes(), 8).unwrap();
        for text in [
            rows.concat(),
            pretty.join("\n"),
            format!("[{}]", rows.join(",")),
            format!("[\n{}\n]\n", pretty.join(",\n")),
        ] {
            for name in ["a.json", "a.jsonl", "a.txt", "a"] {
                assert_eq!(read_as(name, text.as_bytes(), 8).unwrap().0, want, "{name}: {text}");
            }
        }
        let two = Temp::new("two.jsonl", b"{\"text\": \"a\"}\nnothing");
        check(&two.0, &[]).unwrap();
        assert!(check(&two.0, &[("text".into(), "body".into())]).is_err());
        assert!(check(&Temp::new("one.jsonl", b"{\"text\": a}").0, &[]).is_err());
        let error = read_as("a.json", b"[{\"text\": \"a\"},\n\n{\"text\":\n3}]", 8).unwrap_err().to_string();
        assert!(error.contains("a.json:3: found text 3"), "{error}");
    }

    #[test]
    fn columns_may_change_places() {
        let columns = [("text", "prompt"), ("id", "text")].map(|(a, b)| (a.to_string(), b.to_string()));
        let file = Temp::new("columns.jsonl", br#"{"text": "a", "prompt": "b", "more": 1}"#);
        let mut seen = Vec::new();
        super::rows(&file.0, &columns, &mut |row| {
            seen.push((row.need::<String>("text")?, row.need::<String>("id")?, row.has("prompt"), row.has("more")));
            Ok(true)
        })
        .unwrap();
        assert_eq!(seen, [("b".to_string(), "a".to_string(), false, true)]);
        let missing = [("text".to_string(), "body".to_string())];
        let error = super::rows(&file.0, &missing, &mut |_| Ok(true)).unwrap_err().to_string();
        assert!(error.contains("columns.jsonl:1: found no column body among text, prompt, more"), "{error}");
    }

    #[test]
    fn errors_name_the_line_and_what_was_found() {
        let table: &[(&str, &[u8], &str)] = &[
            ("a.jsonl", b"{\"text\": \"a\"}\n\n{\"text\": 3}", "a.jsonl:3: found text 3, expected a string"),
            ("a.jsonl", b"{\"text\": \"a\"\n", "a.jsonl:1: found an object that does not end"),
            ("a.jsonl", b"{\"messages\": []}", "a.jsonl:1: found the fields messages, expected exactly one of: text"),
            ("a.jsonl", b"{\"text\": \"a\", \"prompt\": \"b\"}", "the fields text, prompt"),
            ("a.jsonl", b"{\"prompt\": \"b\"}", "the fields prompt"),
            ("a.jsonl", b"{}", "the fields none"),
            ("a.jsonl", b"[1]", "a.jsonl:1: found `1]`, expected an object"),
            ("a.jsonl", b"{\"text\": \"\xff\"}", "a.jsonl:1: found bytes that are not UTF-8 at column 11"),
            ("a.jsonl", b"{\"input_ids\": [258]}", "a.jsonl:1: found token id 258, expected ids from 0 to 257"),
            ("a.jsonl", b"{\"input_ids\": [-1]}", "token id -1"),
            ("a.jsonl", b"{\"input_ids\": [99999999999999999999]}", "a.jsonl:1: found"),
            ("a.jsonl", b"{\"input_ids\": [1.5]}", "found input_ids [1.5], expected a list of whole numbers"),
            ("a.jsonl", b"{\"input_ids\": [1], \"labels\": [-99]}", "token id -99"),
            ("a.jsonl", b"{\"input_ids\": [1, 2], \"labels\": [1]}", "2 input_ids and 1 labels"),
            ("a.jsonl", b"", "a.jsonl: found an empty file"),
            ("a.jsonl", b"\n", "no examples"),
            ("a.jsonl", b"{\"text\": NaN}", "a.jsonl:1: found text NaN, expected a string"),
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": [\"b\"]}", "a.jsonl:2: found text [\"b\"], expected a string"),
            ("a.json", b"{\"data\": [{\"text\": \"a\"}]}", "in its field data, expected the rows: `jq -c '.data[]'"),
            ("a.txt", b"fine\nfine\n\xff\xfe", "a.txt:3: found bytes that are not UTF-8"),
            ("a.txt", b"cut short \xc3", "a.txt:1: found bytes that are not UTF-8"),
        ];
        for (name, content, want) in table {
            let error = read_as(name, content, 8).unwrap_err().to_string();
            assert!(error.contains(want), "{error}\nis not: {want}");
        }
        let small = Codec { vocab: 98, ..codec(8) };
        let file = Temp::new("b.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"}");
        let error = read_with(&file.0, &Codec { bos: None, eos: None, ..small }).unwrap_err().to_string();
        assert!(error.contains("b.jsonl:2: found token id 98"), "{error}");
        assert!(read_with(&file.0, &codec(1)).is_err());
        assert!(read_with(Path::new("no such file.txt"), &codec(8)).unwrap_err().to_string().contains("no such file"));
    }
}
