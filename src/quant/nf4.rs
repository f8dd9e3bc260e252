//! 4-bit NormalFloat in bitsandbytes' layout, bit for bit (bitsandbytes 0.50 on the CPU, torch with
//! AVX2). See [`Nf4Layout`] for where the parts are.
//!
//! * A block is 64 consecutive elements of the flattened tensor; `absmax = max |x|`.
//! * `v = x · (1 / absmax)`, and the code is the number of [`THRESHOLDS`] that `v` is above.
//! * Decoding: `CODE[code] · absmax`.
//! * Double quantization subtracts the mean of all absmax, then stores each as an index into
//!   the [`dynamic_map`], scaled by the largest of its 256 neighbours:
//!   `absmax = map[index] · nested + offset`.

use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;

use crate::dtype::{DType, Nf4Layout};
use crate::{Error, Result};

const BLOCK: usize = Nf4Layout::BLOCK;
const NESTED_BLOCK: usize = Nf4Layout::NESTED_BLOCK;

/// The 16 values of NF4 (bitsandbytes `get_4bit_type("nf4")`).
#[rustfmt::skip]
pub const CODE: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

/// What is between them: `(CODE[i] + CODE[i + 1]) / 2` in f32.
pub const THRESHOLDS: [f32; 15] = {
    let mut t = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        t[i] = (CODE[i] + CODE[i + 1]) / 2.0;
        i += 1;
    }
    t
};

/// The signed map, by which double quantization stores absmax.
pub fn dynamic_map() -> &'static [f32; 256] {
    &super::dynamic::signed().values
}

/// Entries of the table by which bitsandbytes' CPU code finds a value's nearest map entry.
const LOOKUP: usize = 65536;

/// `LOOKUP_TABLE[i]` is the index of the map entry nearest to `-1 + 2 i / 65535`, the lower of two.
static LOOKUP_TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let map = dynamic_map();
    let mut index = 0;
    let entry = |i: usize| {
        let value = -1.0 + (2.0 * i as f32) / (LOOKUP - 1) as f32;
        while index < 255 && 0.5 * (map[index] + map[index + 1]) < value {
            index += 1;
        }
        index as u8
    };
    (0..LOOKUP).map(entry).collect()
});

/// The sum torch computes of a contiguous f32 tensor on an AVX2 machine with one thread
/// (`aten/native/cpu/SumKernel.cpp`, cascade sum): 8 lanes × 4 accumulators × 4 levels of partial
/// sums. With 32768 values or more, torch may split the sum among its threads; bits then depend on
/// their number there, but not here.
fn torch_sum(x: &[f32]) -> f32 {
    const LANES: usize = 8;
    if x.len() < LANES {
        let columns: Vec<[f32; 1]> = x.iter().map(|&v| [v]).collect();
        return torch_row_sum(&columns)[0];
    }
    let (vectors, rest) = x.as_chunks::<LANES>();
    let lanes = torch_row_sum(vectors);
    let rest = rest.iter().fold(0.0, |sum, v| sum + v);
    lanes.iter().fold(rest, |sum, v| sum + v)
}

