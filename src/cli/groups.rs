//! The commands in groups, as the top-level help lists them. clap has headings for flags only, so the list is made here, of
//! clap's own names and texts.

use clap::Command;

/// Every command is in one group, in the order in which people meet them.
const GROUPS: &[(&str, &[&str])] = &[
    ("See it work", &["quickstart", "init", "devices"]),
    ("Train", &["preview", "plan", "train", "report"]),
    ("Use what was trained", &["generate", "chat", "predict", "eval"]),
    ("Hand it on", &["merge", "adapters", "export", "quantize", "push"]),
    ("Look into things", &["inspect", "bench", "synth"]),
    ("The shell", &["completions", "man", "help"]),
];

/// `cli`, whose help lists its commands in groups.
pub fn grouped(cli: Command) -> Command {
    let about = |name: &str| match cli.find_subcommand(name) {
        Some(command) => command.get_about().map(ToString::to_string),
        // clap adds it when it parses.
        None if name == "help" => Some("Tell all of a command".into()),
        None => None,
    };
    let width = GROUPS.iter().flat_map(|(_, names)| names.iter().map(|name| name.len())).max().unwrap_or(0);
    let mut list = String::new();
    for (heading, names) in GROUPS {
        let lines = names.iter().filter_map(|name| Some(format!("  {name:<width$}  {}\n", about(name)?)));
        list += &format!("{heading}:\n{}\n", lines.collect::<String>());
    }
    cli.help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}\n"
    ))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_is_in_one_group() {
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        listed.sort_unstable();
        let command = Cli::command();
        let mut there: Vec<&str> = command.get_subcommands().map(Command::get_name).chain(["help"]).collect();
        // Without a feature its command is not there.
        if cfg!(not(feature = "hub")) {
            there.push("push");
        }
        there.sort_unstable();
        assert_eq!(listed, there);
        let help = grouped(command).render_help().to_string();
        assert!(help.contains("Hand it on:\n  merge        Write a model") && help.contains("\nExamples:\n"), "{help}");
    }
}
