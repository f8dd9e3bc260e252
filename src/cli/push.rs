//! `trimtab push`: an adapter or a model to the Hugging Face hub.

use std::path::PathBuf;

use trimtab::hub::is_repo;
use trimtab::run::progress::human;
use trimtab::run::push::{Wanted, pack, push};
use trimtab::{Error, Result};

use super::talk::say;
use super::{Outcome, Stop, print};

/// Send a run's adapter or model to the Hugging Face hub, with a card that tells how it was made
///
/// What goes: adapter_config.json or config.json, weights in safetensors, the tokenizer's files that are there, and README.md,
/// the card, with base model, data (names of files alone), method, settings, metrics and versions. In configs, folders of this
/// machine give way to the base model's name. What never goes: checkpoints, metrics.jsonl, config.toml, event files, and files
/// that trimtab does not know.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab push runs/mine me/my-adapter --private\n\
    \x20 trimtab push runs/mine me/my-adapter --base-model HuggingFaceTB/SmolLM2-135M --dry-run\n\
    \x20 trimtab push runs/mine/merged me/my-model\n\n\
    HF_TOKEN is a token that may write (or the one that `hf auth login` has kept), HF_ENDPOINT another hub than\n\
    huggingface.co.")]
pub struct Args {
    /// Folder of a finished run, of a checkpoint, of an adapter or a model
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Repository, which is made if it is not there
    #[arg(value_name = "ORG/NAME")]
    repo: String,
    /// Make the repository a private one; a public one of this name is refused
    #[arg(long)]
    private: bool,
    /// Show what would go, and the card, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// The base model's name on the hub [default: what the adapter names, if that is one]
    #[arg(long, value_name = "ORG/NAME")]
    base_model: Option<String>,
    /// Send this text as README.md
    #[arg(long, value_name = "FILE.md")]
    card: Option<PathBuf>,
    /// Send report.html and loss.svg too; the report has all settings, also paths
    #[arg(long)]
    report: bool,
}

pub fn run(args: Args) -> Outcome {
    let Args { run, repo, private, dry_run, base_model, card, report } = args;
    for (name, given) in [("ORG/NAME", Some(&repo)), ("--base-model", base_model.as_ref())] {
        if let Some(given) = given.filter(|given| !is_repo(given)) {
            let expected = "the name of a repository: its owner, a slash, its name";
            return Err(Stop::Usage(Error::config(name, given, expected)));
        }
    }
    if !run.is_dir() {
        let found = format!("{}, which is no folder", run.display());
        return Err(Stop::Usage(Error::config("RUN", found, "the folder of a run, an adapter or a model")));
    }
    let wanted = Wanted { folder: &run, repo: &repo, base: base_model.as_deref(), card: card.as_deref(), report };
    let packed = pack(&wanted)?;
    let sizes = packed.parcels.iter().map(|parcel| parcel.size()).collect::<Result<Vec<u64>>>()?;
    let all = human(sizes.iter().sum());
    if !dry_run {
        let pushed = push(&repo, &packed, private)?;
        say!("{} files, {all}, of which {} were sent to large storage", sizes.len(), human(pushed.sent));
        return print(&format!("{}\n", pushed.url));
    }
    let mut text = format!("would go to {repo}: {} files, {all}\n", sizes.len());
    for (parcel, bytes) in packed.parcels.iter().zip(&sizes) {
        text += &format!("  {:>10}  {}\n", human(*bytes), parcel.name);
    }
    if !packed.stays.is_empty() {
        text += &format!("would stay here: {}\n", packed.stays.join(", "));
    }
    print(&format!("{text}\n{}", packed.card))
}
