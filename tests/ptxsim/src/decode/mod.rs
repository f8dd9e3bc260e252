//! Opcodes and operands to operations. A form that is not known is an error here, before anything runs.

mod access;
mod collective;
mod moves;
pub mod registers;

use crate::alu::{self, Lanes};
use crate::bulk::{self, Bulk};
use crate::operand::{Names, Operand};
use crate::program::Reg;
use crate::types::Type;

pub use access::{Access, AsyncCopy, Atomic, AtomicKind};
pub use collective::{Barrier, Collective, Reduce, Shuffle, Warpwide};

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Constant,
    Shared,
    Local,
    Param,
}

/// A register plus bytes.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Reg,
    pub offset: i64,
}

/// What one instruction does.
pub enum Op {
    /// Arithmetic of a lane.
    Alu {
        run: Lanes,
        to: Reg,
        from: [Reg; 4],
    },
    /// Fences and hints: the interpreter's memory is in order.
    Nothing,
    Branch {
        target: usize,
    },
    /// Copies arguments within local memory (to, from, bytes), and jumps.
    Call {
        target: usize,
        back: Reg,
        arguments: Vec<(usize, usize, usize)>,
        function: String,
    },
    Return {
        back: Reg,
    },
    /// Copies (from, to, bytes) within local memory: a function's results.
    CopyLocal {
        copies: Vec<(usize, usize, usize)>,
    },
    Exit,
    Trap,
    Access(Access),
    Atomic(Atomic),
    AsyncCopy(AsyncCopy),
    AsyncCommit,
    /// Waits until at most so many groups are under way; with `commit`, closes the open one first.
    AsyncWait {
        keep: Reg,
        commit: bool,
    },
    ActiveMask {
        to: Reg,
    },
    Barrier(Barrier),
    Collective(Collective),
    Bulk(Bulk),
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Alu { .. } => f.write_str("an arithmetic instruction"),
            Op::Branch { target } => write!(f, "a branch to {target}"),
            _ => f.write_str("an instruction"),
        }
    }
}

/// An opcode: its name, and its suffixes in order.
pub struct Form<'a> {
    pub name: &'a str,
    pub mods: Vec<&'a str>,
    pub types: Vec<Type>,
}

impl<'a> Form<'a> {
    pub fn new(opcode: &'a str) -> Form<'a> {
        let mut parts = opcode.split('.');
        let name = parts.next().unwrap_or("");
        let mods: Vec<&str> = parts.collect();
        let types = mods.iter().filter_map(|m| Type::of(m)).collect();
        Form { name, mods, types }
    }

    pub fn has(&self, suffix: &str) -> bool {
        self.mods.contains(&suffix)
    }

    pub fn last_type(&self) -> Option<Type> {
        self.types.last().copied()
    }

    /// The memory that a suffix names; `shared::cta` is `shared`.
    pub fn space(&self) -> Space {
        for m in &self.mods {
            match m.split("::").next() {
                Some("global") => return Space::Global,
                Some("const") => return Space::Constant,
                Some("shared") => return Space::Shared,
                Some("local") => return Space::Local,
                Some("param") => return Space::Param,
                _ => {}
            }
        }
        Space::Generic
    }

    /// The first of these suffixes that the form has, by index.
    pub fn which(&self, names: &[&str]) -> Option<usize> {
        names.iter().position(|n| self.has(n))
    }
}

/// A source operand as a register; a negated predicate is negated into a scratch one by an operation of its own.
pub fn source(o: Option<&Operand>, ops: &mut Vec<Op>, names: &mut impl Names) -> Result<Reg, String> {
    match o {
        Some(Operand::Reg(r)) => Ok(*r),
        Some(Operand::Not(r)) => {
            let to = names.scratch();
            let not = alu::one(|p| p & 1 ^ 1).ok_or("a negation")?;
            ops.push(Op::Alu { run: not.run, to, from: [*r, 0, 0, 0] });
            Ok(to)
        }
        Some(other) => Err(format!("{other:?} is no source")),
        None => Err("an operand is missing".into()),
    }
}

/// A result's register; `None` for `_`.
pub fn result(o: Option<&Operand>) -> Result<Option<Reg>, String> {
    match o {
        Some(Operand::Reg(r) | Operand::Pair(r, _)) => Ok(Some(*r)),
        Some(Operand::Sink) => Ok(None),
        other => Err(format!("{other:?} is no result")),
    }
}

pub fn address(o: Option<&Operand>) -> Result<Address, String> {
    match o {
        Some(Operand::Memory(base, offset)) => Ok(Address { base: *base, offset: *offset }),
        other => Err(format!("{other:?} is no address")),
    }
}

/// The elements of a vector, or the one operand.
pub fn elements(o: Option<&Operand>) -> Result<&[Operand], String> {
    match o {
        Some(Operand::Vector(v)) => Ok(v),
        Some(one) => Ok(std::slice::from_ref(one)),
        None => Err("an operand is missing".into()),
    }
}

/// The operations of one instruction.
pub fn decode(form: &Form, operands: &[Operand], names: &mut impl Names) -> Result<Vec<Op>, String> {
    let simple = match form.name {
        "bra" => Some(Op::Branch { target: 0 }),
        "exit" => Some(Op::Exit),
        "trap" | "brkpt" => Some(Op::Trap),
        "membar" | "nanosleep" | "prefetch" | "prefetchu" | "pragma" | "discard" | "applypriority"
        | "griddepcontrol" => Some(Op::Nothing),
        "fence" if bulk::decode(form, operands)?.is_none() => Some(Op::Nothing),
        "activemask" => result(operands.first())?.map(|to| Op::ActiveMask { to }),
        _ => None,
    };
    if let Some(op) = simple {
        return Ok(vec![op]);
    }
    if let Some(op) = bulk::decode(form, operands)? {
        return Ok(vec![Op::Bulk(op)]);
    }
    if let Some(ops) = access::decode(form, operands)? {
        return Ok(ops);
    }
    if let Some(ops) = collective::decode(form, operands, names)? {
        return Ok(ops);
    }
    if let Some(ops) = moves::decode(form, operands)? {
        return Ok(ops);
    }
    arithmetic(form, operands, names)
}

fn arithmetic(form: &Form, operands: &[Operand], names: &mut impl Names) -> Result<Vec<Op>, String> {
    let found = alu::find(form).ok_or("this instruction is not interpreted")?;
    let (first, rest) = operands.split_first().ok_or("an operand is missing")?;
    if rest.len() != found.arity {
        return Err(format!("{} operands, not {}", rest.len(), found.arity));
    }
    let mut ops = Vec::new();
    let mut from = [0; 4];
    for (slot, o) in from.iter_mut().zip(rest) {
        *slot = source(Some(o), &mut ops, names)?;
    }
    let to = result(Some(first))?.ok_or("the result '_' of arithmetic")?;
    ops.push(Op::Alu { run: found.run, to, from });
    if let Operand::Pair(p, q) = first {
        // `setp … p|q`: q is the comparison's opposite.
        if form.name != "setp" || found.arity != 2 {
            return Err("a second result".into());
        }
        let not = alu::one(|p| p & 1 ^ 1).ok_or("a negation")?;
        ops.push(Op::Alu { run: not.run, to: *q, from: [*p, 0, 0, 0] });
    }
    Ok(ops)
}

/// A source that must be a plain register.
pub fn source_reg(o: &Operand) -> Result<Reg, String> {
    match o {
        Operand::Reg(r) => Ok(*r),
        other => Err(format!("{other:?} is no register")),
    }
}
