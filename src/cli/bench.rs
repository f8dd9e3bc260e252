//! `trimtab bench`: how fast this machine is at what the engine does, each kernel checked before it is timed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use serde_json::Value;
use trimtab::Error;
use trimtab::bench::kernels::Cache;
use trimtab::bench::stats::Patience;
use trimtab::bench::step::Subject;
use trimtab::bench::table::Report;
use trimtab::bench::{against, kernels, links, roofline, shapes, step, text};
use trimtab::config::{Bytes, RunConfig, Setting};
use trimtab::dtype::DType;
use trimtab::run::output;
use trimtab::synth;

use super::settings::{resolved, setting_flags};
use super::talk::{say, shown};
use super::{Outcome, Stop, print};

/// Measure kernels, training steps, text and transfers on any device, and compare with an earlier measurement
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab bench kernels --filter '^linear' --shapes llama-8b\n\
    \x20 trimtab bench step --model DIR --quantize nf4 --json > before.json\n\
    \x20 trimtab bench step --model DIR --quantize nf4 --against before.json\n\
    \x20 trimtab bench roofline --out roofline.svg")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Kernels(Kernels),
    Step(Step),
    Generate(Generate),
    Links(Links),
    Roofline(Roofline),
}

/// How results are shown, and what they are compared with.
#[derive(clap::Args)]
struct Output {
    /// Print one JSON object: environment, facts, rows
    #[arg(long, group = "form")]
    json: bool,
    /// Print a table in Markdown
    #[arg(long, group = "form")]
    md: bool,
    /// Print a row a line, with all that is known of each
    #[arg(long, group = "form")]
    csv: bool,
    /// Say what changed since a result of --json by more than the noise of both; exit code 1 if anything is slower
    #[arg(long, value_name = "FILE.json")]
    against: Option<PathBuf>,
}

/// Which kernels, at which sizes.
#[derive(clap::Args)]
struct Which {
    /// Only kernels whose name has this pattern in it
    #[arg(long, value_name = "REGEX")]
    filter: Option<String>,
    /// Sizes: smollm2, tinyllama, llama-8b, llama-70b, llama-405b, and any of m=, n=, k=, heads=, vocab=, rank=, …
    #[arg(long, value_name = "NAME,KEY=N", default_value = "smollm2")]
    shapes: String,
    /// Formats of frozen weights: f32, bf16, f16, nf4, nf4-dq [default: f32,bf16,nf4]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = dtype)]
    dtype: Vec<DType>,
    /// Only kernels whose activations are kept so [default: all that the device has]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    act: Option<DType>,
    /// Where operands are before a kernel runs: hot or cold [default: both]
    #[arg(long, value_name = "WHERE", value_parser = cache)]
    cache: Option<Cache>,
    /// Most seconds that one figure is measured for
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = time)]
    time: f64,
    #[command(flatten)]
    device: DeviceFlag,
}

/// Time every kernel at the sizes of a model, after checking it against float64
#[derive(clap::Args)]
#[command(
    after_help = "Each kernel is timed hot (again and again on the same operands) and cold (after reading twice what the\n\
    last-level cache holds). The roofs are measured in the same run: bytes copied, multiply-adds in registers, matrix\n\
    products. A kernel that is wrong has no time, and the exit code is 1.\n\nExamples:\n\
    \x20 trimtab bench kernels\n\
    \x20 trimtab bench kernels --filter 'linear|attention' --shapes llama-8b,m=512 --dtype nf4 --md\n\
    \x20 trimtab bench kernels --device wgpu --json > mine.json"
)]
struct Kernels {
    /// Print the names of the kernels, and stop
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: Output,
}

/// Time training steps on random tokens, and what each op takes of them
#[derive(clap::Args)]
#[command(
    after_help = "Where kernels are compiled at run time, the first step pays for it: an empty TRIMTAB_CACHE shows how much.\n\nExamples:\n\
    \x20 trimtab bench step --model DIR --batch-size 4 --max-seq-len 256\n\
    \x20 trimtab bench step --like tinyllama --quantize nf4 --max-seq-len 512"
)]
struct Step {
    /// A model of random weights instead of --model: tinyllama, llama-8b, llama-70b, llama-405b, or a config.json
    #[arg(long, value_name = "NAME|FILE.json", conflicts_with = "model")]
    like: Option<String>,
    /// Most seconds that steps are measured for; three at least
    #[arg(long, value_name = "S", default_value_t = 20.0, value_parser = time)]
    time: f64,
    #[command(flatten)]
    settings: StepFlags,
    #[command(flatten)]
    output: Output,
}

