//! Where a step left the finite numbers: found by repeating it op by op, only when it is asked for.

use std::fmt;

use crate::dtype::DType;
use crate::error::Result;
use crate::exec::Exec;
use crate::graph::op::OpRole;
use crate::graph::{Def, LeafKind, Phase, Val};

/// The part of a step that an op belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From the tokens to the loss.
    Forward,
    /// From the loss to the gradients.
    Backward,
    /// The gradient's norm.
    Update,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward pass",
            Pass::Backward => "backward pass",
            Pass::Update => "optimizer's update",
        }
    }
}

/// The first op of a step whose output is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// Name of the op.
    pub op: &'static str,
    /// Where in the model: `layers.3.mlp.up_proj`.
    pub site: String,
    /// The part of the step.
    pub pass: Pass,
    /// The micro-batch of the step, from 0; in the update the last.
    pub micro_batch: usize,
    /// What was found in its output: NaN or an infinity.
    pub value: f32,
    /// What the output is kept in.
    pub dtype: DType,
    /// The first tensor that the op reads and that was not finite before the step, with its kind: a weight, or an input.
    pub operand: Option<(String, LeafKind)>,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotFinite { op, site, pass, micro_batch, value, .. } = self;
        write!(f, "the first {value} is in the output of op {op} at {site}, in the {}", pass.name())?;
        match pass {
            Pass::Update => Ok(()),
            Pass::Forward | Pass::Backward => write!(f, " of micro-batch {}", micro_batch + 1),
        }
    }
}

impl NotFinite {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let overflow = format!("a lower lr or a longer warmup: the numbers grew beyond those of {}", self.dtype);
        match (&self.operand, self.pass, self.dtype) {
            (Some((name, LeafKind::Frozen)), ..) => format!("another copy of the model: its {name} is not finite"),
            (Some((name, LeafKind::Io)), ..) => format!("other data: the numbers of {name} are not all finite"),
            (Some((name, _)), ..) => {
                format!("a lower lr or a longer warmup: {name} is not finite since an earlier step")
            }
            (None, Pass::Update, _) => {
                "a lower lr or a longer warmup: the gradient is finite, but its squares add up beyond f32".into()
            }
            (None, _, DType::F16) => "dtype f32 or bf16: f16 ends at 65504".into(),
            (None, ..) if self.value.is_nan() => {
                format!("{overflow}, or an op met numbers for which it is not defined (0/0)")
            }
            (None, ..) => overflow,
        }
    }
}

/// Runs `phase` and names the first op with an output that is not finite. `forward`: the number of nodes of the forward
/// pass, of MICRO. Of UPDATE the part is run that changes nothing.
pub(super) fn search(exec: &mut Exec, phase: Phase, forward: usize, micro_batch: usize) -> Result<Option<NotFinite>> {
    let g = &exec.graph;
    let is_state = |v: &Val| matches!(g.value(g.root(*v).0).def, Def::Leaf(LeafKind::Param | LeafKind::Optim));
    let writes = g.nodes.iter().position(|n| n.phase == phase && n.into.iter().flatten().any(is_state));
    let end = writes.unwrap_or(g.nodes.len());
    let Some((index, value)) = exec.first_not_finite(phase, end)? else { return Ok(None) };
    let g = &exec.graph;
    let node = g.nodes[index].clone();
    // Passes that save memory put nodes between those of the forward pass, and all of them are transfers.
    let before = g.nodes[..index].iter().filter(|n| matches!(n.op.role, OpRole::Compute | OpRole::Clear)).count();
    let pass = match phase {
        Phase::UPDATE => Pass::Update,
        _ if before < forward => Pass::Forward,
        _ => Pass::Backward,
    };
    let out = node.outs.iter().position(|&o| g.ty(o).dtype.is_float()).unwrap_or(0);
    let dtype = g.ty(node.outs[out]).dtype;
    let mut operand = None;
    for &v in &node.ins {
        // What the op overwrites is its output by now.
        let kept = |leaf: Val| node.into.iter().flatten().all(|&t| exec.graph.root(t).0 != exec.graph.root(leaf).0);
        if let Some((leaf, kind)) = given(exec, v).filter(|&(leaf, _)| kept(leaf))
            && operand.is_none()
            && exec.not_finite(leaf)?.is_some()
        {
            operand = Some((exec.graph.value(leaf).name.clone(), kind));
        }
    }
    Ok(Some(NotFinite { op: node.op.name, site: node.site, pass, micro_batch, value, dtype, operand }))
}

/// The weight or input that `v` is, itself or brought onto the device.
fn given(exec: &Exec, v: Val) -> Option<(Val, LeafKind)> {
    let g = &exec.graph;
    match g.value(g.root(v).0).def {
        Def::Leaf(kind @ (LeafKind::Frozen | LeafKind::Param | LeafKind::Io)) => Some((v, kind)),
        Def::Node { node, .. } if g.nodes[node].op.role == OpRole::Fetch => given(exec, g.nodes[node].ins[0]),
        _ => None,
    }
}
