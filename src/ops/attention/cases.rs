//! What benches run attention on: one sequence of all tokens, each of which sees those before it.

use super::{Attention, Attr, LARGEST_BIASED, Ty};
use crate::ops::{Case, SampleIn, Sizes};

fn attr(s: &Sizes, bias: bool) -> Attr {
    let scale = 1.0 / (s.head_dim as f32).sqrt();
    Attr::Attention(Attention { bias, ..Attention::new(s.heads, s.kv_heads, s.head_dim, scale, true) })
}

fn queries(s: &Sizes) -> SampleIn {
    SampleIn::f32(&[s.tokens, s.queries()])
}

/// The range of all tokens, for each.
fn range(s: &Sizes) -> SampleIn {
    SampleIn::values(Ty::i32(&[s.tokens, 2]), [0.0, s.tokens as f64].repeat(s.tokens))
}

/// q, k, v and key_range.
fn operands(s: &Sizes) -> Vec<SampleIn> {
    let keys = || SampleIn::f32(&[s.tokens, s.keys()]);
    vec![queries(s), keys(), keys(), range(s)]
}

/// out, lse and dout. The logarithm of the number of keys is about what the forward pass gives for lse, without its cost.
fn results(s: &Sizes) -> [SampleIn; 3] {
    let lse = SampleIn::constant(Ty::f32(&[s.heads, s.tokens]), (s.tokens as f64).ln());
    [queries(s), lse, queries(s)]
}

pub fn forward(s: &Sizes) -> Vec<Case> {
    vec![Case::new("one sequence", attr(s, false), operands(s))]
}

pub fn backward(s: &Sizes) -> Vec<Case> {
    let ins = operands(s).into_iter().chain([range(s)]).chain(results(s)).collect();
    vec![Case::new("one sequence", attr(s, false), ins)]
}

/// With as many distances as T5 and its kind tell apart. Of heads that are too large for a bias there is nothing to time.
pub fn dbias(s: &Sizes) -> Vec<Case> {
    if s.head_dim > LARGEST_BIASED {
        return Vec::new();
    }
    let farthest = s.tokens.min(128);
    let bias = SampleIn::f32(&[2 * farthest + 1, s.heads]);
    let ins = operands(s).into_iter().chain([bias, SampleIn::positions(s.tokens)]).chain(results(s)).collect();
    vec![Case::new("one sequence", attr(s, true), ins)]
}
