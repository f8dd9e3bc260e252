//! A model in fewer bits: what `trimtab quantize` does. GGUF files are those of `export`; here are folders with linear layers in
//! 4-bit NormalFloat as bitsandbytes and transformers write them, tensor by tensor.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::merge;
use super::output::{self, Output};
use crate::config::RunConfig;
use crate::dtype::{DType, Nf4Layout};
use crate::error::{Error, Result};
use crate::nn::Role;
use crate::peft::full;
use crate::quant::nf4::{self, Quantizer};
use crate::session::Merged;
use crate::weights::safetensors::Dtype;
use crate::weights::{Info, load, write_shards};
use crate::{dtype::Ty, durable};

/// What was written.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of weights, and how many of them are quantized.
    pub weights: (usize, usize),
    /// Values of all weights.
    pub parameters: u64,
    /// Bytes of all files of weights, without their headers.
    pub bytes: u64,
    /// Number of those files.
    pub files: usize,
    /// What the other weights are written in.
    pub dtype: DType,
    /// What there is to say of the model.
    pub notes: Vec<String>,
}

/// What a tensor of the files is of its weight.
#[derive(Clone, Copy, PartialEq)]
enum What {
    Whole,
    Codes,
    Absmax,
    Map,
    Nested,
    NestedMap,
    State,
}

/// Families whose layers transformers replaces by bitsandbytes' where nothing else is said: all but the head.
const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma"];

/// Bytes of the JSON of a weight's state: it is padded with spaces, since its length is written before the values are known.
const STATE: usize = 256;

/// Writes the model of the settings, with their adapter merged if there is one, to the folder `out`: its layers' linear weights
/// in `format` (NF4, with or without quantized scales), the others in `dtype`, in files of at most `shard` bytes.
pub fn folder(config: &RunConfig, format: DType, dtype: Option<DType>, shard: u64) -> Result<Report> {
    let (path, out) = (config.need("model")?, config.need("out")?);
    let inputs = [("model", Some(path)), ("adapter", config.adapter.as_deref())];
    let inputs: Vec<(&str, &Path)> = inputs.into_iter().filter_map(|(name, path)| Some((name, path?))).collect();
    let (merged, job) = merge::open(config)?;
    let family = merged.config().get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
    if !FAMILIES.contains(&family.as_str()) {
        let hint = format!("a model of {}", FAMILIES.join(", "));
        return Err(Error::unsupported(format!("a bitsandbytes folder of model_type {family}"), hint));
    }
    let dtype = dtype.unwrap_or_else(|| merge::usual_dtype(&job.base));
    let double = format == DType::Nf4Dq;
    let (mut groups, mut parts): (Vec<Vec<Info>>, Vec<(usize, What)>) = (Vec::new(), Vec::new());
    let (mut quantized, mut skipped) = (0, Vec::new());
    for (i, (name, shape)) in merged.tensors().iter().enumerate() {
        let role = merged.role(i);
        let linear = shape.len() == 2 && role.is_block_linear();
        quantized += usize::from(linear);
        if shape.len() == 2 && matches!(role, Role::Head | Role::Classifier) {
            skipped.push(name.trim_end_matches(".weight").to_string());
        }
        let all = if linear { pieces(shape, double) } else { vec![("", What::Whole, stored(dtype), shape.clone())] };
        parts.extend(all.iter().map(|piece| (i, piece.1)));
        groups.push(all.into_iter().map(|(end, _, ty, shape)| (format!("{name}{end}"), ty, shape)).collect());
    }
    if !skipped.iter().any(|module| module == "lm_head") {
        skipped.push("lm_head".into());
    }
    let size = |info: &Info| (info.2.iter().product::<usize>() * info.1.bitsize() / 8) as u64;
    let bytes: u64 = groups.iter().flatten().map(size).sum();
    let output = Output::folder(out, &inputs)?;
    output::has_room(output.dir(), bytes)?;
    let (weights, parameters) = {
        let values = |t: &(String, Vec<usize>)| t.1.iter().product::<usize>() as u64;
        (merged.tensors().len(), merged.tensors().iter().map(values).sum())
    };
    let mut settings = merged.config().clone();
    let mut writer = Writer { merged, double, dtype, held: None, path: output.dir() };
    let files = write_shards(output.dir(), groups, shard, &mut |i, out| writer.write(parts[i], out))?;
    full::write_kept(&job.base.path, output.dir(), &|dir| job.base.tokenizer()?.save_folder(dir))?;
    if let Some(settings) = settings.as_object_mut() {
        settings.shift_remove("torch_dtype");
        settings.insert("dtype".into(), torch_name(dtype).into());
        let quantization = json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": double,
            "bnb_4bit_compute_dtype": torch_name(dtype),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": skipped,
        });
        settings.insert("quantization_config".into(), quantization);
    }
    durable::write(&output.dir().join("config.json"), format!("{settings:#}\n").as_bytes())?;
    output.finish()?;
    let notes = job.base.notes.clone();
    Ok(Report { weights: (weights, quantized), parameters, bytes, files, dtype, notes })
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    }
}

