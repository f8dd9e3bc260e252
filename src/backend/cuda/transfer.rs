//! Copies between host and card: through pinned memory, on streams of their own, ordered with the kernels by events.
//!
//! A copy that may wait for an earlier point of the kernels than the last runs beside those after that point. What is copied
//! from staging memory, or into it, which is pinned as a whole, passes through no other. What goes there from the card has a
//! stream for itself: it is after kernels that copies to the card need not wait for. The host waits for it in `settle` only,
//! and kernels that are submitted later wait for it on the card, since its place is theirs then.

use std::ops::Range;

use cudarc::driver::{result, sys};

use super::Cuda;
use super::clock::Event;
use super::driver::fail;
use super::owned::{Pinned, Stream};
use crate::backend::{HostSlice, Point, Slice};
use crate::error::Result;

/// Bytes of one piece. Two are in flight: one is filled while the other travels.
const PIECE: usize = 4 << 20;

/// Pinned memory that a copy passes through, and when it is free again.
struct Room {
    host: Pinned,
    free: Event,
}

/// A copy from staging memory or into it that may be under way.
struct Flight {
    /// Addresses of the staging memory.
    range: Range<usize>,
    over: Event,
}

/// The streams of copies and their memory.
pub struct Transfer {
    rooms: [Room; 2],
    next: usize,
    /// Marks a point of the stream of kernels.
    kernels: Event,
    /// Such points that copies are yet to wait for, by number, and the numbers that are free.
    points: Vec<Event>,
    free: Vec<u32>,
    staging: Vec<Pinned>,
    flights: Vec<Flight>,
    /// Events of copies that are over.
    spare: Vec<Event>,
    stream: Stream,
    /// For what goes from the card into staging memory.
    leaving: Stream,
}

impl Transfer {
    pub fn new() -> Result<Transfer> {
        let room = || Ok(Room { host: Pinned::new(PIECE)?, free: Event::untimed()? });
        Ok(Transfer {
            rooms: [room()?, room()?],
            next: 0,
            kernels: Event::untimed()?,
            points: Vec::new(),
            free: Vec::new(),
            staging: Vec::new(),
            flights: Vec::new(),
            spare: Vec::new(),
            stream: Stream::new()?,
            leaving: Stream::new()?,
        })
    }

    /// The point after all kernels submitted so far.
    pub fn point(&mut self, compute: sys::CUstream) -> Result<Point> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.points.push(Event::untimed()?);
                self.points.len() as u32 - 1
            }
        };
        self.points[number as usize].record(compute)?;
        Ok(Point(number))
    }

    /// Pinned memory that copies are made from where it is; none if there is no more.
    pub fn pin(&mut self, bytes: usize) -> Result<Option<HostSlice>> {
        let Some(pinned) = Pinned::some(bytes)? else { return Ok(None) };
        let memory = pinned.get();
        // SAFETY: just allocated, of that size; what is in it is nobody's yet.
        unsafe { memory.ptr.write_bytes(0, bytes) };
        self.staging.push(pinned);
        Ok(Some(memory))
    }

    /// Waits until no copy reads `memory` or writes it.
    pub fn settle(&mut self, memory: HostSlice) -> Result<()> {
        let memory = addresses(memory.ptr, memory.bytes);
        let overlaps = |f: &Flight| f.range.start < memory.end && memory.start < f.range.end;
        while let Some(at) = self.flights.iter().position(overlaps) {
            wait(&self.flights[at].over)?;
            let done = self.flights.swap_remove(at);
            self.spare.push(done.over);
        }
        Ok(())
    }

    /// Notes a copy from staging memory or into it that was just put on a stream; kernels submitted later come after it.
    fn flies(&mut self, range: Range<usize>, stream: sys::CUstream, compute: sys::CUstream) -> Result<()> {
        let over = self.spare.pop().map_or_else(Event::untimed, Ok)?;
        over.record(stream)?;
        order(compute, &over)?;
        self.flights.push(Flight { range, over });
        Ok(())
    }

    fn is_staging(&self, range: &Range<usize>) -> bool {
        let whole = |p: &Pinned| addresses(p.get().ptr, p.get().bytes);
        self.staging.iter().map(whole).any(|all| all.start <= range.start && range.end <= all.end)
    }

    /// What is put on a stream of copies from here on comes after all kernels submitted so far.
    fn after_kernels(&self, stream: sys::CUstream, compute: sys::CUstream) -> Result<()> {
        self.kernels.record(compute)?;
        order(stream, &self.kernels)
    }

    /// What is copied from here on comes after a point, which is used up.
    fn after_point(&mut self, point: Point) -> Result<()> {
        order(self.stream.get(), &self.points[point.0 as usize])?;
        self.free.push(point.0);
        Ok(())
    }

    /// The next room, free to be written.
    fn room(&mut self) -> Result<&Room> {
        self.next = 1 - self.next;
        let room = &self.rooms[self.next];
        wait(&room.free)?;
        Ok(room)
    }

    /// Copies `bytes` to the card, after what the stream of copies waits for; kernels submitted later see them.
    fn upload(&mut self, to: u64, bytes: &[u8], compute: sys::CUstream) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.is_staging(&addresses(bytes.as_ptr(), bytes.len())) {
            return self.upload_staged(to, bytes, compute);
        }
        let stream = self.stream.get();
        let mut at = to;
        for piece in bytes.chunks(PIECE) {
            let room = self.room()?;
            // SAFETY: the room has PIECE bytes and nothing reads them now; the destination is within an allocation
            // (the caller's check), and the room is not written again before `free` has passed.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), room.host.get().ptr, piece.len());
                let host = std::slice::from_raw_parts(room.host.get().ptr, piece.len());
                result::memcpy_htod_async(at, host, stream).map_err(|e| fail("copying to the card", e))?;
            }
            room.free.record(stream)?;
            at += piece.len() as u64;
        }
        order(compute, &self.rooms[self.next].free)
    }

    /// The same from staging memory, which is read where it is until [`settle`](Self::settle) has waited.
    fn upload_staged(&mut self, to: u64, bytes: &[u8], compute: sys::CUstream) -> Result<()> {
        let stream = self.stream.get();
        // SAFETY: pinned memory of this size, which stays until the stream has ended (`drop`), and which its user writes only
        // after `settle`; the destination is within an allocation (the caller's check).
        unsafe { result::memcpy_htod_async(to, bytes, stream) }.map_err(|e| fail("copying to the card", e))?;
        self.flies(addresses(bytes.as_ptr(), bytes.len()), stream, compute)
    }

    /// Starts to copy into staging memory.
    ///
    /// # Safety
    /// Until [`settle`](Self::settle) has waited, nothing else may touch `to`.
    unsafe fn download_staged(&mut self, from: u64, to: HostSlice, compute: sys::CUstream) -> Result<()> {
        let stream = self.leaving.get();
        self.after_kernels(stream, compute)?;
        // SAFETY: pinned memory of this size, which stays until the stream has ended (`drop`), and which is the caller's to
        // give; the source is within an allocation (the caller's check).
        unsafe { result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(to.ptr, to.bytes), from, stream) }
            .map_err(|e| fail("copying from the card", e))?;
        self.flies(addresses(to.ptr, to.bytes), stream, compute)
    }

    fn download(&mut self, from: u64, bytes: &mut [u8], compute: sys::CUstream) -> Result<()> {
        let stream = self.stream.get();
        self.after_kernels(stream, compute)?;
        let mut at = from;
        for piece in bytes.chunks_mut(PIECE) {
            let room = self.room()?;
            // SAFETY: as in `upload`; the room is read after the stream has finished.
            unsafe {
                let host = std::slice::from_raw_parts_mut(room.host.get().ptr, piece.len());
                result::memcpy_dtoh_async(host, at, stream)
                    .and_then(|()| result::stream::synchronize(stream))
                    .map_err(|e| fail("copying from the card", e))?;
                std::ptr::copy_nonoverlapping(room.host.get().ptr, piece.as_mut_ptr(), piece.len());
            }
            at += piece.len() as u64;
        }
        Ok(())
    }
}

