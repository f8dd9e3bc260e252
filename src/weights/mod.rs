//! Model files: a Hugging Face folder (safetensors, whole or sharded, bitsandbytes 4-bit and 8-bit
//! included) or a GGUF file, under one set of names. Files are mapped; opening one reads its
//! headers, and a row is decoded when it is asked for.

mod bnb;
pub mod from_gguf;
pub mod gguf;
pub mod gguf_names;
pub mod gguf_write;
pub mod load;
mod mapped;
pub mod pickle;
pub mod safetensors;
mod shards;
mod zip;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

pub use self::safetensors::{Tensor, write_safetensors, write_safetensors_with};
pub use self::shards::{Info, write_shards};
use crate::dtype::DType;
use crate::foreign;
use crate::offload::Store;
use crate::paths;
use crate::quant::ggml::{self, GgmlType};
use crate::{Error, Result};
use bnb::{Int8, Nf4Parts};
use gguf::Gguf;
use safetensors::{Dtype, SafetensorsFile};

/// A model's config and weights under Hugging Face's names.
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    files: Files,
    tensors: BTreeMap<String, Entry>,
    /// The module under which the model has what this checkpoint of a bare model has at the top.
    prefix: String,
    /// A tensor that the files have under the name of another one only.
    other: Option<[String; 2]>,
}

/// Ends of names in old files, and what they are called today.
const RENAMED: [(&str, &str); 2] = [(".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")];

/// What most classes call the module that a few call otherwise: decoders that answer questions.
const OTHER_MODULE: &str = "model.";

/// Biases of heads that encoders have twice, and the name of the one that is added where a file has it, as in transformers.
pub(crate) const OUTPUT_BIASES: [(&str, &str); 2] =
    [("cls.predictions.bias", "cls.predictions.decoder.bias"), ("lm_head.bias", "lm_head.decoder.bias")];

/// The name of the bias that is added where the head has a weight of its own, if `name` is one that it may share.
pub fn output_bias(name: &str) -> Option<&'static str> {
    OUTPUT_BIASES.iter().find(|(shared, _)| *shared == name).map(|(_, own)| *own)
}

/// A tensor in host memory, in f32: read from a file and widened, or on its way into one. Names go with it in pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row by row, as many as the shape has.
    pub data: Vec<f32>,
}

/// A tensor's logical shape and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost dimension first; for quantized weights that of the weight, not of its codes.
    pub shape: Vec<usize>,
    /// What the file has it in.
    pub stored: Storage,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// f32, bf16, f16, or NF4 in bitsandbytes' layout.
    As(DType),
    /// bitsandbytes LLM.int8: i8, and an f32 scale for each row.
    Int8,
    /// A GGUF block format.
    Ggml(GgmlType),
    /// What no weight is read from (integer buffers, f8): listed, but not decoded.
    Other(Dtype),
}

impl Storage {
    /// The format's name, for messages.
    pub fn name(self) -> String {
        match self {
            Storage::As(dtype) => dtype.name().into(),
            Storage::Int8 => "int8".into(),
            Storage::Ggml(ty) => ty.name().into(),
            Storage::Other(dtype) => format!("{dtype:?}"),
        }
    }
}

/// The mapped files.
enum Files {
    Safetensors(Vec<SafetensorsFile>),
    Gguf(Gguf),
}

struct Entry {
    info: TensorInfo,
    place: Place,
}

/// Where a tensor's bytes are, and what undoes the file's conventions.
enum Place {
    Safetensors { file: usize },
    Nf4(Nf4Parts),
    Int8(Int8),
    Gguf { name: String, fix: Fix },
}

/// What llama.cpp's converter did to a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fix {
    None,
    /// Rows of each of this many heads were interleaved for its rotary embedding.
    Permuted {
        heads: usize,
    },
    /// 1 was added (gemma's norms).
    PlusOne,
}

/// A small JSON file; `None` if there is none.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    /// Far above any config or shard index.
    const LARGEST: u64 = 256 << 20;
    let bytes = match std::fs::metadata(path).and_then(|m| match m.len() {
        0..=LARGEST => std::fs::read(path).map(Some),
        _ => Ok(None),
    }) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(Error::file(path, "a file of over 256 MiB", "a config or an index")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "a JSON array",
                Value::String(_) => "a JSON string",
                _ => "a JSON value that is no object",
            };
            Err(Error::file(path, kind, "a JSON object"))
        }
        Err(e) => Err(foreign::explain(path, Error::file(path, e.to_string(), "JSON"))),
    }
}

/// The config.json of a folder, whether or not it holds weights.
pub fn read_config(folder: &Path) -> Result<Value> {
    paths::need(folder, MODEL, true)?;
    read_json(&folder.join("config.json"))?.ok_or_else(|| no_config(folder))
}

