//! `trimtab man`: the manual page.

use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use trimtab::{Error, Result};

use super::{Cli, Outcome, print};

/// Write the manual page to standard output, or a page of each command into a folder
#[derive(clap::Args)]
#[command(after_help = "Examples:\n\
    \x20 trimtab man | man -l -\n\
    \x20 trimtab man --out ~/.local/share/man/man1        (then `man trimtab` and `man trimtab-train`)")]
pub struct Args {
    /// Folder for trimtab.1, trimtab-train.1 and so on, which is made
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Outcome {
    let mut cli = Cli::command();
    cli.build();
    let Some(dir) = args.out else { return print(&page(&cli)?) };
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let mut pages = vec![("trimtab.1".to_owned(), page(&cli)?)];
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("trimtab-{}", command.get_name());
        pages.push((format!("{name}.1"), page(&command.clone().display_name(&name))?));
    }
    for (name, text) in &pages {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    }
    print(&format!("{} pages in {}\n", pages.len(), dir.display()))
}

fn page(command: &Command) -> Result<String> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text).map_err(|e| Error::io("manual page", e))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
