//! The folder of a run: that it may be written is settled before anything is loaded, and only one run writes it at a time.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use super::checkpoint;
use super::metrics::METRICS_FILE;
use super::progress::human;
use super::report::REPORT_FILE;
use super::tensorboard;
use crate::config::{Flags, RunConfig};
use crate::durable;
use crate::error::{Error, Result};
use crate::peft::{adapterhub, files, full, prefix};
use crate::system;

/// The settings of a run.
pub const CONFIG_FILE: &str = "config.toml";
/// Is locked as long as a run is on, and says that the folder is a run's.
const LOCK_FILE: &str = "run.lock";

/// Files of people's tools, which make no folder full.
const NOTHING: [&str; 3] = [".gitkeep", ".gitignore", ".DS_Store"];

/// What is to be done with a folder that holds something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Nothing: the folder is to be new or empty.
    #[default]
    New,
    /// An older run is replaced; a folder of anything else is refused.
    Overwrite,
    /// The run that it holds goes on from its last checkpoint, or from its beginning where there is none.
    Resume,
}

/// The folder of a run that is on.
pub struct Folder {
    path: PathBuf,
    lock: Option<File>,
    /// Whether it existed before.
    found: bool,
    /// Whether files of a run were written.
    begun: bool,
}

/// What a folder holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// Settings, and nothing that took time to make.
    Plan,
    Run,
    Other,
}

impl Folder {
    /// Makes and locks the folder `out` of the settings.
    pub fn claim(config: &RunConfig, start: Start) -> Result<Folder> {
        let path = admit(config, start)?;
        let (found, holds) = (path.is_dir(), holds(&path)?);
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let lock = lock(&path)?;
        let folder = Folder { path, lock, found, begun: false };
        folder.sweep();
        if holds != Holds::Run {
            folder.write(CONFIG_FILE, &config.to_toml())?;
        }
        Ok(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Errs if it holds what a finished run leaves.
    pub fn check_unfinished(&self) -> Result<()> {
        let done = [files::CONFIG_FILE, "model.safetensors"].iter().any(|name| self.path.join(name).exists());
        match done {
            false => Ok(()),
            true => Err(Error::config(
                "--resume",
                format!("{}, which holds a finished run and no checkpoint", self.path.display()),
                "a run that was stopped; --overwrite begins it anew",
            )),
        }
    }

    /// Removes what says that a run is finished, and with `all` every file of the run; writes the settings.
    pub fn begin(&mut self, config: &RunConfig, all: bool) -> Result<()> {
        self.begun = true;
        // The config first: without it a folder is no adapter and no model.
        let mut old = vec![files::CONFIG_FILE, "config.json", files::WEIGHTS_FILE, "model.safetensors", "loss.svg"];
        old.push(REPORT_FILE);
        if all {
            old.extend(
                [METRICS_FILE, files::CARD_FILE, prefix::ENCODER_FILE]
                    .into_iter()
                    .chain(adapterhub::FILES)
                    .chain(full::KEPT),
            );
            let checkpoints = self.path.join(checkpoint::FOLDER);
            gone(std::fs::remove_dir_all(&checkpoints)).map_err(|e| Error::io(&checkpoints, e))?;
            for path in tensorboard::files(&self.path)? {
                gone(std::fs::remove_file(&path)).map_err(|e| Error::io(&path, e))?;
            }
        }
        for name in old {
            let path = self.path.join(name);
            gone(std::fs::remove_file(&path)).map_err(|e| Error::io(&path, e))?;
        }
        let path = self.path.join(CONFIG_FILE);
        let old = std::fs::read_to_string(&path).ok();
        let old = old.and_then(|text| RunConfig::resolve_text(&text, &path, &Flags::default()).ok());
        // The file says where each setting came from first.
        if old.is_some_and(|old| old.to_json() == config.to_json()) {
            return Ok(());
        }
        self.write(CONFIG_FILE, &config.to_toml())
    }

    /// Writes a file of text.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        durable::write(&self.path.join(name), text.as_bytes())
    }

    /// Deletes what a run that was stopped did not finish writing.
    fn sweep(&self) {
        for folder in [self.path.clone(), self.path.join(checkpoint::FOLDER)] {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries.filter(|e| durable::is_unfinished(&e.file_name())) {
                // What cannot be deleted is only untidy.
                let _ = std::fs::remove_file(entry.path()).or_else(|_| std::fs::remove_dir_all(entry.path()));
            }
        }
    }
}

/// The folder `out` of the settings, if a run may be written there. Nothing is made.
pub fn admit(config: &RunConfig, start: Start) -> Result<PathBuf> {
    let path = config.need("out")?.to_path_buf();
    for (name, other) in [("model", &config.model), ("adapter", &config.adapter)] {
        if let Some(other) = other {
            apart(&path, name, other)?;
        }
    }
    let shown = path.display().to_string();
    let wrong = |found: String, expected: &str| Err(Error::config("out", found, expected));
    match (holds(&path)?, start) {
        (Holds::Nothing | Holds::Plan, _) | (Holds::Run, Start::Overwrite | Start::Resume) => Ok(path),
        (Holds::Run, Start::New) => {
            let expected = "a new folder; --overwrite, which replaces the run; or --resume, which goes on with it";
            wrong(format!("{shown}, which holds a run"), expected)
        }
        (Holds::Other, _) => {
            let expected = "a new or empty folder (--overwrite and --resume are for folders of runs)";
            wrong(format!("{shown}, which holds something that is not a run"), expected)
        }
    }
}

/// Whether `needed` bytes can be written in the folder `path`, which need not be there yet; where that cannot be known, they
/// can. Checkpoints that are there make room for those that come.
pub fn has_room(path: &Path, needed: u64) -> Result<()> {
    let old = checkpoint::bytes(path);
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let free = whole.ancestors().find(|there| there.exists()).and_then(system::free_space);
    match free.map(|free| free.saturating_add(old)) {
        Some(free) if free < needed => Err(Error::config(
            "out",
            format!("{} free for {}", human(free), path.display()),
            format!(
                "{} for what will be written: another folder, a smaller --keep, or --save-every 0 (no checkpoints)",
                human(needed)
            ),
        )),
        _ => Ok(()),
    }
}

/// A run that ended before it began leaves no trace, so that it can be tried again.
impl Drop for Folder {
    fn drop(&mut self) {
        self.lock = None;
        if !self.begun && matches!(holds(&self.path), Ok(Holds::Plan)) {
            for name in [CONFIG_FILE, LOCK_FILE] {
                let _ = std::fs::remove_file(self.path.join(name));
            }
            if !self.found {
                let _ = std::fs::remove_dir(&self.path);
            }
        }
    }
}

/// What is not there need not be deleted.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn holds(path: &Path) -> Result<Holds> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Holds::Nothing),
        Err(e) => return Err(Error::io(path, e)),
    };
    let names: Vec<_> =
        entries.map(|e| e.map(|e| e.file_name())).collect::<std::io::Result<_>>().map_err(|e| Error::io(path, e))?;
    let names: Vec<_> = names.into_iter().filter(|n| !NOTHING.iter().any(|name| n == name)).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let planned = |n: &std::ffi::OsString| n == LOCK_FILE || n == CONFIG_FILE || durable::is_unfinished(n);
    Ok(match () {
        () if names.is_empty() => Holds::Nothing,
        () if has(LOCK_FILE) && names.iter().all(planned) => Holds::Plan,
        // Runs of before there was a lock have both of these.
        () if has(LOCK_FILE) || (has(METRICS_FILE) && has(CONFIG_FILE)) => Holds::Run,
        () => Holds::Other,
    })
}

