//! The CUDA launches of linear layers: the thin product xa, then the tile with the low-rank part inside, by wgmma where
//! [`wgmma::Product`] says so; for a few tokens a kernel that reads the weight once, in order.

use super::{Operands, spec};
use crate::cpu::philox;
use crate::device::Caps;
use crate::dtype::{DType, Ty, align};
use crate::error::Result;
use crate::ops::quant::cuda::decode;
use crate::ops::tiles::{self, Product, Tile};
use crate::ops::{Arg, CudaLaunch, Dropout, Linear, Lower, Matmul, launch, wgmma};

/// FEW of kernels/linear_few.cu.
const FEW: usize = 8;
/// Weight rows, a warp each, of a block of `linear_few`.
const FEW_ROWS: usize = 4;

/// The macro that says how a weight is stored, and its pointers.
type Stored = ((&'static str, i64), [Arg; 4]);

/// From so many tokens on, a weight in NF4 is decoded once, before the product, where that is faster.
const DECODED: usize = 1024;

/// Scratch memory for a layer's weight, decoded. Tiles of the product decode what they need of it themselves, once for each 128
/// tokens. Cards of sm_90 and sm_100 multiply so fast that this takes longer than to decode all of it in a launch of its own, at the
/// speed of their memory; others decode beside it. The product's operands are the same bits.
fn decoded(x: &Ty, w: &Ty, caps: &Caps) -> u64 {
    let bytes = x.dtype.bytes(w.len()) as u64;
    let faster = (90..120).contains(&caps.arch) && x.dtype == DType::BF16 && x.rows() >= DECODED;
    if w.dtype.is_quantized() && faster && bytes <= caps.scratch() { bytes } else { 0 }
}

/// The weight, operand 1, for products of `x`, and the launch before them that decodes it to `first` of the scratch memory on, if
/// one does.
fn stored(l: &Lower, first: u64) -> (Option<CudaLaunch>, Stored) {
    let (x, w) = (&l.ins[0], &l.ins[1]);
    match decoded(x, w, l.caps) {
        0 => (None, launch::weight(1, w)),
        bytes => {
            let at = || Arg::Work(first..first + bytes);
            (Some(decode((1, w), at(), x, l.caps)), (wgmma::BF16, [at(), Arg::Absent, Arg::Absent, Arg::Absent]))
        }
    }
}

/// `y[T,N] = x[T,K]·Wᵀ (+ bias) (+ acc) (+ scale·xa·Bᵀ)`.
pub(in crate::ops) struct Forward<'a> {
    /// (T, N, K)
    pub dims: (usize, usize, usize),
    pub act: &'a Ty,
    pub y: Arg,
    /// Elements from row to row of y.
    pub ldy: usize,
    /// y is f32, whatever activations are.
    pub wide: bool,
    pub x: Arg,
    /// The weight, as [`launch::weight`] has it.
    pub w: Stored,
    pub bias: Option<Arg>,
    /// What is added to y, rows of N.
    pub acc: Option<Arg>,
    /// (xa, B, rank, scale)
    pub low: Option<(Arg, Arg, usize, f32)>,
}

impl Forward<'_> {
    pub fn launches(self, caps: &Caps) -> Vec<CudaLaunch> {
        let (t, n, k) = self.dims;
        let (xa, b, rank, scale) = self.low.unwrap_or((Arg::Absent, Arg::Absent, 0, 0.0));
        if t > FEW && self.ldy.is_multiple_of(2) {
            let product = wgmma::Product { dims: (t, n, k), rank, ld: [k, k], along_k: [true, true] };
            if let Some(mut all) = product.launch("linear_wgmma", (self.act, self.w.0), caps) {
                all.defines.push(("WIDE", self.wide as i64));
                let [bias, acc] = [self.bias, self.acc].map(|arg| arg.unwrap_or(Arg::Absent));
                let [w, ..] = self.w.1;
                all.args = vec![self.y, self.x, w, bias, acc, xa, b];
                all.params = [t, n, k, rank, self.ldy].map(|x| x as u32).to_vec();
                all.params.push(scale.to_bits());
                return vec![all];
            }
        }
        let (define, w) = self.w;
        let tile = Tile::of(t, n, caps);
        let mut all = tile.launch("linear", self.act, (t, n, k + rank), caps);
        all.args = vec![self.y, self.x];
        all.args.extend(w);
        all.args.extend([self.bias, self.acc].map(|arg| arg.unwrap_or(Arg::Absent)));
        all.args.extend([xa, b]);
        all.params = [t, n, k, rank].map(|x| x as u32).to_vec();
        let few = t <= FEW && self.ldy == n;
        if few {
            // Whatever the tile: this kernel has none.
            all.defines = vec![all.defines[0]];
            all.file = "linear_few";
            all.entry = "linear_few";
            all.grid = launch::grid(n.div_ceil(FEW_ROWS), caps);
            all.block = 32 * FEW_ROWS as u32;
            all.shared = 0;
        } else {
            all.params.push(self.ldy as u32);
        }
        let wide = self.wide && launch::act(self.act).1 != 0;
        all.defines.extend([define, ("WIDE", wide as i64)]);
        all.params.push(scale.to_bits());
        if few { vec![all] } else { tile.short(all, t, n, 1, caps) }
    }
}

/// `dx[T,K] = factor·(dy[T,N]·W (+ mask∘(dyb·A)))`.
pub(in crate::ops) struct Backward<'a> {
    /// (T, N, K)
    pub dims: (usize, usize, usize),
    pub act: &'a Ty,
    pub dx: Arg,
    pub dy: Arg,
    /// Elements from row to row of dy.
    pub ldy: usize,
    pub w: Stored,
    /// (dyb, A, rank)
    pub low: Option<(Arg, Arg, usize)>,
    pub dropout: Option<(Dropout, Arg)>,
    /// One f32 on the device.
    pub factor: Option<Arg>,
}

