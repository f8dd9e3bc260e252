//! What llama.cpp's `convert_hf_to_gguf.py` did, undone: tensor names (`gguf_names.rs`), the order of query and key
//! rows, gemma's norms, and a config.json made from the metadata.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::gguf::{self, Gguf};
use super::gguf_names::{ARCHITECTURES, Architecture, ROPE_FREQUENCIES, heads_of, hugging_face_name};
use super::{Entry, Fix, Place, Storage, TensorInfo};
use crate::dtype::DType;
use crate::quant::ggml::{self, GgmlType};
use crate::{Error, Result};

/// The config and the tensors of a file.
pub(super) fn read(gguf: &Gguf) -> Result<(Value, BTreeMap<String, Entry>)> {
    if gguf.uint("split.count")?.is_some_and(|n| n > 1) {
        return Err(Error::unsupported(
            format!("{}: one part of a split GGUF", gguf.path().display()),
            "merge the parts first (llama-gguf-split --merge)",
        ));
    }
    let name = gguf.string("general.architecture")?.unwrap_or("none");
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        return Err(Error::unsupported(
            format!("{}: GGUF architecture {name}", gguf.path().display()),
            format!("use one of {}, or the model's Hugging Face folder", known.join(", ")),
        ));
    };
    let reader = Reader { gguf, architecture };
    let heads = reader.required("attention.head_count")?;
    let kv_heads = reader.uint("attention.head_count_kv")?.unwrap_or(heads);
    let config = reader.config(heads, kv_heads)?;

    let mut tensors = BTreeMap::new();
    for tensor in gguf.tensors().filter(|t| t.name != ROPE_FREQUENCIES) {
        let name = hugging_face_name(&tensor.name);
        let fix = reader.fix(tensor, &name, heads, kv_heads)?;
        let stored = match tensor.ty {
            GgmlType::F32 => Storage::As(DType::F32),
            GgmlType::F16 => Storage::As(DType::F16),
            GgmlType::BF16 => Storage::As(DType::BF16),
            other => Storage::Ggml(other),
        };
        let info = TensorInfo { shape: tensor.shape.clone(), stored };
        let place = Place::Gguf { name: tensor.name.clone(), fix };
        if tensors.insert(name.clone(), Entry { info, place }).is_some() {
            return Err(Error::file(gguf.path(), format!("two tensors for {name}"), "one"));
        }
    }
    Ok((config, tensors))
}

