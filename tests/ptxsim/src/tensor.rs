//! Tensor maps, and the swizzles that tensor copies and wgmma share.
//!
//! A tensor map is here a struct of this crate's, not what `cuTensorMapEncodeTiled` makes: that call belongs to the driver.

/// How 16-byte chunks of shared memory are exchanged, so that a column's chunks have banks of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// Bytes of a row of the pattern.
    pub fn span(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// The address of a byte that without the swizzle had address `at`: bits 7 and up change bits 4 and up.
    pub fn apply(self, at: usize) -> usize {
        at ^ (at >> 7 & (self.span() / 16 - 1)) << 4
    }

    /// Bytes after which the pattern begins anew.
    pub fn period(self) -> usize {
        8 * self.span()
    }
}

/// A tensor of up to five dimensions in global memory, the contiguous one first, and the box that one copy moves.
/// 128 bytes, passed by value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Device address of the first element.
    pub base: u64,
    /// Elements along each dimension.
    pub size: Vec<u64>,
    /// Bytes from one index to the next, from the second dimension on.
    pub stride: Vec<u64>,
    /// Elements that a copy moves; what lies outside the tensor is read as zero and not written.
    pub tile: Vec<u32>,
    /// Bytes of an element.
    pub element: u32,
    pub swizzle: Swizzle,
}

/// The first word of [`TensorMap::bytes`], so that other bytes are not taken for a map.
const MAGIC: u64 = 0x7061_6d72_6f73_6e65;
const RANKS: usize = 5;
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

impl TensorMap {
    /// The parameter's bytes, for [`crate::Param::Bytes`].
    pub fn bytes(&self) -> Vec<u8> {
        let padded = |values: &[u64], n: usize| values.iter().copied().chain(std::iter::repeat(0)).take(n).collect();
        let tile: Vec<u64> = self.tile.iter().map(|&t| u64::from(t)).collect();
        let (size, stride): (Vec<u64>, Vec<u64>) = (padded(&self.size, RANKS), padded(&self.stride, RANKS - 1));
        let tile: Vec<u64> = padded(&tile, RANKS);
        let swizzle = SWIZZLES.iter().position(|s| *s == self.swizzle).unwrap_or(0) as u64;
        let kind = u64::from(self.element) | swizzle << 8 | (self.size.len() as u64) << 16;
        // Box sizes are at most 256: 12 bits each.
        let boxes = tile.iter().rev().fold(0, |word, t| word << 12 | t & 0xfff);
        let words = [MAGIC, self.base, kind, boxes].into_iter().chain(size).chain(stride);
        let mut out: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        out.resize(128, 0);
        out
    }

    /// What [`TensorMap::bytes`] wrote; `None` for other bytes.
    pub(crate) fn from_bytes(bytes: &[u8; 128]) -> Option<TensorMap> {
        let word = |i: usize| (0..8).fold(0, |v, k| v | u64::from(bytes[8 * i + k]) << (8 * k));
        let (kind, boxes) = (word(2), word(3));
        let rank = (kind >> 16) as usize;
        if word(0) != MAGIC || !(1..=RANKS).contains(&rank) {
            return None;
        }
        Some(TensorMap {
            base: word(1),
            size: (0..rank).map(|d| word(4 + d)).collect(),
            stride: (1..rank).map(|d| word(4 + RANKS + d - 1)).collect(),
            tile: (0..rank).map(|d| (boxes >> (12 * d) & 0xfff) as u32).collect(),
            element: kind as u8 as u32,
            swizzle: SWIZZLES[(kind >> 8 & 3) as usize],
        })
    }

    /// Bytes of a row of the box, along the contiguous dimension.
    pub fn row(&self) -> usize {
        (self.tile[0] * self.element) as usize
    }

    /// Rows of the box.
    pub fn rows(&self) -> usize {
        self.tile[1..].iter().product::<u32>() as usize
    }

    /// Bytes of the box.
    pub fn box_bytes(&self) -> usize {
        self.row() * self.rows()
    }

