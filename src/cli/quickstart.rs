//! `trimtab quickstart`: a whole fine-tuning run on the model and text that ship in the repository.

use std::path::{Path, PathBuf};

use trimtab::Error;
use trimtab::config::{Origin, RunConfig};
use trimtab::generate::sample::Sampling;
use trimtab::run::folder::{self, Start};
use trimtab::run::metrics::{Event, METRICS_FILE};
use trimtab::run::progress::Progress;
use trimtab::run::report::REPORT_FILE;
use trimtab::run::text;

use super::settings::Settings;
use super::{Outcome, Stop, print, talk, train};

/// The settings of the run, over which flags go. Paths are put in front: they depend on where the repository is.
const SETTINGS: &str = "\
quantize = \"nf4\"
rank = 16
lr = 2e-3
warmup = 10
steps = 180
batch-size = 8
max-seq-len = 256
";

/// What the model continues before and after.
const PROMPT: &str = "ROMEO:\n";
const SAMPLE_TOKENS: usize = 80;

/// See it work: fine-tune a small shipped model on Shakespeare in about a minute; train's flags apply
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab quickstart\n\
    \x20 trimtab quickstart --rank 4 --out runs/small")]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> Outcome {
    let assets = assets()?;
    // TOML's basic strings are JSON's.
    let quoted = |p: &Path| serde_json::Value::from(p.display().to_string()).to_string();
    let (model, data) = (assets.join("base"), assets.join("shakespeare.txt"));
    let text = format!("model = {}\ndata = {}\nout = \"runs/quickstart\"\n{SETTINGS}", quoted(&model), quoted(&data));
    let Some(config) = args.settings.resolve_over(&text, "quickstart")? else { return Ok(()) };
    let out = config.need("out").map_err(Stop::Usage)?.to_path_buf();

    // The folder of the last quickstart is replaced; one that was asked for only if it holds nothing. That is known before
    // the first sample, which takes seconds.
    let asked = config.origin("out") == Some(&Origin::Flag);
    let start = if asked { Start::New } else { Start::Overwrite };
    folder::admit(&config, start)?;

    let mut progress = Progress::stderr();
    let mut base = config.clone();
    base.adapter = None;
    talk::show(&mut progress, &sample(&base, 0, "before: the base model, which has read prose")?);
    let summary = train::train(&config, start)?;
    let mut tuned = config.clone();
    tuned.adapter = Some(out.clone());
    talk::show(&mut progress, &sample(&tuned, summary.steps, "after: the same model with the adapter")?);

    let show = |p: &Path| p.display().to_string();
    let model = show(config.need("model")?);
    print(&format!(
        "loss {:.3} to {:.3} in {} steps\n\
         adapter  {}\n\
         curves   {}\n\
         numbers  {}\n\
         \n\
         Next:\n  \
         trimtab generate --model {model} --adapter {} --prompt 'JULIET:'\n  \
         trimtab train --config {} --overwrite   (the same run again: the same bytes)\n  \
         trimtab train --model DIR|FILE.gguf --data FILE.jsonl --quantize nf4 --out runs/mine\n",
        summary.first_loss,
        summary.last_loss,
        summary.steps,
        show(&out.join("adapter_model.safetensors")),
        show(&out.join(REPORT_FILE)),
        show(&out.join(METRICS_FILE)),
        show(&out),
        show(&out.join("config.toml")),
    ))
}

fn sample(config: &RunConfig, step: u64, when: &str) -> Result<Event, Error> {
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: config.seed, ..Sampling::default() };
    let mut written = String::new();
    text::generate(config, PROMPT, SAMPLE_TOKENS, &sampling, &mut |piece| {
        written.push_str(piece);
        true
    })?;
    Ok(Event::Sample { step, when: when.into(), prompt: PROMPT.into(), text: written.split_off(PROMPT.len()) })
}

/// The folder of the shipped files: in the working directory, or where the program was built.
fn assets() -> Result<PathBuf, Error> {
    let places = [PathBuf::from("assets"), Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")];
    places.into_iter().find(|p| p.join("base").is_dir()).ok_or_else(|| {
        Error::unsupported("quickstart without the repository's assets/ folder", "run it in a clone of the repository")
    })
}
