//! Masked language modelling: tokens that were replaced are to be predicted where they are (Devlin et al. 2018).
//!
//! `loss = Σ_t −ln softmax(h_t Wᵀ + b)[label_t] / tokens with a label`; nothing is shifted. Rows: `{"text"}`, of whose tokens a
//! share is masked, or `{"input_ids", "labels"}`, already masked (−100: not trained).
//!
//! Of the tokens that are to be predicted 80 % become the mask, 10 % a random token, 10 % stay. Which these are depends on
//! the line of the file and the place in it, so each epoch has the same.

use std::sync::Arc;

use super::{
    Made, Outcome, Shape, Task, TaskDef, causal_lm, encoded, one_stream, text, token_labels, tokens, vocabulary_loss,
};
use crate::cpu::philox::philox;
use crate::data::row::{Codec, Row};
use crate::data::{INPUT_IDS, LABELS, TOKEN_TYPE_IDS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Axis, Field, IGNORE, Layout, MAIN, Nn};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "masked-lm",
    peft: None,
    pipeline: "fill-mask",
    architectures: &["ForMaskedLM"],
    heads: &[],
    label: &[],
    of_tokens: false,
    make: |setup| match setup.facts.encoder {
        true => Ok(Box::new(MaskedLm { share: setup.mask_share })),
        false => Err(Error::unsupported("masked-lm with a decoder", "causal-lm, or seq2seq for an encoder-decoder")),
    },
};

/// See the module.
pub struct MaskedLm {
    /// Of a text's tokens, how many are to be predicted.
    share: f64,
}

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
        let attended = row.attended(&[LABELS, TOKEN_TYPE_IDS])?;
        let row = attended.as_ref().unwrap_or(row);
        let (mut example, labels, cut) = match ["text", INPUT_IDS, LABELS].map(|name| row.has(name)) {
            [true, false, false] => {
                let (kept, cut) = text(row, codec, &row.need::<String>("text")?, None, codec.max_len)?;
                let mut example = encoded(row, codec, &kept)?;
                let Some(mask) = codec.tokenizer(row)?.mask() else {
                    return Err(row.wrong("text, and a tokenizer without a mask token", "input_ids and labels"));
                };
                let own: Vec<bool> = kept.sequence.iter().map(Option::is_some).collect();
                let masking = Masking { share: self.share, mask: codec.token(row, mask.into())?, vocab: codec.vocab };
                let labels = masking.apply(example.ints_mut(INPUT_IDS), &own, row.line);
                (example, labels, cut)
            }
            [false, true, true] => {
                let (example, cut) = tokens(row, codec)?;
                let (_, mut labels) = causal_lm::token_labels(row, codec)?;
                labels.truncate(codec.max_len);
                (example, labels, cut)
            }
            _ => return Err(row.unlike(ROWS)),
        };
        let trains = labels.iter().any(|&label| label != IGNORE);
        *example.ints_mut(LABELS) = labels;
        Ok(Made { examples: if trains { vec![example] } else { Vec::new() }, cut, notes: Vec::new() })
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = nn.input(Field::ints(LABELS, Axis::Token(MAIN), IGNORE, |item| token_labels(item, LABELS)))?;
        let hidden = model.hidden(nn)?;
        let head = model.lm_head(nn, hidden)?;
        Ok(Outcome { loss: vocabulary_loss(nn, head, labels, inv)?, output: None })
    }
}

/// How tokens are masked.
struct Masking {
    share: f64,
    /// The token in place of one that is to be guessed.
    mask: i32,
    vocab: usize,
}

impl Masking {
    /// Masks `ids` at places that are the text's `own`, by random numbers of (line, place); returns the labels.
    fn apply(&self, ids: &mut [i32], own: &[bool], line: usize) -> Vec<i32> {
        let below = |word: u32, share: f64| f64::from(word) < share * f64::from(u32::MAX);
        let mut labels = vec![IGNORE; ids.len()];
        for (at, id) in ids.iter_mut().enumerate().filter(|(at, _)| own.get(*at) == Some(&true)) {
            let [chosen, how, which, _] = philox([at as u32, line as u32, (line as u64 >> 32) as u32, 0x3a5c], [0, 0]);
            if !below(chosen, self.share) {
                continue;
            }
            labels[at] = *id;
            if below(how, 0.8) {
                *id = self.mask;
            } else if below(how, 0.9) {
                // The high half of the product is in 0..vocab.
                *id = ((u64::from(which) * self.vocab as u64) >> 32) as i32;
            }
        }
        labels
    }
}

/// The rows of the task.
const ROWS: &str = "text, or input_ids (already masked) and labels";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_texts_own_tokens_is_masked() {
        let masking = Masking { share: 0.15, mask: 4, vocab: 1000 };
        let (mut chosen, mut masked, mut kept, mut random) = (0, 0, 0, 0);
        for line in 1..=2000 {
            let before: Vec<i32> = (500..550).collect();
            let own: Vec<bool> = (0..50).map(|i| i != 0 && i != 49).collect();
            let mut ids = before.clone();
            let labels = masking.apply(&mut ids, &own, line);
            assert_eq!((labels[0], labels[49], ids[0], ids[49]), (IGNORE, IGNORE, 500, 549));
            for ((id, label), before) in ids.iter().zip(&labels).zip(&before) {
                match (*label, *id) {
                    (IGNORE, id) => assert_eq!(id, *before),
                    (label, id) => {
                        assert_eq!(label, *before);
                        chosen += 1;
                        masked += usize::from(id == 4);
                        kept += usize::from(id == label);
                        random += usize::from(id != label && id != 4);
                        assert!((0..1000).contains(&id));
                    }
                }
            }
            let mut again = before.clone();
            assert_eq!((masking.apply(&mut again, &own, line), &again), (labels, &ids));
        }
        // Five standard deviations of each count.
        let near = |count: usize, of: usize, share: f64| {
            let (n, p) = (of as f64, share);
            (count as f64 - n * p).abs() < 5.0 * (n * p * (1.0 - p)).sqrt()
        };
        assert!(near(chosen, 2000 * 48, 0.15), "{chosen}");
        assert!(near(masked, chosen, 0.8) && near(kept, chosen, 0.1) && near(random, chosen, 0.1));
    }
}
