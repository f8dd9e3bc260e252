//! GGUF, llama.cpp's model file: a header, typed metadata, tensor infos, then aligned data.
//!
//! ```text
//! "GGUF" version:u32 tensors:u64 entries:u64
//! entries × { key:string kind:u32 value }
//! tensors × { name:string dimensions:u32 { length:u64 }× type:u32 offset:u64 }
//! padding to general.alignment (32 unless said), data
//! ```
//! Numbers are little-endian, a string is a u64 length and UTF-8 bytes, an array is `kind:u32
//! length:u64 values`. Versions 2 and 3 differ in nothing that a little-endian reader sees. Nothing
//! in the file is trusted: every length is held against the bytes that are left before it is used,
//! and arrays stay in the mapping until they are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mapped::FileBytes;
use crate::foreign;
use crate::quant::ggml::GgmlType;
use crate::{Error, Result};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32 and u64.
    Uint(u64),
    /// i8, i16, i32 and i64.
    Int(i64),
    /// f32 and f64.
    Float(f64),
    /// Any byte but 0 is true.
    Bool(bool),
    /// UTF-8, checked.
    String(String),
    /// Read by [`Gguf::strings`] or [`Gguf::numbers`].
    Array(Array),
}

/// Where an array is in the file; its lengths are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    kind: u32,
    len: usize,
    bytes: Range<usize>,
}

/// A tensor as the file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// llama.cpp's name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first, as everywhere else here; the file has them the other way round.
    pub shape: Vec<usize>,
    /// How its values are stored; rows are whole blocks of it.
    pub ty: GgmlType,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// An open GGUF file. Only the header has been read.
pub struct Gguf {
    path: PathBuf,
    map: FileBytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: usize = 4;
/// Arrays in arrays are legal; nothing writes them more than one deep.
const MAX_DEPTH: usize = 4;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of one value of a fixed-size kind.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1), // u8, i8, bool
        2 | 3 => Some(2),     // u16, i16
        4..=6 => Some(4),     // u32, i32, f32
        10..=12 => Some(8),   // u64, i64, f64
        _ => None,
    }
}

/// A fixed-size value from exactly its bytes.
fn scalar(kind: u32, b: &[u8]) -> Option<Value> {
    Some(match (kind, b) {
        (0, &[a]) => Value::Uint(a.into()),
        (1, &[a]) => Value::Int((a as i8).into()),
        (2, &[a, b]) => Value::Uint(u16::from_le_bytes([a, b]).into()),
        (3, &[a, b]) => Value::Int(i16::from_le_bytes([a, b]).into()),
        (4, &[a, b, c, d]) => Value::Uint(u32::from_le_bytes([a, b, c, d]).into()),
        (5, &[a, b, c, d]) => Value::Int(i32::from_le_bytes([a, b, c, d]).into()),
        (6, &[a, b, c, d]) => Value::Float(f32::from_le_bytes([a, b, c, d]).into()),
        (7, &[a]) => Value::Bool(a != 0),
        (10, b) => Value::Uint(u64::from_le_bytes(b.try_into().ok()?)),
        (11, b) => Value::Int(i64::from_le_bytes(b.try_into().ok()?)),
        (12, b) => Value::Float(f64::from_le_bytes(b.try_into().ok()?)),
        _ => return None,
    })
}

