//! f32 and f64 arithmetic, and the approximate functions, which are computed in f64 and rounded once: their last bits
//! differ from the hardware's.

use super::{Operation, one, three, two};
use crate::decode::Form;
use crate::types::Kind;
use crate::values::{F32, F64, Format, Number, Rounding, fused};

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

fn b(v: f32) -> u64 {
    // The hardware's NaN is one pattern.
    if v.is_nan() { 0x7fff_ffff } else { u64::from(v.to_bits()) }
}

/// A subnormal as zero of its sign, where `ftz` asks for it.
fn flush(ftz: bool, v: f32) -> f32 {
    if ftz && v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// The smaller or larger; NaN only where both are (or where `nan` says that one is enough); -0 below +0.
pub(super) fn extreme(x: f64, y: f64, larger: bool, nan: bool) -> f64 {
    match (x.is_nan(), y.is_nan()) {
        (true, true) => f64::NAN,
        (true, false) | (false, true) if nan => f64::NAN,
        (true, false) => y,
        (false, true) => x,
        _ => {
            if (x.total_cmp(&y) == std::cmp::Ordering::Greater) == larger {
                x
            } else {
                y
            }
        }
    }
}

/// The rounding mode that a form names; nearest where it names none.
pub(super) fn rounding(form: &Form) -> Rounding {
    if form.has("rz") || form.has("rzi") {
        Rounding::Zero
    } else if form.has("rm") || form.has("rmi") {
        Rounding::Down
    } else if form.has("rp") || form.has("rpi") {
        Rounding::Up
    } else if form.has("rna") {
        Rounding::Away
    } else {
        Rounding::Even
    }
}

/// add, sub, mul and fma of any format, in any rounding, by exact arithmetic.
pub(super) fn soft(form: &Form, format: Format) -> Option<Operation> {
    let mode = rounding(form);
    let unpack = move |v: u64| format.unpack(v);
    let one = Number::Finite { negative: false, mantissa: 1, exponent: 0 };
    let negated = move |v: u64| v ^ 1 << (format.mantissa + format.exponent);
    let saturate = form.has("sat");
    let relu = form.has("relu");
    let done = move |n: Number| {
        let n = match n {
            Number::Nan if saturate => return 0,
            Number::Nan if relu => return format.nan(),
            Number::Finite { negative: true, .. } | Number::Infinite { negative: true } if saturate || relu => {
                return 0;
            }
            n => n,
        };
        let bits = format.pack(n, mode);
        let unit = format.pack(one, mode);
        if saturate { bits.min(unit) } else { bits }
    };
    match form.name {
        "add" => two(move |x, y| done(fused(unpack(x), one, unpack(y), mode))),
        "sub" => two(move |x, y| done(fused(unpack(x), one, unpack(negated(y)), mode))),
        "mul" => two(move |x, y| {
            // Minus zero added to a product changes neither its value nor its sign.
            let zero = Number::Finite { negative: true, mantissa: 0, exponent: 0 };
            let (p, q) = (unpack(x), unpack(y));
            let product = fused(p, q, zero, mode);
            let negative = (x ^ y) >> (format.mantissa + format.exponent) & 1 == 1;
            done(match product {
                Number::Finite { mantissa: 0, .. } => Number::Finite { negative, mantissa: 0, exponent: 0 },
                n => n,
            })
        }),
        "fma" => three(move |x, y, z| done(fused(unpack(x), unpack(y), unpack(z), mode))),
        _ => None,
    }
}

fn single(form: &Form) -> Option<Operation> {
    let ftz = form.has("ftz");
    let directed = rounding(form) != Rounding::Even;
    if directed && matches!(form.name, "add" | "sub" | "mul" | "fma") {
        return if ftz { None } else { soft(form, F32) };
    }
    let saturate = form.has("sat");
    let nan = form.has("NaN");
    let x = move |v: u64| flush(ftz, f(v));
    let out = move |v: f32| {
        let v = flush(ftz, v);
        b(if !saturate {
            v
        } else if v.is_nan() {
            0.0
        } else {
            v.clamp(0.0, 1.0)
        })
    };
    // By way of f64: rounded once, whatever the host's f32 functions do.
    let through = move |g: fn(f64) -> f64| one(move |a| out(g(f64::from(x(a))) as f32));
    match form.name {
        _ if directed => None,
        "add" => two(move |a, c| out(x(a) + x(c))),
        "sub" => two(move |a, c| out(x(a) - x(c))),
        "mul" => two(move |a, c| out(x(a) * x(c))),
        "div" => two(move |a, c| out(x(a) / x(c))),
        "fma" | "mad" => three(move |a, c, d| out(x(a).mul_add(x(c), x(d)))),
        "min" | "max" if form.has("xorsign") => None,
        "min" => two(move |a, c| out(extreme(f64::from(x(a)), f64::from(x(c)), false, nan) as f32)),
        "max" => two(move |a, c| out(extreme(f64::from(x(a)), f64::from(x(c)), true, nan) as f32)),
        "neg" => one(move |a| u64::from(flush(ftz, -f(a)).to_bits())),
        "abs" => one(move |a| u64::from(flush(ftz, f(a).abs()).to_bits())),
        "copysign" => two(move |a, c| u64::from(f(c).copysign(f(a)).to_bits())),
        "rcp" => through(f64::recip),
        "sqrt" => through(f64::sqrt),
        "rsqrt" => through(|v| 1.0 / v.sqrt()),
        "ex2" => through(f64::exp2),
        "lg2" => through(f64::log2),
        "sin" => through(f64::sin),
        "cos" => through(f64::cos),
        "tanh" => through(f64::tanh),
        "testp" => test(form, |v| f64::from(f(v)), f64::from(f32::MIN_POSITIVE)),
        _ => None,
    }
}

fn test(form: &Form, value: fn(u64) -> f64, smallest: f64) -> Option<Operation> {
    match *form.mods.first()? {
        "finite" => one(move |a| u64::from(value(a).is_finite())),
        "infinite" => one(move |a| u64::from(value(a).is_infinite())),
        "number" => one(move |a| u64::from(!value(a).is_nan())),
        "notanumber" => one(move |a| u64::from(value(a).is_nan())),
        "normal" => one(move |a| u64::from(value(a).is_finite() && value(a).abs() >= smallest)),
        "subnormal" => one(move |a| u64::from(value(a) != 0.0 && value(a).abs() < smallest)),
        _ => None,
    }
}

fn double(form: &Form) -> Option<Operation> {
    let d = f64::from_bits;
    if rounding(form) != Rounding::Even {
        return soft(form, F64);
    }
    match form.name {
        "add" => two(move |a, c| (d(a) + d(c)).to_bits()),
        "sub" => two(move |a, c| (d(a) - d(c)).to_bits()),
        "mul" => two(move |a, c| (d(a) * d(c)).to_bits()),
        "div" => two(move |a, c| (d(a) / d(c)).to_bits()),
        "fma" | "mad" => three(move |a, c, e| d(a).mul_add(d(c), d(e)).to_bits()),
        "min" => two(move |a, c| extreme(d(a), d(c), false, false).to_bits()),
        "max" => two(move |a, c| extreme(d(a), d(c), true, false).to_bits()),
        "neg" => one(move |a| (-d(a)).to_bits()),
        "abs" => one(move |a| d(a).abs().to_bits()),
        "copysign" => two(move |a, c| d(c).copysign(d(a)).to_bits()),
        "rcp" => one(move |a| (1.0 / d(a)).to_bits()),
        "sqrt" => one(move |a| d(a).sqrt().to_bits()),
        "rsqrt" => one(move |a| (1.0 / d(a).sqrt()).to_bits()),
        "testp" => test(form, d, f64::MIN_POSITIVE),
        _ => None,
    }
}

pub fn find(form: &Form) -> Option<Operation> {
    let t = form.last_type()?;
    match (t.kind, t.bits) {
        (Kind::Float, 32) => single(form),
        (Kind::Float, 64) => double(form),
        _ => None,
    }
}
