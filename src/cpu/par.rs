//! Splitting work over threads so that results do not depend on how many there are: the pieces are fixed by the
//! problem, and no sum crosses a piece.

use std::ops::Range;

use rayon::prelude::*;

/// Calls `f` on consecutive ranges of `grain` elements that cover `0..n`, in parallel where there are several.
pub fn ranges(n: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    let pieces = n.div_ceil(grain.max(1));
    if pieces <= 1 {
        return f(0..n);
    }
    (0..pieces).into_par_iter().for_each(|p| f(p * grain..((p + 1) * grain).min(n)));
}

/// Calls `f(index, chunk)` on consecutive chunks of `len` elements of `data`.
pub fn chunks<T: Send>(data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if (1..=len).contains(&data.len()) {
        return f(0, data);
    }
    data.par_chunks_mut(len.max(1)).enumerate().for_each(|(i, chunk)| f(i, chunk));
}
