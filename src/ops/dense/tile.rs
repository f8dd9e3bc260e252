//! The shapes of `shaders/common/tile.wgsl`, and which of them a product takes. No result depends on the choice: an element
//! is the same sum in the same order in each.

use crate::device::{Caps, Tiling};
use crate::dtype::DType;

/// What a workgroup computes of a product.
pub(super) struct Tile {
    /// The symbol of the shape, where it is not the default.
    pub symbol: Option<&'static str>,
    m: usize,
    n: usize,
}

const LARGE: Tile = Tile { symbol: Some("LARGE"), m: 128, n: 128 };
const MIDDLE: Tile = Tile { symbol: None, m: 64, n: 64 };
const NARROW: Tile = Tile { symbol: Some("NARROW"), m: 64, n: 16 };
const FLAT: Tile = Tile { symbol: Some("FLAT"), m: 16, n: 64 };

/// What the large shape asks of a device: two tiles of 16 by 33 groups of four numbers, and the table of NF4's values.
const LARGE_MEMORY: u32 = 2 * 16 * 33 * 16 + 64;
const LARGE_THREADS: u32 = 256;

impl Tile {
    /// Fewest rows of a tile.
    pub const LEAST: usize = 16;

    /// For an m × n product that may be thin; `vec`: its operands are read by fours.
    pub fn of(m: usize, n: usize, vec: bool, caps: &Caps) -> Tile {
        match (m, n) {
            (_, ..=32) => NARROW,
            (..=32, _) => FLAT,
            _ => Tile::wide(m, n, vec, caps.by_matrices(DType::F32, DType::F32), caps),
        }
    }

    /// The same with dropout of the first operand, which large and flat tiles do not have.
    pub fn dropping(n: usize) -> Tile {
        if n <= 32 { NARROW } else { MIDDLE }
    }

    /// The same of a linear layer: the one that [`Caps::tiling`] names, where there is a choice. It is estimated that the large
    /// one takes less time where it leaves the device's processors with a tile each. `matrices`: it is by cooperative matrices,
    /// whose tile is of the middle size.
    pub fn wide(m: usize, n: usize, vec: bool, matrices: bool, caps: &Caps) -> Tile {
        let able = caps.workgroup_memory >= LARGE_MEMORY && caps.max_invocations >= LARGE_THREADS && !matrices;
        let large = match caps.tiling {
            Tiling::Estimated => LARGE.count(m, n) >= caps.workgroups(1),
            Tiling::Large => true,
            Tiling::Middle => false,
        };
        if vec && able && large { LARGE } else { MIDDLE }
    }

    /// Tiles that keep a device busy; thin ones have half the threads, which do half as much.
    pub fn enough(&self, caps: &Caps) -> usize {
        caps.workgroups(if self.m.min(self.n) < 64 { 4 } else { 1 })
    }

    /// Tiles of an m × n product.
    pub fn count(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// Workgroups of an m × n product.
    pub fn grid(&self, m: usize, n: usize) -> [u32; 3] {
        [n.div_ceil(self.n) as u32, m.div_ceil(self.m) as u32, 1]
    }
}
