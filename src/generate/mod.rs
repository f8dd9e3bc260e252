//! Text from a model: keys and values of earlier tokens stay in the graph's state, so a token costs one pass over the
//! weights. Generation is two or three phases over the same weights, beside those that train or alone: the encoder once
//! (in encoder-decoders), many tokens of a prompt at a time, and one token at a time.

pub mod sample;

use crate::data::pack::pack;
use crate::data::{DECODER_INPUT_IDS, Dataset, Example, INPUT_IDS};
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::{LeafKind, Phase, Val};
use crate::models::Model;
use crate::nn::inputs::{self, Column, Item, Pad, Placed};
use crate::nn::{Cached, Inputs, Layout, MAIN, Nn, SOURCE, Stream};
use crate::ops::{Attr, Linear, linear};
use sample::Sampling;

/// How much is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens of a text, its prompt among them; virtual ones are not counted. In encoder-decoders, of the target, its
    /// start token among them.
    pub tokens: usize,
    /// Tokens of the source, in encoder-decoders.
    pub source: usize,
    /// Tokens of a prompt that are read at once.
    pub chunk: usize,
}

impl Room {
    /// Tokens of a prompt that are read at once, where nothing else is asked for.
    pub const CHUNK: usize = 256;

    /// For `written` tokens after a prompt of `prompt` tokens, or in encoder-decoders, which answer it, for an answer of as many.
    pub fn after(prompt: usize, written: usize, answers: bool) -> Room {
        // A decoder that answers begins with one token.
        let tokens = written.saturating_add(if answers { 1 } else { prompt });
        Room { tokens, source: prompt, chunk: if answers { 1 } else { tokens.min(Room::CHUNK) } }
    }

    /// For texts of up to `tokens` tokens, and sources of as many.
    pub fn of(tokens: usize) -> Room {
        Room { tokens, source: tokens, chunk: tokens.min(Room::CHUNK) }
    }
}

/// What a text is to be.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The most tokens that are added.
    pub max_tokens: usize,
    /// How a token is chosen from its logits.
    pub sampling: Sampling,
    /// Tokens that end it; they are not part of it.
    pub stop: &'a [u32],
}

/// The leaves that a phase reads.
#[derive(Clone)]
struct Reads {
    phase: Phase,
    /// Rows of the phase.
    tokens: usize,
    inputs: Inputs,
    slots: Val,
    /// The row of the hidden states whose logits are wanted, I32[1].
    row: Val,
    /// Cached keys of the encoder that each token sees, I32[T,2].
    cross: Option<Val>,
}

/// The encoder's phase.
#[derive(Clone)]
struct Encoder {
    inputs: Inputs,
    slots: Val,
    /// The decoder's first token.
    start: u32,
    /// Rows of the cache that hold keys of the source now.
    rows: usize,
}

/// The phases that generate, and the text so far.
#[derive(Clone)]
pub struct Generation {
    encoder: Option<Encoder>,
    /// None where a prompt is read token by token.
    prefill: Option<Reads>,
    decode: Reads,
    logits: Val,
    room: Room,
    /// Rows of the cache before the first token: virtual tokens, prefixes. They are written with the first token.
    lead: usize,
    prefix: usize,
    /// Tokens in the cache.
    ids: Vec<i32>,
    /// Virtual tokens that were read.
    led: usize,
}

impl Generation {
    /// Appends the phases that generate with `model`.
    pub fn build(nn: &mut Nn, model: &dyn Model, room: Room) -> Result<Generation> {
        let facts = model.facts();
        if facts.encoder {
            let hint = "trimtab predict for encoders, or a model with a decoder";
            return Err(Error::unsupported("generating with an encoder", hint));
        }
        let encoder = match facts.decoder_start {
            Some(start) => {
                nn.begin(Phase::ENCODE, layout(1, Some(room.source)))?;
                let rows = nn.layout.stream(SOURCE)?.tokens;
                let slots = nn.g.leaf(LeafKind::Io, "source.slots", Ty::i32(&[rows]));
                nn.cached = Some(Cached { capacity: 0, source: rows, slots, cross: None });
                model.encode(nn)?;
                Some(Encoder { inputs: nn.inputs(), slots, start: start as u32, rows: 0 })
            }
            None => None,
        };
        let source = encoder.as_ref().map(|_| room.source);
        let logits = nn.g.leaf(LeafKind::Io, "next.logits", Ty::f32(&[1, facts.vocab]));
        let prefill = match room.chunk {
            0 | 1 => None,
            chunk => Some(phase(nn, model, Phase::PREFILL, layout(chunk, source), room, logits)?),
        };
        let decode = phase(nn, model, Phase::DECODE, layout(1, source), room, logits)?;
        nn.cached = None;
        let Stream { lead, prefix, .. } = *decode.inputs.layout.stream(MAIN)?;
        Ok(Generation { encoder, prefill, decode, logits, room, lead, prefix, ids: Vec::new(), led: 0 })
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.ids.clear();
        self.led = 0;
    }

