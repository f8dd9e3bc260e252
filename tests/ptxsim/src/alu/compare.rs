//! `setp` and `set`: comparisons of integers and floats, joined with a predicate.

use super::{Operation, lift};
use crate::decode::Form;
use crate::types::{Kind, Type, sign_extend, zero_extend};
use crate::values::{bf16_to_f32, f16_to_f32};
use std::cmp::Ordering::{self, Equal, Greater, Less};

/// A float operand's value.
pub fn float_value(t: Type) -> Option<fn(u64) -> f64> {
    Some(match (t.kind, t.bits) {
        (Kind::Float, 16) => |v| f64::from(f16_to_f32(v as u16)),
        (Kind::Float, 32) => |v| f64::from(f32::from_bits(v as u32)),
        (Kind::Float, 64) => f64::from_bits,
        (Kind::BFloat, 16) => |v| f64::from(bf16_to_f32(v as u16)),
        _ => return None,
    })
}

/// Which outcomes a comparison accepts: less, equal, greater, unordered.
fn accepted(name: &str) -> Option<[bool; 4]> {
    Some(match name {
        "eq" => [false, true, false, false],
        "ne" => [true, false, true, false],
        "lt" | "lo" => [true, false, false, false],
        "le" | "ls" => [true, true, false, false],
        "gt" | "hi" => [false, false, true, false],
        "ge" | "hs" => [false, true, true, false],
        "equ" => [false, true, false, true],
        "neu" => [true, false, true, true],
        "ltu" => [true, false, false, true],
        "leu" => [true, true, false, true],
        "gtu" => [false, false, true, true],
        "geu" => [false, true, true, true],
        "num" => [true, true, true, false],
        "nan" => [false, false, false, true],
        _ => return None,
    })
}

fn holds(accepted: [bool; 4], outcome: Option<Ordering>) -> bool {
    match outcome {
        Some(Less) => accepted[0],
        Some(Equal) => accepted[1],
        Some(Greater) => accepted[2],
        None => accepted[3],
    }
}

/// The comparison of a form as an operation whose result is `yes` or `no`; a third operand where it joins one.
fn comparison(form: &Form, t: Type, yes: u64, no: u64) -> Option<Operation> {
    let accept = accepted(form.mods.first()?)?;
    let join = ["and", "or", "xor"].iter().position(|j| form.has(j));
    let ftz = form.has("ftz") && t.bits == 32;
    let join = move |r: bool, p: u64| match join {
        Some(0) => r & (p & 1 == 1),
        Some(1) => r | (p & 1 == 1),
        Some(_) => r ^ (p & 1 == 1),
        None => r,
    };
    let arity = 2 + usize::from(form.has("and") || form.has("or") || form.has("xor"));
    let pick = move |r: bool| if r { yes } else { no };
    if let Some(value) = float_value(t) {
        let flush = move |v: f64| if ftz && v.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { v };
        return Some(lift(arity, move |a, b, p, _| {
            pick(join(holds(accept, flush(value(a)).partial_cmp(&flush(value(b)))), p))
        }));
    }
    // `lo`, `ls`, `hi`, `hs` compare unsigned whatever the type says; `.b` types are only compared for equality.
    let (w, signed) = (t.bits, t.is_signed() && !matches!(form.mods[0], "lo" | "ls" | "hi" | "hs"));
    if !t.is_integer() || w > 64 {
        return None;
    }
    Some(if signed {
        lift(arity, move |a, b, p, _| pick(join(holds(accept, Some(sign_extend(a, w).cmp(&sign_extend(b, w)))), p)))
    } else {
        lift(arity, move |a, b, p, _| pick(join(holds(accept, Some(zero_extend(a, w).cmp(&zero_extend(b, w)))), p)))
    })
}

pub fn find(form: &Form) -> Option<Operation> {
    match (form.name, &form.types[..]) {
        ("setp", [t]) => comparison(form, *t, 1, 0),
        ("set", [to, t]) => {
            let yes = match (to.kind, to.bits) {
                (Kind::Float, 32) => u64::from(1f32.to_bits()),
                (Kind::Float, 16) => 0x3c00,
                (Kind::BFloat, 16) => 0x3f80,
                (Kind::Unsigned | Kind::Signed, 32) => u64::from(u32::MAX),
                (Kind::Unsigned | Kind::Signed, 16) => u64::from(u16::MAX),
                _ => return None,
            };
            comparison(form, *t, yes, 0)
        }
        _ => None,
    }
}
