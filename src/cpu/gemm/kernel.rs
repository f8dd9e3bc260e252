//! Microkernels and packing, per instruction set.

use super::operand::*;
use super::thin::{self, Sums, Thin};
use super::vector::Vector;
use half::bf16;

/// Length of the stack buffers elements are decoded into.
pub(super) const RUN: usize = 512;

/// Rows of a panel operand as the packer sees them: element (p, j) of the panel, p along k, is
/// `store[origin + p * k_stride + j * stride]`.
pub(super) struct Panels<'a> {
    pub(super) store: Store<'a>,
    pub(super) origin: usize,
    pub(super) stride: usize,
    pub(super) k_stride: usize,
    pub(super) width: usize,
    pub(super) depth: usize,
    pub(super) scale: f32,
}

/// What the microkernel reads for one term's share of a k block. Element (i, p) of the rows of A
/// starting at `row` is `a[row * row_step + i * rs + p * cs]`, element (p, j) of a panel of B is
/// `b[panel * panel_step + p * bs + j]`, steps in bytes: f32, or bf16 if the tile is of those.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) a: *const f32,
    pub(super) row_step: usize,
    pub(super) rs: usize,
    pub(super) cs: usize,
    pub(super) b: *const u8,
    pub(super) panel_step: usize,
    pub(super) bs: usize,
    /// Whether B is in bf16: of one sum, all pieces or none.
    pub(super) half: bool,
    pub(super) k: usize,
}

impl Piece {
    pub(super) const NONE: Piece = Piece {
        a: std::ptr::null(),
        row_step: 0,
        rs: 0,
        cs: 0,
        b: std::ptr::null(),
        panel_step: 0,
        bs: 0,
        half: false,
        k: 0,
    };
}

/// One call of the microkernel: `C = beta*C + A*B (+ bias)` over an R x NV*LANES tile.
pub(super) struct Tile<'a> {
    pub(super) pieces: &'a [Piece],
    /// Sums to go on with, of the k before these pieces, in rows of NR. Null: none.
    pub(super) sums: *const f32,
    pub(super) row: usize,
    pub(super) panel: usize,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    pub(super) beta: f32,
    /// Null: none.
    pub(super) bias: *const f32,
}

pub(super) type TileFn = unsafe fn(&Tile);

/// An instruction set: its microkernels and what decoding and packing need of it.
///
/// # Safety of the methods
/// Callers must have checked that the processor has the instruction set; [`with_isa`] does.
pub(super) trait IsaKernel: Vector {
    const MR: usize;
    const NR: usize;
    /// Whether `mul_add` is one instruction here.
    const FMA: bool;
    /// The microkernel of so many rows and vectors of columns; `half` if B is in bf16, which is widened as it is read.
    fn tile(rows: usize, vectors: usize, half: bool) -> TileFn;
    unsafe fn decode(store: &Store, start: usize, out: &mut [f32]);
    /// `dst[p * ld + j] = src[j * stride + p] * scale` for j, p < 8.
    unsafe fn transpose8(src: &[f32], stride: usize, scale: f32, dst: &mut [f32], ld: usize);
    /// [`decode`](Self::decode) compiled for the instruction set.
    unsafe fn widen(store: &Store, start: usize, out: &mut [f32]);
    unsafe fn pack_a(src: &Panels, dst: &mut [f32], panel: usize);
    unsafe fn pack_b(src: &Panels, dst: &mut [f32], panel: usize);
    unsafe fn thin(job: &Thin, j0: usize, out: &mut Sums, len: usize);
}

