//! Instructions that lanes of a warp, or threads of a block, do together.

use super::{Address, Form, Op, address, elements, result, source};
use crate::matrix::Mma;
use crate::operand::{Names, Operand};
use crate::program::Reg;
use crate::types::{Kind, Type};
use crate::wgmma::{self, Warpgroup};

/// `bar` and `barrier`.
#[derive(Debug)]
pub struct Barrier {
    pub id: Reg,
    /// Threads that take part; `None`: all of the block's.
    pub count: Option<Reg>,
    /// Arrives and goes on.
    pub arrive: bool,
    /// A reduction of a predicate over the block: how, into which register, which predicate.
    pub reduce: Option<(Reduce, Reg, Reg)>,
}

/// How values of lanes or threads become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    /// How many are true.
    Count,
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// An instruction that the lanes of a mask do together.
#[derive(Debug)]
pub struct Collective {
    /// The lanes that take part; `None`: all 32.
    pub mask: Option<Reg>,
    pub what: Warpwide,
}

/// What the lanes do.
#[derive(Debug)]
pub enum Warpwide {
    Sync,
    Shuffle {
        mode: Shuffle,
        to: Reg,
        valid: Option<Reg>,
        value: Reg,
        lane: Reg,
        clamp: Reg,
    },
    /// Ballot, any, all, uniform.
    Ballot {
        to: Reg,
        predicate: Reg,
    },
    Any {
        to: Reg,
        predicate: Reg,
    },
    All {
        to: Reg,
        predicate: Reg,
    },
    Uniform {
        to: Reg,
        predicate: Reg,
    },
    MatchAny {
        to: Reg,
        value: Reg,
        bits: u32,
    },
    MatchAll {
        to: Reg,
        valid: Option<Reg>,
        value: Reg,
        bits: u32,
    },
    Reduce {
        how: Reduce,
        signed: bool,
        to: Reg,
        value: Reg,
    },
    Elect {
        to: Option<Reg>,
        elected: Option<Reg>,
    },
    LoadMatrix {
        to: Vec<Reg>,
        address: Address,
        transposed: bool,
    },
    StoreMatrix {
        from: Vec<Reg>,
        address: Address,
        transposed: bool,
    },
    Mma(Mma),
    /// Of a warp, as one of four.
    Warpgroup(Warpgroup),
}

fn second(o: Option<&Operand>) -> Option<Reg> {
    match o {
        Some(Operand::Pair(_, p)) => Some(*p),
        _ => None,
    }
}

fn barrier(form: &Form, operands: &[Operand], ops: &mut Vec<Op>, names: &mut impl Names) -> Result<Op, String> {
    if form.has("cluster") {
        return Err("cluster barriers".into());
    }
    let arrive = form.has("arrive");
    if !form.has("red") {
        let id = source(operands.first(), ops, names)?;
        let count = operands.get(1).map(|o| source(Some(o), ops, names)).transpose()?;
        if arrive && count.is_none() {
            return Err("an arrival without a count".into());
        }
        return Ok(Op::Barrier(Barrier { id, count, arrive, reduce: None }));
    }
    let how = [Reduce::Count, Reduce::And, Reduce::Or][form.which(&["popc", "and", "or"]).ok_or("a reduction")?];
    let to = result(operands.first())?.ok_or("a result")?;
    let id = source(operands.get(1), ops, names)?;
    let count = if operands.len() > 3 { Some(source(operands.get(2), ops, names)?) } else { None };
    let predicate = source(operands.last(), ops, names)?;
    Ok(Op::Barrier(Barrier { id, count, arrive: false, reduce: Some((how, to, predicate)) }))
}

fn registers(o: Option<&Operand>) -> Result<Vec<Reg>, String> {
    elements(o)?.iter().map(super::source_reg).collect()
}

