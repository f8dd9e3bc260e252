//! Offload: what enters a block waits off the device between its forward and its backward pass.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::graph::{Def, Graph, LeafKind, Val};

/// The values that go from one block's forward part to another's and that the backward pass reads again.
/// `forward` is the number of forward nodes.
pub fn candidates(g: &Graph, forward: usize) -> HashSet<Val> {
    let block_of = |v: Val| match g.value(v).def {
        Def::Node { node, out } if node < forward && g.nodes[node].into[out].is_none() => Some(g.nodes[node].block),
        _ => None,
    };
    let mut crossing = HashSet::new();
    for node in &g.nodes[..forward] {
        let roots = node.ins.iter().map(|&v| g.root(v).0);
        crossing.extend(roots.filter(|&v| block_of(v).is_some_and(|b| b != node.block)));
    }
    let again: HashSet<Val> = g.nodes[forward..].iter().flat_map(|n| &n.ins).map(|&v| g.root(v).0).collect();
    let stays = super::handed_on(g);
    crossing.intersection(&again).copied().filter(|v| !stays.contains(v)).collect()
}

/// Moves `values` off the device after their last reader in the forward part, and back a block ahead of their first
/// reader after it.
pub fn offload(g: &mut Graph, forward: usize, values: &HashSet<Val>) -> Result<()> {
    let nodes = std::mem::take(&mut g.nodes);
    let mut last: HashMap<Val, usize> = HashMap::new();
    let mut first: HashMap<Val, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for root in node.ins.iter().map(|&v| g.root(v).0).filter(|v| values.contains(v)) {
            if i < forward {
                last.insert(root, i);
            } else {
                first.entry(root).or_insert(i);
            }
        }
    }
    // Where the fetch is: at the start of the run of nodes of one block before the reader's.
    let start = |i: usize| (forward..=i).rev().find(|&j| j == forward || nodes[j - 1].block != nodes[i].block);
    let ahead = |i: usize| {
        let own = start(i).unwrap_or(i);
        if own > forward { start(own - 1).unwrap_or(own) } else { own }
    };
    let mut stores: HashMap<usize, Vec<Val>> = HashMap::new();
    let mut fetches: HashMap<usize, Vec<Val>> = HashMap::new();
    let mut sorted: Vec<Val> = values.iter().copied().collect();
    sorted.sort();
    for v in sorted {
        // What is fetched again at once had better stay.
        if let (Some(&last), Some(&first)) = (last.get(&v), first.get(&v)) {
            stores.entry(last).or_default().push(v);
            fetches.entry(ahead(first)).or_default().push(v);
        }
    }
    let outer = (g.phase, g.site.clone(), g.block);
    let mut stored: HashMap<Val, Val> = HashMap::new();
    let mut back: HashMap<Val, Val> = HashMap::new();
    for (i, mut node) in nodes.iter().cloned().enumerate() {
        (g.phase, g.block) = (node.phase, node.block);
        g.site.clone_from(&node.site);
        for &v in fetches.get(&i).into_iter().flatten() {
            let fetched = g.fetch(stored[&v])?;
            back.insert(v, fetched);
        }
        for v in &mut node.ins {
            let (root, offset) = g.root(*v);
            if let Some(&here) = back.get(&root) {
                let ty = g.ty(*v).clone();
                *v = if *v == root { here } else { g.view(here, offset, ty) };
            }
        }
        g.keep(node);
        for &v in stores.get(&i).into_iter().flatten() {
            let ty = g.ty(v).clone();
            let leaf = g.leaf(LeafKind::Saved, format!("saved.{}", g.value(v).name), ty);
            g.values[leaf.index()].offloaded = true;
            stored.insert(v, g.store(v, leaf)?);
        }
    }
    (g.phase, g.site, g.block) = outer;
    Ok(())
}