/// The tensors of a quantized weight: ends of names, what they are, types and shapes.
fn pieces(shape: &[usize], double: bool) -> Vec<(&'static str, What, Dtype, Vec<usize>)> {
    let n: usize = shape.iter().product();
    let blocks = n.div_ceil(Nf4Layout::BLOCK);
    let mut all = vec![
        ("", What::Codes, Dtype::U8, vec![n.div_ceil(2), 1]),
        (".quant_map", What::Map, Dtype::F32, vec![16]),
        (".quant_state.bitsandbytes__nf4", What::State, Dtype::U8, vec![STATE]),
        (".absmax", What::Absmax, if double { Dtype::U8 } else { Dtype::F32 }, vec![blocks]),
    ];
    if double {
        let nested = blocks.div_ceil(Nf4Layout::NESTED_BLOCK);
        all.push((".nested_absmax", What::Nested, Dtype::F32, vec![nested]));
        all.push((".nested_quant_map", What::NestedMap, Dtype::F32, vec![256]));
    }
    all
}

/// Makes the tensors of the files.
struct Writer<'a> {
    merged: Merged,
    double: bool,
    dtype: DType,
    /// The last weight that was quantized: the parts of one follow each other in a file, but for those of other types.
    held: Option<(usize, Vec<u8>)>,
    path: &'a Path,
}

impl Writer<'_> {
    fn write(&mut self, (i, what): (usize, What), out: &mut dyn Write) -> Result<()> {
        let io = |e| Error::io(self.path, e);
        match what {
            What::Whole => return self.whole(i, out),
            What::Map => return out.write_all(bytemuck::cast_slice(&nf4::CODE)).map_err(io),
            What::NestedMap => return out.write_all(bytemuck::cast_slice(nf4::dynamic_map())).map_err(io),
            _ => {}
        }
        let shape = self.merged.tensors()[i].1.clone();
        let layout = Nf4Layout::new(shape.iter().product(), self.double);
        let (double, dtype) = (self.double, self.dtype);
        let bytes = self.quantized(i)?;
        let state;
        let part = match what {
            What::Codes => &bytes[layout.codes],
            What::Absmax => &bytes[layout.absmax],
            What::Nested => &bytes[layout.nested],
            _ => {
                let mut json = json!({
                    "quant_type": "nf4", "blocksize": Nf4Layout::BLOCK, "dtype": torch_name(dtype), "shape": shape,
                });
                if let Some(offset) = bytes.get(layout.offset).and_then(|b| b.first_chunk().copied()).filter(|_| double)
                {
                    json["nested_blocksize"] = Nf4Layout::NESTED_BLOCK.into();
                    json["nested_dtype"] = "float32".into();
                    json["nested_offset"] = f64::from(f32::from_le_bytes(offset)).into();
                }
                state = format!("{:<STATE$}", json.to_string());
                state.as_bytes()
            }
        };
        out.write_all(part).map_err(|e| Error::io(self.path, e))
    }

    /// A weight's bytes in the order of [`Nf4Layout`].
    fn quantized(&mut self, i: usize) -> Result<&[u8]> {
        if self.held.as_ref().is_none_or(|(held, _)| *held != i) {
            self.held = None;
            let n: usize = self.merged.tensors()[i].1.iter().product();
            let mut quantizer = Quantizer::new(n, self.double);
            self.each(i, &mut |values| {
                quantizer.push(values);
                Ok(())
            })?;
            self.held = Some((i, quantizer.finish()?));
        }
        Ok(self.held.as_ref().map_or(&[], |(_, bytes)| bytes))
    }

    /// A weight in floats.
    fn whole(&mut self, i: usize, out: &mut dyn Write) -> Result<()> {
        let (dtype, path) = (self.dtype, self.path.to_path_buf());
        let name = self.merged.tensors()[i].0.clone();
        let largest = if dtype == DType::F16 { half::f16::MAX.to_f32() } else { f32::MAX };
        self.each(i, &mut |values| {
            if let Some(x) = values.iter().find(|x| x.is_nan() || x.abs() > largest) {
                let expected = format!("numbers of at most {largest:e} for {dtype}");
                return Err(Error::file(&path, format!("{x} in {name}"), expected));
            }
            let mut bytes = load::encode(values, &Ty::new(dtype, &[values.len()]))?;
            bytes.truncate(values.len() * stored(dtype).bitsize() / 8);
            out.write_all(&bytes).map_err(|e| Error::io(&path, e))
        })
    }

    /// Gives the values of a weight, piece by piece.
    fn each(&mut self, i: usize, on: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        const PIECE: usize = 1 << 20;
        let n: usize = self.merged.tensors()[i].1.iter().product();
        let mut values = vec![0f32; n.min(PIECE)];
        for first in (0..n).step_by(PIECE) {
            let values = &mut values[..PIECE.min(n - first)];
            self.merged.read(i, first, values)?;
            on(values)?;
        }
        Ok(())
    }
}
