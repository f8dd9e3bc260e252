//! Checkpoints of random weights, of any size, in Hugging Face's layout: to measure on, not to use. They are written
//! tensor by tensor, a stretch at a time, so that a model larger than the memory is no matter. The seed and a tensor's
//! name alone decide its values.
//!
//! Matrices are normal with the config's standard deviation (drawn from a table of 65,536 values), norms one, biases
//! zero. NF4's levels are quantiles of the normal distribution, so codes that are all equally likely decode to one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::dtype::{DType, Nf4Layout};
use crate::error::{Error, Result};
use crate::graph::Phase;
use crate::models;
use crate::nn::{Build, Nn, Role, Source};
use crate::peft::full::Full;
use crate::quant::nf4;
use crate::tasks::causal_lm::CausalLm;
use crate::tasks::{Shape, Task};
use crate::weights::load::{normals, words};
use crate::weights::safetensors::{Dtype, write_safetensors_with};

/// Shapes that are known by name: config.json of public models, without what is of the tokenizer's.
pub const LIKE: &[(&str, &str)] = &[
    (
        "tinyllama",
        r#"{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
            "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048, "rope_theta": 10000.0}"#,
    ),
    (
        "llama-8b",
        r#"{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}"#,
    ),
    (
        "llama-70b",
        r#"{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}"#,
    ),
    (
        "llama-405b",
        r#"{"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}"#,
    ),
];

/// The config of a shape that is known by name.
pub fn like(name: &str) -> Option<Value> {
    let (_, text) = LIKE.iter().find(|(n, _)| *n == name)?;
    let Ok(Value::Object(shape)) = serde_json::from_str(text) else { return None };
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": false,
    });
    config.as_object_mut()?.extend(shape);
    Some(config)
}

/// The config of a shape that is known by name, or of the config.json that is named.
pub fn config(name: &str) -> Result<Value> {
    match like(name) {
        Some(config) => Ok(config),
        None if name.ends_with(".json") => {
            let text = std::fs::read_to_string(name).map_err(|e| Error::io(name, e))?;
            serde_json::from_str(&text).map_err(|e| Error::file(name, e.to_string(), "JSON"))
        }
        None => {
            let names: Vec<&str> = LIKE.iter().map(|(name, _)| *name).collect();
            Err(Error::config("--like", name, format!("{}, or the path of a config.json", names.join(", "))))
        }
    }
}

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// F32 or BF16.
    pub dtype: DType,
    /// Nf4 or Nf4Dq for the layers' linear weights.
    pub quantize: Option<DType>,
    /// Seeds the weights; a tensor's values depend on it and on the tensor's name only.
    pub seed: u64,
    /// Bytes of a file, roughly.
    pub shard: u64,
}

/// A tensor of a file.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    kind: Kind,
}

