//! GGUF's block formats, to f32. Blocks are along the last dimension; every multi-byte field is
//! little-endian and a block's scales are f16. The formulas are those of ggml's `ggml-quants.c`,
//! and the products and sums are rounded one by one as there, so the results are the same bits.

use half::{bf16, f16};

/// How a GGUF tensor is stored (`enum ggml_type`). Types that are not listed are not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names under which these formats are known")]
pub enum GgmlType {
    /// 4 bytes an element.
    F32,
    /// 2 bytes an element.
    F16,
    /// 2 bytes an element.
    BF16,
    /// 4-bit codes in blocks of 32, one f16 scale.
    Q4_0,
    /// 4-bit codes in blocks of 32, f16 scale and minimum.
    Q4_1,
    /// 5-bit codes in blocks of 32, one f16 scale.
    Q5_0,
    /// 5-bit codes in blocks of 32, f16 scale and minimum.
    Q5_1,
    /// 8-bit codes in blocks of 32, one f16 scale.
    Q8_0,
    /// 2-bit codes in blocks of 256, of 16 parts with 4-bit scales and minima.
    Q2_K,
    /// 3-bit codes in blocks of 256, of 16 parts with 6-bit scales.
    Q3_K,
    /// 4-bit codes in blocks of 256, of 8 parts with 6-bit scales and minima.
    Q4_K,
    /// 5-bit codes in blocks of 256, of 8 parts with 6-bit scales and minima.
    Q5_K,
    /// 6-bit codes in blocks of 256, of 16 parts with 8-bit scales.
    Q6_K,
    /// Numbers of a table by 4-bit codes in blocks of 32, one f16 scale.
    IQ4_NL,
    /// Numbers of a table by 4-bit codes in blocks of 256, of 8 parts with 6-bit scales.
    IQ4_XS,
}

/// The most elements a block has.
const LARGEST_BLOCK: usize = 256;

impl GgmlType {
    /// Every type that is decoded.
    pub const ALL: [GgmlType; 15] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2_K,
        GgmlType::Q3_K,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
        GgmlType::IQ4_NL,
        GgmlType::IQ4_XS,
    ];

    /// The number of the type in a file.
    pub fn id(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q2_K => 10,
            GgmlType::Q3_K => 11,
            GgmlType::Q4_K => 12,
            GgmlType::Q5_K => 13,
            GgmlType::Q6_K => 14,
            GgmlType::IQ4_NL => 20,
            GgmlType::IQ4_XS => 23,
            GgmlType::BF16 => 30,
        }
    }

    /// The type of this number in a file; None if it is not decoded.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }

    /// Its name in llama.cpp, as in `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            GgmlType::F32 => "F32",
            GgmlType::F16 => "F16",
            GgmlType::BF16 => "BF16",
            GgmlType::Q4_0 => "Q4_0",
            GgmlType::Q4_1 => "Q4_1",
            GgmlType::Q5_0 => "Q5_0",
            GgmlType::Q5_1 => "Q5_1",
            GgmlType::Q8_0 => "Q8_0",
            GgmlType::Q2_K => "Q2_K",
            GgmlType::Q3_K => "Q3_K",
            GgmlType::Q4_K => "Q4_K",
            GgmlType::Q5_K => "Q5_K",
            GgmlType::Q6_K => "Q6_K",
            GgmlType::IQ4_NL => "IQ4_NL",
            GgmlType::IQ4_XS => "IQ4_XS",
        }
    }

    /// Elements in a block.
    pub fn block(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 1,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 | GgmlType::IQ4_NL => 32,
            GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K | GgmlType::IQ4_XS => {
                LARGEST_BLOCK
            }
        }
    }

    /// Bytes a block takes.
    pub fn block_bytes(self) -> usize {
        match self {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            GgmlType::Q4_0 => 2 + 16,
            GgmlType::Q4_1 => 2 + 2 + 16,
            GgmlType::Q5_0 => 2 + 4 + 16,
            GgmlType::Q5_1 => 2 + 2 + 4 + 16,
            GgmlType::Q8_0 => 2 + 32,
            GgmlType::Q2_K => 16 + 64 + 2 + 2,
            GgmlType::Q3_K => 32 + 64 + 12 + 2,
            GgmlType::Q4_K => 2 + 2 + 12 + 128,
            GgmlType::Q5_K => 2 + 2 + 12 + 32 + 128,
            GgmlType::Q6_K => 128 + 64 + 16 + 2,
            GgmlType::IQ4_NL => 2 + 16,
            GgmlType::IQ4_XS => 2 + 2 + 4 + 128,
        }
    }

    /// Bytes of `n` elements; `None` if that is not a whole number of blocks (or overflows).
    pub fn bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block()) {
            return None;
        }
        (n / self.block()).checked_mul(self.block_bytes())
    }
}

