//! Tasks: how a row becomes an example, what the loss is, and what a model's outputs mean. One file a task.

pub mod causal_lm;
pub mod labels;
pub mod lesson;
pub mod masked_lm;
pub mod metrics;
pub mod question_answering;
pub mod seq2seq;
pub mod sequence_classification;
pub mod token_classification;

use serde_json::Value;

pub use crate::data::notes::Made;
use crate::data::row::{Codec, Row};
use crate::data::{DECODER_INPUT_IDS, Encoded, Example, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::{Facts, LmHead, Model};
use crate::nn::{Axis, IGNORE, Layout, MAIN, Nn, Stream};
use lesson::Lesson;

/// The sizes of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of the stream of `input_ids`.
    pub tokens: usize,
    /// Tokens of the targets in encoder-decoders.
    pub targets: usize,
    /// The most sequences.
    pub sequences: usize,
}

impl Shape {
    /// Micro-batches of `tokens` tokens, with as many sequences as there is room for.
    pub fn of(tokens: usize) -> Shape {
        Shape { tokens, targets: tokens, sequences: tokens }
    }
}

/// What a task computes from a model.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The sum of the loss over the units of the micro-batch, times the input `inv`, F32[1].
    pub loss: Val,
    /// What predictions and metrics are made from (logits), where the task has them, and what its rows are.
    pub output: Option<(Axis, Val)>,
}

/// What a task is made from.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The model's config.json: names of labels, special tokens.
    pub config: &'a Value,
    /// What the model says of itself: sizes, special tokens, names.
    pub facts: &'a Facts,
    /// Question answering: rows are padded to the longest of the batch, and padding joins the softmax over positions.
    pub qa_padding: bool,
    /// Question answering: the model is given token types.
    pub qa_token_types: bool,
    /// Question answering: tokens that a window of a long text shares with the one before.
    pub stride: usize,
    /// Masked LM: share of a text's tokens that are to be predicted.
    pub mask_share: f64,
}

/// An example of a row, and what the model computed of it: the rows of its output.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// What was given to the model.
    pub example: Example,
    /// Its rows of the output, one after the other, as in [`Outcome::output`].
    pub output: Vec<f32>,
}

/// Scores what was computed of rows.
pub trait Score {
    /// Adds a row and what was computed of its examples.
    fn add(&mut self, row: &Row, computed: &[Computed]) -> Result<()>;

    /// The metrics.
    fn finish(&self) -> metrics::Values;
}

/// A task.
pub trait Task: Send + Sync {
    /// Its row of the table.
    fn def(&self) -> &'static TaskDef;

    /// The streams and the units of a micro-batch.
    fn layout(&self, shape: Shape) -> Layout;

    /// The examples of a row.
    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made>;

    /// The model, its head and the loss. `inv` is 1 / units of the step, F32[1].
    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome>;

    /// What an example teaches, for people to look at.
    fn lesson(&self, example: &Example) -> Lesson {
        Lesson::of_labels(example)
    }

    /// What scores predictions, if the task has more to say than its loss.
    fn score(&self) -> Result<Option<Box<dyn Score + '_>>> {
        Ok(None)
    }

    /// What the model says of a row, from what it computed of the row's examples.
    fn predict(&self, row: &Row, _computed: &[Computed]) -> Result<Value> {
        let task = self.def().name;
        Err(row.wrong(format!("{task}, which predicts no labels"), "a task with labels, or `trimtab generate`"))
    }
}

/// A row of the table of tasks.
pub struct TaskDef {
    /// Its name on the command line.
    pub name: &'static str,
    /// PEFT's `task_type`; none if it has no such type.
    pub peft: Option<&'static str>,
    /// The hub's `pipeline_tag`.
    pub pipeline: &'static str,
    /// How the names of transformers' model classes for it end, the one to write first.
    pub architectures: &'static [&'static str],
    /// The modules of its head, which every method trains and PEFT lists in modules_to_save. PEFT's names, of which a model
    /// has one.
    pub heads: &'static [&'static str],
    /// The fields of a row that may hold labels with names; none if labels have none.
    pub label: &'static [&'static str],
    /// Each token has a label, not each sequence.
    pub of_tokens: bool,
    /// Makes the task for a model; an error if its config does not fit.
    pub make: fn(&Setup) -> Result<Box<dyn Task>>,
}

/// Every task.
pub static TASKS: &[&TaskDef] = &[
    &causal_lm::DEF,
    &sequence_classification::DEF,
    &token_classification::DEF,
    &question_answering::DEF,
    &masked_lm::DEF,
    &seq2seq::DEF,
];

/// The task whose model class `architecture` is.
pub fn of_architecture(architecture: &str) -> Option<&'static TaskDef> {
    TASKS.iter().copied().find(|t| t.architectures.iter().any(|a| architecture.ends_with(a)))
}

/// The task of a PEFT adapter's `task_type`.
pub fn of_peft(task_type: &str) -> Option<&'static TaskDef> {
    TASKS.iter().copied().find(|t| t.peft == Some(task_type))
}