/// The lane-wise sum of `rows`, four at a time.
fn torch_row_sum<const L: usize>(rows: &[[f32; L]]) -> [f32; L] {
    const COLUMNS: usize = 4;
    const LEVELS: usize = 4;
    let add = |a: &mut [f32; L], b: &[f32; L]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    let (groups, rest) = rows.as_chunks::<COLUMNS>();
    let n = groups.len();
    let ceil_log2 = if n <= 2 { 1 } else { (n - 1).ilog2() as usize + 1 };
    let power = (ceil_log2 / LEVELS).max(4);
    let mut levels = [[[0f32; L]; COLUMNS]; LEVELS];
    for (i, group) in groups.iter().enumerate() {
        for (sum, v) in levels[0].iter_mut().zip(group) {
            add(sum, v);
        }
        // Every 2^power groups the level is emptied into the next, which spills likewise.
        let done = i + 1;
        if done.is_multiple_of(1 << power) {
            for j in 1..LEVELS {
                let from = std::mem::replace(&mut levels[j - 1], [[0.0; L]; COLUMNS]);
                for (sum, v) in levels[j].iter_mut().zip(&from) {
                    add(sum, v);
                }
                if (done >> (j * power)) & ((1 << power) - 1) != 0 {
                    break;
                }
            }
        }
    }
    let [mut total, others @ ..] = levels;
    for level in &others {
        for (sum, v) in total.iter_mut().zip(level) {
            add(sum, v);
        }
    }
    let [mut sum, others @ ..] = total;
    for row in rest {
        add(&mut sum, row);
    }
    for column in &others {
        add(&mut sum, column);
    }
    sum
}

/// Quantizes one block of at most 64 into its codes; returns absmax.
fn quantize_block(x: &[f32], codes: &mut [u8]) -> f32 {
    // A NaN must come out as a NaN, which `f32::max` would drop: `finish` refuses it.
    let absmax = x.iter().fold(0f32, |m, v| if v.abs() > m || v.is_nan() { v.abs() } else { m });
    // bitsandbytes keeps the reciprocal of an all-zero block finite the same way.
    let scale = 1.0 / absmax.max(1e-38);
    let mut padded = [0f32; BLOCK];
    padded[..x.len()].copy_from_slice(x);
    let mut block = [0u8; BLOCK];
    for (code, x) in block.iter_mut().zip(&padded) {
        let v = x * scale;
        *code = THRESHOLDS.iter().fold(0, |n, &t| n + u8::from(v > t));
    }
    // An odd end is filled up with the code of zero, as bitsandbytes pads with 0.0.
    for (byte, pair) in codes.iter_mut().zip(block.as_chunks::<2>().0) {
        *byte = pair[0] << 4 | pair[1];
    }
    absmax
}

/// Quantizes a tensor that comes in pieces of any size, in order.
pub struct Quantizer {
    elements: usize,
    double: bool,
    /// The output; its codes fill up as elements come.
    bytes: Vec<u8>,
    absmax: Vec<f32>,
    /// Elements that do not fill a block yet.
    pending: Vec<f32>,
}

impl Quantizer {
    /// For a tensor of `elements` values.
    pub fn new(elements: usize, double: bool) -> Quantizer {
        let layout = Nf4Layout::new(elements, double);
        Quantizer {
            elements,
            double,
            bytes: vec![0; layout.bytes],
            absmax: Vec::with_capacity(elements.div_ceil(BLOCK)),
            pending: Vec::with_capacity(BLOCK),
        }
    }

    /// Takes the next elements.
    ///
    /// # Panics
    /// When more come than were announced: a mistake of the caller, whatever the data.
    pub fn push(&mut self, mut x: &[f32]) {
        let taken = self.absmax.len() * BLOCK + self.pending.len();
        assert!(x.len() <= self.elements - taken, "{} elements for {}", taken + x.len(), self.elements);
        if !self.pending.is_empty() {
            let (now, later) = x.split_at(x.len().min(BLOCK - self.pending.len()));
            self.pending.extend_from_slice(now);
            x = later;
            if self.pending.len() == BLOCK {
                let block = std::mem::take(&mut self.pending);
                self.blocks(&block);
                self.pending = block;
                self.pending.clear();
            }
        }
        let (whole, rest) = x.split_at(x.len() - x.len() % BLOCK);
        self.blocks(whole);
        self.pending.extend_from_slice(rest);
    }

