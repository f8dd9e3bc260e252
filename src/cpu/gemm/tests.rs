//! Matrix products of every shape, operand format and edge, against float64.

use super::*;
use half::{bf16, f16};

/// A small generator, so that the data is the same everywhere.
struct Rng(u64);

impl Rng {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.word() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.word() as u8).collect()
    }
}

/// Storage of `n` elements in each format.
enum Owned {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    Nf4(Vec<u8>, Vec<f32>),
    Nf4Double(Vec<u8>, Vec<u8>, Box<[f32; 256]>, Vec<f32>),
}

const FORMATS: usize = 5;

impl Owned {
    fn new(format: usize, n: usize, rng: &mut Rng) -> Owned {
        let blocks = n.div_ceil(NF4_BLOCK);
        match format {
            0 => Owned::F32(rng.floats(n)),
            1 => Owned::Bf16(rng.floats(n).into_iter().map(bf16::from_f32).collect()),
            2 => Owned::F16(rng.floats(n).into_iter().map(f16::from_f32).collect()),
            3 => Owned::Nf4(rng.bytes(n.div_ceil(2)), rng.floats(blocks)),
            _ => Owned::Nf4Double(
                rng.bytes(n.div_ceil(2)),
                rng.bytes(blocks),
                Box::new(std::array::from_fn(|i| i as f32 / 128.0 - 1.0)),
                rng.floats(blocks.div_ceil(NF4_NESTED_BLOCK)),
            ),
        }
    }

    fn store(&self) -> Store<'_> {
        match self {
            Owned::F32(x) => Store::F32(x),
            Owned::Bf16(x) => Store::Bf16(x),
            Owned::F16(x) => Store::F16(x),
            Owned::Nf4(codes, scales) => Store::Nf4 { codes, absmax: Absmax::F32(scales) },
            Owned::Nf4Double(codes, scales, map, nested) => {
                Store::Nf4 { codes, absmax: Absmax::Double { codes: scales, map, nested, first: 0, offset: 0.25 } }
            }
        }
    }

    /// Element `i`, straight from the format's definition.
    fn get(&self, i: usize) -> f64 {
        let nf4 = |codes: &[u8]| {
            NF4[(if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 }) as usize] as f64
        };
        match self {
            Owned::F32(x) => x[i] as f64,
            Owned::Bf16(x) => x[i].to_f64(),
            Owned::F16(x) => x[i].to_f64(),
            Owned::Nf4(codes, scales) => nf4(codes) * scales[i / 64] as f64,
            Owned::Nf4Double(codes, scales, map, nested) => {
                let s = map[scales[i / 64] as usize] as f64 * nested[i / 64 / 256] as f64;
                nf4(codes) * (s + 0.25)
            }
        }
    }
}

/// A matrix, possibly stored transposed, with `pad` elements between its stored rows.
struct Operand {
    data: Owned,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

impl Operand {
    fn new(f: usize, rows: usize, cols: usize, t: bool, pad: usize, rng: &mut Rng) -> Operand {
        let ld = if t { rows } else { cols } + pad;
        let strides = if t { (1, ld) } else { (ld, 1) };
        let n = ld * if t { cols } else { rows };
        Operand { data: Owned::new(f, n, rng), rows, cols, strides }
    }

    fn mat(&self) -> Mat<'_> {
        Mat::new(self.data.store(), self.rows, self.cols, self.strides.0, self.strides.1)
    }

    fn get(&self, i: usize, j: usize) -> f64 {
        self.data.get(i * self.strides.0 + j * self.strides.1)
    }
}

fn check(terms: &[(f32, Operand, Operand)], beta: f32, bias: bool, rng: &mut Rng) {
    let (m, n) = (terms[0].1.rows, terms[0].2.cols);
    let ldc = n + 3;
    let bias = bias.then(|| rng.floats(n));
    let c0 = if beta == 0.0 { vec![f32::NAN; m * ldc] } else { rng.floats(m * ldc) };
    let views: Vec<Term> = terms.iter().map(|(alpha, a, b)| Term { alpha: *alpha, a: a.mat(), b: b.mat() }).collect();
    let mut want = vec![0f64; m * n];
    let mut size = vec![1f64; m * n];
    for i in 0..m {
        for j in 0..n {
            let w = &mut want[i * n + j];
            if beta != 0.0 {
                *w = beta as f64 * c0[i * ldc + j] as f64;
            }
            *w += bias.as_ref().map_or(0.0, |b| b[j] as f64);
            for (alpha, a, b) in terms {
                for p in 0..a.cols {
                    let x = *alpha as f64 * a.get(i, p) * b.get(p, j);
                    *w += x;
                    size[i * n + j] += x.abs();
                }
            }
        }
    }
    // Each instruction set, and what is chosen for this product.
    for level in Isa::usable().map(Some).chain([None]) {
        let mut c = c0.clone();
        match level {
            Some(level) => with_isa(level, &views, (beta, bias.as_deref()), &mut c, ldc, EXACT),
            None => gemm(&views, beta, bias.as_deref(), &mut c, ldc),
        }
        for i in 0..m {
            for j in 0..n {
                let (got, e) = (c[i * ldc + j] as f64, i * n + j);
                assert!(
                    (got - want[e]).abs() <= 2e-6 * size[e],
                    "{level:?} {m}x{n} at ({i}, {j}): {got} not {}",
                    want[e]
                );
            }
            let gap = i * ldc + n..((i + 1) * ldc).min(c.len());
            assert!(gap.clone().all(|x| c[x].to_bits() == c0[x].to_bits()), "wrote past a row");
        }
    }
}

