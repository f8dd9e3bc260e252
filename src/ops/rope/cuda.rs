//! The CUDA launch of rotary embeddings: a block a token.

use super::rope;
use crate::error::Result;
use crate::ops::{Arg, CudaLaunch, Lower, Rope, launch};

pub fn launches(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let Rope { heads, head_dim, inverse } = rope(l.attr);
    let (tokens, half) = (l.ins[0].rows(), l.ins[1].cols() / 2);
    let run = launch::lanes(&l.ins[0]);
    let run = if half % run == 0 && head_dim % run == 0 { run } else { 1 };
    let items = heads * (head_dim - half) / run;
    let sign = if inverse { -1.0f32 } else { 1.0 };
    let words = [tokens, heads, head_dim, half, l.ins[1].rows()];
    Ok(vec![CudaLaunch {
        file: "rope",
        defines: vec![launch::act(&l.ins[0])],
        entry: "rope",
        grid: launch::grid(tokens, l.caps),
        block: items.next_multiple_of(32).clamp(32, 256) as u32,
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0), Arg::In(1), Arg::In(2)],
        params: words.map(|w| w as u32).into_iter().chain([sign.to_bits()]).collect(),
        maps: Vec::new(),
        flops: 3 * l.ins[0].len() as u64,
    }])
}