/// Decodes whole blocks: `out` takes `bytes.len() / block_bytes * block` elements. What does not
/// fill a block, on either side, is left alone.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => plain(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        GgmlType::BF16 => plain(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        GgmlType::Q4_0 => blocks(ty, bytes, out, q4_0),
        GgmlType::Q4_1 => blocks(ty, bytes, out, q4_1),
        GgmlType::Q5_0 => blocks(ty, bytes, out, q5_0),
        GgmlType::Q5_1 => blocks(ty, bytes, out, q5_1),
        GgmlType::Q8_0 => blocks(ty, bytes, out, q8_0),
        GgmlType::Q2_K => blocks(ty, bytes, out, q2_k),
        GgmlType::Q3_K => blocks(ty, bytes, out, q3_k),
        GgmlType::Q4_K => blocks(ty, bytes, out, q4_k),
        GgmlType::Q5_K => blocks(ty, bytes, out, q5_k),
        GgmlType::Q6_K => blocks(ty, bytes, out, q6_k),
        GgmlType::IQ4_NL => blocks(ty, bytes, out, iq4_nl),
        GgmlType::IQ4_XS => blocks(ty, bytes, out, iq4_xs),
    }
}

fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *o = decode(*b);
    }
}

fn blocks(ty: GgmlType, bytes: &[u8], out: &mut [f32], decode: fn(&[u8], &mut [f32])) {
    for (b, o) in bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block())) {
        decode(b, o);
    }
}

fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

