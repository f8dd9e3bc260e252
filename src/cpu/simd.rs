//! Rows of 16 floats as vectors, on each instruction set worth having; the processor picks at run time ([`Isa::best`](super::isa::Isa::best)).
//!
//! Kernels are generic over a [`Simd`], a token that its instruction set is there, so that its operations are safe to
//! call. AVX2, AVX-512 and NEON give the same bits; without fused multiply-add the last ones differ.

/// Floats in a vector: two AVX registers, one of AVX-512, four of SSE or NEON.
pub const LANES: usize = 16;

/// A row of [`LANES`] floats on a cache line of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Lane(pub [f32; LANES]);

impl Lane {
    /// All zeros.
    pub const ZERO: Lane = Lane([0.0; LANES]);

    /// `x` in every lane.
    pub const fn splat(x: f32) -> Lane {
        Lane([x; LANES])
    }

    /// Lane by lane.
    #[inline(always)]
    pub fn from_fn(f: impl FnMut(usize) -> f32) -> Lane {
        Lane(std::array::from_fn(f))
    }
}

impl std::ops::Deref for Lane {
    type Target = [f32; LANES];
    #[inline(always)]
    fn deref(&self) -> &[f32; LANES] {
        &self.0
    }
}

impl std::ops::DerefMut for Lane {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }
}

