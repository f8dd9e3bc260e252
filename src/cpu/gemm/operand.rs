//! Operands of the matrix product: strided views of stored formats.

use half::{bf16, f16};

/// Elements sharing one NF4 scale.
pub const NF4_BLOCK: usize = 64;
/// NF4 scales sharing one nested scale.
pub const NF4_NESTED_BLOCK: usize = 256;

/// The sixteen NF4 values.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Scales of an NF4 tensor, one per [`NF4_BLOCK`] elements.
#[derive(Clone, Copy)]
pub enum Absmax<'a> {
    /// One f32 a block.
    F32(&'a [f32]),
    /// `map[codes[b]] * nested[(first + b) / 256] + offset`.
    Double {
        /// One code a block.
        codes: &'a [u8],
        /// The value of each code: the signed dynamic map.
        map: &'a [f32; 256],
        /// One f32 for 256 blocks.
        nested: &'a [f32],
        /// Blocks of the first nested scale that are not in the view.
        first: usize,
        /// Mean that was subtracted before the absmax were quantized.
        offset: f32,
    },
}

impl Absmax<'_> {
    #[inline(always)]
    pub(super) fn get(&self, block: usize) -> f32 {
        match self {
            Absmax::F32(s) => s[block],
            Absmax::Double { codes, map, nested, first, offset } => {
                map[codes[block] as usize] * nested[(first + block) / NF4_NESTED_BLOCK] + offset
            }
        }
    }

    /// The scales of consecutive blocks from `first` on.
    #[inline(always)]
    pub(super) fn fill(&self, first: usize, out: &mut [f32]) {
        match self {
            Absmax::F32(s) => out.copy_from_slice(&s[first..first + out.len()]),
            Absmax::Double { codes, map, nested, first: missing, offset } => {
                let mut done = 0;
                while done < out.len() {
                    let block = first + done;
                    let at = missing + block;
                    let n = (NF4_NESTED_BLOCK - at % NF4_NESTED_BLOCK).min(out.len() - done);
                    let factor = nested[at / NF4_NESTED_BLOCK];
                    for (o, &code) in out[done..done + n].iter_mut().zip(&codes[block..block + n]) {
                        *o = map[code as usize] * factor + offset;
                    }
                    done += n;
                }
            }
        }
    }

    fn blocks(&self) -> usize {
        match self {
            Absmax::F32(s) => s.len(),
            Absmax::Double { codes, nested, first, .. } => codes.len().min(nested.len() * NF4_NESTED_BLOCK - first),
        }
    }
}

/// A flat sequence of elements in some stored format.
#[derive(Clone, Copy)]
pub enum Store<'a> {
    /// f32, read as they are.
    F32(&'a [f32]),
    /// bf16, widened where it is read.
    Bf16(&'a [bf16]),
    /// f16, widened where it is read.
    F16(&'a [f16]),
    /// bitsandbytes NF4: two codes per byte, high nibble first.
    Nf4 {
        /// `⌈n/2⌉` bytes.
        codes: &'a [u8],
        /// The scales.
        absmax: Absmax<'a>,
    },
}

impl<'a> Store<'a> {
    /// The elements from `start` on, which must be a block's first one.
    fn from(self, start: usize) -> Store<'a> {
        match self {
            Store::F32(s) => Store::F32(&s[start..]),
            Store::Bf16(s) => Store::Bf16(&s[start..]),
            Store::F16(s) => Store::F16(&s[start..]),
            Store::Nf4 { codes, absmax } => {
                assert!(start.is_multiple_of(NF4_BLOCK), "not the start of a block");
                let block = start / NF4_BLOCK;
                let absmax = match absmax {
                    Absmax::F32(s) => Absmax::F32(&s[block..]),
                    Absmax::Double { codes, map, nested, first, offset } => {
                        let (codes, at) = (&codes[block..], first + block);
                        let (nested, first) = (&nested[at / NF4_NESTED_BLOCK..], at % NF4_NESTED_BLOCK);
                        Absmax::Double { codes, map, nested, first, offset }
                    }
                };
                Store::Nf4 { codes: &codes[start / 2..], absmax }
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Store::F32(s) => s.len(),
            Store::Bf16(s) => s.len(),
            Store::F16(s) => s.len(),
            Store::Nf4 { codes, absmax } => (codes.len() * 2).min(absmax.blocks() * NF4_BLOCK),
        }
    }

    /// Decodes `out.len()` consecutive elements from `start` on.
    #[inline(always)]
    pub(super) fn decode(&self, start: usize, out: &mut [f32]) {
        match self {
            Store::F32(s) => out.copy_from_slice(&s[start..start + out.len()]),
            Store::Bf16(s) => {
                for (o, x) in out.iter_mut().zip(&s[start..]) {
                    *o = f32::from_bits((x.to_bits() as u32) << 16);
                }
            }
            Store::F16(s) => {
                for (o, x) in out.iter_mut().zip(&s[start..]) {
                    *o = x.to_f32();
                }
            }
            Store::Nf4 { codes, absmax } => {
                for (i, o) in (start..).zip(out.iter_mut()) {
                    let code = codes[i / 2] >> (4 * (1 - i % 2)) & 15;
                    *o = NF4[code as usize] * absmax.get(i / NF4_BLOCK);
                }
            }
        }
    }
}

/// A strided matrix view: element (i, j) is `store[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(super) store: Store<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Checks once that every element of the view is inside `store`.
    pub fn new(store: Store<'a>, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1)
                .checked_mul(row_stride)
                .zip((cols - 1).checked_mul(col_stride))
                .and_then(|(r, c)| r.checked_add(c));
            assert!(last.is_some_and(|last| last < store.len()), "matrix view exceeds its store");
        }
        Mat { store, rows, cols, row_stride, col_stride }
    }

    /// A contiguous row-major matrix.
    pub fn row_major(store: Store<'a>, rows: usize, cols: usize) -> Self {
        Self::new(store, rows, cols, cols, 1)
    }

    /// The transposed view: `Mat::row_major(w, out, in).t()` is the B of `y = x * W^T`.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The `rows` rows from `first` on. Of NF4, that must be where a block begins.
    pub fn rows_from(self, first: usize, rows: usize) -> Self {
        Self::new(self.store.from(first * self.row_stride), rows, self.cols, self.row_stride, self.col_stride)
    }

    /// Decodes `out.len()` elements of row `i` from column `from` on. The matrix must be row-major.
    #[inline(always)]
    pub fn decode_row(&self, i: usize, from: usize, out: &mut [f32]) {
        assert!(self.col_stride == 1 && i < self.rows && from + out.len() <= self.cols, "not a stretch of a row");
        self.store.decode(i * self.row_stride + from, out);
    }

    pub(super) fn bf16_data(&self) -> Option<&'a [bf16]> {
        match self.store {
            Store::Bf16(s) => Some(s),
            _ => None,
        }
    }

    pub(super) fn f32_data(&self) -> Option<&'a [f32]> {
        match self.store {
            Store::F32(s) => Some(s),
            _ => None,
        }
    }
}

/// One product of the sum.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// The left operand.
    pub a: Mat<'a>,
    /// The right operand.
    pub b: Mat<'a>,
}
