//! Text from a model: keys and values of earlier tokens stay in the graph's state, so a token costs one pass over the
//! weights. One graph, two phases over the same weights: many tokens of a prompt at once, then one at a time.

pub mod sample;

use crate::backend::Backend;
use crate::data::INPUT_IDS;
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::program::Program;
use crate::graph::{LeafKind, Phase, Val};
use crate::models::Model;
use crate::nn::inputs::{Column, Item, Placed};
use crate::nn::{Build, Cached, Inputs, MAIN, Nn, Site};
use crate::ops::{Attr, Linear, linear};
use crate::plan::Plan;
use crate::tasks::causal_lm::CausalLm;
use crate::tasks::{Shape, Task};

/// The leaves that a phase reads.
#[derive(Clone)]
struct Reads {
    phase: Phase,
    tokens: usize,
    inputs: Inputs,
    slots: Val,
    /// The row of the hidden states whose logits are wanted, I32[1].
    row: Val,
}

/// The graph of a model that generates, before it is planned.
pub struct Generation {
    pub program: Program,
    pub sites: Vec<Site>,
    prefill: Reads,
    decode: Reads,
    logits: Val,
    capacity: usize,
    window: Option<usize>,
}

impl Generation {
    /// For sequences of up to `capacity` tokens, virtual ones not counted, prompts read `chunk` tokens at a time.
    pub fn new(model: &dyn Model, build: Build, chunk: usize, capacity: usize) -> Result<Generation> {
        let facts = model.facts();
        if facts.encoder || facts.decoder_start.is_some() {
            let hint = "trimtab predict for encoders; text of encoder-decoders is not generated yet";
            return Err(Error::unsupported("generating with a model that is no decoder", hint));
        }
        let layout = |tokens: usize| {
            let mut layout = CausalLm.layout(Shape { tokens, targets: tokens, sequences: 1 });
            layout.fields.clear();
            layout
        };
        let mut nn = Nn::new(build, layout(chunk))?;
        nn.training = false;
        nn.g.phase = Phase::PREFILL;
        let vocab = model.facts().vocab;
        let logits = nn.g.leaf(LeafKind::Io, "logits", Ty::f32(&[1, vocab]));
        let stream = nn.layout.stream(MAIN)?;
        let rows = capacity + stream.lead + stream.prefix;
        let (slots, row) = phase(&mut nn, model, chunk, rows, logits)?;
        let inputs = nn.begin(Phase::DECODE, layout(1));
        let prefill = Reads { phase: Phase::PREFILL, tokens: chunk, inputs, slots, row };
        let (slots, row) = phase(&mut nn, model, 1, rows, logits)?;
        let sites = std::mem::take(&mut nn.sites);
        let (graph, weights, inputs) = nn.finish();
        let decode = Reads { phase: Phase::DECODE, tokens: 1, inputs, slots, row };
        let program = Program { forward: graph.nodes.len(), graph, weights };
        Ok(Generation { program, sites, prefill, decode, logits, capacity, window: model.facts().window })
    }
}

fn phase(nn: &mut Nn, model: &dyn Model, tokens: usize, capacity: usize, logits: Val) -> Result<(Val, Val)> {
    let prefix = nn.layout.stream(MAIN)?.prefix;
    let slots = nn.g.leaf(LeafKind::Io, "slots", Ty::i32(&[prefix + tokens]));
    let row = nn.g.leaf(LeafKind::Io, "row", Ty::i32(&[1]));
    nn.cached = Some(Cached { capacity, source: 0, slots, cross: None });
    let hidden = model.hidden(nn)?;
    let head = model.lm_head(nn, hidden)?;
    nn.g.site = "logits".into();
    let last = nn.g.embed(row, head.x, 1.0)?;
    nn.g.node_into(&linear::LINEAR, Attr::Linear(Linear::default()), &[last, head.w], &[Some(logits)])?;
    Ok((slots, row))
}

