//! The engine as other programs use it: open a model, choose a method, plan, then step, evaluate, generate and save, all
//! on the same weights and in the memory that was planned.

mod merge;
mod merged;
mod options;
mod phases;
mod planned;
mod save;
mod state;
mod tune;

use std::sync::Arc;

pub use crate::base::Base;
use crate::data::pack::MicroBatch;
use crate::error::Result;
use crate::generate::{Ask, Generation};
use crate::models::Facts;
use crate::nn::Layout;
use crate::peft::Method;
use crate::train::eval::{Evaluated, Evaluation};
use crate::train::finite::NotFinite;
use crate::train::trainer::{StepReport, Trainer};
pub use merged::Merged;
pub use options::{MOST_TOKENS, Options, activations};
use phases::lacks;
pub use planned::Planned;
pub use tune::Tune;

/// A session under way. It may go from thread to thread.
pub struct Session {
    base: Arc<Base>,
    methods: Vec<Box<dyn Method>>,
    facts: Facts,
    /// Output heads, each with the embedding that it is tied to.
    ties: Vec<(String, String)>,
    /// Of each size of micro-batches, the largest first.
    layouts: Vec<Layout>,
    /// The program on its device: weights, optimizer state, and number of steps.
    pub trainer: Trainer,
    evaluation: Option<Evaluation>,
    generation: Option<Generation>,
}

impl Session {
    /// The base model.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// What a micro-batch holds: what the packer needs, for steps and evaluations.
    pub fn layout(&self) -> Result<&Layout> {
        phases::layout(self.trainer.leaves(), self.evaluation.as_ref())
    }

    /// What a micro-batch of each size holds, the largest first: that of [`Session::layout`], then those of
    /// [`Options::micro_smaller`]. None if there are no micro-batches.
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// One optimizer step at rate `lr` over packed micro-batches (`data::pack`).
    pub fn step(&mut self, micro: &[MicroBatch], lr: f64) -> Result<StepReport> {
        self.trainer.step(micro, lr)
    }

    /// The same; `on` is told after each micro-batch how many are done. An error of it, [`crate::Error::Cancelled`] for one,
    /// ends the step, and everything is as it was before.
    pub fn step_with(
        &mut self,
        micro: &[MicroBatch],
        lr: f64,
        on: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<StepReport> {
        self.trainer.step_with(micro, lr, on)
    }

    /// Where a step left the finite numbers: after one whose report is not finite, with its micro-batches. It repeats the
    /// step op by op and names the first op whose output is not finite (see [`Trainer::first_not_finite`]).
    pub fn first_not_finite(&mut self, micro: &[MicroBatch]) -> Result<Option<NotFinite>> {
        self.trainer.first_not_finite(micro)
    }

    /// Loss and outputs of a packed micro-batch, without dropout, on the weights as they are.
    pub fn eval(&mut self, micro: &MicroBatch) -> Result<Evaluated> {
        match &self.evaluation {
            Some(evaluation) => evaluation.run(&mut self.trainer.exec, micro),
            None => Err(lacks("evaluation", "evaluate")),
        }
    }

    /// Continues `prompt` (in encoder-decoders: answers it) on the weights as they are, and returns the new tokens. `on` is
    /// given each as it comes, and ends the text by returning false; an error of it is this function's.
    pub fn generate(&mut self, prompt: &[u32], ask: &Ask, on: &mut dyn FnMut(u32) -> Result<bool>) -> Result<Vec<u32>> {
        match &mut self.generation {
            Some(generation) => generation.generate(&mut self.trainer.exec, prompt, ask, on),
            None => Err(lacks("generation", "generate")),
        }
    }

    /// The logits that follow each token of `ids`; in encoder-decoders `ids` is the source, and its tokens are the target too,
    /// after the one that starts it.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        match &mut self.generation {
            Some(generation) => generation.logits(&mut self.trainer.exec, ids),
            None => Err(lacks("generation", "generate")),
        }
    }
}
