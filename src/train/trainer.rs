//! A planned, loaded model that trains: the engine's core as other programs use it.

use crate::backend::Backend;
use crate::data::pack::MicroBatch;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::program::Program;
use crate::graph::{Def, LeafKind, Phase, Val};
use crate::nn::Weight;
use crate::plan::Plan;
use crate::train::finite::{self, NotFinite};
use crate::train::scale::LossScale;
use crate::train::step::{Leaves, Step};
use crate::weights::HostTensor;

/// What a step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean cross entropy of the step's trained tokens, in nats.
    pub loss: f32,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Tokens of the step, padding not counted.
    pub tokens: usize,
    /// Tokens of the step that are trained on.
    pub trained: usize,
}

impl StepReport {
    /// Whether loss and gradient are finite. A step whose gradient is not changes nothing.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// A program on a device, which trains if it has a step.
pub struct Trainer {
    /// The program on its device.
    pub exec: Exec,
    leaves: Option<Leaves>,
    weights: Vec<Weight>,
    seed: u64,
    /// Every step is one micro-batch.
    once: bool,
    /// Where activations are f16.
    scale: Option<LossScale>,
    /// The loss scale of the last step.
    scaled: f32,
    /// Steps done.
    pub steps: u64,
}

impl Trainer {
    /// Allocates what `plan` says and compiles the step. Weights are then to be loaded (`weights::load`).
    pub fn new(backend: Box<dyn Backend>, step: Step, plan: Plan, seed: u64) -> Result<Trainer> {
        Trainer::of(backend, step.program, Some(step.leaves), plan, seed)
    }

    /// The same for any program; `leaves` are those of its step, if it has one.
    pub fn of(
        backend: Box<dyn Backend>,
        program: Program,
        leaves: Option<Leaves>,
        plan: Plan,
        seed: u64,
    ) -> Result<Trainer> {
        let Program { graph, weights, .. } = program;
        let once = graph.values.iter().any(|v| v.transient);
        let mut exec = Exec::new(backend, graph, plan)?;
        for (leaf, words) in leaves.iter().flat_map(|leaves| &leaves.tables) {
            exec.upload(*leaf, bytemuck::cast_slice(words))?;
        }
        let scale = leaves.as_ref().and_then(|leaves| leaves.scale).map(|_| LossScale::default());
        Ok(Trainer { exec, leaves, weights, seed, once, scale, scaled: 1.0, steps: 0 })
    }

    /// The leaves of the step, if there is one.
    pub fn leaves(&self) -> Option<&Leaves> {
        self.leaves.as_ref()
    }

    /// The leaves that are loaded.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The loss scale of the next step, where activations are f16.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.scale
    }

    /// Sets it, to go on from a state; of no effect where activations are not f16.
    pub(crate) fn set_loss_scale(&mut self, scale: LossScale) {
        self.scale = self.scale.map(|_| scale);
    }

    /// One optimizer step at rate `lr` over micro-batches that were packed for this plan.
    pub fn step(&mut self, micro: &[MicroBatch], lr: f64) -> Result<StepReport> {
        self.step_with(micro, lr, &mut |_| Ok(()))
    }

