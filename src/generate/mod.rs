//! Text from a model: keys and values of earlier tokens stay in the graph's state, so a token costs one pass over the
//! weights. One graph, two phases over the same weights: many tokens of a prompt at once, then one at a time.

pub mod sample;
pub mod text;

use crate::backend::Backend;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::{Graph, LeafKind, Phase, Val};
use crate::models::Model;
use crate::nn::{Batch, Cached, Nn, Role, Weight, inputs};
use crate::ops::{Attr, Linear, linear};
use crate::peft::Method;
use crate::plan::Plan;

/// The leaves that a phase reads.
#[derive(Clone, Copy)]
struct Inputs {
    tokens: usize,
    batch: Batch,
    slots: Val,
    /// The row of the hidden states whose logits are wanted, I32[1].
    row: Val,
}

/// The graph of a model that generates, before it is planned.
pub struct Generation {
    pub graph: Graph,
    pub weights: Vec<Weight>,
    phases: [Inputs; Phase::COUNT],
    logits: Val,
    capacity: usize,
    window: Option<usize>,
}

impl Generation {
    /// For sequences of up to `capacity` tokens, prompts read `chunk` tokens at a time.
    pub fn new(
        model: &dyn Model,
        method: &dyn Method,
        storage: &dyn Fn(&str, Role) -> DType,
        act: DType,
        chunk: usize,
        capacity: usize,
    ) -> Result<Generation> {
        let mut nn = Nn::new(method, storage, act, chunk);
        nn.training = false;
        let logits = nn.g.leaf(LeafKind::Io, "logits", Ty::f32(&[1, model.vocab()]));
        let prefill = phase(&mut nn, model, chunk, capacity, logits)?;
        nn.g.phase = Phase::DECODE;
        nn.batch = inputs(&mut nn.g, 1);
        let decode = phase(&mut nn, model, 1, capacity, logits)?;
        let Nn { g: graph, weights, .. } = nn;
        Ok(Generation { graph, weights, phases: [prefill, decode], logits, capacity, window: model.window() })
    }
}

fn phase(nn: &mut Nn, model: &dyn Model, tokens: usize, capacity: usize, logits: Val) -> Result<Inputs> {
    let slots = nn.g.leaf(LeafKind::Io, "slots", Ty::i32(&[tokens]));
    let row = nn.g.leaf(LeafKind::Io, "row", Ty::i32(&[1]));
    nn.cached = Some(Cached { capacity, slots });
    let hidden = model.hidden(nn)?;
    let head = model.head(nn)?;
    nn.g.site = "logits".into();
    let last = nn.g.embed(row, hidden, 1.0)?;
    nn.g.node_into(&linear::LINEAR, Attr::Linear(Linear::default()), &[last, head], &[Some(logits)])?;
    Ok(Inputs { tokens, batch: nn.batch, slots, row })
}

/// A model with a cache on a device.
pub struct Generator {
    pub exec: Exec,
    phases: [Inputs; Phase::COUNT],
    logits: Val,
    capacity: usize,
    window: Option<usize>,
    /// Tokens in the cache.
    len: usize,
}

impl Generator {
    /// Allocates and compiles. Weights are then to be loaded.
    pub fn new(mut backend: Box<dyn Backend>, generation: Generation) -> Result<Generator> {
        let Generation { graph, phases, logits, capacity, window, .. } = generation;
        backend.sync()?;
        let plan = Plan::new(&graph, backend.caps())?;
        let exec = Exec::new(backend, graph, plan)?;
        Ok(Generator { exec, phases, logits, capacity, window, len: 0 })
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.len = 0;
    }

    /// Room left in the cache, in tokens.
    pub fn room(&self) -> usize {
        self.capacity - self.len
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
        let mut rest = tokens;
        while !rest.is_empty() {
            let phase = if rest.len() == 1 { Phase::DECODE } else { Phase::PREFILL };
            let n = rest.len().min(self.phases[phase.0].tokens);
            self.run(phase, &rest[..n])?;
            rest = &rest[n..];
        }
        self.exec.download_f32(self.logits)
    }

    fn run(&mut self, phase: Phase, tokens: &[u32]) -> Result<()> {
        let at = self.phases[phase.0];
        // What lies behind the tokens in a chunk that is not full sees nothing and is kept nowhere.
        let fill = |f: &dyn Fn(usize) -> i32, empty: i32| -> Vec<i32> {
            (0..at.tokens).map(|i| if i < tokens.len() { f(i) } else { empty }).collect()
        };
        let position = |i: usize| (self.len + i) as i32;
        let ids = fill(&|i| tokens[i] as i32, 0);
        let positions = fill(&position, 0);
        let slots = fill(&position, -1);
        let key_range: Vec<i32> = (0..at.tokens)
            .flat_map(|i| {
                let end = if i < tokens.len() { self.len + i + 1 } else { 0 };
                [end.saturating_sub(self.window.unwrap_or(end)) as i32, end as i32]
            })
            .collect();
        self.exec.upload(at.batch.ids, bytemuck::cast_slice(&ids))?;
        self.exec.upload(at.batch.positions, bytemuck::cast_slice(&positions))?;
        self.exec.upload(at.slots, bytemuck::cast_slice(&slots))?;
        self.exec.upload(at.batch.key_range, bytemuck::cast_slice(&key_range))?;
        self.exec.upload(at.row, bytemuck::bytes_of(&(tokens.len() as i32 - 1)))?;
        self.exec.run(phase)?;
        self.len += tokens.len();
        Ok(())
    }
}
