//! What a run is about: the base model, the task, and its reading of rows.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::base::Base;
use crate::config::{Init, RunConfig};
use crate::data::reader::TooLong;
use crate::data::row::{Codec, Row};
use crate::data::source::Data;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Dataset, Example, INPUT_IDS, reader};
use crate::error::{Error, Result};
use crate::models::{self, Facts};
use crate::peft;
use crate::run::template;
use crate::tasks::labels::{self, Labels};
use crate::tasks::{self, Setup, Task, TaskDef};
use crate::weights::read_json;

/// A base model with a task.
pub struct Job {
    /// Its config.json is the task's: class, names of labels.
    pub base: Arc<Base>,
    /// Makes examples of rows, and predictions and scores of outputs.
    pub task: Box<dyn Task>,
    /// What the model's config.json says of it: sizes, kind, positions.
    pub facts: Facts,
}

impl Job {
    /// The model of the settings with its task, `adapted` by a method that has files of PEFT's. Names of labels may come
    /// from `data`.
    pub fn open(config: &RunConfig, adapted: bool, data: Option<&Data>) -> Result<Job> {
        let mut base = base(config)?;
        let task = task(config, &base.config)?;
        let known = match &config.adapter {
            Some(dir) => follow_labels(dir, task, &mut base.config)?,
            None => false,
        };
        let mut each = |on: &mut dyn FnMut(&Row) -> Result<bool>| data.map_or(Ok(()), |data| data.side(None).rows(on));
        labels::settle(task, &mut base.config, known, Some(&mut each))?;
        let facts = models::read(&base.config, config.max_seq_len)?.facts().clone();
        // The task's class may have the model in a module of its own.
        base.checkpoint = base.checkpoint.map(|checkpoint| checkpoint.under(facts.prefix));
        let setup = Setup {
            config: &base.config,
            facts: &facts,
            qa_padding: config.qa_padding,
            qa_token_types: config.qa_token_types || !adapted,
            stride: config.doc_stride,
            mask_share: config.mask_share,
        };
        let task = (task.make)(&setup)?;
        Ok(Job { base: Arc::new(base), task, facts })
    }

    /// A line about the task.
    pub fn about(&self) -> String {
        const SHOWN: usize = 8;
        let def = self.task.def();
        match Labels::of_config(&self.base.config) {
            Ok(Some(labels)) if !def.label.is_empty() => {
                let names: Vec<&str> = labels.names().iter().take(SHOWN).map(String::as_str).collect();
                let more = if labels.len() > SHOWN { ", …" } else { "" };
                let word = if labels.len() == 1 { "label" } else { "labels" };
                format!("task {}, {} {word}: {}{more}", def.name, labels.len(), names.join(", "))
            }
            _ => format!("task {}", def.name),
        }
    }

    /// Calls `f` with what makes examples of rows: by the tokenizer that is `known`, else the model's. Tokenized rows need none.
    fn with_codec<T>(
        &self,
        config: &RunConfig,
        how: How,
        known: Option<&Tokenizer>,
        f: impl FnOnce(&Codec) -> Result<T>,
    ) -> Result<T> {
        let own = if how.tokenized || known.is_some() { None } else { Some(self.base.tokenizer()?) };
        let tokenizer = own.as_ref().or(known).filter(|_| !how.tokenized);
        let encode = |text: &str| -> Result<Vec<u32>> {
            match tokenizer {
                Some(t) => t.encode(text, false),
                None => Err(Error::config("data", "text among tokenized examples", "input_ids in every line")),
            }
        };
        let chats = tokenizer.map(|tokenizer| template::chats(config, tokenizer)).transpose()?;
        f(&Codec {
            encode: &encode,
            tokenizer,
            chats: chats.as_ref(),
            bos: tokenizer.map(|t| t.begins_with()).transpose()?.flatten(),
            eos: tokenizer.and_then(|t| t.eos_ids().first().copied()),
            vocab: self.facts.vocab,
            max_len: config.max_seq_len,
            max_target_len: config.max_target_len,
            unlabelled: how.unlabelled,
            traced: how.traced,
        })
    }

    /// The examples of the training data, and what there is to say of it.
    pub fn examples(
        &self,
        config: &RunConfig,
        data: &Data,
        known: Option<&Tokenizer>,
    ) -> Result<(Dataset, Vec<String>)> {
        self.has_rows(data)?;
        let how = How { tokenized: data.is_tokenized(), unlabelled: false, traced: false };
        self.with_codec(config, how, known, |codec| {
            let make = |row: &Row, codec: &Codec| self.task.examples(row, codec);
            let (data, report) = reader::read(data, codec, &make, config.too_long)?;
            self.fits(&data)?;
            let of_tokenizer = codec.tokenizer.and_then(|t| t.warning()).map(String::from);
            Ok((data, of_tokenizer.into_iter().chain(report.warnings(config.max_seq_len)).collect()))
        })
    }

