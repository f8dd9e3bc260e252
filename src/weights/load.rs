//! Filling the leaves of a graph: from a checkpoint, an adapter, or counter-based random numbers.

use std::collections::BTreeMap;

use half::{bf16, f16};
use rayon::prelude::*;

use super::Checkpoint;
use crate::cpu::philox::philox;
use crate::cpu::weight::weight as stored;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::nn::{Init, Role, RowNorms, Source, Weight};
use crate::ops::dora;
use crate::peft::files::{self, AdapterTensor};
use crate::quant::nf4;

/// Where first values come from.
pub struct Sources<'a> {
    /// None: the base model starts from random weights.
    pub base: Option<&'a Checkpoint>,
    /// Standard deviation of random base weights.
    pub std: f32,
    /// Tensors of an adapter to start from.
    pub adapter: Option<&'a BTreeMap<String, AdapterTensor>>,
    pub seed: u64,
}

/// Is told bytes done and of how many; an error ends the loading.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// Fills every leaf in `weights`; `progress(bytes done, of)` is called along the way.
pub fn load(exec: &mut Exec, weights: &[Weight], from: &Sources, progress: Progress) -> Result<()> {
    let total = weights.iter().map(|w| exec.graph.ty(w.val).bytes() as u64).sum();
    let mut done = 0;
    for weight in weights {
        let ty = exec.graph.ty(weight.val).clone();
        let bytes = first_value(exec, weight, &ty, from)?;
        exec.upload(weight.val, &bytes)?;
        done += ty.bytes() as u64;
        progress(done, total)?;
    }
    if let Some(base) = from.base {
        base.release();
    }
    Ok(())
}

fn first_value(exec: &mut Exec, weight: &Weight, ty: &Ty, from: &Sources) -> Result<Vec<u8>> {
    let name = &weight.name;
    let adapted = from.adapter.and_then(|tensors| tensors.get(name));
    match (&weight.source, adapted) {
        (Source::Data(bytes), _) => Ok(bytes.clone()),
        (Source::RowNorms(of), _) => Ok(bytemuck::cast_slice(&row_norms(exec, *of)?).to_vec()),
        (_, Some(t)) if t.shape == ty.shape => Ok(bytemuck::cast_slice(&t.data).to_vec()),
        (_, Some(t)) => {
            Err(Error::config(name, format!("shape {:?} in the adapter", t.shape), format!("{:?}", ty.shape)))
        }
        (Source::Adapter { init }, None) if from.adapter.is_none() => {
            let data = match *init {
                Init::Zeros => vec![0.0; ty.len()],
                Init::Uniform { bound } => uniform(bound, ty.len(), name, from.seed),
                Init::Normal { std } => normal(std, ty.len(), name, from.seed),
                Init::RowNorms(of) => row_norms(exec, of)?,
            };
            Ok(bytemuck::cast_slice(&data).to_vec())
        }
        (Source::Rows { tensor, role, rows }, None) if from.adapter.is_none() => {
            table_rows(rows, ty.cols(), tensor, *role, from)
        }
        (Source::Adapter { .. } | Source::Rows { .. }, None) => {
            Err(Error::config(name, "no such tensor in the adapter", format!("one of shape {:?}", ty.shape)))
        }
        // PEFT writes the table of an embedding or head that it adapts into the adapter's file, and loads it again.
        (Source::Base { tensor, .. }, None) if let Some(t) = kept(tensor, from) => match t.shape == ty.shape {
            true => encode(&t.data, ty),
            false => Err(Error::config(
                files::base_layer(tensor),
                format!("shape {:?} in the adapter", t.shape),
                format!("{:?}", ty.shape),
            )),
        },
        (Source::Base { tensor, role }, None) => match from.base {
            None => encode(&fresh(*role, ty, tensor, from), ty),
            Some(checkpoint) => read(checkpoint, tensor, ty),
        },
    }
}

/// A frozen weight as the adapter's file has it.
fn kept<'a>(tensor: &str, from: &Sources<'a>) -> Option<&'a AdapterTensor> {
    from.adapter?.get(&files::base_layer(tensor.strip_suffix(".weight")?))
}

/// Rows of a tensor of the base model, in f32.
fn table_rows(rows: &[usize], cols: usize, tensor: &str, role: Role, from: &Sources) -> Result<Vec<u8>> {
    let mut data = vec![0f32; rows.len() * cols];
    match from.base {
        Some(checkpoint) => {
            for (out, &row) in data.chunks_exact_mut(cols.max(1)).zip(rows) {
                checkpoint.read_rows(tensor, row..row + 1, out)?;
            }
        }
        None => {
            // Random weights depend on their place in the table only, so its rows up to the last one will do.
            let table = Ty::f32(&[rows.iter().max().map_or(0, |r| r + 1), cols]);
            let table = fresh(role, &table, tensor, from);
            for (out, &row) in data.chunks_exact_mut(cols.max(1)).zip(rows) {
                out.copy_from_slice(&table[row * cols..(row + 1) * cols]);
            }
        }
    }
    Ok(bytemuck::cast_slice(&data).to_vec())
}

