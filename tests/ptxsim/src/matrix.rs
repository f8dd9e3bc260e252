//! `mma.sync`: which lane holds which element, and the products.
//!
//! Layouts are those of the PTX manual's "Matrix Fragments for mma.m16n8k8 / m16n8k16". Sums are made in f64 and
//! rounded once; the hardware's order and rounding differ, so results agree only within a tolerance.

use crate::decode::Form;
use crate::machine::lanes;
use crate::program::Reg;
use crate::types::{Kind, Type};
use crate::values::{bf16_to_f32, f16_to_f32};

/// What a register of A or B holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    /// Two 16-bit values.
    F16,
    BF16,
    /// One f32 of which the top 19 bits count.
    TF32,
}

/// D = A B + C with A 16 x K by rows, B K x 8 by columns, C and D 16 x 8 of f32.
#[derive(Debug)]
pub struct Mma {
    depth: usize,
    element: Element,
    d: Vec<Reg>,
    a: Vec<Reg>,
    b: Vec<Reg>,
    c: Vec<Reg>,
}

impl Mma {
    pub fn new(form: &Form, d: Vec<Reg>, a: Vec<Reg>, b: Vec<Reg>, c: Vec<Reg>) -> Result<Mma, String> {
        let depth =
            [16, 8, 4][form.which(&["m16n8k16", "m16n8k8", "m16n8k4"]).ok_or("this shape is not interpreted")?];
        let f32_type = Type { kind: Kind::Float, bits: 32 };
        let [to, left, right, from] = form.types[..] else { return Err("four types belong to mma".into()) };
        let element = match (left.kind, left.bits) {
            (Kind::Float, 16) => Element::F16,
            (Kind::BFloat, 16) => Element::BF16,
            (Kind::TensorFloat, 32) => Element::TF32,
            _ => return Err("elements other than f16, bf16 and tf32".into()),
        };
        let per = if element == Element::TF32 { 1 } else { 2 };
        let counts = [d.len(), a.len(), b.len(), c.len()];
        if left != right || (to, from) != (f32_type, f32_type) || !form.has("row") || !form.has("col") {
            return Err("this mma is not interpreted".into());
        }
        if counts != [4, depth / 2 / per, depth / 4 / per, 4] || per == 1 && depth == 16 || per == 2 && depth == 4 {
            return Err(format!("{counts:?} registers for depth {depth}"));
        }
        Ok(Mma { depth, element, d, a, b, c })
    }

    /// All registers it reads and writes.
    pub fn registers(&self) -> impl Iterator<Item = Reg> {
        self.d.iter().chain(&self.a).chain(&self.b).chain(&self.c).copied()
    }

    /// The values that a register holds.
    fn values(&self, bits: u64) -> [f32; 2] {
        match self.element {
            Element::F16 => [f16_to_f32(bits as u16), f16_to_f32((bits >> 16) as u16)],
            Element::BF16 => [bf16_to_f32(bits as u16), bf16_to_f32((bits >> 16) as u16)],
            Element::TF32 => [f32::from_bits(bits as u32 & 0xffff_e000), 0.0],
        }
    }

    /// For a warp's registers.
    pub fn run(&self, regs: &mut [[u64; 32]]) {
        let per = if self.element == Element::TF32 { 1 } else { 2 };
        let (mut a, mut b) = ([[0f32; 16]; 16], [[0f32; 16]; 8]);
        for l in lanes(u32::MAX) {
            let (g, t) = (l / 4, l % 4);
            for (j, r) in self.a.iter().enumerate() {
                let values = self.values(regs[*r as usize][l]);
                for h in 0..per {
                    a[g + 8 * (j & 1)][per * t + h + 4 * per * (j >> 1)] = values[h];
                }
            }
            for (j, r) in self.b.iter().enumerate() {
                let values = self.values(regs[*r as usize][l]);
                for h in 0..per {
                    b[g][per * t + h + 4 * per * j] = values[h];
                }
            }
        }
        let mut out = [[0u64; 32]; 4];
        for l in 0..32 {
            let (g, t) = (l / 4, l % 4);
            for (j, row) in out.iter_mut().enumerate() {
                let (m, n) = (g + 8 * (j >> 1), 2 * t + (j & 1));
                let start = f64::from(f32::from_bits(regs[self.c[j] as usize][l] as u32));
                // Products of 16-bit floats are exact in f32.
                let sum = (0..self.depth).fold(start, |s, k| s + f64::from(a[m][k]) * f64::from(b[n][k]));
                row[l] = u64::from((sum as f32).to_bits());
            }
        }
        for (row, r) in out.iter().zip(&self.d) {
            regs[*r as usize] = *row;
        }
    }
}
