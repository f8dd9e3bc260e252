//! The definitions of attention and its gradients, in float64.

use super::{bias_row, common, seeing, spec, visible};
use crate::ops::{Attention, Attr, Tensor};

/// The operands that say what p is.
struct Problem<'a> {
    a: Attention,
    q: &'a Tensor,
    k: &'a Tensor,
    /// The keys that each query sees.
    seen: Vec<(usize, usize)>,
    /// The table of biases, and the place of each query among its keys.
    bias: Option<(&'a Tensor, &'a Tensor)>,
}

/// Row `r` of a matrix of ranges.
fn range(x: &Tensor, r: usize) -> [i64; 2] {
    [x.at(r, 0) as i64, x.at(r, 1) as i64]
}

impl Problem<'_> {
    fn new<'a>(attr: &Attr, ins: &'a [Tensor]) -> Problem<'a> {
        let (a, q, k, key_range) = (spec(attr), &ins[0], &ins[1], &ins[3]);
        let seen = (0..q.rows()).map(|t| visible(&a, t, range(key_range, t), k.rows())).collect();
        Problem { a, q, k, seen, bias: a.bias.then(|| (&ins[4], &ins[5])) }
    }

    /// The part of a row of q that is head `h`.
    fn of_q<'a>(&self, row: &'a [f64], h: usize) -> &'a [f64] {
        &row[h * self.a.head_dim..][..self.a.head_dim]
    }

    /// The part of a row of k or v that query head `h` reads.
    fn of_k<'a>(&self, row: &'a [f64], h: usize) -> &'a [f64] {
        self.of_q(row, h / (self.a.heads / self.a.kv_heads))
    }

    /// The row of the bias, and the bias; (0, 0) if there is none.
    fn bias(&self, h: usize, t: usize, s: usize) -> (usize, f64) {
        let Some((bias, q_pos)) = self.bias else { return (0, 0.0) };
        let distance = s as i64 - self.seen[t].0 as i64 - q_pos.data[t] as i64;
        let row = bias_row(distance, bias.rows() / 2);
        (row, bias.at(row, h))
    }

    fn score(&self, h: usize, t: usize, s: usize) -> f64 {
        let product = dot(self.of_q(self.q.row(t), h), self.of_k(self.k.row(s), h));
        self.a.scale as f64 * product + self.bias(h, t, s).1
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// y += a·x, from element `start` of `y` on.
fn add(y: &mut [f64], start: usize, a: f64, x: &[f64]) {
    y[start..].iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

pub fn forward(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let p = Problem::new(attr, ins);
    let (heads, v) = (p.a.heads, &ins[2]);
    let mut out = Tensor::zeros(&p.q.shape);
    let mut lse = Tensor::zeros(&[heads, p.q.rows()]);
    for h in 0..heads {
        for (t, &(lo, hi)) in p.seen.iter().enumerate() {
            let scores: Vec<f64> = (lo..hi).map(|s| p.score(h, t, s)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse.row_mut(h)[t] = if lo < hi { max + sum.ln() } else { f64::NEG_INFINITY };
            for (s, score) in (lo..hi).zip(&scores) {
                let weight = (score - lse.at(h, t)).exp();
                add(out.row_mut(t), h * p.a.head_dim, weight, p.of_k(v.row(s), h));
            }
        }
    }
    vec![out, lse]
}

/// What gradients are made of, p_ts and ds_ts, given v, out, lse and dout.
fn slope(p: &Problem, [v, out, lse, dout]: [&Tensor; 4], h: usize, t: usize, s: usize) -> (f64, f64) {
    let weight = (p.score(h, t, s) - lse.at(h, t)).exp();
    let dout = p.of_q(dout.row(t), h);
    (weight, weight * (dot(dout, p.of_k(v.row(s), h)) - dot(dout, p.of_q(out.row(t), h))))
}

pub fn backward(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let p = Problem::new(attr, ins);
    let [query_range, out, lse, dout] = &ins[common(&p.a)..] else { unreachable!("infer counted them") };
    let (k, v) = (&ins[1], &ins[2]);
    let (d, scale, group) = (p.a.head_dim, p.a.scale as f64, p.a.heads / p.a.kv_heads);
    let (mut dq, mut dk, mut dv) = (Tensor::zeros(&p.q.shape), Tensor::zeros(&k.shape), Tensor::zeros(&v.shape));
    for h in 0..p.a.heads {
        for (t, &(lo, hi)) in p.seen.iter().enumerate() {
            for s in lo..hi {
                let (_, ds) = slope(&p, [v, out, lse, dout], h, t, s);
                add(dq.row_mut(t), h * d, scale * ds, p.of_k(k.row(s), h));
            }
        }
        for s in 0..k.rows() {
            let (lo, hi) = seeing(&p.a, s, range(query_range, s), p.q.rows());
            for t in lo..hi {
                let (weight, ds) = slope(&p, [v, out, lse, dout], h, t, s);
                add(dk.row_mut(s), h / group * d, scale * ds, p.of_q(p.q.row(t), h));
                add(dv.row_mut(s), h / group * d, weight, p.of_q(dout.row(t), h));
            }
        }
    }
    vec![dq, dk, dv]
}

pub fn dbias(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let p = Problem::new(attr, ins);
    let mut dbias = Tensor::zeros(&ins[4].shape);
    for h in 0..p.a.heads {
        for (t, &(lo, hi)) in p.seen.iter().enumerate() {
            for s in lo..hi {
                dbias.row_mut(p.bias(h, t, s).0)[h] += slope(&p, [&ins[2], &ins[6], &ins[7], &ins[8]], h, t, s).1;
            }
        }
    }
    vec![dbias]
}
