//! Where a command writes its result: a new folder or file, which is there whole or not at all.

use std::io::Read;
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

/// What a command writes into a file: its name, and the bytes that every such file begins with.
pub type Kind = (&'static str, &'static [u8]);
/// A model or an adapter in one file.
pub const GGUF: Kind = ("a GGUF file", b"GGUF");
/// A page.
pub const HTML: Kind = ("an HTML page", b"<!doctype html>");
/// A picture.
pub const SVG: Kind = ("an SVG picture", b"<svg ");

/// An error if a file of this `kind` may not be written to `path`: if it is there, unless it is to be replaced, or is in one of
/// `inputs`.
pub fn check_file(path: &Path, inputs: &[(&str, &Path)], overwrite: bool, kind: Kind) -> Result<()> {
    inputs.iter().try_for_each(|(name, other)| apart(path, name, other))?;
    if path.exists() && !path.is_dir() && !overwrite {
        let found = format!("{}, which is there already", path.display());
        return Err(Error::config("out", found, "a new file, or --overwrite"));
    }
    check_replaces(path, kind)?;
    make_parent(path)
}

/// An error if there is something else at `path` than a file of this `kind`, which may be replaced, or an empty one.
pub fn check_replaces(path: &Path, (name, start): Kind) -> Result<()> {
    if path.is_dir() {
        return Err(Error::config("out", format!("{}, a folder", path.display()), "the path of a file"));
    }
    let Ok(file) = std::fs::File::open(path) else { return Ok(()) };
    let mut begins = Vec::new();
    file.take(start.len() as u64).read_to_end(&mut begins).map_err(|e| Error::io(path, e))?;
    match begins.is_empty() || begins == start {
        true => Ok(()),
        false => {
            let found = format!("{}, which is there and is not {name}", path.display());
            Err(Error::config("out", found, format!("a new file, or {name} to replace")))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_never_replaced() {
        let dir = std::env::temp_dir().join(format!("trimtab-output-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("file");
        for (content, kind, replaced) in [
            (&b"GGUF\x03\0\0\0"[..], GGUF, true),
            (b"", GGUF, true),
            (b"{\"text\": \"a row\"}\n", GGUF, false),
            (b"GGU", GGUF, false),
            (b"<!doctype html>\n<html>", HTML, true),
            (b"# Notes", HTML, false),
            (b"<svg xmlns", SVG, true),
            (b"<!doctype html>\n<html>", SVG, false),
        ] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(check_replaces(&file, kind).is_ok(), replaced, "{content:?}, {}", kind.0);
            assert_eq!(check_file(&file, &[], true, kind).is_ok(), replaced, "{content:?}, {}", kind.0);
            assert!(check_file(&file, &[], false, kind).unwrap_err().to_string().contains("--overwrite"));
        }
        assert!(check_replaces(&dir, HTML).is_err());
        check_file(&dir.join("new/file"), &[], false, GGUF).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
