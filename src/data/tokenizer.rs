//! Text to token ids and back: tokenizer.json by the `tokenizers` crate, or the same made from the
//! files of older folders or from a GGUF file's metadata.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::added;
use super::charsmap;
use super::chat::{SPECIAL, Templates};
use super::guard::guarded;
pub use super::stream::DecodeStream;
use super::vocabulary::{self, Letters, Settings, token_text};
use crate::durable;
use crate::foreign;
use crate::weights::gguf::Gguf;
use crate::weights::{Checkpoint, read_json};
use crate::{Error, Result};

/// A tokenizer, and the special tokens its model's files name.
pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    mask: Option<u32>,
    templates: Templates,
    /// The special tokens by the names that templates call them (`bos_token`).
    special: Vec<(String, String)>,
    warning: Option<String>,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint: its folder's, or in its GGUF file.
    pub fn open(checkpoint: &Checkpoint) -> Result<Tokenizer> {
        match checkpoint.gguf() {
            Some(gguf) => Tokenizer::from_gguf(gguf),
            None => Tokenizer::from_folder(checkpoint.path()),
        }
    }

    /// Reads tokenizer.json, or else vocab.txt, or vocab.json and merges.txt, as [`super::vocabulary`] says, and the
    /// tokens that the folder's other files add. Special tokens are those of tokenizer_config.json (or, in old folders,
    /// special_tokens_map.json), generation_config.json and config.json, in that order.
    /// `add_bos_token` and `add_eos_token` do not count beside a tokenizer.json, which says itself what it puts around a
    /// text, as in transformers; `add_prefix_space` does for the classes of GPT-2 and RoBERTa, and `do_lower_case`,
    /// `strip_accents` and `tokenize_chinese_chars` do for those of BERT.
    ///
    /// transformers 5 makes that of the class LlamaTokenizer anew too, with `legacy` and `add_prefix_space`. Files of Llama 2
    /// put a space before every piece of text, and it does before the first alone, so that text after a special token and
    /// text that begins with a space have other ids there. Here the file counts, as for transformers 4 and llama.cpp.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Tokenizer> {
        let folder = folder.as_ref();
        let read = |name: &str| Ok::<_, Error>(read_json(&folder.join(name))?.unwrap_or(Value::Null));
        let named = [read("tokenizer_config.json")?, read("special_tokens_map.json")?];
        let numbered = [read("generation_config.json")?, read("config.json")?];

        let path = folder.join("tokenizer.json");
        let settings = Settings { tokenizer: &named[0], special: &named[1], model: &numbered[1] };
        let mut inner = if path.exists() {
            let mut inner = load(&path, &std::fs::read(&path).map_err(|e| Error::io(&path, e))?)?;
            settings.prefix_space().into_iter().for_each(|space| set_prefix_space(&mut inner, space));
            settings.bert_letters().into_iter().for_each(|letters| set_letters(&mut inner, &letters));
            inner
        } else {
            match vocabulary::read(folder, &settings)? {
                Some((path, json)) => load(&path, json.to_string().as_bytes())?,
                None => return Err(no_tokenizer(folder)),
            }
        };
        let settings = added::settings(&named[0], &named[1]);
        added::add(&mut inner, folder, &settings)?;

        let find = |kind: &str| -> Vec<u32> {
            let key = format!("{kind}_token");
            let names = [settings.get(&key), named[0].get(&key), named[1].get(&key)];
            let names = names.into_iter().flatten().filter_map(|token| inner.token_to_id(token_text(token)?));
            let key = format!("{kind}_token_id");
            let ids = numbered.iter().filter_map(|c| c.get(&key)).flat_map(|v| match v {
                Value::Array(ids) => ids.iter().collect(),
                one => vec![one],
            });
            let ids = ids.filter_map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok()));
            let mut found = Vec::new();
            for id in names.chain(ids) {
                if !found.contains(&id) {
                    found.push(id);
                }
            }
            found
        };
        // Old folders of encoders leave it to the class what these are called.
        let usual = |names: [&str; 2]| names.iter().find_map(|name| inner.token_to_id(name));
        let named_special = |key: &str| {
            let token = [settings.get(key), named[1].get(key)].into_iter().flatten().find_map(token_text)?;
            Some((key.to_owned(), token.to_owned()))
        };
        Ok(Tokenizer {
            bos: find("bos").first().copied(),
            eos: find("eos"),
            pad: find("pad").first().copied().or_else(|| usual(["[PAD]", "<pad>"])),
            mask: find("mask").first().copied().or_else(|| usual(["[MASK]", "<mask>"])),
            special: SPECIAL.into_iter().filter_map(named_special).collect(),
            templates: Templates::from_folder(folder, &named[0])?,
            warning: None,
            inner,
        })
    }

    /// Makes the tokenizer that a GGUF file describes: byte-level BPE (`tokenizer.ggml.model` gpt2)
    /// or SentencePiece's BPE with byte fallback (llama).
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        let (json, defaults) = match gguf.string("tokenizer.ggml.model")? {
            Some("gpt2") => byte_level(gguf)?,
            Some("llama") => sentence_piece(gguf)?,
            other => {
                return Err(Error::unsupported(
                    format!("{}: tokenizer {}", gguf.path().display(), other.unwrap_or("none")),
                    "use a model with a gpt2 or llama tokenizer, or a Hugging Face folder",
                ));
            }
        };
        let tokens = tokens(gguf)?;
        let special = |kind: &str| -> Result<Option<u32>> {
            let id = gguf.uint(&format!("tokenizer.ggml.{kind}_token_id"))?;
            Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < tokens.len()))
        };
        let bos = special("bos")?;
        let mut eos = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            eos.extend(special(kind)?.filter(|id| !eos.contains(id)));
        }
        // Chat models end their turns with a token that few files declare.
        for end in ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"] {
            let id = tokens.iter().position(|t| *t == end).map(|id| id as u32);
            eos.extend(id.filter(|id| !eos.contains(id)));
        }
        let flag = |key: &str, or| Ok::<_, Error>(gguf.bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(or));
        let first = flag("add_bos_token", defaults.bos)?.then_some(bos).flatten();
        let last = flag("add_eos_token", false)?.then_some(eos.first().copied()).flatten();

        let mut json = json;
        json["post_processor"] = around(first, last, &tokens);
        let mut named = Vec::new();
        for key in SPECIAL {
            // What GGUF calls them, where that is not the same.
            let kind = key.strip_suffix("_token").map(|kind| match kind {
                "unk" => "unknown",
                "sep" => "separator",
                "pad" => "padding",
                other => other,
            });
            let id = kind.map(special).transpose()?.flatten();
            named.extend(id.map(|id| (key.to_owned(), tokens[id as usize].to_owned())));
        }
        Ok(Tokenizer {
            inner: load(gguf.path(), json.to_string().as_bytes())?,
            bos,
            eos,
            pad: special("padding")?,
            mask: special("mask")?,
            special: named,
            templates: Templates::from_gguf(gguf)?,
            warning: defaults.guessed.then(|| {
                format!(
                    "{} has no tokenizer.ggml.pre, so texts are cut into words as GPT-2 does: if the model is another's, \
                     its tokens are wrong; convert it anew",
                    gguf.path().display()
                )
            }),
        })
    }

    /// The ids of a text. Special tokens in the text are recognized; `add_special` adds those the
    /// model wants around one (a beginning, for most).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special));
        Ok(encoding.map_err(|e| failed("encoded", &e))?.get_ids().to_vec())
    }

    /// The ids of a text that a model is to go on from. What begins a sequence comes once, even where the text has it
    /// written out.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        let first = self.begins_with()?;
        if first.is_some() && ids.len() > 1 && ids.first() == first.as_ref() && ids.get(1) == first.as_ref() {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The text of ids. Bytes that are not UTF-8 become U+FFFD; ids that do not exist are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special)).map_err(|e| failed("decoded", &e))
    }

    /// Decodes ids as they come, after those of a text `before` that has been given out; see [`DecodeStream`].
    pub fn decode_stream(&self, before: &[u32], skip_special: bool) -> Result<DecodeStream<'_>> {
        DecodeStream::new(self, skip_special, before)
    }

    /// What the model was trained to see before a text: the token that [`Tokenizer::encode`] adds there.
    /// Many models have a [`Tokenizer::bos`] that begins something else (a turn of a chat), or nothing.
    pub fn begins_with(&self) -> Result<Option<u32>> {
        let (plain, special) = (self.encode("a", false)?, self.encode("a", true)?);
        Ok(special.first().copied().filter(|first| special.len() > plain.len() && plain.first() != Some(first)))
    }

    /// The token that the model's files name as the beginning of a sequence, whether used or not.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What ends a sequence; the tokenizer's own end comes first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// What fills up sequences: as the model's files name it, or in a folder else `[PAD]` or `<pad>` if there is one.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The token in place of one that is to be guessed.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// The Jinja template of a chat, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.source(false)
    }

    /// The templates of chats that the model has.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// The special tokens by the names that templates of chats call them: `bos_token` and the like.
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special
    }

    /// What a user should know of the tokenizer.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Tokens there are, added ones included. A model may have more rows than that.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token in the vocabulary's own spelling, added tokens included.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token in the vocabulary's own spelling, where a space may be `Ġ` or `▁`; none for an id without a token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Writes the files of a folder from which transformers makes the same tokenizer: tokenizer.json, and a
    /// tokenizer_config.json with the special tokens and the template of a chat.
    pub fn save_folder(&self, folder: &Path) -> Result<()> {
        let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        let eos = self.eos.first().copied();
        for (key, id) in
            [("bos_token", self.bos), ("eos_token", eos), ("pad_token", self.pad), ("mask_token", self.mask)]
        {
            if let Some(token) = id.and_then(|id| self.id_to_token(id)) {
                config[key] = token.into();
            }
        }
        if let Some(templates) = self.templates.to_json() {
            config["chat_template"] = templates;
        }
        let path = folder.join("tokenizer_config.json");
        durable::write(&path, format!("{config:#}\n").as_bytes())?;
        self.save(folder.join("tokenizer.json"))
    }

    /// Writes tokenizer.json.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let json = self.inner.to_string(false).map_err(|e| failed("written", &e))?;
        durable::write(path, json.as_bytes())
    }
}

