//! Reverse-mode differentiation: graph in, graph out.
//!
//! One walk over the nodes, last to first. A node whose outputs have no gradient is passed over; so is a value that
//! no trainable tensor reaches, which is why frozen weights cost nothing here. A gradient that is wanted and not
//! given is an error, never a silent zero.

use crate::error::{Error, Result};
use crate::graph::{Def, Graph, LeafKind, Node, Val, batch};
use crate::ops::{Grad, elementwise};

/// Appends the nodes that compute the gradients of `wrt` (leaves) from the gradients `seeds` of some outputs:
/// pairs (value, its gradient). A leaf that no seed depends on gets None.
pub fn backward(g: &mut Graph, seeds: &[(Val, Val)], wrt: &[Val]) -> Result<Vec<Option<Val>>> {
    let mut grads: Vec<Option<Val>> = vec![None; g.values.len()];
    for &(v, dv) in seeds {
        add(g, &mut grads, wrt, v, dv, true)?;
    }
    let outer = g.block;
    let mut end = g.nodes.len();
    while end > 0 {
        let start = batch::start(g, end);
        let mut lists = Vec::with_capacity(end - start);
        for index in (start..end).rev() {
            let first = g.nodes.len();
            differentiate(g, &mut grads, wrt, index)?;
            lists.push(first..g.nodes.len());
        }
        // What a batch's gradients need of one another are sums only, so they make batches as well.
        batch::interleave(g, &lists);
        end = start;
    }
    g.block = outer;
    Ok(wrt.iter().map(|v| grads[v.index()]).collect())
}

/// Appends the backward nodes of node `index`, if a gradient reaches it and something that is trained reaches it too.
fn differentiate(g: &mut Graph, grads: &mut Vec<Option<Val>>, wrt: &[Val], index: usize) -> Result<()> {
    let node = g.nodes[index].clone();
    let dys: Vec<Option<Val>> = node.outs.iter().map(|o| grads[o.index()]).collect();
    let wants: Vec<bool> = node.ins.iter().map(|&v| g.needs_grad(v)).collect();
    if dys.iter().all(Option::is_none) || !wants.contains(&true) {
        return Ok(());
    }
    let input = wants.iter().position(|w| *w).unwrap_or(0);
    let Grad::Rule(rule) = node.op.grad else { return Err(missing(g, &node, input)) };
    g.block = node.block;
    let gradients = g.at(node.site.clone(), |g| rule(g, &node, &dys, &wants))?;
    for (i, &v) in node.ins.iter().enumerate() {
        match gradients.get(i).copied().flatten() {
            Some(dv) if wants[i] => {
                let own = gradients.iter().zip(&wants).filter(|(other, w)| **w && **other == Some(dv)).count() == 1;
                g.at(node.site.clone(), |g| add(g, grads, wrt, v, dv, own))?;
            }
            None if wants[i] => return Err(missing(g, &node, i)),
            _ => {}
        }
    }
    Ok(())
}

/// Adds `grad` to the leaf `sum`, which keeps its place: how gradients add up over micro-batches.
pub fn accumulate(g: &mut Graph, sum: Val, grad: Val) -> Result<()> {
    if let Some(node) = fold(g, sum, grad) {
        g.nodes[node].into[0] = Some(sum);
        return Ok(());
    }
    g.node_into(&elementwise::ADD, crate::ops::Attr::None, &[sum, grad], &[Some(sum)]).map(drop)
}

/// The sum `y` of two values, if it was the last thing built and its second term is of a node that can add the first itself and is
/// read by nothing else: then that node does, and its output is the sum.
pub fn absorb(g: &mut Graph, y: Val) -> Val {
    let last = |node: &Node| std::ptr::eq(node.op, &elementwise::ADD) && node.outs == [y];
    if !g.nodes.last().is_some_and(last) || y.index() + 1 != g.values.len() {
        return y;
    }
    let (Some(node), Some(value)) = (g.nodes.pop(), g.values.pop()) else { return y };
    let (sum, term) = (node.ins[0], node.ins[1]);
    if fold(g, sum, term).is_some() {
        return term;
    }
    g.values.push(value);
    g.nodes.push(node);
    y
}

/// Adds `dv` to the gradient of `v`, or of what `v` views as a whole. What is in `wrt` keeps its own: it may be a view of
/// a flat leaf. `own`: no other operand of the node has `dv` for its gradient.
fn add(g: &mut Graph, grads: &mut Vec<Option<Val>>, wrt: &[Val], v: Val, dv: Val, own: bool) -> Result<()> {
    let value = g.value(v);
    if let Def::View { of, start: 0 } = value.def
        && g.ty(of).len() == value.ty.len()
        && !wrt.contains(&v)
    {
        let shape = g.shape(of).to_vec();
        let dv = g.reshape(dv, &shape)?;
        return add(g, grads, wrt, of, dv, own);
    }
    grads.resize(g.values.len().max(grads.len()), None);
    // A sum that is folded into `dv` would be in every gradient that `dv` is.
    let is_shared = |g: &Graph| !own || grads.iter().flatten().any(|&other| g.root(other).0 == dv);
    grads[v.index()] = Some(match grads[v.index()] {
        None => dv,
        Some(sum) if !is_shared(g) && fold(g, sum, dv).is_some() => dv,
        Some(sum) => g.add(sum, dv)?,
    });
    Ok(())
}

/// GEMM's beta = 1: lets the node that computes `term` add `sum` itself, if its op can and nothing reads `term` yet.
fn fold(g: &mut Graph, sum: Val, term: Val) -> Option<usize> {
    let Def::Node { node, out: 0 } = g.value(term).def else { return None };
    let defined_before = match g.value(g.root(sum).0).def {
        Def::Node { node: other, .. } => other < node,
        _ => true,
    };
    let unread = g.nodes[node + 1..].iter().all(|n| n.ins.iter().all(|&i| g.root(i).0 != term));
    let same = g.ty(sum) == g.ty(term);
    let attr = g.nodes[node].op.accumulating(&g.nodes[node].attr, true)?;
    if !(defined_before && unread && same) {
        return None;
    }
    g.nodes[node].attr = attr;
    g.nodes[node].ins.push(sum);
    g.values[term.index()].needs_grad |= g.needs_grad(sum);
    Some(node)
}

fn missing(g: &Graph, node: &Node, input: usize) -> Error {
    Error::NoGradient {
        op: node.op.name,
        site: node.site.clone(),
        input,
        parameter: trainable_behind(g, node.ins[input]).unwrap_or_else(|| g.value(node.ins[input]).name.clone()),
    }
}

/// The name of a trainable leaf that reaches `v`.
fn trainable_behind(g: &Graph, v: Val) -> Option<String> {
    let (root, _) = g.root(v);
    match g.value(root).def {
        Def::Leaf(LeafKind::Param) => Some(g.value(v).name.clone()),
        Def::Node { node, .. } => {
            let reached = g.nodes[node].ins.iter().find(|&&i| g.needs_grad(i))?;
            trainable_behind(g, *reached)
        }
        _ => None,
    }
}
