//! The thin product: so few rows of A that B is read once and in place, as when one token is decoded.
//!
//! Where B's columns are runs along k (a weight stored `(out, in)`), a column is a dot product, its elements widened in
//! registers next to the multiply-add. A column's sum is the same whichever columns are computed beside it:
//!
//! * f32, bf16, f16: vector p of the column goes to partial sum p mod U, U from the number of rows alone;
//! * NF4 in whole blocks: `sum over blocks of absmax * (sum over the block of code value * x)`, which multiplies by a
//!   scale once a block and rounds less often than scaling every element would;
//! * other NF4 and columns that are no runs: stretches of [`RUN`] elements are decoded first.
//!
//! Where B's rows are contiguous, rows of C are sums of rows of B.

use super::operand::*;
use super::vector::{Vector, prefetch};
use super::*;

/// Rows up to which B is streamed instead of packed: packing pays only when reused.
pub(super) const THIN_ROWS: usize = 4;
/// Multiply-adds of a task, at least: waking a thread costs as much as some ten thousand.
const TASK_MACS: u64 = 1 << 16;
/// Columns of a task at most; also how many elements are decoded at a time, where that is done apart.
const WIDTH: usize = 512;
/// Bytes ahead of the reads that lines are asked for. NF4 has as many elements in an eighth of the bytes, and its columns
/// are read side by side; measured on a Zen 5, where 2048 there take 9 % longer, and 6144 for f32 2 %.
const AHEAD: usize = 2048;
const NF4_AHEAD: usize = 6144;

/// Sums of a task's columns, row after row.
pub(super) type Sums = [[f32; WIDTH]; THIN_ROWS];

/// A product with few rows, `rows <= THIN_ROWS`.
pub(super) struct Thin<'a> {
    terms: &'a [Term<'a>],
    rows: usize,
    /// A_i as f32 rows of [`padded`] k_i elements, term after term; zeros after the k_i. In the order of the decoded
    /// codes where B is [`Path::Nf4`].
    a: &'a [f32],
}

/// Elements from one row of A to the next: whole vectors of every instruction set, whole blocks of NF4.
fn padded(k: usize) -> usize {
    k.next_multiple_of(NF4_BLOCK)
}

/// Floats of the rows of A of a product whose terms have `k` elements in a row together.
fn row_floats(rows: usize, k: usize) -> usize {
    rows * (k + MAX_TERMS * NF4_BLOCK)
}

/// How a term's B is read.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    /// Its rows are contiguous.
    Rows,
    /// Its columns are runs of f32, bf16 or f16.
    Runs,
    /// Its columns are whole blocks of NF4.
    Nf4,
    /// Anything else.
    Decoded,
}

impl Path {
    fn of(b: &Mat) -> Path {
        let blocks = b.rows.is_multiple_of(NF4_BLOCK) && b.col_stride.is_multiple_of(NF4_BLOCK);
        match b.store {
            _ if b.col_stride == 1 && b.cols > 1 => Path::Rows,
            Store::Nf4 { .. } if b.row_stride == 1 && blocks => Path::Nf4,
            Store::Nf4 { .. } => Path::Decoded,
            _ if b.row_stride == 1 => Path::Runs,
            _ => Path::Decoded,
        }
    }
}

pub(super) fn thin_product<I: IsaKernel>(
    terms: &[Term],
    (m, n, k): (usize, usize, usize),
    end: &Epilogue,
    parallel: bool,
) {
    A_PANELS.with(row_floats(m, k), |rows| {
        let mut rest = &mut *rows;
        for t in terms {
            let spread = Path::of(&t.b) == Path::Nf4;
            for i in 0..m {
                let row;
                (row, rest) = rest.split_at_mut(padded(t.a.cols));
                read_row::<I>(&t.a, i, row, spread);
            }
        }
        let job = Thin { terms, rows: m, a: rows };
        // A column's sum never depends on its neighbours, so the width of a task is free.
        let macs = m as u64 * n as u64 * k as u64;
        let tasks = (macs / TASK_MACS).clamp(2, 4 * rayon::current_num_threads() as u64) as usize;
        let tasks = if parallel { tasks } else { 1 };
        let width = n.div_ceil(tasks).next_multiple_of(16).min(WIDTH);
        for_each(parallel, n.div_ceil(width), |task| {
            let j0 = task * width;
            let len = (n - j0).min(width);
            let mut out = [[0f32; WIDTH]; THIN_ROWS];
            // SAFETY: `with_isa` chose I among the sets this processor has.
            unsafe { I::thin(&job, j0, &mut out, len) };
            for (i, sums) in out[..m].iter().enumerate() {
                // SAFETY: j0 + len <= n, i < m, and tasks have disjoint columns.
                unsafe { end.write(i, j0, end.beta, end.bias, &sums[..len]) };
            }
            // SAFETY: as above.
            unsafe { end.round(0..m, j0..j0 + len) };
        });
    });
}

