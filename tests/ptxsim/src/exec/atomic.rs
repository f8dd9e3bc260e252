//! `atom` and `red`: lanes one after another, in order.

use super::access::{Place, aligned};
use crate::decode::{Atomic, AtomicKind};
use crate::machine::{Machine, lanes};
use crate::memory::{Fault, Wish};
use crate::types::{Kind, Type, mask as ones, sign_extend, zero_extend};
use crate::values::{BF16, F16, Format, Number, Rounding, fused};

/// The sum of two floats of a format narrower than f32.
fn half_sum(format: Format, a: u64, b: u64) -> u64 {
    let one = Number::Finite { negative: false, mantissa: 1, exponent: 0 };
    let sum = fused(format.unpack(a & 0xffff), one, format.unpack(b & 0xffff), Rounding::Even);
    format.pack(sum, Rounding::Even)
}

/// The sum as the type makes it.
fn sum(t: Type, a: u64, b: u64) -> u64 {
    let pair = |format: Format| half_sum(format, a, b) | half_sum(format, a >> 16, b >> 16) << 16;
    match (t.kind, t.bits) {
        (Kind::Float, 32) => u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits()),
        (Kind::Float, 64) => (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        (Kind::Float, _) => half_sum(F16, a, b),
        (Kind::BFloat, _) => half_sum(BF16, a, b),
        (Kind::HalfPair, _) => pair(F16),
        (Kind::BFloatPair, _) => pair(BF16),
        _ => a.wrapping_add(b),
    }
}

/// The value after the operation.
fn updated(kind: AtomicKind, t: Type, old: u64, v: u64, second: u64) -> u64 {
    use AtomicKind::*;
    let (o, z) = (zero_extend(old, t.bits), zero_extend(v, t.bits));
    let (s, r) = (sign_extend(old, t.bits), sign_extend(v, t.bits));
    match kind {
        Add => sum(t, old, v),
        Min if t.is_signed() => s.min(r) as u64,
        Min => o.min(z),
        Max if t.is_signed() => s.max(r) as u64,
        Max => o.max(z),
        And => old & v,
        Or => old | v,
        Xor => old ^ v,
        Exchange => v,
        CompareExchange => {
            if o == z {
                second
            } else {
                old
            }
        }
        Increment => {
            if o >= z {
                0
            } else {
                o + 1
            }
        }
        Decrement => {
            if o == 0 || o > z {
                z
            } else {
                o - 1
            }
        }
    }
}

impl Machine<'_> {
    pub fn atomic(&mut self, w: usize, mask: u32, pc: usize, a: &Atomic) -> Result<(), Box<Fault>> {
        let n = a.kind_type.bytes();
        let (read, write) = (Wish { write: false, strong: true }, Wish { write: true, strong: true });
        for l in lanes(mask) {
            let address = self.lane_address(w, l, a.address);
            let place = Place::of(a.space, address);
            let mut data = [0u8; 8];
            let regs = &self.warps[w].regs;
            let (value, second) = (regs[a.value as usize][l], regs[a.second as usize][l]);
            let mut at = |machine: &mut Self| {
                aligned(address, n, "atomic")?;
                machine.get(w, l, pc, place, &mut data[..n], read)?;
                let old = u64::from_le_bytes(data);
                let new = updated(a.kind, a.kind_type, old, value, second) & ones(a.kind_type.bits);
                machine.put(w, l, pc, place, &new.to_le_bytes()[..n], write)?;
                Ok(old)
            };
            let old = at(self).map_err(|mut f: Box<Fault>| {
                f.lane = Some(l);
                f
            })?;
            if let Some(to) = a.to {
                self.warps[w].regs[to as usize][l] = old;
            }
        }
        Ok(())
    }
}
