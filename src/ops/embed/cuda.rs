//! The CUDA launches of rows and columns by index: mostly a block a token.

use super::{grad, scale};
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::ops::elementwise::CAST;
use crate::ops::{Arg, CudaLaunch, Lower, launch};

/// Threads of a block, each of which takes four columns at a time.
const BLOCK: usize = 256;

fn threads(cols: usize) -> u32 {
    cols.div_ceil(4).next_multiple_of(32).min(BLOCK) as u32
}

pub fn embed(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (tokens, rows, cols) = (l.ins[0].len(), l.ins[1].rows(), l.ins[1].cols());
    let (define, _) = launch::weight(1, &l.ins[1]);
    Ok(vec![CudaLaunch {
        file: "embed",
        defines: vec![define],
        entry: "embed",
        grid: launch::grid(tokens, l.caps),
        block: threads(cols),
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0), Arg::In(1)],
        params: vec![tokens as u32, cols as u32, rows as u32, scale(l.attr).to_bits()],
        maps: Vec::new(),
        flops: l.outs[0].len() as u64,
    }])
}

fn rows(
    entry: &'static str,
    grid: [u32; 3],
    block: usize,
    args: Vec<Arg>,
    params: Vec<u32>,
    flops: usize,
) -> CudaLaunch {
    CudaLaunch {
        file: "embed_rows",
        defines: Vec::new(),
        entry,
        grid,
        block: block as u32,
        shared: 0,
        args,
        params,
        maps: Vec::new(),
        flops: flops as u64,
    }
}

/// Makes output `out` a copy of input `from`, or zeros.
pub fn start(l: &Lower, out: usize, from: Arg) -> CudaLaunch {
    // By words: 16-bit types fill their last one.
    let words = l.outs[out].bytes().div_ceil(4);
    let grid = launch::grid(words.div_ceil(4 * BLOCK), l.caps);
    rows("start", grid, BLOCK, vec![Arg::Out(out), from], launch::words(words).to_vec(), words)
}

/// What a table's gradient starts from in output 0, unless that is there already.
fn start_sums(l: &Lower) -> Vec<CudaLaunch> {
    match (grad(l.attr).acc, l.shared[0]) {
        (true, Some(_)) => Vec::new(),
        (true, None) => vec![start(l, 0, Arg::In(2))],
        (false, _) => vec![start(l, 0, Arg::Absent)],
    }
}

/// Adds the sum of the rows of each id to output 0, to a row or a column of it.
fn sums(l: &Lower, file: &'static str, entry: &'static str) -> CudaLaunch {
    let (e, tokens, cols) = (grad(l.attr), l.ins[0].len(), l.ins[1].cols());
    let [x, y, _] = launch::grid(tokens, l.caps);
    let grid = [x, y, cols.div_ceil(4 * BLOCK) as u32];
    let params = vec![tokens as u32, cols as u32, e.rows as u32, e.scale.to_bits()];
    let args = vec![Arg::Out(0), Arg::In(0), Arg::In(1)];
    CudaLaunch { file, ..rows(entry, grid, BLOCK, args, params, 2 * l.ins[1].len()) }
}

pub fn embed_dw(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let mut all = start_sums(l);
    all.push(sums(l, "embed_rows", "embed_dw"));
    Ok(all)
}

pub fn embed_cols(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (n, rank, columns) = (l.outs[0].len(), l.ins[1].rows(), l.ins[1].cols());
    let words = launch::words(n).into_iter().chain([rank as u32, columns as u32, scale(l.attr).to_bits()]);
    let grid = launch::grid(n.div_ceil(4 * BLOCK), l.caps);
    let args = vec![Arg::Out(0), Arg::In(0), Arg::In(1)];
    Ok(vec![CudaLaunch { file: "embed_cols", ..rows("embed_cols", grid, BLOCK, args, words.collect(), n) }])
}

pub fn embed_cols_dw(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let mut all = start_sums(l);
    all.push(sums(l, "embed_cols", "embed_cols_dw"));
    Ok(all)
}

pub fn token_rows(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (n, tokens) = (l.ins[0].len(), l.ins[1].len());
    let grid = launch::grid(n.div_ceil(BLOCK), l.caps);
    let args = vec![Arg::Out(0), Arg::Out(1), Arg::In(0), Arg::In(1)];
    let params = vec![n as u32, tokens as u32];
    Ok(vec![CudaLaunch { file: "embed_tokens", ..rows("token_rows", grid, BLOCK, args, params, n * tokens) }])
}

/// The table in f32, and the rows over it.
pub fn replace_rows(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let mut all = match l.ins[0].dtype {
        DType::F32 => vec![start(l, 0, Arg::In(0))],
        _ => (CAST.cuda)(l)?,
    };
    all.push(write_rows(l));
    Ok(all)
}

/// Row n of input 1 becomes row p of output 0, p element n of input 2.
fn write_rows(l: &Lower) -> CudaLaunch {
    let (tokens, y) = (l.ins[2].len(), &l.outs[0]);
    // Exactly, also where a 16-bit type's last word is half full.
    let bytes = Ty::new(y.dtype, &[2, y.cols()]).bytes() / 2;
    let params = vec![tokens as u32, y.rows() as u32, bytes as u32];
    let args = vec![Arg::Out(0), Arg::In(1), Arg::In(2)];
    let block = threads(y.cols()) as usize;
    rows("cache_write", launch::grid(tokens, l.caps), block, args, params, l.ins[1].len())
}

pub fn cache_write(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let mut all = match l.shared[0] {
        Some(_) => Vec::new(),
        None => vec![start(l, 0, Arg::In(0))],
    };
    all.push(write_rows(l));
    Ok(all)
}
