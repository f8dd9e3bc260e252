//! Evaluation: forward, loss and output of a task, without gradients or dropout.

use crate::backend::Backend;
use crate::data::pack::MicroBatch;
use crate::dtype::Ty;
use crate::error::Result;
use crate::exec::Exec;
use crate::graph::program::Program;
use crate::graph::{Graph, LeafKind, Phase, Val};
use crate::models::Model;
use crate::nn::{Axis, Build, Inputs, Layout, Nn, Site, Weight};
use crate::ops::{Attr, elementwise};
use crate::peft::Trained;
use crate::plan::Plan;
use crate::tasks::{Shape, Task};

/// The graph of an evaluation, before it is planned.
pub struct Evaluation {
    pub program: Program,
    /// What a micro-batch holds.
    pub inputs: Inputs,
    /// The places of the model, for methods to check their targets against.
    pub sites: Vec<Site>,
    reads: Reads,
}

/// The leaves that the host writes and reads.
#[derive(Clone, Copy)]
struct Reads {
    inv: Val,
    loss: Val,
    output: Option<(Axis, Val)>,
}

impl Evaluation {
    /// For micro-batches of `shape`.
    pub fn new(model: &dyn Model, task: &dyn Task, build: Build, shape: Shape) -> Result<Evaluation> {
        let mut nn = Nn::new(build, task.layout(shape))?;
        nn.training = false;
        let [inv, loss] = ["inv_count", "loss"].map(|name| nn.g.leaf(LeafKind::Io, name, Ty::f32(&[1])));
        let one = nn.constant("one", &[1], || vec![1.0]);
        nn.g.one = Some(one);
        let outcome = task.forward(&mut nn, model, inv)?;
        copy(&mut nn.g, outcome.loss, one, loss)?;
        let output = match outcome.output {
            Some((axis, val)) => {
                let leaf = nn.g.leaf(LeafKind::Io, "output", nn.g.ty(val).clone());
                copy(&mut nn.g, val, one, leaf)?;
                Some((axis, leaf))
            }
            None => None,
        };
        let sites = std::mem::take(&mut nn.sites);
        let (graph, weights, inputs) = nn.finish();
        let program = Program { forward: graph.nodes.len(), graph, weights };
        Ok(Evaluation { program, inputs, sites, reads: Reads { inv, loss, output } })
    }

    /// Names and shapes of what the methods trained.
    pub fn trained(&self) -> Vec<(String, Vec<usize>)> {
        let trained = self.program.weights.iter().filter(|w| w.trainable);
        trained.map(|w| (w.name.clone(), w.stored(self.program.graph.shape(w.val)))).collect()
    }
}

/// Keeps `x` in a leaf, where the host finds it.
fn copy(g: &mut Graph, x: Val, one: Val, leaf: Val) -> Result<()> {
    g.node_into(&elementwise::SCALE, Attr::None, &[x, one], &[Some(leaf)]).map(drop)
}

/// What was computed of a micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// The loss summed over its units, and their number.
    pub loss: f64,
    pub units: usize,
    /// Of each sequence: the number of its example, and the rows of the output that are its own (virtual tokens and
    /// padding are not).
    pub outputs: Vec<(usize, Vec<f32>)>,
}

/// An evaluation on a device.
pub struct Evaluator {
    pub exec: Exec,
    inputs: Inputs,
    weights: Vec<Weight>,
    reads: Reads,
}

impl Evaluator {
    /// Allocates and compiles. Weights are then to be loaded (`weights::load`).
    pub fn new(backend: Box<dyn Backend>, evaluation: Evaluation) -> Result<Evaluator> {
        let Evaluation { program: Program { graph, weights, .. }, inputs, reads, .. } = evaluation;
        let plan = Plan::new(&graph, backend.caps())?;
        Ok(Evaluator { exec: Exec::new(backend, graph, plan)?, inputs, weights, reads })
    }

    /// What a micro-batch holds: what the packer needs.
    pub fn layout(&self) -> &Layout {
        &self.inputs.layout
    }

    /// The leaves to be loaded.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Takes the values of trained tensors, by name.
    pub fn take(&mut self, trained: &[Trained]) -> Result<()> {
        for (name, _, data) in trained {
            if let Some(weight) = self.weights.iter().find(|w| w.name == *name) {
                self.exec.upload(weight.val, bytemuck::cast_slice(data))?;
            }
        }
        Ok(())
    }

    /// Computes a micro-batch that was packed for [`Evaluator::layout`].
    pub fn run(&mut self, batch: &MicroBatch) -> Result<Evaluated> {
        self.exec.upload(self.reads.inv, bytemuck::bytes_of(&1f32))?;
        for input in &self.inputs.leaves {
            self.exec.upload(input.val, batch.get(&input.field.name)?.bytes())?;
        }
        self.exec.run(Phase::MICRO)?;
        let loss = f64::from(self.exec.download_f32(self.reads.loss)?[0]);
        let mut outputs = Vec::with_capacity(batch.examples.len());
        if let Some((axis, val)) = self.reads.output {
            let width = self.exec.graph.ty(val).cols();
            let all = self.exec.download_f32(val)?;
            for (index, (&example, placed)) in batch.examples.iter().zip(&batch.placed).enumerate() {
                let rows = match axis {
                    Axis::Sequence => index..index + 1,
                    // No task has outputs of keys.
                    Axis::Key(_) => 0..0,
                    Axis::Token(stream) => {
                        let at = placed.get(stream.0).copied().unwrap_or_default();
                        at.start + at.lead..at.start + at.len - at.pad
                    }
                };
                let own = all.get(rows.start * width..rows.end * width).unwrap_or_default();
                outputs.push((example, own.to_vec()));
            }
        }
        Ok(Evaluated { loss, units: batch.trained, outputs })
    }
}