fn addresses(first: *const u8, bytes: usize) -> Range<usize> {
    first as usize..first as usize + bytes
}

/// The host waits until `event` has passed. One that was never recorded has.
fn wait(event: &Event) -> Result<()> {
    // SAFETY: the event lives.
    unsafe { result::event::synchronize(event.get()) }.map_err(|e| fail("waiting for a copy", e))
}

/// What is put on `stream` from here on comes after what `event` marks.
fn order(stream: sys::CUstream, event: &Event) -> Result<()> {
    const WAIT: sys::CUevent_wait_flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: stream and event live, and are of this context.
    unsafe { result::stream::wait_event(stream, event.get(), WAIT) }.map_err(|e| fail("ordering a copy", e))
}

impl Drop for Transfer {
    fn drop(&mut self) {
        for stream in [&self.stream, &self.leaving] {
            // SAFETY: the stream lives. The memory goes after this, when nothing is in flight any more.
            let _ = unsafe { result::stream::synchronize(stream.get()) };
        }
    }
}

impl Cuda {
    pub(super) fn write(&mut self, to: Slice, bytes: &[u8]) -> Result<()> {
        let to = self.address(to)?;
        self.transfer.after_kernels(self.transfer.stream.get(), self.compute.get())?;
        self.transfer.upload(to, bytes, self.compute.get())
    }

    pub(super) fn write_after(&mut self, point: Point, to: Slice, bytes: &[u8]) -> Result<()> {
        let to = self.address(to)?;
        self.transfer.after_point(point)?;
        self.transfer.upload(to, bytes, self.compute.get())
    }

    pub(super) fn read(&mut self, from: Slice, bytes: &mut [u8]) -> Result<()> {
        let from = self.address(from)?;
        self.transfer.download(from, bytes, self.compute.get())
    }

    /// # Safety
    /// As [`Backend::download_into`](crate::backend::Backend::download_into).
    pub(super) unsafe fn read_into(&mut self, from: Slice, to: HostSlice) -> Result<()> {
        let address = self.address(from)?;
        if to.bytes > 0 && self.transfer.is_staging(&addresses(to.ptr, to.bytes)) {
            // SAFETY: the caller gives the range.
            return unsafe { self.transfer.download_staged(address, to, self.compute.get()) };
        }
        // SAFETY: the caller gives the range.
        self.transfer.download(address, unsafe { std::slice::from_raw_parts_mut(to.ptr, to.bytes) }, self.compute.get())
    }
}
