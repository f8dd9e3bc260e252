//! Text in, micro-batches out: [`tokenizer`] turns text into ids, [`pairs`] does for encoders, [`source`] files into rows
//! by the table of [`formats`], tasks rows into examples, [`reader`] all of them into a [`Dataset`], [`sampler`] says which
//! examples a step takes, [`pack`] lays them out in micro-batches of a fixed shape.

mod added;
mod charsmap;
pub mod chat;
pub mod formats;
mod guard;
mod long;
pub mod notes;
pub mod pack;
pub mod pairs;
pub mod reader;
pub mod row;
pub mod sampler;
pub mod sizes;
pub mod source;
pub mod split;
mod stream;
mod to_gguf;
pub mod tokenizer;
pub(crate) mod values;
mod vocabulary;

use crate::error::{Error, Result};
pub use crate::nn::inputs::{Column, IGNORE};
pub use pairs::Encoded;

/// The column of an example's tokens: those of the encoder in encoder-decoders.
pub const INPUT_IDS: &str = "input_ids";
/// Which of two texts a token is of: 0 or 1.
pub const TOKEN_TYPE_IDS: &str = "token_type_ids";
/// The tokens that a decoder reads in encoder-decoders.
pub const DECODER_INPUT_IDS: &str = "decoder_input_ids";
/// 1 for each token of `input_ids` that counts, 0 for padding.
pub const ATTENTION_MASK: &str = "attention_mask";
/// Columns of TRL's tokenized rows: 1 for a token that is trained.
pub const TRAINED_MASKS: [&str; 2] = ["completion_mask", "assistant_masks"];
/// Column of rows: where each token is in its sequence.
pub const POSITION_IDS: &str = "position_ids";
/// Column of rows: the lengths of the sequences that were packed into one.
pub const SEQ_LENGTHS: &str = "seq_lengths";
/// Labels of tokens, not shifted.
pub const LABELS: &str = "labels";

/// One training example: named columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Names and values; a task may have columns besides those named above.
    pub columns: Vec<(&'static str, Column)>,
}

impl Example {
    /// Tokens with labels: `labels[i]` belongs to `input_ids[i]` and is learnt by the token before it.
    pub fn labelled(input_ids: Vec<i32>, labels: Vec<i32>) -> Example {
        Example { columns: vec![(INPUT_IDS, Column::Ints(input_ids)), (LABELS, Column::Ints(labels))] }
    }

    /// Every token is trained.
    pub fn whole(input_ids: Vec<u32>) -> Example {
        let ids: Vec<i32> = input_ids.into_iter().map(|id| id as i32).collect();
        Example::labelled(ids.clone(), ids)
    }

    /// The values of a column.
    pub fn get(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.0 == name).map(|c| &c.1)
    }

    /// The whole numbers of a column; none if it has none.
    pub fn ints(&self, name: &str) -> &[i32] {
        self.get(name).map_or(&[], Column::ints)
    }

    /// The floats of a column; none if it has none.
    pub fn floats(&self, name: &str) -> &[f32] {
        self.get(name).map_or(&[], Column::floats)
    }

    /// The whole numbers of a column, to be changed; it is made if there is none.
    pub fn ints_mut(&mut self, name: &'static str) -> &mut Vec<i32> {
        let at = self.columns.iter().position(|c| c.0 == name && matches!(c.1, Column::Ints(_)));
        let at = at.unwrap_or_else(|| {
            self.columns.retain(|c| c.0 != name);
            self.columns.push((name, Column::Ints(Vec::new())));
            self.columns.len() - 1
        });
        match &mut self.columns[at].1 {
            Column::Ints(values) => values,
            Column::Floats(_) => unreachable!("the column at this place is one of whole numbers"),
        }
    }
}

/// A column of all examples, flat.
#[derive(Clone, Debug, PartialEq)]
struct Store {
    name: &'static str,
    values: Column,
    /// Where each example begins in `values`; the last one ends where `values` ends.
    starts: Vec<usize>,
}

/// All examples, flat: millions of short ones cost 4 bytes a value and 8 a column and example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    columns: Vec<Store>,
    len: usize,
    parts: Vec<Share>,
}

/// Examples that an epoch draws a share of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// How many there are, one after another.
    pub examples: usize,
    /// Their share of an epoch, relative to those of other parts.
    pub weight: f64,
}

impl Dataset {
    /// Appends an example. Columns that it has and others have not are empty there, and the other way round.
    pub fn push(&mut self, example: &Example) -> Result<()> {
        let ids = example.ints(INPUT_IDS);
        if ids.is_empty() {
            return Err(Error::config("example", "no tokens", "at least one token"));
        }
        if let Some(id) = ids.iter().find(|id| **id < 0) {
            return Err(Error::config("example", format!("token {}", *id as u32), "token ids below 2^31"));
        }
        for (name, values) in &example.columns {
            if !self.columns.iter().any(|c| c.name == *name) {
                self.columns.push(Store { name, values: values.empty(), starts: vec![0; self.len] });
            }
        }
        for column in &mut self.columns {
            column.starts.push(column.values.len());
            if let Some(values) = example.get(column.name) {
                column.values.extend(values);
            }
        }
        self.len += 1;
        Ok(())
    }

    /// Gives the examples that were pushed since the last part a share of an epoch.
    pub fn end_part(&mut self, weight: f64) {
        let before: usize = self.parts.iter().map(|part| part.examples).sum();
        self.parts.push(Share { examples: self.len - before, weight });
    }

    /// The parts that an epoch draws shares of; none if each epoch takes all examples.
    pub fn parts(&self) -> &[Share] {
        &self.parts
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn range(&self, column: &Store, i: usize) -> std::ops::Range<usize> {
        let start = column.starts.get(i).copied().unwrap_or(0);
        start..column.starts.get(i + 1).copied().unwrap_or(column.values.len())
    }

    /// A column of example `i`, if there is one of that name.
    pub fn column(&self, i: usize, name: &str) -> Option<Column> {
        let column = self.columns.iter().find(|c| c.name == name)?;
        let range = self.range(column, i);
        Some(match &column.values {
            Column::Ints(v) => Column::Ints(v[range].to_vec()),
            Column::Floats(v) => Column::Floats(v[range].to_vec()),
        })
    }

    /// Example `i`, with the columns of which it has values.
    pub fn example(&self, i: usize) -> Example {
        let columns = self.columns.iter().filter(|c| !self.range(c, i).is_empty());
        Example { columns: columns.filter_map(|c| Some((c.name, self.column(i, c.name)?))).collect() }
    }

    /// Values of a column of example `i`.
    pub fn len_of(&self, i: usize, name: &str) -> usize {
        self.columns.iter().find(|c| c.name == name).map_or(0, |c| self.range(c, i).len())
    }

    /// The tokens of example `i`.
    pub fn ids(&self, i: usize) -> &[i32] {
        let ids = self.columns.iter().find(|c| c.name == INPUT_IDS);
        ids.map_or(&[], |c| &c.values.ints()[self.range(c, i)])
    }

    /// Values of all examples in a column.
    pub fn total(&self, name: &str) -> usize {
        self.columns.iter().find(|c| c.name == name).map_or(0, |c| c.values.len())
    }

    /// Values of the longest example in a column.
    pub fn longest(&self, name: &str) -> usize {
        (0..self.len).map(|i| self.len_of(i, name)).max().unwrap_or(0)
    }
}
