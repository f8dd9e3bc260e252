//! T5 (Raffel et al. 2020, arXiv:1910.10683): an encoder and a decoder, both with a relative position bias that the first
//! layer of each holds and all share, RMS norms before each part, unscaled scores, and a feed-forward part with a gate
//! (T5 1.1, `gated-gelu`) or without (`relu`). Weight names and config keys are those of Hugging Face transformers.
//!
//! Encoder block: `h += o(attention(n1 h))`, `h += wo(act(wi(n2 h)))`; the decoder's has attention to the encoder's last
//! states between the two. The head is the embedding where they are tied, its input then times `1/√d_model`.

use serde_json::Value;

use super::config::{
    ACTIVATIONS, activation_named, bad, flag, head_features, layer_count, number, position_count, rate, size, text,
};
use super::{Facts, Family, LmHead, Model, keys};
use crate::data::INPUT_IDS;
use crate::error::Result;
use crate::graph::Val;
use crate::nn::{Axis, Field, Item, MAIN, Nn, Part, Qkv, Role, SOURCE, StreamId};
use crate::ops::{Activation, Attention};

/// T5: encoder-decoders whose positions are biases of the attention.
pub const FAMILY: Family = Family { types: &["t5"], keys: keys::T5, read };

/// The module of the embedding, which encoder and decoder share.
const EMBEDDING: &str = "shared";
/// The module that has the model where there is a head for labels, and that head of sequences.
const MODULE: &str = "transformer";
const HEAD: &str = "classification_head";

/// Whether a class of transformers has the model in a module of its own, as those for labels do; the others have its parts
/// themselves.
pub fn has_module(class: &str) -> bool {
    ["T5ForSequenceClassification", "T5ForTokenClassification"].contains(&class)
}

struct T5 {
    facts: Facts,
    encoder_layers: usize,
    inner: usize,
    heads: usize,
    head_dim: usize,
    eps: f32,
    act: Activation,
    gated: bool,
    buckets: usize,
    max_distance: usize,
    tied: bool,
    scale_outputs: bool,
    dropout: f32,
    /// Of a task's head.
    head_dropout: f32,
    /// Before every module but the heads.
    at: &'static str,
    /// The token that ends a text.
    end: Option<i32>,
}

fn read(config: &Value, _: usize) -> Result<Box<dyn Model>> {
    let hidden = size(config, "d_model", None)?;
    let heads = size(config, "num_heads", None)?;
    let head_dim = size(config, "d_kv", None)?;
    head_features("num_heads", heads, head_dim)?;
    let layers = layer_count(config, "num_layers", None)?;
    let kind = text(config, "feed_forward_proj").unwrap_or("relu");
    let (gated, act) = match kind.strip_prefix("gated-") {
        Some(act) => (true, act),
        None => (false, kind),
    };
    // What transformers derives from the name wins where the file has it.
    let gated = config.get("is_gated_act").and_then(Value::as_bool).unwrap_or(gated);
    let act = match text(config, "dense_act_fn").unwrap_or(act) {
        // transformers reads gated-gelu as gelu_new, which is the tanh form.
        "gelu" if kind == "gated-gelu" && text(config, "dense_act_fn").is_none() => Activation::GeluTanh,
        name => activation_named(name)
            .ok_or_else(|| bad("feed_forward_proj", kind, format!("{ACTIVATIONS}, or gated- and one of these")))?,
    };
    let buckets = size(config, "relative_attention_num_buckets", Some(32))?;
    let max_distance = position_count(config, "relative_attention_max_distance", Some(128))?;
    if buckets < 4 || buckets % 2 != 0 || max_distance <= buckets / 2 {
        return Err(bad(
            "relative_attention_num_buckets",
            buckets,
            "an even number, 4 or more, below twice the distance",
        ));
    }
    let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
    let scale_outputs = config.get("scale_decoder_outputs").and_then(Value::as_bool).unwrap_or(tied);
    let start =
        config.get("decoder_start_token_id").or(config.get("pad_token_id")).and_then(Value::as_i64).unwrap_or(0);
    let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
    let (at, prefix) = if class.is_some_and(has_module) { ("transformer.", MODULE) } else { ("", "") };
    if flag(config, "is_decoder") {
        return Err(bad("is_decoder", true, "an encoder-decoder"));
    }
    let facts = Facts {
        vocab: size(config, "vocab_size", None)?,
        hidden,
        layers: layer_count(config, "num_decoder_layers", Some(layers))?,
        kv_heads: heads,
        head_dim,
        // Positions are relative: there is no longest sequence.
        max_positions: usize::MAX,
        init_std: number(config, "initializer_factor").unwrap_or(1.0) as f32 / (hidden as f32).sqrt(),
        prefix,
        heads: &[HEAD],
        decoder_start: Some(start as i32),
        head: ["lm_head".into(), EMBEDDING.into()],
        tied,
        ..Facts::default()
    };
    Ok(Box::new(T5 {
        facts,
        encoder_layers: layers,
        inner: size(config, "d_ff", None)?,
        heads,
        head_dim,
        eps: number(config, "layer_norm_epsilon").unwrap_or(1e-6) as f32,
        act,
        gated,
        buckets,
        max_distance,
        tied,
        scale_outputs,
        dropout: rate(config, "dropout_rate", 0.1)?,
        head_dropout: rate(config, "classifier_dropout", 0.0)?,
        at,
        end: config.get("eos_token_id").and_then(Value::as_i64).map(|id| id as i32),
    }))
}

