//! `trimtab synth`: a model of random weights of any size, to measure on.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use trimtab::Error;
use trimtab::dtype::DType;
use trimtab::synth::{self, Format};

use super::{Outcome, Stop, print, talk};

/// Write a model of random weights in Hugging Face's layout, of any size, to measure on
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  trimtab synth --like llama-8b --quantize nf4 --double-quant --out models/8b")]
pub struct Args {
    /// tinyllama, llama-8b, llama-70b, llama-405b, or a config.json
    #[arg(long, value_name = "NAME|FILE.json")]
    like: String,
    /// Folder that is written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Store the layers' linear weights in 4-bit NormalFloat, as bitsandbytes does
    #[arg(long, value_parser = ["none", "nf4"], default_value = "none")]
    quantize: String,
    /// Quantize the scales of NF4 too
    #[arg(long)]
    double_quant: bool,
    /// Format of the weights that are not quantized
    #[arg(long, value_parser = ["bf16", "f32"], default_value = "bf16")]
    dtype: String,
    /// The same seed gives the same bytes
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Write config.json only: enough for `trimtab plan --init random`
    #[arg(long)]
    config_only: bool,
}

pub fn run(args: Args) -> Outcome {
    let config = synth::config(&args.like).map_err(|error| match error {
        Error::Config { .. } => Stop::Usage(error),
        error => Stop::Work(error),
    })?;
    let quantize = match (args.quantize.as_str(), args.double_quant) {
        ("nf4", true) => Some(DType::Nf4Dq),
        ("nf4", false) => Some(DType::Nf4),
        (_, false) => None,
        (_, true) => {
            return Err(Stop::Usage(Error::config("--double-quant", "true with --quantize none", "--quantize nf4")));
        }
    };
    let dtype = if args.dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let format = Format { dtype, quantize, seed: args.seed, shard: 4 << 30 };
    if args.config_only {
        synth::write_config(&args.out, &config, &format)?;
        return print(&format!("wrote {}\n", args.out.join("config.json").display()));
    }
    let bar = talk::shown(ProgressBar::no_length());
    if let Ok(style) = ProgressStyle::with_template("writing {bar:30} {bytes} of {total_bytes}  {eta} left") {
        bar.set_style(style);
    }
    let mut written = 0;
    synth::write(&args.out, &config, &format, &mut |done, total| {
        written = total;
        bar.set_length(total);
        bar.set_position(done);
        Ok(())
    })?;
    bar.finish_and_clear();
    print(&format!("wrote {written} bytes of weights to {}\n", args.out.display()))
}
