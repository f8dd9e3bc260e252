//! Evaluation of a model on rows: outputs, loss and metrics.

use std::collections::BTreeMap;

use crate::data::pack::pack_sized;
use crate::data::row::Row;
use crate::error::Result;
use crate::run::job::{Job, Rows};
use crate::session::Session;
use crate::tasks::Computed;
use crate::tasks::metrics::Values;

/// Computes `rows`, some at a time, and gives each with what was computed of its examples to `on`, which ends it by
/// returning false. Returns the sum of the loss and its units.
pub fn over(
    session: &mut Session,
    rows: &Rows,
    batch: usize,
    on: &mut dyn FnMut(&Row, &[Computed]) -> Result<bool>,
) -> Result<(f64, usize)> {
    let layouts = session.layouts().to_vec();
    let (mut loss, mut units) = (0.0, 0);
    let all: Vec<usize> = (0..rows.rows.len()).collect();
    for (chunk, examples) in all.chunks(batch.max(1)).zip(rows.chunks(batch)) {
        let mut outputs: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for micro in pack_sized(&rows.data, &examples, &layouts, false)? {
            let evaluated = session.eval(&micro)?;
            loss += evaluated.loss;
            units += evaluated.units;
            outputs.extend(evaluated.outputs);
        }
        for &row in chunk {
            let one =
                |i: usize| Computed { example: rows.data.example(i), output: outputs.remove(&i).unwrap_or_default() };
            let computed: Vec<Computed> = rows.rows[row].examples.clone().map(one).collect();
            if !on(&rows.row(row), &computed)? {
                return Ok((loss, units));
            }
        }
    }
    Ok((loss, units))
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// Mean over its units.
    pub loss: f64,
    /// What the loss is a mean over: trained tokens, rows or labels, as the task has it.
    pub units: usize,
    /// The task's metrics; the perplexity where the loss is that of tokens.
    pub metrics: Values,
}

/// Loss and metrics on labelled rows.
pub fn evaluate(session: &mut Session, job: &Job, rows: &Rows, batch: usize) -> Result<Evaluated> {
    let mut score = job.task.score()?;
    let (loss, units) = over(session, rows, batch, &mut |row, computed| {
        if let Some(score) = score.as_mut().filter(|_| !computed.is_empty()) {
            score.add(row, computed)?;
        }
        Ok(true)
    })?;
    let loss = loss / units as f64;
    let metrics = match score {
        Some(score) => score.finish(),
        None => vec![("perplexity", loss.exp())],
    };
    Ok(Evaluated { loss, units, metrics })
}
