//! Loads and stores of every space.

use crate::decode::{Access, Address, Space};
use crate::finding::Kind;
use crate::machine::{Machine, lanes};
use crate::memory::{Fault, Wish};
use crate::program::{FRAME, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Global(u64),
    Shared(u64),
    Local(u64),
    Param(u64),
}

impl Place {
    pub fn of(space: Space, address: u64) -> Place {
        match space {
            Space::Global | Space::Constant => Place::Global(address),
            Space::Shared => Place::Shared(address),
            Space::Local => Place::Local(address),
            Space::Param if (FRAME..LOCAL_WINDOW).contains(&address) => Place::Local(address - FRAME),
            Space::Param => Place::Param(address),
            Space::Generic if address >= SHARED_WINDOW => Place::Shared(address - SHARED_WINDOW),
            Space::Generic if address >= LOCAL_WINDOW => Place::Local(address - LOCAL_WINDOW),
            Space::Generic if address >= PARAM_WINDOW => Place::of(Space::Param, address - PARAM_WINDOW),
            Space::Generic => Place::Global(address),
        }
    }
}

/// Checks that `address` is a multiple of `bytes`.
pub fn aligned(address: u64, bytes: usize, what: &str) -> Result<(), Box<Fault>> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    let text = format!("{what} of {bytes} bytes at {address:#x}, which is no multiple of {bytes}");
    Err(Fault::new(Kind::Misaligned, text))
}

