//! What the leaves of a model are: their role, and where their first values come from.

use super::Val;

/// What a weight does in the model. Methods choose by role or by name; storage formats by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Embed,
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    Norm,
    Head,
}

impl Role {
    /// The layers that `all-linear` means: every linear layer but the output head, as in Hugging Face PEFT.
    pub fn is_block_linear(self) -> bool {
        !matches!(self, Role::Embed | Role::Norm | Role::Head)
    }
}

/// Where the first value of a tensor comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The tensor of this name in the base model's files, unless an adapter holds another.
    Base {
        tensor: String,
        role: Role,
        /// The key under which an adapter's file may hold it, frozen.
        held: Option<String>,
    },
    /// An adapter's tensor under this key in its file; else drawn as `init` says.
    Adapter { init: Init },
    /// The same; else rows of a tensor of the base model.
    Rows { tensor: String, role: Role, rows: Vec<usize> },
    /// Computed when the graph was built: its bytes.
    Data(Vec<u8>),
    /// Computed when weights are loaded, as they are held.
    RowNorms(RowNorms),
}

/// The norms of the rows of `w + scale·b·a`, leaves that are loaded before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNorms {
    pub w: Val,
    pub a: Val,
    pub b: Val,
    pub scale: f32,
}

/// How a new tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    /// Uniform in ±bound.
    Uniform {
        bound: f32,
    },
    Normal {
        std: f32,
    },
    RowNorms(RowNorms),
}

/// A leaf that is filled before the first step.
#[derive(Clone, Debug)]
pub struct Weight {
    pub val: Val,
    pub name: String,
    pub source: Source,
    pub trainable: bool,
}
