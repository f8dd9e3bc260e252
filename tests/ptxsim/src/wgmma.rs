//! wgmma of 16-bit floats: its operands, the layouts that descriptors name, and the product.

use crate::decode::{Form, elements, source_reg};
use crate::machine::lanes;
use crate::operand::Operand;
use crate::program::Reg;
use crate::tensor::Swizzle;
use crate::values::{bf16_to_f32, f16_to_f32};

/// Rows of a product, and its depth.
pub const ROWS: usize = 64;
pub const DEPTH: usize = 16;

/// The left operand.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    Descriptor(Reg),
    /// Each warp's 16 rows, in the fragments of `mma.m16n8k16`.
    Registers([Reg; 4]),
}

/// D = ±A ±B + D or without the last: A is 64 x 16, B is 16 x n, D is f32.
#[derive(Debug)]
pub struct Mma {
    pub d: Vec<Reg>,
    pub a: Left,
    pub b: Reg,
    /// Whether D is added to.
    pub keep: Reg,
    /// The signs of A and of B.
    pub signs: [Reg; 2],
    /// Whether A and B are MN-major.
    pub transposed: [Option<Reg>; 2],
    pub bf16: bool,
}

/// What the warps of a warpgroup do.
#[derive(Debug)]
pub enum Warpgroup {
    Fence,
    Commit,
    /// Until at most so many groups are under way.
    Wait {
        keep: Reg,
    },
    Mma(Mma),
    /// `setmaxnreg`.
    Registers {
        count: Reg,
    },
}

impl Mma {
    fn new(form: &Form, operands: &[Operand]) -> Result<Mma, String> {
        let shape = form.mods.iter().find_map(|m| m.strip_prefix("m64n")?.strip_suffix("k16"));
        let n: usize = shape.and_then(|s| s.parse().ok()).ok_or("a shape other than m64nNk16")?;
        let of = |name: &str| form.mods.iter().filter(|m| **m == name).count();
        let bf16 = of("bf16") == 2;
        if of("f32") != 1 || !bf16 && of("f16") != 2 || form.has("sp") {
            return Err("wgmma other than f32 += f16 x f16 or bf16 x bf16".into());
        }
        let d: Vec<Reg> = elements(operands.first())?.iter().map(source_reg).collect::<Result<_, _>>()?;
        if d.len() != n / 2 || !n.is_multiple_of(8) || !(8..=256).contains(&n) {
            return Err(format!("{} accumulators for n = {n}", d.len()));
        }
        let a = match operands.get(1) {
            Some(Operand::Vector(v)) => {
                let regs: Vec<Reg> = v.iter().map(source_reg).collect::<Result<_, _>>()?;
                Left::Registers(regs.try_into().map_err(|_| "four registers of A")?)
            }
            Some(o) => Left::Descriptor(source_reg(o)?),
            None => return Err("A is missing".into()),
        };
        let rest: Vec<Reg> = operands[2..].iter().map(source_reg).collect::<Result<_, _>>()?;
        let (b, keep, signs, transposed) = match (a, &rest[..]) {
            (Left::Descriptor(_), &[b, keep, x, y, ta, tb]) => (b, keep, [x, y], [Some(ta), Some(tb)]),
            (Left::Registers(_), &[b, keep, x, y, tb]) => (b, keep, [x, y], [None, Some(tb)]),
            _ => return Err(format!("{} operands of wgmma", operands.len())),
        };
        Ok(Mma { d, a, b, keep, signs, transposed, bf16 })
    }

    pub fn n(&self) -> usize {
        2 * self.d.len()
    }

    pub fn value(&self, bits: u16) -> f32 {
        if self.bf16 { bf16_to_f32(bits) } else { f16_to_f32(bits) }
    }
}

pub fn decode(form: &Form, operands: &[Operand]) -> Result<Warpgroup, String> {
    let first = || source_reg(operands.first().ok_or("an operand is missing")?);
    Ok(match (form.name, form.mods.first()) {
        ("setmaxnreg", _) => Warpgroup::Registers { count: first()? },
        (_, Some(&"mma_async")) => Warpgroup::Mma(Mma::new(form, operands)?),
        (_, Some(&"fence")) => Warpgroup::Fence,
        (_, Some(&"commit_group")) => Warpgroup::Commit,
        (_, Some(&"wait_group")) => Warpgroup::Wait { keep: first()? },
        _ => return Err("this wgmma instruction is not interpreted".into()),
    })
}

/// A matrix in shared memory, as a descriptor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    start: usize,
    leading: usize,
    stride: usize,
    swizzle: Swizzle,
}

