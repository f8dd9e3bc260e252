//! Launches that nodes share: kernels that take several problems (`kernels/common/batch.cuh`) get those of a batch at once, so
//! that a small product does not have the device to itself. A tile of a product is computed as it would be alone, so no
//! bit of a result depends on it.

use super::liveness::Interval;
use crate::backend::{Buffer, Caps, Kernel, Launch, Slice, Target};
use crate::graph::{Graph, batch};
use crate::ops::{CudaLaunch, MatrixMap, launch};

/// For each node: the first and the last of its batch. What any of it needs is there from the first to the last.
pub struct Batches(Vec<Interval>);

impl Batches {
    /// Those of `g`; alone where no kernel of the device takes several problems. They depend on no size, so that a plan of
    /// smaller micro-batches has the same.
    pub fn new(g: &Graph, caps: &Caps) -> Batches {
        let mut all = Vec::with_capacity(g.nodes.len());
        while all.len() < g.nodes.len() {
            let first = all.len();
            let end = if caps.target == Target::Cuda { batch::end(g, first) } else { first + 1 };
            all.resize(end, Interval { first, last: end - 1 });
        }
        Batches(all)
    }

    /// The batch of node `index`.
    pub fn of(&self, index: usize) -> Interval {
        self.0[index]
    }
}

/// The launches of nodes that do not need one another, each node's given in order: in turns, and those of one kernel as one.
pub fn merge(nodes: Vec<Vec<Launch>>, caps: &Caps) -> Vec<Launch> {
    let mut left: Vec<_> = nodes.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    loop {
        let mut turn: Vec<Vec<Launch>> = Vec::new();
        for launch in left.iter_mut().filter_map(Iterator::next) {
            match turn.iter_mut().find(|shared| takes(shared, &launch)) {
                Some(shared) => shared.push(launch),
                None => turn.push(vec![launch]),
            }
        }
        if turn.is_empty() {
            return all;
        }
        all.extend(turn.into_iter().filter_map(|shared| joined(shared, caps)));
    }
}

/// Whether one more problem fits a launch of these.
fn takes(shared: &[Launch], launch: &Launch) -> bool {
    let (Some(Kernel::Cuda(a)), Kernel::Cuda(b)) = (shared.first().map(|l| &l.kernel), &launch.kernel) else {
        return false;
    };
    let same = (a.file, &a.defines, a.entry, a.shared, a.grid[2]) == (b.file, &b.defines, b.entry, b.shared, b.grid[2]);
    same && shared.len() < launch::problems(a)
}

/// One launch of all these problems. What a kernel that takes several has is there for each, used or not.
fn joined(shared: Vec<Launch>, caps: &Caps) -> Option<Launch> {
    let count = shared.len();
    let blocks = |call: &CudaLaunch| call.grid[0].saturating_mul(call.grid[1]);
    let calls = shared.iter().filter_map(|l| if let Kernel::Cuda(call) = &l.kernel { Some(call) } else { None });
    let (most, counts) = (calls.clone().next().map_or(1, launch::problems), calls.map(blocks).collect::<Vec<_>>());
    let mut all = shared.into_iter();
    let mut first = all.next()?;
    let (each, Kernel::Cuda(call)) = (first.args.len(), &mut first.kernel) else { return Some(first) };
    if most == 1 {
        return Some(first);
    }
    let (words, maps) = (call.params.len(), call.maps.len());
    for next in all {
        let Kernel::Cuda(other) = next.kernel else { continue };
        call.params.extend(other.params);
        let before = first.args.len();
        call.maps.extend(other.maps.into_iter().map(|map| MatrixMap { arg: before + map.arg, ..map }));
        call.block = call.block.max(other.block);
        call.flops += other.flops;
        first.flops += next.flops;
        first.args.extend(next.args);
    }
    let total = counts.iter().map(|&n| n as usize).sum();
    if launch::in_turns(call) {
        call.grid = [caps.workgroups(1).min(total) as u32, 1, 1];
    } else if count > 1 {
        let [x, y, _] = launch::grid(total, caps);
        call.grid = [x, y, call.grid[2]];
    }
    first.args.resize(most * each, Slice { buffer: Buffer(0), offset: 0, bytes: 0 });
    call.params.resize(most * words, 0);
    call.maps.extend(std::iter::repeat_n(call.maps[..maps].to_vec(), most - count).flatten());
    // All blocks from those of the last problem on are its own.
    let ends = (0..most - 1).map(|i| if i + 1 < count { counts[i] } else { u32::MAX });
    call.params.extend(ends);
    Some(first)
}