/// The crate's errors tell of the tokenizer, not of a file.
pub(super) fn failed(what: &str, error: &tokenizers::Error) -> Error {
    Error::unsupported(format!("text that cannot be {what} ({error})"), "check the model's tokenizer.json")
}

/// What there is instead of a tokenizer that could be read.
fn no_tokenizer(folder: &Path) -> Error {
    let pieces = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
    match pieces.iter().find(|name| folder.join(name).exists()) {
        Some(name) => Error::unsupported(
            format!("{}: a {name} without tokenizer.json", folder.display()),
            "save the tokenizer with transformers' fast tokenizer (use_fast=True) once",
        ),
        None => Error::file(folder, "no tokenizer", "tokenizer.json, or vocab.txt, or vocab.json and merges.txt"),
    }
}

fn load(path: &Path, json: &[u8]) -> Result<tokenizers::Tokenizer> {
    let mut inner =
        guarded(|| charsmap::check(json).and_then(|()| tokenizers::Tokenizer::from_bytes(json))).map_err(|e| {
            // What is no JSON at all is told with its place.
            let found = match serde_json::from_slice::<serde::de::IgnoredAny>(json) {
                Err(e) => e.to_string(),
                Ok(_) => format!("a tokenizer that does not load ({e})"),
            };
            foreign::explain(path, Error::file(path, found, "a tokenizer.json"))
        })?;
    // Some files cut or pad every text to a length that served one use of the model.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|e| failed("left whole", &e))?;
    Ok(inner)
}

