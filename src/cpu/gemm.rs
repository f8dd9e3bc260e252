//! Single-precision matrix product over pluggable operand formats.
//!
//! `C[m,n] = beta*C + sum_i alpha_i * A_i[m,k_i] * B_i[k_i,n] (+ bias[n])`
//!
//! # Blocking
//!
//! The k axis is the concatenation of all terms, `K = sum_i k_i`, cut into blocks of `kc` rows,
//! a function of `K` alone. Each element of C is therefore
//!
//! `C = (..((beta*C + S_0) + S_1) + ..) + bias`,  `S_b = fma chain over p in [b*kc, (b+1)*kc)`
//!
//! whatever the tile grid or the thread count, so the bits of C do not depend on either.
//!
//! ```text
//! for each column range of nc columns, for each group of k blocks  (nc * group <= PACK_FLOATS)
//!   in parallel: decode B[group, nc] into panels of NR columns    -> shared, L2/L3
//!   in parallel over a grid of C tiles (MC rows x some panels):
//!     for each k block:   A[MC, kc] read in place or packed        -> L2
//!       for each panel:   B panel [kc, NR]                         -> L1/L2
//!         for each MR rows: C[MR, NR] += A[MR, kc] * B[kc, NR]     -> registers
//! ```
//!
//! Every stored format is decoded while the panel is packed, so no dequantised copy of a weight
//! exists beyond the panel buffer. `m <= THIN_ROWS` (decoding a token) skips packing altogether
//! and streams B once.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod dots;
mod kernel;
mod operand;
#[cfg(target_arch = "x86_64")]
mod pieces;
mod thin;
mod vector;

use super::act::Act;
use super::isa::Isa;
use super::{math, par};
use half::bf16;
use kernel::*;
pub use operand::*;
#[cfg(target_arch = "x86_64")]
use pieces::Unit;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use thin::{THIN_ROWS, thin_product};

/// Upper bound of a k block. A panel of B (KC * 16 * 4 = 40 KiB on AVX2) is a little more than L1
/// holds, which costs less than the extra pass over C of two shorter blocks.
const KC: usize = 640;
/// Rows of C per task: that many rows of A meet a panel of B before the next one is fetched.
const MC: usize = 336;
/// Rows of A up to which a contiguous B is read in place.
const IN_PLACE_ROWS: usize = 64;
/// Depth up to which C is written row by row rather than panel by panel.
const SHALLOW: usize = 64;
/// Rows of a B in place that are read at a time: a panel of them stays in L1 for all of A's rows.
const IN_PLACE_STEP: usize = 32;
/// Floats of packed B held at once (2 MiB).
const PACK_FLOATS: usize = 1 << 19;
/// Floats between rows of A that were widened: without, they might be a multiple of a page apart.
const ROW_GAP: usize = 16;
/// Fewer multiply-adds than this run on the calling thread.
const SERIAL_MACS: u64 = 1 << 18;
/// Terms one product may sum.
pub const MAX_TERMS: usize = 4;
/// A cache line; gives the panel buffers their alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Packed B of products, and those that are computed transposed; packed A of their tiles.
static B_PANELS: Buffers = Buffers::new();
static TURNED: Buffers = Buffers::new();
static A_PANELS: Buffers = Buffers::new();

/// Buffers that only ever grow: as many as were ever in use at once, whichever threads used them.
struct Buffers(Mutex<Vec<Vec<Line>>>);