    /// What `cuTensorMapEncodeTiled` refuses.
    ///
    /// # Errors
    /// The broken rule.
    pub fn check(&self) -> Result<(), String> {
        let rank = self.size.len();
        if !(1..=RANKS).contains(&rank) || self.tile.len() != rank || self.stride.len() + 1 != rank {
            let (tile, stride) = (self.tile.len(), self.stride.len());
            return Err(format!("{rank} sizes, {tile} box sizes, {stride} strides"));
        }
        if !self.base.is_multiple_of(16) || self.stride.iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40) {
            return Err("an address or a stride that is no multiple of 16, or too long a stride".into());
        }
        if self.size.iter().any(|s| !(1..=1 << 32).contains(s)) || self.tile.iter().any(|t| !(1..=256).contains(t)) {
            return Err("a size outside 1..2^32, or a box size outside 1..256".into());
        }
        if !self.row().is_multiple_of(16) {
            return Err(format!("rows of {} bytes, no multiple of 16", self.row()));
        }
        if self.swizzle != Swizzle::None && self.row() > self.swizzle.span() {
            return Err(format!("rows of {} bytes, longer than the swizzle's {}", self.row(), self.swizzle.span()));
        }
        Ok(())
    }

    /// Of row `r` of the box whose first element is at `at`: the address of its first element, were it inside, and which
    /// of its elements are. `None`: none is.
    pub fn row_at(&self, at: &[i32], r: usize) -> Option<(u64, std::ops::Range<usize>)> {
        let (mut rest, mut address) = (r, self.base);
        let outer = self.tile[1..].iter().zip(&self.size[1..]).zip(self.stride.iter().zip(&at[1..]));
        for ((&tile, &size), (&stride, &from)) in outer {
            let index = i64::from(from) + (rest % tile as usize) as i64;
            rest /= tile as usize;
            if index < 0 || index as u64 >= size {
                return None;
            }
            address = address.wrapping_add(index as u64 * stride);
        }
        let x = i64::from(at[0]);
        let (first, end) = ((-x).max(0), (self.size[0] as i64 - x).min(i64::from(self.tile[0])));
        address = address.wrapping_add_signed(x * i64::from(self.element));
        (first < end).then_some((address, first as usize..end as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        let (size, stride, tile) = (vec![40, 5, 3], vec![80, 400], vec![16, 4, 2]);
        TensorMap { base: 1 << 40, size, stride, tile, element: 2, swizzle: Swizzle::B32 }
    }

    #[test]
    fn a_map_survives_its_bytes_and_other_bytes_are_no_map() {
        let bytes: [u8; 128] = map().bytes().try_into().unwrap();
        assert_eq!(TensorMap::from_bytes(&bytes), Some(map()));
        assert_eq!(TensorMap::from_bytes(&[1; 128]), None);
    }

    #[test]
    fn rows_of_a_box_are_found_and_clipped() {
        let base = 1 << 40;
        // Row 5 of the box is (y 1, z 1).
        assert_eq!(map().row_at(&[8, 2, 1], 5), Some((base + 16 + 3 * 80 + 2 * 400, 0..16)));
        assert_eq!(map().row_at(&[-3, 0, 0], 0), Some((base - 6, 3..16)));
        assert_eq!(map().row_at(&[32, 0, 0], 0), Some((base + 64, 0..8)));
        assert_eq!(map().row_at(&[40, 0, 0], 0), None);
        assert_eq!(map().row_at(&[0, 2, 0], 3), None);
        assert_eq!(map().row_at(&[0, -1, 0], 0), None);
    }

    #[test]
    fn what_the_driver_refuses_is_refused() {
        map().check().unwrap();
        let broken: [fn(&mut TensorMap); 6] = [
            |m| m.base += 8,
            |m| m.stride[0] = 84,
            |m| m.tile[0] = 12,
            |m| m.tile[0] = 32,
            |m| m.tile[1] = 300,
            |m| m.size.push(1),
        ];
        for (i, harm) in broken.iter().enumerate() {
            let mut map = map();
            harm(&mut map);
            assert!(map.check().is_err(), "{i}");
        }
    }

    #[test]
    fn swizzles_exchange_chunks_within_their_span() {
        for swizzle in SWIZZLES {
            let mut seen: Vec<usize> = (0..1024).map(|at| swizzle.apply(at)).collect();
            assert!(seen.iter().enumerate().all(|(at, to)| at / swizzle.span() == to / swizzle.span()));
            seen.sort_unstable();
            assert!(seen.iter().enumerate().all(|(at, to)| at == *to));
        }
        assert_eq!(
            [Swizzle::B128.apply(0x80), Swizzle::B64.apply(0x180), Swizzle::B32.apply(0x180)],
            [0x90, 0x1b0, 0x190]
        );
    }
}
