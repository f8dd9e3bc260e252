//! f32 to GGUF's block formats, as ggml's reference quantizers do without an importance matrix
//! (`quantize_row_*_ref`): each product and sum is rounded one by one in their order, so the bytes are the same.
//!
//! Scales are chosen per block or sub-block. Q4_0, Q5_0 and Q8_0 take them from the largest value. The K formats try some
//! scales and take the one of least weighted squared error, weights growing with the values' size; the scales of sub-blocks are
//! then rounded to 6 or 8 bits, and the codes chosen anew for the rounded ones.

use half::{bf16, f16};
use rayon::prelude::*;

use super::ggml::GgmlType;

/// Appends `x`, whole blocks of `ty`, to `out`; false, and nothing is appended, for types that are only read here.
///
/// # Panics
/// When `x` is not whole blocks: rows are held against the type before.
pub fn quantize(ty: GgmlType, x: &[f32], out: &mut Vec<u8>) -> bool {
    assert!(x.len().is_multiple_of(ty.block()), "whole blocks of {}", ty.name());
    let encode: fn(&[f32], &mut [u8]) = match ty {
        GgmlType::F32 => |x, b| b.copy_from_slice(&x[0].to_le_bytes()),
        GgmlType::F16 => |x, b| b.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => |x, b| b.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q6_K => q6_k,
        GgmlType::Q4_1
        | GgmlType::Q5_1
        | GgmlType::Q2_K
        | GgmlType::Q3_K
        | GgmlType::Q5_K
        | GgmlType::IQ4_NL
        | GgmlType::IQ4_XS => return false,
    };
    /// Values that one thread takes at a time, at least.
    const GRAIN: usize = 1 << 12;
    let start = out.len();
    out.resize(start + x.len() / ty.block() * ty.block_bytes(), 0);
    let grain = (GRAIN / ty.block()).max(1);
    let blocks = out[start..].par_chunks_exact_mut(ty.block_bytes()).with_min_len(grain);
    blocks.zip(x.par_chunks_exact(ty.block()).with_min_len(grain)).for_each(|(b, x)| encode(x, b));
    true
}

/// The value of the largest size, the first of equals.
fn extreme(x: &[f32]) -> f32 {
    let (mut size, mut value) = (0f32, 0f32);
    for &v in x {
        if v.abs() > size {
            (size, value) = (v.abs(), v);
        }
    }
    value
}

fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

fn put_half(b: &mut [u8], x: f32) -> f32 {
    let x = f16::from_f32(x);
    b[..2].copy_from_slice(&x.to_le_bytes());
    x.to_f32()
}

fn q4_0(x: &[f32], b: &mut [u8]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    put_half(b, d);
    let code = |v: f32| ((v * id + 8.5) as i8).min(15) as u8;
    for j in 0..16 {
        b[2 + j] = code(x[j]) | code(x[j + 16]) << 4;
    }
}

fn q5_0(x: &[f32], b: &mut [u8]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    put_half(b, d);
    let code = |v: f32| ((v * id + 16.5) as i8).min(31) as u8;
    let mut fifth = 0u32;
    for j in 0..16 {
        let (low, high) = (code(x[j]), code(x[j + 16]));
        b[6 + j] = low & 15 | (high & 15) << 4;
        fifth |= u32::from(low >> 4) << j | u32::from(high >> 4) << (j + 16);
    }
    b[2..6].copy_from_slice(&fifth.to_le_bytes());
}

fn q8_0(x: &[f32], b: &mut [u8]) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    put_half(b, d);
    for (b, v) in b[2..].iter_mut().zip(x) {
        *b = (v * id).round() as i8 as u8;
    }
}

/// The nearest whole number, of two the even one, of a number of at most 2²² in size: ggml adds and takes away 1.5 · 2²³.
fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Below this a block is all zeros.
const NOTHING: f32 = 1e-15;

