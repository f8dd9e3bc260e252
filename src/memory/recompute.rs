//! Recompute: values of the forward pass that are dropped and computed a second time, just before the backward pass
//! first reads them. The second copy is made by the same ops on the same bits, so nothing of the result changes.
//!
//! Blocks are the units (Chen et al. 2016, arXiv:1604.06174): what enters a block is kept. Of a block's own values
//! either all are dropped, or those that are cheap to compute again from what the backward pass keeps anyway
//! (Korthikanti et al. 2022, arXiv:2205.05198, by the rows' costs instead of by name).

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::graph::{Def, Graph, Node, Val};

/// What of a block is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing: all that the backward pass reads is kept.
    None,
    /// What is cheap to compute from values that are kept anyway.
    Selective,
    /// Everything but the block's inputs.
    All,
}

/// Floating point operations for each byte that is not kept, up to which an op counts as cheap: norms, rotations
/// and activations need a few, products and attention hundreds.
const CHEAP: f64 = 16.0;

/// The forward values that `level(block)` drops. `forward` is the number of the graph's forward nodes.
pub fn dropped(g: &Graph, forward: usize, level: impl Fn(usize) -> Level) -> HashSet<Val> {
    let read = read_after(g, forward);
    // What another phase reads, and what another block's forward nodes read, which is that block's input, is kept.
    let mut inputs = super::handed_on(g);
    for node in &g.nodes[..forward] {
        let roots = node.ins.iter().map(|&v| g.root(v).0);
        inputs.extend(
            roots.filter(|&v| matches!(g.value(v).def, Def::Node { node: n, .. } if g.nodes[n].block != node.block)),
        );
    }
    let mut dropped = HashSet::new();
    for node in &g.nodes[..forward] {
        let cheap = || {
            let tys = |vals: &[Val]| vals.iter().map(|&v| g.ty(v).clone()).collect::<Vec<_>>();
            let (ins, outs) = (tys(&node.ins), tys(&node.outs));
            let bytes: usize = outs.iter().map(|t| t.bytes()).sum();
            (node.op.cost)(&node.attr, &ins, &outs).flops as f64 <= CHEAP * bytes as f64
        };
        // Nothing but what is there anyway may be needed to compute it again.
        let at_hand = |&v: &Val| {
            let root = g.root(v).0;
            matches!(g.value(root).def, Def::Leaf(_)) || read.contains(&root)
        };
        let drop = match level(node.block) {
            _ if node.into.iter().any(Option::is_some) => false,
            Level::None => false,
            Level::Selective => node.ins.iter().all(at_hand) && cheap(),
            Level::All => true,
        };
        if drop {
            dropped.extend(node.outs.iter().copied().filter(|v| !inputs.contains(v)));
        }
    }
    dropped
}

/// Roots that nodes from `forward` on read.
fn read_after(g: &Graph, forward: usize) -> HashSet<Val> {
    g.nodes[forward..].iter().flat_map(|n| &n.ins).map(|&v| g.root(v).0).collect()
}

/// Computes the values in `dropped` again where nodes after the first `forward` read them.
pub fn recompute(g: &mut Graph, forward: usize, dropped: &HashSet<Val>) -> Result<()> {
    if dropped.is_empty() {
        return Ok(());
    }
    let nodes = std::mem::take(&mut g.nodes);
    let (before, after) = nodes.split_at(forward);
    before.iter().for_each(|n| g.keep(n.clone()));
    let mut again = Again { before, dropped, copies: HashMap::new(), views: HashMap::new() };
    for node in after {
        let mut node = node.clone();
        let (phase, site, block) = (g.phase, g.site.clone(), g.block);
        for v in &mut node.ins {
            *v = again.of(g, *v)?;
        }
        (g.phase, g.site, g.block) = (phase, site, block);
        g.keep(node);
    }
    Ok(())
}

struct Again<'a> {
    before: &'a [Node],
    dropped: &'a HashSet<Val>,
    /// From a dropped value to its second copy.
    copies: HashMap<Val, Val>,
    views: HashMap<Val, Val>,
}

impl Again<'_> {
    /// `v`, or its second copy, which is computed now if it was not before.
    fn of(&mut self, g: &mut Graph, v: Val) -> Result<Val> {
        let (root, start) = g.root(v);
        if !self.dropped.contains(&root) {
            return Ok(v);
        }
        if !self.copies.contains_key(&root) {
            let Def::Node { node, .. } = g.value(root).def else { return Ok(v) };
            let node = &self.before[node];
            let ins = node.ins.iter().map(|&i| self.of(g, i)).collect::<Result<Vec<_>>>()?;
            (g.phase, g.block) = (node.phase, node.block);
            g.site.clone_from(&node.site);
            let outs = g.node(node.op, node.attr.clone(), &ins)?;
            self.copies.extend(node.outs.iter().copied().zip(outs));
        }
        let copy = self.copies[&root];
        if v == root {
            return Ok(copy);
        }
        Ok(*self.views.entry(v).or_insert_with(|| {
            let ty = g.ty(v).clone();
            g.view(copy, start, ty)
        }))
    }
}
