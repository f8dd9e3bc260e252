//! What an example teaches, for people to look at.

use crate::data::{Example, INPUT_IDS, LABELS};
use crate::nn::IGNORE;

/// Tokens of an example that are one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passage {
    /// The tokens.
    pub ids: Vec<i32>,
    /// Which of them are learnt: predicted, or the answer.
    pub trained: Vec<bool>,
    /// The label of each, where tokens have labels; else none.
    pub tags: Vec<Option<String>>,
}

impl Passage {
    /// Tokens that are read and not learnt.
    pub fn read(ids: &[i32]) -> Passage {
        Passage { ids: ids.to_vec(), trained: vec![false; ids.len()], tags: Vec::new() }
    }

    /// Tokens that are learnt where `labels` has something to learn.
    pub fn labelled(ids: &[i32], labels: &[i32]) -> Passage {
        let trained = (0..ids.len()).map(|i| labels.get(i).is_some_and(|&label| label != IGNORE));
        Passage { ids: ids.to_vec(), trained: trained.collect(), tags: Vec::new() }
    }
}

/// An example as people look at it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    /// Its texts: one, or what an encoder and a decoder read.
    pub passages: Vec<Passage>,
    /// The label of the whole, where it has one.
    pub answer: Option<String>,
}

impl Lesson {
    /// Of tokens that have labels.
    pub fn of_labels(example: &Example) -> Lesson {
        Lesson { passages: vec![Passage::labelled(example.ints(INPUT_IDS), example.ints(LABELS))], answer: None }
    }

    /// Tokens of it that are learnt.
    pub fn trained(&self) -> usize {
        self.passages.iter().flat_map(|passage| &passage.trained).filter(|trained| **trained).count()
    }
}
