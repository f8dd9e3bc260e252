//! A planned, loaded model that trains: the engine's core as other programs use it.

use crate::backend::Backend;
use crate::data::pack::MicroBatch;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::Phase;
use crate::graph::program::Program;
use crate::nn::{Inputs, Layout, Weight};
use crate::peft::Trained;
use crate::plan::Plan;
use crate::train::optimizer::Optimizer;
use crate::train::step::Step;

/// What a step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean cross entropy of the step's trained tokens, in nats.
    pub loss: f32,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Tokens of the step, padding not counted, and those of them that are trained.
    pub tokens: usize,
    pub trained: usize,
}

pub struct Trainer {
    pub exec: Exec,
    leaves: Leaves,
    optimizer: Optimizer,
    seed: u64,
    /// Every step is one micro-batch.
    once: bool,
    /// Steps done.
    pub steps: u64,
}

/// The leaves of a [`Step`] once its graph has gone into the executor.
struct Leaves {
    inputs: Inputs,
    rng: crate::graph::Val,
    inv_count: crate::graph::Val,
    loss: crate::graph::Val,
    sum_squares: crate::graph::Val,
    hyper: crate::graph::Val,
    weights: Vec<Weight>,
}

impl Trainer {
    /// Allocates what `plan` says and compiles the step. Weights are then to be loaded (`weights::load`).
    pub fn new(backend: Box<dyn Backend>, step: Step, plan: Plan, seed: u64) -> Result<Trainer> {
        let Step { program, inputs, rng, inv_count, loss, sum_squares, hyper, optimizer, tables, .. } = step;
        let Program { graph, weights, .. } = program;
        let once = graph.values.iter().any(|v| v.transient);
        let mut exec = Exec::new(backend, graph, plan)?;
        for (leaf, words) in tables {
            exec.upload(leaf, bytemuck::cast_slice(&words))?;
        }
        let leaves = Leaves { inputs, rng, inv_count, loss, sum_squares, hyper, weights };
        Ok(Trainer { exec, leaves, optimizer, seed, once, steps: 0 })
    }

    /// What a micro-batch holds: what the packer needs.
    pub fn layout(&self) -> &Layout {
        &self.leaves.inputs.layout
    }

    pub fn weights(&self) -> &[Weight] {
        &self.leaves.weights
    }

    /// One optimizer step at rate `lr` over micro-batches that were packed for this plan.
    pub fn step(&mut self, micro: &[MicroBatch], lr: f64) -> Result<StepReport> {
        if self.once && micro.len() != 1 {
            let found = format!("{} micro-batches in a step", micro.len());
            return Err(Error::config("step_tokens", found, "one: gradients were not planned to be added up"));
        }
        let trained: usize = micro.iter().map(|m| m.trained).sum();
        let inv = if trained == 0 { 0.0 } else { 1.0 / trained as f32 };
        self.exec.upload(self.leaves.inv_count, bytemuck::bytes_of(&inv))?;
        self.exec.upload(self.leaves.loss, bytemuck::bytes_of(&0f32))?;
        for (index, batch) in micro.iter().enumerate() {
            let rng = [self.seed as u32, (self.seed >> 32) as u32, self.steps as u32, index as u32];
            self.exec.upload(self.leaves.rng, bytemuck::cast_slice(&rng))?;
            for input in &self.leaves.inputs.leaves {
                self.exec.upload(input.val, batch.get(&input.field.name)?.bytes())?;
            }
            self.exec.run(Phase::MICRO)?;
        }
        let hyper = self.optimizer.hyper(lr, self.steps + 1);
        self.exec.upload(self.leaves.hyper, bytemuck::cast_slice(&hyper))?;
        self.exec.run(Phase::UPDATE)?;
        self.steps += 1;
        let loss = self.exec.download_f32(self.leaves.loss)?[0];
        let grad_norm = self.exec.download_f32(self.leaves.sum_squares)?[0].sqrt();
        Ok(StepReport { loss, grad_norm, tokens: micro.iter().map(|m| m.tokens).sum(), trained })
    }

    /// Every trainable tensor by name: shape and values.
    pub fn trained(&mut self) -> Result<Vec<Trained>> {
        let vals: Vec<_> =
            self.leaves.weights.iter().filter(|w| w.trainable).map(|w| (w.val, w.name.clone())).collect();
        vals.into_iter()
            .map(|(val, name)| Ok((name, self.exec.graph.shape(val).to_vec(), self.exec.download_f32(val)?)))
            .collect()
    }
}
