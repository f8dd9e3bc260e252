//! Where WGSL launches' parameter blocks are: counted by the planner, whether or not this build can run them.

use std::collections::HashMap;

use super::Launch;
use crate::dtype::ALIGN;

/// Where each launch's parameter block is in the recording's one uniform buffer, and the blocks of that
/// buffer. Equal blocks are stored once.
pub fn place(launches: &[Launch]) -> (Vec<Option<u64>>, Vec<&[u32]>) {
    let mut blocks: Vec<&[u32]> = Vec::new();
    let mut known: HashMap<&[u32], u64> = HashMap::new();
    let offsets = launches
        .iter()
        .map(|l| {
            (!l.params().is_empty()).then(|| {
                *known.entry(l.params()).or_insert_with(|| {
                    blocks.push(l.params());
                    ((blocks.len() - 1) * ALIGN) as u64
                })
            })
        })
        .collect();
    (offsets, blocks)
}

/// Bytes that recording `launches` adds to [`super::Backend::memory`]: the planner accounts for them before
/// anything is recorded.
pub fn bytes(launches: &[Launch]) -> u64 {
    (place(launches).1.len() * ALIGN) as u64
}
