//! A number for each example: errors (scikit-learn) and correlations (scipy).

use super::{Values, same_length};
use crate::Result;

/// `mse`, `mae`, `pearson`, `spearmanr`. Correlations are NaN where they are not defined, as in scipy: with fewer than
/// two examples, and where predictions or labels are all equal. Errors of nothing are NaN.
#[derive(Clone, Debug, Default)]
pub struct Regression {
    predicted: Vec<f32>,
    labels: Vec<f32>,
}

impl Regression {
    /// No examples yet.
    pub fn new() -> Regression {
        Regression::default()
    }

    /// Adds a batch: the predicted number and the label of each example. An error if they are not as many.
    pub fn add(&mut self, predicted: &[f32], labels: &[f32]) -> Result<()> {
        same_length("numbers", predicted.len(), labels.len())?;
        self.predicted.extend_from_slice(predicted);
        self.labels.extend_from_slice(labels);
        Ok(())
    }

    /// Squared and absolute error, and the correlations, of all examples so far.
    pub fn finish(&self) -> Values {
        let n = self.labels.len() as f64;
        let errors = || self.predicted.iter().zip(&self.labels).map(|(&p, &l)| f64::from(p) - f64::from(l));
        let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|&x| x.into()).collect() };
        vec![
            ("mse", errors().map(|e| e * e).sum::<f64>() / n),
            ("mae", errors().map(f64::abs).sum::<f64>() / n),
            ("pearson", correlation(&wide(&self.predicted), &wide(&self.labels))),
            ("spearmanr", correlation(&ranks(&self.predicted), &ranks(&self.labels))),
        ]
    }
}

/// Pearson's r = Σ (x − x̄)(y − ȳ) / (|x − x̄| |y − ȳ|).
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    if x.len() < 2 {
        return f64::NAN;
    }
    // The mean of equal numbers is that number, because a sum of f32 (or of ranks) in f64 does not round. So |x − x̄| is
    // exactly 0 where x is constant, and r is NaN.
    let centred = |v: &[f64]| -> Vec<f64> {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let rest: Vec<f64> = v.iter().map(|x| x - mean).collect();
        let norm = rest.iter().map(|x| x * x).sum::<f64>().sqrt();
        rest.iter().map(|x| x / norm).collect()
    };
    let r: f64 = centred(x).iter().zip(centred(y)).map(|(a, b)| a * b).sum();
    r.clamp(-1.0, 1.0)
}

/// The rank of each number from 1; equal numbers share the mean of theirs. With a NaN among them there is no order:
/// then every rank is NaN, and so is what is computed of them.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut ranks = vec![f64::NAN; values.len()];
    if values.iter().any(|v| v.is_nan()) {
        return ranks;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut before = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &i in equal {
            ranks[i] = before as f64 + (equal.len() + 1) as f64 / 2.0;
        }
        before += equal.len();
    }
    ranks
}
