//! The CUDA launches of rows by index: a block a token.

use super::{grad, scale};
use crate::dtype::Ty;
use crate::error::Result;
use crate::ops::{Arg, Cuda, Lower, launch};

/// Threads of a block, each of which takes four columns at a time.
const BLOCK: usize = 256;

fn threads(cols: usize) -> u32 {
    cols.div_ceil(4).next_multiple_of(32).min(BLOCK) as u32
}

pub fn embed(l: &Lower) -> Result<Vec<Cuda>> {
    let (tokens, rows, cols) = (l.ins[0].len(), l.ins[1].rows(), l.ins[1].cols());
    let (define, _) = launch::weight(1, &l.ins[1]);
    Ok(vec![Cuda {
        file: "embed",
        defines: vec![define],
        entry: "embed",
        grid: launch::grid(tokens, l.caps),
        block: threads(cols),
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0), Arg::In(1)],
        params: vec![tokens as u32, cols as u32, rows as u32, scale(l.attr).to_bits()],
        flops: l.outs[0].len() as u64,
    }])
}

fn rows(entry: &'static str, grid: [u32; 3], block: usize, args: Vec<Arg>, params: Vec<u32>, flops: usize) -> Cuda {
    Cuda {
        file: "embed_rows",
        defines: Vec::new(),
        entry,
        grid,
        block: block as u32,
        shared: 0,
        args,
        params,
        flops: flops as u64,
    }
}

/// Makes output 0 a copy of input `from`, or zeros.
fn start(l: &Lower, from: Arg) -> Cuda {
    // By words: 16-bit types fill their last one.
    let words = l.outs[0].bytes().div_ceil(4);
    let grid = launch::grid(words.div_ceil(4 * BLOCK), l.caps);
    rows("start", grid, BLOCK, vec![Arg::Out(0), from], launch::words(words).to_vec(), words)
}

pub fn embed_dw(l: &Lower) -> Result<Vec<Cuda>> {
    let (e, tokens, cols) = (grad(l.attr), l.ins[0].len(), l.ins[1].cols());
    let mut all = match (e.acc, l.shared[0]) {
        (true, Some(_)) => Vec::new(),
        (true, None) => vec![start(l, Arg::In(2))],
        (false, _) => vec![start(l, Arg::Absent)],
    };
    let [x, y, _] = launch::grid(tokens, l.caps);
    let grid = [x, y, cols.div_ceil(4 * BLOCK) as u32];
    let params = vec![tokens as u32, cols as u32, e.rows as u32, e.scale.to_bits()];
    let args = vec![Arg::Out(0), Arg::In(0), Arg::In(1)];
    all.push(rows("embed_dw", grid, BLOCK, args, params, 2 * l.ins[1].len()));
    Ok(all)
}

pub fn cache_write(l: &Lower) -> Result<Vec<Cuda>> {
    let (tokens, cache) = (l.ins[2].len(), &l.outs[0]);
    // Exactly, also where a 16-bit type's last word is half full.
    let bytes = Ty::new(cache.dtype, &[2, cache.cols()]).bytes() / 2;
    let mut all = match l.shared[0] {
        Some(_) => Vec::new(),
        None => vec![start(l, Arg::In(0))],
    };
    let params = vec![tokens as u32, cache.rows() as u32, bytes as u32];
    let args = vec![Arg::Out(0), Arg::In(1), Arg::In(2)];
    let block = threads(cache.cols()) as usize;
    all.push(rows("cache_write", launch::grid(tokens, l.caps), block, args, params, l.ins[1].len()));
    Ok(all)
}
