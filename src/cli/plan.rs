//! `trimtab plan`: the memory account of a run, before anything is loaded or allocated.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use trimtab::Error;
use trimtab::memory::budget;
use trimtab::run::output;
use trimtab::run::progress::{human, table};
use trimtab::run::training::{self as run, Forecast};

use super::settings::Settings;
use super::talk::say;
use super::{Outcome, Stop, print};

/// Print the memory that a run will take, to the byte, before anything is loaded or allocated
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab plan --model DIR --quantize nf4 --max-seq-len 2048 --memory 6GiB\n\
    \x20 trimtab plan --model DIR --data mine.jsonl --json")]
pub struct Args {
    /// Print one JSON object: device, rows (class to bytes), total, peak_site, host, host_total, files, choices, free
    #[arg(long)]
    json: bool,
    /// Draw where everything is over one step
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> Outcome {
    let Some(config) = args.settings.resolve()? else { return Ok(()) };
    config.need("model").map_err(Stop::Usage)?;
    if let Some(path) = &args.svg {
        output::check_replaces(path, output::SVG)?;
    }
    let Forecast { device, account, chosen, notes, free, svg } = run::forecast(&config)?;
    notes.iter().for_each(|note| say!("{note}"));
    if let Some(path) = args.svg {
        std::fs::write(&path, svg).map_err(|e| Error::io(&path, e))?;
    }
    if !args.json {
        let choices =
            if chosen.is_empty() { String::new() } else { format!("to save memory\n{}", budget::text(&chosen)) };
        let free = free.map_or(String::new(), |free| format!("free on {device}: {}\n", human(free)));
        return print(&(table(&account, &device) + &choices + &free));
    }
    let map = |rows: &[(String, u64)]| -> Map<String, Value> {
        rows.iter().map(|(class, bytes)| (class.clone(), (*bytes).into())).collect()
    };
    let choices = chosen.iter().map(|c| json!({"what": c.what, "saves_bytes": c.saves, "costs_seconds": c.seconds}));
    let object = json!({
        "device": device,
        "rows": map(&account.rows),
        "total": account.total,
        "peak_site": account.peak_site,
        "host": map(&account.host),
        "host_total": account.host_total,
        "files": map(&account.files),
        "choices": choices.collect::<Vec<_>>(),
        "free": free,
    });
    print(&format!("{object}\n"))
}