impl Buffers {
    const fn new() -> Buffers {
        Buffers(Mutex::new(Vec::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Line>>> {
        // What is in the list is whole, whatever happened to a thread that held it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest free buffer that is large enough, else the largest.
    fn take(&self, lines: usize) -> Vec<Line> {
        let mut free = self.lock();
        let fits = (0..free.len()).filter(|&i| free[i].len() >= lines).min_by_key(|&i| free[i].len());
        let best = fits.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        best.map_or_else(Vec::new, |i| free.swap_remove(i))
    }

    /// Lends `floats` floats.
    fn with<T>(&self, floats: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
        if floats == 0 {
            return f(&mut []);
        }
        let mut lines = self.take(floats.div_ceil(16));
        if lines.len() * 16 < floats {
            // Afresh: growing would copy what nobody reads.
            lines = vec![Line([0.0; 16]); floats.div_ceil(16)];
        }
        // SAFETY: a Line is 16 f32 without padding, and `floats` is within the lines.
        let result = f(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), floats) });
        self.lock().push(lines);
        result
    }
}

/// Frees the buffers that products left.
pub fn free_buffers() {
    for buffers in [&B_PANELS, &TURNED, &A_PANELS] {
        buffers.lock().clear();
    }
}

/// The base address of C or of its rounded form, shared by tasks that write disjoint tiles.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
type Out = Shared<f32>;
// SAFETY: every task writes its own tile only, and the matrix outlives the parallel section.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// By method, so that closures capture the whole address and not the bare pointer.
    fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

fn for_each(parallel: bool, n: usize, f: impl Fn(usize) + Send + Sync) {
    if parallel && n > 1 { (0..n).into_par_iter().with_max_len(1).for_each(f) } else { (0..n).for_each(f) }
}

/// How a product is cut; everything that touches the order of summation depends on K alone.
struct Plan {
    m: usize,
    n: usize,
    k: usize,
    kc: usize,
    /// Rows and columns of B packed at a time; none and all if B is read in place.
    k_group: usize,
    nc: usize,
    b_in_place: bool,
}

/// The k block `kc`: equal blocks of at most KC rows, in steps of eight.
fn k_block(k: usize) -> usize {
    let blocks = k.div_ceil(KC).max(1);
    k.div_ceil(blocks).next_multiple_of(8).max(8)
}

impl Plan {
    fn new(m: usize, n: usize, k: usize, nr: usize, b_in_place: bool) -> Plan {
        let kc = k_block(k);
        let width = n.next_multiple_of(nr);
        let (mut k_group, mut nc) = (k.next_multiple_of(kc).max(kc), width);
        if !b_in_place {
            k_group = k_group.min((PACK_FLOATS / width).max(KC) / kc * kc);
            // Equal shares of the columns, none above the limit.
            let limit = (PACK_FLOATS / k_group / nr * nr).clamp(nr, width);
            nc = width.div_ceil(width.div_ceil(limit)).next_multiple_of(nr);
        }
        Plan { m, n, k, kc, k_group, nc, b_in_place }
    }

    fn packed_floats(&self) -> usize {
        if self.b_in_place { 0 } else { self.nc * self.k_group }
    }
}

/// Whether the microkernel reads A where it is: along contiguous rows, or, if there is just one
/// panel of B to meet, down contiguous columns.
fn a_in_place<I: IsaKernel>(t: &Term) -> bool {
    let single_panel = t.b.cols <= I::NR;
    // Rows a multiple of a page apart share cache sets, so a dozen of them evict each other.
    let rows = t.a.col_stride == 1 && (!t.a.row_stride.is_multiple_of(1024) || single_panel);
    t.a.f32_data().is_some() && (rows || t.a.row_stride == 1 && single_panel)
}

/// Whether the microkernel reads B where it is: few rows do not repay packing it. The parts of one sum are all in f32, or one
/// part in bf16.
fn b_in_place<I: IsaKernel>(terms: &[Term]) -> bool {
    let stored = |t: &Term| t.b.f32_data().is_some() || t.b.bf16_data().is_some() && terms.len() == 1;
    terms.iter().all(|t| {
        let few = t.a.rows <= IN_PLACE_ROWS && t.b.cols.is_multiple_of(I::LANES);
        few && t.alpha == 1.0 && t.b.col_stride == 1 && stored(t)
    })
}

/// The shares of the terms in rows `k0..k1` of the concatenated k axis: (term, from, to).
fn shares<'t, 'a>(terms: &'t [Term<'a>], k0: usize, k1: usize) -> impl Iterator<Item = (&'t Term<'a>, usize, usize)> {
    terms
        .iter()
        .scan(0, move |base, t| {
            let start = *base;
            *base += t.b.rows;
            Some((t, k0.max(start) - start, k1.min(start + t.b.rows).max(start) - start))
        })
        .filter(|(_, from, to)| from < to)
}

