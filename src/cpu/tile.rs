//! Products of small matrices in cache, from which attention is built.
//!
//! One side is a *panel*: 16 columns wide, each row one [`Lane`]. The other is read element by element where it
//! is, by two strides, so nothing is transposed or packed but the panels.

use bytemuck::{Pod, Zeroable};

use super::simd::{Lane, Pairs, Simd};

/// What an element of the side that is read element by element is: it goes to all lanes at once.
pub trait Factor<S: Simd>: Pod {
    /// self·b + c, lane by lane.
    fn madd(self, s: S, b: S::V, c: S::V) -> S::V;
}

impl<S: Simd> Factor<S> for f32 {
    #[inline(always)]
    fn madd(self, s: S, b: S::V, c: S::V) -> S::V {
        s.madd(s.splat(self), b, c)
    }
}

/// Two bf16, the first in the lower half, which meet the two of each lane of a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct Pair(pub u32);

impl<S: Pairs> Factor<S> for Pair {
    #[inline(always)]
    fn madd(self, s: S, b: S::V, c: S::V) -> S::V {
        s.dot(self.0, b, c)
    }
}

/// A matrix of any layout: element (r, c) is `data[r·row + c·col]`.
#[derive(Clone, Copy)]
pub struct Strided<'a, W = f32> {
    /// The memory that holds it, from element (0, 0) on.
    pub data: &'a [W],
    /// Elements from a row to the next.
    pub row: usize,
    /// Elements from a column to the next.
    pub col: usize,
}

impl<W> Strided<'_, W> {
    /// The same memory with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Strided { row: self.col, col: self.row, ..self }
    }
}

/// `c = a · b` for panels `c` and `b` of as many rows as `a` has rows and columns.
#[inline(always)]
pub fn product<S: Simd, W: Factor<S>, const ROWS: usize>(s: S, c: &mut [Lane], a: Strided<W>, b: &[Lane]) {
    rows::<S, W, ROWS, false>(s, c, a, b, &Lane::ZERO);
}

/// `c = a · b + c · diag(scale)`.
#[inline(always)]
pub fn accumulate<S: Simd, W: Factor<S>, const ROWS: usize>(
    s: S,
    c: &mut [Lane],
    a: Strided<W>,
    b: &[Lane],
    scale: &Lane,
) {
    rows::<S, W, ROWS, true>(s, c, a, b, scale);
}

#[inline(always)]
fn rows<S: Simd, W: Factor<S>, const ROWS: usize, const ADD: bool>(
    s: S,
    c: &mut [Lane],
    a: Strided<W>,
    b: &[Lane],
    scale: &Lane,
) {
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
                n if n >= ROWS => micro::<S, W, ROWS, ADD>(s, tile, a, b, scale),
                n if n >= 4 => micro::<S, W, 4, ADD>(s, tile, a, b, scale),
                n if n >= 2 => micro::<S, W, 2, ADD>(s, tile, a, b, scale),
                _ => micro::<S, W, 1, ADD>(s, tile, a, b, scale),
            }
        };
    }
}

/// `R` rows of the product, summed in registers over the whole inner dimension.
///
/// # Safety
/// `c` has `R` rows, and `a` holds its elements (R − 1, b.len() − 1) and all before.
#[inline(always)]
unsafe fn micro<S: Simd, W: Factor<S>, const R: usize, const ADD: bool>(
    s: S,
    c: &mut [Lane],
    a: Strided<W>,
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
            *sum = a.madd(s, b, *sum);
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
    use super::super::simd::{Kernel, LANES, PairKernel, dispatch_pairs};
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
                    accumulate::<S, f32, ROWS>(s, &mut c, a, &b, &scale);
                    for (r, c) in c.iter().enumerate() {
                        // Small integers: exact in any order.
                        assert!((0..LANES).all(|j| c[j] == sum(r, j) + 2.0 * j as f32), "{m} {k} row {r}");
                    }
                    product::<S, f32, ROWS>(s, &mut c, a, &b);
                    assert!(c.iter().enumerate().all(|(r, c)| (0..LANES).all(|j| c[j] == sum(r, j))), "{m} {k}");
                }
            }
        }
    }

    #[test]
    fn products_are_exact_on_integers() {
        everywhere(Check);
    }

    /// The same of pairs: both numbers of a word, against both of each lane.
    struct CheckPairs;
    impl PairKernel for CheckPairs {
        #[inline(always)]
        fn run<S: Pairs, const ROWS: usize>(self, s: S) {
            let number = |r: usize, k: usize| ((r * 37 + k * 11) % 19) as f32 - 9.0;
            let other = |k: usize, l: usize| ((k * 5 + l * 3) % 11) as f32 - 4.0;
            let word = |low: f32, high: f32| low.to_bits() >> 16 | high.to_bits() & 0xffff_0000;
            for (m, k) in [(1, 2), (5, 6), (31, 64)] {
                let data: Vec<Pair> = (0..m * k / 2)
                    .map(|i| (i / (k / 2), i % (k / 2) * 2))
                    .map(|(r, k)| Pair(word(number(r, k), number(r, k + 1))))
                    .collect();
                let panel: Vec<Lane> = (0..k / 2)
                    .map(|i| {
                        let row = |k: usize| s.load(&Lane::from_fn(|l| other(k, l)));
                        let mut words = Lane::ZERO;
                        s.store(s.pair(row(2 * i), row(2 * i + 1)), &mut words);
                        words
                    })
                    .collect();
                let mut c = vec![Lane::splat(2.0); m];
                let a = Strided { data: &data, row: k / 2, col: 1 };
                accumulate::<S, Pair, ROWS>(s, &mut c, a, &panel, &Lane::splat(3.0));
                for (r, c) in c.iter().enumerate() {
                    let sum = |l: usize| (0..k).map(|k| number(r, k) * other(k, l)).sum::<f32>();
                    assert!((0..LANES).all(|l| c[l] == sum(l) + 6.0), "{m} {k} row {r}");
                }
            }
            // To the nearest, ties to even: 1 + 2⁻⁸ is between two, 1 + 3·2⁻⁸ too.
            let mut words = Lane::ZERO;
            let tie = |n: f32| s.splat(1.0 + n / 256.0);
            s.store(s.pair(tie(1.0), tie(3.0)), &mut words);
            assert!(words.iter().all(|x| x.to_bits() == word(1.0, 1.0 + 4.0 / 256.0)));
        }
    }

    #[test]
    fn products_of_pairs_are_exact_on_integers() {
        dispatch_pairs(CheckPairs);
    }

    #[derive(Clone)]
    struct Beyond;
    impl Kernel for Beyond {
        #[inline(always)]
        fn run<S: Simd, const ROWS: usize>(self, s: S) {
            let a = Strided { data: &[0.0; 5], row: 3, col: 1 };
            product::<S, f32, ROWS>(s, &mut [Lane::ZERO; 2], a, &[Lane::ZERO; 3]);
        }
    }

    #[test]
    #[should_panic]
    fn reading_beyond_the_matrix_is_refused() {
        everywhere(Beyond);
    }
}
