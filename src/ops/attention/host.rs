//! Attention on the CPU.
//!
//! Work is cut into *lane blocks*: [`LANES`] queries side by side (in the pass for dk and dv: keys), while the other
//! side goes by row after row. Scores have the lane index last, so softmax works down columns of vectors and
//! nothing is summed across a vector; q, k and v are read in place. A lane block holds its operand as a panel
//! of D rows of [`LANES`]; heads that share keys sit in one block, next to each other.
//!
//! A task is a few lane blocks that walk over the other side together, so that it is read from cache. Tasks and
//! the order within them are fixed by the problem alone.

use half::bf16;

use super::few::{self, Few};
use super::form::{Floats, For, Form, InPairs};
use super::{bias_row, common, seeing, spec, visible};
use crate::cpu::act::Act;
use crate::cpu::simd::{Kernel, LANES, Lane, PairKernel, Pairs, Simd, dispatch, dispatch_pairs, has_pairs};
use crate::cpu::tile::{Strided, accumulate, product};
use crate::cpu::{math, par};
use crate::ops::host::Ptr;
use crate::ops::widen::in_bf16;
use crate::ops::{Attention, HostCall};

/// Rows of the other side that are taken at a time.
pub(super) const CHUNK: usize = 64;
/// Lane blocks in a task.
const BLOCKS: usize = 6;
/// In place of −∞ where −∞ − (−∞) could occur.
pub(super) const LOW: f32 = -1e30;

type Chunk = [Lane; CHUNK];

/// What both directions know of a launch.
pub(super) struct Problem<'a, A> {
    pub(super) a: Attention,
    /// Queries, keys.
    pub(super) t: usize,
    s: usize,
    pub(super) q: &'a [A],
    pub(super) k: &'a [A],
    pub(super) v: &'a [A],
    /// The keys that each query sees.
    pub(super) seen: Vec<(u32, u32)>,
    pub(super) bias: Option<Bias>,
}

/// A bias by the distance of key and query.
pub(super) struct Bias {
    /// The largest distance that the table tells apart.
    farthest: usize,
    /// The table, one head after the other.
    columns: Vec<f32>,
    /// The key at distance 0 of each query.
    middle: Vec<i64>,
}

impl Bias {
    fn new(call: &HostCall, heads: usize, seen: &[(u32, u32)]) -> Bias {
        let (table, q_pos) = (call.input::<f32>(4), call.input::<i32>(5));
        let columns = (0..heads).flat_map(|head| table.iter().skip(head).step_by(heads).copied()).collect();
        let middle = seen.iter().zip(q_pos).map(|(&(lo, _), &place)| lo as i64 + place as i64).collect();
        Bias { farthest: call.ins[4].rows() / 2, columns, middle }
    }

    /// The biases of a head, by distance.
    fn column(&self, head: usize) -> &[f32] {
        let rows = 2 * self.farthest + 1;
        &self.columns[head * rows..][..rows]
    }

    /// The bias of a query of head `head` and a key.
    pub(super) fn at(&self, head: usize, query: usize, key: usize) -> f32 {
        self.column(head)[bias_row(key as i64 - self.middle[query], self.farthest)]
    }

    /// Adds its bias to each score of a block of queries and keys from `first` on.
    #[inline(always)]
    fn add_to_queries(&self, scores: &mut [Lane], block: &Block, first: usize) {
        for (l, &(token, head)) in block.lanes[..block.count].iter().enumerate() {
            let (column, start) = (self.column(head), first as i64 - self.middle[token]);
            for (j, row) in scores.iter_mut().enumerate() {
                row[l] += column[bias_row(start + j as i64, self.farthest)];
            }
        }
    }