/// `C[m,n] = beta*C + sum of terms (+ bias)`, C row-major with rows `ldc` apart. With `beta` 0, C
/// is written without being read. Runs on the current rayon pool; the result does not depend on
/// its size.
pub fn gemm(terms: &[Term], beta: f32, bias: Option<&[f32]>, c: &mut [f32], ldc: usize) {
    either_product(terms, beta, bias, c, ldc, EXACT);
}

/// The same product of activations in bf16: factors that are wider may be rounded to bf16, where that is quicker. Sums are
/// f32.
pub fn gemm_narrow(terms: &[Term], beta: f32, c: &mut [f32], ldc: usize) {
    either_product(terms, beta, None, c, ldc, Rounding { factors: true, result: None });
}

/// The same, its result rounded to `out`, whose rows are as far apart as those of `c`; nothing is left in `c` but what
/// beta is applied to before.
pub fn gemm_bf16(terms: &[Term], beta: f32, bias: Option<&[f32]>, c: &mut [f32], out: &mut [bf16], ldc: usize) {
    assert!(out.len() >= c.len(), "the result has no room");
    let out = Shared(out.as_mut_ptr());
    best_product(terms, beta, bias, c, ldc, Rounding { factors: true, result: Some(out) });
}

/// What of a product may be in bf16.
#[derive(Clone, Copy)]
struct Rounding {
    factors: bool,
    /// Where the result goes, rounded.
    result: Option<Shared<bf16>>,
}

const EXACT: Rounding = Rounding { factors: false, result: None };

fn either_product(terms: &[Term], beta: f32, bias: Option<&[f32]>, c: &mut [f32], ldc: usize, how: Rounding) {
    match terms {
        [t] if bias.is_none() && turns(t, how) => turned_product(t, beta, c, ldc, how),
        _ => best_product(terms, beta, bias, c, ldc, how),
    }
}

/// Whether the transposed product is quicker: few columns, as in the gradient of a low-rank factor, and an A that is
/// stored by columns. Those are rows of its transpose, which is read in place.
fn turns(t: &Term, how: Rounding) -> bool {
    let reads = t.a.f32_data().is_some() || how.factors;
    t.b.cols <= IN_PLACE_ROWS / 2 && t.a.rows >= IN_PLACE_ROWS && t.a.row_stride == 1 && reads
}

fn turned_product(t: &Term, beta: f32, c: &mut [f32], ldc: usize, how: Rounding) {
    /// Rows of C that are written at a time: so much of each row of the turned one is read in one stretch.
    const ROWS: usize = 128;
    let (m, n) = (t.a.rows, t.b.cols);
    TURNED.with(m * n, |turned| {
        best_product(&[Term { alpha: 1.0, a: t.b.t(), b: t.a.t() }], 0.0, None, turned, m, how);
        let turned = &*turned;
        par::chunks(&mut c[..(m - 1) * ldc + n], ROWS * ldc, |q, rows| {
            let (i0, count) = (q * ROWS, rows.len().div_ceil(ldc));
            for j in 0..n {
                for (i, &sum) in turned[j * m + i0..][..count].iter().enumerate() {
                    let x = &mut rows[i * ldc + j];
                    let old = if beta == 0.0 { 0.0 } else { beta * *x };
                    *x = old + t.alpha * sum;
                }
            }
        });
    });
}

fn best_product(terms: &[Term], beta: f32, bias: Option<&[f32]>, c: &mut [f32], ldc: usize, how: Rounding) {
    let level = match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if !pieces::pays(Unit::Tiles, terms, how) => Isa::Avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if !pieces::pays(Unit::Dots, terms, how) => Isa::Avx512,
        best => best,
    };
    with_isa(level, terms, (beta, bias), c, ldc, how)
}

