//! A row of a data file: named fields, read with errors that name the line.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::chat::Chats;
use super::tokenizer::Tokenizer;
use super::values::{of_cell, shown};
use super::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS, SEQ_LENGTHS};
use crate::error::{Error, Result};

/// A row and where it is.
pub struct Row<'a> {
    /// The file, for messages; `--text` for a row of the command line.
    pub path: &'a Path,
    /// Its line, from 1; its number where a file has no lines.
    pub line: usize,
    /// Values by the names that tasks read: columns of other names were renamed.
    pub fields: Map<String, Value>,
    /// Whether values are the text of a table's cells, which stand for numbers and lists where those are asked for.
    pub cells: bool,
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
                Err(e) => {
                    let meant = self.of_cell(value).and_then(|value| T::deserialize(value).ok());
                    meant.map(Some).ok_or_else(|| self.wrong(format!("{name} {}", shown(value)), kind::<T>(&e)))
                }
            },
        }
    }

    /// A field that may be a text or something else: of a cell what it stands for. None if it is absent or null.
    pub fn value(&self, name: &str) -> Option<Value> {
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        Some(self.of_cell(value).unwrap_or_else(|| value.clone()))
    }

    /// What the text of a cell stands for besides itself.
    fn of_cell(&self, value: &Value) -> Option<Value> {
        value.as_str().filter(|_| self.cells).and_then(of_cell)
    }

    /// A field that must be there.
    pub fn need<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.get(name)?.ok_or_else(|| self.lacks(name))
    }

    /// The error of a field that must be there.
    pub fn lacks(&self, name: &str) -> Error {
        match self.fields.contains_key(name) {
            true => self.wrong(format!("a {name} that is null"), format!("a {name}")),
            false => self.wrong(format!("the fields {}", self.names()), name),
        }
    }

    /// The error of a row that has not the fields of a task's `rows`.
    pub fn unlike(&self, rows: &str) -> Error {
        const CHATS: [&str; 2] = ["messages", "conversations"];
        let expected = match CHATS.iter().any(|name| self.has(name)) {
            true => format!("{rows}; chats are for task causal-lm"),
            false => format!("{rows}; --columns NAME=COLUMN renames"),
        };
        self.wrong(format!("the fields {}", self.names()), expected)
    }

    /// The names of its fields, for messages, and which of them have no value.
    pub fn names(&self) -> String {
        let nothing = if self.cells { "empty" } else { "null" };
        let name = |(name, value): (&String, &Value)| match value {
            Value::Null => format!("{name} ({nothing})"),
            _ => name.clone(),
        };
        if self.fields.is_empty() { "none".into() } else { self.fields.iter().map(name).collect::<Vec<_>>().join(", ") }
    }

    /// The row without its padding, if its `attention_mask` tells of any: `input_ids` and the `columns` beside it that
    /// have a value a token are cut to the tokens that count, and positions in it (`start_position`, `end_position`) move.
    /// What is left must be one sequence.
    pub fn attended(&self, columns: &[&str]) -> Result<Option<Row<'_>>> {
        if !self.has(INPUT_IDS) {
            return Ok(None);
        }
        let columns: Vec<&str> = columns.iter().copied().chain([INPUT_IDS, POSITION_IDS]).collect();
        let attended = self.unpadded(&columns)?;
        attended.as_ref().unwrap_or(self).one_sequence()?;
        Ok(attended)
    }

    /// An error if the row says that several sequences were packed into it: they would see each other.
    fn one_sequence(&self) -> Result<()> {
        let expected = "one sequence a row, which Trimtab packs itself: make a row of each";
        if let Some(lengths) = self.get::<Vec<u64>>(SEQ_LENGTHS)?.filter(|lengths| lengths.len() > 1) {
            return Err(self.wrong(format!("{SEQ_LENGTHS} of {} sequences", lengths.len()), expected));
        }
        let Some(positions) = self.get::<Vec<i64>>(POSITION_IDS)? else { return Ok(()) };
        let tokens = self.get::<Vec<Value>>(INPUT_IDS)?.map_or(0, |ids| ids.len());
        if positions.len() != tokens {
            let found = format!("{tokens} {INPUT_IDS} and {} {POSITION_IDS}", positions.len());
            return Err(self.wrong(found, format!("as many {POSITION_IDS} as {INPUT_IDS}")));
        }
        match (0..).zip(&positions).find(|(at, position)| at != *position) {
            Some((at, position)) => Err(self.wrong(format!("{position} at {at} of {POSITION_IDS}"), expected)),
            None => Ok(()),
        }
    }

    /// A column of ones and zeros; None if it is absent or null.
    pub fn mask(&self, name: &str, expected: &str) -> Result<Option<Vec<bool>>> {
        let Some(mask) = self.get::<Vec<Value>>(name)? else { return Ok(None) };
        let mask = mask.iter().map(|value| match value.as_u64().or_else(|| value.as_bool().map(u64::from)) {
            Some(counts @ 0..=1) => Ok(counts == 1),
            _ => Err(self.wrong(format!("{value} in {name}"), expected)),
        });
        mask.collect::<Result<_>>().map(Some)
    }

    /// The row without what `attention_mask` says is padding, from these columns; None if there is none.
    fn unpadded(&self, columns: &[&str]) -> Result<Option<Row<'_>>> {
        const POSITIONS: [&str; 2] = ["start_position", "end_position"];
        let mask = self.mask(ATTENTION_MASK, "1 for a token that counts, 0 for padding")?;
        let Some(mask) = mask else { return Ok(None) };
        let mut fields = self.fields.clone();
        for name in columns.iter().chain(&POSITIONS) {
            if let Some(value) = fields.get_mut(*name) {
                *value = self.of_cell(value).unwrap_or_else(|| std::mem::take(value));
            }
        }
        let length = |name: &str| fields.get(name).and_then(Value::as_array).map(Vec::len);
        if let Some(tokens) = length(INPUT_IDS).filter(|tokens| *tokens != mask.len()) {
            let found = format!("{tokens} input_ids and {} values of attention_mask", mask.len());
            return Err(self.wrong(found, "as many values of attention_mask as input_ids"));
        }
        if mask.iter().all(|counts| *counts) {
            return Ok(None);
        }
        let first = mask.iter().position(|counts| *counts).unwrap_or(0);
        let end = mask.iter().rposition(|counts| *counts).map_or(0, |last| last + 1);
        if let Some(hole) = mask[first..end].iter().position(|counts| !counts) {
            let found = format!("an attention_mask with 0 at {} between ones", first + hole);
            let expected = "padding before or after the tokens: take masked tokens out, or make rows of the stretches";
            return Err(self.wrong(found, expected));
        }
        for name in columns {
            // A column of another length is an error of its own, told where it is read.
            if let Some(values) = fields.get_mut(*name).and_then(Value::as_array_mut)
                && values.len() == mask.len()
            {
                values.truncate(end);
                values.drain(..first);
            }
        }
        for name in POSITIONS {
            let Some(at) = fields.get(name).and_then(Value::as_u64) else { continue };
            if !(first as u64..end as u64).contains(&at) {
                let expected = "an answer within the tokens that attention_mask counts";
                return Err(self.wrong(format!("{name} {at}, which is padding"), expected));
            }
            fields.insert(name.into(), (at - first as u64).into());
        }
        fields.shift_remove(ATTENTION_MASK);
        Ok(Some(Row { fields, ..*self }))
    }

    /// Where it is, for messages.
    pub fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.line)
    }

    /// An error about this row.
    pub fn wrong(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::file(self.place(), found, expected)
    }
}

