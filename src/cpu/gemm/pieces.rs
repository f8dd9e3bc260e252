//! The matrix product in pieces of bf16: f32 in and out, on instructions that multiply bf16 and add in f32.
//!
//! A float is the sum of three bf16, eight significant bits each, and nothing is lost:
//!
//! `x0 = bf16(x)`, `x1 = bf16(x - x0)`, `x2 = x - x0 - x1`, so `|x1| <= 2^-8 |x|`, `|x2| <= 2^-16 |x|`
//!
//! and a product of two is six products of pieces, each exact in f32, up to an error of the size of one rounding:
//!
//! `x y = x0 y0 + (x0 y1 + x1 y0) + (x0 y2 + x1 y1 + x2 y0) + e`, `|e| <= (2^-23 + 2^-32) |x y|`
//!
//! (Henry, Tang and Heinecke 2019, arXiv:1904.06376). Six products on AMX's tiles are up to 2.7 times as fast as one on
//! AVX-512, whose peak is a sixteenth. A weight stored in bf16 is one piece and one in f16 two, which leaves three and five.
//! Where activations are kept in bf16, factors are rounded to one piece, and one product is left; that pays on
//! AVX512_BF16 too, whose peak is twice AVX-512's.
//! Subnormal numbers count as zero, numbers that bf16 cannot hold (above 3.38e38) as infinite, and what is infinite
//! may come out as NaN.
//!
//! # Blocking
//!
//! The k axis is cut into steps of 32, what one instruction of AMX sums; every term starts a step. C is read and written once
//! a block of steps:
//!
//! `C = (..((beta*C + S_0) + S_1) + ..) + bias`
//!
//! where blocks depend on the terms' depths alone. `k` and `k + 16` of a step are neighbours in a tile: any order
//! serves, if A and B have the same, and this one needs no shuffle.

use super::kernel::{Panels, RUN};
use super::operand::Store;
use super::{
    A_PANELS, B_PANELS, Epilogue, IsaKernel, MAX_TERMS, Out, Rounding, Shared, Term, amx, dots, for_each, kernel,
};
use crate::cpu::act::Act;
use half::bf16;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// What one instruction sums over, and the rows and columns of C that four tiles hold.
const STEP: usize = 32;
const SIDE: usize = 32;
/// Bytes of one piece of 32 rows (or columns) over a step: two tiles.
pub(super) const PAIR: usize = 2048;
/// Pieces of a float, at most.
const PLANES: usize = 3;
/// Steps of a block, at most: A's rows of a task and a panel of B fit an L2 of 2 MiB, and C is touched seldom.
const BLOCK: usize = 20;
/// Steps that are packed at once, at most.
const GROUP: usize = 2 * BLOCK;
/// Bytes of packed A and B held at once.
const A_BYTES: usize = 4 << 20;
const B_BYTES: usize = 6 << 20;
/// Strips of A that a task works on, at most: 960 KiB of 20 steps, half of an L2.
const STRIPS: usize = 8;

/// What multiplies the pieces.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Unit {
    /// AMX.
    Tiles,
    /// AVX512_BF16: one piece of each factor.
    Dots,
}

/// Adds the product of 32 rows of A and 32 columns of B, of some steps, to a square of C: see [`sums`]. C's rows are as many bytes
/// apart as said.
pub(super) type Multiply = unsafe fn(*const u8, *const u8, usize, *mut f32, usize, bool);

/// Whether the time that the unit saves is more than what splitting A and B costs. An element is split in the time in
/// which AVX-512 multiplies it by about forty others, and rounded in a quarter of it; dots save half of a multiplication.
pub(super) fn pays(unit: Unit, terms: &[Term], how: Rounding) -> bool {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols);
    let least = match (unit, how.factors) {
        (Unit::Tiles, true) => 10,
        (Unit::Tiles, false) => 40,
        (Unit::Dots, true) => 20,
        (Unit::Dots, false) => return false,
    };
    m * n >= least * (m + n)
}

/// Where a term is on the k axis, in steps, and how many pieces A and B have: three and any, or one each.
#[derive(Clone, Copy, Default)]
struct Share {
    first: usize,
    steps: usize,
    a_planes: usize,
    b_planes: usize,
}

