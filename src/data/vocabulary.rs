//! Tokenizers of folders that have no tokenizer.json: BERT's WordPiece from vocab.txt, RoBERTa's and GPT-2's byte-level
//! BPE from vocab.json and merges.txt. What those files leave open is what transformers' classes of these families do,
//! with what tokenizer_config.json sets. The result is the tokenizer.json that there could have been.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::weights::read_json;
use crate::{Error, Result};

/// Families whose tokenizer is BERT's, as `tokenizer_class` (without "Tokenizer" and "Fast") or `model_type` names them.
const BERT: &[&str] = &["bert", "distilbert", "electra", "mobilebert", "convbert", "squeezebert"];
const ROBERTA: &[&str] = &["roberta", "bart", "longformer", "led"];
const GPT2: &[&str] = &["gpt2", "gptneo", "gptj"];

/// The text of a token: a string, or an object that holds it.
pub(super) fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// What a folder says of its tokenizer besides the vocabulary: tokenizer_config.json, special_tokens_map.json and
/// config.json, each null where it is missing.
pub(super) struct Settings<'a> {
    pub tokenizer: &'a Value,
    pub special: &'a Value,
    pub model: &'a Value,
}

/// The vocabulary file of a folder, and its tokenizer as a tokenizer.json; nothing if there is no such file.
pub(super) fn read(folder: &Path, settings: &Settings) -> Result<Option<(PathBuf, Value)>> {
    let (txt, json, merges) = (folder.join("vocab.txt"), folder.join("vocab.json"), folder.join("merges.txt"));
    if json.exists() && merges.exists() {
        let value = byte_level(folder, &json, &merges, settings)?;
        return Ok(Some((json, value)));
    }
    if txt.exists() {
        let value = word_piece(folder, &txt, settings)?;
        return Ok(Some((txt, value)));
    }
    Ok(None)
}

impl Settings<'_> {
    /// Who the tokenizer belongs to, in the spelling of the tables above.
    fn family(&self) -> Option<String> {
        let class = self.tokenizer.get("tokenizer_class").and_then(Value::as_str);
        let name = class.or_else(|| self.model.get("model_type")?.as_str())?.to_lowercase().replace(['_', '-'], "");
        let name = name.strip_suffix("fast").unwrap_or(&name);
        Some(name.strip_suffix("tokenizer").unwrap_or(name).to_owned())
    }

    /// Whether the first word of a text gets a space, where not tokenizer.json but transformers' class says so: GPT-2's and
    /// RoBERTa's make the pre-tokenizer themselves.
    pub(super) fn prefix_space(&self) -> Option<bool> {
        let family = self.family()?;
        [ROBERTA, GPT2].concat().contains(&family.as_str()).then(|| self.flag("add_prefix_space", false))
    }

    /// What is done to letters, where not tokenizer.json but transformers' class says so: BERT's sets it itself.
    pub(super) fn bert_letters(&self) -> Option<Letters> {
        let family = self.family()?;
        BERT.contains(&family.as_str()).then(|| self.letters())
    }

    fn letters(&self) -> Letters {
        Letters {
            chinese_apart: self.flag("tokenize_chinese_chars", true),
            strip_accents: self.tokenizer.get("strip_accents").and_then(Value::as_bool),
            lowercase: self.flag("do_lower_case", true),
        }
    }

    fn flag(&self, key: &str, or: bool) -> bool {
        self.tokenizer.get(key).and_then(Value::as_bool).unwrap_or(or)
    }

    /// A special token (`cls_token` and the like) as the files give it.
    fn special(&self, key: &str) -> Option<&Value> {
        [self.tokenizer, self.special].into_iter().find_map(|c| c.get(key).filter(|v| token_text(v).is_some()))
    }
}

/// What BERT's normalizer does to letters.
pub(super) struct Letters {
    pub chinese_apart: bool,
    /// None: where letters are made small.
    pub strip_accents: Option<bool>,
    pub lowercase: bool,
}

fn unknown(folder: &Path, family: &str, files: &str) -> Error {
    Error::unsupported(
        format!("{}: a tokenizer of {family} from {files} without tokenizer.json", folder.display()),
        "save the tokenizer with transformers' fast tokenizer (use_fast=True) once",
    )
}

/// A vocabulary to which added tokens are put as they are found.
struct Vocabulary<'a> {
    path: &'a Path,
    tokens: Map<String, Value>,
    /// By id.
    added: BTreeMap<u64, Value>,
}