/// The bucket of a key `distance` tokens after its query (negative: before it). Half of the buckets, of each direction
/// where there are two, are for one distance each; the others grow with the logarithm up to `max`. In f32 as transformers
/// computes it, since a bucket's border is a rounding.
fn bucket(distance: i64, both: bool, buckets: usize, max: usize) -> usize {
    let (first, buckets, distance) = match both {
        true => (if distance > 0 { buckets / 2 } else { 0 }, buckets / 2, distance.unsigned_abs() as usize),
        false => (0, buckets, (-distance).max(0) as usize),
    };
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    let share = (distance as f32 / exact as f32).ln() / (max as f64 / exact as f64).ln() as f32;
    first + (exact + (share * (buckets - exact) as f32) as usize).min(buckets - 1)
}

impl Model for T5 {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn hidden(&self, nn: &mut Nn) -> Result<Val> {
        // Labels of tokens are read off the encoder, and nothing is decoded.
        if nn.layout.streams.len() == 1 {
            return self.encoder(nn, MAIN);
        }
        // When generating, the encoder runs in a phase of its own, and its keys and values are kept.
        let encoded = if nn.cached.is_some() { None } else { Some(self.encoder(nn, SOURCE)?) };
        let mut h = self.embed(nn, MAIN)?;
        let bias = self.bias(nn, "decoder", false)?;
        for layer in 0..self.facts.layers {
            let path = format!("{}decoder.block.{layer}.layer", self.at);
            nn.block();
            h = self.attention(nn, &path, h, (MAIN, true), bias)?;
            h = self.cross_attention(nn, &path, h, encoded)?;
            h = self.feed_forward(nn, &format!("{path}.2"), h)?;
        }
        nn.block();
        let h = nn.rms_norm(&format!("{}decoder.final_layer_norm", self.at), h, self.eps, 0.0)?;
        nn.dropout(h, self.dropout)
    }

    fn lm_head(&self, nn: &mut Nn, x: Val) -> Result<LmHead> {
        let x = match self.scale_outputs {
            true => {
                let factor = 1.0 / (self.facts.hidden as f32).sqrt();
                let factor = nn.constant("decoder.scale", &[1], || vec![factor]);
                nn.g.scale(x, factor)?
            }
            false => x,
        };
        let w = nn.head("lm_head", self.tied.then_some(EMBEDDING), self.facts.vocab, self.facts.hidden)?;
        Ok(LmHead { x, w, bias: None })
    }