    /// The same for a block of keys from `key` on, and queries of head `head` from `first` on.
    #[inline(always)]
    fn add_to_keys<S: Simd>(&self, s: S, scores: &mut [Lane], key: usize, head: usize, first: usize) {
        let column = self.column(head);
        for (row, &middle) in scores.iter_mut().zip(&self.middle[first..]) {
            let start = key as i64 - middle;
            let at = usize::try_from(start + self.farthest as i64).ok();
            let biases = match at.and_then(|at| column.get(at..at.checked_add(LANES)?)) {
                Some(biases) => Lane::from_fn(|l| biases[l]),
                None => Lane::from_fn(|l| column[bias_row(start + l as i64, self.farthest)]),
            };
            s.store(s.add(s.load(row), s.load(&biases)), row);
        }
    }
}

impl<'a, A: Act> Problem<'a, A> {
    fn new(call: &HostCall<'a>) -> Problem<'a, A> {
        let a = spec(call.attr);
        let (t, s) = (call.ins[0].rows(), call.ins[1].rows());
        let key_range = call.input::<i32>(3);
        let seen = |t: usize| {
            let (lo, hi) = visible(&a, t, [key_range[2 * t] as i64, key_range[2 * t + 1] as i64], s);
            (lo as u32, hi as u32)
        };
        let seen: Vec<(u32, u32)> = (0..t).map(seen).collect();
        let bias = a.bias.then(|| Bias::new(call, a.heads, &seen));
        Problem { a, t, s, q: call.input(0), k: call.input(1), v: call.input(2), seen, bias }
    }

    /// Query heads for each head of keys.
    pub(super) fn group(&self) -> usize {
        self.a.heads / self.a.kv_heads
    }
    pub(super) fn q_cols(&self) -> usize {
        self.a.heads * self.a.head_dim
    }
    fn k_cols(&self) -> usize {
        self.a.kv_heads * self.a.head_dim
    }

    /// Copies `count` rows of head `kv` of keys or values from `first` on into `to`: whole vectors, zeros after a row.
    #[inline(always)]
    pub(super) fn pack_lanes(&self, to: &mut [Lane], x: &[A], kv: usize, first: usize, count: usize) {
        let (d, cols) = (self.a.head_dim, self.k_cols());
        for (j, row) in to.chunks_exact_mut(d.div_ceil(LANES)).take(count).enumerate() {
            let from = &x[(first + j) * cols + kv * d..][..d];
            for (lane, from) in row.iter_mut().zip(from.chunks(LANES)) {
                // SAFETY: both have the length of `from`.
                unsafe { A::read(from.as_ptr(), &mut lane[..from.len()]) };
            }
        }
    }

    /// Rows of head `head` of `x`, keys or values, in place: element (row, feature).
    #[inline(always)]
    fn in_place<'b, W>(&self, x: &'b [W], head: usize, first: usize) -> Strided<'b, W> {
        let cols = self.k_cols();
        Strided { data: &x[first * cols + head * self.a.head_dim..], row: cols, col: 1 }
    }

    /// Tokens of a task whose lanes are queries.
    fn tile(&self) -> usize {
        (BLOCKS * LANES / self.group()).max(1)
    }

    /// The lane blocks of query tile `tile` and head `kv` of keys: lane l is query l / group of the tile, head
    /// l % group of the group.
    fn query_blocks(&self, tile: usize, kv: usize) -> Vec<Block> {
        let first = tile * self.tile();
        let tokens = (self.t - first).min(self.tile());
        let group = self.group();
        let block = |start: usize| {
            let mut block = Block::default();
            for (l, lane) in (start..(start + LANES).min(tokens * group)).enumerate() {
                let token = first + lane / group;
                block.add(l, token, kv * group + lane % group, self.seen[token]);
            }
            block
        };
        (0..tokens * group).step_by(LANES).map(block).collect()
    }
}

/// Token and head of each lane of a block.
pub(super) type Lanes = [(usize, usize)];

