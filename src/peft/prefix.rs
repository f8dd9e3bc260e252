//! Prefix tuning (Li and Liang 2021, arXiv:2101.00190): P trained keys and values before those of each sequence, in every
//! self-attention of the stack whose hidden states the task reads. The file is PEFT's: `prompt_embeddings`
//! `[P, layers·2·width]`; layer i takes columns 2i (keys) and 2i + 1 (values) of `width` each. In encoder-decoders PEFT
//! doubles that table along the layers and cuts it in groups of four, so that layer i takes 4i and 4i + 1 modulo 2·layers.
//!
//! With projection the table is `tanh(E W1ᵀ + b1) W2ᵀ + b2` of trained E `[P, width]`; PEFT writes only its value, and so do
//! we, with the encoder beside it in `prompt_encoder.safetensors`, from which training goes on.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::folder::{self, Heads, MOST_TOKENS};
use super::{Method, MethodDef, Rate, Save, Settings, files, prompt};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::models::config::{MOST_FEATURES, MOST_LAYERS};
use crate::nn::{Hooks, Init, MAIN, Next, Nn, Qkv, Site, StreamId, WeightRef};
use crate::ops::Activation;
use crate::weights::HostTensor;

/// The encoder's tensors beside the adapter, as PEFT names its parameters.
pub const ENCODER_FILE: &str = "prompt_encoder.safetensors";
const EMBEDDING: &str = "prompt_encoder.embedding.weight";
const LAYERS: [&str; 2] = ["prompt_encoder.transform.0", "prompt_encoder.transform.2"];

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "prefix",
    peft_type: Some("PREFIX_TUNING"),
    same_at_start: false,
    rate: Rate::any_width(1e-2),
    new: |settings: &Settings| {
        let facts = &settings.facts;
        let width = facts.kv_heads * facts.head_dim;
        if settings.encoder_hidden == Some(0) {
            return Err(Error::config("encoder_hidden", "0", "1 or more"));
        }
        Ok(Box::new(Prefix {
            tokens: settings.checked_virtual_tokens()?,
            layers: facts.layers,
            width,
            heads_of_keys: facts.kv_heads,
            encoder_decoder: settings.encoder_decoder,
            projection: settings.prefix_projection.then(|| settings.encoder_hidden.unwrap_or(width)),
            heads: Heads::new(settings),
        }))
    },
    read: |config| {
        let project = config.get("prefix_projection").and_then(Value::as_bool).unwrap_or(false);
        // The file holds the table itself; only where the encoder is beside it does training go on with projection.
        let with_encoder = project && config.contains_key("trimtab_encoder");
        Ok(Box::new(Prefix {
            tokens: folder::count(config, "num_virtual_tokens", MOST_TOKENS)?,
            layers: folder::count(config, "num_layers", MOST_LAYERS)?,
            width: folder::count(config, "token_dim", MOST_FEATURES)?,
            heads_of_keys: folder::count(config, "num_attention_heads", MOST_FEATURES)?,
            encoder_decoder: folder::count(config, "num_transformer_submodules", 2).unwrap_or(1) > 1,
            projection: if with_encoder {
                Some(folder::count(config, "encoder_hidden_size", MOST_FEATURES)?)
            } else {
                None
            },
            heads: Heads::read(config)?,
        }))
    },
};

/// The encoder's tensors beside an adapter, by the names of the graph's leaves, if they are there.
pub fn encoder(dir: &Path) -> Result<Option<BTreeMap<String, HostTensor>>> {
    let path = dir.join(ENCODER_FILE);
    if !path.exists() {
        return Ok(None);
    }
    files::read_file(&path).map(Some)
}

/// See the module.
pub struct Prefix {
    /// Keys and values before each sequence, in every layer.
    pub tokens: usize,
    /// Layers of the stack that the table has keys and values for.
    pub layers: usize,
    /// Features of a key: heads of keys times features of a head.
    pub width: usize,
    /// Heads of keys and values, in a layer.
    pub heads_of_keys: usize,
    /// The model has an encoder and a decoder: PEFT then reads the table as four parts a layer, not two.
    pub encoder_decoder: bool,
    /// Features between the two layers of the encoder, if there is one.
    pub projection: Option<usize>,
    /// What is trained whole along with it: the task's head.
    pub heads: Heads,
}

impl Prefix {
    /// The table [P, layers·2·width].
    fn table(&self, nn: &mut Nn) -> Result<Val> {
        let all = self.layers * 2 * self.width;
        let Some(hidden) = self.projection else {
            return Ok(nn.adapter(prompt::KEY, &[self.tokens, all], Init::Normal { std: 1.0 }));
        };
        if let Some(table) = nn.noted("prefix.table") {
            return Ok(table);
        }
        let e = nn.adapter(EMBEDDING, &[self.tokens, self.width], Init::Normal { std: 1.0 });
        let layer = |nn: &mut Nn, name: &str, x: Val, out: usize| {
            let features = nn.g.ty(x).cols();
            let bound = 1.0 / (features as f32).sqrt();
            let w = nn.adapter(&format!("{name}.weight"), &[out, features], Init::Uniform { bound });
            let b = nn.adapter(&format!("{name}.bias"), &[out], Init::Uniform { bound });
            nn.g.linear(x, w, Some(b), None)
        };
        let x = layer(nn, LAYERS[0], e, hidden)?;
        let x = nn.g.activation(x, Activation::Tanh)?;
        let table = layer(nn, LAYERS[1], x, all)?;
        nn.note("prefix.table", table);
        Ok(table)
    }

