//! Element types, what they take in memory, and the type of a value (dtype and shape).

use std::fmt;
use std::ops::Range;

/// Every part of a stored tensor starts on this boundary, on every backend: it is WebGPU's default
/// `min_storage_buffer_offset_alignment`, so that one plan serves all backends.
pub const ALIGN: usize = 256;

/// `bytes`, rounded up to a multiple of [`ALIGN`].
pub const fn align(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// How the elements of a value are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// The upper half of an F32: 8 bits of exponent, 7 of mantissa.
    BF16,
    /// 16-bit IEEE float: 5 bits of exponent, 10 of mantissa.
    F16,
    /// 32-bit signed integer: ids, labels, positions, ranges.
    I32,
    /// 32-bit unsigned integer: random-number keys, packed 8-bit codes, words of tables.
    U32,
    /// 4-bit NormalFloat, blocks of 64 over the flattened tensor, one f32 absmax a block.
    Nf4,
    /// The same with the absmax itself quantized (bitsandbytes' `bnb_4bit_use_double_quant`).
    Nf4Dq,
}

impl DType {
    /// Every type, once.
    pub const ALL: [DType; 7] = [DType::F32, DType::BF16, DType::F16, DType::I32, DType::U32, DType::Nf4, DType::Nf4Dq];

    /// Its name in prints and messages: `f32`, `bf16`, `nf4_dq`.
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

    /// Whether elements are packed with scales, so that a single one has no address.
    pub fn is_quantized(self) -> bool {
        matches!(self, DType::Nf4 | DType::Nf4Dq)
    }

    /// Whether it is a float type with one number an element.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the parts of an NF4 tensor of `n` elements are in its one stretch of bytes. Codes are in
/// bitsandbytes' order (two a byte, high nibble first), so files map straight to the device.
///
/// * `codes`: `⌈n/2⌉` bytes
/// * plain: `absmax`: f32 × `⌈n/64⌉`; `nested` and `offset` are empty
/// * double: `absmax`: u8 × `⌈n/64⌉` (indices into the signed dynamic map),
///   `nested`: f32 × `⌈⌈n/64⌉/256⌉`, `offset`: one f32 (the mean that was subtracted)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nf4Layout {
    /// Two codes a byte, of 4 bits each.
    pub codes: Range<usize>,
    /// One scale a block of 64 elements: f32, or with double quantization u8.
    pub absmax: Range<usize>,
    /// With double quantization, one f32 for 256 absmax; else empty.
    pub nested: Range<usize>,
    /// With double quantization, the f32 that is added to each decoded absmax; else empty.
    pub offset: Range<usize>,
    /// Bytes of all parts and the padding between them.
    pub bytes: usize,
}

impl Nf4Layout {
    /// Elements that share an absmax.
    pub const BLOCK: usize = 64;
    /// Blocks of absmax that share one nested absmax.
    pub const NESTED_BLOCK: usize = 256;

    /// The layout of `n` elements, with (`double`) or without quantized absmax.
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
    /// How elements are stored.
    pub dtype: DType,
    /// Dimensions, the slowest first.
    pub shape: Vec<usize>,
}

impl Ty {
    /// The type of values of this dtype and shape.
    pub fn new(dtype: DType, shape: &[usize]) -> Ty {
        Ty { dtype, shape: shape.to_vec() }
    }
    /// F32 of this shape.
    pub fn f32(shape: &[usize]) -> Ty {
        Ty::new(DType::F32, shape)
    }
    /// I32 of this shape.
    pub fn i32(shape: &[usize]) -> Ty {
        Ty::new(DType::I32, shape)
    }
    /// U32 of this shape.
    pub fn u32(shape: &[usize]) -> Ty {
        Ty::new(DType::U32, shape)
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes it takes in memory: of quantized types with their scales.
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
