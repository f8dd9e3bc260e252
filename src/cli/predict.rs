//! `trimtab predict`: labels, tags and answers of a model, with or without an adapter.

use serde_json::{Map, Value};
use trimtab::run::predict::{Input, predict};
use trimtab::{Error, Result};

use super::settings::{resolved, setting_flags};
use super::talk::say;
use super::{Outcome, Stop, print, talk};

/// The settings of a run that predictions depend on too.
const SETTINGS: [&str; 21] = [
    "model",
    "adapter",
    "task",
    "data",
    "format",
    "columns",
    "quantize",
    "double_quant",
    "batch_size",
    "max_seq_len",
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

/// Classify texts, tag words or find answers: one JSON object a row
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab predict --model DIR --adapter runs/labels --text 'What a film'\n\
    \x20 trimtab predict --model DIR --adapter runs/labels --data rows.jsonl > labels.jsonl")]
pub struct Args {
    /// One text instead of --data
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// The text that it is a pair with
    #[arg(long, value_name = "TEXT", requires = "text")]
    text_pair: Option<String>,
    /// One question instead of --data
    #[arg(long, value_name = "TEXT", requires = "context", conflicts_with = "text")]
    question: Option<String>,
    /// The text that its answer is in
    #[arg(long, value_name = "TEXT", requires = "question")]
    context: Option<String>,
    #[command(flatten)]
    model: ModelFlags,
}

setting_flags!(ModelFlags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let config = resolved(&args.model.0, &["model"])?;
    let Args { text, text_pair, question, context, .. } = args;
    let pairs = [("text", text), ("text_pair", text_pair), ("question", question), ("context", context)];
    let typed = pairs.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?))));
    let fields: Map<String, Value> = typed.collect();
    let input = match (&config.data, fields.is_empty()) {
        (Some(sources), true) => Input::Rows(sources),
        (None, false) => Input::Row(fields),
        (data, _) => {
            let found = if data.is_some() { "both --data and a text" } else { "neither --data nor a text" };
            let expected = "--data FILE, or --text TEXT, or --question TEXT --context TEXT";
            return Err(Stop::Usage(Error::config("predict", found, expected)));
        }
    };
    let mut stop = None;
    let report = predict(&config, &input, &mut |answer| {
        stop = print(&format!("{answer}\n")).err();
        Ok(stop.is_none())
    })?;
    if let Some(stop) = stop {
        return Err(stop);
    }
    say!("{}", report.about);
    talk::notes(&report.notes);
    if report.cut > 0 {
        say!("{} rows were cut to {} tokens: raise --max-seq-len to keep them whole", report.cut, config.max_seq_len);
    }
    Ok(())
}
