//! Elements of activations: f32, or bf16 that is widened where it is read and rounded where it is written.

use bytemuck::Pod;
use half::bf16;

use super::{math, par};

/// What activations are kept in on the CPU.
pub trait Act: Pod + Send + Sync {
    /// Its value.
    fn widen(self) -> f32;
    /// The nearest, ties to even.
    fn round(x: f32) -> Self;
    /// The values of `row`, in `buffer` unless they are f32 already.
    fn row<'a>(row: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32];
    /// Floats of the buffer that a row of `n` wants.
    fn buffer(n: usize) -> usize;
    /// The same elements, if they are f32 already.
    fn f32s(x: &[Self]) -> Option<&[f32]>;

    /// The values at `from`, as many as `to` has.
    ///
    /// # Safety
    /// So many can be read, and nothing writes them.
    #[inline(always)]
    unsafe fn read(from: *const Self, to: &mut [f32]) {
        // SAFETY: the caller's promise.
        let from = unsafe { std::slice::from_raw_parts(from, to.len()) };
        for (to, x) in to.iter_mut().zip(from) {
            *to = x.widen();
        }
    }

    /// Writes the values of `from` to `to`.
    ///
    /// # Safety
    /// There is room for them, and nothing else refers to it.
    #[inline(always)]
    unsafe fn write(from: &[f32], to: *mut Self) {
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(to, from.len()) };
        for (to, x) in to.iter_mut().zip(from) {
            *to = Self::round(*x);
        }
    }
}

impl Act for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn row<'a>(row: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        row
    }
    #[inline(always)]
    fn buffer(_: usize) -> usize {
        0
    }
    #[inline(always)]
    fn f32s(x: &[f32]) -> Option<&[f32]> {
        Some(x)
    }
}

impl Act for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    /// Without a branch, so that loops vectorize.
    #[inline(always)]
    fn round(x: f32) -> bf16 {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        // The upper half of a NaN might be that of infinity.
        bf16::from_bits((if x.is_nan() { bits | 0x40_0000 } else { nearest } >> 16) as u16)
    }
    #[inline(always)]
    fn row<'a>(row: &'a [bf16], buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..row.len()];
        for (to, x) in buffer.iter_mut().zip(row) {
            *to = x.widen();
        }
        buffer
    }
    #[inline(always)]
    fn buffer(n: usize) -> usize {
        n
    }
    #[inline(always)]
    fn f32s(_: &[bf16]) -> Option<&[f32]> {
        None
    }
}

/// `to[i]` = `from[i]` in another type.
pub fn convert<A: Act, B: Act>(to: &mut [B], from: &[A]) {
    const GRAIN: usize = 1 << 14;
    let from = &from[..to.len()];
    par::chunks(to, GRAIN, |i, to| {
        let from = &from[i * GRAIN..][..to.len()];
        math::vectorized!(to.iter_mut().zip(from).for_each(|(to, x)| *to = B::round(x.widen())))
    });
}