/// `ldmatrix` and `stmatrix` of 8x8 tiles of 16-bit elements.
fn matrix(form: &Form, operands: &[Operand]) -> Result<Warpwide, String> {
    let count = [1, 2, 4][form.which(&["x1", "x2", "x4"]).ok_or("a count of tiles")?];
    if !form.has("m8n8") || form.last_type() != (Some(Type { kind: Kind::Bits, bits: 16 })) {
        return Err("tiles other than m8n8 of b16".into());
    }
    let transposed = form.has("trans");
    let (load, at, data) = if form.name == "ldmatrix" { (true, 1, 0) } else { (false, 0, 1) };
    let regs = registers(operands.get(data))?;
    let address = address(operands.get(at))?;
    if regs.len() != count {
        return Err(format!("{} registers for {count} tiles", regs.len()));
    }
    Ok(if load {
        Warpwide::LoadMatrix { to: regs, address, transposed }
    } else {
        Warpwide::StoreMatrix { from: regs, address, transposed }
    })
}

fn warpwide(form: &Form, operands: &[Operand], ops: &mut Vec<Op>, names: &mut impl Names) -> Result<Warpwide, String> {
    let first = operands.first();
    let to = || result(first)?.ok_or("a result is missing".to_owned());
    let mut from = |i: usize| source(operands.get(i), ops, names);
    let bits = form.last_type().map_or(32, |t| t.bits);
    Ok(match form.name {
        "bar" => Warpwide::Sync,
        "shfl" => {
            let modes = [Shuffle::Up, Shuffle::Down, Shuffle::Butterfly, Shuffle::Index];
            let mode = modes[form.which(&["up", "down", "bfly", "idx"]).ok_or("a mode")?];
            let (value, lane, clamp) = (from(1)?, from(2)?, from(3)?);
            Warpwide::Shuffle { mode, to: to()?, valid: second(first), value, lane, clamp }
        }
        "vote" => {
            let (to, predicate) = (to()?, from(1)?);
            match form.which(&["ballot", "any", "all", "uni"]).ok_or("a mode")? {
                0 => Warpwide::Ballot { to, predicate },
                1 => Warpwide::Any { to, predicate },
                2 => Warpwide::All { to, predicate },
                _ => Warpwide::Uniform { to, predicate },
            }
        }
        "match" if form.has("any") => Warpwide::MatchAny { to: to()?, value: from(1)?, bits },
        "match" => Warpwide::MatchAll { to: to()?, valid: second(first), value: from(1)?, bits },
        "redux" => {
            let kinds = [Reduce::Add, Reduce::Min, Reduce::Max, Reduce::And, Reduce::Or, Reduce::Xor];
            let how = kinds[form.which(&["add", "min", "max", "and", "or", "xor"]).ok_or("a reduction")?];
            let t = form.last_type().filter(|t| t.is_integer()).ok_or("a reduction of floats")?;
            Warpwide::Reduce { how, signed: t.is_signed(), to: to()?, value: from(1)? }
        }
        "elect" => Warpwide::Elect { to: result(first)?, elected: second(first) },
        name => return Err(format!("the collective {name}")),
    })
}

pub fn decode(form: &Form, operands: &[Operand], names: &mut impl Names) -> Result<Option<Vec<Op>>, String> {
    let mut ops = Vec::new();
    let op = match form.name {
        "bar" | "barrier" if !form.has("warp") => barrier(form, operands, &mut ops, names)?,
        "ldmatrix" | "stmatrix" => Op::Collective(Collective { mask: None, what: matrix(form, operands)? }),
        "wgmma" | "setmaxnreg" => {
            let what = Warpwide::Warpgroup(wgmma::decode(form, operands)?);
            Op::Collective(Collective { mask: None, what })
        }
        "mma" => {
            let part = |i: usize| registers(operands.get(i));
            let mma = Mma::new(form, part(0)?, part(1)?, part(2)?, part(3)?)?;
            Op::Collective(Collective { mask: None, what: Warpwide::Mma(mma) })
        }
        "bar" | "shfl" | "vote" | "match" | "redux" | "elect" => {
            let mask = Some(source(operands.last(), &mut ops, names)?);
            let what = warpwide(form, operands, &mut ops, names)?;
            Op::Collective(Collective { mask, what })
        }
        _ => return Ok(None),
    };
    ops.push(op);
    Ok(Some(ops))
}
