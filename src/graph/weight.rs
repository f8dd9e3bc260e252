//! What the leaves of a model are: their role, and where their first values come from.

use std::fmt;
use std::sync::Arc;

use super::Val;

/// What a weight does in the model. Methods choose by role or by name; storage formats by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The embedding of tokens.
    Embed,
    /// Embeddings of positions, token types, relative distances.
    Position,
    /// The layer of the queries.
    Q,
    /// The layer of the keys.
    K,
    /// The layer of the values.
    V,
    /// The layer that joins the heads' outputs.
    O,
    /// The attention itself, which has no weight of its own.
    Attention,
    /// Queries, keys and values as one layer.
    Qkv,
    /// The feed-forward layer whose activation multiplies what `Up` gives.
    Gate,
    /// The feed-forward layer into the wide space.
    Up,
    /// The feed-forward layer out of the wide space.
    Down,
    /// A linear layer between the last block and a task's head (BERT's pooler).
    Pooler,
    /// A norm's weight, or its bias.
    Norm,
    /// The head over the vocabulary.
    Head,
    /// A task's head: trained along with every method.
    Classifier,
}

impl Role {
    /// The layers that `all-linear` means: every linear layer but heads, as in Hugging Face PEFT.
    pub fn is_block_linear(self) -> bool {
        !matches!(self, Role::Embed | Role::Position | Role::Attention | Role::Norm | Role::Head | Role::Classifier)
    }

    /// A linear layer of the feed-forward part.
    pub fn is_feed_forward(self) -> bool {
        matches!(self, Role::Gate | Role::Up | Role::Down)
    }
}

/// Where the first value of a tensor comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The tensor of this name in the base model's files, unless an adapter holds another.
    Base {
        /// Its name in the checkpoint, by Hugging Face's names.
        tensor: String,
        /// What it does in the model.
        role: Role,
        /// The key under which an adapter's file may hold it, frozen.
        held: Option<String>,
        /// The file has it as `[in, out]`.
        transposed: bool,
        /// How it starts where the base model has none.
        fresh: Option<Init>,
        /// What is taken out of it when it is loaded.
        less: Option<Taken>,
    },
    /// An adapter's tensor under this key in its file; else drawn as `init` says.
    Adapter {
        /// How it starts where no adapter is read.
        init: Init,
    },
    /// The same; else rows of a tensor of the base model.
    Rows {
        /// The base model's tensor.
        tensor: String,
        /// What that tensor does in the model.
        role: Role,
        /// The rows to take, in this order.
        rows: Vec<usize>,
        /// They are multiplied by it.
        scale: f32,
    },
    /// Computed when the graph was built: its bytes.
    Data(Vec<u8>),
    /// Computed when weights are loaded: a constant too large to be held before.
    Computed(Computed),
    /// Computed when weights are loaded, as they are held.
    RowNorms(RowNorms),
}

impl Source {
    /// Whether files have it as `[in, out]`.
    pub fn is_transposed(&self) -> bool {
        matches!(self, Source::Base { transposed: true, .. })
    }
}

/// A part of low rank that a method takes out of a weight W, `[out, in]`, since its own factors started as that part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Taken {
    /// The largest singular values, so many (PiSSA).
    Singular {
        /// How many.
        rank: usize,
    },
    /// What the first columns of W, so many, span of W, times a factor (OLoRA): the leading part Q·R of its QR decomposition.
    Columns {
        /// How many.
        rank: usize,
        /// The factor.
        scale: f32,
    },
}

/// The norms of the rows of `w + scale·b·a`, leaves that are loaded before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNorms {
    /// The weight W, `[N, K]`, in any format.
    pub w: Val,
    /// The low-rank A, `[R, K]`.
    pub a: Val,
    /// The low-rank B, `[N, R]`.
    pub b: Val,
    /// Factor of the product B·A.
    pub scale: f32,
}

/// How a new tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Uniform in ±bound.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// The norms of a weight's rows: DoRA's magnitudes.
    RowNorms(RowNorms),
}

/// A leaf that is filled before the first step.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The leaf.
    pub val: Val,
    /// Its name: that of a base model's tensor in the checkpoint, or of an adapter's in its file.
    pub name: String,
    /// Where its first value comes from.
    pub source: Source,
    /// Whether the optimizer changes it.
    pub trainable: bool,
}

impl Weight {
    /// The shape that files have it in, if the graph has it in `shape`.
    pub fn stored(&self, shape: &[usize]) -> Vec<usize> {
        match shape {
            [out, features] if self.source.is_transposed() => vec![*features, *out],
            _ => shape.to_vec(),
        }
    }
}

/// Fills values of a constant, those from an element on, whole rows at a time.
type Fill = dyn Fn(usize, &mut [f32]) + Send + Sync;

/// A constant that is computed piece by piece when it is needed.
#[derive(Clone)]
pub struct Computed(Arc<Fill>);

impl Computed {
    /// `fill(first element, values)`
    pub fn new(fill: impl Fn(usize, &mut [f32]) + Send + Sync + 'static) -> Computed {
        Computed(Arc::new(fill))
    }

    /// Writes the values from element `start` on.
    pub fn fill(&self, start: usize, out: &mut [f32]) {
        (self.0)(start, out)
    }
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed")
    }
}

impl PartialEq for Computed {
    fn eq(&self, other: &Computed) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
