//! What a data file is: a format of the table, known by the file's first bytes and its name. A format is one file here and
//! one line in [`FORMATS`]. Files that are nothing of it are refused in words, since as text they would be trained without a
//! complaint.

mod csv;
#[cfg(test)]
mod file_tests;
mod json;
mod parquet;
pub(super) mod text;

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::foreign;

/// Takes a row: its number (the line that it begins on, where lines are counted) and its fields. False ends the reading.
pub(super) type On<'a> = &'a mut dyn FnMut(usize, Map<String, Value>) -> Result<bool>;

/// A format: a row of the table.
pub struct FormatDef {
    /// As `--format` has it.
    pub name: &'static str,
    /// Ends of the names of its files, without the dot.
    pub endings: &'static [&'static str],
    /// Whether values are the text of cells, which may stand for numbers and lists.
    pub cells: bool,
    /// Whether a file that begins so is one.
    is: fn(&Start) -> bool,
    /// Reads its rows; none if it has none.
    rows: Option<fn(Input, On) -> Result<()>>,
}

/// All formats. Where several may be, the first one is.
pub static FORMATS: [&FormatDef; 6] = [&parquet::DEF, &json::LINES, &json::JSON, &csv::COMMAS, &csv::TABS, &text::DEF];

/// The format of a name.
pub fn named(name: &str) -> Option<&'static FormatDef> {
    FORMATS.into_iter().find(|format| format.name == name)
}

/// The format that the name of a file promises.
pub(super) fn of_name(name: &Path) -> Option<&'static FormatDef> {
    let ending = ending(name);
    FORMATS.into_iter().find(|format| format.endings.contains(&ending.as_str()))
}

/// The end of a file's name in small letters: what follows the last dot, or the one before `.gz`.
fn ending(name: &Path) -> String {
    let plain = name.to_string_lossy().to_ascii_lowercase();
    let plain = Path::new(plain.strip_suffix(".gz").unwrap_or(&plain));
    plain.extension().map_or(String::new(), |ending| ending.to_string_lossy().into_owned())
}

impl FormatDef {
    /// Whether it has rows: all but plain text have.
    pub fn has_rows(&self) -> bool {
        self.rows.is_some()
    }
}

/// The beginning of a file.
struct Start<'a> {
    /// The end of its name.
    ending: String,
    /// Its first bytes, after a byte order mark.
    bytes: &'a [u8],
}

/// A file that is being read.
pub(super) struct Input<'a> {
    /// What messages call it.
    pub name: &'a Path,
    /// Where it is: Parquet is not read from its beginning.
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    pub path: &'a Path,
    /// What it holds, unpacked and after a byte order mark.
    pub bytes: Box<dyn BufRead>,
}

impl Input<'_> {
    /// Gives its rows to `on`.
    pub fn rows(self, format: &FormatDef, on: On) -> Result<()> {
        match format.rows {
            Some(rows) => rows(self, on),
            None => Err(Error::file(self.name, "plain text", "rows, with labels: JSON Lines, CSV or Parquet")),
        }
    }
}

/// Opens a file, and says what it is unless that is `known`.
pub(super) fn open<'a>(
    path: &'a Path,
    name: &'a Path,
    known: Option<&'static FormatDef>,
) -> Result<(Input<'a>, &'static FormatDef)> {
    /// Bytes that a format is known by at most.
    const START: u64 = 1 << 20;
    let io = |e| Error::io(name, e);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::file(name, "a pipe or a device", "a file, or `-` for standard input"));
    }
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
    let packed = file.fill_buf().map_err(io)?.starts_with(b"\x1F\x8B");
    let mut bytes: Box<dyn BufRead> = match packed {
        true => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file))),
        false => Box::new(file),
    };
    let mut start = Vec::new();
    bytes.by_ref().take(START).read_to_end(&mut start).map_err(|e| match packed {
        true => Error::file(name, format!("a gzip archive that is broken ({e})"), "a whole one: `gzip -t` tests it"),
        false => Error::io(name, e),
    })?;
    if start.is_empty() {
        return Err(Error::file(name, "an empty file", "rows, or text"));
    }
    let mark = if start.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    let format = match known {
        Some(format) => format,
        None => detect(name, &start[mark..])?,
    };
    if format.name != parquet::DEF.name {
        encoding(name, &start[mark..])?;
    } else if packed {
        return Err(Error::file(name, "a Parquet file in a gzip archive", "the file in it: `gunzip` unpacks it"));
    }
    let mut start = Cursor::new(start);
    start.set_position(mark as u64);
    Ok((Input { name, path, bytes: Box::new(start.chain(bytes)) }, format))
}

/// The format of a file that begins with `bytes`, which are after its byte order mark.
fn detect(name: &Path, bytes: &[u8]) -> Result<&'static FormatDef> {
    let start = Start { ending: ending(name), bytes };
    let format = FORMATS.into_iter().find(|format| (format.is)(&start)).unwrap_or(&text::DEF);
    if format.name == parquet::DEF.name {
        return Ok(format);
    }
    foreign::refuse(name, bytes)?;
    encoding(name, bytes)?;
    match of_name(name).filter(|promised| promised.has_rows()) {
        Some(other) if !format.has_rows() => {
            let found = format!("text that begins with {}", quoted(bytes.trim_ascii_start()));
            let expected = format!("rows, as the name says ({}); or --format text, for plain text", other.name);
            Err(Error::file(name, found, expected))
        }
        _ => Ok(format),
    }
}

