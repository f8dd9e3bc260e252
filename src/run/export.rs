//! A model, or an adapter, as a GGUF file: what `trimtab export` does. Tensors are read, merged, permuted and quantized piece by
//! piece.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::{merge, output, template};
use crate::base::Base;
use crate::config::RunConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::peft::{self, files};
use crate::quant::ggml::GgmlType;
use crate::quant::ggml_encode;
use crate::session::Merged;
use crate::weights::gguf::{self, Gguf};
use crate::weights::gguf_names::{Architecture, gguf_name, heads_of, permuted_row};
use crate::weights::gguf_write::{self, Meta, Out};
use hyper::Hyper;

mod adapter;
mod hyper;
mod types;

pub use adapter::adapter;
pub use types::FileType;

/// Values that are read and written at a time, about.
const PIECE: usize = 1 << 20;

/// What was written.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of tensors.
    pub tensors: usize,
    /// Values of all tensors.
    pub parameters: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Values of tensors of each type.
    pub types: Vec<(&'static str, u64)>,
    /// What there is to say of the model.
    pub notes: Vec<String>,
}

impl Report {
    fn of(tensors: &[Out], bytes: u64, notes: Vec<String>) -> Report {
        let mut types: BTreeMap<u32, (&'static str, u64)> = BTreeMap::new();
        let values = |t: &Out| t.shape.iter().product::<usize>() as u64;
        for t in tensors {
            types.entry(t.ty.id()).or_insert((t.ty.name(), 0)).1 += values(t);
        }
        let parameters = tensors.iter().map(values).sum();
        Report { tensors: tensors.len(), parameters, bytes, types: types.into_values().collect(), notes }
    }
}

/// The type of a file in which nothing is rounded, of what the base model's floats are.
pub fn usual_type(base: &Base) -> FileType {
    match merge::usual_dtype(base) {
        DType::BF16 => FileType::Bf16,
        DType::F16 => FileType::F16,
        _ => FileType::F32,
    }
}

/// Where a GGUF file has it.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Writes the model of the settings, with their adapter merged if there is one, to the GGUF file `out`. `ty`: else what the base
/// model's floats are in. Of the settings, those about the model, the adapter and the task count.
pub fn model(config: &RunConfig, ty: Option<FileType>, overwrite: bool) -> Result<Report> {
    let (path, out) = (config.need("model")?, config.need("out")?);
    let inputs = [("model", Some(path)), ("adapter", config.adapter.as_deref())];
    let inputs: Vec<(&str, &Path)> = inputs.into_iter().filter_map(|(name, path)| Some((name, path?))).collect();
    output::check_file(out, &inputs, overwrite, output::GGUF)?;
    let (mut merged, job) = merge::open(config)?;
    let hyper = Hyper::of(merged.config())?;
    let ty = ty.unwrap_or_else(|| usual_type(&job.base));

    let all = merged.tensors();
    let named = |t: &(String, Vec<usize>)| gguf_name(&t.0);
    if let Some((name, _)) = all.iter().find(|t| named(t).is_none()) {
        let hint =
            "merge the adapter into a Hugging Face folder (trimtab merge): a GGUF file has a head of tokens only";
        return Err(Error::unsupported(format!("{name} in a GGUF file"), hint));
    }
    let tied = !all.iter().any(|t| named(t).as_deref() == Some("output.weight"));
    let mut tensors: Vec<Out> = Vec::with_capacity(all.len() + 1);
    for (name, shape) in all {
        let name = gguf_name(name).unwrap_or_default();
        let head = name == "output.weight" || tied && name == "token_embd.weight";
        tensors.push(Out { ty: ty.of(&name, shape, hyper.layers, head), shape: shape.clone(), name });
    }
    let count = tensors.len();
    let frequencies = hyper.frequencies();
    tensors.extend(frequencies.map(|(name, f)| Out { name: name.into(), shape: vec![f.len()], ty: GgmlType::F32 }));

    let mut metadata = general(&job.base, &hyper, ty);
    metadata.extend(hyper.entries.iter().cloned());
    metadata.extend(match job.base.checkpoint.as_ref().and_then(|c| c.gguf()) {
        Some(gguf) => tokenizer_of(gguf),
        None => job.base.tokenizer()?.to_gguf(job.facts.vocab)?,
    });
    if let Some(source) = template::kept_of(config, &job.base)? {
        metadata.retain(|(key, _)| key != CHAT_TEMPLATE);
        metadata.push((CHAT_TEMPLATE.into(), Meta::String(source)));
    }
    let needed = tensors.iter().map(Out::bytes).sum::<Result<usize>>()?;
    output::has_room(out, needed as u64)?;
    let mut pieces = Pieces { architecture: hyper.architecture, heads: hyper.heads, merged: &mut merged, path: out };
    let bytes = gguf_write::write(out, &metadata, &tensors, &mut |i, to| match frequencies.filter(|_| i == count) {
        Some((_, factors)) => to.write_all(bytemuck::cast_slice(factors)).map_err(|e| Error::io(out, e)),
        None => pieces.write(i, tensors[i].ty, to),
    })?;
    Ok(Report::of(&tensors, bytes, job.base.notes.clone()))
}

/// The entries `general.*` of a model.
fn general(base: &Base, hyper: &Hyper, ty: FileType) -> Vec<(String, Meta)> {
    let stem = if base.path.is_dir() { base.path.file_name() } else { base.path.file_stem() };
    let name = stem.map_or("model".into(), |name| name.to_string_lossy().into_owned());
    let mut entries = vec![
        ("general.architecture".to_string(), Meta::String(hyper.architecture.name.into())),
        ("general.type".into(), Meta::String("model".into())),
        ("general.name".into(), Meta::String(name)),
        ("general.file_type".into(), Meta::Uint(ty.number())),
    ];
    if !matches!(ty, FileType::F32 | FileType::F16 | FileType::Bf16) {
        entries.push(("general.quantization_version".into(), Meta::Uint(2)));
    }
    entries
}

/// The tokenizer of a GGUF file, as it is.
fn tokenizer_of(gguf: &Gguf) -> Vec<(String, Meta)> {
    let entries = gguf.metadata().filter(|(key, _)| key.starts_with("tokenizer."));
    let one = |(key, value): (&str, &gguf::Value)| {
        let (kind, bytes) = gguf.raw(value);
        (key.to_string(), Meta::Raw(kind, bytes))
    };
    entries.map(one).collect()
}

/// Writes tensors of a merged model as llama.cpp has them.
struct Pieces<'a> {
    architecture: &'static Architecture,
    heads: (usize, usize),
    merged: &'a mut Merged,
    path: &'a Path,
}

