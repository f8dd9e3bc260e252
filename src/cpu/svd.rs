//! The best approximation of a matrix by one of low rank (Eckart and Young 1936), in float64.
//!
//! The singular vectors of C are those that CCᵀ has: it is brought to three diagonals by reflections (Householder 1958), whose
//! eigenvalues come by QR steps with Wilkinson's shift. Squaring costs the digits of singular values below 10⁻⁸ of the largest
//! one, which f32 does not hold either. What is known as a product of thin factors is never multiplied out: with each factor
//! made orthonormal, the core between them has the same singular values.

use rayon::prelude::*;

/// `left·right`: `[rows, rank]` and `[rank, columns]`, the rows of `right` of norm 1 or 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Each column is a left singular vector times its singular value.
    pub left: Vec<f64>,
    /// Each row is a right singular vector.
    pub right: Vec<f64>,
}

/// Of the dense matrix `c`, row by row with so many columns. Where the matrix has fewer dimensions than `rank`, the rest is zero.
pub fn of_dense(c: &[f64], columns: usize, rank: usize) -> Factors {
    let rows = c.len() / columns.max(1);
    if rows > columns {
        let Factors { left, right } = of_wide(&transposed(c, columns), rows, rank);
        // C = (Σ s·u·vᵀ)ᵀ: the singular values go to the other side.
        let (mut left, mut right) = (transposed(&right, rows), transposed(&left, rank));
        for (k, row) in right.chunks_exact_mut(columns).enumerate() {
            let value = norm(row);
            if value > 0.0 {
                row.iter_mut().for_each(|x| *x /= value);
            }
            left.iter_mut().skip(k).step_by(rank).for_each(|x| *x *= value);
        }
        return Factors { left, right };
    }
    of_wide(c, columns, rank)
}

/// Of the product of factors: the columns of the left one and the rows of the right one, as many each.
pub fn of_product(mut left: Vec<Vec<f64>>, mut right: Vec<Vec<f64>>, rank: usize) -> Factors {
    let n = left.len();
    let (rows, columns) = (left.first().map_or(0, Vec::len), right.first().map_or(0, Vec::len));
    let (by_left, by_right) = (orthonormal(&mut left), orthonormal(&mut right));
    let mut core = vec![0.0; n * n];
    for (l, r) in by_left.chunks_exact(n.max(1)).zip(by_right.chunks_exact(n.max(1))) {
        for (row, l) in core.chunks_exact_mut(n).zip(l) {
            add(row, r, *l);
        }
    }
    let found = of_dense(&core, n, rank);
    let mut whole = Factors { left: vec![0.0; rows * rank], right: vec![0.0; rank * columns] };
    for (q, values) in left.iter().zip(found.left.chunks_exact(rank)) {
        for (row, q) in whole.left.chunks_exact_mut(rank).zip(q) {
            add(row, values, *q);
        }
    }
    for (row, values) in whole.right.chunks_exact_mut(columns).zip(found.right.chunks_exact(n)) {
        right.iter().zip(values).for_each(|(q, x)| add(row, q, *x));
    }
    whole
}

/// Takes the best approximation of a rank out of a matrix with so many columns.
pub fn take_largest(values: &mut [f32], columns: usize, rank: usize) {
    let Factors { left, right } = of_dense(&wide(values), columns, rank);
    take(values, columns, &left, &right, 1.0);
}