/// `d: f16, qs: [u8; 16]`; `d (q - 8)`. Low nibbles are elements 0..16, high ones 16..32.
fn q4_0(b: &[u8], o: &mut [f32]) {
    let d = half(b);
    for (j, &q) in b[2..18].iter().enumerate() {
        o[j] = d * f32::from((q & 15) as i8 - 8);
        o[j + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `d: f16, m: f16, qs: [u8; 16]`; `d q + m`.
fn q4_1(b: &[u8], o: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (j, &q) in b[4..20].iter().enumerate() {
        o[j] = d * f32::from(q & 15) + m;
        o[j + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits of the block's elements, as two bytes' worth for element `j` and `j + 16`.
fn fifth_bits(qh: u32, j: usize) -> (u8, u8) {
    ((((qh >> j) & 1) << 4) as u8, (((qh >> (j + 16)) & 1) << 4) as u8)
}

/// `d: f16, qh: u32 (fifth bits), qs: [u8; 16]`; `d (q - 16)`.
fn q5_0(b: &[u8], o: &mut [f32]) {
    let (d, qh) = (half(b), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
    for (j, &q) in b[6..22].iter().enumerate() {
        let (low, high) = fifth_bits(qh, j);
        o[j] = d * f32::from((q & 15 | low) as i8 - 16);
        o[j + 16] = d * f32::from((q >> 4 | high) as i8 - 16);
    }
}

/// `d: f16, m: f16, qh: u32 (fifth bits), qs: [u8; 16]`; `d q + m`.
fn q5_1(b: &[u8], o: &mut [f32]) {
    let (d, m, qh) = (half(b), half(&b[2..]), u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
    for (j, &q) in b[8..24].iter().enumerate() {
        let (low, high) = fifth_bits(qh, j);
        o[j] = d * f32::from(q & 15 | low) + m;
        o[j + 16] = d * f32::from(q >> 4 | high) + m;
    }
}

/// `d: f16, qs: [i8; 32]`; `q d`.
fn q8_0(b: &[u8], o: &mut [f32]) {
    let d = half(b);
    for (o, &q) in o.iter_mut().zip(&b[2..34]) {
        *o = f32::from(q as i8) * d;
    }
}

/// `scales: [u8; 16], qs: [u8; 64], d: f16, dmin: f16`; 16 sub-blocks of 16: `d s q - dmin m`, s being the low and m the high
/// nibble of a byte. Each half of 128 elements has 32 bytes of `qs`, two bits a quarter.
fn q2_k(b: &[u8], o: &mut [f32]) {
    let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half(&b[80..]), half(&b[82..]));
    for (j, o) in o.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(scales[j] & 15), dmin * f32::from(scales[j] >> 4));
        for (o, &q) in o.iter_mut().zip(&qs[32 * (j / 8) + 16 * (j % 2)..]) {
            *o = scale * f32::from(q >> (2 * (j % 8 / 2)) & 3) - min;
        }
    }
}

/// `hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: f16`; 16 sub-blocks of 16: `d (s - 32) (q - 4)`. Two bits of q are as in
/// Q2_K, the third one is bit `j / 2` of `hmask`. Four bits of s are nibbles of the first eight bytes, two are in the last four.
fn q3_k(b: &[u8], o: &mut [f32]) {
    let (third, qs, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(&b[108..]));
    for (j, o) in o.chunks_exact_mut(16).enumerate() {
        let s = scales[j % 8] >> (4 * (j / 8)) & 15 | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
        let (scale, at) = (d * f32::from(s as i8 - 32), 16 * (j % 2));
        for ((o, &q), &h) in o.iter_mut().zip(&qs[32 * (j / 8) + at..]).zip(&third[at..]) {
            let q = q >> (2 * (j % 8 / 2)) & 3 | (h >> (j / 2) & 1) << 2;
            *o = scale * f32::from(q as i8 - 4);
        }
    }
}

/// The numbers of IQ4's codes (`kvalues_iq4nl`).
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Sixteen bytes of codes: `d v(q)`. Low nibbles are elements 0..16, high ones 16..32.
fn iq4(d: f32, qs: &[u8], o: &mut [f32]) {
    for (j, &q) in qs[..16].iter().enumerate() {
        o[j] = d * f32::from(IQ4[usize::from(q & 15)]);
        o[j + 16] = d * f32::from(IQ4[usize::from(q >> 4)]);
    }
}

/// `d: f16, qs: [u8; 16]`.
fn iq4_nl(b: &[u8], o: &mut [f32]) {
    iq4(half(b), &b[2..], o);
}

/// `d: f16, scales_h: u16, scales_l: [u8; 4], qs: [u8; 128]`; 8 sub-blocks of 32 with `d (s - 32)` for d, s having four bits of
/// `scales_l` and two of `scales_h`.
fn iq4_xs(b: &[u8], o: &mut [f32]) {
    let (d, high, low, qs) = (half(b), u16::from_le_bytes([b[2], b[3]]), &b[4..8], &b[8..136]);
    for (j, o) in o.chunks_exact_mut(32).enumerate() {
        let s = low[j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) << 4) as u8;
        iq4(d * f32::from(s as i8 - 32), &qs[16 * j..], o);
    }
}

/// The 6-bit scale and minimum of sub-block `j` of 8, from the 12 packed bytes: the first four
/// have six plain bits, the last four get their upper two bits from the first four's bytes.
fn scale_and_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// `d: f16, dmin: f16, scales: [u8; 12], qs: [u8; 128]`; 8 sub-blocks of 32: `d s q - dmin m`.
fn q4_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin, scales, qs) = (half(b), half(&b[2..]), &b[4..16], &b[16..144]);
    for (j, o) in o.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(j, scales);
        let (scale, min) = (d * scale, dmin * min);
        // Two sub-blocks share 32 bytes: the even one has the low nibbles.
        for (o, &q) in o.iter_mut().zip(&qs[32 * (j / 2)..]) {
            *o = scale * f32::from(q >> (4 * (j % 2)) & 15) - min;
        }
    }
}

/// `d: f16, dmin: f16, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128]`; as Q4_K, with sub-block
/// `j`'s fifth bits in bit `j` of `qh`.
fn q5_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin, scales, qh, qs) = (half(b), half(&b[2..]), &b[4..16], &b[16..48], &b[48..176]);
    for (j, o) in o.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(j, scales);
        let (scale, min) = (d * scale, dmin * min);
        for ((o, &q), &h) in o.iter_mut().zip(&qs[32 * (j / 2)..]).zip(qh) {
            *o = scale * f32::from(q >> (4 * (j % 2)) & 15 | (h >> j & 1) << 4) - min;
        }
    }
}

/// `ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16`; 16 sub-blocks of 16: `d s (q - 32)`.
/// Each half of 128 elements has 64 bytes of `ql` (its quarters of 32: two by low, two by high
/// nibbles) and 32 bytes of `qh` (two bits a quarter).
fn q6_k(b: &[u8], o: &mut [f32]) {
    let (ql, qh, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(&b[208..]));
    for (j, o) in o.chunks_exact_mut(32).enumerate() {
        let (part, quarter) = (j / 4, j % 4);
        let low = &ql[64 * part + 32 * (quarter % 2)..];
        let high = &qh[32 * part..];
        for (i, o) in o.iter_mut().enumerate() {
            let q = low[i] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4;
            let scale = d * f32::from(scales[2 * j + i / 16] as i8);
            *o = scale * f32::from(q as i8 - 32);
        }
    }
}