/// Time reading a prompt and writing a text, as llama-bench does (pp512, tg128)
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab bench generate --model DIR\n\
    \x20 trimtab bench generate --model FILE.gguf --quantize nf4 --prompt-tokens 2048 --md")]
struct Generate {
    /// A model of random weights instead of --model
    #[arg(long, value_name = "NAME|FILE.json", conflicts_with = "model")]
    like: Option<String>,
    /// Tokens of the prompt; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens that are written; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Most seconds of each; three runs at least
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = time)]
    time: f64,
    #[command(flatten)]
    settings: TextFlags,
    #[command(flatten)]
    output: Output,
}

/// Time transfers to the device and back, alone and beside a product, files, and memory
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  trimtab bench links --device cuda\n  trimtab bench links --folder /mnt/models")]
struct Links {
    /// Folder in which a file is written and read
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The most that is moved at once
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    most: u64,
    /// Most seconds that one figure is measured for
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = time)]
    time: f64,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten)]
    output: Output,
}

/// Draw every kernel under the roofs that are measured beside it
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab bench roofline --out roofline.svg\n\
    \x20 trimtab bench roofline --from mine.json --out roofline.svg")]
struct Roofline {
    /// The picture
    #[arg(long, value_name = "FILE.svg")]
    out: PathBuf,
    /// Draw a result of `bench kernels --json` instead of measuring
    #[arg(long, value_name = "FILE.json")]
    from: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

setting_flags!(DeviceFlag, &["device"]);
setting_flags!(
    StepFlags,
    &[
        "model",
        "task",
        "method",
        "rank",
        "alpha",
        "dropout",
        "targets",
        "quantize",
        "double_quant",
        "dtype",
        "device",
        "tune",
        "memory",
        "stream",
        "host_memory",
        "offload",
        "page_optimizer",
        "recompute",
        "batch_size",
        "max_seq_len",
        "max_target_len",
        "micro_tokens",
        "optimizer",
        "seed",
    ]
);
setting_flags!(
    TextFlags,
    &[
        "model",
        "adapter",
        "quantize",
        "double_quant",
        "dtype",
        "device",
        "tune",
        "memory",
        "stream",
        "host_memory",
        "seed"
    ]
);

fn dtype(text: &str) -> Result<DType, String> {
    let known = [DType::F32, DType::BF16, DType::F16, DType::Nf4, DType::Nf4Dq];
    let names = || known.map(|dtype| dtype.to_string()).join(", ");
    known.into_iter().find(|dtype| dtype.to_string() == text).ok_or_else(|| format!("expected {}", names()))
}

fn cache(text: &str) -> Result<Cache, String> {
    let found = Cache::ALL.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, cache)| cache).ok_or_else(|| "expected hot or cold".into())
}

fn time(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.0..=86_400.0).contains(s));
    seconds.ok_or_else(|| "expected seconds, up to a day".into())
}

fn size(text: &str) -> Result<u64, String> {
    Bytes::from_text(text).map(|bytes| bytes.0).map_err(|expected| format!("expected {expected}"))
}