/// An instruction set. A value of the type is proof that the processor has it.
pub trait Simd: Copy {
    /// [`LANES`] floats in registers.
    type V: Copy;
    /// The floats of `x`, in registers.
    fn load(self, x: &Lane) -> Self::V;
    /// Writes the floats of `x` to `to`.
    fn store(self, x: Self::V, to: &mut Lane);
    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// a + b, lane by lane.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a − b, lane by lane.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a·b, lane by lane.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c, fused where there is an instruction for it.
    fn madd(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `yes` where lo ≤ x < hi, else `no`.
    fn within(self, lo: Self::V, x: Self::V, hi: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `y` where x ≥ limit or x is NaN, else 0.
    fn zero_below(self, limit: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// x·2ⁿ for the n in the lowest bits of z, added to the exponent as it is.
    fn scale_exponent(self, x: Self::V, z: Self::V) -> Self::V;

    /// eˣ for x up to a little above 0, as softmax needs it: exactly 0 below −87. The method of
    /// [`math::exp`](super::math::exp).
    #[inline(always)]
    fn exp_nonpositive(self, x: Self::V) -> Self::V {
        const ROUND: f32 = 12_582_912.0;
        let c = |c: f32| self.splat(c);
        let z = self.madd(x, c(std::f32::consts::LOG2_E), c(ROUND));
        let n = self.sub(z, c(ROUND));
        let r = self.madd(n, c(-0.693_359_4), x);
        let r = self.madd(n, c(2.121_944_4e-4), r);
        let p = self.madd(c(1.987_569_1e-4), r, c(1.398_199_9e-3));
        let p = self.madd(p, r, c(8.333_452e-3));
        let p = self.madd(p, r, c(4.166_579_6e-2));
        let p = self.madd(p, r, c(1.666_666_5e-1));
        let p = self.madd(p, r, c(0.5));
        let p = self.madd(p, r, c(1.0));
        let p = self.madd(p, r, c(1.0));
        self.zero_below(c(-87.0), x, self.scale_exponent(p, z))
    }
}

/// An instruction set that multiplies bf16: 32 bits hold two of them, the first in the lower half.
pub trait Pairs: Simd {
    /// a₀·b₀ + a₁·b₁ + c, lane by lane: `a` for all lanes, b's pairs are the bits of its floats. Sums are f32; subnormal
    /// numbers count as zero.
    fn dot(self, a: u32, b: Self::V, c: Self::V) -> Self::V;
    /// The pairs (x, y), lane by lane, each rounded to the nearest bf16, as bits of floats.
    fn pair(self, x: Self::V, y: Self::V) -> Self::V;
}

/// Something to run on the best instruction set. `ROWS`: how many vectors fit in the register file as sums, with
/// room for operands.
pub trait Kernel {
    /// Must be `#[inline(always)]`, with all it calls, or it is compiled for the lowest common set.
    fn run<S: Simd, const ROWS: usize>(self, simd: S);
}

/// Runs `kernel` on the best instruction set that this processor has.
pub fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    {
        use super::isa::Isa;
        #[target_feature(enable = "avx512f")]
        fn avx512(kernel: impl Kernel) {
            // SAFETY: this function runs only where AVX-512 is.
            kernel.run::<Avx512<false>, 8>(unsafe { Avx512::new() })
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(kernel: impl Kernel) {
            // SAFETY: this function runs only where AVX2 and FMA are.
            kernel.run::<Avx2, 6>(unsafe { Avx2::new() })
        }
        if Isa::best() >= Isa::Avx512 {
            // SAFETY: the processor has the feature, as was just found.
            return unsafe { avx512(kernel) };
        }
        if Isa::best() >= Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run::<Portable, 3>(Portable);
}

/// Something to run where bf16 is multiplied in pairs; as for [`Kernel`].
pub trait PairKernel {
    /// As [`Kernel::run`].
    fn run<S: Pairs, const ROWS: usize>(self, simd: S);
}

/// Whether this processor multiplies bf16 in pairs.
pub fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::isa::Isa::best() >= super::isa::Isa::Avx512Bf16;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Runs `kernel` where [`has_pairs`]; elsewhere does nothing.
pub fn dispatch_pairs(kernel: impl PairKernel) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        fn avx512(kernel: impl PairKernel) {
            // SAFETY: this function runs only where AVX-512 and AVX512_BF16 are.
            kernel.run::<Avx512<true>, 14>(unsafe { Avx512::new() })
        }
        if has_pairs() {
            // SAFETY: the processor has the features, as was just found.
            unsafe { avx512(kernel) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = kernel;
}

/// Any processor: loops over arrays that the compiler maps to what there is.
#[derive(Clone, Copy)]
pub struct Portable;

/// Whether the baseline of the target has fused multiply-add (it does on 64-bit ARM).
const FUSED: bool = cfg!(target_arch = "aarch64");

#[inline(always)]
fn each(f: impl FnMut(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type V = [f32; LANES];
    #[inline(always)]
    fn load(self, x: &Lane) -> Self::V {
        x.0
    }
    #[inline(always)]
    fn store(self, x: Self::V, to: &mut Lane) {
        to.0 = x;
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(|l| a[l] - b[l])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|l| a[l] * b[l])
    }
    #[inline(always)]
    fn madd(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|l| if FUSED { a[l].mul_add(b[l], c[l]) } else { a[l] * b[l] + c[l] })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }
    #[inline(always)]
    fn within(self, lo: Self::V, x: Self::V, hi: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        each(|l| if (lo[l] <= x[l]) & (x[l] < hi[l]) { yes[l] } else { no[l] })
    }
    #[inline(always)]
    fn zero_below(self, limit: Self::V, x: Self::V, y: Self::V) -> Self::V {
        each(|l| if x[l] < limit[l] { 0.0 } else { y[l] })
    }
    #[inline(always)]
    fn scale_exponent(self, x: Self::V, z: Self::V) -> Self::V {
        each(|l| f32::from_bits(x[l].to_bits().wrapping_add(z[l].to_bits() << 23)))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lane, Pairs, Simd};

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx2 {
        /// # Safety
        /// The processor has AVX2 and FMA.
        #[inline(always)]
        pub unsafe fn new() -> Avx2 {
            Avx2(())
        }
    }

    /// Runs the same intrinsic on both halves.
    macro_rules! halves {
        ($f:ident, $($x:expr),*) => {
            // SAFETY: a value of the type is proof that the processor has AVX2 and FMA.
            unsafe { ($f($($x.0),*), $f($($x.1),*)) }
        };
    }

    impl Simd for Avx2 {
        type V = (__m256, __m256);
        #[inline(always)]
        fn load(self, x: &Lane) -> Self::V {
            // SAFETY: AVX is there; a lane is 16 floats aligned to 64 bytes.
            unsafe { (_mm256_load_ps(x.as_ptr()), _mm256_load_ps(x.as_ptr().add(8))) }
        }
        #[inline(always)]
        fn store(self, x: Self::V, to: &mut Lane) {
            // SAFETY: as for `load`.
            unsafe {
                _mm256_store_ps(to.as_mut_ptr(), x.0);
                _mm256_store_ps(to.as_mut_ptr().add(8), x.1);
            }
        }
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: AVX is there.
            let x = unsafe { _mm256_set1_ps(x) };
            (x, x)
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            halves!(_mm256_add_ps, a, b)
        }
        #[inline(always)]
        fn sub(self, a: Self::V, b: Self::V) -> Self::V {
            halves!(_mm256_sub_ps, a, b)
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            halves!(_mm256_mul_ps, a, b)
        }
        #[inline(always)]
        fn madd(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            halves!(_mm256_fmadd_ps, a, b, c)
        }
        #[inline(always)]
        fn max(self, a: Self::V, b: Self::V) -> Self::V {
            halves!(_mm256_max_ps, a, b)
        }
        #[inline(always)]
        fn within(self, lo: Self::V, x: Self::V, hi: Self::V, yes: Self::V, no: Self::V) -> Self::V {
            #[inline(always)]
            unsafe fn half(lo: __m256, x: __m256, hi: __m256, yes: __m256, no: __m256) -> __m256 {
                // SAFETY: the caller has AVX.
                unsafe {
                    let seen = _mm256_and_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(lo, x), _mm256_cmp_ps::<_CMP_LT_OQ>(x, hi));
                    _mm256_blendv_ps(no, yes, seen)
                }
            }
            halves!(half, lo, x, hi, yes, no)
        }
        #[inline(always)]
        fn zero_below(self, limit: Self::V, x: Self::V, y: Self::V) -> Self::V {
            #[inline(always)]
            unsafe fn half(limit: __m256, x: __m256, y: __m256) -> __m256 {
                // SAFETY: the caller has AVX.
                unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, limit), y) }
            }
            halves!(half, limit, x, y)
        }
        #[inline(always)]
        fn scale_exponent(self, x: Self::V, z: Self::V) -> Self::V {
            #[inline(always)]
            unsafe fn half(x: __m256, z: __m256) -> __m256 {
                // SAFETY: the caller has AVX2.
                unsafe {
                    let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(z));
                    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n))
                }
            }
            halves!(half, x, z)
        }
    }

    /// AVX-512 (its foundation is enough); `BF16`: with AVX512_BF16.
    #[derive(Clone, Copy)]
    pub struct Avx512<const BF16: bool>(());

    impl<const BF16: bool> Avx512<BF16> {
        /// # Safety
        /// The processor has AVX-512F, and if `BF16` AVX512BW and AVX512_BF16.
        #[inline(always)]
        pub unsafe fn new() -> Self {
            Avx512(())
        }
    }

    impl Pairs for Avx512<true> {
        #[inline(always)]
        fn dot(self, a: u32, b: __m512, c: __m512) -> __m512 {
            // SAFETY: a value of the type is proof that AVX512_BF16 is there; any bits are bf16.
            unsafe {
                let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a.cast_signed()));
                _mm512_dpbf16_ps(c, a, std::mem::transmute::<__m512, __m512bh>(b))
            }
        }
        #[inline(always)]
        fn pair(self, x: __m512, y: __m512) -> __m512 {
            /// x's numbers are words 0 to 15 of what is rounded at once, y's are 16 to 31.
            static SIDE_BY_SIDE: [u16; 32] = {
                let (mut order, mut i) = ([0; 32], 0);
                while i < 32 {
                    order[i] = (i / 2 + i % 2 * 16) as u16;
                    i += 1;
                }
                order
            };
            // SAFETY: as for `dot`, and of AVX512BW.
            unsafe {
                let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(y, x));
                let order = _mm512_loadu_si512(SIDE_BY_SIDE.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, rounded))
            }
        }
    }

    impl<const BF16: bool> Simd for Avx512<BF16> {
        type V = __m512;
        #[inline(always)]
        fn load(self, x: &Lane) -> Self::V {
            // SAFETY: AVX-512 is there; a lane is 16 floats aligned to 64 bytes.
            unsafe { _mm512_load_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, x: Self::V, to: &mut Lane) {
            // SAFETY: as for `load`.
            unsafe { _mm512_store_ps(to.as_mut_ptr(), x) }
        }
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: a value of the type is proof that AVX-512 is there; so in all that follows.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn madd(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn within(self, lo: Self::V, x: Self::V, hi: Self::V, yes: Self::V, no: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe {
                let above = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(lo, x);
                _mm512_mask_blend_ps(_mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(above, x, hi), no, yes)
            }
        }
        #[inline(always)]
        fn zero_below(self, limit: Self::V, x: Self::V, y: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit), y) }
        }
        #[inline(always)]
        fn scale_exponent(self, x: Self::V, z: Self::V) -> Self::V {
            // SAFETY: as for `splat`.
            unsafe {
                let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(z));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `kernel` once on each instruction set that this processor has.
    pub fn everywhere(kernel: impl Kernel + Clone) {
        kernel.clone().run::<Portable, 3>(Portable);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: just found.
                kernel.clone().run::<Avx2, 6>(unsafe { Avx2::new() });
            }
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: just found.
                kernel.clone().run::<Avx512<false>, 8>(unsafe { Avx512::new() });
            }
        }
        dispatch(kernel);
    }

    #[derive(Clone)]
    struct Exp;
    impl Kernel for Exp {
        #[inline(always)]
        fn run<S: Simd, const ROWS: usize>(self, s: S) {
            let exp = |x: &Lane| {
                let mut y = Lane::ZERO;
                s.store(s.exp_nonpositive(s.load(x)), &mut y);
                y
            };
            for i in 0..10_000 {
                let x = Lane::from_fn(|l| 0.01 - 87.0 * (16 * i + l) as f32 / 160_000.0);
                for (y, x) in exp(&x).iter().zip(x.iter()) {
                    let want = (*x as f64).exp();
                    let error = (*y as f64 - want).abs() / want;
                    assert!(error < 2.0 * f32::EPSILON as f64, "exp({x}) = {y}, not {want}");
                }
            }
            let edges = [0.0, f32::NEG_INFINITY, -1e30, -88.0, f32::NAN, -0.0];
            let y = exp(&Lane::from_fn(|l| edges[l % edges.len()]));
            assert_eq!([y[0], y[1], y[2], y[3], y[5]], [1.0, 0.0, 0.0, 0.0, 1.0]);
            assert!(y[4].is_nan());
        }
    }

    #[derive(Clone)]
    struct Choose;
    impl Kernel for Choose {
        #[inline(always)]
        fn run<S: Simd, const ROWS: usize>(self, s: S) {
            let x = Lane::from_fn(|l| l as f32);
            let mut y = Lane::ZERO;
            s.store(s.within(s.splat(3.0), s.load(&x), s.splat(7.0), s.load(&x), s.splat(-1.0)), &mut y);
            assert_eq!(y, Lane::from_fn(|l| if (3..7).contains(&l) { l as f32 } else { -1.0 }));
            s.store(s.max(s.load(&x), s.splat(5.5)), &mut y);
            assert_eq!(y, Lane::from_fn(|l| (l as f32).max(5.5)));
        }
    }

    #[test]
    fn every_instruction_set_does_the_same() {
        everywhere(Exp);
        everywhere(Choose);
    }
}
