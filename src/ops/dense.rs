//! How dense products are cut into WGSL dispatches: no binding above the device's limit, no dispatch that runs for
//! seconds, and a tile shape that fits the matrix.

mod split;
mod tile;

use std::ops::Range;

use crate::cpu::philox;
use crate::device::{Caps, Tiling};
use crate::dtype::{DType, Nf4Layout, Ty};
use crate::error::{Error, Result};
use crate::ops::launch::{self, bytes_of};
use crate::ops::quant::{row_step, weight_defines, weight_parts};
use crate::ops::{Arg, Dropout, Lower, Matmul, WgslDispatch};
pub(super) use split::Split;
use split::Sum;
use tile::Tile;

/// What one dispatch may compute; a slow integrated GPU does it within a tenth of a second or two.
const MAX_FLOPS: u64 = 20_000_000_000;

/// Rows of a tile of `shaders/common/tile.wgsl` at most, in multiples of which long products are cut.
const TILE: usize = 128;

/// Up to this many tokens a linear layer reads every weight row once and in order instead of tiling.
const FEW_TOKENS: usize = 4;

/// Cuts `count` rows so that `most` are in a piece and every piece starts on a multiple of `step`.
fn cut(count: usize, most: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let len = (most / step).max(1) * step;
    (0..count).step_by(len).map(move |start| start..(start + len).min(count))
}

/// Over matrices of a type that are cut along their rows together: the step that keeps each on a 256-byte boundary (powers of two:
/// the largest is a multiple of all), and the most rows that fit a binding of each, in f32 too.
fn rows_of(dtype: DType, caps: &Caps, widths: &[usize]) -> (usize, usize) {
    let step = widths.iter().map(|&w| row_step(dtype, w)).max().unwrap_or(1);
    let most = widths.iter().map(|&w| (caps.max_binding.min(1 << 32) / 4) as usize / w.max(1)).min().unwrap_or(1);
    (step, most)
}

/// So many rows that a dispatch of `flops_per_row` stays short, in whole tiles.
fn short(flops_per_row: usize) -> usize {
    let tiles = MAX_FLOPS / flops_per_row.max(1) as u64 / TILE as u64;
    tiles.clamp(1, (1 << 31) / TILE as u64) as usize * TILE
}

fn bytes(rows: Range<usize>, width: usize) -> Range<u64> {
    (4 * rows.start * width) as u64..(4 * rows.end * width) as u64
}

fn yes(name: &'static str, is: bool) -> Option<(&'static str, f64)> {
    is.then_some((name, 1.0))
}

/// A matrix of f32 among the operands, by what binds a range of its bytes.
type Bind<'a> = &'a dyn Fn(Range<u64>) -> Arg;

/// `c[m,n] = alpha · op(a)[m,k] · op(b)[k,n] (+ acc)`.
pub(super) struct Product<'a> {
    pub spec: Matmul,
    pub dims: (usize, usize, usize),
    pub c: Bind<'a>,
    pub a: Bind<'a>,
    pub b: Bind<'a>,
    /// Added, unless c itself holds it.
    pub acc: Option<Bind<'a>>,
    /// c holds what is added.
    pub acc_in_c: bool,
    /// Dropout of a (not transposed, b transposed), and the random-number operand.
    pub dropout: Option<(Dropout, Arg)>,
    /// What activations among its operands are kept in ([`types`]).
    pub act: DType,
    /// How its sum is split, by [`split`].
    pub split: Split,
}

/// The ranges of m, n and k that dispatches take: how many in each, and the step.
type Cuts = [(usize, usize); 3];

