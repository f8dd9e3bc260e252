//! `trimtab train`: a run from its settings to its files.

use trimtab::Result;
use trimtab::config::RunConfig;
use trimtab::run::metrics::{Event, Metrics};
use trimtab::run::progress::Progress;
use trimtab::run::training::{self as run, Summary};

use super::settings::Settings;
use super::{Outcome, Stop, print};

/// Fine-tune a model: LoRA, QLoRA (--quantize nf4) or every weight (--method full)
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> Outcome {
    let Some(config) = args.settings.resolve()? else { return Ok(()) };
    let out = config.need("out").map_err(Stop::Usage)?.to_path_buf();
    let summary = train(&config)?;
    let Summary { steps, first_loss, last_loss, .. } = summary;
    print(&format!("{steps} steps, loss {first_loss:.4} to {last_loss:.4}, in {}\n", out.display()))
}

/// Runs, shows what happens on standard error and keeps it in the run folder.
pub fn train(config: &RunConfig) -> Result<Summary, Stop> {
    for name in ["model", "data", "out"] {
        config.need(name).map_err(Stop::Usage)?;
    }
    let mut metrics = Metrics::new(config.need("out")?);
    let mut progress = Progress::stderr();
    let mut on = |event: Event| -> Result<()> {
        progress.show(&event);
        metrics.write(&event)
    };
    let summary = run::run(config, &mut on);
    progress.finish();
    Ok(summary?)
}
