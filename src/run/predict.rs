//! What a model says of rows: what `trimtab predict` does.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::run::job::Job;
use crate::run::micro::Steps;
use crate::run::{evaluate, inference};

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
    /// What a user should know of the model and its tokenizer.
    pub notes: Vec<String>,
}

/// Gives a JSON object a row to `on`, in the rows' order, until that returns false. Of the settings, those about the
/// model, the adapter, the task, lengths, storage and device count.
pub fn predict(config: &RunConfig, input: &Input, on: &mut dyn FnMut(&Value) -> Result<bool>) -> Result<Report> {
    let data = match input {
        Input::File(path) => Some(*path),
        Input::Row(_) => None,
    };
    let job = Job::open(config, config.adapter.is_some(), data)?;
    if job.task.score()?.is_none() {
        let expected = "a task with labels, or `trimtab generate` for text";
        return Err(Error::config("--task", job.task.def().name, expected));
    }
    let rows = match input {
        Input::File(path) => job.rows(config, path, true)?,
        Input::Row(fields) => job.row(config, fields.clone())?,
    };
    let steps = Steps::each(&rows.data, rows.chunks(config.batch_size));
    let (mut session, mut notes) = inference::open(config, &job.base, &*job.task, Some(&steps), |options| options)?;
    notes.extend(rows.note.clone());
    evaluate::over(&mut session, &rows, config.batch_size, &mut |row, computed| {
        on(&job.task.predict(row, computed)?)
    })?;
    Ok(Report { about: job.about(), cut: rows.cut, notes })
}
