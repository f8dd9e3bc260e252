//! Causal language modelling: each token predicts the next one of its sequence.
//!
//! `loss = Σ_t −ln softmax(h_t Wᵀ)[label_{t+1}] / units`, over the t whose label is not −100. Rows: `{"text"}` (every
//! token is trained), `{"prompt", "completion"}` (the completion and its end; both are one text), `{"messages"}` and other
//! conversations (the assistant's turns; see [`crate::data::chat`]), or `{"input_ids", "labels"}` (not shifted;
//! `attention_mask` tells padding, which is left out; `completion_mask` and `assistant_masks` have 0 where none is trained).

use std::sync::Arc;

use super::lesson::Lesson;
use super::{Made, Outcome, Shape, Task, TaskDef, one_stream, vocabulary_loss};
use crate::data::chat::rows::conversation;
use crate::data::chat::{self, Chats};
use crate::data::row::{Codec, Row};
use crate::data::{Example, INPUT_IDS, LABELS, TRAINED_MASKS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Axis, Field, IGNORE, Item, Layout, MAIN, Nn, inputs};

/// The task's row.
pub static DEF: TaskDef = TaskDef {
    name: "causal-lm",
    peft: Some("CAUSAL_LM"),
    pipeline: "text-generation",
    architectures: &["ForCausalLM", "LMHeadModel"],
    heads: &[],
    label: &[],
    of_tokens: false,
    make: |setup| match (setup.facts.encoder, setup.facts.decoder_start) {
        (true, _) => Err(Error::unsupported(
            "causal-lm with an encoder, whose tokens see what follows them",
            "use --task masked-lm, or a task with labels",
        )),
        (_, Some(_)) => Err(Error::unsupported("causal-lm with an encoder-decoder", "use --task seq2seq")),
        _ => Ok(Box::new(CausalLm)),
    },
};

/// See the module.
pub struct CausalLm;

/// A micro-batch of `tokens` tokens with its fields: for packing without a graph.
pub fn layout(tokens: usize) -> Layout {
    let mut layout = CausalLm.layout(Shape::of(tokens));
    layout.fields.extend([
        inputs::ids(INPUT_IDS, MAIN, INPUT_IDS),
        inputs::positions("positions", MAIN),
        inputs::key_range("key_range", MAIN),
    ]);
    layout
}

/// The label that each token is to predict. A virtual token before the first one predicts that.
fn labels() -> Field {
    Field::ints(LABELS, Axis::Token(MAIN), IGNORE, shifted)
}

fn shifted(item: &Item) -> Vec<i32> {
    let lead = item.at(MAIN).lead;
    let all = std::iter::repeat_n(IGNORE, lead).chain(item.ints(LABELS)).skip(1);
    all.chain([IGNORE]).collect()
}

/// The rows that are read.
fn rows() -> String {
    format!("exactly one of: text; prompt and completion; {}; input_ids (with or without labels)", chat::rows::ROWS)
}

impl Task for CausalLm {
    fn def(&self) -> &'static TaskDef {
        &DEF
    }

    fn layout(&self, shape: Shape) -> Layout {
        let mut layout = one_stream(shape);
        layout.fields.push(labels());
        layout.weight = Arc::new(|item| shifted(item).iter().filter(|&&label| label != IGNORE).count());
        layout
    }

    fn examples(&self, row: &Row, codec: &Codec) -> Result<Made> {
        let attended = row.attended(&[LABELS, TRAINED_MASKS[0], TRAINED_MASKS[1]])?;
        let row = attended.as_ref().unwrap_or(row);
        let (mut ids, mut labels, notes) = match conversation(row)? {
            Some(conversation) => codec.chats(row)?.tokens(row, &conversation, codec)?,
            None => plain(row, codec).map(|(ids, labels)| (ids, labels, Vec::new()))?,
        };
        let cut = ids.len() > codec.max_len;
        ids.truncate(codec.max_len);
        labels.truncate(codec.max_len);
        let trains = labels.iter().skip(1).any(|&label| label != IGNORE);
        let examples = if trains { vec![Example::labelled(ids, labels)] } else { Vec::new() };
        Ok(Made { examples, cut, notes })
    }

    fn lesson(&self, example: &Example) -> Lesson {
        let mut lesson = Lesson::of_labels(example);
        // Nothing is before the first token that could tell it.
        let first = lesson.passages.first_mut().and_then(|passage| passage.trained.first_mut());
        first.into_iter().for_each(|first| *first = false);
        lesson
    }

    fn forward(&self, nn: &mut Nn, model: &dyn Model, inv: Val) -> Result<Outcome> {
        let labels = nn.input(labels())?;
        let hidden = model.hidden(nn)?;
        let head = model.lm_head(nn, hidden)?;
        Ok(Outcome { loss: vocabulary_loss(nn, head, labels, inv)?, output: None })
    }
}

