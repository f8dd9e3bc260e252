//! How a CPU kernel sees its operands.
//!
//! Soundness rests on one contract, kept by the planner and checked by its tests: while a launch runs, its outputs
//! and scratch overlap nothing, except that an output may be exactly at an input's place with which the row's `in_place`
//! pairs it. Such operands must be read and written through [`HostCall::map`] or raw pointers, never as slices.

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;

use crate::cpu::act::Act;
use crate::cpu::math;
use crate::cpu::par;
use crate::device::HostSlice;
use crate::dtype::DType;
use crate::graph::op::HostCall;

/// A pointer that threads may share.
#[derive(Clone, Copy)]
pub struct Ptr<T>(pub *mut T);

// SAFETY: only an address; each use says why it is sound.
unsafe impl<T> Send for Ptr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Ptr<T> {}

impl<T> Ptr<T> {
    /// The address `i` elements on. A method, so that closures capture the whole wrapper.
    ///
    /// # Safety
    /// The element must be in the same allocation.
    pub unsafe fn add(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

impl<'a> HostCall<'a> {
    fn slice(&self, arg: usize) -> HostSlice {
        self.args[arg]
    }

    /// Input `i` as stored.
    pub fn input<T: Pod>(&self, i: usize) -> &'a [T] {
        let s = self.slice(self.outs.len() + i);
        // SAFETY: the range is a live allocation aligned to 256 bytes, any bytes are a valid `T: Pod`, and nothing
        // writes it during the launch (module contract).
        unsafe { std::slice::from_raw_parts(s.ptr.cast(), s.bytes / size_of::<T>()) }
    }

    /// Output `o`.
    #[allow(clippy::mut_from_ref)] // each output is taken once by its kernel
    pub fn output<T: Pod>(&self, o: usize) -> &'a mut [T] {
        let s = self.slice(o);
        // SAFETY: as for `input`; nothing else refers to it during the launch (module contract).
        unsafe { std::slice::from_raw_parts_mut(s.ptr.cast(), s.bytes / size_of::<T>()) }
    }

    /// The scratch memory that the row's `workspace` asked for.
    #[allow(clippy::mut_from_ref)] // taken once by its kernel
    pub fn work<T: Pod>(&self) -> &'a mut [T] {
        let s = self.slice(self.outs.len() + self.ins.len());
        // SAFETY: as for `output`.
        unsafe { std::slice::from_raw_parts_mut(s.ptr.cast(), s.bytes / size_of::<T>()) }
    }

    /// Output `out` holding the values of input `acc`, to be added to: copied there, unless it is there already.
    pub fn accumulator<T: Pod>(&self, acc: usize, out: usize) -> &'a mut [T] {
        let (from, to) = (self.input_ptr::<T>(acc), self.output_ptr::<T>(out));
        let n = self.outs[out].len();
        if from.0 != to.0 {
            par::ranges(n, 1 << 16, |r| {
                // SAFETY: both operands hold n elements; they are not the same, so they do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(from.add(r.start), to.add(r.start), r.len()) }
            });
        }
        &mut self.output(out)[..n]
    }

    /// Address of input `i`, for operands that may overlap an output or are written by several threads.
    pub fn input_ptr<T>(&self, i: usize) -> Ptr<T> {
        Ptr(self.slice(self.outs.len() + i).ptr.cast())
    }

    /// Address of output `o`, as for [`HostCall::input_ptr`].
    pub fn output_ptr<T>(&self, o: usize) -> Ptr<T> {
        Ptr(self.slice(o).ptr.cast())
    }

    /// `out[i] = f([x0[i], x1[i], …])` over operands of `out`'s length and type, f32 or bf16, in place or not.
    pub fn map<const N: usize>(&self, out: usize, ins: [usize; N], f: impl Fn([f32; N]) -> f32 + Sync) {
        self.map_many([out], ins, |x| [f(x)]);
    }

    /// The same with several outputs: `[y0[i], …] = f([x0[i], …])`.
    pub fn map_many<const N: usize, const M: usize>(
        &self,
        outs: [usize; M],
        ins: [usize; N],
        f: impl Fn([f32; N]) -> [f32; M] + Sync,
    ) {
        match self.outs[outs[0]].dtype {
            DType::BF16 => self.map_as::<bf16, N, M>(outs, ins, f),
            _ => self.map_as::<f32, N, M>(outs, ins, f),
        }
    }

    fn map_as<A: Act, const N: usize, const M: usize>(
        &self,
        outs: [usize; M],
        ins: [usize; N],
        f: impl Fn([f32; N]) -> [f32; M] + Sync,
    ) {
        let ys = outs.map(|o| self.output_ptr::<A>(o));
        let xs = ins.map(|i| self.input_ptr::<A>(i));
        par::ranges(self.outs[outs[0]].len(), 1 << 14, |range| {
            // SAFETY: the range is in the operands, and those of different threads are disjoint.
            math::vectorized!(unsafe { piece(range, ys, xs, &f) });
        });
    }
}