impl Backward<'_> {
    pub fn launches(self, caps: &Caps) -> Vec<CudaLaunch> {
        let (t, n, k) = self.dims;
        let (dyb, a, rank) = self.low.unwrap_or((Arg::Absent, Arg::Absent, 0));
        let (drop, rng) = self.dropout.unwrap_or((Dropout { p: 0.0, site: 0 }, Arg::Absent));
        let (threshold, keep) = philox::keep(drop);
        let factor = self.factor.unwrap_or(Arg::Absent);
        let product = wgmma::Product { dims: (t, k, n), rank, ld: [self.ldy, k], along_k: [true, false] };
        if let Some(mut all) = product.launch("linear_dx_wgmma", (self.act, self.w.0), caps) {
            let [w, ..] = self.w.1;
            all.args = vec![self.dx, self.dy, w, dyb, a, rng, factor];
            all.params = [t, n, k, rank].map(|x| x as u32).to_vec();
            all.params.extend([drop.site, threshold, keep.to_bits()]);
            return vec![all];
        }
        let (define, w) = self.w;
        let tile = Tile::of(t, k, caps);
        let mut all = tile.launch("linear_dx", self.act, (t, k, n + rank), caps);
        all.defines.push(define);
        all.args = vec![self.dx, self.dy];
        all.args.extend(w);
        all.args.extend([dyb, a, rng, factor]);
        all.params = [t, n, k, rank, self.ldy].map(|x| x as u32).to_vec();
        all.params.extend([drop.site, threshold, keep.to_bits()]);
        tile.short(all, t, k, 1, caps)
    }
}

/// Whether `linear_few` computes xa, with A for a weight; it does not drop out.
fn few_xa(s: Linear, t: usize) -> bool {
    t <= FEW && s.lora.is_some_and(|l| l.dropout.is_none())
}

/// The scratch bytes of `xa`.
fn xa_workspace(s: Linear, ins: &[Ty], caps: &Caps) -> u64 {
    match Operands::of(s, false).low_rank {
        Some((a, _)) if !few_xa(s, ins[0].rows()) => {
            tiles::workspace((ins[0].rows(), ins[a].rows(), ins[0].cols()), caps)
        }
        _ => 0,
    }
}

/// The scratch bytes of `linear`.
pub(super) fn workspace(s: Linear, ins: &[Ty], caps: &Caps) -> u64 {
    let xa = xa_workspace(s, ins, caps);
    match decoded(&ins[0], &ins[1], caps) {
        0 => xa,
        bytes => align(xa as usize) as u64 + bytes,
    }
}

/// The scratch bytes of `linear_dx`.
pub(super) fn workspace_dx(ins: &[Ty], caps: &Caps) -> u64 {
    decoded(&ins[0], &ins[1], caps)
}

pub fn linear(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let s = spec(l.attr);
    let o = Operands::of(s, false);
    let x = &l.ins[0];
    let dims = (x.rows(), l.ins[1].rows(), x.cols());
    let mut all = Vec::new();
    let mut low = None;
    if let (Some((a, b)), Some(lora)) = (o.low_rank, s.lora) {
        let rank = l.ins[a].rows();
        let down = (dims.0, rank, dims.2);
        if few_xa(s, dims.0) {
            let w = launch::weight(a, &l.ins[a]);
            let y = Arg::Out(1);
            let wide = false;
            let xa =
                Forward { dims: down, act: x, y, ldy: rank, wide, x: Arg::In(0), w, bias: None, acc: None, low: None };
            all.extend(xa.launches(l.caps));
        } else {
            let product = Product {
                spec: Matmul { ta: false, tb: true, alpha: 1.0, acc: false },
                dims: down,
                act: x,
                c: Arg::Out(1),
                a: Arg::In(0),
                lda: dims.2,
                b: Arg::In(a),
                acc: None,
                dropout: o.dropout.map(|(rng, drop)| (drop, Arg::In(rng))),
                factor: None,
                turned: false,
            };
            all.extend(product.launches(l.caps));
        }
        low = Some((Arg::Out(1), Arg::In(b), rank, lora.scale));
    }
    let bias = o.bias.map(Arg::In);
    let (decode, w) = stored(l, align(xa_workspace(s, l.ins, l.caps) as usize) as u64);
    all.extend(decode);
    let (y, ldy, wide) = (Arg::Out(0), dims.1, false);
    all.extend(
        Forward { dims, act: x, y, ldy, wide, x: Arg::In(0), w, bias, acc: o.acc.map(Arg::In), low }.launches(l.caps),
    );
    Ok(all)
}

pub fn linear_dx(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let o = Operands::of(spec(l.attr), true);
    let (dy, w) = (&l.ins[0], &l.ins[1]);
    let (decode, stored) = stored(l, 0);
    let product = Backward {
        dims: (dy.rows(), w.rows(), w.cols()),
        act: dy,
        dx: Arg::Out(0),
        dy: Arg::In(0),
        ldy: dy.cols(),
        w: stored,
        low: o.low_rank.map(|(dyb, a)| (Arg::In(dyb), Arg::In(a), l.ins[a].rows())),
        dropout: o.dropout.map(|(rng, drop)| (drop, Arg::In(rng))),
        factor: None,
    };
    Ok(decode.into_iter().chain(product.launches(l.caps)).collect())
}
