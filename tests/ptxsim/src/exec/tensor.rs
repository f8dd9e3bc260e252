//! Tensor copies at work: to shared memory, counted by an mbarrier, and from it, in groups.

use super::access::{Place, aligned};
use crate::bulk::Flight;
use crate::decode::{Address, Space};
use crate::finding::Kind;
use crate::machine::Machine;
use crate::memory::{Fault, Wish};
use crate::program::Reg;
use crate::tensor::{Swizzle, TensorMap};

/// Bytes that the asynchronous proxy moves as one.
const CHUNK: usize = 16;

/// Where row `r` of a box at `start` has the chunk whose first byte is `x`.
fn chunk(map: &TensorMap, start: usize, r: usize, x: usize) -> usize {
    map.swizzle.apply(start + r * map.row() + x)
}

impl Machine<'_> {
    /// A copy's map and coordinates, and its place in shared memory.
    #[allow(clippy::too_many_arguments)] // a copy's operands
    fn tensor(
        &mut self,
        w: usize,
        l: usize,
        pc: usize,
        map: Reg,
        at: &[Reg],
        shared: u64,
        wish: Wish,
    ) -> Result<(TensorMap, Vec<i32>, usize), Box<Fault>> {
        let value = |r: Reg| self.warps[w].regs[r as usize][l];
        let place = Place::of(Space::Generic, value(map));
        let at: Vec<i32> = at.iter().map(|&r| value(r) as u32 as i32).collect();
        let mut bytes = [0; 128];
        self.get(w, l, pc, place, &mut bytes, Wish::READ)?;
        let map = TensorMap::from_bytes(&bytes)
            .ok_or_else(|| Fault::new(Kind::Uninitialised, "the tensor map of a copy is none"))?;
        let broken = |text: String| Err(Fault::new(Kind::Misaligned, text));
        if let Err(text) = map.check() {
            return broken(format!("a tensor map with {text}"));
        }
        if map.size.len() != at.len() {
            return broken(format!("a copy of {} dimensions by a map of {}", at.len(), map.size.len()));
        }
        let row = map.row();
        if map.swizzle != Swizzle::None && row != map.swizzle.span() {
            return broken(format!("rows of {row} bytes, a swizzle of {}", map.swizzle.span()));
        }
        let period = if map.swizzle == Swizzle::None { 128 } else { map.swizzle.period().max(128) };
        aligned(shared, period, "tensor copy of shared memory")?;
        let start = self.shared.locate(shared, map.box_bytes(), wish)?;
        Ok((map, at, start))
    }

    /// A copy to shared memory begins.
    #[allow(clippy::too_many_arguments)] // a copy's operands
    pub fn load(
        &mut self,
        w: usize,
        l: usize,
        pc: usize,
        to: Address,
        map: Reg,
        at: &[Reg],
        barrier: u64,
    ) -> Result<(), Box<Fault>> {
        let to = self.lane_address(w, l, to);
        let (map, at, start) = self.tensor(w, l, pc, map, at, to, Wish::WRITE)?;
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        if self.mbarriers.get(&barrier).is_some_and(|b| !b.fenced && !who.fenced(b.made)) {
            let text = "a tensor copy counts at an mbarrier whose initialisation no fence has passed on";
            return Err(Fault::new(Kind::Unfenced, text));
        }
        self.shared.tensor_off(start, map.box_bytes(), &who)?;
        let flight = Flight { map, to: start, at, pc: pc as u32, warp: w, lane: l };
        if self.launch.schedule.eager_async {
            return self.land(barrier, &flight);
        }
        self.mbarrier(barrier, w, l, pc)?.flights.push(flight);
        Ok(())
    }

    /// A copy to shared memory arrives: its bytes, and its count at the mbarrier.
    pub fn land(&mut self, barrier: u64, flight: &Flight) -> Result<(), Box<Fault>> {
        let Flight { map, to, at, pc, warp, lane } = flight;
        let who = Machine::who(&self.clocks, self.block, *warp, *lane, *pc as usize);
        let element = map.element as usize;
        let mut row = vec![0; map.row()];
        for r in 0..map.rows() {
            row.fill(0);
            if let Some((address, inside)) = map.row_at(at, r) {
                let (first, bytes) = (inside.start * element, inside.len() * element);
                let spot = self.memory.locate(address.wrapping_add(first as u64), bytes, Wish::READ)?;
                self.memory.note(spot, bytes, Wish::READ, &who)?;
                row[first..first + bytes].copy_from_slice(self.memory.bytes(spot, bytes));
            }
            for (i, bytes) in row.chunks_exact(CHUNK).enumerate() {
                let to = chunk(map, *to, r, CHUNK * i);
                self.shared.bytes[to..to + CHUNK].copy_from_slice(bytes);
            }
        }
        let bar = self.mbarrier(barrier, *warp, *lane, *pc as usize)?;
        let (index, phase) = (bar.index, bar.phase + 1);
        bar.bytes -= map.box_bytes() as i64;
        bar.step();
        self.polls = 0;
        self.shared.tensor_landed(*to, map.box_bytes(), index, phase);
        Ok(())
    }

    /// A copy from shared memory: done at once, but its source is in use until its thread has waited.
    pub fn store(
        &mut self,
        w: usize,
        l: usize,
        pc: usize,
        from: Address,
        map: Reg,
        at: &[Reg],
    ) -> Result<(), Box<Fault>> {
        let from = self.lane_address(w, l, from);
        let (map, at, start) = self.tensor(w, l, pc, map, at, from, Wish::READ)?;
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        let chunks: Vec<usize> = (start..start + map.box_bytes()).step_by(CHUNK).collect();
        self.shared.read_asynchronously(&chunks, "tensor store", &[who])?;
        let element = map.element as usize;
        for r in 0..map.rows() {
            let Some((address, inside)) = map.row_at(&at, r) else { continue };
            let row: Vec<u8> = (0..map.row())
                .step_by(CHUNK)
                .flat_map(|x| {
                    let from = chunk(&map, start, r, x);
                    self.shared.bytes[from..from + CHUNK].to_vec()
                })
                .collect();
            let (first, bytes) = (inside.start * element, inside.len() * element);
            let place = Place::Global(address.wrapping_add(first as u64));
            self.put(w, l, pc, place, &row[first..first + bytes], Wish::WRITE)?;
        }
        let id = self.shared.readers.begin("a tensor store", &chunks);
        self.warps[w].stores[l].add(id);
        Ok(())
    }

    /// Waits until at most `keep` closed groups of a thread's stores are under way.
    pub fn wait_for_stores(&mut self, w: usize, l: usize, pc: usize, keep: usize) {
        for id in self.warps[w].stores[l].wait(keep) {
            let stamp = Machine::who(&self.clocks, self.block, w, l, pc).now();
            self.shared.readers.waited(id, std::iter::once(stamp));
        }
    }
}
