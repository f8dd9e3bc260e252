//! Checkpoints of a run: all that it needs to go on to the same bits as if it had never been stopped.
//!
//! `checkpoints/step-N/` holds `state.safetensors` (trained tensors and the optimizer's state), `checkpoint.json` (the
//! step, where the data is, what the run is), the adapter if that is what is trained, and `B3SUMS`, the BLAKE3 of each
//! file as `b3sum` writes it. The folder has another name until all of it is on the disk.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::{Identity, Length};
use crate::data::sampler::Cursor;
use crate::durable;
use crate::error::{Error, Result};
use crate::run::best::Best;
use crate::run::skips::Skips;
use crate::session::Session;
use crate::system::Instant;

/// The folder of a run's checkpoints in its own.
pub const FOLDER: &str = "checkpoints";
/// The file of [`Session::save_state`].
pub const STATE_FILE: &str = "state.safetensors";
const ABOUT_FILE: &str = "checkpoint.json";
const SUMS_FILE: &str = "B3SUMS";
const NAME: &str = "step-";
/// Version of the format; another one is refused.
const FORMAT: u32 = 1;

/// What a checkpoint holds besides tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    format: u32,
    /// The version that wrote it.
    pub trimtab: String,
    /// Steps done.
    pub step: u64,
    /// The run's length.
    pub length: Length,
    /// Where the data is.
    pub cursor: Cursor,
    /// Steps that were skipped.
    pub skips: Skips,
    /// Its evaluations.
    #[serde(default)]
    pub best: Best,
    /// What the run is.
    pub identity: Identity,
}

impl About {
    /// After `step` steps of a run.
    pub fn new(step: u64, length: Length, cursor: Cursor, skips: Skips, best: Best, identity: Identity) -> About {
        About { format: FORMAT, trimtab: env!("CARGO_PKG_VERSION").into(), step, length, cursor, skips, best, identity }
    }
}

/// A checkpoint whose every byte was checked.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// What it holds besides tensors.
    pub about: About,
}

/// Writes the checkpoint of `about.step` in the run folder `run`; `more` writes what else is to be in it.
pub fn write(
    run: &Path,
    session: &mut Session,
    about: &About,
    more: &mut dyn FnMut(&mut Session, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = of(run, about.step);
    let unfinished = durable::beside(&path);
    let io = |e| Error::io(&path, e);
    removed(&unfinished)?;
    let mut write = || -> Result<()> {
        std::fs::create_dir_all(&unfinished).map_err(io)?;
        session.save_state(&unfinished.join(STATE_FILE))?;
        more(session, &unfinished)?;
        let text = serde_json::to_string_pretty(about).map_err(|e| io(e.into()))?;
        durable::write(&unfinished.join(ABOUT_FILE), text.as_bytes())?;
        durable::write(&unfinished.join(SUMS_FILE), sums(&unfinished)?.as_bytes())?;
        durable::sync_folder(&unfinished);
        // What has this name is of another course of the run, or damaged.
        removed(&path)?;
        std::fs::rename(&unfinished, &path).map_err(io)
    };
    let done = write();
    match done {
        Ok(()) => durable::sync_folder(&run.join(FOLDER)),
        // The error that matters is the first one; a leftover is only untidy.
        Err(_) => drop(removed(&unfinished)),
    }
    done.map(|()| path)
}

/// The folder of the checkpoint of `step`.
pub fn of(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!("{NAME}{step}"))
}

/// Deletes all checkpoints but the last `keep` up to `step`, and that of `best`; later ones are of another course of the run.
pub fn prune(run: &Path, step: u64, keep: usize, best: Option<u64>) {
    let all = list(run);
    let (now, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| c.0 <= step);
    let old = now.into_iter().skip(keep).filter(|c| Some(c.0) != best);
    for (_, path) in old.chain(later) {
        // What cannot be deleted only takes room.
        let _ = removed(&path);
    }
}

/// The last checkpoint that is whole. `on` is told of each that is not.
pub fn last(run: &Path, on: &mut dyn FnMut(String) -> Result<()>) -> Result<Option<Checkpoint>> {
    for (_, path) in list(run) {
        match open(&path) {
            Ok(about) => return Ok(Some(Checkpoint { path, about })),
            Err(error) => on(format!("a checkpoint that is not whole is passed over: {error}"))?,
        }
    }
    Ok(None)
}

/// Bytes of all checkpoints of a run.
pub fn bytes(run: &Path) -> u64 {
    let files = list(run).into_iter().flat_map(|(_, path)| std::fs::read_dir(path).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|about| about.len()).sum()
}

/// Checkpoints of a run by falling step.
pub fn list(run: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(run.join(FOLDER)).into_iter().flatten().flatten();
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix(NAME)?.parse().ok();
    let mut all: Vec<(u64, PathBuf)> = entries.filter_map(|e| Some((step(&e.path())?, e.path()))).collect();
    all.sort_by(|a, b| b.cmp(a));
    all
}

/// Whether a folder is a checkpoint's.
pub fn is_folder(path: &Path) -> bool {
    path.join(ABOUT_FILE).is_file() || path.join(STATE_FILE).is_file()
}

/// What a checkpoint holds besides tensors; checks every byte.
pub fn open(path: &Path) -> Result<About> {
    let file = path.join(SUMS_FILE);
    let found = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
    if found != sums(path)? {
        return Err(Error::file(&file, "hashes that are not those of the files", "BLAKE3 of each file"));
    }
    let file = path.join(ABOUT_FILE);
    let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
    let about: About = serde_json::from_str(&text).map_err(|e| Error::file(&file, e.to_string(), "a checkpoint's"))?;
    match about.format {
        FORMAT => Ok(about),
        other => Err(Error::file(&file, format!("format {other}"), format!("format {FORMAT}"))),
    }
}

/// The text of [`SUMS_FILE`].
fn sums(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let names: std::io::Result<Vec<_>> =
        std::fs::read_dir(path).map_err(io)?.map(|e| e.map(|e| e.file_name())).collect();
    let mut names: Vec<String> = names.map_err(io)?.into_iter().map(|n| n.to_string_lossy().into_owned()).collect();
    names.retain(|name| name != SUMS_FILE);
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        text += &format!("{}  {name}\n", hash(&path.join(&name))?);
    }
    Ok(text)
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(|e| Error::io(path, e))? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&piece[..n]),
        };
    }
}

fn removed(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// When checkpoints are due.
pub struct Pace {
    every: Option<u64>,
    tenth: u64,
    last: Instant,
}

/// At least so often, unless the settings say at which steps.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(600);

impl Pace {
    /// `every` so many steps (0: never), or else every tenth of `steps` and every ten minutes.
    pub fn new(every: Option<u64>, steps: u64) -> Pace {
        Pace { every, tenth: steps.div_ceil(10).max(1), last: Instant::now() }
    }

    /// Whether one is due after `step` of `steps`.
    pub fn is_due(&self, step: u64, steps: u64) -> bool {
        match self.every {
            Some(0) => false,
            _ if step == steps => true,
            Some(every) => step.is_multiple_of(every),
            None => step.is_multiple_of(self.tenth) || self.last.elapsed() >= LONGEST,
        }
    }

    /// One was written.
    pub fn written(&mut self) {
        self.last = Instant::now();
    }
}