enum Kind {
    Normal,
    Fill(f32),
    Codes,
    Absmax,
    Indices,
    Nested,
    Floats(&'static [f32]),
    Text(String),
}

impl Entry {
    fn bytes(&self) -> u64 {
        let size = match self.dtype {
            Dtype::F32 => 4,
            Dtype::BF16 => 2,
            _ => 1,
        };
        self.shape.iter().product::<usize>() as u64 * size
    }
}

/// Writes the model of `config` into the folder `dir`; `progress(bytes done, of)` is called along the way.
pub fn write(
    dir: &Path,
    config: &Value,
    format: &Format,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let std = models::read(config, 2)?.facts().init_std;
    let weights = weights(config)?;
    // The parts of a weight stay in one file.
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, shape, role) in weights {
        let entries = entries(&name, &shape, role, format, std);
        let bytes: u64 = entries.iter().map(Entry::bytes).sum();
        if filled > 0 && filled + bytes > format.shard {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.extend(entries);
        }
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let total: u64 = shards.iter().flatten().map(Entry::bytes).sum();
    let (count, mut done, mut map) = (shards.len(), 0, Map::new());
    let table: Vec<f32> =
        (0..1 << 14).flat_map(|i| normals(words(format.seed, "normal", i))).map(|x| x * std).collect();
    for (i, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        map.extend(shard.iter().map(|e| (e.name.clone(), file.clone().into())));
        let infos = shard.iter().map(|e| (e.name.clone(), e.dtype, e.shape.clone())).collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_safetensors_with(dir.join(&file), &metadata, infos, &mut |i, out| {
            let mut on = |bytes: usize| {
                done += bytes as u64;
                progress(done, total)
            };
            fill(&shard[i], format, std, &table, out, &mut on)
        })?;
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_text(&dir.join("model.safetensors.index.json"), &index)?;
    }
    write_config(dir, config, format)
}

/// Writes config.json alone.
pub fn write_config(dir: &Path, config: &Value, format: &Format) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let mut config = config.clone();
    if let Some(config) = config.as_object_mut() {
        config.insert("dtype".into(), torch_name(format.dtype).into());
        if let Some(dtype) = format.quantize {
            let settings = json!({
                "quant_method": "bitsandbytes",
                "load_in_4bit": true,
                "load_in_8bit": false,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": dtype == DType::Nf4Dq,
                "bnb_4bit_compute_dtype": torch_name(format.dtype),
                "bnb_4bit_quant_storage": "uint8",
            });
            config.insert("quantization_config".into(), settings);
        }
    }
    write_text(&dir.join("config.json"), &config)
}

fn write_text(path: &Path, json: &Value) -> Result<()> {
    std::fs::write(path, format!("{json:#}\n")).map_err(|e| Error::io(path, e))
}

fn torch_name(dtype: DType) -> &'static str {
    if dtype == DType::BF16 { "bfloat16" } else { "float32" }
}

/// Name, shape and role of every weight of the model, as its family asks for them.
fn weights(config: &Value) -> Result<Vec<(String, Vec<usize>, Role)>> {
    let model = models::read(config, 2)?;
    let storage = |_: &str, _: Role| DType::F32;
    let build = Build { stack: &[&Full], storage: &storage, act: DType::F32 };
    let mut nn = Nn::new(build);
    nn.begin(Phase::EVAL, CausalLm.layout(Shape::of(2)))?;
    let hidden = model.hidden(&mut nn)?;
    model.lm_head(&mut nn, hidden)?;
    let base = nn.weights.iter().filter_map(|w| match &w.source {
        Source::Base { tensor, role, .. } => Some((tensor.clone(), w.stored(nn.g.shape(w.val)), *role)),
        _ => None,
    });
    Ok(base.collect())
}

/// What a weight is in a file: itself, or its codes and all that belongs to them (bitsandbytes' names).
fn entries(name: &str, shape: &[usize], role: Role, format: &Format, std: f32) -> Vec<Entry> {
    let n: usize = shape.iter().product();
    let dtype = if format.dtype == DType::BF16 { Dtype::BF16 } else { Dtype::F32 };
    let whole = |kind| Entry { name: name.to_string(), dtype, shape: shape.to_vec(), kind };
    let quantize = match (shape.len(), role) {
        (1, Role::Norm) => return vec![whole(Kind::Fill(1.0))],
        (1, _) => return vec![whole(Kind::Fill(0.0))],
        (_, role) if role.is_block_linear() => format.quantize,
        _ => None,
    };
    let Some(quantize) = quantize else { return vec![whole(Kind::Normal)] };
    let part = |suffix: &str, dtype, shape: &[usize], kind| Entry {
        name: format!("{name}{suffix}"),
        dtype,
        shape: shape.to_vec(),
        kind,
    };
    let blocks = n.div_ceil(Nf4Layout::BLOCK);
    let mut state = json!({
        "quant_type": "nf4",
        "blocksize": Nf4Layout::BLOCK,
        "dtype": torch_name(format.dtype),
        "shape": shape,
    });
    let mut parts = vec![
        part("", Dtype::U8, &[n.div_ceil(2), 1], Kind::Codes),
        part(".quant_map", Dtype::F32, &[16], Kind::Floats(&nf4::CODE)),
    ];
    if quantize == DType::Nf4Dq {
        let nested = blocks.div_ceil(Nf4Layout::NESTED_BLOCK);
        state["nested_blocksize"] = Nf4Layout::NESTED_BLOCK.into();
        state["nested_dtype"] = "float32".into();
        state["nested_offset"] = f64::from(absmax(std)).into();
        parts.push(part(".absmax", Dtype::U8, &[blocks], Kind::Indices));
        parts.push(part(".nested_absmax", Dtype::F32, &[nested], Kind::Nested));
        parts.push(part(".nested_quant_map", Dtype::F32, &[256], Kind::Floats(nf4::dynamic_map())));
    } else {
        parts.push(part(".absmax", Dtype::F32, &[blocks], Kind::Absmax));
    }
    let state = state.to_string();
    parts.push(part(".quant_state.bitsandbytes__nf4", Dtype::U8, &[state.len()], Kind::Text(state)));
    parts
}