/// The lanes of a block: queries, or in the pass for dk and dv keys. What is said of queries and the keys that they see
/// then holds of keys and the queries that see them.
#[derive(Default)]
struct Block {
    /// Token and head of each.
    lanes: [(usize, usize); LANES],
    count: usize,
    /// The keys that each sees.
    lo: [u32; LANES],
    hi: [u32; LANES],
    /// The keys that any sees, and those that all see.
    any: (usize, usize),
    all: (usize, usize),
}

impl Block {
    fn add(&mut self, l: usize, token: usize, head: usize, (lo, hi): (u32, u32)) {
        self.lanes[l] = (token, head);
        self.count = l + 1;
        (self.lo[l], self.hi[l]) = (lo, hi);
        let (a, b) = (lo as usize, hi as usize);
        self.all = if l == 0 { (a, b) } else { (self.all.0.max(a), self.all.1.min(b)) };
        if a < b {
            self.any = if self.any == (0, 0) { (a, b) } else { (self.any.0.min(a), self.any.1.max(b)) };
        }
    }

    /// The part of a chunk of keys that any lane sees, in whole words, counted from the chunk's first; None if no lane sees
    /// any.
    #[inline(always)]
    fn clip<S: Simd, A: Act, F: Form<S, A>>(&self, (first, end): (usize, usize)) -> Option<(usize, usize)> {
        let (start, end) = (first.max(self.any.0), end.min(self.any.1));
        (start < end).then(|| F::whole((start - first, end - first)))
    }

    /// Scores of keys from `first` on that a lane does not see become −∞.
    #[inline(always)]
    fn mask<S: Simd>(&self, s: S, scores: &mut [Lane], first: usize) {
        if self.all.0 <= first && first + scores.len() <= self.all.1 && self.count == LANES {
            return;
        }
        // Counted from `first`, keys are small enough to be floats.
        let from_first = |key: u32| (key as usize).saturating_sub(first).min(CHUNK) as f32;
        let lo = s.load(&Lane::from_fn(|l| from_first(self.lo[l])));
        let hi = s.load(&Lane::from_fn(|l| from_first(self.hi[l])));
        for (j, row) in scores.iter_mut().enumerate() {
            let seen = s.within(lo, s.splat(j as f32), hi, s.load(row), s.splat(f32::NEG_INFINITY));
            s.store(seen, row);
        }
    }

    /// Token and head of each lane.
    fn lanes(&self) -> &Lanes {
        &self.lanes[..self.count]
    }

    /// Writes a panel back to the lanes' rows, each element times its lane's `scale`.
    ///
    /// # Safety
    /// `x` is a matrix of this shape, and no other task touches these rows of these heads.
    #[inline(always)]
    unsafe fn scatter<A: Act>(&self, panel: &[Lane], x: Ptr<A>, cols: usize, scale: &Lane) {
        let d = panel.len();
        for (l, &(token, head)) in self.lanes[..self.count].iter().enumerate() {
            for (i, lane) in panel.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { *x.add(token * cols + head * d + i) = A::round(lane[l] * scale[l]) };
            }
        }
    }
}

/// The tile and the head of keys of task `task`.
fn task(task: usize, kv_heads: usize) -> (usize, usize) {
    (task / kv_heads, task % kv_heads)
}

/// How a task is run: `A` is what activations are kept in.
trait Run<A> {
    fn forward(task: Forward<A>);
    fn dq(task: Dq<A>);
    fn dkv(task: Dkv<A>);
}

/// On the best instruction set.
struct Widened;

impl<A: Act> Run<A> for Widened {
    fn forward(task: Forward<A>) {
        dispatch(task);
    }
    fn dq(task: Dq<A>) {
        dispatch(task);
    }
    fn dkv(task: Dkv<A>) {
        dispatch(task);
    }
}

/// In pairs of bf16.
struct Paired;

impl Run<bf16> for Paired {
    fn forward(task: Forward<bf16>) {
        dispatch_pairs(task);
    }
    fn dq(task: Dq<bf16>) {
        dispatch_pairs(task);
    }
    fn dkv(task: Dkv<bf16>) {
        dispatch_pairs(task);
    }
}

