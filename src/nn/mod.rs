//! What model families are written with: layers at named sites, declared inputs, and the weights that they need.
//!
//! A family says which layer is where; methods decide what is trained there. Neither knows the other.

mod attention;
pub mod hooks;
pub mod inputs;
pub mod layers;

use std::collections::HashMap;

use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
pub use crate::graph::weight::{Computed, Init, Role, RowNorms, Source, Taken, Weight};
use crate::graph::{Graph, LeafKind, Phase, Val};
use crate::ops::{Attr, elementwise};

pub use hooks::{Hooks, LayerNorm, Linear, LowRank, Next, Part, Qkv, Residual, Site, Table, WeightRef};
pub use inputs::{Axis, Field, IGNORE, Item, Layout, MAIN, SOURCE, Stream, StreamId};

/// In which format a frozen weight of a name and role is kept.
pub type StorageOf<'a> = &'a dyn Fn(&str, Role) -> DType;

/// An input leaf and the field that fills it.
#[derive(Clone, Debug)]
pub struct Input {
    /// How it is filled.
    pub field: Field,
    /// The leaf.
    pub val: Val,
}

/// The leaves of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamVals {
    /// Token ids, I32[T].
    pub ids: Val,
    /// Position of each token in its sequence, I32[T].
    pub positions: Val,
    /// First token of the sequence each token belongs to, and one past its last, I32[T,2].
    pub key_range: Val,
}

/// Keys and values of earlier tokens, of a fixed capacity, for generation.
#[derive(Clone, Copy, Debug)]
pub struct Cached {
    /// Rows of the cache.
    pub capacity: usize,
    /// Rows of the cache of an encoder's keys; 0 in models without one.
    pub source: usize,
    /// The row of the cache that each key goes to, I32[prefix + T]; −1: none.
    pub slots: Val,
    /// Cached keys of the encoder that each token sees, I32[T,2], in phases that have them.
    pub cross: Option<Val>,
}

/// What a family, a task and the methods need besides the model.
#[derive(Clone, Copy)]
pub struct Build<'a> {
    /// The methods, the first one outermost.
    pub stack: &'a [&'a dyn Hooks],
    /// In which format each frozen weight is kept.
    pub storage: StorageOf<'a>,
    /// The type of activations.
    pub act: DType,
}

/// A graph under construction.
pub struct Nn<'a> {
    /// The graph so far.
    pub g: Graph,
    /// The shape of a micro-batch; fields join it as they are declared.
    pub layout: Layout,
    /// The leaves that have to be filled before the first run, in the order of their declaration.
    pub weights: Vec<Weight>,
    /// Set when generating: attention then sees the cache.
    pub cached: Option<Cached>,
    /// Methods and models drop out only in the phase that trains.
    pub training: bool,
    /// A phase trains, so that what depends on trained tensors cannot be computed once and for all.
    pub live: bool,
    /// Output heads, each with the embedding that it is tied to.
    pub ties: Vec<(String, String)>,
    /// No sequence is longer, if that is known: for estimates of the work.
    pub longest: Option<usize>,
    /// Every place that was visited, each once.
    pub sites: Vec<Site>,
    build: Build<'a>,
    rng: Option<Val>,
    inputs: Vec<Input>,
    streams: HashMap<StreamId, StreamVals>,
    named: HashMap<String, Val>,
    /// What the cache of a name holds after this phase's writes so far.
    written: HashMap<String, Val>,
    drops: u32,
}

