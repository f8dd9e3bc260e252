//! `trimtab adapters`: what is done with adapters alone, without their base model.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use trimtab::peft::combine::{How, Sign, WAYS};
use trimtab::run::combine;
use trimtab::run::progress::grouped;

use super::{Outcome, Stop, print, talk};

/// What is done with adapters alone, without their base model
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  trimtab adapters merge --adapter runs/a:0.7 runs/b:0.3 --out runs/both")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Merge(MergeArgs),
}

/// Combine LoRA adapters of one base model into one, each with a weight, with the results of PEFT's add_weighted_adapter
#[derive(clap::Args)]
#[command(
    after_help = "svd and cat sum what the adapters add to each layer, cat exactly, at a rank that is the sum of theirs. \
    linear sums\nfactors, which is a rough guess and needs equal ranks. ties and dare leave values out first (--density).\n\n\
    Examples:\n\
    \x20 trimtab adapters merge --adapter runs/a:0.7 runs/b:0.3 --out runs/both\n\
    \x20 trimtab adapters merge --method cat --adapter runs/a --adapter runs/b:-0.5 --out runs/without-b\n\
    \x20 trimtab adapters merge --method ties --density 0.4 --adapter runs/a runs/b --out runs/ties"
)]
struct MergeArgs {
    /// Adapters: folders or names on the hub, each with its weight after a colon [default weight: 1]
    #[arg(long, value_name = "DIR:WEIGHT", required = true, num_args = 1.., action = clap::ArgAction::Append)]
    adapter: Vec<String>,
    /// What is summed, and what is left out of it
    #[arg(long, default_value = "svd", value_parser = PossibleValuesParser::new(WAYS.iter().map(|way| way.name)))]
    method: String,
    /// ties, dare, magnitude_prune: the share of each adapter's values that is kept
    #[arg(long, value_name = "X")]
    density: Option<f64>,
    /// ties: the sign that counts is that of the sum, or that of more adapters
    #[arg(long, value_parser = ["total", "frequency"])]
    majority_sign: Option<String>,
    /// svd: the rank of the result [default: the largest of the adapters]
    #[arg(long, value_name = "N")]
    svd_rank: Option<usize>,
    /// dare: of what is left out
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The adapter that is written: a new or empty folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: Args) -> Outcome {
    match args.what {
        What::Merge(args) => merge(args),
    }
}

fn merge(args: MergeArgs) -> Outcome {
    let mut how = How::named(&args.method).map_err(Stop::Usage)?;
    (how.density, how.rank, how.seed) = (args.density, args.svd_rank, args.seed);
    how.sign = args.majority_sign.as_deref().map(|name| if name == "total" { Sign::Total } else { Sign::Frequency });
    how.check().map_err(Stop::Usage)?;
    args.adapter.iter().try_for_each(|text| combine::weighted(text).map(drop)).map_err(Stop::Usage)?;
    let report = combine::write(&args.adapter, &how, &args.out)?;
    talk::notes(&report.notes);
    let of: Vec<String> = report.adapters.iter().map(|(dir, weight)| format!("{weight} × {}", dir.display())).collect();
    let (modules, rank, parameters) = (report.modules, report.rank, grouped(report.parameters));
    print(&format!(
        "{}: {} by {}: {modules} modules, rank {rank}, {parameters} parameters\n",
        args.out.display(),
        of.join(" + "),
        report.method,
    ))
}