/// Tasks in either form: one body, compiled for each instruction set.
macro_rules! in_both_forms {
    ($($task:ident),*) => {$(
        impl<A: Act> Kernel for $task<'_, A> {
            #[inline(always)]
            fn run<S: Simd, const ROWS: usize>(self, s: S) {
                self.run_in::<S, Floats, ROWS>(s);
            }
        }
        impl PairKernel for $task<'_, bf16> {
            #[inline(always)]
            fn run<S: Pairs, const ROWS: usize>(self, s: S) {
                self.run_in::<S, InPairs, ROWS>(s);
            }
        }
    )*};
}

in_both_forms!(Forward, Dq, Dkv);

pub fn forward(call: &HostCall) {
    match in_bf16(call) {
        true if has_pairs() => forward_of::<bf16, Paired>(call),
        true => forward_of::<bf16, Widened>(call),
        false => forward_of::<f32, Widened>(call),
    }
}

fn forward_of<A: Act, R: Run<A>>(call: &HostCall) {
    let p = Problem::<A>::new(call);
    let (out, lse) = (call.output_ptr::<A>(0), call.output_ptr::<f32>(1));
    if few::pays(p.t * p.group()) {
        par::ranges(p.t * p.a.kv_heads, 1, |tasks| {
            for i in tasks {
                let (token, kv) = task(i, p.a.kv_heads);
                dispatch(Few { p: &p, token, kv, out, lse });
            }
        });
        return;
    }
    par::ranges(p.t.div_ceil(p.tile()) * p.a.kv_heads, 1, |tasks| {
        for i in tasks {
            let (tile, kv) = task(i, p.a.kv_heads);
            R::forward(Forward { p: &p, tile, kv, out, lse });
        }
    });
}

/// One task of the forward pass.
struct Forward<'a, A> {
    p: &'a Problem<'a, A>,
    tile: usize,
    kv: usize,
    out: Ptr<A>,
    lse: Ptr<f32>,
}

/// The running softmax of a lane block: largest score, Σ exp(score − max).
struct Softmax {
    max: Lane,
    sum: Lane,
}

impl Softmax {
    /// Turns scores into exp(score − max) and returns what earlier sums must be multiplied by.
    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S, scores: &mut [Lane]) -> Lane {
        let before = s.load(&self.max);
        let max = scores.iter().fold(before, |max, row| s.max(s.load(row), max));
        let factor = s.exp_nonpositive(s.sub(before, max));
        let mut sum = s.mul(s.load(&self.sum), factor);
        for row in scores {
            let p = s.exp_nonpositive(s.sub(s.load(row), max));
            sum = s.add(sum, p);
            s.store(p, row);
        }
        s.store(max, &mut self.max);
        s.store(sum, &mut self.sum);
        let mut result = Lane::ZERO;
        s.store(factor, &mut result);
        result
    }
}