impl Pieces<'_> {
    fn write(&mut self, i: usize, ty: GgmlType, out: &mut dyn Write) -> Result<()> {
        let (name, shape) = self.merged.tensors()[i].clone();
        let heads = heads_of(&name, self.heads.0, self.heads.1).filter(|_| self.architecture.permuted);
        let plus_one = self.architecture.norm_plus_one && name.ends_with("norm.weight");
        // A bias is permuted by its elements.
        let (rows, cols) = match shape[..] {
            [n] if heads.is_some() => (n, 1),
            [.., cols] => (shape[..shape.len() - 1].iter().product(), cols),
            [] => (1, 1),
        };
        // Rows change places within a head only.
        let unit = heads.map_or(1, |heads| rows / heads);
        let step = (PIECE / cols.max(1) / unit).max(1) * unit;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            values.resize(count * cols, 0f32);
            self.merged.read(i, first * cols, &mut values)?;
            if let Some(x) = values.iter().find(|x| !fits(**x, ty)) {
                let found = format!("{x} in {name}");
                return Err(Error::file(self.path, found, format!("numbers that {} has room for", ty.name())));
            }
            if heads.is_some() {
                let mut permuted = vec![0f32; values.len()];
                for (r, row) in values.chunks_exact(cols).enumerate() {
                    let to = permuted_row(r, count, count / unit);
                    permuted[to * cols..][..cols].copy_from_slice(row);
                }
                values = permuted;
            }
            if plus_one {
                values.iter_mut().for_each(|x| *x += 1.0);
            }
            bytes.clear();
            if !ggml_encode::quantize(ty, &values, &mut bytes) {
                return Err(Error::unsupported(format!("writing {}", ty.name()), "another --type"));
            }
            out.write_all(&bytes).map_err(|e| Error::io(self.path, e))?;
        }
        Ok(())
    }
}

/// Whether a type has room for a value. Scales of quantized blocks are f16.
fn fits(x: f32, ty: GgmlType) -> bool {
    match ty {
        GgmlType::F32 | GgmlType::BF16 => x.is_finite(),
        _ => x.abs() <= half::f16::MAX.to_f32(),
    }
}
