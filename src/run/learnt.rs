//! The examples of a run, and how its steps take them.

use super::data::RunData;
use super::job::{Job, Rows};
use super::lengths::Lengths;
use super::lesson::Shown;
use super::micro::{Micro, Steps};
use crate::config::RunConfig;
use crate::data::sampler::Sampler;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Dataset, INPUT_IDS};
use crate::error::Result;
use crate::peft::Method;

/// What a run learns from, and what it is evaluated on.
pub struct Learnt {
    /// The examples.
    pub data: Dataset,
    /// What there is to say of the rows that they were made of.
    pub warnings: Vec<String>,
    /// What is evaluated on.
    pub rows: Option<Rows>,
    /// Hands out the examples of each step.
    pub sampler: Sampler,
}

impl Learnt {
    /// Reads all of it, by a tokenizer that is known already, else the model's.
    pub fn read(config: &RunConfig, job: &Job, given: &RunData, known: Option<&Tokenizer>) -> Result<Learnt> {
        let (data, warnings) = job.examples(config, &given.train, known)?;
        let rows = given.eval.as_ref().map(|data| job.rows(config, data, false, known)).transpose()?;
        let sampler = Sampler::mixed(data.len(), data.parts(), config.seed, config.shuffle)?;
        Ok(Learnt { data, warnings, rows, sampler })
    }

    /// The micro-batches that they fill.
    pub fn micro(&self, config: &RunConfig, job: &Job, method: &dyn Method) -> Micro {
        let steps = Steps::of(config, &self.data, self.rows.as_ref().map(|rows| &rows.data), &self.sampler);
        Micro::fitted(config, &*job.task, &[method], &steps)
    }

    /// Tokens of each example.
    pub fn lengths(&self) -> Lengths {
        Lengths::of((0..self.data.len()).map(|i| self.data.len_of(i, INPUT_IDS)))
    }

    /// Tokens that are learnt in an epoch; none if the task's labels are not of tokens.
    pub fn trained(&self, job: &Job) -> usize {
        (0..self.data.len()).map(|i| job.task.lesson(&self.data.example(i)).trained()).sum()
    }

    /// The text of an example.
    pub fn shown(&self, job: &Job, example: usize, tokenizer: Option<&Tokenizer>) -> Result<Shown> {
        Shown::of(job.task.lesson(&self.data.example(example)), tokenizer)
    }

    /// What there is to say of the data, besides what it is.
    pub fn warnings(&self, config: &RunConfig) -> Vec<String> {
        let rows = self.rows.as_ref().and_then(|rows| rows.about(config));
        self.warnings.iter().cloned().chain(rows).collect()
    }

    /// Steps that the settings ask for. Without a word of them, little data is seen several times: docs/recipes.md.
    pub fn steps(&self, config: &RunConfig) -> u64 {
        const ENOUGH: u64 = 100;
        const EPOCHS: u64 = 10;
        let epoch = self.sampler.steps_per_epoch(config.batch_size) as u64;
        let epochs = config.epochs.unwrap_or_else(|| ENOUGH.div_ceil(epoch.max(1)).clamp(1, EPOCHS));
        config.steps.unwrap_or_else(|| epochs.saturating_mul(epoch))
    }
}
