//! Text in, micro-batches out: [`tokenizer`] turns text into ids, [`reader`] files into tokens and
//! labels, [`sampler`] says which examples a step takes, [`pack`] lays them out in micro-batches of a
//! fixed number of tokens.

pub mod pack;
pub mod reader;
pub mod sampler;
pub mod tokenizer;

use crate::error::{Error, Result};
pub use reader::is_tokenized;

/// The label of a token that is not trained, as in PyTorch and Hugging Face.
pub const IGNORE: i32 = -100;

/// One training example. `labels` are not shifted: `labels[i]` belongs to `input_ids[i]` and is
/// learnt by the token before it, so `labels[0]` never counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i32>,
}

impl Example {
    /// Every token is trained.
    pub fn whole(input_ids: Vec<u32>) -> Example {
        let labels = input_ids.iter().map(|&id| id as i32).collect();
        Example { input_ids, labels }
    }

    /// Tokens that add to the loss.
    pub fn trained(&self) -> usize {
        trained(&self.labels)
    }
}

fn trained(labels: &[i32]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != IGNORE).count()
}

/// All examples, flat: millions of short ones cost 8 bytes a token and 8 an example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    tokens: Vec<u32>,
    labels: Vec<i32>,
    /// Where each example begins in `tokens`; the last one ends where `tokens` ends.
    starts: Vec<usize>,
}

impl Dataset {
    pub fn push(&mut self, example: &Example) -> Result<()> {
        let (ids, labels) = (&example.input_ids, &example.labels);
        if ids.is_empty() || ids.len() != labels.len() {
            let found = format!("{} tokens and {} labels", ids.len(), labels.len());
            return Err(Error::config("example", found, "at least one token, and a label for each"));
        }
        if let Some(id) = ids.iter().find(|&&id| id > i32::MAX as u32) {
            return Err(Error::config("example", format!("token {id}"), "token ids below 2^31"));
        }
        self.starts.push(self.tokens.len());
        self.tokens.extend_from_slice(ids);
        self.labels.extend_from_slice(labels);
        Ok(())
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Token ids and labels of example `i`.
    pub fn get(&self, i: usize) -> Option<(&[u32], &[i32])> {
        let start = *self.starts.get(i)?;
        let end = self.starts.get(i + 1).copied().unwrap_or(self.tokens.len());
        Some((&self.tokens[start..end], &self.labels[start..end]))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u32], &[i32])> {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// Tokens of all examples together.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of the longest example.
    pub fn longest(&self) -> usize {
        self.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0)
    }

    /// Tokens that add to the loss, in all examples together.
    pub fn trained(&self) -> usize {
        self.iter().map(|(_, labels)| trained(labels)).sum()
    }
}