    /// Plain text has no labels.
    fn has_rows(&self, data: &Data) -> Result<()> {
        let task = self.task.def().name;
        match data.text().filter(|_| task != tasks::causal_lm::DEF.name) {
            Some(file) => Err(Error::file(&file.name, "plain text", format!("rows, for task {task}"))),
            None => Ok(()),
        }
    }

    /// The rows of `data` with their examples, and the windows of plain text; `unlabelled` if they are to be predicted.
    pub fn rows(&self, config: &RunConfig, data: &Data, unlabelled: bool, known: Option<&Tokenizer>) -> Result<Rows> {
        self.has_rows(data)?;
        let how = How { tokenized: data.is_tokenized(), unlabelled, traced: true };
        self.with_codec(config, how, known, |codec| {
            let mut rows = Rows::new(codec);
            data.rows(&mut |row| self.add(&mut rows, row, codec, config.too_long).map(|()| true))?;
            for file in data.files().iter().filter(|file| !file.format.has_rows()) {
                let path: Arc<Path> = file.name.as_path().into();
                reader::windows(file, data.split(), codec, &mut |line, window| {
                    let example = Example::labelled(window.to_vec(), window.to_vec());
                    rows.push(
                        Read { path: path.clone(), line, fields: Map::new(), cells: false, examples: 0..0 },
                        &[example],
                    )
                })?;
            }
            match (rows.rows.len(), rows.data.len()) {
                (0, _) => Err(nothing(data)),
                (n, 0) if !unlabelled => {
                    let found = format!("{n} rows, none with a token to learn in its first {}", config.max_seq_len);
                    Err(Error::file(data.to_string(), found, "at least one, whose loss can be computed"))
                }
                _ => self.fits(&rows.data).map(|()| rows),
            }
        })
    }

    /// One row of these fields; token ids need no tokenizer.
    pub fn row(&self, config: &RunConfig, fields: Map<String, Value>) -> Result<Rows> {
        let how = How { tokenized: fields.contains_key(INPUT_IDS), unlabelled: true, traced: true };
        self.with_codec(config, how, None, |codec| {
            let mut rows = Rows::new(codec);
            self.add(
                &mut rows,
                &Row { path: Path::new("--text"), line: 1, fields, cells: false },
                codec,
                TooLong::Cut,
            )?;
            self.fits(&rows.data)?;
            Ok(rows)
        })
    }

    /// Whether the model has positions for all of `data`.
    fn fits(&self, data: &Dataset) -> Result<()> {
        let (longest, most) = (data.longest(INPUT_IDS), self.facts.max_positions);
        if !self.facts.bounded || longest <= most {
            return Ok(());
        }
        let expected = format!("at most {most}, for which the model has positions: --max-seq-len {most} cuts them");
        Err(Error::config("data", format!("a sequence of {longest} tokens"), expected))
    }

    fn add(&self, rows: &mut Rows, row: &Row, codec: &Codec, too_long: TooLong) -> Result<()> {
        let made = self.task.examples(row, codec)?;
        if made.cut && too_long.drops(row, codec)? {
            rows.dropped += 1;
            return Ok(());
        }
        rows.cut += usize::from(made.cut);
        // The rows of a file are together.
        let path = rows.rows.last().map(|last| &last.path).filter(|path| &***path == row.path).cloned();
        let (path, fields) = (path.unwrap_or_else(|| row.path.into()), row.fields.clone());
        rows.push(Read { path, line: row.line, fields, cells: row.cells, examples: 0..0 }, &made.examples)
    }
}

/// The error of data without rows.
fn nothing(data: &Data) -> Error {
    let name = data.to_string();
    match data.split() {
        Some(split) => {
            let found = format!("no row that --split {} holds out", split.share);
            Error::file(name, found, "a larger share, more rows, or --eval-data")
        }
        None => Error::file(name, "no rows", "at least one"),
    }
}

/// How rows are read.
struct How {
    tokenized: bool,
    unlabelled: bool,
    traced: bool,
}

/// Rows that are kept, since predictions and scores are about them, and their examples.
pub struct Rows {
    /// In the order of the files.
    pub rows: Vec<Read>,
    /// The examples of all rows.
    pub data: Dataset,
    /// How many were cut to the longest length.
    pub cut: usize,
    /// How many were left out since they were longer.
    pub dropped: usize,
    /// What a user should know of the tokenizer.
    pub note: Option<String>,
}

/// A row and the numbers of its examples.
pub struct Read {
    path: Arc<Path>,
    line: usize,
    fields: Map<String, Value>,
    cells: bool,
    /// Numbers in [`Rows::data`]; empty if the row makes no example.
    pub examples: Range<usize>,
}

