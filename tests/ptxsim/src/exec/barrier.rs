//! Barriers of a block, and threads that end.

use crate::decode::{Barrier, Reduce};
use crate::finding::Kind;
use crate::machine::{Arrival, Machine, lanes};
use crate::memory::Fault;
use crate::program::Reg;
use crate::shadow::Clocks;

impl Machine<'_> {
    pub fn barrier(&mut self, w: usize, mask: u32, pc: usize, b: &Barrier) -> Result<(), Box<Fault>> {
        let l = mask.trailing_zeros() as usize;
        let warp = &mut self.warps[w];
        let (id, count) = (warp.regs[b.id as usize][l], b.count.map(|c| warp.regs[c as usize][l]));
        if b.arrive {
            for l in lanes(mask) {
                warp.pc[l] += 1;
            }
        } else {
            warp.blocked |= mask;
        }
        self.arrivals.push(Arrival { warp: w, lanes: mask, pc: pc as u32, id, count, passed: b.arrive });
        if self.warps[w].parked != 0 && self.warps[w].runnable() == 0 {
            self.deserted(w)?;
        }
        self.release(id, b.reduce)
    }

    /// Lets the barrier's threads go if all have come.
    fn release(&mut self, id: u64, reduce: Option<(Reduce, Reg, Reg)>) -> Result<(), Box<Fault>> {
        let here: Vec<Arrival> = self.arrivals.iter().filter(|a| a.id == id).cloned().collect();
        let Some(first) = here.first() else { return Ok(()) };
        let divergent = |text: String| Err(Fault::new(Kind::DivergentBarrier, text));
        if let Some(other) = here.iter().find(|a| a.count != first.count) {
            let (a, b) = (self.place(first.pc as usize), self.place(other.pc as usize));
            return divergent(format!("barrier {id} is given different counts, at {a} and at {b}"));
        }
        let came: u64 = here.iter().map(|a| u64::from(a.lanes.count_ones())).sum();
        match first.count {
            Some(count) => {
                // A barrier counts whole warps.
                let whole = |a: &Arrival| if a.lanes == self.warps[a.warp].lanes { 32 } else { a.lanes.count_ones() };
                let came: u64 = here.iter().map(|a| u64::from(whole(a))).sum();
                if came > count {
                    return divergent(format!("{came} threads come to barrier {id}, which is for {count}"));
                }
                if came < count {
                    return Ok(());
                }
            }
            None => {
                let alive: u64 = self.warps.iter().map(|w| u64::from(w.alive.count_ones())).sum();
                let threads: u64 = self.warps.iter().map(|w| u64::from(w.lanes.count_ones())).sum();
                if came < alive {
                    return Ok(());
                }
                let at = self.place(first.pc as usize);
                if alive < threads {
                    let gone = threads - alive;
                    return divergent(format!("{gone} threads ended before the barrier that {came} wait for at {at}"));
                }
                if let Some(other) = here.iter().find(|a| a.pc != first.pc) {
                    let there = self.place(other.pc as usize);
                    return divergent(format!("the block's threads wait at different barriers, {at} and {there}"));
                }
            }
        }
        if let Some((how, to, predicate)) = reduce {
            self.reduce(&here, how, to, predicate);
        }
        self.arrivals.retain(|a| a.id != id);
        let mut warps: Vec<usize> = here.iter().map(|a| a.warp).collect();
        warps.sort_unstable();
        warps.dedup();
        Clocks::barrier(&mut self.clocks, &warps);
        for a in here.iter().filter(|a| !a.passed) {
            let warp = &mut self.warps[a.warp];
            warp.blocked &= !a.lanes;
            for l in lanes(a.lanes) {
                warp.pc[l] += 1;
            }
        }
        Ok(())
    }

    /// Gives every thread of a barrier the count, conjunction or disjunction of their predicates.
    fn reduce(&mut self, here: &[Arrival], how: Reduce, to: Reg, predicate: Reg) {
        let (mut yes, mut all) = (0u64, 0u64);
        for a in here {
            for l in lanes(a.lanes) {
                yes += self.warps[a.warp].regs[predicate as usize][l] & 1;
                all += 1;
            }
        }
        let value = match how {
            Reduce::And => u64::from(yes == all),
            Reduce::Or => u64::from(yes > 0),
            _ => yes,
        };
        for a in here {
            for l in lanes(a.lanes) {
                self.warps[a.warp].regs[to as usize][l] = value;
            }
        }
    }

    /// Ends the lanes of `mask`. Those of their warp that wait for them in a collective wait in vain, and so do the
    /// block's at a barrier.
    pub fn exit(&mut self, w: usize, mask: u32) -> Result<(), Box<Fault>> {
        let warp = &mut self.warps[w];
        if let Some(l) = lanes(mask).find(|&l| warp.stores[l].pending()) {
            let text = "the thread ends while a tensor store of its still reads shared memory";
            let mut fault = Fault::new(Kind::AsyncInFlight, text);
            fault.lane = Some(l);
            return Err(fault);
        }
        warp.alive &= !mask;
        self.progress = self.warp_instructions;
        if warp.parked != 0 {
            return self.deserted(w);
        }
        let open: Vec<u64> = self.arrivals.iter().filter(|a| a.count.is_none()).map(|a| a.id).collect();
        for id in open {
            self.release(id, None)?;
        }
        Ok(())
    }
}