struct Reader<'a> {
    gguf: &'a Gguf,
    architecture: &'a Architecture,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn error(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::file(self.gguf.path(), found, expected)
    }

    /// A number; per-layer arrays of them are of models that no family here describes.
    fn uint(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        if matches!(self.gguf.get(&key), Some(gguf::Value::Array(_))) {
            return Err(Error::unsupported(
                format!("{}: {key} that differs by layer", self.gguf.path().display()),
                "use a model whose layers are alike",
            ));
        }
        let n = self.gguf.uint(&key)?;
        n.map(|n| usize::try_from(n).map_err(|_| self.error(format!("{key} = {n}"), "a smaller number"))).transpose()
    }

    fn required(&self, key: &str) -> Result<usize> {
        match self.uint(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(self.error(format!("{} = 0", self.key(key)), "a positive number")),
            None => Err(self.error(format!("no {}", self.key(key)), "a number under that key")),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        // What was an f32 is written with an f32's digits: 1e-5, not 9.99999974737875e-6.
        let shortest = |x: f64| (x as f32).to_string().parse().unwrap_or(x);
        Ok(self.gguf.float(&self.key(key))?.map(shortest))
    }

    fn fix(&self, tensor: &gguf::Tensor, name: &str, heads: usize, kv_heads: usize) -> Result<Fix> {
        if self.architecture.norm_plus_one && name.ends_with("norm.weight") {
            return Ok(Fix::PlusOne);
        }
        let Some(heads) = heads_of(name, heads, kv_heads) else { return Ok(Fix::None) };
        if !self.architecture.permuted {
            return Ok(Fix::None);
        }
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if tensor.shape.len() > 2 || heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
            return Err(self.error(
                format!("{} of shape {:?} for {heads} heads", tensor.name, tensor.shape),
                "an even number of rows for each head",
            ));
        }
        Ok(Fix::Permuted { heads })
    }

    fn config(&self, heads: usize, kv_heads: usize) -> Result<Value> {
        let (gguf, architecture) = (self.gguf, self.architecture);
        if self.uint("expert_count")?.is_some_and(|n| n > 0) {
            return Err(Error::unsupported(
                format!("{}: a mixture of experts", gguf.path().display()),
                "use a dense model",
            ));
        }
        let embedding = gguf
            .tensor("token_embd.weight")
            .filter(|t| t.shape.len() == 2)
            .ok_or_else(|| self.error("no matrix token_embd.weight", "a model with token embeddings"))?;
        let hidden = self.required("embedding_length")?;
        let head_dim = self.uint("attention.key_length")?.unwrap_or(hidden / heads);
        if let Some(rotated) = self.uint("rope.dimension_count")?.filter(|&n| n != 0 && n != head_dim) {
            return Err(Error::unsupported(
                format!("{}: rotary embeddings of {rotated} of a head's {head_dim} features", gguf.path().display()),
                "use a model whose heads are rotated whole",
            ));
        }
        let theta = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let window = self.uint("attention.sliding_window")?.filter(|&w| w > 0);
        // llama.cpp calls Mistral llama; only the window tells, and without one they are the same.
        let (model_type, class) = match window {
            Some(_) if architecture.name == "llama" => ("mistral", "Mistral"),
            _ => (architecture.name, architecture.class),
        };
        let first_layer = |part: &str| gguf.tensor(&format!("blk.0.{part}.bias")).is_some();

        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.into(), value);
        set("architectures", json!([format!("{class}ForCausalLM")]));
        set("model_type", json!(model_type));
        set("hidden_size", json!(hidden));
        set("intermediate_size", json!(self.required("feed_forward_length")?));
        set("num_hidden_layers", json!(self.required("block_count")?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(kv_heads));
        set("head_dim", json!(head_dim));
        set("hidden_act", json!(architecture.activation));
        set("rms_norm_eps", json!(self.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6)));
        set("rope_theta", json!(theta));
        set("rope_scaling", self.rope_scaling(theta, head_dim)?);
        set("max_position_embeddings", json!(self.required("context_length")?));
        set("sliding_window", json!(window));
        if architecture.name == "qwen2" || architecture.name == "qwen3" {
            // Their configs carry a window that is off unless this says otherwise.
            set("use_sliding_window", json!(window.is_some()));
            set("max_window_layers", json!(0));
        }
        set("vocab_size", json!(embedding.shape[0]));
        set("tie_word_embeddings", json!(gguf.tensor("output.weight").is_none()));
        set("attention_bias", json!(first_layer("attn_q")));
        set("mlp_bias", json!(first_layer("ffn_up")));
        for (key, id) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            set(key, json!(gguf.uint(&format!("tokenizer.ggml.{id}_token_id"))?));
        }
        Ok(Value::Object(config))
    }

    fn rope_scaling(&self, theta: f64, head_dim: usize) -> Result<Value> {
        if let Some(tensor) = self.gguf.tensor(ROPE_FREQUENCIES) {
            if tensor.ty != GgmlType::F32 || tensor.shape != [head_dim / 2] {
                return Err(self.error(
                    format!("{ROPE_FREQUENCIES} of {} {:?}", tensor.ty.name(), tensor.shape),
                    format!("{} F32", head_dim / 2),
                ));
            }
            // The tensor is in the file, so there are not too many.
            let mut factors = vec![0.0; head_dim / 2];
            ggml::dequantize(tensor.ty, self.gguf.data(tensor), &mut factors);
            return llama3_scaling(&factors, theta).ok_or_else(|| {
                Error::unsupported(
                    format!("{}: rotary frequency factors that are not llama3's", self.gguf.path().display()),
                    "use the model's Hugging Face folder",
                )
            });
        }
        // As llama.cpp reads them: a factor without a type is linear, and a factor of 0 is 1.
        let kind = self.gguf.string(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        // rope.scale_linear is what files from before the scaling types have.
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.float("rope.scale_linear")?,
        };
        let factor = factor.filter(|&f| f != 0.0).unwrap_or(1.0);
        let attention = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
        if let Some((key, value)) = self.refused_scaling(kind, attention)? {
            return Err(Error::unsupported(
                format!("{}: {} = {value}", self.gguf.path().display(), self.key(key)),
                "use the model's Hugging Face folder",
            ));
        }
        match kind {
            "none" => Ok(Value::Null),
            "linear" if factor == 1.0 => Ok(Value::Null),
            "linear" => Ok(json!({"rope_type": "linear", "factor": factor})),
            "yarn" => {
                // llama.cpp multiplies by it what YaRN has on its own.
                let own = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                let mut scaling = json!({"rope_type": "yarn", "factor": factor, "attention_factor": attention * own});
                if let Some(length) = self.uint("rope.scaling.original_context_length")?.filter(|&n| n > 0) {
                    scaling["original_max_position_embeddings"] = json!(length);
                }
                for (theirs, ours) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                    if let Some(beta) = self.float(&format!("rope.scaling.{theirs}"))? {
                        scaling[ours] = json!(beta);
                    }
                }
                Ok(scaling)
            }
            other => Err(Error::unsupported(
                format!("{}: rope scaling {other}", self.gguf.path().display()),
                "use the model's Hugging Face folder",
            )),
        }
    }

    /// A key with a value under which llama.cpp computes what is not offered here.
    fn refused_scaling(&self, kind: &str, attention: f64) -> Result<Option<(&'static str, f64)>> {
        if kind != "yarn" && attention != 1.0 {
            return Ok(Some(("rope.scaling.attn_factor", attention)));
        }
        for (key, harmless) in [
            ("rope.scaling.yarn_ext_factor", if kind == "yarn" { 1.0 } else { 0.0 }),
            ("rope.scaling.yarn_attn_factor", 1.0),
            ("rope.scaling.yarn_log_multiplier", 0.0),
        ] {
            // A negative factor is llama.cpp's "not set".
            if let Some(value) = self.float(key)?.filter(|&v| v != harmless && v >= 0.0) {
                return Ok(Some((key, value)));
            }
        }
        Ok(None)
    }
}

