//! The Llama family: Llama 2 and 3, SmolLM2, TinyLlama, Mistral (sliding window), Qwen2 (biases on q, k, v), Qwen3
//! (norms on the heads of q and k), Gemma 1 (scaled embedding, GeGLU, norms stored minus one). Windows and rotations may
//! differ by layer.
//!
//! Per block: `h += o(attention(rope(q(n1 h)), rope(k(n1 h)), v(n1 h)))`, `h += down(act(gate(n2 h)) · up(n2 h))`
//! with RMS norms n1, n2. Weight names and config keys are those of Hugging Face transformers.

use serde_json::Value;

use super::config::{activation, bad, flag, head_features, layer_count, number, padding, position_count, size, text};
use super::{Facts, Family, LmHead, Model, keys};
use crate::error::Result;
use crate::graph::Val;
use crate::nn::inputs::{Axis, Field};
use crate::nn::{Computed, MAIN, Nn, Part, Role};
use crate::ops::rope::{RopeSpec, rope_rows};
use crate::ops::{Activation, Attention};

/// Llama and its kin: decoders with rotary positions, RMS norms and a gated MLP.
pub const FAMILY: Family = Family { types: &["llama", "mistral", "qwen2", "qwen3", "gemma"], keys: keys::LLAMA, read };

/// What a config.json of the family says, as the graph needs it.
#[derive(Clone, Debug)]
pub struct Llama {
    facts: Facts,
    hidden: usize,
    inter: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
    act: Activation,
    /// Biases of q, k, v; of o; of the MLP.
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
    /// Added to every norm's weight.
    norm_offset: f32,
    embed_scale: f32,
    /// The embedding's row that does not learn.
    padding: Option<usize>,
    tied: bool,
    /// The window of each layer, and the number of its rotation.
    layers: Vec<(Option<usize>, usize)>,
    ropes: Vec<RopeSpec>,
    /// Rows of the table of rotations.
    positions: usize,
}

fn read(config: &Value, positions: usize) -> Result<Box<dyn Model>> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let hidden = size(config, "hidden_size", None)?;
    let heads = size(config, "num_attention_heads", None)?;
    // What transformers' class has where the file says nothing at all.
    let of_class = |key: &str, own: usize, class: usize| if config.get(key).is_none() { class } else { own };
    let (class_kv_heads, class_head_dim, class_positions) = match kind {
        "mistral" => (8, hidden / heads, 131_072),
        "qwen2" => (32, hidden / heads, 32_768),
        "qwen3" => (32, 128, 32_768),
        "gemma" => (16, 256, 8192),
        _ => (heads, hidden / heads, 2048),
    };
    let default = of_class("num_key_value_heads", heads, class_kv_heads);
    let kv_heads = size(config, "num_key_value_heads", Some(default))?;
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(bad("num_key_value_heads", kv_heads, format!("a divisor of num_attention_heads = {heads}")));
    }
    let default = of_class("head_dim", hidden / heads, class_head_dim);
    let head_dim = size(config, "head_dim", Some(default))?;
    if head_dim % 2 != 0 {
        return Err(bad("head_dim", head_dim, "an even number"));
    }
    head_features("num_attention_heads", heads, head_dim)?;
    let gemma = kind == "gemma";
    let act = match text(config, "hidden_act") {
        None | Some("gelu") if gemma => Activation::GeluTanh,
        _ => activation(config, "hidden_act", "silu")?,
    };
    let max_positions = position_count(config, "max_position_embeddings", Some(class_positions))?;
    let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(gemma);
    // Mistral's and Qwen2's classes have their own; of the MLP only Llama's asks.
    let attention_bias = !matches!(kind, "mistral" | "qwen2") && flag(config, "attention_bias");
    let count = layer_count(config, "num_hidden_layers", None)?;
    let (mut layers, mut ropes) = (Vec::new(), Vec::new());
    for window in windows(config, kind, count)? {
        let name = if window.is_some() && kind != "mistral" { SLIDING } else { FULL };
        let spec = super::rope::spec(config, name, head_dim, max_positions)?;
        let known = ropes.iter().position(|r| *r == spec);
        layers.push((window, known.unwrap_or(ropes.len())));
        ropes.extend(known.is_none().then_some(spec));
    }
    let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
    let prefix = if class.is_some_and(|class| IN_TRANSFORMER.contains(&class)) { "transformer" } else { "model" };
    let vocab = size(config, "vocab_size", None)?;
    Ok(Box::new(Llama {
        facts: Facts {
            vocab,
            hidden,
            layers: count,
            kv_heads,
            head_dim,
            max_positions,
            init_std: number(config, "initializer_range").unwrap_or(0.02) as f32,
            prefix,
            head: ["lm_head".into(), format!("{prefix}.{EMBEDDING}")],
            tied,
            ..Facts::default()
        },
        hidden,
        inter: size(config, "intermediate_size", None)?,
        heads,
        kv_heads,
        head_dim,
        eps: number(config, "rms_norm_eps").unwrap_or(1e-6) as f32,
        act,
        qkv_bias: kind == "qwen2" || attention_bias,
        o_bias: attention_bias,
        mlp_bias: kind == "llama" && flag(config, "mlp_bias"),
        qk_norm: kind == "qwen3",
        norm_offset: if gemma { 1.0 } else { 0.0 },
        embed_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        padding: padding(config, vocab, gemma.then_some(0)),
        tied,
        layers,
        ropes,
        positions,
    }))
}

