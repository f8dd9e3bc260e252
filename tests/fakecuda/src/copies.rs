//! Memory: allocations of device and pinned memory, and copies between the two.

use std::ops::Range;

use crate::abi::{self, NON_BLOCKING};
use crate::driver::{Answer, Block, Driver, Refusal, found};
use crate::history::{History, Mark};
use crate::kernels::race;
use crate::pages::{self, Flight};

impl Driver {
    pub fn allocate(&mut self, bytes: u64) -> Answer<u64> {
        let context = self.current()?;
        if bytes == 0 {
            return found(abi::INVALID_VALUE, "an allocation of 0 bytes");
        }
        if bytes > self.settings.memory - self.used {
            return Err(Refusal::Code(abi::OUT_OF_MEMORY));
        }
        let address = self.memory.alloc_uninit(&format!("allocation of {bytes} bytes"), bytes as usize);
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        self.blocks.insert(address, Block { context, bytes, history: History::default() });
        Ok(address)
    }

    /// Waits for all work, as the driver does, and frees.
    pub fn free(&mut self, address: u64) -> Answer {
        self.current()?;
        let Some(block) = self.blocks.remove(&address) else {
            return found(abi::INVALID_VALUE, format!("{address:#x} is no allocation, or was freed before"));
        };
        self.own("the allocation", block.context)?;
        self.host_after_all();
        self.memory.free(address);
        self.used -= block.bytes;
        Ok(())
    }

    pub fn pin(&mut self, bytes: u64) -> Answer<u64> {
        let context = self.current()?;
        match pages::map(bytes) {
            Some(address) if bytes > 0 => {
                self.pinned.insert(address, Block { context, bytes, history: History::default() });
                Ok(address)
            }
            _ => Err(Refusal::Code(abi::OUT_OF_MEMORY)),
        }
    }

    /// Pinned memory goes at once: a copy that is under way there is the caller's fault.
    pub fn unpin(&mut self, address: u64) -> Answer {
        self.current()?;
        let Some(block) = self.pinned.get(&address) else {
            return found(abi::INVALID_VALUE, format!("{address:#x} is no pinned allocation, or was freed before"));
        };
        self.own("the pinned allocation", block.context)?;
        if let Some(mark) = block.history.open(&self.host) {
            return found(abi::UNKNOWN, format!("the host has not waited for {} in this memory", mark.what));
        }
        pages::unmap(address, block.bytes);
        self.pinned.remove(&address);
        Ok(())
    }

    /// Whether a range of host memory is pinned; one that is in part is a finding.
    fn is_pinned(&self, range: &Range<u64>) -> Answer<bool> {
        let Some((base, block)) = self.pinned.range(..=range.start).next_back() else { return Ok(false) };
        let end = base + block.bytes;
        match (range.start < end, range.end <= end) {
            (true, true) => Ok(true),
            (true, false) => {
                let over = range.end - end;
                found(
                    abi::INVALID_VALUE,
                    format!("a copy goes {over} bytes past pinned memory of {} bytes", block.bytes),
                )
            }
            _ => Ok(false),
        }
    }

    /// Notes what a copy does in pinned memory, and keeps the host from it until it has waited.
    fn fly(&mut self, range: Range<u64>, writes: bool, view: &crate::clock::Clock, mark: &Mark) -> Answer {
        if let Some((&base, block)) = self.pinned.range_mut(..=range.start).next_back() {
            let at = range.start - base..range.end - base;
            let place = format!("pinned memory of {} bytes", block.bytes);
            block.history.touch(at, writes, view, mark).map_err(|c| race(mark, writes, &place, &c))?;
        }
        self.flights.push(Flight { range, writes, mark: mark.clone() });
        pages::guard(&self.flights, self.settings.fatal);
        Ok(())
    }

    /// A copy between `host` and device memory at `device`.
    pub fn transfer(&mut self, stream: usize, host: u64, device: u64, bytes: u64, down: bool) -> Answer {
        if self.stream(stream)?.capture.is_some() {
            return found(abi::CAPTURE_UNSUPPORTED, "a copy from or to the host in a capture is not modelled");
        }
        let range = host..host + bytes;
        let pinned = self.is_pinned(&range)?;
        if bytes > 0 && !pinned && !pages::mapped(host, bytes) {
            return found(abi::INVALID_VALUE, format!("{bytes} bytes at {host:#x} of the host are not in memory"));
        }
        let way = if down { "to" } else { "from" };
        let (view, mark) = self.step(stream, &format!("a copy {way} the host on stream {stream:#x}"))?;
        self.touch(device, bytes, !down, &view, &mark)?;
        let text = |text| Refusal::Found(abi::INVALID_VALUE, text);
        pages_of(pinned, &range);
        if down {
            let data = self.memory.fetch(device, bytes as usize).map_err(text)?;
            // SAFETY: the caller's memory of that size, which is there and unlocked above.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host as *mut u8, bytes as usize) };
        } else {
            // SAFETY: as above.
            let data = unsafe { std::slice::from_raw_parts(host as *const u8, bytes as usize) };
            self.memory.store(device, data).map_err(text)?;
        }
        self.now += 1000 + bytes / 8;
        if !down && self.streams.iter().any(|(_, other)| other.clock.at(other.actor) > view.at(other.actor)) {
            self.beside += bytes;
        }
        match (pinned, down) {
            (true, _) => self.fly(range, down, &view, &mark),
            // Pageable memory is copied to a place of the driver's before the call returns, and to it before too.
            (false, true) => {
                self.host_after(&view);
                Ok(())
            }
            (false, false) => Ok(()),
        }
    }

    /// A new stream; one that waits for the default stream is not modelled.
    pub fn new_stream(&mut self, flags: u32) -> Answer<usize> {
        let context = self.current()?;
        if flags != NON_BLOCKING {
            return found(abi::INVALID_VALUE, "a stream that the default stream waits for is not modelled");
        }
        self.actors += 1;
        let stream = crate::driver::Stream { context, actor: self.actors, clock: Default::default(), capture: None };
        Ok(self.streams.add(stream))
    }
}

fn pages_of(pinned: bool, range: &Range<u64>) {
    if pinned && !range.is_empty() {
        pages::unlock(range);
    }
}
