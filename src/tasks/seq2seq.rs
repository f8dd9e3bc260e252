//! Sequence to sequence: an encoder reads a source, a decoder writes a target.
//!
//! `loss = Σ_t −ln softmax(h_t Wᵀ)[label_t] / tokens with a label`, where the decoder reads the labels shifted right: a
//! start token, then every label but the last. The main stream is the decoder's, the other one the encoder's. Rows:
//! `{"source", "target"}`, or `{"input_ids", "labels"}` (−100: not trained).

use std::sync::Arc;

use serde_json::Value;

use super::lesson::{Lesson, Passage};
use super::{Made, Outcome, Setup, Shape, Task, TaskDef, text, token_labels, vocabulary_loss};
use crate::data::row::{Codec, Row};
use crate::data::{DECODER_INPUT_IDS, Example, INPUT_IDS, LABELS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Axis, Field, IGNORE, Layout, MAIN, Nn, Stream};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "seq2seq",
    peft: Some("SEQ_2_SEQ_LM"),
    pipeline: "text2text-generation",
    architectures: &["ForConditionalGeneration", "MTModel"],
    heads: &[],
    label: &[],
    of_tokens: false,
    make: |setup| Ok(Box::new(Seq2Seq::new(setup)?)),
};

/// See the module.
pub struct Seq2Seq {
    /// The decoder's first token; none: the last label (mBART's language).
    start: Option<i32>,
    pad: i32,
}

impl Seq2Seq {
    fn new(setup: &Setup) -> Result<Seq2Seq> {
        let id = |key: &str| setup.config.get(key).and_then(Value::as_i64).map(|id| id as i32);
        // mBART's config.json names a start, and transformers does not use it.
        let wraps = setup.config.get("model_type").and_then(Value::as_str) == Some("mbart");
        let start = setup.facts.decoder_start.or(id("decoder_start_token_id")).filter(|_| !wraps);
        if start.is_none() && !wraps {
            return Err(Error::config("config.json: decoder_start_token_id", "nothing", "the decoder's first token"));
        }
        Ok(Seq2Seq { start, pad: id("pad_token_id").unwrap_or(0) })
    }

    /// Labels shifted right.
    fn decoder_ids(&self, labels: &[i32]) -> Vec<i32> {
        let known = |&label: &i32| if label == IGNORE { self.pad } else { label };
        let last = labels.iter().rev().find(|&&label| label != IGNORE && label != self.pad);
        let first = self.start.or(last.copied()).unwrap_or(self.pad);
        let all = std::iter::once(first).chain(labels.iter().map(known));
        all.take(labels.len()).collect()
    }
}

impl Task for Seq2Seq {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let stream = |tokens, column| Stream { tokens, column, lead: 0, prefix: 0 };
        let streams = vec![stream(shape.targets, DECODER_INPUT_IDS), stream(shape.tokens, INPUT_IDS)];
        let mut layout = Layout::new(streams, shape.sequences);
        layout.weight = Arc::new(|item| item.ints(LABELS).iter().filter(|&&label| label != IGNORE).count());
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        let attended = row.attended(&[])?;
        let row = attended.as_ref().unwrap_or(row);
        let text_of = |name: &str, most: usize| -> Result<(Vec<i32>, bool)> {
            let (kept, cut) = text(row, codec, &row.need::<String>(name)?, None, most)?;
            Ok((kept.ids.iter().map(|&id| codec.token(row, id.into())).collect::<Result<_>>()?, cut))
        };
        let (mut ids, mut labels, was_cut) = match ["source", "target", INPUT_IDS, LABELS].map(|name| row.has(name)) {
            [true, true, false, false] => {
                let (source, cut) = text_of("source", codec.max_len)?;
                let (target, cut_too) = text_of("target", codec.max_target_len)?;
                (source, target, cut || cut_too)
            }
            [false, false, true, true] => {
                let labels: Vec<i64> = row.need(LABELS)?;
                let label = |&id: &i64| if id == i64::from(IGNORE) { Ok(IGNORE) } else { codec.token(row, id) };
                let labels = labels.iter().map(label).collect::<Result<Vec<i32>>>()?;
                (codec.ids(row, INPUT_IDS)?.unwrap_or_default(), labels, false)
            }
            _ => return Err(row.unlike(ROWS)),
        };
        let cut = was_cut || ids.len() > codec.max_len || labels.len() > codec.max_target_len;
        ids.truncate(codec.max_len);
        labels.truncate(codec.max_target_len);
        if ids.is_empty() || labels.iter().all(|&label| label == IGNORE) {
            return Ok(Made { examples: Vec::new(), cut, notes: Vec::new() });
        }
        let mut example = Example::default();
        *example.ints_mut(INPUT_IDS) = ids;
        *example.ints_mut(DECODER_INPUT_IDS) = self.decoder_ids(&labels);
        *example.ints_mut(LABELS) = labels;
        Ok(Made { examples: vec![example], cut, notes: Vec::new() })
    }

    fn lesson(&self, example: &Example) -> Lesson {
        let labels: Vec<i32> = example.ints(LABELS).iter().copied().filter(|&label| label != IGNORE).collect();
        Lesson {
            passages: vec![Passage::read(example.ints(INPUT_IDS)), Passage::labelled(&labels, &labels)],
            answer: None,
        }
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = nn.input(Field::ints(LABELS, Axis::Token(MAIN), IGNORE, |item| token_labels(item, LABELS)))?;
        let hidden = model.hidden(nn)?;
        let head = model.lm_head(nn, hidden)?;
        Ok(Outcome { loss: vocabulary_loss(nn, head, labels, inv)?, output: None })
    }
}

/// The rows of the task.
const ROWS: &str = "source and target, or input_ids and labels";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_shifted_right_from_the_start() {
        let t5 = Seq2Seq { start: Some(0), pad: 0 };
        assert_eq!(t5.decoder_ids(&[5, 6, 1]), [0, 5, 6]);
        assert_eq!(t5.decoder_ids(&[5, IGNORE, 1]), [0, 5, 0]);
        // The language is the last label, and the first token.
        let mbart = Seq2Seq { start: None, pad: 1 };
        assert_eq!(mbart.decoder_ids(&[99, 138, 2, 7]), [7, 99, 138, 2]);
        assert_eq!(mbart.decoder_ids(&[99, 2, 7, IGNORE]), [7, 99, 2, 7]);
    }
}