impl<A: Act> Forward<'_, A> {
    #[inline(always)]
    fn run_in<S: Simd, F: Form<S, A>, const ROWS: usize>(self, s: S) {
        let Forward { p, tile, kv, out, lse } = self;
        let d = p.a.head_dim;
        let blocks = p.query_blocks(tile, kv);
        let w = F::panel(d);
        let mut queries = vec![Lane::ZERO; blocks.len() * w];
        let mut sums = vec![Lane::ZERO; blocks.len() * d];
        let mut states: Vec<Softmax> =
            blocks.iter().map(|_| Softmax { max: Lane::splat(LOW), sum: Lane::ZERO }).collect();
        for (block, panel) in blocks.iter().zip(queries.chunks_exact_mut(w)) {
            F::gather(block.lanes(), panel, d, p.q, p.q_cols(), p.a.scale);
        }
        let mut scores: Chunk = [Lane::ZERO; CHUNK];
        // A single block reads each key once: where it is, if it is f32.
        let (packs, in_place) = match (F::in_place(p.k), F::in_place(p.v)) {
            (Some(k), Some(v)) if blocks.len() <= 1 => (false, (k, v)),
            _ => (true, (&[][..], &[][..])),
        };
        let (mut keys, mut values) = (F::room(d, For::Features), F::room(d, For::Rows));
        for chunk in chunks(&blocks) {
            if packs {
                F::pack(&mut keys, p.k, p.k_cols(), kv * d, chunk);
                F::pack(&mut values, p.v, p.k_cols(), kv * d, chunk);
            }
            for (b, block) in blocks.iter().enumerate() {
                let Some((first, end)) = block.clip::<S, A, F>(chunk) else { continue };
                let (scores, start) = (&mut scores[..end - first], chunk.0 + first);
                let (keys, values) = match packs {
                    true => (F::rows(&keys, first), F::across(&values, first)),
                    false => (p.in_place(in_place.0, kv, start), p.in_place(in_place.1, kv, start).transposed()),
                };
                product::<S, F::Word, ROWS>(s, scores, keys, &queries[b * w..][..w]);
                F::scale(s, scores, p.a.scale);
                if let Some(bias) = &p.bias {
                    bias.add_to_queries(scores, block, start);
                }
                block.mask(s, scores, start);
                let factor = states[b].step(s, scores);
                let weights = F::words(s, scores);
                accumulate::<S, F::Word, ROWS>(s, &mut sums[b * d..][..d], values, weights, &factor);
            }
        }
        for ((block, state), panel) in blocks.iter().zip(&states).zip(sums.chunks_exact(d)) {
            let mut inverse = Lane::ZERO;
            for l in 0..block.count {
                let (token, head) = block.lanes[l];
                inverse[l] = if state.sum[l] > 0.0 { 1.0 / state.sum[l] } else { 0.0 };
                // A sum of NaNs stays one.
                inverse[l] += if state.sum[l].is_nan() { f32::NAN } else { 0.0 };
                // SAFETY: lse is [heads, t]; this task alone has these queries of these heads.
                unsafe { *lse.add(head * p.t + token) = state.max[l] + state.sum[l].ln() };
            }
            // SAFETY: as above; out is [t, heads·d].
            unsafe { block.scatter(panel, out, p.q_cols(), &inverse) };
        }
    }
}

/// The keys that any of the blocks sees: first, one past the last.
fn reach(blocks: &[Block]) -> (usize, usize) {
    let some = || blocks.iter().map(|b| b.any).filter(|any| any.0 < any.1);
    let start = some().map(|any| any.0).min().unwrap_or(0);
    (start, some().map(|any| any.1).max().unwrap_or(0))
}

/// The keys that any of the blocks sees, in chunks.
fn chunks(blocks: &[Block]) -> impl Iterator<Item = (usize, usize)> {
    let (start, end) = reach(blocks);
    (start..end).step_by(CHUNK).map(move |c| (c, (c + CHUNK).min(end)))
}

pub fn backward(call: &HostCall) {
    match in_bf16(call) {
        true if has_pairs() => backward_of::<bf16, Paired>(call),
        true => backward_of::<bf16, Widened>(call),
        false => backward_of::<f32, Widened>(call),
    }
}

