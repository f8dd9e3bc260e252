//! A phase node by node, with a look at what each computes: how the op is found that first left the finite numbers.

use super::{Exec, bind};
use crate::backend::Target;
use crate::dtype::{DType, Nf4Layout};
use crate::error::Result;
use crate::graph::op::OpRole;
use crate::graph::{Phase, Val};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

impl Exec {
    /// Runs the nodes of `phase` that are before node `end`, one at a time, and returns the number of the first with an
    /// output that is not finite, and what was found there. Each output is read right after its node, since the plan may
    /// give its place to the next one. Every node's launches are recorded for this alone, which takes time and a little
    /// memory on the device.
    pub fn first_not_finite(&mut self, phase: Phase, end: usize) -> Result<Option<(usize, f32)>> {
        // Transfers are in the order of their nodes.
        let mut moves = 0;
        for index in 0..end {
            let node = &self.graph.nodes[index];
            let (role, here) = (node.op.role, node.phase == phase);
            let moved = matches!(role, OpRole::Fetch | OpRole::Store).then_some(moves);
            moves += usize::from(moved.is_some());
            if !here {
                continue;
            }
            match (role, moved) {
                (OpRole::Fetch, Some(m)) => {
                    let moved = (m, self.plan.schedule.moves[m]);
                    self.start(moved)?;
                    self.wait(moved)?;
                }
                (_, Some(m)) => {
                    let moved = (m, self.plan.schedule.moves[m]);
                    self.store(moved.1)?;
                    if self.plan.caps.target != Target::Host {
                        self.write(moved)?;
                        self.offload.wait(&self.requests[m])?;
                    }
                }
                (_, None) => {
                    self.run_node(index)?;
                    let (op, outs) = (self.graph.nodes[index].op, self.graph.nodes[index].outs.clone());
                    for (i, out) in outs.into_iter().enumerate() {
                        let empty_sum = |x: f32| x == f32::NEG_INFINITY && op.log_sums.contains(&i);
                        if let Some(x) = self.find(out, &|x| !x.is_finite() && !empty_sum(x))? {
                            return Ok(Some((index, x)));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    fn run_node(&mut self, index: usize) -> Result<()> {
        let mut launches = self.plan.lower(&self.graph, index, &self.plan.caps)?;
        bind(&mut launches, &self.buffers);
        let recording = self.backend.record(&launches)?;
        let ran = self.backend.replay(recording).and_then(|()| self.backend.sync());
        self.backend.forget(recording);
        ran
    }

    /// The first number in `v` that is not finite; none if all are, or if it holds whole numbers. Of a quantized tensor its
    /// scales are looked at.
    pub fn not_finite(&mut self, v: Val) -> Result<Option<f32>> {
        self.find(v, &|x| !x.is_finite())
    }

    /// The first number in `v` that is `bad`.
    fn find(&mut self, v: Val, bad: &dyn Fn(f32) -> bool) -> Result<Option<f32>> {
        let ty = self.graph.ty(v).clone();
        let (parts, dtype) = match ty.dtype {
            DType::F32 | DType::BF16 | DType::F16 => ([0..ty.dtype.bytes(2) / 2 * ty.len(), 0..0], ty.dtype),
            DType::I32 | DType::U32 => return Ok(None),
            DType::Nf4 => ([Nf4Layout::new(ty.len(), false).absmax, 0..0], DType::F32),
            DType::Nf4Dq => {
                let layout = Nf4Layout::new(ty.len(), true);
                ([layout.nested, layout.offset], DType::F32)
            }
        };
        let mut piece = Vec::new();
        for part in parts {
            for from in part.clone().step_by(PIECE) {
                piece.resize(PIECE.min(part.end - from), 0);
                self.read_at(v, from as u64, &mut piece)?;
                let found = match dtype {
                    DType::BF16 => numbers(&piece, |b| half::bf16::from_ne_bytes(b).to_f32()).find(|&x| bad(x)),
                    DType::F16 => numbers(&piece, |b| half::f16::from_ne_bytes(b).to_f32()).find(|&x| bad(x)),
                    _ => numbers(&piece, f32::from_ne_bytes).find(|&x| bad(x)),
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: fn([u8; N]) -> f32) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(move |&b| number(b))
}