impl<'a> Nn<'a> {
    /// An empty graph; [`Nn::begin`] comes next.
    pub fn new(build: Build<'a>) -> Nn<'a> {
        Nn {
            g: Graph::new(),
            layout: Layout::new(Vec::new(), 0),
            weights: Vec::new(),
            cached: None,
            training: false,
            live: false,
            ties: Vec::new(),
            longest: None,
            sites: Vec::new(),
            build,
            rng: None,
            inputs: Vec::new(),
            streams: HashMap::new(),
            named: HashMap::new(),
            written: HashMap::new(),
            drops: 0,
        }
    }

    /// Begins a phase over micro-batches of `layout`, whose streams get the virtual tokens and prefixes of the methods. Its
    /// weights are those of the phases before.
    pub fn begin(&mut self, phase: Phase, layout: Layout) -> Result<()> {
        self.g.phase = phase;
        self.g.block = 0;
        self.training = phase == Phase::MICRO;
        self.live |= self.training;
        self.streams.clear();
        self.written.clear();
        self.inputs.clear();
        self.layout = shaped(self.build.stack, layout, phase);
        let declared = std::mem::take(&mut self.layout.fields);
        // An encoder has no tokens but those of the source.
        if phase != Phase::ENCODE {
            self.stream(MAIN)?;
        }
        if self.training {
            self.rng();
        }
        declared.into_iter().try_for_each(|field| self.input(field).map(drop))
    }

    /// The inputs of the phase.
    pub fn inputs(&self) -> Inputs {
        Inputs { layout: self.layout.clone(), leaves: self.inputs.clone() }
    }

    /// Random-number key: seed (2 words), step, micro-batch; U32[4].
    pub fn rng(&mut self) -> Val {
        *self.rng.get_or_insert_with(|| self.g.leaf(LeafKind::Io, "rng", Ty::u32(&[4])))
    }

    /// The leaves of a stream.
    pub fn stream(&mut self, id: StreamId) -> Result<StreamVals> {
        if let Some(&vals) = self.streams.get(&id) {
            return Ok(vals);
        }
        let [ids, positions, key_range] = stream_fields(&self.layout, id)?;
        let vals =
            StreamVals { ids: self.input(ids)?, positions: self.input(positions)?, key_range: self.input(key_range)? };
        self.streams.insert(id, vals);
        Ok(vals)
    }

    /// The leaf of a declared field; the same one if a field of that name was declared before in this phase.
    pub fn input(&mut self, field: Field) -> Result<Val> {
        if let Some(input) = self.inputs.iter().find(|i| i.field.name == field.name) {
            return Ok(input.val);
        }
        let val = self.g.leaf(LeafKind::Io, field.name.clone(), self.layout.ty(&field)?);
        self.layout.fields.push(field.clone());
        self.inputs.push(Input { field, val });
        Ok(val)
    }

    /// A weight of the base model, the same one if asked for again (tied weights).
    pub fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Val {
        self.weight_as(name, name, shape, role, false, None)
    }

    /// The weight of the head `path`, which is the table of the module `embedding`: the same one, unless a method trains
    /// one of the two and unties them.
    fn tied_weight(&mut self, path: &str, embedding: &str, shape: &[usize]) -> Val {
        let (own, table) = (format!("{path}.weight"), format!("{embedding}.weight"));
        let tie = (path.to_string(), embedding.to_string());
        if !self.ties.contains(&tie) {
            self.ties.push(tie);
        }
        let stack = self.build.stack;
        let [head, shared] = [&own, &table].map(|name| WeightRef { name, role: Role::Embed });
        let parts = |m: &&dyn Hooks| !m.keeps_ties() && [head, shared].into_iter().any(|w| m.trains(w).is_some());
        if stack.iter().any(parts) {
            return self.weight_as(&own, &table, shape, Role::Embed, false, None);
        }
        let val = self.weight(&table, shape, Role::Embed);
        // An adapter of the head alone keeps the table under the head's name.
        let kept = stack.iter().find_map(|m| m.keeps(head));
        let shared = self.weights.iter_mut().find(|w| w.val == val);
        if let Some(Weight { source: Source::Base { held: held @ None, .. }, .. }) = shared {
            *held = kept;
        }
        val
    }

    /// A weight of a task's head, which starts as `fresh` says where the base model has none.
    pub fn head_weight(&mut self, name: &str, shape: &[usize], fresh: Init) -> Val {
        self.fresh_weight(name, shape, Role::Classifier, fresh)
    }

    /// A weight that starts as `fresh` says where the base model has none: of what comes after the last block, which
    /// checkpoints made for another task lack.
    pub fn fresh_weight(&mut self, name: &str, shape: &[usize], role: Role, fresh: Init) -> Val {
        self.weight_as(name, name, shape, role, false, Some(fresh))
    }

    /// A weight `[out, in]` that the base model's file has as `[in, out]` (GPT-2's Conv1D).
    pub fn transposed_weight(&mut self, name: &str, shape: &[usize], role: Role) -> Val {
        self.weight_as(name, name, shape, role, true, None)
    }

    /// The weight `name`, which the base model's files have as `tensor`.
    fn weight_as(
        &mut self,
        name: &str,
        tensor: &str,
        shape: &[usize],
        role: Role,
        transposed: bool,
        fresh: Option<Init>,
    ) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let w = WeightRef { name, role };
        let trained = self.build.stack.iter().find_map(|m| m.trains(w));
        let held = self.build.stack.iter().find_map(|m| m.keeps(w));
        let less = self.build.stack.iter().find_map(|m| m.takes(w)).filter(|_| trained.is_none());
        let source = Source::Base { tensor: tensor.to_string(), role, held, transposed, fresh, less };
        let val = match trained {
            Some(key) => {
                let val = self.g.leaf(self.trained(), &key, Ty::f32(shape));
                self.named.insert(name.to_string(), val);
                self.keep(val, &key, source, true)
            }
            None => {
                // Vectors (norms, biases) are small and read at full precision everywhere.
                let dtype = if shape.len() == 1 { DType::F32 } else { (self.build.storage)(name, role) };
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
        let val = self.g.leaf(self.trained(), key, Ty::f32(shape));
        self.keep(val, key, Source::Adapter { init }, true)
    }

    /// The same, of rows of `dim` values that start as the rows `rows` of the embedding `module`, times `scale`.
    pub fn adapter_rows(&mut self, key: &str, module: &str, dim: usize, rows: &[usize], scale: f32) -> Val {
        if let Some(&val) = self.named.get(key) {
            return val;
        }
        let val = self.g.leaf(self.trained(), key, Ty::f32(&[rows.len(), dim]));
        let (tensor, rows) = (format!("{module}.weight"), rows.to_vec());
        self.keep(val, key, Source::Rows { tensor, role: Role::Embed, rows, scale }, true)
    }

    /// A constant.
    pub fn constant(&mut self, name: &str, shape: &[usize], data: impl FnOnce() -> Vec<f32>) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Frozen, name, Ty::f32(shape));
        self.keep(val, name, Source::Data(bytemuck::cast_slice(&data()).to_vec()), false)
    }