#[test]
fn odd_sizes_and_transposes() {
    let mut rng = Rng(1);
    let sizes = [1, 2, 3, 4, 5, 7, 17, 33, 65, 129];
    for m in sizes {
        for n in sizes {
            for k in [1, 3, 7, 17, 65, 130] {
                for t in 0..4 {
                    let a = Operand::new(0, m, k, t & 1 != 0, 0, &mut rng);
                    let b = Operand::new(0, k, n, t & 2 != 0, 0, &mut rng);
                    check(&[(1.0, a, b)], 0.0, false, &mut rng);
                }
            }
        }
    }
}

#[test]
fn formats() {
    let mut rng = Rng(2);
    for (m, k, n) in [(1, 576, 70), (3, 65, 33), (4, 700, 40), (6, 33, 32), (17, 129, 65), (40, 650, 96)] {
        for f in 0..FORMATS * FORMATS {
            for t in 0..4 {
                let pad = if t == 3 { 5 } else { 0 };
                let a = Operand::new(f / FORMATS, m, k, t & 1 != 0, pad, &mut rng);
                let b = Operand::new(f % FORMATS, k, n, t & 2 != 0, pad, &mut rng);
                check(&[(0.5, a, b)], if t == 1 { 1.0 } else { 0.0 }, t == 2, &mut rng);
            }
        }
    }
}

#[test]
fn several_terms_beta_and_bias() {
    let mut rng = Rng(3);
    for (m, n) in [(1, 50), (4, 64), (5, 31), (16, 64), (200, 48), (350, 90)] {
        for (beta, bias) in [(0.0, false), (1.0, false), (0.0, true), (1.0, true), (-0.5, true)] {
            for wide in [1.0, 2.0] {
                let mut term = |alpha, k, f, t| {
                    let a = Operand::new(0, m, k, false, 0, &mut rng);
                    (alpha, a, Operand::new(f, k, n, t, 0, &mut rng))
                };
                let terms = [term(wide, 576, 4, true), term(2.0, 16, 0, true), term(wide, 9, 1, false)];
                check(&terms, beta, bias, &mut rng);
                let mut term = |alpha, k| {
                    let a = Operand::new(0, m, k, false, 0, &mut rng);
                    (alpha, a, Operand::new(0, k, n, false, 0, &mut rng))
                };
                check(&[term(wide, 400), term(1.0, 16)], beta, bias, &mut rng);
            }
        }
    }
}

/// Every way in which few rows meet B: whole blocks of NF4, blocks that columns share, columns with gaps, both strides;
/// fewer columns than are side by side, and some left over; partial sums that stay empty.
#[test]
fn few_rows() {
    let mut rng = Rng(6);
    for m in 1..=4 {
        for (k, n) in [(64, 5), (576, 19), (1024, 3), (1, 9), (100, 18), (130, 7), (515, 6), (1100, 5)] {
            for f in 0..FORMATS {
                for pad in [0, 64, 3] {
                    let a = Operand::new(0, m, k, pad == 3, pad, &mut rng);
                    let b = Operand::new(f, k, n, true, pad, &mut rng);
                    check(&[(1.5, a, b)], 0.0, pad == 64, &mut rng);
                }
                let a = Operand::new(0, m, k, false, 0, &mut rng);
                let mut b = Operand::new(f, 2 * k, 2 * n, false, 0, &mut rng);
                (b.rows, b.cols, b.strides) = (k, n, (4 * n, 2));
                check(&[(1.0, a, b)], 1.0, false, &mut rng);
            }
        }
    }
}