impl Rows {
    fn new(codec: &Codec) -> Rows {
        let note = codec.tokenizer.and_then(|t| t.warning()).map(String::from);
        Rows { rows: Vec::new(), data: Dataset::default(), cut: 0, dropped: 0, note }
    }

    /// Adds a row with its examples.
    fn push(&mut self, row: Read, examples: &[Example]) -> Result<()> {
        let first = self.data.len();
        examples.iter().try_for_each(|example| self.data.push(example))?;
        self.rows.push(Read { examples: first..self.data.len(), ..row });
        Ok(())
    }

    /// What there is to say of rows that are evaluated on.
    pub fn about(&self, config: &RunConfig) -> Option<String> {
        let Rows { rows, cut, dropped, .. } = self;
        let long = match (cut, dropped) {
            (0, 0) => String::new(),
            (0, n) => format!("; {n} of more than {} tokens were left out", config.max_seq_len),
            (n, _) => format!("; {n} were cut to {} tokens", config.max_seq_len),
        };
        (config.split.is_some() || !long.is_empty()).then(|| format!("{} rows to evaluate on{long}", rows.len()))
    }

    /// The examples of `batch` rows at a time.
    pub fn chunks(&self, batch: usize) -> impl Iterator<Item = Vec<usize>> {
        self.rows.chunks(batch.max(1)).map(|rows| rows.iter().flat_map(|row| row.examples.clone()).collect())
    }

    /// The row of a number.
    pub fn row(&self, i: usize) -> Row<'_> {
        let Read { path, line, fields, cells, .. } = &self.rows[i];
        Row { path, line: *line, fields: fields.clone(), cells: *cells }
    }
}

/// The model of the settings, or one of random weights of its structure.
pub fn base(config: &RunConfig) -> Result<Base> {
    let path = config.need("model")?;
    match config.init {
        Init::Pretrained => Base::open(path),
        Init::Random => Base::random(path),
    }
}

/// The task that is asked for, else the adapter's, else the one that the model's class is for.
pub fn task(config: &RunConfig, model: &Value) -> Result<&'static TaskDef> {
    if let Some(task) = config.task {
        return Ok(task.0);
    }
    let adapted = config.adapter.as_deref().map(peft::task_type).transpose()?.flatten();
    if let Some(task) = adapted.as_deref().and_then(tasks::of_peft) {
        return Ok(task);
    }
    let class = config.adapter.as_deref().map(peft::model_class).transpose()?.flatten();
    if let Some(task) = class.as_deref().and_then(tasks::of_architecture) {
        return Ok(task);
    }
    let classes = model.get("architectures").and_then(Value::as_array);
    let mut classes = classes.into_iter().flatten().filter_map(Value::as_str);
    if let Some(task) = classes.clone().find_map(tasks::of_architecture) {
        return Ok(task);
    }
    let encoder = models::read(model, 2)?.facts().encoder;
    match (encoder, classes.next()) {
        (false, _) => Ok(&tasks::causal_lm::DEF),
        (true, class) => {
            let names: Vec<&str> = tasks::TASKS.iter().map(|t| t.name).collect();
            let found = format!("nothing, and the model is a {}", class.unwrap_or("model without a head"));
            Err(Error::config("--task", found, names.join(", ")))
        }
    }
}

/// Takes over the labels of an adapter: those of the config.json or head_config.json beside it, else as many as its head has rows. Whether it
/// had any.
fn follow_labels(dir: &Path, task: &TaskDef, config: &mut Value) -> Result<bool> {
    let Some(config) = config.as_object_mut().filter(|_| !task.label.is_empty()) else { return Ok(false) };
    if let Some(Value::Object(own)) = read_json(&dir.join("config.json"))? {
        let keys = ["id2label", "label2id", "problem_type"];
        own.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).for_each(|(key, value)| {
            config.insert(key, value);
        });
        return Ok(true);
    }
    if let Some(names) = peft::adapterhub::id2label(dir)? {
        config.insert("id2label".into(), Value::Object(names));
        config.shift_remove("label2id");
        return Ok(true);
    }
    let tensors = peft::tensors(dir)?;
    let head = |name: &str| {
        let module = name.strip_suffix(".weight").unwrap_or_default();
        task.heads.iter().any(|head| module == *head || module.ends_with(&format!(".{head}")))
    };
    let rows = tensors.iter().find(|(name, _)| head(name)).and_then(|(_, t)| t.shape.first().copied());
    let Some(rows) = rows else { return Ok(false) };
    let known = Labels::of_config(&Value::Object(config.clone()))?.map_or(0, |labels| labels.len());
    if known != rows {
        config.shift_remove("id2label");
        config.shift_remove("label2id");
        config.insert("num_labels".into(), rows.into());
    }
    Ok(true)
}
