//! Prompt tuning (Lester et al. 2021, arXiv:2104.08691): P virtual tokens before each sequence, whose embeddings are
//! trained: `x = [p_1 … p_P; embed(ids)]`. In encoder-decoders they come before the encoder's input. The file is PEFT's:
//! `prompt_embeddings` `[P, hidden]`, which no factor of the model's own embedding (Gemma's √hidden) multiplies; for
//! encoder-decoders it has twice the rows, of which the first half is used. They start as PEFT's `prompt_tuning_init` says
//! ([`Start`]).

use serde_json::{Map, Value, json};

use super::folder::{self, Heads};
use super::{Method, MethodDef, Rate, Save, Settings, files};
use crate::cpu::philox::philox;
use crate::error::Result;
use crate::graph::Val;
use crate::nn::{Axis, Field, Hooks, Init, MAIN, Next, Nn, Role, SOURCE, Site, StreamId, Table, WeightRef};

/// Name in the file of the virtual tokens' embeddings.
pub const KEY: &str = "prompt_embeddings";

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "prompt",
    peft_type: Some("PROMPT_TUNING"),
    same_at_start: false,
    rate: Rate::any_width(3e-2),
    new: |settings: &Settings| {
        let (tokens, parts) = (settings.checked_virtual_tokens()?, if settings.encoder_decoder { 2 } else { 1 });
        let (start, count) = (settings.prompt_start.clone(), tokens * parts);
        let rows = match &start {
            Start::Random => None,
            Start::Text { ids, .. } => Some(ids.iter().copied().cycle().take(count).collect()),
            Start::Sampled => Some(sampled(settings.seed, settings.facts.vocab, count)),
        };
        Ok(Box::new(Prompt { tokens, parts, start, rows, heads: Heads::new(settings) }))
    },
    read: |config| {
        let parts = folder::count(config, "num_transformer_submodules", 2).unwrap_or(1);
        let tokens = folder::count(config, "num_virtual_tokens", folder::MOST_TOKENS)?;
        Ok(Box::new(Prompt { tokens, parts, start: Start::read(config), rows: None, heads: Heads::read(config)? }))
    },
};

/// How the embeddings of virtual tokens start: those of tokens are taken with the model's own factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Standard normal: PEFT's RANDOM.
    Random,
    /// As those of the tokens of a text, over and over: TEXT.
    Text {
        /// The text, as it was given.
        text: String,
        /// As the tokenizer makes them of a whole text, with the special tokens around it.
        ids: Vec<usize>,
        /// Where PEFT would find the tokenizer.
        tokenizer: Option<String>,
    },
    /// As those of tokens drawn from the vocabulary: SAMPLE_VOCAB.
    Sampled,
}

impl Start {
    /// What an adapter_config.json says. Its tensor is there, so no ids are needed.
    fn read(config: &Map<String, Value>) -> Start {
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
        match text("prompt_tuning_init").as_deref() {
            Some("TEXT") => Start::Text {
                text: text("prompt_tuning_init_text").unwrap_or_default(),
                ids: Vec::new(),
                tokenizer: text("tokenizer_name_or_path"),
            },
            Some("SAMPLE_VOCAB") => Start::Sampled,
            _ => Start::Random,
        }
    }

    /// The same keys, as PEFT has them.
    fn keys(&self) -> [(&'static str, Value); 3] {
        let (name, text, tokenizer) = match self {
            Start::Random => ("RANDOM", Value::Null, Value::Null),
            Start::Sampled => ("SAMPLE_VOCAB", Value::Null, Value::Null),
            Start::Text { text, tokenizer, .. } => ("TEXT", json!(text), json!(tokenizer)),
        };
        [("prompt_tuning_init", json!(name)), ("prompt_tuning_init_text", text), ("tokenizer_name_or_path", tokenizer)]
    }
}

/// `count` tokens of a vocabulary, each drawn alike, by number: the same for the same seed.
fn sampled(seed: u64, vocab: usize, count: usize) -> Vec<usize> {
    const SITE: u32 = u32::from_le_bytes(*b"prom");
    let word = |i: usize| philox([(i / 4) as u32, 0, 0, SITE], [seed as u32, (seed >> 32) as u32])[i % 4];
    (0..count).map(|i| ((word(i) as u64 * vocab as u64) >> 32) as usize).collect()
}

/// See the module.
pub struct Prompt {
    tokens: usize,
    /// PEFT keeps rows for the encoder and for the decoder.
    parts: usize,
    start: Start,
    /// The tokens whose embeddings they start as, if they are not drawn.
    rows: Option<Vec<usize>>,
    heads: Heads,
}

/// The stream that virtual tokens come before.
fn target(streams: usize) -> StreamId {
    if streams > 1 { SOURCE } else { MAIN }
}

impl Hooks for Prompt {
    fn trains(&self, w: WeightRef) -> Option<String> {
        self.heads.trains(w, "base_model.")
    }

    fn keeps_ties(&self) -> bool {
        false
    }

    fn lead(&self, stream: StreamId, streams: usize) -> usize {
        if stream == target(streams) { self.tokens } else { 0 }
    }

    fn embed(&self, nn: &mut Nn, at: &Site, table: Table, next: Next) -> Result<Val> {
        let x = next.embed(nn, at, table)?;
        if at.role != Role::Embed || table.stream != target(nn.layout.streams.len()) {
            return Ok(x);
        }
        let dim = nn.g.ty(x).cols();
        let rows = self.parts * self.tokens;
        let prompt = match &self.rows {
            None => nn.adapter(KEY, &[rows, dim], Init::Normal { std: 1.0 }),
            Some(ids) => nn.adapter_rows(KEY, &at.path, dim, ids, table.scale),
        };
        let stream = table.stream;
        let virtual_ids = Field::ints(format!("virtual_tokens.{}", stream.0), Axis::Token(stream), -1, move |item| {
            let at = item.at(stream);
            (0..at.len as i32).map(|i| if (i as usize) < at.lead { i } else { -1 }).collect()
        });
        let ids = nn.input(virtual_ids)?;
        let own = nn.g.embed(ids, prompt, 1.0)?;
        nn.g.add(x, own)
    }
}

impl Method for Prompt {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn check(&self, _: &[Site]) -> Result<()> {
        Ok(())
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        let tensors = save.tensors()?;
        let dim = tensors.iter().find(|t| t.0 == KEY).map_or(0, |t| t.1.shape[1]);
        let mut config = self.heads.config("PROMPT_TUNING");
        config.insert("num_transformer_submodules".into(), json!(self.parts));
        config.insert("num_virtual_tokens".into(), json!(self.tokens));
        config.extend(self.start.keys().map(|(key, value)| (key.to_string(), value)));
        config.insert("tokenizer_kwargs".into(), Value::Null);
        config.insert("token_dim".into(), json!(dim));
        config.insert("num_layers".into(), json!(save.facts.layers));
        config.insert("num_attention_heads".into(), json!(save.facts.kv_heads));
        let what = format!("{} virtual tokens.", self.tokens);
        let card = files::Card { base: self.heads.base(), method: "prompt tuning", tag: "prompt-tuning", what: &what };
        folder::write(save.dir, config, &card, &tensors)
    }
}
