//! What model families are written with: named sites at which layers stand, and the weights they need.
//!
//! A family says which layer stands where; the method decides what is trained there. Neither knows the other.

use std::collections::HashMap;

use crate::dtype::{DType, Ty};
use crate::error::Result;
pub use crate::graph::weight::{Init, Role, RowNorms, Source, Weight};
use crate::graph::{Graph, LeafKind, Val};
use crate::ops::{Activation, Attention, Lora};

/// A place in the model: Hugging Face's module path and what stands there.
#[derive(Clone, Debug)]
pub struct Site {
    pub path: String,
    pub role: Role,
}

/// What a method may change in a model as it is built. Every default leaves the model as it is.
pub trait Hooks {
    /// Under which name the method writes a weight of the base model that it does not train, if it does.
    fn keeps(&self, _name: &str, _role: Role) -> Result<Option<String>> {
        Ok(None)
    }

    /// Whether a weight of the base model is trained itself.
    fn trains(&self, _name: &str, _role: Role) -> bool {
        false
    }

    /// Under which name the method keeps a weight of the base model that it trains.
    fn key(&self, name: &str) -> String {
        name.to_string()
    }

    /// The linear layer at `site`.
    fn linear(&self, nn: &mut Nn, _site: &Site, x: Val, w: Val, bias: Option<Val>) -> Result<Val> {
        nn.base_linear(x, w, bias, None)
    }

    /// What the tokens of the batch become at `site`: rows of `table`, times `scale`.
    fn embed(&self, nn: &mut Nn, _site: &Site, table: Val, scale: f32) -> Result<Val> {
        nn.base_embed(table, scale)
    }

    /// The weight of the output head at `site`, which is that of the module `tied` if there is one.
    fn head(&self, _nn: &mut Nn, _site: &Site, _tied: Option<&str>, w: Val) -> Result<Val> {
        Ok(w)
    }
}

/// The inputs of a micro-batch of T packed tokens.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Token ids, I32[T].
    pub ids: Val,
    /// Position of each token in its sequence, I32[T].
    pub positions: Val,
    /// First token of the sequence each token belongs to, and one past its last, I32[T,2] (from `cu_seqlens`).
    pub key_range: Val,
    /// Random-number key: seed (2 words), step, micro-batch; U32[4].
    pub rng: Val,
}

/// Keys and values of earlier tokens, of a fixed capacity, for generation.
#[derive(Clone, Copy, Debug)]
pub struct Cached {
    pub capacity: usize,
    /// The row of the cache each token goes to, I32[T]; −1: none.
    pub slots: Val,
}

pub struct Nn<'a> {
    pub g: Graph,
    pub method: &'a dyn Hooks,
    pub batch: Batch,
    pub weights: Vec<Weight>,
    /// Set when generating: attention then sees the cache.
    pub cached: Option<Cached>,
    /// Methods that drop out do so only in training.
    pub training: bool,
    storage: &'a dyn Fn(&str, Role) -> DType,
    /// What activations are kept in.
    act: DType,
    named: HashMap<String, Val>,
    drops: u32,
}

