//! The WGSL launches: a workgroup for each row, or for each range and column; then the sum of their losses.

use std::ops::Range;

use super::grad_x;
use crate::error::Result;
use crate::ops::launch::{bytes, grid, rows};
use crate::ops::{Arg, Lower, WgslDispatch, embed};

fn dispatch(
    l: &Lower,
    entry: &'static str,
    defines: Vec<&'static str>,
    groups: usize,
    (width, args, params): (usize, Vec<Arg>, Vec<usize>),
) -> WgslDispatch {
    // A power of two that leaves few invocations idle.
    let width = width.next_power_of_two().clamp(32, 256).min(l.caps.max_invocations.max(32) as usize);
    WgslDispatch {
        shader: "logit_loss",
        defines,
        entry,
        constants: vec![("WG", width as f64)],
        grid: grid(groups, l.caps),
        args,
        flops: 8 * (groups * params[2]) as u64,
        params: params.into_iter().map(|p| p as u32).collect(),
    }
}

fn losses(count: usize) -> Arg {
    Arg::Work(0..4 * count as u64)
}

/// loss = inv·Σ of `count` losses.
fn total(count: usize, inv: usize) -> WgslDispatch {
    WgslDispatch {
        shader: "loss",
        defines: vec!["TOTAL"],
        entry: "total",
        constants: Vec::new(),
        grid: [1, 1, 1],
        args: vec![Arg::Out(0), losses(count), Arg::In(inv)],
        params: vec![count as u32],
        flops: count as u64,
    }
}

/// A workgroup for each row. `more`: what is bound after the losses; the factor is the op's last operand.
fn over_rows(
    l: &Lower,
    entry: &'static str,
    define: &'static str,
    more: impl Fn(Range<u64>) -> Vec<Arg>,
) -> Vec<WgslDispatch> {
    let (n, cols, inv) = (l.ins[0].rows(), l.ins[0].cols(), l.ins.len() - 1);
    let one = |range: Range<usize>| {
        let part = bytes(&range, cols);
        let (mut defines, mut args) = (vec![define], Vec::new());
        if grad_x(l.attr) {
            defines.push("GRAD");
            args.push(Arg::OutPart(1, part.clone()));
        }
        match l.shared.get(1).copied().flatten() {
            Some(_) => defines.push("INPLACE"),
            None => args.push(Arg::InPart(0, part.clone())),
        }
        args.push(losses(n));
        args.extend(more(part));
        args.extend(grad_x(l.attr).then_some(Arg::In(inv)));
        dispatch(l, entry, defines, range.len(), (cols, args, vec![range.len(), range.start, cols]))
    };
    rows(n, cols, l.caps).into_iter().map(one).chain([total(n, inv)]).collect()
}

pub fn cross_entropy(l: &Lower) -> Result<Vec<WgslDispatch>> {
    Ok(over_rows(l, "cross_entropy", "SOFTMAX", |_| vec![Arg::In(1)]))
}

pub fn elements(l: &Lower, entry: &'static str, define: &'static str) -> Result<Vec<WgslDispatch>> {
    Ok(over_rows(l, entry, define, |part| vec![Arg::InPart(1, part), Arg::In(2)]))
}

/// The logits are bound whole: C is small.
pub fn range_cross_entropy(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (t, cols, count) = (l.ins[0].rows(), l.ins[0].cols(), l.ins[2].len());
    let (mut all, mut defines, mut args) = (Vec::new(), vec!["RANGE"], Vec::new());
    if grad_x(l.attr) {
        all.extend(embed::start(l, 1, None));
        defines.push("GRAD");
        args.push(Arg::Out(1));
    }
    args.extend([Arg::In(0), losses(count), Arg::In(1), Arg::In(2)]);
    args.extend(grad_x(l.attr).then_some(Arg::In(3)));
    let ranges = dispatch(l, "range_cross_entropy", defines, count, (t, args, vec![t, count, cols]));
    all.push(WgslDispatch { flops: 8 * (t * cols) as u64, ..ranges });
    all.push(total(count, 3));
    Ok(all)
}