    /// The parts of the table that a layer's keys and values are.
    fn parts(&self, layer: usize) -> [usize; 2] {
        match self.encoder_decoder {
            true => [0, 1].map(|i| (4 * layer + i) % (2 * self.layers)),
            false => [2 * layer, 2 * layer + 1],
        }
    }
}

/// The first number in a path: the layer.
fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

impl Hooks for Prefix {
    fn trains(&self, w: WeightRef) -> Option<String> {
        self.heads.trains(w, "base_model.")
    }

    fn keeps_ties(&self) -> bool {
        false
    }

    fn prefix(&self, stream: StreamId, _: usize) -> usize {
        if stream == MAIN { self.tokens } else { 0 }
    }

    fn attention(&self, nn: &mut Nn, at: &Site, qkv: Qkv, next: Next) -> Result<Val> {
        if (qkv.queries, qkv.keys) != (MAIN, MAIN) {
            return next.attention(nn, at, qkv);
        }
        let (width, layers) = (nn.g.ty(qkv.k).cols(), self.layers);
        let layer = layer_of(&at.path).filter(|&layer| layer < layers && width == self.width);
        let Some(layer) = layer else {
            let found = format!("keys of {width} features at {}", at.path);
            return Err(Error::config("prefix", found, format!("{layers} layers with keys of {}", self.width)));
        };
        let table = self.table(nn)?;
        let rows = nn.g.reshape(table, &[self.tokens * 2 * layers, width])?;
        let mut part = |part: usize| {
            let ids: Vec<i32> = (0..self.tokens).map(|p| (p * 2 * layers + part) as i32).collect();
            let ids = nn.constant_i32(&format!("prefix.rows.{part}"), &ids);
            nn.g.embed(ids, rows, 1.0)
        };
        let [k, v] = self.parts(layer);
        let prefix = [part(k)?, part(v)?];
        let qkv = nn.prefixed(qkv, prefix)?;
        next.attention(nn, at, qkv)
    }
}

impl Method for Prefix {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn check(&self, _: &[Site]) -> Result<()> {
        Ok(())
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        let mut tensors = save.tensors()?;
        if let Some(hidden) = self.projection {
            let encoder: Vec<_> = tensors.extract_if(.., |t| t.0.starts_with("prompt_encoder.")).collect();
            tensors.push((prompt::KEY.to_string(), self.project(&encoder, hidden)?));
            std::fs::create_dir_all(save.dir).map_err(|e| Error::io(save.dir, e))?;
            files::write_tensors(&save.dir.join(ENCODER_FILE), &encoder)?;
        }
        let mut config = self.heads.config("PREFIX_TUNING");
        config.insert("encoder_hidden_size".into(), json!(self.projection.unwrap_or(self.width)));
        config.insert("num_attention_heads".into(), json!(self.heads_of_keys));
        config.insert("num_layers".into(), json!(self.layers));
        config.insert("num_transformer_submodules".into(), json!(if self.encoder_decoder { 2 } else { 1 }));
        config.insert("num_virtual_tokens".into(), json!(self.tokens));
        config.insert("prefix_projection".into(), json!(self.projection.is_some()));
        config.insert("token_dim".into(), json!(self.width));
        let what = format!("{} keys and values before each sequence.", self.tokens);
        let card = files::Card { base: self.heads.base(), method: "prefix tuning", tag: "prefix-tuning", what: &what };
        folder::write(save.dir, config, &card, &tensors)
    }
}

impl Prefix {
    /// The table that the encoder gives, in f64 on the way.
    fn project(&self, encoder: &[(String, HostTensor)], hidden: usize) -> Result<HostTensor> {
        let get = |name: &str| {
            let found = encoder.iter().find(|t| t.0 == name).map(|t| t.1.data.as_slice());
            found.ok_or_else(|| Error::config("prefix", format!("no tensor {name}"), "the whole encoder"))
        };
        let linear = |x: &[f64], name: &str, features: usize| -> Result<Vec<f64>> {
            let (w, b) = (get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?);
            let row = |x: &[f64]| -> Vec<f64> {
                let out = w.chunks_exact(features).zip(b);
                out.map(|(w, b)| *b as f64 + w.iter().zip(x).map(|(w, x)| *w as f64 * x).sum::<f64>()).collect()
            };
            Ok(x.chunks_exact(features).flat_map(row).collect())
        };
        let e: Vec<f64> = get(EMBEDDING)?.iter().map(|&x| x as f64).collect();
        let x: Vec<f64> = linear(&e, LAYERS[0], self.width)?.into_iter().map(f64::tanh).collect();
        let data = linear(&x, LAYERS[1], hidden)?.into_iter().map(|x| x as f32).collect();
        Ok(HostTensor { shape: vec![self.tokens, self.layers * 2 * self.width], data })
    }
}
