//! Which registers an instruction has to do with, so that those that wgmma is using can be guarded.

use super::{Collective, Op, Warpwide};
use crate::bulk::Bulk;
use crate::program::Reg;
use crate::wgmma::{Left, Mma, Warpgroup};

/// The registers that a wgmma reads and writes while it is under way.
pub fn asynchronous(op: &Op) -> Vec<Reg> {
    let Op::Collective(Collective { what: Warpwide::Warpgroup(Warpgroup::Mma(mma)), .. }) = op else {
        return Vec::new();
    };
    let left: &[Reg] = if let Left::Registers(regs) = &mma.a { regs } else { &[] };
    mma.d.iter().chain(left).copied().collect()
}

/// All registers that an instruction reads or writes at once: of a wgmma, what it needs to be issued.
pub fn all(op: &Op) -> Vec<Reg> {
    match op {
        Op::Alu { to, from, .. } => [*to].iter().chain(from).copied().collect(),
        Op::Access(a) => a.regs.iter().flatten().copied().chain([a.address.base]).collect(),
        Op::Atomic(a) => [a.value, a.second, a.address.base].into_iter().chain(a.to).collect(),
        Op::AsyncCopy(c) => [c.to.base, c.from.base, c.bytes].into_iter().chain(c.valid).collect(),
        Op::AsyncWait { keep, .. } => vec![*keep],
        Op::ActiveMask { to } => vec![*to],
        Op::Return { back } | Op::Call { back, .. } => vec![*back],
        Op::Barrier(b) => {
            let reduce = b.reduce.map_or([0; 2], |(_, to, predicate)| [to, predicate]);
            [b.id].into_iter().chain(b.count).chain(reduce).collect()
        }
        Op::Collective(c) => warpwide(&c.what).into_iter().chain(c.mask).collect(),
        Op::Bulk(bulk) => of_bulk(bulk),
        Op::Nothing | Op::Branch { .. } | Op::CopyLocal { .. } | Op::Exit | Op::Trap | Op::AsyncCommit => Vec::new(),
    }
}

fn warpwide(what: &Warpwide) -> Vec<Reg> {
    match what {
        Warpwide::Sync => Vec::new(),
        Warpwide::Shuffle { to, valid, value, lane, clamp, .. } => {
            [*to, *value, *lane, *clamp].into_iter().chain(*valid).collect()
        }
        Warpwide::Ballot { to, predicate }
        | Warpwide::Any { to, predicate }
        | Warpwide::All { to, predicate }
        | Warpwide::Uniform { to, predicate } => vec![*to, *predicate],
        Warpwide::MatchAny { to, value, .. } | Warpwide::Reduce { to, value, .. } => vec![*to, *value],
        Warpwide::MatchAll { to, valid, value, .. } => [*to, *value].into_iter().chain(*valid).collect(),
        Warpwide::Elect { to, elected } => to.iter().chain(elected).copied().collect(),
        Warpwide::LoadMatrix { to: regs, address, .. } | Warpwide::StoreMatrix { from: regs, address, .. } => {
            regs.iter().copied().chain([address.base]).collect()
        }
        Warpwide::Mma(mma) => mma.registers().collect(),
        Warpwide::Warpgroup(Warpgroup::Fence | Warpgroup::Commit) => Vec::new(),
        Warpwide::Warpgroup(Warpgroup::Wait { keep: r } | Warpgroup::Registers { count: r }) => vec![*r],
        Warpwide::Warpgroup(Warpgroup::Mma(mma)) => issued(mma),
    }
}

fn issued(mma: &Mma) -> Vec<Reg> {
    let descriptor = if let Left::Descriptor(r) = mma.a { Some(r) } else { None };
    let flags = mma.signs.iter().chain(mma.transposed.iter().flatten()).copied();
    [mma.b, mma.keep].into_iter().chain(descriptor).chain(flags).collect()
}

fn of_bulk(bulk: &Bulk) -> Vec<Reg> {
    match bulk {
        Bulk::Init { at, count: r } | Bulk::Expect { at, bytes: r } => vec![at.base, *r],
        Bulk::Invalidate { at } => vec![at.base],
        Bulk::Arrive { at, count, bytes } => [at.base].iter().chain(count).chain(bytes).copied().collect(),
        Bulk::TryWait { at, to, parity } => vec![at.base, *to, *parity],
        Bulk::Load { to, map, at, barrier } => at.iter().copied().chain([to.base, *map, barrier.base]).collect(),
        Bulk::Store { from, map, at } => at.iter().copied().chain([from.base, *map]).collect(),
        Bulk::Wait { keep } => vec![*keep],
        Bulk::Commit | Bulk::ProxyFence | Bulk::InitFence => Vec::new(),
    }
}