/// Packs `src` into panels of `PW` columns, `panel` floats apart, the last one padded with zeros.
#[inline(always)]
unsafe fn pack<I: IsaKernel, const PW: usize>(src: &Panels, dst: &mut [f32], panel: usize) {
    let mut scratch = [0f32; RUN];
    if src.stride == 1 {
        // Panel rows are contiguous: decode a stretch of each row and deal it out.
        for j0 in (0..src.width).step_by(RUN / PW * PW) {
            let len = (src.width - j0).min(RUN / PW * PW);
            for p in 0..src.depth {
                let start = src.origin + p * src.k_stride + j0;
                let row = match src.store {
                    Store::F32(s) => &s[start..start + len],
                    _ => {
                        // SAFETY: the caller vouches for the instruction set.
                        unsafe { I::decode(&src.store, start, &mut scratch[..len]) };
                        &scratch[..len]
                    }
                };
                for (q, part) in row.chunks(PW).enumerate() {
                    let d = &mut dst[(j0 / PW + q) * panel + p * PW..][..PW];
                    if let Ok(full) = <&[f32; PW]>::try_from(part) {
                        for (d, x) in d.iter_mut().zip(full) {
                            *d = x * src.scale;
                        }
                    } else {
                        for (j, d) in d.iter_mut().enumerate() {
                            *d = part.get(j).map_or(0.0, |x| x * src.scale);
                        }
                    }
                }
            }
        }
        return;
    }
    // Panel columns are runs along k (or, for a doubly strided view, runs of one element):
    // transpose them in squares of eight by eight.
    let run = if src.k_stride == 1 { RUN / PW / 8 * 8 } else { 1 };
    for (q, j0) in (0..src.width).step_by(PW).enumerate() {
        let dst = &mut dst[q * panel..];
        let w = (src.width - j0).min(PW);
        for p0 in (0..src.depth).step_by(run) {
            let len = (src.depth - p0).min(run);
            let start = src.origin + j0 * src.stride + p0 * src.k_stride;
            let (rows, stride) = match src.store {
                Store::F32(s) => (&s[start..], src.stride),
                _ => {
                    for j in 0..w {
                        let out = &mut scratch[j * run..][..len];
                        // SAFETY: the caller vouches for the instruction set.
                        unsafe { I::decode(&src.store, start + j * src.stride, out) };
                    }
                    (&scratch[..], run)
                }
            };
            let dst = &mut dst[p0 * PW..][..len * PW];
            let (jq, pq) = if w < 8 { (0, 0) } else { (w, len / 8 * 8) };
            for p in (0..pq).step_by(8) {
                for j in (0..jq).step_by(8) {
                    // The last square of a width that is no multiple of eight overlaps another.
                    let j = j.min(w - 8);
                    let (s, d) = (&rows[j * stride + p..], &mut dst[p * PW + j..]);
                    // SAFETY: the caller vouches for the instruction set.
                    unsafe { I::transpose8(s, stride, src.scale, d, PW) };
                }
            }
            for p in 0..len {
                for j in if p < pq { jq } else { 0 }..PW {
                    dst[p * PW + j] = if j < w { rows[j * stride + p] * src.scale } else { 0.0 };
                }
            }
        }
    }
}

/// `acc + a * b`, fused where the instruction set has it.
#[inline(always)]
pub(super) fn mul_add<I: IsaKernel>(a: f32, b: f32, acc: f32) -> f32 {
    if I::FMA { a.mul_add(b, acc) } else { acc + a * b }
}

/// Hints that the line at `p` is about to be written.
#[inline(always)]
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address has no effect but on the cache; SSE is baseline.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