/// The tensor `name` of a checkpoint in the format of `ty`.
pub fn read(checkpoint: &Checkpoint, name: &str, ty: &Ty) -> Result<Vec<u8>> {
    match checkpoint.info(name) {
        None => {
            return Err(Error::file(
                checkpoint.path(),
                format!("no tensor {name}"),
                format!("one of shape {:?}", ty.shape),
            ));
        }
        Some(info) if info.shape != ty.shape => {
            return Err(Error::file(
                checkpoint.path(),
                format!("{name} of shape {:?}", info.shape),
                format!("{:?}", ty.shape),
            ));
        }
        Some(_) => {}
    }
    if ty.dtype.is_quantized()
        && let Some((dtype, bytes)) = checkpoint.nf4(name)?
        && dtype == ty.dtype
    {
        return Ok(bytes);
    }
    let (rows, cols) = (ty.rows(), ty.cols());
    let mut data = vec![0f32; ty.len()];
    // Large tensors are decoded by many threads, a stretch of rows each.
    let stretch = (1usize << 18).div_ceil(cols.max(1)).max(1);
    data.par_chunks_mut(stretch * cols.max(1)).enumerate().try_for_each(|(i, out)| {
        let first = i * stretch;
        checkpoint.read_rows(name, first..(first + stretch).min(rows), out)
    })?;
    encode(&data, ty)
}

/// `data` as a tensor of `ty` is stored.
pub fn encode(data: &[f32], ty: &Ty) -> Result<Vec<u8>> {
    let mut bytes = match ty.dtype {
        DType::BF16 => data.par_iter().flat_map_iter(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
        DType::F16 => data.par_iter().flat_map_iter(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        DType::Nf4 | DType::Nf4Dq => nf4::quantize(data, ty.dtype == DType::Nf4Dq)?,
        _ => bytemuck::cast_slice(data).to_vec(),
    };
    bytes.resize(ty.bytes(), 0);
    Ok(bytes)
}

/// What a float tensor of `ty` holds, as f32.
pub fn decode(bytes: &[u8], ty: &Ty) -> Result<Vec<f32>> {
    let half = |f: fn([u8; 2]) -> f32| bytes.as_chunks().0.iter().take(ty.len()).map(|&b| f(b)).collect();
    match ty.dtype {
        DType::F32 => Ok(bytemuck::pod_collect_to_vec(bytes)),
        DType::BF16 => Ok(half(|b| bf16::from_ne_bytes(b).to_f32())),
        DType::F16 => Ok(half(|b| f16::from_ne_bytes(b).to_f32())),
        other => Err(Error::unsupported(format!("writing a weight stored as {other}"), "keep it as f32, bf16 or f16")),
    }
}

/// Random base weights as transformers draws them: normal for matrices, ones for norms, zeros for biases.
fn fresh(role: Role, ty: &Ty, name: &str, from: &Sources) -> Vec<f32> {
    match (ty.shape.len(), role) {
        (1, Role::Norm) => vec![1.0; ty.len()],
        (1, _) => vec![0.0; ty.len()],
        _ => {
            let mut data = vec![0f32; ty.len()];
            data.par_chunks_mut(4).enumerate().for_each(|(i, out)| {
                let words = words(from.seed, name, i);
                for (o, x) in out.iter_mut().zip(normals(words)) {
                    *o = x * from.std;
                }
            });
            data
        }
    }
}

/// Uniform in ±bound.
fn uniform(bound: f32, n: usize, name: &str, seed: u64) -> Vec<f32> {
    let one = |i: usize| (unit(words(seed, name, i / 4)[i % 4]) * 2.0 - 1.0) * bound;
    (0..n).map(one).collect()
}

/// Normal with this standard deviation.
fn normal(std: f32, n: usize, name: &str, seed: u64) -> Vec<f32> {
    (0..n.div_ceil(4)).flat_map(|i| normals(words(seed, name, i))).take(n).map(|x| x * std).collect()
}

/// The norms of the rows of `w + scale·b·a` as the device holds them: a quantized weight has the norms of what it
/// decodes to.
fn row_norms(exec: &mut Exec, of: RowNorms) -> Result<Vec<f32>> {
    let ty = exec.graph.ty(of.w).clone();
    let (a, b) = (exec.download_f32(of.a)?, exec.download_f32(of.b)?);
    let slice = exec.slice(of.w)?;
    // Words, for a boundary that floats may lie on.
    let mut words = vec![0u32; (slice.bytes as usize).div_ceil(4)];
    let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..slice.bytes as usize];
    exec.backend.download(slice, bytes)?;
    let mut norms = vec![0.0; ty.rows()];
    dora::row_norms(stored(bytes, &ty), ty.cols(), &dora::LowRank { a: &a, b: &b, scale: of.scale }, &mut norms);
    Ok(norms)
}

/// Four random words for elements 4i.. of the tensor `name`: the draw depends on nothing else, neither the order of
/// tensors nor the number of threads.
fn words(seed: u64, name: &str, i: usize) -> [u32; 4] {
    // FNV-1a, to turn a name into a stream.
    let stream = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ b as u32).wrapping_mul(0x0100_0193));
    philox([i as u32, (i >> 32) as u32, stream, 0x1417], [seed as u32, (seed >> 32) as u32])
}

/// In [0, 1), 24 bits.
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / (1 << 24) as f32
}

/// Four standard normals (Box and Muller 1958).
fn normals(words: [u32; 4]) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * (1.0 - unit(a) as f64).ln()).sqrt();
        let angle = std::f64::consts::TAU * unit(b) as f64;
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}
