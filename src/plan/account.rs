//! What a run takes, by class, to the byte.

use serde::Serialize;

use super::{Allocation, Storage};
use crate::graph::op::OpRole;
use crate::graph::{Def, Graph, LeafKind};

/// Bytes on the device, in host memory, and in files. The sum of `rows` is what the backend allocates.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Account {
    /// Classes and their bytes on the device: leaves, the arena's parts at the peak, parameter blocks.
    pub rows: Vec<(String, u64)>,
    /// Sum of `rows`.
    pub total: u64,
    /// The node at which most of the arena is in use.
    pub peak_site: String,
    /// Its number.
    pub peak_node: usize,
    /// Host memory that transfers go through.
    pub host: Vec<(String, u64)>,
    /// Sum of `host`.
    pub host_total: u64,
    /// What is in files, off the device.
    pub files: Vec<(String, u64)>,
}

/// How the account names a class.
pub fn class_name(class: LeafKind) -> &'static str {
    match class {
        LeafKind::Frozen => "frozen weights",
        LeafKind::Param => "trainable weights",
        LeafKind::Grad => "gradients",
        LeafKind::Optim => "optimizer state",
        LeafKind::Io => "input and output",
        LeafKind::Cache => "key-value cache",
        LeafKind::Saved => "saved activations",
    }
}

impl Account {
    pub(super) fn new(g: &Graph, buffers: &[Allocation], storages: &[Storage], arena: u64) -> Account {
        let mut rows: Vec<(String, u64)> = LeafKind::ALL
            .iter()
            .map(|&class| {
                let bytes = buffers.iter().filter(|b| b.class == Some(class)).map(|b| b.bytes).sum();
                (class_name(class).to_string(), bytes)
            })
            .collect();
        let peak = peak_node(storages, g.nodes.len());
        // What the arena holds beyond the values alive at its peak is scratch memory and the gaps of the packing.
        let mut left = arena;
        for kind in [Kind::Gradient, Kind::Activation, Kind::Weight, Kind::Optim] {
            let here = storages.iter().filter(|s| s.live.first <= peak && peak <= s.live.last);
            let bytes = here.filter(|s| kind_of(g, s) == kind).map(|s| s.bytes).sum::<u64>().min(left);
            left -= bytes;
            rows.push((kind.name().into(), bytes));
        }
        rows.push((Kind::Work.name().into(), left));
        rows.retain(|r| r.1 > 0);
        let total = rows.iter().map(|r| r.1).sum();
        let peak_site = g.nodes.get(peak).map_or(String::new(), |n| format!("{}:{}", n.site, n.op.name));
        let away = |class: LeafKind| -> u64 {
            let leaves = g.values.iter().filter(|v| v.offloaded && v.def == Def::Leaf(class));
            leaves.map(|v| v.ty.bytes() as u64).sum()
        };
        let files = LeafKind::ALL.iter().map(|&c| (class_name(c).to_string(), away(c))).filter(|r| r.1 > 0).collect();
        Account { rows, total, peak_site, peak_node: peak, host: Vec::new(), host_total: 0, files }
    }
}

/// What a storage of the arena is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A gradient of a step of one micro-batch, no sum over several.
    Gradient,
    /// A forward value, or a gradient of one.
    Activation,
    /// A frozen weight that is fetched.
    Weight,
    /// Optimizer state that is fetched.
    Optim,
    /// Scratch memory of a launch.
    Work,
}

impl Kind {
    /// How the account names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gradient => class_name(LeafKind::Grad),
            Kind::Activation => "activations",
            Kind::Weight => "streamed weights",
            Kind::Optim => "paged optimizer state",
            Kind::Work => "workspace",
        }
    }
}

/// What `storage` is for.
pub fn kind_of(g: &Graph, storage: &Storage) -> Kind {
    if storage.work_of.is_some() {
        return Kind::Work;
    }
    if storage.fixed.is_some() {
        return Kind::Gradient;
    }
    let Some(&first) = storage.values.first() else { return Kind::Activation };
    let Def::Node { node, .. } = g.value(first).def else { return Kind::Activation };
    let node = &g.nodes[node];
    let leaf = node.ins.first().and_then(|&v| g.offloaded(v)).filter(|_| node.op.role == OpRole::Fetch);
    match leaf.map(|(leaf, _)| &g.value(leaf).def) {
        Some(Def::Leaf(LeafKind::Frozen)) => Kind::Weight,
        Some(Def::Leaf(LeafKind::Optim)) => Kind::Optim,
        _ => Kind::Activation,
    }
}

impl Account {
    pub(crate) fn add(&mut self, row: &str, bytes: u64) {
        self.total += bytes;
        match self.rows.iter_mut().find(|(name, _)| name == row) {
            Some((_, all)) => *all += bytes,
            None if bytes > 0 => self.rows.push((row.into(), bytes)),
            None => {}
        }
    }

    pub(super) fn add_host(&mut self, row: &str, bytes: u64) {
        if bytes > 0 {
            self.host.push((row.into(), bytes));
            self.host_total += bytes;
        }
    }
}

/// The node during which most bytes are alive.
fn peak_node(storages: &[Storage], nodes: usize) -> usize {
    let mut change = vec![0i64; nodes + 2];
    for s in storages {
        change[s.live.first] += s.bytes as i64;
        change[s.live.last + 1] -= s.bytes as i64;
    }
    let mut now = 0;
    let sums: Vec<i64> = change
        .iter()
        .map(|c| {
            now += c;
            now
        })
        .collect();
    (0..nodes).max_by_key(|&i| (sums[i], std::cmp::Reverse(i))).unwrap_or(0)
}
