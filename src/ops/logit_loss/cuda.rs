//! The CUDA launches: a block for each row, or for each range and column; then the sum of their losses.

use super::grad_x;
use crate::error::Result;
use crate::ops::{Arg, CudaLaunch, Lower, embed, launch};

fn cuda(
    file: &'static str,
    entry: &'static str,
    (grid, threads): ([u32; 3], usize),
    args: Vec<Arg>,
    params: Vec<usize>,
    flops: usize,
) -> CudaLaunch {
    CudaLaunch {
        file,
        defines: if file == "loss" { vec![("ACT", 0)] } else { Vec::new() },
        entry,
        grid,
        block: threads.next_multiple_of(32).clamp(32, 1024) as u32,
        shared: 0,
        args,
        params: params.into_iter().map(|p| p as u32).collect(),
        maps: Vec::new(),
        flops: flops as u64,
    }
}

fn losses(count: usize) -> Arg {
    Arg::Work(0..4 * count as u64)
}

fn gradient(l: &Lower) -> Arg {
    if grad_x(l.attr) { Arg::Out(1) } else { Arg::Absent }
}

/// loss = inv·Σ of `count` losses.
fn total(count: usize, inv: usize) -> CudaLaunch {
    cuda("loss", "loss_total", ([1, 1, 1], count), vec![Arg::Out(0), losses(count), Arg::In(inv)], vec![count], count)
}

/// A block for each row. `more`: its operands between the logits and the factor, which is the op's last.
fn over_rows(l: &Lower, entry: &'static str, more: Vec<Arg>) -> Vec<CudaLaunch> {
    let (n, cols, inv) = (l.ins[0].rows(), l.ins[0].cols(), l.ins.len() - 1);
    let args = [gradient(l), losses(n), Arg::In(0)].into_iter().chain(more).chain([Arg::In(inv)]).collect();
    let blocks = (launch::grid(n, l.caps), cols.div_ceil(8));
    vec![cuda("logit_loss", entry, blocks, args, vec![n, cols], 8 * l.ins[0].len()), total(n, inv)]
}

pub fn cross_entropy(l: &Lower) -> Result<Vec<CudaLaunch>> {
    Ok(over_rows(l, "cross_entropy", vec![Arg::In(1)]))
}

pub fn elements(l: &Lower, entry: &'static str) -> Result<Vec<CudaLaunch>> {
    Ok(over_rows(l, entry, vec![Arg::In(1), Arg::In(2)]))
}

pub fn range_cross_entropy(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (t, cols, count) = (l.ins[0].rows(), l.ins[0].cols(), l.ins[2].len());
    let mut all = Vec::new();
    all.extend(grad_x(l.attr).then(|| embed::cuda::start(l, 1, Arg::Absent)));
    let args = vec![gradient(l), losses(count), Arg::In(0), Arg::In(1), Arg::In(2), Arg::In(3)];
    let blocks = (launch::grid(count, l.caps), t.div_ceil(8));
    all.push(cuda("logit_loss", "range_cross_entropy", blocks, args, vec![t, count, cols], 8 * l.ins[0].len()));
    all.push(total(count, 3));
    Ok(all)
}
