//! The optimizer's part of a step's graph: parameters, gradients and state lie flat, so that a launch updates many
//! tensors.

use crate::backend::Caps;
use crate::dtype::{ALIGN, Ty};
use crate::error::Result;
use crate::graph::{Graph, LeafKind, Phase, Val};
use crate::ops::{Attr, OpDef, optim};
use crate::train::optimizer::{Optimizer, Rule};

/// A leaf that the host writes once, and what.
pub type Table = (Val, Vec<u32>);

/// Tensors that one node updates.
struct Flat {
    p: Val,
    grad: Val,
    /// Rows and columns of each tensor.
    tensors: Vec<(usize, usize)>,
    in_8_bits: bool,
}

/// Appends the gradient's norm, the update of `params` by `grads`, and the clearing of these if they are `sums`. Returns
/// the tables to write before the first step.
pub fn update(
    g: &mut Graph,
    (params, grads): (&[Val], &[Val]),
    (sum_squares, hyper): (Val, Val),
    sums: bool,
    optimizer: &Optimizer,
    caps: &Caps,
) -> Result<Vec<Table>> {
    g.phase = Phase::UPDATE;
    g.site = "optimizer".into();
    let flats = flats(g, params, grads, &optimizer.rule, caps);
    let mut sum = None;
    for (i, flat) in flats.iter().enumerate() {
        let into = (i + 1 == flats.len()).then_some(sum_squares);
        let ins: Vec<Val> = [Some(flat.grad), sum].into_iter().flatten().collect();
        sum = Some(g.node_into(&optim::SUM_SQUARES, Attr::Acc(sum.is_some()), &ins, &[into])?[0]);
    }
    let mut tables = Vec::new();
    for (i, flat) in flats.iter().enumerate() {
        if let Some(sum) = sum {
            let (op, state) = state(g, i, flat, &optimizer.rule);
            let mut ins = vec![flat.p, flat.grad];
            ins.extend(&state);
            if matches!(optimizer.rule, Rule::Adafactor { .. }) {
                let words = optim::table(&flat.tensors).0;
                let ty = Ty::u32(&[flat.tensors.len(), words.len() / flat.tensors.len().max(1)]);
                let table = g.leaf(LeafKind::Io, format!("tensors.{i}"), ty);
                ins.push(table);
                tables.push((table, words));
            }
            ins.extend([sum, hyper]);
            let into: Vec<Option<Val>> = std::iter::once(flat.p).chain(state).map(Some).collect();
            g.node_into(op, Attr::None, &ins, &into)?;
        }
        if sums {
            g.zero(flat.grad)?;
        }
    }
    Ok(tables)
}

/// Lays the tensors flat: those with 8-bit state apart from the others; one stretch for all of a kind, or several where
/// a device's largest buffer, or what a 32-bit word can count, is smaller than that.
fn flats(g: &mut Graph, params: &[Val], grads: &[Val], rule: &Rule, caps: &Caps) -> Vec<Flat> {
    let most = caps.max_buffer.min(4 << 31);
    let mut flats: Vec<Flat> = Vec::new();
    for in_8_bits in [true, false] {
        // Where a tensor may begin: a block of 8-bit state belongs to one tensor.
        let boundary = if in_8_bits { optim::BLOCK } else { ALIGN / 4 };
        let pairs = params.iter().copied().zip(grads.iter().copied());
        let members: Vec<(Val, Val)> = pairs.filter(|&(p, _)| rule.in_8_bits(g.ty(p).len()) == in_8_bits).collect();
        let mut start = 0;
        while start < members.len() {
            let room = |(p, _): (Val, Val)| 4 * g.ty(p).len().next_multiple_of(boundary) as u64;
            let mut bytes = room(members[start]);
            let mut end = start + 1;
            while end < members.len() && bytes + room(members[end]) <= most {
                bytes += room(members[end]);
                end += 1;
            }
            let i = flats.len();
            let (ps, ds): (Vec<Val>, Vec<Val>) = members[start..end].iter().copied().unzip();
            let tensors = ps.iter().map(|&p| (g.ty(p).rows(), g.ty(p).cols())).collect();
            let p = g.flatten(LeafKind::Param, &format!("params.{i}"), &ps, boundary);
            let grad = g.flatten(LeafKind::Grad, &format!("grads.{i}"), &ds, boundary);
            flats.push(Flat { p, grad, tensors, in_8_bits });
            start = end;
        }
    }
    flats
}

/// The row that updates a stretch, and its state.
fn state(g: &mut Graph, i: usize, flat: &Flat, rule: &Rule) -> (&'static OpDef, Vec<Val>) {
    let n = g.ty(flat.p).len();
    let floats = |len: usize| Ty::f32(&[len]);
    let codes = || Ty::u32(&[n / 4]);
    let scales = || floats(n / optim::BLOCK);
    let mut leaf = |name: &str, ty: Ty| g.leaf(LeafKind::Optim, format!("{name}.{i}"), ty);
    match (rule, flat.in_8_bits) {
        (Rule::AdamW { .. }, false) => (&optim::ADAMW, vec![leaf("exp_avg", floats(n)), leaf("exp_avg_sq", floats(n))]),
        (Rule::AdamW { .. }, true) => {
            let m = [leaf("exp_avg", codes()), leaf("exp_avg.absmax", scales())];
            let v = [leaf("exp_avg_sq", codes()), leaf("exp_avg_sq.absmax", scales())];
            (&optim::ADAMW_8BIT, [m, v].concat())
        }
        (Rule::Lion { .. }, false) => (&optim::LION, vec![leaf("exp_avg", floats(n))]),
        (Rule::Lion { .. }, true) => {
            (&optim::LION_8BIT, vec![leaf("exp_avg", codes()), leaf("exp_avg.absmax", scales())])
        }
        (Rule::Sgd { momentum: 0.0, .. }, _) => (&optim::SGD, Vec::new()),
        (Rule::Sgd { .. }, _) => (&optim::SGD_MOMENTUM, vec![leaf("momentum_buffer", floats(n))]),
        (Rule::Adafactor { .. }, _) => {
            let [_, rows, cols] = optim::table(&flat.tensors).1;
            (&optim::ADAFACTOR, vec![leaf("exp_avg_sq_row", floats(rows)), leaf("exp_avg_sq_col", floats(cols))])
        }
    }
}