/// `level` must be one that [`Isa::usable`] gives.
fn with_isa(level: Isa, terms: &[Term], end: (f32, Option<&[f32]>), c: &mut [f32], ldc: usize, how: Rounding) {
    match level {
        Isa::Portable => product::<Portable>(terms, end, c, ldc, how, blocked_product::<Portable>),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => product::<Neon>(terms, end, c, ldc, how, blocked_product::<Neon>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => product::<Avx2>(terms, end, c, ldc, how, blocked_product::<Avx2>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if how.factors => {
            product::<Avx512>(terms, end, c, ldc, how, |terms, (m, n, _), end, parallel| {
                pieces::blocked_product(Unit::Dots, terms, (m, n), end, parallel)
            })
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => product::<Avx512>(terms, end, c, ldc, how, blocked_product::<Avx512>),
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => product::<Avx512>(terms, end, c, ldc, how, |terms, (m, n, _), end, parallel| {
            pieces::blocked_product(Unit::Tiles, terms, (m, n), end, parallel)
        }),
    }
}

/// Computes a product of more than THIN_ROWS rows: terms, (m, n, k), what to do with sums, whether on several threads.
type Blocked = fn(&[Term], (usize, usize, usize), &Epilogue, bool);

fn product<I: IsaKernel>(
    terms: &[Term],
    (beta, bias): (f32, Option<&[f32]>),
    c: &mut [f32],
    ldc: usize,
    how: Rounding,
    blocked: Blocked,
) {
    assert!((1..=MAX_TERMS).contains(&terms.len()));
    let (m, n) = (terms[0].a.rows, terms[0].b.cols);
    for t in terms {
        assert!(t.a.rows == m && t.b.cols == n && t.a.cols == t.b.rows, "shapes differ");
    }
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "C is too small");
    assert!(bias.is_none_or(|b| b.len() == n), "bias length");
    let k: usize = terms.iter().map(|t| t.b.rows).sum();
    let parallel = m as u64 * n as u64 * k as u64 >= SERIAL_MACS && rayon::current_num_threads() > 1;
    let c = Shared(c.as_mut_ptr());
    let end = Epilogue { beta, bias, c, ldc, how };
    if m <= THIN_ROWS {
        thin_product::<I>(terms, (m, n, k), &end, parallel);
    } else {
        blocked(terms, (m, n, k), &end, parallel);
    }
}

/// What happens to a finished sum: `C = beta*C + sum (+ bias)`.
struct Epilogue<'a> {
    beta: f32,
    bias: Option<&'a [f32]>,
    c: Out,
    ldc: usize,
    how: Rounding,
}

impl Epilogue<'_> {
    /// # Safety
    /// `(i, j..j + sums.len())` is inside C, and the caller's task alone has that range.
    unsafe fn write(&self, i: usize, j: usize, beta: f32, bias: Option<&[f32]>, sums: &[f32]) {
        for (l, &s) in sums.iter().enumerate() {
            let c = self.c.at(i * self.ldc + j + l);
            // SAFETY: the caller's promise.
            unsafe {
                let old = if beta == 0.0 { 0.0 } else { beta * *c };
                *c = old + s + bias.map_or(0.0, |b| b[j + l]);
            }
        }
    }

    /// Rounds a finished part of C, if the result is to be.
    ///
    /// # Safety
    /// The part is inside C, and the caller's task alone has it.
    unsafe fn round(&self, rows: Range<usize>, columns: Range<usize>) {
        let Some(out) = self.how.result else { return };
        math::vectorized!({
            for i in rows {
                let at = i * self.ldc + columns.start;
                // SAFETY: the caller's promise; the result has C's rows.
                unsafe {
                    let sums = std::slice::from_raw_parts(self.c.at(at), columns.len());
                    bf16::write(sums, out.at(at));
                }
            }
        });
    }
}

