//! Vectors of floats per instruction set, as the thin product needs them: loads that widen 16-bit formats, and the
//! values of a block of NF4 codes made in registers.

use half::{bf16, f16};

use super::kernel::*;
use super::operand::*;

/// The vectors of an instruction set.
///
/// # Safety of the methods
/// The processor has the instruction set, and pointers lead to as many elements as are read. All are
/// `#[inline(always)]`, to become part of a function that has the instruction set enabled.
pub(super) trait Vector {
    type V: Copy;
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where there is an instruction for it.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn f32(p: *const f32) -> Self::V;
    unsafe fn bf16(p: *const bf16) -> Self::V;
    unsafe fn f16(p: *const f16) -> Self::V;
    /// Vector `v` of the values, not yet scaled, of the block of NF4 codes at `codes`, in the order of
    /// [`nf4_place`](Self::nf4_place).
    unsafe fn nf4(codes: *const u8, v: usize) -> Self::V;
    /// Where element `i` of a block is among the values that [`nf4`](Self::nf4) gives.
    fn nf4_place(i: usize) -> usize;
    /// The sum of the lanes, by halves.
    unsafe fn sum(v: Self::V) -> f32;
}

/// Hints that the line at `p` is about to be read.
#[inline(always)]
pub(super) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address has no effect but on the cache; SSE is baseline.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The values of both codes of a byte, the high one first.
static NF4_PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [NF4[byte >> 4], NF4[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Four values of NF4 in the order of their elements.
///
/// # Safety
/// The block at `codes` is 32 bytes, and `v` below 16.
#[inline(always)]
unsafe fn nf4_quad(codes: *const u8, v: usize) -> [f32; 4] {
    // SAFETY: bytes 2v and 2v + 1 of the caller's 32.
    let (a, b) = unsafe { (*codes.add(2 * v), *codes.add(2 * v + 1)) };
    let ([x, y], [z, w]) = (NF4_PAIRS[a as usize], NF4_PAIRS[b as usize]);
    [x, y, z, w]
}

impl Vector for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|l| a[l] + b[l])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|l| c[l] + a[l] * b[l])
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> Self::V {
        // SAFETY: the caller's four floats; arrays need no alignment beyond f32's.
        unsafe { p.cast::<Self::V>().read() }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller's four elements.
        unsafe { p.cast::<[bf16; 4]>().read() }.map(widen)
    }
    #[inline(always)]
    unsafe fn f16(p: *const f16) -> Self::V {
        // SAFETY: the caller's four elements.
        unsafe { p.cast::<[f16; 4]>().read() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn nf4(codes: *const u8, v: usize) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { nf4_quad(codes, v) }
    }
    #[inline(always)]
    fn nf4_place(i: usize) -> usize {
        i
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
}

/// A bf16 is the upper half of the f32 of its value.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;

#[cfg(target_arch = "aarch64")]
impl Vector for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: NEON is part of the architecture; so in all that follows.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as for `splat`.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as for `splat`.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> Self::V {
        // SAFETY: the caller's four floats.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller's four elements.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn f16(p: *const f16) -> Self::V {
        // SAFETY: the caller's four elements.
        let x = unsafe { p.cast::<[f16; 4]>().read() }.map(f16::to_f32);
        // SAFETY: four floats.
        unsafe { vld1q_f32(x.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn nf4(codes: *const u8, v: usize) -> Self::V {
        // SAFETY: the caller's promise; four floats.
        unsafe { vld1q_f32(nf4_quad(codes, v).as_ptr()) }
    }
    #[inline(always)]
    fn nf4_place(i: usize) -> usize {
        i
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: as for `splat`.
        unsafe { vaddvq_f32(v) }
    }
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// x86 takes a block as eight words of eight codes: word `l`, shifted right by 4s, has code `8l + (s ^ 1)` (the high
/// one of a byte comes first) in its lowest bits, where the permutes look. So the values come as eight vectors of
/// eight, the first codes of each word, then the second, and so on.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn by_words(i: usize) -> usize {
    ((i % 8) ^ 1) * 8 + i / 8
}

#[cfg(target_arch = "x86_64")]
impl Vector for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: the caller has AVX2, FMA and F16C; so in all that follows.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as for `splat`.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as for `splat`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> Self::V {
        // SAFETY: the caller's eight floats.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller's eight elements.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn f16(p: *const f16) -> Self::V {
        // SAFETY: the caller's eight elements.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn nf4(codes: *const u8, v: usize) -> Self::V {
        // SAFETY: the caller's 32 bytes; the table holds two vectors of eight floats.
        unsafe {
            let words = _mm256_loadu_si256(codes.cast());
            let (low, high) = (_mm256_loadu_ps(NF4.as_ptr()), _mm256_loadu_ps(NF4.as_ptr().add(8)));
            // The permutes look at bits 0..3, the blend at bit 3 moved to the sign.
            let code = _mm256_srl_epi32(words, _mm_cvtsi32_si128(4 * v as i32));
            let upper = _mm256_sll_epi32(words, _mm_cvtsi32_si128(28 - 4 * v as i32));
            _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(low, code),
                _mm256_permutevar8x32_ps(high, code),
                _mm256_castsi256_ps(upper),
            )
        }
    }
    #[inline(always)]
    fn nf4_place(i: usize) -> usize {
        by_words(i)
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: as for `splat`.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: the caller has AVX-512F and all that AVX2 above has; so in all that follows.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as for `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as for `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f32(p: *const f32) -> Self::V {
        // SAFETY: the caller's sixteen floats.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller's sixteen elements.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn f16(p: *const f16) -> Self::V {
        // SAFETY: the caller's sixteen elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn nf4(codes: *const u8, v: usize) -> Self::V {
        // SAFETY: the caller's 32 bytes; the table holds sixteen floats.
        unsafe {
            // The words twice: codes 2v of each in the lower half, codes 2v + 1 in the upper one.
            let words = _mm512_broadcast_i64x4(_mm256_loadu_si256(codes.cast()));
            let (low, high) = (8 * v as i64, 8 * v as i64 + 4);
            let (low, high) = (low << 32 | low, high << 32 | high);
            let shifts = _mm512_setr_epi64(low, low, low, low, high, high, high, high);
            // The permute looks at bits 0..4.
            _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), _mm512_loadu_ps(NF4.as_ptr()))
        }
    }
    #[inline(always)]
    fn nf4_place(i: usize) -> usize {
        by_words(i)
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: as for `splat`.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            <Avx2 as Vector>::sum(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
}