/// What a model may be.
const MODEL: &str = "a Hugging Face model's folder, or a .gguf file";

/// What a folder without config.json is instead.
fn no_config(folder: &Path) -> Error {
    let of = |found: &str, expected: String| Error::file(folder, found, expected);
    if folder.join("adapter_config.json").exists() {
        return of("the folder of an adapter", "the folder of its base model; this one is for --adapter".into());
    }
    let inner = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        paths.sort();
        paths
    };
    if let Some(file) = inner(folder).iter().find(|path| path.extension().is_some_and(|e| e == "gguf")) {
        return of("a folder with GGUF files", format!("the path of one of them, such as {}", file.display()));
    }
    if let Some(snapshot) = inner(&folder.join("snapshots")).pop() {
        return of("a folder of the hub's cache", format!("a snapshot in it: {}", snapshot.display()));
    }
    of("a folder without config.json", MODEL.into())
}

impl Checkpoint {
    /// Opens a folder with config.json and model.safetensors (or its shards), or a .gguf file.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        paths::need(path, MODEL, true)?;
        if path.is_dir() {
            return Checkpoint::open_folder(path);
        }
        if path.extension().is_some_and(|e| e == "safetensors") {
            return Err(Error::file(path, "a single weight file", "the folder that holds it and its config.json"));
        }
        let gguf = Gguf::open(path)?;
        let (config, tensors) = from_gguf::read(&gguf)?;
        Ok(Checkpoint {
            path: path.into(),
            config,
            files: Files::Gguf(gguf),
            tensors,
            prefix: String::new(),
            other: None,
        })
    }

    /// The same; a tensor of the module `prefix` is found too where the file has it without the module's name, as
    /// checkpoints of models without a head do.
    pub fn under(mut self, prefix: &str) -> Checkpoint {
        self.prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        self
    }

    /// The same; where the files lack `name`, it is the first that they have of `others`: of the names of one tensor some
    /// programs write the first by the alphabet (safetensors' `save_model`), which of a tied pair may be the head's.
    pub fn or(mut self, name: &str, others: &[&str]) -> Checkpoint {
        let other = match self.info(name) {
            None => others.iter().find(|other| self.info(other).is_some()),
            Some(_) => None,
        };
        self.other = other.map(|other| [name.to_owned(), (*other).to_owned()]);
        self
    }

    fn open_folder(path: &Path) -> Result<Checkpoint> {
        let config_path = path.join("config.json");
        let config = read_config(path)?;
        bnb::check_config(&config_path, &config)?;

        let files = shards(path)?.iter().map(SafetensorsFile::open).collect::<Result<Vec<_>>>()?;
        let mut at = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = at.insert(name.clone(), i) {
                    let first = files[first].path().display().to_string();
                    return Err(Error::file(file.path(), format!("{name}, which {first} has too"), "each tensor once"));
                }
            }
        }
        let mut tensors = bnb::take_quantized(&files, &mut at)?;
        for (name, file) in at {
            let Some(view) = files[file].get(&name) else { continue };
            let stored = match view.dtype {
                Dtype::F32 => Storage::As(DType::F32),
                Dtype::F16 => Storage::As(DType::F16),
                Dtype::BF16 => Storage::As(DType::BF16),
                other => Storage::Other(other),
            };
            let info = TensorInfo { shape: view.shape.to_vec(), stored };
            tensors.insert(name, Entry { info, place: Place::Safetensors { file } });
        }
        Ok(Checkpoint {
            path: path.into(),
            config,
            files: Files::Safetensors(files),
            tensors,
            prefix: String::new(),
            other: None,
        })
    }

    /// Lets the system take back the pages of the mapped files that were read: weights that were copied to a device
    /// need not stay resident beside it. They are read again if asked for.
    pub fn release(&self) {
        match &self.files {
            Files::Safetensors(files) => files.iter().for_each(SafetensorsFile::release),
            Files::Gguf(gguf) => gguf.release(),
        }
    }

    /// The folder or .gguf file it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.json, or what it would say (GGUF).
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The GGUF file, if this is one: its tokenizer is in its metadata.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.files {
            Files::Gguf(gguf) => Some(gguf),
            Files::Safetensors(_) => None,
        }
    }

    /// All tensors, by name. Parts of a quantized weight (its scales) are not tensors of their own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape and storage of a tensor by its Hugging Face name; `None` if there is none.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.find(name).map(|(_, e)| &e.info)
    }

    /// What else a tensor of the model's module may be called: in a bare model, and in one whose class calls the module so.
    fn inside(&self, name: &str) -> impl Iterator<Item = String> {
        let inner = name.strip_prefix(self.prefix.as_str()).filter(|_| !self.prefix.is_empty()).map(str::to_string);
        let other = inner.as_ref().map(|inner| format!("{OTHER_MODULE}{inner}"));
        inner.into_iter().chain(other)
    }

    /// A tensor and what the file calls it.
    fn find(&self, name: &str) -> Option<(&str, &Entry)> {
        let get = |name: &str| self.tensors.get_key_value(name).map(|(name, entry)| (name.as_str(), entry));
        let bare = |name: &str| get(name).or_else(|| self.inside(name).find_map(|name| get(&name)));
        let name = self.other.as_ref().filter(|[absent, _]| absent == name).map_or(name, |[_, other]| other);
        let output = output_bias(name).and_then(get);
        output.or_else(|| bare(name)).or_else(|| {
            let (old, new) = RENAMED.iter().find(|(_, new)| name.ends_with(new))?;
            bare(&format!("{}{old}", name.strip_suffix(new)?))
        })
    }

    fn entry(&self, name: &str) -> Result<(&str, &Entry)> {
        self.find(name)
            .ok_or_else(|| Error::file(&self.path, format!("no tensor {name}"), "a checkpoint that holds it"))
    }

    /// The stored bytes of an f32, f16 or bf16 tensor (little-endian), where they are the tensor's
    /// in its own order; `None` for others: use [`Checkpoint::read_rows`].
    pub fn raw(&self, name: &str) -> Option<(DType, &[u8])> {
        let (name, entry) = self.find(name)?;
        match (&entry.place, &self.files, entry.info.stored) {
            // NF4 has a place of its own, so what is here is f32, f16 or bf16.
            (Place::Safetensors { file }, Files::Safetensors(files), Storage::As(dtype)) => {
                Some((dtype, files[*file].get(name)?.bytes))
            }
            (Place::Gguf { name, fix: Fix::None }, Files::Gguf(gguf), Storage::As(dtype)) => {
                Some((dtype, gguf.data(gguf.tensor(name)?)))
            }
            _ => None,
        }
    }

    /// Decodes rows of a tensor to f32. A row is a stretch of the last dimension, so a vector is
    /// one row; `out` takes `rows.len()` of them. The values are the file's, bit for bit: nothing is
    /// rounded on the way.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (name, entry) = self.entry(name)?;
        let shape = &entry.info.shape;
        let columns = shape.last().copied().unwrap_or(1);
        let all: usize = shape[..shape.len().saturating_sub(1)].iter().product();
        if rows.start > rows.end || rows.end > all || out.len() != rows.len() * columns {
            return Err(Error::Config {
                key: name.into(),
                found: format!("rows {rows:?} into {} values", out.len()),
                expected: format!("rows within 0..{all} of {columns} values each"),
            });
        }
        if out.is_empty() {
            return Ok(());
        }
        match (&entry.place, &self.files) {
            (Place::Safetensors { file }, Files::Safetensors(files)) => {
                let view = files[*file].get(name).ok_or_else(|| self.lost(name))?;
                let ty = match view.dtype {
                    Dtype::F32 => GgmlType::F32,
                    Dtype::F16 => GgmlType::F16,
                    Dtype::BF16 => GgmlType::BF16,
                    other => {
                        return Err(Error::unsupported(
                            format!("{name} stored as {other:?}"),
                            "convert the checkpoint to bfloat16 or float32",
                        ));
                    }
                };
                decode_rows(ty, view.bytes, columns, rows, |r| r, out);
            }
            (Place::Nf4(parts), Files::Safetensors(files)) => {
                let tensor = parts.get(files).ok_or_else(|| self.lost(name))?;
                each_row(out, columns, |i, out| {
                    let start = (rows.start + i) * columns;
                    tensor.dequantize(start..start + columns, out);
                });
            }
            (Place::Int8(parts), Files::Safetensors(files)) => {
                let (codes, scales) = parts.get(files).ok_or_else(|| self.lost(name))?;
                each_row(out, columns, |i, out| {
                    let r = rows.start + i;
                    bnb::int8_row(&codes[r * columns..(r + 1) * columns], &scales[4 * r..], out);
                });
            }
            (Place::Gguf { name, fix }, Files::Gguf(gguf)) => {
                let tensor = gguf.tensor(name).ok_or_else(|| self.lost(name))?;
                let (ty, data) = (tensor.ty, gguf.data(tensor));
                match *fix {
                    // A bias is permuted by its elements.
                    Fix::Permuted { heads } if shape.len() == 1 => {
                        decode_rows(ty, data, 1, 0..columns, |r| gguf_names::permuted_row(r, columns, heads), out);
                    }
                    Fix::Permuted { heads } => {
                        decode_rows(ty, data, columns, rows, |r| gguf_names::permuted_row(r, all, heads), out);
                    }
                    Fix::None => decode_rows(ty, data, columns, rows, |r| r, out),
                    Fix::PlusOne => {
                        decode_rows(ty, data, columns, rows, |r| r, out);
                        out.iter_mut().for_each(|v| *v -= 1.0);
                    }
                }
            }
            _ => return Err(self.lost(name)),
        }
        Ok(())
    }

    /// Decodes a whole tensor to f32.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let shape = &self.entry(name)?.1.info.shape;
        let rows: usize = shape[..shape.len().saturating_sub(1)].iter().product();
        // The product is no unchecked length: opening held it against the file's size.
        let mut out = vec![0.0; shape.iter().product()];
        self.read_rows(name, 0..rows, &mut out)?;
        Ok(out)
    }

    /// A tensor that is stored in NF4, as bytes in the order of [`crate::dtype::Nf4Layout`] and
    /// whether its scales are themselves quantized; `None` if it is stored otherwise.
    pub fn nf4(&self, name: &str) -> Result<Option<(DType, Vec<u8>)>> {
        match (&self.entry(name)?.1.place, &self.files) {
            (Place::Nf4(parts), Files::Safetensors(files)) => {
                let tensor = parts.get(files).ok_or_else(|| self.lost(name))?;
                Ok(Some(tensor.to_layout(parts.elements)))
            }
            _ => Ok(None),
        }
    }

    /// Where the bytes of a tensor are, in the form in which the engine holds its dtype; `None` if they are in no file
    /// in that form.
    pub fn store(&self, name: &str) -> Option<(DType, Store)> {
        let (name, entry) = self.find(name)?;
        match (&entry.place, &self.files, entry.info.stored) {
            (Place::Safetensors { file }, Files::Safetensors(files), Storage::As(dtype)) => {
                Some((dtype, Store { parts: vec![files[*file].part(name, 0)?] }))
            }
            (Place::Nf4(parts), Files::Safetensors(files), Storage::As(dtype)) => Some((dtype, parts.store(files)?)),
            _ => None,
        }
    }

    /// Opening checked that the tensor is there.
    fn lost(&self, name: &str) -> Error {
        Error::file(&self.path, format!("{name} gone since it was opened"), "a file that nobody changes")
    }
}