/// A column of a thin product is the same, whichever columns are computed beside it.
#[test]
fn a_column_of_few_rows_stands_alone() {
    let mut rng = Rng(7);
    for (m, k, f) in (1..=4).flat_map(|m| [(m, 576, 0), (m, 576, 3), (m, 1088, 4), (m, 100, 1), (m, 100, 3)]) {
        let a = Operand::new(0, m, k, false, 0, &mut rng);
        let b = Operand::new(f, k, 21, true, 0, &mut rng);
        for level in Isa::usable() {
            let run = |cols: usize| {
                let mut c = vec![0f32; m * cols];
                let b = Mat::new(b.data.store(), k, cols, b.strides.0, b.strides.1);
                with_isa(level, &[Term { alpha: 1.0, a: a.mat(), b }], (0.0, None), &mut c, cols, EXACT);
                c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let all = run(21);
            for cols in [2, 5, 17] {
                for (few, all) in run(cols).chunks(cols).zip(all.chunks(21)) {
                    assert!(*few == all[..cols], "{level:?} {m}x{k}, {cols} columns");
                }
            }
        }
    }
}

/// Sums of large and small numbers are as exact as one rounding of each factor and product allows, whatever pieces an
/// instruction set makes of them; with factors cut to 16 bits they are not.
#[test]
fn numbers_of_any_size_keep_their_bits() {
    let mut rng = Rng(7);
    let (m, k, n) = (40, 96, 50);
    let scaled = |x: Vec<f32>, step: usize| -> Vec<f32> {
        x.iter().enumerate().map(|(i, x)| x * 2f32.powi((i / step % 9) as i32 * 10 - 40)).collect()
    };
    let (a, b) = (scaled(rng.floats(m * k), k), scaled(rng.floats(k * n), 1));
    // A chain of k sums, four roundings or lost pieces of 2^-24 beside.
    let most = |a: &[f32], c: &[f32]| {
        let error = |i: usize, j: usize| {
            let terms = |p: usize| a[i * k + p] as f64 * b[p * n + j] as f64;
            let (want, size) = (0..k).fold((0.0, 0.0), |(w, s), p| (w + terms(p), s + terms(p).abs()));
            (c[i * n + j] as f64 - want).abs() / (size * (k + 4) as f64 * 2f64.powi(-24))
        };
        (0..m * n).map(|e| error(e / n, e % n)).fold(0.0, f64::max)
    };
    for level in Isa::usable() {
        let product = |a: &[f32]| {
            let mut c = vec![0.0; m * n];
            let term =
                Term { alpha: 1.0, a: Mat::row_major(Store::F32(a), m, k), b: Mat::row_major(Store::F32(&b), k, n) };
            with_isa(level, &[term], (0.0, None), &mut c, n, EXACT);
            c
        };
        assert!(most(&a, &product(&a)) <= 1.0, "{level:?}");
        let cut: Vec<f32> = a.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect();
        assert!(most(&a, &product(&cut)) > 1.0, "{level:?}: the check sees nothing");
    }
}

/// Of factors in bf16, the product is as exact as ever, and rounded once where the result is in bf16; wider factors cost
/// their own rounding and no more.
#[test]
fn activations_in_bf16() {
    let mut rng = Rng(8);
    let shapes = [(1, 70, 33), (3, 576, 40), (33, 65, 50), (130, 2000, 96), (64, 300, 16), (16, 400, 700), (50, 9, 70)];
    for (m, k, n) in shapes {
        for (f, t, beta) in [(1, 0, 0.0), (0, 1, 0.0), (3, 2, 1.0), (1, 3, 1.0)] {
            let a = Operand::new(1, m, k, t & 1 != 0, 0, &mut rng);
            let b = Operand::new(f, k, n, t & 2 != 0, 0, &mut rng);
            let (up, down) = (Operand::new(1, m, 5, false, 0, &mut rng), Operand::new(0, 5, n, true, 0, &mut rng));
            let (bias, c0, ldc) = (rng.floats(n), rng.floats(m * (n + 3)), n + 3);
            let both = [Term { alpha: 1.0, a: a.mat(), b: b.mat() }, Term { alpha: 0.5, a: up.mat(), b: down.mat() }];
            let sum = |i: usize, j: usize, with: bool| {
                let one = |(alpha, a, b): (f64, &Operand, &Operand)| {
                    let terms = move |p| alpha * a.get(i, p) * b.get(p, j);
                    (0..a.cols).map(terms).fold((0.0, 0.0), |(w, s), x: f64| (w + x, s + x.abs()))
                };
                let (first, second) = (one((1.0, &a, &b)), one((0.5, &up, &down)));
                let start = beta as f64 * c0[i * ldc + j] as f64;
                match with {
                    true => (start + first.0 + second.0 + bias[j] as f64, 1.0 + first.1 + second.1),
                    false => (start + first.0, 1.0 + first.1),
                }
            };
            // An element of the result, and whether factors were rounded.
            let near = |got: f64, (want, size): (f64, f64), exact: bool, rounded: bool| {
                let error = if exact { 2e-6 * size } else { size / 256.0 };
                (got - want).abs() <= error + if rounded { want.abs() / 256.0 } else { 0.0 }
            };
            for level in Isa::usable() {
                let narrow = Rounding { factors: true, result: None };
                let mut c = c0.clone();
                with_isa(level, &both[..1], (beta, None), &mut c, ldc, narrow);
                let mut rounded = vec![bf16::MAX; c0.len()];
                let mut sums = c0.clone();
                let result = Some(Shared(rounded.as_mut_ptr()));
                let end = (beta, Some(&bias[..]));
                with_isa(level, &both, end, &mut sums, ldc, Rounding { factors: true, result });
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let (got, at) = (c[i * ldc + j] as f64, sum(i, j, false));
                    assert!(near(got, at, f == 1, false), "{level:?} {m}x{k}x{n}, format {f}: {got}, not {}", at.0);
                    let (got, at) = (rounded[i * ldc + j].to_f64(), sum(i, j, true));
                    assert!(near(got, at, false, true), "{level:?} {m}x{k}x{n}, rounded: {got}, not {}", at.0);
                }
                assert!((0..m).all(|i| rounded[i * ldc + n..(i + 1) * ldc].iter().all(|&x| x == bf16::MAX)));
            }
        }
    }
}

