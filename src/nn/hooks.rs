//! What a method may do to a model while its graph is built. Methods stack: each hook's default calls `next`, the rest of
//! the stack, which ends in the layer itself.

use super::inputs::StreamId;
use super::{Nn, Role, Taken};
use crate::error::Result;
use crate::graph::{Def, LeafKind, Val};
use crate::ops::{Attention, Lora};

/// A place in the model: Hugging Face's module path, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What the place does in the model.
    pub role: Role,
}

/// A weight of the base model.
#[derive(Clone, Copy, Debug)]
pub struct WeightRef<'a> {
    /// Its name in the checkpoint: `model.layers.0.self_attn.q_proj.weight`.
    pub name: &'a str,
    /// What the weight does in the model.
    pub role: Role,
}

impl<'a> WeightRef<'a> {
    /// The module that the weight belongs to.
    pub fn module(&self) -> &'a str {
        self.name.rsplit_once('.').map_or(self.name, |(module, _)| module)
    }

    /// Whether it is a bias.
    pub fn is_bias(&self) -> bool {
        self.name.ends_with(".bias") || self.name == "bias"
    }
}

/// A linear layer: `x Wᵀ + bias`, and for each low-rank factor `+ scale · dropout(x) Aᵀ Bᵀ`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[T, in]`
    pub x: Val,
    /// `[out, in]`
    pub w: Val,
    /// `[out]`
    pub bias: Option<Val>,
    /// Its low-rank parts, which are added up.
    pub low_rank: Vec<LowRank>,
}

/// A low-rank part: A `[rank, in]`, B `[out, rank]`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    /// Factor and dropout.
    pub spec: Lora,
    /// A, `[rank, in]`.
    pub a: Val,
    /// B, `[out, rank]`.
    pub b: Val,
}

/// A table whose rows tokens take.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// `[vocabulary, features]`
    pub w: Val,
    /// Ids of the tokens, I32[T]; −1 gives zeros.
    pub ids: Val,
    /// The stream whose tokens they are.
    pub stream: StreamId,
    /// Rows are multiplied by it.
    pub scale: f32,
    /// The row that learns nothing from being read: PyTorch's `padding_idx`.
    pub padding: Option<usize>,
}

impl Table {
    /// The ids whose rows learn: −1 where they are the padding's. Those of another table may be asked for, of the same tokens.
    pub fn learnt(&self, nn: &mut Nn) -> Result<Val> {
        match self.padding.filter(|_| nn.training) {
            Some(padding) => {
                let padding = nn.constant_i32("padding", &[padding as i32]);
                Ok(nn.g.token_rows(self.ids, padding)?.1)
            }
            None => Ok(self.ids),
        }
    }
}

/// Attention of queries to keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Qkv {
    /// Queries, `[T, heads · head_dim]`.
    pub q: Val,
    /// Keys, `[S, kv_heads · head_dim]`.
    pub k: Val,
    /// Values, `[S, kv_heads · head_dim]`.
    pub v: Val,
    /// Heads, scale, and which keys a query sees.
    pub spec: Attention,
    /// The stream of the queries.
    pub queries: StreamId,
    /// The stream of the keys and values.
    pub keys: StreamId,
    /// Relative position bias F32[2·L − 1, heads] and its first query's position, where the model has one.
    pub bias: Option<Val>,
    /// Keys and values begin each sequence with a prefix.
    pub prefixed: bool,
}

/// A part of a layer whose output is added to its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Self-attention.
    Attention,
    /// Attention of a decoder to its encoder.
    CrossAttention,
    /// The MLP.
    FeedForward,
}

/// A layer norm, `(x − mean(x)) / √(var(x) + eps) · w + b`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Its module.
    pub path: String,
    /// `[features]` each.
    pub w: Val,
    /// Bias, `[features]`.
    pub b: Val,
    /// Added to the variance.
    pub eps: f32,
}

/// The output of a part of a layer and what it is added to.
#[derive(Clone, Debug)]
pub struct Residual {
    /// Which part it is.
    pub part: Part,
    /// What the part computed, `[T, hidden]`.
    pub x: Val,
    /// What it is added to: the input of the part, before the part's own norm if it has one.
    pub h: Val,
    /// The norm of the sum, in models that normalize after it.
    pub norm: Option<LayerNorm>,
}