fn backward_of<A: Act, R: Run<A>>(call: &HostCall) {
    let p = Problem::<A>::new(call);
    let at = common(&p.a);
    let (out, lse, dout) = (call.input::<A>(at + 1), call.input::<f32>(at + 2), call.input::<A>(at + 3));
    // (lse, δ) for each head and query.
    let stats = call.work::<[f32; 2]>();
    let (heads, d, cols) = (p.a.heads, p.a.head_dim, p.q_cols());
    par::chunks(stats, p.t, |head, stats| {
        let (mut a, mut b) = (vec![0f32; A::buffer(d)], vec![0f32; A::buffer(d)]);
        for (t, stat) in stats.iter_mut().enumerate().take(p.t) {
            let at = t * cols + head * d;
            let delta = math::dot(A::row(&out[at..at + d], &mut a), A::row(&dout[at..at + d], &mut b));
            let lse = lse[head * p.t + t];
            // A query that sees nothing has no p; any finite number keeps NaN away.
            *stat = [if lse == f32::NEG_INFINITY { 0.0 } else { lse }, delta];
        }
    });
    let stats = &stats[..heads * p.t];
    let dq = call.output_ptr::<A>(0);
    par::ranges(p.t.div_ceil(p.tile()) * p.a.kv_heads, 1, |tasks| {
        for i in tasks {
            let (tile, kv) = task(i, p.a.kv_heads);
            R::dq(Dq { p: &p, stats, dout, tile, kv, dq });
        }
    });
    let (dk, dv) = (call.output_ptr::<A>(1), call.output_ptr::<A>(2));
    let query_range = call.input::<i32>(at);
    let seeing: Vec<(u32, u32)> = (0..p.s)
        .map(|s| {
            let (lo, hi) = seeing(&p.a, s, [query_range[2 * s] as i64, query_range[2 * s + 1] as i64], p.t);
            (lo as u32, hi as u32)
        })
        .collect();
    par::ranges(p.s.div_ceil(KEY_BLOCKS * LANES) * p.a.kv_heads, 1, |tasks| {
        for i in tasks {
            let (tile, kv) = task(i, p.a.kv_heads);
            R::dkv(Dkv { p: &p, seeing: &seeing, stats, dout, tile, kv, dk, dv });
        }
    });
}

/// One task of the pass for dq.
struct Dq<'a, A> {
    p: &'a Problem<'a, A>,
    stats: &'a [[f32; 2]],
    dout: &'a [A],
    tile: usize,
    kv: usize,
    dq: Ptr<A>,
}

impl<A: Act> Dq<'_, A> {
    #[inline(always)]
    fn run_in<S: Simd, F: Form<S, A>, const ROWS: usize>(self, s: S) {
        let Dq { p, stats, dout, tile, kv, dq } = self;
        let d = p.a.head_dim;
        let blocks = p.query_blocks(tile, kv);
        let w = F::panel(d);
        let mut queries = vec![Lane::ZERO; blocks.len() * w];
        let mut douts = queries.clone();
        let mut sums = vec![Lane::ZERO; blocks.len() * d];
        for (b, block) in blocks.iter().enumerate() {
            F::gather(block.lanes(), &mut queries[b * w..][..w], d, p.q, p.q_cols(), p.a.scale);
            F::gather(block.lanes(), &mut douts[b * w..][..w], d, dout, p.q_cols(), 1.0);
        }
        let mut scores: Chunk = [Lane::ZERO; CHUNK];
        let mut dscores: Chunk = [Lane::ZERO; CHUNK];
        let (mut keys, mut values) = (F::room(d, For::Both), F::room(d, For::Features));
        for chunk in chunks(&blocks) {
            F::pack(&mut keys, p.k, p.k_cols(), kv * d, chunk);
            F::pack(&mut values, p.v, p.k_cols(), kv * d, chunk);
            for (b, block) in blocks.iter().enumerate() {
                let Some((first, end)) = block.clip::<S, A, F>(chunk) else { continue };
                let start = chunk.0 + first;
                let (scores, dscores) = (&mut scores[..end - first], &mut dscores[..end - first]);
                product::<S, F::Word, ROWS>(s, scores, F::rows(&keys, first), &queries[b * w..][..w]);
                F::scale(s, scores, p.a.scale);
                if let Some(bias) = &p.bias {
                    bias.add_to_queries(scores, block, start);
                }
                block.mask(s, scores, start);
                product::<S, F::Word, ROWS>(s, dscores, F::rows(&values, first), &douts[b * w..][..w]);
                let (mut lse, mut delta) = (Lane::ZERO, Lane::ZERO);
                for (l, &(token, head)) in block.lanes[..block.count].iter().enumerate() {
                    [lse[l], delta[l]] = stats[head * p.t + token];
                }
                let (lse, delta) = (s.load(&lse), s.load(&delta));
                for (score, ds) in scores.iter().zip(dscores.iter_mut()) {
                    let p = s.exp_nonpositive(s.sub(s.load(score), lse));
                    s.store(s.mul(p, s.sub(s.load(ds), delta)), ds);
                }
                let (sums, weights) = (&mut sums[b * d..][..d], F::words(s, dscores));
                accumulate::<S, F::Word, ROWS>(s, sums, F::across(&keys, first), weights, &Lane::splat(1.0));
            }
        }
        for (block, panel) in blocks.iter().zip(sums.chunks_exact(d)) {
            // SAFETY: dq is [t, heads·d]; this task alone has these queries of these heads.
            unsafe { block.scatter(panel, dq, p.q_cols(), &Lane::splat(p.a.scale)) };
        }
    }
}