/// The module of the embedding, in the model's.
const EMBEDDING: &str = "embed_tokens";
/// Classes of transformers that call the model's module as old ones did.
const IN_TRANSFORMER: [&str; 3] =
    ["LlamaForQuestionAnswering", "Qwen2ForQuestionAnswering", "Qwen3ForQuestionAnswering"];

impl Model for Llama {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn hidden(&self, nn: &mut Nn) -> Result<Val> {
        let angles: Vec<Angles> =
            self.ropes.iter().enumerate().map(|(i, rope)| self.angles(nn, i, rope)).collect::<Result<_>>()?;
        let module = self.facts.prefix;
        let mut h = nn.embed(&self.facts.head[1], [self.facts.vocab, self.hidden], self.embed_scale, self.padding)?;
        for (layer, &(window, rope)) in self.layers.iter().enumerate() {
            let path = format!("{module}.layers.{layer}");
            nn.block();
            h = self.attention(nn, &path, h, angles[rope], window)?;
            h = self.mlp(nn, &path, h)?;
        }
        nn.block();
        nn.rms_norm(&format!("{module}.norm"), h, self.eps, self.norm_offset)
    }

    fn lm_head(&self, nn: &mut Nn, x: Val) -> Result<LmHead> {
        let tied = self.tied.then_some(self.facts.head[1].as_str());
        let w = nn.head("lm_head", tied, self.facts.vocab, self.hidden)?;
        Ok(LmHead { x, w, bias: None })
    }
}

/// What the tokens of a kind of layer are rotated by: a table, and the row of each token.
#[derive(Clone, Copy)]
struct Angles {
    table: Val,
    rows: Val,
}

impl Llama {
    /// The angles of the kind of layer of number `i`. Where long sequences have others than short ones, theirs come after those.
    fn angles(&self, nn: &mut Nn, i: usize, rope: &RopeSpec) -> Result<Angles> {
        let name = if i == 0 { "rope".into() } else { format!("rope.{i}") };
        let short = rope.short_positions().filter(|&short| short < self.positions);
        let data = Computed::new(rope_rows(rope, short, self.positions)?);
        let table = nn.computed(&name, &[short.unwrap_or(0) + self.positions, self.head_dim], data);
        let rows = match short {
            Some(short) => nn.input(rows_of_lengths(short))?,
            None => nn.stream(MAIN)?.positions,
        };
        Ok(Angles { table, rows })
    }