/// The task of a name; underscores are read as hyphens.
pub fn named(name: &str) -> Result<&'static TaskDef> {
    let known = || TASKS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
    let wanted = name.replace('_', "-");
    TASKS
        .iter()
        .copied()
        .find(|t| t.name == wanted)
        .ok_or_else(|| Error::config("task", name, format!("one of {}", known())))
}

/// `architecture` as the class of `task`: `LlamaForCausalLM` becomes `LlamaForSequenceClassification`.
pub fn architecture(architecture: &str, task: &TaskDef) -> Option<String> {
    let ending =
        TASKS.iter().flat_map(|t| t.architectures).filter(|a| architecture.ends_with(**a)).max_by_key(|a| a.len());
    let family = architecture.strip_suffix(ending.copied().unwrap_or("Model"))?;
    task.architectures.first().map(|ending| format!("{family}{ending}"))
}

// ---- parts that tasks share

/// One stream of `input_ids`.
fn one_stream(shape: Shape) -> Layout {
    let stream = Stream { tokens: shape.tokens, column: INPUT_IDS, lead: 0, prefix: 0 };
    Layout::new(vec![stream], shape.sequences)
}

/// The same; in an encoder-decoder the decoder reads it as well, shifted right from its start token.
fn streams(shape: Shape, decoder_start: Option<i32>) -> Layout {
    let mut layout = one_stream(shape);
    if decoder_start.is_some() {
        let decoder = Stream { tokens: shape.tokens, column: DECODER_INPUT_IDS, lead: 0, prefix: 0 };
        layout.streams.insert(MAIN.0, decoder);
    }
    layout
}

/// Gives an example what a decoder reads of it, if there is one.
fn decoded(example: &mut Example, decoder_start: Option<i32>) {
    let Some(start) = decoder_start else { return };
    let ids = example.ints(INPUT_IDS);
    let shifted = [start].into_iter().chain(ids.iter().copied()).take(ids.len()).collect();
    *example.ints_mut(DECODER_INPUT_IDS) = shifted;
}

/// Logits as losses take them.
fn in_f32(nn: &mut Nn, logits: Val) -> Result<Val> {
    nn.g.cast(logits, DType::F32)
}

/// The loss of a head over the vocabulary: one op that keeps no logits, unless the head has a bias.
fn vocabulary_loss(nn: &mut Nn, head: LmHead, labels: Val, inv: Val) -> Result<Val> {
    nn.g.site = "loss".into();
    let LmHead { x, w, bias } = head;
    if bias.is_none() {
        return nn.g.linear_cross_entropy(x, w, labels, inv);
    }
    let logits = nn.g.linear(x, w, bias, None)?;
    let logits = in_f32(nn, logits)?;
    nn.g.cross_entropy(logits, labels, inv)
}

/// The columns of a tokenized row that any task has: ids, and token types where the row has them; cut to the longest
/// length, and whether anything was cut.
fn tokens(row: &Row, codec: &Codec) -> Result<(Example, bool)> {
    let mut ids = codec.ids(row, INPUT_IDS)?.unwrap_or_default();
    let all = ids.len();
    let mut example = Example::default();
    if let Some(mut types) = row.get::<Vec<i32>>(TOKEN_TYPE_IDS)? {
        if types.len() != all {
            let found = format!("{all} input_ids and {} token_type_ids", types.len());
            return Err(row.wrong(found, "as many token_type_ids as input_ids"));
        }
        types.truncate(codec.max_len);
        *example.ints_mut(TOKEN_TYPE_IDS) = types;
    }
    ids.truncate(codec.max_len);
    *example.ints_mut(INPUT_IDS) = ids;
    Ok((example, all > codec.max_len))
}

/// The columns of an encoded text that any task has.
fn encoded(row: &Row, codec: &Codec, from: &Encoded) -> Result<Example> {
    if from.is_empty() {
        return Err(row.wrong("a text of no tokens", "at least one"));
    }
    let mut example = Example::default();
    if from.type_ids.iter().any(|&kind| kind != 0) {
        *example.ints_mut(TOKEN_TYPE_IDS) = from.type_ids.iter().map(|&kind| kind as i32).collect();
    }
    *example.ints_mut(INPUT_IDS) = from.ids.iter().map(|&id| codec.token(row, id.into())).collect::<Result<_>>()?;
    Ok(example)
}

/// A text or a pair of texts with its special tokens, cut to the longest length, and whether anything was cut.
fn text(row: &Row, codec: &Codec, text: &str, pair: Option<&str>, most: usize) -> Result<(Encoded, bool)> {
    let tokenizer = codec.tokenizer(row)?;
    let kept = tokenizer.encode_pair(text, pair, most)?;
    // Few texts are as long as that; those are encoded again to tell whether they are longer.
    let cut = kept.len() >= most && tokenizer.encode_pair(text, pair, usize::MAX)?.len() > most;
    Ok((kept, cut))
}

/// A label of each token; virtual tokens have none.
fn token_labels(item: &crate::nn::Item, column: &str) -> Vec<i32> {
    std::iter::repeat_n(IGNORE, item.at(MAIN).lead).chain(item.ints(column)).collect()
}

/// The softmax of a row of logits.
fn softmax(row: &[f32]) -> Vec<f32> {
    let most = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let powers: Vec<f32> = row.iter().map(|x| (x - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}