impl Share {
    fn planes(self, side: Side) -> usize {
        if side == Side::A { self.a_planes } else { self.b_planes }
    }
}

/// The k axis: the terms' shares, the length of a block, and what multiplies.
struct Axis {
    unit: Unit,
    shares: [Share; MAX_TERMS],
    steps: usize,
    block: usize,
}

impl Axis {
    fn new(unit: Unit, terms: &[Term], how: Rounding) -> Axis {
        let a_planes = if how.factors { 1 } else { PLANES };
        let (mut shares, mut steps) = ([Share::default(); MAX_TERMS], 0);
        for (share, t) in shares.iter_mut().zip(terms) {
            let b_planes = match t.b.store {
                _ if how.factors => 1,
                Store::Bf16(_) if t.alpha == 1.0 => 1,
                Store::F16(_) if t.alpha == 1.0 => 2,
                _ => 3,
            };
            *share = Share { first: steps, steps: t.b.rows.div_ceil(STEP), a_planes, b_planes };
            steps += share.steps;
        }
        // Dots read a panel of B once for each third of A's rows: it stays in L1.
        let most = if unit == Unit::Dots { BLOCK } else { BLOCK * PLANES / a_planes };
        let block = steps.div_ceil(steps.div_ceil(most).max(1)).max(1);
        Axis { unit, shares, steps, block }
    }

    /// The parts of the terms in steps `s0..s1`: (term, share, from, to), from and to counted from the axis' start.
    fn parts(&self, s0: usize, s1: usize) -> impl Iterator<Item = (usize, Share, usize, usize)> {
        let shares = self.shares.iter().enumerate();
        shares
            .map(move |(i, s)| (i, *s, s.first.max(s0), (s.first + s.steps).min(s1)))
            .filter(|(_, _, from, to)| from < to)
    }

    /// Bytes of 32 lines over steps `s0..s1`.
    fn panel_bytes(&self, side: Side, (s0, s1): (usize, usize)) -> usize {
        self.parts(s0, s1).map(|(_, share, from, to)| (to - from) * share.planes(side) * PAIR).sum()
    }
}

pub(super) fn blocked_product(unit: Unit, terms: &[Term], (m, n): (usize, usize), end: &Epilogue, parallel: bool) {
    let axis = Axis::new(unit, terms, end.how);
    let tasks = if parallel { 4 * rayon::current_num_threads() } else { 1 };
    let planes = axis.shares.iter().map(|s| s.a_planes.max(s.b_planes)).max().unwrap_or(PLANES);
    let group = axis.block * (GROUP * PLANES / planes / axis.block).max(1);
    let (height, width) = (m.div_ceil(SIDE), n.div_ceil(SIDE));
    let panel = group.min(axis.steps) * planes * PAIR;
    // Equal shares of the panels, none above the limit.
    let share = |panels: usize, bytes: usize| panels.div_ceil(panels.div_ceil((bytes / panel.max(1)).max(1)));
    let (down, across) = (share(height, A_BYTES), share(width, B_BYTES));
    B_PANELS.with(across * panel / 4, |b| {
        A_PANELS.with(down * panel / 4, |a| {
            let (a, b) = (Shared(a.as_mut_ptr()), Shared(b.as_mut_ptr()));
            for q0 in (0..width).step_by(across) {
                // At least once, so that K = 0 still applies beta and bias.
                for s0 in (0..axis.steps.max(1)).step_by(group) {
                    for r0 in (0..height).step_by(down) {
                        let square = Square {
                            rows: (r0, height.min(r0 + down)),
                            panels: (q0, width.min(q0 + across)),
                            steps: (s0, axis.steps.min(s0 + group)),
                        };
                        square.pack(terms, &axis, (a, b), tasks);
                        square.sweep(&axis, (m, n), (a, b), end, tasks);
                    }
                }
            }
        })
    });
}

/// What is packed at once: strips of 32 rows of A against panels of 32 columns of B, over some steps.
struct Square {
    rows: (usize, usize),
    panels: (usize, usize),
    steps: (usize, usize),
}

