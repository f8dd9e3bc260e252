//! Simulated global memory: one allocation a buffer, each with bounds, an "initialised" flag a byte, and a race shadow.

use std::ops::Range;

use crate::finding::Kind;
use crate::host::Touched;
use crate::shadow::{Cell, Conflict, Who};

/// Buffers lie 2^40 bytes apart, so that an address says which buffer it was meant for.
const STRIDE_BITS: u32 = 40;
/// A buffer begins in the middle of its range: a negative offset is still its own.
const MIDDLE: u64 = 1 << (STRIDE_BITS - 1);

/// Bytes whose race cells are made together: a launch mostly touches a small part of a large buffer.
const CHUNK: usize = 512;

pub(crate) struct Buffer {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Which bytes were written; empty where all were.
    pub(crate) known: Vec<bool>,
    read_only: bool,
    pub(crate) freed: bool,
    /// Which bytes the running launch touches, where that is asked for.
    pub(crate) touched: Option<Touched>,
    /// Race cells of the running launch, by chunks of [`CHUNK`]; those that nothing has touched are not there.
    cells: Vec<Option<Box<[Cell]>>>,
}

/// Global memory of a simulated device.
#[derive(Default)]
pub struct Memory {
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) watching: bool,
}

/// A broken rule, before its place is known.
#[derive(Debug)]
pub struct Fault {
    pub kind: Kind,
    pub text: String,
    /// The other side of a race.
    pub conflict: Option<Conflict>,
    /// The lane, where an instruction runs for many at once.
    pub lane: Option<usize>,
}

impl Fault {
    pub fn new(kind: Kind, text: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, text: text.into(), conflict: None, lane: None })
    }

    pub fn race(text: String, conflict: Conflict) -> Box<Fault> {
        Box::new(Fault { kind: Kind::Race, text, conflict: Some(conflict), lane: None })
    }
}

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub write: bool,
    /// Atomic, volatile, relaxed, …: no race with others of its kind.
    pub strong: bool,
}

impl Wish {
    pub const READ: Wish = Wish { write: false, strong: false };
    pub const WRITE: Wish = Wish { write: true, strong: false };

    pub fn verb(self) -> &'static str {
        if self.write { "write" } else { "read" }
    }
}

