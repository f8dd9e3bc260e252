//! `trimtab init`: the settings of a run, from four answers.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use trimtab::config::{Flags, RunConfig};
use trimtab::{Error, Result};

use super::{Outcome, Stop, print};

/// A kind of run: `recipes/NAME.toml` of the repository.
struct Recipe {
    name: &'static str,
    about: &'static str,
    text: &'static str,
}

macro_rules! recipe {
    ($name:literal, $about:literal) => {
        Recipe { name: $name, about: $about, text: include_str!(concat!("../../recipes/", $name, ".toml")) }
    };
}

const RECIPES: &[Recipe] = &[
    recipe!("instructions", "chats, or prompts with completions"),
    recipe!("classification", "texts with labels"),
    recipe!("style", "plain text whose voice the model takes on"),
    recipe!("long-text", "sequences of thousands of tokens"),
    recipe!("low-memory", "instructions within 300 MiB"),
];

/// Settings of a recipe that are answered.
const ANSWERED: [&str; 3] = ["model", "data", "out"];

/// Write the settings of a run into a file, from four answers or as many flags
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab init                                     asks, and writes train.toml\n\
    \x20 trimtab init --model DIR --data mine.jsonl --recipe instructions --out runs/mine\n\
    \x20 trimtab train --config train.toml --dry-run\n\n\
    What is not given as a flag is asked on standard error and read from standard input.")]
pub struct Args {
    /// A folder, a GGUF file, or a name on the hub
    #[arg(long, value_name = "DIR|FILE.gguf|ORG/NAME")]
    model: Option<String>,
    /// What is learnt: a file, a folder or a pattern
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// What kind of run it is; docs/recipes.md has them
    #[arg(long, value_name = "RECIPE", value_parser = PossibleValuesParser::new(RECIPES.iter().map(|r| r.name)))]
    recipe: Option<String>,
    /// The run folder
    #[arg(long, value_name = "DIR")]
    out: Option<String>,
    /// The file that is written; one that exists is not replaced
    #[arg(long, value_name = "FILE.toml", default_value = "train.toml")]
    file: PathBuf,
}

pub fn run(args: Args) -> Outcome {
    let Args { model, data, recipe, out, file } = args;
    if file.exists() {
        let found = format!("{}, which exists", file.display());
        return Err(Stop::Usage(Error::config("--file", found, "a new file")));
    }
    let name = match recipe {
        Some(name) => name,
        None => {
            RECIPES.iter().enumerate().for_each(|(i, r)| eprintln!("  {}  {:<16} {}", i + 1, r.name, r.about));
            asked("What kind of run is it", RECIPES[0].name)?
        }
    };
    let recipe = named(&name)?;
    let given = |flag: Option<String>, question: &str, usual: &str| flag.map_or_else(|| asked(question, usual), Ok);
    let model = given(model, "Which model", "HuggingFaceTB/SmolLM2-135M-Instruct")?;
    let data = given(data, "Which data", "data.jsonl")?;
    let out = given(out, "Which folder is written", &format!("runs/{}", recipe.name))?;
    let text = settings(recipe, [&model, &data, &out]);
    // What is written is read again: an answer that is no path is known now.
    RunConfig::resolve_text(&text, &file, &Flags::default()).map_err(Stop::Usage)?;
    std::fs::write(&file, text).map_err(|e| Error::io(&file, e))?;
    let file = shown(&file);
    print(&format!(
        "wrote {file}\n\nNext:\n  trimtab preview --config {file}            what is learnt\n  \
         trimtab train --config {file} --dry-run    what it takes\n  trimtab train --config {file}\n"
    ))
}

/// A path as a shell takes it.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains(' ') { format!("'{text}'") } else { text }
}

/// The recipe of a name or a number.
fn named(answer: &str) -> Result<&'static Recipe, Stop> {
    let number = answer.parse::<usize>().ok().and_then(|n| RECIPES.get(n.checked_sub(1)?));
    number.or_else(|| RECIPES.iter().find(|recipe| recipe.name == answer)).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        Stop::Usage(Error::config("--recipe", answer, format!("one of {}", names.join(", "))))
    })
}

/// A line of standard input after a question; an empty one is `usual`.
fn asked(question: &str, usual: &str) -> Result<String, Stop> {
    eprint!("{question}? [{usual}] ");
    // If standard error is closed there is nobody to ask.
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).map_err(|e| Error::io("standard input", e))?;
    if read == 0 {
        eprintln!();
        return Err(Stop::Usage(Error::config("standard input", "its end", format!("an answer: {question}"))));
    }
    let answer = line.trim();
    Ok(if answer.is_empty() { usual.to_owned() } else { answer.to_owned() })
}

/// The recipe's settings with these values of [`ANSWERED`].
fn settings(recipe: &Recipe, values: [&str; 3]) -> String {
    let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    let mut text = String::new();
    for line in recipe.text.lines() {
        match key(line).and_then(|key| ANSWERED.iter().position(|name| *name == key)) {
            // TOML's basic strings are JSON's.
            Some(at) => text += &format!("{} = {}\n", ANSWERED[at], serde_json::Value::from(values[at])),
            None => text += &format!("{line}\n"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_takes_answers_and_is_read_again() {
        for recipe in RECIPES {
            let text = settings(recipe, ["a \"model\"", "d.jsonl", "runs/x"]);
            let config = RunConfig::resolve_text(&text, "x.toml".as_ref(), &Flags::default()).unwrap();
            assert_eq!(config.model.as_deref(), Some(Path::new("a \"model\"")), "{}", recipe.name);
            assert_eq!(config.out.as_deref(), Some(Path::new("runs/x")), "{}", recipe.name);
            assert_eq!(config.data.unwrap().0, ["d.jsonl"], "{}", recipe.name);
            let others = |text: &str| text.lines().filter(|l| ANSWERED.iter().all(|a| !l.starts_with(a))).count();
            assert_eq!(others(&text), others(recipe.text), "{}", recipe.name);
        }
    }

    #[test]
    fn recipes_are_known_by_name_and_number() {
        for (i, recipe) in RECIPES.iter().enumerate() {
            for answer in [recipe.name.to_owned(), (i + 1).to_string()] {
                assert_eq!(named(&answer).ok().map(|found| found.name), Some(recipe.name));
            }
        }
        for answer in ["0", "99", "style.toml", ""] {
            assert!(named(answer).is_err(), "{answer}");
        }
    }
}