fn cuts(spec: Matmul, (m, n, k): (usize, usize, usize), act: DType, caps: &Caps) -> Cuts {
    let Matmul { ta, tb, .. } = spec;
    let [c, a, b] = types(spec, act);
    // Those that are read by fours are cut by fours, along rows or across them.
    let rows = |dtype: DType, widths: &[usize]| {
        let (step, most) = rows_of(dtype, caps, widths);
        (step.max(launch::unit(act)), most)
    };
    let (m_step, m_most) = if ta { rows(c, &[n]) } else { rows(a, &[n, k]) };
    let (n_step, n_most) = if tb { rows(b, &[k]) } else { (1, n) };
    let (k_step, k_most) = match (ta, tb) {
        (false, true) => (1, k),
        (true, true) => rows(a, &[m]),
        (false, false) => rows(b, &[n]),
        (true, false) => rows(a, &[m, n]),
    };
    let m_most = m_most.min(short(2 * n * k)).min(caps.max_groups as usize * Tile::LEAST);
    [(m_most, m_step), (n_most, n_step), (k_most, k_step)]
}

/// Where sums are split follows from the estimated tile, whichever is taken: results do not depend on that.
fn by_estimate(caps: &Caps) -> Caps {
    caps.tiled(Tiling::Estimated)
}

/// Types of c, a and b: sums over tokens are gradients of weights and f32, other products are activations, and their b a weight.
fn types(spec: Matmul, act: DType) -> [DType; 3] {
    if spec.ta { [DType::F32, act, act] } else { [act, act, DType::F32] }
}

/// How the sum of a [`Product`] of activations in `act` is split that may use scratch memory; `dropping`: it drops out.
pub(super) fn split(spec: Matmul, dims: (usize, usize, usize), dropping: bool, act: DType, caps: &Caps) -> Split {
    let (m, n, k) = dims;
    let whole = std::iter::zip(cuts(spec, dims, act, caps), [m, n, k])
        .all(|((most, step), of)| cut(of, most, step).count() == 1);
    let rows = [if spec.ta { m } else { k }, if spec.tb { k } else { n }, n];
    let vec = rows.iter().all(|x| x.is_multiple_of(4));
    let caps = &by_estimate(caps);
    let tile = if dropping { Tile::dropping(n) } else { Tile::of(m, n, vec, caps) };
    if whole { Split::of(&tile, dims, caps) } else { Split::none(k) }
}