/// What `T` is in words, which serde's message says in part.
fn kind<T>(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let of = message.rsplit_once(", expected ").map_or(message.as_str(), |(_, of)| of);
    let word = match of {
        "i64" | "i32" | "u64" | "usize" => "whole numbers",
        "f64" | "f32" => "numbers",
        "a string" => "strings",
        "a sequence" => "lists",
        other => return other.into(),
    };
    // A list says what it is made of only where it is a list.
    match (std::any::type_name::<T>().contains("Vec<"), of) {
        (true, "a sequence") => "a list".into(),
        (true, _) => format!("a list of {word}"),
        (false, _) => format!("a {}", word.trim_end_matches('s')),
    }
}

/// What making examples of rows needs to know of a tokenizer and a model.
#[derive(Clone, Copy)]
pub struct Codec<'a> {
    /// Text to ids, adding no special tokens.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>>,
    /// The whole tokenizer, where there is one: pairs of texts, words, special tokens.
    pub tokenizer: Option<&'a Tokenizer>,
    /// What makes texts of conversations, where there is one.
    pub chats: Option<&'a Chats>,
    /// Begins every document; none if the model was not trained with one.
    pub bos: Option<u32>,
    /// Ends every document.
    pub eos: Option<u32>,
    /// Ids are below this: the rows of the embedding.
    pub vocab: usize,
    /// Longest example, in tokens.
    pub max_len: usize,
    /// Longest target of a sequence-to-sequence example, in tokens.
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

    /// The ids of a text that is a document: what begins one comes first, once, even where the text has it written out.
    pub fn document(&self, row: &Row, text: &str) -> Result<Vec<i32>> {
        let mut ids = self.encode(row, text)?;
        let first = self.bos.map(|id| id as i32).filter(|first| ids.first() != Some(first));
        ids.splice(0..0, first);
        Ok(ids)
    }

    /// The tokenizer.
    pub fn tokenizer(&self, row: &Row) -> Result<&'a Tokenizer> {
        self.tokenizer.ok_or_else(|| row.wrong("text among tokenized examples", "input_ids in every line"))
    }

    /// What makes texts of conversations.
    pub fn chats(&self, row: &Row) -> Result<&'a Chats> {
        self.chats.ok_or_else(|| row.wrong("a chat among tokenized examples", "input_ids in every line"))
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
