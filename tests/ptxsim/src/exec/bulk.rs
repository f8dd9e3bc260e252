//! mbarriers, tensor copies and wgmma at work.

use super::access::{Place, aligned};
use crate::bulk::{Bulk, Flight, Mbarrier, TensorMap, swizzled};
use crate::decode::Space;
use crate::finding::Kind;
use crate::machine::{Machine, lanes};
use crate::memory::{Fault, Wish};
use crate::program::Reg;
use crate::shared::State;
use crate::values::bf16_to_f32;

/// Polls of mbarriers in one block before it is a wait for nothing.
const POLLS: u64 = 100_000;

impl Machine<'_> {
    pub fn bulk(&mut self, w: usize, mask: u32, pc: usize, op: &Bulk) -> Result<(), Box<Fault>> {
        match op {
            Bulk::WgmmaOrder => return Ok(()),
            Bulk::Wgmma { d, a, b, flags } => return self.wgmma(w, mask, d, *a, *b, flags),
            _ => {}
        }
        for l in lanes(mask) {
            self.lane_bulk(w, l, pc, op).map_err(|mut f| {
                f.lane = Some(l);
                f
            })?;
        }
        Ok(())
    }

    fn lane_bulk(&mut self, w: usize, l: usize, pc: usize, op: &Bulk) -> Result<(), Box<Fault>> {
        let value = |machine: &Self, r: Reg| machine.warps[w].regs[r as usize][l];
        match op {
            Bulk::Init { at, count } => {
                let (at, count) = (self.lane_address(w, l, *at), value(self, *count) as u32);
                aligned(at, 8, "mbarrier")?;
                self.shared.locate(at, 8, Wish::WRITE)?;
                self.mbarriers.insert(at, Mbarrier { count, pending: count, ..Mbarrier::default() });
            }
            Bulk::Invalidate { at } => {
                let at = self.lane_address(w, l, *at);
                self.mbarrier(at)?;
                self.mbarriers.remove(&at);
            }
            Bulk::Arrive { at, bytes } => {
                let bytes = bytes.map_or(0, |r| value(self, r) as u32);
                let bar = self.mbarrier(self.lane_address(w, l, *at))?;
                if bar.pending == 0 {
                    let text = format!("more arrivals at an mbarrier than its count of {}", bar.count);
                    return Err(Fault::new(Kind::DivergentBarrier, text));
                }
                bar.pending -= 1;
                bar.bytes += i64::from(bytes);
                bar.step();
            }
            Bulk::Expect { at, bytes } => {
                let bytes = value(self, *bytes) as u32;
                self.mbarrier(self.lane_address(w, l, *at))?.bytes += i64::from(bytes);
            }
            Bulk::TryWait { at, to, parity } => {
                let at = self.lane_address(w, l, *at);
                for flight in std::mem::take(&mut self.mbarrier(at)?.flights) {
                    self.land(at, &flight)?;
                }
                let done = self.mbarrier(at)?.phase & 1 != value(self, *parity) as u32 & 1;
                self.warps[w].regs[*to as usize][l] = u64::from(done);
                if !done {
                    self.polling = true;
                    self.polls += 1;
                    if self.polls > POLLS {
                        return Err(Fault::new(Kind::Deadlock, "an mbarrier wait that nothing completes"));
                    }
                }
            }
            Bulk::Copy { to, map, at, barrier } => {
                let (to, barrier) = (self.lane_address(w, l, *to), self.lane_address(w, l, *barrier));
                let mut bytes = [0; 128];
                let place = Place::of(Space::Generic, value(self, *map));
                self.get(w, l, pc, place, &mut bytes, Wish::READ)?;
                let map = TensorMap::from_bytes(&bytes);
                let at = at.map(|r| value(self, r) as u32 as i32);
                self.depart(w, l, pc, to, map, at, barrier)?;
            }
            Bulk::Wgmma { .. } | Bulk::WgmmaOrder => {}
        }
        Ok(())
    }

    fn mbarrier(&mut self, at: u64) -> Result<&mut Mbarrier, Box<Fault>> {
        let text = format!("the mbarrier at {} was not initialised", self.shared.spell(at as usize));
        self.mbarriers.get_mut(&at).ok_or_else(|| Fault::new(Kind::Uninitialised, text))
    }

    /// A tensor copy begins.
    #[allow(clippy::too_many_arguments)] // a copy's operands
    fn depart(
        &mut self,
        w: usize,
        l: usize,
        pc: usize,
        to: u64,
        map: TensorMap,
        at: [i32; 2],
        barrier: u64,
    ) -> Result<(), Box<Fault>> {
        let row = (map.tile[0] * map.element) as usize;
        aligned(to, if map.swizzle { 1024 } else { 128 }, "tensor copy to shared memory")?;
        if map.swizzle && row != 128 {
            return Err(Fault::new(Kind::Misaligned, format!("a 128-byte swizzle of rows of {row} bytes")));
        }
        let bytes = row * map.tile[1] as usize;
        let start = self.shared.locate(to, bytes, Wish::WRITE)?;
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        self.shared.take_off(start, bytes, &who)?;
        let flight = Flight { map, to: start, at, pc: pc as u32, warp: w, lane: l };
        if self.launch.schedule.eager_async {
            return self.land(barrier, &flight);
        }
        self.mbarrier(barrier)?.flights.push(flight);
        Ok(())
    }

    /// A tensor copy arrives: its bytes, and its count at the mbarrier.
    fn land(&mut self, barrier: u64, flight: &Flight) -> Result<(), Box<Fault>> {
        let map = &flight.map;
        let (row, element) = ((map.tile[0] * map.element) as usize, map.element as usize);
        for y in 0..map.tile[1] as usize {
            for x in 0..map.tile[0] as usize {
                let (gx, gy) = (i64::from(flight.at[0]) + x as i64, i64::from(flight.at[1]) + y as i64);
                let at = flight.to + y * row + x * element;
                let at = if map.swizzle { swizzled(at) } else { at };
                let inside = |v: i64, size: u64| u64::try_from(v).is_ok_and(|v| v < size);
                if inside(gx, map.size[0]) && inside(gy, map.size[1]) {
                    let from = map.base + gy as u64 * map.stride + gx as u64 * u64::from(map.element);
                    let spot = self.memory.locate(from, element, Wish::READ)?;
                    let who = Machine::who(&self.clocks, self.block, flight.warp, flight.lane, flight.pc as usize);
                    self.memory.note(spot, element, Wish::READ, &who)?;
                    self.shared.bytes[at..at + element].copy_from_slice(self.memory.bytes(spot, element));
                } else {
                    self.shared.bytes[at..at + element].fill(0);
                }
            }
        }
        let bytes = row * map.tile[1] as usize;
        self.shared.land_for_all(flight.to, bytes);
        let bar = self.mbarrier(barrier)?;
        bar.bytes -= bytes as i64;
        bar.step();
        Ok(())
    }

    /// This warp's 16 rows of a 64 x n product.
    fn wgmma(&mut self, w: usize, mask: u32, d: &[Reg], a: Reg, b: Reg, flags: &[Reg]) -> Result<(), Box<Fault>> {
        if mask != u32::MAX {
            return Err(Fault::new(Kind::DivergentBarrier, format!("wgmma by lanes {mask:#010x} only")));
        }
        let flag = |i: usize| flags.get(i).map(|r| self.warps[w].regs[*r as usize][0] as u32 as i32);
        let (keep, sign) = (flag(0).unwrap_or(1) & 1 == 1, flag(1).unwrap_or(1) * flag(2).unwrap_or(1));
        if flag(3).unwrap_or(0) != 0 || flag(4).unwrap_or(0) != 0 {
            return Err(Fault::new(Kind::UnknownOpcode, "a transposed operand of wgmma"));
        }
        let (left, right) = (self.warps[w].regs[a as usize][0], self.warps[w].regs[b as usize][0]);
        let n = 2 * d.len();
        let read = |descriptor: u64, rows: std::ops::Range<usize>| -> Result<Vec<[f32; 16]>, Box<Fault>> {
            rows.map(|r| {
                let mut row = [0.0; 16];
                for (k, v) in row.iter_mut().enumerate() {
                    *v = self.matrix_element(descriptor, r, k)?;
                }
                Ok(row)
            })
            .collect()
        };
        let first = 16 * (w % 4);
        let (left, right) = (read(left, first..first + 16)?, read(right, 0..n)?);
        let regs = &mut self.warps[w].regs;
        for l in lanes(u32::MAX) {
            let (g, t) = (l / 4, l % 4);
            for (j, r) in d.iter().enumerate() {
                let (row, column) = (g + 8 * (j >> 1 & 1), j / 4 * 8 + 2 * t + (j & 1));
                let old = f64::from(f32::from_bits(regs[*r as usize][l] as u32));
                let product = |k: usize| f64::from(left[row][k]) * f64::from(right[column][k]);
                let sum: f64 = (0..16).map(product).sum();
                let sum = if keep { old } else { 0.0 } + f64::from(sign) * sum;
                regs[*r as usize][l] = u64::from((sum as f32).to_bits());
            }
        }
        Ok(())
    }

    /// Element (row, k) of a K-major matrix with the 128-byte swizzle, by its descriptor.
    fn matrix_element(&self, descriptor: u64, row: usize, k: usize) -> Result<f32, Box<Fault>> {
        if descriptor >> 62 != 1 {
            let text = format!("the wgmma descriptor {descriptor:#x} does not name the 128-byte swizzle");
            return Err(Fault::new(Kind::UnknownOpcode, text));
        }
        let field = |shift: u32| ((descriptor >> shift & 0x3fff) << 4) as usize;
        let (start, stride) = (field(0), field(32));
        let at = swizzled(start + row / 8 * stride + row % 8 * 128 + 2 * k);
        let at = self.shared.locate(at as u64, 2, Wish::READ)?;
        match self.shared.state(at) {
            State::Known => Ok(bf16_to_f32(u16::from_le_bytes([self.shared.bytes[at], self.shared.bytes[at + 1]]))),
            State::InFlight => {
                let text = format!("wgmma reads {} while a copy to it is in flight", self.shared.spell(at));
                Err(Fault::new(Kind::AsyncInFlight, text))
            }
            State::Unknown => {
                let text = format!("wgmma reads {}, which nothing has written", self.shared.spell(at));
                Err(Fault::new(Kind::Uninitialised, text))
            }
        }
    }
}
