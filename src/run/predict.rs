//! What a model says of rows: what `trimtab predict` does.

use std::path::Path;

use serde_json::{Map, Value};

use crate::backend;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::peft::{self, Frozen, Method};
use crate::run::evaluate;
use crate::run::job::Job;

/// What is asked about.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The rows of a file.
    File(&'a Path),
    /// One row of these fields.
    Row(Map<String, Value>),
}

/// What there is to say besides the predictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The task.
    pub about: String,
    /// Rows that were cut to the longest length.
    pub cut: usize,
}

/// Gives a JSON object a row to `on`, in the rows' order, until that returns false. Of the settings, those about the
/// model, the adapter, the task, lengths, storage and device count.
pub fn predict(config: &RunConfig, input: &Input, on: &mut dyn FnMut(&Value) -> Result<bool>) -> Result<Report> {
    let data = match input {
        Input::File(path) => Some(*path),
        Input::Row(_) => None,
    };
    let job = Job::open(config, data)?;
    if job.task.score()?.is_none() {
        let expected = "a task with labels, or `trimtab generate` for text";
        return Err(Error::config("--task", job.task.def().name, expected));
    }
    let rows = match input {
        Input::File(path) => job.rows(config, path, true)?,
        Input::Row(fields) => job.row(config, fields.clone())?,
    };
    let adapter = config.adapter.as_deref().map(peft::open).transpose()?;
    let method: &dyn Method = match &adapter {
        Some(adapter) => &*adapter.method,
        None => &Frozen,
    };
    let backend = backend::open(&config.device)?;
    let mut evaluator = evaluate::open(config, &job, method, adapter.as_ref(), backend, true)?;
    evaluate::over(&mut evaluator, &rows, config.batch_size, &mut |row, computed| {
        on(&job.task.predict(row, computed)?)
    })?;
    Ok(Report { about: job.about(), cut: rows.cut })
}
