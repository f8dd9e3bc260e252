//! `trimtab completions`: what a shell needs to complete commands and flags.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome, print};

/// Write what a shell needs to complete commands and flags, to standard output
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab completions bash > ~/.local/share/bash-completion/completions/trimtab\n\
    \x20 trimtab completions zsh > ~/.zfunc/_trimtab          (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)\n\
    \x20 trimtab completions fish > ~/.config/fish/completions/trimtab.fish\n\
    \x20 trimtab completions powershell >> $PROFILE")]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub fn run(args: Args) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "trimtab", &mut text);
    print(&String::from_utf8_lossy(&text))
}
