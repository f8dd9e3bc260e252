//! The loss of a frozen head on the CPU, in one pass over the vocabulary.
//!
//! Many tokens meet a chunk of the vocabulary at a time, so that a chunk's logits stay in cache and its weights are packed
//! once each way for all of these tokens. Each token keeps the largest logit m and the sum s of the exponentials so far;
//! a chunk with logits l and weights W, changes them and the gradient g to
//!
//! `m' = max(m, max l)`, `s' = s·exp(m − m') + Σ exp(l − m')`, `g' = g·exp(m − m') + exp(l − m')·W`
//!
//! (Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3; for g as in FlashAttention, Dao et al. 2022,
//! arXiv:2205.14135, algorithm 1). After the last chunk: loss = m + ln s − l_label, dx = inv·(g/s − W_label).

use super::{Head, exponentials};
use crate::cpu::act::Act;
use crate::cpu::gemm::{Mat, Store, Term};
use crate::cpu::{math, par};
use crate::dtype::Ty;
use crate::ops::host::Ptr;
use crate::ops::quant::row_step;

/// Tokens of a block at most: packing the weight is then a few percent of the work.
const TOKENS: usize = 1024;
/// Rows of the weight in a chunk: one block of the product's inner dimension, and logits that caches hold.
const ROWS: usize = 640;
/// Tokens whose logits a thread takes at a time.
const GRAIN: usize = 8;

/// What is known of a token's logits so far.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Running {
    /// Sum of exp(logit − most).
    sum: f64,
    /// The largest.
    most: f32,
    at_label: f32,
}

impl Running {
    /// `most` is finite, so that logits that are all −∞ leave a sum of 0.
    const START: Running = Running { sum: 0.0, most: f32::MIN, at_label: 0.0 };

    /// Takes in the logits of a chunk, which become their exponentials, and gives the factor of what was summed before.
    fn take(&mut self, logits: &mut [f32], label: Option<usize>) -> f32 {
        if let Some(label) = label {
            self.at_label = logits[label];
        }
        let (most, sum) = exponentials(logits, self.most);
        let factor = math::exp(self.most - most);
        (self.most, self.sum) = (most, self.sum * factor as f64 + sum);
        factor
    }

    fn loss(&self) -> f64 {
        (self.most - self.at_label) as f64 + self.sum.ln()
    }
}

/// The kernel's scratch memory.
pub(super) struct Scratch {
    /// Tokens of a block at most, rows of the weight in a chunk.
    block: usize,
    chunk: usize,
    /// Floats of a block's [`Running`] and of its gradient.
    running: usize,
    gradient: usize,
    pub(super) floats: usize,
}

impl Scratch {
    pub(super) fn new(ins: &[Ty], grad_x: bool) -> Scratch {
        let (t, d, v) = (ins[0].rows(), ins[0].cols(), ins[1].rows());
        // Not a share of t, such that fewer tokens never need more memory.
        let block = t.min(TOKENS);
        let chunk = ROWS.next_multiple_of(row_step(ins[1].dtype, d)).min(v);
        let running = block * size_of::<Running>() / 4;
        let gradient = if grad_x { block * d } else { 0 };
        Scratch { block, chunk, running, gradient, floats: running + block * (chunk + d) + gradient }
    }
}