/// Lane blocks in a task whose lanes are keys.
const KEY_BLOCKS: usize = 6;

/// One task of the pass for dk and dv: all query heads of a group, in order.
struct Dkv<'a, A> {
    p: &'a Problem<'a, A>,
    /// The queries that see each key.
    seeing: &'a [(u32, u32)],
    stats: &'a [[f32; 2]],
    dout: &'a [A],
    tile: usize,
    kv: usize,
    dk: Ptr<A>,
    dv: Ptr<A>,
}

impl<A: Act> Dkv<'_, A> {
    #[inline(always)]
    fn run_in<S: Simd, F: Form<S, A>, const ROWS: usize>(self, s: S) {
        let Dkv { p, seeing, stats, dout, tile, kv, dk, dv } = self;
        let d = p.a.head_dim;
        let first = tile * KEY_BLOCKS * LANES;
        let last = (first + KEY_BLOCKS * LANES).min(p.s);
        let block = |start: usize| {
            let mut block = Block::default();
            for (l, key) in (start..(start + LANES).min(last)).enumerate() {
                block.add(l, key, kv, seeing[key]);
            }
            block
        };
        let blocks: Vec<Block> = (first..last).step_by(LANES).map(block).collect();
        let w = F::panel(d);
        let mut keys = vec![Lane::ZERO; blocks.len() * w];
        let mut values = keys.clone();
        let mut dkeys = vec![Lane::ZERO; blocks.len() * d];
        let mut dvalues = dkeys.clone();
        for (b, block) in blocks.iter().enumerate() {
            F::gather(block.lanes(), &mut keys[b * w..][..w], d, p.k, p.k_cols(), p.a.scale);
            F::gather(block.lanes(), &mut values[b * w..][..w], d, p.v, p.k_cols(), 1.0);
        }
        let mut scores: Chunk = [Lane::ZERO; CHUNK];
        let mut dscores: Chunk = [Lane::ZERO; CHUNK];
        let (mut queries, mut douts) = (F::room(d, For::Both), F::room(d, For::Both));
        let (start, end) = reach(&blocks);
        for head in kv * p.group()..(kv + 1) * p.group() {
            // Every task cuts the queries in the same places.
            for cut in (start / CHUNK * CHUNK..end).step_by(CHUNK) {
                let chunk = (cut.max(start), (cut + CHUNK).min(end));
                F::pack(&mut queries, p.q, p.q_cols(), head * d, chunk);
                F::pack(&mut douts, dout, p.q_cols(), head * d, chunk);
                for (b, block) in blocks.iter().enumerate() {
                    let Some((from, to)) = block.clip::<S, A, F>(chunk) else { continue };
                    let start = chunk.0 + from;
                    let (scores, dscores) = (&mut scores[..to - from], &mut dscores[..to - from]);
                    product::<S, F::Word, ROWS>(s, scores, F::rows(&queries, from), &keys[b * w..][..w]);
                    F::scale(s, scores, p.a.scale);
                    if let Some(bias) = &p.bias {
                        bias.add_to_keys(s, scores, first + b * LANES, head, start);
                    }
                    block.mask(s, scores, start);
                    product::<S, F::Word, ROWS>(s, dscores, F::rows(&douts, from), &values[b * w..][..w]);
                    let stats = &stats[head * p.t..][start..p.t];
                    // A word's queries beyond the last one.
                    scores[stats.len().min(to - from)..].fill(Lane::ZERO);
                    dscores[stats.len().min(to - from)..].fill(Lane::ZERO);
                    for ((p, ds), &[lse, delta]) in scores.iter_mut().zip(dscores.iter_mut()).zip(stats) {
                        let value = s.exp_nonpositive(s.sub(s.load(p), s.splat(lse)));
                        s.store(value, p);
                        s.store(s.mul(value, s.sub(s.load(ds), s.splat(delta))), ds);
                    }
                    let (weights, ds) = (F::words(s, scores), F::words(s, dscores));
                    let (one, panel) = (Lane::splat(1.0), b * d..(b + 1) * d);
                    accumulate::<S, F::Word, ROWS>(
                        s,
                        &mut dvalues[panel.clone()],
                        F::across(&douts, from),
                        weights,
                        &one,
                    );
                    accumulate::<S, F::Word, ROWS>(s, &mut dkeys[panel], F::across(&queries, from), ds, &one);
                }
            }
        }
        for (b, block) in blocks.iter().enumerate() {
            // SAFETY: dk and dv are [s, kv_heads·d]; this task alone has these keys of this head.
            unsafe {
                block.scatter(&dkeys[b * d..][..d], dk, p.k_cols(), &Lane::splat(p.a.scale));
                block.scatter(&dvalues[b * d..][..d], dv, p.k_cols(), &Lane::splat(1.0));
            }
        }
    }
}

