//! The one error type. A message says what was found, what was expected, and what to do.

use std::path::{Path, PathBuf};

use crate::units::exact;

/// What functions here return: an [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not what its format says.
    #[error("{}: found {found}, expected {expected}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A setting (flag, TOML key, adapter_config.json field) makes no sense.
    #[error("{key}: found {found}, expected {expected}")]
    Config {
        /// Name of the setting, as the user writes it: `--top-p`, `lora.r`.
        key: String,
        /// The value it has.
        found: String,
        /// Which values make sense.
        expected: String,
    },
    /// An op was given operands it is not defined for.
    #[error("op {op} at {site}: {found}")]
    Graph {
        /// Name of the op.
        op: &'static str,
        /// Where in the model: `layers.3.mlp.up_proj`.
        site: String,
        /// What is wrong with the operands.
        found: String,
    },
    /// The backward graph would pass through an op that has no gradient.
    #[error(
        "op {op} at {site} has no gradient for its input {input}, which {parameter} needs: freeze {parameter}, or give the op a rule"
    )]
    NoGradient {
        /// Name of the op.
        op: &'static str,
        /// Where in the model.
        site: String,
        /// Number of the input whose gradient is wanted.
        input: usize,
        /// The trainable tensor that it would reach.
        parameter: String,
    },
    /// The run needs more memory than there is; raised before anything is allocated.
    #[error("{} are needed and {} are there: {hint}", exact(*needed), exact(*available))]
    Memory {
        /// Bytes the run would take.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// Which settings would make it smaller.
        hint: String,
    },
    /// A device refused work.
    #[error("device {device}: {found}; {hint}")]
    Device {
        /// The device's name.
        device: String,
        /// What it did.
        found: String,
        /// What to do about it.
        hint: String,
    },
    /// A callback returned it to end the work. Steps that were finished are kept; one that was not leaves no trace.
    #[error("stopped: a callback asked for it; what was done before is kept")]
    Cancelled,
    /// Understood, but not offered.
    #[error("{what} is not supported: {hint}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to use instead.
        hint: String,
    },
}

impl Error {
    /// The operating system's error `source` on the file `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().into(), source }
    }
    /// The file `path` has what was `found` where its format has `expected`.
    pub fn file(path: impl AsRef<Path>, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().into(), found: found.into(), expected: expected.into() }
    }
    /// The setting `key` has the value `found`, where `expected` says which make sense.
    pub fn config(key: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Config { key: key.into(), found: found.into(), expected: expected.into() }
    }
    /// `what` is understood but not offered; `hint` says what to use instead.
    pub fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Unsupported { what: what.into(), hint: hint.into() }
    }
    /// `device` did what was `found`; `hint` says what to do about it.
    pub fn device(device: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Device { device: device.into(), found: found.into(), hint: hint.into() }
    }
}
