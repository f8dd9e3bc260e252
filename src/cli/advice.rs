//! Tips for arguments that clap does not know: what a flag of another tool is called here, and files without a flag.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};
use trimtab::config::meaning;

/// The error with a tip of ours, if there is one, in place of clap's.
pub fn advised(mut error: Error, cli: &Command) -> Error {
    let tip = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(argument))) => tip(argument, cli),
        _ => None,
    };
    if let Some(tip) = tip {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::Usage);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    error
}

fn tip(argument: &str, cli: &Command) -> Option<String> {
    let called = std::env::args().nth(1)?;
    let command = cli.find_subcommand(&called)?;
    let has = |flag: &str| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
    let Some(flag) = argument.strip_prefix("--") else {
        let file = !argument.starts_with('-') && has("data");
        return file.then(|| "each value follows a flag; files of data follow --data".into());
    };
    let name = flag.split('=').next().unwrap_or(flag);
    if name.replace('-', "_") == "max_new_tokens" && has("max-tokens") {
        return Some("it is called --max-tokens here".into());
    }
    match meaning(name)? {
        (ours, more) if ours.is_empty() => Some(format!("there is no such setting: {more}")),
        (ours, _) if !has(&ours) => None,
        (ours, "") => Some(format!("it is called --{ours} here")),
        (ours, more) => Some(format!("it is called --{ours} here: {more}")),
    }
}
