//! `trimtab preview`: what a run would learn, before it does.

use std::io::IsTerminal;

use serde_json::json;
use trimtab::run::lesson::{Marks, Piece, Shown};
use trimtab::run::preview::{Preview, preview};
use trimtab::run::progress::grouped;

use super::settings::Settings;
use super::talk::say;
use super::{Outcome, Stop, print};

/// Show examples as the model will see them, what of them is learnt, lengths, and what is left out
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab preview --model HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl\n\
    \x20 trimtab preview --model DIR --data mine.csv --columns text=review,label=stars -n 2 --json\n\n\
    What is learnt is green on a terminal and in ⟦ ⟧ elsewhere (or if NO_COLOR is set).")]
pub struct Args {
    /// How many examples to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5)]
    examples: usize,
    /// Print one JSON object: examples (texts in pieces), lengths, tokens, trained, micro_batches, full, about
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> Outcome {
    let Some(config) = args.settings.resolve()? else { return Ok(()) };
    config.need("model").map_err(Stop::Usage)?;
    config.need_data().map_err(Stop::Usage)?;
    let Preview { about, examples, lengths, trained, sizes, full } = preview(&config, args.examples)?;
    if args.json {
        let bins = lengths.bins().into_iter().map(|(from, to, count)| json!({"from": from, "to": to, "count": count}));
        let object = json!({
            "examples": examples.iter().map(example).collect::<Vec<_>>(),
            "lengths": bins.collect::<Vec<_>>(),
            "tokens": lengths.total(),
            "trained": trained,
            "micro_batches": sizes,
            "full": full,
            "about": about,
        });
        return print(&format!("{object}\n"));
    }
    about.iter().for_each(|line| say!("{line}"));
    // https://no-color.org: set to anything but nothing.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let marks = if std::io::stdout().is_terminal() && !plain { Marks::Colour } else { Marks::Brackets };
    let mut text = String::new();
    for (i, shown) in examples.iter().enumerate() {
        let (tokens, trained) = shown.tokens;
        text += &format!("─── {}: {tokens} tokens, {trained} learnt\n{}\n", i + 1, shown.text(marks));
    }
    let learnt = if trained > 0 { format!(", {} learnt", grouped(trained as u64)) } else { String::new() };
    text +=
        &format!("{}; {} tokens{learnt}\n{}", lengths.about(), grouped(lengths.total() as u64), lengths.histogram());
    print(&text)
}

fn example(shown: &Shown) -> serde_json::Value {
    let piece = |Piece { text, trained, tag }: &Piece| match tag {
        Some(tag) => json!({"text": text, "trained": trained, "tag": tag}),
        None => json!({"text": text, "trained": trained}),
    };
    let texts: Vec<Vec<_>> = shown.texts.iter().map(|text| text.iter().map(piece).collect()).collect();
    json!({"texts": texts, "answer": shown.answer, "tokens": shown.tokens.0, "trained": shown.tokens.1})
}
