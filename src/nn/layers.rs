//! Layers at sites.

use super::hooks::{LayerNorm, Linear, Part, Residual, Site, Table};
use super::inputs::{Axis, Field, Item, MAIN, StreamId};
use super::{Init, Nn, Role};
use crate::autograd;
use crate::error::Result;
use crate::graph::Val;
use crate::ops::{Activation, Dropout};

/// Which token of a sequence represents all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The first row of the sequence (BERT's `[CLS]`).
    First,
    /// The last row of the sequence.
    Last,
}

impl Nn<'_> {
    /// The tokens' rows of the embedding `path`, times `scale`, as the methods change them; that of `padding` does not learn.
    pub fn embed(&mut self, path: &str, [vocab, dim]: [usize; 2], scale: f32, padding: Option<usize>) -> Result<Val> {
        self.embed_stream(path, [vocab, dim], scale, padding, MAIN)
    }

    /// The same for the tokens of a stream.
    pub fn embed_stream(
        &mut self,
        path: &str,
        [vocab, dim]: [usize; 2],
        scale: f32,
        padding: Option<usize>,
        stream: StreamId,
    ) -> Result<Val> {
        let w = self.weight(&format!("{path}.weight"), &[vocab, dim], Role::Embed);
        let ids = self.stream(stream)?.ids;
        let site = self.enter(path, Role::Embed);
        let x = self.next().embed(self, &site, Table { w, ids, stream, scale, padding })?;
        self.g.cast(x, self.act())
    }

    /// Rows of a table that no method changes (positions, token types), by number.
    pub fn rows(&mut self, path: &str, rows: usize, dim: usize, ids: Val) -> Result<Val> {
        let w = self.weight(&format!("{path}.weight"), &[rows, dim], Role::Position);
        self.g.site = path.to_string();
        let x = self.g.embed(ids, w, 1.0)?;
        self.g.cast(x, self.act())
    }

    /// The weight [vocabulary, hidden] of the output head `path`, that of the embedding `tied` where they are one, as
    /// the methods change it.
    pub fn head(&mut self, path: &str, tied: Option<&str>, vocab: usize, dim: usize) -> Result<Val> {
        let (w, role) = match tied {
            Some(embedding) => (self.tied_weight(path, embedding, &[vocab, dim]), Role::Embed),
            None => (self.weight(&format!("{path}.weight"), &[vocab, dim], Role::Head), Role::Head),
        };
        let site = self.enter(path, role);
        self.next().head(self, &site, tied, w)
    }

    /// `x Wᵀ (+ bias)`, as the methods change it.
    pub fn linear(&mut self, path: &str, role: Role, x: Val, out: usize, bias: bool) -> Result<Val> {
        let features = self.g.ty(x).cols();
        let w = self.weight(&format!("{path}.weight"), &[out, features], role);
        self.linear_of(path, role, x, w, bias)
    }

    /// The same with a weight that is stored as `[in, out]` (transformers' Conv1D).
    pub fn conv1d(&mut self, path: &str, role: Role, x: Val, out: usize, bias: bool) -> Result<Val> {
        let features = self.g.ty(x).cols();
        let w = self.transposed_weight(&format!("{path}.weight"), &[out, features], role);
        self.linear_of(path, role, x, w, bias)
    }

    /// A layer of a task's head: drawn normal (0, `std`) with zero bias where the base model has none.
    pub fn head_linear(&mut self, path: &str, x: Val, out: usize, bias: bool, std: f32) -> Result<Val> {
        let features = self.g.ty(x).cols();
        let w = self.head_weight(&format!("{path}.weight"), &[out, features], Init::Normal { std });
        let bias = bias.then(|| self.head_weight(&format!("{path}.bias"), &[out], Init::Zeros));
        let site = self.enter(path, Role::Classifier);
        self.next().linear(self, &site, Linear { x, w, bias, low_rank: Vec::new() })
    }

    /// A layer with a bias between the last block and a task's head, which starts so too where the base model has none.
    pub fn fresh_linear(&mut self, path: &str, role: Role, x: Val, out: usize, std: f32) -> Result<Val> {
        let features = self.g.ty(x).cols();
        let w = self.fresh_weight(&format!("{path}.weight"), &[out, features], role, Init::Normal { std });
        let bias = Some(self.fresh_weight(&format!("{path}.bias"), &[out], role, Init::Zeros));
        let site = self.enter(path, role);
        self.next().linear(self, &site, Linear { x, w, bias, low_rank: Vec::new() })
    }

    fn linear_of(&mut self, path: &str, role: Role, x: Val, w: Val, bias: bool) -> Result<Val> {
        let out = self.g.shape(w)[0];
        let bias = bias.then(|| self.weight(&format!("{path}.bias"), &[out], role));
        let site = self.enter(path, role);
        self.next().linear(self, &site, Linear { x, w, bias, low_rank: Vec::new() })
    }

    /// The linear layer itself with its low-rank parts; the first is one launch with it.
    pub fn base_linear(&mut self, layer: Linear) -> Result<Val> {
        let Linear { x, w, bias, low_rank } = layer;
        let mut parts = low_rank.into_iter();
        let fused = parts.next().map(|l| (l.spec, l.a, l.b, l.spec.dropout.map(|_| self.rng())));
        let mut y = self.g.linear(x, w, bias, fused)?;
        for part in parts {
            let x = match part.spec.dropout {
                Some(dropout) => {
                    let rng = self.rng();
                    self.g.dropout(x, rng, dropout)?
                }
                None => x,
            };
            let down = self.g.linear(x, part.a, None, None)?;
            let up = self.g.linear(down, part.b, None, None)?;
            let scale = part.spec.scale;
            let factor = self.constant(&format!("factor.{scale}"), &[1], || vec![scale]);
            let up = self.g.scale(up, factor)?;
            y = self.g.add(y, up)?;
        }
        Ok(y)
    }

    /// `x / √(mean(x²) + eps) · (offset + w)`
    pub fn rms_norm(&mut self, path: &str, x: Val, eps: f32, offset: f32) -> Result<Val> {
        let dim = self.g.ty(x).cols();
        let w = self.weight(&format!("{path}.weight"), &[dim], Role::Norm);
        self.enter(path, Role::Norm);
        self.g.rms_norm(x, w, eps, offset)
    }

    /// `(x − mean(x)) / √(var(x) + eps) · w + b`
    pub fn layer_norm(&mut self, path: &str, x: Val, eps: f32) -> Result<Val> {
        let norm = self.norm_at(path, self.g.ty(x).cols(), eps);
        self.normalize(&norm, x)
    }

    /// The layer norm of a module.
    fn norm_at(&mut self, path: &str, dim: usize, eps: f32) -> LayerNorm {
        let w = self.weight(&format!("{path}.weight"), &[dim], Role::Norm);
        let b = self.weight(&format!("{path}.bias"), &[dim], Role::Norm);
        LayerNorm { path: path.to_string(), w, b, eps }
    }

    /// `x` normalized by a layer norm.
    pub fn normalize(&mut self, norm: &LayerNorm, x: Val) -> Result<Val> {
        self.enter(&norm.path, Role::Norm);
        self.g.layer_norm(x, norm.w, norm.b, norm.eps)
    }

    /// The same, of ones and zeros where the base model has none.
    pub fn fresh_layer_norm(&mut self, path: &str, x: Val, eps: f32) -> Result<Val> {
        let dim = self.g.ty(x).cols();
        let w = self.fresh_weight(&format!("{path}.weight"), &[dim], Role::Norm, Init::Ones);
        let b = self.fresh_weight(&format!("{path}.bias"), &[dim], Role::Norm, Init::Zeros);
        self.enter(path, Role::Norm);
        self.g.layer_norm(x, w, b, eps)
    }

    /// `act(x)`, elementwise.
    pub fn activation(&mut self, path: &str, x: Val, act: Activation) -> Result<Val> {
        self.g.site = path.to_string();
        self.g.activation(x, act)
    }

    /// The same over each head's part of a row.
    pub fn head_norm(&mut self, path: &str, x: Val, head_dim: usize, eps: f32, offset: f32) -> Result<Val> {
        let shape = self.g.shape(x).to_vec();
        let heads = self.g.reshape(x, &[shape[0] * shape[1] / head_dim, head_dim])?;
        let y = self.rms_norm(path, heads, eps, offset)?;
        self.g.reshape(y, &shape)
    }

    /// `down(act(gate(x)) · up(x))`
    pub fn gated_mlp(&mut self, path: &str, x: Val, inter: usize, act: Activation, bias: bool) -> Result<Val> {
        let dim = self.g.ty(x).cols();
        let gate = self.linear(&format!("{path}.gate_proj"), Role::Gate, x, inter, bias)?;
        let up = self.linear(&format!("{path}.up_proj"), Role::Up, x, inter, bias)?;
        self.g.site = path.to_string();
        let h = self.g.gated_act(gate, up, act)?;
        self.linear(&format!("{path}.down_proj"), Role::Down, h, dim, bias)
    }

    /// `h + x`, the sum of a part's output and its residual, as the methods change it. `path` is the module that adds.
    pub fn residual(&mut self, path: &str, part: Part, h: Val, x: Val) -> Result<Val> {
        self.residual_of(path, Residual { part, x, h, norm: None })
    }

    /// The same with the layer norm `norm` after it, of this module and this eps.
    pub fn residual_norm(&mut self, path: &str, part: Part, h: Val, x: Val, norm: (&str, f32)) -> Result<Val> {
        let norm = Some(self.norm_at(norm.0, self.g.ty(x).cols(), norm.1));
        self.residual_of(path, Residual { part, x, h, norm })
    }

    fn residual_of(&mut self, path: &str, sum: Residual) -> Result<Val> {
        let role = if sum.part == Part::FeedForward { Role::Down } else { Role::O };
        let y = self.next().residual(self, &Site { path: path.to_string(), role }, sum)?;
        // Nothing reads a part's output after its sum, unless a method did before.
        Ok(autograd::absorb(&mut self.g, y))
    }

    /// The sum itself, and its norm.
    pub fn base_residual(&mut self, at: &Site, sum: Residual) -> Result<Val> {
        self.g.site = at.path.clone();
        let y = self.g.add(sum.h, sum.x)?;
        match &sum.norm {
            Some(norm) => self.normalize(norm, y),
            None => Ok(y),
        }
    }

    /// `dropout(x)` with the model's own rate, in training only.
    pub fn dropout(&mut self, x: Val, p: f32) -> Result<Val> {
        if !self.training || p <= 0.0 {
            return Ok(x);
        }
        let spec = Dropout { p, site: self.next_dropout() };
        let rng = self.rng();
        self.g.dropout(x, rng, spec)
    }

    /// One row of `x` for each sequence, [sequences, features]; zeros where there is no sequence.
    pub fn pool(&mut self, x: Val, pool: Pool) -> Result<Val> {
        let row = move |item: &Item| {
            let at = item.at(MAIN);
            vec![(at.start + if pool == Pool::First { 0 } else { at.len.saturating_sub(1) }) as i32]
        };
        let name = if pool == Pool::First { "first_token" } else { "last_token" };
        let rows = self.input(Field::ints(name, Axis::Sequence, -1, row))?;
        self.g.embed(rows, x, 1.0)
    }
}
