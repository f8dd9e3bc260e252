//! The command line: one file a command, each a thin layer over the library. Results go to standard output, talk to
//! standard error; 0 is success, 1 is work that failed, 2 is a call that makes no sense, 130 is work that was interrupted.

mod adapters;
mod advice;
mod bench;
mod chat;
mod completions;
mod devices;
mod eval;
mod export;
mod fetching;
mod generate;
mod groups;
mod init;
mod inspect;
mod man;
mod merge;
mod plan;
mod predict;
mod preview;
#[cfg(feature = "hub")]
mod push;
mod quantize;
mod quickstart;
mod report;
mod sampling;
mod settings;
mod synth;
mod talk;
mod train;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use trimtab::{Error, Result};

/// Fine-tunes language models in little memory: on the CPU, on NVIDIA GPUs, and on any Vulkan, Metal or DX12 GPU.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, args_override_self = true)]
#[command(after_help = "Examples:\n\
    \x20 trimtab quickstart\n\
    \x20 trimtab train --model HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl --out runs/mine\n\
    \x20 trimtab chat --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter runs/mine\n\n\
    `trimtab help COMMAND` tells all of a command. Exit codes: 0, 1 for work that failed, 2 for a call that makes\n\
    no sense, 130 for work that was interrupted.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing but errors and the result
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Init(init::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Merge(merge::Args),
    Adapters(adapters::Args),
    Export(export::Args),
    Quantize(quantize::Args),
    Eval(eval::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Preview(preview::Args),
    Predict(predict::Args),
    Devices(devices::Args),
    Quickstart(quickstart::Args),
    Report(report::Args),
    #[cfg(feature = "hub")]
    Push(push::Args),
    Completions(completions::Args),
    Man(man::Args),
    Synth(synth::Args),
    Bench(bench::Args),
}

/// Why a command ended early.
enum Stop {
    /// What was asked for makes no sense: exit code 2.
    Usage(Error),
    /// It made sense and failed: exit code 1.
    Work(Error),
    /// The user ended it; what was done is kept, and was said.
    Interrupted,
    /// It was done, and its result is a failure that was told: exit code 1.
    Told,
    /// Nobody reads the output any more, which is no failure.
    BrokenPipe,
}

impl Stop {
    /// The exit code of what the user interrupted, by the convention of shells.
    const INTERRUPTED: u8 = 130;
}

/// Errors of the library are those of work, unless a command says otherwise.
impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Work(error)
    }
}

type Outcome = Result<(), Stop>;

pub fn main() -> ExitCode {
    // Clap reports its own errors on standard error and exits with 2.
    trimtab::hub::listen(fetching::show);
    let parsed = groups::grouped(Cli::command()).try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = parsed.unwrap_or_else(|error| advice::advised(error, &Cli::command()).exit());
    if cli.quiet {
        talk::be_quiet();
    }
    let outcome = match cli.command {
        Command::Train(args) => train::run(args),
        Command::Init(args) => init::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Adapters(args) => adapters::run(args),
        Command::Export(args) => export::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Preview(args) => preview::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Quickstart(args) => quickstart::run(args),
        Command::Report(args) => report::run(args),
        #[cfg(feature = "hub")]
        Command::Push(args) => push::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Bench(args) => bench::run(args),
    };
    let (error, code) = match outcome {
        Ok(()) | Err(Stop::BrokenPipe) => return ExitCode::SUCCESS,
        Err(Stop::Told) => return ExitCode::from(1),
        Err(Stop::Interrupted) => return ExitCode::from(Stop::INTERRUPTED),
        Err(Stop::Work(error)) => (error, 1),
        Err(Stop::Usage(error)) => (error, 2),
    };
    // If standard error is closed there is nobody to tell.
    let _ = write!(std::io::stderr(), "{}", message(&error));
    ExitCode::from(code)
}

/// Prints a result, as it is, to standard output.
fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Stop::BrokenPipe),
        Err(e) => Err(Stop::Work(Error::io("standard output", e))),
    }
}

/// `error:` and what happened, then `hint:` and what to do, where the error knows.
fn message(error: &Error) -> String {
    let with_hint = |what: String, hint: &str| format!("error: {what}\nhint: {hint}\n");
    match error {
        Error::Unsupported { what, hint } => with_hint(format!("{what} is not supported"), hint),
        Error::Device { device, found, hint } => with_hint(format!("device {device}: {found}"), hint),
        Error::Memory { hint, .. } => {
            let text = error.to_string();
            with_hint(text.strip_suffix(&format!(": {hint}")).unwrap_or(&text).to_owned(), hint)
        }
        Error::Config { key, found, expected } => with_hint(format!("{key}: {found}"), &format!("expected {expected}")),
        Error::File { path, found, expected } => {
            with_hint(format!("{}: {found}", path.display()), &format!("expected {expected}"))
        }
        other => {
            let mut text = format!("error: {other}");
            // The message of an error of the system is part of ours already.
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text += &format!(": {inner_text}");
                }
                cause = inner.source();
            }
            text + "\n"
        }
    }
}
