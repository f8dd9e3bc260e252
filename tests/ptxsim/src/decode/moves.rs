//! Moves that pack and unpack vectors, and conversions of addresses between spaces.

use super::{Form, Op, Space, elements, result, source_reg};
use crate::alu::{self, Operation};
use crate::operand::Operand;
use crate::program::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::types::mask;

/// Where a space's generic addresses begin; global ones are what they are.
fn window(space: Space) -> Option<u64> {
    match space {
        Space::Global | Space::Constant => Some(0),
        Space::Shared => Some(SHARED_WINDOW),
        Space::Local => Some(LOCAL_WINDOW),
        Space::Param => Some(PARAM_WINDOW),
        Space::Generic => None,
    }
}

fn op(operation: Option<Operation>, to: u32, from: [u32; 4]) -> Result<Op, String> {
    Ok(Op::Alu { run: operation.ok_or("a move")?.run, to, from })
}

fn unpack(bits: u32, to: &[Operand], from: u32) -> Result<Vec<Op>, String> {
    let each = bits / to.len() as u32;
    let mut ops = Vec::new();
    for (j, o) in to.iter().enumerate() {
        if let Some(to) = result(Some(o))? {
            let shift = each * j as u32;
            ops.push(op(alu::one(move |v| v >> shift & mask(each)), to, [from, 0, 0, 0])?);
        }
    }
    Ok(ops)
}

fn pack(bits: u32, to: u32, from: &[Operand]) -> Result<Vec<Op>, String> {
    let each = bits / from.len() as u32;
    let part = move |v: u64, j: u32| (v & mask(each)) << (each * j);
    let regs: Vec<u32> = from.iter().map(source_reg).collect::<Result<_, _>>()?;
    Ok(vec![match regs[..] {
        [a, b] => op(alu::two(move |x, y| part(x, 0) | part(y, 1)), to, [a, b, 0, 0])?,
        [a, b, c, d] => {
            op(alu::four(move |x, y, z, w| part(x, 0) | part(y, 1) | part(z, 2) | part(w, 3)), to, [a, b, c, d])?
        }
        _ => return Err(format!("a vector of {}", regs.len())),
    }])
}

pub fn decode(form: &Form, operands: &[Operand]) -> Result<Option<Vec<Op>>, String> {
    let bits = form.last_type().map_or(32, |t| t.bits);
    match (form.name, operands) {
        ("mov", [Operand::Vector(to), from]) => unpack(bits, to, source_reg(from)?).map(Some),
        ("mov", [to, Operand::Vector(_)]) => {
            let to = result(Some(to))?.ok_or("a move to '_'")?;
            pack(bits, to, elements(operands.get(1))?).map(Some)
        }
        ("cvta", [to, from]) => {
            let start = window(form.space()).ok_or("an address conversion without a space")?;
            let to = result(Some(to))?.ok_or("a conversion to '_'")?;
            let convert = if form.has("to") {
                alu::one(move |a| a.wrapping_sub(start))
            } else {
                alu::one(move |a| a.wrapping_add(start))
            };
            Ok(Some(vec![op(convert, to, [source_reg(from)?, 0, 0, 0])?]))
        }
        ("isspacep", [to, from]) => {
            let start = window(form.space()).ok_or("a question without a space")?;
            let to = result(Some(to))?.ok_or("a question to '_'")?;
            let end = if start == 0 { PARAM_WINDOW } else { start + (1 << 48) };
            let inside = alu::one(move |a| u64::from((start..end).contains(&a)));
            Ok(Some(vec![op(inside, to, [source_reg(from)?, 0, 0, 0])?]))
        }
        _ => Ok(None),
    }
}