fn blocked_product<I: IsaKernel>(terms: &[Term], (m, n, k): (usize, usize, usize), end: &Epilogue, parallel: bool) {
    let plan = &Plan::new(m, n, k, I::NR, b_in_place::<I>(terms));
    // Enough tasks for threads that other programs slow down to be helped out.
    let tasks = if parallel { 4 * rayon::current_num_threads() } else { 1 };
    B_PANELS.with(plan.packed_floats(), |buffer| {
        for j0 in (0..plan.n).step_by(plan.nc) {
            let width = (plan.n - j0).min(plan.nc);
            let panels = width.div_ceil(I::NR);
            // At least once, so that K = 0 still applies beta and bias.
            for k0 in (0..plan.k.max(1)).step_by(plan.k_group) {
                let k1 = (k0 + plan.k_group).min(plan.k);
                let panel = I::NR * (k1 - k0);
                let packed = match plan.b_in_place {
                    true => &[][..],
                    false => {
                        let packed = &mut buffer[..panels * panel];
                        // Wide batches read long stretches of a contiguous B's rows.
                        let batch = panels.div_ceil(tasks).min(RUN / I::NR);
                        let pack = |(q, dst): (usize, &mut [f32])| {
                            let j = j0 + q * batch * I::NR;
                            pack_b::<I>(terms, (k0, k1), (j, j0 + width), dst, panel)
                        };
                        let chunk = (batch * panel).max(1);
                        if parallel {
                            let chunks = packed.par_chunks_mut(chunk).with_max_len(1);
                            chunks.enumerate().for_each(pack);
                        } else {
                            packed.chunks_mut(chunk).enumerate().for_each(pack);
                        }
                        &*packed
                    }
                };
                // Tall tiles reuse a panel most; split columns only for want of tasks. An A that must be packed is
                // packed by every task on its rows, so there rows are split first.
                let in_place = terms.iter().all(a_in_place::<I>);
                let most = if in_place { 1 } else { tasks.min(plan.m.div_ceil(4 * I::MR)) };
                let tall = plan.m.div_ceil(MC).max(most);
                let rows = plan.m.div_ceil(tall).next_multiple_of(I::MR);
                let tall = plan.m.div_ceil(rows);
                let step = panels.div_ceil(tasks.div_ceil(tall).min(panels));
                let across = panels.div_ceil(step);
                for_each(parallel, tall * across, |task| {
                    let (i, q) = (task / across, task % across);
                    let block = Block {
                        rows: (i * rows, plan.m.min((i + 1) * rows)),
                        panels: (q * step, panels.min((q + 1) * step)),
                        k: (k0, k1),
                        j0,
                    };
                    block.run::<I>(terms, plan, packed, end);
                });
            }
        }
    });
}

/// Packs rows `k0..k1` of columns `j0..n` into `dst`, as many panels as it holds.
fn pack_b<I: IsaKernel>(
    terms: &[Term],
    (k0, k1): (usize, usize),
    (j0, n): (usize, usize),
    dst: &mut [f32],
    panel: usize,
) {
    let mut done = 0;
    for (t, from, to) in shares(terms, k0, k1) {
        let src = Panels {
            store: t.b.store,
            origin: from * t.b.row_stride + j0 * t.b.col_stride,
            stride: t.b.col_stride,
            k_stride: t.b.row_stride,
            width: (n - j0).min(dst.len() / panel * I::NR),
            depth: to - from,
            scale: t.alpha,
        };
        // SAFETY: `with_isa` chose I among the sets this processor has.
        unsafe { I::pack_b(&src, &mut dst[done * I::NR..], panel) };
        done += to - from;
    }
}

/// A task: a tile of C, over one group of k blocks.
struct Block {
    rows: (usize, usize),
    panels: (usize, usize),
    k: (usize, usize),
    j0: usize,
}

impl Block {
    fn run<I: IsaKernel>(&self, terms: &[Term], plan: &Plan, packed: &[f32], end: &Epilogue) {
        let (i0, i1) = self.rows;
        let floats = match terms.iter().all(a_in_place::<I>) {
            true => 0,
            false => (i1 - i0).next_multiple_of(I::MR) * (plan.kc + ROW_GAP * terms.len()),
        };
        A_PANELS.with(floats, |buffer| {
            for k0 in (self.k.0..self.k.1.max(self.k.0 + 1)).step_by(plan.kc) {
                let k1 = (k0 + plan.kc).min(self.k.1);
                let (pieces, count) = self.pieces::<I>(terms, plan, (k0, k1), packed, buffer);
                self.sweep::<I>(plan, end, (k0, k1), &pieces[..count]);
            }
        });
        if self.k.1 == plan.k {
            let column = |panel: usize| plan.n.min(self.j0 + panel * I::NR);
            // SAFETY: the tile is this task's alone.
            unsafe { end.round(i0..i1, column(self.panels.0)..column(self.panels.1)) };
        }
    }

