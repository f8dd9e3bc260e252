//! Files that are not what their name says, known by their first bytes: what stands in for a file that was not fetched,
//! web pages, archives, tables in other formats.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// As many bytes as [`known`] looks at.
pub const START: usize = 256;

/// First bytes, what a file that begins so is, and what to do; `FILE` is its path there.
type Kind = (&'static [u8], &'static str, &'static str);

const KINDS: &[Kind] = &[
    (
        b"version https://git-lfs.github.com/spec/",
        "a git-lfs pointer, not the file that it points to",
        "the file: `git lfs install`, then `git lfs pull` in its folder fetches it",
    ),
    (
        b"PAR1",
        "a Parquet file",
        "JSON Lines: `pandas.read_parquet(\"FILE\").to_json(\"rows.jsonl\", orient=\"records\", lines=True)` in Python",
    ),
    (
        b"ARROW1",
        "an Arrow file",
        "JSON Lines: `pandas.read_feather(\"FILE\").to_json(\"rows.jsonl\", orient=\"records\", lines=True)` in Python",
    ),
    (b"\x1F\x8B", "a gzip archive", "the file in it: `gunzip --keep FILE` unpacks it"),
    (b"\x28\xB5\x2F\xFD", "a zstd archive", "the file in it: `zstd -d FILE` unpacks it"),
    (b"BZh", "a bzip2 archive", "the file in it: `bunzip2 --keep FILE` unpacks it"),
    (b"\xFD7zXZ\0", "an xz archive", "the file in it: `unxz --keep FILE` unpacks it"),
    (b"7z\xBC\xAF\x27\x1C", "a 7z archive", "the file in it: `7z x FILE` unpacks it"),
    (
        b"PK\x03\x04",
        "a zip archive",
        "the file in it: `unzip FILE` unpacks it (PyTorch's and Excel's files are zip archives too)",
    ),
    (b"%PDF-", "a PDF", "text: `pdftotext FILE` takes it out"),
];

/// What a file that begins with `start` is, and what to do; none if nothing is known of it.
fn known(path: &Path, start: &[u8]) -> Option<Error> {
    let of = |found: &str, expected: &str| {
        Some(Error::file(path, found, expected.replace("FILE", &path.display().to_string())))
    };
    if let Some((_, found, expected)) = KINDS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return of(found, expected);
    }
    let text = start.trim_ascii_start().to_ascii_lowercase();
    if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        return of("a web page", "the file itself: on the hub its address has /resolve/ where the page's has /blob/");
    }
    None
}

/// An error if a file that begins with `start` is known to be something else than anything here reads.
pub fn refuse(path: &Path, start: &[u8]) -> Result<()> {
    known(path, start).map_or(Ok(()), Err)
}

/// What `path` is in place of what it should be, if that is known, else `or`: for a file that could not be read as what
/// its name says.
pub fn explain(path: &Path, or: Error) -> Error {
    let mut start = Vec::with_capacity(START);
    // A file that cannot be read any more has had its error.
    let read = std::fs::File::open(path).and_then(|file| file.take(START as u64).read_to_end(&mut start));
    read.ok().and_then(|_| known(path, &start)).unwrap_or(or)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let table: &[(&[u8], &str, &str)] = &[
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer", "git lfs pull"),
            (b"PAR1....", "Parquet", "read_parquet(\"a/b.x\")"),
            (b"\x1F\x8B\x08\0", "gzip", "gunzip --keep a/b.x"),
            (b"PK\x03\x04", "zip", "unzip a/b.x"),
            (b"\n <!DOCTYPE HTML>", "web page", "/resolve/"),
        ];
        for (start, found, expected) in table {
            let error = refuse("a/b.x".as_ref(), start).unwrap_err().to_string();
            assert!(error.starts_with("a/b.x: found a ") && error.contains(found), "{error}");
            assert!(error.contains(expected), "{error}");
        }
        for fine in [&b"{\"text\": \"PAR1\"}"[..], b"", b"version 2 of the text", b"GGUF"] {
            refuse("a".as_ref(), fine).unwrap();
        }
        let other = Error::file("nowhere", "x", "y");
        assert_eq!(explain("nowhere".as_ref(), other).to_string(), "nowhere: found x, expected y");
    }
}