    /// Quantizes blocks of which only the last may be short.
    fn blocks(&mut self, x: &[f32]) {
        /// Blocks that one thread takes at a time.
        const GRAIN: usize = 256;
        let first = self.absmax.len();
        self.absmax.resize(first + x.len().div_ceil(BLOCK), 0.0);
        let codes = &mut self.bytes[first * BLOCK / 2..][..x.len().div_ceil(2)];
        self.absmax[first..]
            .par_chunks_mut(GRAIN)
            .zip(codes.par_chunks_mut(GRAIN * BLOCK / 2))
            .zip(x.par_chunks(GRAIN * BLOCK))
            .for_each(|((absmax, codes), x)| {
                for ((a, c), x) in absmax.iter_mut().zip(codes.chunks_mut(BLOCK / 2)).zip(x.chunks(BLOCK)) {
                    *a = quantize_block(x, c);
                }
            });
    }

    /// The bytes, in the order of [`Nf4Layout`]. Fails when elements are missing, or one was not
    /// finite: NF4 has no code for it and its block would be lost.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let rest = std::mem::take(&mut self.pending);
        self.blocks(&rest);
        let Quantizer { elements, double, mut bytes, absmax, .. } = self;
        let layout = Nf4Layout::new(elements, double);
        if absmax.len() != elements.div_ceil(BLOCK) {
            return Err(Error::Unsupported {
                what: format!("a tensor of {elements} elements of which fewer came"),
                hint: "push all of them".into(),
            });
        }
        if let Some(block) = absmax.iter().position(|a| !a.is_finite()) {
            return Err(Error::unsupported(
                format!("quantizing NaN or infinity (in elements {}..{})", block * BLOCK, (block + 1) * BLOCK),
                "the checkpoint is damaged: take another copy, or do not quantize this tensor",
            ));
        }
        if !double {
            bytes[layout.absmax].copy_from_slice(&le_bytes(&absmax));
            return Ok(bytes);
        }
        let offset = if absmax.is_empty() { 0.0 } else { torch_sum(&absmax) / absmax.len() as f32 };
        let centred: Vec<f32> = absmax.iter().map(|a| a - offset).collect();
        let mut nested = Vec::with_capacity(centred.len().div_ceil(NESTED_BLOCK));
        for (indices, x) in bytes[layout.absmax].chunks_mut(NESTED_BLOCK).zip(centred.chunks(NESTED_BLOCK)) {
            let absmax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            nested.push(absmax);
            if absmax > 0.0 {
                let scale = 1.0 / absmax;
                for (index, x) in indices.iter_mut().zip(x) {
                    let v = (x * scale).clamp(-1.0, 1.0);
                    *index = LOOKUP_TABLE[((v + 1.0) * 0.5 * (LOOKUP - 1) as f32 + 0.5) as usize];
                }
            }
        }
        bytes[layout.nested].copy_from_slice(&le_bytes(&nested));
        bytes[layout.offset].copy_from_slice(&offset.to_le_bytes());
        Ok(bytes)
    }
}

fn le_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Quantizes a whole tensor.
pub fn quantize(x: &[f32], double: bool) -> Result<Vec<u8>> {
    let mut quantizer = Quantizer::new(x.len(), double);
    quantizer.push(x);
    quantizer.finish()
}

/// A quantized tensor's parts, wherever they are (in one stretch, or apart in a mapped file).
#[derive(Clone, Copy, Debug)]
pub struct Nf4<'a> {
    /// Two codes a byte, high nibble first.
    pub codes: &'a [u8],
    /// Scales, one for 64 elements.
    pub absmax: Absmax<'a>,
}

/// How the block scales are stored. f32 values are little-endian bytes.
#[derive(Clone, Copy, Debug)]
pub enum Absmax<'a> {
    /// One f32 a block.
    Plain(&'a [u8]),
    /// Quantized themselves: `map[indices[b]] · nested[b / 256] + offset`.
    Double {
        /// One code a block, into the signed dynamic map.
        indices: &'a [u8],
        /// One f32 for 256 blocks.
        nested: &'a [u8],
        /// Mean that was subtracted before they were quantized.
        offset: f32,
    },
}

