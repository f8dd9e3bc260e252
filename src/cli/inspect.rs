//! `trimtab inspect`: what a file or folder holds, and whether it is sound.

use std::path::PathBuf;

use serde_json::Value;
use trimtab::Error;
use trimtab::run::inspect::{Found, inspect};
use trimtab::run::progress::{grouped, human};

use super::{Outcome, Stop, print};

/// Say what a model, adapter, GGUF file, data file, run or checkpoint holds, and whether it is sound (else exit code 1)
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab inspect runs/mine\n\
    \x20 trimtab inspect model.gguf --tensors\n\
    \x20 trimtab inspect rows.jsonl --json")]
pub struct Args {
    /// A folder or a file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// List the tensors, with shapes and types
    #[arg(short = 'v', long)]
    tensors: bool,
    /// Read every value of a model, and look for numbers that are not finite
    #[arg(long)]
    values: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let found = inspect(&args.path, args.values)?;
    match args.json {
        true => print(&format!("{:#}\n", found.to_json(&args.path, args.tensors)))?,
        false => print(&text(&args, &found))?,
    }
    match found.faults.first() {
        None => Ok(()),
        Some(first) => {
            // A fault that was an error begins with the path, as this one will.
            let first = first.strip_prefix(&format!("{}: ", args.path.display())).unwrap_or(first);
            let more =
                if found.faults.len() > 1 { format!(" (and {} more)", found.faults.len() - 1) } else { String::new() };
            Err(Stop::Work(Error::file(&args.path, format!("{first}{more}"), "a sound file or folder")))
        }
    }
}

/// A line a fact.
fn text(args: &Args, found: &Found) -> String {
    let mut text = format!("{}: {}\n", args.path.display(), found.kind);
    for (name, value) in &found.facts {
        lines(&mut text, name, value, 2);
    }
    if args.tensors {
        for t in &found.tensors {
            text += &format!("  {} {:?} {}, {}\n", t.name, t.shape, t.stored, human(t.bytes));
        }
    }
    match found.faults.is_empty() {
        true => text += "  sound\n",
        false => found.faults.iter().for_each(|fault| text += &format!("  not sound: {fault}\n")),
    }
    text
}

fn lines(text: &mut String, name: &str, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Null => {}
        Value::Object(map) => {
            *text += &format!("{pad}{name}\n");
            map.iter().for_each(|(name, value)| lines(text, name, value, indent + 2));
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            *text += &format!("{pad}{name}\n");
            list.iter().for_each(|value| *text += &format!("{pad}  {}\n", on_one_line(value)));
        }
        value if name.ends_with("bytes") => *text += &format!("{pad}{name}: {}\n", human(value.as_u64().unwrap_or(0))),
        value => *text += &format!("{pad}{name}: {}\n", on_one_line(value)),
    }
}

fn on_one_line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(b) => if *b { "yes" } else { "no" }.into(),
        Value::Number(n) => n.as_u64().map_or(n.to_string(), grouped),
        Value::Array(list) => list.iter().map(on_one_line).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            let one = |(key, value): (&String, &Value)| match key.as_str() {
                "bytes" => human(value.as_u64().unwrap_or(0)),
                "type" => on_one_line(value),
                key => format!("{key} {}", on_one_line(value)),
            };
            map.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Value::Null => "none".into(),
    }
}