pub fn run(args: Args) -> Outcome {
    match args.what {
        What::Kernels(Kernels { list: true, which, .. }) => {
            let names = kernels::names(&which.ask()?, None);
            print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
        }
        What::Kernels(Kernels { which, output, .. }) => {
            let before = output.before()?;
            let report = which.measure()?;
            let wrong = kernels::failures(&report);
            output.show(&report, before)?;
            match wrong {
                0 => Ok(()),
                n => Err(Stop::Work(Error::device(
                    report.environment.get("device").and_then(Value::as_str).unwrap_or_default(),
                    format!("{n} kernels could not be timed"),
                    "their rows say why; a kernel that is wrong is a bug of ours or of the driver: please report it",
                ))),
            }
        }
        What::Step(args) => {
            let before = args.output.before()?;
            let mut subject = subject(&args.settings.0, args.like.as_deref())?;
            let talk = Talk::new();
            let report = step::run(&mut subject, &steps(args.time), &mut |what| talk.say(what));
            talk.end();
            args.output.show(&report?, before)
        }
        What::Generate(args) => {
            let before = args.output.before()?;
            let subject = subject(&args.settings.0, args.like.as_deref())?;
            let talk = Talk::new();
            let report =
                text::run(&subject, args.prompt_tokens, args.tokens, &steps(args.time), &mut |what| talk.say(what));
            talk.end();
            args.output.show(&report?, before)
        }
        What::Links(args) => {
            let before = args.output.before()?;
            let config = resolved(&args.device.0, &[])?;
            let talk = Talk::new();
            let patience = Patience { time: Duration::from_secs_f64(args.time), ..Patience::default() };
            let report = links::run(&config.device, &args.folder, args.most, &patience, &mut |what| talk.say(what));
            talk.end();
            args.output.show(&report?, before)
        }
        What::Roofline(args) => {
            output::check_replaces(&args.out, output::SVG)?;
            let report = match &args.from {
                Some(path) => {
                    let text = read(path)?;
                    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string(), "JSON"))?
                }
                None => args.which.measure()?.json(),
            };
            let svg = roofline::draw(&report)?;
            std::fs::write(&args.out, svg).map_err(|e| Error::io(&args.out, e))?;
            print(&format!("wrote {}\n", args.out.display()))
        }
    }
}

/// Long runs: few of them are enough.
fn steps(seconds: f64) -> Patience {
    Patience { warm_up: Duration::ZERO, time: Duration::from_secs_f64(seconds), noise: 0.003, least: 3 }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

fn subject(flags: &trimtab::config::Flags, like: Option<&str>) -> Result<Subject, Stop> {
    let config: RunConfig = resolved(flags, &[])?;
    let like = like.map(synth::config).transpose()?;
    if like.is_none() {
        config.need("model").map_err(Stop::Usage)?;
    }
    Ok(Subject::new(&config, like.as_ref())?)
}

impl Which {
    fn ask(&self) -> Result<kernels::Ask, Stop> {
        let filter = self.filter.as_deref().map(Regex::new).transpose();
        let filter =
            filter.map_err(|e| Stop::Usage(Error::config("--filter", e.to_string(), "a regular expression")))?;
        let mut sizes = shapes::parse(&self.shapes).map_err(Stop::Usage)?;
        if !self.dtype.is_empty() {
            sizes.weights = self.dtype.clone();
        }
        let patience = Patience { time: Duration::from_secs_f64(self.time), ..Patience::default() };
        let caches = self.cache.map_or_else(|| Cache::ALL.map(|(_, cache)| cache).into(), |cache| vec![cache]);
        Ok(kernels::Ask { filter, sizes, patience, act: self.act, caches })
    }

    fn measure(&self) -> Result<Report, Stop> {
        let config = resolved(&self.device.0, &[])?;
        let bar = shown(ProgressBar::no_length());
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos} of {len}  {msg}") {
            bar.set_style(style);
        }
        let report = kernels::run(&config.device, &self.ask()?, &mut |done, of, name| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(name.to_owned());
        });
        bar.finish_and_clear();
        Ok(report?)
    }
}

impl Output {
    /// The text of what is compared with, read before anything takes its time.
    fn before(&self) -> Result<Option<String>, Stop> {
        Ok(self.against.as_deref().map(read).transpose()?)
    }

    /// Prints a result, then what changed.
    fn show(&self, report: &Report, before: Option<String>) -> Outcome {
        let text = match () {
            () if self.json => format!("{:#}\n", report.json()),
            () if self.md => report.markdown(),
            () if self.csv => report.csv(),
            () => report.text(),
        };
        print(&text)?;
        let (Some(before), Some(path)) = (before, &self.against) else { return Ok(()) };
        let changes = against::compare(report, &before, &path.display().to_string())?;
        say!("\nagainst {}\n{changes}", path.display());
        match changes.worse.is_empty() {
            true => Ok(()),
            false => Err(Stop::Told),
        }
    }
}

/// A line about what is being done, where somebody reads it.
struct Talk(ProgressBar);

impl Talk {
    fn new() -> Talk {
        let bar = shown(ProgressBar::new_spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        Talk(bar)
    }

    fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}
