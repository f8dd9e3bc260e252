//! What encoders read: a text or a pair of texts with the special tokens their tokenizer's post-processor adds, cut to a
//! length, in windows where all of the second text is wanted; and texts that are words already. Every token knows which
//! text and which stretch and word of it it is from.

use std::borrow::Cow;
use std::ops::Range;

use tokenizers::{Encoding, PreTokenizerWrapper};

use super::guard::guarded;
use super::tokenizer::{Tokenizer, failed};
use crate::{Error, Result};

/// Tokens of a text or a pair, and where each is from. All lists have one entry a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// BERT's segments (`token_type_ids`), as the post-processor gives them: RoBERTa's and T5's are all 0.
    pub type_ids: Vec<u32>,
    /// The bytes of its text that the token has, of its word after [`Tokenizer::encode_words`]. Empty for special
    /// tokens. Tokens that are parts of one character all have that character's bytes.
    pub offsets: Vec<Range<usize>>,
    /// 0: the token is of the first text; 1: of the second; none: a special token that was added.
    pub sequence: Vec<Option<u8>>,
    /// The number of the word in its text: as the pre-tokenizer cuts, or of the words given.
    pub words: Vec<Option<u32>>,
}

/// Where the characters of a text begin, and where it ends.
///
/// The library gives offsets in characters or in bytes, but trims spaces off either by ones, so that bytes may end within
/// the character that follows a space which is not in the text.
struct Characters {
    /// Nothing for ASCII, whose characters are bytes.
    begin: Vec<usize>,
    end: usize,
}

impl Characters {
    fn new(text: &str) -> Characters {
        let begin = if text.is_ascii() { Vec::new() } else { text.char_indices().map(|(i, _)| i).collect() };
        Characters { begin, end: text.len() }
    }

    /// The bytes of these characters.
    fn bytes(&self, characters: Range<usize>) -> Range<usize> {
        let byte = |i: usize| match self.begin.get(i) {
            Some(&byte) => byte,
            None if self.begin.is_empty() => i.min(self.end),
            None => self.end,
        };
        byte(characters.start)..byte(characters.end)
    }
}

impl Encoded {
    /// Offsets are still in characters.
    fn new(encoding: &Encoding) -> Encoded {
        Encoded {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            offsets: encoding.get_offsets().iter().map(|&(start, end)| start..end).collect(),
            sequence: encoding.get_sequence_ids().iter().map(|s| s.map(|s| s as u8)).collect(),
            words: encoding.get_word_ids().to_vec(),
        }
    }

    /// Number of tokens, special ones included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens, not even special ones.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens of the first and of the second text.
    fn lengths(&self) -> [usize; 2] {
        [0, 1].map(|s| self.sequence.iter().filter(|of| **of == Some(s)).count())
    }

    /// The special tokens, and of each text the tokens with these numbers in it.
    ///
    /// Cutting what the post-processor has made is the same as cutting before it, because it treats tokens one by one.
    fn keep(&self, ranges: [Range<usize>; 2]) -> Encoded {
        let (mut kept, mut seen) = (Encoded::default(), [0; 2]);
        for i in 0..self.len() {
            if let Some(s) = self.sequence[i].map(usize::from) {
                let at = seen[s];
                seen[s] += 1;
                if !ranges[s].contains(&at) {
                    continue;
                }
            }
            kept.ids.push(self.ids[i]);
            kept.type_ids.push(self.type_ids[i]);
            kept.offsets.push(self.offsets[i].clone());
            kept.sequence.push(self.sequence[i]);
            kept.words.push(self.words[i]);
        }
        kept
    }

    /// At most `max_len` tokens: the longer text gives up its end until both are equally long, then both (transformers'
    /// `longest_first`).
    fn cut(self, max_len: usize) -> Result<Encoded> {
        if self.len() <= max_len {
            return Ok(self);
        }
        let lengths = self.lengths();
        let room = self.room(max_len, 0)?;
        let [short, long] = if lengths[0] <= lengths[1] { [0, 1] } else { [1, 0] };
        let mut kept = [0; 2];
        // With one text, the other's length is 0 and all the room is the text's. What cannot be halved is left to the
        // longer one.
        kept[short] = lengths[short].min(room / 2);
        kept[long] = lengths[long].min(room - kept[short]);
        Ok(self.keep(kept.map(|n| 0..n)))
    }

    /// How many of `max_len` tokens are left beside the special ones and `more`.
    fn room(&self, max_len: usize, more: usize) -> Result<usize> {
        let taken = self.sequence.iter().filter(|s| s.is_none()).count() + more;
        max_len.checked_sub(taken).ok_or_else(|| {
            Error::config("max_len", max_len.to_string(), format!("at least the {taken} tokens that are not cut"))
        })
    }
}