    /// A's rows of this tile over a k block, in place where the microkernel can read them and
    /// packed into `buffer` where it cannot.
    fn pieces<I: IsaKernel>(
        &self,
        terms: &[Term],
        plan: &Plan,
        (k0, k1): (usize, usize),
        packed: &[f32],
        buffer: &mut [f32],
    ) -> ([Piece; MAX_TERMS], usize) {
        let (i0, i1) = self.rows;
        let (mut pieces, mut count, mut rest) = ([Piece::NONE; MAX_TERMS], 0, buffer);
        let mut done = k0 - self.k.0;
        for (t, from, to) in shares(terms, k0, k1) {
            let depth = to - from;
            let origin = i0 * t.a.row_stride + from * t.a.col_stride;
            let piece = &mut pieces[count];
            piece.k = depth;
            if let Some(data) = t.a.f32_data().filter(|_| a_in_place::<I>(t)) {
                piece.a = data[origin..].as_ptr();
                (piece.rs, piece.cs) = (t.a.row_stride, t.a.col_stride);
                piece.row_step = piece.rs;
            } else if let (Store::Bf16(_), 1) = (t.a.store, t.a.col_stride) {
                // Rows that are contiguous are read as if they were in place, once they are f32.
                let (dst, pitch) = (rest, depth + ROW_GAP);
                for (i, row) in dst.chunks_mut(pitch).take(i1 - i0).enumerate() {
                    // SAFETY: `with_isa` chose I among the sets this processor has.
                    unsafe { I::widen(&t.a.store, origin + i * t.a.row_stride, &mut row[..depth]) };
                }
                piece.a = dst.as_ptr();
                (piece.row_step, piece.rs, piece.cs) = (pitch, pitch, 1);
                rest = &mut dst[(i1 - i0) * pitch..];
            } else {
                let dst;
                (dst, rest) = rest.split_at_mut((i1 - i0).next_multiple_of(I::MR) * depth);
                let src = Panels {
                    store: t.a.store,
                    origin,
                    stride: t.a.row_stride,
                    k_stride: t.a.col_stride,
                    width: i1 - i0,
                    depth,
                    scale: 1.0,
                };
                // SAFETY: `with_isa` chose I among the sets this processor has.
                unsafe { I::pack_a(&src, dst, I::MR * depth) };
                piece.a = dst.as_ptr();
                (piece.row_step, piece.rs, piece.cs) = (depth, 1, I::MR);
            }
            let first = from * t.b.row_stride + self.j0;
            let size = match (plan.b_in_place, t.b.bf16_data()) {
                (true, Some(data)) => {
                    piece.b = data[first..].as_ptr().cast();
                    size_of::<bf16>()
                }
                (true, None) => {
                    piece.b = t.b.f32_data().map_or(&[][..], |data| &data[first..]).as_ptr().cast();
                    size_of::<f32>()
                }
                (false, _) => {
                    piece.b = packed[done * I::NR..].as_ptr().cast();
                    size_of::<f32>()
                }
            };
            let (panel, row) = match plan.b_in_place {
                true => (I::NR, t.b.row_stride),
                false => (I::NR * (self.k.1 - self.k.0), I::NR),
            };
            (piece.panel_step, piece.bs, piece.half) = (size * panel, size * row, size == size_of::<bf16>());
            done += depth;
            count += 1;
        }
        (pieces, count)
    }