/// Gives a byte-level tokenizer's first word a space, or none.
fn set_prefix_space(inner: &mut tokenizers::Tokenizer, space: bool) {
    let Some(PreTokenizerWrapper::ByteLevel(mut words)) = inner.get_pre_tokenizer().cloned() else { return };
    words.add_prefix_space = space;
    inner.with_pre_tokenizer(Some(words));
    if let Some(PostProcessorWrapper::Roberta(mut around)) = inner.get_post_processor().cloned() {
        around.add_prefix_space = space;
        inner.with_post_processor(Some(around));
    }
}

/// Sets what BERT's normalizer does to letters.
fn set_letters(inner: &mut tokenizers::Tokenizer, letters: &Letters) {
    let Some(NormalizerWrapper::BertNormalizer(mut normalizer)) = inner.get_normalizer().cloned() else { return };
    normalizer.handle_chinese_chars = letters.chinese_apart;
    normalizer.strip_accents = letters.strip_accents;
    normalizer.lowercase = letters.lowercase;
    inner.with_normalizer(Some(normalizer));
}

/// What a kind of tokenizer does unless the file says otherwise.
struct Defaults {
    /// Whether sequences begin with a token.
    bos: bool,
    /// Whether the file does not say how texts are cut into words.
    guessed: bool,
}

