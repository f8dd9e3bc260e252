//! The examples that a run would learn, before it does: texts, lengths, how full micro-batches are, what is left out.
//! No weights are read.

use super::data::RunData;
use super::job::Job;
use super::learnt::Learnt;
use super::lengths::Lengths;
use super::lesson::Shown;
use super::micro;
use super::training;
use crate::config::RunConfig;
use crate::error::Result;

/// What is known of a run's data.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The data, the task, what was left out and why, and what else there is to say.
    pub about: Vec<String>,
    /// The first examples.
    pub examples: Vec<Shown>,
    /// Of all examples.
    pub lengths: Lengths,
    /// Tokens that are learnt in one epoch; none if the task's labels are not of tokens.
    pub trained: usize,
    /// Tokens of each size of micro-batches, the largest first.
    pub sizes: Vec<usize>,
    /// The share of micro-batches that is tokens, if sizes are chosen for the data.
    pub full: Option<f64>,
}

/// Reads the data of `config`; `shown` of its examples are given as texts.
pub fn preview(config: &RunConfig, shown: usize) -> Result<Preview> {
    config.need_data()?;
    let given = RunData::open(config)?;
    let job = Job::open(config, training::adapts(config)?, Some(&given.train))?;
    // Rows of tokens need none.
    let tokenizer = job.base.tokenizer().ok();
    let learnt = Learnt::read(config, &job, &given, tokenizer.as_ref())?;
    let micro = learnt.micro(config, &job, &*training::method(config, &job)?);
    let about = [job.about(), given.about()].into_iter().chain(learnt.warnings(config));
    let about = about.chain(micro.full.map(|full| micro::describe(&micro.sizes(), full))).collect();
    let some = 0..learnt.data.len().min(shown);
    Ok(Preview {
        about,
        examples: some.map(|i| learnt.shown(&job, i, tokenizer.as_ref())).collect::<Result<_>>()?,
        lengths: learnt.lengths(),
        trained: learnt.trained(&job),
        sizes: micro.sizes(),
        full: micro.full,
    })
}