/// The sum of the tokens' cross entropies, and the gradient at their rows of `dx`.
pub(super) fn losses<A: Act>(head: &Head<A>, mut dx: Option<&mut [A]>, scratch: &Scratch, work: &mut [f32]) -> f64 {
    let [product, add] = head.products;
    let d = head.w.cols();
    let (running, work) = work.split_at_mut(scratch.running);
    let running: &mut [Running] = bytemuck::cast_slice_mut(running);
    let (logits, work) = work.split_at_mut(scratch.block * scratch.chunk);
    let (xb, gradient) = work.split_at_mut(scratch.block * d);
    let gradient = &mut gradient[..scratch.gradient];
    let mut sum = 0f64;
    let blocks = head.tokens.len().div_ceil(TOKENS).max(1);
    for block in head.tokens.chunks(head.tokens.len().div_ceil(blocks).max(1)) {
        let m = block.len();
        let (xb, running) = (&mut xb[..m * d], &mut running[..m]);
        head.gather(block, xb);
        running.fill(Running::START);
        for first in (0..head.w.rows()).step_by(scratch.chunk) {
            let w = head.w.rows_from(first, scratch.chunk.min(head.w.rows() - first));
            let logits = &mut logits[..m * w.rows()];
            let x = Mat::row_major(Store::F32(xb), m, d);
            product(Term { alpha: 1.0, a: x, b: w.t() }, 0.0, logits, w.rows());
            let (states, sums) = (Ptr(running.as_mut_ptr()), Ptr(gradient.as_mut_ptr()));
            let scaled = dx.is_some() && first > 0;
            par::chunks(logits, GRAIN * w.rows(), |piece, rows| {
                for (r, row) in rows.chunks_exact_mut(w.rows()).enumerate() {
                    let r = piece * GRAIN + r;
                    let label = (head.labels[block[r] as usize] as usize).checked_sub(first);
                    // SAFETY: row r is this piece's alone, and so are the state and the gradient of its token.
                    let factor = unsafe { (*states.add(r)).take(row, label.filter(|&l| l < w.rows())) };
                    if scaled && factor != 1.0 {
                        // SAFETY: as above; there are m rows of d floats.
                        let g = unsafe { std::slice::from_raw_parts_mut(sums.add(r * d), d) };
                        g.iter_mut().for_each(|g| *g *= factor);
                    }
                }
            });
            if dx.is_some() {
                let e = Mat::row_major(Store::F32(logits), m, w.rows());
                let beta = if first == 0 { 0.0 } else { 1.0 };
                add(Term { alpha: 1.0, a: e, b: w }, beta, &mut gradient[..m * d], d);
            }
        }
        sum += running.iter().map(Running::loss).sum::<f64>();
        if let Some(dx) = &mut dx {
            let to = Ptr(dx.as_mut_ptr());
            // The weights of the labels take the place of x.
            par::chunks(xb, d, |r, w| {
                let t = block[r] as usize;
                head.w.decode_row(head.labels[t] as usize, 0, w);
                let factor = (head.inv as f64 / running[r].sum) as f32;
                // SAFETY: the tokens of a block are distinct rows of dx.
                let dx = unsafe { std::slice::from_raw_parts_mut(to.add(t * d), d) };
                for ((dx, g), w) in dx.iter_mut().zip(&gradient[r * d..]).zip(w) {
                    *dx = A::round(factor * g - head.inv * *w);
                }
            });
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::gemm;

    /// The losses and gradients of `tokens`, of which there are as many as labels.
    fn run(threads: usize, tokens: &[u32], labels: &[i32], (x, w): (&[f32], &[f32])) -> (f64, Vec<f32>) {
        let (t, d) = (labels.len(), x.len() / labels.len());
        let scratch = Scratch::new(&[Ty::f32(&[t, d]), Ty::f32(&[w.len() / d, d])], true);
        let (mut dx, mut work) = (vec![0.0; x.len()], vec![f32::NAN; scratch.floats]);
        let w = Mat::row_major(Store::F32(w), w.len() / d, d);
        let exact: super::super::Multiply = |term, beta, c, ldc| gemm(&[term], beta, None, c, ldc);
        let head = Head { x, w, labels, inv: 1.0, tokens, products: [exact; 2] };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let sum = pool.install(|| losses(&head, Some(&mut dx), &scratch, &mut work));
        (sum, dx)
    }

    #[test]
    fn neither_threads_nor_blocks_change_a_bit() {
        let (t, d, v) = (TOKENS + 6, 16, 2 * ROWS + 50);
        let noise = |n: usize| (0..n).map(|i| ((i * 7919 + i / 13) % 1009) as f32 / 504.0 - 1.0).collect::<Vec<f32>>();
        let (x, w) = (noise(t * d), noise(v * d));
        let mut labels: Vec<i32> = (0..t).map(|i| (i * 31 % v) as i32).collect();
        let tokens: Vec<u32> = (0..t as u32).collect();
        let (sum, dx) = run(1, &tokens, &labels, (&x, &w));
        assert!(sum.is_finite() && run(2, &tokens, &labels, (&x, &w)) == (sum, dx.clone()));
        let (first, second) = tokens.split_at(t / 2);
        let halves = [first, second].map(|half| run(2, half, &labels, (&x, &w)));
        assert_eq!(sum, halves[0].0 + halves[1].0);
        assert!(dx[..t / 2 * d] == halves[0].1[..t / 2 * d] && dx[t / 2 * d..] == halves[1].1[t / 2 * d..]);
        // What the comparisons must see: one other label.
        labels[0] += 1;
        assert!(dx != run(1, &tokens, &labels, (&x, &w)).1);
    }

    /// Logits that grow or fall along the vocabulary by far more than exp can hold.
    #[test]
    fn the_largest_logit_may_be_in_any_chunk() {
        let v = 3 * ROWS + 7;
        for step in [0.25f32, -0.25] {
            let w: Vec<f32> = (0..v).map(|i| step * i as f32).collect();
            let labels: Vec<i32> = [0, v as i32 / 2, v as i32 - 1].repeat(2);
            let x = [1.0f32, 1.0, 1.0, 0.5, 0.5, 0.5];
            let tokens: Vec<u32> = (0..6).collect();
            let (sum, dx) = run(1, &tokens, &labels, (&x, &w));
            let mut expected = 0.0;
            for (i, &label) in labels.iter().enumerate() {
                let logit = |v: usize| x[i] as f64 * w[v] as f64;
                let most = logit(0).max(logit(v - 1));
                let p = |v: usize| (logit(v) - most).exp();
                let total: f64 = (0..v).map(p).sum();
                expected += most + total.ln() - logit(label as usize);
                let mean: f64 = (0..v).map(|v| p(v) * w[v] as f64).sum::<f64>() / total;
                let g = mean - w[label as usize] as f64;
                // A few roundings of numbers as large as the weights.
                assert!((dx[i] as f64 - g).abs() < 2e-6 * 0.25 * v as f64, "{step}, token {i}: {} and {g}", dx[i]);
            }
            assert!((sum - expected).abs() < 1e-6 * expected, "{step}: {sum} and {expected}");
        }
    }
}
