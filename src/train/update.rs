//! The optimizer's part of a step's graph: parameters, gradients and state are flat, so that a launch updates many
//! tensors.

use crate::backend::Caps;
use crate::dtype::{ALIGN, Ty};
use crate::error::Result;
use crate::graph::{Graph, LeafKind, Phase, Val};
use crate::ops::{Attr, OpDef, optim};
use crate::train::loraplus::Group;
use crate::train::optimizer::{Optimizer, Rule};

/// A leaf that the host writes once, and what.
pub type Table = (Val, Vec<u32>);

/// A trained tensor, its gradient, and what it is updated like.
pub type Updated = (Val, Val, Group);

/// What the host writes for the updates.
pub struct Updates {
    /// Once, before the first step.
    pub tables: Vec<Table>,
    /// In each step: [`Optimizer::hyper`] of each group.
    pub hypers: Vec<(Val, Group)>,
}

/// Tensors that one node updates.
struct Flat {
    p: Val,
    grad: Val,
    /// Rows and columns of each tensor.
    tensors: Vec<(usize, usize)>,
    in_8_bits: bool,
    hyper: Val,
}

/// Appends the gradient's norm, the updates of `trained`, and the clearing of their gradients if these are `sums`. `hyper`
/// is the leaf of the first group.
pub fn update(
    g: &mut Graph,
    trained: &[Updated],
    (sum_squares, hyper): (Val, Val),
    sums: bool,
    optimizer: &Optimizer,
    caps: &Caps,
) -> Result<Updates> {
    g.phase = Phase::UPDATE;
    g.site = "optimizer".into();
    let mut hypers: Vec<(Val, Group)> = Vec::new();
    for &(_, _, group) in trained {
        if !hypers.iter().any(|h| h.1 == group) {
            let leaf = match hypers.len() {
                0 => hyper,
                i => g.leaf(LeafKind::Io, format!("hyper.{i}"), g.ty(hyper).clone()),
            };
            hypers.push((leaf, group));
        }
    }
    let mut flats = Vec::new();
    for in_8_bits in [true, false] {
        for &(hyper, group) in &hypers {
            let narrow = |p: Val| !group.wide && optimizer.rule.in_8_bits(g.ty(p).len());
            let members = trained.iter().filter(|t| t.2 == group && narrow(t.0) == in_8_bits);
            let members: Vec<(Val, Val)> = members.map(|t| (t.0, t.1)).collect();
            flatten(g, &members, (in_8_bits, hyper), caps, &mut flats);
        }
    }
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
            ins.extend([sum, flat.hyper]);
            let into: Vec<Option<Val>> = std::iter::once(flat.p).chain(state).map(Some).collect();
            g.node_into(op, Attr::None, &ins, &into)?;
        }
        if sums {
            g.zero(flat.grad)?;
        }
    }
    Ok(Updates { tables, hypers })
}

/// Lays tensors (and their gradients) of a kind flat: one stretch for all, or several where a device's largest buffer, or
/// what a 32-bit word can count, is smaller than that.
fn flatten(g: &mut Graph, members: &[(Val, Val)], (in_8_bits, hyper): (bool, Val), caps: &Caps, flats: &mut Vec<Flat>) {
    let most = caps.max_buffer.min(4 << 31);
    // Where a tensor may begin: a block of 8-bit state belongs to one tensor.
    let boundary = if in_8_bits { optim::BLOCK } else { ALIGN / 4 };
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
        flats.push(Flat { p, grad, tensors, in_8_bits, hyper });
        start = end;
    }
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
