//! Tokens in files beside tokenizer.json: in tokenizer_config.json (`added_tokens_decoder`, `extra_special_tokens`,
//! `additional_special_tokens`, any `*_token`), added_tokens.json and special_tokens_map.json. They are added as
//! transformers 5 adds them, in its order, since a token that the vocabulary lacks gets the next free id.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::guard::guarded;
use super::vocabulary::token_text;
use crate::error::{Error, Result};
use crate::weights::read_json;

/// The special tokens that every tokenizer may have, in transformers' order.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of special tokens without a name of their own: the newer name comes first.
const LISTS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// tokenizer_config.json as it counts: special_tokens_map.json is laid over one that has no `added_tokens_decoder`.
pub(super) fn settings(config: &Value, special: &Value) -> Map<String, Value> {
    let mut all = config.as_object().cloned().unwrap_or_default();
    if all.contains_key("added_tokens_decoder") {
        return all;
    }
    for (key, value) in special.as_object().into_iter().flatten() {
        let mut value = value.clone();
        if let (Some(new), Some(known)) = (value.as_array_mut(), all.get(key).and_then(Value::as_array))
            && key == LISTS[0]
        {
            let new = std::mem::take(new).into_iter().filter(|token| !known.contains(token)).collect::<Vec<_>>();
            value = known.iter().cloned().chain(new).collect();
        }
        all.insert(key.clone(), value);
    }
    all
}

/// A token of a file. A string is a special token; of an object, what is left out is as the library has it.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let text = token_text(value).filter(|text| !text.is_empty())?;
    let flag = |key: &str, or: bool| value.get(key).and_then(Value::as_bool).unwrap_or(or);
    let special = flag("special", special || value.is_string());
    let token = AddedToken::from(text, special);
    let normalized = flag("normalized", token.normalized);
    let token = token.single_word(flag("single_word", false)).lstrip(flag("lstrip", false));
    Some(token.rstrip(flag("rstrip", false)).normalized(normalized))
}

/// The tokens of a list, or of an object whose names do not matter here.
fn list(value: Option<&Value>) -> Vec<AddedToken> {
    let values: Vec<&Value> = match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(named)) => named.values().collect(),
        _ => Vec::new(),
    };
    values.into_iter().filter_map(|value| token(value, true)).collect()
}

/// The tokens whose ids the files name: of `added_tokens_decoder`, or in older folders of added_tokens.json.
fn numbered(
    inner: &tokenizers::Tokenizer,
    folder: &Path,
    settings: &Map<String, Value>,
) -> Result<BTreeMap<u32, AddedToken>> {
    let mut tokens = BTreeMap::new();
    if let Some(decoder) = settings.get("added_tokens_decoder") {
        for (id, value) in decoder.as_object().into_iter().flatten() {
            let path = || folder.join("tokenizer_config.json");
            let id = id.parse().map_err(|_| Error::file(path(), format!("added token {id:?}"), "an id"))?;
            tokens.extend(token(value, false).map(|token| (id, token)));
        }
        return Ok(tokens);
    }
    let Some(Value::Object(file)) = read_json(&folder.join("added_tokens.json"))? else { return Ok(tokens) };
    let named = NAMED.iter().filter_map(|key| token_text(settings.get(*key)?).map(String::from));
    let special: Vec<String> = named.chain(list(extra(settings)).into_iter().map(|token| token.content)).collect();
    let known = inner.get_added_tokens_decoder();
    for (text, id) in file {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| Error::file(folder.join("added_tokens.json"), format!("{text:?}"), "an id of it"))?;
        // What tokenizer.json says of an id counts.
        if !known.contains_key(&id) && !text.is_empty() {
            let token = AddedToken::from(text.as_str(), special.contains(&text));
            tokens.insert(id, token);
        }
    }
    Ok(tokens)
}

/// The special tokens without a name: the older key counts where the newer one has none.
fn extra(settings: &Map<String, Value>) -> Option<&Value> {
    let empty = |value: &&Value| {
        !value.as_array().is_some_and(Vec::is_empty)
            && !value.is_null()
            && !value.as_object().is_some_and(Map::is_empty)
    };
    LISTS.iter().find_map(|key| settings.get(*key).filter(empty))
}

/// Adds what the files of `folder` have beside the tokenizer itself; `settings` are those of [`settings()`].
pub(super) fn add(inner: &mut tokenizers::Tokenizer, folder: &Path, settings: &Map<String, Value>) -> Result<()> {
    let numbered = numbered(inner, folder, settings)?;
    let by_text = |text: &str| numbered.values().find(|token| token.content == text).cloned();
    let mut named: Vec<AddedToken> = Vec::new();
    for key in NAMED {
        if let Some(value) = settings.get(key) {
            let own = token_text(value).and_then(by_text);
            named.extend(own.or_else(|| token(value, true)));
        }
    }
    // Names of a model's own, of images for one.
    let other = |key: &str| key.ends_with("_token") && !NAMED.contains(&key) && !key.starts_with("add_");
    let own = settings.iter().filter(|(key, _)| other(key)).filter_map(|(_, value)| token(value, true));
    named.extend(own);
    let more = extra(settings);
    let (of_model, unnamed) = match more {
        // Named tokens are no list that the older key could be another name for.
        Some(Value::Object(_)) => (list(more), list(settings.get(LISTS[1]))),
        _ => (Vec::new(), list(more)),
    };
    named.extend(of_model);
    named.extend(list(settings.get("model_specific_special_tokens").filter(|v| v.is_object())));

    let known: Vec<AddedToken> = inner.get_added_tokens_decoder().into_values().collect();
    let mut new: Vec<AddedToken> = numbered.values().filter(|token| !known.contains(token)).cloned().collect();
    for token in named.iter().chain(&unnamed) {
        if !known.iter().chain(&new).any(|other| other.content == token.content) {
            new.push(token.clone());
        }
    }
    for token in &mut new {
        token.special |= named.iter().any(|other| other.content == token.content);
    }
    if !new.is_empty() {
        guarded(|| Ok(inner.add_tokens(&new))).map_err(|e| {
            let found = format!("tokens that cannot be added ({e})");
            Error::file(folder.join("tokenizer_config.json"), found, "tokens beside those of tokenizer.json")
        })?;
    }
    Ok(())
}
