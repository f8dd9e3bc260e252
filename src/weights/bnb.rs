//! bitsandbytes' quantized weights in safetensors files. For a weight `P`:
//!
//! * 4-bit: `P` (the codes), `P.absmax`, `P.quant_map`, `P.quant_state.bitsandbytes__nf4` (JSON), and
//!   with double quantization `P.nested_absmax`, `P.nested_quant_map`;
//! * 8-bit: `P` as i8, `SCB` and `weight_format` in place of its last name;
//!   `w = q · SCB[row] · (1/127)`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::safetensors::{Dtype, SafetensorsFile, View};
use super::{Entry, Place, Storage, TensorInfo};
use crate::dtype::{DType, Nf4Layout};
use crate::offload::{self, From, Store};
use crate::quant::nf4::{self, Absmax, Nf4};
use crate::{Error, Result};

/// Refuses models that are quantized in a way that is not read here.
pub(super) fn check_config(path: &Path, config: &Value) -> Result<()> {
    let Some(quantization) = config.get("quantization_config").filter(|q| !q.is_null()) else { return Ok(()) };
    let flag = |key| quantization.get(key).and_then(Value::as_bool).unwrap_or(false);
    match quantization.get("quant_method").and_then(Value::as_str) {
        Some("bitsandbytes") => Ok(()),
        // Before transformers 4.38 the method was not named.
        None if flag("load_in_4bit") || flag("load_in_8bit") => Ok(()),
        method => Err(Error::unsupported(
            format!("{}: quantization by {}", path.display(), method.unwrap_or("an unnamed method")),
            "take the model's unquantized, bitsandbytes or GGUF version",
        )),
    }
}

/// A tensor and the file it is in.
struct Part {
    file: usize,
    name: String,
}

impl Part {
    fn get<'a>(&self, files: &'a [SafetensorsFile]) -> Option<View<'a>> {
        files.get(self.file)?.get(&self.name)
    }
}

/// Where the parts of an NF4 weight are.
pub(super) struct Nf4Parts {
    pub elements: usize,
    codes: Part,
    absmax: Part,
    /// The nested absmax and the offset.
    nested: Option<(Part, f32)>,
}

impl Nf4Parts {
    /// Where the parts are in the files, in the order of [`Nf4Layout`].
    pub fn store(&self, files: &[SafetensorsFile]) -> Option<Store> {
        let layout = Nf4Layout::new(self.elements, self.nested.is_some());
        let part = |p: &Part, to: usize| files.get(p.file)?.part(&p.name, to);
        let mut parts = vec![part(&self.codes, layout.codes.start)?, part(&self.absmax, layout.absmax.start)?];
        if let Some((nested, offset)) = &self.nested {
            parts.push(part(nested, layout.nested.start)?);
            let (to, from) = (layout.offset.start as u64, From::Bytes(offset.to_le_bytes().to_vec()));
            parts.push(offload::Part { to, bytes: 4, from });
        }
        Some(Store { parts })
    }

    pub fn get<'a>(&self, files: &'a [SafetensorsFile]) -> Option<Nf4<'a>> {
        let absmax = self.absmax.get(files)?.bytes;
        let absmax = match &self.nested {
            None => Absmax::Plain(absmax),
            Some((nested, offset)) => {
                Absmax::Double { indices: absmax, nested: nested.get(files)?.bytes, offset: *offset }
            }
        };
        Some(Nf4 { codes: self.codes.get(files)?.bytes, absmax })
    }
}

/// Where the parts of an 8-bit weight are.
pub(super) struct Int8 {
    codes: Part,
    scales: Part,
}

impl Int8 {
    pub fn get<'a>(&self, files: &'a [SafetensorsFile]) -> Option<(&'a [u8], &'a [u8])> {
        Some((self.codes.get(files)?.bytes, self.scales.get(files)?.bytes))
    }
}

