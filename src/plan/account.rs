//! What a run takes, by class, to the byte.

use serde::Serialize;

use super::{Allocation, Storage};
use crate::graph::{Class, Graph};

/// Bytes on the device. The sum of `rows` is what the backend allocates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    pub rows: Vec<(String, u64)>,
    pub total: u64,
    /// The node at which most of the arena is in use.
    pub peak_site: String,
}

/// How the account names a class.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Frozen => "frozen weights",
        Class::Param => "trainable weights",
        Class::Grad => "gradients",
        Class::Optim => "optimizer state",
        Class::Io => "input and output",
        Class::Cache => "key-value cache",
    }
}

impl Account {
    pub(super) fn new(g: &Graph, buffers: &[Allocation], storages: &[Storage], arena: u64) -> Account {
        let mut rows: Vec<(String, u64)> = Class::ALL
            .iter()
            .map(|&class| {
                let bytes = buffers.iter().filter(|b| b.class == Some(class)).map(|b| b.bytes).sum();
                (class_name(class).to_string(), bytes)
            })
            .collect();
        let live = |node: usize, work: bool| -> u64 {
            let here = storages.iter().filter(|s| s.live.first <= node && node <= s.live.last);
            here.filter(|s| s.work_of.is_some() == work).map(|s| s.bytes).sum()
        };
        let peak = peak_node(storages, g.nodes.len());
        // What the arena holds beyond the values alive at its peak is scratch memory and the gaps of the packing.
        let activations = live(peak, false).min(arena);
        rows.push(("activations".into(), activations));
        rows.push(("workspace".into(), arena - activations));
        rows.retain(|r| r.1 > 0);
        let total = rows.iter().map(|r| r.1).sum();
        let peak_site = g.nodes.get(peak).map_or(String::new(), |n| format!("{}:{}", n.site, n.op.name));
        Account { rows, total, peak_site }
    }
}

impl Account {
    pub(super) fn add(&mut self, row: &str, bytes: u64) {
        if bytes > 0 {
            self.rows.push((row.into(), bytes));
            self.total += bytes;
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
