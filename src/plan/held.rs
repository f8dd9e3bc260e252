//! Which values off the device are in host memory from the start, and so in no file's way.

use std::collections::HashSet;

use super::{Move, Plan};
use crate::graph::{Def, Graph, LeafKind, Val};

/// The values that may be held, and their rows in the account. Files are written more slowly than they are read, so that what is
/// stored comes first, and of that what is stored more than once a step.
const KINDS: [(LeafKind, &str); 3] = [
    (LeafKind::Saved, "held activations"),
    (LeafKind::Optim, "held optimizer state"),
    (LeafKind::Frozen, "held weights"),
];

/// The values among `moves` by kind, each kind in the order of its first moves, each value if `bytes` has room for it beside those
/// before.
pub fn held(g: &Graph, moves: &[Move], bytes: u64) -> Vec<Val> {
    let (mut seen, mut left) = (HashSet::new(), bytes);
    let leaves = |(kind, _)| moves.iter().map(|m| m.leaf).filter(move |&leaf| g.value(leaf).def == Def::Leaf(kind));
    let fits = |leaf: &Val| {
        let bytes = g.ty(*leaf).bytes() as u64;
        let fits = seen.insert(*leaf) && bytes <= left;
        left -= if fits { bytes } else { 0 };
        fits
    };
    KINDS.into_iter().flat_map(leaves).filter(fits).collect()
}

impl Plan {
    /// Gives up to `bytes` of host memory to values that are off the device: `Exec::hold` brings them there.
    pub fn hold(&mut self, g: &Graph, bytes: u64) {
        self.held = held(g, &self.schedule.moves, bytes);
        for (kind, name) in KINDS {
            let of = |leaf: &&Val| g.value(**leaf).def == Def::Leaf(kind);
            let bytes = self.held.iter().filter(of).map(|&leaf| g.ty(leaf).bytes() as u64).sum();
            self.account.add_host(name, bytes);
        }
    }
}
