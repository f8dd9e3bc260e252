//! `trimtab merge`: a model with an adapter merged into its weights.

use trimtab::Error;
use trimtab::config::{Bytes, Setting};
use trimtab::dtype::DType;
use trimtab::run::merge::{Difference, How, merge};
use trimtab::run::progress::{grouped, human};

use super::settings::{resolved, setting_flags};
use super::{Outcome, Stop, print, talk};

/// The settings of a run that count here too.
const SETTINGS: [&str; 6] = ["model", "adapter", "task", "out", "memory", "device"];

/// Write a model with an adapter merged into its weights, which needs no adapter any more: piece by piece, in little memory
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab merge --model DIR --adapter runs/mine --out merged\n\
    \x20 trimtab merge --model DIR --adapter runs/mine --dtype bf16 --memory 2GiB --out merged")]
pub struct Args {
    /// What weights are written in [default: what the model's are in]
    #[arg(long, value_parser = ["f32", "bf16", "f16"])]
    dtype: Option<String>,
    /// Most bytes of a file; a larger model gets several and an index
    #[arg(long, value_name = "BYTES", default_value = "5GB")]
    shard_size: String,
    /// Do not compare what model and adapter compute with what the merged model does
    #[arg(long)]
    no_check: bool,
    #[command(flatten)]
    settings: Flags,
}

setting_flags!(Flags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let config = resolved(&args.settings.0, &["model", "adapter", "out"])?;
    let shard = Bytes::from_text(&args.shard_size);
    let shard = shard.map_err(|expected| Stop::Usage(Error::config("--shard-size", &args.shard_size, expected)))?.0;
    let how = How { dtype: args.dtype.as_deref().map(dtype), shard, check: !args.no_check };
    let report = merge(&config, &how)?;
    talk::notes(&report.notes);
    let out = config.need("out")?.display().to_string();
    let files = if report.files == 1 { "one file".into() } else { format!("{} files", report.files) };
    let (parameters, dtype) = (report.parameters, report.dtype);
    print(&format!(
        "{out}: {} tensors, {} parameters in {dtype}, {} in {files}\n{}",
        report.tensors,
        grouped(parameters),
        human(dtype.bytes(parameters as usize) as u64),
        report.difference.map_or(String::new(), |d| told(&d)),
    ))
}

/// The type of a name.
pub fn dtype(name: &str) -> DType {
    match name {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => DType::F32,
    }
}

fn told(difference: &Difference) -> String {
    let Difference { rows, same, largest, of } = difference;
    format!(
        "compared: logits differ by at most {largest:.2e} (they reach {of:.1}); the highest is the same in {same} of {rows} rows\n"
    )
}