/// Takes the projection of a matrix onto the span of its first `rank` columns out of it, times `scale`.
pub fn take_columns(values: &mut [f32], columns: usize, rank: usize, scale: f32) {
    let rows = values.len() / columns.max(1);
    let c = wide(values);
    let rank = rank.min(columns).min(rows);
    let mut basis: Vec<Vec<f64>> = (0..rank).map(|k| c.iter().skip(k).step_by(columns).copied().collect()).collect();
    orthonormal(&mut basis);
    let mut right = vec![0.0; rank * columns];
    right.par_chunks_exact_mut(columns.max(1)).zip(&basis).for_each(|(right, q)| {
        c.chunks_exact(columns).zip(q).for_each(|(row, q)| add(right, row, *q));
    });
    let left: Vec<f64> = (0..rows).flat_map(|i| basis.iter().map(move |q| q[i])).collect();
    take(values, columns, &left, &right, f64::from(scale));
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// `values −= scale·left·right`
fn take(values: &mut [f32], columns: usize, left: &[f64], right: &[f64], scale: f64) {
    let rank = right.len() / columns.max(1);
    values.par_chunks_exact_mut(columns.max(1)).zip(left.par_chunks_exact(rank.max(1))).for_each(|(row, left)| {
        let mut sum = wide(row);
        right.chunks_exact(columns).zip(left).for_each(|(right, l)| add(&mut sum, right, -scale * l));
        row.iter_mut().zip(sum).for_each(|(x, sum)| *x = sum as f32);
    });
}

/// The same of a matrix with no more rows than columns.
fn of_wide(c: &[f64], columns: usize, rank: usize) -> Factors {
    let rows = c.len() / columns.max(1);
    let row = |i: usize| &c[i * columns..(i + 1) * columns];
    let mut gram = vec![0.0; rows * rows];
    gram.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(i, out)| {
        out.iter_mut().enumerate().for_each(|(j, x)| *x = dot(row(i), row(j)));
    });
    let vectors = largest(gram, rows, rank);
    let mut found = Factors { left: vec![0.0; rows * rank], right: vec![0.0; rank * columns] };
    found.right.par_chunks_exact_mut(columns.max(1)).zip(&vectors).for_each(|(right, u)| {
        u.iter().enumerate().for_each(|(i, u)| add(right, row(i), *u));
    });
    for (k, (right, u)) in found.right.chunks_exact_mut(columns.max(1)).zip(&vectors).enumerate() {
        let value = norm(right);
        if value > 0.0 {
            right.iter_mut().for_each(|x| *x /= value);
        }
        found.left.iter_mut().skip(k).step_by(rank).zip(u).for_each(|(x, u)| *x = value * u);
    }
    found
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums, so that the compiler may add them side by side.
    let (a4, b4) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [0.0; 4];
    for (a, b) in a4.0.iter().zip(b4.0) {
        (0..4).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f64>() + a4.1.iter().zip(b4.1).map(|(a, b)| a * b).sum::<f64>()
}

fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// `to += factor·from`
fn add(to: &mut [f64], from: &[f64], factor: f64) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| x.iter().skip(j).step_by(columns).copied()).collect()
}

/// Makes vectors orthonormal, or zero where one depends on those before it (Gram and Schmidt, twice). The result has a row a
/// vector: its coordinates in them.
fn orthonormal(vectors: &mut [Vec<f64>]) -> Vec<f64> {
    const DEPENDENT: f64 = 1e-14;
    let n = vectors.len();
    let mut coordinates = vec![0.0; n * n];
    for (i, row) in coordinates.chunks_exact_mut(n.max(1)).enumerate() {
        let (before, rest) = vectors.split_at_mut(i);
        let whole = norm(&rest[0]);
        for _ in 0..2 {
            for (q, x) in before.iter().zip(row.iter_mut()) {
                let part = dot(q, &rest[0]);
                add(&mut rest[0], q, -part);
                *x += part;
            }
        }
        let left = norm(&rest[0]);
        let (value, factor) = if left > DEPENDENT * whole { (left, 1.0 / left) } else { (0.0, 0.0) };
        rest[0].iter_mut().for_each(|x| *x *= factor);
        row[i] = value;
    }
    coordinates
}