/// Row `i` of `a` as f32, zeros after it; each block of 64 in the order of decoded NF4 codes if `spread`.
fn read_row<I: IsaKernel>(a: &Mat, i: usize, row: &mut [f32], spread: bool) {
    let (row, zeros) = row.split_at_mut(a.cols);
    zeros.fill(0.0);
    if a.col_stride == 1 {
        a.store.decode(i * a.row_stride, row);
    } else {
        for (p, x) in row.iter_mut().enumerate() {
            a.store.decode(i * a.row_stride + p * a.col_stride, std::slice::from_mut(x));
        }
    }
    if spread {
        for block in row.as_chunks_mut::<NF4_BLOCK>().0 {
            let x = *block;
            for (i, x) in x.into_iter().enumerate() {
                block[I::nf4_place(i)] = x;
            }
        }
    }
}

/// Columns `j0..j0 + len` of the sum of products, added to `out`.
///
/// # Safety
/// The processor has the instruction set; `len <= WIDTH` columns from `j0` on are columns of every B.
#[inline(always)]
pub(super) unsafe fn columns<I: IsaKernel>(job: &Thin, j0: usize, out: &mut Sums, len: usize) {
    // SAFETY: the caller's promise. Partial sums: as many vectors as hide the latency of a multiply-add and leave
    // room in the registers.
    unsafe {
        match job.rows {
            1 => of_rows::<I, 1, 8, 4>(job, j0, out, len),
            2 => of_rows::<I, 2, 4, 2>(job, j0, out, len),
            3 => of_rows::<I, 3, 2, 1>(job, j0, out, len),
            _ => of_rows::<I, 4, 2, 1>(job, j0, out, len),
        }
    }
}

/// R rows, each with U partial sums of a column, or C columns of NF4 side by side.
#[inline(always)]
unsafe fn of_rows<I: IsaKernel, const R: usize, const U: usize, const C: usize>(
    job: &Thin,
    j0: usize,
    out: &mut Sums,
    len: usize,
) {
    let mut a0 = 0;
    for t in job.terms {
        let step = padded(t.b.rows);
        let a: [&[f32]; R] = std::array::from_fn(|i| &job.a[a0 + i * step..][..step]);
        a0 += R * step;
        let columns = Columns { t, a, j0, len };
        // SAFETY: the caller's promise; the paths are what `Path::of` found.
        unsafe {
            match (Path::of(&t.b), t.b.store) {
                (Path::Rows, _) => columns.rows::<I>(out),
                (Path::Nf4, Store::Nf4 { codes, absmax }) => columns.nf4::<I, C>(codes, absmax, out),
                (Path::Runs, Store::F32(w)) => columns.runs::<I, _, U>(w, out),
                (Path::Runs, Store::Bf16(w)) => columns.runs::<I, _, U>(w, out),
                (Path::Runs, Store::F16(w)) => columns.runs::<I, _, U>(w, out),
                _ => columns.decoded::<I, U>(out),
            }
        }
    }
}

/// An element that a vector load widens to f32.
trait Element: Copy {
    const ZERO: Self;
    /// # Safety
    /// As for the methods of [`Vector`].
    unsafe fn load<I: Vector>(p: *const Self) -> I::V;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn load<I: Vector>(p: *const f32) -> I::V {
        // SAFETY: the caller's promise.
        unsafe { I::f32(p) }
    }
}

impl Element for half::bf16 {
    const ZERO: Self = Self::ZERO;
    #[inline(always)]
    unsafe fn load<I: Vector>(p: *const Self) -> I::V {
        // SAFETY: the caller's promise.
        unsafe { I::bf16(p) }
    }
}

impl Element for half::f16 {
    const ZERO: Self = Self::ZERO;
    #[inline(always)]
    unsafe fn load<I: Vector>(p: *const Self) -> I::V {
        // SAFETY: the caller's promise.
        unsafe { I::f16(p) }
    }
}

/// Columns `j0..j0 + len` of one term.
struct Columns<'a, const R: usize> {
    t: &'a Term<'a>,
    a: [&'a [f32]; R],
    j0: usize,
    len: usize,
}