impl Square {
    /// Packs A's strips, and B's panels unless they are those of the square before.
    fn pack(&self, terms: &[Term], axis: &Axis, (a, b): (Out, Out), tasks: usize) {
        let ((s0, s1), panels) = (self.steps, self.panels.1 - self.panels.0);
        if s0 == s1 {
            return;
        }
        // Wide batches read long stretches of rows of lines.
        let batch = |panels: usize| panels.div_ceil(tasks).clamp(1, RUN / SIDE);
        let jobs = |panels: usize| panels.div_ceil(batch(panels));
        let (new, rows) = (if self.rows.0 == 0 { panels } else { 0 }, self.rows.1 - self.rows.0);
        for_each(tasks > 1, jobs(new) + jobs(rows), |job| {
            let (side, job, (first, end), to) = match job.checked_sub(jobs(new)) {
                None => (Side::B, job, self.panels, b),
                Some(job) => (Side::A, job, self.rows, a),
            };
            let batch = batch(end - first);
            let lines = (first + job * batch, end.min(first + (job + 1) * batch));
            let panel = axis.panel_bytes(side, (s0, s1));
            let mut at = to.at(job * batch * panel / 4).cast::<u8>();
            for (i, share, from, until) in axis.parts(s0, s1) {
                let (t, p) = (&terms[i], (from - share.first) * STEP);
                let (m, alpha) = if side == Side::A { (t.a, 1.0) } else { (t.b.t(), t.alpha) };
                let src = Panels {
                    store: m.store,
                    origin: lines.0 * SIDE * m.row_stride + p * m.col_stride,
                    stride: m.row_stride,
                    k_stride: m.col_stride,
                    width: (m.rows - lines.0 * SIDE).min((lines.1 - lines.0) * SIDE),
                    depth: (m.cols - p).min((until - from) * STEP),
                    scale: alpha,
                };
                let planes = share.planes(side);
                // SAFETY: the panels of `lines` are this job's, this share's steps are at `at` in each, and the units
                // imply AVX-512.
                unsafe {
                    match planes {
                        1 => pack::<1>(&src, side, at, panel),
                        2 => pack::<2>(&src, side, at, panel),
                        _ => pack::<3>(&src, side, at, panel),
                    }
                };
                at = at.wrapping_add((until - from) * planes * PAIR);
            }
        });
    }

    /// Every strip against every panel, a block of steps at a time.
    fn sweep(&self, axis: &Axis, (m, n): (usize, usize), (a, b): (Out, Out), end: &Epilogue, tasks: usize) {
        let (s0, s1) = self.steps;
        let (height, width) = (self.rows.1 - self.rows.0, self.panels.1 - self.panels.0);
        // Tall tasks reuse a panel most; columns are split for want of tasks.
        let tall = height.div_ceil(STRIPS);
        let wide = tasks.div_ceil(tall).min(width);
        let (h, w) = (height.div_ceil(tall), width.div_ceil(wide));
        let (tall, wide) = (height.div_ceil(h), width.div_ceil(w));
        let panel = |side| axis.panel_bytes(side, (s0, s1));
        let at = |side, of: Out, panels: usize, b0: usize| {
            of.at((panels * panel(side) + axis.panel_bytes(side, (s0, b0))) / 4).cast::<u8>().cast_const()
        };
        for_each(tasks > 1, tall * wide, |task| {
            let (r0, q0) = (task / wide * h, task % wide * w);
            let _tiles = (axis.unit == Unit::Tiles).then(amx::Tiles::configure);
            for b0 in (s0..s1.max(s0 + 1)).step_by(axis.block) {
                let part = Part { axis, steps: (b0, (b0 + axis.block).min(s1)), end };
                let (rows, columns) = (r0..height.min(r0 + h), q0..width.min(q0 + w));
                let corner = |r: usize, q: usize| ((self.rows.0 + r) * SIDE, (self.panels.0 + q) * SIDE);
                for q in columns.clone() {
                    for r in rows.clone() {
                        let (i, j) = corner(r, q);
                        let from = (at(Side::A, a, r, b0), at(Side::B, b, q, b0));
                        let next = if r + 1 < rows.end { (r + 1, q) } else { (rows.start, q + 1) };
                        let fresh = end.how.result.is_some() && part.steps == (0, axis.steps);
                        if next.1 < columns.end && !fresh {
                            part.fetch(corner(next.0, next.1), m);
                        }
                        part.add((i, j), ((m - i).min(SIDE), (n - j).min(SIDE)), from);
                    }
                }
            }
        });
    }
}

