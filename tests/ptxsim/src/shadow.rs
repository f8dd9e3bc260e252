//! Races: who last wrote and read each byte, and which of that another thread knows to be over.
//!
//! Every lane counts the barriers it passed: its time. A byte's cell keeps stamps (block, warp, lane, time) of its last
//! write and its last reads. An access is ordered after a stamp when its thread has passed a barrier together with the
//! stamp's, at that time or later; else, where one of the two writes, they race.

/// Stamp of the last write, of the last read, of an earlier read by another thread, and both instructions.
pub type Cell = [u64; 4];
const WRITE: usize = 0;
const READ: usize = 1;
const OTHER: usize = 2;
const PLACES: usize = 3;

const TIME_BITS: u32 = 31;
const TIME: u64 = (1 << TIME_BITS) - 1;
const STRONG: u64 = 1 << TIME_BITS;
const THREAD_SHIFT: u32 = TIME_BITS + 1;
const BLOCK_SHIFT: u32 = THREAD_SHIFT + 10;
/// Blocks of one launch that stamps can tell apart.
pub const BLOCKS: u64 = 1 << (64 - BLOCK_SHIFT);

/// What a warp's lanes know: their own times, each other's, and other warps'.
#[derive(Clone)]
pub struct Clocks {
    time: [u32; 32],
    /// `seen[l][k]`: lane l is ordered after everything lane k did up to this time.
    seen: Box<[[u32; 32]; 32]>,
    others: [u32; 32],
}

impl Clocks {
    pub fn new() -> Clocks {
        Clocks { time: [1; 32], seen: Box::new([[0; 32]; 32]), others: [0; 32] }
    }

    /// Orders the lanes of `mask` after each other.
    pub fn sync(&mut self, mask: u32) {
        let inside = |l: usize| mask >> l & 1 == 1;
        let mut joined = [0; 32];
        for l in (0..32).filter(|&l| inside(l)) {
            for (j, s) in joined.iter_mut().zip(&self.seen[l]) {
                *j = (*j).max(*s);
            }
        }
        for l in (0..32).filter(|&l| inside(l)) {
            joined[l] = joined[l].max(self.time[l]);
        }
        for l in (0..32).filter(|&l| inside(l)) {
            self.seen[l] = joined;
            self.time[l] += 1;
        }
    }

    /// Orders warps after each other: a barrier that all their lanes have reached.
    pub fn barrier(all: &mut [Clocks], warps: &[usize]) {
        let mut joined = [0; 32];
        for &w in warps {
            let now = all[w].time.iter().copied().max().unwrap_or(0);
            for (j, s) in joined.iter_mut().zip(&all[w].others) {
                *j = (*j).max(*s);
            }
            joined[w] = joined[w].max(now);
        }
        for &w in warps {
            let now = joined[w];
            all[w].others = joined;
            all[w].time = [now + 1; 32];
            for row in all[w].seen.iter_mut() {
                *row = [now; 32];
            }
        }
    }
}

/// A thread about to touch memory.
pub struct Who<'a> {
    pub block: u64,
    pub warp: usize,
    pub lane: usize,
    pub pc: u32,
    pub clocks: &'a Clocks,
}

/// The other side of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Offset of the byte in what was touched.
    pub offset: usize,
    pub block: u64,
    pub thread: usize,
    pub wrote: bool,
    /// Its instruction, where it is known.
    pub pc: Option<u32>,
}

