//! The settings of `trimtab::config` as flags: help, choices and defaults come from its table.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use trimtab::Error;
use trimtab::config::{FIELDS, Field, Flags, RunConfig};
use trimtab::run::folder::CONFIG_FILE;

use super::Stop;

/// What was typed: every setting of a run, and the file that holds others.
pub struct Settings {
    file: Option<PathBuf>,
    show: bool,
    flags: Flags,
}

impl Settings {
    /// Those of the run in the folder `run`, over which flags go.
    pub fn go_on(&mut self, run: &Path) -> Result<(), Stop> {
        let wrong = |name: &str, found: String, expected: &str| Err(Stop::Usage(Error::config(name, found, expected)));
        if let Some(file) = &self.file {
            return wrong("--config", file.display().to_string(), "none beside --resume RUN, whose settings are taken");
        }
        if let Some((_, out)) = self.flags.0.iter().find(|(name, out)| *name == "out" && Path::new(out) != run) {
            return wrong("--out", out.clone(), "none beside --resume RUN, which is where the run is");
        }
        self.file = Some(run.join(CONFIG_FILE));
        self.flags.0.push(("out", run.display().to_string()));
        Ok(())
    }

    /// What it means. With `--show-config` that is all that is wanted: it is printed, and None returned.
    pub fn resolve(&self) -> Result<Option<RunConfig>, Stop> {
        let config = RunConfig::resolve(self.file.as_deref(), &self.flags).map_err(Stop::Usage)?;
        self.shown(config)
    }

    /// The same over settings that are given as the text of a file, of which `path` is the name.
    pub fn resolve_over(&self, text: &str, path: &str) -> Result<Option<RunConfig>, Stop> {
        if let Some(file) = &self.file {
            let error = Error::config("--config", file.display().to_string(), "flags alone, over settings of its own");
            return Err(Stop::Usage(error));
        }
        let config = RunConfig::resolve_text(text, path.as_ref(), &self.flags).map_err(Stop::Usage)?;
        self.shown(config)
    }

    fn shown(&self, config: RunConfig) -> Result<Option<RunConfig>, Stop> {
        match self.show {
            true => super::print(&config.to_toml()).map(|()| None),
            false => Ok(Some(config)),
        }
    }
}

/// The flags of one setting. A switch is `--name`, `--name=false` or `--no-name`; help shows the one that changes
/// the default.
fn args(field: &'static Field, order: usize) -> Vec<Arg> {
    let key = field.key();
    let help = match field.default_text() {
        Some(text) if !field.is_switch => format!("{} [default: {text}]", field.help),
        _ => field.help.to_owned(),
    };
    let arg = Arg::new(field.name).long(key.clone()).value_name(field.value_name).help_heading(field.group);
    let arg = arg.display_order(order).allow_negative_numbers(true);
    // Of most settings the last one counts.
    let arg = if field.is_list() { arg.action(ArgAction::Append).num_args(1..) } else { arg };
    if !field.is_switch {
        let arg = match field.choices {
            [] => arg,
            words => arg.value_parser(PossibleValuesParser::new(words)),
        };
        return vec![arg.help(help)];
    }
    let on_by_default = field.default_text().as_deref() == Some("true");
    let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true);
    let arg = arg.value_parser(PossibleValuesParser::new(field.choices));
    let no = Arg::new(negated(field)).long(format!("no-{key}")).action(ArgAction::SetTrue);
    let no = no.help_heading(field.group).display_order(order).overrides_with(field.name);
    let arg = arg.overrides_with(negated(field));
    match on_by_default {
        true => vec![arg.hide(true).help(field.help), no.help(format!("{} [default; this turns it off]", field.help))],
        false => vec![arg.value_name("BOOL").help(help), no.hide(true)],
    }
}

fn negated(field: &Field) -> String {
    format!("no_{}", field.name)
}

/// Adds the flags of the settings in `names`, or of all.
pub fn augment(command: Command, names: Option<&[&str]>) -> Command {
    let wanted = |f: &&Field| names.is_none_or(|names| names.contains(&f.name));
    command.args(FIELDS.iter().enumerate().filter(|(_, f)| wanted(f)).flat_map(|(order, f)| args(f, order)))
}

/// The settings that were typed.
pub fn typed(matches: &ArgMatches) -> Flags {
    let mut flags = Vec::new();
    for field in FIELDS {
        // A command that has only some of the flags knows nothing of the others.
        if let Ok(Some(values)) = matches.try_get_many::<String>(field.name) {
            flags.extend(values.map(|v| (field.name, v.clone())));
        }
        if field.is_switch && matches!(matches.try_get_one::<bool>(&negated(field)), Ok(Some(true))) {
            flags.push((field.name, "false".into()));
        }
    }
    Flags(flags)
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Settings, clap::Error> {
        Ok(Settings {
            file: matches.get_one::<PathBuf>("config").cloned(),
            show: matches.get_flag("show_config"),
            flags: typed(matches),
        })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Settings::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Settings {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config").long("config").value_name("FILE.toml");
        let file = file.value_parser(clap::value_parser!(PathBuf)).help("Settings from a file; flags override it");
        let show = Arg::new("show_config").long("show-config").action(ArgAction::SetTrue);
        let show = show.help("Print the settings, each with where it comes from, and stop");
        augment(command.arg(file).arg(show), None)
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The settings that `flags` mean, with those named in `needed`.
pub fn resolved(flags: &Flags, needed: &[&'static str]) -> Result<RunConfig, Stop> {
    let config = RunConfig::resolve(None, flags).map_err(Stop::Usage)?;
    // Commands without --config tell nothing of keys.
    let missing = |name| Stop::Usage(Error::config(format!("--{name}"), "nothing", "a path"));
    needed.iter().try_for_each(|name| config.need(name).map(drop).map_err(|_| missing(name)))?;
    Ok(config)
}

/// A group of flags for the settings that `$names` lists: a command flattens it into its own.
macro_rules! setting_flags {
    ($group:ident, $names:expr) => {
        struct $group(trimtab::config::Flags);

        impl clap::FromArgMatches for $group {
            fn from_arg_matches(matches: &clap::ArgMatches) -> Result<$group, clap::Error> {
                Ok($group($crate::cli::settings::typed(matches)))
            }
            fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
                self.0 = $crate::cli::settings::typed(matches);
                Ok(())
            }
        }

        impl clap::Args for $group {
            fn augment_args(command: clap::Command) -> clap::Command {
                $crate::cli::settings::augment(command, Some($names))
            }
            fn augment_args_for_update(command: clap::Command) -> clap::Command {
                $crate::cli::settings::augment(command, Some($names))
            }
        }
    };
}
pub(super) use setting_flags;
