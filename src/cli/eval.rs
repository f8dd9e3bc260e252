//! `trimtab eval`: loss and metrics of a model on data, with adapters side by side.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use trimtab::config::RunConfig;
use trimtab::run::score::{Scored, score};

use super::settings::{resolved, setting_flags};
use super::talk::say;
use super::{Outcome, Stop, print};

/// The settings of a run that count here too; adapters are several.
const SETTINGS: [&str; 24] = [
    "model",
    "task",
    "data",
    "format",
    "columns",
    "too_long",
    "chat_template",
    "train_on",
    "quantize",
    "double_quant",
    "batch_size",
    "max_seq_len",
    "max_target_len",
    "doc_stride",
    "micro_tokens",
    "qa_padding",
    "qa_token_types",
    "seed",
    "dtype",
    "device",
    "memory",
    "stream",
    "host_memory",
    "tune",
];

/// Loss, perplexity and the task's metrics on data; several adapters side by side
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab eval --model DIR --data held-out.jsonl\n\
    \x20 trimtab eval --model DIR --adapter runs/a runs/b --base --data held-out.jsonl --json")]
pub struct Args {
    /// Adapters: each is a row of the table
    #[arg(long, value_name = "DIR", num_args = 1.., action = clap::ArgAction::Append)]
    adapter: Vec<PathBuf>,
    /// A row for the model without an adapter too
    #[arg(long, requires = "adapter")]
    base: bool,
    /// One JSON object a row: adapter, task, rows, cut, units, loss, the metrics, seconds
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Flags,
}

setting_flags!(Flags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let mut wanted: Vec<Option<PathBuf>> = args.adapter.into_iter().map(Some).collect();
    if args.base || wanted.is_empty() {
        wanted.insert(0, None);
    }
    // What is wrong with any of them is said before the first takes its time.
    let resolve = |adapter: &Option<PathBuf>| -> Result<RunConfig, Stop> {
        let mut flags = args.settings.0.clone();
        flags.0.extend(adapter.as_ref().map(|dir| ("adapter", dir.display().to_string())));
        let config = resolved(&flags, &["model"])?;
        config.need_data().map_err(Stop::Usage)?;
        Ok(config)
    };
    let configs = wanted.iter().map(resolve).collect::<Result<Vec<_>, Stop>>()?;
    let mut all = Vec::new();
    for config in &configs {
        let scored = score(config)?;
        for note in scored.notes.iter().filter(|note| !all.iter().any(|s: &Scored| s.notes.contains(note))) {
            say!("note: {note}");
        }
        if args.json {
            print(&format!("{}\n", object(&scored)))?;
        }
        all.push(scored);
    }
    if let Some(Scored { task, rows: (rows, cut), found, .. }) = all.first() {
        let cut =
            if *cut > 0 { format!(", {cut} of them cut to {} tokens", configs[0].max_seq_len) } else { String::new() };
        say!("task {task}, {rows} rows{cut}, loss over {} units", found.units);
    }
    if args.json { Ok(()) } else { print(&table(&all)) }
}

fn name(scored: &Scored) -> String {
    scored.adapter.as_ref().map_or("no adapter".into(), |dir| dir.display().to_string())
}

fn object(scored: &Scored) -> Value {
    let Scored { adapter, task, rows, found, seconds, .. } = scored;
    let adapter = adapter.as_ref().map(|dir| dir.display().to_string());
    let mut object = Map::new();
    let base = json!({"adapter": adapter, "task": task, "rows": rows.0, "cut": rows.1, "units": found.units});
    object.extend(base.as_object().cloned().unwrap_or_default());
    object.insert("loss".into(), json!(found.loss));
    object.extend(found.metrics.iter().map(|(name, value)| (name.to_string(), json!(value))));
    object.insert("seconds".into(), json!(seconds));
    Value::Object(object)
}

/// A column a metric, a line an adapter.
fn table(all: &[Scored]) -> String {
    let metrics = all.first().map_or(Vec::new(), |s| s.found.metrics.iter().map(|m| m.0).collect());
    let head = ["", "loss"].into_iter().chain(metrics.iter().copied()).map(String::from).collect();
    let mut lines: Vec<Vec<String>> = vec![head];
    for scored in all {
        let value = |name: &str| scored.found.metrics.iter().find(|m| m.0 == name).map(|m| m.1);
        let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.4}"));
        let numbers = metrics.iter().map(|name| number(value(name)));
        lines.push([name(scored), number(Some(scored.found.loss))].into_iter().chain(numbers).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let (first, rest) = line.split_at(1);
        let rest = rest.iter().zip(&widths[1..]).map(|(cell, &width)| format!("  {cell:>width$}"));
        text += &format!("{:<width$}{}\n", first[0], rest.collect::<String>(), width = widths[0]);
    }
    text
}