/// The eigenvectors of the largest eigenvalues of a symmetric matrix `[n, n]`, at most `count`.
fn largest(mut a: Vec<f64>, n: usize, count: usize) -> Vec<Vec<f64>> {
    let (mut diagonal, mut beside, mirrors) = three_diagonals(&mut a, n);
    let vectors = eigenvectors(&mut diagonal, &mut beside);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]));
    order.truncate(count);
    let one = |&i: &usize| {
        let mut x: Vec<f64> = (0..n).map(|k| vectors[k / LANES][i][k % LANES]).collect();
        for (k, mirror) in mirrors.iter().enumerate().rev() {
            let along = 2.0 * dot(mirror, &x[k + 1..]);
            add(&mut x[k + 1..], mirror, -along);
        }
        x
    };
    order.par_iter().map(one).collect()
}

/// Diagonal, what is beside it, and the reflections (unit vectors, the k-th of the coordinates after k) that bring a
/// symmetric matrix to these.
fn three_diagonals(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let (mut beside, mut mirrors) = (vec![0.0; n], Vec::new());
    for k in 0..n.saturating_sub(1) {
        let mut v = a[k * n + k + 1..(k + 1) * n].to_vec();
        let length = norm(&v);
        beside[k] = if v[0] > 0.0 { -length } else { length };
        v[0] -= beside[k];
        let size = norm(&v);
        if size > 0.0 {
            v.iter_mut().for_each(|x| *x /= size);
            // (1 − 2vvᵀ)·A·(1 − 2vvᵀ) = A − v·wᵀ − w·vᵀ, w = 2(Av − (vᵀAv)·v)
            let rest = |i: usize| (i + 1) * n + k + 1..(i + 2) * n;
            let mut w: Vec<f64> = (k..n - 1).into_par_iter().map(|i| dot(&a[rest(i)], &v)).collect();
            let along = dot(&v, &w);
            add(&mut w, &v, -along);
            w.iter_mut().for_each(|x| *x *= 2.0);
            a[(k + 1) * n..].par_chunks_exact_mut(n).zip(v.par_iter().zip(&w)).for_each(|(row, (vi, wi))| {
                add(&mut row[k + 1..], &w, -vi);
                add(&mut row[k + 1..], &v, -wi);
            });
        }
        mirrors.push(v);
    }
    ((0..n).map(|i| a[i * n + i]).collect(), beside, mirrors)
}

/// Rows of the matrix of eigenvectors that are turned side by side.
const LANES: usize = 8;

/// Turns three diagonals into eigenvalues, on the diagonal, and gives their eigenvectors: element k of the i-th is in lane
/// k mod 8 of place i of group k/8.
fn eigenvectors(d: &mut [f64], e: &mut [f64]) -> Vec<Vec<[f64; LANES]>> {
    /// Two or three steps find a value; one that needs more than this has none.
    const MOST: usize = 60;
    let n = d.len();
    let unit = |group: usize, i: usize| std::array::from_fn(|lane| f64::from(u8::from(group * LANES + lane == i)));
    let mut groups: Vec<Vec<[f64; LANES]>> =
        (0..n.div_ceil(LANES)).map(|group| (0..n).map(|i| unit(group, i)).collect()).collect();
    let small = f64::EPSILON * d.iter().chain(e.iter()).fold(0.0f64, |most, x| most.max(x.abs()));
    for first in 0..n {
        for _ in 0..MOST {
            let last = (first..n - 1).find(|&i| e[i].abs() <= small).unwrap_or(n - 1);
            if last == first {
                break;
            }
            let turns = step(d, e, first, last);
            groups.par_iter_mut().for_each(|group| {
                for &(i, c, s) in &turns {
                    let (x, y) = (group[i], group[i + 1]);
                    group[i] = std::array::from_fn(|k| c * x[k] - s * y[k]);
                    group[i + 1] = std::array::from_fn(|k| s * x[k] + c * y[k]);
                }
            });
        }
    }
    groups
}

