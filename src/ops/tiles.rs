//! How dense products become CUDA launches: the tile (`kernels/common/gemm.cuh`) that fits a matrix, and where a long
//! sum is split.

use crate::cpu::philox;
use crate::device::{Caps, Tiling};
use crate::dtype::Ty;
use crate::ops::{Arg, CudaLaunch, Dropout, Matmul, launch, wgmma};

/// A tile shape of `gemm.cuh`.
pub(super) struct Tile {
    /// The macro TILE.
    code: i64,
    m: usize,
    n: usize,
}

const LARGE: Tile = Tile { code: 0, m: 128, n: 128 };
const MIDDLE: Tile = Tile { code: 1, m: 64, n: 64 };
const TALL: Tile = Tile { code: 2, m: 64, n: 16 };
const FLAT: Tile = Tile { code: 3, m: 16, n: 64 };

impl Tile {
    /// For an m × n product: the one that [`Caps::tiling`] names, where there is a choice. An element of the large and of the
    /// middle one is one sum in one order; thin ones share it out. Before sm_80 registers do not hold the large tile and
    /// what is fetched beside it.
    pub fn of(m: usize, n: usize, caps: &Caps) -> Tile {
        match (m, n) {
            (_, ..=16) => TALL,
            (..=16, _) => FLAT,
            _ if caps.arch < 80 => MIDDLE,
            _ => match caps.tiling {
                Tiling::Estimated => Tile::estimated(m, n, caps),
                Tiling::Large => LARGE,
                Tiling::Middle => MIDDLE,
            },
        }
    }

    /// What takes less time, tiles going over the card's multiprocessors in waves. The middle tile, a quarter of the large one,
    /// reads twice as much for each product, and is taken to have three eighths of its time.
    fn estimated(m: usize, n: usize, caps: &Caps) -> Tile {
        match 8 * LARGE.waves(m, n, caps) <= 3 * MIDDLE.waves(m, n, caps) {
            true => LARGE,
            false => MIDDLE,
        }
    }

    fn waves(&self, m: usize, n: usize, caps: &Caps) -> usize {
        self.count(m, n).div_ceil(caps.workgroups(1))
    }

