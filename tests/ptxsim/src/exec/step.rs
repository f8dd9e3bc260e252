//! Runs a warp: the lanes at the lowest instruction go first, so that those which parted meet again.

use crate::decode::Op;
use crate::finding::{Finding, Kind};
use crate::machine::{Machine, lanes};
use crate::memory::Fault;

impl Machine<'_> {
    /// Runs a warp until it has to wait, ends, or has done `steps`.
    pub fn warp(&mut self, w: usize, steps: u64) -> Result<(), Finding> {
        let mut left = steps;
        while left > 0 && !self.polling {
            let warp = &self.warps[w];
            let ready = warp.runnable();
            if ready == 0 {
                self.progress = self.warp_instructions;
                return Ok(());
            }
            let (mut pc, mut next) = (u32::MAX, u32::MAX);
            for l in lanes(ready) {
                pc = pc.min(warp.pc[l]);
            }
            let mut group = 0;
            for l in lanes(ready) {
                if warp.pc[l] == pc {
                    group |= 1 << l;
                } else {
                    next = next.min(warp.pc[l]);
                }
            }
            self.group(w, group, pc, next, &mut left)?;
        }
        Ok(())
    }

    /// Runs the lanes of `group` from `pc` on, until they part, wait, or come to `next`, where others are.
    fn group(&mut self, w: usize, group: u32, pc: u32, next: u32, left: &mut u64) -> Result<(), Finding> {
        let program = self.program;
        let mut pc = pc;
        loop {
            let inst = &program.insts[pc as usize];
            let mask = match inst.guard {
                None => group,
                Some((p, negated)) => {
                    let values = &self.warps[w].regs[p as usize];
                    let truth = (0..32).fold(0, |m, l| m | ((values[l] & 1) as u32) << l);
                    group & if negated { !truth } else { truth }
                }
            };
            self.warp_instructions += 1;
            self.counts[pc as usize] += u64::from(mask.count_ones());
            *left -= 1;
            if mask != 0 && !inst.guarded.is_empty() {
                let lane = mask.trailing_zeros() as usize;
                self.touch_guarded(w, &inst.guarded).map_err(|f| self.finding(&f, w, lane, pc as usize))?;
            }
            let jumped = match &inst.op {
                Op::Alu { run, to, from } => {
                    let regs = &mut self.warps[w].regs;
                    let mut out = [0; 32];
                    run(from.map(|r| &regs[r as usize]), mask, &mut out);
                    let to = &mut regs[*to as usize];
                    if mask == u32::MAX {
                        *to = out;
                    } else {
                        for l in lanes(mask) {
                            to[l] = out[l];
                        }
                    }
                    false
                }
                Op::Nothing => false,
                Op::Branch { target } if mask == group => {
                    let back = *target as u32 <= pc;
                    pc = *target as u32;
                    if back {
                        let lane = mask.trailing_zeros() as usize % 32;
                        self.limit().map_err(|f| self.finding(&f, w, lane, pc as usize))?;
                    }
                    if pc < next && *left > 0 {
                        continue;
                    }
                    for l in lanes(group) {
                        self.warps[w].pc[l] = pc;
                    }
                    return Ok(());
                }
                _ if mask == 0 => false,
                op => {
                    for l in lanes(group) {
                        self.warps[w].pc[l] = pc;
                    }
                    let lane = mask.trailing_zeros() as usize;
                    let moved = self.special(w, mask, group, pc as usize, op);
                    moved.map_err(|f| self.finding(&f, w, lane, pc as usize))?
                }
            };
            if jumped {
                return Ok(());
            }
            pc += 1;
            if pc >= next || *left == 0 || self.polling {
                for l in lanes(group) {
                    self.warps[w].pc[l] = pc;
                }
                return Ok(());
            }
        }
    }

    /// What is no arithmetic. True where it has set the lanes' next instructions itself.
    fn special(&mut self, w: usize, mask: u32, group: u32, pc: usize, op: &Op) -> Result<bool, Box<Fault>> {
        match op {
            Op::Access(access) => self.access(w, mask, pc, access)?,
            Op::Atomic(atomic) => self.atomic(w, mask, pc, atomic)?,
            Op::AsyncCopy(copy) => self.async_copy(w, mask, pc, copy)?,
            Op::AsyncCommit => lanes(mask).for_each(|l| self.warps[w].copies[l].push(Vec::new())),
            Op::AsyncWait { keep, commit } => self.async_wait(w, mask, pc, *keep, *commit)?,
            Op::CopyLocal { copies } => self.copy_local(w, mask, copies),
            Op::ActiveMask { to } => {
                let to = &mut self.warps[w].regs[*to as usize];
                lanes(mask).for_each(|l| to[l] = u64::from(mask));
            }
            Op::Trap => return Err(Fault::new(Kind::OutOfBounds, "the kernel traps")),
            Op::Branch { target } => {
                for l in lanes(group) {
                    self.warps[w].pc[l] = if mask >> l & 1 == 1 { *target as u32 } else { pc as u32 + 1 };
                }
                self.limit()?;
                return Ok(true);
            }
            Op::Call { target, back, arguments, .. } => {
                let copies: Vec<_> = arguments.iter().map(|&(outer, inner, n)| (outer, inner, n)).collect();
                self.copy_local(w, mask, &copies);
                let warp = &mut self.warps[w];
                for l in lanes(group) {
                    warp.pc[l] = pc as u32 + 1;
                    if mask >> l & 1 == 1 {
                        warp.regs[*back as usize][l] = pc as u64 + 1;
                        warp.pc[l] = *target as u32;
                    }
                }
                return Ok(true);
            }
            Op::Return { back } => {
                let warp = &mut self.warps[w];
                for l in lanes(group) {
                    warp.pc[l] = if mask >> l & 1 == 1 { warp.regs[*back as usize][l] as u32 } else { pc as u32 + 1 };
                }
                return Ok(true);
            }
            Op::Exit => {
                for l in lanes(group) {
                    self.warps[w].pc[l] += 1;
                }
                self.exit(w, mask)?;
                return Ok(true);
            }
            Op::Barrier(barrier) => {
                for l in lanes(group & !mask) {
                    self.warps[w].pc[l] += 1;
                }
                self.barrier(w, mask, pc, barrier)?;
                return Ok(true);
            }
            Op::Collective(collective) => {
                for l in lanes(group & !mask) {
                    self.warps[w].pc[l] += 1;
                }
                self.collective(w, mask, pc, collective)?;
                return Ok(true);
            }
            Op::Bulk(bulk) => self.bulk(w, mask, pc, bulk)?,
            Op::Alu { .. } | Op::Nothing => {}
        }
        Ok(false)
    }
}
