//! `cp.async`: copies that are under way until their thread waits for them.

use super::access::aligned;
use crate::decode::AsyncCopy;
use crate::machine::{Copy, Machine, lanes};
use crate::memory::{Fault, Wish};
use crate::program::Reg;

impl Machine<'_> {
    pub fn async_copy(&mut self, w: usize, mask: u32, pc: usize, copy: &AsyncCopy) -> Result<(), Box<Fault>> {
        for l in lanes(mask) {
            self.lane_copy(w, l, pc, copy).map_err(|mut f| {
                f.lane = Some(l);
                f
            })?;
        }
        Ok(())
    }

    fn lane_copy(&mut self, w: usize, l: usize, pc: usize, copy: &AsyncCopy) -> Result<(), Box<Fault>> {
        let (to, from) = (self.lane_address(w, l, copy.to), self.lane_address(w, l, copy.from));
        let regs = &self.warps[w].regs;
        let bytes = (regs[copy.bytes as usize][l] as usize).max(1);
        let valid = copy.valid.map_or(bytes, |r| regs[r as usize][l] as u32 as usize).min(bytes);
        aligned(to, bytes, "asynchronous copy to shared memory")?;
        aligned(from, bytes, "asynchronous copy from global memory")?;
        let at = self.shared.locate(to, bytes, Wish::WRITE)?;
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        self.shared.take_off(at, bytes, &who)?;
        let copy = Copy { to: at, from, bytes, valid, pc: pc as u32 };
        self.fetch(w, l, &copy, self.launch.schedule.eager_async)?;
        if let Some(open) = self.warps[w].copies[l].last_mut() {
            open.push(copy);
        }
        Ok(())
    }

    /// Checks the source of a copy, and moves its bytes where `land` says so.
    fn fetch(&mut self, w: usize, l: usize, copy: &Copy, land: bool) -> Result<(), Box<Fault>> {
        let who = Machine::who(&self.clocks, self.block, w, l, copy.pc as usize);
        let to = &mut self.shared.bytes[copy.to..copy.to + copy.bytes];
        if land {
            to.fill(0);
        }
        if copy.valid > 0 {
            let spot = self.memory.locate(copy.from, copy.valid, Wish::READ)?;
            self.memory.note(spot, copy.valid, Wish::READ, &who)?;
            if land {
                to[..copy.valid].copy_from_slice(self.memory.bytes(spot, copy.valid));
            }
        }
        Ok(())
    }

    /// Waits until at most `keep` closed groups of each lane are under way.
    pub fn async_wait(&mut self, w: usize, mask: u32, pc: usize, keep: Reg, commit: bool) -> Result<(), Box<Fault>> {
        for l in lanes(mask) {
            let warp = &mut self.warps[w];
            let keep = if commit { 0 } else { warp.regs[keep as usize][l] as usize };
            let groups = &mut warp.copies[l];
            if commit {
                groups.push(Vec::new());
            }
            let closed = groups.len() - 1;
            let done: Vec<Vec<Copy>> = groups.drain(..closed.saturating_sub(keep)).collect();
            for copy in done.into_iter().flatten() {
                if !self.launch.schedule.eager_async {
                    self.fetch(w, l, &copy, true)?;
                }
                let who = Machine::who(&self.clocks, self.block, w, l, pc);
                self.shared.land(copy.to, copy.bytes, &who)?;
            }
        }
        Ok(())
    }
}
