//! The norms by which DoRA divides a weight (Liu et al. 2024, arXiv:2402.09353): of the rows of `W + s·B·A`.
//!
//! W is walked in tiles, to which `s·B·A` is added on the way, so the sum is never held. The expansion
//! `‖W‖² + 2s·⟨B, WAᵀ⟩ + s²·⟨B(AAᵀ), B⟩` would cost the same N·K·R products for `WAᵀ` and lose digits where its terms
//! cancel; this has nothing to cancel.

mod cuda;

use crate::cpu::gemm::Mat;
use crate::cpu::math::{dot, vectorized};
use crate::cpu::par;
use crate::cpu::weight::weight;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::graph::{Graph, Val};
use crate::ops::launch::grid;
use crate::ops::quant::{WeightPart, weight_define, weight_parts};
use crate::ops::{
    Arg, Attr, Case, Cost, Factor, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Tensor, WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&DORA_NORM];

/// `dora_norm` [w (any weight type)[N,K], a F32[R,K], b F32[N,R]] with a factor s → n F32[N],
/// `n_i = ‖w_i + s·Σ_r b_ir a_r‖₂`. Nothing is trained through it: the paper's section 4.3 takes the norm for a
/// constant, and so does Hugging Face PEFT.
pub static DORA_NORM: OpDef = OpDef {
    name: "dora_norm",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Factor(Factor { acc: false, .. }), [w, a, b]) => {
            let ((n, k), (r, _)) = (check::matrix("w", w)?, check::matrix("a", a)?);
            if weight_define(w.dtype).is_none() {
                return Err(format!("w is {w}, expected a float or nf4"));
            }
            check::is("a", a, &Ty::f32(&[r, k]))?;
            check::is("b", b, &Ty::f32(&[n, r]))?;
            Ok(vec![Ty::f32(&[n])])
        }
        _ => Err(check::refuse("w, a, b and Factor", attr, ins)),
    },
    reference: |attr, ins| {
        let (w, a, b) = (&ins[0], &ins[1], &ins[2]);
        let element = |i: usize, k: usize| {
            let low: f64 = (0..a.rows()).map(|r| b.at(i, r) * a.at(r, k)).sum();
            w.at(i, k) + scale(attr) as f64 * low
        };
        let norm = |i: usize| (0..w.cols()).map(|k| element(i, k).powi(2)).sum::<f64>().sqrt();
        vec![Tensor::new(&[w.rows()], (0..w.rows()).map(norm).collect())]
    },
    grad: Grad::Stop,
    cost: |_, ins, _| Cost {
        flops: (ins[0].len() * flops_an_element(ins[1].shape[0])) as u64,
        terms: ins[0].shape[1] + ins[1].shape[0],
    },
    host: |call: &HostCall| {
        let w = weight(call.input(0), &call.ins[0]);
        let low_rank = LowRank { a: call.input(1), b: call.input(2), scale: scale(call.attr) };
        row_norms(w, call.ins[0].cols(), &low_rank, call.output(0));
    },
    wgsl,
    cuda: cuda::dora_norm,
    samples,
    cases: |s| {
        let w = SampleIn::normal(Ty::new(s.narrowest(), &[s.mlp, s.hidden]));
        let ins = vec![w, SampleIn::f32(&[s.rank, s.hidden]), SampleIn::f32(&[s.mlp, s.rank])];
        vec![Case::new(s.narrowest().name(), Attr::Factor(Factor { factor: 0.5, acc: false }), ins)]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// The norms of the rows of `w + scale·b·a`.
    pub fn dora_norm(&mut self, w: Val, a: Val, b: Val, scale: f32) -> Result<Val> {
        Ok(self.node(&DORA_NORM, Attr::Factor(Factor { factor: scale, acc: false }), &[w, a, b])?[0])
    }
}

fn scale(attr: &Attr) -> f32 {
    match attr {
        Attr::Factor(f) => f.factor,
        _ => 0.0,
    }
}

fn flops_an_element(rank: usize) -> usize {
    2 * rank + 2
}

/// A [R,K] and B [N,R], row-major, and the factor of their product.
pub struct LowRank<'a> {
    /// A, `[R, K]`.
    pub a: &'a [f32],
    /// B, `[N, R]`.
    pub b: &'a [f32],
    /// Factor of the product B·A.
    pub scale: f32,
}

/// Rows of a task, and columns of a tile: so many columns of A stay in the innermost cache while the rows meet them.
const ROWS: usize = 16;
const COLS: usize = 256;

