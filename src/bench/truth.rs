//! How far a kernel may be from the float64 definition.
//!
//! A kernel in f32 rounds each operand's product and each partial sum by at most u = 2⁻²⁴ of its size. Over the n
//! terms of one element these errors add up like a random walk: to about u·√n times the size that partial sums
//! reach. That size is not known for each element, but the largest element of the output stands for it: all elements
//! of an output are sums over data of one distribution. What surrounds the sums (a division, an exponential, a square
//! root: each a few ulp, WGSL allows `exp` 3 + 2|x|) is the constant 8. C = 8 (in units of u) covers what the largest
//! of thousands of elements exceeds the typical one by.
//!
//! Where terms cancel (the gradient of a softmax over one key is 0), the output says nothing about the size of what
//! was rounded. What does is how far the definition itself moves when each float operand is changed by one rounding,
//! x·(1 ± u): no f32 kernel can tell such operands apart. That `sway` counts with the same C:
//!
//! `|got − want| ≤ C · (u · (8 + √n) · max |want| + sway)`
//!
//! Where activations are kept in 16 bits, operands and intermediate results are rounded to such a type on their way into
//! a product, by at most v = 2⁻⁹ (bf16) or 2⁻¹² (f16) of their size. Errors of n terms add up like the terms do, so each
//! such rounding shows as about v of the output's size; an output after a few of them may be off by 4·v·max |want|,
//! and where an exponential makes more of it (weights of 16 bits after a softmax), by what the definition moves then:
//! the sway, in steps of v.
//!
//! At n = 64 that is some 10⁻⁵ of the largest element; one forgotten term of 64 is off by a hundred thousand times u.

use super::operands::{Random, decode};
use crate::dtype::{DType, Ty};
use crate::ops::{Cost, OpDef, Sample, Tensor};

/// Half the distance from 1 to the next f32.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
const C: f64 = 8.0;

/// How far each output may be from what the definition gives on `operands`, those of `sample`: `wants`.
pub fn allowed(op: &OpDef, sample: &Sample, operands: &[Tensor], wants: &[Tensor]) -> Result<Vec<f64>, String> {
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = op.types(&sample.attr, &ins)?;
    let cost = (op.cost)(&sample.attr, &ins, &outs);
    let compute_dtype = op.compute_dtype(&sample.attr, &ins);
    let sways = sway(op, sample, operands, wants);
    let of = |((ty, want), sway): ((&Ty, &Tensor), f64)| {
        tolerance(cost, ty.dtype, &want.data, sway) + rounding(compute_dtype, &want.data, sway)
    };
    Ok(outs.iter().zip(wants).zip(sways).map(of).collect())
}

/// Compares the stored outputs of a kernel that ran on `operands`, those of `sample`, with what the definition gives. The error
/// is the first output that is wrong, and how; else it is the largest difference over what is allowed.
pub fn judge(op: &OpDef, sample: &Sample, operands: &[Tensor], found: &[Vec<u8>]) -> Result<f64, String> {
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = op.types(&sample.attr, &ins)?;
    let wants = (op.reference)(&sample.attr, operands);
    if wants.len() != outs.len() {
        return Err(format!("the definition gives {} outputs, the shape rule {}", wants.len(), outs.len()));
    }
    let allowed = allowed(op, sample, operands, &wants)?;
    let mut largest: f64 = 0.0;
    for (o, ((ty, want), allowed)) in outs.iter().zip(&wants).zip(allowed).enumerate() {
        if want.shape != ty.shape {
            return Err(format!("output {o}: the definition gives {:?}, the shape rule {ty}", want.shape));
        }
        let bytes = found.get(o).map_or(&[][..], Vec::as_slice);
        let off = compare(&decode(ty, bytes), &want.data, allowed).map_err(|e| format!("output {o}: {e}"))?;
        largest = largest.max(if off == 0.0 { 0.0 } else { off / allowed });
    }
    Ok(largest)
}

/// For each output, the farthest that an element moves when the float operands do, by one rounding each.
pub fn sway(op: &OpDef, sample: &Sample, operands: &[Tensor], wants: &[Tensor]) -> Vec<f64> {
    let mut farthest = vec![0.0f64; wants.len()];
    let mut random = Random::new(7);
    // In a sample of few elements, chance may let the roundings cancel.
    let elements: usize = operands.iter().map(|t| t.data.len()).sum();
    for _ in 0..if elements < 1000 { 16 } else { 2 } {
        let mut moved = operands.to_vec();
        for (t, input) in moved.iter_mut().zip(&sample.ins) {
            if !matches!(input.ty.dtype, DType::I32 | DType::U32) {
                t.data.iter_mut().for_each(|x| *x *= 1.0 + if random.word() & 1 == 0 { UNIT } else { -UNIT });
            }
        }
        for ((far, want), got) in farthest.iter_mut().zip(wants).zip((op.reference)(&sample.attr, &moved)) {
            let steps = want.data.iter().zip(&got.data).map(|(a, b)| (a - b).abs());
            *far = steps.filter(|d| d.is_finite()).fold(*far, f64::max);
        }
    }
    farthest
}

/// The largest allowed difference from `want`, in a result stored as `dtype`.
pub fn tolerance(cost: Cost, dtype: DType, want: &[f64], sway: f64) -> f64 {
    let scale = want.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    match dtype {
        DType::I32 | DType::U32 => 0.0,
        // A code on the edge between two levels may fall to either side: the widest gap between levels, halved,
        // would be 0.15 of the largest; tests of the format itself demand equal bits.
        DType::Nf4 | DType::Nf4Dq => 1e-6 * scale,
        DType::BF16 => scale / 256.0,
        DType::F16 => scale / 2048.0,
        DType::F32 => C * (UNIT * (8.0 + (cost.terms as f64).sqrt()) * scale + sway),
    }
}

/// What rounding activations to `compute_dtype` adds to it.
pub fn rounding(compute_dtype: Option<DType>, want: &[f64], sway: f64) -> f64 {
    let scale = want.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    let of = |v: f64| 4.0 * v * scale + sway * v / UNIT;
    match compute_dtype {
        Some(DType::BF16) => of(1.0 / 512.0),
        Some(DType::F16) => of(1.0 / 4096.0),
        _ => 0.0,
    }
}

/// The largest difference, if it is within the tolerance; the error is the worst element, and how many are not.
pub fn compare(got: &[f64], want: &[f64], tolerance: f64) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, expected {}", got.len(), want.len()));
    }
    let off = |g: f64, w: f64| match (g.is_nan(), w.is_finite()) {
        _ if g == w => 0.0,
        (false, true) => (g - w).abs(),
        _ => f64::INFINITY,
    };
    let worst = (0..got.len()).map(|i| (off(got[i], want[i]), i)).fold((0.0, 0), |a, b| if b.0 > a.0 { b } else { a });
    match worst {
        (d, i) if d > tolerance => {
            let count = (0..got.len()).filter(|&i| off(got[i], want[i]) > tolerance).count();
            Err(format!(
                "element {i}: got {}, want {}, off by {d:.2e}, allowed {tolerance:.2e} ({count} of {} are off)",
                got[i],
                want[i],
                got.len()
            ))
        }
        (d, _) => Ok(d),
    }
}
