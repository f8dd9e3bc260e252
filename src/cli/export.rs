//! `trimtab export`: a model or an adapter in the format of another program.

use trimtab::Error;
use trimtab::quant::ggml::GgmlType;
use trimtab::run::export::{self, FileType, Report};
use trimtab::run::progress::{grouped, human};

use super::settings::{resolved, setting_flags};
use super::{Outcome, Stop, print, talk};

/// The settings of a run that count here too.
const SETTINGS: [&str; 4] = ["model", "adapter", "task", "out"];

/// Write a GGUF file for llama.cpp: a model with its adapter merged, or the adapter alone
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab export --model DIR --adapter runs/mine --type q4_k --out mine.gguf\n\
    \x20 trimtab export --model DIR --adapter runs/mine --lora-only --out mine-lora.gguf")]
pub struct Args {
    /// The format
    #[arg(long, value_parser = ["gguf"], default_value = "gguf")]
    format: String,
    /// What weights are stored as [default: what the model's floats are in; q4_k is the mix Q4_K_M]
    #[arg(long = "type", value_name = "TYPE", value_parser = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"])]
    ty: Option<String>,
    /// Only the LoRA adapter, which llama.cpp adds to a model (--lora): f32, or f16 by --type
    #[arg(long)]
    lora_only: bool,
    /// Replace the file
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    settings: Flags,
}

setting_flags!(Flags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let needed = if args.lora_only { &["model", "adapter", "out"][..] } else { &["model", "out"] };
    let config = resolved(&args.settings.0, needed)?;
    let ty = args.ty.as_deref().and_then(file_type);
    let report = match (args.lora_only, ty) {
        (false, ty) => export::model(&config, ty, args.overwrite)?,
        (true, None | Some(FileType::F32)) => export::adapter(&config, GgmlType::F32, args.overwrite)?,
        (true, Some(FileType::F16)) => export::adapter(&config, GgmlType::F16, args.overwrite)?,
        (true, _) => {
            let found = format!("{} with --lora-only", args.ty.unwrap_or_default());
            return Err(Stop::Usage(Error::config("--type", found, "f32 or f16: factors are small")));
        }
    };
    told(&config.need("out")?.display().to_string(), &report)
}

/// The type of a name.
pub fn file_type(name: &str) -> Option<FileType> {
    FileType::NAMES.iter().find(|(known, _)| *known == name).map(|(_, ty)| *ty)
}

/// Says what was written.
pub fn told(out: &str, report: &Report) -> Outcome {
    talk::notes(&report.notes);
    let Report { tensors, parameters, bytes, types, .. } = report;
    let share = |(name, n): &(&str, u64)| format!("{name} {:.1} %", 100.0 * *n as f64 / (*parameters).max(1) as f64);
    let types: Vec<String> = types.iter().map(share).collect();
    let (parameters, bytes) = (grouped(*parameters), human(*bytes));
    print(&format!("{out}: {tensors} tensors, {parameters} parameters, {bytes} ({})\n", types.join(", ")))
}
