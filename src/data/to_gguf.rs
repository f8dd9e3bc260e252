//! A tokenizer as a GGUF file's metadata: byte-level BPE (`tokenizer.ggml.model` gpt2) with its way to cut texts into words, or
//! SentencePiece's BPE with byte fallback (llama), whose merges become scores.

use std::collections::HashMap;

use serde_json::Value;

use super::tokenizer::{Tokenizer, failed, words_name};
use crate::error::{Error, Result};
use crate::weights::gguf_write::Meta;

/// `enum llama_token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

impl Tokenizer {
    /// The entries `tokenizer.*` of a GGUF file of a model with `rows` rows in its embedding, in llama.cpp's order. An error if
    /// llama.cpp has no name for what the tokenizer does.
    pub fn to_gguf(&self, rows: usize) -> Result<Vec<(String, Meta)>> {
        let text = self.inner.to_string(false).map_err(|e| failed("written", &e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| failed("written", &e.into()))?;
        let model = &json["model"];
        let spelled = model["byte_fallback"].as_bool().unwrap_or(false);
        let kind = model["type"].as_str().unwrap_or("no model");
        if kind != "BPE" {
            let hint = "a model with a BPE tokenizer, or transformers' own converter";
            return Err(Error::unsupported(format!("a tokenizer of type {kind} in a GGUF file"), hint));
        }
        let mut entries: Vec<(String, Meta)> = Vec::new();
        let mut add = |key: &str, value: Meta| entries.push((format!("tokenizer.{key}"), value));
        add("ggml.model", Meta::String(if spelled { "llama" } else { "gpt2" }.into()));
        let merges = merges(model)?;
        match spelled {
            true => add("ggml.add_space_prefix", Meta::Bool(prepends(&json))),
            false => {
                let name = words_name(&json).ok_or_else(|| {
                    let what = "a tokenizer that cuts texts into words in a way that has no name in GGUF files";
                    Error::unsupported(what, "llama.cpp's own converter may know it; or keep the Hugging Face folder")
                })?;
                add("ggml.pre", Meta::String(name.into()));
            }
        }
        let (tokens, types) = self.tokens(&json, rows)?;
        if spelled {
            add("ggml.scores", Meta::Floats(scores(&tokens, &types, &merges)));
        }
        add("ggml.tokens", Meta::Strings(tokens));
        add("ggml.token_type", Meta::Ints(types));
        if !spelled {
            add("ggml.merges", Meta::Strings(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()));
        }
        let unknown = model["unk_token"].as_str().and_then(|token| self.token_to_id(token));
        let ids = [("bos", self.bos()), ("eos", self.eos_ids().first().copied()), ("unknown", unknown)];
        for (kind, id) in ids.into_iter().chain([("padding", self.pad()), ("mask", self.mask())]) {
            if let Some(id) = id {
                add(&format!("ggml.{kind}_token_id"), Meta::Uint(id));
            }
        }
        let (plain, special) = (self.encode("a", false)?, self.encode("a", true)?);
        let ends = special.len() > plain.len() && special.last().is_some_and(|last| self.eos_ids().contains(last));
        add("ggml.add_bos_token", Meta::Bool(self.bos().is_some() && self.begins_with()? == self.bos()));
        add("ggml.add_eos_token", Meta::Bool(ends));
        if let Some(template) = self.chat_template() {
            add("chat_template", Meta::String(template.into()));
        }
        Ok(entries)
    }

    /// Text and type of each id; ids without a token, up to `rows`, are unused ones.
    fn tokens(&self, json: &Value, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
        let highest = self.inner.get_vocab(true).values().copied().max().unwrap_or(0) as usize;
        if highest >= rows {
            let found = format!("a token with id {highest}");
            return Err(Error::config(
                "tokenizer",
                found,
                format!("ids below {rows}, the rows of the model's embedding"),
            ));
        }
        let mut added: HashMap<u32, bool> = HashMap::new();
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            if let Some(id) = token["id"].as_u64() {
                added.insert(id as u32, token["special"].as_bool().unwrap_or(false));
            }
        }
        let unknown = json["model"]["unk_token"].as_str();
        let one = |id: u32| match self.id_to_token(id) {
            None => (format!("[PAD{id}]"), UNUSED),
            Some(token) => {
                let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
                let ty = match added.get(&id) {
                    _ if unknown == Some(&token) => UNKNOWN,
                    Some(true) => CONTROL,
                    Some(false) => USER_DEFINED,
                    None if byte => BYTE,
                    None => NORMAL,
                };
                (token, ty)
            }
        };
        Ok((0..rows as u32).map(one).unzip())
    }
}

/// The merges of a BPE model, the first to be done first.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let one = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        pair => Some((pair.get(0)?.as_str()?.to_string(), pair.get(1)?.as_str()?.to_string())),
    };
    let list = model["merges"].as_array().into_iter().flatten().map(one).collect::<Option<Vec<_>>>();
    list.ok_or_else(|| Error::config("tokenizer", "a merge that is no pair", "two tokens in each merge"))
}

/// Scores by which the same merges come first: a token's is the lower, the later it is merged to. SentencePiece has the letters
/// after all merges.
fn scores(tokens: &[String], types: &[i32], merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    let mut letters = merges.len();
    let mut score = |(token, ty): (&String, &i32)| {
        if *ty != NORMAL && *ty != USER_DEFINED {
            return 0.0;
        }
        let rank = ranks.get(token).copied().unwrap_or_else(|| {
            letters += 1;
            letters - 1
        });
        -(rank as f32)
    };
    tokens.iter().zip(types).map(&mut score).collect()
}

/// Whether a text is given a space before it.
fn prepends(json: &Value) -> bool {
    let within = |value: &Value, list: &str| -> Vec<Value> {
        value[list].as_array().cloned().unwrap_or_else(|| vec![value.clone()])
    };
    let normalizers = within(&json["normalizer"], "normalizers");
    let words = within(&json["pre_tokenizer"], "pretokenizers");
    normalizers.iter().any(|n| n["type"] == "Prepend")
        || words.iter().any(|w| w["type"] == "Metaspace" && w["prepend_scheme"] != "never")
}