    /// A constant that is computed when weights are loaded.
    pub fn computed(&mut self, name: &str, shape: &[usize], data: Computed) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Frozen, name, Ty::f32(shape));
        self.keep(val, name, Source::Computed(data), false)
    }

    /// The number 1.
    pub fn one(&mut self) -> Val {
        let one = self.constant("one", &[1], || vec![1.0]);
        self.g.one = Some(one);
        one
    }

    /// A leaf of this phase in which the host finds `x`.
    pub fn output(&mut self, name: &str, x: Val) -> Result<Val> {
        let one = self.one();
        let leaf = self.g.leaf(LeafKind::Io, name, self.g.ty(x).clone());
        self.g.node_into(&elementwise::SCALE, Attr::None, &[x, one], &[Some(leaf)])?;
        Ok(leaf)
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

    /// What a trainable tensor is: where nothing is trained, no gradient is wanted.
    fn trained(&self) -> LeafKind {
        if self.live { LeafKind::Param } else { LeafKind::Frozen }
    }

    fn keep(&mut self, val: Val, name: &str, source: Source, trainable: bool) -> Val {
        self.named.insert(name.to_string(), val);
        self.weights.push(Weight { val, name: name.to_string(), source, trainable });
        val
    }

    /// A value that was noted under a name in this phase, if one was.
    pub fn noted(&self, name: &str) -> Option<Val> {
        self.written.get(name).copied()
    }

    /// Notes a value that several sites share, until the next phase.
    pub fn note(&mut self, name: &str, val: Val) {
        self.written.insert(name.to_string(), val);
    }

    /// What follows belongs to the next block: a layer, or what comes after the last layer.
    pub fn block(&mut self) {
        self.g.block += 1;
    }

    /// A number that tells this dropout's random stream from the others'.
    pub fn next_dropout(&mut self) -> u32 {
        self.drops += 1;
        self.drops
    }

    /// The type of activations.
    pub fn act(&self) -> DType {
        self.build.act
    }

    /// Enters a site: the nodes that follow carry its path.
    fn enter(&mut self, path: &str, role: Role) -> Site {
        self.g.site = path.to_string();
        let site = Site { path: path.to_string(), role };
        if !self.sites.contains(&site) {
            self.sites.push(site.clone());
        }
        site
    }

    fn next(&self) -> Next<'a> {
        Next::new(self.build.stack)
    }

    /// A cache of `rows` rows of `width` values under `name`.
    fn cache(&mut self, name: &str, rows: usize, width: usize) -> Val {
        if let Some(&val) = self.named.get(name) {
            return val;
        }
        let val = self.g.leaf(LeafKind::Cache, name, Ty::new(self.build.act, &[rows, width]));
        self.named.insert(name.to_string(), val);
        val
    }
}

/// What a phase reads.
#[derive(Clone)]
pub struct Inputs {
    /// Shape of a micro-batch, and the fields of its inputs.
    pub layout: Layout,
    /// Leaves, each with the field that fills it.
    pub leaves: Vec<Input>,
}

impl Inputs {
    /// The leaf of a name.
    pub fn get(&self, name: &str) -> Result<Val> {
        let found = self.leaves.iter().find(|i| i.field.name == name).map(|i| i.val);
        found.ok_or_else(|| Error::config("input", name, "a field that the program declares"))
    }
}

/// `layout` with what the methods put before each sequence.
fn shaped(stack: &[&dyn Hooks], mut layout: Layout, phase: Phase) -> Layout {
    let streams = layout.streams.len();
    for (i, stream) in layout.streams.iter_mut().enumerate() {
        stream.lead = stack.iter().map(|m| m.lead(StreamId(i), streams)).sum();
        stream.prefix = stack.iter().map(|m| m.prefix(StreamId(i), streams)).sum();
        // A sequence that fills the stream has room for its virtual tokens. A phase that generates reads as many tokens at
        // a time as it says, virtual or not.
        if phase < Phase::PREFILL || StreamId(i) != MAIN {
            stream.tokens += stream.lead;
        }
    }
    layout
}

/// Ids, positions and sequences of a stream's tokens.
fn stream_fields(layout: &Layout, id: StreamId) -> Result<[Field; 3]> {
    let column = layout.stream(id)?.column;
    let named = |what: &str| if id == MAIN { what.to_string() } else { format!("source.{what}") };
    Ok([
        inputs::ids(column, id, column),
        inputs::positions(&named("positions"), id),
        inputs::key_range(&named("key_range"), id),
    ])
}
