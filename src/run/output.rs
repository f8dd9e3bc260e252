//! Where a command writes its result: a new folder or file, which is there whole or not at all.

use std::path::{Path, PathBuf};

use super::folder::{apart, is_empty};
use super::progress::human;
use crate::durable;
use crate::error::{Error, Result};
use crate::system;

/// A folder that is being written beside its place.
pub struct Output {
    path: PathBuf,
    unfinished: PathBuf,
}

impl Output {
    /// Will be `path`, which is to be new or empty, and none of `inputs` (a flag's name and its path) nor in one.
    pub fn folder(path: &Path, inputs: &[(&str, &Path)]) -> Result<Output> {
        inputs.iter().try_for_each(|(name, other)| apart(path, name, other))?;
        if path.is_file() || !is_empty(path)? {
            let what = if path.is_file() { "a file" } else { "which holds something" };
            let found = format!("{}, {what}", path.display());
            return Err(Error::config("out", found, "a new or empty folder"));
        }
        make_parent(path)?;
        let unfinished = durable::beside(path);
        std::fs::create_dir(&unfinished).map_err(|e| Error::io(&unfinished, e))?;
        Ok(Output { path: path.into(), unfinished })
    }

    /// The folder to write into until it is finished.
    pub fn dir(&self) -> &Path {
        &self.unfinished
    }

    /// Gives it its name.
    pub fn finish(self) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        durable::sync_folder(&self.unfinished);
        if !self.path.exists() {
            return std::fs::rename(&self.unfinished, &self.path).map_err(io);
        }
        // A folder with files of people's tools. Without config.json it is no model.
        let entries = std::fs::read_dir(&self.unfinished).map_err(io)?;
        let mut names = entries.map(|e| e.map(|e| e.file_name())).collect::<std::io::Result<Vec<_>>>().map_err(io)?;
        names.sort_by_key(|name| name == "config.json");
        for name in names {
            std::fs::rename(self.unfinished.join(&name), self.path.join(&name)).map_err(io)?;
        }
        Ok(())
    }
}

/// What is not finished leaves nothing.
impl Drop for Output {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.unfinished);
    }
}

/// An error if a file may not be written to `path`: if it is there, unless it is to be replaced, or is in one of `inputs`.
pub fn check_file(path: &Path, inputs: &[(&str, &Path)], overwrite: bool) -> Result<()> {
    inputs.iter().try_for_each(|(name, other)| apart(path, name, other))?;
    let found = match path {
        path if path.is_dir() => "a folder",
        path if path.exists() && !overwrite => "which is there already",
        _ => return make_parent(path),
    };
    let expected = if found == "a folder" { "the path of a file" } else { "a new file, or --overwrite" };
    Err(Error::config("out", format!("{}, {found}", path.display()), expected))
}

/// An error if there is no room for `needed` bytes beside `path`; where that cannot be known, there is.
pub fn has_room(path: &Path, needed: u64) -> Result<()> {
    match system::free_space(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))) {
        Some(free) if free < needed => {
            let found = format!("{} free for {}", human(free), path.display());
            Err(Error::config("out", found, format!("{} for what will be written", human(needed))))
        }
        _ => Ok(()),
    }
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e)),
        None => Ok(()),
    }
}
