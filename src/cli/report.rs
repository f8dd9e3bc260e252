//! `trimtab report`: the page of a run, made again, or of several runs side by side.

use std::path::PathBuf;

use trimtab::Error;
use trimtab::run::report::{self, REPORT_FILE};

use super::{Outcome, Stop, print};

/// Draw a run's curves as one HTML page, or compare several runs on one
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  trimtab report runs/mine\n  trimtab report runs/r8 runs/r64 --out compared.html")]
pub struct Args {
    /// Folders of runs, also of such that are under way or were stopped
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page; of one run, report.html in its folder if this is not given
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Outcome {
    let out = match (args.out, &args.runs[..]) {
        (Some(out), _) => out,
        (None, [run]) => run.join(REPORT_FILE),
        (None, runs) => {
            let found = format!("nothing, for {} runs", runs.len());
            return Err(Stop::Usage(Error::config("--out", found, "the page to write, as --out compared.html")));
        }
    };
    report::write(&args.runs, &out)?;
    print(&format!("{}\n", out.display()))
}
