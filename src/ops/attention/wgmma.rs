//! The CUDA launches of attention by Hopper's wgmma (`kernels/attention_wgmma.cu`, `attention_bwd_wgmma.cu`).

use super::{common, cost, spec, words};
use crate::device::Caps;
use crate::dtype::{DType, Ty};
use crate::ops::{Arg, Attention, CudaLaunch, Lower, MatrixMap, WGMMA, launch};

/// Rows of a block's tile, as ROWS of the kernels.
const ROWS: usize = 128;
/// Columns of a tile, forward and backward, as COLS.
const FORWARD: usize = 128;
const BACKWARD: usize = 64;
/// Tiles in shared memory beside the block's own rows: four of keys or values, or four of both.
const STAGES: usize = 4;
const THREADS: u32 = 384;

/// Whether attention of these queries and keys is by wgmma: of heads whose features fill blocks of 64, without a bias, and where both
/// sides fill a tile. All other is by mma.sync.
pub fn takes(a: &Attention, ins: &[Ty], caps: &Caps) -> bool {
    let narrow = ins[0].dtype == DType::BF16 && matches!(a.head_dim, 64 | 128) && !a.bias;
    caps.wgmma && narrow && ins[..2].iter().all(|side| side.rows() >= ROWS)
}

/// A launch without its arguments and maps. `rows`: those of tiles in shared memory, all together.
fn launch(l: &Lower, file: &'static str, entry: &'static str, rows: usize, products: u64) -> CudaLaunch {
    let a = spec(l.attr);
    CudaLaunch {
        file,
        defines: vec![launch::act(&l.ins[0]), ("HEAD_DIM", a.head_dim as i64), WGMMA],
        entry,
        grid: [0; 3],
        block: THREADS,
        shared: (2 * a.head_dim * rows) as u32,
        args: Vec::new(),
        params: words(l, &a).to_vec(),
        maps: Vec::new(),
        flops: cost(l.attr, l.ins, products).flops,
    }
}

/// The map of argument `arg`, an operand of `ty`, in boxes of so many rows.
fn map(arg: usize, ty: &Ty, height: usize) -> MatrixMap {
    let [rows, cols, height] = [ty.rows(), ty.cols(), height].map(|n| n as u32);
    MatrixMap { arg, rows, cols, ld: cols, height }
}

/// `launch` on the tiles of so many rows of each head.
fn tiled(launch: CudaLaunch, heads: usize, rows: usize, caps: &Caps) -> Vec<CudaLaunch> {
    launch::short(launch, rows.div_ceil(ROWS), caps, |tiles| [heads as u32, tiles as u32, 1])
}

pub fn forward(l: &Lower) -> Vec<CudaLaunch> {
    let [q, k, v] = [&l.ins[0], &l.ins[1], &l.ins[2]];
    let all = CudaLaunch {
        args: vec![Arg::Out(0), Arg::Out(1), Arg::In(0), Arg::In(1), Arg::In(2), Arg::In(3)],
        maps: vec![map(2, q, ROWS), map(3, k, FORWARD), map(4, v, FORWARD)],
        ..launch(l, "attention_wgmma", "attention_wgmma", ROWS + STAGES * FORWARD, 2)
    };
    tiled(all, spec(l.attr).heads, q.rows(), l.caps)
}

/// dq, then dk and dv; `stats` is what `attention_delta` left.
pub fn backward(l: &Lower, stats: Arg) -> Vec<CudaLaunch> {
    let a = spec(l.attr);
    let at = common(&a);
    let [q, k, v, dout] = [0, 1, 2, at + 3].map(|i| &l.ins[i]);
    let operands = [0, 1, 2, at + 3].map(Arg::In);
    let rows = 2 * ROWS + STAGES * 2 * BACKWARD;
    let with = |outs: &[usize], range: usize| {
        let outs = outs.iter().map(|&o| Arg::Out(o));
        outs.chain(operands.clone()).chain([stats.clone(), Arg::In(range)]).collect()
    };
    let dq = CudaLaunch {
        args: with(&[0], 3),
        maps: vec![map(1, q, ROWS), map(2, k, BACKWARD), map(3, v, BACKWARD), map(4, dout, ROWS)],
        ..launch(l, "attention_bwd_wgmma", "attention_dq_wgmma", rows, 3)
    };
    let dkv = CudaLaunch {
        args: with(&[1, 2], at),
        maps: vec![map(2, q, BACKWARD), map(3, k, ROWS), map(4, v, ROWS), map(5, dout, BACKWARD)],
        ..launch(l, "attention_bwd_wgmma", "attention_dkv_wgmma", rows, 4)
    };
    let mut all = tiled(dq, a.heads, q.rows(), l.caps);
    all.extend(tiled(dkv, a.kv_heads, k.rows(), l.caps));
    all
}