/// Walks the header; every step checks what is left.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::file(self.path, format!("{} at byte {}", found.into(), self.at), expected)
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let Some(taken) = left.get(..n) else {
            return Err(self.error(format!("{} bytes left", left.len()), format!("{n} bytes of {what}")));
        };
        self.at += n;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// A u64 that counts things of at least `each` bytes that must still follow.
    fn count(&mut self, each: usize, what: &str) -> Result<usize> {
        let n = self.length(what)?;
        if n > (self.bytes.len() - self.at) / each.max(1) {
            return Err(self.error(format!("{n} {what}"), "no more than the file has room for"));
        }
        Ok(n)
    }

    fn length(&mut self, what: &str) -> Result<usize> {
        let b = self.take(8, what)?;
        let n = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        usize::try_from(n).map_err(|_| self.error(format!("{what} of {n}"), "a length that fits this machine"))
    }

    fn string(&mut self, what: &str) -> Result<&'a str> {
        let n = self.count(1, what)?;
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(format!("a {what} that is not UTF-8"), "UTF-8"))
    }

    fn value(&mut self, kind: u32, what: &str) -> Result<Value> {
        match kind {
            STRING => Ok(Value::String(self.string(what)?.into())),
            ARRAY => {
                let kind = self.u32(what)?;
                let len = self.length(what)?;
                let start = self.at;
                self.skip(kind, len, what, 0)?;
                Ok(Value::Array(Array { kind, len, bytes: start..self.at }))
            }
            _ => {
                let n = width(kind).ok_or_else(|| self.unknown(kind))?;
                let bytes = self.take(n, what)?;
                scalar(kind, bytes).ok_or_else(|| self.unknown(kind))
            }
        }
    }

    /// Passes over `len` array values, checking that they are there.
    fn skip(&mut self, kind: u32, len: usize, what: &str, depth: usize) -> Result<()> {
        match kind {
            STRING => {
                for _ in 0..len {
                    let n = self.count(1, what)?;
                    self.take(n, what)?;
                }
            }
            ARRAY if depth == MAX_DEPTH => {
                return Err(self.error("arrays in arrays", format!("at most {MAX_DEPTH} deep")));
            }
            ARRAY => {
                for _ in 0..len {
                    let kind = self.u32(what)?;
                    let len = self.length(what)?;
                    self.skip(kind, len, what, depth + 1)?;
                }
            }
            _ => {
                let each = width(kind).ok_or_else(|| self.unknown(kind))?;
                let n = each.saturating_mul(len);
                self.take(n, what)?;
            }
        }
        Ok(())
    }

    fn unknown(&self, kind: u32) -> Error {
        self.error(format!("metadata kind {kind}"), "a kind from 0 to 12")
    }

    fn tensor(&mut self) -> Result<Tensor> {
        let name = self.string("tensor name")?.to_string();
        let dimensions = self.u32("dimension count")? as usize;
        if dimensions > MAX_DIMENSIONS {
            return Err(self.error(format!("{dimensions} dimensions in {name}"), format!("at most {MAX_DIMENSIONS}")));
        }
        let mut shape = Vec::with_capacity(MAX_DIMENSIONS);
        for _ in 0..dimensions {
            shape.push(self.length("dimension")?);
        }
        shape.reverse();
        let id = self.u32("tensor type")?;
        let ty = GgmlType::from_id(id).ok_or_else(|| {
            let known: Vec<_> = GgmlType::ALL.iter().map(|t| t.name()).collect();
            Error::unsupported(
                format!("{}: tensor {name} of ggml type {id}", self.path.display()),
                format!("use a file whose tensors are of {}", known.join(", ")),
            )
        })?;
        let offset = self.length("tensor offset")?;
        let wrong = || self.error(format!("{} tensor {name} of shape {shape:?}", ty.name()), "rows of whole blocks");
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(ty.block()) {
            return Err(wrong());
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| ty.bytes(n)).ok_or_else(wrong)?;
        let end = offset.checked_add(bytes).ok_or_else(wrong)?;
        Ok(Tensor { name, shape, ty, bytes: offset..end })
    }
}

impl Gguf {
    /// Maps the file and reads its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let map = FileBytes::open(&file).map_err(|e| Error::io(path, e))?;
        let mut reader = Reader { path, bytes: &map, at: 0 };
        if reader.take(4, "magic")? != b"GGUF" {
            let expected = "a GGUF file, which begins with the bytes GGUF, or the folder of a Hugging Face model";
            return Err(foreign::explain(path, Error::file(path, "a file that is no GGUF file", expected)));
        }
        let version = reader.u32("version")?;
        if !(2..=3).contains(&version) {
            let found = match version.swap_bytes() {
                2..=3 => "a big-endian file".into(),
                _ => format!("version {version}"),
            };
            return Err(Error::file(path, found, "GGUF version 2 or 3, little-endian"));
        }
        // The least an info takes: an empty name, no dimension, type and offset.
        let tensor_count = reader.count(8 + 4 + 4 + 8, "tensors")?;
        // The least an entry takes: an empty key, its kind and one byte.
        let entries = reader.count(8 + 4 + 1, "metadata entries")?;

        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.string("metadata key")?.to_string();
            let kind = reader.u32("metadata kind")?;
            let value = reader.value(kind, &key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.error(format!("a second {key}"), "each metadata key once"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Uint(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
            Some(v) => return Err(Error::file(path, format!("general.alignment {v:?}"), "a power of two up to 1 MiB")),
        };

        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let tensor = reader.tensor()?;
            if let Some(twice) = tensors.insert(tensor.name.clone(), tensor) {
                return Err(reader.error(format!("a second tensor {}", twice.name), "each tensor once"));
            }
        }
        let start = reader.at.next_multiple_of(alignment);
        for tensor in tensors.values_mut() {
            let end = start.checked_add(tensor.bytes.end).filter(|&end| end <= map.len());
            let (Some(end), true) = (end, tensor.bytes.start.is_multiple_of(alignment)) else {
                return Err(Error::file(
                    path,
                    format!("tensor {} at bytes {:?} of the data", tensor.name, tensor.bytes),
                    format!("an aligned stretch of the {} bytes there are", map.len().saturating_sub(start)),
                ));
            };
            tensor.bytes = start + tensor.bytes.start..end;
        }
        Ok(Gguf { path: path.into(), map, metadata, tensors })
    }

