//! The CUDA launches that make and undo 4-bit weights.

use std::ops::Range;

use crate::device::Caps;
use crate::dtype::{Nf4Layout, Ty, align};
use crate::error::Result;
use crate::ops::{Arg, Attr, CudaLaunch, Lower, launch};

const BLOCK: usize = 256;

/// How the mean of `blocks` scales is summed up: what `torch_sum` in `quant::nf4` does, cut into independent units.
struct Mean {
    /// 2^power groups of 32 are a sum of the first level, 2^power of those one of the second: a unit.
    power: u32,
    units: usize,
}

impl Mean {
    fn new(blocks: usize) -> Mean {
        let groups = if blocks < 8 { blocks / 4 } else { blocks / 32 };
        let ceil_log2 = if groups <= 2 { 1 } else { (groups - 1).ilog2() + 1 };
        let power = (ceil_log2 / 4).max(4);
        Mean { power, units: groups >> (2 * power) }
    }

    fn bytes(&self) -> u64 {
        4 * 32 * self.units as u64
    }
}

/// The scales, and after them the sums of the units: their ranges in the scratch memory.
fn scratch(blocks: usize) -> [Range<u64>; 2] {
    let start = align(4 * blocks) as u64;
    [0..4 * blocks as u64, start..start + Mean::new(blocks).bytes()]
}

/// Scratch bytes of double quantization of `w`.
pub fn workspace(w: &Ty) -> u64 {
    scratch(w.len().div_ceil(Nf4Layout::BLOCK))[1].end
}

fn cuda(
    entry: &'static str,
    grid: [u32; 3],
    block: usize,
    args: Vec<Arg>,
    params: impl IntoIterator<Item = usize>,
    flops: usize,
) -> CudaLaunch {
    CudaLaunch {
        file: "quant",
        defines: vec![("W", 4)],
        entry,
        grid,
        block: block as u32,
        shared: 0,
        args,
        params: params.into_iter().map(|p| p as u32).collect(),
        maps: Vec::new(),
        flops: flops as u64,
    }
}

pub fn quantize(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let double = *l.attr == Attr::Nf4 { double: true };
    let n = l.ins[0].len();
    let blocks = n.div_ceil(Nf4Layout::BLOCK);
    let layout = Nf4Layout::new(n, double);
    let part = |r: &Range<usize>| Arg::OutPart(0, r.start as u64..r.end as u64);
    let [scales, sums] = scratch(blocks).map(Arg::Work);
    let length = launch::words(n).map(|w| w as usize);
    let absmax = if double { scales.clone() } else { part(&layout.absmax) };
    // A thread takes eight elements.
    let grid = |threads: usize| launch::grid(threads.div_ceil(BLOCK), l.caps);
    let args = vec![part(&layout.codes), absmax, Arg::In(0)];
    let mut all = vec![cuda("quantize", grid(n.div_ceil(8)), BLOCK, args, length, 20 * n)];
    if double {
        let mean = Mean::new(blocks);
        if mean.units > 0 {
            let args = vec![sums.clone(), scales.clone()];
            let params = [mean.units, mean.power as usize];
            all.push(cuda("mean_units", grid(32 * mean.units), BLOCK, args, params, blocks));
        }
        let args = vec![part(&layout.offset), if mean.units > 0 { sums } else { Arg::Absent }, scales.clone()];
        all.push(cuda("mean", [1, 1, 1], 32, args, [mean.units, mean.power as usize, blocks], blocks));
        let args = vec![part(&layout.absmax), part(&layout.nested), part(&layout.offset), scales];
        all.push(cuda("nested_blocks", grid(blocks), BLOCK, args, [blocks], 20 * blocks));
    }
    Ok(all)
}

pub fn dequantize(l: &Lower) -> Result<Vec<CudaLaunch>> {
    Ok(vec![decode((0, &l.ins[0]), Arg::Out(0), &l.outs[0], l.caps)])
}

/// The launch that decodes the weight `w`, an operand's number and type, to `y`; `act` is of the type that y has.
pub fn decode(w: (usize, &Ty), y: Arg, act: &Ty, caps: &Caps) -> CudaLaunch {
    /// Elements of a block.
    const TILE: usize = 4096;
    let n = w.1.len();
    let (define, weight) = launch::weight(w.0, w.1);
    let args = [y].into_iter().chain(weight).collect();
    let grid = launch::grid(n.div_ceil(TILE), caps);
    let launch = cuda("dequantize", grid, BLOCK, args, launch::words(n).map(|w| w as usize), 4 * n);
    CudaLaunch { defines: vec![launch::act(act), define], ..launch }
}