    /// Room left, in tokens.
    pub fn left(&self) -> usize {
        self.room.tokens.saturating_sub(self.ids.len())
    }

    /// Begins a text: forgets the one before, reads `prompt` (the source, in encoder-decoders) and returns the logits of
    /// what follows.
    pub fn begin(&mut self, exec: &mut Exec, prompt: &[u32]) -> Result<Vec<f32>> {
        self.reset();
        match self.encoder.as_ref().map(|e| e.start) {
            Some(start) => {
                self.encode(exec, prompt, start)?;
                self.feed(exec, &[start])
            }
            None => self.feed(exec, prompt),
        }
    }

    /// Runs the encoder on `source`; its keys and values stay.
    fn encode(&mut self, exec: &mut Exec, source: &[u32], start: u32) -> Result<()> {
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        if source.is_empty() || source.len() > self.room.source {
            let found = format!("{} tokens", source.len());
            return Err(Error::config("prompt", found, format!("at least one and at most {}", self.room.source)));
        }
        let mut example = Example::default();
        *example.ints_mut(INPUT_IDS) = source.iter().map(|&id| id as i32).collect();
        *example.ints_mut(DECODER_INPUT_IDS) = vec![start as i32];
        let mut data = Dataset::default();
        data.push(&example)?;
        let layout = &encoder.inputs.layout;
        let all = layout.stream(SOURCE)?.tokens as i32;
        for batch in pack(&data, &[0], layout, true)? {
            let rows = batch.placed[0][SOURCE.0].len as i32;
            let slots: Vec<i32> = (0..all).map(|row| if row < rows { row } else { -1 }).collect();
            for input in &encoder.inputs.leaves {
                exec.upload(input.val, batch.get(&input.field.name)?.bytes())?;
            }
            exec.upload(encoder.slots, bytemuck::cast_slice(&slots))?;
            encoder.rows = rows as usize;
            exec.run(Phase::ENCODE)?;
        }
        Ok(())
    }

    /// The logits that follow each token of `ids`; in encoder-decoders `ids` is the source, and its tokens are the target too,
    /// after the one that starts it.
    pub fn logits(&mut self, exec: &mut Exec, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let (first, rest) = match self.encoder {
            Some(_) => (self.begin(exec, ids)?, ids),
            None => (self.begin(exec, &ids[..ids.len().min(1)])?, ids.get(1..).unwrap_or_default()),
        };
        let mut all = vec![first];
        for &id in rest {
            all.push(self.feed(exec, &[id])?);
        }
        Ok(all)
    }

    /// Appends `tokens` and returns the logits of what follows the last of them.
    pub fn feed(&mut self, exec: &mut Exec, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.left() {
            return Err(Error::config(
                "prompt",
                format!("{} tokens", tokens.len()),
                format!("at least one and at most the {} that are left of {}", self.left(), self.room.tokens),
            ));
        }
        let mut first = self.led + self.ids.len();
        self.ids.extend(tokens.iter().map(|&id| id as i32));
        self.led = self.lead;
        let end = self.lead + self.ids.len();
        while first < end {
            let at = match &self.prefill {
                Some(prefill) if end - first > 1 => prefill,
                _ => &self.decode,
            };
            let n = (end - first).min(at.tokens);
            self.run(exec, at, first, first + n)?;
            first += n;
        }
        exec.download_f32(self.logits)
    }