impl Tokenizer {
    /// A text, or a pair of texts, as the model is to see it, in at most `max_len` tokens: what is too long is cut at the
    /// end of the longer text first.
    pub fn encode_pair(&self, text: &str, pair: Option<&str>, max_len: usize) -> Result<Encoded> {
        self.encode_whole(text, pair)?.cut(max_len)
    }

    /// A question and a context in as many windows of at most `max_len` tokens as the context needs, each with the whole
    /// question. A window begins with the last `stride` tokens of the context in the window before it.
    pub fn encode_windows(&self, question: &str, context: &str, max_len: usize, stride: usize) -> Result<Vec<Encoded>> {
        let whole = self.encode_whole(question, Some(context))?;
        if whole.len() <= max_len {
            return Ok(vec![whole]);
        }
        let [question, context] = whole.lengths();
        let room = whole.room(max_len, question)?;
        if room <= stride {
            let expected = format!("less than the {room} tokens of context that a window of {max_len} has room for");
            return Err(Error::config("stride", stride.to_string(), expected));
        }
        let mut windows = Vec::new();
        for start in (0..context).step_by(room - stride) {
            let end = (start + room).min(context);
            windows.push(whole.keep([0..question, start..end]));
            if end == context {
                break;
            }
        }
        Ok(windows)
    }

    /// A text that is words already (`is_split_into_words`), cut at its end to at most `max_len` tokens.
    /// [`Encoded::words`] numbers the words given; a word may have no token.
    ///
    /// Byte-level tokenizers tell the words of a text apart by the space before each, so every word gets one, the first
    /// too, as transformers' do with `add_prefix_space`.
    pub fn encode_words<S: AsRef<str>>(&self, words: &[S], max_len: usize) -> Result<Encoded> {
        let spaced = self.inner.get_pre_tokenizer().is_some_and(glues_words);
        // No space before what is cut out of a text before words are.
        let added = self.inner.get_added_vocabulary().get_vocab();
        let space = |word: &str| {
            spaced && !word.is_empty() && !word.starts_with(' ') && !added.keys().any(|t| word.starts_with(t.as_str()))
        };
        let spaces: Vec<bool> = words.iter().map(|w| space(w.as_ref())).collect();
        let with = words.iter().zip(&spaces).map(|(word, &space)| match space {
            true => Cow::Owned(format!(" {}", word.as_ref())),
            false => Cow::Borrowed(word.as_ref()),
        });
        let spaced = with.collect::<Vec<_>>();
        let encoding = guarded(|| self.inner.encode_char_offsets(spaced, true));
        let mut encoded = Encoded::new(&encoding.map_err(|e| failed("encoded", &e))?);
        let characters: Vec<Characters> = words.iter().map(|w| Characters::new(w.as_ref())).collect();
        for (offsets, word) in encoded.offsets.iter_mut().zip(&encoded.words) {
            let Some(word) = word.map(|w| w as usize).filter(|&w| w < words.len()) else { continue };
            let space = usize::from(spaces[word]);
            let own = offsets.start.saturating_sub(space)..offsets.end.saturating_sub(space);
            *offsets = characters[word].bytes(own);
        }
        encoded.cut(max_len)
    }

    /// The ids of a text without special tokens around it, and the bytes of the text that each has.
    pub fn encode_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = guarded(|| self.inner.encode_char_offsets(text, false)).map_err(|e| failed("encoded", &e))?;
        let characters = Characters::new(text);
        let places = encoding.get_offsets().iter().map(|&(start, end)| characters.bytes(start..end));
        Ok(encoding.get_ids().iter().copied().zip(places).collect())
    }

    fn encode_whole(&self, text: &str, pair: Option<&str>) -> Result<Encoded> {
        let encoding = guarded(|| match pair {
            Some(pair) => self.inner.encode_char_offsets((text, pair), true),
            None => self.inner.encode_char_offsets(text, true),
        });
        let mut encoded = Encoded::new(&encoding.map_err(|e| failed("encoded", &e))?);
        let characters = [text, pair.unwrap_or_default()].map(Characters::new);
        for (offsets, sequence) in encoded.offsets.iter_mut().zip(&encoded.sequence) {
            if let Some(s) = *sequence {
                *offsets = characters[usize::from(s)].bytes(offsets.clone());
            }
        }
        Ok(encoded)
    }
}

/// Whether a word alone is read as one that goes on after the word before it.
fn glues_words(pre: &PreTokenizerWrapper) -> bool {
    match pre {
        PreTokenizerWrapper::ByteLevel(bytes) => !bytes.add_prefix_space,
        PreTokenizerWrapper::Sequence(all) => all.as_ref().iter().any(glues_words),
        _ => false,
    }
}
