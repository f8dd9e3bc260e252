//! Streaming: frozen weights that are off the device and are fetched for each run of nodes that reads them, one run
//! (a block's forward or backward part) ahead of it. Their place in the arena is free for others before and after.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::graph::weight::{Source, Weight};
use crate::graph::{Def, Graph, LeafKind, Val};

/// How early a weight is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// A block before its first reader, so that the transfer runs beside that block's work.
    Block,
    /// Right before its first reader: nothing overlaps, and no two blocks' weights are there at once.
    Nothing,
}

/// The frozen matrices of the base model that may stream, each with the blocks that read it.
pub fn candidates(g: &Graph, weights: &[Weight]) -> Vec<(Val, HashSet<usize>)> {
    let mut readers: HashMap<Val, HashSet<usize>> = HashMap::new();
    for node in &g.nodes {
        for &v in &node.ins {
            readers.entry(g.root(v).0).or_default().insert(node.block);
        }
    }
    let base = weights.iter().filter(|w| matches!(w.source, Source::Base { .. })).map(|w| w.val);
    let frozen = base.filter(|&v| g.value(v).def == Def::Leaf(LeafKind::Frozen) && g.shape(v).len() == 2);
    frozen.filter_map(|v| readers.remove(&v).map(|blocks| (v, blocks))).collect()
}

/// Sends the leaves in `weights` off the device and fetches them where they are read.
pub fn stream(g: &mut Graph, weights: &HashSet<Val>, ahead: Ahead) -> Result<()> {
    if weights.is_empty() {
        return Ok(());
    }
    for &w in weights {
        g.values[w.index()].offloaded = true;
    }
    let nodes = std::mem::take(&mut g.nodes);
    // Runs of one block: the first node of each.
    let starts: Vec<usize> = (0..nodes.len())
        .filter(|&i| i == 0 || nodes[i].block != nodes[i - 1].block || nodes[i].phase != nodes[i - 1].phase)
        .collect();
    // At node i: what to fetch before it, for which run.
    let mut fetches: Vec<Vec<(Val, usize)>> = vec![Vec::new(); nodes.len()];
    let mut seen = HashSet::new();
    for (run, &start) in starts.iter().enumerate() {
        let end = starts.get(run + 1).copied().unwrap_or(nodes.len());
        for (i, node) in nodes.iter().enumerate().take(end).skip(start) {
            for &v in &node.ins {
                let root = g.root(v).0;
                if !weights.contains(&root) || !seen.insert((root, run)) {
                    continue;
                }
                let before = match run.checked_sub(1).map(|r| starts[r]) {
                    Some(before) if nodes[before].phase == node.phase => before,
                    _ => start,
                };
                let at = if ahead == Ahead::Block { before } else { i };
                fetches[at].push((root, run));
            }
        }
    }
    let mut fetched: HashMap<(Val, usize), Val> = HashMap::new();
    let outer = (g.phase, g.site.clone(), g.block);
    let mut run = 0;
    for (i, mut node) in nodes.into_iter().enumerate() {
        while starts.get(run + 1).is_some_and(|&s| s <= i) {
            run += 1;
        }
        for &(w, for_run) in &fetches[i] {
            (g.phase, g.block) = (node.phase, node.block);
            g.site = g.value(w).name.clone();
            fetched.insert((w, for_run), g.fetch(w)?);
        }
        for v in &mut node.ins {
            let (root, start) = g.root(*v);
            if let Some(&here) = fetched.get(&(root, run)) {
                let ty = g.ty(*v).clone();
                *v = if *v == root { here } else { g.view(here, start, ty) };
            }
        }
        g.keep(node);
    }
    (g.phase, g.site, g.block) = outer;
    Ok(())
}

/// The blocks of a training graph in the order in which they are given up to streaming: the embedding and the head
/// first, which are read once a step and not twice.
pub fn order(blocks: usize) -> Vec<usize> {
    let mut order = vec![0];
    if blocks > 1 {
        order.push(blocks - 1);
    }
    order.extend(1..blocks.saturating_sub(1));
    order
}
