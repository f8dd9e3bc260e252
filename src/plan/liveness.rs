//! When each value is alive, and which values share one storage.

use super::batch::Batches;
use crate::backend::Caps;
use crate::dtype::align;
use crate::graph::{Def, Graph, Val};
use crate::ops::widen;

/// Nodes from the one that defines to the last that reads, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Number of the node that defines it.
    pub first: usize,
    /// Number of the last node that reads it.
    pub last: usize,
}

impl Interval {
    /// Whether both are needed at some node, so that they cannot share memory.
    pub fn overlaps(self, other: Interval) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A stretch of the arena and who uses it.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Length, a multiple of [`crate::dtype::ALIGN`].
    pub bytes: u64,
    /// When it is in use.
    pub live: Interval,
    /// Node outputs that are here, one after the other.
    pub values: Vec<Val>,
    /// Or the node whose scratch memory it is.
    pub work_of: Option<usize>,
    /// Its offset, if it is a part of a transient leaf: they keep their distances.
    pub fixed: Option<u64>,
}

/// The storages of `g`'s node outputs and scratch memories. What a node of a batch reads or writes is needed at all of it.
pub fn storages(g: &Graph, caps: &Caps, batches: &Batches, in_place: bool) -> Vec<Storage> {
    let last = last_reads(g);
    let mut storages: Vec<Storage> = Vec::new();
    let mut home: Vec<Option<usize>> = vec![None; g.values.len()];
    for (index, node) in g.nodes.iter().enumerate() {
        let batch = batches.of(index);
        let mut taken = Vec::new();
        for (o, &out) in node.outs.iter().enumerate() {
            if node.into[o].is_some() {
                continue;
            }
            let end = batches.of(last[out.index()].unwrap_or(index).max(index)).last;
            let donor = in_place
                .then(|| {
                    node.op
                        .in_place
                        .iter()
                        .filter(|p| p.1 == o)
                        .filter_map(|p| donor(g, index, batch, p.0, out, &home, &storages))
                        .find(|storage| !taken.contains(storage))
                })
                .flatten();
            let storage = donor.unwrap_or_else(|| {
                let bytes = align(g.ty(out).bytes()) as u64;
                storages.push(Storage {
                    bytes,
                    live: Interval { first: batch.first, last: end },
                    values: Vec::new(),
                    work_of: None,
                    fixed: None,
                });
                storages.len() - 1
            });
            taken.push(storage);
            storages[storage].values.push(out);
            storages[storage].live.last = storages[storage].live.last.max(end);
            home[out.index()] = Some(storage);
        }
        let bytes = workspace(g, index, caps);
        if bytes > 0 {
            let live = batch;
            storages.push(Storage {
                bytes: align(bytes as usize) as u64,
                live,
                values: Vec::new(),
                work_of: Some(index),
                fixed: None,
            });
        }
    }
    storages
}

/// The parts of the transient leaves that nodes write, each from the first that does to the last that reads anything of its
/// leaf; `bases` are the leaves' offsets.
pub fn parts(g: &Graph, bases: &[(Val, u64)], batches: &Batches) -> Vec<Storage> {
    let mut storages: Vec<Storage> = Vec::new();
    for &(leaf, base) in bases {
        // A node's output is in the leaf that it overwrites.
        let is_here = |v: Val| match g.value(g.root(v).0).def {
            Def::Node { node, out } => g.nodes[node].into[out].is_some_and(|t| g.root(t).0 == leaf),
            _ => g.root(v).0 == leaf,
        };
        let last = g.nodes.iter().rposition(|n| n.ins.iter().any(|&v| is_here(v))).map_or(0, |n| batches.of(n).last);
        let mut writes: Vec<(usize, usize, usize, Val)> = Vec::new();
        for (index, node) in g.nodes.iter().enumerate() {
            for (&out, &target) in node.outs.iter().zip(&node.into) {
                if let Some(t) = target.filter(|&t| g.root(t).0 == leaf) {
                    let start = g.root(t).1;
                    writes.push((start, start + g.ty(t).len(), index, out));
                }
            }
        }
        writes.sort();
        let mut end = 0;
        for (i, (from, to, index, out)) in writes.into_iter().enumerate() {
            let batch = batches.of(index);
            match storages.last_mut().filter(|_| i > 0 && from < end) {
                Some(part) => {
                    let first = part.fixed.unwrap_or(base);
                    part.bytes = part.bytes.max(align(4 * to) as u64 + base - first);
                    part.live.first = part.live.first.min(batch.first);
                    part.live.last = part.live.last.max(batch.last);
                }
                None => storages.push(Storage {
                    bytes: align(4 * (to - from)) as u64,
                    live: Interval { first: batch.first, last: last.max(batch.last) },
                    values: vec![out],
                    work_of: None,
                    fixed: Some(base + 4 * from as u64),
                }),
            }
            end = end.max(to);
        }
    }
    storages
}

/// Scratch bytes that node `index` asks for.
pub fn workspace(g: &Graph, index: usize, caps: &Caps) -> u64 {
    let node = &g.nodes[index];
    let ins: Vec<_> = node.ins.iter().map(|&v| g.ty(v).clone()).collect();
    widen::scratch(node.op, &node.attr, &ins, caps)
}

/// For each value that is a root: the last node that reads it, itself or through a view.
fn last_reads(g: &Graph) -> Vec<Option<usize>> {
    let mut last = vec![None; g.values.len()];
    for (index, node) in g.nodes.iter().enumerate() {
        for &v in &node.ins {
            last[g.root(v).0.index()] = Some(index);
        }
    }
    last
}

/// The storage of input `i` of node `index`, if `out` may take it over: the input is a whole node output, nothing
/// in that storage is read after this node's batch, and that reads it through this one operand only.
fn donor(
    g: &Graph,
    index: usize,
    batch: Interval,
    i: usize,
    out: Val,
    home: &[Option<usize>],
    storages: &[Storage],
) -> Option<usize> {
    let node = &g.nodes[index];
    let &v = node.ins.get(i)?;
    let (root, start) = g.root(v);
    if !matches!(g.value(root).def, Def::Node { .. }) || start != 0 || g.ty(root).bytes() != g.ty(out).bytes() {
        return None;
    }
    let storage = home[root.index()]?;
    let read = g.nodes[batch.first..=batch.last].iter().flat_map(|node| &node.ins);
    let once = read.filter(|&&o| home[g.root(o).0.index()] == Some(storage)).count() == 1;
    (once && storages[storage].live.last == batch.last).then_some(storage)
}
