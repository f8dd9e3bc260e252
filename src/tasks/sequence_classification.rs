//! Classification of whole sequences: one label of several, any of several, or numbers.
//!
//! * One label: `loss = Σ_s −ln softmax(z_s)[label_s] / sequences`.
//! * Any of several: binary cross entropy of `sigmoid(z)`, a mean over sequences × labels.
//! * Regression: `(z − label)²`, a mean over sequences × labels.
//!
//! Rows: `{"text", "label"}`, `{"text", "text_pair", "label"}`, or `{"input_ids", "label"}` (and `token_type_ids`). A label
//! is a name or its number; for any of several a list of 0 and 1, one for each label, or a list of names; for regression a
//! number, or a list of them.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::labels::{Labels, Problem, number};
use super::lesson::{Lesson, Passage};
use super::metrics::{Classification, MultiLabel, Regression, Values, argmax};
use super::{
    Computed, Made, Outcome, Score, Setup, Shape, Task, TaskDef, decoded, encoded, in_f32, softmax, streams, text,
    tokens,
};
use crate::data::row::{Codec, Row};
use crate::data::values::shown;
use crate::data::{Example, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::inputs::Column;
use crate::nn::{Axis, Field, IGNORE, Layout, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "sequence-classification",
    peft: Some("SEQ_CLS"),
    pipeline: "text-classification",
    architectures: &["ForSequenceClassification"],
    heads: &["classifier", "score"],
    label: &[LABEL],
    of_tokens: false,
    make: |setup| Ok(Box::new(SequenceClassification::new(setup)?)),
};

const LABEL: &str = "label";
const TEXT: &str = "text";

/// See the module.
pub struct SequenceClassification {
    labels: Labels,
    problem: Problem,
    /// Decoders read the last token that is not this one, wherever it is from; what follows is left out.
    pad: Option<i32>,
    decoder_start: Option<i32>,
}

impl SequenceClassification {
    fn new(setup: &Setup) -> Result<SequenceClassification> {
        let Some(labels) = Labels::of_config(setup.config)? else {
            return Err(Error::config("config.json: id2label", "nothing", "names of the labels"));
        };
        let problem = match (Problem::of_config(setup.config)?, labels.len()) {
            (Some(problem), _) => problem,
            (None, 1) => Problem::Regression,
            (None, _) => Problem::Single,
        };
        let decoder_start = setup.facts.decoder_start;
        let decoder = !setup.facts.encoder && decoder_start.is_none();
        let pad = setup.config.get("pad_token_id").and_then(Value::as_i64).filter(|_| decoder);
        Ok(SequenceClassification { labels, problem, pad: pad.map(|id| id as i32), decoder_start })
    }

    /// The label column of a row.
    fn label(&self, row: &Row, label: &Value) -> Result<Column> {
        let numbers = |values: &[Value]| -> Option<Vec<f32>> {
            let numbers: Option<Vec<f32>> = values.iter().map(|v| number(v).map(|x| x as f32)).collect();
            numbers.filter(|x| x.len() == self.labels.len())
        };
        match (self.problem, label) {
            (Problem::Single, _) => Ok(Column::Ints(vec![self.labels.id(row, label)?])),
            (Problem::Multi, Value::Array(values)) => {
                let flags = numbers(values).filter(|x| x.iter().all(|x| (0.0..=1.0).contains(x)));
                if let Some(flags) = flags.filter(|_| !values.iter().any(Value::is_string)) {
                    return Ok(Column::Floats(flags));
                }
                if values.iter().any(|v| !v.is_string()) {
                    let expected = format!("{} numbers from 0 to 1, or a list of names", self.labels.len());
                    return Err(row.wrong(format!("label {}", shown(label)), expected));
                }
                let mut flags = vec![0.0; self.labels.len()];
                for name in values {
                    flags[self.labels.id(row, name)? as usize] = 1.0;
                }
                Ok(Column::Floats(flags))
            }
            (Problem::Regression, _) => {
                let values = label.as_array().map_or(std::slice::from_ref(label), Vec::as_slice);
                let found = numbers(values).filter(|x| x.iter().all(|x| x.is_finite()));
                let expected = || match self.labels.len() {
                    1 => "a number".to_string(),
                    n => format!("a list of {n} numbers"),
                };
                found.map(Column::Floats).ok_or_else(|| row.wrong(format!("label {}", shown(label)), expected()))
            }
            (Problem::Multi, _) => Err(row.wrong(format!("label {}", shown(label)), "a list: any of several labels")),
        }
    }
}

impl Task for SequenceClassification {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = streams(shape, self.decoder_start);
        let units = match self.problem {
            Problem::Single => 1,
            Problem::Multi | Problem::Regression => self.labels.len(),
        };
        layout.weight = Arc::new(move |_| units);
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        let attended = row.attended(&[TOKEN_TYPE_IDS])?;
        let row = attended.as_ref().unwrap_or(row);
        let (mut example, cut) = match (row.has(INPUT_IDS), row.has(TEXT)) {
            (true, false) => tokens(row, codec)?,
            (false, true) => {
                let (first, pair): (String, Option<String>) = (row.need(TEXT)?, row.get("text_pair")?);
                let (kept, cut) = text(row, codec, &first, pair.as_deref(), codec.max_len)?;
                (encoded(row, codec, &kept)?, cut)
            }
            _ => return Err(row.unlike(ROWS)),
        };
        if let Some(pad) = self.pad {
            let ids = example.ints(INPUT_IDS);
            let kept = ids.iter().rposition(|&id| id != pad).map_or(1, |last| last + 1);
            example.ints_mut(INPUT_IDS).truncate(kept);
            if example.get(TOKEN_TYPE_IDS).is_some() {
                example.ints_mut(TOKEN_TYPE_IDS).truncate(kept);
            }
        }
        decoded(&mut example, self.decoder_start);
        match row.value(LABEL) {
            Some(label) => example.columns.push((LABEL, self.label(row, &label)?)),
            None if codec.unlabelled => {}
            None => return Err(row.lacks(LABEL)),
        }
        Ok(Made { examples: vec![example], cut, notes: Vec::new() })
    }

    fn lesson(&self, example: &Example) -> Lesson {
        let answer = match example.get(LABEL) {
            Some(Column::Ints(ids)) => ids.first().map(|&id| self.labels.name(id as usize).to_owned()),
            Some(Column::Floats(flags)) if self.problem == Problem::Multi => {
                let set = flags.iter().enumerate().filter(|(_, flag)| **flag != 0.0);
                let names: Vec<&str> = set.map(|(id, _)| self.labels.name(id)).collect();
                Some(if names.is_empty() { "none".into() } else { names.join(", ") })
            }
            Some(Column::Floats(numbers)) => Some(numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(", ")),
            None => None,
        };
        Lesson { passages: vec![Passage::read(example.ints(INPUT_IDS))], answer }
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let count = self.labels.len();
        let hidden = model.hidden(nn)?;
        let logits = model.classify(nn, hidden, count)?;
        let logits = in_f32(nn, logits)?;
        nn.g.site = "loss".into();
        let loss = match self.problem {
            Problem::Single => {
                let label = |item: &crate::nn::Item| match item.ints(LABEL)[..] {
                    [label] => vec![label],
                    _ => vec![IGNORE],
                };
                let labels = nn.input(Field::ints(LABEL, Axis::Sequence, IGNORE, label))?;
                nn.g.cross_entropy(logits, labels, inv)?
            }
            Problem::Multi | Problem::Regression => {
                let targets = Field::floats(LABEL, Axis::Sequence, count, move |item| {
                    let mut label = item.floats(LABEL);
                    label.resize(count, 0.0);
                    label
                });
                let targets = nn.input(targets)?;
                // 0 where there is no sequence, or no label.
                let weight = |item: &crate::nn::Item| vec![f32::from(!item.floats(LABEL).is_empty())];
                let weight = nn.input(Field::floats("label.weight", Axis::Sequence, 1, weight))?;
                let rows = nn.layout.sequences;
                let weight = nn.g.reshape(weight, &[rows])?;
                match self.problem {
                    Problem::Multi => nn.g.bce_with_logits(logits, targets, weight, inv)?,
                    _ => nn.g.mse(logits, targets, weight, inv)?,
                }
            }
        };
        Ok(Outcome { loss, output: Some((Axis::Sequence, logits)) })
    }

    fn score(&self) -> Result<Option<Box<dyn Score + '_>>> {
        let count = self.labels.len();
        Ok(Some(match self.problem {
            Problem::Single => Box::new(Single(Classification::new(count))),
            Problem::Multi => Box::new(Multi(MultiLabel::new(count))),
            Problem::Regression => Box::new(Numbers(Regression::new())),
        }))
    }

    fn predict(&self, _row: &Row, computed: &[Computed]) -> Result<Value> {
        let logits = computed.first().map_or(&[][..], |c| &c.output);
        let scores = |values: &[f32]| -> Map<String, Value> {
            values.iter().enumerate().map(|(i, &x)| (self.labels.name(i).to_owned(), x.into())).collect()
        };
        Ok(match self.problem {
            Problem::Single => {
                let best = argmax(logits);
                json!({"label": self.labels.name(best), "scores": scores(&softmax(logits))})
            }
            Problem::Multi => {
                let chances: Vec<f32> = logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
                let yes = |&(_, &z): &(usize, &f32)| z > 0.0;
                let labels: Vec<&str> =
                    logits.iter().enumerate().filter(yes).map(|(i, _)| self.labels.name(i)).collect();
                json!({"labels": labels, "scores": scores(&chances)})
            }
            Problem::Regression if self.labels.len() == 1 => json!({"value": logits.first()}),
            Problem::Regression => json!({"values": scores(logits)}),
        })
    }
}

struct Single(Classification);

impl Score for Single {
    fn add(&mut self, _row: &Row, computed: &[Computed]) -> Result<()> {
        for Computed { example, output } in computed {
            let labels: Vec<usize> = example.ints(LABEL).iter().map(|&label| label as usize).collect();
            self.0.add(&[argmax(output)], &labels)?;
        }
        Ok(())
    }

    fn finish(&self) -> Values {
        self.0.finish()
    }
}

struct Multi(MultiLabel);

impl Score for Multi {
    fn add(&mut self, _row: &Row, computed: &[Computed]) -> Result<()> {
        computed.iter().try_for_each(|c| self.0.add(&c.output, c.example.floats(LABEL)))
    }

    fn finish(&self) -> Values {
        self.0.finish()
    }
}

struct Numbers(Regression);

impl Score for Numbers {
    fn add(&mut self, _row: &Row, computed: &[Computed]) -> Result<()> {
        computed.iter().try_for_each(|c| self.0.add(&c.output, c.example.floats(LABEL)))
    }

    fn finish(&self) -> Values {
        self.0.finish()
    }
}

/// The rows of the task.
const ROWS: &str = "text (with or without text_pair) or input_ids, and a label";
