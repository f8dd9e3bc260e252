//! Batches: neighbours in the list of nodes, of one op and none of which needs another. Where kernels take several problems a
//! launch, a batch shares launches (`plan`): the projections of a layer that read the same x, and their gradients.

use std::ops::Range;

use super::op::OpRole;
use super::{Def, Graph, Node, Val};

/// Nodes of a batch at most: what they need is in memory at the same time.
const MOST: usize = 8;

/// Where the batch that begins with node `first` ends.
pub fn end(g: &Graph, first: usize) -> usize {
    let mut end = first + 1;
    while end < g.nodes.len() && end - first < MOST && joins(g, first..end) {
        end += 1;
    }
    end
}

/// The first node of the batch that ends before `end`, as a walk backward finds it.
pub fn start(g: &Graph, end: usize) -> usize {
    let mut start = end - 1;
    while start > 0 && end - start < MOST && (start..end).all(|node| joins(g, start - 1..node)) {
        start -= 1;
    }
    start
}

/// Whether the node after `batch` may be one of it. A value that is fetched is waited for before its first reader, so a reader
/// is in no batch.
fn joins(g: &Graph, batch: Range<usize>) -> bool {
    let next = &g.nodes[batch.end];
    let is_fetched = |v: Val| match g.value(g.root(v).0).def {
        Def::Node { node, .. } => g.nodes[node].op.role == OpRole::Fetch,
        _ => false,
    };
    let fits = |node: &Node| {
        let same = std::ptr::eq(node.op, next.op) && (node.phase, node.block) == (next.phase, next.block);
        same && next.op.batched && !node.ins.iter().chain(&next.ins).any(|&v| is_fetched(v)) && !needs(g, node, next)
    };
    g.nodes[batch].iter().all(fits)
}

/// Whether `next`, a later node, reads or overwrites what `node` writes, or overwrites what `node` reads.
fn needs(g: &Graph, node: &Node, next: &Node) -> bool {
    let writes =
        |node: &Node| -> Vec<Val> { node.outs.iter().copied().chain(node.into.iter().flatten().copied()).collect() };
    let meet = |a: &[Val], b: &[Val]| a.iter().any(|&a| b.iter().any(|&b| overlap(g, a, b)));
    let (before, after) = (writes(node), writes(next));
    meet(&before, &next.ins) || meet(&before, &after) || meet(&node.ins, &after)
}

/// Whether two values have elements in common.
fn overlap(g: &Graph, a: Val, b: Val) -> bool {
    let ((root, start), (other, from)) = (g.root(a), g.root(b));
    root == other && start < from + g.ty(b).len() && from < start + g.ty(a).len()
}

/// Brings the nodes of `lists`, the last ones of `g` and one list after the other, into an order in which the first of all lists
/// are neighbours, then the second, and so on, for as long as they are of an op whose nodes make batches.
pub fn interleave(g: &mut Graph, lists: &[Range<usize>]) {
    let lists: Vec<&Range<usize>> = lists.iter().filter(|list| !list.is_empty()).collect();
    let alike = |i: usize| {
        let mut ops = lists.iter().map(|list| (*list).clone().nth(i).map(|node| g.nodes[node].op));
        let first = ops.next().flatten().filter(|op| op.batched);
        first.is_some_and(|first| ops.all(|op| op.is_some_and(|op| std::ptr::eq(op, first))))
    };
    let common = (0..).take_while(|&i| alike(i)).count();
    let rows = (0..common).flat_map(|i| lists.iter().map(move |list| list.start + i));
    let order: Vec<usize> = rows.chain(lists.iter().flat_map(|list| list.start + common..list.end)).collect();
    let Some(first) = lists.iter().map(|list| list.start).min() else { return };
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &node)| place[node - first] = i);
    let is_before = |v: Val, reader: usize| match g.value(g.root(v).0).def {
        Def::Node { node, .. } if node >= first => place[node - first] < place[reader - first],
        _ => true,
    };
    if !order.iter().all(|&node| g.nodes[node].ins.iter().all(|&v| is_before(v, node))) {
        return;
    }
    let mut nodes: Vec<Option<Node>> = g.nodes.split_off(first).into_iter().map(Some).collect();
    for node in order {
        nodes[node - first].take().into_iter().for_each(|node| g.keep(node));
    }
}
