//! Arithmetic of one lane, lifted to a warp: each opcode becomes one closure over its operands' 32 values.

mod bits;
mod compare;
mod convert;
mod float;
mod half;
mod integer;

use crate::decode::Form;

/// The 32 values of a register.
pub type Values = [u64; 32];
/// Up to four operands in, one result out, for the lanes of the mask.
pub type Lanes = Box<dyn Fn([&Values; 4], u32, &mut Values) + Send + Sync>;

/// An operation and how many operands it takes.
pub struct Operation {
    pub arity: usize,
    pub run: Lanes,
}

/// A function of four values for every lane of a mask. A loop over all lanes is one that the compiler vectorises.
fn lift(arity: usize, f: impl Fn(u64, u64, u64, u64) -> u64 + Send + Sync + 'static) -> Operation {
    let run = move |[a, b, c, d]: [&Values; 4], mask: u32, out: &mut Values| {
        if mask == u32::MAX {
            for l in 0..32 {
                out[l] = f(a[l], b[l], c[l], d[l]);
            }
        } else {
            let mut rest = mask;
            while rest != 0 {
                let l = rest.trailing_zeros() as usize;
                out[l] = f(a[l], b[l], c[l], d[l]);
                rest &= rest - 1;
            }
        }
    };
    Operation { arity, run: Box::new(run) }
}

pub(crate) fn one(f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Option<Operation> {
    Some(lift(1, move |a, _, _, _| f(a)))
}

pub(crate) fn two(f: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> Option<Operation> {
    Some(lift(2, move |a, b, _, _| f(a, b)))
}

pub(crate) fn three(f: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> Option<Operation> {
    Some(lift(3, move |a, b, c, _| f(a, b, c)))
}

pub(crate) fn four(f: impl Fn(u64, u64, u64, u64) -> u64 + Send + Sync + 'static) -> Option<Operation> {
    Some(lift(4, f))
}

/// The operation that a form names.
pub fn find(form: &Form) -> Option<Operation> {
    compare::find(form)
        .or_else(|| convert::find(form))
        .or_else(|| half::find(form))
        .or_else(|| float::find(form))
        .or_else(|| bits::find(form))
        .or_else(|| integer::find(form))
}
