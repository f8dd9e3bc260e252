//! Some examples of a run, looked at before its first step and after its last: their losses, and what the model writes.

use serde_json::{Value, json};

use super::job::Job;
use super::learnt::Learnt;
use super::text;
use crate::config::RunConfig;
use crate::data::pack::pack_sized;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Dataset, Example, INPUT_IDS, LABELS};
use crate::error::{Error, Result};
use crate::generate::sample::Sampling;
use crate::generate::{Ask, Room};
use crate::nn::{IGNORE, Layout};
use crate::session::Session;
use crate::tasks::{causal_lm, seq2seq};

/// Examples whose loss is measured at most, and at least.
const MOST: usize = 64;
const LEAST: usize = 4;
/// Their share of the time of the steps: an example costs a forward pass, twice, and a step three for each of its own.
const SHARE: f64 = 0.02;
/// Characters of an example that are kept.
const LINE: usize = 300;
/// Tokens that are written.
const WRITTEN: usize = 64;
/// Tokens of an example that is learnt from its first token on, of which the model is given the beginning.
const BEGINNING: usize = 16;

/// An example whose loss is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Its number in the data.
    pub example: usize,
    /// Its text in a line.
    pub text: String,
    /// Its loss, the mean over its units.
    pub loss: f64,
}

impl Measured {
    /// For metrics.jsonl.
    pub fn json(&self) -> Value {
        json!({"example": self.example, "text": self.text, "loss": self.loss})
    }
}

/// A prompt, and what the model writes after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// What it was given.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
}

/// The examples that a run looks at.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// Numbers and texts of those whose loss is measured.
    measured: Vec<(usize, String)>,
    /// Tokens that the model goes on from, or answers.
    prompts: Vec<Vec<u32>>,
    /// Whether it answers: in encoder-decoders.
    answers: bool,
}

impl Examined {
    /// Chooses them: some at even distances in the data to be measured, as `report-examples` says, and the prompts of the
    /// first `samples` of the evaluation's, if there is one.
    pub fn of(config: &RunConfig, job: &Job, learnt: &Learnt, tokenizer: Option<&Tokenizer>) -> Result<Examined> {
        let data = &learnt.data;
        let passes = learnt.steps(config) as f64 * config.batch_size as f64;
        let some = ((passes * 3.0 * SHARE / 2.0) as usize).clamp(LEAST, MOST);
        let count = config.report_examples.unwrap_or(some).min(data.len());
        let one = |i: usize| -> Result<(usize, String)> {
            // Of u128, so that the product of two large numbers is right.
            let at = (i as u128 * data.len() as u128 / count as u128) as usize;
            Ok((at, learnt.shown(job, at, tokenizer)?.line(LINE)))
        };
        let measured = (0..count).map(one).collect::<Result<_>>()?;
        let answers = job.facts.decoder_start.is_some();
        if config.samples == 0 {
            return Ok(Examined { measured, prompts: Vec::new(), answers });
        }
        let task = job.task.def().name;
        if ![causal_lm::DEF.name, seq2seq::DEF.name].contains(&task) {
            let found = format!("{}, and the task {task}", config.samples);
            return Err(Error::config("samples", found, "0: only causal-lm and seq2seq write texts"));
        }
        if tokenizer.is_none() {
            return Err(Error::config("samples", "a model without a tokenizer", "0: texts need one"));
        }
        let from = learnt.rows.as_ref().map_or(data, |rows| &rows.data);
        let prompt = |i: usize| prompt(&from.example(i), answers);
        Ok(Examined { measured, prompts: (0..from.len().min(config.samples)).map(prompt).collect(), answers })
    }

    /// Whether losses are measured.
    pub fn measures(&self) -> bool {
        !self.measured.is_empty()
    }

    /// The room that the texts take, if there are any.
    pub fn room(&self) -> Option<Room> {
        let longest = self.prompts.iter().map(Vec::len).max()?;
        Some(Room::after(longest, WRITTEN, self.answers))
    }

    /// The losses on the weights as they are.
    pub fn measure(&self, session: &mut Session, data: &Dataset, layouts: &[Layout]) -> Result<Vec<Measured>> {
        let one = |(example, text): &(usize, String)| -> Result<Measured> {
            let (mut loss, mut units) = (0.0, 0);
            for micro in pack_sized(data, &[*example], layouts, false)? {
                let evaluated = session.eval(&micro)?;
                (loss, units) = (loss + evaluated.loss, units + evaluated.units);
            }
            Ok(Measured { example: *example, text: text.clone(), loss: loss / units.max(1) as f64 })
        };
        self.measured.iter().map(one).collect()
    }

    /// What the model writes with the weights as they are, always taking the likeliest token.
    pub fn write(&self, session: &mut Session, job: &Job) -> Result<Vec<Written>> {
        if self.prompts.is_empty() {
            return Ok(Vec::new());
        }
        let tokenizer = job.base.tokenizer()?;
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let ask = Ask { max_tokens: WRITTEN, sampling, stop: tokenizer.eos_ids() };
        let one = |ids: &Vec<u32>| -> Result<Written> {
            let before = if self.answers { &[][..] } else { ids };
            let mut written = String::new();
            text::write(session, &tokenizer, ids, before, &ask, &mut |piece| {
                written.push_str(piece);
                true
            })?;
            Ok(Written { prompt: tokenizer.decode(ids, false)?, text: written })
        };
        self.prompts.iter().map(one).collect()
    }
}

/// What a model is given of an example: what is before the first token that is learnt; of an encoder-decoder's, all that it
/// reads.
fn prompt(example: &Example, answers: bool) -> Vec<u32> {
    let ids = example.ints(INPUT_IDS);
    let given = match example.ints(LABELS).iter().position(|&label| label != IGNORE) {
        _ if answers => ids.len(),
        Some(at) if at > 0 => at,
        _ => BEGINNING.min(ids.len().div_ceil(2)),
    };
    ids.iter().take(given).map(|&id| id as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_what_is_before_the_first_token_that_is_learnt() {
        const X: i32 = IGNORE;
        let long: Vec<i32> = (0..100).collect();
        let table: &[(&[i32], &[i32], bool, usize)] = &[
            (&[1, 2, 3, 4], &[X, X, 3, 4], false, 2),
            (&[1, 2, 3, 4], &[X, 2, X, 4], false, 1),
            (&[1, 2, 3, 4], &[1, 2, 3, 4], false, 2),
            (&long, &long, false, BEGINNING),
            (&[1], &[X], false, 1),
            (&[1, 2, 3], &[7, 8], true, 3),
        ];
        for (ids, labels, answers, want) in table {
            let example = Example::labelled(ids.to_vec(), labels.to_vec());
            assert_eq!(prompt(&example, *answers).len(), *want, "{ids:?} {labels:?}");
        }
    }
}
