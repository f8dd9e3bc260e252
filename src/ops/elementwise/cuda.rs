//! The CUDA launches of the elementwise ops: a thread takes 16 bytes of each operand.

use super::activation::kind;
use super::{drop, factor};
use crate::cpu::philox::keep;
use crate::error::Result;
use crate::ops::{Arg, CudaLaunch, Factor, Lower, launch};

/// Threads of a block: whole warps, and enough blocks to even out.
const BLOCK: usize = 256;

/// A launch over the elements of output 0. Parameters: their number in two words, `more`.
fn elements(l: &Lower, entry: &'static str, args: Vec<Arg>, more: &[u32], flops: usize) -> Result<Vec<CudaLaunch>> {
    let n = l.outs[0].len();
    Ok(vec![CudaLaunch {
        file: "elementwise",
        defines: vec![launch::act(&l.outs[0])],
        entry,
        grid: launch::grid(n.div_ceil(BLOCK * launch::lanes(&l.outs[0])), l.caps),
        block: BLOCK as u32,
        shared: 0,
        args,
        params: launch::words(n).into_iter().chain(more.iter().copied()).collect(),
        maps: Vec::new(),
        flops: (flops * n) as u64,
    }])
}

pub fn add(l: &Lower) -> Result<Vec<CudaLaunch>> {
    elements(l, "add", vec![Arg::Out(0), Arg::In(0), Arg::In(1)], &[], 1)
}

pub fn scale(l: &Lower) -> Result<Vec<CudaLaunch>> {
    elements(l, "scale", vec![Arg::Out(0), Arg::In(0), Arg::In(1)], &[], 1)
}

pub fn activation(l: &Lower) -> Result<Vec<CudaLaunch>> {
    elements(l, "activation", vec![Arg::Out(0), Arg::In(0)], &[kind(l.attr)], 12)
}

pub fn activation_bwd(l: &Lower) -> Result<Vec<CudaLaunch>> {
    elements(l, "activation_bwd", vec![Arg::Out(0), Arg::In(0), Arg::In(1)], &[kind(l.attr)], 16)
}

pub fn gated_act(l: &Lower) -> Result<Vec<CudaLaunch>> {
    elements(l, "gated_act", vec![Arg::Out(0), Arg::In(0), Arg::In(1)], &[kind(l.attr)], 12)
}

pub fn gated_act_bwd(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let args = vec![Arg::Out(0), Arg::Out(1), Arg::In(0), Arg::In(1), Arg::In(2)];
    elements(l, "gated_act_bwd", args, &[kind(l.attr)], 24)
}

pub fn dropout(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (threshold, scale) = keep(drop(l.attr));
    let more = [drop(l.attr).site, threshold, scale.to_bits()];
    elements(l, "dropout", vec![Arg::Out(0), Arg::In(0), Arg::In(1)], &more, 20)
}

pub fn add_row(l: &Lower) -> Result<Vec<CudaLaunch>> {
    Ok(vec![launch::with_row(l, "elementwise", "add_row", &[factor(l.attr).factor.to_bits()], 2)])
}

pub fn add_row_dv(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let Factor { factor: f, acc } = factor(l.attr);
    let acc = if acc { Arg::In(1) } else { Arg::Absent };
    let columns = launch::Columns::new(&l.ins[0]);
    let entries = ["add_row_dv", "add_row_dv_sum"];
    Ok(columns.launches("elementwise", entries, vec![Arg::In(0)], acc, &[f.to_bits()], l.caps))
}