    /// One k block of a tile with B in place: some of its rows at a time, along all panels. Down a panel, each row is another
    /// page, and rows a power of two apart evict each other. A chain of sums goes on where it was left: the same bits.
    fn sweep_in_place<I: IsaKernel>(
        &self,
        plan: &Plan,
        end: &Epilogue,
        (beta, bias): (f32, Option<&[f32]>),
        all: &Piece,
    ) {
        let (i0, i1) = self.rows;
        let (heights, widths) = ((i1 - i0).div_ceil(I::MR), self.panels.1 - self.panels.0);
        let size = I::MR * I::NR;
        A_PANELS.with(heights * widths * size, |sums| {
            for p in (0..all.k).step_by(IN_PLACE_STEP) {
                let k = (all.k - p).min(IN_PLACE_STEP);
                let pieces =
                    &[Piece { a: all.a.wrapping_add(p * all.cs), b: all.b.wrapping_add(p * all.bs), k, ..*all }];
                for (t, sums) in sums.chunks_exact_mut(size).enumerate() {
                    let (r, q) = (t % heights, self.panels.0 + t / heights);
                    let (i, j) = (i0 + r * I::MR, self.j0 + q * I::NR);
                    let at = sums.as_mut_ptr();
                    let from = if p == 0 { std::ptr::null() } else { at.cast_const() };
                    let (row, panel) = (i - i0, q);
                    let (c, bias) = (end.c.at(i * end.ldc + j), bias.map_or(std::ptr::null(), |b| b[j..].as_ptr()));
                    let tile = match p + k == all.k {
                        true => Tile { pieces, sums: from, row, panel, c, ldc: end.ldc, beta, bias },
                        false => {
                            let (c, bias) = (at, std::ptr::null());
                            Tile { pieces, sums: from, row, panel, c, ldc: I::NR, beta: 0.0, bias }
                        }
                    };
                    let (rows, vectors) = ((i1 - i).min(I::MR), (plan.n - j).min(I::NR) / I::LANES);
                    // SAFETY: as in `sweep`; a B in place has whole vectors of columns, and `sums` holds MR x NR floats.
                    unsafe { I::tile(rows, vectors, all.half)(&tile) };
                }
            }
        });
    }

    /// One k block of the tile: every panel against every MR rows.
    fn sweep<I: IsaKernel>(&self, plan: &Plan, end: &Epilogue, (k0, k1): (usize, usize), pieces: &[Piece]) {
        let (i0, i1) = self.rows;
        let beta = if k0 == 0 { end.beta } else { 1.0 };
        let bias = if k1 == plan.k { end.bias } else { None };
        let mut spill = [0f32; 16 * 32];
        if let [piece] = pieces
            && plan.b_in_place
            && k1 - k0 > SHALLOW
        {
            return self.sweep_in_place::<I>(plan, end, (beta, bias), piece);
        }
        let (heights, widths) = ((i1 - i0).div_ceil(I::MR), self.panels.1 - self.panels.0);
        let half = pieces.iter().any(|piece| piece.half);
        for t in 0..heights * widths {
            // A deep panel stays in L1 while A goes by. With shallow ones, writing C is the work:
            // all of B stays in cache and C is written along its rows.
            let (r, q) = if k1 - k0 > SHALLOW { (t % heights, t / heights) } else { (t / widths, t % widths) };
            let (i, q) = (i0 + r * I::MR, self.panels.0 + q);
            let j = self.j0 + q * I::NR;
            let w = (plan.n - j).min(I::NR);
            let vectors = w.div_ceil(I::LANES);
            let whole = w == vectors * I::LANES;
            let rows = (i1 - i).min(I::MR);
            let mut tile = Tile {
                pieces,
                sums: std::ptr::null(),
                row: i - i0,
                panel: q,
                c: end.c.at(i * end.ldc + j),
                ldc: end.ldc,
                beta,
                bias: bias.map_or(std::ptr::null(), |b| b[j..].as_ptr()),
            };
            if whole {
                // SAFETY: rows i..i + rows and columns j..j + w are inside C and in this
                // task's tile alone; `pieces` and `b` cover this k block; I was detected.
                unsafe { I::tile(rows, vectors, half)(&tile) };
            } else {
                // A ragged right edge goes through a buffer of whole vectors.
                (tile.c, tile.ldc) = (spill.as_mut_ptr(), I::NR);
                (tile.beta, tile.bias) = (0.0, std::ptr::null());
                // SAFETY: as above, and the buffer holds MR x NR floats.
                unsafe { I::tile(rows, vectors, half)(&tile) };
                for r in 0..rows {
                    // SAFETY: row i + r, columns j..j + w, as above.
                    unsafe { end.write(i + r, j, beta, bias, &spill[r * I::NR..][..w]) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