    fn count(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// `launch`, of this tile on an m × n product of so many parts, cut where it would run for too long.
    pub fn short(&self, launch: CudaLaunch, m: usize, n: usize, parts: usize, caps: &Caps) -> Vec<CudaLaunch> {
        launch::short(launch, self.count(m, n), caps, |count| {
            let [x, y, _] = launch::grid(count, caps);
            [x, y, parts as u32]
        })
    }

    /// Its warps share every stage of k, each a slice ([`Tile::depth`]), and add up in the end.
    fn is_thin(&self) -> bool {
        self.m.min(self.n) == 16
    }

    /// Terms of a stage, by the constants of gemm.cuh: 16 of f32 or 32 of 16 bits, for each of the slices.
    fn depth(&self, narrow: bool) -> usize {
        let slices = if self.is_thin() { 4 } else { 1 };
        slices * if narrow { 32 } else { 16 }
    }

    /// A launch of `file`'s kernel of the same name on the tiles of an m × n product, without arguments yet. `act` is
    /// an operand kept as activations are.
    pub fn launch(&self, file: &'static str, act: &Ty, (m, n, k): (usize, usize, usize), caps: &Caps) -> CudaLaunch {
        let act = launch::act(act);
        // The constants of gemm.cuh: f32 has 2 stages along k, with 4 floats of padding.
        let large = self.code == LARGE.code;
        let stages = match (caps.arch, large) {
            (..80, _) => 2,
            (_, true) => 3,
            (_, false) => 4,
        };
        let (threads, shared) = match act.1 {
            0 => (if large { 256 } else { 128 }, 2 * self.depth(false) * 4 * (self.m + self.n + 8)),
            _ => (128, stages * self.depth(true) * 2 * (self.m + self.n)),
        };
        CudaLaunch {
            file,
            defines: vec![act, ("TILE", self.code)],
            entry: file,
            grid: launch::grid(self.count(m, n), caps),
            block: threads,
            shared: shared as u32,
            args: Vec::new(),
            params: Vec::new(),
            maps: Vec::new(),
            flops: 2 * (m * n * k) as u64,
        }
    }
}

/// Into how many parts the sum over k is split, and the length of one: so many that two blocks a multiprocessor run, each
/// with at least 256 terms. Thin tiles are not split: their warps already have a part of the sum each, and the launch that would
/// add up more parts takes as long as they save. Depends on the shape and on what [`Caps::rounding`] tells of the card only,
/// and so do the results: not on the tile.
fn split((m, n, k): (usize, usize, usize), caps: &Caps) -> (usize, usize) {
    // Whichever tile is taken.
    let tile = Tile::of(m, n, &caps.tiled(Tiling::Estimated));
    let most = if tile.is_thin() { 1 } else { k / 256 };
    let parts = (caps.workgroups(2) / tile.count(m, n).max(1)).min(most).max(1);
    // A part ends with a tile.
    let step = k.div_ceil(parts).next_multiple_of(32);
    (k.div_ceil(step).max(1), step)
}

/// The scratch bytes of a [`Product`] of (m, n, k), if it is by mma.sync.
pub(super) fn workspace(dims: (usize, usize, usize), caps: &Caps) -> u64 {
    match split(dims, caps).0 {
        1 => 0,
        parts => (4 * parts * dims.0 * dims.1) as u64,
    }
}

/// `c[m,n] = factor·alpha·op(a)[m,k]·op(b)[k,n] (+ acc)`.
pub(super) struct Product<'a> {
    pub spec: Matmul,
    pub dims: (usize, usize, usize),
    /// An operand kept as activations are.
    pub act: &'a Ty,
    pub c: Arg,
    pub a: Arg,
    /// Elements from row to row of a.
    pub lda: usize,
    pub b: Arg,
    pub acc: Option<Arg>,
    /// Dropout of a (not transposed, b transposed), and its random-number operand.
    pub dropout: Option<(Dropout, Arg)>,
    /// One f32 on the device; then nothing is split.
    pub factor: Option<Arg>,
    /// c is stored as its transpose, [n, m].
    pub turned: bool,
}