impl Product<'_> {
    pub fn dispatches(&self, caps: &Caps) -> Vec<WgslDispatch> {
        let (m, n, k) = self.dims;
        let [(m_most, m_step), (n_most, n_step), (k_most, k_step)] = cuts(self.spec, self.dims, self.act, caps);
        let mut list = Vec::new();
        for m_range in cut(m, m_most, m_step) {
            for n_range in cut(n, n_most, n_step) {
                for k_range in cut(k, k_most, k_step) {
                    let first = k_range.start == 0;
                    list.push(self.dispatch(m_range.clone(), n_range.clone(), k_range, first, caps));
                }
            }
        }
        if self.split.parts > 1 {
            let [dtype, ..] = types(self.spec, self.act);
            let c = || bytes_of(dtype, &(0..m), n);
            let more = match self.acc {
                Some(acc) => Sum::Operand(acc(c())),
                None if self.acc_in_c => Sum::Itself,
                None => Sum::Nothing,
            };
            list.push(self.split.sum((self.c)(c()), dtype, more, self.spec.alpha, caps));
        }
        list
    }

    fn dispatch(&self, ms: Range<usize>, ns: Range<usize>, ks: Range<usize>, first: bool, caps: &Caps) -> WgslDispatch {
        let (m_all, n_all, k_all) = self.dims;
        let Matmul { ta, tb, alpha, .. } = self.spec;
        let [c_ty, a_ty, b_ty] = types(self.spec, self.act);
        let (a, lda, a0) = match ta {
            false => (bytes_of(a_ty, &ms, k_all), k_all, ks.start),
            true => (bytes_of(a_ty, &ks, m_all), m_all, ms.start),
        };
        let (b, ldb, b0) = match tb {
            true => (bytes_of(b_ty, &ns, k_all), k_all, ks.start),
            false => (bytes_of(b_ty, &ks, n_all), n_all, ns.start),
        };
        let (m, n, k) = (ms.len(), ns.len(), ks.len());
        // Whole rows, and the parts of rows that are bound here, are read by fours.
        let (along_a, along_b) = (if ta { m } else { k }, if tb { k } else { n });
        let vec = [lda, a0, along_a, ldb, b0, along_b, n_all, ns.start, n].iter().all(|x| x.is_multiple_of(4));
        let tile = match self.dropout {
            None => Tile::of(m, n, vec, caps),
            Some(_) => Tile::dropping(n),
        };
        // What is added to parts is added to their sum.
        let scratch = self.split.scratch();
        let (alpha, acc) = match scratch {
            Some(_) => (1.0, None),
            None => (alpha, self.acc.filter(|_| first)),
        };
        let mut defines: Vec<&'static str> = tile.symbol.into_iter().collect();
        defines.extend(acc.map(|_| "ACC"));
        defines.extend(self.dropout.as_ref().map(|_| "DROPOUT"));
        defines.extend(vec.then_some("VEC"));
        let halves = [(a_ty, "A16"), (b_ty, "B16"), (if scratch.is_some() { DType::F32 } else { c_ty }, "C16")];
        defines.extend(halves.iter().filter(|half| half.0 == DType::F16).map(|half| half.1));
        let c = bytes_of(c_ty, &ms, n_all);
        let to = scratch.clone().unwrap_or_else(|| (self.c)(c.clone()));
        let mut args = vec![to, (self.a)(a), (self.b)(b)];
        args.extend(acc.map(|bind| bind(c)));
        let mut params =
            vec![m, n, k, lda, ldb, n_all, a0, b0, ns.start].into_iter().map(|x| x as u32).collect::<Vec<_>>();
        params.push(alpha.to_bits());
        if let Some((drop, rng)) = &self.dropout {
            let (threshold, keep) = philox::keep(*drop);
            let [first, high] = launch::words(ms.start * k_all);
            params.extend([first, high, drop.site, threshold, keep.to_bits()]);
            args.push(rng.clone());
        } else {
            params.extend([0; 5]);
        }
        params.push(if scratch.is_some() { self.split.step } else { Split::none(k).step } as u32);
        let [x, y, _] = tile.grid(m, n);
        let add = scratch.is_none() && (self.acc_in_c || !first);
        WgslDispatch {
            shader: "matmul",
            defines,
            entry: "tile",
            constants: [yes("TA", ta), yes("TB", tb), yes("ADD", add)].into_iter().flatten().collect(),
            grid: [x, y, self.split.parts as u32],
            args,
            params,
            flops: 2 * (m * n * k) as u64,
        }
    }
}

/// `y[n] = Σ_t x[t,n] (+ acc[n])`.
pub(super) fn sum_rows(l: &Lower, acc: bool) -> Vec<WgslDispatch> {
    let (rows, cols) = (l.ins[0].rows(), l.ins[0].cols());
    let (step, most) = rows_of(DType::F32, l.caps, &[cols]);
    let in_y = l.shared[0] == Some(1);
    let pieces = cut(rows, most, step).map(|piece| {
        let first = piece.start == 0;
        let separate = acc && !in_y && first;
        let mut args = vec![Arg::Out(0), Arg::InPart(0, bytes(piece.clone(), cols))];
        args.extend(separate.then_some(Arg::In(1)));
        WgslDispatch {
            shader: "sum_rows",
            defines: separate.then_some("ACC").into_iter().collect(),
            entry: "sum_rows",
            constants: yes("ADD", (acc && in_y) || !first).into_iter().collect(),
            grid: [cols.div_ceil(64) as u32, 1, 1],
            args,
            params: vec![piece.len() as u32, cols as u32],
            flops: (piece.len() * cols) as u64,
        }
    });
    pieces.collect()
}

/// The operands of a linear layer's low-rank part, forward (A, B) or backward (dyb, A).
pub(super) struct LowRank {
    pub first: usize,
    pub second: usize,
    pub rank: usize,
    pub scale: f32,
    /// Dropout and its random-number operand.
    pub dropout: Option<(Dropout, usize)>,
}