/// A model with a cache on a device.
pub struct Generator {
    pub exec: Exec,
    prefill: Reads,
    decode: Reads,
    logits: Val,
    capacity: usize,
    window: Option<usize>,
    /// Tokens in the cache.
    ids: Vec<i32>,
    /// Rows of the cache before the first token: virtual tokens, prefixes. They are written with the first token.
    lead: usize,
    prefix: usize,
    /// Virtual tokens that were read.
    led: usize,
}

impl Generator {
    /// Allocates and compiles. Weights are then to be loaded.
    pub fn new(mut backend: Box<dyn Backend>, generation: Generation) -> Result<Generator> {
        let Generation { program, prefill, decode, logits, capacity, window, .. } = generation;
        backend.sync()?;
        let plan = Plan::new(&program.graph, backend.caps())?;
        let exec = Exec::new(backend, program.graph, plan)?;
        let stream = prefill.inputs.layout.stream(MAIN)?;
        let (lead, prefix) = (stream.lead, stream.prefix);
        Ok(Generator { exec, prefill, decode, logits, capacity, window, ids: Vec::new(), lead, prefix, led: 0 })
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.ids.clear();
        self.led = 0;
    }

    /// Room left in the cache, in tokens.
    pub fn room(&self) -> usize {
        self.capacity - self.ids.len()
    }

    /// Appends `tokens` and returns the logits of what follows the last of them.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.room() {
            return Err(Error::config(
                "prompt",
                format!("{} tokens", tokens.len()),
                format!("at least one and at most the {} that are left of {}", self.room(), self.capacity),
            ));
        }
        let mut first = self.led + self.ids.len();
        self.ids.extend(tokens.iter().map(|&id| id as i32));
        self.led = self.lead;
        let end = self.lead + self.ids.len();
        while first < end {
            let at = if end - first == 1 { self.decode.clone() } else { self.prefill.clone() };
            let n = (end - first).min(at.tokens);
            self.run(&at, first, first + n)?;
            first += n;
        }
        self.exec.download_f32(self.logits)
    }

    /// Runs rows `first..end` of the sequence, virtual tokens first.
    fn run(&mut self, at: &Reads, first: usize, end: usize) -> Result<()> {
        // What comes after the tokens in a chunk that is not full sees nothing and is kept nowhere.
        let fill = |f: &dyn Fn(usize) -> i32, empty: i32| -> Vec<i32> {
            (0..at.tokens).map(|i| if first + i < end { f(first + i) } else { empty }).collect()
        };
        let own = fill(&|i| (self.prefix + i) as i32, -1);
        let slots: Vec<i32> = (0..self.prefix as i32).chain(own).collect();
        let columns = |name: &str| (name == INPUT_IDS).then(|| Column::Ints(self.ids.clone()));
        let (lead, prefix) = (self.lead, self.prefix);
        let placed = [Placed { start: 0, len: self.lead + self.ids.len(), key: 0, lead, prefix, pad: 0 }];
        let item = Item { columns: &columns, index: 0, placed: &placed };
        for input in &at.inputs.leaves {
            let values = match input.field.name.as_str() {
                "key_range" => (first..first + at.tokens)
                    .flat_map(|i| {
                        let end = if i < end { prefix + i + 1 } else { 0 };
                        [end.saturating_sub(self.window.unwrap_or(end)) as i32, end as i32]
                    })
                    .collect(),
                _ => {
                    let all = (input.field.fill)(&item);
                    fill(&|i| all.ints().get(i).copied().unwrap_or(0), 0)
                }
            };
            self.exec.upload(input.val, bytemuck::cast_slice(&values))?;
        }
        self.exec.upload(at.slots, bytemuck::cast_slice(&slots))?;
        self.exec.upload(at.row, bytemuck::bytes_of(&((end - first) as i32 - 1)))?;
        self.exec.run(at.phase)
    }
}
