//! Extractive question answering: where an answer starts and ends in a text (Devlin et al. 2018, section 4.2).
//!
//! `loss = Σ_s (−ln softmax(start)[start_s] − ln softmax(end)[end_s]) / 2 sequences`, each softmax over the sequence's own
//! tokens. With `qa_padding`, over the tokens of the longest sequence of the batch, as transformers has it: there padding
//! joins the softmax, so the loss depends on what a sequence is batched with.
//!
//! Rows: `{"question", "context", "answers"}` as in SQuAD, or `{"input_ids", "start_position", "end_position"}` (and
//! `token_type_ids`).

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Computed, Made, Outcome, Setup, Shape, Task, TaskDef, in_f32, one_stream, tokens};
use crate::data::row::{Codec, Row};
use crate::data::{INPUT_IDS, TOKEN_TYPE_IDS};
use crate::error::Result;
use crate::graph::Val;
use crate::models::Model;
use crate::nn::inputs::Padding;
use crate::nn::{Axis, Field, Item, Layout, MAIN, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "question-answering",
    peft: Some("QUESTION_ANS"),
    architectures: &["ForQuestionAnswering"],
    heads: &["qa_outputs"],
    label: &[],
    of_tokens: false,
    make: |setup| Ok(Box::new(QuestionAnswering::new(setup))),
};

/// First and last token of the answer; −1: not in this example.
const SPAN: &str = "span";
/// Tokens of the longest answer that is predicted, as in transformers' examples.
const LONGEST: usize = 30;

/// See the module.
pub struct QuestionAnswering {
    /// What rows are padded with, if they are.
    pad: Option<i32>,
}

impl QuestionAnswering {
    fn new(setup: &Setup) -> QuestionAnswering {
        let pad = setup.config.get("pad_token_id").and_then(Value::as_i64).unwrap_or(0) as i32;
        QuestionAnswering { pad: setup.qa_padding.then_some(pad) }
    }
}

fn span(item: &Item) -> Vec<i32> {
    match item.ints(SPAN)[..] {
        [start, end] => vec![start, end],
        _ => vec![-1, -1],
    }
}

impl Task for QuestionAnswering {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = one_stream(shape);
        layout.weight = Arc::new(|item| span(item).iter().filter(|&&at| at >= 0).count());
        layout.padding = self.pad.map(|pad| Padding { columns: vec![(INPUT_IDS, pad), (TOKEN_TYPE_IDS, 0)] });
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        if !row.has(INPUT_IDS) {
            return Err(row.wrong(format!("the fields {}", row.names()), ROWS));
        }
        let (mut example, cut) = tokens(row, codec)?;
        let positions = [row.get::<usize>("start_position")?, row.get::<usize>("end_position")?];
        match positions {
            [Some(start), Some(end)] => {
                let all = row.get::<Vec<i64>>(INPUT_IDS)?.map_or(0, |ids| ids.len());
                if start > end || end >= all {
                    let found = format!("an answer from {start} to {end} in {all} tokens");
                    return Err(row.wrong(found, "0 ≤ start_position ≤ end_position < number of tokens"));
                }
                let kept = |at: usize| if at < codec.max_len { at as i32 } else { -1 };
                *example.ints_mut(SPAN) = vec![kept(start), kept(end)];
            }
            _ if codec.unlabelled => {}
            _ => return Err(row.wrong(format!("the fields {}", row.names()), "start_position and end_position")),
        }
        let trains = codec.unlabelled || example.ints(SPAN).iter().any(|&at| at >= 0);
        Ok(Made { examples: if trains { vec![example] } else { Vec::new() }, cut })
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = Field { width: 2, ..Field::ints(SPAN, Axis::Sequence, -1, span) };
        let labels = nn.input(labels)?;
        let rows = |item: &Item| {
            let at = item.at(MAIN);
            vec![(at.start + at.lead) as i32, (at.start + at.len) as i32]
        };
        let ranges = nn.input(Field::ranges("span.range", Axis::Sequence, Some(0), rows))?;
        let hidden = model.hidden(nn)?;
        let logits = model.span(nn, hidden)?;
        let logits = in_f32(nn, logits)?;
        nn.g.site = "loss".into();
        let loss = nn.g.range_cross_entropy(logits, ranges, labels, inv)?;
        Ok(Outcome { loss, output: Some((Axis::Token(MAIN), logits)) })
    }

    fn predict(&self, _row: &Row, computed: &[Computed]) -> Result<Value> {
        let best =
            computed.iter().filter_map(|c| best_span(&c.output, |_| true)).max_by(|a, b| a.score.total_cmp(&b.score));
        Ok(match best {
            Some(Span { start, end, score }) => json!({"start": start, "end": end, "score": score}),
            None => json!({"start": null, "end": null, "score": null}),
        })
    }
}

/// An answer: its first and last token, and the sum of their logits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: usize,
    end: usize,
    score: f32,
}

/// The likeliest answer among tokens that `may` be in it, from logits [tokens, 2].
fn best_span(logits: &[f32], may: impl Fn(usize) -> bool) -> Option<Span> {
    let tokens = logits.len() / 2;
    let mut best: Option<Span> = None;
    for start in (0..tokens).filter(|&t| may(t)) {
        for end in (start..tokens.min(start + LONGEST)).filter(|&t| may(t)) {
            let score = logits[2 * start] + logits[2 * end + 1];
            if best.is_none_or(|b| score > b.score) {
                best = Some(Span { start, end, score });
            }
        }
    }
    best
}

/// The rows of the task.
const ROWS: &str = "question, context and answers, or input_ids, start_position and end_position";
