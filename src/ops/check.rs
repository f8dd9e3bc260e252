//! What rows check of their operands, with messages that name the operand.

use crate::dtype::{DType, Ty};
use crate::ops::{Attr, Dropout};

/// What a row says that matches its operands or attributes with none of its patterns.
pub fn refuse(expected: &str, attr: &Attr, ins: &[Ty]) -> String {
    let ins: Vec<String> = ins.iter().map(|t| t.to_string()).collect();
    format!("it was given [{}] and {attr:?}, expected {expected}", ins.join(", "))
}

/// `found` is exactly of type `expected`.
pub fn is(what: &str, found: &Ty, expected: &Ty) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what} is {found}, expected {expected}")),
    }
}

/// `found` is f32, of any shape.
pub fn float(what: &str, found: &Ty) -> Result<(), String> {
    match found.dtype == DType::F32 {
        true => Ok(()),
        false => Err(format!("{what} is {found}, expected f32")),
    }
}

/// Rows and columns of a matrix.
pub fn matrix(what: &str, found: &Ty) -> Result<(usize, usize), String> {
    match found.shape[..] {
        [rows, cols] => Ok((rows, cols)),
        _ => Err(format!("{what} is {found}, expected a matrix")),
    }
}

/// The four words that random numbers are drawn by.
pub fn rng(found: &Ty) -> Result<(), String> {
    is("the random-number operand", found, &Ty::u32(&[4]))
}

/// A probability that leaves something.
pub fn dropout(d: &Dropout) -> Result<(), String> {
    match (0.0..1.0).contains(&d.p) {
        true => Ok(()),
        false => Err(format!("the dropout probability is {}, expected 0 ≤ p < 1", d.p)),
    }
}

/// The operand after the last one that is added to the result, there if `with` says so.
pub fn acc(with: bool, rest: &[Ty], expected: &Ty) -> Result<(), String> {
    match (with, rest) {
        (false, []) => Ok(()),
        (true, [acc]) => is("acc", acc, expected),
        _ => Err(format!("it was given {} operands after the last, expected {}", rest.len(), with as usize)),
    }
}