impl<const R: usize> Columns<'_, R> {
    #[inline(always)]
    fn add<I: IsaKernel>(&self, out: &mut Sums, j: usize, sums: [f32; R]) {
        for i in 0..R {
            out[i][j] = mul_add::<I>(self.t.alpha, sums[i], out[i][j]);
        }
    }

    #[inline(always)]
    unsafe fn runs<I: IsaKernel, E: Element, const U: usize>(&self, w: &[E], out: &mut Sums) {
        for j in 0..self.len {
            let start = (self.j0 + j) * self.t.b.col_stride;
            // SAFETY: the caller has the instruction set.
            let sums = unsafe { dots::<I, E, R, U>(self.a, &w[start..start + self.t.b.rows]) };
            self.add::<I>(out, j, sums);
        }
    }

    /// Column by column through a buffer.
    #[inline(always)]
    unsafe fn decoded<I: IsaKernel, const U: usize>(&self, out: &mut Sums) {
        let b = &self.t.b;
        let mut scratch = [0f32; WIDTH];
        for j in 0..self.len {
            let start = (self.j0 + j) * b.col_stride;
            let mut total = [0f32; R];
            for p0 in (0..b.rows).step_by(WIDTH) {
                let w = &mut scratch[..(b.rows - p0).min(WIDTH)];
                // SAFETY: the caller has the instruction set.
                unsafe {
                    if b.row_stride == 1 {
                        I::decode(&b.store, start + p0, w);
                    } else {
                        for (p, w) in w.iter_mut().enumerate() {
                            I::decode(&b.store, start + (p0 + p) * b.row_stride, std::slice::from_mut(w));
                        }
                    }
                    let sums = dots::<I, f32, R, U>(self.a.map(|a| &a[p0..]), w);
                    for (total, sum) in total.iter_mut().zip(sums) {
                        *total += sum;
                    }
                }
            }
            self.add::<I>(out, j, total);
        }
    }

    /// C columns at a time, then one at a time.
    #[expect(clippy::needless_range_loop, reason = "closures and iterators may stay calls without the instruction set")]
    #[inline(always)]
    unsafe fn nf4<I: IsaKernel, const C: usize>(&self, codes: &[u8], absmax: Absmax, out: &mut Sums) {
        let (blocks, step) = (self.t.b.rows / NF4_BLOCK, self.t.b.col_stride / NF4_BLOCK);
        let mut decoded = match absmax {
            Absmax::F32(_) => Vec::new(),
            Absmax::Double { .. } => vec![0f32; C * blocks],
        };
        let whole = self.len / C * C;
        // SAFETY: the caller has the instruction set.
        unsafe {
            for j in (0..whole).step_by(C) {
                let mut first = [0; C];
                for c in 0..C {
                    first[c] = (self.j0 + j + c) * step;
                }
                let sums = nf4_dots::<I, R, C>(self.a, codes, absmax, &mut decoded, first, blocks);
                for c in 0..C {
                    let mut column = [0f32; R];
                    for i in 0..R {
                        column[i] = sums[i][c];
                    }
                    self.add::<I>(out, j + c, column);
                }
            }
            for j in whole..self.len {
                let first = [(self.j0 + j) * step];
                let sums = nf4_dots::<I, R, 1>(self.a, codes, absmax, &mut decoded, first, blocks);
                self.add::<I>(out, j, sums.map(|s| s[0]));
            }
        }
    }

    /// `out += alpha * a[p] * B[p, ..]`, Q values of p per pass over `out`; the rows missing from the last pass count
    /// with weight zero.
    #[inline(always)]
    unsafe fn rows<I: IsaKernel>(&self, out: &mut Sums) {
        const Q: usize = 8;
        static ZEROS: [f32; WIDTH] = [0.0; WIDTH];
        let (b, len) = (&self.t.b, self.len);
        let mut scratch = [[0f32; WIDTH]; Q];
        for p in (0..b.rows).step_by(Q) {
            let mut rows: [&[f32]; Q] = [&ZEROS[..len]; Q];
            for ((row, s), p) in rows.iter_mut().zip(&mut scratch).zip(p..b.rows) {
                let start = p * b.row_stride + self.j0;
                *row = match b.store {
                    Store::F32(x) => &x[start..start + len],
                    _ => {
                        // SAFETY: the caller has the instruction set.
                        unsafe { I::decode(&b.store, start, &mut s[..len]) };
                        &s[..len]
                    }
                };
            }
            for (a, out) in self.a.iter().zip(out.iter_mut()) {
                let mut x = [0f32; Q];
                for (x, a) in x.iter_mut().zip(&a[p..b.rows]) {
                    *x = self.t.alpha * a;
                }
                for (j, out) in out[..len].iter_mut().enumerate() {
                    for q in 0..Q {
                        *out = mul_add::<I>(x[q], rows[q][j], *out);
                    }
                }
            }
        }
    }
}

// Plain loops in what follows: closures, as in `array::map`, would stay calls without the instruction set.

