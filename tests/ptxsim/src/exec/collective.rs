//! Collectives of a warp: lanes wait until all that the mask names have come.

use crate::decode::{Collective, Op, Reduce, Shuffle, Warpwide};
use crate::finding::Kind;
use crate::machine::{Machine, lanes};
use crate::memory::Fault;
use crate::program::Reg;
use crate::types::{mask as ones, sign_extend};

impl Machine<'_> {
    /// The lanes that a collective at `pc` waits for, as lane `l` says.
    fn wanted(&self, w: usize, l: usize, c: &Collective) -> u32 {
        let warp = &self.warps[w];
        let named = c.mask.map_or(u32::MAX, |m| warp.regs[m as usize][l] as u32);
        // Lanes that the block never had are not missed.
        if c.mask.is_some() { named & warp.lanes } else { named }
    }

    pub fn collective(&mut self, w: usize, mask: u32, pc: usize, c: &Collective) -> Result<(), Box<Fault>> {
        let divergent = |text: String| Err(Fault::new(Kind::DivergentBarrier, text));
        let first = mask.trailing_zeros() as usize;
        let want = self.wanted(w, first, c);
        if let Some(l) = lanes(mask).find(|&l| self.wanted(w, l, c) != want) {
            let (a, b) = (want, self.wanted(w, l, c));
            return divergent(format!("lanes {first} and {l} name different lanes, {a:#010x} and {b:#010x}"));
        }
        if mask & !want != 0 {
            return divergent(format!("lanes {:#010x} take part, but only {want:#010x} are named", mask & !want));
        }
        let warp = &mut self.warps[w];
        let gone = want & !warp.alive;
        if gone != 0 {
            return divergent(format!("lanes {gone:#010x} are named, but have ended"));
        }
        warp.parked |= mask;
        let insts = &self.program.insts;
        let mut got = 0;
        for l in lanes(warp.parked & want) {
            let at = warp.pc[l] as usize;
            // A warp's barriers meet wherever they stand; other collectives only themselves.
            let meets = at == pc
                || matches!(c.what, Warpwide::Sync)
                    && matches!(&insts[at].op, Op::Collective(o) if matches!(o.what, Warpwide::Sync));
            if meets {
                got |= 1 << l;
            }
        }
        if got != want {
            return if warp.runnable() == 0 { self.deserted(w) } else { Ok(()) };
        }
        if let Warpwide::Warpgroup(what) = &c.what
            && !self.warpgroup(w, pc, what)?
        {
            return Ok(());
        }
        self.together(w, want, pc, &c.what)?;
        let warp = &mut self.warps[w];
        warp.parked &= !want;
        for l in lanes(want) {
            warp.pc[l] += 1;
        }
        Ok(())
    }

    /// Lanes wait for others of their warp that cannot come any more: is that so?
    pub fn deserted(&self, w: usize) -> Result<(), Box<Fault>> {
        let warp = &self.warps[w];
        for l in lanes(warp.parked) {
            let pc = warp.pc[l] as usize;
            let Op::Collective(c) = &self.program.insts[pc].op else { continue };
            let missing = self.wanted(w, l, c) & !(warp.parked & same(&warp.pc, pc as u32));
            let lost = missing & (!warp.alive | warp.parked | warp.blocked);
            if lost == 0 || missing & warp.runnable() != 0 && missing & !warp.alive == 0 {
                continue;
            }
            let other = lost.trailing_zeros() as usize;
            let place = self.place(warp.pc[other] as usize);
            let what = if warp.alive >> other & 1 == 0 { "has ended" } else { "waits elsewhere" };
            let text = format!(
                "lane {l} waits at {} for lanes {missing:#010x}, of which lane {other} {what} at {place}",
                self.place(pc)
            );
            let mut fault = Fault::new(Kind::DivergentBarrier, text);
            fault.lane = Some(l);
            return Err(fault);
        }
        Ok(())
    }

    /// All lanes of `mask` are there: does what they came for.
    fn together(&mut self, w: usize, mask: u32, pc: usize, what: &Warpwide) -> Result<(), Box<Fault>> {
        let regs = &mut self.warps[w].regs;
        let truth =
            |regs: &Vec<[u64; 32]>, p: Reg| lanes(mask).fold(0u32, |m, l| m | ((regs[p as usize][l] & 1) as u32) << l);
        let give = |regs: &mut Vec<[u64; 32]>, to: Reg, v: u64| lanes(mask).for_each(|l| regs[to as usize][l] = v);
        match what {
            Warpwide::Sync => self.clocks[w].sync(mask),
            Warpwide::Shuffle { mode, to, valid, value, lane, clamp } => {
                return shuffle(regs, mask, *mode, [*to, *value, *lane, *clamp], *valid);
            }
            Warpwide::Ballot { to, predicate } => {
                let v = u64::from(truth(regs, *predicate));
                give(regs, *to, v);
            }
            Warpwide::Any { to, predicate } => {
                let v = u64::from(truth(regs, *predicate) != 0);
                give(regs, *to, v);
            }
            Warpwide::All { to, predicate } => {
                let v = u64::from(truth(regs, *predicate) == mask);
                give(regs, *to, v);
            }
            Warpwide::Uniform { to, predicate } => {
                let truth = truth(regs, *predicate);
                let v = u64::from(truth == mask || truth == 0);
                give(regs, *to, v);
            }
            Warpwide::MatchAny { to, value, bits } => {
                let values = regs[*value as usize].map(|v| v & ones(*bits));
                for l in lanes(mask) {
                    let same = lanes(mask).filter(|&k| values[k] == values[l]).fold(0u64, |m, k| m | 1 << k);
                    regs[*to as usize][l] = same;
                }
            }
            Warpwide::MatchAll { to, valid, value, bits } => {
                let values = regs[*value as usize].map(|v| v & ones(*bits));
                let first = values[mask.trailing_zeros() as usize % 32];
                let same = lanes(mask).all(|l| values[l] == first);
                for l in lanes(mask) {
                    regs[*to as usize][l] = if same { u64::from(mask) } else { 0 };
                    if let Some(p) = valid {
                        regs[*p as usize][l] = u64::from(same);
                    }
                }
            }
            Warpwide::Reduce { how, signed, to, value } => {
                let values: Vec<u64> = lanes(mask).map(|l| regs[*value as usize][l] & ones(32)).collect();
                let v = reduced(*how, *signed, &values);
                give(regs, *to, v);
            }
            Warpwide::Elect { to, elected } => {
                let leader = mask.trailing_zeros() as usize;
                if let Some(to) = to {
                    give(regs, *to, leader as u64);
                }
                if let Some(p) = elected {
                    lanes(mask).for_each(|l| regs[*p as usize][l] = u64::from(l == leader));
                }
            }
            Warpwide::Mma(mma) => mma.run(regs),
            Warpwide::Warpgroup(_) => {}
            Warpwide::LoadMatrix { to, address, transposed } => {
                return self.load_matrix(w, pc, to, *address, *transposed);
            }
            Warpwide::StoreMatrix { from, address, transposed } => {
                return self.store_matrix(w, pc, from, *address, *transposed);
            }
        }
        Ok(())
    }
}

