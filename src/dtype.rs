//! Element types, what they take in memory, and the type of a value (dtype and shape).

use std::fmt;
use std::ops::Range;

/// Every part of a stored tensor starts on this boundary, on every backend: it is WebGPU's default
/// `min_storage_buffer_offset_alignment`, so that one plan serves all backends.
pub const ALIGN: usize = 256;

pub const fn align(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// How the elements of a value are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    BF16,
    F16,
    I32,
    U32,
    /// 4-bit NormalFloat, blocks of 64 over the flattened tensor, one f32 absmax a block.
    Nf4,
    /// The same with the absmax itself quantized (bitsandbytes' `bnb_4bit_use_double_quant`).
    Nf4Dq,
}

impl DType {
    pub const ALL: [DType; 7] = [DType::F32, DType::BF16, DType::F16, DType::I32, DType::U32, DType::Nf4, DType::Nf4Dq];

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::Nf4 => "nf4",
            DType::Nf4Dq => "nf4_dq",
        }
    }

    /// Bytes that `n` elements take, without padding after the last part.
    pub fn bytes(self, n: usize) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4 * n,
            // An odd tail is rounded up to a whole 32-bit word: WGSL has no smaller type.
            DType::BF16 | DType::F16 => (2 * n).next_multiple_of(4),
            DType::Nf4 => Nf4Layout::new(n, false).bytes,
            DType::Nf4Dq => Nf4Layout::new(n, true).bytes,
        }
    }

    pub fn is_quantized(self) -> bool {
        matches!(self, DType::Nf4 | DType::Nf4Dq)
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the parts of an NF4 tensor of `n` elements lie in its one stretch of bytes. Codes are in
/// bitsandbytes' order (two a byte, high nibble first), so files map straight to the device.
///
/// * `codes`: `⌈n/2⌉` bytes
/// * plain: `absmax`: f32 × `⌈n/64⌉`; `nested` and `offset` are empty
/// * double: `absmax`: u8 × `⌈n/64⌉` (indices into the signed dynamic map),
///   `nested`: f32 × `⌈⌈n/64⌉/256⌉`, `offset`: one f32 (the mean that was subtracted)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nf4Layout {
    pub codes: Range<usize>,
    pub absmax: Range<usize>,
    pub nested: Range<usize>,
    pub offset: Range<usize>,
    pub bytes: usize,
}

impl Nf4Layout {
    pub const BLOCK: usize = 64;
    /// Blocks of absmax that share one nested absmax.
    pub const NESTED_BLOCK: usize = 256;

    pub fn new(n: usize, double: bool) -> Nf4Layout {
        let blocks = n.div_ceil(Self::BLOCK);
        let codes = 0..n.div_ceil(2);
        let start = align(codes.end);
        if !double {
            let absmax = start..start + 4 * blocks;
            let end = absmax.end;
            return Nf4Layout { codes, absmax, nested: end..end, offset: end..end, bytes: end };
        }
        let absmax = start..start + blocks;
        let start = align(absmax.end);
        let nested = start..start + 4 * blocks.div_ceil(Self::NESTED_BLOCK);
        let start = align(nested.end);
        let offset = start..start + 4;
        Nf4Layout { codes, absmax, nested, bytes: offset.end, offset }
    }
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ty {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Ty {
    pub fn new(dtype: DType, shape: &[usize]) -> Ty {
        Ty { dtype, shape: shape.to_vec() }
    }
    pub fn f32(shape: &[usize]) -> Ty {
        Ty::new(DType::F32, shape)
    }
    pub fn i32(shape: &[usize]) -> Ty {
        Ty::new(DType::I32, shape)
    }
    pub fn u32(shape: &[usize]) -> Ty {
        Ty::new(DType::U32, shape)
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.len())
    }
    /// Rows of a matrix: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }
    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}