/// The mean scale of a block whose codes are all equally likely, such that it decodes to the deviation `std`.
fn absmax(std: f32) -> f32 {
    std / (nf4::CODE.iter().map(|c| c * c).sum::<f32>() / 16.0).sqrt()
}

/// Bytes that are made at a time.
const STRETCH: usize = 4 << 20;

fn fill(
    entry: &Entry,
    format: &Format,
    std: f32,
    table: &[f32],
    out: &mut dyn Write,
    on: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let draw = |i: usize| words(format.seed, &entry.name, i);
    let total = entry.bytes() as usize;
    let mut buffer = vec![0u8; total.min(STRETCH)];
    for start in (0..total).step_by(STRETCH) {
        let piece = &mut buffer[..(total - start).min(STRETCH)];
        // A draw is 16 bytes: 16 codes' bytes or indices, 8 values of a table, or 4 scales.
        match &entry.kind {
            Kind::Codes | Kind::Indices => piece.par_chunks_mut(16).enumerate().for_each(|(i, out)| {
                let bytes: [u8; 16] = bytemuck::cast(draw(start / 16 + i));
                out.copy_from_slice(&bytes[..out.len()]);
            }),
            Kind::Normal => {
                let size = if entry.dtype == Dtype::BF16 { 2 } else { 4 };
                piece.par_chunks_mut(8 * size).enumerate().for_each(|(i, out)| {
                    let picks: [u16; 8] = bytemuck::cast(draw(start / (8 * size) + i));
                    for (out, pick) in out.chunks_mut(size).zip(picks) {
                        put(table[pick as usize], out);
                    }
                });
            }
            Kind::Absmax | Kind::Nested => piece.par_chunks_mut(16).enumerate().for_each(|(i, out)| {
                let (low, high) = if matches!(entry.kind, Kind::Nested) { (0.2, 0.3) } else { (0.9, 1.1) };
                for (out, word) in out.chunks_mut(4).zip(draw(start / 16 + i)) {
                    let unit = (word >> 8) as f32 / (1 << 24) as f32;
                    put(absmax(std) * (low + (high - low) * unit), out);
                }
            }),
            Kind::Fill(x) => {
                let size = if entry.dtype == Dtype::BF16 { 2 } else { 4 };
                piece.chunks_mut(size).for_each(|out| put(*x, out));
            }
            Kind::Floats(floats) => piece.chunks_mut(4).zip(*floats).for_each(|(out, x)| put(*x, out)),
            Kind::Text(text) => piece.copy_from_slice(&text.as_bytes()[start..start + piece.len()]),
        }
        out.write_all(piece).map_err(|e| Error::io(&entry.name, e))?;
        on(piece.len())?;
    }
    Ok(())
}

/// Writes `x` into four bytes as f32 or into two as bf16.
fn put(x: f32, out: &mut [u8]) {
    match out.len() {
        4 => out.copy_from_slice(&x.to_le_bytes()),
        _ => out.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
    }
}
