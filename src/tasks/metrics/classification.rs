//! One class for each example: accuracy, F1, Matthews' correlation (scikit-learn's definitions).

use super::{Counts, Values, mean, ratio, same_length};
use crate::{Error, Result};

/// Accuracy, `f1_macro`, `f1_micro`, `matthews_correlation`; with two classes also `precision`, `recall` and `f1` of
/// class 1.
///
/// The macro average is over the classes that are a label or a prediction somewhere, as with scikit-learn's
/// `labels=None`. Of a single-label task f1_micro is the accuracy.
#[derive(Clone, Debug)]
pub struct Classification {
    classes: Vec<Counts>,
    examples: u64,
}

impl Classification {
    /// No examples yet, of a task with this number of classes.
    pub fn new(classes: usize) -> Classification {
        Classification { classes: vec![Counts::default(); classes], examples: 0 }
    }

    /// Adds a batch: the predicted class and the label of each example.
    pub fn add(&mut self, predicted: &[usize], labels: &[usize]) -> Result<()> {
        same_length("classes", predicted.len(), labels.len())?;
        let known = self.classes.len();
        if let Some(class) = predicted.iter().chain(labels).find(|&&class| class >= known) {
            return Err(Error::config("classes", format!("class {class}"), format!("classes below {known}")));
        }
        for (&p, &l) in predicted.iter().zip(labels) {
            self.classes[p].add(true, p == l);
            if p != l {
                self.classes[l].add(false, true);
            }
        }
        self.examples += labels.len() as u64;
        Ok(())
    }

    /// The metrics of all examples so far.
    pub fn finish(&self) -> Values {
        let all = Counts::sum(&self.classes);
        let seen: Vec<&Counts> = self.classes.iter().filter(|c| c.predicted + c.labelled > 0).collect();
        let mut values = vec![
            ("accuracy", ratio(all.right, self.examples)),
            ("f1_macro", mean(seen.iter().map(|c| c.f1()))),
            ("f1_micro", all.f1()),
            ("matthews_correlation", self.matthews()),
        ];
        if let [_, one] = &self.classes[..] {
            values.extend([("precision", one.precision()), ("recall", one.recall()), ("f1", one.f1())]);
        }
        values
    }

    /// Gorodkin's R_K: with n examples, c of them right, class k predicted p_k times and the label t_k times,
    ///
    /// (c n − Σ p_k t_k) / √((n² − Σ p_k²)(n² − Σ t_k²)),
    ///
    /// 0 where the denominator is 0. Of two classes it is Matthews' correlation coefficient.
    fn matthews(&self) -> f64 {
        // Integers of 128 bits hold the products of any two counts, so nothing cancels.
        let dot = |f: fn(&Counts) -> (u64, u64)| -> i128 {
            self.classes.iter().map(f).map(|(a, b)| i128::from(a) * i128::from(b)).sum()
        };
        let n = i128::from(self.examples);
        let both = i128::from(Counts::sum(&self.classes).right) * n - dot(|c| (c.predicted, c.labelled));
        let predicted = n * n - dot(|c| (c.predicted, c.predicted));
        let labelled = n * n - dot(|c| (c.labelled, c.labelled));
        let scale = (predicted as f64).sqrt() * (labelled as f64).sqrt();
        if scale == 0.0 { 0.0 } else { both as f64 / scale }
    }
}
