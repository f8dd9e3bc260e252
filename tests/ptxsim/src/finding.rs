//! What a check found: the kind, and a message that names the place.

use std::fmt;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An access outside every buffer, or outside the shared array it is next to.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A byte read before anything wrote it.
    Uninitialised,
    /// Two threads touch a byte, one writes, and nothing orders them.
    Race,
    /// Shared memory or a register touched while something asynchronous uses it.
    AsyncInFlight,
    /// Registers or shared memory that wgmma or a tensor store uses with no fence since they were touched.
    Unfenced,
    /// A barrier or a collective that not all of its threads reach together.
    DivergentBarrier,
    /// No thread can go on.
    Deadlock,
    /// A write to memory that is only read.
    ReadOnly,
    /// An instruction, entry or parameter list this interpreter does not have.
    UnknownOpcode,
    /// More steps than any test kernel needs.
    Limit,
}

/// A broken rule, with the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    /// Kernel, `.cu` line, PTX line and text, block, thread, and what happened.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Finding {
        Finding { kind, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Finding {}
