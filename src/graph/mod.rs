//! The graph: a flat list of typed nodes in the order they run; a value is an index.
//!
//! A graph has one or more phases over the same leaves. A training step has two: [`Phase::MICRO`] runs once for each
//! micro-batch (forward, backward, gradients added up), [`Phase::UPDATE`] once at the end (norm, clipping, optimizer).
//! Evaluation is one; generation has one for many tokens at once and one for a single token.
//! A graph knows shapes and dependencies. It knows no addresses, no devices and no models.

pub mod attr;
pub mod batch;
pub mod op;
mod print;
pub mod program;
pub mod sizes;
pub mod tensor;
pub mod transfer;
mod verify;
pub mod weight;

use crate::dtype::Ty;
use crate::error::{Error, Result};
use attr::Attr;
use op::{Grad, OpDef};

pub use verify::verify;

/// A value of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub u32);

impl Val {
    /// Its place in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a leaf is for. It decides how long the value lives and under which head the account lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeafKind {
    /// A weight of the base model that does not change.
    Frozen,
    /// A trainable tensor.
    Param,
    /// The sum of a parameter's gradients over the micro-batches of a step.
    Grad,
    /// State of the optimizer.
    Optim,
    /// Written by the host before a micro-batch or a step, and scalars that the host reads back.
    Io,
    /// Keys and values of earlier tokens.
    Cache,
    /// Activations that wait off the device for the backward pass.
    Saved,
}

impl LeafKind {
    /// Every kind, in the order in which accounts list them.
    pub const ALL: [LeafKind; 7] = [
        LeafKind::Frozen,
        LeafKind::Param,
        LeafKind::Grad,
        LeafKind::Optim,
        LeafKind::Io,
        LeafKind::Cache,
        LeafKind::Saved,
    ];
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// It is there before the graph runs, and stays.
    Leaf(LeafKind),
    /// Output `out` of node `node`.
    Node {
        /// Place in [`Graph::nodes`].
        node: usize,
        /// Number of the output.
        out: usize,
    },
    /// The elements of `of` from `start` on, under another shape; no memory of its own.
    View {
        /// What is viewed; may be a view itself.
        of: Val,
        /// First element in `of`, counted over its flattened elements.
        start: usize,
    },
}

/// What a graph knows of a value.
#[derive(Clone, Debug)]
pub struct Value {
    /// Of a leaf, the tensor's or input's name; of an output, `site:op`. For prints and errors.
    pub name: String,
    /// Element type and shape.
    pub ty: Ty,
    /// Where it comes from.
    pub def: Def,
    /// A trainable tensor reaches it.
    pub needs_grad: bool,
    /// A leaf that is off the device: only transfers (`memory::transfer`) touch it.
    pub offloaded: bool,
    /// A leaf of which nothing is needed before a node writes it or after the last that reads it: it is in the arena.
    pub transient: bool,
}

/// A part of a graph that runs as a whole, by number. Phases come in this order in the list of nodes and share leaves and
/// the arena; a graph has those that its nodes name. Any may run any number of times after any other, so what outlives a
/// phase is a leaf: values are read only where [`Phase::hands_to`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Phase(pub usize);

impl Phase {
    /// Forward and backward pass of a micro-batch.
    pub const MICRO: Phase = Phase(0);
    /// The optimizer's update, right after the last micro-batch of a step.
    pub const UPDATE: Phase = Phase(1);
    /// A forward pass for its loss and metrics.
    pub const EVAL: Phase = Phase(2);
    /// The encoder, before anything is generated from its output.
    pub const ENCODE: Phase = Phase(3);
    /// Many tokens of a prompt.
    pub const PREFILL: Phase = Phase(4);
    /// One token.
    pub const DECODE: Phase = Phase(5);

    /// Whether `reader` may read what this phase left in the arena: the phase itself, and an update what the micro-batch
    /// right before it left.
    pub fn hands_to(self, reader: Phase) -> bool {
        self == reader || (self, reader) == (Phase::MICRO, Phase::UPDATE)
    }
}