/// One row of an 8-bit weight; `scale` starts with its f32. In bitsandbytes' order of rounding
/// (`int8_vectorwise_dequant`).
pub(super) fn int8_row(codes: &[u8], scale: &[u8], out: &mut [f32]) {
    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
    for (o, &q) in out.iter_mut().zip(codes) {
        *o = f32::from(q as i8) * scale * (1.0 / 127.0);
    }
}

type Places = BTreeMap<String, usize>;

/// Takes the quantized weights and all their parts out of `at` (tensor name → file).
pub(super) fn take_quantized(files: &[SafetensorsFile], at: &mut Places) -> Result<BTreeMap<String, Entry>> {
    let mut found = BTreeMap::new();
    let states: Vec<String> = at.keys().filter(|n| n.contains(".quant_state.bitsandbytes__")).cloned().collect();
    for state in states {
        let (name, kind) = state.split_once(".quant_state.bitsandbytes__").unwrap_or((&state, ""));
        let (name, kind) = (name.to_string(), kind.to_string());
        let entry = take_4bit(files, at, &name, &state, &kind)?;
        found.insert(name, entry);
    }
    let scales: Vec<String> = at.keys().filter(|n| n.ends_with(".SCB")).cloned().collect();
    for scales in scales {
        let module = scales.trim_end_matches("SCB").to_string();
        let entry = take_8bit(files, at, &module, &scales)?;
        found.insert(format!("{module}weight"), entry);
    }
    Ok(found)
}

/// Takes one part, of a dtype and a number of bytes that are told in `expected`.
fn take(
    files: &[SafetensorsFile],
    at: &mut Places,
    near: &Path,
    name: String,
    right: impl Fn(&View<'_>) -> bool,
    expected: &str,
) -> Result<Part> {
    let file = at.remove(&name);
    let view = file.and_then(|f| files[f].get(&name));
    match (file, view) {
        (Some(file), Some(view)) if right(&view) => Ok(Part { file, name }),
        (_, Some(view)) => {
            Err(Error::file(near, format!("{name}: {:?} {:?}", view.dtype, view.shape), format!("{expected} for it")))
        }
        _ => Err(Error::file(near, format!("no {name}"), format!("{expected} of that name"))),
    }
}

fn take_4bit(files: &[SafetensorsFile], at: &mut Places, name: &str, state: &str, kind: &str) -> Result<Entry> {
    let Some(file) = at.get(state).map(|&f| &files[f]) else {
        return Err(Error::file(state, "no quantization state", "one for each quantized weight"));
    };
    let path = file.path();
    let unsupported = |what: String| {
        Error::unsupported(
            format!("{}: {name} in {what}", path.display()),
            "quantize with bnb_4bit_quant_type=\"nf4\" and block size 64, or take the unquantized model",
        )
    };
    if kind != "nf4" {
        return Err(unsupported(kind.into()));
    }
    let wrong = |found: &str| Error::file(path, format!("{state}: {found}"), "the JSON that bitsandbytes writes");
    let json = take(files, at, path, state.into(), |v| v.dtype == Dtype::U8, "U8 JSON")?;
    let json = json.get(files).map(|v| v.bytes).unwrap_or_default();
    let json: Value = serde_json::from_slice(json).map_err(|e| wrong(&e.to_string()))?;
    if json.get("quant_type").and_then(Value::as_str) != Some("nf4") {
        return Err(wrong("quant_type is not nf4"));
    }
    match json.get("blocksize").and_then(Value::as_u64) {
        Some(64) => {}
        Some(other) => return Err(unsupported(format!("blocks of {other}"))),
        None => return Err(wrong("no blocksize")),
    }
    let shape = json.get("shape").and_then(Value::as_array).ok_or_else(|| wrong("no shape"))?;
    let length = |d: &Value| d.as_u64().and_then(|d| usize::try_from(d).ok());
    let shape: Vec<usize> = shape.iter().map(length).collect::<Option<_>>().ok_or_else(|| wrong("a bad shape"))?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| wrong("a huge shape"))?;
    let blocks = elements.div_ceil(Nf4Layout::BLOCK);

    // With bnb_4bit_quant_storage the same bytes are labelled bf16, f16 or f32.
    let bytes = elements.div_ceil(2);
    let codes = take(files, at, path, name.into(), |v| v.bytes.len() == bytes, &format!("{bytes} bytes"))?;
    let floats = |n: usize| move |v: &View<'_>| v.dtype == Dtype::F32 && v.bytes.len() == 4 * n;
    let map = take(files, at, path, format!("{name}.quant_map"), floats(16), "16 F32")?;
    if !same_floats(&map, files, &nf4::CODE) {
        return Err(unsupported("4-bit values that are not NF4's".into()));
    }
    let nested = match json.get("nested_offset") {
        None => None,
        Some(offset) => {
            // A JSON number with a float's digits: exact as f64, and so as f32.
            let offset = offset.as_f64().ok_or_else(|| wrong("nested_offset is no number"))? as f32;
            if json.get("nested_blocksize").and_then(Value::as_u64) != Some(Nf4Layout::NESTED_BLOCK as u64) {
                return Err(unsupported("nested blocks that are not of 256".into()));
            }
            let n = blocks.div_ceil(Nf4Layout::NESTED_BLOCK);
            let nested = take(files, at, path, format!("{name}.nested_absmax"), floats(n), &format!("{n} F32"))?;
            let map = take(files, at, path, format!("{name}.nested_quant_map"), floats(256), "256 F32")?;
            if !same_floats(&map, files, nf4::dynamic_map()) {
                return Err(unsupported("scales by another map than the signed dynamic one".into()));
            }
            Some((nested, offset))
        }
    };
    let absmax = format!("{name}.absmax");
    let absmax = match nested {
        None => take(files, at, path, absmax, floats(blocks), &format!("{blocks} F32"))?,
        Some(_) => {
            let right = |v: &View<'_>| v.dtype == Dtype::U8 && v.bytes.len() == blocks;
            take(files, at, path, absmax, right, &format!("{blocks} U8"))?
        }
    };
    let dtype = if nested.is_some() { DType::Nf4Dq } else { DType::Nf4 };
    let info = TensorInfo { shape, stored: Storage::As(dtype) };
    Ok(Entry { info, place: Place::Nf4(Nf4Parts { elements, codes, absmax, nested }) })
}

