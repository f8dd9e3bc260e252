//! The device that computes nothing: plans are made, printed and counted on it without memory or a GPU.

use std::collections::HashMap;

use super::{Backend, Buffer, Caps, Launch, Recording, Slice, Target, Tiling};
use crate::error::Result;

/// A device that keeps count of allocations and launches, and nothing else.
pub struct Null {
    caps: Caps,
    buffers: HashMap<Buffer, u64>,
    next: u32,
    recordings: Vec<usize>,
    /// Launches replayed so far.
    pub launches: usize,
    /// Bytes that it says are free.
    pub free: Option<u64>,
}

impl Null {
    /// One without limits; [`Null::like`] takes those of another device.
    pub fn new() -> Null {
        Null::like(Caps {
            device: "null".into(),
            target: Target::Null,
            max_binding: u64::MAX,
            max_buffer: u64::MAX,
            max_groups: u32::MAX,
            workgroup_memory: 0,
            max_invocations: 0,
            max_bindings: u32::MAX,
            f16: false,
            compute_dtype: None,
            arch: 0,
            wgmma: false,
            multiprocessors: None,
            memory: None,
            max_flops: u64::MAX,
            subgroup: None,
            coop: false,
            software: false,
            tiling: Tiling::default(),
        })
    }

    /// One that plans as the device with `caps` would.
    pub fn like(caps: Caps) -> Null {
        Null { caps, buffers: HashMap::new(), next: 0, recordings: Vec::new(), launches: 0, free: None }
    }
}

impl Default for Null {
    fn default() -> Self {
        Null::new()
    }
}

impl Backend for Null {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        self.next += 1;
        self.buffers.insert(Buffer(self.next), bytes);
        Ok(Buffer(self.next))
    }
    fn free(&mut self, buffer: Buffer) {
        self.buffers.remove(&buffer);
    }
    fn memory(&self) -> u64 {
        self.buffers.values().sum()
    }
    fn free_memory(&self) -> Option<u64> {
        self.free
    }
    fn upload(&mut self, _: Slice, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn download(&mut self, _: Slice, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }
    fn copy(&mut self, _: Slice, _: Slice) -> Result<()> {
        Ok(())
    }
    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        self.recordings.push(launches.len());
        Ok(Recording(self.recordings.len() as u32 - 1))
    }
    fn replay(&mut self, recording: Recording) -> Result<()> {
        self.launches += self.recordings[recording.0 as usize];
        Ok(())
    }
    fn forget(&mut self, _: Recording) {}
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