    /// transformers' `T5ClassificationHead`, on the decoder's state at the last token that ends a text.
    fn classify(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        let end = self.end;
        let row = move |item: &Item| {
            let at = item.at(MAIN);
            let ids = item.ints(INPUT_IDS);
            let last = ids.iter().rposition(|&id| Some(id) == end).unwrap_or(ids.len().saturating_sub(1));
            vec![(at.start + at.lead + last) as i32]
        };
        let rows = nn.input(Field::ints("last_end", Axis::Sequence, -1, row))?;
        let x = nn.g.embed(rows, x, 1.0)?;
        let std = self.facts.init_std;
        let x = nn.dropout(x, self.head_dropout)?;
        let x = nn.head_linear(&format!("{HEAD}.dense"), x, self.facts.hidden, true, std)?;
        let x = nn.activation(HEAD, x, Activation::Tanh)?;
        let x = nn.dropout(x, self.head_dropout)?;
        nn.head_linear(&format!("{HEAD}.out_proj"), x, labels, true, std)
    }

    fn tag(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        let x = nn.dropout(x, self.head_dropout)?;
        nn.head_linear("classifier", x, labels, true, self.facts.init_std)
    }

    fn encode(&self, nn: &mut Nn) -> Result<()> {
        let encoded = self.encoder(nn, SOURCE)?;
        for layer in 0..self.facts.layers {
            self.memory(nn, &format!("{}decoder.block.{layer}.layer.1.EncDecAttention", self.at), Some(encoded))?;
        }
        Ok(())
    }
}

impl T5 {
    fn embed(&self, nn: &mut Nn, stream: StreamId) -> Result<Val> {
        let h = nn.embed_stream(
            &format!("{}{EMBEDDING}", self.at),
            [self.facts.vocab, self.facts.hidden],
            1.0,
            None,
            stream,
        )?;
        nn.dropout(h, self.dropout)
    }

    fn encoder(&self, nn: &mut Nn, stream: StreamId) -> Result<Val> {
        let mut h = self.embed(nn, stream)?;
        let bias = self.bias(nn, "encoder", true)?;
        for layer in 0..self.encoder_layers {
            let path = format!("{}encoder.block.{layer}.layer", self.at);
            nn.block();
            h = self.attention(nn, &path, h, (stream, false), bias)?;
            h = self.feed_forward(nn, &format!("{path}.1"), h)?;
        }
        nn.block();
        let h = nn.rms_norm(&format!("{}encoder.final_layer_norm", self.at), h, self.eps, 0.0)?;
        nn.dropout(h, self.dropout)
    }

    /// The bias of each head at each distance from −L to L, [2·L + 1, heads]; beyond L = `max_distance` it is the same.
    fn bias(&self, nn: &mut Nn, stack: &str, both: bool) -> Result<Val> {
        let path = format!("{}{stack}.block.0.layer.0.SelfAttention.relative_attention_bias", self.at);
        let table = nn.weight(&format!("{path}.weight"), &[self.buckets, self.heads], Role::Position);
        let far = self.max_distance as i64;
        let ids: Vec<i32> = (-far..=far).map(|d| bucket(d, both, self.buckets, self.max_distance) as i32).collect();
        let ids = nn.constant_i32(&format!("{stack}.buckets"), &ids);
        nn.g.site = path;
        nn.g.embed(ids, table, 1.0)
    }

    fn spec(&self, causal: bool) -> Attention {
        let (heads, head_dim) = (self.heads, self.head_dim);
        Attention::new(heads, heads, head_dim, 1.0, causal)
    }

