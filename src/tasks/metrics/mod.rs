//! Metrics of tasks, as functions of predictions and references: each is an accumulator, fed a batch at a time with
//! `add` and read once with `finish`, which gives names and values as scikit-learn's and Hugging Face's users know
//! them. Definitions are theirs, named in each file; tests/golden/generate_metrics.py computes what the tests expect.
//!
//! Values are fractions of 1, except those of [`Answers`], which are percentages as the SQuAD scripts print them. A
//! ratio of counts that is 0/0 is 0 (scikit-learn's `zero_division`); a mean or a correlation of nothing is NaN.

mod answers;
mod classification;
mod entities;
mod language;
mod multilabel;
mod regression;

pub use answers::{Answers, Squad};
pub use classification::Classification;
pub use entities::Entities;
pub use language::Language;
pub use multilabel::MultiLabel;
pub use regression::Regression;

use crate::{Error, Result};

/// What a metric is called, and what it is.
pub type Values = Vec<(&'static str, f64)>;

/// The place of the largest number of a row, the first of equals, as numpy's argmax; 0 if there is none. A NaN is never
/// the largest.
pub fn argmax(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| {
        let larger = row[i] > row[best] || row[best].is_nan() && !row[i].is_nan();
        if larger { i } else { best }
    };
    (1..row.len()).fold(0, better)
}

/// a/b, where 0/0 is 0.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// What is counted of one class: how often it was predicted rightly, predicted, and the label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    right: u64,
    predicted: u64,
    labelled: u64,
}

impl Counts {
    fn add(&mut self, predicted: bool, labelled: bool) {
        self.right += u64::from(predicted && labelled);
        self.predicted += u64::from(predicted);
        self.labelled += u64::from(labelled);
    }

    fn sum<'a>(counts: impl IntoIterator<Item = &'a Counts>) -> Counts {
        counts.into_iter().fold(Counts::default(), |a, b| Counts {
            right: a.right + b.right,
            predicted: a.predicted + b.predicted,
            labelled: a.labelled + b.labelled,
        })
    }

    fn precision(&self) -> f64 {
        ratio(self.right, self.predicted)
    }

    fn recall(&self) -> f64 {
        ratio(self.right, self.labelled)
    }

    /// F1 = 2 P R / (P + R) = 2 right / (predicted + labelled).
    fn f1(&self) -> f64 {
        ratio(2 * self.right, self.predicted + self.labelled)
    }
}

/// The unweighted mean, 0 of nothing.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    if n == 0 { 0.0 } else { values.sum::<f64>() / n as f64 }
}

/// An error unless there is a prediction for every label.
fn same_length(what: &'static str, predicted: usize, labels: usize) -> Result<()> {
    if predicted == labels {
        return Ok(());
    }
    Err(Error::config(what, format!("{predicted} predictions and {labels} labels"), "as many of each"))
}