/// Whether a part holds exactly these floats.
fn same_floats(part: &Part, files: &[SafetensorsFile], floats: &[f32]) -> bool {
    part.get(files).is_some_and(|v| v.bytes.chunks(4).eq(floats.iter().map(|f| f.to_le_bytes())))
}

fn take_8bit(files: &[SafetensorsFile], at: &mut Places, module: &str, scales: &str) -> Result<Entry> {
    let Some(file) = at.get(scales).map(|&f| &files[f]) else {
        return Err(Error::file(scales, "no scales", "some for each 8-bit weight"));
    };
    let path = file.path();
    let matrix = |v: &View<'_>| v.dtype == Dtype::I8 && v.shape.len() == 2;
    let codes = take(files, at, path, format!("{module}weight"), matrix, "an I8 matrix")?;
    let shape = codes.get(files).map(|v| v.shape.to_vec()).unwrap_or_default();
    let rows = shape.first().copied().unwrap_or(0);
    let floats = |v: &View<'_>| v.dtype == Dtype::F32 && v.shape.iter().product::<usize>() == rows;
    let scales = take(files, at, path, scales.into(), floats, &format!("{rows} F32"))?;
    // 0 is row-major; the others are orders of old GPU kernels.
    let format = format!("{module}weight_format");
    if at.contains_key(&format) {
        let part = take(files, at, path, format.clone(), |v| v.dtype == Dtype::U8, "a U8")?;
        if part.get(files).is_none_or(|v| v.bytes != [0]) {
            return Err(Error::unsupported(
                format!("{}: {format} other than 0 (row-major)", path.display()),
                "save the model again with a current bitsandbytes",
            ));
        }
    }
    let info = TensorInfo { shape, stored: Storage::Int8 };
    Ok(Entry { info, place: Place::Int8(Int8 { codes, scales }) })
}
