//! GPT-2: learned positions, layer norms before each part, one fused layer for queries, keys and values, and weights that
//! are stored as `[in, out]` (transformers' `Conv1D`).
//!
//! Per block: `h += c_proj(attention(q, k, v))` with `[q k v] = c_attn(n1 h)`, `h += c_proj(act(c_fc(n2 h)))`. PEFT
//! adapts `c_attn` as one layer, so the three are cut from its output. The head is the embedding. `attn_pdrop` is not
//! applied: attention's probabilities are never in memory.

use serde_json::Value;

use super::config::{activation, bad, flag, layer_count, number, rate, size};
use super::{Facts, Family, LmHead, Model, keys};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{MAIN, Nn, Part, Role};
use crate::ops::{Activation, Attention};

/// GPT-2: decoders with learnt positions.
pub const FAMILY: Family = Family { types: &["gpt2"], keys: keys::GPT2, read };

#[derive(Clone, Debug)]
struct Gpt2 {
    facts: Facts,
    inter: usize,
    heads: usize,
    eps: f32,
    act: Activation,
    tied: bool,
    /// Scores are divided by the root of the head's size; and by the number of the layer, from 1.
    scale_by_dim: bool,
    scale_by_layer: bool,
    embed_drop: f32,
    residual_drop: f32,
    /// Before the head that tags tokens.
    head_drop: f32,
}

fn read(config: &Value, _: usize) -> Result<Box<dyn Model>> {
    let hidden = size(config, "n_embd", Some(768))?;
    let heads = size(config, "n_head", Some(12))?;
    if hidden % heads != 0 {
        return Err(bad("n_head", heads, format!("a divisor of n_embd = {hidden}")));
    }
    if flag(config, "add_cross_attention") {
        return Err(Error::unsupported("GPT-2 as a decoder with cross attention", "set add_cross_attention to false"));
    }
    let on = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(true);
    Ok(Box::new(Gpt2 {
        facts: Facts {
            vocab: size(config, "vocab_size", Some(50257))?,
            hidden,
            layers: layer_count(config, "n_layer", Some(12))?,
            kv_heads: heads,
            head_dim: hidden / heads,
            max_positions: size(config, "n_positions", Some(1024))?,
            bounded: true,
            init_std: number(config, "initializer_range").unwrap_or(0.02) as f32,
            prefix: "transformer",
            head: ["lm_head".into(), EMBEDDING.into()],
            tied: on("tie_word_embeddings"),
            ..Facts::default()
        },
        inter: size(config, "n_inner", Some(4 * hidden))?,
        heads,
        eps: number(config, "layer_norm_epsilon").unwrap_or(1e-5) as f32,
        act: activation(config, "activation_function", "gelu_new")?,
        tied: on("tie_word_embeddings"),
        scale_by_dim: on("scale_attn_weights"),
        scale_by_layer: flag(config, "scale_attn_by_inverse_layer_idx"),
        embed_drop: rate(config, "embd_pdrop", 0.1)?,
        head_drop: rate(config, "classifier_dropout", rate(config, "hidden_dropout", 0.1)?)?,
        residual_drop: rate(config, "resid_pdrop", 0.1)?,
    }))
}

/// The module of the embedding.
const EMBEDDING: &str = "transformer.wte";

impl Model for Gpt2 {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn hidden(&self, nn: &mut Nn) -> Result<Val> {
        let tokens = nn.embed(EMBEDDING, [self.facts.vocab, self.facts.hidden], 1.0, None)?;
        let positions = nn.stream(MAIN)?.positions;
        let places = nn.rows("transformer.wpe", self.facts.max_positions, self.facts.hidden, positions)?;
        let sum = nn.g.add(tokens, places)?;
        let mut h = nn.dropout(sum, self.embed_drop)?;
        for layer in 0..self.facts.layers {
            let path = format!("transformer.h.{layer}");
            nn.block();
            h = self.attention(nn, &path, layer, h)?;
            h = self.mlp(nn, &path, h)?;
        }
        nn.block();
        nn.layer_norm("transformer.ln_f", h, self.eps)
    }

    fn lm_head(&self, nn: &mut Nn, x: Val) -> Result<LmHead> {
        let tied = self.tied.then_some(EMBEDDING);
        let w = nn.head("lm_head", tied, self.facts.vocab, self.facts.hidden)?;
        Ok(LmHead { x, w, bias: None })
    }

    fn tag(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        let x = nn.dropout(x, self.head_drop)?;
        nn.head_linear("classifier", x, labels, true, self.facts.init_std)
    }
}

impl Gpt2 {
    fn attention(&self, nn: &mut Nn, path: &str, layer: usize, h: Val) -> Result<Val> {
        let hidden = self.facts.hidden;
        let x = nn.layer_norm(&format!("{path}.ln_1"), h, self.eps)?;
        let at = format!("{path}.attn");
        let all = nn.conv1d(&format!("{at}.c_attn"), Role::Qkv, x, 3 * hidden, true)?;
        let q = nn.g.slice_cols(all, 0, hidden)?;
        let k = nn.g.slice_cols(all, hidden, hidden)?;
        let v = nn.g.slice_cols(all, 2 * hidden, hidden)?;
        let head_dim = self.facts.head_dim;
        let mut scale = if self.scale_by_dim { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
        if self.scale_by_layer {
            scale /= (layer + 1) as f32;
        }
        let heads = self.heads;
        let spec = Attention::new(heads, heads, head_dim, scale, true);
        let mixed = nn.attention(&at, q, k, v, spec)?;
        let out = nn.conv1d(&format!("{at}.c_proj"), Role::O, mixed, hidden, true)?;
        let out = nn.dropout(out, self.residual_drop)?;
        nn.residual(path, Part::Attention, h, out)
    }

    fn mlp(&self, nn: &mut Nn, path: &str, h: Val) -> Result<Val> {
        let x = nn.layer_norm(&format!("{path}.ln_2"), h, self.eps)?;
        let at = format!("{path}.mlp");
        let wide = nn.conv1d(&format!("{at}.c_fc"), Role::Up, x, self.inter, true)?;
        let wide = nn.activation(&at, wide, self.act)?;
        let out = nn.conv1d(&format!("{at}.c_proj"), Role::Down, wide, self.facts.hidden, true)?;
        let out = nn.dropout(out, self.residual_drop)?;
        nn.residual(path, Part::FeedForward, h, out)
    }
}
