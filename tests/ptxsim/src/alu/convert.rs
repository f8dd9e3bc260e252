//! `cvt`: between integers and floats of every width, in every rounding.

use super::float::rounding;
use super::{Operation, one, two};
use crate::decode::Form;
use crate::types::{Kind, Type, mask, sign_extend, zero_extend};
use crate::values::{
    BF16, F16, F32, F64, Format, Number, Rounding, TF32, bf16_to_f32, f16_to_f32, f32_to_bf16, from_integer, to_integer,
};

fn format(t: Type) -> Option<Format> {
    Some(match (t.kind, t.bits) {
        (Kind::Float, 16) => F16,
        (Kind::Float, 32) => F32,
        (Kind::Float, 64) => F64,
        (Kind::BFloat, 16) => BF16,
        (Kind::TensorFloat, 32) => TF32,
        _ => return None,
    })
}

/// Clamped to what `t` can hold.
fn clamped(v: i128, t: Type) -> u64 {
    let (low, high) = if t.is_signed() {
        (-(1i128 << (t.bits - 1)), (1i128 << (t.bits - 1)) - 1)
    } else {
        (0, (1i128 << t.bits) - 1)
    };
    v.clamp(low, high) as u64 & mask(t.bits)
}

fn integer_to_integer(form: &Form, to: Type, from: Type) -> Option<Operation> {
    let (w, m, saturate) = (from.bits, mask(to.bits), form.has("sat"));
    match (from.is_signed(), saturate) {
        (true, false) => one(move |a| sign_extend(a, w) as u64 & m),
        (false, false) => one(move |a| zero_extend(a, w) & m),
        (true, true) => one(move |a| clamped(i128::from(sign_extend(a, w)), to)),
        (false, true) => one(move |a| clamped(i128::from(zero_extend(a, w)), to)),
    }
}

fn float_to_integer(form: &Form, to: Type, from: Type) -> Option<Operation> {
    let (source, mode, ftz) = (format(from)?, rounding(form), form.has("ftz"));
    if (to.kind, to.bits, from.bits, mode, ftz) == (Kind::Signed, 32, 32, Rounding::Zero, false) {
        return one(|a| u64::from(f32::from_bits(a as u32) as i32 as u32));
    }
    let nan = if to.bits == 64 { 1 << 63 } else { 0 };
    one(move |a| to_integer(flushed(ftz, source, a), mode).map_or(nan, |v| clamped(v, to)))
}

/// The value of `bits`, a subnormal f32 as zero where `ftz` asks for it.
fn flushed(ftz: bool, source: Format, bits: u64) -> Number {
    let tiny = ftz && source == F32 && bits & 0x7f80_0000 == 0;
    source.unpack(if tiny { bits & 0x8000_0000 } else { bits })
}

fn integer_to_float(form: &Form, to: Type, from: Type) -> Option<Operation> {
    let (target, mode, w) = (format(to)?, rounding(form), from.bits);
    match (from.is_signed(), to.bits, mode) {
        (true, 32, Rounding::Even) => one(move |a| u64::from((sign_extend(a, w) as f32).to_bits())),
        (false, 32, Rounding::Even) => one(move |a| u64::from((zero_extend(a, w) as f32).to_bits())),
        (true, ..) => one(move |a| target.pack(from_integer(i128::from(sign_extend(a, w))), mode)),
        (false, ..) => one(move |a| target.pack(from_integer(i128::from(zero_extend(a, w))), mode)),
    }
}

fn float_to_float(form: &Form, to: Type, from: Type) -> Option<Operation> {
    let (target, source, mode) = (format(to)?, format(from)?, rounding(form));
    let (saturate, relu, ftz) = (form.has("sat"), form.has("relu"), form.has("ftz"));
    let plain = !saturate && !relu && !ftz && mode == Rounding::Even;
    let integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|r| form.has(r));
    match (source, target) {
        (F32, BF16) if plain => return one(|a| u64::from(f32_to_bf16(f32::from_bits(a as u32)))),
        (F16, F32) if plain => return one(|a| u64::from(f16_to_f32(a as u16).to_bits())),
        (BF16, F32) if plain => return one(|a| u64::from(bf16_to_f32(a as u16).to_bits())),
        _ => {}
    }
    // tf32 is kept in the top bits of an f32.
    let up = if target == TF32 { 13 } else { 0 };
    one(move |a| {
        let value = flushed(ftz, source, a);
        let value = match value {
            Number::Finite { negative, exponent, .. } if integral && exponent < 0 => {
                let size = to_integer(value, mode).map_or(0, i128::unsigned_abs);
                Number::Finite { negative, mantissa: size, exponent: 0 }
            }
            v => v,
        };
        let mode = if integral { Rounding::Even } else { mode };
        let value = match value {
            Number::Nan if saturate => from_integer(0),
            Number::Finite { negative: true, .. } | Number::Infinite { negative: true } if saturate || relu => {
                from_integer(0)
            }
            v => v,
        };
        let bits = target.pack(value, mode);
        let bits = if ftz && target == F32 && bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits };
        let unit = target.pack(from_integer(1), mode);
        (if saturate { bits.min(unit) } else { bits }) << up
    })
}

/// Two f32 to a pair of halves: the first operand is the high one.
fn pack(form: &Form, to: Type) -> Option<Operation> {
    let (mode, relu) = (rounding(form), form.has("relu"));
    let target = if to.kind == Kind::HalfPair { F16 } else { BF16 };
    if target == BF16 && mode == Rounding::Even && !relu {
        let half = |v: u64| u64::from(f32_to_bf16(f32::from_bits(v as u32)));
        return two(move |hi, lo| half(hi) << 16 | half(lo));
    }
    let half = move |v: u64| match F32.unpack(v) {
        Number::Finite { negative: true, .. } | Number::Infinite { negative: true } if relu => 0,
        n => target.pack(n, mode),
    };
    two(move |hi, lo| half(hi & mask(32)) << 16 | half(lo & mask(32)))
}

pub fn find(form: &Form) -> Option<Operation> {
    let ("cvt", [to, from]) = (form.name, &form.types[..]) else { return None };
    match (to.kind, from.kind) {
        (Kind::HalfPair | Kind::BFloatPair, Kind::Float) if from.bits == 32 => pack(form, *to),
        _ if to.is_float() && from.is_float() => float_to_float(form, *to, *from),
        _ if to.is_float() && from.is_integer() => integer_to_float(form, *to, *from),
        _ if to.is_integer() && from.is_float() => float_to_integer(form, *to, *from),
        _ if to.is_integer() && from.is_integer() => integer_to_integer(form, *to, *from),
        _ => None,
    }
}
