//! Floating-point formats and exact rounding between them: f16, bf16, tf32, f32, f64, in every rounding mode.

/// A binary format: how many mantissa bits it stores, and how many exponent bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub mantissa: u32,
    pub exponent: u32,
}

pub const F16: Format = Format { mantissa: 10, exponent: 5 };
pub const BF16: Format = Format { mantissa: 7, exponent: 8 };
/// tf32 without the 13 zero bits below it.
pub const TF32: Format = Format { mantissa: 10, exponent: 8 };
pub const F32: Format = Format { mantissa: 23, exponent: 8 };
pub const F64: Format = Format { mantissa: 52, exponent: 11 };

/// Where a value between two neighbours goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Even,
    /// To the nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

/// A value taken apart: `mantissa * 2^exponent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Nan,
    Infinite { negative: bool },
    Finite { negative: bool, mantissa: u128, exponent: i32 },
}

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn top(self) -> u64 {
        (1 << self.exponent) - 1
    }

    fn sign_bit(self) -> u32 {
        self.mantissa + self.exponent
    }

    /// The format's quiet NaN as the hardware writes it.
    pub fn nan(self) -> u64 {
        if self == F64 { 0x7ff8_0000_0000_0000 } else { (1 << self.sign_bit()) - 1 }
    }

    /// The value that `bits` stand for.
    pub fn unpack(self, bits: u64) -> Number {
        let negative = bits >> self.sign_bit() & 1 == 1;
        let fraction = bits & ((1 << self.mantissa) - 1);
        let exponent = bits >> self.mantissa & self.top();
        let lowest = 1 - self.bias() - self.mantissa as i32;
        if exponent == self.top() {
            return if fraction == 0 { Number::Infinite { negative } } else { Number::Nan };
        }
        let (mantissa, exponent) = match exponent {
            0 => (fraction, lowest),
            e => (fraction | 1 << self.mantissa, e as i32 - 1 + lowest),
        };
        Number::Finite { negative, mantissa: u128::from(mantissa), exponent }
    }

    /// The bits of `number`, rounded.
    pub fn pack(self, number: Number, rounding: Rounding) -> u64 {
        let sign = |negative: bool| u64::from(negative) << self.sign_bit();
        let infinite = self.top() << self.mantissa;
        let (negative, mantissa, exponent) = match number {
            Number::Nan => return self.nan(),
            Number::Infinite { negative } => return sign(negative) | infinite,
            Number::Finite { negative, mantissa, exponent } => (negative, mantissa, exponent),
        };
        if mantissa == 0 {
            return sign(negative);
        }
        let lowest = 1 - self.bias() - self.mantissa as i32;
        let top = 127 - mantissa.leading_zeros() as i32;
        let shift = (top - self.mantissa as i32).max(lowest - exponent);
        let mut kept = shifted(mantissa, shift, negative, rounding) as u64;
        let mut biased = exponent + shift - lowest + 1;
        if kept >> (self.mantissa + 1) != 0 {
            kept >>= 1;
            biased += 1;
        }
        if kept >> self.mantissa == 0 {
            return sign(negative) | kept; // subnormal
        }
        if biased >= self.top() as i32 {
            let to_infinite = match rounding {
                Rounding::Even | Rounding::Away => true,
                Rounding::Zero => false,
                Rounding::Down => negative,
                Rounding::Up => !negative,
            };
            return sign(negative) | if to_infinite { infinite } else { infinite - 1 };
        }
        sign(negative) | (biased as u64) << self.mantissa | (kept & ((1 << self.mantissa) - 1))
    }
}

/// `mantissa >> shift` (or `<<` where it is negative), rounded.
fn shifted(mantissa: u128, shift: i32, negative: bool, rounding: Rounding) -> u128 {
    if shift <= 0 {
        return mantissa << (-shift).min(127);
    }
    let (kept, half, rest) = if shift > 127 {
        (0, false, mantissa != 0)
    } else {
        (mantissa >> shift, mantissa >> (shift - 1) & 1 == 1, mantissa & ((1 << (shift - 1)) - 1) != 0)
    };
    let up = match rounding {
        Rounding::Even => half && (rest || kept & 1 == 1),
        Rounding::Away => half,
        Rounding::Zero => false,
        Rounding::Down => negative && (half || rest),
        Rounding::Up => !negative && (half || rest),
    };
    kept + u128::from(up)
}

/// The number an integer is.
pub fn from_integer(v: i128) -> Number {
    Number::Finite { negative: v < 0, mantissa: v.unsigned_abs(), exponent: 0 }
}

/// The integer nearest to `number` in the direction of `rounding`; `None` for NaN, the ends of i128 far outside.
pub fn to_integer(number: Number, rounding: Rounding) -> Option<i128> {
    let (negative, size) = match number {
        Number::Nan => return None,
        Number::Infinite { negative } => (negative, i128::MAX),
        Number::Finite { negative, mantissa, exponent } => {
            let top = 128 - mantissa.leading_zeros() as i32 + exponent;
            let size = if top > 100 { i128::MAX } else { shifted(mantissa, -exponent, negative, rounding) as i128 };
            (negative, size)
        }
    };
    Some(if negative { -size } else { size })
}

