//! Attention of few queries on the CPU, as when a token is decoded.
//!
//! Lanes that are queries would be empty for the most part. Here they are features: a score is a product of two rows,
//!
//! `s_j = Σ_c q_c·k_jc`,  `out_c = Σ_j exp(s_j − max)·v_jc / Σ_j exp(s_j − max)`
//!
//! Keys are read once, by all heads that share them, and are the lanes of softmax. The running maximum and sum are those of
//! [`super::host`], and so is what a query that sees nothing gets.

use super::host::{Bias, CHUNK, LOW, Problem};
use crate::cpu::act::Act;
use crate::cpu::simd::{Kernel, LANES, Lane, Simd};
use crate::ops::host::Ptr;

/// Vectors of a row that are summed side by side.
const SIDE: usize = 4;

/// Whether so many queries that share keys are few: the others' way costs as much as for [`LANES`] of them.
pub fn pays(queries: usize) -> bool {
    queries <= LANES / 2
}

/// One query of all heads that share the head `kv` of keys.
pub struct Few<'a, A> {
    pub p: &'a Problem<'a, A>,
    pub token: usize,
    pub kv: usize,
    pub out: Ptr<A>,
    pub lse: Ptr<f32>,
}

/// A query, and the sums of its softmax so far.
struct Query {
    head: usize,
    /// The scaled query, the sums of values, and the scores of the keys at hand, as vectors that end in zeros.
    row: Vec<Lane>,
    sums: Vec<Lane>,
    scores: [Lane; CHUNK / LANES],
    max: f32,
    /// Σ exp(s − max) of every sixteenth key.
    sum: Lane,
}

impl<A: Act> Kernel for Few<'_, A> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, s: S) {
        let Few { p, token, kv, out, lse } = self;
        let d = p.a.head_dim;
        let width = d.div_ceil(LANES);
        let heads = kv * p.group()..(kv + 1) * p.group();
        let mut queries: Vec<Query> = heads.map(|head| Query::new(p, token, head, width)).collect();
        let (mut keys, mut values) = (vec![Lane::ZERO; CHUNK * width], vec![Lane::ZERO; CHUNK * width]);
        let (lo, hi) = (p.seen[token].0 as usize, p.seen[token].1 as usize);
        for first in (lo..hi).step_by(CHUNK) {
            let count = (hi - first).min(CHUNK);
            p.pack_lanes(&mut keys, p.k, kv, first, count);
            p.pack_lanes(&mut values, p.v, kv, first, count);
            for query in &mut queries {
                query.score(s, &keys, count);
                if let Some(bias) = &p.bias {
                    query.add_bias(bias, token, first, count);
                }
                let factor = query.softmax(s, count);
                query.add_values(s, &values, count, factor);
            }
        }
        for query in &queries {
            let sum = total(&query.sum);
            // A sum of NaNs stays one.
            let inverse = if sum > 0.0 || sum.is_nan() { 1.0 / sum } else { 0.0 };
            // SAFETY: lse is [heads, t], out [t, heads·d]; this task alone has this query of these heads.
            unsafe {
                *lse.add(query.head * p.t + token) = query.max + sum.ln();
                for i in 0..d {
                    let x = query.sums[i / LANES][i % LANES] * inverse;
                    *out.add(token * p.q_cols() + query.head * d + i) = A::round(x);
                }
            }
        }
    }
}

impl Query {
    fn new<A: Act>(p: &Problem<A>, token: usize, head: usize, width: usize) -> Query {
        let d = p.a.head_dim;
        let mut row = vec![Lane::ZERO; width];
        for (i, x) in p.q[token * p.q_cols() + head * d..][..d].iter().enumerate() {
            row[i / LANES][i % LANES] = p.a.scale * x.widen();
        }
        let scores = [Lane::ZERO; CHUNK / LANES];
        Query { head, row, sums: vec![Lane::ZERO; width], scores, max: LOW, sum: Lane::ZERO }
    }

    /// Scores of `count` keys; −∞ for the rest of the last vector.
    #[inline(always)]
    fn score<S: Simd>(&mut self, s: S, keys: &[Lane], count: usize) {
        let width = self.row.len();
        for (j, key) in keys.chunks_exact(width).take(count).enumerate() {
            let mut sum = s.splat(0.0);
            for (q, k) in self.row.iter().zip(key) {
                sum = s.madd(s.load(q), s.load(k), sum);
            }
            let mut parts = Lane::ZERO;
            s.store(sum, &mut parts);
            self.scores[j / LANES][j % LANES] = total(&parts);
        }
        for j in count..count.next_multiple_of(LANES) {
            self.scores[j / LANES][j % LANES] = f32::NEG_INFINITY;
        }
    }

    fn add_bias(&mut self, bias: &Bias, token: usize, first: usize, count: usize) {
        for j in 0..count {
            self.scores[j / LANES][j % LANES] += bias.at(self.head, token, first + j);
        }
    }

    /// Turns scores into exp(score − max) and returns what earlier sums are to be multiplied by.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, s: S, count: usize) -> f32 {
        let scores = &mut self.scores[..count.div_ceil(LANES)];
        let mut most = Lane::ZERO;
        s.store(scores.iter().fold(s.splat(self.max), |max, row| s.max(s.load(row), max)), &mut most);
        let max = most.iter().fold(self.max, |max, &x| max.max(x));
        let mut factor = Lane::ZERO;
        s.store(s.exp_nonpositive(s.splat(self.max - max)), &mut factor);
        let factor = factor[0];
        let mut sum = s.mul(s.load(&self.sum), s.splat(factor));
        for row in scores {
            let p = s.exp_nonpositive(s.sub(s.load(row), s.splat(max)));
            sum = s.add(sum, p);
            s.store(p, row);
        }
        s.store(sum, &mut self.sum);
        self.max = max;
        factor
    }

    /// `sums = factor·sums + Σ_j p_j·v_j`.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, s: S, values: &[Lane], count: usize, factor: f32) {
        let width = self.sums.len();
        for c in (0..width / SIDE * SIDE).step_by(SIDE) {
            self.add_columns::<S, SIDE>(s, values, (c, count), factor);
        }
        for c in width / SIDE * SIDE..width {
            self.add_columns::<S, 1>(s, values, (c, count), factor);
        }
    }

    /// The same for N vectors from number `c` on.
    #[inline(always)]
    fn add_columns<S: Simd, const N: usize>(&mut self, s: S, values: &[Lane], (c, count): (usize, usize), factor: f32) {
        let width = self.sums.len();
        let mut sums: [S::V; N] = std::array::from_fn(|i| s.mul(s.load(&self.sums[c + i]), s.splat(factor)));
        for (j, row) in values.chunks_exact(width).take(count).enumerate() {
            let p = s.splat(self.scores[j / LANES][j % LANES]);
            for (sum, v) in sums.iter_mut().zip(&row[c..c + N]) {
                *sum = s.madd(p, s.load(v), *sum);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            s.store(sum, &mut self.sums[c + i]);
        }
    }
}

/// The sum of a vector, by halves.
#[inline(always)]
fn total(x: &Lane) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
