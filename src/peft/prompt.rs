//! Prompt tuning (Lester et al. 2021, arXiv:2104.08691): P virtual tokens before each sequence, whose embeddings are
//! trained: `x = [p_1 … p_P; embed(ids)]`. In encoder-decoders they come before the encoder's input. The file is PEFT's:
//! `prompt_embeddings` `[P, hidden]`; for encoder-decoders it has twice the rows, of which the first half is used.

use serde_json::{Value, json};

use super::folder::{self, Heads};
use super::{Method, MethodDef, Save, Settings, files};
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
    new: |settings: &Settings| {
        let start = match &settings.prompt_ids {
            Some(ids) => Start::Rows(ids.clone()),
            None => Start::Normal,
        };
        let parts = if settings.encoder_decoder { 2 } else { 1 };
        Ok(Box::new(Prompt { tokens: settings.virtual_tokens, parts, start, heads: Heads::new(settings) }))
    },
    read: |config| {
        let parts = folder::count(config, "num_transformer_submodules").unwrap_or(1);
        let tokens = folder::count(config, "num_virtual_tokens")?;
        Ok(Box::new(Prompt { tokens, parts, start: Start::Normal, heads: Heads::read(config)? }))
    },
};

/// How the embeddings of virtual tokens start.
enum Start {
    /// Standard normal, as PEFT's RANDOM.
    Normal,
    /// As those of these tokens (a text, or tokens that were drawn), over and over.
    Rows(Vec<usize>),
}

/// See the module.
pub struct Prompt {
    tokens: usize,
    /// PEFT keeps rows for the encoder and for the decoder.
    parts: usize,
    start: Start,
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
        let prompt = match &self.start {
            Start::Normal => nn.adapter(KEY, &[rows, dim], Init::Normal { std: 1.0 }),
            Start::Rows(ids) => {
                let ids: Vec<usize> = (0..rows).map(|i| ids[i % ids.len().max(1)]).collect();
                nn.adapter_rows(KEY, &format!("{}.weight", at.path), Role::Embed, dim, &ids)
            }
        };
        let stream = table.stream;
        let virtual_ids = Field::ints(format!("virtual_tokens.{}", stream.0), Axis::Token(stream), -1, move |item| {
            let at = item.at(stream);
            (0..at.len as i32).map(|i| if (i as usize) < at.lead { i } else { -1 }).collect()
        });
        let ids = nn.input(virtual_ids)?;
        let own = nn.g.embed(ids, prompt, table.scale)?;
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
        let dim = tensors.iter().find(|t| t.0 == KEY).map_or(0, |t| t.1[1]);
        let mut config = self.heads.config("PROMPT_TUNING");
        config.insert("num_transformer_submodules".into(), json!(self.parts));
        config.insert("num_virtual_tokens".into(), json!(self.tokens));
        config.insert("prompt_tuning_init".into(), json!("RANDOM"));
        config.insert("prompt_tuning_init_text".into(), Value::Null);
        config.insert("token_dim".into(), json!(dim));
        config.insert("num_layers".into(), json!(save.facts.layers));
        config.insert("num_attention_heads".into(), json!(save.facts.kv_heads));
        let what = format!("{} virtual tokens.", self.tokens);
        let card = files::Card { base: self.heads.base(), method: "prompt tuning", tag: "prompt-tuning", what: &what };
        folder::write(save.dir, config, &card, &tensors)
    }
}