/// The dot products of each row of A with one column; the rows go on with zeros for the rest of a vector.
#[inline(always)]
unsafe fn dots<I: Vector, E: Element, const R: usize, const U: usize>(a: [&[f32]; R], w: &[E]) -> [f32; R] {
    let (k, lanes) = (w.len(), I::LANES);
    for a in a {
        assert!(a.len() >= k.next_multiple_of(lanes));
    }
    let mut sums = [0f32; R];
    // SAFETY: the caller has the instruction set. Vectors of the column are read up to k, or from `tail`; those of
    // the rows up to k and the rest of a vector.
    unsafe {
        let mut acc = [[I::splat(0.0); U]; R];
        let mut p = 0;
        while p + U * lanes <= k {
            for u in 0..U {
                let w = w.as_ptr().add(p + u * lanes);
                prefetch(w.wrapping_byte_add(AHEAD));
                add_vector::<I, E, R, U>(&mut acc, u, &a, p + u * lanes, w);
            }
            p += U * lanes;
        }
        for u in 0..U {
            if p + lanes <= k {
                add_vector::<I, E, R, U>(&mut acc, u, &a, p, w.as_ptr().add(p));
                p += lanes;
            }
        }
        if p < k {
            let mut tail = [E::ZERO; 16];
            tail[..k - p].copy_from_slice(&w[p..]);
            add_vector::<I, E, R, U>(&mut acc, U - 1, &a, p, tail.as_ptr());
        }
        for i in 0..R {
            let mut half = U / 2;
            while half > 0 {
                for u in 0..half {
                    acc[i][u] = I::add(acc[i][u], acc[i][u + half]);
                }
                half /= 2;
            }
            sums[i] = I::sum(acc[i][0]);
        }
    }
    sums
}

/// Adds the products of the vector at `w` and that of each row from `p` on to partial sum `u`.
///
/// # Safety
/// The processor has the instruction set; a vector can be read at each place.
#[inline(always)]
unsafe fn add_vector<I: Vector, E: Element, const R: usize, const U: usize>(
    acc: &mut [[I::V; U]; R],
    u: usize,
    a: &[&[f32]; R],
    p: usize,
    w: *const E,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let w = E::load::<I>(w);
        for i in 0..R {
            acc[i][u] = I::fma(I::f32(a[i].as_ptr().add(p)), w, acc[i][u]);
        }
    }
}

/// The dot products of each row of A with C columns of whole NF4 blocks, the first of column c numbered `first[c]`.
/// `decoded` has room for the scales if they have to be decoded.
#[expect(clippy::needless_range_loop, reason = "closures and iterators may stay calls without the instruction set")]
#[inline(always)]
unsafe fn nf4_dots<I: Vector, const R: usize, const C: usize>(
    a: [&[f32]; R],
    codes: &[u8],
    absmax: Absmax,
    decoded: &mut [f32],
    first: [usize; C],
    blocks: usize,
) -> [[f32; C]; R] {
    const BYTES: usize = NF4_BLOCK / 2;
    for a in a {
        assert!(a.len() >= blocks * NF4_BLOCK);
    }
    if let Absmax::Double { .. } = absmax {
        for c in 0..C {
            absmax.fill(first[c], &mut decoded[c * blocks..][..blocks]);
        }
    }
    let mut columns = [codes.as_ptr(); C];
    let mut scales = [decoded.as_ptr(); C];
    for c in 0..C {
        columns[c] = codes[first[c] * BYTES..][..blocks * BYTES].as_ptr();
        scales[c] = match absmax {
            Absmax::F32(scales) => scales[first[c]..][..blocks].as_ptr(),
            Absmax::Double { .. } => decoded[c * blocks..][..blocks].as_ptr(),
        };
    }
    let mut sums = [[0f32; C]; R];
    // SAFETY: the caller has the instruction set; rows, codes and scales have `blocks` blocks, as checked above.
    unsafe {
        let mut acc = [[I::splat(0.0); C]; R];
        for b in 0..blocks {
            for c in 0..C {
                prefetch(columns[c].wrapping_add(b * BYTES + NF4_AHEAD));
            }
            let mut part = [[I::splat(0.0); C]; R];
            for v in 0..NF4_BLOCK / I::LANES {
                for c in 0..C {
                    let values = I::nf4(columns[c].add(b * BYTES), v);
                    for i in 0..R {
                        let x = I::f32(a[i].as_ptr().add(b * NF4_BLOCK + v * I::LANES));
                        part[i][c] = I::fma(x, values, part[i][c]);
                    }
                }
            }
            for c in 0..C {
                let scale = I::splat(*scales[c].add(b));
                for i in 0..R {
                    acc[i][c] = I::fma(scale, part[i][c], acc[i][c]);
                }
            }
        }
        for i in 0..R {
            for c in 0..C {
                sums[i][c] = I::sum(acc[i][c]);
            }
        }
    }
    sums
}
