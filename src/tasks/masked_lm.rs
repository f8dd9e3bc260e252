//! Masked language modelling: tokens that were replaced are to be predicted where they are (Devlin et al. 2018).
//!
//! `loss = Σ_t −ln softmax(h_t Wᵀ + b)[label_t] / tokens with a label`; nothing is shifted. Rows: `{"input_ids", "labels"}`,
//! already masked, −100: not trained.

use std::sync::Arc;

use super::{Made, Outcome, Shape, Task, TaskDef, causal_lm, one_stream, token_labels, tokens, vocabulary_loss};
use crate::data::row::{Codec, Row};
use crate::data::{INPUT_IDS, LABELS};
use crate::error::Result;
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Axis, Field, IGNORE, Layout, MAIN, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "masked-lm",
    peft: None,
    architectures: &["ForMaskedLM"],
    heads: &[],
    label: &[],
    of_tokens: false,
    make: |_| Ok(Box::new(MaskedLm)),
};

/// See the module.
pub struct MaskedLm;

impl Task for MaskedLm {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = one_stream(shape);
        layout.weight = Arc::new(|item| item.ints(LABELS).iter().filter(|&&label| label != IGNORE).count());
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        if !row.has(INPUT_IDS) || !row.has(LABELS) {
            return Err(row.wrong(format!("the fields {}", row.names()), "input_ids, already masked, and labels"));
        }
        let (mut example, cut) = tokens(row, codec)?;
        let (_, mut labels) = causal_lm::token_labels(row, codec)?;
        labels.truncate(codec.max_len);
        let trains = labels.iter().any(|&label| label != IGNORE);
        *example.ints_mut(LABELS) = labels;
        Ok(Made { examples: if trains { vec![example] } else { Vec::new() }, cut })
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = nn.input(Field::ints(LABELS, Axis::Token(MAIN), IGNORE, |item| token_labels(item, LABELS)))?;
        let hidden = model.hidden(nn)?;
        let head = model.lm_head(nn, hidden)?;
        Ok(Outcome { loss: vocabulary_loss(nn, head, labels, inv)?, output: None })
    }
}