/// The weight files of a folder, in order.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let path = folder.join("model.safetensors.index.json");
    let Some(index) = read_json(&path)? else {
        if folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists() {
            return Err(Error::unsupported(
                format!("{}: a pickle of weights (pytorch_model.bin)", folder.display()),
                "convert them to safetensors: loading a pickle can run any code",
            ));
        }
        return Err(Error::file(
            folder,
            "neither model.safetensors nor model.safetensors.index.json",
            "a Hugging Face model folder, or the path of a .gguf file",
        ));
    };
    let wrong =
        |found: String| Error::file(&path, found, "a weight_map from tensor names to file names in this folder");
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("no weight_map".into()))?;
    let mut files = BTreeSet::new();
    for (name, file) in map {
        // A plain name, so that an index cannot reach outside of its folder.
        let file = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|plain| plain == *f));
        files.insert(file.ok_or_else(|| wrong(format!("{name} in {}, which is outside of the folder", map[name])))?);
    }
    if files.is_empty() {
        return Err(wrong("an empty weight_map".into()));
    }
    if let Some(missing) = files.iter().find(|file| !folder.join(file).exists()) {
        let expected = "all the files that it names: fetch or copy the folder again";
        return Err(Error::file(&path, format!("{missing}, which is not in the folder"), expected));
    }
    Ok(files.into_iter().map(|f| folder.join(f)).collect())
}

/// Runs `f(i, row)` for each row of `out`, on all threads when there is enough to do.
fn each_row(out: &mut [f32], columns: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    /// Elements one thread takes at a time.
    const GRAIN: usize = 1 << 14;
    let rows = out.par_chunks_mut(columns).with_min_len(GRAIN / columns.min(GRAIN));
    rows.enumerate().for_each(|(i, row)| f(i, row));
}

/// Decodes rows that are stored one after the other; row `r` is stored in the place of row `place(r)`.
fn decode_rows(
    ty: GgmlType,
    data: &[u8],
    columns: usize,
    rows: Range<usize>,
    place: impl Fn(usize) -> usize + Sync,
    out: &mut [f32],
) {
    let bytes = columns / ty.block() * ty.block_bytes();
    each_row(out, columns, |i, out| {
        let start = place(rows.start + i) * bytes;
        ggml::dequantize(ty, &data[start..start + bytes], out);
    });
}