/// Tokens and labels of a row that is no conversation.
fn plain(row: &Row, codec: &Codec) -> Result<(Vec<i32>, Vec<i32>)> {
    let has = |name: &str| row.has(name);
    match ["text", "prompt", "completion", "input_ids"].map(has) {
        [true, false, false, false] => {
            let mut ids = codec.document(row, &row.need::<String>("text")?)?;
            codec.end(&mut ids);
            Ok((ids.clone(), ids))
        }
        [false, true, true, false] => {
            // The text is one: a tokenizer has a space before each text, or one token for the end of the prompt
            // and what follows. A token with letters of both is learnt.
            let (prompt, completion): (String, String) = (row.need("prompt")?, row.need("completion")?);
            let alone = codec.document(row, &prompt)?;
            let mut ids = codec.document(row, &(prompt + &completion))?;
            let masked = alone.iter().zip(&ids).take_while(|(a, b)| a == b).count();
            let mut answer = ids.split_off(masked);
            codec.end(&mut answer);
            ids.extend(&answer);
            if codec.chats.is_some_and(Chats::trains_all) {
                return Ok((ids.clone(), ids));
            }
            let labels = std::iter::repeat_n(IGNORE, masked).chain(answer).collect();
            Ok((ids, labels))
        }
        [false, false, false, true] => {
            let (ids, mut labels) = token_labels(row, codec)?;
            TRAINED_MASKS.iter().try_for_each(|name| unmask(row, name, &mut labels))?;
            Ok((ids, labels))
        }
        _ => Err(row.unlike(&rows())),
    }
}

/// Takes the labels away where the mask of this name has 0.
fn unmask(row: &Row, name: &str, labels: &mut [i32]) -> Result<()> {
    let Some(mask) = row.mask(name, "1 for a token that is trained, 0 for others")? else { return Ok(()) };
    if mask.len() != labels.len() {
        let found = format!("{} input_ids and {} values of {name}", labels.len(), mask.len());
        return Err(row.wrong(found, format!("as many values of {name} as input_ids")));
    }
    for (label, _) in labels.iter_mut().zip(mask).filter(|(_, trained)| !trained) {
        *label = IGNORE;
    }
    Ok(())
}

/// `input_ids` and `labels` of a tokenized row; without labels every token is trained.
pub(super) fn token_labels(row: &Row, codec: &Codec) -> Result<(Vec<i32>, Vec<i32>)> {
    let ids = codec.ids(row, INPUT_IDS)?.unwrap_or_default();
    let Some(labels) = row.get::<Vec<i64>>(LABELS)? else { return Ok((ids.clone(), ids)) };
    if labels.len() != ids.len() {
        let found = format!("{} input_ids and {} labels", ids.len(), labels.len());
        return Err(row.wrong(found, "as many labels as input_ids, not shifted"));
    }
    let label = |&label: &i64| if label == -100 { Ok(IGNORE) } else { codec.token(row, label) };
    Ok((ids, labels.iter().map(label).collect::<Result<_>>()?))
}