/// A use of an op.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its row in the op table, or that of a transfer.
    pub op: &'static OpDef,
    /// What the op is told besides its operands.
    pub attr: Attr,
    /// The operands, in the order the op's row names them.
    pub ins: Vec<Val>,
    /// The results, one for each type that the op's row gives.
    pub outs: Vec<Val>,
    /// For each output: the leaf (or view of one) whose storage it overwrites. This is how state changes.
    pub into: Vec<Option<Val>>,
    /// The phase it runs in.
    pub phase: Phase,
    /// Which part of the model it belongs to, for printing and errors: `layers.3.mlp.up_proj`.
    pub site: String,
    /// Which block of the model it belongs to; a backward node, that of what it differentiates. Blocks are the units
    /// of recompute and streaming: 0 before the first, one a layer, the last after all layers.
    pub block: usize,
}

/// A list of typed values, and the nodes that compute those that are not leaves, in the order they run.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Every value, by [`Val`].
    pub values: Vec<Value>,
    /// Every node, in the order they run; phases one after the other.
    pub nodes: Vec<Node>,
    /// What [`Node::phase`] of new nodes will be.
    pub phase: Phase,
    /// What [`Node::site`] of new nodes will be; set through [`Graph::at`].
    pub site: String,
    /// What [`Node::block`] of new nodes will be.
    pub block: usize,
    /// A leaf that holds the number 1, if there is one.
    pub one: Option<Val>,
}

impl Default for Graph {
    fn default() -> Self {
        Graph { values: Vec::new(), nodes: Vec::new(), phase: Phase::MICRO, site: String::new(), block: 0, one: None }
    }
}

impl Graph {
    /// A graph without values, whose first nodes will be of [`Phase::MICRO`].
    pub fn new() -> Graph {
        Graph::default()
    }

    /// What is known of `v`.
    pub fn value(&self, v: Val) -> &Value {
        &self.values[v.index()]
    }
    /// Element type and shape of `v`.
    pub fn ty(&self, v: Val) -> &Ty {
        &self.value(v).ty
    }
    /// Dimensions of `v`, the slowest first.
    pub fn shape(&self, v: Val) -> &[usize] {
        &self.ty(v).shape
    }
    /// Whether a trainable tensor reaches `v`, so that a backward pass gives it a gradient.
    pub fn needs_grad(&self, v: Val) -> bool {
        self.value(v).needs_grad
    }

    /// The number of its last phase, and one: how long a list by phase is.
    pub fn phases(&self) -> usize {
        self.nodes.iter().map(|n| n.phase.0 + 1).max().unwrap_or(0)
    }

    fn push(&mut self, name: String, ty: Ty, def: Def, needs_grad: bool) -> Val {
        self.values.push(Value { name, ty, def, needs_grad, offloaded: false, transient: false });
        Val(self.values.len() as u32 - 1)
    }

    /// Adds a leaf. One of the kind [`LeafKind::Param`] needs a gradient, no other does.
    pub fn leaf(&mut self, class: LeafKind, name: impl Into<String>, ty: Ty) -> Val {
        self.push(name.into(), ty, Def::Leaf(class), class == LeafKind::Param)
    }

    /// `of` under another shape of as many elements.
    pub fn reshape(&mut self, of: Val, shape: &[usize]) -> Result<Val> {
        let ty = Ty::new(self.ty(of).dtype, shape);
        if ty.len() != self.ty(of).len() {
            return Err(self.refuse("reshape", format!("{} has not as many elements as {ty}", self.ty(of))));
        }
        let (name, needs_grad) = (self.value(of).name.clone(), self.needs_grad(of));
        Ok(self.push(name, ty, Def::View { of, start: 0 }, needs_grad))
    }

    /// The elements of `of` from `start` on, as a value of type `ty`.
    pub fn view(&mut self, of: Val, start: usize, ty: Ty) -> Val {
        let (name, needs_grad) = (self.value(of).name.clone(), self.needs_grad(of));
        self.push(name, ty, Def::View { of, start }, needs_grad)
    }

