//! `trimtab plan`: the memory account of a run, before anything is loaded or allocated.

use serde_json::{Map, Value, json};
use trimtab::train::progress::table;
use trimtab::train::run;

use super::settings::Settings;
use super::{Outcome, Stop, print};

/// Print the memory that a run will take, to the byte, before anything is loaded or allocated
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object: device, rows (class to bytes), total, peak_site
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> Outcome {
    let Some(config) = args.settings.resolve()? else { return Ok(()) };
    config.need("model").map_err(Stop::Usage)?;
    let (device, account) = run::account(&config)?;
    if !args.json {
        return print(&table(&account, &device));
    }
    let rows: Map<String, Value> = account.rows.iter().map(|(class, bytes)| (class.clone(), (*bytes).into())).collect();
    let object = json!({"device": device, "rows": rows, "total": account.total, "peak_site": account.peak_site});
    print(&format!("{object}\n"))
}
