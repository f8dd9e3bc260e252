//! The CUDA launches of the optimizer.

use super::PIECE;
use crate::error::Result;
use crate::ops::{Arg, Attr, CudaLaunch, Lower, launch};

const BLOCK: usize = 256;

fn cuda(entry: &'static str, blocks: usize, args: Vec<Arg>, params: Vec<u32>, l: &Lower, flops: usize) -> CudaLaunch {
    CudaLaunch {
        file: "optim",
        defines: Vec::new(),
        entry,
        grid: launch::grid(blocks, l.caps),
        block: BLOCK as u32,
        shared: 0,
        args,
        params,
        maps: Vec::new(),
        flops: flops as u64,
    }
}

/// A launch over the elements of output 0, four a thread.
fn over(entry: &'static str, args: Vec<Arg>, l: &Lower, flops: usize) -> Result<Vec<CudaLaunch>> {
    let n = l.outs[0].len();
    Ok(vec![cuda(entry, n.div_ceil(4 * BLOCK), args, launch::words(n).to_vec(), l, flops * n)])
}

/// A block sums a piece; one more sums the pieces.
pub fn sum_squares(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let n = l.ins[0].len();
    let pieces = n.div_ceil(PIECE);
    let partial = Arg::Work(0..4 * pieces as u64);
    let acc = if *l.attr == Attr::Acc(true) { Arg::In(1) } else { Arg::Absent };
    let first = cuda("partial_sums", pieces, vec![partial.clone(), Arg::In(0)], launch::words(n).to_vec(), l, 2 * n);
    let second = cuda("sum", 1, vec![Arg::Out(0), partial, acc], vec![pieces as u32], l, pieces);
    // One block sums all pieces: as wide as a block may be, where there are many.
    Ok(vec![first, CudaLaunch { block: if pieces > BLOCK { 1024 } else { BLOCK as u32 }, ..second }])
}

pub fn adamw(l: &Lower) -> Result<Vec<CudaLaunch>> {
    over("adamw", (0..3).map(Arg::Out).chain((0..6).map(Arg::In)).collect(), l, 16)
}

pub fn zero(l: &Lower) -> Result<Vec<CudaLaunch>> {
    over("zero", vec![Arg::Out(0)], l, 1)
}