    /// Lays `members` (leaves of one class, all f32) out one after the other, each on a multiple of `boundary`
    /// elements, and returns the whole as one flat leaf: optimizers and norms then need one launch for all of them.
    /// Every backend can bind a member if `boundary` is a multiple of `ALIGN / 4`. The gaps stay zero.
    pub fn flatten(&mut self, kind: LeafKind, name: &str, members: &[Val], boundary: usize) -> Val {
        let total = members.iter().map(|&m| self.ty(m).len().next_multiple_of(boundary)).sum();
        let flat = self.leaf(kind, name, Ty::f32(&[total]));
        let mut start = 0;
        for &m in members {
            let value = &mut self.values[m.index()];
            value.def = Def::View { of: flat, start };
            start += value.ty.len().next_multiple_of(boundary);
        }
        flat
    }

    /// The leaf or node output whose storage `v` is in, and how many elements into it.
    pub fn root(&self, mut v: Val) -> (Val, usize) {
        let mut offset = 0;
        while let Def::View { of, start } = self.value(v).def {
            offset += start;
            v = of;
        }
        (v, offset)
    }

    /// The leaf off the device that `v` is in, and how many bytes into it: `v` is (a view of) such a leaf, or
    /// what a transfer wrote there.
    pub fn offloaded(&self, v: Val) -> Option<(Val, u64)> {
        let (root, start) = self.root(v);
        // The first element of a quantized tensor is at its first byte; only parts of others are viewed.
        let start = if start == 0 { 0 } else { self.ty(root).dtype.bytes(start) as u64 };
        match self.value(root).def {
            Def::Leaf(_) if self.value(root).offloaded => Some((root, start)),
            Def::Node { node, out } => {
                let (leaf, offset) = self.offloaded(self.nodes.get(node)?.into.get(out).copied().flatten()?)?;
                Some((leaf, offset + start))
            }
            _ => None,
        }
    }

    /// Appends a node that was taken out of a list of nodes, outputs and all: how passes rewrite a graph.
    pub fn keep(&mut self, node: Node) {
        for (out, v) in node.outs.iter().enumerate() {
            self.values[v.index()].def = Def::Node { node: self.nodes.len(), out };
        }
        self.nodes.push(node);
    }

    /// The error of an op that cannot be built at the present site, because of what was `found`.
    pub fn refuse(&self, op: &'static str, found: String) -> Error {
        Error::Graph { op, site: self.site.clone(), found }
    }

    /// Appends a node and returns its outputs.
    pub fn node(&mut self, op: &'static OpDef, attr: Attr, ins: &[Val]) -> Result<Vec<Val>> {
        self.node_into(op, attr, ins, &[])
    }

    /// The same; output `i` overwrites the storage of `into[i]`.
    pub fn node_into(&mut self, op: &'static OpDef, attr: Attr, ins: &[Val], into: &[Option<Val>]) -> Result<Vec<Val>> {
        let tys: Vec<Ty> = ins.iter().map(|&v| self.ty(v).clone()).collect();
        let out_tys = op.types(&attr, &tys).map_err(|found| self.refuse(op.name, found))?;
        let needs_grad = !matches!(op.grad, Grad::Stop) && ins.iter().any(|&v| self.needs_grad(v));
        let node = self.nodes.len();
        let mut outs = Vec::with_capacity(out_tys.len());
        let mut targets = Vec::with_capacity(out_tys.len());
        for (out, ty) in out_tys.into_iter().enumerate() {
            let target = into.get(out).copied().flatten();
            if let Some(t) = target
                && self.ty(t).bytes() != ty.bytes()
            {
                return Err(self.refuse(op.name, format!("{ty} cannot overwrite {}", self.ty(t))));
            }
            let name = match out {
                0 => format!("{}:{}", self.site, op.name),
                _ => format!("{}:{}.{out}", self.site, op.name),
            };
            outs.push(self.push(name, ty, Def::Node { node, out }, needs_grad));
            targets.push(target);
        }
        self.nodes.push(Node {
            op,
            attr,
            ins: ins.to_vec(),
            outs: outs.clone(),
            into: targets,
            phase: self.phase,
            site: self.site.clone(),
            block: self.block,
        });
        Ok(outs)
    }

    /// Runs `f` with `site` as the site of the nodes it adds.
    pub fn at<T>(&mut self, site: impl Into<String>, f: impl FnOnce(&mut Graph) -> T) -> T {
        let outer = std::mem::replace(&mut self.site, site.into());
        let result = f(self);
        self.site = outer;
        result
    }
}
