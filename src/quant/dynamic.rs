//! bitsandbytes' 8-bit dynamic maps (Dettmers et al. 2022, arXiv:2110.02861; `create_dynamic_map`): what the bytes of
//! double quantization's absmax and of 8-bit optimizer state represent, once multiplied by their block's absmax.
//!
//! Decade `i` of seven has `2^i` values (unsigned: `2^(i+1)`), the middles of as many equal parts of `10^(i-6)·[0.1, 1]`;
//! signed maps have their negatives too. To these come 0 and 1.

use std::sync::LazyLock;

/// A map of 256 values, ascending, and what is between them.
pub struct DynamicMap {
    /// The values of the codes, from −1 (signed) or 0 (unsigned) to 1.
    pub values: [f32; 256],
    /// `(values[i] + values[i + 1]) / 2`: a code `i` is right for what is above the one before and not above its own.
    between: [f32; 256],
    /// For each cell of [`cell`], the code of its lowest value.
    cells: Box<[u8; 2 * CELLS]>,
}

/// Cells of either sign: numbers of 2⁻²⁴ to 1 by their exponent and 8 bits of their significand, what is smaller in the
/// first. A cell is at most 1/256 of its values wide, and edges between values are 1/190 of them apart or more, so that at most
/// one edge falls into a cell.
const CELLS: usize = (24 << 8) + 1;
const FIRST: u32 = (127 - 24) << 8;

#[inline(always)]
fn cell(x: f32) -> usize {
    let bits = x.to_bits();
    let magnitude = ((bits & 0x7fff_ffff) >> 15).saturating_sub(FIRST).min(CELLS as u32 - 1);
    ((bits >> 31) as usize) * CELLS + magnitude as usize
}

static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

/// The map from −0.993 to 1.
pub fn signed() -> &'static DynamicMap {
    &SIGNED
}

/// The map from 0 to 1.
pub fn unsigned() -> &'static DynamicMap {
    &UNSIGNED
}

impl DynamicMap {
    /// Bit for bit as torch computes it on the CPU.
    fn new(signed: bool) -> DynamicMap {
        let mut values = [0.0; 256];
        values[1] = 1.0;
        let mut next = 2;
        for i in 0..7 {
            let parts = if signed { 1usize << i } else { 2 << i };
            // torch.linspace counts its first half from the start and its second from the end.
            let (start, end) = (0.1f32, 1.0f32);
            let step = (end - start) / parts as f32;
            let boundary = |k: usize| match k < parts.div_ceil(2) {
                true => step.mul_add(k as f32, start),
                false => (-step).mul_add((parts - k) as f32, end),
            };
            let scale = 10f64.powi(i - 6) as f32;
            for k in 0..parts {
                let middle = scale * ((boundary(k) + boundary(k + 1)) / 2.0);
                values[next] = middle;
                next += 1;
                if signed {
                    values[next] = -middle;
                    next += 1;
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let mut between = [f32::INFINITY; 256];
        for i in 0..255 {
            between[i] = 0.5 * (values[i] + values[i + 1]);
        }
        let code = |x: f32| (0..255).take_while(|&i| between[i] < x).count() as u8;
        let mut cells = Box::new([0; 2 * CELLS]);
        for k in 0..CELLS as u32 {
            let from = if k == 0 { 0.0 } else { f32::from_bits((k + FIRST) << 15) };
            cells[k as usize] = code(from);
            cells[CELLS + k as usize] = code(-f32::from_bits(((k + FIRST + 1) << 15) - 1));
        }
        DynamicMap { values, between, cells }
    }

    /// The code of the value nearest to `x` in [−1, 1], the lower of two. NaN gets any code.
    #[inline(always)]
    pub fn code(&self, x: f32) -> u8 {
        let code = self.cells[cell(x)];
        code + (x > self.between[code as usize]) as u8
    }

    /// The same in float64, by looking at all of them.
    pub fn code_f64(&self, x: f64) -> u8 {
        let above = |pair: &[f32]| 0.5 * (pair[0] as f64 + pair[1] as f64) < x;
        self.values.windows(2).take_while(|pair| above(pair)).count() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_nearest_values() {
        for (map, zero) in [(signed(), 127), (unsigned(), 0)] {
            let mut tried = 0;
            let mut check = |x: f32| {
                let want = (0..255).take_while(|&i| map.between[i] < x).count();
                assert_eq!(map.code(x) as usize, want, "{x:e}, zero at {zero}");
                tried += 1;
            };
            // Each value, each edge with its neighbours, and numbers of every size.
            for i in 0..256 {
                check(map.values[i]);
                if i < 255 {
                    let edge = map.between[i];
                    [edge, edge.next_up(), edge.next_down()].into_iter().for_each(&mut check);
                }
            }
            for i in 0..200_000u32 {
                let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
                if x.abs() <= 1.0 {
                    check(x);
                }
            }
            assert!(tried > 10_000);
            assert_eq!((map.code(0.0), map.code(-0.0), map.code(1.0)), (zero, zero, 255));
            assert!((0..=255u8).all(|c| map.code_f64(map.values[c as usize] as f64) == c));
        }
    }
}
