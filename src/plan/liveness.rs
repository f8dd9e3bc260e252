//! When each value is alive, and which values share one storage.

use crate::backend::Caps;
use crate::dtype::align;
use crate::graph::{Def, Graph, Val};

/// Nodes from the one that defines to the last that reads, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub first: usize,
    pub last: usize,
}

impl Interval {
    pub fn overlaps(self, other: Interval) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A stretch of the arena and who uses it.
#[derive(Clone, Debug)]
pub struct Storage {
    pub bytes: u64,
    pub live: Interval,
    /// Node outputs that lie here, one after the other.
    pub values: Vec<Val>,
    /// Or the node whose scratch memory it is.
    pub work_of: Option<usize>,
}

/// The storages of `g`'s node outputs and scratch memories.
pub fn storages(g: &Graph, caps: &Caps, in_place: bool) -> Vec<Storage> {
    let last = last_reads(g);
    let mut storages: Vec<Storage> = Vec::new();
    let mut home: Vec<Option<usize>> = vec![None; g.values.len()];
    for (index, node) in g.nodes.iter().enumerate() {
        let mut taken = Vec::new();
        for (o, &out) in node.outs.iter().enumerate() {
            if node.into[o].is_some() {
                continue;
            }
            let end = last[out.index()].unwrap_or(index).max(index);
            let donor = in_place
                .then(|| {
                    node.op
                        .in_place
                        .iter()
                        .filter(|p| p.1 == o)
                        .find_map(|p| donor(g, index, p.0, out, &home, &storages, &taken))
                })
                .flatten();
            let storage = donor.unwrap_or_else(|| {
                let bytes = align(g.ty(out).bytes()) as u64;
                storages.push(Storage {
                    bytes,
                    live: Interval { first: index, last: end },
                    values: Vec::new(),
                    work_of: None,
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
            let live = Interval { first: index, last: index };
            storages.push(Storage {
                bytes: align(bytes as usize) as u64,
                live,
                values: Vec::new(),
                work_of: Some(index),
            });
        }
    }
    storages
}

/// Scratch bytes that node `index` asks for.
pub fn workspace(g: &Graph, index: usize, caps: &Caps) -> u64 {
    let node = &g.nodes[index];
    let ins: Vec<_> = node.ins.iter().map(|&v| g.ty(v).clone()).collect();
    (node.op.workspace)(&node.attr, &ins, caps)
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
/// in that storage is read after this node, and this node reads it through this one operand only.
fn donor(
    g: &Graph,
    index: usize,
    i: usize,
    out: Val,
    home: &[Option<usize>],
    storages: &[Storage],
    taken: &[usize],
) -> Option<usize> {
    let node = &g.nodes[index];
    let &v = node.ins.get(i)?;
    let (root, start) = g.root(v);
    if !matches!(g.value(root).def, Def::Node { .. }) || start != 0 || g.ty(root).bytes() != g.ty(out).bytes() {
        return None;
    }
    let storage = home[root.index()]?;
    let once = node.ins.iter().filter(|&&o| home[g.root(o).0.index()] == Some(storage)).count() == 1;
    (once && storages[storage].live.last == index && !taken.contains(&storage)).then_some(storage)
}
