//! Tables of values that are separated by commas or tabs. The first row names the columns; a value in quotes may have
//! separators, line ends and doubled quotes in it.
//!
//! A cell is text, and a column has no type: what is asked for as a text is the cell as it is, so that a `text` of digits
//! stays one, and what is asked for as a number or a list is what the cell says in JSON (`crate::data::values::of_cell`). A
//! `label`, which may be a name or a number, is the number if the cell is one. An empty cell is no value, as in pandas and
//! `datasets`; no word such as `NA` is special.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::path::Path;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use super::{FormatDef, Input, On, Start};
use crate::error::{Error, Result};

/// Values that are separated by commas, or by what the first line has instead: semicolons, else tabs.
pub static COMMAS: FormatDef = FormatDef {
    name: "csv",
    endings: &["csv"],
    cells: true,
    is: |start| is_table(start, b','),
    rows: Some(|mut input, on| {
        let start = input.bytes.fill_buf().map_err(|e| Error::io(input.name, e))?;
        let header = start.split(|b| matches!(b, b'\n' | b'\r')).next().unwrap_or_default();
        let separator = [b',', b';', b'\t'].into_iter().find(|separator| header.contains(separator)).unwrap_or(b',');
        rows(input, separator, on)
    }),
};

/// Values that are separated by tabs.
pub static TABS: FormatDef = FormatDef {
    name: "tsv",
    endings: &["tsv", "tab"],
    cells: true,
    is: |start| is_table(start, b'\t'),
    rows: Some(|input, on| rows(input, b'\t', on)),
};

/// Whether this is a table: by its name, or because its first line is names and each line after it has as many values or
/// more.
fn is_table(start: &Start, separator: u8) -> bool {
    let of_name = [&COMMAS, &TABS].into_iter().find(|format| format.endings.contains(&start.ending.as_str()));
    match of_name {
        Some(format) => return (format.name == TABS.name) == (separator == b'\t'),
        None if start.ending == "md" => return false,
        None => {}
    }
    let mut lines = start.bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| !line.is_empty());
    let Some(header) = lines.next() else { return false };
    let lines: Vec<&[u8]> = lines.take(4).collect();
    let count = |line: &[u8]| line.iter().filter(|b| **b == separator).count();
    let name = |cell: &[u8]| {
        let cell = cell.strip_prefix(b"\"").and_then(|c| c.strip_suffix(b"\"")).unwrap_or(cell);
        cell.first().is_some_and(u8::is_ascii_alphabetic)
            && cell.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(b))
    };
    count(header) > 0
        && header.split(|b| *b == separator).all(name)
        && !lines.is_empty()
        // The last line may be cut by the end of what was read.
        && lines.iter().take(lines.len().max(2) - 1).all(|line| count(line) >= count(header))
}

fn rows(input: Input, separator: u8, on: On) -> Result<()> {
    let name = input.name;
    let watched = Watched::new(input.bytes, separator);
    let mut reader = ReaderBuilder::new().delimiter(separator).buffer_capacity(1 << 16).from_reader(watched);
    let header = reader.byte_headers().map_err(|e| broken(name, 1, e))?.clone();
    let line = reader.get_mut().lines.pop_front().unwrap_or(1);
    let header = header.iter().map(|cell| text(name, line, cell).map(|cell| cell.trim().to_owned()));
    let header: Vec<String> = header.collect::<Result<_>>()?;
    if let Some(twice) = header.iter().enumerate().find(|(i, column)| header[..*i].contains(column)) {
        return Err(wrong(name, line, format!("the column {:?} twice", twice.1), "columns of different names".into()));
    }
    let mut record = ByteRecord::new();
    loop {
        let read = reader.read_byte_record(&mut record);
        let watched = reader.get_mut();
        let line = watched.lines.pop_front().unwrap_or(watched.line);
        if !read.map_err(|e| broken(name, line, e))? {
            return Ok(());
        }
        if watched.ended && watched.at == At::Quoted {
            let (found, expected) = ("a quote that does not end", "a quote at the end of the value");
            return Err(wrong(name, watched.opened, found.into(), expected.into()));
        }
        let mut fields = Map::new();
        for (column, cell) in header.iter().zip(&record) {
            let value = if cell.is_empty() { Value::Null } else { text(name, line, cell)?.into() };
            fields.insert(column.clone(), value);
        }
        if !on(line, fields)? {
            return Ok(());
        }
    }
}

fn text<'a>(name: &Path, line: usize, cell: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(cell).map_err(|_| {
        let expected = "UTF-8 (if it is Latin-1: `iconv -f LATIN1 -t UTF-8`)";
        wrong(name, line, "bytes that are not UTF-8".into(), expected.into())
    })
}

fn wrong(name: &Path, line: usize, found: String, expected: String) -> Error {
    Error::file(format!("{}:{line}", name.display()), found, expected)
}

