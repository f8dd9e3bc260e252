//! `trimtab quantize`: a model in fewer bits.

use trimtab::Error;
use trimtab::config::{Bytes, Setting};
use trimtab::dtype::DType;
use trimtab::run::progress::{grouped, human};
use trimtab::run::{export, quantize};

use super::merge::dtype;
use super::settings::{resolved, setting_flags};
use super::{Outcome, Stop, print, talk};

/// The settings of a run that count here too.
const SETTINGS: [&str; 4] = ["model", "adapter", "task", "out"];

/// Write a model in fewer bits: a bitsandbytes folder (nf4, nf4-dq), or a GGUF file, with an adapter merged if there is one
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab quantize --model DIR --format nf4-dq --out model-nf4\n\
    \x20 trimtab quantize --model DIR --format q4_k --out model.gguf")]
pub struct Args {
    /// nf4 and nf4-dq (with quantized scales) are folders for transformers, the others GGUF files
    #[arg(long, value_parser = ["nf4", "nf4-dq", "q8_0", "q4_0", "q4_k", "q6_k"])]
    format: String,
    /// Folders: what weights that are not quantized are written in [default: what the model's are in]
    #[arg(long, value_parser = ["f32", "bf16", "f16"])]
    dtype: Option<String>,
    /// Folders: most bytes of a file
    #[arg(long, value_name = "BYTES", default_value = "5GB")]
    shard_size: String,
    /// GGUF: replace the file
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    settings: Flags,
}

setting_flags!(Flags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let config = resolved(&args.settings.0, &["model", "out"])?;
    let out = config.need("out")?.display().to_string();
    if let Some(ty) = super::export::file_type(&args.format) {
        return super::export::told(&out, &export::model(&config, Some(ty), args.overwrite)?);
    }
    let shard = Bytes::from_text(&args.shard_size);
    let shard = shard.map_err(|expected| Stop::Usage(Error::config("--shard-size", &args.shard_size, expected)))?.0;
    let format = if args.format == "nf4-dq" { DType::Nf4Dq } else { DType::Nf4 };
    let report = quantize::folder(&config, format, args.dtype.as_deref().map(dtype), shard)?;
    talk::notes(&report.notes);
    let (weights, quantized) = report.weights;
    let files = if report.files == 1 { "one file".into() } else { format!("{} files", report.files) };
    print(&format!(
        "{out}: {weights} weights, {quantized} of them in {}, the others in {}; {} parameters, {} in {files}\n",
        args.format,
        report.dtype,
        grouped(report.parameters),
        human(report.bytes),
    ))
}
