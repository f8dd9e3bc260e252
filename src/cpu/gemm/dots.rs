//! Squares of C on AVX512_BF16, whose one instruction adds two products of bf16 to each of sixteen f32: what
//! [`pieces`](super::pieces) calls. `vdpbf16ps` rounds after each product, to the nearest, and takes and gives subnormal numbers
//! as zero.

use super::pieces::PAIR;
use std::arch::x86_64::*;

/// `C = (fresh ? 0 : C) + A B` of one piece each: rows a third at a time, so that their sums, 32 columns each, stay in registers.
///
/// # Safety
/// As for `pieces::sums`; `ldc` in bytes.
pub(super) unsafe fn square(a: *const u8, b: *const u8, steps: usize, c: *mut f32, ldc: usize, fresh: bool) {
    let at = |row: usize| (a.wrapping_add(64 * row), c.wrapping_byte_add(ldc * row));
    // SAFETY: the caller's promise: 11 + 11 + 10 rows of the square.
    unsafe {
        rows::<11>(at(0), b, steps, ldc, fresh);
        rows::<11>(at(11), b, steps, ldc, fresh);
        rows::<10>(at(22), b, steps, ldc, fresh);
    }
}

/// # Safety
/// As for [`square`], of R of its rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const R: usize>((a, c): (*const u8, *mut f32), b: *const u8, steps: usize, ldc: usize, fresh: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    if !fresh {
        for (i, sums) in sums.iter_mut().enumerate() {
            let c = c.wrapping_byte_add(ldc * i);
            // SAFETY: row i of C, 32 floats.
            *sums = unsafe { [_mm512_loadu_ps(c), _mm512_loadu_ps(c.wrapping_add(16))] };
        }
    }
    for step in 0..steps {
        let (a, b) = (a.wrapping_add(step * PAIR), b.wrapping_add(step * PAIR));
        for w in 0..16 {
            // SAFETY: row w of this step's two tiles of B; any bits are bf16.
            let columns: [__m512bh; 2] = unsafe {
                let row = |tile: usize| _mm512_loadu_si512(b.wrapping_add(1024 * tile + 64 * w).cast());
                [std::mem::transmute::<__m512i, __m512bh>(row(0)), std::mem::transmute::<__m512i, __m512bh>(row(1))]
            };
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: word w of row i of this step's tiles of A.
                let pair: __m512bh = unsafe {
                    let word = a.wrapping_add(64 * i + 4 * w).cast::<i32>().read_unaligned();
                    std::mem::transmute(_mm512_set1_epi32(word))
                };
                for (sum, columns) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, pair, columns);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let c = c.wrapping_byte_add(ldc * i);
        // SAFETY: row i of C, 32 floats that nobody else uses.
        unsafe {
            _mm512_storeu_ps(c, sums[0]);
            _mm512_storeu_ps(c.wrapping_add(16), sums[1]);
        }
    }
}