/// A block of steps, and where its sums go.
struct Part<'a> {
    axis: &'a Axis,
    steps: (usize, usize),
    end: &'a Epilogue<'a>,
}

impl Part<'_> {
    /// Asks for the square at (i, j) of C, of `m` rows, so that it is there when it is written.
    fn fetch(&self, (i, j): (usize, usize), m: usize) {
        for row in i..m.min(i + SIDE) {
            let c = self.end.c.at(row * self.end.ldc + j).cast::<i8>();
            // SAFETY: a prefetch of any address has no effect but on the cache.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(c);
                _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(64));
            }
        }
    }

    /// Adds the block's product to the square of `h` by `w` at (i, j) of C.
    fn add(&self, (i, j): (usize, usize), (h, w): (usize, usize), from: (*const u8, *const u8)) {
        let (Part { axis, end, .. }, (b0, b1)) = (self, self.steps);
        let beta = if b0 == 0 { end.beta } else { 1.0 };
        let bias = if b1 == axis.steps { end.bias } else { None };
        let (c, ldc) = (end.c.at(i * end.ldc + j), end.ldc);
        if let Some(out) = end.how.result.filter(|_| b1 == axis.steps) {
            // SAFETY: the square is inside C and the result, and this task's alone; the units imply AVX-512.
            unsafe { self.round(from, (c, out.at(i * ldc + j)), (h, w), beta, bias.map(|b| &b[j..j + w])) };
            return;
        }
        if h == SIDE && w == SIDE && bias.is_none() && (beta == 0.0 || beta == 1.0) && b0 < b1 {
            // SAFETY: the whole square is inside C and is this task's alone.
            unsafe { sums(axis, (b0, b1), from, c, ldc, beta == 0.0) };
            return;
        }
        // Edges, and other factors: by way of a square of its own, through the same sums.
        let mut square = [0f32; SIDE * SIDE];
        for (x, row) in square.chunks_exact_mut(SIDE).take(h).enumerate() {
            for (y, s) in row[..w].iter_mut().enumerate() {
                // SAFETY: (i + x, j + y) is inside C, in this task's tile. C is not read with beta 0.
                *s = if beta == 0.0 { 0.0 } else { unsafe { beta * *c.add(x * ldc + y) } };
            }
        }
        // SAFETY: the square is a local one.
        unsafe { sums(axis, (b0, b1), from, square.as_mut_ptr(), SIDE, false) };
        for (x, row) in square.chunks_exact(SIDE).take(h).enumerate() {
            for (y, s) in row[..w].iter().enumerate() {
                // SAFETY: as above.
                unsafe { *c.add(x * ldc + y) = s + bias.map_or(0.0, |b| b[j + y]) };
            }
        }
    }
}

impl Part<'_> {
    /// The same of the last block, where the result is rounded: sums go there without the way through C.
    ///
    /// # Safety
    /// As for [`sums`], of `h` rows of `w` elements of C and of the result; AVX-512 is there.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn round(
        &self,
        from: (*const u8, *const u8),
        (c, out): (*const f32, *mut bf16),
        (h, w): (usize, usize),
        beta: f32,
        bias: Option<&[f32]>,
    ) {
        let ldc = self.end.ldc;
        let mut square = MaybeUninit::<[f32; SIDE * SIDE]>::uninit();
        // Sums that begin here write the whole square; zeros first would cost a fortieth of a step.
        let fresh = beta == 0.0 && self.steps.0 < self.steps.1;
        if !fresh {
            let square = square.write([0.0; SIDE * SIDE]);
            for (x, row) in square.chunks_exact_mut(SIDE).take(h).enumerate().filter(|_| beta != 0.0) {
                for (y, s) in row[..w].iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    *s = beta * unsafe { *c.add(x * ldc + y) };
                }
            }
        }
        // SAFETY: the square is a local one.
        unsafe { sums(self.axis, self.steps, from, square.as_mut_ptr().cast(), SIDE, fresh) };
        // SAFETY: written above, or by sums that began here, of which there was a step.
        let square = unsafe { square.assume_init_mut() };
        for (x, row) in square.chunks_exact_mut(SIDE).take(h).enumerate() {
            for (s, b) in row.iter_mut().zip(bias.unwrap_or(&[])) {
                *s += b;
            }
            // SAFETY: the caller's promise.
            unsafe {
                match <&[f32; SIDE]>::try_from(&row[..w]) {
                    Ok(row) => bf16::write(row, out.add(x * ldc)),
                    Err(_) => bf16::write(&row[..w], out.add(x * ldc)),
                }
            };
        }
    }
}

