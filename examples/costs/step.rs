//! The QLoRA step of a model of any size, planned for a card that need not be there.

use std::sync::Arc;

use trimtab::backend::Caps;
use trimtab::backend::null::Null;
use trimtab::base::Base;
use trimtab::dtype::DType;
use trimtab::error::Error;
use trimtab::memory::Request;
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::lora::Lora;
use trimtab::session::{Options, Planned};
use trimtab::{Result, synth};

/// The step of a model that is named as for `trimtab bench --like`, or by its config.json: NF4 with double quantization, LoRA
/// of this rank on all linear layers, AdamW, activations in bf16, one micro-batch of one sequence of `tokens` tokens, within
/// the memory that is asked for.
pub fn planned(shape: &str, tokens: usize, rank: usize, caps: Caps, memory: Request) -> Result<Planned> {
    let dir = std::env::temp_dir().join(format!("trimtab-planned-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let written = std::fs::write(dir.join("config.json"), synth::config(shape)?.to_string());
    let base = written.map_err(|e| Error::io(&dir, e)).and_then(|()| Base::random(&dir));
    // What stays is in the system's folder for what may go.
    let _ = std::fs::remove_dir_all(&dir);
    let method = Lora { config: AdapterConfig::lora(rank, 2.0 * rank as f64, Targets::AllLinear) };
    let options = Options {
        quantize: Some(DType::Nf4Dq),
        dtype: DType::BF16,
        max_seq_len: tokens,
        micro_tokens: tokens,
        step_tokens: Some(tokens),
        memory,
        ..Options::default()
    };
    Planned::new(&Arc::new(base?), Box::new(method), options, Box::new(Null::like(caps)))
}
