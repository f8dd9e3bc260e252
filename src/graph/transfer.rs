//! The two ops that move a value between the device and a place off it. They are nodes like any others, so liveness
//! and the arena place their device side; the plan turns them into transfers, which the executor starts and waits for.
//!
//! They are rows without kernels, and so not in the op table: nothing launches them.

use super::attr::Attr;
use super::op::{Grad, OpDef, OpRole};
use super::{Graph, Val};
use crate::error::Result;

/// `fetch` [x off the device] → x, on the device. Its output is reserved from here on, so a fetch that is well
/// before its first reader is a prefetch.
pub static FETCH: OpDef = row("fetch", OpRole::Fetch);

/// `store` [x] → x, off the device: it overwrites (a view of) a leaf there.
pub static STORE: OpDef = row("store", OpRole::Store);

const fn row(name: &'static str, role: OpRole) -> OpDef {
    OpDef {
        name,
        role,
        infer: |_, ins| match ins {
            [x] => Ok(vec![x.clone()]),
            _ => Err(format!("{ins:?}, expected one operand")),
        },
        reference: |_, ins| ins.to_vec(),
        grad: Grad::Stop,
        ..OpDef::COMPUTE
    }
}

impl Graph {
    /// `of`, which is off the device, on it.
    pub fn fetch(&mut self, of: Val) -> Result<Val> {
        Ok(self.node(&FETCH, Attr::None, &[of])?[0])
    }

    /// Moves `x` into the leaf `away` (or a view of it); the result is there.
    pub fn store(&mut self, x: Val, away: Val) -> Result<Val> {
        Ok(self.node_into(&STORE, Attr::None, &[x], &[Some(away)])?[0])
    }
}