impl Vocabulary<'_> {
    fn id(&self, token: &str) -> Option<u64> {
        self.tokens.get(token)?.as_u64()
    }

    /// Adds a token, with what the files say of how it is found in a text.
    fn add(&mut self, id: u64, token: &Value, lstrip: bool, special: bool) -> Result<()> {
        let Some(text) = token_text(token).filter(|t| !t.is_empty()) else { return Ok(()) };
        let known = self.tokens.insert(text.to_owned(), json!(id));
        if let Some(other) = known.filter(|k| k.as_u64() != Some(id)) {
            return Err(Error::file(self.path, format!("{text:?} as token {other}"), format!("token {id}, as added")));
        }
        let flag = |key: &str, or| token.get(key).and_then(Value::as_bool).unwrap_or(or);
        let special = flag("special", special);
        let entry = json!({
            "id": id, "content": text, "single_word": flag("single_word", false), "lstrip": flag("lstrip", lstrip),
            "rstrip": flag("rstrip", false), "normalized": flag("normalized", !special), "special": special,
        });
        self.added.entry(id).or_insert(entry);
        Ok(())
    }

    /// Adds the tokens of tokenizer_config.json (`added_tokens_decoder`), of added_tokens.json, and the special tokens
    /// that are in the vocabulary. `names` are the latter's keys, with what they are unless a file says otherwise.
    fn add_all(&mut self, folder: &Path, settings: &Settings, names: &[(&str, &str)]) -> Result<()> {
        let decoder = settings.tokenizer.get("added_tokens_decoder").and_then(Value::as_object);
        for (id, token) in decoder.into_iter().flatten() {
            let id = id.parse().map_err(|_| Error::file(self.path, format!("added token {id:?}"), "an id"))?;
            self.add(id, token, false, false)?;
        }
        let file = read_json(&folder.join("added_tokens.json"))?.unwrap_or(Value::Null);
        let more = file.as_object().into_iter().flatten().filter_map(|(token, id)| Some((token, id.as_u64()?)));
        let more: Vec<_> = more.filter(|(_, id)| !self.added.contains_key(id)).collect();
        let ids: Map<String, Value> = more.iter().map(|(token, id)| ((*token).clone(), json!(id))).collect();

        let plain = names.iter().map(|&(key, or)| (key, settings.special(key).cloned().unwrap_or_else(|| json!(or))));
        let list = |c: &Value| c.get("additional_special_tokens").and_then(Value::as_array).cloned();
        let extra = list(settings.tokenizer).or_else(|| list(settings.special)).unwrap_or_default();
        for (key, token) in plain.chain(extra.into_iter().map(|token| ("", token))) {
            let id = token_text(&token).and_then(|t| self.id(t).or_else(|| ids.get(t)?.as_u64()));
            if let Some(id) = id {
                // A mask takes the place of a word, with the space before it where words have one.
                self.add(id, &token, key == "mask_token" && token_text(&token) == Some("<mask>"), true)?;
            }
        }
        for (token, id) in more {
            self.add(id, &json!(token), false, false)?;
        }
        Ok(())
    }

    /// The tokenizer.json, less pre-tokenizer, post-processor and decoder.
    fn finish(self, normalizer: Value, mut model: Value) -> Value {
        model["vocab"] = Value::Object(self.tokens);
        let added: Vec<Value> = self.added.into_values().collect();
        json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer, "model": model})
    }
}

/// The post-processor of a template: a piece is a token, or A or B, with its type.
fn template(single: &[(&str, u32)], pair: &[(&str, u32)], special: &[(&str, u64)]) -> Value {
    let pieces = |of: &[(&str, u32)]| -> Vec<Value> {
        let piece = |&(name, ty): &(&str, u32)| match name {
            "A" | "B" => json!({"Sequence": {"id": name, "type_id": ty}}),
            token => json!({"SpecialToken": {"id": token, "type_id": ty}}),
        };
        of.iter().map(piece).collect()
    };
    let tokens = special.iter().map(|(t, id)| (t.to_string(), json!({"id": t, "ids": [id], "tokens": [t]})));
    json!({
        "type": "TemplateProcessing", "single": pieces(single), "pair": pieces(pair),
        "special_tokens": tokens.collect::<Map<_, _>>(),
    })
}

