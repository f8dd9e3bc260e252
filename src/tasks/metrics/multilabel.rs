//! Any number of classes for each example: F1 and subset accuracy (scikit-learn's definitions for indicator matrices).

use super::{Counts, Values, mean, ratio, same_length};
use crate::{Error, Result};

/// `f1_micro`, `f1_macro`, and `subset_accuracy`, the share of examples of which every class is right.
///
/// A class is predicted where its logit is above 0, which is a probability above 1/2. The macro average is over all
/// classes; one that is neither label nor prediction anywhere has F1 0.
#[derive(Clone, Debug)]
pub struct MultiLabel {
    classes: Vec<Counts>,
    examples: u64,
    right: u64,
}

impl MultiLabel {
    /// No examples yet, of a task with this number of classes.
    pub fn new(classes: usize) -> MultiLabel {
        MultiLabel { classes: vec![Counts::default(); classes], examples: 0, right: 0 }
    }

    /// Adds a batch: `[examples, classes]` logits, and as many labels, 0 to 1, which count as given above one half.
    pub fn add(&mut self, logits: &[f32], labels: &[f32]) -> Result<()> {
        same_length("classes", logits.len(), labels.len())?;
        let n = self.classes.len();
        if n == 0 || !labels.len().is_multiple_of(n) {
            return Err(Error::config("classes", format!("{} labels", labels.len()), format!("rows of {n}")));
        }
        if let Some(label) = labels.iter().find(|&&label| !(0.0..=1.0).contains(&label)) {
            return Err(Error::config("labels", format!("{label}"), "0 to 1"));
        }
        for (logits, labels) in logits.chunks_exact(n).zip(labels.chunks_exact(n)) {
            let mut right = true;
            for ((class, &logit), &label) in self.classes.iter_mut().zip(logits).zip(labels) {
                class.add(logit > 0.0, label > 0.5);
                right &= (logit > 0.0) == (label > 0.5);
            }
            self.examples += 1;
            self.right += u64::from(right);
        }
        Ok(())
    }

    /// F1 over all decisions and as a mean over classes, and the share of examples with all labels right.
    pub fn finish(&self) -> Values {
        vec![
            ("f1_micro", Counts::sum(&self.classes).f1()),
            ("f1_macro", mean(self.classes.iter().map(Counts::f1))),
            ("subset_accuracy", ratio(self.right, self.examples)),
        ]
    }
}
