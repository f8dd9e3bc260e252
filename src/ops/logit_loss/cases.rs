//! What benches run the losses of logits on: as many rows as there are tokens, each of which counts, with the gradient.

use crate::dtype::Ty;
use crate::ops::{Attr, Case, Loss, SampleIn, Sizes};

fn case(name: &str, ins: Vec<SampleIn>) -> Vec<Case> {
    vec![Case::new(name, Attr::Loss(Loss { grad_x: true, grad_w: false }), ins)]
}

/// The mean over `rows`.
fn inv(rows: usize) -> SampleIn {
    SampleIn::constant(Ty::f32(&[1]), 1.0 / rows as f64)
}

pub fn cross_entropy(s: &Sizes) -> Vec<Case> {
    let (rows, classes) = (s.loss_tokens, s.vocab);
    case("vocabulary", vec![SampleIn::f32(&[rows, classes]), SampleIn::indices(rows, classes), inv(rows)])
}

fn labels(s: &Sizes, targets: impl Fn(Ty) -> SampleIn) -> Vec<Case> {
    let (logits, weight) = (Ty::f32(&[s.tokens, s.labels]), SampleIn::constant(Ty::f32(&[s.tokens]), 1.0));
    case("labels", vec![SampleIn::normal(logits.clone()), targets(logits), weight, inv(s.tokens)])
}

pub fn bce_with_logits(s: &Sizes) -> Vec<Case> {
    labels(s, |ty| SampleIn::uniform(ty, 0.0, 1.0))
}

pub fn mse(s: &Sizes) -> Vec<Case> {
    labels(s, SampleIn::normal)
}

/// One text, in which an answer starts and ends.
pub fn range_cross_entropy(s: &Sizes) -> Vec<Case> {
    let pair = |values: [usize; 2]| SampleIn::values(Ty::i32(&[1, 2]), values.map(|v| v as f64).to_vec());
    let answer = [3, 5].map(|label| label.min(s.tokens.saturating_sub(1)));
    case("one text", vec![SampleIn::f32(&[s.tokens, 2]), pair([0, s.tokens]), pair(answer), inv(2)])
}
