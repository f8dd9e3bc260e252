//! Products of small matrices in cache, from which attention is built.
//!
//! One side is a *panel*: [`LANES`] columns wide, each row one [`Lane`]. The other is read element by element where
//! it lies, by two strides, so nothing is transposed or packed but the panels.

use super::simd::{LANES, Lane, madd};

/// A matrix of any layout: element (r, c) is `data[r·row + c·col]`.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// `c = a · b` for panels `c` and `b` of as many rows as `a` has rows and columns.
#[inline(always)]
pub fn product<const FMA: bool, const ROWS: usize>(c: &mut [Lane], a: Strided, b: &[Lane]) {
    rows::<FMA, ROWS, false>(c, a, b, &[0.0; LANES]);
}

/// `c = a · b + c · diag(scale)`.
#[inline(always)]
pub fn accumulate<const FMA: bool, const ROWS: usize>(c: &mut [Lane], a: Strided, b: &[Lane], scale: &Lane) {
    rows::<FMA, ROWS, true>(c, a, b, scale);
}

#[inline(always)]
fn rows<const FMA: bool, const ROWS: usize, const ADD: bool>(c: &mut [Lane], a: Strided, b: &[Lane], scale: &Lane) {
    if c.is_empty() || b.is_empty() {
        if !ADD {
            c.fill([0.0; LANES]);
        }
        return;
    }
    // The one bounds check, for all that `micro` reads.
    assert!((c.len() - 1) * a.row + (b.len() - 1) * a.col < a.data.len());
    let mut r = 0;
    while r < c.len() {
        let tile = &mut c[r..];
        let from = &a.data[r * a.row..];
        let a = Strided { data: from, ..a };
        // SAFETY (all arms): the largest index read, (rows − 1)·row + (b.len() − 1)·col, is within `data` by the
        // assertion above, and `tile` has at least that many rows.
        r += unsafe {
            match tile.len() {
                n if n >= ROWS => micro::<FMA, ROWS, ADD>(tile, a, b, scale),
                n if n >= 8 => micro::<FMA, 8, ADD>(tile, a, b, scale),
                n if n >= 4 => micro::<FMA, 4, ADD>(tile, a, b, scale),
                n if n >= 2 => micro::<FMA, 2, ADD>(tile, a, b, scale),
                _ => micro::<FMA, 1, ADD>(tile, a, b, scale),
            }
        };
    }
}

/// `R` rows of the product, accumulated in registers over the whole inner dimension.
///
/// # Safety
/// `c` has `R` rows, and `a` holds its elements (R − 1, b.len() − 1) and all before.
#[inline(always)]
unsafe fn micro<const FMA: bool, const R: usize, const ADD: bool>(
    c: &mut [Lane],
    a: Strided,
    b: &[Lane],
    scale: &Lane,
) -> usize {
    let mut sums = [[0f32; LANES]; R];
    for (k, b) in b.iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let a = unsafe { *a.data.get_unchecked(r * a.row + k * a.col) };
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = madd::<FMA>(a, *b, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's promise.
        let c = unsafe { c.get_unchecked_mut(r) };
        for i in 0..LANES {
            c[i] = if ADD { madd::<FMA>(c[i], scale[i], sums[i]) } else { sums[i] };
        }
    }
    R
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const FMA: bool, const ROWS: usize>() {
        for (m, k) in [(1, 1), (3, 7), (5, 2), (13, 5), (17, 33), (31, 64)] {
            for transposed in [false, true] {
                let data: Vec<f32> = (0..m * k + 7).map(|i| (i * 37 % 19) as f32 - 9.0).collect();
                let (row, col) = if transposed { (1, m) } else { (k, 1) };
                let b: Vec<Lane> = (0..k).map(|i| std::array::from_fn(|j| ((i * 5 + j * 3) % 11) as f32)).collect();
                let mut c = vec![[2.0; LANES]; m];
                let scale = std::array::from_fn(|j| j as f32);
                let a = Strided { data: &data, row, col };
                let sum = |r: usize, j: usize| (0..k).map(|p| data[r * row + p * col] * b[p][j]).sum::<f32>();
                accumulate::<FMA, ROWS>(&mut c, a, &b, &scale);
                for (r, c) in c.iter().enumerate() {
                    // Small integers: exact in any order.
                    assert!((0..LANES).all(|j| c[j] == sum(r, j) + 2.0 * j as f32), "{m} {k} row {r}");
                }
                product::<FMA, ROWS>(&mut c, a, &b);
                assert!(c.iter().enumerate().all(|(r, c)| (0..LANES).all(|j| c[j] == sum(r, j))), "{m} {k}");
            }
        }
    }

    #[test]
    fn products_are_exact_on_integers() {
        check::<false, 3>();
        check::<true, 6>();
        check::<true, 12>();
    }

    #[test]
    #[should_panic]
    fn reading_beyond_the_matrix_is_refused() {
        let a = Strided { data: &[0.0; 5], row: 3, col: 1 };
        product::<false, 3>(&mut [[0.0; LANES]; 2], a, &[[0.0; LANES]; 3]);
    }
}