impl Descriptor {
    /// # Errors
    /// What the bits name that is not interpreted.
    pub fn decode(bits: u64) -> Result<Descriptor, String> {
        let field = |shift: u32| ((bits >> shift & 0x3fff) << 4) as usize;
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(bits >> 62) as usize];
        let (start, leading, stride) = (field(0), field(16), field(32));
        if bits >> 49 & 7 != 0 {
            return Err(format!("the wgmma descriptor {bits:#x} has a base offset"));
        }
        if swizzle != Swizzle::None && start % swizzle.period() >= 128 {
            let period = swizzle.period();
            return Err(format!("a wgmma matrix begins at {start}, within a swizzle's pattern of {period} bytes"));
        }
        Ok(Descriptor { start, leading, stride, swizzle })
    }

    /// The address of element (mn, k): row and column of A, column and row of B. In units of 16 bytes the layouts are
    /// K-major ((8, m), 2):((span, stride), 1), and MN-major ((span, m), (8, k)):((1, leading), (span, stride)); with no
    /// swizzle, matrices of 8 x 16 bytes, stride bytes apart along mn and leading bytes along k.
    pub fn address(&self, mn: usize, k: usize, transposed: bool) -> usize {
        let span = self.swizzle.span();
        let at = match (self.swizzle, transposed) {
            (Swizzle::None, false) => mn % 8 * 16 + mn / 8 * self.stride + k % 8 * 2 + k / 8 * self.leading,
            (Swizzle::None, true) => mn % 8 * 2 + mn / 8 * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (_, false) => mn % 8 * span + mn / 8 * self.stride + 2 * k,
            (_, true) => {
                let per = span / 2;
                mn % per * 2 + mn / per * self.leading + k % 8 * span + k / 8 * self.stride
            }
        };
        self.swizzle.apply(self.start + at)
    }

    /// Addresses of the 16-byte chunks that rows `mn` of the matrix are in.
    pub fn chunks(&self, mn: std::ops::Range<usize>, transposed: bool) -> Vec<usize> {
        let step = if transposed { (8, 1) } else { (1, 8) };
        let rows = mn.step_by(step.0);
        rows.flat_map(|r| (0..DEPTH).step_by(step.1).map(move |k| self.address(r, k, transposed))).collect()
    }
}

/// Of one warp: `regs[d]` += or = `sign` * left * right, with its 16 rows of the left operand and all columns of the right.
pub fn multiply(
    regs: &mut [[u64; 32]],
    d: &[Reg],
    keep: bool,
    sign: f64,
    left: &[[f32; DEPTH]],
    right: &[[f32; DEPTH]],
) {
    for l in lanes(u32::MAX) {
        let (g, t) = (l / 4, l % 4);
        for (j, r) in d.iter().enumerate() {
            let (row, column) = (g + 8 * (j >> 1 & 1), j / 4 * 8 + 2 * t + (j & 1));
            let old = f64::from(f32::from_bits(regs[*r as usize][l] as u32));
            let product = |k: usize| f64::from(left[row][k]) * f64::from(right[column][k]);
            let sum = if keep { old } else { 0.0 } + sign * (0..DEPTH).map(product).sum::<f64>();
            regs[*r as usize][l] = u64::from((sum as f32).to_bits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(start: u64, leading: u64, stride: u64, mode: u64) -> Descriptor {
        Descriptor::decode(start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62).unwrap()
    }

    #[test]
    fn layouts_have_each_element_once() {
        // (mode, leading, stride) of 64 rows, K-major then MN-major, without gaps.
        for (mode, leading, stride, transposed, bytes) in [
            (0, 128, 256, false, 2048),
            (1, 16, 1024, false, 8192),
            (2, 16, 512, false, 4096),
            (3, 16, 256, false, 2048),
            (0, 1024, 128, true, 2048),
            (1, 0, 1024, true, 2048),
            (2, 1024, 512, true, 2048),
            (3, 512, 256, true, 2048),
        ] {
            let matrix = descriptor(4096, leading, stride, mode);
            let mut seen: Vec<usize> = (0..64)
                .flat_map(|r| (0..16).map(move |k| (r, k)))
                .map(|(r, k)| matrix.address(r, k, transposed))
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 1024, "mode {mode}");
            assert!(seen.iter().all(|at| (4096..4096 + bytes).contains(at) && at % 2 == 0), "mode {mode}");
            let mut chunks: Vec<usize> = seen.iter().map(|at| at / 16 * 16).collect();
            chunks.dedup();
            let mut named = matrix.chunks(0..64, transposed);
            named.sort_unstable();
            assert_eq!(named, chunks, "mode {mode}");
        }
    }

    #[test]
    fn starts_within_a_pattern_are_refused() {
        let bits = |start: u64, mode: u64| Descriptor::decode(start >> 4 | mode << 62);
        assert!(bits(1024 + 96, 1).is_ok() && bits(1024 + 128, 1).is_err());
        assert!(bits(512, 2).is_ok() && bits(512 + 256, 2).is_err());
        assert!(Descriptor::decode(1 << 49).is_err());
    }
}
