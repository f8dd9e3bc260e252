//! One source, compiled for each instruction set worth having; the processor picks at run time.
//!
//! Kernels are plain loops over arrays of [`LANES`] floats, which LLVM turns into vector registers. With and without
//! fused multiply-add results differ in the last bits; AVX2, AVX-512 and NEON agree with each other.

/// Floats that kernels handle side by side: two AVX registers, one of AVX-512, four of SSE or NEON.
pub const LANES: usize = 16;

pub type Lane = [f32; LANES];

/// Something to run compiled for the best instruction set. `FMA`: multiply-add is one fast instruction.
/// `ROWS`: how many rows of two AVX registers' width fit in the register file as accumulators (see `tile`).
pub trait Kernel {
    /// Must be `#[inline(always)]`, with all it calls, or it is compiled for the lowest common set.
    fn run<const FMA: bool, const ROWS: usize>(self);
}

/// Runs `kernel`, compiled for what this processor has.
pub fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")]
        fn avx512(kernel: impl Kernel) {
            kernel.run::<true, 12>()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(kernel: impl Kernel) {
            kernel.run::<true, 6>()
        }
        if super::math::has_avx2() {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw") {
                // SAFETY: the processor has the features, as was just found.
                return unsafe { avx512(kernel) };
            }
            // SAFETY: as above.
            return unsafe { avx2(kernel) };
        }
        kernel.run::<false, 3>()
    }
    // 64-bit ARM always has NEON, with fused multiply-add and 32 registers.
    #[cfg(target_arch = "aarch64")]
    kernel.run::<true, 6>();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    kernel.run::<false, 3>();
}

/// a·b + c, fused where that is fast.
#[inline(always)]
pub fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}
