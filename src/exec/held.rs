//! Values off the device that have staging memory of their own: weights are there from the start, optimizer state and activations
//! come and go between there and the device, in no file's way.

use super::Exec;
use crate::backend::HostSlice;
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::plan::Move;
use crate::system;

/// Bytes that are read between two reports of progress.
const PIECE: usize = 256 << 20;

impl Exec {
    /// Makes the host memory that the plan has for values, and reads them from files, those that are there; `progress(bytes
    /// read, of)` is called along the way, and an error of it ends the reading.
    pub fn hold(&mut self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let leaves = self.plan.held.clone();
        let bytes = |exec: &Exec, leaf: Val| exec.graph.ty(leaf).bytes() as u64;
        let needed: u64 = leaves.iter().map(|&leaf| bytes(self, leaf)).sum();
        let total = leaves.iter().filter(|&&leaf| self.offload.has(leaf)).map(|&leaf| bytes(self, leaf)).sum();
        let lacks = |available: u64| Error::Memory {
            needed,
            available,
            hint: "this is host memory, which --host-memory asks for: ask for less, and files are used for more".into(),
        };
        if let Some(free) = system::free_memory().filter(|free| *free < needed) {
            return Err(lacks(free));
        }
        let (mut made, mut done) = (0, 0);
        for leaf in leaves {
            let all = bytes(self, leaf);
            let memory = self.backend.staging(all)?.ok_or_else(|| lacks(made))?;
            made += all;
            if self.offload.has(leaf) {
                // SAFETY: memory of this size, which is nobody else's and lives as long as the backend.
                let into = unsafe { std::slice::from_raw_parts_mut(memory.ptr, memory.bytes) };
                for piece in into.chunks_mut(PIECE) {
                    self.offload.read(leaf, all, piece.as_ptr() as u64 - memory.ptr as u64, piece)?;
                    done += piece.len() as u64;
                    progress(done, total)?;
                }
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

    /// `bytes` bytes of a leaf from `offset` on, if they are held, when no copy reads or writes them.
    pub(super) fn settled(&mut self, leaf: Val, offset: u64, bytes: usize) -> Result<Option<HostSlice>> {
        let Some(memory) = self.held.get(&leaf) else { return Ok(None) };
        if offset.saturating_add(bytes as u64) > memory.bytes as u64 {
            let found = format!("{bytes} bytes from {offset} on, of {}", memory.bytes);
            let device = &self.backend.caps().device;
            return Err(Error::device(device, found, "this is a bug in what reads or writes values off the device"));
        }
        let part = HostSlice { ptr: memory.at(offset as usize), bytes };
        self.backend.settle(part)?;
        Ok(Some(part))
    }
}