/// `y = x Wᵀ (+ bias) (+ scale·x̃Aᵀ·Bᵀ)`, output 1 being x̃Aᵀ.
pub(super) fn linear(l: &Lower, bias: Option<usize>, low: Option<LowRank>) -> Result<Vec<WgslDispatch>> {
    let (t, n, k) = (l.ins[0].shape[0], l.ins[1].shape[0], l.ins[1].shape[1]);
    let (w, act) = (&l.ins[1], l.ins[0].dtype);
    let rank = low.as_ref().map_or(0, |l| l.rank);
    let split = forward_split(t, w, rank, act, l.caps);
    let mut list = Vec::new();
    if let Some(low) = &low {
        let down = Product {
            spec: DOWN,
            dims: (t, low.rank, k),
            split: self::split(DOWN, (t, low.rank, k), low.dropout.is_some(), act, l.caps),
            c: &|r| Arg::OutPart(1, r),
            a: &|r| Arg::InPart(0, r),
            b: &|r| Arg::InPart(low.first, r),
            acc: None,
            acc_in_c: false,
            dropout: low.dropout.map(|(d, rng)| (d, Arg::In(rng))),
            act,
        };
        list.extend(down.dispatches(l.caps));
    }
    let few = t <= FEW_TOKENS;
    let (step, most) = tokens_at_once(w, rank, act, l.caps);
    for ts in cut(t, most, step) {
        for part in weight_parts(1, &l.ins[1], l.caps.max_binding, if few { widest(l.caps) } else { usize::MAX }) {
            let rows = part.rows.len();
            let to = split.scratch().unwrap_or_else(|| Arg::OutPart(0, bytes_of(act, &ts, n)));
            let mut args = vec![to, Arg::InPart(0, bytes_of(act, &ts, k))];
            args.extend(part.args);
            // Parts are without it, their sum has it.
            let bias = bias.filter(|_| split.parts == 1);
            args.extend(bias.map(Arg::In));
            let mut more: Vec<&'static str> = bias.map(|_| "BIAS").into_iter().collect();
            if let Some(low) = &low {
                more.push("LORA");
                args.extend([Arg::OutPart(1, bytes_of(act, &ts, rank)), Arg::In(low.second)]);
            }
            let scale = low.as_ref().map_or(0.0, |l| l.scale);
            let [first, nested, offset] = part.params;
            let ints = [ts.len(), rows, part.rows.start, n, k, rank].map(|x| x as u32);
            let mut params = ints.to_vec();
            params.extend([scale.to_bits(), first, nested, offset, split.step as u32]);
            let (shader, entry, Tiled { defines, grid }) = if few {
                let vec = by_fours(w).then_some("VEC");
                let mut defines = [&stored_as(w, l.caps)?, more.as_slice(), vec.as_slice()].concat();
                defines.extend(launch::half(act));
                ("linear_row", "row", Tiled { defines, grid: [rows.div_ceil(4) as u32, ts.len() as u32, 1] })
            } else {
                ("linear", "tile", Tiled::forward(w, &more, (ts.len(), act), rows, l.caps)?.split(&split, act))
            };
            list.push(WgslDispatch {
                shader,
                defines,
                entry,
                constants: Vec::new(),
                grid,
                args,
                params,
                flops: 2 * (ts.len() * rows * (k + rank)) as u64,
            });
        }
    }
    if split.parts > 1 {
        let more = bias.map_or(Sum::Nothing, |bias| Sum::Bias(Arg::In(bias), n));
        list.push(split.sum(Arg::Out(0), act, more, 1.0, l.caps));
    }
    Ok(list)
}

/// The thin product of a linear layer's low-rank part.
const DOWN: Matmul = Matmul { ta: false, tb: true, alpha: 1.0, acc: false };

/// Tokens are cut in multiples of the first, and to at most the second.
fn tokens_at_once(w: &Ty, rank: usize, act: DType, caps: &Caps) -> (usize, usize) {
    let (n, k) = (w.rows(), w.cols());
    let (step, most) = if rank > 0 { rows_of(act, caps, &[n, k, rank]) } else { rows_of(act, caps, &[n, k]) };
    (step, most.min(short(2 * n * (k + rank))))
}