/// The error of a table that cannot be read.
fn broken(name: &Path, line: usize, error: csv::Error) -> Error {
    match error.into_kind() {
        ErrorKind::Io(e) => Error::io(name, e),
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let expected = format!("{expected_len}, as many as the first row has names (--format text: plain text)");
            wrong(name, line, format!("a row of {len} values"), expected)
        }
        other => {
            wrong(name, line, format!("{other:?}"), "a table of values with the names of its columns first".into())
        }
    }
}

/// Where in a table a byte is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// At the start of a value.
    Start,
    /// In a value without quotes.
    Bare,
    /// In quotes.
    Quoted,
    /// After a quote in quotes, which ends them or doubles it.
    Quote,
}

/// Tells what the `csv` crate does not: the lines of rows, and whether the input ends in quotes. That crate takes it for the
/// end of the value, so that one quote too many makes one value of all that follows it.
struct Watched<R> {
    input: R,
    separator: u8,
    at: At,
    line: usize,
    /// The lines on which rows begin that were not given out yet.
    lines: VecDeque<usize>,
    /// Whether the next byte that ends no line begins a row.
    fresh: bool,
    /// The line of the last quote that began a value.
    opened: usize,
    /// Whether all has been read.
    ended: bool,
}

impl<R> Watched<R> {
    fn new(input: R, separator: u8) -> Watched<R> {
        let lines = VecDeque::new();
        Watched { input, separator, at: At::Start, line: 1, lines, fresh: true, opened: 1, ended: false }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.ended = read == 0;
        for &byte in &into[..read] {
            let ends = self.at != At::Quoted && matches!(byte, b'\n' | b'\r');
            if self.fresh && !ends {
                self.lines.push_back(self.line);
            }
            self.fresh = ends;
            self.at = match (self.at, byte) {
                (At::Start, b'"') => {
                    self.opened = self.line;
                    At::Quoted
                }
                (At::Quoted, b'"') => At::Quote,
                (At::Quoted, _) | (At::Quote, b'"') => At::Quoted,
                (_, b'\n' | b'\r') => At::Start,
                (_, byte) if byte == self.separator => At::Start,
                (..) => At::Bare,
            };
            self.line += usize::from(byte == b'\n');
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(format: &FormatDef, bytes: &'static [u8]) -> Result<Vec<(usize, Value)>> {
        let path = Path::new("f.csv");
        let mut all = Vec::new();
        Input { name: path, path, bytes: Box::new(bytes) }.rows(format, &mut |line, fields| {
            all.push((line, fields.into()));
            Ok(true)
        })?;
        Ok(all)
    }

    #[test]
    fn cells_are_read_with_their_lines() {
        let rows =
            read(&COMMAS, b"text, label\r\n\"a, \"\"b\"\"\nc\",1\r\n\r\n007,\n5\" pipe,x\"y\n\"\",\"2\"").unwrap();
        let want = [
            (2, json!({"text": "a, \"b\"\nc", "label": "1"})),
            (5, json!({"text": "007", "label": null})),
            (6, json!({"text": "5\" pipe", "label": "x\"y"})),
            (7, json!({"text": null, "label": "2"})),
        ];
        assert_eq!(rows, want);
        let tabs = read(&TABS, b"a\tb\n1, 2\t\"x\ty\"\n").unwrap();
        assert_eq!(tabs, [(2, json!({"a": "1, 2", "b": "x\ty"}))]);
        assert_eq!(read(&COMMAS, b"a;b\n1,5;2\n").unwrap(), [(2, json!({"a": "1,5", "b": "2"}))]);
        assert_eq!(read(&COMMAS, b"a;b\r1,5;2\r").unwrap(), [(1, json!({"a": "1,5", "b": "2"}))]);
        assert_eq!(read(&COMMAS, b"a\tb\n1;5, 6\t2\n").unwrap(), [(2, json!({"a": "1;5, 6", "b": "2"}))]);
        assert_eq!(read(&COMMAS, b"text\none\n").unwrap(), [(2, json!({"text": "one"}))]);
        assert_eq!(read(&COMMAS, b"text,label").unwrap(), []);
    }

    #[test]
    fn tables_that_are_none_are_errors() {
        let table: &[(&'static [u8], &str)] = &[
            (b"a,b\n1,2\n3\n", "f.csv:3: found a row of 1 values, expected 2, as many as"),
            (b"a,b\n1,2,3\n", "f.csv:2: found a row of 3 values"),
            (b"a,a\n1,2\n", "f.csv:1: found the column \"a\" twice"),
            (b"a,b\n1,\"2\n3,4\n5,6\n", "f.csv:2: found a quote that does not end"),
            (b"a,b\n1,2\n\xFF,4\n", "f.csv:3: found bytes that are not UTF-8"),
            (b"a,\xFF\n1,2\n", "f.csv:1: found bytes that are not UTF-8"),
        ];
        for (bytes, want) in table {
            let error = read(&COMMAS, bytes).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}\nis not: {want}");
        }
    }
}
