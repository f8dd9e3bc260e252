//! Hopper's asynchronous machinery but wgmma: mbarriers, tensor copies (TMA) both ways, and proxy fences.

use std::collections::HashMap;

use crate::decode::{Address, Form, address, result, source_reg};
use crate::operand::Operand;
use crate::order::Knowledge;
use crate::program::Reg;
use crate::tensor::TensorMap;

/// A tensor copy to shared memory under way.
#[derive(Clone, Debug)]
pub struct Flight {
    pub map: TensorMap,
    pub to: usize,
    pub at: Vec<i32>,
    pub pc: u32,
    pub warp: usize,
    pub lane: usize,
}

/// The state of an mbarrier object.
#[derive(Clone, Debug, Default)]
pub struct Mbarrier {
    /// Its number in the block: where threads note the phases they saw end.
    pub index: usize,
    pub count: u32,
    pub pending: u32,
    /// Bytes that are still to come.
    pub bytes: i64,
    /// Phases that have ended.
    pub phase: u32,
    pub flights: Vec<Flight>,
    /// Who initialised it, and whether a fence has told the asynchronous proxy of that.
    pub made: u64,
    pub fenced: bool,
    /// What the arrivals of the open phase pass on, and those of all ended ones.
    pub open: Knowledge,
    pub ended: Knowledge,
}

impl Mbarrier {
    /// Ends the phase if nothing is pending.
    pub fn step(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
            self.ended.join(&std::mem::take(&mut self.open));
            self.ended.passed(self.index, self.phase);
        }
    }
}

/// The mbarriers of a block, by shared address.
pub type Mbarriers = HashMap<u64, Mbarrier>;

/// The instructions of this file.
#[derive(Debug)]
pub enum Bulk {
    Init {
        at: Address,
        count: Reg,
    },
    Invalidate {
        at: Address,
    },
    /// Arrives `count` times (once without it), expecting so many bytes more.
    Arrive {
        at: Address,
        count: Option<Reg>,
        bytes: Option<Reg>,
    },
    /// Expects bytes without arriving.
    Expect {
        at: Address,
        bytes: Reg,
    },
    /// Whether the phase of this parity is over.
    TryWait {
        at: Address,
        to: Reg,
        parity: Reg,
    },
    Load {
        to: Address,
        map: Reg,
        at: Vec<Reg>,
        barrier: Address,
    },
    Store {
        from: Address,
        map: Reg,
        at: Vec<Reg>,
    },
    Commit,
    /// Until at most so many groups of stores are under way: or, with `.read`, still read shared memory.
    Wait {
        keep: Reg,
    },
    /// `fence.proxy.async`.
    ProxyFence,
    /// `fence.mbarrier_init`.
    InitFence,
}

fn mbarrier(form: &Form, operands: &[Operand]) -> Result<Bulk, String> {
    let place = operands.iter().position(|o| matches!(o, Operand::Memory(..))).ok_or("an address is missing")?;
    let at = address(operands.get(place))?;
    let after = |i: usize| operands.get(place + i).map(source_reg).transpose();
    let first = || after(1)?.ok_or_else(|| "an operand is missing".to_owned());
    Ok(if form.has("init") {
        Bulk::Init { at, count: first()? }
    } else if form.has("inval") {
        Bulk::Invalidate { at }
    } else if form.has("arrive") {
        if form.has("noComplete") || form.has("drop") || form.mods.iter().any(|m| m.contains("cluster")) {
            return Err("this arrival is not interpreted".into());
        }
        let (count, bytes) = if form.has("expect_tx") { (None, Some(first()?)) } else { (after(1)?, None) };
        Bulk::Arrive { at, count, bytes }
    } else if form.has("expect_tx") {
        Bulk::Expect { at, bytes: first()? }
    } else if form.has("parity") && (form.has("try_wait") || form.has("test_wait")) {
        let to = result(operands.first())?.ok_or("a result is missing")?;
        Bulk::TryWait { at, to, parity: first()? }
    } else {
        return Err("this mbarrier instruction is not interpreted".into());
    })
}

/// A tensor map and coordinates, as many as the form's `1d` to `5d` says.
fn tensor(form: &Form, o: Option<&Operand>) -> Result<(Reg, Vec<Reg>), String> {
    let rank = 1 + form.which(&["1d", "2d", "3d", "4d", "5d"]).ok_or("a tensor's rank")?;
    let Some(Operand::Tensor(map, at)) = o else { return Err("a tensor map is missing".into()) };
    let at: Vec<Reg> = at.iter().map(source_reg).collect::<Result<_, _>>()?;
    if at.len() != rank {
        return Err(format!("{} coordinates of a {rank}-dimensional tensor", at.len()));
    }
    Ok((*map, at))
}

/// `cp.async.bulk`: tensor copies to and from shared memory, and groups of the latter. Cache hints change nothing here.
fn copy(form: &Form, operands: &[Operand]) -> Result<Bulk, String> {
    if form.has("commit_group") {
        return Ok(Bulk::Commit);
    }
    if form.has("wait_group") {
        return Ok(Bulk::Wait { keep: source_reg(operands.first().ok_or("an operand is missing")?)? });
    }
    let plain = form.has("tensor") && !form.has("im2col") && !form.mods.iter().any(|m| m.starts_with("multicast"));
    let spaces = form.mods.iter().filter_map(|m| m.split("::").next()).filter(|s| ["global", "shared"].contains(s));
    match (plain, spaces.collect::<Vec<_>>().as_slice()) {
        (true, ["shared", "global"]) => {
            let (map, at) = tensor(form, operands.get(1))?;
            Ok(Bulk::Load { to: address(operands.first())?, map, at, barrier: address(operands.get(2))? })
        }
        (true, ["global", "shared"]) => {
            let (map, at) = tensor(form, operands.first())?;
            Ok(Bulk::Store { from: address(operands.get(1))?, map, at })
        }
        _ => Err("bulk copies other than of tensors, between shared and global memory".into()),
    }
}

/// The instruction, if it is one of this file's.
pub fn decode(form: &Form, operands: &[Operand]) -> Result<Option<Bulk>, String> {
    match form.name {
        "mbarrier" => mbarrier(form, operands).map(Some),
        "cp" if form.has("bulk") => copy(form, operands).map(Some),
        // A fence for global memory alone tells nothing of shared memory.
        "fence" if form.has("proxy") && form.has("async") && !form.has("global") => Ok(Some(Bulk::ProxyFence)),
        "fence" if form.has("mbarrier_init") => Ok(Some(Bulk::InitFence)),
        _ => Ok(None),
    }
}
