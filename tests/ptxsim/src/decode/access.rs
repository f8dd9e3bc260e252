//! Loads, stores, atomics and asynchronous copies.

use super::{Address, Form, Op, Space, address, elements, result, source_reg};
use crate::operand::Operand;
use crate::program::Reg;
use crate::types::{Kind, Type};

/// A load or a store of one to four elements.
#[derive(Debug)]
pub struct Access {
    pub store: bool,
    pub space: Space,
    pub address: Address,
    /// A register an element; `None` for one that is not wanted.
    pub regs: Vec<Option<Reg>>,
    /// Bytes of an element.
    pub bytes: usize,
    pub signed: bool,
    /// Volatile, relaxed, acquire and release accesses do not race with each other.
    pub strong: bool,
}

/// What an atomic does with the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicKind {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    Increment,
    Decrement,
}

/// `atom` or `red`.
#[derive(Debug)]
pub struct Atomic {
    pub kind: AtomicKind,
    pub kind_type: Type,
    pub space: Space,
    pub address: Address,
    pub value: Reg,
    /// The new value of a compare-and-exchange.
    pub second: Reg,
    pub to: Option<Reg>,
}

/// `cp.async`: `bytes` from global to shared memory, those past `valid` zero.
#[derive(Debug)]
pub struct AsyncCopy {
    pub to: Address,
    pub from: Address,
    pub bytes: Reg,
    pub valid: Option<Reg>,
}

fn access(form: &Form, operands: &[Operand], store: bool) -> Result<Op, String> {
    let t = form.last_type().ok_or("a type is missing")?;
    if t.bits > 64 {
        return Err("128-bit elements".into());
    }
    let (at, data) = if store { (0, 1) } else { (1, 0) };
    let regs = elements(operands.get(data))?
        .iter()
        .map(|o| match o {
            Operand::Sink if !store => Ok(None),
            o => source_reg(o).map(Some),
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok(Op::Access(Access {
        store,
        space: form.space(),
        address: address(operands.get(at))?,
        regs,
        bytes: t.bytes(),
        signed: t.is_signed(),
        strong: form.which(&["volatile", "relaxed", "acquire", "release"]).is_some(),
    }))
}

fn atomic(form: &Form, operands: &[Operand]) -> Result<Op, String> {
    use AtomicKind::*;
    let names = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
    let kinds = [Add, Min, Max, And, Or, Xor, Exchange, CompareExchange, Increment, Decrement];
    let kind = kinds[form.which(&names).ok_or("an unknown atomic")?];
    let t = form.last_type().ok_or("a type is missing")?;
    let float = matches!(t.kind, Kind::Float | Kind::BFloat | Kind::HalfPair | Kind::BFloatPair);
    if t.bits > 64 || float && !matches!(kind, Add | Exchange) || t.bits < 16 {
        return Err("an atomic of this type".into());
    }
    let shift = usize::from(form.name == "atom");
    let to = if shift == 1 { result(operands.first())? } else { None };
    let second = match operands.get(shift + 2) {
        Some(o) => source_reg(o)?,
        None if kind == CompareExchange => return Err("an operand is missing".into()),
        None => 0,
    };
    let value = source_reg(operands.get(shift + 1).ok_or("an operand is missing")?)?;
    let address = address(operands.get(shift))?;
    Ok(Op::Atomic(Atomic { kind, kind_type: t, space: form.space(), address, value, second, to }))
}

/// `cp.async` and its groups. Cache hints and prefetch sizes change nothing here.
fn copy(form: &Form, operands: &[Operand]) -> Result<Op, String> {
    if form.mods.first() != Some(&"async") || form.has("bulk") || form.has("mbarrier") {
        return Err("this copy is not interpreted".into());
    }
    if form.has("commit_group") {
        return Ok(Op::AsyncCommit);
    }
    if form.has("wait_all") {
        return Ok(Op::AsyncWait { keep: 0, commit: true });
    }
    if form.has("wait_group") {
        let keep = source_reg(operands.first().ok_or("an operand is missing")?)?;
        return Ok(Op::AsyncWait { keep, commit: false });
    }
    let valid = match operands.get(3) {
        Some(o) if !form.has("L2::cache_hint") => Some(source_reg(o)?),
        _ => None,
    };
    Ok(Op::AsyncCopy(AsyncCopy {
        to: address(operands.first())?,
        from: address(operands.get(1))?,
        bytes: source_reg(operands.get(2).ok_or("an operand is missing")?)?,
        valid,
    }))
}

pub fn decode(form: &Form, operands: &[Operand]) -> Result<Option<Vec<Op>>, String> {
    let op = match form.name {
        "ld" | "ldu" => access(form, operands, false)?,
        "st" => access(form, operands, true)?,
        "atom" | "red" => atomic(form, operands)?,
        "cp" => copy(form, operands)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![op]))
}
