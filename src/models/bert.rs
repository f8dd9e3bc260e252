//! The BERT kind: BERT (Devlin et al. 2018, arXiv:1810.04805), RoBERTa (positions count from the padding id on, a head of
//! two layers) and DistilBERT (no token types, no pooler). Encoders: every token sees all of its sequence, and each sum is
//! normalized after it is taken.
//!
//! Per block: `h = n1(h + o(attention(q h, k h, v h)))`, `h = n2(h + down(act(up h)))`. Weight names and config keys are
//! those of Hugging Face transformers. Dropout of attention's probabilities is not applied: they are never in memory.

use serde_json::Value;

use super::config::{activation, bad, flag, layer_count, number, padding, rate, size, text};
use super::{Facts, Family, LmHead, Model, keys};
use crate::data::{INPUT_IDS, TOKEN_TYPE_IDS};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::layers::Pool;
use crate::nn::{Axis, Field, Init, MAIN, Nn, Part, Role};
use crate::ops::{Activation, Attention};

/// BERT, RoBERTa and DistilBERT: encoders.
pub const FAMILY: Family = Family { types: &["bert", "roberta", "distilbert"], keys: keys::BERT, read };

/// What the three call the same things.
struct Names {
    prefix: &'static str,
    layer: &'static str,
    q: &'static str,
    k: &'static str,
    v: &'static str,
    o: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    norm: &'static str,
    /// The masked-language head: its layer, its norm, the output layer, whose weight is the embedding, and its bias.
    head: [&'static str; 4],
}

const LAYER: Names = Names {
    prefix: "bert",
    layer: "encoder.layer",
    q: "attention.self.query",
    k: "attention.self.key",
    v: "attention.self.value",
    o: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
    head: [
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ],
};

static BERT: Names = LAYER;
static ROBERTA: Names = Names {
    prefix: "roberta",
    head: ["lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"],
    ..LAYER
};
static DISTILBERT: Names = Names {
    prefix: "distilbert",
    layer: "transformer.layer",
    q: "attention.q_lin",
    k: "attention.k_lin",
    v: "attention.v_lin",
    o: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
    head: ["vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"],
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bert,
    Roberta,
    Distilbert,
}

struct Bert {
    kind: Kind,
    names: &'static Names,
    facts: Facts,
    inter: usize,
    heads: usize,
    eps: f32,
    act: Activation,
    /// Rows of the tables of positions and of token types.
    positions: usize,
    types: usize,
    pad: i32,
    /// The row of the embedding of tokens that does not learn.
    padding: Option<usize>,
    dropout: f32,
    head_dropout: f32,
    /// Before the head that finds answers.
    qa_dropout: f32,
    /// The output layer's weight is the embedding.
    tied: bool,
}

fn read(config: &Value, _: usize) -> Result<Box<dyn Model>> {
    let kind = match text(config, "model_type") {
        Some("roberta") => Kind::Roberta,
        Some("distilbert") => Kind::Distilbert,
        _ => Kind::Bert,
    };
    let distil = kind == Kind::Distilbert;
    let key = |theirs: &'static str, distilberts: &'static str| if distil { distilberts } else { theirs };
    if let Some(other) = text(config, "position_embedding_type").filter(|found| *found != "absolute") {
        let what = format!("position_embedding_type = {other}");
        return Err(Error::unsupported(what, "a model whose position_embedding_type is absolute"));
    }
    if flag(config, "is_decoder") {
        return Err(Error::unsupported("a BERT that is a decoder", "set is_decoder to false"));
    }
    let hidden = size(config, key("hidden_size", "dim"), Some(768))?;
    let heads = size(config, key("num_attention_heads", "n_heads"), Some(12))?;
    if hidden % heads != 0 {
        return Err(bad(key("num_attention_heads", "n_heads"), heads, format!("a divisor of {hidden}")));
    }
    let positions = size(config, "max_position_embeddings", Some(512))?;
    let pad = config.get("pad_token_id").and_then(Value::as_i64).unwrap_or(if kind == Kind::Roberta { 1 } else { 0 });
    // RoBERTa's first token is at the padding id plus 1.
    let before = if kind == Kind::Roberta { pad.saturating_add(1) } else { 0 };
    let before = usize::try_from(before).ok().filter(|before| *before <= positions);
    let before = before.ok_or_else(|| bad("pad_token_id", pad, "an id from which positions count"))?;
    let dropout = rate(config, key("hidden_dropout_prob", "dropout"), 0.1)?;
    let head_dropout =
        rate(config, key("classifier_dropout", "seq_classif_dropout"), if distil { 0.2 } else { dropout })?;
    let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
    let names = match kind {
        Kind::Bert => &BERT,
        Kind::Roberta => &ROBERTA,
        Kind::Distilbert => &DISTILBERT,
    };
    let vocab = size(config, "vocab_size", None)?;
    Ok(Box::new(Bert {
        kind,
        names,
        facts: Facts {
            vocab,
            hidden,
            layers: layer_count(config, key("num_hidden_layers", "n_layers"), Some(12))?,
            kv_heads: heads,
            head_dim: hidden / heads,
            max_positions: positions.saturating_sub(before),
            bounded: true,
            init_std: number(config, "initializer_range").unwrap_or(0.02) as f32,
            prefix: names.prefix,
            encoder: true,
            head: [names.head[2].into(), format!("{}.embeddings.word_embeddings", names.prefix)],
            tied,
            ..Facts::default()
        },
        inter: size(config, key("intermediate_size", "hidden_dim"), Some(4 * hidden))?,
        heads,
        // DistilBERT's class has no key for it.
        eps: number(config, "layer_norm_eps").filter(|_| !distil).unwrap_or(1e-12) as f32,
        act: activation(config, key("hidden_act", "activation"), "gelu")?,
        positions,
        types: if distil { 0 } else { size(config, "type_vocab_size", Some(2))? },
        pad: pad as i32,
        padding: padding(config, vocab, Some(pad)),
        dropout,
        head_dropout,
        qa_dropout: if distil { rate(config, "qa_dropout", 0.1)? } else { 0.0 },
        tied,
    }))
}

impl Model for Bert {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn hidden(&self, nn: &mut Nn) -> Result<Val> {
        let mut h = self.embeddings(nn)?;
        for layer in 0..self.facts.layers {
            let path = format!("{}.{}.{layer}", self.names.prefix, self.names.layer);
            nn.block();
            h = self.attention(nn, &path, h)?;
            h = self.feed_forward(nn, &path, h)?;
        }
        nn.block();
        Ok(h)
    }