impl<'a> Nf4<'a> {
    /// The parts of `elements` values in the order of [`Nf4Layout`]; `None` if `bytes` is too short.
    pub fn new(bytes: &'a [u8], elements: usize, double: bool) -> Option<Nf4<'a>> {
        let layout = Nf4Layout::new(elements, double);
        let absmax = bytes.get(layout.absmax)?;
        let absmax = match double {
            false => Absmax::Plain(absmax),
            true => Absmax::Double {
                indices: absmax,
                nested: bytes.get(layout.nested)?,
                offset: f32::from_le_bytes(bytes.get(layout.offset)?.try_into().ok()?),
            },
        };
        Some(Nf4 { codes: bytes.get(layout.codes)?, absmax })
    }

    /// The scale of a block.
    pub fn absmax(&self, block: usize) -> f32 {
        let float = |bytes: &[u8], i: usize| {
            let b = &bytes[4 * i..4 * i + 4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        match self.absmax {
            Absmax::Plain(absmax) => float(absmax, block),
            Absmax::Double { indices, nested, offset } => {
                dynamic_map()[indices[block] as usize] * float(nested, block / NESTED_BLOCK) + offset
            }
        }
    }

    /// Decodes `elements`, which may start and end anywhere, to f32.
    ///
    /// # Panics
    /// When `out` has another length, or the tensor is shorter.
    pub fn dequantize(&self, elements: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), elements.len(), "room for the elements asked for");
        let mut at = elements.start;
        let mut out = out;
        while at < elements.end {
            let end = ((at / BLOCK + 1) * BLOCK).min(elements.end);
            let (now, later) = std::mem::take(&mut out).split_at_mut(end - at);
            let absmax = self.absmax(at / BLOCK);
            // 16 products a block instead of 64.
            let values = CODE.map(|c| c * absmax);
            let mut code = at;
            if code % 2 == 1 {
                now[0] = values[(self.codes[code / 2] & 15) as usize];
                code += 1;
            }
            let now = &mut now[code - at..];
            for (pair, byte) in now.chunks_mut(2).zip(&self.codes[code / 2..]) {
                pair[0] = values[(byte >> 4) as usize];
                if let Some(second) = pair.get_mut(1) {
                    *second = values[(byte & 15) as usize];
                }
            }
            out = later;
            at = end;
        }
    }
}

impl Nf4<'_> {
    /// The parts put together in the order of [`Nf4Layout`].
    pub fn to_layout(&self, elements: usize) -> (DType, Vec<u8>) {
        let double = matches!(self.absmax, Absmax::Double { .. });
        let layout = Nf4Layout::new(elements, double);
        let mut bytes = vec![0; layout.bytes];
        bytes[layout.codes].copy_from_slice(self.codes);
        match self.absmax {
            Absmax::Plain(absmax) => bytes[layout.absmax].copy_from_slice(absmax),
            Absmax::Double { indices, nested, offset } => {
                bytes[layout.absmax].copy_from_slice(indices);
                bytes[layout.nested].copy_from_slice(nested);
                bytes[layout.offset].copy_from_slice(&offset.to_le_bytes());
            }
        }
        (if double { DType::Nf4Dq } else { DType::Nf4 }, bytes)
    }
}

/// Decodes all of a tensor in the order of [`Nf4Layout`] to f32.
///
/// # Panics
/// When `bytes` is shorter than the layout of `out.len()` elements.
pub fn dequantize(bytes: &[u8], double: bool, out: &mut [f32]) {
    /// Elements one thread takes at a time.
    const GRAIN: usize = 1 << 14;
    let Some(tensor) = Nf4::new(bytes, out.len(), double) else {
        panic!("{} bytes for {} elements of NF4", bytes.len(), out.len());
    };
    out.par_chunks_mut(GRAIN).enumerate().for_each(|(i, out)| {
        let start = i * GRAIN;
        tensor.dequantize(start..start + out.len(), out);
    });
}
