//! Dense products: y, dx and the gradient of a weight, of operands whose rows run along k and of others.

use super::{Cuda, Operand, bf16, element, run};
use crate::error::Result;
use crate::graph::op::{CudaLaunch, MatrixMap, WGMMA};

/// Rows, columns and depth: none fills its last tile, both multiplying warpgroups work, and the ring goes round.
const M: usize = 136;
const N: usize = 264;
const K: usize = 328;

/// Columns of the tiles, by the macro TILE.
const TILES: [(i64, u32); 2] = [(0, 256), (1, 128)];

/// What the rings of either tile take.
const SHARED: u32 = (4 * 48) << 10;

/// Problems that the kernels take: one here.
const PROBLEMS: usize = 3;

/// A kernel: which operands have rows along k, its pointers after the operands, and its words.
struct Form {
    entry: &'static str,
    defines: &'static [(&'static str, i64)],
    along_k: [bool; 2],
    absent: usize,
    words: &'static [u32],
    wide: bool,
}

const ONE: u32 = 0x3f80_0000;

const FORMS: [Form; 3] = [
    // bias, acc, xa, B; T, N, K, R, ldy, scale.
    Form {
        entry: "linear_wgmma",
        defines: &[("ACT", 1), WGMMA, ("WIDE", 0)],
        along_k: [true, true],
        absent: 4,
        words: &[M as u32, N as u32, K as u32, 0, N as u32, 0],
        wide: false,
    },
    // dyb, A, rng, factor; T, N, K, R, dropout's site, threshold and scale.
    Form {
        entry: "linear_dx_wgmma",
        defines: &[("ACT", 1), WGMMA],
        along_k: [true, false],
        absent: 4,
        words: &[M as u32, K as u32, N as u32, 0, 0, 0, 0],
        wide: false,
    },
    // acc, factor; m, n, k, alpha.
    Form {
        entry: "matmul_wgmma",
        defines: &[("ACT", 1), WGMMA],
        along_k: [false, false],
        absent: 2,
        words: &[M as u32, N as u32, K as u32, ONE],
        wide: true,
    },
];

/// Whether each kernel gives what the host gives, with either tile.
pub fn agree(card: &mut Cuda) -> Result<bool> {
    let mut all = FORMS.iter().flat_map(|form| TILES.map(|tile| (form, tile)));
    all.try_fold(true, |agree, (form, tile)| Ok(agree && form.agrees(tile, card)?))
}

impl Form {
    fn launch(&self, (tile, columns): (i64, u32)) -> CudaLaunch {
        let map = |number: usize, side: usize, height| {
            let (rows, cols, height) = if self.along_k[number] { (side, K, height) } else { (K, side, 64) };
            MatrixMap { arg: 1 + number, rows: rows as u32, cols: cols as u32, ld: cols as u32, height }
        };
        let mut params = self.words.to_vec();
        params.resize(PROBLEMS * self.words.len(), 0);
        // All tiles are the first problem's.
        params.extend([u32::MAX; PROBLEMS - 1]);
        CudaLaunch {
            file: self.entry,
            defines: [self.defines, &[("TILE", tile)]].concat(),
            entry: self.entry,
            grid: [2, 1, 1],
            block: 384,
            shared: SHARED,
            args: Vec::new(),
            maps: [[map(0, M, 128), map(1, N, columns)]; PROBLEMS].concat(),
            params,
            flops: (2 * M * N * K) as u64,
        }
    }

    /// Element `k` of row or column `i` of an operand, as it is stored.
    fn at(&self, number: usize, i: usize, k: usize) -> f32 {
        let side = [M, N][number];
        element(5 * number + if self.along_k[number] { i * K + k } else { k * side + i })
    }

    fn agrees(&self, tile: (i64, u32), card: &mut Cuda) -> Result<bool> {
        let matrix = |number: usize| -> Vec<f32> { (0..[M, N][number] * K).map(|i| element(5 * number + i)).collect() };
        let bytes = if self.wide { 4 } else { 2 };
        let mut operands =
            vec![Operand::Out(bytes * M * N), Operand::In(bf16(&matrix(0))), Operand::In(bf16(&matrix(1)))];
        let pointers = operands.len() + self.absent;
        operands.resize_with(PROBLEMS * pointers, || Operand::Absent);
        let outs = run(card, self.launch(tile), &operands)?;
        let sum = |i: usize| -> f32 { (0..K).map(|k| self.at(0, i / N, k) * self.at(1, i % N, k)).sum() };
        let right: Vec<f32> = (0..M * N).map(sum).collect();
        let right = if self.wide { right.iter().flat_map(|v| v.to_le_bytes()).collect() } else { bf16(&right) };
        Ok(outs == [right])
    }
}