    pub(super) fn release(&self) {
        self.map.release();
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// The tensor of llama.cpp's name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The stored bytes of one of this file's tensors.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        // A tensor of another file may reach further than this one.
        self.map.get(tensor.bytes.clone()).unwrap_or_default()
    }

    /// The metadata value of a key such as `general.architecture`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A metadata value of this file as it is written: its kind and bytes. Numbers that 32 bits hold are written so, as llama.cpp expects of ids.
    pub fn raw(&self, value: &Value) -> (u32, Vec<u8>) {
        match value {
            Value::Uint(n) => match u32::try_from(*n) {
                Ok(n) => (4, n.to_le_bytes().to_vec()),
                Err(_) => (10, n.to_le_bytes().to_vec()),
            },
            Value::Int(n) => match i32::try_from(*n) {
                Ok(n) => (5, n.to_le_bytes().to_vec()),
                Err(_) => (11, n.to_le_bytes().to_vec()),
            },
            Value::Float(x) => (6, (*x as f32).to_le_bytes().to_vec()),
            Value::Bool(b) => (7, vec![u8::from(*b)]),
            Value::String(text) => (STRING, [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()),
            Value::Array(array) => {
                let head = [&array.kind.to_le_bytes()[..], &(array.len as u64).to_le_bytes()[..]].concat();
                (ARRAY, [&head, self.map.get(array.bytes.clone()).unwrap_or_default()].concat())
            }
        }
    }

    /// A string; `None` if there is none under this key.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(self.wrong(key, v, "a string")),
        }
    }

    /// A whole number that is not negative, of whatever width.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Uint(n)) => Ok(Some(n)),
            Some(&Value::Int(n)) if n >= 0 => Ok(Some(n as u64)),
            Some(v) => Err(self.wrong(key, v, "a whole number")),
        }
    }

    /// A float, widened; `None` if the key is absent, an error if it holds another kind, whole numbers too.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(x)) => Ok(Some(x)),
            Some(v) => Err(self.wrong(key, v, "a float")),
        }
    }

    /// A truth value; `None` if the key is absent, an error if it holds another kind.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(b)) => Ok(Some(b)),
            Some(v) => Err(self.wrong(key, v, "true or false")),
        }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        if array.kind != STRING {
            return Err(self.wrong(key, &Value::Array(array.clone()), "an array of strings"));
        }
        let mut reader = Reader { path: &self.path, bytes: &self.map[..array.bytes.end], at: array.bytes.start };
        (0..array.len).map(|_| reader.string(key)).collect::<Result<Vec<_>>>().map(Some)
    }

    /// An array of numbers, all converted to f64 (exact but for integers beyond 2⁵³).
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let wrong = || self.wrong(key, &Value::Array(array.clone()), "an array of numbers");
        let width = width(array.kind).ok_or_else(wrong)?;
        let number = |b| match scalar(array.kind, b) {
            Some(Value::Uint(n)) => Ok(n as f64),
            Some(Value::Int(n)) => Ok(n as f64),
            Some(Value::Float(x)) => Ok(x),
            _ => Err(wrong()),
        };
        self.map[array.bytes.clone()].chunks_exact(width).map(number).collect::<Result<Vec<_>>>().map(Some)
    }

    fn array(&self, key: &str) -> Result<Option<&Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(v) => Err(self.wrong(key, v, "an array")),
        }
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        Error::file(&self.path, format!("{key} = {found:?}"), expected)
    }
}