impl Product<'_> {
    /// The gradient of a weight by wgmma, where it is: both operands are activations.
    fn by_wgmma(&self, caps: &Caps) -> Option<CudaLaunch> {
        let (m, n, k) = self.dims;
        let Matmul { ta, tb, alpha, .. } = self.spec;
        if !ta || tb || self.turned || self.dropout.is_some() {
            return None;
        }
        let product = wgmma::Product { dims: self.dims, rank: 0, ld: [self.lda, n], along_k: [false, false] };
        let mut all = product.launch("matmul_wgmma", (self.act, wgmma::BF16), caps)?;
        let [acc, factor] = [&self.acc, &self.factor].map(|arg| arg.clone().unwrap_or(Arg::Absent));
        all.args = vec![self.c.clone(), self.a.clone(), self.b.clone(), acc, factor];
        all.params = vec![m as u32, n as u32, k as u32, alpha.to_bits()];
        Some(all)
    }

    pub fn launches(self, caps: &Caps) -> Vec<CudaLaunch> {
        let (m, n, k) = self.dims;
        let Matmul { ta, tb, alpha, .. } = self.spec;
        // A thin gradient: its transpose, so that the gradients of A and B are problems of one kernel.
        if ta && !tb && n <= TALL.n && m > n && self.lda == m && self.factor.is_none() && !self.turned {
            let (dims, lda) = ((n, m, k), n);
            return Product { dims, lda, a: self.b, b: self.a, turned: true, ..self }.launches(caps);
        }
        if let Some(all) = self.by_wgmma(caps) {
            return vec![all];
        }
        let (parts, step) = match self.factor {
            Some(_) => (1, k),
            None => split(self.dims, caps),
        };
        let part = match parts {
            1 => Arg::Absent,
            _ => Arg::Work(0..workspace(self.dims, caps)),
        };
        let dropped = self.dropout.is_some();
        let (drop, rng) = self.dropout.map_or((Dropout { p: 0.0, site: 0 }, Arg::Absent), |d| d);
        let (threshold, keep) = philox::keep(drop);
        let acc = self.acc.unwrap_or(Arg::Absent);
        let factor = self.factor.unwrap_or(Arg::Absent);
        let tile = Tile::of(m, n, caps);
        let mut tiles = tile.launch("matmul", self.act, self.dims, caps);
        tiles.defines.extend([("TA", ta as i64), ("TB", tb as i64), ("DROPOUT", dropped as i64)]);
        tiles.args = vec![self.c.clone(), self.a, self.b, acc.clone(), rng, factor, part.clone()];
        tiles.params = [m, n, k, self.lda, step].map(|x| x as u32).to_vec();
        tiles.params.extend([alpha.to_bits(), drop.site, threshold, keep.to_bits(), self.turned as u32]);
        if parts == 1 {
            return tile.short(tiles, m, n, 1, caps);
        }
        // Only the launch of the sum has c and acc.
        tiles.args[0] = Arg::Absent;
        tiles.args[3] = Arg::Absent;
        let sum = CudaLaunch {
            entry: "matmul_sum",
            grid: launch::grid((m * n).div_ceil(256), caps),
            block: 256,
            shared: 0,
            args: vec![self.c, part, acc],
            params: vec![(m * n) as u32, ((m * n) as u64 >> 32) as u32, parts as u32, alpha.to_bits()],
            flops: (parts * m * n) as u64,
            ..tiles.clone()
        };
        let mut all = tile.short(tiles, m, n, parts, caps);
        all.push(sum);
        all
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    /// Two blocks for each multiprocessor where the sum is long enough, whatever the card; large tiles where they fill it.
    #[test]
    fn a_product_fills_the_card_it_is_for() {
        // Multiprocessors, m, n, k, the tile's rows, and parts of the sum.
        let table: [(u32, [usize; 3], usize, usize); 11] = [
            (132, [1024, 64, 4096], 64, 16),
            (36, [1024, 64, 4096], 64, 4),
            (264, [1024, 64, 4096], 64, 16),
            // No part is of less than 256 terms.
            (132, [64, 64, 2048], 64, 8),
            (132, [64, 64, 256], 64, 1),
            // Thin tiles are not split.
            (132, [4096, 16, 4096], 64, 1),
            (132, [16, 4096, 4096], 16, 1),
            (132, [1024, 1024, 512], 64, 1),
            (132, [1152, 1024, 512], 128, 2),
            (36, [512, 640, 512], 128, 2),
            (36, [512, 512, 512], 64, 1),
        ];
        for (multiprocessors, [m, n, k], rows, parts) in table {
            let caps =
                Caps { multiprocessors: Some(multiprocessors), ..crate::backend::cuda::caps("a card".into(), 90) };
            let found = (Tile::of(m, n, &caps).m, split((m, n, k), &caps).0);
            assert_eq!(found, (rows, parts), "{m}×{n}×{k} on {multiprocessors} multiprocessors");
        }
        // Nor do the splits, and with them results and scratch memory, follow from the tile that is taken.
        let card = Caps { multiprocessors: Some(132), ..crate::backend::cuda::caps("a card".into(), 90) };
        for (_, [m, n, k], _, _) in table {
            let [estimated, large, middle] = Tiling::ALL.map(|tiling| card.tiled(tiling));
            let parts = [&estimated, &large, &middle].map(|caps| split((m, n, k), caps));
            assert!(parts[0] == parts[1] && parts[1] == parts[2], "{m}×{n}×{k}: {parts:?}");
            let rows = [&large, &middle].map(|caps| Tile::of(m, n, caps).m);
            assert!(m.min(n) <= 16 || rows == [128, 64], "the control: {m}×{n}×{k} has no choice");
        }
        // What a card decides has a name, by which a run that goes on elsewhere can tell.
        let [a, b] = [Some(132), Some(114)].map(|multiprocessors| {
            Caps { multiprocessors, ..crate::backend::cuda::caps("a card".into(), 90) }.rounding()
        });
        assert!(a != b && a.starts_with("a card") && a.contains("132"), "{a} {b}");
    }
}
