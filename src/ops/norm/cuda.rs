//! The CUDA launches of the norms: a block a row.

use super::norm;
use crate::error::Result;
use crate::ops::{Arg, Cuda, Lower, launch};

/// Threads for a row of `cols`: whole warps, at most 1024, that do several elements each.
fn threads(cols: usize) -> u32 {
    (cols.div_ceil(4).next_multiple_of(32)).clamp(32, 1024) as u32
}

pub fn rms_norm(l: &Lower) -> Result<Vec<Cuda>> {
    let (rows, cols, n) = (l.ins[0].rows(), l.ins[0].cols(), norm(l.attr));
    Ok(vec![Cuda {
        file: "norm",
        defines: vec![launch::act(&l.ins[0])],
        entry: "rms_norm",
        grid: launch::grid(rows, l.caps),
        block: threads(cols),
        shared: 0,
        args: vec![Arg::Out(0), Arg::Out(1), Arg::In(0), Arg::In(1)],
        params: vec![rows as u32, cols as u32, n.eps.to_bits(), n.offset.to_bits()],
        flops: 4 * (rows * cols) as u64,
    }])
}
