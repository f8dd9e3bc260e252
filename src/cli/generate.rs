//! `trimtab generate`: text from a model, with or without an adapter.

use trimtab::run::text;

use super::sampling::SamplingFlags;
use super::settings::{resolved, setting_flags};
use super::talk::say;
use super::{Outcome, print, talk};

/// The settings of a run that a text depends on too.
const SETTINGS: [&str; 11] = [
    "model",
    "adapter",
    "quantize",
    "double_quant",
    "seed",
    "dtype",
    "device",
    "memory",
    "stream",
    "host_memory",
    "tune",
];

/// Continue a text, or answer it with an encoder-decoder
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab generate --model DIR --adapter runs/mine --prompt 'Once upon a time'")]
pub struct Args {
    /// Text to continue; in encoder-decoders, to answer
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Most tokens to add
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    model: ModelFlags,
}

setting_flags!(ModelFlags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let config = resolved(&args.model.0, &["model"])?;
    let sampling = args.sampling.with_seed(config.seed)?;
    // The text is printed as it comes. If nobody reads it any more, it ends.
    let mut stop = None;
    let timing = text::generate(&config, &args.prompt, args.max_tokens, &sampling, &mut |piece| {
        stop = print(piece).err();
        stop.is_none()
    })?;
    match stop {
        Some(stop) => return Err(stop),
        None => print("\n")?,
    }
    talk::notes(&timing.notes);
    if timing.read.1 > 0.0 {
        say!("{timing}");
    }
    Ok(())
}
