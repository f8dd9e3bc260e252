//! `ldmatrix` and `stmatrix`: 8x8 tiles of 16-bit elements between shared memory and a warp's registers.
//!
//! Lane 8 i + r gives the address of row r of tile i. Element (row, column) is in lane 4 row + column / 2, in the half
//! column % 2 of its register; transposed, the other way round.

use super::access::aligned;
use crate::decode::Address;
use crate::machine::Machine;
use crate::memory::{Fault, Wish};
use crate::program::Reg;

impl Machine<'_> {
    pub fn load_matrix(
        &mut self,
        w: usize,
        pc: usize,
        to: &[Reg],
        address: Address,
        transposed: bool,
    ) -> Result<(), Box<Fault>> {
        for (tile, r) in to.iter().enumerate() {
            let mut rows = [[0u16; 8]; 8];
            for (i, row) in rows.iter_mut().enumerate() {
                let l = 8 * tile + i;
                // The row ends up in other lanes than the one that names it: one of them reads it too, so that a row
                // which its own lane wrote, and nothing has ordered, is a race.
                let reader = if transposed { i / 2 } else { 4 * i };
                let reader = if reader == l { reader + if transposed { 4 } else { 1 } } else { reader };
                self.tile_row(w, l, reader, pc, address, Wish::READ)?;
                let bytes = self.tile_row(w, l, l, pc, address, Wish::READ)?;
                for (e, b) in row.iter_mut().zip(bytes.chunks_exact(2)) {
                    *e = u16::from_le_bytes([b[0], b[1]]);
                }
            }
            for l in 0..32 {
                let (g, t) = (l / 4, l % 4 * 2);
                let (x, y) = if transposed { (rows[t][g], rows[t + 1][g]) } else { (rows[g][t], rows[g][t + 1]) };
                self.warps[w].regs[*r as usize][l] = u64::from(x) | u64::from(y) << 16;
            }
        }
        Ok(())
    }

    pub fn store_matrix(
        &mut self,
        w: usize,
        pc: usize,
        from: &[Reg],
        address: Address,
        transposed: bool,
    ) -> Result<(), Box<Fault>> {
        for (tile, r) in from.iter().enumerate() {
            let values = self.warps[w].regs[*r as usize];
            for i in 0..8 {
                let mut bytes = [0u8; 16];
                for j in 0..8 {
                    let (row, column) = if transposed { (j, i) } else { (i, j) };
                    let half = values[4 * row + column / 2] >> (16 * (column % 2));
                    bytes[2 * j..2 * j + 2].copy_from_slice(&(half as u16).to_le_bytes());
                }
                let l = 8 * tile + i;
                self.tile_row(w, l, l, pc, address, Wish::WRITE)?.copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    /// The 16 bytes of the row whose address lane `l` gives, touched by lane `by`.
    fn tile_row(
        &mut self,
        w: usize,
        l: usize,
        by: usize,
        pc: usize,
        address: Address,
        wish: Wish,
    ) -> Result<&mut [u8], Box<Fault>> {
        let row = self.lane_address(w, l, address);
        let who = Machine::who(&self.clocks, self.block, w, by, pc);
        let checked = aligned(row, 16, "row of a matrix")
            .and_then(|()| self.shared.locate(row, 16, wish))
            .and_then(|at| self.shared.note(at, 16, wish, &who).map(|()| at));
        match checked {
            Ok(at) => Ok(&mut self.shared.bytes[at..at + 16]),
            Err(mut f) => {
                f.lane = Some(by);
                Err(f)
            }
        }
    }
}