/// `C = (fresh ? 0 : C) + A B` of a 32 x 32 square over a block of steps; `a` and `b` start at its first step.
///
/// # Safety
/// The unit is there and its tiles are configured; `c` and 31 rows `ldc` floats apart below it hold 32 floats each that nobody else uses;
/// `a` and `b` hold the steps.
#[inline(always)]
unsafe fn sums(
    axis: &Axis,
    (b0, b1): (usize, usize),
    (a, b): (*const u8, *const u8),
    c: *mut f32,
    ldc: usize,
    fresh: bool,
) {
    let (mut a, mut b, mut fresh) = (a, b, fresh);
    for (_, share, from, to) in axis.parts(b0, b1) {
        let multiply: Multiply = match (axis.unit, share.a_planes, share.b_planes) {
            (Unit::Dots, ..) => dots::square,
            (_, 1, _) => amx::tiles_narrow,
            (_, _, 1) => amx::tiles_1,
            (_, _, 2) => amx::tiles_2,
            _ => amx::tiles_3,
        };
        // SAFETY: the caller's promise, handed on.
        unsafe { multiply(a, b, to - from, c, 4 * ldc, fresh) };
        fresh = false;
        a = a.wrapping_add((to - from) * share.a_planes * PAIR);
        b = b.wrapping_add((to - from) * share.b_planes * PAIR);
    }
}

/// Which operand a panel is of: tiles have A's rows as rows, and B's columns as columns.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

