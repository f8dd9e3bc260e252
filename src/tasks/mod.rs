//! Tasks: how a row becomes an example, what the loss is, and what a model's outputs mean. One file a task.

pub mod causal_lm;
pub mod metrics;

use crate::data::Example;
use crate::data::row::{Codec, Row};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Layout, Nn};

/// The sizes of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of the stream of `input_ids`.
    pub tokens: usize,
    /// Tokens of the targets in encoder-decoders.
    pub targets: usize,
    /// The most sequences.
    pub sequences: usize,
}

impl Shape {
    /// Micro-batches of `tokens` tokens, with as many sequences as there is room for.
    pub fn of(tokens: usize) -> Shape {
        Shape { tokens, targets: tokens, sequences: tokens }
    }
}

/// What a row became.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// None if nothing in it would be trained; several if it is longer than an example may be and is cut in windows.
    pub examples: Vec<Example>,
    /// Whether it was cut to the longest length.
    pub cut: bool,
}

/// What a task computes from a model.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The sum of the loss over the units of the micro-batch, times the input `inv`, F32[1].
    pub loss: Val,
    /// What predictions and metrics are made from (logits), where the task has them.
    pub output: Option<Val>,
}

/// A task.
pub trait Task: Send + Sync {
    /// Its row of the table.
    fn def(&self) -> &'static TaskDef;

    /// The streams and the units of a micro-batch.
    fn layout(&self, shape: Shape) -> Layout;

    /// The examples of a row.
    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made>;

    /// The model, its head and the loss. `inv` is 1 / units of the step, F32[1].
    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome>;

    /// The modules of the task's head, which every method trains and PEFT lists in modules_to_save.
    fn heads(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A row of the table of tasks.
pub struct TaskDef {
    /// Its name on the command line.
    pub name: &'static str,
    /// PEFT's `task_type`.
    pub peft: &'static str,
    /// How the names of transformers' model classes for it end.
    pub architectures: &'static [&'static str],
}

/// Every task.
pub static TASKS: &[&TaskDef] = &[&causal_lm::DEF];

/// The task whose model class `architecture` is.
pub fn of_architecture(architecture: &str) -> Option<&'static TaskDef> {
    TASKS.iter().copied().find(|t| t.architectures.iter().any(|a| architecture.ends_with(a)))
}

/// The task of a name.
pub fn named(name: &str) -> Result<&'static TaskDef> {
    let known = || TASKS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
    TASKS
        .iter()
        .copied()
        .find(|t| t.name == name)
        .ok_or_else(|| Error::config("task", name, format!("one of {}", known())))
}