/// The first words of a text, for messages.
fn quoted(text: &[u8]) -> String {
    const SHOWN: usize = 40;
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii();
    let line = String::from_utf8_lossy(line);
    let short: String = line.chars().take(SHOWN).collect();
    format!("`{short}{}`", if short.len() < line.len() { "…" } else { "" })
}

/// Text in another encoding than UTF-8, or no text.
fn encoding(path: &Path, start: &[u8]) -> Result<()> {
    let name = match start {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => "UTF-32",
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "UTF-16",
        _ if start.contains(&0) => {
            // Letters of ASCII have a zero in every other byte.
            let zeros = |first: usize| start.iter().skip(first).step_by(2).filter(|b| **b == 0).count();
            match start.len() >= 8 && zeros(0).max(zeros(1)) * 2 >= start.len() * 9 / 10 {
                true => "UTF-16",
                false => return Err(Error::file(path, "bytes that are no text", "rows, or plain text in UTF-8")),
            }
        }
        _ => return Ok(()),
    };
    let shown = path.display();
    let expected = format!("UTF-8: `iconv -f {name} -t UTF-8 {shown} > utf8-{}` writes it", file_name(path));
    Err(Error::file(path, format!("text in {name}"), expected))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or("data".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        let table: &[(&str, &[u8], &str)] = &[
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", "jsonl"),
            ("a.txt", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", "jsonl"),
            ("a", b" \n{\"text\": \"a } { b\"}", "jsonl"),
            ("a.jsonl", b"{\"text\": \"cut at the end of the bu", "jsonl"),
            ("a.jsonl", b"\n", "jsonl"),
            ("a.json", b"{\n  \"text\": \"a\"\n}\n", "json"),
            ("a.jsonl", b"{\"text\": \"a\\\"}\"} {\"text\": \"b\"}\n", "json"),
            ("a.json", b"[\n{\"text\": \"a\"}]", "json"),
            ("a.txt", b"[{\"text\": \"a\"}]", "json"),
            ("a.JSON", b"[1, 2]", "json"),
            ("a.jsonl", b"text,label\nfine,1\nbad,0\n", "csv"),
            ("a.txt", b"text,label\r\n\"a, b\",1\r\n", "csv"),
            ("a.csv", b"anything", "csv"),
            ("a.csv", b"{\"text\": \"a\"}\n", "jsonl"),
            ("a", b"text\tlabel\nfine\t1\nbad\t0\nmore\t1\n", "tsv"),
            ("a.tsv", b"text", "tsv"),
            ("a.parquet", b"PAR1\x15", "parquet"),
            ("a.bin", b"PAR1\x15", "parquet"),
            ("a.txt", b"[Enter Hamlet, reading]\n", "text"),
            ("a.txt", b"{% if x %}", "text"),
            ("a.txt", b"", "text"),
            ("a.txt", b"One, two, three\nfour, five, six\n", "text"),
            ("a.txt", b"word,another\nand a line without\nthe\n", "text"),
            ("a.md", b"a,b\n1,2\n3,4\n", "text"),
            ("a", "käse\n".as_bytes(), "text"),
        ];
        for (name, start, want) in table {
            let found = detect(Path::new(name), start).unwrap();
            assert_eq!(found.name, *want, "{name}: {}", String::from_utf8_lossy(start));
            assert_eq!(named(want).unwrap().name, *want);
        }
        assert_eq!(detect(Path::new("a.csv.gz"), b"text").unwrap().name, "csv");
        assert!(named("yaml").is_none());
    }

    #[test]
    fn what_is_nothing_of_the_table_is_refused_in_words() {
        let table: &[(&str, &[u8], &str)] = &[
            ("a.txt", b"\xFF\xFEa\0", "a.txt: found text in UTF-16, expected UTF-8: `iconv -f UTF-16 -t UTF-8 a.txt >"),
            ("a.txt", b"\xFE\xFF\0a", "text in UTF-16"),
            ("a.csv", b"a\0 \0l\0i\0n\0e\0\n\0", "text in UTF-16"),
            ("a.txt", b"\x7FELF\x02\0\0\0\x01\0\0\0", "bytes that are no text"),
            (
                "a.jsonl",
                b"Once upon a time there was a king who had no name",
                "begins with `Once upon a time there was a king who ha…`",
            ),
            ("a.jsonl", b"\"a\"\n", "begins with `\"a\"`"),
            ("a.parquet", b"text\n", "as the name says (parquet); or --format text"),
            ("a.txt", b"\x28\xB5\x2F\xFD\0", "zstd"),
        ];
        for (name, start, want) in table {
            let error = detect(Path::new(name), start).map(|format| format.name).unwrap_err().to_string();
            assert!(error.contains(want), "{error}\nis not: {want}");
        }
    }
}