    fn attention(&self, nn: &mut Nn, path: &str, h: Val, angles: Angles, window: Option<usize>) -> Result<Val> {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let x = nn.rms_norm(&format!("{path}.input_layernorm"), h, self.eps, self.norm_offset)?;
        let at = format!("{path}.self_attn");
        let mut q = nn.linear(&format!("{at}.q_proj"), Role::Q, x, heads * dim, self.qkv_bias)?;
        let mut k = nn.linear(&format!("{at}.k_proj"), Role::K, x, kv_heads * dim, self.qkv_bias)?;
        let v = nn.linear(&format!("{at}.v_proj"), Role::V, x, kv_heads * dim, self.qkv_bias)?;
        if self.qk_norm {
            q = nn.head_norm(&format!("{at}.q_norm"), q, dim, self.eps, self.norm_offset)?;
            k = nn.head_norm(&format!("{at}.k_norm"), k, dim, self.eps, self.norm_offset)?;
        }
        nn.g.site = at.clone();
        let Angles { table, rows } = angles;
        let q = nn.g.rope(q, table, rows, heads, dim)?;
        let k = nn.g.rope(k, table, rows, kv_heads, dim)?;
        let scale = 1.0 / (dim as f32).sqrt();
        let spec = Attention { window, ..Attention::new(heads, kv_heads, dim, scale, true) };
        let mixed = nn.attention(&at, q, k, v, spec)?;
        let out = nn.linear(&format!("{at}.o_proj"), Role::O, mixed, self.hidden, self.o_bias)?;
        nn.residual(path, Part::Attention, h, out)
    }

    fn mlp(&self, nn: &mut Nn, path: &str, h: Val) -> Result<Val> {
        let x = nn.rms_norm(&format!("{path}.post_attention_layernorm"), h, self.eps, self.norm_offset)?;
        let out = nn.gated_mlp(&format!("{path}.mlp"), x, self.inter, self.act, self.mlp_bias)?;
        nn.residual(path, Part::FeedForward, h, out)
    }
}

/// Position of each token, in sequences of more than `short` tokens after as many rows of a table.
fn rows_of_lengths(short: usize) -> Field {
    Field::ints(format!("rope_rows.{short}"), Axis::Token(MAIN), 0, move |item| {
        let at = item.at(MAIN);
        let first = at.prefix + if at.prefix + at.len > short { short } else { 0 };
        (0..at.len).map(|i| (first + i) as i32).collect()
    })
}

/// The types of layers that this family has.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The window of each layer. Mistral's holds in every layer, 4096 if the file says nothing; Qwen's only where
/// `use_sliding_window` says so, and then in the layers that `layer_types` names, else in those from `max_window_layers` on.
pub fn windows(config: &Value, kind: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let qwen = matches!(kind, "qwen2" | "qwen3");
    let window = match config.get("sliding_window") {
        Some(Value::Null) => None,
        _ if kind == "mistral" || (qwen && flag(config, "use_sliding_window")) => {
            Some(position_count(config, "sliding_window", Some(4096))?)
        }
        _ => None,
    };
    if !qwen || window.is_none() {
        return Ok(vec![window; layers]);
    }
    let types = match config.get("layer_types") {
        None | Some(Value::Null) => {
            let first = match config.get("max_window_layers") {
                Some(Value::Number(n)) if n.as_u64() == Some(0) => 0,
                _ => position_count(config, "max_window_layers", Some(28))?,
            };
            return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
        }
        Some(types) => types,
    };
    let one = |name: &Value| match name.as_str() {
        Some(FULL) => Some(None),
        Some(SLIDING) => Some(window),
        _ => None,
    };
    let found: Option<Vec<_>> = types.as_array().and_then(|types| types.iter().map(one).collect());
    found
        .filter(|found| found.len() == layers)
        .ok_or_else(|| bad("layer_types", types, format!("{FULL} or {SLIDING} for each of {layers} layers")))
}