#[test]
fn page_strides_and_both_strides() {
    let mut rng = Rng(4);
    let a = Operand::new(0, 50, 1024, false, 0, &mut rng);
    let b = Operand::new(0, 1024, 80, true, 1024, &mut rng);
    check(&[(1.0, a, b)], 0.0, false, &mut rng);
    for m in [3, 40] {
        let mut a = Operand::new(0, 2 * m, 90, false, 0, &mut rng);
        (a.rows, a.cols, a.strides) = (m, 45, (180, 2));
        let mut b = Operand::new(3, 90, 70, false, 0, &mut rng);
        (b.rows, b.cols, b.strides) = (45, 35, (140, 2));
        check(&[(1.0, a, b)], 1.0, true, &mut rng);
    }
}

#[test]
fn few_columns_of_a_product_with_a_stored_by_columns() {
    let mut rng = Rng(6);
    for (m, k, n) in [(64, 40, 1), (130, 70, 7), (576, 300, 16)] {
        for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0), (1.0, -2.0)] {
            let a = Operand::new(0, m, k, true, 0, &mut rng);
            let b = Operand::new(0, k, n, false, 0, &mut rng);
            check(&[(alpha, a, b)], beta, false, &mut rng);
        }
    }
}

#[test]
fn empty_k_applies_the_epilogue() {
    for m in [1, 9] {
        let a = Mat::row_major(Store::F32(&[]), m, 0);
        let b = Mat::row_major(Store::F32(&[]), 0, 5);
        let mut c = vec![2.0; m * 5];
        gemm(&[Term { alpha: 1.0, a, b }], 0.5, Some(&[1.0; 5]), &mut c, 5);
        assert!(c.iter().all(|&x| x == 2.0));
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let mut rng = Rng(5);
    for (m, k, n, t, f) in [
        (1, 576, 3000, true, 0),
        (3, 576, 3000, false, 4),
        (1, 576, 3000, true, 4),
        (4, 100, 3001, true, 3),
        (2, 1024, 1001, true, 1),
        (16, 1024, 576, false, 0),
        (350, 700, 500, true, 3),
        (40, 2600, 1100, false, 0),
        (24, 1500, 1536, false, 1),
    ] {
        let a = Operand::new(0, m, k, false, 0, &mut rng);
        let b = Operand::new(f, k, n, t, 0, &mut rng);
        for level in Isa::usable() {
            for factors in [false, true] {
                let run = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut c = vec![0f32; m * n];
                    let terms = [Term { alpha: 1.0, a: a.mat(), b: b.mat() }];
                    let how = Rounding { factors, result: None };
                    pool.install(|| with_isa(level, &terms, (0.0, None), &mut c, n, how));
                    c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let one = run(1);
                for threads in [2, 3, 7] {
                    assert!(run(threads) == one, "{level:?} {m}x{k}x{n} on {threads} threads, narrow: {factors}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "exceeds its store")]
fn a_view_outside_its_store_is_refused() {
    Mat::new(Store::F32(&[0.0; 11]), 3, 4, 4, 1);
}
