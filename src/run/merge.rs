//! A model with an adapter merged into its weights: what `trimtab merge` does.

use serde_json::{Map, Value, json};

use super::job::Job;
use super::micro::Micro;
use super::options::options;
use super::output::{self, Output};
use super::{evaluate, inference, template};
use crate::backend;
use crate::base::Base;
use crate::config::{Device, RunConfig, Task};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::generate::Room;
use crate::memory::Toggle;
use crate::peft::{self, Frozen, Method};
use crate::session::{Merged, Options, Planned, Session};
use crate::tasks::Computed;
use crate::weights::Storage;

/// How a merged model is written.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// What weights are written in; else what the base model's are in.
    pub dtype: Option<DType>,
    /// The most bytes of a file.
    pub shard: u64,
    /// Whether what the two compute is compared.
    pub check: bool,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of tensors, and of their values.
    pub tensors: usize,
    /// Values of all tensors.
    pub parameters: u64,
    /// What they are written in.
    pub dtype: DType,
    /// Number of files of weights.
    pub files: usize,
    /// What the model and its adapter compute against the merged model; none if it was not asked for, or a task has no outputs.
    pub difference: Option<Difference>,
    /// What there is to say of the model.
    pub notes: Vec<String>,
}

/// How far outputs are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Rows of outputs: tokens, or whole texts.
    pub rows: usize,
    /// Rows whose largest output is the same one.
    pub same: usize,
    /// Of any output.
    pub largest: f64,
    /// Largest absolute value of an output.
    pub of: f64,
}

/// Longest text of the comparison.
const TOKENS: usize = 16;
const TEXT: &str = "The rain in Spain stays mainly in the plain, and nobody knows why.";

/// The model of the settings, with their adapter if there is one, merged; and its job.
pub fn open(config: &RunConfig) -> Result<(Merged, Job)> {
    let job = Job::open(config, config.adapter.is_some(), None)?;
    let (method, tensors): (Box<dyn Method>, _) = match &config.adapter {
        Some(dir) => {
            let opened = peft::open(dir)?;
            (opened.method, Some((dir, opened.tensors)))
        }
        None => (Box::new(Frozen), None),
    };
    let options = Options { train: false, evaluate: true, ..small(config) };
    let planned = Planned::of(&job.base, vec![method], &*job.task, options, backend::open(&Device::Null)?)?;
    if let Some((dir, tensors)) = &tensors {
        peft::check(dir, tensors, &planned.expected(tensors)?)?;
    }
    let merged = planned.merged(tensors.map(|(_, tensors)| tensors).unwrap_or_default())?;
    Ok((merged, job))
}

/// Options of sessions that compute a short text.
fn small(config: &RunConfig) -> Options {
    let (max_seq_len, micro_tokens) = (TOKENS, TOKENS);
    let (micro_targets, micro_sequences) = (Some(TOKENS), Some(1));
    Options {
        max_seq_len,
        micro_tokens,
        micro_targets,
        micro_sequences,
        step_tokens: None,
        spill: None,
        ..options(config, &Micro::fixed(config))
    }
}

/// What a merged model is written in where nothing else is asked for: the base model's type of floats, as most of its values
/// have it; of a quantized one what its config says it was, else f16.
pub fn usual_dtype(base: &Base) -> DType {
    let Some(checkpoint) = &base.checkpoint else { return DType::F32 };
    let mut sums: Vec<(Option<DType>, usize)> = Vec::new();
    for info in checkpoint.names().filter_map(|name| checkpoint.info(name)) {
        let dtype = match info.stored {
            Storage::As(dtype) if dtype.is_float() => Some(dtype),
            _ => None,
        };
        let n: usize = info.shape.iter().product();
        match sums.iter_mut().find(|(d, _)| *d == dtype) {
            Some((_, sum)) => *sum += n,
            None => sums.push((dtype, n)),
        }
    }
    if let Some((Some(dtype), _)) = sums.into_iter().max_by_key(|(_, n)| *n) {
        return dtype;
    }
    let said = ["dtype", "torch_dtype"].iter().find_map(|key| base.config.get(*key)?.as_str());
    match said {
        Some("bfloat16") => DType::BF16,
        Some("float32") => DType::F32,
        _ => DType::F16,
    }
}