/// The CPU kernel: `to[i] = ‖w_i + s·b_i·A‖₂` for a row-major `w` of `cols` columns. Sums of squares are f32 within a
/// tile and f64 over the tiles of a row; their order depends on nothing but `cols`.
pub fn row_norms(w: Mat, cols: usize, low_rank: &LowRank, to: &mut [f32]) {
    let LowRank { a, b, scale } = *low_rank;
    let rank = b.len() / to.len().max(1);
    par::chunks(to, ROWS, |piece, to| {
        vectorized!({
            let mut sums = [0f64; ROWS];
            for start in (0..cols).step_by(COLS) {
                let mut tile = [0f32; COLS];
                let width = (cols - start).min(COLS);
                let tile = &mut tile[..width];
                for (i, sum) in sums.iter_mut().enumerate().take(to.len()) {
                    let row = piece * ROWS + i;
                    w.decode_row(row, start, tile);
                    let a_row = |r: usize| &a[r * cols + start..][..width];
                    let (fours, rest) = b[row * rank..(row + 1) * rank].as_chunks::<4>();
                    for (j, b) in fours.iter().enumerate() {
                        add(tile, b.map(|b| scale * b), [0, 1, 2, 3].map(|l| a_row(4 * j + l)));
                    }
                    for (j, b) in rest.iter().enumerate() {
                        add(tile, [scale * b], [a_row(4 * fours.len() + j)]);
                    }
                    *sum += dot(tile, tile) as f64;
                }
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = sum.sqrt() as f32;
            }
        });
    });
}

/// `tile += Σ_j factors[j]·rows[j]`
#[inline(always)]
fn add<const N: usize>(tile: &mut [f32], factors: [f32; N], rows: [&[f32]; N]) {
    let rows = rows.map(|r| &r[..tile.len()]);
    for (k, x) in tile.iter_mut().enumerate() {
        let mut sum = 0.0;
        for j in 0..N {
            sum += factors[j] * rows[j][k];
        }
        *x += sum;
    }
}

/// Most work of a dispatch, and rows that a workgroup of `shaders/dora.wgsl` computes.
const MAX_FLOPS: u64 = 20_000_000_000;
const GROUP_ROWS: usize = 4;

fn wgsl(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (w, k, rank) = (&l.ins[0], l.ins[0].cols(), l.ins[1].shape[0]);
    let define = weight_define(w.dtype)
        .ok_or_else(|| Error::unsupported(format!("a weight {w}"), "weights are floats or nf4"))?;
    let per_row = k * flops_an_element(rank);
    let dispatch = |part: WeightPart| {
        let mut args = vec![Arg::Out(0)];
        args.extend(part.args);
        args.extend([Arg::In(1), Arg::In(2)]);
        let rows = part.rows.len();
        let mut params = [rows, part.rows.start, k, rank].map(|x| x as u32).to_vec();
        params.push(scale(l.attr).to_bits());
        params.extend(part.params);
        WgslDispatch {
            shader: "dora",
            defines: vec![define],
            entry: "dora_norm",
            constants: (k % 4 == 0).then_some(("VEC", 1.0)).into_iter().collect(),
            grid: grid(rows.div_ceil(GROUP_ROWS), l.caps),
            args,
            params,
            flops: (rows * per_row) as u64,
        }
    };
    let most = (MAX_FLOPS / per_row.max(1) as u64).clamp(1, 1 << 31) as usize;
    Ok(weight_parts(0, w, l.caps.max_binding, most).into_iter().map(dispatch).collect())
}

fn samples() -> Vec<Sample> {
    let table = [
        ("one row", 1, 7, 1, DType::F32),
        ("odd", 7, 33, 5, DType::F32),
        ("whole vectors", 17, 64, 8, DType::F32),
        ("beyond a tile", 33, 300, 3, DType::F32),
        ("beyond a tile of 512", 19, 516, 9, DType::F32),
        ("beyond a tile of 512, odd", 3, 515, 2, DType::F32),
        ("rank 17", 65, 31, 17, DType::F32),
        ("bf16", 5, 33, 4, DType::BF16),
        ("f16", 9, 40, 3, DType::F16),
        ("nf4", 9, 64, 4, DType::Nf4),
        ("nf4, blocks across rows", 13, 30, 2, DType::Nf4),
        ("nf4, beyond a tile of 512", 2, 576, 9, DType::Nf4),
        ("nf4 double", 6, 96, 16, DType::Nf4Dq),
        ("nf4 double, odd", 5, 9, 1, DType::Nf4Dq),
        // More than 64 KiB of weights: tests set a device's largest binding to that.
        ("large", 300, 72, 5, DType::F32),
        ("large nf4 double", 520, 256, 3, DType::Nf4Dq),
    ];
    let sample = |(name, n, k, r, dtype)| {
        let normal = |shape: &[usize]| SampleIn::normal(Ty::f32(shape));
        let ins = vec![SampleIn::normal(Ty::new(dtype, &[n, k])), normal(&[r, k]), normal(&[n, r])];
        Sample::new(name, Attr::Factor(Factor { factor: 0.5, acc: false }), ins)
    };
    let mut all: Vec<Sample> = table.into_iter().map(sample).collect();
    // B starts at zero: then these are the norms of W.
    let zeros = SampleIn::values(Ty::f32(&[3, 2]), vec![0.0; 6]);
    let (w, a) = (SampleIn::normal(Ty::f32(&[3, 20])), SampleIn::normal(Ty::f32(&[2, 20])));
    all.push(Sample::new("B of zeros", Attr::Factor(Factor { factor: 2.0, acc: false }), vec![w, a, zeros]));
    all
}