/// Whether a folder holds nothing, or is not there.
pub(super) fn is_empty(path: &Path) -> Result<bool> {
    holds(path).map(|holds| holds == Holds::Nothing)
}

/// Refuses a folder that is the one of the model or the adapter, or in it.
pub(super) fn apart(out: &Path, name: &str, other: &Path) -> Result<()> {
    let (Some(mine), Ok(theirs)) = (canonical(out), other.canonicalize()) else { return Ok(()) };
    if !mine.starts_with(&theirs) {
        return Ok(());
    }
    let place = if mine == theirs { "which is" } else { "which is in" };
    let found = format!("{}, {place} the --{name}", out.display());
    Err(Error::config("out", found, format!("a folder of its own: the {name} stays as it is")))
}

/// The path without links, as far as it exists.
fn canonical(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let mut rest = Vec::new();
    let mut there = path.as_path();
    loop {
        if let Ok(known) = there.canonicalize() {
            return Some(rest.iter().rev().fold(known, |path, part: &Component| match part {
                Component::ParentDir => path.parent().map(Path::to_path_buf).unwrap_or(path),
                part => path.join(part),
            }));
        }
        rest.push(there.components().next_back()?);
        there = there.parent()?;
    }
}

/// Takes the lock of the folder; none where the file system has no locks.
fn lock(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).read(true).open(&path);
    let mut file = file.map_err(|e| Error::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            let found = format!("{}, in which a run is on ({})", folder.display(), holder.trim());
            return Err(Error::config("out", found, "another folder, or wait until that run is done"));
        }
        Err(TryLockError::Error(_)) => return Ok(None),
    }
    let text = format!("process {}\n", system::process_id());
    let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
    written.map_err(|e| Error::io(&path, e))?;
    Ok(Some(file))
}
