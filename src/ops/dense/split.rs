//! Where the sum of a product with few tiles is split: workgroups take parts of it, and `shaders/sum_parts.wgsl` adds those up
//! in order. Depends on the shape and on what a device is taken to have only, and so do the results.

use super::tile::Tile;
use super::yes;
use crate::device::Caps;
use crate::dtype::DType;
use crate::ops::{Arg, WgslDispatch, launch};

/// Fewest terms of a part: fewer take less time than adding up does.
const LEAST: usize = 256;

/// Parts start where a block of 64 of NF4 does.
const STEP: usize = 64;

/// How a sum of `k` terms is split for an m × n result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops) struct Split {
    pub parts: usize,
    /// Terms of a part.
    pub step: usize,
    elements: usize,
}

impl Split {
    /// In one part.
    pub fn none(k: usize) -> Split {
        Split { parts: 1, step: k.next_multiple_of(STEP).max(STEP), elements: 0 }
    }

    /// So many parts that the device has enough to do, and that they can be bound together.
    pub(super) fn of(tile: &Tile, (m, n, k): (usize, usize, usize), caps: &Caps) -> Split {
        let enough = tile.enough(caps) / tile.count(m, n).max(1);
        let fits = (caps.max_binding.min(1 << 31) / (4 * (m * n) as u64).max(1)) as usize;
        let parts = enough.min(k / LEAST).min(fits).max(1);
        let step = k.div_ceil(parts).next_multiple_of(STEP);
        match k.div_ceil(step.max(1)) {
            0 | 1 => Split::none(k),
            parts => Split { parts, step, elements: m * n },
        }
    }

    /// Scratch memory of the parts.
    pub fn bytes(&self) -> u64 {
        4 * (self.parts * self.elements) as u64
    }

    /// Where the parts go, if there are several.
    pub(super) fn scratch(&self) -> Option<Arg> {
        (self.parts > 1).then(|| Arg::Work(0..self.bytes()))
    }

    /// The sum `c = alpha·Σ parts`, c being of type `dtype`, and what else is added: a bias of n elements, another operand, c
    /// itself.
    pub(super) fn sum(&self, c: Arg, dtype: DType, more: Sum, alpha: f32, caps: &Caps) -> WgslDispatch {
        let unit = launch::unit(dtype);
        let (mut defines, last, n, in_c) = match more {
            Sum::Nothing => (vec![], None, 1, false),
            Sum::Bias(bias, n) => (vec!["BIAS"], Some(bias), n, false),
            Sum::Operand(add) => (vec!["ACC"], Some(add), 1, false),
            Sum::Itself => (vec![], None, 1, true),
        };
        defines.extend(launch::half(dtype));
        let units = self.elements / unit;
        WgslDispatch {
            shader: "sum_parts",
            defines,
            entry: "sum_parts",
            constants: yes("ADD", in_c).into_iter().collect(),
            grid: launch::grid(units.div_ceil(64), caps),
            args: [c, Arg::Work(0..self.bytes())].into_iter().chain(last).collect(),
            params: vec![units as u32, self.parts as u32, n.div_ceil(unit) as u32, alpha.to_bits()],
            flops: (self.parts * self.elements) as u64,
        }
    }
}

/// What is added to the parts.
pub(super) enum Sum {
    Nothing,
    Bias(Arg, usize),
    Operand(Arg),
    Itself,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::null::Null;

    #[test]
    fn parts_cover_the_sum_and_are_worth_it() {
        let caps = Null::new().caps().clone();
        let mut split = 0;
        for m in [1, 5, 64, 200, 2048] {
            for n in [8, 64, 576, 4096] {
                for k in [1, 63, 255, 256, 511, 512, 600, 4096, 11008] {
                    let tile = Tile::of(m, n, true, &caps);
                    let found = Split::of(&tile, (m, n, k), &caps);
                    assert!(found.step.is_multiple_of(STEP) && found.parts * found.step >= k, "{m} {n} {k} {found:?}");
                    assert!((found.parts - 1) * found.step < k, "{m} {n} {k} {found:?}: an empty part");
                    if found.parts > 1 {
                        assert!(found.step >= LEAST && found.parts * tile.count(m, n) <= tile.enough(&caps));
                        split += 1;
                    }
                }
            }
        }
        assert!(split > 20, "only {split} are split");
        // What would not fit a binding is not split.
        let tight = Caps { max_binding: 4096, ..caps };
        assert_eq!(Split::of(&Tile::of(64, 64, true, &tight), (64, 64, 4096), &tight), Split::none(4096));
    }
}