/// Packs `src` into panels of 32 lines (rows of A, columns of B), `panel` bytes apart. A step of a panel is `PLANES`
/// pieces, each two tiles of 16 lines. What is missing from the last panel and the last step is zero.
///
/// # Safety
/// Every panel at `dst` has room for the steps that `src` is deep; AVX-512 F and BW are there.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
unsafe fn pack<const PLANES: usize>(src: &Panels, side: Side, dst: *mut u8, panel: usize) {
    /// Steps, and lines where lines are neighbours, that are decoded at once.
    const STEPS: usize = 8;
    let mut scratch = [0f32; STEP * RUN];
    let along_k = src.k_stride == 1 || src.stride != 1;
    // Stored rows are lines along k: those are the rows of A's tiles. Stored columns are as B's tiles want them.
    let transpose = along_k == (side == Side::B);
    let (deep, wide) = if along_k { (STEPS * STEP, 16) } else { (STEP, RUN) };
    for l0 in (0..src.width).step_by(wide) {
        for p0 in (0..src.depth).step_by(deep) {
            let (lines, depth) = ((src.width - l0).min(wide), (src.depth - p0).min(deep));
            let origin = src.origin + l0 * src.stride + p0 * src.k_stride;
            let whole = lines.is_multiple_of(16) && depth.is_multiple_of(STEP);
            let whole = whole && (src.k_stride == 1 || src.stride == 1);
            let stored = if along_k { src.stride } else { src.k_stride };
            // One piece of a bf16 is itself.
            let narrow = PLANES == 1 && src.scale == 1.0;
            let (from, pitch) = match src.store {
                Store::F32(s) if whole => (From::F32(s[origin..].as_ptr()), stored),
                Store::Bf16(s) if whole && narrow => (From::Bf16(s[origin..].as_ptr().cast()), stored),
                _ => {
                    // SAFETY: AVX-512 implies what decoding needs.
                    unsafe { fetch(src, origin, along_k, (lines, depth), &mut scratch) };
                    (From::F32(scratch.as_ptr()), if along_k { STEPS * STEP } else { RUN })
                }
            };
            for l in (0..lines).step_by(16) {
                for p in (0..depth).step_by(STEP) {
                    let line = l0 + l;
                    let at = line / SIDE * panel + (p0 + p) / STEP * PLANES * PAIR + line % SIDE / 16 * 1024;
                    let (first, half, next) =
                        if along_k { (l * pitch + p, 16, 2 * STEP) } else { (p * pitch + l, 16 * pitch, STEP * pitch) };
                    // SAFETY: sixteen runs of 16 elements, and sixteen more `half` on, are in the store or the scratch;
                    // the tile is in its panel.
                    unsafe {
                        match from {
                            From::F32(from) => {
                                let first = from.wrapping_add(first);
                                let runs = Runs { first, pitch, half, next, transpose, scale: src.scale };
                                tile::<PLANES>(&runs, dst.add(at))
                            }
                            From::Bf16(from) => {
                                let first = from.wrapping_add(first);
                                tile_of_bf16(&Runs { first, pitch, half, next, transpose, scale: 1.0 }, dst.add(at))
                            }
                        }
                    };
                }
            }
        }
    }
    // The second half of a last panel that has none.
    let lines = src.width.next_multiple_of(16);
    if !lines.is_multiple_of(SIDE) {
        let last = lines / SIDE * panel;
        for pair in 0..src.depth.div_ceil(STEP) * PLANES {
            // SAFETY: the second tile of each pair of that panel.
            unsafe { dst.add(last + pair * PAIR + 1024).write_bytes(0, 1024) };
        }
    }
}

/// Decodes `lines` lines of `depth` elements, the rest of their tiles zero: along k rows of 256, else rows of RUN lines.
///
/// # Safety
/// AVX-512 is there.
#[inline(always)]
unsafe fn fetch(
    src: &Panels,
    origin: usize,
    along_k: bool,
    (lines, depth): (usize, usize),
    scratch: &mut [f32; STEP * RUN],
) {
    let (rows, len, pitch) = if along_k { (lines, depth, RUN / 2) } else { (depth, lines, RUN) };
    let (stride, step) = if along_k { (src.stride, src.k_stride) } else { (src.k_stride, src.stride) };
    let (all, padded) = if along_k { (16, depth.next_multiple_of(STEP)) } else { (STEP, lines.next_multiple_of(16)) };
    for r in 0..all {
        let row = &mut scratch[r * pitch..][..padded];
        row[if r < rows { len } else { 0 }..].fill(0.0);
        if r >= rows {
            continue;
        }
        let start = origin + r * stride;
        if step == 1 {
            // SAFETY: the caller's promise.
            unsafe { kernel::Avx512::decode(&src.store, start, &mut row[..len]) };
        } else {
            for (p, x) in row[..len].iter_mut().enumerate() {
                src.store.decode(start + p * step, std::slice::from_mut(x));
            }
        }
    }
}

/// Where a tile's elements are.
#[derive(Clone, Copy)]
enum From {
    F32(*const f32),
    Bf16(*const u16),
}

/// What a tile is packed from: sixteen runs of 16 elements from `first` on, `pitch` apart, and sixteen more, `half` on.
struct Runs<T> {
    first: *const T,
    pitch: usize,
    half: usize,
    /// How far on are the runs that will be packed soon.
    next: usize,
    transpose: bool,
    scale: f32,
}

