//! Products of small matrices in cache, from which attention is built.
//!
//! One side is a *panel*: 16 columns wide, each row one [`Lane`]. The other is read element by element where it
//! is, by two strides, so nothing is transposed or packed but the panels.

use super::simd::{Lane, Simd};

/// A matrix of any layout: element (r, c) is `data[r·row + c·col]`.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    /// The memory that holds it, from element (0, 0) on.
    pub data: &'a [f32],
    /// Elements from a row to the next.
    pub row: usize,
    /// Elements from a column to the next.
    pub col: usize,
}

impl Strided<'_> {
    /// The same memory with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Strided { row: self.col, col: self.row, ..self }
    }
}

/// `c = a · b` for panels `c` and `b` of as many rows as `a` has rows and columns.
#[inline(always)]
pub fn product<S: Simd, const ROWS: usize>(s: S, c: &mut [Lane], a: Strided, b: &[Lane]) {
    rows::<S, ROWS, false>(s, c, a, b, &Lane::ZERO);
}

/// `c = a · b + c · diag(scale)`.
#[inline(always)]
pub fn accumulate<S: Simd, const ROWS: usize>(s: S, c: &mut [Lane], a: Strided, b: &[Lane], scale: &Lane) {
    rows::<S, ROWS, true>(s, c, a, b, scale);
}

#[inline(always)]
fn rows<S: Simd, const ROWS: usize, const ADD: bool>(s: S, c: &mut [Lane], a: Strided, b: &[Lane], scale: &Lane) {
    if c.is_empty() || b.is_empty() {
        if !ADD {
            c.fill(Lane::ZERO);
        }
        return;
    }
    // The one key_range check, for all that `micro` reads.
    assert!((c.len() - 1) * a.row + (b.len() - 1) * a.col < a.data.len());
    let mut r = 0;
    while r < c.len() {
        let tile = &mut c[r..];
        let a = Strided { data: &a.data[r * a.row..], ..a };
        // SAFETY (all arms): the largest index read, (rows − 1)·row + (b.len() − 1)·col, is within `data` by the
        // assertion above, and `tile` has at least that many rows.
        r += unsafe {
            match tile.len() {
                n if n >= ROWS => micro::<S, ROWS, ADD>(s, tile, a, b, scale),
                n if n >= 4 => micro::<S, 4, ADD>(s, tile, a, b, scale),
                n if n >= 2 => micro::<S, 2, ADD>(s, tile, a, b, scale),
                _ => micro::<S, 1, ADD>(s, tile, a, b, scale),
            }
        };
    }
}

/// `R` rows of the product, summed in registers over the whole inner dimension.
///
/// # Safety
/// `c` has `R` rows, and `a` holds its elements (R − 1, b.len() − 1) and all before.
#[inline(always)]
unsafe fn micro<S: Simd, const R: usize, const ADD: bool>(
    s: S,
    c: &mut [Lane],
    a: Strided,
    b: &[Lane],
    scale: &Lane,
) -> usize {
    let mut sums = [s.splat(0.0); R];
    let mut p = a.data.as_ptr();
    for b in b {
        let b = s.load(b);
        for (r, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let a = unsafe { *p.add(r * a.row) };
            *sum = s.madd(s.splat(a), b, *sum);
        }
        p = p.wrapping_add(a.col);
    }
    for (r, &sum) in sums.iter().enumerate() {
        // SAFETY: the caller's promise.
        let c = unsafe { c.get_unchecked_mut(r) };
        let sum = if ADD { s.madd(s.load(c), s.load(scale), sum) } else { sum };
        s.store(sum, c);
    }
    R
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::everywhere;
    use super::super::simd::{Kernel, LANES};
    use super::*;

    #[derive(Clone)]
    struct Check;
    impl Kernel for Check {
        #[inline(always)]
        fn run<S: Simd, const ROWS: usize>(self, s: S) {
            for (m, k) in [(1, 1), (3, 7), (5, 2), (13, 5), (17, 33), (31, 64)] {
                for transposed in [false, true] {
                    let data: Vec<f32> = (0..m * k + 7).map(|i| (i * 37 % 19) as f32 - 9.0).collect();
                    let (row, col) = if transposed { (1, m) } else { (k, 1) };
                    let b: Vec<Lane> = (0..k).map(|i| Lane::from_fn(|j| ((i * 5 + j * 3) % 11) as f32)).collect();
                    let mut c = vec![Lane::splat(2.0); m];
                    let scale = Lane::from_fn(|j| j as f32);
                    let a = Strided { data: &data, row, col };
                    let sum = |r: usize, j: usize| (0..k).map(|p| data[r * row + p * col] * b[p][j]).sum::<f32>();
                    accumulate::<S, ROWS>(s, &mut c, a, &b, &scale);
                    for (r, c) in c.iter().enumerate() {
                        // Small integers: exact in any order.
                        assert!((0..LANES).all(|j| c[j] == sum(r, j) + 2.0 * j as f32), "{m} {k} row {r}");
                    }
                    product::<S, ROWS>(s, &mut c, a, &b);
                    assert!(c.iter().enumerate().all(|(r, c)| (0..LANES).all(|j| c[j] == sum(r, j))), "{m} {k}");
                }
            }
        }
    }

    #[test]
    fn products_are_exact_on_integers() {
        everywhere(Check);
    }

    #[derive(Clone)]
    struct Beyond;
    impl Kernel for Beyond {
        #[inline(always)]
        fn run<S: Simd, const ROWS: usize>(self, s: S) {
            let a = Strided { data: &[0.0; 5], row: 3, col: 1 };
            product::<S, ROWS>(s, &mut [Lane::ZERO; 2], a, &[Lane::ZERO; 3]);
        }
    }

    #[test]
    #[should_panic]
    fn reading_beyond_the_matrix_is_refused() {
        everywhere(Beyond);
    }
}
