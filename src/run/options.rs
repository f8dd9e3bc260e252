//! The part of the settings that the engine itself acts on.

use crate::config::{Recompute, RunConfig};
use crate::memory::{Level, Request};
use crate::session::Options;
use crate::tasks::Shape;

/// A training run's.
pub fn options(config: &RunConfig) -> Options {
    let Shape { targets, sequences, .. } = shape(config);
    Options {
        train: true,
        evaluate: config.eval_data.is_some(),
        generate: None,
        quantize: config.quantized(),
        dtype: config.dtype.into(),
        max_seq_len: config.max_seq_len,
        micro_tokens: config.micro_tokens,
        micro_targets: Some(targets),
        micro_sequences: Some(sequences),
        step_tokens: config.batch_size.checked_mul(config.max_seq_len),
        optimizer: config.optimizer(),
        seed: config.seed,
        memory: request(config),
        spill: config.out.clone(),
    }
}

fn request(config: &RunConfig) -> Request {
    Request {
        budget: config.memory.map(|b| b.0),
        recompute: match config.recompute {
            Recompute::Auto => None,
            Recompute::None => Some(Level::None),
            Recompute::Selective => Some(Level::Selective),
            Recompute::All => Some(Level::All),
        },
        stream: config.stream,
        page_optimizer: config.page_optimizer,
        offload: config.offload,
    }
}

/// The sizes of a micro-batch.
fn shape(config: &RunConfig) -> Shape {
    let targets = config.max_target_len.saturating_mul((config.micro_tokens / config.max_seq_len).max(1));
    let sequences = config.batch_size.clamp(1, config.micro_tokens.max(1));
    Shape { tokens: config.micro_tokens, targets, sequences }
}
