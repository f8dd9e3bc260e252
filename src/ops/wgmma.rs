//! Dense products by Hopper's wgmma (`kernels/common/wgmma_gemm.cuh`): which there are, and their launches.

use crate::device::{Caps, Tiling};
use crate::dtype::{DType, Ty};
use crate::ops::{CudaLaunch, MatrixMap, WGMMA, launch};

/// Rows of a tile and its depth along k, as the constants BM and BK of the kernels.
const M: usize = 128;
const K: usize = 64;
const THREADS: u32 = 384;

/// A tile shape of the kernels.
struct Tile {
    /// The macro TILE.
    code: i64,
    /// Columns.
    n: usize,
    /// Of the ring.
    stages: usize,
}

const WIDE: Tile = Tile { code: 0, n: 256, stages: 4 };
const SQUARE: Tile = Tile { code: 1, n: 128, stages: 6 };

/// The macro of operands in bf16.
pub(super) const BF16: (&str, i64) = ("W", 1);

/// An m × n product over k of arguments 1 and 2 of the launch.
pub(super) struct Product {
    /// (m, n, k)
    pub dims: (usize, usize, usize),
    pub rank: usize,
    /// Elements from row to row of each operand.
    pub ld: [usize; 2],
    /// Whether its rows run along k: it is [m, k] or [n, k], else [k, m] or [k, n].
    pub along_k: [bool; 2],
}

impl Product {
    /// Whether a launch is by wgmma, whatever its tile. All others are by mma.sync, alone or as problems of one launch: those of other
    /// types, of rows that tensor copies cannot read (multiples of 16 bytes) or of an odd number of columns; those that do not fill half a
    /// tile; those whose tiles keep less than half of the card's multiprocessors busy, as the smaller tiles of mma.sync spread the work
    /// over more of them; and those that are so long that they are cut. Activations of a card that has wgmma are never f16 ([`Caps::compute_dtype`]).
    fn fits(&self, act: &Ty, stored: (&str, i64), caps: &Caps) -> bool {
        caps.wgmma
            && (act.dtype, stored) == (DType::BF16, BF16)
            && self.ld.iter().all(|ld| ld.is_multiple_of(8))
            && self.dims.1.is_multiple_of(2)
            && self.dims.0.min(self.dims.1) >= M / 2
            && self.flops() <= caps.max_flops
            && 2 * self.tiles(&self.estimated(caps)) >= caps.workgroups(1)
    }

    fn flops(&self) -> u64 {
        let (m, n, k) = self.dims;
        2 * (m * n * (k + self.rank)) as u64
    }

    /// The one that [`Caps::tiling`] names.
    fn tile(&self, caps: &Caps) -> Tile {
        match caps.tiling {
            Tiling::Estimated => self.estimated(caps),
            Tiling::Large => WIDE,
            Tiling::Middle => SQUARE,
        }
    }

    /// What takes less time, blocks taking a card's tiles in turns. The square tile, half of the wide one, reads a third more for
    /// each product, and is taken to have two thirds of its time.
    fn estimated(&self, caps: &Caps) -> Tile {
        let turns = |tile: &Tile| self.tiles(tile).div_ceil(caps.workgroups(1));
        if 3 * turns(&WIDE) <= 2 * turns(&SQUARE) { WIDE } else { SQUARE }
    }

    fn tiles(&self, tile: &Tile) -> usize {
        self.dims.0.div_ceil(M) * self.dims.1.div_ceil(tile.n)
    }