/// Scale, minimum and codes 0 to `most` of a sub-block (ggml's `make_qkx2_quants`): the best of some scales around that of the
/// range, each with the minimum that fits it best.
fn scale_and_min(x: &[f32; 32], weights: &[f32; 32], most: i32, from: f32, steps: i32, codes: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |v: f32, iscale: f32, min: f32| nearest(iscale * (v - min)).clamp(0, most);
    let error = |scale: f32, min: f32, codes: &[u8]| {
        let mut error = 0f32;
        for ((&x, &w), &l) in x.iter().zip(weights).zip(codes) {
            let difference = scale * f32::from(l) + min - x;
            error += w * (difference * difference);
        }
        error
    };
    let iscale = most as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    codes.iter_mut().zip(x).for_each(|(l, &x)| *l = code(x, iscale, min) as u8);
    let mut best = error(scale, min, codes);
    let mut tried = [0u8; 32];
    for step in 0..=steps {
        // The minimum is that of the best so far.
        let iscale = (from + 0.1f32 * step as f32 + most as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((tried, &x), &w) in tried.iter_mut().zip(x).zip(weights) {
            let l = code(x, iscale, min) as f32;
            *tried = l as u8;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                (this_min, this_scale) = (0.0, sum_xl / sum_l2);
            }
            let found = error(this_scale, this_min, &tried);
            if found < best {
                codes.copy_from_slice(&tried);
                (best, scale, min) = (found, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

fn q4_k(x: &[f32], b: &mut [u8]) {
    let mut codes = [0u8; 256];
    let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
    for (j, (x, codes)) in x.as_chunks::<32>().0.iter().zip(codes.chunks_exact_mut(32)).enumerate() {
        let squares = x.iter().fold(0f32, |sum, x| sum + x * x);
        let average = (squares / 32.0).sqrt();
        let weights = x.map(|x| average + x.abs());
        (scales[j], mins[j]) = scale_and_min(x, &weights, 15, -1.0, 20, codes);
    }
    let largest = |of: &[f32; 8]| of.iter().fold(0f32, |m, &s| if s > m { s } else { m });
    let (scale, min) = (largest(&scales), largest(&mins));
    let rounded =
        |of: [f32; 8], by: f32| of.map(|s| (nearest(if by > 0.0 { 63.0 / by } else { 0.0 } * s) as u8).min(63));
    let (ls, lm) = (rounded(scales, scale), rounded(mins, min));
    for j in 0..4 {
        b[4 + j] = ls[j] | (ls[j + 4] >> 4) << 6;
        b[8 + j] = lm[j] | (lm[j + 4] >> 4) << 6;
        b[12 + j] = ls[j + 4] & 15 | (lm[j + 4] & 15) << 4;
    }
    let d = put_half(b, scale / 63.0);
    let dmin = put_half(&mut b[2..], min / 63.0);
    for (j, (x, codes)) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let (d, m) = (d * f32::from(ls[j]), dmin * f32::from(lm[j]));
        if d != 0.0 {
            codes.iter_mut().zip(x).for_each(|(l, x)| *l = nearest((x + m) / d).clamp(0, 15) as u8);
        }
    }
    for (bytes, codes) in b[16..].chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        bytes.iter_mut().enumerate().for_each(|(l, b)| *b = codes[l] | codes[l + 32] << 4);
    }
}

/// The scale of 16 values and their codes 0 to 63 (ggml's `make_qx_quants`): the one of least squared error, of some around that
/// of the largest.
fn scale(x: &[f32], codes: &mut [u8]) -> f32 {
    let max = extreme(x);
    if max.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let code = |x: f32, iscale: f32| nearest(iscale * x).clamp(-32, 31);
    let sums = |iscale: f32| {
        let (mut sum_lx, mut sum_l2) = (0f32, 0f32);
        for &x in x {
            let (l, w) = (code(x, iscale) as f32, x * x);
            sum_lx += w * x * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut take = |iscale: f32| codes.iter_mut().zip(x).for_each(|(l, &x)| *l = (code(x, iscale) + 32) as u8);
    let iscale = -32.0 / max;
    take(iscale);
    let (sum_lx, sum_l2) = sums(iscale);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(32.0 + 0.1f32 * step as f32) / max;
        let (sum_lx, sum_l2) = sums(iscale);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            take(iscale);
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    scale
}

fn q6_k(x: &[f32], b: &mut [u8]) {
    let mut codes = [0u8; 256];
    let mut scales = [0f32; 16];
    for ((s, x), codes) in scales.iter_mut().zip(x.chunks_exact(16)).zip(codes.chunks_exact_mut(16)) {
        *s = scale(x, codes);
    }
    let max = extreme(&scales);
    b.fill(0);
    if max.abs() < NOTHING {
        return;
    }
    let iscale = -128.0 / max;
    let d = put_half(&mut b[208..], 1.0 / iscale);
    for (j, s) in scales.iter().enumerate() {
        let rounded = nearest(iscale * s).min(127) as i8;
        b[192 + j] = rounded as u8;
        let d = d * f32::from(rounded);
        if d != 0.0 {
            for (l, x) in codes[16 * j..].iter_mut().zip(&x[16 * j..16 * j + 16]) {
                *l = (nearest(x / d).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    for (part, codes) in codes.chunks_exact(128).enumerate() {
        for l in 0..32 {
            let q = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
            b[64 * part + l] = q[0] & 15 | (q[2] & 15) << 4;
            b[64 * part + 32 + l] = q[1] & 15 | (q[3] & 15) << 4;
            b[128 + 32 * part + l] = q[0] >> 4 | (q[1] >> 4) << 2 | (q[2] >> 4) << 4 | (q[3] >> 4) << 6;
        }
    }
}
