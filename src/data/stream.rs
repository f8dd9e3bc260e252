//! Text from ids as they come, the same as the text of all of them at once.
//!
//! Decoders treat the first token of a text in their own way (the space before it goes), and some decide about a run of
//! bytes only when it is over. So each text is decoded again with some of the tokens before it, and what a decoder may
//! still change waits.

use super::guard::guarded;
use super::tokenizer::{Tokenizer, failed};
use crate::error::Result;

/// Tokens before a text that a decoder may look at.
const BEFORE: usize = 8;
/// Tokens that are kept at most where none of them waits: cutting them is rare, and decoding them is cheap.
const KEPT: usize = 32;

/// Text from ids as they are generated. What is given out is never taken back and never holds half a character: the
/// bytes of one wait until the rest has come.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Whether tokens of single bytes are put together when their run is over.
    bytes: bool,
    /// Ids with a text: the last of those that were given out, then those that wait.
    ids: Vec<u32>,
    /// The text of `ids` that has been given out.
    told: String,
}

impl<'a> DecodeStream<'a> {
    /// A stream that goes on after the text of `before`, which is taken to be given out.
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool, before: &[u32]) -> Result<DecodeStream<'a>> {
        let bytes = match tokenizer.inner.get_decoder() {
            Some(decoder) => {
                let probe = guarded(|| tokenizers::Decoder::decode(decoder, vec!["<0x61>".into()]));
                probe.map_err(|e| failed("decoded", &e))? == "a"
            }
            None => false,
        };
        let mut stream = DecodeStream { tokenizer, skip_special, bytes, ids: Vec::new(), told: String::new() };
        stream.ids = before.iter().copied().filter(|&id| stream.shown(id)).collect();
        stream.cut();
        stream.told = tokenizer.decode(&stream.ids, skip_special)?;
        Ok(stream)
    }

    /// Takes an id; gives the text that is now certain.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if !self.shown(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        if self.is_byte(id) {
            return Ok(String::new());
        }
        let mut all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        // Half a character decodes to a replacement character, which may yet change.
        if let Some(whole) = all.strip_suffix('\u{FFFD}') {
            all.truncate(whole.len());
        }
        let new = self.after_told(&all);
        if all.len() >= self.told.len() || !new.is_empty() {
            self.told = all;
        }
        if self.ids.len() > KEPT {
            self.cut();
            let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
            self.told = all.strip_suffix('\u{FFFD}').unwrap_or(&all).into();
        }
        Ok(new)
    }

    /// What is left at the end: nothing, or the replacement for half a character.
    pub fn finish(self) -> Result<String> {
        let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(self.after_told(&all))
    }

    /// What `all` has after the text that was given out. Where a run of bytes that the stream went on from turned out
    /// to be no text, the two differ, and as many characters count as given out.
    fn after_told(&self, all: &str) -> String {
        match all.strip_prefix(&self.told) {
            Some(new) => new.into(),
            None => all.chars().skip(self.told.chars().count()).collect(),
        }
    }

    /// Whether an id has a text.
    fn shown(&self, id: u32) -> bool {
        let inner = &self.tokenizer.inner;
        let special = |token: &str| inner.get_added_vocabulary().is_special_token(token);
        inner.id_to_token(id).is_some_and(|token| !(self.skip_special && special(&token)))
    }

    /// Whether an id is a single byte of a run.
    fn is_byte(&self, id: u32) -> bool {
        let byte = |token: &str| {
            token.len() == 6
                && token.starts_with("<0x")
                && token.ends_with('>')
                && token.get(3..5).is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
        };
        self.bytes && self.tokenizer.inner.id_to_token(id).is_some_and(|token| byte(&token))
    }

    /// Leaves the last ids, and no run of bytes without its beginning.
    fn cut(&mut self) {
        let mut from = self.ids.len().saturating_sub(BEFORE);
        while from > 0 && self.is_byte(self.ids[from]) {
            from -= 1;
        }
        self.ids.drain(..from);
    }
}
