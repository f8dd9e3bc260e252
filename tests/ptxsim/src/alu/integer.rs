//! Integer arithmetic, 16 to 64 bits.

use super::{Operation, one, three, two};
use crate::decode::Form;
use crate::types::{Type, mask, sign_extend as s, zero_extend as z};

/// The product as the form takes it: low half, high half, or all of it.
fn product(form: &Form, t: Type) -> Option<fn(u64, u64, u32) -> u64> {
    let signed = t.is_signed();
    Some(if form.has("wide") {
        if signed { |a, b, w| s(a, w).wrapping_mul(s(b, w)) as u64 } else { |a, b, w| z(a, w).wrapping_mul(z(b, w)) }
    } else if form.has("hi") {
        if signed {
            |a, b, w| ((i128::from(s(a, w)) * i128::from(s(b, w))) >> w) as u64
        } else {
            |a, b, w| ((u128::from(z(a, w)) * u128::from(z(b, w))) >> w) as u64
        }
    } else if form.has("lo") {
        |a, b, _| a.wrapping_mul(b)
    } else {
        return None;
    })
}

/// The dot product of four bytes and four bytes, added to 32 bits.
fn dot(form: &Form) -> Option<Operation> {
    let [a, b] = form.types[..] else { return None };
    let byte = move |v: u64, i: u32, t: Type| {
        let part = v >> (8 * i);
        if t.is_signed() { s(part, 8) } else { z(part, 8) as i64 }
    };
    three(move |x, y, c| (0..4).fold(c, |sum, i| sum.wrapping_add((byte(x, i, a) * byte(y, i, b)) as u64)) & mask(32))
}

pub fn find(form: &Form) -> Option<Operation> {
    if form.name == "dp4a" {
        return dot(form);
    }
    let t = form.last_type()?;
    if !t.is_integer() || t.bits > 64 {
        return None;
    }
    let (w, signed) = (t.bits, t.is_signed());
    let m = mask(w);
    let wide = mask(if form.has("wide") { 2 * w } else { w });
    match form.name {
        // Carry chains and saturation are none of this crate's kernels'.
        _ if form.has("cc") => None,
        "add" if form.has("sat") => {
            two(move |a, b| (s(a, w) + s(b, w)).clamp(s(1 << (w - 1), w), (m >> 1) as i64) as u64 & m)
        }
        "sub" if form.has("sat") => {
            two(move |a, b| (s(a, w) - s(b, w)).clamp(s(1 << (w - 1), w), (m >> 1) as i64) as u64 & m)
        }
        "add" if w == 32 => two(|a, b| u64::from((a as u32).wrapping_add(b as u32))),
        "add" => two(move |a, b| a.wrapping_add(b) & m),
        "sub" => two(move |a, b| a.wrapping_sub(b) & m),
        "mul" => {
            let f = product(form, t)?;
            two(move |a, b| f(a, b, w) & wide)
        }
        "mad" => {
            let f = product(form, t)?;
            three(move |a, b, c| f(a, b, w).wrapping_add(c) & wide)
        }
        "mul24" if form.has("lo") && signed => two(move |a, b| s(a, 24).wrapping_mul(s(b, 24)) as u64 & m),
        "mul24" if form.has("lo") => two(move |a, b| z(a, 24).wrapping_mul(z(b, 24)) & m),
        // Division by zero gives all ones on the hardware, no trap.
        "div" if signed => two(move |a, b| if z(b, w) == 0 { m } else { s(a, w).wrapping_div(s(b, w)) as u64 & m }),
        "div" => two(move |a, b| z(a, w).checked_div(z(b, w)).unwrap_or(m)),
        "rem" if signed => two(move |a, b| if z(b, w) == 0 { a & m } else { s(a, w).wrapping_rem(s(b, w)) as u64 & m }),
        "rem" => two(move |a, b| z(a, w).checked_rem(z(b, w)).unwrap_or(z(a, w))),
        "min" if signed => two(move |a, b| s(a, w).min(s(b, w)) as u64 & m),
        "min" => two(move |a, b| z(a, w).min(z(b, w))),
        "max" if signed => two(move |a, b| s(a, w).max(s(b, w)) as u64 & m),
        "max" => two(move |a, b| z(a, w).max(z(b, w))),
        "neg" => one(move |a| a.wrapping_neg() & m),
        "abs" => one(move |a| s(a, w).unsigned_abs() & m),
        "sad" if signed => three(move |a, b, c| s(a, w).abs_diff(s(b, w)).wrapping_add(c) & m),
        "sad" => three(move |a, b, c| z(a, w).abs_diff(z(b, w)).wrapping_add(c) & m),
        _ => None,
    }
}
