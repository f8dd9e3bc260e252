//! The CUDA launches of the norms: a team of threads (a warp or a block) a row, and sums over columns in two passes.

use super::norm;
use crate::dtype::Ty;
use crate::error::Result;
use crate::ops::{Arg, Attr, CudaLaunch, Lower, launch};

/// Threads of a block where a row's team is a warp: four rows a block.
const WARPS: usize = 128;
/// The largest team: `__launch_bounds__` in `kernels/norm.cu` and `norm_layer.cu`.
const MOST: usize = 512;

/// Threads of a row's team, threads of a block and number of blocks for rows of type `x`.
fn team(x: &Ty, l: &Lower) -> (u32, u32, [u32; 3]) {
    // Four runs of 16 bytes are what a thread keeps of a row.
    let kept = 4 * launch::lanes(x);
    match x.cols() <= 32 * kept {
        true => (32, WARPS as u32, launch::grid(x.rows().div_ceil(WARPS / 32), l.caps)),
        false => {
            let size = x.cols().div_ceil(kept).next_multiple_of(32).min(MOST) as u32;
            (size, size, launch::grid(x.rows(), l.caps))
        }
    }
}

/// The launch of `kernel`, a file and an entry.
fn cuda(l: &Lower, kernel: [&'static str; 2], x: &Ty, args: Vec<Arg>, more: &[u32], flops: usize) -> Vec<CudaLaunch> {
    let (size, block, grid) = team(x, l);
    let words = [x.rows() as u32, x.cols() as u32, size].into_iter().chain(more.iter().copied());
    vec![CudaLaunch {
        file: kernel[0],
        defines: vec![launch::act(x)],
        entry: kernel[1],
        grid,
        block,
        shared: 0,
        args,
        params: words.collect(),
        maps: Vec::new(),
        flops: (flops * x.len()) as u64,
    }]
}

pub fn rms_norm(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let n = norm(l.attr);
    let args = vec![Arg::Out(0), Arg::Out(1), Arg::In(0), Arg::In(1)];
    Ok(cuda(l, ["norm", "rms_norm"], &l.ins[0], args, &[n.eps.to_bits(), n.offset.to_bits()], 4))
}

pub fn rms_norm_dx(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let n = norm(l.attr);
    let acc = if n.acc { Arg::In(4) } else { Arg::Absent };
    let args = vec![Arg::Out(0), Arg::In(0), Arg::In(1), Arg::In(2), Arg::In(3), acc];
    Ok(cuda(l, ["norm", "rms_norm_dx"], &l.ins[1], args, &[n.offset.to_bits()], 8))
}

pub fn rms_norm_dw(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let acc = if *l.attr == Attr::Acc(true) { Arg::In(3) } else { Arg::Absent };
    let columns = launch::Columns::new(&l.ins[1]);
    let first = vec![Arg::In(0), Arg::In(1), Arg::In(2)];
    Ok(columns.launches("norm", ["rms_norm_dw", "rms_norm_dw_sum"], first, acc, &[], l.caps))
}

pub fn layer_norm(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let args = vec![Arg::Out(0), Arg::Out(1), Arg::Out(2), Arg::In(0), Arg::In(1), Arg::In(2)];
    Ok(cuda(l, ["norm_layer", "layer_norm"], &l.ins[0], args, &[norm(l.attr).eps.to_bits()], 8))
}

pub fn layer_norm_dx(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let acc = if norm(l.attr).acc { Arg::In(5) } else { Arg::Absent };
    let args = [Arg::Out(0)].into_iter().chain((0..5).map(Arg::In)).chain([acc]).collect();
    Ok(cuda(l, ["norm_layer", "layer_norm_dx"], &l.ins[1], args, &[], 12))
}

pub fn layer_norm_dw(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let acc = if *l.attr == Attr::Acc(true) { Arg::In(4) } else { Arg::Absent };
    let columns = launch::Columns::new(&l.ins[1]);
    let first = (0..4).map(Arg::In).collect();
    Ok(columns.launches("norm_layer", ["layer_norm_dw", "layer_norm_dw_sum"], first, acc, &[], l.caps))
}