impl<'a> Nn<'a> {
    /// `storage` gives the format in which a frozen weight of a name and role is kept, `act` the type of activations.
    pub fn new(method: &'a dyn Hooks, storage: &'a dyn Fn(&str, Role) -> DType, act: DType, tokens: usize) -> Nn<'a> {
        let mut g = Graph::new();
        let batch = inputs(&mut g, tokens);
        Nn {
            g,
            method,
            batch,
            weights: Vec::new(),
            cached: None,
            training: true,
            storage,
            act,
            named: HashMap::new(),
            drops: 0,
        }
    }

    /// A weight of the base model, the same one if asked for again (tied weights).
    pub fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let held = self.method.keeps(name, role).ok().flatten();
        let source = Source::Base { tensor: name.to_string(), role, held };
        let val = match self.method.trains(name, role) {
            true => {
                let key = self.method.key(name);
                let val = self.g.leaf(LeafKind::Param, &key, Ty::f32(shape));
                self.keep(val, &key, source, true)
            }
            false => {
                // Vectors (norms, biases) are small and read at full precision everywhere.
                let dtype = if shape.len() == 1 { DType::F32 } else { (self.storage)(name, role) };
                let val = self.g.leaf(LeafKind::Frozen, name, Ty::new(dtype, shape));
                self.keep(val, name, source, false)
            }
        };
        self.named.insert(name.to_string(), val);
        val
    }

    /// A new trainable tensor of a method, under its key in the adapter's file.
    pub fn adapter(&mut self, key: &str, shape: &[usize], init: Init) -> Val {
        if let Some(&val) = self.named.get(key) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Param, key, Ty::f32(shape));
        self.keep(val, key, Source::Adapter { init }, true)
    }

    /// The same, of rows of `dim` values that start as the rows `rows` of the base model's `tensor`.
    pub fn adapter_rows(&mut self, key: &str, tensor: &str, role: Role, dim: usize, rows: &[usize]) -> Val {
        if let Some(&val) = self.named.get(key) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Param, key, Ty::f32(&[rows.len(), dim]));
        self.keep(val, key, Source::Rows { tensor: tensor.into(), role, rows: rows.to_vec() }, true)
    }

    /// A constant.
    pub fn constant(&mut self, name: &str, shape: &[usize], data: impl FnOnce() -> Vec<f32>) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Frozen, name, Ty::f32(shape));
        self.keep(val, name, Source::Data(bytemuck::cast_slice(&data()).to_vec()), false)
    }

    /// A constant list of whole numbers.
    pub fn constant_i32(&mut self, name: &str, data: &[i32]) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Frozen, name, Ty::i32(&[data.len()]));
        self.keep(val, name, Source::Data(bytemuck::cast_slice(data).to_vec()), false)
    }

    /// The norms that DoRA divides by, as a constant: for use where nothing is trained.
    pub fn row_norms(&mut self, name: &str, of: RowNorms) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let rows = self.g.shape(of.w)[0];
        let val = self.g.leaf(LeafKind::Frozen, name, Ty::f32(&[rows]));
        self.keep(val, name, Source::RowNorms(of), false)
    }

    fn keep(&mut self, val: Val, name: &str, source: Source, trainable: bool) -> Val {
        self.named.insert(name.to_string(), val);
        self.weights.push(Weight { val, name: name.to_string(), source, trainable });
        val
    }

    /// What follows belongs to the next block: a layer, or what stands behind the last layer.
    pub fn block(&mut self) {
        self.g.block += 1;
    }

    /// A number that tells this dropout's random stream from the others'.
    pub fn next_dropout(&mut self) -> u32 {
        self.drops += 1;
        self.drops
    }

    /// The tokens' rows of a table, times `scale`, as the method changes them.
    pub fn embed(&mut self, path: &str, vocab: usize, dim: usize, scale: f32) -> Result<Val> {
        let table = self.weight(&format!("{path}.weight"), &[vocab, dim], Role::Embed);
        self.g.site = path.to_string();
        let site = Site { path: path.to_string(), role: Role::Embed };
        let method = self.method;
        let x = method.embed(self, &site, table, scale)?;
        self.g.cast(x, self.act)
    }

    /// The rows themselves.
    pub fn base_embed(&mut self, table: Val, scale: f32) -> Result<Val> {
        self.g.embed(self.batch.ids, table, scale)
    }

    /// The weight [vocabulary, hidden] of the output head `path`, that of the embedding `tied` where they are one, as
    /// the method changes it.
    pub fn head(&mut self, path: &str, tied: Option<&str>, vocab: usize, dim: usize) -> Result<Val> {
        let role = if tied.is_some() { Role::Embed } else { Role::Head };
        let w = self.weight(&format!("{}.weight", tied.unwrap_or(path)), &[vocab, dim], role);
        self.g.site = path.to_string();
        let site = Site { path: path.to_string(), role };
        let method = self.method;
        method.head(self, &site, tied, w)
    }

    /// `x Wᵀ (+ bias)`, as the method changes it.
    pub fn linear(&mut self, path: &str, role: Role, x: Val, out: usize, bias: bool) -> Result<Val> {
        let features = self.g.ty(x).cols();
        let w = self.weight(&format!("{path}.weight"), &[out, features], role);
        let bias = bias.then(|| self.weight(&format!("{path}.bias"), &[out], role));
        self.g.site = path.to_string();
        let site = Site { path: path.to_string(), role };
        let method = self.method;
        method.linear(self, &site, x, w, bias)
    }

    /// The linear layer itself, with a low-rank part if the method gives one.
    pub fn base_linear(
        &mut self,
        x: Val,
        w: Val,
        bias: Option<Val>,
        low_rank: Option<(Lora, Val, Val)>,
    ) -> Result<Val> {
        let rng = self.batch.rng;
        let low_rank = low_rank.map(|(lora, a, b)| (lora, a, b, lora.dropout.map(|_| rng)));
        self.g.linear(x, w, bias, low_rank)
    }

    pub fn rms_norm(&mut self, path: &str, x: Val, eps: f32, offset: f32) -> Result<Val> {
        let dim = self.g.ty(x).cols();
        let w = self.weight(&format!("{path}.weight"), &[dim], Role::Norm);
        self.g.site = path.to_string();
        self.g.rms_norm(x, w, eps, offset)
    }

    /// The same over each head's part of a row.
    pub fn head_norm(&mut self, path: &str, x: Val, head_dim: usize, eps: f32, offset: f32) -> Result<Val> {
        let shape = self.g.shape(x).to_vec();
        let heads = self.g.reshape(x, &[shape[0] * shape[1] / head_dim, head_dim])?;
        let y = self.rms_norm(path, heads, eps, offset)?;
        self.g.reshape(y, &shape)
    }

    /// Attention of each token over its own sequence, or, when generating, over the cache named after `path`.
    pub fn attention(&mut self, path: &str, q: Val, k: Val, v: Val, spec: Attention) -> Result<Val> {
        self.g.site = path.to_string();
        let Some(cached) = self.cached else { return self.g.attention(q, k, v, self.batch.key_range, spec) };
        let mut past = |name: &str, x: Val| -> Result<Val> {
            let name = format!("{path}.{name}");
            let width = self.g.ty(x).cols();
            let cache = match self.named.get(&name) {
                Some(&cache) => cache,
                None => {
                    let cache = self.g.leaf(LeafKind::Cache, &name, Ty::new(self.act, &[cached.capacity, width]));
                    self.named.insert(name, cache);
                    cache
                }
            };
            self.g.cache_write(cache, x, cached.slots)
        };
        let (k, v) = (past("k_cache", k)?, past("v_cache", v)?);
        // The key_range say which rows of the cache a token sees, causality and window included.
        self.g.attention(q, k, v, self.batch.key_range, Attention { causal: false, window: None, ..spec })
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

    pub fn add(&mut self, path: &str, a: Val, b: Val) -> Result<Val> {
        self.g.site = path.to_string();
        self.g.add(a, b)
    }
}

/// The inputs of `tokens` packed tokens.
pub fn inputs(g: &mut Graph, tokens: usize) -> Batch {
    Batch {
        ids: g.leaf(LeafKind::Io, "input_ids", Ty::i32(&[tokens])),
        positions: g.leaf(LeafKind::Io, "positions", Ty::i32(&[tokens])),
        key_range: g.leaf(LeafKind::Io, "key_range", Ty::i32(&[tokens, 2])),
        rng: g.leaf(LeafKind::Io, "rng", Ty::u32(&[4])),
    }
}