fn tokens(gguf: &Gguf) -> Result<Vec<&str>> {
    gguf.strings("tokenizer.ggml.tokens")?
        .ok_or_else(|| Error::file(gguf.path(), "no tokenizer.ggml.tokens", "a GGUF file with a tokenizer"))
}

/// `tokenizer.ggml.token_type` (`enum llama_token_type`): 1 normal, 2 unknown, 3 control, 4 user
/// defined, 5 unused, 6 byte.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

fn token_types(gguf: &Gguf, tokens: usize) -> Result<Vec<f64>> {
    let mut types = gguf.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    types.resize(tokens, 1.0);
    Ok(types)
}

/// Tokens that are cut out of a text before anything else is done to it.
fn added_tokens(tokens: &[&str], types: &[f64], user_defined_normalized: bool) -> Vec<Value> {
    let added = tokens.iter().zip(types).enumerate().filter(|(_, (t, ty))| {
        // An empty token would be found everywhere.
        [UNKNOWN, CONTROL, USER_DEFINED].contains(ty) && !t.is_empty()
    });
    added
        .map(|(id, (token, &ty))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": ty == USER_DEFINED && user_defined_normalized, "special": ty != USER_DEFINED,
            })
        })
        .collect()
}

/// Token to id; of tokens that are there twice the first.
fn vocabulary<'a>(tokens: &[&'a str]) -> HashMap<&'a str, usize> {
    let mut vocabulary = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        vocabulary.entry(*token).or_insert(id);
    }
    vocabulary
}

/// The post-processor that puts a token before and after a text.
fn around(first: Option<u32>, last: Option<u32>, tokens: &[&str]) -> Value {
    let special = |id: u32| json!({"SpecialToken": {"id": tokens[id as usize], "type_id": 0}});
    let mut table = serde_json::Map::new();
    for id in first.into_iter().chain(last) {
        let token = tokens[id as usize];
        table.insert(token.into(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    if table.is_empty() {
        return Value::Null;
    }
    let template = |sequences: &[&str]| -> Vec<Value> {
        let text = |s: &&str| {
            let text = json!({"Sequence": {"id": s, "type_id": 0}});
            first.map(special).into_iter().chain([text]).chain(last.map(special))
        };
        sequences.iter().flat_map(text).collect()
    };
    json!({
        "type": "TemplateProcessing", "single": template(&["A"]), "pair": template(&["A", "B"]), "special_tokens": table,
    })
}

/// A way to cut a text into words before merging (`tokenizer.ggml.pre`), as llama.cpp names them.
struct Pre {
    /// The first one is written.
    names: &'static [&'static str],
    /// Each digit is a word.
    digits: bool,
    /// What a word is; without one, GPT-2's.
    words: Option<&'static str>,
    /// The text is composed first (NFC), as in the model's tokenizer.json.
    compose: bool,
    /// A word that is a token is not merged to.
    whole_words: bool,
    bos: bool,
}

const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRES: [Pre; 6] = [
    Pre {
        names: &["gpt-2", "default", "gpt2", "olmo", "mpt"],
        digits: false,
        words: None,
        compose: false,
        whole_words: false,
        bos: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone"],
        digits: true,
        words: None,
        compose: false,
        whole_words: false,
        bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        digits: false,
        words: Some(LLAMA3_WORDS),
        compose: false,
        whole_words: true,
        bos: true,
    },
    Pre {
        names: &["dbrx", "smaug-bpe"],
        digits: false,
        words: Some(LLAMA3_WORDS),
        compose: false,
        whole_words: false,
        bos: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        digits: false,
        words: Some(QWEN2_WORDS),
        compose: true,
        whole_words: false,
        bos: false,
    },
    Pre { names: &["tekken"], digits: false, words: Some(TEKKEN_WORDS), compose: false, whole_words: true, bos: true },
];

impl Pre {
    /// The pre-tokenizers of tokenizer.json.
    fn words(&self) -> Vec<Value> {
        let mut words = Vec::new();
        if self.digits {
            words.push(json!({"type": "Digits", "individual_digits": true}));
        }
        if let Some(regex) = self.words {
            words.push(json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}));
        }
        words.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.words.is_none(),
        }));
        words
    }
}