/// `a * b + c`, exact but for a sticky lowest bit, which rounding to any of the formats does not see.
pub fn fused(a: Number, b: Number, c: Number, rounding: Rounding) -> Number {
    use Number::{Finite, Infinite, Nan};
    let product = match (a, b) {
        (Nan, _) | (_, Nan) => return Nan,
        (Infinite { negative: n }, Infinite { negative: m }) => Infinite { negative: n != m },
        (Infinite { negative: n }, Finite { negative: m, mantissa, .. })
        | (Finite { negative: m, mantissa, .. }, Infinite { negative: n }) => {
            if mantissa == 0 {
                return Nan;
            }
            Infinite { negative: n != m }
        }
        (Finite { negative: n, mantissa: x, exponent: e }, Finite { negative: m, mantissa: y, exponent: f }) => {
            Finite { negative: n != m, mantissa: x * y, exponent: e + f }
        }
    };
    match (product, c) {
        (Nan, _) | (_, Nan) => Nan,
        (Infinite { negative: n }, Infinite { negative: m }) => {
            if n == m {
                product
            } else {
                Nan
            }
        }
        (Infinite { .. }, Finite { .. }) => product,
        (Finite { .. }, Infinite { .. }) => c,
        (Finite { negative: n, mantissa: x, exponent: e }, Finite { negative: m, mantissa: y, exponent: f }) => {
            sum((n, x, e), (m, y, f), rounding)
        }
    }
}

/// The sum of two signed `mantissa * 2^exponent`, the smaller one's lost bits kept as a sticky bit.
fn sum(a: (bool, u128, i32), b: (bool, u128, i32), rounding: Rounding) -> Number {
    if a.1 == 0 && b.1 == 0 {
        let negative = if a.0 == b.0 { a.0 } else { rounding == Rounding::Down };
        return Number::Finite { negative, mantissa: 0, exponent: 0 };
    }
    let top = |v: (bool, u128, i32)| if v.1 == 0 { i32::MIN } else { 128 - v.1.leading_zeros() as i32 + v.2 };
    let (big, small) = if top(a) >= top(b) { (a, b) } else { (b, a) };
    let up = big.1.leading_zeros() as i32 - 2;
    let (mantissa, exponent) = (big.1 << up, big.2 - up);
    let down = exponent - small.2;
    let low = if small.1 == 0 {
        0
    } else if down <= 0 {
        small.1 << -down
    } else if down > 127 {
        1
    } else {
        small.1 >> down | u128::from(small.1 & ((1 << down) - 1) != 0)
    };
    if big.0 == small.0 {
        return Number::Finite { negative: big.0, mantissa: mantissa + low, exponent };
    }
    let (negative, rest) = if mantissa >= low { (big.0, mantissa - low) } else { (small.0, low - mantissa) };
    let negative = if rest == 0 { rounding == Rounding::Down } else { negative };
    Number::Finite { negative, mantissa: rest, exponent }
}

/// bf16 to f32: exact.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to bf16, ties to even; NaN becomes the hardware's 0x7fff.
pub fn f32_to_bf16(v: f32) -> u16 {
    if v.is_nan() {
        return 0x7fff;
    }
    let bits = v.to_bits();
    // Overflow carries into infinity, as it should.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// f16 to f32: exact.
pub fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits) >> 15 << 31, bits >> 10 & 31, u32::from(bits & 1023));
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        e => f32::from_bits(sign | (u32::from(e) + 112) << 23 | fraction << 13),
    }
}

/// f32 to f16, ties to even.
pub fn f32_to_f16(v: f32) -> u16 {
    F16.pack(F32.unpack(u64::from(v.to_bits())), Rounding::Even) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let is_nan = |f: Format| f.unpack(u64::from(bits)) == Number::Nan;
            if !is_nan(F16) {
                assert_eq!(f32_to_f16(f16_to_f32(bits)), bits);
            }
            if !is_nan(BF16) {
                assert_eq!(f32_to_bf16(bf16_to_f32(bits)), bits);
            }
        }
    }

    #[test]
    fn soft_arithmetic_agrees_with_the_hosts() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 32
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next() as u32, next() as u32, next() as u32);
            let c = if a & 7 == 0 { b ^ c & 0x8000_0003 } else { c };
            let [x, y, z] = [a, b, c].map(f32::from_bits);
            let exact = x.mul_add(y, z);
            let [p, q, r] = [a, b, c].map(|v| F32.unpack(u64::from(v)));
            let soft = f32::from_bits(F32.pack(fused(p, q, r, Rounding::Even), Rounding::Even) as u32);
            assert!(exact.to_bits() == soft.to_bits() || exact.is_nan() && soft.is_nan(), "{x:e} {y:e} {z:e}");
            let wide = f64::from(x);
            let bits = F32.pack(F64.unpack((wide * 1.000_000_03).to_bits()), Rounding::Even) as u32;
            let want = (wide * 1.000_000_03) as f32;
            assert!(want.to_bits() == bits || want.is_nan());
            assert_eq!(f32_to_bf16(x), BF16.pack(p, Rounding::Even) as u16);
        }
    }

    #[test]
    fn directed_roundings_enclose() {
        let third = F64.unpack((1.0f64 / 3.0).to_bits());
        let at = |r| f32::from_bits(F32.pack(third, r) as u32);
        assert!(f64::from(at(Rounding::Down)) < 1.0 / 3.0 && 1.0 / 3.0 < f64::from(at(Rounding::Up)));
        assert_eq!(at(Rounding::Zero), at(Rounding::Down));
        assert_eq!(to_integer(F64.unpack((-2.5f64).to_bits()), Rounding::Even), Some(-2));
        assert_eq!(to_integer(F64.unpack((-2.5f64).to_bits()), Rounding::Down), Some(-3));
    }
}
