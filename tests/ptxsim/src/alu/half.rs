//! f16 and bf16 arithmetic, single and in pairs, rounded once.

use super::float::{extreme, soft};
use super::{Lanes, Operation, Values, one, two};
use crate::decode::Form;
use crate::types::Kind;
use crate::values::{BF16, F16, F64, Format, Rounding};

fn scalar(form: &Form, format: Format) -> Option<Operation> {
    let value = move |v: u64| f64::from_bits(F64.pack(format.unpack(v & 0xffff), Rounding::Even));
    let pack = move |v: f64| format.pack(F64.unpack(v.to_bits()), Rounding::Even);
    let nan = form.has("NaN");
    let through = move |g: fn(f64) -> f64| one(move |a| pack(g(value(a))));
    match form.name {
        "neg" => one(|a| a & 0xffff ^ 0x8000),
        "abs" => one(|a| a & 0x7fff),
        "min" | "max" if form.has("xorsign") => None,
        "min" => two(move |a, b| pack(extreme(value(a), value(b), false, nan))),
        "max" => two(move |a, b| pack(extreme(value(a), value(b), true, nan))),
        "ex2" => through(f64::exp2),
        "tanh" => through(f64::tanh),
        _ => soft(form, format),
    }
}

/// The same operation on the low and the high half of every operand.
fn pair(half: Operation) -> Operation {
    let Operation { arity, run } = half;
    let both: Lanes = Box::new(move |from: [&Values; 4], mask, out: &mut Values| {
        let side = |shift: u32| from.map(|v| v.map(|x| x >> shift & 0xffff));
        let (low, high) = (side(0), side(16));
        let (mut x, mut y) = ([0; 32], [0; 32]);
        run([&low[0], &low[1], &low[2], &low[3]], mask, &mut x);
        run([&high[0], &high[1], &high[2], &high[3]], mask, &mut y);
        for l in 0..32 {
            out[l] = x[l] & 0xffff | y[l] << 16;
        }
    });
    Operation { arity, run: both }
}

pub fn find(form: &Form) -> Option<Operation> {
    if matches!(form.name, "cvt" | "mov" | "selp" | "setp" | "set" | "and" | "or" | "xor" | "not") {
        return None;
    }
    let t = form.last_type()?;
    match (t.kind, t.bits) {
        (Kind::Float, 16) => scalar(form, F16),
        (Kind::BFloat, 16) => scalar(form, BF16),
        (Kind::HalfPair, _) => scalar(form, F16).map(pair),
        (Kind::BFloatPair, _) => scalar(form, BF16).map(pair),
        _ => None,
    }
}
