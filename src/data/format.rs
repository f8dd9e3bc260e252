//! What a data file is: rows in one of JSON's layouts, or text. Files of other formats are refused in words, since as text
//! they would be trained without a complaint.

use std::path::Path;

use crate::error::{Error, Result};
use crate::foreign;

/// How a file holds what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON Lines: an object a line.
    Lines,
    /// Objects one after another that may each be over several lines.
    Objects,
    /// An array of objects.
    Array,
    /// Plain text.
    Text,
}

const LINES: &str = "JSON Lines: one object a line";
/// A file with such a name holds rows, whatever else its first bytes may mean.
const ROWS: [&str; 3] = ["jsonl", "ndjson", "json"];

/// The format of a file that begins with `start`, which is UTF-8 without a byte order mark if it is text.
pub(super) fn of(path: &Path, start: &[u8]) -> Result<Format> {
    foreign::refuse(path, start)?;
    encoding(path, start)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let body = start.trim_ascii_start();
    let named = ROWS.contains(&extension.as_str());
    match body {
        [b'{', rest @ ..] if named || rest.trim_ascii_start().starts_with(b"\"") => return Ok(objects(body)),
        [b'[', rest @ ..] if named || object(rest) => return Ok(Format::Array),
        _ => {}
    }
    if let Some(separator) = table(&extension, body) {
        let read = match separator {
            b'\t' => "read_csv(\"FILE\", sep=\"\\t\")",
            _ => "read_csv(\"FILE\")",
        };
        let read = read.replace("FILE", &path.display().to_string());
        let found =
            format!("a table of values that are separated by {}", if separator == b'\t' { "tabs" } else { "commas" });
        let expected = format!(
            "{LINES}; `pandas.{read}.to_json(\"rows.jsonl\", orient=\"records\", lines=True)` in Python writes it"
        );
        return Err(Error::file(path, found, expected));
    }
    if named && !body.is_empty() {
        let found = format!("text that begins with {}", quoted(body));
        return Err(Error::file(path, found, format!("{LINES}; or a name that ends in .txt, for plain text")));
    }
    Ok(if named { Format::Lines } else { Format::Text })
}

/// Whether `text` begins as an object with a key does.
fn object(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\""))
}

/// The first words of a text, for messages.
pub(super) fn quoted(text: &[u8]) -> String {
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
                false => return Err(Error::file(path, "bytes that are no text", format!("{LINES}, or plain text"))),
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

/// Whether each object of a text is on a line of its own.
fn objects(text: &[u8]) -> Format {
    let mut scan = Scan::default();
    let end = text.iter().position(|&byte| byte == b'\n' && !scan.in_string || scan.ends(byte));
    match end {
        // An object ended; another may follow it on the line.
        Some(end) if text[end] == b'}' => match text[end + 1..].iter().find(|b| !b" \t\r".contains(b)) {
            Some(b'{') => Format::Objects,
            _ => Format::Lines,
        },
        Some(_) => Format::Objects,
        None => Format::Lines,
    }
}

/// Where in an object a reader is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    depth: usize,
    pub(super) in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Takes one more byte; whether the object ends with it.
    pub(super) fn ends(&mut self, byte: u8) -> bool {
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

/// What separates the columns, if this is a table: by its name, or because its first line is names and each line after it
/// has as many values or more.
fn table(extension: &str, text: &[u8]) -> Option<u8> {
    match extension {
        "csv" => return Some(b','),
        "tsv" => return Some(b'\t'),
        "md" => return None,
        _ => {}
    }
    let mut lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| !line.is_empty());
    let header = lines.next()?;
    let lines: Vec<&[u8]> = lines.take(4).collect();
    [b',', b'\t'].into_iter().find(|separator| {
        let count = |line: &[u8]| line.iter().filter(|b| *b == separator).count();
        let name = |cell: &[u8]| {
            let cell = cell.strip_prefix(b"\"").and_then(|c| c.strip_suffix(b"\"")).unwrap_or(cell);
            cell.first().is_some_and(u8::is_ascii_alphabetic)
                && cell.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(b))
        };
        count(header) > 0
            && header.split(|b| b == separator).all(name)
            && !lines.is_empty()
            // The last line may be cut by the end of what was read.
            && lines.iter().take(lines.len().max(2) - 1).all(|line| count(line) >= count(header))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        use Format::{Array, Lines, Objects, Text};
        let table: &[(&str, &[u8], Format)] = &[
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", Lines),
            ("a.txt", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", Lines),
            ("a", b" \n{\"text\": \"a } { b\"}", Lines),
            ("a.jsonl", b"{\"text\": \"cut at the end of the bu", Lines),
            ("a.jsonl", b"", Lines),
            ("a.json", b"{\n  \"text\": \"a\"\n}\n", Objects),
            ("a.jsonl", b"{\"text\": \"a\\\"}\"} {\"text\": \"b\"}\n", Objects),
            ("a.json", b"[\n{\"text\": \"a\"}]", Array),
            ("a.txt", b"[{\"text\": \"a\"}]", Array),
            ("a.json", b"[1, 2]", Array),
            ("a.txt", b"[Enter Hamlet, reading]\n", Text),
            ("a.txt", b"{% if x %}", Text),
            ("a.txt", b"", Text),
            ("a.txt", b"One, two, three\nfour, five, six\n", Text),
            ("a.txt", b"word,another\nand a line without\nthe\n", Text),
            ("a.md", b"a,b\n1,2\n3,4\n", Text),
            ("a", "käse\n".as_bytes(), Text),
        ];
        for (name, start, want) in table {
            assert_eq!(of(Path::new(name), start).unwrap(), *want, "{name}: {}", String::from_utf8_lossy(start));
        }
    }

    #[test]
    fn other_formats_are_refused_in_words() {
        let table: &[(&str, &[u8], &str)] = &[
            (
                "a.jsonl",
                b"text,label\nfine,1\nbad,0\n",
                "a.jsonl: found a table of values that are separated by commas",
            ),
            ("a.txt", b"text,label\r\n\"a, b\",1\r\n", "separated by commas"),
            ("a", b"text\tlabel\nfine\t1\nbad\t0\nmore\t1\n", "read_csv(\"a\", sep=\"\\t\")"),
            ("a.csv", b"anything", "separated by commas"),
            ("a.txt", b"\xFF\xFEa\0", "a.txt: found text in UTF-16, expected UTF-8: `iconv -f UTF-16 -t UTF-8 a.txt >"),
            ("a.txt", b"\xFE\xFF\0a", "text in UTF-16"),
            ("a.txt", b"a\0 \0l\0i\0n\0e\0\n\0", "text in UTF-16"),
            ("a.txt", b"\x7FELF\x02\0\0\0\x01\0\0\0", "bytes that are no text"),
            (
                "a.jsonl",
                b"Once upon a time there was a king who had no name",
                "begins with `Once upon a time there was a king who ha…`",
            ),
            ("a.jsonl", b"\"a\"\n", "begins with `\"a\"`"),
            ("a.txt", b"\x1F\x8B\x08\0", "gzip"),
        ];
        for (name, start, want) in table {
            let error = of(Path::new(name), start).unwrap_err().to_string();
            assert!(error.contains(want), "{error}\nis not: {want}");
        }
    }
}
