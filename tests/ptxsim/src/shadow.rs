//! Races: who last wrote and read each byte, and which of that another thread knows to be over.
//!
//! Every lane counts the barriers it passed: its time. A byte's cell keeps stamps (block, warp, lane, time) of its last
//! write and its last reads. An access is ordered after a stamp when its thread has passed a barrier together with the
//! stamp's, at that time or later, or an mbarrier has told it so; else, where one of the two writes, they race.

use crate::order::{Knowledge, reaches};

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
    /// By lane, what mbarriers and proxy fences add; empty in a block that has had neither.
    far: Vec<Knowledge>,
}

impl Clocks {
    pub fn new() -> Clocks {
        Clocks { time: [1; 32], seen: Box::new([[0; 32]; 32]), others: [0; 32], far: Vec::new() }
    }

    /// All that a lane knows, itself included, of a block of `warps`.
    fn knowledge(&self, warp: usize, lane: usize, warps: usize) -> Knowledge {
        let mut all = self.far.get(lane).cloned().unwrap_or_default();
        let near = |thread: usize| match (thread / 32 == warp, thread % 32 == lane) {
            (true, true) => self.time[lane],
            (true, false) => self.seen[lane][thread % 32],
            _ => self.others[thread / 32],
        };
        all.threads.resize(32 * warps, 0);
        for (thread, time) in all.threads.iter_mut().enumerate() {
            *time = (*time).max(near(thread));
        }
        all
    }

    /// What an arrival at an mbarrier passes on. What the lane does after it is not meant.
    pub fn release(&mut self, warp: usize, lane: usize, warps: usize) -> Knowledge {
        let all = self.knowledge(warp, lane, warps);
        self.time[lane] += 1;
        all
    }

    /// A lane has seen an mbarrier's phase end.
    pub fn acquire(&mut self, lane: usize, told: &Knowledge) {
        self.far.resize_with(32, Knowledge::default);
        self.far[lane].join(told);
    }

    /// `fence.proxy.async` by a lane: what it has done and knows of becomes visible to the asynchronous proxy.
    pub fn fence(&mut self, warp: usize, lane: usize, warps: usize) {
        let mut all = self.release(warp, lane, warps);
        all.fence();
        self.acquire(lane, &all);
    }

    /// What the lanes of `mask` know together goes to each of them.
    fn share(all: &mut [Clocks], lanes: impl Fn(usize) -> u32) {
        let mut joined = Knowledge::default();
        let inside = |w: usize, l: usize| lanes(w) >> l & 1 == 1;
        for (w, clocks) in all.iter().enumerate() {
            for (_, far) in clocks.far.iter().enumerate().filter(|(l, _)| inside(w, *l)) {
                joined.join(far);
            }
        }
        if joined.is_empty() {
            return;
        }
        for (w, clocks) in all.iter_mut().enumerate() {
            for l in (0..32).filter(|&l| inside(w, l)) {
                clocks.acquire(l, &joined);
            }
        }
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
        Clocks::share(std::slice::from_mut(self), |_| mask);
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
        Clocks::share(all, |w| if warps.contains(&w) { u32::MAX } else { 0 });
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
        let near = if warp != self.warp {
            self.clocks.others[warp] >= time
        } else {
            lane == self.lane || self.clocks.seen[self.lane][lane] >= time
        };
        near || self.far().is_some_and(|far| reaches(&far.threads, thread, time))
    }

    fn far(&self) -> Option<&Knowledge> {
        self.clocks.far.get(self.lane)
    }

    /// Whether what `stamp` stands for, in shared memory, is over for this thread.
    pub fn after(&self, stamp: u64) -> bool {
        self.ordered(stamp, true)
    }

    /// Whether a proxy fence came between the write of `stamp`, in shared memory, and this thread.
    pub fn fenced(&self, stamp: u64) -> bool {
        let (thread, time) = ((stamp >> THREAD_SHIFT & 1023) as usize, (stamp & TIME) as u32);
        let old = stamp == 0 || stamp >> BLOCK_SHIFT != self.block;
        old || self.far().is_some_and(|far| reaches(&far.fenced, thread, time))
    }

    /// Whether this thread has seen so many phases of an mbarrier end.
    pub fn passed(&self, barrier: usize, phase: u32) -> bool {
        self.far().is_some_and(|far| reaches(&far.phases, barrier, phase))
    }

    /// The stamp of what this thread does now.
    pub fn now(&self) -> u64 {
        self.stamp(false)
    }

    /// The other side of a race with the write that left `stamp`.
    pub fn conflict(stamp: u64, offset: usize, pc: Option<u32>) -> Conflict {
        let thread = (stamp >> THREAD_SHIFT & 1023) as usize;
        Conflict { offset, block: stamp >> BLOCK_SHIFT, thread, wrote: true, pc }
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
    fn an_mbarrier_orders_the_threads_that_use_it_and_no_others() {
        let mut clocks = vec![Clocks::new(), Clocks::new()];
        let mut cells = [[0u64; 4]; 4];
        who(&clocks, 0, 3).touch(&mut cells[..1], true, false, true).unwrap();
        who(&clocks, 0, 4).touch(&mut cells[1..2], true, false, true).unwrap();
        let told = clocks[0].release(0, 3, 2);
        who(&clocks, 0, 3).touch(&mut cells[2..3], true, false, true).unwrap();
        clocks[1].acquire(7, &told);
        who(&clocks, 1, 7).touch(&mut cells[..1], false, false, true).unwrap();
        // Not what another lane did, not what came after the arrival, and not for another lane.
        assert!(who(&clocks, 1, 7).touch(&mut cells[1..2], false, false, true).is_err());
        assert!(who(&clocks, 1, 7).touch(&mut cells[2..3], false, false, true).is_err());
        assert!(who(&clocks, 1, 8).touch(&mut cells[..1], false, false, true).is_err());
        clocks[1].sync(u32::MAX);
        who(&clocks, 1, 8).touch(&mut cells[..1], false, false, true).unwrap();
    }

    #[test]
    fn a_proxy_fence_passes_on_what_came_before_it() {
        let mut clocks = vec![Clocks::new(), Clocks::new()];
        let before = who(&clocks, 0, 0).now();
        clocks[0].fence(0, 0, 2);
        let after = who(&clocks, 0, 0).now();
        assert!(who(&clocks, 0, 0).fenced(before) && !who(&clocks, 0, 0).fenced(after));
        assert!(!who(&clocks, 1, 5).fenced(before));
        Clocks::barrier(&mut clocks, &[0, 1]);
        assert!(who(&clocks, 1, 5).fenced(before) && !who(&clocks, 1, 5).fenced(after));
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