macro_rules! isa {
    (
        $(#[$doc:meta])* $isa:ident, features: [$($feat:literal)?], fma: $has_fma:literal,
        vector: $v:ty, lanes: $lanes:literal, mr: $mr:literal, nr: $nr:literal, rows: [$($r:literal)*],
        zero: $zero:expr, load: $load:expr, splat: $splat:expr, fma: $fma:expr, store: $store:expr,
        decode: $decode:path, transpose8: $transpose8:path,
    ) => {
        $(#[$doc])*
        pub(super) struct $isa;

        impl $isa {
            $(#[target_feature(enable = $feat)])?
            unsafe fn tile<const R: usize, const NV: usize, const HALF: bool>(t: &Tile) {
                // SAFETY: the caller passes pieces with R rows and their k columns, a panel of $nr
                // floats (bf16 if HALF) per k, a C tile (and bias) of R x NV vectors it alone writes, and
                // null or R rows of $nr sums.
                unsafe {
                    let mut acc: [[$v; NV]; R] = [[$zero; NV]; R];
                    if !t.sums.is_null() {
                        for i in 0..R {
                            for v in 0..NV {
                                acc[i][v] = $load(t.sums.add(i * $nr + v * $lanes));
                            }
                        }
                    }
                    // C is touched last: fetch it while the sums accumulate.
                    for i in 0..R {
                        for v in 0..NV {
                            prefetch(t.c.add(i * t.ldc + v * $lanes));
                        }
                    }
                    for piece in t.pieces {
                        let mut a = piece.a.add(t.row * piece.row_step);
                        let mut b = piece.b.add(t.panel * piece.panel_step);
                        let (rs, cs, bs) = (piece.rs, piece.cs, piece.bs);
                        for _ in 0..piece.k {
                            let mut bv: [$v; NV] = [$zero; NV];
                            for v in 0..NV {
                                bv[v] = match HALF {
                                    false => $load(b.cast::<f32>().add(v * $lanes)),
                                    true => <Self as Vector>::bf16(b.cast::<bf16>().add(v * $lanes)),
                                };
                            }
                            for i in 0..R {
                                let x = $splat(*a.add(i * rs));
                                for v in 0..NV {
                                    acc[i][v] = $fma(x, bv[v], acc[i][v]);
                                }
                            }
                            a = a.add(cs);
                            b = b.add(bs);
                        }
                    }
                    let one = $splat(1.0);
                    for i in 0..R {
                        for v in 0..NV {
                            let c = t.c.add(i * t.ldc + v * $lanes);
                            let mut x = acc[i][v];
                            if t.beta != 0.0 {
                                x = $fma($splat(t.beta), $load(c), x);
                            }
                            if !t.bias.is_null() {
                                x = $fma(one, $load(t.bias.add(v * $lanes)), x);
                            }
                            $store(c, x);
                        }
                    }
                }
            }

            $(#[target_feature(enable = $feat)])?
            unsafe fn pack<const PW: usize>(src: &Panels, dst: &mut [f32], panel: usize) {
                // SAFETY: running here, the instruction set exists.
                unsafe { pack::<Self, PW>(src, dst, panel) }
            }

            $(#[target_feature(enable = $feat)])?
            unsafe fn widen(store: &Store, start: usize, out: &mut [f32]) {
                // SAFETY: running here, the instruction set exists.
                unsafe { $decode(store, start, out) }
            }

            $(#[target_feature(enable = $feat)])?
            unsafe fn thin(job: &Thin, j0: usize, out: &mut Sums, len: usize) {
                // SAFETY: running here, the instruction set exists; the rest is the caller's promise.
                unsafe { thin::columns::<Self>(job, j0, out, len) }
            }
        }

        impl IsaKernel for $isa {
            const MR: usize = $mr;
            const NR: usize = $nr;
            const FMA: bool = $has_fma;

            fn tile(rows: usize, vectors: usize, half: bool) -> TileFn {
                const FLOATS: [[TileFn; 2]; $mr] = [$([$isa::tile::<$r, 1, false>, $isa::tile::<$r, 2, false>]),*];
                const HALVES: [[TileFn; 2]; $mr] = [$([$isa::tile::<$r, 1, true>, $isa::tile::<$r, 2, true>]),*];
                (if half { HALVES } else { FLOATS })[rows - 1][vectors - 1]
            }

            #[inline(always)]
            unsafe fn decode(store: &Store, start: usize, out: &mut [f32]) {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $decode(store, start, out) }
            }

            #[inline(always)]
            unsafe fn transpose8(src: &[f32], stride: usize, scale: f32, dst: &mut [f32], ld: usize) {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $transpose8(src, stride, scale, dst, ld) }
            }

            unsafe fn widen(store: &Store, start: usize, out: &mut [f32]) {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { Self::widen(store, start, out) }
            }

            unsafe fn pack_a(src: &Panels, dst: &mut [f32], panel: usize) {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { Self::pack::<$mr>(src, dst, panel) }
            }

            unsafe fn pack_b(src: &Panels, dst: &mut [f32], panel: usize) {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { Self::pack::<$nr>(src, dst, panel) }
            }

            unsafe fn thin(job: &Thin, j0: usize, out: &mut Sums, len: usize) {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { Self::thin(job, j0, out, len) }
            }
        }
    };
}

/// The portable forms; also what NEON uses beside its microkernel.
mod portable {
    use super::*;

    #[inline(always)]
    pub unsafe fn decode(store: &Store, start: usize, out: &mut [f32]) {
        store.decode(start, out)
    }

    #[inline(always)]
    pub unsafe fn transpose8(src: &[f32], stride: usize, scale: f32, dst: &mut [f32], ld: usize) {
        for p in 0..8 {
            for j in 0..8 {
                dst[p * ld + j] = src[j * stride + p] * scale;
            }
        }
    }

    pub type V = [f32; 4];

    #[inline(always)]
    pub unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller passes a pointer to four readable floats; arrays need no alignment
        // beyond f32's.
        unsafe { p.cast::<V>().read() }
    }

    #[inline(always)]
    pub unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: as for `load`, writable.
        unsafe { p.cast::<V>().write(v) }
    }

    #[inline(always)]
    pub fn fma(a: V, b: V, c: V) -> V {
        std::array::from_fn(|l| c[l] + a[l] * b[l])
    }
}

isa! {
    /// Any processor: vectors of four the compiler maps to what it has.
    Portable, features: [], fma: false,
    vector: portable::V, lanes: 4, mr: 4, nr: 8, rows: [1 2 3 4],
    zero: [0.0; 4], load: portable::load, splat: (|x| [x; 4]), fma: portable::fma,
    store: portable::store,
    decode: portable::decode, transpose8: portable::transpose8,
}

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;

#[cfg(target_arch = "aarch64")]
isa! {
    /// 8x8 in 16 of the 32 registers; NEON is part of the architecture.
    Neon, features: ["neon"], fma: true,
    vector: float32x4_t, lanes: 4, mr: 8, nr: 8, rows: [1 2 3 4 5 6 7 8],
    zero: vdupq_n_f32(0.0), load: vld1q_f32, splat: vdupq_n_f32,
    fma: (|a, b, c| vfmaq_f32(c, a, b)), store: vst1q_f32,
    decode: portable::decode, transpose8: portable::transpose8,
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
isa! {
    /// 6x16: 12 accumulators, 2 vectors of B and a broadcast of A in 16 registers.
    Avx2, features: ["avx2,fma,f16c"], fma: true,
    vector: __m256, lanes: 8, mr: 6, nr: 16, rows: [1 2 3 4 5 6],
    zero: _mm256_setzero_ps(), load: _mm256_loadu_ps, splat: _mm256_set1_ps,
    fma: _mm256_fmadd_ps, store: _mm256_storeu_ps,
    decode: avx2::decode, transpose8: avx2::transpose8,
}

#[cfg(target_arch = "x86_64")]
isa! {
    /// 12x32: 24 accumulators of the 32 registers.
    Avx512, features: ["avx512f,avx2,fma,f16c"], fma: true,
    vector: __m512, lanes: 16, mr: 12, nr: 32, rows: [1 2 3 4 5 6 7 8 9 10 11 12],
    zero: _mm512_setzero_ps(), load: _mm512_loadu_ps, splat: _mm512_set1_ps,
    fma: _mm512_fmadd_ps, store: _mm512_storeu_ps,
    decode: avx2::decode, transpose8: avx2::transpose8,
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    /// Eight elements per step; what does not fill a step goes through [`Store::decode`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn decode(store: &Store, start: usize, out: &mut [f32]) {
        match store {
            Store::F16(s) => {
                let (s, n) = (&s[start..start + out.len()], out.len() / 8 * 8);
                for i in (0..n).step_by(8) {
                    // SAFETY: i + 8 <= n key_range both the 8 halves read and the 8 floats written.
                    unsafe {
                        let h = _mm_loadu_si128(s.as_ptr().add(i).cast());
                        _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_cvtph_ps(h));
                    }
                }
                store.decode(start + n, &mut out[n..]);
            }
            Store::Nf4 { codes, absmax } => {
                // Steps start at a multiple of eight: whole bytes, all under one scale.
                let head = (start.next_multiple_of(8) - start).min(out.len());
                let n = (out.len() - head) / 8 * 8;
                store.decode(start, &mut out[..head]);
                store.decode(start + head + n, &mut out[head + n..]);
                let codes = &codes[(start + head) / 2..][..n / 2];
                // SAFETY: the table holds two vectors of eight floats.
                let (low, high) = unsafe { (_mm256_loadu_ps(NF4.as_ptr()), _mm256_loadu_ps(NF4.as_ptr().add(8))) };
                // Element order within the little-endian word: high nibble, then low, per byte.
                let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
                let mut i = 0;
                while i < n {
                    let at = start + head + i;
                    let scale = _mm256_set1_ps(absmax.get(at / NF4_BLOCK));
                    let end = n.min(i + NF4_BLOCK - at % NF4_BLOCK);
                    while i < end {
                        // SAFETY: i + 8 <= n, and `codes` holds n / 2 bytes, `out[head..]` n floats.
                        unsafe {
                            let word = codes.as_ptr().add(i / 2).cast::<i32>().read_unaligned();
                            let code = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
                            // The permutes look at bits 0..3, the blend at bit 3 moved to the sign.
                            let value = _mm256_blendv_ps(
                                _mm256_permutevar8x32_ps(low, code),
                                _mm256_permutevar8x32_ps(high, code),
                                _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code)),
                            );
                            let value = _mm256_mul_ps(value, scale);
                            _mm256_storeu_ps(out.as_mut_ptr().add(head + i), value);
                        }
                        i += 8;
                    }
                }
            }
            Store::F32(_) | Store::Bf16(_) => store.decode(start, out),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn transpose8(src: &[f32], stride: usize, scale: f32, dst: &mut [f32], ld: usize) {
        assert!(src.len() >= 7 * stride + 8 && dst.len() >= 7 * ld + 8);
        let scale = _mm256_set1_ps(scale);
        let mut half = [_mm256_setzero_ps(); 8];
        for j in 0..4 {
            // SAFETY: the assertion covers eight rows of eight floats at `stride`.
            unsafe {
                let s = |row: usize, at: usize| _mm_loadu_ps(src.as_ptr().add(row * stride + at));
                // half[j] holds rows j and j + 4 of columns 0..4, half[4 + j] of columns 4..8.
                half[j] = _mm256_set_m128(s(j + 4, 0), s(j, 0));
                half[4 + j] = _mm256_set_m128(s(j + 4, 4), s(j, 4));
            }
        }
        for (q, r) in half.chunks_exact(4).enumerate() {
            let (t0, t1) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
            let (t2, t3) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
            let columns = [
                _mm256_shuffle_ps::<0x44>(t0, t2),
                _mm256_shuffle_ps::<0xee>(t0, t2),
                _mm256_shuffle_ps::<0x44>(t1, t3),
                _mm256_shuffle_ps::<0xee>(t1, t3),
            ];
            for (c, column) in columns.into_iter().enumerate() {
                // SAFETY: the assertion covers eight rows of eight floats at `ld`.
                unsafe {
                    let d = dst.as_mut_ptr().add((4 * q + c) * ld);
                    _mm256_storeu_ps(d, _mm256_mul_ps(column, scale));
                }
            }
        }
    }
}