/// A thread's elements of [`HostCall::map_many`]. Inlined, so that it is compiled for its caller's instructions.
///
/// # Safety
/// All operands have the elements of `range`, and no other thread touches them.
#[inline(always)]
unsafe fn piece<A: Act, const N: usize, const M: usize>(
    range: Range<usize>,
    ys: [Ptr<A>; M],
    xs: [Ptr<A>; N],
    f: &impl Fn([f32; N]) -> [f32; M],
) {
    let mut start = range.start;
    while start < range.end {
        let n = (range.end - start).min(LANES);
        let mut x = [[0f32; LANES]; N];
        for (x, from) in x.iter_mut().zip(xs) {
            // SAFETY: start + n ≤ range.end.
            *x = unsafe { load(from.add(start), n) };
        }
        // All is read before anything is written, so that loops vectorize even in place.
        let y = lanes(&x, f);
        for (&y, to) in y.iter().zip(ys) {
            // SAFETY: as above.
            unsafe { store(y, to.add(start), n) };
        }
        start += n;
    }
}

/// Elements that `map` handles side by side.
const LANES: usize = 16;

/// `f` of each lane, as plain loops that the compiler turns into vector instructions.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // iterators and array::from_fn stay calls where link-time optimization is off
fn lanes<const N: usize, const M: usize>(
    x: &[[f32; LANES]; N],
    f: &impl Fn([f32; N]) -> [f32; M],
) -> [[f32; LANES]; M] {
    let mut y = [[0f32; LANES]; M];
    for i in 0..LANES {
        let mut lane = [0f32; N];
        for k in 0..N {
            lane[k] = x[k][i];
        }
        let result = f(lane);
        for k in 0..M {
            y[k][i] = result[k];
        }
    }
    y
}

/// # Safety
/// `n` ≤ [`LANES`] elements can be read at `from`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // as in `lanes`
unsafe fn load<A: Act>(from: *const A, n: usize) -> [f32; LANES] {
    // The rest is apart, and not inlined: with a length that varies, each whole lane would become a call of memcpy.
    #[cold]
    #[inline(never)]
    unsafe fn rest<A: Act>(from: *const A, n: usize) -> [A; LANES] {
        let mut x = [A::zeroed(); LANES];
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, x.as_mut_ptr(), n) };
        x
    }
    // SAFETY: the caller's promise; elements need no more than their own alignment here.
    let x = unsafe { if n == LANES { from.cast::<[A; LANES]>().read_unaligned() } else { rest(from, n) } };
    let mut wide = [0f32; LANES];
    for i in 0..LANES {
        wide[i] = x[i].widen();
    }
    wide
}

/// # Safety
/// `n` ≤ [`LANES`] elements can be written at `to`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // as in `lanes`
unsafe fn store<A: Act>(y: [f32; LANES], to: *mut A, n: usize) {
    #[cold]
    #[inline(never)]
    unsafe fn rest<A: Act>(y: [A; LANES], to: *mut A, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(y.as_ptr(), to, n) }
    }
    let mut narrow = [A::zeroed(); LANES];
    for i in 0..LANES {
        narrow[i] = A::round(y[i]);
    }
    // SAFETY: as in `load`.
    unsafe { if n == LANES { to.cast::<[A; LANES]>().write_unaligned(narrow) } else { rest(narrow, to, n) } }
}
