//! Attention in which each query sees, of the keys in its range, only one: the others' scores are so much smaller that their weights are
//! 0, and all results are exact. δ is not what the forward pass would give: it is chosen so that ds are small whole numbers.

use super::{Cuda, Operand, bf16, element, run};
use crate::error::Result;
use crate::graph::op::{CudaLaunch, MatrixMap, WGMMA};

/// Tokens after as many as a head has features: the last tile is not full.
const MORE: usize = 72;
/// The one feature of a query, and the scale of scores.
const LARGE: f32 = 64.0;
const SCALE: f32 = 64.0;

/// A head of `d` features, all operands [tokens, d].
struct Head {
    d: usize,
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

/// Whether the kernels for both sizes of heads give what follows.
pub fn agrees(card: &mut Cuda) -> Result<bool> {
    Ok(Head::new(64).agrees(card)? && Head::new(128).agrees(card)?)
}

impl Head {
    fn new(d: usize) -> Head {
        let tokens = d + MORE;
        let mut head =
            Head { d, tokens, q: vec![0.0; tokens * d], k: vec![0.0; tokens * d], v: Vec::new(), dout: Vec::new() };
        for t in 0..tokens {
            let (own, other) = (head.feature(t), head.feature(head.seen(t)));
            head.k[t * d + own] = 1.0;
            head.q[t * d + other] = LARGE;
        }
        head.v = (0..tokens * d).map(element).collect();
        head.dout = (0..tokens * d).map(|i| element(3 * i + 2)).collect();
        head
    }

    /// The first and one past the last token of a token's sequence, of at most `d` tokens.
    fn range(&self, t: usize) -> [usize; 2] {
        let first = t / self.d * self.d;
        [first, (first + self.d).min(self.tokens)]
    }

    /// The feature of a key that is 1: another one for each key of a sequence.
    fn feature(&self, s: usize) -> usize {
        (5 * s + 3) % self.d
    }

    /// The key that a query sees; each is seen by one.
    fn seen(&self, t: usize) -> usize {
        let [first, end] = self.range(t);
        first + (t - first + 7) % (end - first)
    }

    fn launch(&self, file: &'static str, entry: &'static str, rows: usize, heights: &[(usize, u32)]) -> CudaLaunch {
        let (tokens, d) = (self.tokens as u32, self.d as u32);
        let map = |&(arg, height): &(usize, u32)| MatrixMap { arg, rows: tokens, cols: d, ld: d, height };
        CudaLaunch {
            file,
            defines: vec![("ACT", 1), ("HEAD_DIM", self.d as i64), WGMMA],
            entry,
            grid: [1, tokens.div_ceil(128), 1],
            block: 384,
            shared: (2 * self.d * rows) as u32,
            args: Vec::new(),
            maps: heights.iter().map(map).collect(),
            // Queries, keys, features, heads of both; scale; neither causal nor a window; the first tile.
            params: vec![tokens, tokens, d, 1, 1, SCALE.to_bits(), 0, 0, 0],
            flops: 4 * (self.tokens * self.tokens * self.d) as u64,
        }
    }

    /// ds of a query and the key that it sees.
    fn ds(&self, t: usize) -> f32 {
        element(t + 1)
    }

    /// (lse in units of log2, δ) of each query.
    fn stats(&self) -> Vec<f32> {
        let row = |x: &[f32], t: usize| x[t * self.d..(t + 1) * self.d].to_vec();
        let stat = |t: usize| {
            let dp: f32 = row(&self.dout, t).iter().zip(row(&self.v, self.seen(t))).map(|(a, b)| a * b).sum();
            [LARGE * (SCALE * std::f32::consts::LOG2_E), dp - self.ds(t)]
        };
        (0..self.tokens).flat_map(stat).collect()
    }

    /// Rows of a result, each a multiple of a row of an operand. Sums begin at 0, so none is -0.
    fn rows(&self, from: impl Fn(usize) -> (f32, f32, usize), x: &[f32]) -> Vec<u8> {
        let row = |t: usize| {
            let (a, b, source) = from(t);
            x[source * self.d..(source + 1) * self.d].iter().map(move |v| a * (b * v) + 0.0)
        };
        bf16(&(0..self.tokens).flat_map(row).collect::<Vec<_>>())
    }

    fn agrees(&self, card: &mut Cuda) -> Result<bool> {
        let ranges = || {
            Operand::In((0..self.tokens).flat_map(|t| self.range(t)).flat_map(|b| (b as i32).to_le_bytes()).collect())
        };
        let of = |x: &[f32]| Operand::In(bf16(x));
        let (size, tokens) = (2 * self.tokens * self.d, self.tokens);
        let left = || [of(&self.q), of(&self.k), of(&self.v)].into_iter();

        let forward = self.launch("attention_wgmma", "attention_wgmma", 5 * 128, &[(2, 128), (3, 128), (4, 128)]);
        let operands = [Operand::Out(size), Operand::Out(4 * tokens)].into_iter().chain(left()).chain([ranges()]);
        let out = run(card, forward, &operands.collect::<Vec<_>>())?;

        let stats = || Operand::In(self.stats().iter().flat_map(|v| v.to_le_bytes()).collect());
        let backward = |outs: usize, entry, heights: &[(usize, u32)]| {
            let operands =
                (0..outs).map(|_| Operand::Out(size)).chain(left()).chain([of(&self.dout), stats(), ranges()]);
            (self.launch("attention_bwd_wgmma", entry, 2 * 128 + 8 * 64, heights), operands.collect::<Vec<_>>())
        };
        let (launch, operands) = backward(1, "attention_dq_wgmma", &[(1, 128), (2, 64), (3, 64), (4, 128)]);
        let dq = run(card, launch, &operands)?;
        let (launch, operands) = backward(2, "attention_dkv_wgmma", &[(2, 64), (3, 128), (4, 128), (5, 64)]);
        let dkv = run(card, launch, &operands)?;

        // The query that sees a key.
        let sees = |s: usize| (0..tokens).find(|&t| self.seen(t) == s).unwrap_or(s);
        let right = [
            self.rows(|t| (1.0, 1.0, self.seen(t)), &self.v),
            self.rows(|t| (SCALE, self.ds(t), self.seen(t)), &self.k),
            self.rows(|s| (SCALE, self.ds(sees(s)), sees(s)), &self.q),
            self.rows(|s| (1.0, 1.0, sees(s)), &self.dout),
        ];
        Ok([out.into_iter().take(1).collect(), dq, dkv].concat() == right)
    }
}
