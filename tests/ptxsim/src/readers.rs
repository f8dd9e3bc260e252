//! Asynchronous reads of shared memory: what wgmma and tensor stores read stays theirs until a thread has waited for them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::finding::Kind;
use crate::memory::Fault;
use crate::shadow::Who;

/// Bytes that one bit of a reading stands for: the asynchronous proxy moves no less.
const CHUNK: usize = 16;

/// The number of an asynchronous operation in its block.
pub type Id = u64;

/// An asynchronous operation that reads shared memory.
struct Reading {
    what: &'static str,
    /// Which chunks, a bit each.
    chunks: Vec<u64>,
    /// Stamps of threads that have waited for it: who comes after one of them may write.
    waited: Vec<u64>,
}

impl Reading {
    fn has(&self, range: &Range<usize>) -> bool {
        (range.start / CHUNK..range.end.div_ceil(CHUNK))
            .any(|c| self.chunks.get(c / 64).is_some_and(|w| w >> (c % 64) & 1 == 1))
    }
}

/// The asynchronous reads of a block, under way or over but not yet written over.
#[derive(Default)]
pub struct Readers {
    next: Id,
    readings: BTreeMap<Id, Reading>,
}

impl Readers {
    /// An operation begins that reads these 16-byte chunks, by the offsets of their first bytes.
    pub fn begin(&mut self, what: &'static str, starts: &[usize]) -> Id {
        let mut chunks = vec![0; starts.iter().max().map_or(0, |c| c / CHUNK / 64 + 1)];
        for start in starts {
            chunks[start / CHUNK / 64] |= 1 << (start / CHUNK % 64);
        }
        self.next += 1;
        self.readings.insert(self.next, Reading { what, chunks, waited: Vec::new() });
        self.next
    }

    /// Threads, by their stamps, have waited for an operation.
    pub fn waited(&mut self, id: Id, stamps: impl Iterator<Item = u64>) {
        let Some(reading) = self.readings.get_mut(&id) else { return };
        reading.waited.extend(stamps);
        // An earlier read of the same place is over too: groups end in order.
        let (what, chunks) = (reading.what, reading.chunks.clone());
        let same = |r: &Reading| r.what == what && r.chunks == chunks && !r.waited.is_empty();
        self.readings.retain(|&i, r| i >= id || !same(r));
    }

    /// Checks a write by `who` of these bytes. `spell` names an offset.
    pub fn written(&self, range: &Range<usize>, who: &Who, spell: impl Fn(usize) -> String) -> Result<(), Box<Fault>> {
        for reading in self.readings.values().filter(|r| r.has(range)) {
            let (what, place) = (reading.what, spell(range.start));
            if reading.waited.is_empty() {
                let text = format!("write of {place}, or of bytes after it, while {what} that reads it is in flight");
                return Err(Fault::new(Kind::AsyncInFlight, text));
            }
            if !reading.waited.iter().any(|&stamp| who.after(stamp)) {
                let text = format!(
                    "write of {place}, or of bytes after it, which {what} reads, by a thread that nothing orders after \
                     the wait for it"
                );
                return Err(Fault::new(Kind::Race, text));
            }
        }
        Ok(())
    }

    /// Forgets what read whole chunks of `range`: they have been written over, in order.
    pub fn forget(&mut self, range: &Range<usize>) {
        let (first, last) = (range.start / CHUNK, range.end / CHUNK);
        self.readings.retain(|_, r| {
            for c in first..last.min(64 * r.chunks.len()) {
                r.chunks[c / 64] &= !(1 << (c % 64));
            }
            r.chunks.iter().any(|&w| w != 0)
        });
    }
}