impl Machine<'_> {
    pub fn lane_address(&self, w: usize, l: usize, address: Address) -> u64 {
        self.warps[w].regs[address.base as usize][l].wrapping_add_signed(address.offset)
    }

    pub fn access(&mut self, w: usize, mask: u32, pc: usize, access: &Access) -> Result<(), Box<Fault>> {
        for l in lanes(mask) {
            self.lane_access(w, l, pc, access).map_err(|mut f| {
                f.lane = Some(l);
                f
            })?;
        }
        Ok(())
    }

    fn lane_access(&mut self, w: usize, l: usize, pc: usize, access: &Access) -> Result<(), Box<Fault>> {
        let address = self.lane_address(w, l, access.address);
        let size = access.bytes;
        let total = size * access.regs.len();
        let wish = Wish { write: access.store, strong: access.strong };
        // A shared address of 32 bits may sit in a wider register's low half.
        let place = Place::of(access.space, address);
        aligned(address, total, wish.verb()).map_err(|f| self.with_buffer(f, place, total, wish))?;
        let mut data = [0u8; 64];
        let data = &mut data[..total];
        if access.store {
            let regs = &self.warps[w].regs;
            for (chunk, r) in data.chunks_exact_mut(size).zip(&access.regs) {
                if let Some(r) = r {
                    chunk.copy_from_slice(&regs[*r as usize][l].to_le_bytes()[..size]);
                }
            }
            return self.put(w, l, pc, place, data, wish);
        }
        self.get(w, l, pc, place, data, wish)?;
        let regs = &mut self.warps[w].regs;
        for (chunk, r) in data.chunks_exact(size).zip(&access.regs) {
            let Some(r) = r else { continue };
            let mut wide = [0u8; 8];
            wide[..size].copy_from_slice(chunk);
            if access.signed && chunk[size - 1] & 0x80 != 0 {
                wide[size..].fill(0xff);
            }
            regs[*r as usize][l] = u64::from_le_bytes(wide);
        }
        Ok(())
    }

    /// Names the buffer in a misalignment, or says that there is none.
    fn with_buffer(&self, fault: Box<Fault>, place: Place, bytes: usize, wish: Wish) -> Box<Fault> {
        match place {
            Place::Global(a) => match self.memory.locate(a, bytes, Wish::READ) {
                Ok(spot) => Fault::new(
                    Kind::Misaligned,
                    format!("misaligned {} of {bytes} bytes at {}", wish.verb(), self.memory.spell(spot)),
                ),
                Err(_) => fault,
            },
            Place::Shared(a) => match self.shared.locate(a, bytes, Wish::READ) {
                Ok(at) => Fault::new(
                    Kind::Misaligned,
                    format!("misaligned {} of {bytes} bytes at {}", wish.verb(), self.shared.spell(at)),
                ),
                Err(_) => fault,
            },
            _ => fault,
        }
    }

    /// Reads `data.len()` bytes, checked.
    pub fn get(
        &mut self,
        w: usize,
        l: usize,
        pc: usize,
        place: Place,
        data: &mut [u8],
        wish: Wish,
    ) -> Result<(), Box<Fault>> {
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        let n = data.len();
        match place {
            Place::Global(a) => {
                let spot = self.memory.locate(a, n, wish)?;
                self.memory.note(spot, n, wish, &who)?;
                data.copy_from_slice(self.memory.bytes(spot, n));
            }
            Place::Shared(a) => {
                let at = self.shared.locate(a, n, wish)?;
                self.shared.note(at, n, wish, &who)?;
                data.copy_from_slice(&self.shared.bytes[at..at + n]);
            }
            Place::Local(a) => {
                let at = self.local(l, a, n, wish)?;
                let warp = &self.warps[w];
                if let Some(i) = warp.local_known[at..at + n].iter().position(|k| !k) {
                    let text = format!("read of byte {} of local memory, which nothing has written", a as usize + i);
                    return Err(Fault::new(Kind::Uninitialised, text));
                }
                data.copy_from_slice(&warp.local[at..at + n]);
            }
            Place::Param(a) => {
                let at = a as usize;
                let bytes = self.params.get(at..at.saturating_add(n)).ok_or_else(|| {
                    Fault::new(Kind::OutOfBounds, format!("read of {n} bytes at offset {a} of the kernel's parameters"))
                })?;
                data.copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Writes `data`, checked.
    pub fn put(
        &mut self,
        w: usize,
        l: usize,
        pc: usize,
        place: Place,
        data: &[u8],
        wish: Wish,
    ) -> Result<(), Box<Fault>> {
        let who = Machine::who(&self.clocks, self.block, w, l, pc);
        let n = data.len();
        match place {
            Place::Global(a) => {
                let spot = self.memory.locate(a, n, wish)?;
                self.memory.note(spot, n, wish, &who)?;
                self.memory.bytes_mut(spot, n).copy_from_slice(data);
            }
            Place::Shared(a) => {
                let at = self.shared.locate(a, n, wish)?;
                self.shared.note(at, n, wish, &who)?;
                self.shared.bytes[at..at + n].copy_from_slice(data);
            }
            Place::Local(a) => {
                let at = self.local(l, a, n, wish)?;
                let warp = &mut self.warps[w];
                warp.local[at..at + n].copy_from_slice(data);
                warp.local_known[at..at + n].fill(true);
            }
            Place::Param(a) => {
                let text = format!("write at offset {a} of the kernel's parameters");
                return Err(Fault::new(Kind::ReadOnly, text));
            }
        }
        Ok(())
    }

    /// Where a lane's local bytes lie in its warp's.
    fn local(&self, l: usize, address: u64, bytes: usize, wish: Wish) -> Result<usize, Box<Fault>> {
        let size = self.program.local_bytes;
        let at = usize::try_from(address).unwrap_or(usize::MAX - 64);
        if at.saturating_add(bytes) > size {
            let text = format!("{} of {bytes} bytes at {at} of {size} bytes of local memory", wish.verb());
            return Err(Fault::new(Kind::OutOfBounds, text));
        }
        Ok(l * size + at)
    }

    /// Copies (from, to, bytes) within local memory, with what is known of it.
    pub fn copy_local(&mut self, w: usize, mask: u32, copies: &[(usize, usize, usize)]) {
        let size = self.program.local_bytes;
        let warp = &mut self.warps[w];
        for l in lanes(mask) {
            for &(from, to, n) in copies {
                let (from, to) = (l * size + from, l * size + to);
                warp.local.copy_within(from..from + n, to);
                warp.local_known.copy_within(from..from + n, to);
            }
        }
    }
}