/// One QR step, from the bottom up, on the part from `first` to `last`: the turns (i, cosine, sine) of the planes i, i+1.
fn step(d: &mut [f64], e: &mut [f64], first: usize, last: usize) -> Vec<(usize, f64, f64)> {
    // The shift: the eigenvalue of the two by two at the top that is nearer to its first element.
    let half = (d[first + 1] - d[first]) / (2.0 * e[first]);
    let shift = d[first] - e[first] / (half + half.hypot(1.0).copysign(half));
    let (mut along, mut c, mut s, mut moved) = (d[last] - shift, 1.0, 1.0, 0.0);
    let mut turns = Vec::with_capacity(last - first);
    for i in (first..last).rev() {
        let (out, kept) = (s * e[i], c * e[i]);
        let length = out.hypot(along);
        e[i + 1] = length;
        if length == 0.0 {
            // It has come apart here.
            d[i + 1] -= moved;
            e[last] = 0.0;
            return turns;
        }
        (s, c) = (out / length, along / length);
        let before = d[i + 1] - moved;
        let mixed = (d[i] - before) * s + 2.0 * c * kept;
        moved = s * mixed;
        d[i + 1] = before + moved;
        along = c * mixed - kept;
        turns.push((i, c, s));
    }
    d[first] -= moved;
    e[first] = along;
    e[last] = 0.0;
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between −1 and 1.
    fn numbers(n: usize, seed: u32) -> Vec<f64> {
        let word = |i: usize| crate::cpu::philox::philox([i as u32, 0, 0, 0], [seed, 1])[0];
        (0..n).map(|i| f64::from(word(i)) / f64::from(1u32 << 31) - 1.0).collect()
    }

    fn product(f: &Factors, columns: usize, rank: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for l in f.left.chunks_exact(rank) {
            let mut row = vec![0.0; columns];
            f.right.chunks_exact(columns).zip(l).for_each(|(r, l)| add(&mut row, r, *l));
            out.extend(row);
        }
        out
    }

    fn apart(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// Rows of `right` are orthonormal, columns of `left` orthogonal, and their norms fall.
    fn sound(f: &Factors, columns: usize, rank: usize, upto: usize) {
        let left = transposed(&f.left, rank);
        let rows = left.len() / rank;
        for i in 0..upto {
            for j in 0..upto {
                let wanted = f64::from(u8::from(i == j));
                let right = dot(&f.right[i * columns..][..columns], &f.right[j * columns..][..columns]);
                assert!((right - wanted).abs() < 1e-9, "{i} {j} {right}");
                let (a, b) = (&left[i * rows..][..rows], &left[j * rows..][..rows]);
                assert!(i == j || dot(a, b).abs() < 1e-9 * (1.0 + norm(a)), "{i} {j} {}", dot(a, b));
            }
        }
        let norms: Vec<f64> = left.chunks_exact(rows).map(norm).collect();
        assert!(norms.windows(2).all(|w| w[0] >= w[1] - 1e-9), "{norms:?}");
    }

    #[test]
    fn whole_rank_gives_the_matrix_again() {
        for (rows, columns) in [(1, 1), (1, 7), (7, 1), (2, 2), (9, 9), (5, 40), (40, 5), (33, 70), (130, 64)] {
            let c = numbers(rows * columns, 3);
            let whole = rows.min(columns);
            for rank in [whole, whole + 3] {
                let found = of_dense(&c, columns, rank);
                assert!(apart(&product(&found, columns, rank), &c) < 1e-12, "{rows}x{columns}");
                sound(&found, columns, rank, whole);
            }
        }
    }

    /// Diagonal matrices of known values, repeated and zero ones among them, turned by reflections.
    #[test]
    fn the_largest_values_are_kept() {
        let values = [5.0, 3.0, 3.0, 1.0, 1e-3, 0.0, 0.0];
        let (n, columns) = (values.len(), 11);
        let turn = |x: &mut Vec<f64>, columns: usize, seed| {
            let mut v = numbers(columns, seed);
            let size = norm(&v);
            v.iter_mut().for_each(|x| *x /= size);
            for row in x.chunks_exact_mut(columns) {
                let along = dot(row, &v);
                add(row, &v, -2.0 * along);
            }
        };
        let made = |kept: usize| {
            let mut c = vec![0.0; n * columns];
            (0..kept).for_each(|i| c[i * columns + i] = values[i]);
            turn(&mut c, columns, 5);
            let mut c = transposed(&c, columns);
            turn(&mut c, n, 6);
            transposed(&c, n)
        };
        let whole = made(n);
        // Between equal values any basis is as good, so that nothing is cut there.
        for rank in [1, 3, 4, 5, 7] {
            let found = of_dense(&whole, columns, rank);
            assert!(apart(&product(&found, columns, rank), &made(rank)) < 1e-12, "{rank}");
            let other = of_dense(&transposed(&whole, columns), n, rank);
            assert!(apart(&product(&other, n, rank), &transposed(&made(rank), columns)) < 1e-12, "{rank}");
        }
        // The control: another rank is another matrix.
        assert!(apart(&product(&of_dense(&whole, columns, 3), columns, 3), &made(4)) > 1e-2);
        let zero = of_dense(&[0.0; 12], 4, 2);
        assert!(zero.left.iter().chain(&zero.right).all(|x| *x == 0.0));
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let (rows, columns) = (12, 30);
        let c = numbers(rows * columns, 8);
        let single: Vec<f32> = c.iter().map(|x| *x as f32).collect();
        for rank in [1, 4, 12, 13] {
            let mut rest = single.clone();
            take_largest(&mut rest, columns, rank);
            let wanted = product(&of_dense(&c, columns, rank), columns, rank);
            let sum: Vec<f64> = rest.iter().zip(wanted).map(|(x, w)| f64::from(*x) + w).collect();
            assert!(apart(&sum, &c) < 1e-6, "{rank}");
            // What is left is orthogonal to the columns that were taken out, which are zero in it.
            let mut rest = single.clone();
            take_columns(&mut rest, columns, rank, 1.0);
            let rest = wide(&rest);
            let column = |x: &[f64], k: usize| x.iter().skip(k).step_by(columns).copied().collect::<Vec<f64>>();
            for k in 0..rank {
                assert!(norm(&column(&rest, k)) < 1e-6);
                assert!((0..columns).all(|j| dot(&column(&rest, j), &column(&c, k)).abs() < 1e-5), "{rank}");
            }
            let mut half = single.clone();
            take_columns(&mut half, columns, rank, 0.5);
            let mean: Vec<f64> = rest.iter().zip(&c).map(|(x, y)| 0.5 * (x + y)).collect();
            assert!(apart(&wide(&half), &mean) < 1e-6);
        }
    }

    #[test]
    fn products_are_as_their_dense_matrix() {
        for (rows, columns, n, rank) in [(20, 30, 4, 4), (20, 30, 6, 2), (3, 4, 9, 3), (30, 6, 8, 8), (50, 50, 1, 3)] {
            let left: Vec<Vec<f64>> = (0..n).map(|k| numbers(rows, 10 + k as u32)).collect();
            let mut right: Vec<Vec<f64>> = (0..n).map(|k| numbers(columns, 90 + k as u32)).collect();
            if n > 3 {
                right[3] = right[0].clone();
                right[2] = vec![0.0; columns];
            }
            let mut dense = vec![0.0; rows * columns];
            for (l, r) in left.iter().zip(&right) {
                dense.chunks_exact_mut(columns).zip(l).for_each(|(row, l)| add(row, r, *l));
            }
            let (one, other) = (of_dense(&dense, columns, rank), of_product(left, right, rank));
            let [one, other] = [one, other].map(|f| product(&f, columns, rank));
            assert!(apart(&one, &other) < 1e-10, "{rows}x{columns} of {n}: {}", apart(&one, &other));
            assert!(rank < n || apart(&other, &dense) < 1e-10 || n > rows.min(columns));
        }
    }
}