    /// The launch of a file's kernel of the same name, without arguments and parameters yet; `None` where it is not by wgmma.
    /// The pair: a matrix that is kept as activations are, and the macro that says how the other operand is stored.
    pub fn launch(
        &self,
        file: &'static str,
        (act, stored): (&Ty, (&'static str, i64)),
        caps: &Caps,
    ) -> Option<CudaLaunch> {
        let (m, n, k) = self.dims;
        let tile = self.tile(caps);
        let map = |number: usize, side: usize, height: usize| {
            let (rows, cols, height) = if self.along_k[number] { (side, k, height) } else { (k, side, K) };
            let [rows, cols, ld, height] = [rows, cols, self.ld[number], height].map(|v| v as u32);
            MatrixMap { arg: 1 + number, rows, cols, ld, height }
        };
        self.fits(act, stored, caps).then(|| CudaLaunch {
            file,
            defines: vec![launch::act(act), WGMMA, ("TILE", tile.code)],
            entry: file,
            grid: [self.tiles(&tile) as u32, 1, 1],
            block: THREADS,
            shared: (tile.stages * 2 * K * (M + tile.n)) as u32,
            args: Vec::new(),
            maps: vec![map(0, m, M), map(1, n, tile.n)],
            params: Vec::new(),
            flops: self.flops(),
        })
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn wgmma_takes_what_tensor_copies_can_read_and_fills_the_card() {
        let hopper = crate::backend::cuda::caps("a card".into(), 90);
        let takes = |caps: &Caps, act: DType, stored: i64, dims: (usize, usize, usize), ld: usize| {
            let act = Ty::new(act, &[dims.0, dims.2]);
            let product = Product { dims, rank: 8, ld: [ld, dims.2], along_k: [true, true] };
            product.launch("linear_wgmma", (&act, ("W", stored)), caps).is_some()
        };
        let (bf16, large) = (DType::BF16, (4096, 4096, 4096));
        assert!(takes(&hopper, bf16, 1, large, 4096));
        for (act, stored) in [(DType::F32, 1), (bf16, 0), (DType::F16, 2), (bf16, 4)] {
            assert!(!takes(&hopper, act, stored, large, 4096), "{act} {stored}");
        }
        assert!(!takes(&hopper, bf16, 1, (4096, 4096, 4092), 4096) && !takes(&hopper, bf16, 1, large, 4100));
        assert!(!takes(&hopper, bf16, 1, (4096, 4095, 4096), 4096));
        // Of 108 multiprocessors 64 have a tile, 48 do not do.
        assert!(takes(&hopper, bf16, 1, (512, 2048, 64), 64) && !takes(&hopper, bf16, 1, (384, 2048, 64), 64));
        let failed = Caps { wgmma: false, ..hopper.clone() };
        let short = Caps { max_flops: 1 << 30, ..hopper };
        let ampere = crate::backend::cuda::caps("a card".into(), 80);
        for caps in [failed, short, ampere] {
            assert!(!takes(&caps, bf16, 1, large, 4096), "{}", caps.arch);
        }
    }

    /// Wide where that is as quick; and none but the tile depends on what is asked for.
    #[test]
    fn tiles_are_few_turns_of_the_card() {
        let card = Caps { multiprocessors: Some(132), ..crate::backend::cuda::caps("a card".into(), 90) };
        let act = |m| Ty::new(DType::BF16, &[m, 4096]);
        let tiles = |m: usize, n: usize, caps: &Caps| {
            let product = Product { dims: (m, n, 4096), rank: 0, ld: [4096; 2], along_k: [true, true] };
            let launch = product.launch("linear_wgmma", (&act(m), BF16), caps)?;
            Some((launch.maps[1].height, launch.grid[0]))
        };
        // Rows, columns; columns of the tile, and how many there are.
        for (m, n, expected) in [
            (4096, 4096, Some((256, 512))),
            (4096, 1024, Some((256, 128))),
            // One turn of either.
            (2048, 1024, Some((128, 128))),
            (512, 4096, Some((128, 128))),
            (512, 2048, None),
            // Two turns of square ones, one of wide ones.
            (2048, 2048, Some((256, 128))),
            // Three, and two, which are taken to be as quick.
            (2048, 2304, Some((256, 144))),
            // As many of either.
            (16896, 128, Some((128, 132))),
        ] {
            assert_eq!(tiles(m, n, &card), expected, "{m} × {n}");
            for (tiling, columns) in [(Tiling::Large, 256), (Tiling::Middle, 128)] {
                let count = (m.div_ceil(128) * n.div_ceil(columns)) as u32;
                let forced = expected.map(|_| (columns as u32, count));
                assert_eq!(tiles(m, n, &card.tiled(tiling)), forced, "{m} × {n} {tiling:?}");
            }
        }
    }
}
