//! wgmma at work: what one warp does by itself, and what four warps do as one.
//!
//! A product is computed when it is issued: that its operands do not change and nobody looks at its results before a
//! `wait_group` is checked, so that when it happens cannot be told.

use crate::finding::Kind;
use crate::guard::Use;
use crate::machine::{Machine, Meeting, lanes};
use crate::memory::{Fault, Wish};
use crate::program::Reg;
use crate::readers::Id;
use crate::wgmma::{DEPTH, Descriptor, Left, Mma, ROWS, Warpgroup, multiply};

/// Registers of a multiprocessor, by thread of a warpgroup.
const REGISTERS: u64 = 65536 / 128;
/// Rows of a warp.
const BAND: usize = ROWS / 4;

impl Machine<'_> {
    /// Whether the warp goes on: else it waits for the others of its warpgroup.
    pub fn warpgroup(&mut self, w: usize, pc: usize, what: &Warpgroup) -> Result<bool, Box<Fault>> {
        match what {
            Warpgroup::Fence => {
                let (warp, program) = (&mut self.warps[w], self.program);
                warp.fenced = true;
                program.guarded.iter().for_each(|&r| warp.guards[r as usize].fence());
            }
            Warpgroup::Commit => self.warps[w].products.commit(),
            Warpgroup::Wait { keep } => self.wait(w, *keep, pc),
            Warpgroup::Mma(mma) => {
                if !self.meet(w, pc)? {
                    return Ok(false);
                }
                self.product(w / 4 * 4, pc, mma)?;
                self.part(w);
            }
            Warpgroup::Registers { count } => {
                if !self.meet(w, pc)? {
                    return Ok(false);
                }
                self.take_registers(w, *count)?;
                self.part(w);
            }
        }
        Ok(true)
    }

    /// Whether all four warps have come to `pc`; until then those that have are blocked there.
    fn meet(&mut self, w: usize, pc: usize) -> Result<bool, Box<Fault>> {
        let first = w / 4 * 4;
        let divergent = |text: String| Err(Fault::new(Kind::DivergentBarrier, text));
        if first + 4 > self.warps.len() {
            return divergent(format!("the block has {} warps: the last are no warpgroup", self.warps.len()));
        }
        if let Some(gone) = (first..first + 4).find(|&v| self.warps[v].alive != u32::MAX) {
            return divergent(format!("a warpgroup's instruction, but threads of its warp {gone} have ended"));
        }
        let meeting = self.meetings[w / 4].get_or_insert(Meeting { pc, warps: 0 });
        if meeting.pc != pc {
            let at = meeting.pc;
            return divergent(format!(
                "the warps of a warpgroup come to different instructions, the others to {}",
                self.place(at)
            ));
        }
        meeting.warps |= 1 << (w % 4);
        let all = meeting.warps == 0b1111;
        if all {
            self.meetings[w / 4] = None;
        } else {
            let warp = &mut self.warps[w];
            warp.parked = 0;
            warp.blocked = u32::MAX;
        }
        Ok(all)
    }

    /// The warps that waited for `w` go on.
    fn part(&mut self, w: usize) {
        let first = w / 4 * 4;
        for other in (first..first + 4).filter(|&v| v != w) {
            let warp = &mut self.warps[other];
            warp.blocked = 0;
            warp.pc.iter_mut().for_each(|pc| *pc += 1);
        }
    }

    /// An instruction reads or writes registers that wgmma uses.
    pub fn touch_guarded(&mut self, w: usize, regs: &[Reg]) -> Result<(), Box<Fault>> {
        regs.iter().try_for_each(|&r| self.warps[w].guards[r as usize].touch())
    }

    fn wait(&mut self, w: usize, keep: Reg, pc: usize) {
        let warp = &mut self.warps[w];
        let keep = warp.regs[keep as usize][0] as usize;
        for id in warp.products.wait(keep) {
            self.program.guarded.iter().for_each(|&r| warp.guards[r as usize].done(id));
            let (clocks, block) = (&self.clocks, self.block);
            let stamps = lanes(u32::MAX).map(|l| Machine::who(clocks, block, w, l, pc).now());
            self.shared.readers.waited(id, stamps);
        }
    }

    fn take_registers(&mut self, w: usize, count: Reg) -> Result<(), Box<Fault>> {
        let count = self.warps[w].regs[count as usize][0];
        if !count.is_multiple_of(8) || !(24..=256).contains(&count) {
            return Err(Fault::new(Kind::Misaligned, format!("setmaxnreg of {count} registers")));
        }
        self.registers[w / 4] = count;
        let sum: u64 = self.registers.iter().sum();
        if sum > REGISTERS {
            let text = format!("the warpgroups ask for {sum} registers a thread together, of {REGISTERS}");
            return Err(Fault::new(Kind::Deadlock, text));
        }
        Ok(())
    }

    /// The product of the warpgroup that begins with warp `first`.
    fn product(&mut self, first: usize, pc: usize, mma: &Mma) -> Result<(), Box<Fault>> {
        let regs = &self.warps[first].regs;
        let flag = |r: Reg| regs[r as usize][0] as u32 as i32;
        let [sign_a, sign_b] = mma.signs.map(flag);
        if sign_a.abs() != 1 || sign_b.abs() != 1 {
            return Err(Fault::new(Kind::UnknownOpcode, format!("wgmma with the signs {sign_a} and {sign_b}")));
        }
        let (keep, sign) = (flag(mma.keep) & 1 == 1, f64::from(sign_a * sign_b));
        let [transposed_a, transposed_b] = mma.transposed.map(|t| t.is_some_and(|r| flag(r) & 1 == 1));
        let mut chunks = Vec::new();
        let right = self.matrix(first, mma, mma.b, 0..mma.n(), transposed_b, first..first + 4, pc, &mut chunks)?;
        let mut left = Vec::new();
        for v in 0..4 {
            let rows = BAND * v..BAND * (v + 1);
            let w = first + v;
            left.push(match mma.a {
                Left::Registers(a) => self.fragments(w, mma, a),
                Left::Descriptor(a) => self.matrix(first, mma, a, rows, transposed_a, w..w + 1, pc, &mut chunks)?,
            });
        }
        let id = self.shared.readers.begin("a wgmma", &chunks);
        for (v, left) in left.iter().enumerate() {
            self.issue(first + v, id, mma)?;
            multiply(&mut self.warps[first + v].regs, &mma.d, keep, sign, left, &right);
        }
        Ok(())
    }

    /// Notes that a warp's registers are in use.
    fn issue(&mut self, w: usize, id: Id, mma: &Mma) -> Result<(), Box<Fault>> {
        let warp = &mut self.warps[w];
        if !warp.fenced {
            return Err(Fault::new(Kind::Unfenced, "the first wgmma of a warp, with no wgmma.fence before it"));
        }
        let left: &[Reg] = if let Left::Registers(a) = &mma.a { a } else { &[] };
        left.iter().try_for_each(|&r| warp.guards[r as usize].issue(id, Use::Left))?;
        let how = Use::Accumulator(mma.n());
        mma.d.iter().try_for_each(|&r| warp.guards[r as usize].issue(id, how))?;
        warp.products.add(id);
        Ok(())
    }

    /// Rows of a matrix in shared memory, checked for the warps that need them.
    #[allow(clippy::too_many_arguments)] // an operand of an instruction with many
    fn matrix(
        &self,
        first: usize,
        mma: &Mma,
        descriptor: Reg,
        rows: std::ops::Range<usize>,
        transposed: bool,
        warps: std::ops::Range<usize>,
        pc: usize,
        chunks: &mut Vec<usize>,
    ) -> Result<Vec<[f32; DEPTH]>, Box<Fault>> {
        let bits = self.warps[first].regs[descriptor as usize][0];
        let matrix = Descriptor::decode(bits).map_err(|text| Fault::new(Kind::Misaligned, text))?;
        let starts = matrix.chunks(rows.clone(), transposed);
        for &start in &starts {
            self.shared.locate(start as u64, 16, Wish::READ)?;
        }
        let who = |w: usize| lanes(u32::MAX).map(move |l| Machine::who(&self.clocks, self.block, w, l, pc));
        let threads: Vec<_> = warps.flat_map(who).collect();
        self.shared.read_asynchronously(&starts, "wgmma", &threads)?;
        chunks.extend(starts);
        let element = |r: usize, k: usize| {
            let at = matrix.address(r, k, transposed);
            mma.value(u16::from_le_bytes([self.shared.bytes[at], self.shared.bytes[at + 1]]))
        };
        Ok(rows.map(|r| std::array::from_fn(|k| element(r, k))).collect())
    }

    /// A warp's rows of A, from its registers.
    fn fragments(&self, w: usize, mma: &Mma, a: [Reg; 4]) -> Vec<[f32; DEPTH]> {
        let regs = &self.warps[w].regs;
        let element = |row: usize, k: usize| {
            let (j, l) = (row / 8 + 2 * (k / 8), row % 8 * 4 + k % 8 / 2);
            mma.value((regs[a[j] as usize][l] >> (16 * (k % 2))) as u16)
        };
        (0..BAND).map(|row| std::array::from_fn(|k| element(row, k))).collect()
    }
}