/// A place in a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    buffer: usize,
    offset: usize,
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    /// A buffer with these bytes, all initialised; its device address.
    pub fn alloc(&mut self, name: &str, bytes: &[u8]) -> u64 {
        self.push(name, bytes.to_vec(), Vec::new())
    }

    /// A buffer of this many bytes, of which reading any before it is written is a finding.
    pub fn alloc_uninit(&mut self, name: &str, bytes: usize) -> u64 {
        self.push(name, vec![0xcd; bytes], vec![false; bytes])
    }

    fn push(&mut self, name: &str, bytes: Vec<u8>, known: Vec<bool>) -> u64 {
        let name = name.to_owned();
        let (read_only, freed, touched, cells) = (false, false, None, Vec::new());
        self.buffers.push(Buffer { name, bytes, known, read_only, freed, touched, cells });
        ((self.buffers.len() as u64) << STRIDE_BITS) + MIDDLE
    }

    pub(crate) fn index(&self, address: u64) -> Option<usize> {
        let index = (address >> STRIDE_BITS).checked_sub(1)? as usize;
        (index < self.buffers.len()).then_some(index)
    }

    pub(crate) fn base(index: usize) -> u64 {
        ((index as u64 + 1) << STRIDE_BITS) + MIDDLE
    }

    /// The whole buffer that this address lies in, as it is now.
    ///
    /// # Panics
    /// Where no buffer has the address.
    pub fn read(&self, address: u64) -> &[u8] {
        let index = self.index(address).expect("an address that alloc returned");
        &self.buffers[index].bytes
    }

    /// Makes a write to this buffer a finding, and its reads cheap.
    ///
    /// # Panics
    /// Where no buffer has the address.
    pub fn read_only(&mut self, address: u64) {
        let index = self.index(address).expect("an address that alloc returned");
        self.buffers[index].read_only = true;
    }

    pub(crate) fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Forgets the buffers after the first `count`, and all races: a launch is over.
    pub(crate) fn finish(&mut self, count: usize) {
        self.buffers.truncate(count);
        for buffer in &mut self.buffers {
            buffer.cells = Vec::new();
        }
    }

    /// The place of `bytes` at `address`, if it is one buffer's and `wish` is allowed.
    pub(crate) fn locate(&self, address: u64, bytes: usize, wish: Wish) -> Result<Spot, Box<Fault>> {
        let outside = |text: String| Err(Fault::new(Kind::OutOfBounds, text));
        let verb = wish.verb();
        let Some(index) = self.index(address) else {
            return outside(format!("{verb} of {bytes} bytes at {address:#x}, which is in no buffer"));
        };
        let buffer = &self.buffers[index];
        if buffer.freed {
            return outside(format!("{verb} of {bytes} bytes at {address:#x} of '{}', which was freed", buffer.name));
        }
        let offset = address.wrapping_sub(Memory::base(index)) as i64;
        if offset < 0 || offset as usize + bytes > buffer.bytes.len() {
            let (name, size) = (&buffer.name, buffer.bytes.len());
            return outside(format!("{verb} of {bytes} bytes at offset {offset} of buffer '{name}' of {size} bytes"));
        }
        if wish.write && buffer.read_only {
            let text =
                format!("write of {bytes} bytes at offset {offset} of buffer '{}', which is only read", buffer.name);
            return Err(Fault::new(Kind::ReadOnly, text));
        }
        Ok(Spot { buffer: index, offset: offset as usize })
    }

    /// Checks initialisation and races of an access, and notes it.
    pub(crate) fn note(&mut self, spot: Spot, bytes: usize, wish: Wish, who: &Who) -> Result<(), Box<Fault>> {
        let buffer = &mut self.buffers[spot.buffer];
        let range = spot.offset..spot.offset + bytes;
        if self.watching {
            let size = buffer.bytes.len();
            buffer.touched.get_or_insert_with(|| Touched::new(size)).add(range.clone(), wish.write);
        }
        if !buffer.known.is_empty() {
            let known = &mut buffer.known[range.clone()];
            if wish.write {
                known.fill(true);
            } else if let Some(i) = known.iter().position(|k| !k) {
                let (name, offset) = (&buffer.name, spot.offset + i);
                let text = format!("read of byte {offset} of buffer '{name}', which nothing has written");
                return Err(Fault::new(Kind::Uninitialised, text));
            }
        }
        if buffer.read_only {
            return Ok(());
        }
        if buffer.cells.is_empty() {
            buffer.cells.resize_with(buffer.bytes.len().div_ceil(CHUNK), || None);
        }
        let mut at = range.start;
        while at < range.end {
            let upto = (at / CHUNK * CHUNK + CHUNK).min(range.end);
            let chunk = buffer.cells[at / CHUNK].get_or_insert_with(|| vec![[0; 4]; CHUNK].into_boxed_slice());
            let first = at % CHUNK;
            who.touch(&mut chunk[first..first + upto - at], wish.write, wish.strong, false).map_err(|conflict| {
                let at = at + conflict.offset;
                Fault::race(format!("{} of byte {at} of buffer '{}'", wish.verb(), buffer.name), conflict)
            })?;
            at = upto;
        }
        Ok(())
    }

    /// The buffer of a place, and the place's bytes in it.
    pub(crate) fn place(&self, spot: Spot, bytes: usize) -> (usize, Range<usize>) {
        (spot.buffer, spot.offset..spot.offset + bytes)
    }

    pub(crate) fn range(&self, spot: Spot, bytes: usize) -> (&Buffer, Range<usize>) {
        let (index, range) = self.place(spot, bytes);
        (&self.buffers[index], range)
    }

    /// A place as messages name it.
    pub(crate) fn spell(&self, spot: Spot) -> String {
        format!("offset {} of buffer '{}'", spot.offset, self.buffers[spot.buffer].name)
    }

    pub(crate) fn bytes(&self, spot: Spot, bytes: usize) -> &[u8] {
        &self.buffers[spot.buffer].bytes[spot.offset..spot.offset + bytes]
    }

    pub(crate) fn bytes_mut(&mut self, spot: Spot, bytes: usize) -> &mut [u8] {
        &mut self.buffers[spot.buffer].bytes[spot.offset..spot.offset + bytes]
    }
}