    /// Runs rows `first..end` of the text, virtual tokens first.
    fn run(&self, exec: &mut Exec, at: &Reads, first: usize, end: usize) -> Result<()> {
        let (lead, prefix) = (self.lead, self.prefix);
        // What comes after the tokens in a chunk that is not full sees nothing and is kept nowhere.
        let fill = |f: &dyn Fn(usize) -> i32, empty: i32| -> Vec<i32> {
            (0..at.tokens).map(|i| if first + i < end { f(first + i) } else { empty }).collect()
        };
        let own = fill(&|i| (prefix + i) as i32, -1);
        let slots: Vec<i32> = (0..prefix as i32).chain(own).collect();
        let column = at.inputs.layout.stream(MAIN)?.column;
        let columns = |name: &str| (name == column).then(|| Column::Ints(self.ids.clone()));
        let placed = [Placed { start: 0, len: lead + self.ids.len(), key: 0, lead, prefix, pad: 0 }];
        let item = Item { columns: &columns, index: 0, placed: &placed };
        let ranges = |range: &dyn Fn(usize) -> [i32; 2]| -> Vec<i32> {
            (first..first + at.tokens).flat_map(|i| if i < end { range(i) } else { [0, 0] }).collect()
        };
        for input in &at.inputs.leaves {
            let name = input.field.name.as_str();
            let window = inputs::cached_window(name);
            let values = match (name, input.field.pad) {
                _ if name == "key_range" || window.is_some() => ranges(&|i| {
                    let end = prefix + i + 1;
                    [end.saturating_sub(window.unwrap_or(end)) as i32, end as i32]
                }),
                (_, pad) => {
                    let all = (input.field.fill)(&item);
                    let empty = if let Pad::Int(x) = pad { x } else { 0 };
                    fill(&|i| all.ints().get(i).copied().unwrap_or(empty), empty)
                }
            };
            exec.upload(input.val, bytemuck::cast_slice(&values))?;
        }
        if let (Some(cross), Some(encoder)) = (at.cross, &self.encoder) {
            exec.upload(cross, bytemuck::cast_slice(&ranges(&|_| [0, encoder.rows as i32])))?;
        }
        exec.upload(at.slots, bytemuck::cast_slice(&slots))?;
        exec.upload(at.row, bytemuck::bytes_of(&((end - first) as i32 - 1)))?;
        exec.run(at.phase)
    }

    /// Continues `prompt` (or answers it, in encoder-decoders) by at most `ask.max_tokens` tokens. `on` is given each token
    /// as it comes, and ends the text by returning false.
    pub fn generate(
        &mut self,
        exec: &mut Exec,
        prompt: &[u32],
        ask: &Ask,
        on: &mut dyn FnMut(u32) -> Result<bool>,
    ) -> Result<Vec<u32>> {
        ask.sampling.check()?;
        let mut text = Vec::new();
        if ask.max_tokens == 0 {
            return Ok(text);
        }
        let mut logits = self.begin(exec, prompt)?;
        loop {
            let id = ask.sampling.next(&logits, text.len() as u64)?;
            if ask.stop.contains(&id) {
                return Ok(text);
            }
            text.push(id);
            if !on(id)? || text.len() == ask.max_tokens {
                return Ok(text);
            }
            logits = self.feed(exec, &[id])?;
        }
    }
}

/// One text: its tokens, and those of the source in encoder-decoders.
fn layout(tokens: usize, source: Option<usize>) -> Layout {
    let stream = |tokens, column| Stream { tokens, column, lead: 0, prefix: 0 };
    let streams = match source {
        Some(source) => vec![stream(tokens, DECODER_INPUT_IDS), stream(source, INPUT_IDS)],
        None => vec![stream(tokens, INPUT_IDS)],
    };
    Layout::new(streams, 1)
}

/// Appends a phase that reads the tokens of `layout` and writes the logits of what follows one of them.
fn phase(nn: &mut Nn, model: &dyn Model, phase: Phase, layout: Layout, room: Room, logits: Val) -> Result<Reads> {
    nn.begin(phase, layout)?;
    let Stream { tokens, lead, prefix, .. } = *nn.layout.stream(MAIN)?;
    let slots = nn.g.leaf(LeafKind::Io, "slots", Ty::i32(&[prefix + tokens]));
    let row = nn.g.leaf(LeafKind::Io, "row", Ty::i32(&[1]));
    let source = nn.layout.stream(SOURCE).map_or(0, |source| source.tokens);
    let cross = (source > 0).then(|| nn.g.leaf(LeafKind::Io, "cross.cached", Ty::i32(&[tokens, 2])));
    nn.cached = Some(Cached { capacity: room.tokens + lead + prefix, source, slots, cross });
    let hidden = model.hidden(nn)?;
    let head = model.lm_head(nn, hidden)?;
    nn.g.site = "logits".into();
    let last = nn.g.embed(row, head.x, 1.0)?;
    let attr = Attr::Linear(Linear { bias: head.bias.is_some(), ..Linear::default() });
    let ins: Vec<Val> = [last, head.w].into_iter().chain(head.bias).collect();
    nn.g.node_into(&linear::LINEAR, attr, &ins, &[Some(logits)])?;
    Ok(Reads { phase, tokens, inputs: nn.inputs(), slots, row, cross })
}
