//! Models and adapters by their names on the Hugging Face hub: `org/name`, `org/name@revision`, or `org/name/file.gguf` for one
//! file. They are kept in the cache that Python's `huggingface_hub` keeps them in, so that neither fetches what the other has.
//!
//! What `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` and
//! `HF_HUB_DISABLE_IMPLICIT_TOKEN` mean is what they mean there.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod choice;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod upload;

#[cfg(feature = "hub")]
pub use cache::Hub;
#[cfg(feature = "hub")]
pub use choice::{INDEX, needed, shards};
#[cfg(feature = "hub")]
pub use upload::{Content, Parcel, Pushed};

use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use crate::error::Result;

/// What is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A base model: its weights, config and tokenizer.
    Model,
    /// An adapter.
    Adapter,
}

/// How far the fetching or sending of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Whether it is sent.
    pub sent: bool,
    /// The file, in its repository.
    pub file: &'a str,
    /// Bytes that have arrived.
    pub done: u64,
    /// Bytes in all.
    pub all: u64,
}

static LISTENER: OnceLock<fn(&Progress)> = OnceLock::new();

/// Gives what is told of fetching to `listener`: the first that is set, for the whole program.
pub fn listen(listener: fn(&Progress)) {
    let _ = LISTENER.set(listener);
}

#[cfg(feature = "hub")]
fn tell(progress: &Progress) {
    if let Some(listener) = LISTENER.get() {
        listener(progress);
    }
}

/// A name on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit; `main` if there is none.
    pub revision: Option<String>,
    /// A file of it.
    pub file: Option<String>,
}

impl Name {
    /// As others write it, who say the revision elsewhere.
    pub fn without_revision(&self) -> String {
        self.file.as_ref().map_or(self.repo.clone(), |file| format!("{}/{file}", self.repo))
    }
}

/// The name that a path is, if there is nothing at it and it can be one.
pub fn name(path: &Path) -> Option<Name> {
    if path.exists() {
        return None;
    }
    let parts: Option<Vec<&str>> = path
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let parts = parts?;
    let [org, name, file @ ..] = &parts[..] else { return None };
    let (name, revision) = name.split_once('@').map_or((*name, None), |(name, revision)| (name, Some(revision)));
    if ![org, name].into_iter().chain(revision).chain(file.iter().copied()).all(is_plain) {
        return None;
    }
    // A folder of this name is a place on this machine.
    let text = path.to_str()?;
    if Path::new(org).is_dir() || text.ends_with('/') || text.contains("//") {
        return None;
    }
    let is_file =
        |name: &str| [".gguf", ".safetensors", ".json", ".jsonl", ".bin"].iter().any(|end| name.ends_with(end));
    let file = match file {
        [] if is_file(name) => return None,
        [] => None,
        [.., last] if last.ends_with(".gguf") => Some(file.join("/")),
        _ => return None,
    };
    Some(Name { repo: format!("{org}/{name}"), revision: revision.map(String::from), file })
}

/// Whether a text is the name of a repository, `org/name`.
pub fn is_repo(text: &str) -> bool {
    text.split_once('/').is_some_and(|(org, name)| is_plain(org) && is_plain(name))
}

/// Whether a part of a path may be a part of a name.
fn is_plain(part: &str) -> bool {
    let letters = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    letters
        && !part.is_empty()
        && part.len() <= 96
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("..")
}

/// Where the model or adapter is that `path` names: `path` itself, or for a name on the hub where it is kept, fetched if it is
/// not there yet.
#[cfg(feature = "hub")]
pub fn local(path: &Path, kind: Kind) -> Result<PathBuf> {
    match name(path) {
        Some(name) => Hub::of_environment()?.fetch(&name, kind),
        None => Ok(path.into()),
    }
}

/// Where the model or adapter is that `path` names: without the feature `hub`, `path` itself.
#[cfg(not(feature = "hub"))]
pub fn local(path: &Path, _: Kind) -> Result<PathBuf> {
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_an_owner_and_a_name() {
        assert!(is_repo("me/my-adapter.v2") && is_repo("src/nothing"));
        for text in ["me", "me/", "/me", "me/a/b", "./me", "me/..", "me/a b", ""] {
            assert!(!is_repo(text), "{text}");
        }
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        let revision = |path: &str| name(Path::new(path)).and_then(|name| name.revision);
        assert_eq!(revision("org/name@v1.0"), Some("v1.0".into()));
        assert_eq!(revision("org/name@v1.0/model.gguf"), Some("v1.0".into()));
        assert_eq!(revision("org/name"), None);
        let of = |path: &str| name(Path::new(path)).map(|name| (name.repo, name.file));
        let repo = |repo: &str| Some((repo.to_owned(), None));
        assert_eq!(of("some-org/Model-1.5B"), repo("some-org/Model-1.5B"));
        assert_eq!(of("some-org/model.v2"), repo("some-org/model.v2"));
        let file = |repo: &str, file: &str| Some((repo.to_owned(), Some(file.to_owned())));
        assert_eq!(of("org/name/model.Q4_0.gguf"), file("org/name", "model.Q4_0.gguf"));
        assert_eq!(of("org/name/q4/model.gguf"), file("org/name", "q4/model.gguf"));
        for path in [
            "model",
            "./org/name",
            "/org/name",
            "../name",
            "org/../name",
            "org//name",
            "org/name/",
            "src/nothing",
            "src",
            "org/model.gguf",
            "org/name/config.json",
            "a b/c",
            "org/-name",
            "org/na..me",
            "org/.name",
            "org/name@",
            "org/name@v1@v2",
            "org/@v1",
            "org@v1/name",
            "org/name@../v1",
            "",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
