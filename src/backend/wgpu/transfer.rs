//! Bytes to the device, from it, and within it, in chunks through staging buffers that are kept.
//!
//! WebGPU copies whole words and not from a buffer to itself; both are made up for here.

use std::sync::mpsc;

use wgpu::{BufferUsages, MapMode, SubmissionIndex};

use super::Wgpu;
use crate::backend::Slice;
use crate::error::Result;

/// Bytes moved at a time.
const CHUNK: u64 = 4 << 20;

/// Bytes that may wait in the queue's own staging memory before they are sent off, at least; as many again may be on their way.
const IN_FLIGHT: u64 = 8 * CHUNK;

pub struct Transfer {
    /// For reading back: the host maps it. [`CHUNK`] bytes, made when first needed.
    down: Option<wgpu::Buffer>,
    /// For copies within one buffer. Likewise.
    across: Option<wgpu::Buffer>,
    /// Bytes written since the last submit of writes, and that submit.
    queued: u64,
    sent: Option<SubmissionIndex>,
    /// How many may be written before the next.
    limit: u64,
}

impl Transfer {
    pub fn new() -> Transfer {
        Transfer { down: None, across: None, queued: 0, sent: None, limit: IN_FLIGHT }
    }

    /// Makes room in the queue for `bytes` of transfers. What is written while kernels run is copied into the queue's mapped
    /// memory at once, and to the device when they are done; with less room the host would wait for them first, and copy the
    /// rest while the device has nothing to do.
    pub fn make_room(&mut self, bytes: u64) {
        self.limit = self.limit.max(bytes / 2);
    }
}

/// The words that cover `start..start + n`: aligned start, and their bytes.
fn cover(start: u64, n: u64) -> (u64, u64) {
    let from = start & !3;
    (from, (start + n).next_multiple_of(4) - from)
}

impl Wgpu {
    pub(super) fn write(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        self.buffer(dst)?;
        self.gpu.check()?;
        let (from, n) = cover(dst.offset, dst.bytes);
        if (from, n) == (dst.offset, dst.bytes) {
            return self.write_words(dst, src);
        }
        if n <= 8 {
            // A few bytes within words whose other bytes must stay.
            let words = Slice { offset: from, bytes: n, ..dst };
            let mut whole = [0u8; 8];
            self.read(words, &mut whole[..n as usize])?;
            let at = (dst.offset - from) as usize;
            whole[at..at + src.len()].copy_from_slice(src);
            return self.write_words(words, &whole[..n as usize]);
        }
        let head = (dst.offset.next_multiple_of(4) - dst.offset) as usize;
        let body = (src.len() - head) / 4 * 4;
        let mut offset = dst.offset;
        for part in [&src[..head], &src[head..head + body], &src[head + body..]] {
            if !part.is_empty() {
                self.write(Slice { offset, bytes: part.len() as u64, ..dst }, part)?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn write_words(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        let buffer = self.buffer(dst)?.clone();
        let mut offset = dst.offset;
        for chunk in src.chunks(CHUNK as usize) {
            self.gpu.queue.write_buffer(&buffer, offset, chunk);
            offset += chunk.len() as u64;
            self.transfer.queued += chunk.len() as u64;
            if self.transfer.queued >= self.transfer.limit {
                self.transfer.queued = 0;
                let index = self.gpu.queue.submit([]);
                if let Some(earlier) = self.transfer.sent.replace(index) {
                    self.gpu.wait(Some(earlier))?;
                }
            }
        }
        self.gpu.check()
    }

    pub(super) fn read(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        let buffer = self.buffer(src)?.clone();
        let down = match &self.transfer.down {
            Some(b) => b.clone(),
            None => self.allocate("download", CHUNK, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?,
        };
        self.transfer.down = Some(down.clone());
        let mut offset = src.offset;
        for part in dst.chunks_mut(CHUNK as usize - 8) {
            let (from, n) = cover(offset, part.len() as u64);
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&buffer, from, &down, 0, n);
            let index = self.gpu.queue.submit([encoder.finish()]);
            let (send, receive) = mpsc::channel();
            down.slice(0..n).map_async(MapMode::Read, move |result| {
                // The receiver is gone only if we stopped waiting.
                let _ = send.send(result);
            });
            self.gpu.wait(Some(index))?;
            let failed = |what: String| self.gpu.error(what, "reading back failed");
            match receive.recv_timeout(super::PATIENCE) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(failed(e.to_string())),
                Err(e) => return Err(failed(e.to_string())),
            }
            {
                let view = down.slice(0..n).get_mapped_range().map_err(|e| failed(e.to_string()))?;
                let at = (offset - from) as usize;
                part.copy_from_slice(&view[at..at + part.len()]);
            }
            down.unmap();
            offset += part.len() as u64;
        }
        self.gpu.check()
    }

    /// Copies as many bytes as both ranges have; they may overlap.
    pub(super) fn duplicate(&mut self, dst: Slice, src: Slice) -> Result<()> {
        let bytes = dst.bytes.min(src.bytes);
        let (dst, src) = (Slice { bytes, ..dst }, Slice { bytes, ..src });
        let (to, from) = (self.buffer(dst)?.clone(), self.buffer(src)?.clone());
        if !(dst.offset | src.offset | bytes).is_multiple_of(4) {
            // Odd bytes are rare (a part of a quantized tensor): through the host.
            let mut host = vec![0; bytes as usize];
            self.read(src, &mut host)?;
            return self.write(dst, &host);
        }
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        if dst.buffer != src.buffer {
            encoder.copy_buffer_to_buffer(&from, src.offset, &to, dst.offset, bytes);
        } else {
            let across = match &self.transfer.across {
                Some(b) => b.clone(),
                None => self.allocate("copy", CHUNK, BufferUsages::COPY_SRC | BufferUsages::COPY_DST)?,
            };
            self.transfer.across = Some(across.clone());
            // Like memmove: from the end that is not overwritten before it is read.
            let starts: Vec<u64> = (0..bytes).step_by(CHUNK as usize).collect();
            let ordered: Box<dyn Iterator<Item = &u64>> =
                if dst.offset <= src.offset { Box::new(starts.iter()) } else { Box::new(starts.iter().rev()) };
            for &start in ordered {
                let n = CHUNK.min(bytes - start);
                encoder.copy_buffer_to_buffer(&from, src.offset + start, &across, 0, n);
                encoder.copy_buffer_to_buffer(&across, 0, &to, dst.offset + start, n);
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    /// Nothing is waited for until the room is full; without it, the second part of a block is.
    #[test]
    fn what_there_is_room_for_is_not_waited_for() {
        if crate::backend::wgpu::adapters().is_empty() {
            eprintln!("SKIPPED: no adapter");
            return;
        }
        let bytes = vec![7u8; 2 * IN_FLIGHT as usize];
        for (room, waits) in [(0, true), (IN_FLIGHT, true), (5 * IN_FLIGHT, false)] {
            let mut gpu = Wgpu::new(None).unwrap();
            assert!(gpu.staging(room).unwrap().is_none());
            let buffer = gpu.alloc(bytes.len() as u64).unwrap();
            let whole = Slice { buffer, offset: 0, bytes: bytes.len() as u64 };
            gpu.upload(whole, &bytes).unwrap();
            assert_eq!(gpu.transfer.sent.is_some(), waits, "room for {room} bytes");
            let mut read = vec![0; 8];
            gpu.download(Slice { offset: whole.bytes - 8, bytes: 8, ..whole }, &mut read).unwrap();
            assert_eq!(read, [7; 8]);
        }
    }
}
