//! Evaluation of a model on rows: outputs, loss and metrics.

use std::collections::BTreeMap;

use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::pack::pack;
use crate::data::row::Row;
use crate::error::{Error, Result};
use crate::nn::{Build, Hooks, Source};
use crate::peft::{Method, Opened};
use crate::run::job::{Job, Rows};
use crate::session::activations;
use crate::tasks::metrics::Values;
use crate::tasks::{Computed, Shape};
use crate::train::eval::{Evaluation, Evaluator};
use crate::weights::load;

/// The sizes of a micro-batch.
pub fn shape(config: &RunConfig) -> Shape {
    let targets = config.max_target_len.saturating_mul((config.micro_tokens / config.max_seq_len).max(1));
    let sequences = config.batch_size.clamp(1, config.micro_tokens.max(1));
    Shape { tokens: config.micro_tokens, targets, sequences }
}

/// The task's model on a device, loaded. A head of random weights is an error if `trained` wants none.
pub fn open(
    config: &RunConfig,
    job: &Job,
    method: &dyn Method,
    adapter: Option<&Opened>,
    backend: Box<dyn Backend>,
    trained: bool,
) -> Result<Evaluator> {
    let model = job.base.model(config.max_seq_len)?;
    let storage = job.base.storage(config.quantized(), config.dtype.into());
    let act = activations(config.dtype.into(), backend.caps());
    let stack: &[&dyn Hooks] = &[method];
    let build = Build { stack, storage: &storage, act };
    let evaluation = Evaluation::new(&*model, &*job.task, build, shape(config))?;
    method.check(&evaluation.sites)?;
    if let (Some(adapter), Some(dir)) = (adapter, &config.adapter) {
        adapter.check(dir, &evaluation.trained())?;
    }
    let mut evaluator = Evaluator::new(backend, evaluation)?;
    let weights = evaluator.weights().to_vec();
    let base = job.base.checkpoint.as_ref();
    let tensors = adapter.map(|a| &a.tensors);
    if trained {
        let random = weights.iter().find(|w| match &w.source {
            Source::Base { tensor, fresh: Some(_), .. } => {
                base.is_none_or(|base| base.info(tensor).is_none()) && tensors.is_none_or(|t| !t.contains_key(&w.name))
            }
            _ => false,
        });
        if let Some(weight) = random {
            let found = format!("no {} in the model, nor in an adapter", weight.name);
            return Err(Error::file(&job.base.path, found, format!("a model that was trained for {}", job.about())));
        }
    }
    let from = load::Sources { base, std: job.facts.init_std, adapter: tensors, seed: config.seed };
    load::load(&mut evaluator.exec, &weights, &from, &mut |_, _| Ok(()))?;
    Ok(evaluator)
}

/// Computes `rows`, some at a time, and gives each with what was computed of its examples to `on`, which ends it by
/// returning false. Returns the sum of the loss and its units.
pub fn over(
    evaluator: &mut Evaluator,
    rows: &Rows,
    batch: usize,
    on: &mut dyn FnMut(&Row, &[Computed]) -> Result<bool>,
) -> Result<(f64, usize)> {
    let layout = evaluator.layout().clone();
    let (mut loss, mut units) = (0.0, 0);
    let all: Vec<usize> = (0..rows.rows.len()).collect();
    for chunk in all.chunks(batch.max(1)) {
        let examples: Vec<usize> = chunk.iter().flat_map(|&row| rows.rows[row].examples.clone()).collect();
        let mut outputs: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for micro in pack(&rows.data, &examples, &layout, false)? {
            let evaluated = evaluator.run(&micro)?;
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
    pub units: usize,
    /// The task's metrics; the perplexity where the loss is that of tokens.
    pub metrics: Values,
}

/// Loss and metrics on labelled rows.
pub fn evaluate(evaluator: &mut Evaluator, job: &Job, rows: &Rows, batch: usize) -> Result<Evaluated> {
    let mut score = job.task.score()?;
    let (loss, units) = over(evaluator, rows, batch, &mut |row, computed| {
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
