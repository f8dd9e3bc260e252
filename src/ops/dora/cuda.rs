//! The CUDA launch of DoRA's norms: a block for 16 rows.

use super::{flops_an_element, scale};
use crate::error::Result;
use crate::ops::{Arg, CudaLaunch, Lower, launch};

/// Rows and threads of a block of `kernels/dora.cu`.
const ROWS: usize = 16;
const THREADS: u32 = 256;

pub fn dora_norm(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (w, rank) = (&l.ins[0], l.ins[1].rows());
    let (define, parts) = launch::weight(0, w);
    let args = [Arg::Out(0)].into_iter().chain(parts).chain([Arg::In(1), Arg::In(2)]);
    Ok(vec![CudaLaunch {
        file: "dora",
        defines: vec![define],
        entry: "dora_norm",
        grid: launch::grid(w.rows().div_ceil(ROWS), l.caps),
        block: THREADS,
        shared: 0,
        args: args.collect(),
        params: vec![w.rows() as u32, w.cols() as u32, rank as u32, scale(l.attr).to_bits()],
        maps: Vec::new(),
        flops: (w.len() * flops_an_element(rank)) as u64,
    }])
}
