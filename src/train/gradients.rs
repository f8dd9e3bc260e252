//! Gradients of a step of one micro-batch: they are no sums over micro-batches, so each is written by the node that
//! computes it, needs no clearing, and is there only from that node to the update. Their flat leaves are transient: their
//! parts are in the arena, where a layer's gradients take the place of activations that the backward pass is through with.
//!
//! 0 + x is x, so no bit of a result differs from that of a step whose gradients are added up.

use crate::dtype::{ALIGN, Ty};
use crate::error::Result;
use crate::graph::{Def, Graph, Val};
use crate::ops::{Attr, elementwise};

/// Makes `gradient` what the leaf `to` holds.
pub fn write(g: &mut Graph, to: Val, gradient: Val) -> Result<()> {
    if !redirect(g, gradient, to) {
        // What no node can write there by itself is added to zeros.
        let zeros = g.zero(to)?;
        g.node_into(&elementwise::ADD, Attr::None, &[zeros, gradient], &[Some(to)])?;
    }
    Ok(())
}

/// Lets the node that computes `v` write it to `to`, and so the node before it that only adds it up there, if its op
/// may work in place. Whether `v` is such a node's.
fn redirect(g: &mut Graph, v: Val, to: Val) -> bool {
    let Def::Node { node, out } = g.value(v).def else { return false };
    if g.nodes[node].into[out].is_some() || g.ty(v) != g.ty(to) {
        return false;
    }
    g.nodes[node].into[out] = Some(to);
    let pairs = g.nodes[node].op.in_place.iter().filter(|p| p.1 == out);
    let inputs: Vec<Val> = pairs.filter_map(|p| g.nodes[node].ins.get(p.0).copied()).collect();
    for input in inputs {
        let readers = g.nodes.iter().flat_map(|n| &n.ins).filter(|&&i| g.root(i).0 == input).count();
        if readers == 1 && redirect(g, input, to) {
            break;
        }
    }
    true
}

/// Marks the flat leaves that `gradients` are parts of as transient. Updates read the whole of them, so the gaps after
/// tensors that do not fill their boundary are cleared, each just before its tensor is written. Returns how many nodes
/// that puts before node `forward`.
pub fn make_transient(g: &mut Graph, gradients: &[Val], forward: usize) -> Result<usize> {
    // Where each is in its flat leaf.
    let mut parts: Vec<(Val, usize, usize, Val)> = Vec::with_capacity(gradients.len());
    for &gradient in gradients {
        let (flat, start) = g.root(gradient);
        g.values[flat.index()].transient = true;
        parts.push((flat, start, start + g.ty(gradient).len(), gradient));
    }
    parts.sort();
    // What to clear: before which node, in which leaf, from where to where.
    let mut gaps: Vec<(usize, Val, usize, usize)> = Vec::new();
    for (i, &(flat, _, end, gradient)) in parts.iter().enumerate() {
        let next = parts.get(i + 1).filter(|p| p.0 == flat).map_or(g.ty(flat).len(), |p| p.1);
        if next > end {
            let writer = g.nodes.iter().position(|n| n.into.contains(&Some(gradient))).unwrap_or(g.nodes.len());
            // From a boundary on, so that every device can bind it.
            gaps.push((writer, flat, end / (ALIGN / 4) * (ALIGN / 4), next));
        }
    }
    gaps.sort();
    let outer = (g.phase, g.site.clone(), g.block);
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
    (g.phase, g.site, g.block) = outer;
    Ok(gaps.iter().filter(|gap| gap.0 < forward).count())
}
