//! Which weights that stream are in host memory from the start, and so in no file's way.

use std::collections::HashSet;

use super::{Move, Plan};
use crate::graph::{Def, Graph, LeafKind, Val};

/// The frozen weights among `moves`, in the order of their first fetch, each if `bytes` has room for it beside those before.
pub fn held(g: &Graph, moves: &[Move], bytes: u64) -> Vec<Val> {
    let (mut seen, mut left) = (HashSet::new(), bytes);
    let frozen = moves.iter().map(|m| m.leaf).filter(|&leaf| g.value(leaf).def == Def::Leaf(LeafKind::Frozen));
    let fits = |&leaf: &Val| {
        let fits = seen.insert(leaf) && g.ty(leaf).bytes() as u64 <= left;
        left -= if fits { g.ty(leaf).bytes() as u64 } else { 0 };
        fits
    };
    frozen.filter(fits).collect()
}

impl Plan {
    /// Gives up to `bytes` of host memory to weights that stream: `Exec::hold` brings them there.
    pub fn hold(&mut self, g: &Graph, bytes: u64) {
        self.held = held(g, &self.schedule.moves, bytes);
        let bytes = self.held.iter().map(|&leaf| g.ty(leaf).bytes() as u64).sum();
        self.account.add_host("held weights", bytes);
    }
}
