//! Tokens whose rows of a table are trained while the rest of it stays frozen: `trainable_token_indices` of a LoRA adapter,
//! and the method of its own (`trainable_tokens.rs`).
//!
//! Their rows of W `[vocabulary, hidden]` are replaced by those of a tensor `[tokens, hidden]`, which starts as them: for
//! an embedding only where a token is there, for a head in a copy of W in f32, because the loss wants its weight as one
//! tensor. Of a head that is tied to the embedding the same rows are replaced.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Next, Nn, Site, Table};

/// Whether a table is that of an encoder and a decoder, each of which has it as an embedding of its own in transformers (T5).
pub(super) fn is_shared(module: &str) -> bool {
    module.rsplit('.').next() == Some("shared")
}

/// Trained rows of a table.
pub(super) struct Rows<'a> {
    pub ids: &'a [usize],
    /// The module that they are of, and the one whose weight they start as.
    pub module: &'a str,
    pub owner: &'a str,
    /// Their name in the file.
    pub key: String,
}

impl Rows<'_> {
    /// The rows, as those of `w` have them at first, and the ids as a value.
    fn declare(&self, nn: &mut Nn, w: Val) -> Result<(Val, Val)> {
        let (vocab, dim) = (nn.g.shape(w)[0], nn.g.shape(w)[1]);
        if self.ids.is_empty() || !distinct(self.ids) {
            let found = if self.ids.is_empty() { "none" } else { "an id more than once" };
            return Err(Error::config("trainable tokens", found, "token ids, each once"));
        }
        if let Some(id) = self.ids.iter().find(|&&id| id >= vocab) {
            let expected = format!("ids below {vocab}, the size of the vocabulary");
            return Err(Error::config("trainable tokens", id.to_string(), expected));
        }
        // The classes for labels have the model in a module of their own, in which PEFT finds nothing that is tied to the table.
        if is_shared(self.module) && self.module.contains('.') {
            return Err(Error::unsupported(
                format!(
                    "trained tokens of {}, which PEFT has without effect: the encoder reads embed_tokens",
                    self.module
                ),
                "train without them; of an adapter that has them, remove their tensor and their key, and PEFT's result stays",
            ));
        }
        let x = nn.adapter_rows(&self.key, self.owner, dim, self.ids, 1.0);
        let ids: Vec<i32> = self.ids.iter().map(|&id| id as i32).collect();
        Ok((x, nn.constant_i32(&format!("{}.trained_tokens", self.module), &ids)))
    }
}

/// The embedding at `at` with its trained rows.
pub(super) fn embed(rows: &Rows, nn: &mut Nn, at: &Site, table: Table, next: Next) -> Result<Val> {
    let Table { w, ids, scale, .. } = table;
    let (x, tokens) = rows.declare(nn, w)?;
    let padding = table.padding.filter(|padding| rows.ids.contains(padding));
    let learnt = Table { padding, ..table }.learnt(nn)?;
    let (rows, rest) = nn.g.token_rows(ids, tokens)?;
    let learnt = if learnt == ids { rows } else { nn.g.token_rows(learnt, tokens)?.0 };
    let frozen = next.embed(nn, at, Table { ids: rest, ..table })?;
    let own = nn.g.embed_learning([rows, learnt], x, scale)?;
    nn.g.add(frozen, own)
}

/// The weight of a head with its trained rows.
pub(super) fn head(rows: &Rows, nn: &mut Nn, w: Val) -> Result<Val> {
    let (x, tokens) = rows.declare(nn, w)?;
    nn.g.replace_rows(w, x, tokens)
}

/// Which tokens, of which tables.
#[derive(Clone, Debug, PartialEq)]
pub enum Tokens {
    /// Of the input embedding.
    Embedding(Vec<usize>),
    /// Of the modules of these names (the embedding, the output head).
    Modules(Vec<(String, Vec<usize>)>),
}

impl Tokens {
    /// What the key may be besides null, for messages.
    pub const EXPECTED: &'static str = "token ids, each once, or an object of such lists by module name";

    /// The value of the key: `[5, 17]`, or `{"embed_tokens": [5, 17]}`. Empty lists are none at all.
    pub fn read(value: &Value) -> Option<Option<Tokens>> {
        let list = |v: &Value| -> Option<Vec<usize>> {
            let ids: Option<Vec<usize>> = v.as_array()?.iter().map(|id| id.as_u64()?.try_into().ok()).collect();
            ids.filter(|ids| distinct(ids))
        };
        match value {
            Value::Object(map) => {
                let modules: Option<Vec<_>> = map.iter().map(|(name, ids)| Some((name.clone(), list(ids)?))).collect();
                let modules: Vec<_> = modules?.into_iter().filter(|(_, ids)| !ids.is_empty()).collect();
                Some((!modules.is_empty()).then_some(Tokens::Modules(modules)))
            }
            _ => list(value).map(|ids| (!ids.is_empty()).then_some(Tokens::Embedding(ids))),
        }
    }

    /// The value of the key, as `read` takes it.
    pub fn to_json(&self) -> Value {
        match self {
            Tokens::Embedding(ids) => ids.clone().into(),
            Tokens::Modules(modules) => {
                let one = |(name, ids): &(String, Vec<usize>)| (name.clone(), Value::from(ids.clone()));
                Value::Object(modules.iter().map(one).collect::<Map<_, _>>())
            }
        }
    }

    /// The tokens of the table at `module`, a path in the Hugging Face model.
    pub fn of(&self, module: &str, is_embedding: bool) -> Option<&[usize]> {
        match self {
            Tokens::Embedding(ids) => is_embedding.then_some(ids.as_slice()),
            Tokens::Modules(modules) => {
                let found = modules.iter().find(|(name, _)| super::config::listed(std::slice::from_ref(name), module));
                found.map(|(_, ids)| ids.as_slice())
            }
        }
    }
}

/// Whether no id is there twice: a row that is written twice would be written in no order.
pub fn distinct(ids: &[usize]) -> bool {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|w| w[0] != w[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_objects() {
        let read = |text: &str| Tokens::read(&serde_json::from_str(text).unwrap());
        assert_eq!(read("[]"), Some(None));
        assert_eq!(read("{}"), Some(None));
        assert_eq!(read(r#"{"embed_tokens": []}"#), Some(None));
        for wrong in ["[1, 1]", "[-1]", "[1.5]", "7", "\"7\"", r#"{"embed_tokens": 7}"#, r#"{"lm_head": [2, 2]}"#] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let list = read("[9, 5]").unwrap().unwrap();
        assert_eq!((list.of("model.embed_tokens", true), list.of("lm_head", false)), (Some(&[9, 5][..]), None));
        let text = r#"{"embed_tokens":[9,5],"lm_head":[7]}"#;
        let modules = read(text).unwrap().unwrap();
        assert_eq!(modules.of("model.embed_tokens", true), Some(&[9, 5][..]));
        assert_eq!(modules.of("lm_head", false), Some(&[7][..]));
        assert_eq!(modules.of("model.other_embed_tokens", true), None);
        assert_eq!(modules.to_json().to_string(), text);
    }
}
