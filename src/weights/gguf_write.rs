//! Writing GGUF files (the format is in `gguf.rs`), version 3: a header that is known before, then tensors one at a time.

use std::io::Write;
use std::path::Path;

use crate::durable;
use crate::error::{Error, Result};
use crate::quant::ggml::GgmlType;

/// A metadata value, in the kinds that llama.cpp's converter writes.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// u32.
    Uint(u32),
    /// f32.
    Float(f32),
    /// A byte.
    Bool(bool),
    /// UTF-8.
    String(String),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of i32.
    Ints(Vec<i32>),
    /// An array of f32.
    Floats(Vec<f32>),
    /// As another file has it: the kind and the bytes of the value.
    Raw(u32, Vec<u8>),
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Out {
    /// llama.cpp's name.
    pub name: String,
    /// Outermost dimension first, as everywhere else here.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub ty: GgmlType,
}

impl Out {
    /// Bytes of its values; an error if a row is not whole blocks.
    pub fn bytes(&self) -> Result<usize> {
        let rows_fit = self.shape.last().is_some_and(|row| row.is_multiple_of(self.ty.block()));
        let bytes = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| self.ty.bytes(n));
        bytes.filter(|_| rows_fit).ok_or_else(|| {
            let found = format!("shape {:?} in {}", self.shape, self.ty.name());
            Error::config(&self.name, found, format!("rows of a multiple of {} values", self.ty.block()))
        })
    }
}

const ALIGNMENT: usize = 32;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Meta {
    fn kind(&self) -> u32 {
        match self {
            Meta::Uint(_) => 4,
            Meta::Float(_) => 6,
            Meta::Bool(_) => 7,
            Meta::String(_) => STRING,
            Meta::Strings(_) | Meta::Ints(_) | Meta::Floats(_) => ARRAY,
            Meta::Raw(kind, _) => *kind,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Meta::Uint(n) => out.extend(n.to_le_bytes()),
            Meta::Float(x) => out.extend(x.to_le_bytes()),
            Meta::Bool(b) => out.push(u8::from(*b)),
            Meta::String(text) => put_string(out, text),
            Meta::Strings(list) => {
                array(out, STRING, list.len());
                list.iter().for_each(|text| put_string(out, text));
            }
            Meta::Ints(list) => {
                array(out, 5, list.len());
                list.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Meta::Floats(list) => {
                array(out, 6, list.len());
                list.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            Meta::Raw(_, bytes) => out.extend(bytes),
        }
    }
}

/// Writes a file whose tensors are made one at a time: `fill(i, out)` writes the bytes of the `i`-th of `tensors`, in their order.
/// There is never half a file at `path`. Returns the file's size.
pub fn write(
    path: &Path,
    metadata: &[(String, Meta)],
    tensors: &[Out],
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<u64> {
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut header, key);
        header.extend(value.kind().to_le_bytes());
        value.put(&mut header);
    }
    let (mut offset, mut sizes) = (0usize, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        put_string(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&d| header.extend((d as u64).to_le_bytes()));
        header.extend(tensor.ty.id().to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        let bytes = tensor.bytes()?;
        sizes.push(bytes);
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    let io = |e| Error::io(path, e);
    durable::replace(path, |out| {
        out.write_all(&header).map_err(io)?;
        for (i, &bytes) in sizes.iter().enumerate() {
            let mut counted = Counted { out, bytes: 0 };
            fill(i, &mut counted)?;
            let written = counted.bytes;
            if written != bytes {
                let found = format!("{written} bytes for {}", tensors[i].name);
                return Err(Error::file(path, found, format!("{bytes} bytes")));
            }
            out.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes]).map_err(io)?;
        }
        Ok(())
    })?;
    Ok((header.len() + offset) as u64)
}

/// Counts what a tensor's writer wrote.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
