//! A row of a data file: named fields, read with errors that name the line.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// A row and where it is.
pub struct Row<'a> {
    pub path: &'a Path,
    /// Its line, from 1.
    pub line: usize,
    pub fields: Map<String, Value>,
}

impl Row<'_> {
    /// Whether the row has a field; null counts as absent.
    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|v| !v.is_null())
    }

    /// A field as `T`; None if it is absent or null.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(value) {
                Ok(value) => Ok(Some(value)),
                Err(e) => Err(self.wrong(e.to_string(), format!("a {name} of the right type"))),
            },
        }
    }

    /// A field that must be there.
    pub fn need<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.get(name)?.ok_or_else(|| self.wrong(format!("the fields {}", self.names()), name))
    }

    /// The names of its fields, for messages.
    pub fn names(&self) -> String {
        if self.fields.is_empty() { "none".into() } else { self.fields.keys().cloned().collect::<Vec<_>>().join(", ") }
    }

    /// An error about this row.
    pub fn wrong(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::file(format!("{}:{}", self.path.display(), self.line), found, expected)
    }
}

/// What making examples of rows needs to know of a tokenizer and a model.
#[derive(Clone, Copy)]
pub struct Codec<'a> {
    /// Text to ids, adding no special tokens.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>>,
    /// The whole tokenizer, where there is one: pairs of texts, words, special tokens.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Begins every document; none if the model was not trained with one.
    pub bos: Option<u32>,
    /// Ends every document.
    pub eos: Option<u32>,
    /// Ids are below this: the rows of the embedding.
    pub vocab: usize,
    /// Longest example, in tokens; and longest target of a sequence-to-sequence example.
    pub max_len: usize,
    pub max_target_len: usize,
    /// Rows may lack labels: they are to be predicted.
    pub unlabelled: bool,
    /// Examples say where in their row's text each token is from.
    pub traced: bool,
}

impl<'a> Codec<'a> {
    /// The ids of `text`.
    pub fn encode(&self, row: &Row, text: &str) -> Result<Vec<i32>> {
        (self.encode)(text)?.into_iter().map(|id| self.token(row, id.into())).collect()
    }

    /// The tokenizer.
    pub fn tokenizer(&self, row: &Row) -> Result<&'a Tokenizer> {
        self.tokenizer.ok_or_else(|| row.wrong("text among tokenized examples", "input_ids in every line"))
    }

    /// A token id of the vocabulary.
    pub fn token(&self, row: &Row, id: i64) -> Result<i32> {
        // The kernels index with 32-bit signed numbers.
        let limit = self.vocab.min(i32::MAX as usize) as i64;
        if (0..limit).contains(&id) {
            return Ok(id as i32);
        }
        let expected = format!("ids from 0 to {}: is it the model's own tokenizer?", limit - 1);
        Err(row.wrong(format!("token id {id}"), expected))
    }

    /// The ids of a field that holds token ids.
    pub fn ids(&self, row: &Row, name: &str) -> Result<Option<Vec<i32>>> {
        let Some(ids) = row.get::<Vec<i64>>(name)? else { return Ok(None) };
        ids.into_iter().map(|id| self.token(row, id)).collect::<Result<_>>().map(Some)
    }

    /// A document ends once, even where the text has the end token written out.
    pub fn end(&self, ids: &mut Vec<i32>) {
        let eos = self.eos.map(|id| id as i32);
        if ids.last() != eos.as_ref() {
            ids.extend(eos);
        }
    }
}
    /// The ids of a text that is a document: what begins one comes first, once, even where the text has it written out.
    pub fn document(&self, row: &Row, text: &str) -> Result<Vec<i32>> {
        let mut ids = self.encode(row, text)?;
        let first = self.bos.map(|id| id as i32).filter(|first| ids.first() != Some(first));
        ids.splice(0..0, first);
        Ok(ids)
    }

