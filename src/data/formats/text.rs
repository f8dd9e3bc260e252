//! Plain text: what is nothing else. It is one document, and has no rows.

use std::io::Read;

use super::{FormatDef, Input};
use crate::error::{Error, Result};

/// The format.
pub static DEF: FormatDef =
    FormatDef { name: "text", endings: &["txt", "md", "text"], cells: false, is: |_| true, rows: None };

/// Gives a text to `on` in pieces of whole characters: the line that a piece begins on, the piece, and whether it is the
/// last one, which may be empty.
pub(in crate::data) fn pieces(mut input: Input, on: &mut dyn FnMut(usize, &str, bool) -> Result<()>) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let (mut bytes, mut line) = (Vec::new(), 1);
    loop {
        let read = input.bytes.by_ref().take(PIECE).read_to_end(&mut bytes).map_err(|e| Error::io(input.name, e))?;
        let last = read == 0;
        let cut = whole_characters(&bytes, last);
        let piece = std::str::from_utf8(&bytes[..cut]).map_err(|e| {
            let line = line + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            let place = format!("{}:{line}", input.name.display());
            let expected = "text in UTF-8 (if it is Latin-1: `iconv -f LATIN1 -t UTF-8`)";
            Error::file(place, "bytes that are not UTF-8", expected)
        })?;
        on(line, piece, last)?;
        if last {
            return Ok(());
        }
        line += piece.bytes().filter(|&b| b == b'\n').count();
        bytes.drain(..cut);
    }
}

/// Bytes up to the last whole UTF-8 character; all of them at the end of the file, where a broken one is an error.
fn whole_characters(bytes: &[u8], last: bool) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if !last && e.error_len().is_none() => e.valid_up_to(),
        _ => bytes.len(),
    }
}