    fn lm_head(&self, nn: &mut Nn, x: Val) -> Result<LmHead> {
        let [dense, norm, output, bias] = self.names.head;
        let x = nn.fresh_linear(dense, Role::Pooler, x, self.facts.hidden, self.facts.init_std)?;
        // RoBERTa's head has its own activation, which is BERT's default.
        let x = nn.activation(dense, x, if self.kind == Kind::Roberta { Activation::Gelu } else { self.act })?;
        let x = nn.fresh_layer_norm(norm, x, self.eps)?;
        let words = self.words();
        let w = nn.head(output, self.tied.then_some(words.as_str()), self.facts.vocab, self.facts.hidden)?;
        let bias = Some(nn.fresh_weight(bias, &[self.facts.vocab], Role::Head, Init::Zeros));
        Ok(LmHead { x, w, bias })
    }

    fn classify(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        let (hidden, std) = (self.facts.hidden, self.facts.init_std);
        let first = nn.pool(x, Pool::First)?;
        match self.kind {
            Kind::Bert => {
                let path = "bert.pooler.dense";
                let x = nn.fresh_linear(path, Role::Pooler, first, hidden, std)?;
                let x = nn.activation(path, x, Activation::Tanh)?;
                let x = nn.dropout(x, self.head_dropout)?;
                nn.head_linear("classifier", x, labels, true, std)
            }
            Kind::Roberta => {
                let x = nn.dropout(first, self.head_dropout)?;
                let x = nn.head_linear("classifier.dense", x, hidden, true, std)?;
                let x = nn.activation("classifier.dense", x, Activation::Tanh)?;
                let x = nn.dropout(x, self.head_dropout)?;
                nn.head_linear("classifier.out_proj", x, labels, true, std)
            }
            Kind::Distilbert => {
                let x = nn.head_linear("pre_classifier", first, hidden, true, std)?;
                let x = nn.activation("pre_classifier", x, Activation::Relu)?;
                let x = nn.dropout(x, self.head_dropout)?;
                nn.head_linear("classifier", x, labels, true, std)
            }
        }
    }

    fn tag(&self, nn: &mut Nn, x: Val, labels: usize) -> Result<Val> {
        let dropout = if self.kind == Kind::Distilbert { self.dropout } else { self.head_dropout };
        let x = nn.dropout(x, dropout)?;
        nn.head_linear("classifier", x, labels, true, self.facts.init_std)
    }

