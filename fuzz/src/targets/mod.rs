//! The targets: what a user's file reaches, as functions of bytes. An error is a right answer; a panic, a hang or memory
//! out of proportion is not.
//!
//! Where a target reads a folder, its input holds the folder's files: [`split`] divides it at lines of `%%`, and an empty
//! part is a file that is not there. Formats with lengths that must agree have forms in text, see [`forms`].

mod adapter;
mod config;
mod forms;
mod gguf;
mod rows;
mod safetensors;
mod state;
mod toml;

use std::path::Path;

/// A parser under test.
pub struct Target {
    /// Its name, its binary's, and its corpus's.
    pub name: &'static str,
    /// Gives it an input; files go into the folder.
    pub run: fn(&[u8], &Path),
}

/// Every target.
pub static TARGETS: &[Target] = &[
    Target { name: "safetensors", run: safetensors::run },
    Target { name: "gguf", run: gguf::run },
    Target { name: "config", run: config::run },
    Target { name: "adapter", run: adapter::run },
    Target { name: "rows", run: rows::run },
    Target { name: "state", run: state::run },
    Target { name: "toml", run: toml::run },
];

/// The target of a name.
#[allow(dead_code)] // The replay walks them all.
pub fn named(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of the table")
}

/// Before the first input: what every thread keeps for itself is no input's, so there is one.
pub fn prepare() {
    // Whoever was first has decided it.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
}

/// The parts of an input: what lines of `%%` divide.
fn split(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    const LINE: &[u8] = b"\n%%\n";
    let mut rest = Some(input);
    std::iter::from_fn(move || {
        let all = rest?;
        let at = all.windows(LINE.len()).position(|w| w == LINE);
        let (part, after) = match at {
            Some(at) => (&all[..at], Some(&all[at + LINE.len()..])),
            None => (all, None),
        };
        rest = after;
        Some(part)
    })
}

/// Makes `path` what a part is: a file of these bytes, or none if there are none.
fn put(path: &Path, bytes: &[u8]) {
    match bytes.is_empty() {
        // It is gone already in most cases.
        true => drop(std::fs::remove_file(path)),
        false => std::fs::write(path, bytes).expect("room for an input's file"),
    }
}