    /// Self-attention of a stream, causal or not.
    fn attention(&self, nn: &mut Nn, path: &str, h: Val, (stream, causal): (StreamId, bool), bias: Val) -> Result<Val> {
        let path = format!("{path}.0");
        let at = format!("{path}.SelfAttention");
        let width = self.heads * self.head_dim;
        let x = nn.rms_norm(&format!("{path}.layer_norm"), h, self.eps, 0.0)?;
        let q = nn.linear(&format!("{at}.q"), Role::Q, x, width, false)?;
        let k = nn.linear(&format!("{at}.k"), Role::K, x, width, false)?;
        let v = nn.linear(&format!("{at}.v"), Role::V, x, width, false)?;
        let spec = self.spec(causal);
        let qkv = Qkv { q, k, v, spec, queries: stream, keys: stream, bias: Some(bias), prefixed: false };
        let mixed = nn.attention_of(&at, qkv)?;
        let out = nn.linear(&format!("{at}.o"), Role::O, mixed, self.facts.hidden, false)?;
        let out = nn.dropout(out, self.dropout)?;
        nn.residual(&path, Part::Attention, h, out)
    }

    fn memory(&self, nn: &mut Nn, at: &str, encoded: Option<Val>) -> Result<[Val; 2]> {
        let width = self.heads * self.head_dim;
        nn.memory(at, |nn| {
            let x = encoded.ok_or_else(|| nn.g.refuse("attention", "no states of the encoder".into()))?;
            let k = nn.linear(&format!("{at}.k"), Role::K, x, width, false)?;
            Ok([k, nn.linear(&format!("{at}.v"), Role::V, x, width, false)?])
        })
    }

    fn cross_attention(&self, nn: &mut Nn, path: &str, h: Val, encoded: Option<Val>) -> Result<Val> {
        let path = format!("{path}.1");
        let at = format!("{path}.EncDecAttention");
        let x = nn.rms_norm(&format!("{path}.layer_norm"), h, self.eps, 0.0)?;
        let q = nn.linear(&format!("{at}.q"), Role::Q, x, self.heads * self.head_dim, false)?;
        let [k, v] = self.memory(nn, &at, encoded)?;
        let spec = self.spec(false);
        let qkv = Qkv { q, k, v, spec, queries: MAIN, keys: SOURCE, bias: None, prefixed: false };
        let mixed = nn.attention_of(&at, qkv)?;
        let out = nn.linear(&format!("{at}.o"), Role::O, mixed, self.facts.hidden, false)?;
        let out = nn.dropout(out, self.dropout)?;
        nn.residual(&path, Part::CrossAttention, h, out)
    }

    fn feed_forward(&self, nn: &mut Nn, path: &str, h: Val) -> Result<Val> {
        let at = format!("{path}.DenseReluDense");
        let x = nn.rms_norm(&format!("{path}.layer_norm"), h, self.eps, 0.0)?;
        let wide = match self.gated {
            true => {
                let gate = nn.linear(&format!("{at}.wi_0"), Role::Gate, x, self.inner, false)?;
                let up = nn.linear(&format!("{at}.wi_1"), Role::Up, x, self.inner, false)?;
                nn.g.site = at.clone();
                nn.g.gated_act(gate, up, self.act)?
            }
            false => {
                let up = nn.linear(&format!("{at}.wi"), Role::Up, x, self.inner, false)?;
                nn.activation(&at, up, self.act)?
            }
        };
        let wide = nn.dropout(wide, self.dropout)?;
        let out = nn.linear(&format!("{at}.wo"), Role::Down, wide, self.facts.hidden, false)?;
        let out = nn.dropout(out, self.dropout)?;
        nn.residual(path, Part::FeedForward, h, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of transformers 5.23's `T5Attention._relative_position_bucket` with 32 buckets and a distance of 128.
    #[test]
    fn buckets_are_those_of_transformers() {
        let of =
            |both: bool| [-200, -128, -60, -17, -8, -3, 0, 1, 7, 8, 20, 127, 500].map(|d| bucket(d, both, 32, 128));
        assert_eq!(of(true), BOTH);
        assert_eq!(of(false), BEFORE);
        // The control: another distance.
        assert_ne!([-60].map(|d| bucket(d, true, 32, 64)), [BOTH[2]]);
    }

    const BOTH: [usize; 13] = [15, 15, 13, 10, 8, 3, 0, 17, 23, 24, 26, 31, 31];
    const BEFORE: [usize; 13] = [31, 31, 26, 16, 8, 3, 0, 0, 0, 0, 0, 0, 0];
}
