//! The ids of a text that comes in pieces, as if it had been split into tokens whole: an encoding takes far more memory
//! than its text.
//!
//! Each piece is encoded with the end of the one before it. Where both encodings agree over a stretch of tokens, away from
//! either edge, the later one takes over. Where they never do, the pieces are encoded as one.

use super::guard::guarded;
use super::tokenizer::{Tokenizer, failed};
use crate::error::Result;

/// Bytes that a piece has in common with the one before.
const COMMON: usize = 1 << 14;
/// Tokens on which two encodings agree before one takes over from the other.
const AGREE: usize = 16;

/// A token and the bytes of the text that it has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    id: u32,
    start: usize,
    end: usize,
}

/// See the module.
pub(super) struct Long<'a> {
    tokenizer: &'a Tokenizer,
    text: String,
    /// Tokens of `text` that have not been given out: all from one on.
    held: Vec<Place>,
}

impl<'a> Long<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Long<'a> {
        Long { tokenizer, text: String::new(), held: Vec::new() }
    }

    /// Takes the next piece; gives the ids that it can no longer change.
    pub(super) fn push(&mut self, piece: &str) -> Result<Vec<u32>> {
        if piece.is_empty() {
            return Ok(Vec::new());
        }
        let common = self.text.floor_char_boundary(self.text.len().saturating_sub(COMMON));
        let text = [&self.text[common..], piece].concat();
        let mut places = self.places(&text)?;
        if common > 0 {
            if let Some((old, new)) = self.meet(common, &places) {
                let given = self.held.drain(..old).map(|place| place.id).collect();
                places.drain(..new);
                (self.text, self.held) = (text, places);
                return Ok(given);
            }
            self.text.push_str(piece);
            places = self.places(&self.text)?;
        } else {
            self.text = text;
        }
        let given = self.held.first().map_or(0, |place| place.start);
        places.drain(..places.partition_point(|place| place.start < given));
        self.held = places;
        Ok(Vec::new())
    }

    /// The ids that are left.
    pub(super) fn finish(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.held).into_iter().map(|place| place.id).collect()
    }

    fn places(&self, text: &str) -> Result<Vec<Place>> {
        let encoding = guarded(|| self.tokenizer.inner.encode(text, false)).map_err(|e| failed("encoded", &e))?;
        let places = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(places.map(|(&id, &(start, end))| Place { id, start, end }).collect())
    }

    /// The numbers of the tokens, in `held` and in `new`, whose text begins at `common`, at which the latter takes over.
    fn meet(&self, common: usize, new: &[Place]) -> Option<(usize, usize)> {
        let (first, last) = (common + COMMON / 4, self.text.len() - COMMON / 4);
        let from = self.held.partition_point(|place| place.start < first).max(1);
        let shifted = |place: &Place| Place { id: place.id, start: place.start - common, end: place.end - common };
        for old in from..self.held.len().saturating_sub(AGREE) {
            let agree = self.held.get(old..old + AGREE)?;
            if agree.last()?.end > last {
                return None;
            }
            // Tokens of one character all begin where it begins.
            let start = agree.first()?.start;
            if self.held[old - 1].start == start {
                continue;
            }
            let at = new.partition_point(|place| place.start < start - common);
            if new.get(at..at + AGREE).is_some_and(|other| agree.iter().map(shifted).eq(other.iter().copied())) {
                return Some((old, at));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::weights::gguf::Gguf;

    #[test]
    fn pieces_have_the_tokens_of_the_whole() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let play = std::fs::read_to_string(root.join("assets/shakespeare.txt")).unwrap();
        let letters =
            "caf\u{e9} \u{65e5}\u{672c}\u{8a9e} \u{1f980}\u{1f1eb}\u{1f1f7} e\u{301}  \t\t 12345 x<s></s>\n\n\n";
        let mixed = play.chars().take(90_000).collect::<String>() + &letters.repeat(4000);
        // Runs that end no word, longer than what pieces have in common.
        let runs = [" ".repeat(40_000), "\n".repeat(40_000), "ab".repeat(20_000)].concat();
        let folder = |name: &str| Tokenizer::from_folder(root.join(name)).unwrap();
        let gguf = |name: &str| Tokenizer::from_gguf(&Gguf::open(root.join(name)).unwrap()).unwrap();
        for tokenizer in [
            folder("assets/base"),
            folder("tests/fixtures/field/spm_tokenizer"),
            folder("tests/golden/tokenizers/t5"),
            folder("tests/golden/tokenizers/bert"),
            folder("tests/golden/tokenizers/roberta"),
            gguf("tests/golden/gguf_gemma.gguf"),
            gguf("tests/golden/gguf_llama.gguf"),
        ] {
            for (text, size) in [(&mixed, 40_000), (&mixed, 100_001), (&runs, 30_000), (&runs, 50_000)] {
                let (mut long, mut ids, mut rest, mut early) = (Long::new(&tokenizer), Vec::new(), &text[..], 0);
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(rest.floor_char_boundary(size));
                    ids.extend(long.push(piece).unwrap());
                    (rest, early) = (after, ids.len());
                }
                ids.extend(long.finish());
                assert!(ids == tokenizer.encode(text, false).unwrap(), "pieces of {size}");
                assert!(early > 0 || text == &runs, "the control: tokens are given out before the end");
            }
        }
    }
}
