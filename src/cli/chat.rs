//! `trimtab chat`: a conversation in the terminal, or with a program that writes lines.

use std::io::{BufRead, IsTerminal};

use trimtab::Error;
use trimtab::generate::sample::Sampling;
use trimtab::run::chat::Talk;

use super::sampling::SamplingFlags;
use super::settings::{resolved, setting_flags};
use super::talk::say;
use super::{Outcome, Stop, message, print, talk};

/// The settings of a run that a conversation depends on too.
const SETTINGS: [&str; 12] = [
    "model",
    "adapter",
    "chat_template",
    "quantize",
    "double_quant",
    "seed",
    "dtype",
    "device",
    "memory",
    "stream",
    "host_memory",
    "tune",
];

const COMMANDS: &str = "/reset forgets the conversation, /system TEXT sets the system's words (none: without), \
    /adapter DIR takes an adapter, /base none, /quit ends";

/// Talk with a chat model; lines beginning with / are commands (/help)
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab chat --model DIR --adapter runs/mine --system 'Answer in one line.'")]
pub struct Args {
    /// The system's words
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Most tokens of a conversation, if the model was made for as many
    #[arg(long, value_name = "N", default_value_t = 4096)]
    context: usize,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    model: ModelFlags,
}

setting_flags!(ModelFlags, &SETTINGS);

pub fn run(args: Args) -> Outcome {
    let config = resolved(&args.model.0, &["model"])?;
    let Args { max_tokens, context, .. } = args;
    let sampling = args.sampling.with_seed(config.seed)?;
    if context < 2 {
        return Err(Stop::Usage(Error::config("--context", context.to_string(), "at least 2")));
    }
    let mut talk = Talk::open(&config, context)?;
    if let Some(system) = &args.system {
        talk.set_system(system);
    }
    tell(&mut talk);
    let input = std::io::stdin();
    let typed = input.is_terminal();
    if typed {
        say!("{COMMANDS}");
    }
    loop {
        if typed {
            eprint!("> ");
        }
        let mut line = String::new();
        let read = input.lock().read_line(&mut line).map_err(|e| Stop::Work(Error::io("standard input", e)))?;
        let line = line.trim_end_matches(['\n', '\r']);
        match line.split_once(' ').unwrap_or((line, "")) {
            _ if read == 0 => return Ok(()),
            ("/quit" | "/exit", _) => return Ok(()),
            ("", "") => {}
            (command, rest) if command.starts_with('/') => obey(&mut talk, command, rest.trim(), typed)?,
            _ => answer(&mut talk, line, max_tokens, &sampling, typed)?,
        }
    }
}

/// Tells what there is to say since it was last told.
fn tell(talk: &mut Talk) {
    talk::notes(&std::mem::take(&mut talk.notes));
}

/// One mistake ends no conversation that is typed, but one that a program leads.
fn forgive(result: Result<(), Error>, typed: bool) -> Outcome {
    match result {
        Err(error) if typed => {
            eprint!("{}", message(&error));
            Ok(())
        }
        other => Ok(other?),
    }
}

fn obey(talk: &mut Talk, command: &str, rest: &str, typed: bool) -> Outcome {
    let done = match (command, rest) {
        ("/reset", "") => {
            talk.reset();
            Ok("the conversation begins anew".to_owned())
        }
        ("/system", text) => {
            talk.set_system(text);
            Ok("the conversation begins anew with the system's words".into())
        }
        ("/adapter", dir) if !dir.is_empty() => talk.set_adapter(Some(dir.into())).map(|()| format!("adapter {dir}")),
        ("/base", "") => talk.set_adapter(None).map(|()| "the base model, without an adapter".into()),
        ("/help", "") => Ok(COMMANDS.into()),
        _ => Err(Error::config("command", format!("{command} {rest}").trim_end(), COMMANDS)),
    };
    tell(talk);
    forgive(done.map(|said| say!("{said}")), typed)
}

fn answer(talk: &mut Talk, line: &str, max_tokens: usize, sampling: &Sampling, typed: bool) -> Outcome {
    let mut stop = None;
    let said = talk.say(line, max_tokens, sampling, &mut |piece| {
        stop = print(piece).err();
        stop.is_none()
    });
    if let Some(stop) = stop {
        return Err(stop);
    }
    match said {
        Ok(timing) => {
            print("\n")?;
            if typed {
                say!("{timing}");
            }
            Ok(())
        }
        Err(error) => forgive(Err(error), typed),
    }
}
