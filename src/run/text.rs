//! Text for a prompt: what `trimtab generate` does.

use std::sync::Arc;

use crate::base::Base;
use crate::config::{MOST_TOKENS, RunConfig};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::sample::Sampling;
use crate::generate::{Ask, Room};
use crate::run::inference;
use crate::session::{Options, Session};
use crate::system::Instant;
use crate::tasks::causal_lm::CausalLm;

/// How long a text took, loading not counted, and what there is to say of its model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// Tokens of the prompt, and the seconds until all were read.
    pub read: (usize, f64),
    /// Tokens that were written after the first, which the prompt gave, and their seconds.
    pub written: (usize, f64),
    /// What a user should know of the model, its tokenizer and the prompt.
    pub notes: Vec<String>,
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = |(tokens, seconds): (usize, f64)| tokens as f64 / seconds.max(1e-9);
        write!(f, "read {} tokens at {:.1} a second", self.read.0, rate(self.read))?;
        match self.written.0 {
            0 => Ok(()),
            n => write!(f, ", wrote {n} at {:.1} a second", rate(self.written)),
        }
    }
}

/// Continues `prompt` by at most `max_tokens` tokens, or until the model ends the text; encoder-decoders answer it. `on` is
/// given the text as it comes, never half a character, and ends it by returning false. The prompt is its first piece, given
/// when the model is loaded, unless the text is an answer. Of the settings, those about the model, the adapter, storage,
/// memory and device count.
pub fn generate(
    config: &RunConfig,
    prompt: &str,
    max_tokens: usize,
    sampling: &Sampling,
    on: &mut dyn FnMut(&str) -> bool,
) -> Result<Timing> {
    sampling.check()?;
    let base = Arc::new(Base::open(config.need("model")?)?);
    let tokenizer = base.tokenizer()?;
    let mut ids = tokenizer.encode_prompt(prompt)?;
    if ids.is_empty() {
        ids.extend(tokenizer.bos());
    }
    if ids.is_empty() {
        return Err(Error::config(
            "--prompt",
            "no tokens",
            "a text to continue: the model has no token that begins one",
        ));
    }
    let facts = base.model(1)?.facts().clone();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= facts.vocab) {
        let token = tokenizer.id_to_token(*id).unwrap_or_default();
        let found = format!("token id {id} ({token})");
        let expected = format!("ids from 0 to {}: is it the model's own tokenizer?", facts.vocab.saturating_sub(1));
        return Err(Error::config("--prompt", found, expected));
    }
    let answers = facts.decoder_start.is_some();
    if max_tokens == 0 {
        if !answers {
            on(prompt);
        }
        return Ok(Timing::default());
    }
    let room = Room::after(ids.len(), max_tokens, answers);
    let tokens = room.tokens;
    let most = facts.max_positions.min(MOST_TOKENS);
    if tokens.max(ids.len()) > most {
        return Err(Error::config(
            "--max-tokens",
            format!("{max_tokens} after a prompt of {} tokens", ids.len()),
            format!("{most} together, for which the model was made"),
        ));
    }
    let wanted = |options| Options { max_seq_len: tokens.max(ids.len()), generate: Some(room), ..options };
    let (mut session, mut notes) = inference::open(config, &base, &CausalLm, None, wanted)?;
    notes.extend(tokenizer.warning().map(String::from));
    if !answers && splits_words(&tokenizer, prompt)? {
        notes.push(
            "the prompt ends in a space, which the tokenizer has in the token of the word after it: the model has seldom seen \
             such a text; leave the space out"
                .into(),
        );
    }
    if !answers && !on(prompt) {
        return Ok(Timing { notes, ..Timing::default() });
    }

    // An answer is a text of its own.
    let before = if answers { &[][..] } else { &ids };
    let ask = Ask { max_tokens, sampling: *sampling, stop: tokenizer.eos_ids() };
    let timing = write(&mut session, &tokenizer, &ids, before, &ask, on)?;
    Ok(Timing { notes, ..timing })
}

/// What `session` writes after `ids`, given to `on` as it comes, never half a character, until that returns false. `before` are the
/// tokens of the text that it goes on with.
pub fn write(
    session: &mut Session,
    tokenizer: &Tokenizer,
    ids: &[u32],
    before: &[u32],
    ask: &Ask,
    on: &mut dyn FnMut(&str) -> bool,
) -> Result<Timing> {
    let mut text = tokenizer.decode_stream(before, true)?;
    let mut timing = Timing { read: (ids.len(), 0.0), ..Timing::default() };
    let (mut start, mut stopped) = (Instant::now(), false);
    session.generate(ids, ask, &mut |id| {
        match timing.read.1 {
            0.0 => timing.read.1 = start.elapsed().as_secs_f64(),
            _ => timing.written = (timing.written.0 + 1, timing.written.1 + start.elapsed().as_secs_f64()),
        }
        let piece = text.push(id)?;
        stopped = !piece.is_empty() && !on(&piece);
        start = Instant::now();
        Ok(!stopped)
    })?;
    let rest = text.finish()?;
    if !rest.is_empty() && !stopped {
        on(&rest);
    }
    Ok(timing)
}

/// Whether a text ends in a space that would be part of the next word's token.
fn splits_words(tokenizer: &Tokenizer, text: &str) -> Result<bool> {
    if !text.ends_with(' ') {
        return Ok(false);
    }
    let (before, after) = (tokenizer.encode(text, false)?, tokenizer.encode(&format!("{text}a"), false)?);
    Ok(!after.starts_with(&before))
}