/// Whether one dispatch takes `t` tokens and the whole weight.
fn in_one(t: usize, w: &Ty, rank: usize, act: DType, caps: &Caps) -> bool {
    let (step, most) = tokens_at_once(w, rank, act, caps);
    cut(t, most, step).count() == 1 && weight_parts(1, w, caps.max_binding, usize::MAX).len() == 1
}

fn forward_split(t: usize, w: &Ty, rank: usize, act: DType, caps: &Caps) -> Split {
    let caps = &by_estimate(caps);
    let (n, k) = (w.rows(), w.cols());
    match t > FEW_TOKENS && in_one(t, w, rank, act, caps) {
        true => Split::of(&Tile::wide(t, n, by_fours(w), caps.by_matrices(act, w.dtype), caps), (t, n, k), caps),
        false => Split::none(k),
    }
}

fn backward_split(t: usize, w: &Ty, rank: usize, act: DType, caps: &Caps) -> Split {
    let caps = &by_estimate(caps);
    let (n, k) = (w.rows(), w.cols());
    match in_one(t, w, rank, act, caps) {
        true => {
            let vec = by_fours(w) && n.is_multiple_of(4);
            Split::of(&Tile::wide(t, k, vec, caps.by_matrices(act, w.dtype), caps), (t, k, n), caps)
        }
        false => Split::none(n),
    }
}

/// Scratch bytes of [`linear`] of x; `low`: the rank, and whether it drops out.
pub(super) fn linear_scratch(x: &Ty, w: &Ty, low: Option<(usize, bool)>, caps: &Caps) -> u64 {
    let (t, act) = (x.rows(), x.dtype);
    let down = |(rank, dropping)| split(DOWN, (t, rank, w.cols()), dropping, act, caps).bytes();
    low.map_or(0, down).max(forward_split(t, w, low.map_or(0, |low| low.0), act, caps).bytes())
}

/// The same of [`linear_dx`].
pub(super) fn linear_dx_scratch(dy: &Ty, w: &Ty, rank: usize, caps: &Caps) -> u64 {
    backward_split(dy.rows(), w, rank, dy.dtype, caps).bytes()
}

/// Whether products with the weight take activations in f16, which are read and written by fours, in whole rows.
pub(super) fn takes_half(w: &Ty, rank: usize, caps: &Caps) -> bool {
    let fours = by_fours(w) && w.rows().is_multiple_of(4) && rank.is_multiple_of(4);
    fours && weight_parts(1, w, caps.max_binding, widest(caps)).len() == 1
}

/// Rows of a weight that a dispatch for few tokens takes at most.
fn widest(caps: &Caps) -> usize {
    caps.max_groups as usize * FEW_TOKENS
}

/// `dx = dy·W (+ mask∘(dyb·A))`.
pub(super) fn linear_dx(l: &Lower, low: Option<LowRank>) -> Result<Vec<WgslDispatch>> {
    let (t, n, k) = (l.ins[0].shape[0], l.ins[1].shape[0], l.ins[1].shape[1]);
    let rank = low.as_ref().map_or(0, |l| l.rank);
    let act = l.ins[0].dtype;
    let split = backward_split(t, &l.ins[1], rank, act, l.caps);
    let (step, most) = tokens_at_once(&l.ins[1], rank, act, l.caps);
    let mut list = Vec::new();
    for ts in cut(t, most, step) {
        for part in weight_parts(1, &l.ins[1], l.caps.max_binding, usize::MAX) {
            let first = part.rows.start == 0;
            let to = split.scratch().unwrap_or_else(|| Arg::OutPart(0, bytes_of(act, &ts, k)));
            let mut args = vec![to, Arg::InPart(0, bytes_of(act, &ts, n))];
            args.extend(part.args);
            let mut more = Vec::new();
            let [w_first, nested, offset] = part.params;
            let ints = [ts.len(), part.rows.len(), part.rows.start, n, k, rank].map(|x| x as u32);
            let mut params = ints.to_vec();
            params.extend([w_first, nested, offset, ts.start as u32]);
            let mut mask = [0; 3];
            if let Some(low) = low.as_ref().filter(|_| first) {
                more.push("LORA");
                args.extend([Arg::InPart(low.first, bytes_of(act, &ts, rank)), Arg::In(low.second)]);
                if let Some((drop, rng)) = low.dropout {
                    more.push("DROPOUT");
                    args.push(Arg::In(rng));
                    let (threshold, keep) = philox::keep(drop);
                    mask = [drop.site, threshold, keep.to_bits()];
                }
            }
            params.extend(mask);
            params.push(split.step as u32);
            let tiled = Tiled::backward(&l.ins[1], &more, (ts.len(), act), &part.rows, l.caps)?;
            let Tiled { defines, grid } = tiled.split(&split, act);
            list.push(WgslDispatch {
                shader: "linear_dx",
                defines,
                entry: "tile",
                constants: yes("ADD", !first).into_iter().collect(),
                grid,
                args,
                params,
                flops: 2 * (ts.len() * part.rows.len() * k) as u64,
            });
        }
    }
    if split.parts > 1 {
        list.push(split.sum(Arg::Out(0), act, Sum::Nothing, 1.0, l.caps));
    }
    Ok(list)
}

