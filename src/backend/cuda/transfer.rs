//! Copies between host and card: through pinned memory, on a stream of their own, ordered with the kernels by events.

use cudarc::driver::{result, sys};

use super::Cuda;
use super::clock::Event;
use super::driver::fail;
use super::owned::{Pinned, Stream};
use crate::backend::Slice;
use crate::error::Result;

/// Bytes of one piece. Two are in flight: one is filled while the other travels.
const PIECE: usize = 4 << 20;

/// Pinned memory that a copy passes through, and when it is free again.
struct Room {
    host: Pinned,
    free: Event,
}

/// The stream of copies and its memory.
pub struct Transfer {
    rooms: [Room; 2],
    next: usize,
    /// Marks a point of the stream of kernels.
    kernels: Event,
    stream: Stream,
}

impl Transfer {
    pub fn new() -> Result<Transfer> {
        let room = || Ok(Room { host: Pinned::new(PIECE)?, free: Event::untimed()? });
        Ok(Transfer { rooms: [room()?, room()?], next: 0, kernels: Event::untimed()?, stream: Stream::new()? })
    }

    /// What is copied from here on comes after all kernels submitted so far.
    fn after_kernels(&self, compute: sys::CUstream) -> Result<()> {
        // SAFETY: events and streams of this context that live.
        unsafe {
            result::event::record(self.kernels.get(), compute)
                .and_then(|()| result::stream::wait_event(self.stream.get(), self.kernels.get(), WAIT))
                .map_err(|e| fail("ordering a copy", e))
        }
    }

    /// The next room, free to be written.
    fn room(&mut self) -> Result<(*mut u8, sys::CUevent)> {
        self.next = 1 - self.next;
        let room = &self.rooms[self.next];
        // SAFETY: the event lives. One that was never recorded is passed at once.
        unsafe { result::event::synchronize(room.free.get()) }.map_err(|e| fail("waiting for a copy", e))?;
        Ok((room.host.get(), room.free.get()))
    }

    fn upload(&mut self, to: u64, bytes: &[u8], compute: sys::CUstream) -> Result<()> {
        self.after_kernels(compute)?;
        let mut at = to;
        let mut last = None;
        for piece in bytes.chunks(PIECE) {
            let (host, free) = self.room()?;
            // SAFETY: the room has PIECE bytes and nothing reads them now; the destination is within an allocation
            // (the caller's check), and the room is not written again before `free` has passed.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), host, piece.len());
                let room = std::slice::from_raw_parts(host, piece.len());
                result::memcpy_htod_async(at, room, self.stream.get())
                    .and_then(|()| result::event::record(free, self.stream.get()))
                    .map_err(|e| fail("copying to the card", e))?;
            }
            at += piece.len() as u64;
            last = Some(free);
        }
        if let Some(event) = last {
            // SAFETY: stream and event live. Kernels submitted later see what was copied.
            unsafe { result::stream::wait_event(compute, event, WAIT) }.map_err(|e| fail("ordering a copy", e))?;
        }
        Ok(())
    }

    fn download(&mut self, from: u64, bytes: &mut [u8], compute: sys::CUstream) -> Result<()> {
        self.after_kernels(compute)?;
        let mut at = from;
        for piece in bytes.chunks_mut(PIECE) {
            let (host, _) = self.room()?;
            // SAFETY: as in `upload`; the room is read after the stream has finished.
            unsafe {
                let room = std::slice::from_raw_parts_mut(host, piece.len());
                result::memcpy_dtoh_async(room, at, self.stream.get())
                    .and_then(|()| result::stream::synchronize(self.stream.get()))
                    .map_err(|e| fail("copying from the card", e))?;
                std::ptr::copy_nonoverlapping(host, piece.as_mut_ptr(), piece.len());
            }
            at += piece.len() as u64;
        }
        Ok(())
    }
}

const WAIT: sys::CUevent_wait_flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;

impl Drop for Transfer {
    fn drop(&mut self) {
        // SAFETY: the stream lives. Its memory goes after this, when nothing is in flight any more.
        let _ = unsafe { result::stream::synchronize(self.stream.get()) };
    }
}

impl Cuda {
    pub(super) fn write(&mut self, to: Slice, bytes: &[u8]) -> Result<()> {
        let to = self.address(to)?;
        self.transfer.upload(to, bytes, self.compute.get())
    }

    pub(super) fn read(&mut self, from: Slice, bytes: &mut [u8]) -> Result<()> {
        let from = self.address(from)?;
        self.transfer.download(from, bytes, self.compute.get())
    }
}
