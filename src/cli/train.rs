//! `trimtab train`: a run from its settings to its files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use trimtab::config::RunConfig;
use trimtab::run::folder::{CONFIG_FILE, Start};
use trimtab::run::metrics::Event;
use trimtab::run::progress::Progress;
use trimtab::run::training::{self as run, Summary};
use trimtab::{Error, Result};

use super::settings::Settings;
use super::{Outcome, Stop, print, talk};

/// Fine-tune a model: LoRA, QLoRA (--quantize nf4) or every weight (--method full)
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab train --model models/SmolLM2-135M-Instruct.Q4_1.gguf --data mine.jsonl --quantize nf4 --out runs/mine\n\
    \x20 trimtab train --model DIR --data a.parquet --split 0.05 --eval-every 20 --keep-best --out runs/b\n\
    \x20 trimtab train --resume runs/mine")]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Replace the run that --out holds
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    overwrite: bool,
    /// Say what the run would learn, train and take, and stop before anything is loaded or written
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    dry_run: bool,
    /// Go on with the run in RUN, with its settings, or with the one in --out; from its beginning if it has no checkpoint
    #[arg(long, value_name = "RUN", num_args = 0..=1, help_heading = "Run")]
    resume: Option<Option<PathBuf>>,
}

pub fn run(args: Args) -> Outcome {
    let Args { mut settings, overwrite, dry_run, resume } = args;
    let start = match (&resume, overwrite) {
        (Some(_), _) => Start::Resume,
        (None, true) => Start::Overwrite,
        (None, false) => Start::New,
    };
    if let Some(Some(run)) = resume {
        if !run.join(CONFIG_FILE).is_file() {
            let found = format!("{}, which has no {CONFIG_FILE}", run.display());
            return Err(Stop::Usage(Error::config("--resume", found, "the folder of a run that was begun")));
        }
        settings.go_on(&run)?;
    }
    let Some(config) = settings.resolve()? else { return Ok(()) };
    let out = config.need("out").map_err(Stop::Usage)?.to_path_buf();
    if dry_run {
        settled(&config)?;
        let mut progress = Progress::stderr();
        run::rehearse(&config, start, &mut |event| {
            talk::show(&mut progress, &event);
            Ok(())
        })?;
        return print(&format!("nothing is wrong with this run; without --dry-run it goes to {}\n", out.display()));
    }
    let summary = train(&config, start)?;
    let Summary { steps, skipped, first_loss, last_loss } = summary;
    let skipped = if skipped == 0 { String::new() } else { format!(" ({skipped} skipped)") };
    print(&format!("{steps} steps{skipped}, loss {first_loss:.4} to {last_loss:.4}, in {}\n", out.display()))
}

/// Whether the settings without which there is no run are there.
fn settled(config: &RunConfig) -> Result<(), Stop> {
    for name in ["model", "out"] {
        config.need(name).map_err(Stop::Usage)?;
    }
    config.need_data().map(|_| ()).map_err(Stop::Usage)
}

/// How often the user asked the run to stop.
static ASKED: AtomicU32 = AtomicU32::new(0);

/// Runs, and shows what happens on standard error, unless that is to be quiet. Ctrl-C and SIGTERM end the run after its step,
/// with a checkpoint; a second one at once.
pub fn train(config: &RunConfig, start: Start) -> Result<Summary, Stop> {
    settled(config)?;
    // Where signals cannot be had, they end the program, and the last checkpoint is what is left.
    let _ = ctrlc::set_handler(|| match ASKED.fetch_add(1, Ordering::Relaxed) {
        0 => eprintln!("\nstops after this step; once more: at once"),
        _ => std::process::exit(Stop::INTERRUPTED.into()),
    });
    let mut progress = Progress::stderr();
    let mut on = |event: Event| -> Result<()> {
        talk::show(&mut progress, &event);
        match event {
            Event::Step(_) | Event::Eval { .. } | Event::Loading { .. } if ASKED.load(Ordering::Relaxed) > 0 => {
                Err(Error::Cancelled)
            }
            _ => Ok(()),
        }
    };
    let summary = run::run(config, start, &mut on);
    progress.finish();
    match summary {
        Err(Error::Cancelled) => Err(Stop::Interrupted),
        other => Ok(other?),
    }
}
