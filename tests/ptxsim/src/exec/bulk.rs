//! mbarriers and proxy fences at work.

use super::access::aligned;
use crate::bulk::{Bulk, Mbarrier};
use crate::finding::Kind;
use crate::machine::{Machine, lanes};
use crate::memory::{Fault, Wish};
use crate::program::Reg;
use crate::shadow::Who;

/// Polls by warps with nothing happening at any mbarrier before it is a wait for nothing.
const POLLS: u64 = 20_000;

impl Machine<'_> {
    pub fn bulk(&mut self, w: usize, mask: u32, pc: usize, op: &Bulk) -> Result<(), Box<Fault>> {
        for l in lanes(mask) {
            self.lane_bulk(w, l, pc, op).map_err(|mut f| {
                f.lane = Some(l);
                f
            })?;
        }
        if self.polling {
            self.polls += 1;
            if self.polls > POLLS {
                return Err(Fault::new(Kind::Deadlock, "an mbarrier wait that nothing completes"));
            }
        }
        Ok(())
    }

    fn lane_bulk(&mut self, w: usize, l: usize, pc: usize, op: &Bulk) -> Result<(), Box<Fault>> {
        let value = |machine: &Self, r: Reg| machine.warps[w].regs[r as usize][l];
        let warps = self.warps.len();
        match op {
            Bulk::Init { at, count } => {
                let (at, count) = (self.lane_address(w, l, *at), value(self, *count) as u32);
                aligned(at, 8, "mbarrier")?;
                self.shared.locate(at, 8, Wish::WRITE)?;
                let made = Machine::who(&self.clocks, self.block, w, l, pc).now();
                let index = self.mbarriers.len();
                let index = self.mbarriers.get(&at).map_or(index, |old| old.index);
                self.mbarriers.insert(at, Mbarrier { index, count, pending: count, made, ..Mbarrier::default() });
            }
            Bulk::Invalidate { at } => {
                let at = self.lane_address(w, l, *at);
                // Its number stays taken: threads may still know of its phases.
                self.mbarrier(at, w, l, pc)?.count = 0;
            }
            Bulk::Arrive { at, count, bytes } => {
                let times = count.map_or(1, |r| value(self, r) as u32);
                let bytes = bytes.map_or(0, |r| value(self, r) as u32);
                let at = self.lane_address(w, l, *at);
                self.mbarrier(at, w, l, pc)?;
                let told = self.clocks[w].release(w, l, warps);
                let bar = self.mbarrier(at, w, l, pc)?;
                if bar.pending < times {
                    let text = format!("more arrivals at an mbarrier than its count of {}", bar.count);
                    return Err(Fault::new(Kind::DivergentBarrier, text));
                }
                bar.pending -= times;
                bar.bytes += i64::from(bytes);
                bar.open.join(&told);
                bar.step();
                self.polls = 0;
            }
            Bulk::Expect { at, bytes } => {
                let bytes = value(self, *bytes) as u32;
                let at = self.lane_address(w, l, *at);
                self.mbarrier(at, w, l, pc)?.bytes += i64::from(bytes);
            }
            Bulk::TryWait { at, to, parity } => {
                let at = self.lane_address(w, l, *at);
                let parity = value(self, *parity) as u32 & 1;
                // Copies land as late as they can: when someone has to wait for them.
                if self.mbarrier(at, w, l, pc)?.phase & 1 == parity {
                    for flight in std::mem::take(&mut self.mbarrier(at, w, l, pc)?.flights) {
                        self.land(at, &flight)?;
                    }
                }
                let bar = self.mbarrier(at, w, l, pc)?;
                let done = bar.phase & 1 != parity;
                if done {
                    let told = bar.ended.clone();
                    self.clocks[w].acquire(l, &told);
                }
                self.warps[w].regs[*to as usize][l] = u64::from(done);
                self.polling |= !done;
            }
            Bulk::Load { to, map, at, barrier } => {
                let barrier = self.lane_address(w, l, *barrier);
                self.mbarrier(barrier, w, l, pc)?;
                self.load(w, l, pc, *to, *map, at, barrier)?;
            }
            Bulk::Store { from, map, at } => self.store(w, l, pc, *from, *map, at)?,
            Bulk::Commit => self.warps[w].stores[l].commit(),
            Bulk::Wait { keep } => {
                let keep = value(self, *keep) as usize;
                self.wait_for_stores(w, l, pc, keep);
            }
            Bulk::ProxyFence => self.clocks[w].fence(w, l, warps),
            Bulk::InitFence => {
                let who = Machine::who(&self.clocks, self.block, w, l, pc);
                let mine = |b: &&mut Mbarrier| who.after(b.made);
                self.mbarriers.values_mut().filter(mine).for_each(|b| b.fenced = true);
            }
        }
        Ok(())
    }

    /// The mbarrier at an address, for a thread that comes after its initialisation.
    pub fn mbarrier(&mut self, at: u64, w: usize, l: usize, pc: usize) -> Result<&mut Mbarrier, Box<Fault>> {
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        let place = || self.shared.spell(at as usize);
        match self.mbarriers.get_mut(&at).filter(|b| b.count > 0) {
            None => Err(Fault::new(Kind::Uninitialised, format!("the mbarrier at {} was not initialised", place()))),
            Some(bar) if !who.after(bar.made) => {
                let conflict = Who::conflict(bar.made, 0, None);
                Err(Fault::race(
                    format!("use of the mbarrier at {}, which another thread initialises", place()),
                    conflict,
                ))
            }
            Some(bar) => Ok(bar),
        }
    }
}