impl Who<'_> {
    fn stamp(&self, strong: bool) -> u64 {
        let thread = (self.warp << 5 | self.lane) as u64;
        let strong = if strong { STRONG } else { 0 };
        self.block << BLOCK_SHIFT | thread << THREAD_SHIFT | strong | u64::from(self.clocks.time[self.lane])
    }

    /// Whether what `stamp` stands for is over for this thread. Shared memory is a block's own: stamps of other
    /// blocks there are old.
    fn ordered(&self, stamp: u64, shared: bool) -> bool {
        if stamp == 0 {
            return true;
        }
        if stamp >> BLOCK_SHIFT != self.block {
            return shared;
        }
        let (thread, time) = ((stamp >> THREAD_SHIFT & 1023) as usize, (stamp & TIME) as u32);
        let (warp, lane) = (thread >> 5, thread & 31);
        if warp != self.warp {
            self.clocks.others[warp] >= time
        } else {
            lane == self.lane || self.clocks.seen[self.lane][lane] >= time
        }
    }

    /// Notes a read or write of all `cells`; the first conflict ends it.
    pub fn touch(&self, cells: &mut [Cell], write: bool, strong: bool, shared: bool) -> Result<(), Conflict> {
        let stamp = self.stamp(strong);
        // Neighbours mostly share their history: a stamp found ordered is not looked at again.
        let mut fine = 0;
        for (offset, cell) in cells.iter_mut().enumerate() {
            let mut check = |old: u64, wrote: bool, pc: Option<u32>| {
                if old == fine || old >> THREAD_SHIFT == stamp >> THREAD_SHIFT {
                    return Ok(());
                }
                if self.ordered(old, shared) || strong && old & STRONG != 0 {
                    fine = old;
                    return Ok(());
                }
                let thread = (old >> THREAD_SHIFT & 1023) as usize;
                Err(Conflict { offset, block: old >> BLOCK_SHIFT, thread, wrote, pc })
            };
            check(cell[WRITE], true, Some(cell[PLACES] as u32))?;
            if write {
                check(cell[READ], false, Some((cell[PLACES] >> 32) as u32))?;
                check(cell[OTHER], false, None)?;
                *cell = [stamp, 0, 0, u64::from(self.pc)];
            } else {
                let (old, other) = (cell[READ], cell[OTHER]);
                if old >> THREAD_SHIFT != stamp >> THREAD_SHIFT {
                    // Of earlier readers one is kept: rather of another warp, as long as it is not over.
                    let warp = |s: u64| s >> (THREAD_SHIFT + 5);
                    if warp(old) != warp(stamp) || warp(other) == warp(stamp) || self.ordered(other, shared) {
                        cell[OTHER] = old;
                    }
                }
                cell[READ] = stamp;
                cell[PLACES] = cell[PLACES] & 0xffff_ffff | u64::from(self.pc) << 32;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(clocks: &[Clocks], warp: usize, lane: usize) -> Who<'_> {
        Who { block: 0, warp, lane, pc: 0, clocks: &clocks[warp] }
    }

    #[test]
    fn barriers_order_and_their_absence_does_not() {
        let mut clocks = vec![Clocks::new(), Clocks::new()];
        let mut cells = vec![[0u64; 4]; 4];
        who(&clocks, 0, 3).touch(&mut cells, true, false, true).unwrap();
        assert!(who(&clocks, 0, 4).touch(&mut cells, false, false, true).is_err());
        clocks[0].sync(0b1000);
        assert!(who(&clocks, 0, 4).touch(&mut cells, false, false, true).is_err());
        clocks[0].sync(0b11000);
        who(&clocks, 0, 4).touch(&mut cells, false, false, true).unwrap();
        assert!(who(&clocks, 1, 3).touch(&mut cells, false, false, true).is_err());
        Clocks::barrier(&mut clocks, &[0, 1]);
        who(&clocks, 1, 3).touch(&mut cells, false, false, true).unwrap();
        // A write after two warps' reads needs both to be over.
        let conflict = who(&clocks, 0, 0).touch(&mut cells, true, false, true).unwrap_err();
        assert_eq!((conflict.thread, conflict.wrote), (35, false));
    }

    #[test]
    fn atomics_race_only_with_other_accesses() {
        let clocks = vec![Clocks::new()];
        let mut cells = vec![[0u64; 4]; 1];
        for lane in 0..3 {
            who(&clocks, 0, lane).touch(&mut cells, true, true, true).unwrap();
        }
        assert!(who(&clocks, 0, 0).touch(&mut cells, false, false, true).is_err());
        // Another block's stamp is a race in global memory and old in shared memory.
        let next = Who { block: 1, warp: 0, lane: 0, pc: 0, clocks: &clocks[0] };
        assert!(next.touch(&mut cells.clone(), false, false, false).is_err());
        next.touch(&mut cells, false, false, true).unwrap();
    }
}
