//! The one error type. A message says what was found, what was expected, and what to do.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A file is not what its format says.
    #[error("{}: found {found}, expected {expected}", path.display())]
    File { path: PathBuf, found: String, expected: String },
    /// A setting (flag, TOML key, adapter_config.json field) makes no sense.
    #[error("{key}: found {found}, expected {expected}")]
    Config { key: String, found: String, expected: String },
    /// An op was given operands it is not defined for.
    #[error("op {op} at {site}: {found}")]
    Graph { op: &'static str, site: String, found: String },
    /// The backward graph would pass through an op that has no gradient.
    #[error(
        "op {op} at {site} has no gradient for its input {input}, which {parameter} needs: freeze {parameter}, or give the op a rule"
    )]
    NoGradient { op: &'static str, site: String, input: usize, parameter: String },
    /// The run needs more memory than there is; raised before anything is allocated.
    #[error("{needed} bytes are needed and {available} are there: {hint}")]
    Memory { needed: u64, available: u64, hint: String },
    /// A device refused work.
    #[error("device {device}: {found}; {hint}")]
    Device { device: String, found: String, hint: String },
    /// A callback returned it to end the work. Steps that were finished are kept; one that was not leaves no trace.
    #[error("stopped: a callback asked for it; what was done before is kept")]
    Cancelled,
    /// Understood, but not offered.
    #[error("{what} is not supported: {hint}")]
    Unsupported { what: String, hint: String },
}

impl Error {
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().into(), source }
    }
    pub fn file(path: impl AsRef<Path>, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().into(), found: found.into(), expected: expected.into() }
    }
    pub fn config(key: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Config { key: key.into(), found: found.into(), expected: expected.into() }
    }
    pub fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Unsupported { what: what.into(), hint: hint.into() }
    }
    pub fn device(device: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Device { device: device.into(), found: found.into(), hint: hint.into() }
    }
}