/// BERT's: a line of vocab.txt is a token, its number the id.
fn word_piece(folder: &Path, path: &Path, settings: &Settings) -> Result<Value> {
    if let Some(family) = settings.family().filter(|f| !BERT.contains(&f.as_str())) {
        return Err(unknown(folder, &family, "vocab.txt"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let tokens = text.lines().enumerate().map(|(id, token)| (token.to_owned(), json!(id))).collect();
    let mut vocabulary = Vocabulary { path, tokens, added: BTreeMap::new() };
    let names = [
        ("unk_token", "[UNK]"),
        ("sep_token", "[SEP]"),
        ("pad_token", "[PAD]"),
        ("cls_token", "[CLS]"),
        ("mask_token", "[MASK]"),
    ];
    vocabulary.add_all(folder, settings, &names)?;
    let named = |key: &str, or: &str| -> Result<(String, u64)> {
        let token = settings.special(key).and_then(token_text).unwrap_or(or);
        let id = vocabulary.id(token);
        let id = id.ok_or_else(|| Error::file(path, format!("no {token}"), format!("a line for the {key}")))?;
        Ok((token.to_owned(), id))
    };
    let (unk, _) = named("unk_token", "[UNK]")?;
    let ((cls, cls_id), (sep, sep_id)) = (named("cls_token", "[CLS]")?, named("sep_token", "[SEP]")?);

    let letters = settings.letters();
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": letters.chinese_apart,
        "strip_accents": letters.strip_accents, "lowercase": letters.lowercase,
    });
    let model = json!({
        "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    });
    let mut json = vocabulary.finish(normalizer, model);
    json["pre_tokenizer"] = json!({"type": "BertPreTokenizer"});
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let single = [(&*cls, 0), ("A", 0), (&*sep, 0)];
    let pair = [(&*cls, 0), ("A", 0), (&*sep, 0), ("B", 1), (&*sep, 1)];
    json["post_processor"] = template(&single, &pair, &[(&cls, cls_id), (&sep, sep_id)]);
    Ok(json)
}

/// RoBERTa's or GPT-2's: tokens and ids, and the merges by falling rank.
fn byte_level(folder: &Path, path: &Path, merges_path: &Path, settings: &Settings) -> Result<Value> {
    let Some(Value::Object(tokens)) = read_json(path)? else {
        return Err(Error::file(path, "no object", "tokens and their ids"));
    };
    let has = |token: &str| tokens.contains_key(token);
    let roberta = match settings.family().as_deref() {
        Some(family) if ROBERTA.contains(&family) => true,
        Some(family) if GPT2.contains(&family) => false,
        Some(family) => return Err(unknown(folder, family, "vocab.json and merges.txt")),
        None => has("<s>") && has("</s>"),
    };
    let text = std::fs::read_to_string(merges_path).map_err(|e| Error::io(merges_path, e))?;
    let mut merges = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.is_empty() || n == 0 && line.starts_with("#version") {
            continue;
        }
        let parts = line.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
        let parts = parts.ok_or_else(|| {
            Error::file(merges_path, format!("line {}: {line:?}", n + 1), "two tokens with a space between them")
        })?;
        // The library's message would not say where.
        let whole = format!("{}{}", parts.0, parts.1);
        if let Some(missing) = [parts.0, parts.1, &whole].into_iter().find(|t| !has(t)) {
            return Err(Error::file(merges_path, format!("line {}: {missing:?}", n + 1), "tokens of vocab.json"));
        }
        merges.push(json!([parts.0, parts.1]));
    }

    let mut vocabulary = Vocabulary { path, tokens, added: BTreeMap::new() };
    let names: &[(&str, &str)] = if roberta {
        &[
            ("bos_token", "<s>"),
            ("pad_token", "<pad>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("cls_token", "<s>"),
            ("sep_token", "</s>"),
            ("mask_token", "<mask>"),
        ]
    } else {
        &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", ""),
        ]
    };
    vocabulary.add_all(folder, settings, names)?;
    let named = |key: &str, or: &str| -> Result<(String, u64)> {
        let token = settings.special(key).and_then(token_text).unwrap_or(or);
        let id = vocabulary.id(token);
        let id = id.ok_or_else(|| Error::file(path, format!("no {token}"), format!("an id for the {key}")))?;
        Ok((token.to_owned(), id))
    };
    let prefix = settings.flag("add_prefix_space", false);
    let post = if roberta {
        json!({
            "type": "RobertaProcessing", "cls": named("cls_token", "<s>")?, "sep": named("sep_token", "</s>")?,
            "trim_offsets": settings.flag("trim_offsets", true), "add_prefix_space": prefix,
        })
    } else if settings.flag("add_bos_token", false) {
        let (bos, id) = named("bos_token", "<|endoftext|>")?;
        template(&[(&bos, 0), ("A", 0)], &[(&bos, 0), ("A", 0), (&bos, 1), ("B", 1)], &[(&bos, id)])
    } else {
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": false, "use_regex": true})
    };
    // Bytes need no unknown token.
    let model = json!({
        "type": "BPE", "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
        "merges": merges,
    });
    let mut json = vocabulary.finish(Value::Null, model);
    json["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    json["decoder"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    json["post_processor"] = post;
    Ok(json)
}