/// What a method may change in a model as it is built. Every default leaves the model as it is.
pub trait Hooks: Send + Sync {
    /// Whether a weight of the base model is trained, and then its name in the method's file.
    fn trains(&self, _w: WeightRef) -> Option<String> {
        None
    }

    /// Under which name the method's file has a weight of the base model that it does not train, if it has.
    fn keeps(&self, _w: WeightRef) -> Option<String> {
        None
    }

    /// What is taken out of a weight of the base model when it is loaded, since the method's own tensors started as it.
    fn takes(&self, _w: WeightRef) -> Option<Taken> {
        None
    }

    /// Whether a head that is tied to the embedding stays so where one of them is trained; else each has its own weight.
    fn keeps_ties(&self) -> bool {
        true
    }

    /// The linear layer at `at`.
    fn linear(&self, nn: &mut Nn, at: &Site, layer: Linear, next: Next) -> Result<Val> {
        next.linear(nn, at, layer)
    }

    /// The rows of a table of token embeddings.
    fn embed(&self, nn: &mut Nn, at: &Site, table: Table, next: Next) -> Result<Val> {
        next.embed(nn, at, table)
    }

    /// The weight of the output head at `at`, which is that of the module `tied` if there is one.
    fn head(&self, nn: &mut Nn, at: &Site, tied: Option<&str>, w: Val, next: Next) -> Result<Val> {
        next.head(nn, at, tied, w)
    }

    /// The attention at `at`.
    fn attention(&self, nn: &mut Nn, at: &Site, qkv: Qkv, next: Next) -> Result<Val> {
        next.attention(nn, at, qkv)
    }

    /// The sum of a part's output and its residual, `x + h`, or its norm where the model normalizes after the sum. The
    /// site is the module that adds: the layer, or a module of its own for each part.
    fn residual(&self, nn: &mut Nn, at: &Site, sum: Residual, next: Next) -> Result<Val> {
        next.residual(nn, at, sum)
    }

    /// Virtual tokens before each sequence of a stream, in a model of so many streams.
    fn lead(&self, _stream: StreamId, _streams: usize) -> usize {
        0
    }

    /// Keys and values before those of each sequence of a stream, in a model of so many streams.
    fn prefix(&self, _stream: StreamId, _streams: usize) -> usize {
        0
    }
}

/// The rest of a stack of methods, ending in the layer itself.
#[derive(Clone, Copy)]
pub struct Next<'s> {
    rest: &'s [&'s dyn Hooks],
}

impl<'s> Next<'s> {
    /// All of `stack`.
    pub fn new(stack: &'s [&'s dyn Hooks]) -> Next<'s> {
        Next { rest: stack }
    }

    fn split(self) -> Option<(&'s dyn Hooks, Next<'s>)> {
        self.rest.split_first().map(|(first, rest)| (*first, Next { rest }))
    }

    /// See [`Hooks::linear`].
    pub fn linear(self, nn: &mut Nn, at: &Site, layer: Linear) -> Result<Val> {
        match self.split() {
            Some((first, next)) => first.linear(nn, at, layer, next),
            None => nn.base_linear(layer),
        }
    }

    /// See [`Hooks::embed`].
    pub fn embed(self, nn: &mut Nn, at: &Site, table: Table) -> Result<Val> {
        match self.split() {
            Some((first, next)) => first.embed(nn, at, table, next),
            None => {
                let trains = nn.g.value(table.w).def == Def::Leaf(LeafKind::Param);
                let learnt = if trains { table.learnt(nn)? } else { table.ids };
                nn.g.embed_learning([table.ids, learnt], table.w, table.scale)
            }
        }
    }

    /// See [`Hooks::head`].
    pub fn head(self, nn: &mut Nn, at: &Site, tied: Option<&str>, w: Val) -> Result<Val> {
        match self.split() {
            Some((first, next)) => first.head(nn, at, tied, w, next),
            None => Ok(w),
        }
    }

    /// See [`Hooks::attention`].
    pub fn attention(self, nn: &mut Nn, at: &Site, qkv: Qkv) -> Result<Val> {
        match self.split() {
            Some((first, next)) => first.attention(nn, at, qkv, next),
            None => nn.base_attention(at, qkv),
        }
    }

    /// See [`Hooks::residual`].
    pub fn residual(self, nn: &mut Nn, at: &Site, sum: Residual) -> Result<Val> {
        match self.split() {
            Some((first, next)) => first.residual(nn, at, sum, next),
            None => nn.base_residual(at, sum),
        }
    }
}
