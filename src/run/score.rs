//! How well a model does on rows: what `trimtab eval` does.

use std::path::PathBuf;

use super::evaluate::{self, Evaluated};
use super::job::Job;
use super::micro::Steps;
use super::{data, inference};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::system::Instant;

/// What was found of a model, with its adapter or without.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The adapter.
    pub adapter: Option<PathBuf>,
    /// The task.
    pub task: &'static str,
    /// Rows of the data, and how many were cut to the longest length.
    pub rows: (usize, usize),
    /// Loss and metrics.
    pub found: Evaluated,
    /// Seconds that it took, loading not counted.
    pub seconds: f64,
    /// What there is to say of the model and its data.
    pub notes: Vec<String>,
}

/// Evaluates the model of the settings, with their adapter if there is one, on their data. Of the settings, those about the model,
/// the adapter, the task, lengths, storage, memory and device count.
pub fn score(config: &RunConfig) -> Result<Scored> {
    let data = data::open(config, config.need_data()?)?;
    let job = Job::open(config, config.adapter.is_some(), Some(&data))?;
    let rows = job.rows(config, &data, false, None)?;
    let steps = Steps::each(&rows.data, rows.chunks(config.batch_size));
    let (mut session, mut notes) = inference::open(config, &job.base, &*job.task, Some(&steps), |options| options)?;
    notes.extend(rows.note.clone());
    let start = Instant::now();
    let found = evaluate::evaluate(&mut session, &job, &rows, config.batch_size)?;
    if !found.loss.is_finite() {
        let of = config.adapter.as_deref().map_or_else(|| config.need("model"), Ok)?;
        return Err(Error::file(of, format!("a loss of {}", found.loss), "finite weights and losses"));
    }
    let seconds = start.elapsed().as_secs_f64();
    let rows = (rows.rows.len(), rows.cut);
    Ok(Scored { adapter: config.adapter.clone(), task: job.task.def().name, rows, found, seconds, notes })
}
