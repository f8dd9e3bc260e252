//! The CUDA launches of the loss: for each block of tokens logits, softmax, and the products with its gradient; then
//! the sum of the tokens' losses.

use std::ops::Range;

use super::loss;
use crate::device::Caps;
use crate::dtype::{DType, Ty, align};
use crate::error::Result;
use crate::ops::linear::cuda::{Backward, Forward};
use crate::ops::tiles::Product;
use crate::ops::{Arg, CudaLaunch, Loss, Lower, Matmul, launch};

/// A block's tokens are a multiple of this, so that it is cut into whole tiles.
const TILE: usize = 128;
/// With fewer they are one of this, so that it starts on a multiple of 16 bytes of 16-bit activations.
const ALIGNED: usize = 8;

/// The scratch memory: a block of logits in f32, as large as the card's memory allows, since each block reads the whole
/// weight twice, and its products have as many rows as it has tokens; and the loss of each token. Logits in 16 bits would
/// take half of it, but what rounding takes from a logit of 20 changes its probability by that much, 4 % in bf16. Their
/// gradients are in the type of activations again, for the tensor cores, in the same rows.
pub struct Scratch {
    /// Tokens of a block.
    block: usize,
    /// Elements from row to row of the logits, and of their gradients: rows are aligned to 16 bytes.
    ld: usize,
    ld_grad: usize,
    logits: Range<u64>,
    losses: Range<u64>,
    pub bytes: u64,
}

impl Scratch {
    pub fn new(ins: &[Ty], caps: &Caps) -> Scratch {
        let (t, v) = (ins[0].rows(), ins[1].rows());
        let ld = v.next_multiple_of(8);
        let ld_grad = if ins[0].dtype == DType::F32 { ld } else { 2 * ld };
        let row = DType::F32.bytes(ld);
        let fits = caps.scratch() as usize / row;
        let step = if fits < TILE { ALIGNED } else { TILE };
        let block = (fits / step * step).max(step).min(t);
        let end = (block * row) as u64;
        let start = align(end as usize) as u64;
        let losses = start..start + 4 * t as u64;
        Scratch { block, ld, ld_grad, logits: 0..end, bytes: losses.end, losses }
    }
}

pub fn linear_cross_entropy(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (x, w) = (&l.ins[0], &l.ins[1]);
    let (t, d, v) = (x.rows(), x.cols(), w.rows());
    let Loss { grad_x, grad_w } = loss(l.attr);
    let scratch = Scratch::new(l.ins, l.caps);
    let logits = || Arg::Work(scratch.logits.clone());
    let losses = || Arg::Work(scratch.losses.clone());
    let kernel = |entry, rows: usize, block, args, params: Vec<usize>| CudaLaunch {
        file: "loss",
        defines: vec![launch::act(x)],
        entry,
        grid: launch::grid(rows, l.caps),
        block,
        shared: 0,
        args,
        params: params.into_iter().map(|p| p as u32).collect(),
        maps: Vec::new(),
        flops: 8 * (rows * v) as u64,
    };
    let mut all = Vec::new();
    for start in (0..t).step_by(scratch.block.max(1)) {
        let m = scratch.block.min(t - start);
        let rows = x.dtype.bytes(start * d) as u64..x.dtype.bytes((start + m) * d) as u64;
        let forward = Forward {
            dims: (m, v, d),
            act: x,
            y: logits(),
            ldy: scratch.ld,
            wide: true,
            x: Arg::InPart(0, rows.clone()),
            w: launch::weight(1, w),
            bias: None,
            acc: None,
            low: None,
        };
        all.extend(forward.launches(l.caps));
        let params = vec![m, v, scratch.ld, start, (grad_x || grad_w) as usize];
        let threads = v.div_ceil(8).next_multiple_of(32).clamp(32, 1024) as u32;
        all.push(kernel("loss_softmax", m, threads, vec![logits(), losses(), Arg::In(2)], params));
        if grad_x {
            let backward = Backward {
                dims: (m, v, d),
                act: x,
                dx: Arg::OutPart(1, rows.clone()),
                dy: logits(),
                ldy: scratch.ld_grad,
                w: launch::weight(1, w),
                low: None,
                dropout: None,
                factor: Some(Arg::In(3)),
            };
            all.extend(backward.launches(l.caps));
        }
        if grad_w {
            let dw = Arg::Out(1 + grad_x as usize);
            let product = Product {
                spec: Matmul { ta: true, tb: false, alpha: 1.0, acc: false },
                dims: (v, d, m),
                act: x,
                c: dw.clone(),
                a: logits(),
                lda: scratch.ld_grad,
                b: Arg::InPart(0, rows),
                acc: (start > 0).then_some(dw),
                dropout: None,
                factor: Some(Arg::In(3)),
                turned: false,
            };
            all.extend(product.launches(l.caps));
        }
    }
    let threads = t.next_multiple_of(32).clamp(32, 1024) as u32;
    all.push(kernel("loss_total", 1, threads, vec![Arg::Out(0), losses(), Arg::In(3)], vec![t]));
    Ok(all)
}