/// One tile of each piece, a pair apart: word (r, l) of a tile is elements l of both runs r, or with `transpose`
/// elements r of both runs l.
///
/// # Safety
/// The runs are readable and the tiles writable; AVX-512 is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn tile<const PLANES: usize>(from: &Runs<f32>, dst: *mut u8) {
    let mut halves = [[_mm512_setzero_ps(); 16]; 2];
    for (h, runs) in halves.iter_mut().enumerate() {
        for (r, run) in runs.iter_mut().enumerate() {
            let at = from.first.wrapping_add(h * from.half + r * from.pitch);
            // SAFETY: the caller's promise; a prefetch of any address has no effect but on the cache.
            *run = unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(from.next).cast());
                _mm512_loadu_ps(at)
            };
        }
        if from.transpose {
            transpose(runs);
        }
        if from.scale != 1.0 {
            for run in runs {
                *run = _mm512_mul_ps(*run, _mm512_set1_ps(from.scale));
            }
        }
    }
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let nearest =
        |x: __m512| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)), upper);
    #[expect(clippy::needless_range_loop, reason = "an iterator over arrays of vectors copies them")]
    for r in 0..16 {
        let (mut x, mut y) = (halves[0][r], halves[1][r]);
        for piece in 0..PLANES {
            // The last piece of several is exact as it is.
            let (a, b) = if piece + 1 < PLANES || PLANES == 1 {
                let (a, b) = (nearest(x), nearest(y));
                (x, y) = (_mm512_sub_ps(x, _mm512_castsi512_ps(a)), _mm512_sub_ps(y, _mm512_castsi512_ps(b)));
                (a, b)
            } else {
                (_mm512_castps_si512(x), _mm512_castps_si512(y))
            };
            let word = _mm512_or_si512(_mm512_srli_epi32::<16>(a), _mm512_and_si512(b, upper));
            // SAFETY: row r of a tile of 16 rows of 64 bytes.
            unsafe { _mm512_storeu_si512(dst.add(piece * PAIR + 64 * r).cast(), word) };
        }
    }
}

/// The tile of the same words of what is bf16 already, in no other pieces.
///
/// # Safety
/// As for [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn tile_of_bf16(from: &Runs<u16>, dst: *mut u8) {
    let mut words = [_mm512_setzero_ps(); 16];
    for (r, word) in words.iter_mut().enumerate() {
        let at = from.first.wrapping_add(r * from.pitch);
        // SAFETY: the caller's promise; a prefetch of any address has no effect but on the cache.
        let (low, high) = unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(from.next).cast());
            (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.wrapping_add(from.half).cast()))
        };
        let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
        *word = _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low), high));
    }
    if from.transpose {
        transpose(&mut words);
    }
    for (r, word) in words.iter().enumerate() {
        // SAFETY: row r of a tile of 16 rows of 64 bytes.
        unsafe { _mm512_storeu_ps(dst.add(64 * r).cast(), *word) };
    }
}

/// Transposes a square of 16 by 16: within quarters of rows first, then the quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: &mut [__m512; 16]) {
    for i in (0..16).step_by(4) {
        let (a, b) = (_mm512_unpacklo_ps(r[i], r[i + 1]), _mm512_unpackhi_ps(r[i], r[i + 1]));
        let (c, d) = (_mm512_unpacklo_ps(r[i + 2], r[i + 3]), _mm512_unpackhi_ps(r[i + 2], r[i + 3]));
        r[i] = _mm512_shuffle_ps::<0x44>(a, c);
        r[i + 1] = _mm512_shuffle_ps::<0xee>(a, c);
        r[i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
        r[i + 3] = _mm512_shuffle_ps::<0xee>(b, d);
    }
    // Quarter q of r[4 g + j] is now column 4 q + j of rows 4 g..4 g + 4.
    for j in 0..4 {
        let (a, b) = (_mm512_shuffle_f32x4::<0x44>(r[j], r[4 + j]), _mm512_shuffle_f32x4::<0xee>(r[j], r[4 + j]));
        let (c, d) =
            (_mm512_shuffle_f32x4::<0x44>(r[8 + j], r[12 + j]), _mm512_shuffle_f32x4::<0xee>(r[8 + j], r[12 + j]));
        r[j] = _mm512_shuffle_f32x4::<0x88>(a, c);
        r[4 + j] = _mm512_shuffle_f32x4::<0xdd>(a, c);
        r[8 + j] = _mm512_shuffle_f32x4::<0x88>(b, d);
        r[12 + j] = _mm512_shuffle_f32x4::<0xdd>(b, d);
    }
}
