//! The best evaluation of a run: whose weights are kept, and when there were enough without a better one.

use serde::{Deserialize, Serialize};

/// The evaluations of a run so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which the loss was least, and that loss.
    best: Option<(u64, f64)>,
    /// Evaluations since.
    since: u64,
    /// The one after the last step is due and was not made: the run was asked to stop.
    #[serde(default)]
    owed: bool,
}

impl Best {
    /// An evaluation is due after the step that was just made, or none is.
    pub fn owe(&mut self, due: bool) {
        self.owed = due;
    }

    /// Whether the evaluation after the last step is due and was not made.
    pub fn is_owed(&self) -> bool {
        self.owed
    }

    /// Counts an evaluation after `step`; whether it is the best so far. A loss that is no number never is.
    pub fn count(&mut self, step: u64, loss: f64) -> bool {
        let better = loss.is_finite() && self.best.is_none_or(|(_, least)| loss < least);
        if better {
            self.best = Some((step, loss));
        }
        self.since = if better { 0 } else { self.since + 1 };
        self.owed = false;
        better
    }

    /// The step after which the loss was least.
    pub fn step(&self) -> Option<u64> {
        self.best.map(|(step, _)| step)
    }

    /// Whether there were `patience` evaluations without a better one.
    pub fn is_over(&self, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| self.since >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loss_is_the_best_and_patience_ends() {
        let mut best = Best::default();
        // (loss, whether it is the best, whether a patience of two ends)
        let table = [
            (f64::NAN, false, false),
            (2.0, true, false),
            (2.0, false, false),
            (1.5, true, false),
            (1.6, false, false),
            (f64::INFINITY, false, true),
            (1.4, true, false),
        ];
        for (i, (loss, is_best, ends)) in table.into_iter().enumerate() {
            best.owe(true);
            assert_eq!((best.count(i as u64, loss), best.is_over(Some(2))), (is_best, ends), "{i}");
            assert!(!best.is_over(None) && !best.is_owed());
        }
        assert_eq!(best.step(), Some(6));
    }
}
