//! The part of the settings that the engine itself acts on.

use super::micro::Micro;
use crate::config::{Recompute, RunConfig};
use crate::memory::{Level, Request};
use crate::session::Options;

/// A training run's, with micro-batches of these sizes.
pub fn options(config: &RunConfig, micro: &Micro) -> Options {
    micro.options(Options {
        train: true,
        evaluate: config.eval_data.is_some() || config.split.is_some(),
        quantize: config.quantized(),
        dtype: config.dtype.into(),
        max_seq_len: config.max_seq_len,
        optimizer: config.optimizer(),
        seed: config.seed,
        memory: request(config),
        spill: config.out.clone(),
        ..Options::default()
    })
}

fn request(config: &RunConfig) -> Request {
    Request {
        budget: config.memory.map(|b| b.0),
        room: None,
        recompute: match config.recompute {
            Recompute::Auto => None,
            Recompute::None => Some(Level::None),
            Recompute::Selective => Some(Level::Selective),
            Recompute::All => Some(Level::All),
        },
        stream: config.stream,
        page_optimizer: config.page_optimizer,
        offload: config.offload,
        host: config.host_memory.map(|b| b.0),
    }
}
