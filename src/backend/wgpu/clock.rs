//! The device's own clock: what it read at the beginning and at the end of a pass.

use std::sync::mpsc;

use wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePassTimestampWrites, MapMode, QuerySet,
    QuerySetDescriptor, QueryType,
};

use super::Gpu;
use crate::error::Result;

/// Two readings of 64 bits.
const BYTES: u64 = 16;

/// Two readings, and where they go.
pub struct Clock {
    readings: QuerySet,
    resolved: Buffer,
    mapped: Buffer,
}

impl Clock {
    /// On a device that has timestamp queries.
    pub fn new(gpu: &Gpu) -> Clock {
        let buffer = |label, usage| {
            let descriptor = BufferDescriptor { label: Some(label), size: BYTES, usage, mapped_at_creation: false };
            gpu.device.create_buffer(&descriptor)
        };
        let query = QuerySetDescriptor { label: Some("clock"), ty: QueryType::Timestamp, count: 2 };
        Clock {
            readings: gpu.device.create_query_set(&query),
            resolved: buffer("clock", BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            mapped: buffer("clock, mapped", BufferUsages::COPY_DST | BufferUsages::MAP_READ),
        }
    }

    /// What a pass is told to read.
    pub fn writes(&self) -> ComputePassTimestampWrites<'_> {
        ComputePassTimestampWrites {
            query_set: &self.readings,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// What must follow the pass.
    pub fn resolve(&self, encoder: &mut CommandEncoder) {
        encoder.resolve_query_set(&self.readings, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.mapped, 0, BYTES);
    }

    /// Waits for the pass; the ticks that it took.
    pub fn read(&self, gpu: &Gpu) -> Result<u64> {
        let (done, wait) = mpsc::channel();
        self.mapped.slice(..).map_async(MapMode::Read, move |result| {
            // Nobody waits any more if the device was lost.
            let _ = done.send(result);
        });
        gpu.wait(None)?;
        let failed = |what: String| gpu.error(format!("reading its clock failed: {what}"), "the device may be lost");
        match wait.recv_timeout(super::PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(e) => return Err(failed(e.to_string())),
        }
        let readings: [u64; 2] = {
            let view = self.mapped.slice(..).get_mapped_range().map_err(|e| failed(e.to_string()))?;
            bytemuck::pod_read_unaligned(&view[..BYTES as usize])
        };
        self.mapped.unmap();
        Ok(readings[1].saturating_sub(readings[0]))
    }
}