/// The gradient of the table of biases: a task has a head's column, and adds up in the order of queries and keys.
pub fn dbias(call: &HostCall) {
    let p = Problem::<f32>::new(call);
    let Some(bias) = &p.bias else { return };
    let (out, lse, dout) = (call.input::<f32>(6), call.input::<f32>(7), call.input::<f32>(8));
    let dbias = call.output_ptr::<f32>(0);
    let heads = p.a.heads;
    par::ranges(heads, 1, |range| {
        for head in range {
            let mut sums = vec![0f64; 2 * bias.farthest + 1];
            math::vectorized!(column(&p, bias, head, [out, dout, &lse[head * p.t..][..p.t]], &mut sums));
            for (row, sum) in sums.into_iter().enumerate() {
                // SAFETY: dbias is [2·farthest + 1, heads]; this task alone has this column.
                unsafe { *dbias.add(row * heads + head) = sum as f32 };
            }
        }
    });
}

/// Adds ds of all pairs of a head, given out, dout and the head's lse, to the sums of their distances.
#[inline(always)]
fn column(p: &Problem<f32>, bias: &Bias, head: usize, [out, dout, lse]: [&[f32]; 3], sums: &mut [f64]) {
    let d = p.a.head_dim;
    let of_q = |t: usize| t * p.q_cols() + head * d..t * p.q_cols() + (head + 1) * d;
    let kv = head / p.group();
    let of_k = |s: usize| s * p.k_cols() + kv * d..s * p.k_cols() + (kv + 1) * d;
    let biases = bias.column(head);
    for (t, &(lo, hi)) in p.seen.iter().enumerate() {
        let (q, dout) = (&p.q[of_q(t)], &dout[of_q(t)]);
        let delta = math::dot(dout, &out[of_q(t)]);
        for s in lo as usize..hi as usize {
            let row = bias_row(s as i64 - bias.middle[t], bias.farthest);
            let score = p.a.scale * math::dot(q, &p.k[of_k(s)]) + biases[row];
            sums[row] += (math::exp(score - lse[t]) * (math::dot(dout, &p.v[of_k(s)]) - delta)) as f64;
        }
    }
}