    fn span(&self, nn: &mut Nn, x: Val) -> Result<Val> {
        let x = nn.dropout(x, self.qa_dropout)?;
        nn.head_linear("qa_outputs", x, 2, true, self.facts.init_std)
    }
}

impl Bert {
    fn words(&self) -> String {
        format!("{}.embeddings.word_embeddings", self.names.prefix)
    }

    fn embeddings(&self, nn: &mut Nn) -> Result<Val> {
        let (prefix, hidden) = (self.names.prefix, self.facts.hidden);
        let mut h = nn.embed(&self.words(), [self.facts.vocab, hidden], 1.0, self.padding)?;
        if self.types > 0 {
            let types = Field::ints(TOKEN_TYPE_IDS, Axis::Token(MAIN), 0, |item| {
                let at = item.at(MAIN);
                let mut types = vec![0; at.lead];
                types.extend(item.ints(TOKEN_TYPE_IDS));
                types.resize(at.len, 0);
                types
            });
            let types = nn.input(types)?;
            let path = format!("{prefix}.embeddings.token_type_embeddings");
            let x = nn.rows(&path, self.types, hidden, types)?;
            h = nn.g.add(h, x)?;
        }
        let positions = match self.kind {
            Kind::Roberta => nn.input(roberta_positions(self.pad))?,
            _ => nn.stream(MAIN)?.positions,
        };
        let x = nn.rows(&format!("{prefix}.embeddings.position_embeddings"), self.positions, hidden, positions)?;
        h = nn.g.add(h, x)?;
        let h = nn.layer_norm(&format!("{prefix}.embeddings.LayerNorm"), h, self.eps)?;
        nn.dropout(h, self.dropout)
    }

    fn attention(&self, nn: &mut Nn, path: &str, h: Val) -> Result<Val> {
        let (n, hidden, heads) = (self.names, self.facts.hidden, self.heads);
        let q = nn.linear(&format!("{path}.{}", n.q), Role::Q, h, hidden, true)?;
        let k = nn.linear(&format!("{path}.{}", n.k), Role::K, h, hidden, true)?;
        let v = nn.linear(&format!("{path}.{}", n.v), Role::V, h, hidden, true)?;
        let (head_dim, scale) = (hidden / heads, 1.0 / ((hidden / heads) as f32).sqrt());
        let spec = Attention::new(heads, heads, head_dim, scale, false);
        let mixed = nn.attention(&format!("{path}.attention"), q, k, v, spec)?;
        let out = nn.linear(&format!("{path}.{}", n.o), Role::O, mixed, hidden, true)?;
        let out = nn.dropout(out, self.dropout)?;
        let norm = format!("{path}.{}", n.attention_norm);
        nn.residual_norm(adder(&norm), Part::Attention, h, out, (&norm, self.eps))
    }

    fn feed_forward(&self, nn: &mut Nn, path: &str, h: Val) -> Result<Val> {
        let n = self.names;
        let up = format!("{path}.{}", n.up);
        let wide = nn.linear(&up, Role::Up, h, self.inter, true)?;
        let wide = nn.activation(&up, wide, self.act)?;
        let out = nn.linear(&format!("{path}.{}", n.down), Role::Down, wide, self.facts.hidden, true)?;
        let out = nn.dropout(out, self.dropout)?;
        let norm = format!("{path}.{}", n.norm);
        nn.residual_norm(adder(&norm), Part::FeedForward, h, out, (&norm, self.eps))
    }
}

/// The module that adds a part's output to its input: that which holds the norm of the sum.
fn adder(norm: &str) -> &str {
    norm.rsplit_once('.').map_or(norm, |(module, _)| module)
}

/// RoBERTa's positions: the padding id plus the number of tokens so far that are not padding; padding's is its id. Virtual
/// tokens and keys of a prefix count.
fn roberta_positions(pad: i32) -> Field {
    Field::ints("position_ids", Axis::Token(MAIN), 0, move |item| {
        let at = item.at(MAIN);
        let ids = item.ints(INPUT_IDS);
        let mut count = at.prefix as i32;
        let virtual_tokens = std::iter::repeat_n(None, at.lead);
        let place = |id: Option<i32>| {
            // With virtual tokens transformers sees embeddings, not ids, and counts all.
            if at.lead == 0 && id == Some(pad) {
                return pad;
            }
            count += 1;
            pad + count
        };
        virtual_tokens.chain(ids.into_iter().map(Some)).map(place).collect()
    })
}
