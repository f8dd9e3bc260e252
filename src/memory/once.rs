//! A step of one micro-batch: its gradients are no sums over micro-batches. They are written where they used to be added
//! to, need no clearing, and are there only from the node that writes them to the update. So their flat stretches lie
//! in the arena: a layer's gradients take the place of activations of layers behind it, which the backward pass is
//! through with by then.
//!
//! 0 + x is x, so no bit of a result changes.

use std::collections::{HashMap, HashSet};

use crate::dtype::{ALIGN, Ty};
use crate::error::Result;
use crate::graph::program::Program;
use crate::graph::{Def, Graph, LeafKind, Node, Phase, Val};
use crate::ops::{OpRole, elementwise};

/// Rewrites `step`, whose phase MICRO is then run exactly once before each UPDATE.
pub fn once(step: &mut Program) -> Result<()> {
    let g = &mut step.graph;
    let outer = (g.phase, g.site.clone(), g.block);
    // Gradients that were added to their leaf by a node of its own: (gradient, leaf, that node).
    let mut added: Vec<(Val, Val, Node)> = Vec::new();
    for mut node in std::mem::take(&mut g.nodes) {
        let target = node.into.first().copied().flatten().filter(|&t| is_gradient(g, t));
        match target {
            Some(t) if node.op.role == OpRole::Clear => g.values[node.outs[0].index()].def = whole(t),
            Some(t) if std::ptr::eq(node.op, &elementwise::ADD) => added.push((node.ins[1], t, node)),
            Some(t) => {
                if let Some(attr) = node.op.accumulating(&node.attr, false).filter(|_| node.ins.last() == Some(&t)) {
                    node.attr = attr;
                    node.ins.pop();
                }
                g.keep(node);
            }
            None => g.keep(node),
        }
    }
    let mut taken = HashSet::new();
    let mut left = Vec::new();
    for (gradient, t, node) in added {
        if taken.insert(gradient) && put(g, gradient, t) {
            g.values[node.outs[0].index()].def = whole(t);
        } else {
            left.push((t, node));
        }
    }
    // What no node can write there by itself is added to zeros.
    let update = g.nodes.iter().take_while(|n| n.phase == Phase::MICRO).count();
    let behind = g.nodes.split_off(update);
    for (t, mut node) in left {
        (g.phase, g.block) = (node.phase, node.block);
        g.site.clone_from(&node.site);
        node.ins[0] = g.zero(t)?;
        g.keep(node);
    }
    behind.into_iter().for_each(|n| g.keep(n));
    let before = fill_gaps(g)?;
    step.forward += before.iter().filter(|&&at| at < step.forward).count();
    for value in g.values.iter_mut().filter(|v| v.def == Def::Leaf(LeafKind::Grad)) {
        value.transient = true;
    }
    (g.phase, g.site, g.block) = outer;
    Ok(())
}

fn is_gradient(g: &Graph, v: Val) -> bool {
    g.value(g.root(v).0).def == Def::Leaf(LeafKind::Grad)
}

fn whole(of: Val) -> Def {
    Def::View { of, start: 0 }
}

/// Lets the node that computes `v` write it to `to`, and so the node before it that only adds it up there, if its op
/// may work in place. Whether `v` is such a node's.
fn put(g: &mut Graph, v: Val, to: Val) -> bool {
    let Def::Node { node, out } = g.value(v).def else { return false };
    if g.nodes[node].into[out].is_some() || g.ty(v) != g.ty(to) {
        return false;
    }
    g.nodes[node].into[out] = Some(to);
    let pairs = g.nodes[node].op.in_place.iter().filter(|p| p.1 == out);
    let inputs: Vec<Val> = pairs.filter_map(|p| g.nodes[node].ins.get(p.0).copied()).collect();
    for input in inputs {
        let readers = g.nodes.iter().flat_map(|n| &n.ins).filter(|&&i| g.root(i).0 == input).count();
        if readers == 1 && put(g, input, to) {
            break;
        }
    }
    true
}

/// Clears the gaps behind tensors that do not fill their boundary, because updates read flat stretches. Returns the
/// nodes before which it does, by number.
fn fill_gaps(g: &mut Graph) -> Result<Vec<usize>> {
    // By flat leaf: where nodes write, and which.
    let mut written: HashMap<Val, Vec<(usize, usize, usize)>> = HashMap::new();
    for (index, node) in g.nodes.iter().enumerate() {
        for &t in node.into.iter().flatten().filter(|&&t| is_gradient(g, t)) {
            let (root, start) = g.root(t);
            written.entry(root).or_default().push((start, start + g.ty(t).len(), index));
        }
    }
    // What to clear: before which node, in which leaf, from where to where.
    let mut gaps: Vec<(usize, Val, usize, usize)> = Vec::new();
    let update = g.nodes.iter().take_while(|n| n.phase == Phase::MICRO).count();
    for (flat, mut ranges) in written {
        ranges.sort();
        ranges.push((g.ty(flat).len(), usize::MAX, update));
        let (mut end, mut first) = (0, update);
        for (from, to, node) in ranges {
            if from > end {
                // From a boundary on, so that every device can bind it, and before a tensor is written that ends there.
                gaps.push((first, flat, end / (ALIGN / 4) * (ALIGN / 4), from));
            }
            if to > end {
                (end, first) = (to, node);
            }
        }
    }
    gaps.sort();
    let mut todo = gaps.iter().peekable();
    for (index, node) in std::mem::take(&mut g.nodes).into_iter().enumerate() {
        while let Some(&(_, flat, from, to)) = todo.next_if(|gap| gap.0 == index) {
            (g.phase, g.block) = (node.phase, node.block);
            g.site = g.value(flat).name.clone();
            let gap = g.view(flat, from, Ty::f32(&[to - from]));
            g.zero(gap)?;
        }
        g.keep(node);
    }
    Ok(gaps.into_iter().map(|gap| gap.0).collect())
}
