//! Weights that stream from the device's staging memory, where they are from the start, instead of from files.

use super::Exec;
use crate::backend::HostSlice;
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::plan::Move;
use crate::system;

/// Bytes that are read between two reports of progress.
const PIECE: usize = 256 << 20;

impl Exec {
    /// Reads the weights that the plan has in host memory, from where they are off the device; `progress(bytes read, of)` is
    /// called along the way, and an error of it ends the reading.
    pub fn hold(&mut self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let leaves = self.plan.held.clone();
        let bytes = |exec: &Exec, leaf: Val| exec.graph.ty(leaf).bytes() as u64;
        let total: u64 = leaves.iter().map(|&leaf| bytes(self, leaf)).sum();
        let lacks = |available: u64| Error::Memory {
            needed: total,
            available,
            hint: "this is host memory, which --host-memory asks for: ask for less, and more is read from files".into(),
        };
        if let Some(free) = system::free_memory().filter(|free| *free < total) {
            return Err(lacks(free));
        }
        let mut done = 0;
        for leaf in leaves {
            let all = bytes(self, leaf);
            let memory = self.backend.staging(all)?.ok_or_else(|| lacks(done))?;
            // SAFETY: memory of this size, which is nobody else's and lives as long as the backend.
            let into = unsafe { std::slice::from_raw_parts_mut(memory.ptr, memory.bytes) };
            for piece in into.chunks_mut(PIECE) {
                self.offload.read(leaf, all, piece.as_ptr() as u64 - memory.ptr as u64, piece)?;
                done += piece.len() as u64;
                progress(done, total)?;
            }
            self.held.insert(leaf, memory);
        }
        Ok(())
    }

    /// Where what `m` moves is in host memory, if it is held there.
    pub(super) fn held(&self, m: &Move) -> Option<HostSlice> {
        let memory = self.held.get(&m.leaf)?;
        Some(HostSlice { ptr: memory.at(m.offset as usize), bytes: m.place.bytes as usize })
    }
}