/// What a rotary frequency is divided by under llama3's scaling (transformers
/// `_compute_llama3_parameters`): 1 for wavelengths below `length / high`, `factor` above
/// `length / low`, and between them `1 / ((1 - s) / factor + s)` with
/// `s = (length / wavelength - low) / (high - low)`.
pub fn llama3_factor(frequency: f64, factor: f64, low: f64, high: f64, length: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < length / high {
        1.0
    } else if wavelength > length / low {
        factor
    } else {
        let s = (length / wavelength - low) / (high - low);
        1.0 / ((1.0 - s) / factor + s)
    }
}

/// The llama3 scaling that gives these factors. A GGUF holds the factors only; of the parameters
/// after them the greatest is one, and Meta has only published the others as below, of which we
/// also try other lengths.
fn llama3_scaling(factors: &[f32], theta: f64) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let n = factors.len() as f64;
    // 8192 first: it is what the models have, and short tables may fit several.
    let length = [8192u32, 2048, 4096, 16384, 32768, 65536, 131072].into_iter().find(|&length| {
        factors.iter().enumerate().all(|(i, &f)| {
            let frequency = theta.powf(-(i as f64) / n);
            let expected = llama3_factor(frequency, factor, LOW, HIGH, length.into());
            (f64::from(f) / expected - 1.0).abs() < 1e-4
        })
    })?;
    Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": length,
    }))
}
