//! safetensors files: `header:u64 {JSON} data`. Reading maps the file; writing streams it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use safetensors::Dtype;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};

use super::mapped::FileBytes;
use crate::durable;
use crate::error::{Error, Result};
use crate::foreign;
use crate::offload::{From, Part};

/// An open file. Only its header has been read.
pub struct SafetensorsFile {
    path: PathBuf,
    file: Arc<File>,
    map: FileBytes,
    /// Where the data starts.
    data: usize,
    header: safetensors::tensor::Metadata,
}

/// One tensor of a file, as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Type of its values.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Its values row by row, little-endian.
    pub bytes: &'a [u8],
}

impl SafetensorsFile {
    /// Maps the file and reads its header. The header's offsets are checked to tile the file.
    pub fn open(path: impl AsRef<Path>) -> Result<SafetensorsFile> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let map = FileBytes::open(&file).map_err(|e| Error::io(path, e))?;
        let (header_bytes, header) = SafeTensors::read_metadata(&map).map_err(|e| damage(path, &map, &e))?;
        Ok(SafetensorsFile { path: path.into(), file: Arc::new(file), map, data: 8 + header_bytes, header })
    }

    pub(crate) fn release(&self) {
        self.map.release();
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort_unstable();
        names
    }

    /// The file's `__metadata__`.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Where the bytes of a tensor are, to read them without the mapping.
    pub fn part(&self, name: &str, to: usize) -> Option<Part> {
        let (start, end) = self.header.info(name)?.data_offsets;
        let from = From::File(self.file.clone(), (self.data + start) as u64);
        Some(Part { to: to as u64, bytes: (end - start) as u64, from })
    }

    /// The tensor of this name; its bytes are not copied.
    pub fn get(&self, name: &str) -> Option<View<'_>> {
        let info = self.header.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data + start..self.data + end)?;
        Some(View { dtype: info.dtype, shape: &info.shape, bytes })
    }
}

/// What is wrong with the `bytes` of the file `path`, which the library refused.
pub(crate) fn damage(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    /// What the library takes as a header at most.
    const LARGEST: u64 = 100_000_000;
    const WHOLE: &str = "the whole file: fetch or copy it again";
    let length = bytes.len() as u64;
    let of = |found: String, expected: &str| foreign::explain(path, Error::file(path, found, expected));
    let Some(header) = bytes.first_chunk().map(|first| u64::from_le_bytes(*first)) else {
        return of(if bytes.is_empty() { "an empty file".into() } else { format!("a file of {length} bytes") }, WHOLE);
    };
    if header > LARGEST {
        return of("bytes that are no safetensors header".into(), "a safetensors file");
    }
    if header > length - 8 {
        return of(format!("a header of {header} bytes in a file of {length}: it is cut short"), WHOLE);
    }
    if let SafeTensorError::MetadataIncompleteBuffer = error {
        let tensors: Option<Map<String, Value>> = serde_json::from_slice(&bytes[8..8 + header as usize]).ok();
        let end = |info: &Value| info.get("data_offsets")?.get(1)?.as_u64();
        let end = tensors.iter().flat_map(Map::values).filter_map(end).max().unwrap_or(0);
        let whole = end.saturating_add(8 + header);
        return match whole.cmp(&length) {
            Ordering::Greater => {
                of(format!("{length} bytes of {whole}, which its header tells of: it is cut short"), WHOLE)
            }
            _ => of(format!("{length} bytes, of which its header tells of {whole}"), WHOLE),
        };
    }
    of(format!("a damaged header ({error})"), WHOLE)
}

/// One tensor to write.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Its key in the header: each may occur once in a file.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values row by row, little-endian; as many bytes as dtype and shape say.
    pub bytes: Cow<'a, [u8]>,
}

/// Writes a file in one go; see [`write_safetensors_with`] for tensors that do not fit in memory.
pub fn write_safetensors<'a>(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = Tensor<'a>>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let infos = tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone())).collect();
    write_safetensors_with(path, metadata, infos, &mut |index, out| {
        out.write_all(&tensors[index].bytes).map_err(|e| Error::io(&tensors[index].name, e))
    })
}

/// Writes a file whose tensors are made one at a time: `fill(i, out)` writes the bytes of the
/// `i`-th of `infos` (name, dtype, shape) and is called in the file's order: by falling alignment
/// of the dtype, then by name, as the safetensors library sorts. There is never half a file at `path`.
pub fn write_safetensors_with(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, String>,
    infos: Vec<(String, Dtype, Vec<usize>)>,
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    durable::replace(path, |out| write_to(out, path, metadata, infos, fill))
}

/// The same into `out`; errors name `path`.
pub fn write_to(
    out: &mut dyn Write,
    path: &Path,
    metadata: &BTreeMap<String, String>,
    infos: Vec<(String, Dtype, Vec<usize>)>,
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..infos.len()).collect();
    order.sort_by(|&a, &b| infos[b].1.cmp(&infos[a].1).then_with(|| infos[a].0.cmp(&infos[b].0)));

    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut sizes = Vec::with_capacity(infos.len());
    let mut offset = 0usize;
    for &i in &order {
        let (name, dtype, shape) = &infos[i];
        let bits = shape.iter().try_fold(dtype.bitsize(), |n, &d| n.checked_mul(d)).filter(|n| n.is_multiple_of(8));
        let end = bits.and_then(|n| offset.checked_add(n / 8));
        let end = end.ok_or_else(|| Error::file(path, format!("{name} {shape:?}"), "a whole number of bytes"))?;
        // The dtype's name in the file is its variant's.
        let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
        if header.insert(name.clone(), info).is_some() {
            return Err(Error::file(path, format!("two tensors named {name}"), "each name once"));
        }
        sizes.push(end - offset);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = |e| Error::io(path, e);
    let mut out = Counting { out, bytes: 0 };
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    for (&i, size) in order.iter().zip(sizes) {
        out.bytes = 0;
        fill(i, &mut out)?;
        if out.bytes != size {
            return Err(Error::file(path, format!("{} bytes for {}", out.bytes, infos[i].0), format!("{size} bytes")));
        }
    }
    Ok(())
}

/// Counts what a tensor's writer wrote.
struct Counting<'a> {
    out: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