/// Writes the model of the settings with their adapter merged to the folder `out`. Of the settings, those about the model, the
/// adapter and the task count, and device and memory for the comparison.
pub fn merge(config: &RunConfig, how: &How) -> Result<Report> {
    let (model, adapter, out) = (config.need("model")?, config.need("adapter")?, config.need("out")?);
    let (mut merged, job) = open(config)?;
    let dtype = how.dtype.unwrap_or_else(|| usual_dtype(&job.base));
    let output = Output::folder(out, &[("model", model), ("adapter", adapter)])?;
    let values = |t: &(String, Vec<usize>)| t.1.iter().product::<usize>();
    let parameters: usize = merged.tensors().iter().map(values).sum();
    output::has_room(output.dir(), dtype.bytes(parameters) as u64)?;
    let files = merged.save(output.dir(), dtype, how.shard)?;
    template::write(template::kept_of(config, &job.base)?.as_deref(), output.dir())?;
    let (tensors, mut notes) = (merged.tensors().len(), job.base.notes.clone());
    drop(merged);
    let mut difference = None;
    if how.check {
        let mut after = config.clone();
        (after.model, after.adapter) = (Some(output.dir().into()), None);
        after.task = Some(Task(job.task.def()));
        drop(job);
        difference = compare(config, &after)?;
        if difference.is_none() {
            notes.push("nothing was compared: the task has no outputs that could be".into());
        }
    }
    output.finish()?;
    Ok(Report { tensors, parameters: parameters as u64, dtype, files, difference, notes })
}

/// How far apart the outputs of two models are, each with the adapter of its settings, if there is one, on a short text; none
/// if their task has none. An output that is not finite is an error.
pub fn compare(one: &RunConfig, other: &RunConfig) -> Result<Option<Difference>> {
    let outputs = |config: &RunConfig| computed(config, &Job::open(config, config.adapter.is_some(), None)?);
    let Some((one, others)) = outputs(one)?.zip(outputs(other)?) else { return Ok(None) };
    let best = |row: &[f32]| (0..row.len()).reduce(|a, b| if row[b] > row[a] { b } else { a });
    let mut difference = Difference { rows: one.len(), same: 0, largest: 0.0, of: 0.0 };
    for (x, y) in one.iter().zip(&others) {
        if let Some(x) = x.iter().chain(y).find(|x| !x.is_finite()) {
            return Err(Error::file(other.need("model")?, format!("an output of {x}"), "finite outputs"));
        }
        difference.same += usize::from(best(x) == best(y));
        for (x, y) in x.iter().zip(y) {
            difference.largest = difference.largest.max((f64::from(*x) - f64::from(*y)).abs());
            difference.of = difference.of.max(f64::from(x.abs()));
        }
    }
    Ok(Some(difference))
}

/// Rows of logits that the model of the settings computes of a short text; none if its task has none. Weights are read from
/// their files as they are needed, so that memory does not grow with the model.
fn computed(config: &RunConfig, job: &Job) -> Result<Option<Vec<Vec<f32>>>> {
    let mut options = Options { quantize: None, dtype: DType::F32, ..small(config) };
    if options.memory.budget.is_none() {
        options.memory.stream = Toggle::On;
    }
    let open = |options: Options| -> Result<Session> {
        inference::open(config, &job.base, &*job.task, None, |_| options).map(|(session, _)| session)
    };
    let score = job.task.score()?.is_some();
    if job.facts.encoder && !score {
        return Ok(None);
    }
    if !score {
        let ids = some_ids(job);
        // In encoder-decoders the text is the source, and its tokens are the target after the one that begins it.
        let room = Room { tokens: ids.len() + 1, source: ids.len(), chunk: 1 };
        let options = Options { train: false, evaluate: false, generate: Some(room), ..options };
        return open(options)?.logits(&ids).map(Some);
    }
    let fields = json!({"text": TEXT, "question": TEXT, "context": TEXT, "source": TEXT, "tokens": ["The", "rain"]});
    let mut config = config.clone();
    (config.max_seq_len, config.doc_stride) = (TOKENS, 0);
    let Value::Object(fields) = fields else { return Ok(None) };
    // Without a tokenizer there are no rows of text.
    let ids = || Map::from_iter([("input_ids".to_string(), json!(some_ids(job)))]);
    let Ok(rows) = job.row(&config, fields).or_else(|_| job.row(&config, ids())) else { return Ok(None) };
    let mut session = open(Options { train: false, evaluate: true, ..options })?;
    let mut outputs = Vec::new();
    evaluate::over(&mut session, &rows, 1, &mut |_, computed: &[Computed]| {
        outputs.extend(computed.iter().map(|c| c.output.clone()));
        Ok(true)
    })?;
    Ok(Some(outputs))
}

/// Tokens of a text, or of the model's vocabulary where it has no tokenizer.
fn some_ids(job: &Job) -> Vec<u32> {
    let vocab = job.facts.vocab.max(1) as u32;
    let mut ids = job.base.tokenizer().and_then(|t| t.encode(TEXT, true)).unwrap_or_default();
    ids.retain(|&id| id < vocab);
    if ids.is_empty() {
        ids = (0..8).map(|i| (7919 * i + 3) % vocab).collect();
    }
    ids.truncate(TOKENS / 2);
    ids
}