    /// The same; `on` is told after each micro-batch how many are done. Its error ends the step and leaves everything as it
    /// was before.
    pub fn step_with(
        &mut self,
        micro: &[MicroBatch],
        lr: f64,
        on: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<StepReport> {
        if self.once && micro.len() != 1 {
            let found = format!("{} micro-batches in a step", micro.len());
            return Err(Error::config("step_tokens", found, "one: gradients were not planned to be added up"));
        }
        self.scaled = self.scale.map_or(1.0, |scale| scale.factor());
        let Trainer { exec, leaves: Some(leaves), seed, steps, scale, scaled, .. } = self else {
            return Err(Error::unsupported("a step of a program that does not train", "plan it with the option train"));
        };
        if micro.is_empty() {
            return Err(Error::config("micro-batches", "none in a step", "at least one"));
        }
        for (_, group) in &leaves.hypers {
            let rate = group.rate * lr;
            if !(lr >= 0.0 && (rate as f32).is_finite()) {
                let found = if group.rate == 1.0 { format!("{lr}") } else { format!("{lr}, for some tensors {rate}") };
                return Err(Error::config("lr", found, format!("0 to {:e}", f32::MAX)));
            }
        }
        let sizes = begin(exec, leaves, micro, *scaled)?;
        for (index, (batch, size)) in micro.iter().zip(sizes).enumerate() {
            write(exec, leaves, batch, [*seed as u32, (*seed >> 32) as u32, *steps as u32, index as u32])?;
            exec.run_at(Phase::MICRO, size)?;
            if let Err(stop) = on(index + 1) {
                forget(exec)?;
                return Err(stop);
            }
        }
        for &(leaf, group) in &leaves.hypers {
            let hyper = leaves.optimizer.hyper(group, lr, *steps + 1);
            exec.upload(leaf, bytemuck::cast_slice(&hyper))?;
        }
        exec.run(Phase::UPDATE)?;
        *steps += 1;
        let loss = exec.download_f32(leaves.loss)?[0];
        let grad_norm = exec.download_f32(leaves.sum_squares)?[0].sqrt();
        if let Some(scale) = scale {
            scale.after(grad_norm);
        }
        let sum = |of: fn(&MicroBatch) -> usize| micro.iter().map(of).sum();
        Ok(StepReport { loss, grad_norm, tokens: sum(|m| m.tokens), trained: sum(|m| m.trained) })
    }

    /// Repeats the last step, whose micro-batches were `micro`, op by op, and names the first op whose output is not finite;
    /// none if all are. The step must have changed nothing, as one does whose gradient is not finite. It takes many times
    /// as long as a step, and a little more memory on the device; what it writes there is gone when it returns.
    pub fn first_not_finite(&mut self, micro: &[MicroBatch]) -> Result<Option<NotFinite>> {
        let found = self.search(micro);
        forget(&mut self.exec)?;
        found
    }

    fn search(&mut self, micro: &[MicroBatch]) -> Result<Option<NotFinite>> {
        let Trainer { exec, leaves: Some(leaves), seed, steps, scaled, .. } = self else { return Ok(None) };
        let step = steps.saturating_sub(1);
        begin(exec, leaves, micro, *scaled)?;
        for (index, batch) in micro.iter().enumerate() {
            // Op by op there is the plan's own size alone.
            let batch = &batch.widened(&leaves.inputs.layout)?;
            write(exec, leaves, batch, [*seed as u32, (*seed >> 32) as u32, step as u32, index as u32])?;
            let found = finite::search(exec, Phase::MICRO, leaves.forward, index)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        finite::search(exec, Phase::UPDATE, leaves.forward, micro.len().saturating_sub(1))
    }

    /// Every trainable tensor, with its name.
    pub fn trained(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let Trainer { exec, weights, .. } = self;
        let trained = weights.iter().filter(|w| w.trainable);
        trained
            .map(|w| {
                let shape = exec.graph.shape(w.val).to_vec();
                Ok((w.name.clone(), HostTensor { shape, data: exec.download_f32(w.val)? }))
            })
            .collect()
    }
}

/// Writes what a step begins with; the size of each of its micro-batches.
fn begin(exec: &mut Exec, leaves: &Leaves, micro: &[MicroBatch], scale: f32) -> Result<Vec<usize>> {
    let sizes = micro.iter().map(|batch| leaves.feed.check(batch)).collect::<Result<_>>()?;
    let trained: usize = micro.iter().map(|m| m.trained).sum();
    let inv = if trained == 0 { 0.0 } else { 1.0 / trained as f32 };
    exec.upload(leaves.inv_count, bytemuck::bytes_of(&inv))?;
    exec.upload(leaves.loss, bytemuck::bytes_of(&0f32))?;
    if let Some((up, down)) = leaves.scale {
        exec.upload(up, bytemuck::bytes_of(&scale))?;
        exec.upload(down, bytemuck::bytes_of(&(1.0 / scale)))?;
    }
    Ok(sizes)
}

/// Writes what MICRO reads: the fields of `batch`, and the key of its random numbers.
fn write(exec: &mut Exec, leaves: &Leaves, batch: &MicroBatch, rng: [u32; 4]) -> Result<()> {
    exec.upload(leaves.rng, bytemuck::cast_slice(&rng))?;
    leaves.feed.write(exec, batch)
}

/// Sets the sums of gradients to zero, as an update leaves them.
fn forget(exec: &mut Exec) -> Result<()> {
    const PIECE: usize = 1 << 16;
    let sums = (0..exec.graph.values.len() as u32).map(Val);
    let sums: Vec<Val> = sums
        .filter(|&v| {
            let value = exec.graph.value(v);
            value.def == Def::Leaf(LeafKind::Grad) && !value.transient
        })
        .collect();
    for sum in sums {
        let bytes = exec.graph.ty(sum).bytes();
        for from in (0..bytes).step_by(PIECE) {
            exec.upload_at(sum, from as u64, &vec![0; PIECE.min(bytes - from)])?;
        }
    }
    Ok(())
}
