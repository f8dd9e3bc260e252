//! A label for each token, or for each word by its first token: `loss = Σ_t −ln softmax(z_t)[label_t] / tokens with a label`.
//!
//! Rows: `{"tokens", "ner_tags"}` (words and their tags), or `{"input_ids", "labels"}` (one for each token, −100: none). A
//! label is a name or its number.

use std::sync::Arc;

use serde_json::{Value, json};

use super::labels::{Labels, number};
use super::{
    Computed, Made, Outcome, Setup, Shape, Task, TaskDef, argmax, in_f32, one_stream, softmax, token_labels, tokens,
};
use crate::data::row::{Codec, Row};
use crate::data::{INPUT_IDS, LABELS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Axis, Field, IGNORE, Layout, MAIN, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "token-classification",
    peft: Some("TOKEN_CLS"),
    architectures: &["ForTokenClassification"],
    heads: &["classifier", "score"],
    label: &[LABELS, TAGS],
    of_tokens: true,
    make: |setup| Ok(Box::new(TokenClassification::new(setup)?)),
};

const TAGS: &str = "ner_tags";

/// See the module.
pub struct TokenClassification {
    labels: Labels,
}

impl TokenClassification {
    fn new(setup: &Setup) -> Result<TokenClassification> {
        match Labels::of_config(setup.config)? {
            Some(labels) => Ok(TokenClassification { labels }),
            None => Err(Error::config("config.json: id2label", "nothing", "names of the labels")),
        }
    }

    /// The numbers of a list of labels.
    fn ids(&self, row: &Row, labels: &[Value]) -> Result<Vec<i32>> {
        let none = |label: &Value| label.is_null() || number(label) == Some(f64::from(IGNORE));
        labels.iter().map(|label| if none(label) { Ok(IGNORE) } else { self.labels.id(row, label) }).collect()
    }
}

impl Task for TokenClassification {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = one_stream(shape);
        layout.weight = Arc::new(|item| item.ints(LABELS).iter().filter(|&&label| label != IGNORE).count());
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        if !row.has(INPUT_IDS) {
            return Err(row.wrong(format!("the fields {}", row.names()), ROWS));
        }
        let (mut example, cut) = tokens(row, codec)?;
        let count = row.get::<Vec<Value>>(INPUT_IDS)?.map_or(0, |ids| ids.len());
        let mut labels = match row.get::<Vec<Value>>(LABELS)? {
            Some(labels) if labels.len() != count => {
                let found = format!("{count} input_ids and {} labels", labels.len());
                return Err(row.wrong(found, "as many labels as input_ids"));
            }
            Some(labels) => self.ids(row, &labels)?,
            None if codec.unlabelled => vec![IGNORE; count],
            None => return Err(row.wrong(format!("the fields {}", row.names()), LABELS)),
        };
        labels.truncate(codec.max_len);
        let trains = codec.unlabelled || labels.iter().any(|&label| label != IGNORE);
        *example.ints_mut(LABELS) = labels;
        Ok(Made { examples: if trains { vec![example] } else { Vec::new() }, cut })
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = nn.input(Field::ints(LABELS, Axis::Token(MAIN), IGNORE, |item| token_labels(item, LABELS)))?;
        let hidden = model.hidden(nn)?;
        let logits = model.tag(nn, hidden, self.labels.len())?;
        let logits = in_f32(nn, logits)?;
        nn.g.site = "loss".into();
        let loss = nn.g.cross_entropy(logits, labels, inv)?;
        Ok(Outcome { loss, output: Some((Axis::Token(MAIN), logits)) })
    }

    fn predict(&self, _row: &Row, computed: &[Computed]) -> Result<Value> {
        let rows = computed.iter().flat_map(|c| c.output.chunks_exact(self.labels.len().max(1)));
        let (labels, scores): (Vec<&str>, Vec<f32>) = rows
            .map(|logits| {
                let best = argmax(logits);
                (self.labels.name(best), softmax(logits)[best])
            })
            .unzip();
        Ok(json!({"labels": labels, "scores": scores}))
    }
}

/// The rows of the task.
const ROWS: &str = "tokens and ner_tags, or input_ids and labels";