/// Lanes that are at `pc`.
fn same(pcs: &[u32; 32], pc: u32) -> u32 {
    (0..32).filter(|&l| pcs[l] == pc).fold(0, |m, l| m | 1 << l)
}

fn reduced(how: Reduce, signed: bool, values: &[u64]) -> u64 {
    let fold = |f: fn(u64, u64) -> u64| values.iter().copied().reduce(f).unwrap_or(0) & ones(32);
    match how {
        Reduce::Add => fold(u64::wrapping_add),
        Reduce::Min if signed => fold(|a, b| sign_extend(a, 32).min(sign_extend(b, 32)) as u64),
        Reduce::Max if signed => fold(|a, b| sign_extend(a, 32).max(sign_extend(b, 32)) as u64),
        Reduce::Min => fold(u64::min),
        Reduce::Max => fold(u64::max),
        Reduce::And => fold(|a, b| a & b),
        Reduce::Or => fold(|a, b| a | b),
        Reduce::Xor => fold(|a, b| a ^ b),
        Reduce::Count => values.iter().map(|v| v & 1).sum(),
    }
}

/// `shfl.sync`, as the PTX manual's pseudocode has it.
fn shuffle(
    regs: &mut [[u64; 32]],
    mask: u32,
    mode: Shuffle,
    [to, value, lane, clamp]: [Reg; 4],
    valid: Option<Reg>,
) -> Result<(), Box<Fault>> {
    let values = regs[value as usize];
    let (mut out, mut oks) = (regs[to as usize], [0; 32]);
    for l in lanes(mask) {
        let b = (regs[lane as usize][l] & 31) as i64;
        let c = regs[clamp as usize][l] as i64;
        let (here, segment) = (l as i64, c >> 8 & 31);
        let (low, high) = (here & segment, here & segment | c & 31 & !segment);
        let (j, ok) = match mode {
            Shuffle::Up => (here - b, here - b >= high),
            Shuffle::Down => (here + b, here + b <= high),
            Shuffle::Butterfly => (here ^ b, here ^ b <= high),
            Shuffle::Index => (low | b & !segment, low | b & !segment <= high),
        };
        let j = if ok { j as usize & 31 } else { l };
        if mask >> j & 1 == 0 {
            let mut fault = Fault::new(Kind::DivergentBarrier, format!("lane {l} reads lane {j}, which takes no part"));
            fault.lane = Some(l);
            return Err(fault);
        }
        (out[l], oks[l]) = (values[j] & ones(32), u64::from(ok));
    }
    regs[to as usize] = out;
    if let Some(p) = valid {
        for l in lanes(mask) {
            regs[p as usize][l] = oks[l];
        }
    }
    Ok(())
}