/// GGUF's name for how a tokenizer.json of byte-level BPE cuts texts into words, if it has one.
pub(super) fn words_name(json: &Value) -> Option<&'static str> {
    let list = |value: &Value, key: &str| match value {
        Value::Null => Vec::new(),
        one => one[key].as_array().cloned().unwrap_or_else(|| vec![one.clone()]),
    };
    let mut words = list(&json["pre_tokenizer"], "pretokenizers");
    // It says how places in the text are told, not what the words are.
    words.iter_mut().filter(|w| w["type"] == "ByteLevel").for_each(|w| w["trim_offsets"] = true.into());
    let composes = match &list(&json["normalizer"], "normalizers")[..] {
        [] => false,
        [only] if only["type"] == "NFC" => true,
        _ => return None,
    };
    let whole = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let same = |p: &&Pre| p.compose == composes && p.whole_words == whole && p.words() == words;
    PRES.iter().find(same).map(|p| p.names[0])
}

/// Byte-level BPE with the file's merges.
fn byte_level(gguf: &Gguf) -> Result<(Value, Defaults)> {
    let named = gguf.string("tokenizer.ggml.pre")?;
    let name = named.unwrap_or("default");
    let Some(pre) = PRES.iter().find(|p| p.names.contains(&name)) else {
        let known: Vec<_> = PRES.iter().flat_map(|p| p.names).copied().collect();
        return Err(Error::unsupported(
            format!("{}: pre-tokenizer {name}", gguf.path().display()),
            format!("use a model with one of {}, or a Hugging Face folder", known.join(", ")),
        ));
    };
    let tokens = tokens(gguf)?;
    let types = token_types(gguf, tokens.len())?;
    let merges = gguf.strings("tokenizer.ggml.merges")?.unwrap_or_default();
    let merges = merges.iter().map(|m| {
        // The second part starts after the first space that is not the first part itself.
        let (start, rest) = m.split_at(m.chars().next().map_or(0, char::len_utf8));
        rest.split_once(' ')
            .map(|(left, right)| json!([format!("{start}{left}"), right]))
            .ok_or_else(|| Error::file(gguf.path(), format!("merge {m:?}"), "two tokens with a space between them"))
    });
    let merges = merges.collect::<Result<Vec<_>>>()?;

    let json = json!({
        "version": "1.0",
        "added_tokens": added_tokens(&tokens, &types, false),
        "normalizer": if pre.compose { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.words()},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary(&tokens), "merges": merges, "ignore_merges": pre.whole_words},
    });
    Ok((json, Defaults { bos: pre.bos, guessed: named.is_none() }))
}

/// SentencePiece's BPE: pieces with scores, the best pair is merged first, and what no piece covers
/// is spelled in bytes.
fn sentence_piece(gguf: &Gguf) -> Result<(Value, Defaults)> {
    let tokens = tokens(gguf)?;
    let types = token_types(gguf, tokens.len())?;
    let mut scores = gguf.numbers("tokenizer.ggml.scores")?.unwrap_or_default();
    scores.resize(tokens.len(), 0.0);
    let vocabulary = vocabulary(&tokens);
    let prefix = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = types.iter().position(|&ty| ty == UNKNOWN).map(|id| tokens[id]);

    // Words are told apart by the space before them, which is a letter like any other.
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let json = json!({
        "version": "1.0",
        // User-defined pieces (gemma's runs of spaces) are looked for in the normalized text, unless
        // normalizing would put a space before the piece itself: then it would never be found.
        "added_tokens": added_tokens(&tokens, &types, !prefix),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": merges(&tokens, &types, &scores, &vocabulary),
            "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
        },
    });
    Ok((json, Defaults { bos: true, guessed: false }))
}

/// The merges that scores mean: every way to put a piece together from two others, by falling
/// score of the piece (transformers' `generate_merges`).
fn merges<'a>(
    tokens: &[&'a str],
    types: &[f64],
    scores: &[f64],
    vocabulary: &HashMap<&str, usize>,
) -> Vec<(&'a str, &'a str)> {
    /// The longest piece that is put together: a trained one has 16 characters, or is spaces; a
    /// hostile one could have as many parts as the file has bytes.
    const LONGEST: usize = 256;
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        // Control tokens and the like are no text.
        if types[id] != 1.0 && types[id] != USER_DEFINED || token.len() > LONGEST {
            continue;
        }
        let mut ways = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (vocabulary.get(left), vocabulary.get(right)) {
                ways.push((l, r, left, right));
            }
        }
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|(_, _, left, right)| (scores[id], left, right)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (b.1.len(), b.2.len()).cmp(&(a.1.len(), a.2.len()))));
    merges.into_iter().map(|(_, left, right)| (left, right)).collect()
}
