//! Logic, shifts, bit fields and moves.

use super::{Operation, four, one, three, two};
use crate::decode::Form;
use crate::types::{mask, sign_extend as s, zero_extend as z};

/// `prmt`: four bytes picked out of eight, by nibbles of `c`; a nibble's top bit spreads the byte's sign.
fn permute(a: u64, b: u64, c: u64) -> u64 {
    let both = z(b, 32) << 32 | z(a, 32);
    (0..4).fold(0, |out, i| {
        let pick = c >> (4 * i);
        let byte = both >> (8 * (pick & 7)) & 255;
        let byte = if pick & 8 != 0 { (byte >> 7) * 255 } else { byte };
        out | byte << (8 * i)
    })
}

/// `lop3`: bit by bit, `table`'s bit number abc.
fn table(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..8).fold(0, |out, i| {
        let side = |v: u64, bit: u64| if i >> bit & 1 == 1 { v } else { !v };
        if table >> i & 1 == 1 { out | side(a, 2) & side(b, 1) & side(c, 0) } else { out }
    }) & mask(32)
}

/// `bfe`: `len` bits from `pos`, sign-extended where `signed`.
fn extract(v: u64, pos: u64, len: u64, w: u32, signed: bool) -> u64 {
    let (pos, len) = ((pos & 255) as u32, (len & 255) as u32);
    let v = if signed { s(v, w) as u64 } else { z(v, w) };
    let moved = if signed {
        ((v as i64) >> pos.min(63)) as u64
    } else if pos > 63 {
        0
    } else {
        v >> pos
    };
    let kept = match len {
        0 => 0,
        _ if len >= w => moved,
        // Bits past the top of a signed value are its sign: extending from the field's top does the same.
        _ if signed => s(moved, len) as u64,
        _ => z(moved, len),
    };
    kept & mask(w)
}

/// `bfi`: the low `len` bits of `a` put into `b` at `pos`.
fn insert(a: u64, b: u64, pos: u64, len: u64, w: u32) -> u64 {
    let (pos, len) = ((pos & 255) as u32, (len & 255) as u32);
    if pos >= w {
        return z(b, w);
    }
    let field = mask(len.min(64)) << pos;
    (b & !field | a << pos & field) & mask(w)
}

pub fn find(form: &Form) -> Option<Operation> {
    let t = form.last_type()?;
    let (w, m) = (t.bits, mask(t.bits));
    if w > 64 {
        return None;
    }
    match form.name {
        "mov" => one(move |a| a & m),
        "and" => two(move |a, b| a & b & m),
        "or" => two(move |a, b| (a | b) & m),
        "xor" => two(move |a, b| (a ^ b) & m),
        "not" => one(move |a| !a & m),
        "cnot" => one(move |a| u64::from(a & m == 0)),
        "selp" => three(move |a, b, p| if p & 1 == 1 { a & m } else { b & m }),
        "slct" => None,
        // Shift counts are 32 bits wide, and clamped.
        "shl" => two(move |a, n| if z(n, 32) >= u64::from(w) { 0 } else { a << (n as u32) & m }),
        "shr" if t.is_signed() => two(move |a, n| (s(a, w) >> z(n, 32).min(63)) as u64 & m),
        "shr" => two(move |a, n| if z(n, 32) >= u64::from(w) { 0 } else { z(a, w) >> (n as u32) }),
        "shf" => {
            let (left, wrap) = (form.has("l"), form.has("wrap"));
            let count = move |n: u64| if wrap { n & 31 } else { z(n, 32).min(32) };
            let both = |a: u64, b: u64| z(b, 32) << 32 | z(a, 32);
            if left {
                three(move |a, b, n| (both(a, b) << count(n)) >> 32)
            } else {
                three(move |a, b, n| both(a, b) >> count(n) & mask(32))
            }
        }
        "popc" => one(move |a| u64::from(z(a, w).count_ones())),
        "clz" => one(move |a| u64::from(z(a, w).leading_zeros() - (64 - w))),
        "brev" => one(move |a| z(a, w).reverse_bits() >> (64 - w)),
        "bfind" => {
            let (signed, amount) = (t.is_signed(), form.has("shiftamt"));
            one(move |a| {
                let v = if signed && s(a, w) < 0 { !a & m } else { a & m };
                match v.checked_ilog2() {
                    None => mask(32),
                    Some(i) => u64::from(if amount { w - 1 - i } else { i }),
                }
            })
        }
        "bfe" => {
            let signed = t.is_signed();
            three(move |a, pos, len| extract(a, pos, len, w, signed))
        }
        "bfi" => four(move |a, b, pos, len| insert(a, b, pos, len, w)),
        "bmsk" => two(move |pos, len| if pos > 31 { 0 } else { mask(len.min(32) as u32) << pos & m }),
        "prmt" if form.mods.len() == 1 => three(permute),
        "lop3" => four(table),
        _ => None,
    }
}
