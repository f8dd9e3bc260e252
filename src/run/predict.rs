//! What a model says of rows: what `trimtab predict` does.

use serde_json::{Map, Value};

use crate::config::{RunConfig, Sources};
use crate::error::{Error, Result};
use crate::run::job::Job;
use crate::run::micro::Steps;
use crate::run::{data, evaluate, inference};

/// What is asked about.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The rows of files.
    Rows(&'a Sources),
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
    let (data, fields) = match input {
        Input::Rows(sources) => (Some(data::open(config, sources)?), Map::new()),
        Input::Row(fields) => (None, fields.clone()),
    };
    let job = Job::open(config, config.adapter.is_some(), data.as_ref())?;
    if job.task.score()?.is_none() {
        let expected = "a task with labels, or `trimtab generate` for text";
        return Err(Error::config("--task", job.task.def().name, expected));
    }
    let rows = match &data {
        Some(data) => job.rows(config, data, true, None)?,
        None => job.row(config, fields)?,
    };
    let steps = Steps::each(&rows.data, rows.chunks(config.batch_size));
    let (mut session, mut notes) = inference::open(config, &job.base, &*job.task, Some(&steps), |options| options)?;
    notes.extend(rows.note.clone());
    evaluate::over(&mut session, &rows, config.batch_size, &mut |row, computed| {
        on(&job.task.predict(row, computed)?)
    })?;
    Ok(Report { about: job.about(), cut: rows.cut, notes })
}