/// How a product with a stored weight is launched: the symbols of `shaders/linear.wgsl` (or `linear_dx.wgsl`), and the grid.
pub(super) struct Tiled {
    pub defines: Vec<&'static str>,
    pub grid: [u32; 3],
}

impl Tiled {
    /// `t` rows of x, activations in `act`, with `rows` rows of the weight; `more`: symbols of further operands.
    pub fn forward(w: &Ty, more: &[&'static str], (t, act): (usize, DType), rows: usize, caps: &Caps) -> Result<Tiled> {
        let vec = by_fours(w);
        let tile = Tile::wide(t, rows, vec, caps.by_matrices(act, w.dtype), caps);
        let defines = [&stored_as(w, caps)?, more, symbols(vec, false, &tile).as_slice()].concat();
        Ok(Tiled { defines, grid: tile.grid(t, rows) })
    }

    /// `t` rows of dy with `rows` of the weight's rows.
    pub fn backward(
        w: &Ty,
        more: &[&'static str],
        (t, act): (usize, DType),
        rows: &Range<usize>,
        caps: &Caps,
    ) -> Result<Tiled> {
        let vec = by_fours(w);
        let odd = ![w.rows(), rows.start, rows.len()].iter().all(|x| x.is_multiple_of(4));
        let tile = Tile::wide(t, w.cols(), vec && !odd, caps.by_matrices(act, w.dtype), caps);
        let defines = [&stored_as(w, caps)?, more, symbols(vec, odd, &tile).as_slice()].concat();
        Ok(Tiled { defines, grid: tile.grid(t, w.cols()) })
    }

    /// Of a sum that is split so, of activations in `act`.
    fn split(mut self, split: &Split, act: DType) -> Tiled {
        self.grid[2] = split.parts as u32;
        self.defines.extend(launch::half(act));
        self.defines.extend(launch::half(act).filter(|_| split.parts > 1).map(|_| "PARTS"));
        self
    }
}

fn symbols(vec: bool, odd: bool, tile: &Tile) -> Vec<&'static str> {
    [vec.then_some("VEC"), (vec && odd).then_some("ODD"), tile.symbol].into_iter().flatten().collect()
}

/// Whether a weight's rows are read by fours (`shaders/common/weight_vec.wgsl`).
fn by_fours(w: &Ty) -> bool {
    w.cols().is_multiple_of(4)
}

/// The symbols of the weight. Rows of NF4 that are read by fours are ragged where a block of 64 may span two of them.
fn stored_as(w: &Ty, caps: &Caps) -> Result<Vec<&'static str>> {
    let ragged = w.dtype.is_quantized() && by_fours(w) && !w.cols().is_multiple_of(Nf4Layout::BLOCK);
    let refuse = || Error::unsupported(format!("a weight {w}"), "weights are floats or nf4");
    let mut defines = weight_defines(w, caps).ok_or_else(refuse)?;
    defines.extend(ragged.then_some("RAGGED"));
    Ok(defines)
}
