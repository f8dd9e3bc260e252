//! Memory as a driver handles it between launches: copies, freed buffers, and which bytes a launch touched.

use std::ops::Range;

use crate::memory::{Memory, Wish};

/// Which bytes of a buffer a launch has read and written, a bit each.
pub(crate) struct Touched {
    read: Vec<u64>,
    wrote: Vec<u64>,
}

impl Touched {
    pub(crate) fn new(bytes: usize) -> Touched {
        let words = bytes.div_ceil(64);
        Touched { read: vec![0; words], wrote: vec![0; words] }
    }

    pub(crate) fn add(&mut self, range: Range<usize>, write: bool) {
        let bits = if write { &mut self.wrote } else { &mut self.read };
        let (mut at, end) = (range.start, range.end);
        while at < end {
            let upto = (at / 64 * 64 + 64).min(end);
            let count = upto - at;
            let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
            bits[at / 64] |= ones << (at % 64);
            at = upto;
        }
    }
}

/// The stretches of set bits.
fn runs(bits: &[u64]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, &word) in bits.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            let start = rest.trailing_zeros() as usize;
            let count = (rest >> start).trailing_ones() as usize;
            let found = 64 * i + start..64 * i + start + count;
            match runs.last_mut() {
                Some(last) if last.end == found.start => last.end = found.end,
                _ => runs.push(found),
            }
            rest = if start + count == 64 { 0 } else { rest >> (start + count) << (start + count) };
        }
    }
    runs
}

/// Bytes of one buffer that a launch touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Address of the first.
    pub address: u64,
    pub bytes: u64,
    pub write: bool,
}

impl Memory {
    /// Has launches note what they touch, for [`Memory::touched`].
    pub fn watch(&mut self) {
        self.watching = true;
    }

    /// What was touched since this was last asked, reads first.
    pub fn touched(&mut self) -> Vec<Touch> {
        let mut found = Vec::new();
        for write in [false, true] {
            for (index, buffer) in self.buffers.iter().enumerate() {
                let Some(touched) = &buffer.touched else { continue };
                let base = Memory::base(index);
                let runs = runs(if write { &touched.wrote } else { &touched.read }).into_iter();
                found.extend(runs.map(|r| Touch { address: base + r.start as u64, bytes: r.len() as u64, write }));
            }
        }
        for buffer in &mut self.buffers {
            buffer.touched = None;
        }
        found
    }

    /// Ends a buffer: any later access to it is a finding. Says whether one begins at this address.
    pub fn free(&mut self, address: u64) -> bool {
        let Some(index) = self.index(address).filter(|&i| Memory::base(i) == address && !self.buffers[i].freed) else {
            return false;
        };
        let buffer = &mut self.buffers[index];
        (buffer.bytes, buffer.known, buffer.freed) = (Vec::new(), Vec::new(), true);
        true
    }

    /// Bytes of one buffer.
    ///
    /// # Errors
    /// They are not all in one buffer, or nothing wrote some of them.
    pub fn fetch(&self, address: u64, bytes: usize) -> Result<&[u8], String> {
        let spot = self.locate(address, bytes, Wish::READ).map_err(|fault| fault.text)?;
        let (buffer, range) = self.range(spot, bytes);
        if let Some(i) = buffer.known.get(range).and_then(|known| known.iter().position(|k| !k)) {
            return Err(format!("read of byte {i} from {address:#x} of '{}', which nothing has written", buffer.name));
        }
        Ok(self.bytes(spot, bytes))
    }

    /// Writes bytes of one buffer.
    ///
    /// # Errors
    /// They are not all in one buffer.
    pub fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let spot = self.locate(address, bytes.len(), Wish::WRITE).map_err(|fault| fault.text)?;
        self.bytes_mut(spot, bytes.len()).copy_from_slice(bytes);
        let (index, range) = self.place(spot, bytes.len());
        if let Some(known) = self.buffers[index].known.get_mut(range) {
            known.fill(true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_the_runs_they_came_from() {
        let pairs = |bits: &[u64]| runs(bits).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        let whole = [&[(0, 1)][..], &[(3, 70), (71, 72)], &[(0, 64), (128, 200)], &[(60, 64)], &[(64, 128)], &[]];
        for ranges in whole {
            let mut touched = Touched::new(200);
            ranges.iter().for_each(|&(start, end)| touched.add(start..end, true));
            assert_eq!(pairs(&touched.wrote), ranges);
            assert_eq!(pairs(&touched.read), []);
        }
        let mut touched = Touched::new(200);
        (10..90).for_each(|i| touched.add(i..i + 1, false));
        assert_eq!(pairs(&touched.read), [(10, 90)]);
    }

    #[test]
    fn freed_and_unwritten_bytes_are_refused() {
        let mut memory = Memory::new();
        let a = memory.alloc_uninit("a", 8);
        memory.store(a, &[1, 2, 3, 4]).unwrap();
        assert_eq!(memory.fetch(a + 1, 3).unwrap(), [2, 3, 4]);
        assert!(memory.fetch(a, 5).unwrap_err().contains("nothing has written"));
        assert!(memory.store(a + 5, &[0; 4]).unwrap_err().contains("of 8 bytes"));
        assert!(!memory.free(a + 4) && memory.free(a) && !memory.free(a));
        assert!(memory.fetch(a, 1).unwrap_err().contains("was freed"));
    }
}
