//! Text for a prompt: what `trimtab generate` does.

use crate::backend;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::generate::sample::Sampling;
use crate::generate::{Generation, Generator};
use crate::nn::{Build, Hooks};
use crate::peft::{self, Frozen, Method};
use crate::session::{Base, activations};
use crate::system::Instant;
use crate::weights::load;

/// Tokens of a prompt that are read at once.
const CHUNK: usize = 256;

/// How long a text took, loading not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Tokens of the prompt, and the seconds until all were read.
    pub read: (usize, f64),
    /// Tokens that were written after the first, which the prompt gave, and their seconds.
    pub written: (usize, f64),
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

/// Continues `prompt` by at most `max_tokens` tokens, or until the model ends the text. `on` is given each piece as it
/// comes, never half a character, and ends the text by returning false. Of the settings, those about the model, the
/// adapter, storage and device count.
pub fn generate(
    config: &RunConfig,
    prompt: &str,
    max_tokens: usize,
    sampling: &Sampling,
    on: &mut dyn FnMut(&str) -> bool,
) -> Result<Timing> {
    sampling.check()?;
    let base = Base::open(config.need("model")?)?;
    let tokenizer = base.tokenizer()?;
    let mut ids = tokenizer.encode(prompt, true)?;
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
    if max_tokens == 0 {
        return Ok(Timing::default());
    }
    let capacity = ids.len().saturating_add(max_tokens);
    let model = base.model(capacity)?;
    if capacity > model.facts().max_positions {
        return Err(Error::config(
            "--max-tokens",
            format!("{max_tokens} after a prompt of {} tokens", ids.len()),
            format!("{} together, for which the model was made", model.facts().max_positions),
        ));
    }
    let adapter = config.adapter.as_deref().map(peft::open).transpose()?;
    let method: &dyn Method = match &adapter {
        Some(adapter) => &*adapter.method,
        None => &Frozen,
    };
    let storage = base.storage(config.quantized(), config.dtype.into());
    let backend = backend::open(&config.device)?;
    let act = activations(config.dtype.into(), backend.caps());
    let stack: &[&dyn Hooks] = &[method];
    let generation = Generation::new(&*model, Build { stack, storage: &storage, act }, CHUNK.min(capacity), capacity)?;
    method.check(&generation.sites)?;
    let weights = generation.program.weights.clone();
    if let (Some(adapter), Some(dir)) = (&adapter, &config.adapter) {
        let trained = weights.iter().filter(|w| w.trainable);
        let expected: Vec<_> =
            trained.map(|w| (w.name.clone(), w.stored(generation.program.graph.shape(w.val)))).collect();
        adapter.check(dir, &expected)?;
    }
    let mut generator = Generator::new(backend, generation)?;
    let tensors = adapter.as_ref().map(|a| &a.tensors);
    let from = load::Sources {
        base: base.checkpoint.as_ref(),
        std: model.facts().init_std,
        adapter: tensors,
        seed: config.seed,
    };
    load::load(&mut generator.exec, &weights, &from, &mut |_, _| Ok(()))?;

    let mut text = tokenizer.decode_stream(true);
    let mut next = ids;
    let mut timing = Timing { read: (next.len(), 0.0), ..Timing::default() };
    for index in 0..max_tokens {
        let start = Instant::now();
        let logits = generator.feed(&next)?;
        match index {
            0 => timing.read.1 = start.elapsed().as_secs_f64(),
            _ => timing.written = (timing.written.0 + 1, timing.written.1 + start.elapsed().as_secs_f64()),
        }
        let id = sampling.next(&logits, index as u64)?;
        if tokenizer.eos_ids().contains(&id) {
            break;
        }
        let piece = text.push(id)?;
        if !piece.is_empty() && !on(&piece) {
            return Ok(timing);
        }
        next = vec![id];
    }
    let rest = text.finish()?;
    if !rest.is_empty() {
        on(&rest);
    }
    Ok(timing)
}
