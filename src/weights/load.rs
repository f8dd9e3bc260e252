//! Filling the leaves of a graph: from a checkpoint, an adapter, or counter-based random numbers.

use std::collections::BTreeMap;

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Checkpoint, HostTensor, Storage};
use crate::cpu::par;
use crate::cpu::philox::philox;
use crate::cpu::svd;
use crate::cpu::weight::weight as stored;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::graph::Val;
use crate::nn::{Init, Role, RowNorms, Source, Taken, Weight};
use crate::ops::dora;
use crate::quant::nf4::{self, Quantizer};

/// Where first values come from.
pub struct Sources<'a> {
    /// None: the base model starts from random weights.
    pub base: Option<&'a Checkpoint>,
    /// Standard deviation of random base weights.
    pub std: f32,
    /// Tensors of an adapter to start from.
    pub adapter: Option<&'a BTreeMap<String, HostTensor>>,
    /// With a tensor's name it decides the tensor's random values, whatever the order of loading.
    pub seed: u64,
}

/// Is told bytes done and of how many; an error ends the loading.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// Fills every leaf in `weights`; `progress(bytes done, of)` is called along the way.
pub fn load(exec: &mut Exec, weights: &[Weight], from: &Sources, progress: Progress) -> Result<()> {
    let total = weights.iter().map(|w| exec.graph.ty(w.val).bytes() as u64).sum();
    let mut done = 0;
    let mut unreleased = 0;
    for weight in weights {
        let ty = exec.graph.ty(weight.val).clone();
        match (&weight.source, from.base) {
            (Source::Base { tensor, role, held, transposed, fresh: start, less }, base)
                if !adapted(weight, from) && kept(held, from).is_none() =>
            {
                match base {
                    // A task's head that the base model has not.
                    Some(base) if base.info(tensor).is_none() && start.is_some() => {
                        let data = drawn(exec, start.unwrap_or(Init::Zeros), ty.len(), tensor, from.seed)?;
                        exec.upload(weight.val, &encode(&data, &ty)?)?;
                    }
                    Some(base) => {
                        let file = File { checkpoint: base, name: tensor, transposed: *transposed };
                        match less {
                            Some(taken) => remainder(exec, weight.val, &file, &ty, *taken)?,
                            None => from_file(exec, weight.val, &file, &ty, &mut unreleased)?,
                        }
                    }
                    None if less.is_some() => {
                        let expected = "the model that the adapter was trained on";
                        return Err(Error::config(&weight.name, "random weights", expected));
                    }
                    None => {
                        let fill = |start: usize, out: &mut [f32]| fresh(*role, &ty, tensor, from, start, out);
                        by_stretches(exec, weight.val, &ty, &mut |start, out| {
                            fill(start, out);
                            Ok(())
                        })?
                    }
                }
            }
            (Source::Computed(data), _) => by_stretches(exec, weight.val, &ty, &mut |start, out| {
                data.fill(start, out);
                Ok(())
            })?,
            _ => {
                let bytes = first_value(exec, weight, &ty, from)?;
                exec.upload(weight.val, &bytes)?;
            }
        }
        done += ty.bytes() as u64;
        progress(done, total)?;
    }
    if let Some(base) = from.base {
        base.release();
    }
    Ok(())
}

fn adapted(weight: &Weight, from: &Sources) -> bool {
    from.adapter.is_some_and(|tensors| tensors.contains_key(&weight.name))
}

/// Values of a base model's tensor from the `first` one on, in the order in which transformers' own files have it; `transposed`
/// if that is `[in, out]`.
pub fn read_at(checkpoint: &Checkpoint, name: &str, transposed: bool, first: usize, out: &mut [f32]) -> Result<()> {
    let shape = checkpoint.info(name).map(|i| i.shape.clone()).unwrap_or_default();
    let cols = shape.last().copied().unwrap_or(1).max(1);
    if transposed && !(File { checkpoint, name, transposed }).turned() {
        let all = transpose(&checkpoint.read(name)?, cols);
        out.copy_from_slice(&all[first..first + out.len()]);
        return Ok(());
    }
    let rows = first / cols..(first + out.len()).div_ceil(cols);
    let mut data = vec![0f32; rows.len() * cols];
    checkpoint.read_rows(name, rows.clone(), &mut data)?;
    out.copy_from_slice(&data[first - rows.start * cols..][..out.len()]);
    Ok(())
}

/// Elements that are decoded at a time: what loading holds beside the device's memory is a few MiB.
const STRETCH: usize = 1 << 20;
/// Bytes of a mapped file after which its pages are given back.
const RELEASE: usize = 32 << 20;

/// A tensor of a base model's files.
struct File<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    /// The model's own code has it as `[in, out]`.
    transposed: bool,
}

impl File<'_> {
    fn turned(&self) -> bool {
        self.transposed && is_turned(self.checkpoint, self.name)
    }
}

/// Whether a file has as `[in, out]` a tensor that the model's own code has so. bitsandbytes turns such weights when it
/// quantizes them.
pub fn is_turned(checkpoint: &Checkpoint, name: &str) -> bool {
    let stored = checkpoint.info(name).map(|i| i.stored);
    !matches!(stored, Some(Storage::As(d)) if d.is_quantized()) && stored != Some(Storage::Int8)
}

/// Fills `val` from a file's tensor, or says where it is if `val` is off the device and needs no conversion.
fn from_file(exec: &mut Exec, val: Val, file: &File, ty: &Ty, unreleased: &mut usize) -> Result<()> {
    let File { checkpoint, name, .. } = *file;
    if file.turned() && ty.shape.len() == 2 {
        let shape = [ty.shape[1], ty.shape[0]];
        check(checkpoint, name, &Ty::new(ty.dtype, &shape))?;
        // A column of the file takes all of its rows, so the tensor is read whole; models that have such are small.
        let turned = transpose(&checkpoint.read(name)?, shape[1]);
        *unreleased += 4 * turned.len();
        return by_stretches(exec, val, ty, &mut |start, out| {
            out.copy_from_slice(&turned[start..start + out.len()]);
            Ok(())
        });
    }
    check(checkpoint, name, ty)?;
    if let Some((_, store)) = checkpoint.store(name).filter(|(dtype, _)| *dtype == ty.dtype) {
        if exec.is_away(val) {
            exec.bind(val, store);
            return Ok(());
        }
        // The bytes as they are, not through the mapping.
        let mut buffer = vec![0; ty.bytes().min(4 * STRETCH)];
        for start in (0..ty.bytes()).step_by(buffer.len().max(1)) {
            let piece = &mut buffer[..(ty.bytes() - start).min(4 * STRETCH)];
            let parts = piece.par_chunks_mut(STRETCH).enumerate();
            parts
                .map(|(i, part)| store.read((start + i * STRETCH) as u64, part))
                .collect::<std::io::Result<()>>()
                .map_err(|e| Error::io(checkpoint.path(), e))?;
            exec.upload_at(val, start as u64, piece)?;
        }
        return Ok(());
    }
    let cols = ty.cols();
    by_stretches(exec, val, ty, &mut |start, out| {
        let first = start / cols.max(1);
        // Each thread decodes some rows.
        let rows = (1usize << 16).div_ceil(cols.max(1)).max(1);
        out.par_chunks_mut(rows * cols.max(1)).enumerate().try_for_each(|(i, out)| {
            let first = first + i * rows;
            checkpoint.read_rows(name, first..first + out.len() / cols.max(1), out)
        })?;
        *unreleased += 4 * out.len();
        if *unreleased > RELEASE {
            *unreleased = 0;
            checkpoint.release();
        }
        Ok(())
    })
}

/// A whole tensor `[out, in]` of a base model's files without what a method takes out of it: of its values as `held` has them,
/// since PEFT decomposes the weight as it was loaded.
pub fn read_less(checkpoint: &Checkpoint, name: &str, transposed: bool, taken: Taken, held: DType) -> Result<Vec<f32>> {
    if transposed && matches!(taken, Taken::Columns { .. }) {
        // PEFT decomposes the turned weight, whose factors do not fit.
        let what = format!("OLoRA's start at {name}, which files have as [in, out],");
        return Err(Error::unsupported(what, "train with init_lora_weights true"));
    }
    let shape = checkpoint.info(name).map(|i| i.shape.clone()).unwrap_or_default();
    let file = File { checkpoint, name, transposed };
    let mut values = checkpoint.read(name)?;
    let mut columns = shape.last().copied().unwrap_or(1);
    if file.turned() && shape.len() == 2 {
        (values, columns) = (transpose(&values, columns), shape[0]);
    }
    if held != DType::F32 {
        let ty = Ty::new(held, &[values.len()]);
        values = decode(&encode(&values, &ty)?, &ty)?;
    }
    match taken {
        Taken::Singular { rank } => svd::take_largest(&mut values, columns, rank),
        Taken::Columns { rank, scale } => svd::take_columns(&mut values, columns, rank, scale),
    }
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(values),
        false => Err(Error::file(checkpoint.path(), format!("{name} with numbers that are not finite"), "finite ones")),
    }
}

/// Fills `val` with a file's tensor without what a method takes out of it. PEFT does so on a weight of floats, and rounds to
/// its type.
fn remainder(exec: &mut Exec, val: Val, file: &File, ty: &Ty, taken: Taken) -> Result<()> {
    let File { checkpoint, name, transposed } = *file;
    if ty.dtype.is_quantized() {
        let what = format!("an adapter of PiSSA or OLoRA on {name} in {}", ty.dtype);
        return Err(Error::unsupported(
            what,
            "a base model of floats (no --quantize); or convert the adapter to plain LoRA: PEFT's save_pretrained with \
             path_initial_model_for_weight_conversion",
        ));
    }
    let shape = if file.turned() && ty.shape.len() == 2 { vec![ty.shape[1], ty.shape[0]] } else { ty.shape.clone() };
    check(checkpoint, name, &Ty::new(ty.dtype, &shape))?;
    let values = read_less(checkpoint, name, transposed, taken, ty.dtype)?;
    by_stretches(exec, val, ty, &mut |start, out| {
        out.copy_from_slice(&values[start..start + out.len()]);
        Ok(())
    })
}

/// Fills `val` with what `fill(first element, values)` gives, whole rows at a time.
fn by_stretches(
    exec: &mut Exec,
    val: Val,
    ty: &Ty,
    fill: &mut dyn FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let row = ty.cols().max(1);
    // Two rows at least: a pair of 16-bit elements shares a word.
    let most = (STRETCH / row).max(1).next_multiple_of(2) * row;
    let mut values = vec![0f32; most.min(ty.len())];
    let mut quantizer = ty.dtype.is_quantized().then(|| Quantizer::new(ty.len(), ty.dtype == DType::Nf4Dq));
    for start in (0..ty.len()).step_by(most) {
        let values = &mut values[..(ty.len() - start).min(most)];
        fill(start, values)?;
        match &mut quantizer {
            Some(quantizer) => quantizer.push(values),
            None => {
                let bytes = encode(values, &Ty::new(ty.dtype, &[values.len()]))?;
                exec.upload_at(val, ty.dtype.bytes(start) as u64, &bytes)?;
            }
        }
    }
    match quantizer {
        Some(quantizer) => exec.upload(val, &quantizer.finish()?),
        None => Ok(()),
    }
}

fn first_value(exec: &mut Exec, weight: &Weight, ty: &Ty, from: &Sources) -> Result<Vec<u8>> {
    let name = &weight.name;
    let adapted = from.adapter.and_then(|tensors| tensors.get(name));
    match (&weight.source, adapted) {
        (Source::Data(bytes), _) => Ok(bytes.clone()),
        (Source::RowNorms(of), _) => Ok(bytemuck::cast_slice(&row_norms(exec, *of)?).to_vec()),
        (Source::Base { transposed: true, .. }, Some(t))
            if ty.shape.len() == 2 && t.shape == [ty.shape[1], ty.shape[0]] =>
        {
            Ok(bytemuck::cast_slice(&transpose(&t.data, ty.shape[0])).to_vec())
        }
        (_, Some(t)) if t.shape == ty.shape => Ok(bytemuck::cast_slice(&t.data).to_vec()),
        (_, Some(t)) => {
            Err(Error::config(name, format!("shape {:?} in the adapter", t.shape), format!("{:?}", ty.shape)))
        }
        (Source::Adapter { init }, None) if from.adapter.is_none() => {
            let data = drawn(exec, *init, ty.len(), name, from.seed)?;
            Ok(bytemuck::cast_slice(&data).to_vec())
        }
        (Source::Rows { tensor, role, rows, scale }, None) if from.adapter.is_none() => {
            let mut data = table_rows(rows, ty.cols(), tensor, *role, from)?;
            data.iter_mut().for_each(|x| *x *= scale);
            Ok(bytemuck::cast_slice(&data).to_vec())
        }
        (Source::Adapter { .. } | Source::Rows { .. }, None) => {
            Err(Error::config(name, "no such tensor in the adapter", format!("one of shape {:?}", ty.shape)))
        }
        // PEFT writes the table of an embedding or head that it adapts into the adapter's file, and loads it again.
        (Source::Base { held, .. }, None) if let Some(t) = kept(held, from) => match t.shape == ty.shape {
            true => encode(&t.data, ty),
            false => Err(Error::config(
                held.clone().unwrap_or_default(),
                format!("shape {:?} in the adapter", t.shape),
                format!("{:?}", ty.shape),
            )),
        },
        (Source::Base { .. } | Source::Computed(_), None) => {
            Err(Error::config(name, "no place to take it from", "a base model, or random weights"))
        }
    }
}

/// The first `len` values of a new tensor.
fn drawn(exec: &mut Exec, init: Init, len: usize, name: &str, seed: u64) -> Result<Vec<f32>> {
    Ok(match init {
        Init::Zeros => vec![0.0; len],
        Init::Ones => vec![1.0; len],
        Init::Uniform { bound } => uniform(bound, len, name, seed),
        Init::Normal { std } => normal(std, len, name, seed),
        Init::RowNorms(of) => row_norms(exec, of)?,
    })
}

/// The transpose of a matrix of `cols` columns.
pub fn transpose(data: &[f32], cols: usize) -> Vec<f32> {
    let rows = data.len() / cols.max(1);
    let mut out = vec![0f32; data.len()];
    out.par_chunks_mut(rows.max(1)).enumerate().for_each(|(c, out)| {
        out.iter_mut().enumerate().for_each(|(r, o)| *o = data[r * cols + c]);
    });
    out
}

/// A frozen weight as the adapter's file has it.
fn kept<'a>(held: &Option<String>, from: &Sources<'a>) -> Option<&'a HostTensor> {
    from.adapter?.get(held.as_ref()?)
}

/// Rows of a tensor of the base model, in f32.
fn table_rows(rows: &[usize], cols: usize, tensor: &str, role: Role, from: &Sources) -> Result<Vec<f32>> {
    let mut data = vec![0f32; rows.len() * cols];
    match from.base {
        Some(checkpoint) => {
            for (out, &row) in data.chunks_exact_mut(cols.max(1)).zip(rows) {
                checkpoint.read_rows(tensor, row..row + 1, out)?;
            }
        }
        None => {
            let table = Ty::f32(&[rows.iter().max().map_or(0, |r| r + 1), cols]);
            for (out, &row) in data.chunks_exact_mut(cols.max(1)).zip(rows) {
                fresh(role, &table, tensor, from, row * cols, out);
            }
        }
    }
    Ok(data)
}

/// An error if a checkpoint has no tensor `name` in the shape of `ty`.
pub fn check(checkpoint: &Checkpoint, name: &str, ty: &Ty) -> Result<()> {
    let found = match checkpoint.info(name) {
        Some(info) if info.shape == ty.shape => return Ok(()),
        Some(info) => format!("{name} of shape {:?}", info.shape),
        None => format!("no tensor {name}"),
    };
    Err(Error::file(checkpoint.path(), found, format!("one of shape {:?}", ty.shape)))
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

/// Random base weights as transformers draws them: normal for matrices, ones for norms, zeros for biases. `out` takes
/// those from element `start` on.
fn fresh(role: Role, ty: &Ty, name: &str, from: &Sources, start: usize, out: &mut [f32]) {
    match (ty.shape.len(), role) {
        (1, Role::Norm) => out.fill(1.0),
        (1, _) => out.fill(0.0),
        _ => {
            let normal = |words| normals(words).map(|x| x * from.std);
            // Four are drawn at once.
            let head = (start.next_multiple_of(4) - start).min(out.len());
            let (head, rest) = out.split_at_mut(head);
            head.iter_mut().zip(&normal(words(from.seed, name, start / 4))[start % 4..]).for_each(|(o, x)| *o = *x);
            draw(rest, from.seed, name, (start + head.len()) / 4, normal);
        }
    }
}

/// Uniform in ±bound.
fn uniform(bound: f32, n: usize, name: &str, seed: u64) -> Vec<f32> {
    let mut out = vec![0f32; n];
    draw(&mut out, seed, name, 0, |words| words.map(|word| (unit(word) * 2.0 - 1.0) * bound));
    out
}

/// Normal with this standard deviation.
fn normal(std: f32, n: usize, name: &str, seed: u64) -> Vec<f32> {
    let mut out = vec![0f32; n];
    draw(&mut out, seed, name, 0, |words| normals(words).map(|x| x * std));
    out
}

/// Random values of the tensor `name`, from the four that begin at 4·`first` on.
fn draw(out: &mut [f32], seed: u64, name: &str, first: usize, four: impl Fn([u32; 4]) -> [f32; 4] + Sync) {
    par::chunks(out, 1 << 14, |piece, out| {
        let first = first + (piece << 12);
        for (i, out) in out.chunks_mut(4).enumerate() {
            out.iter_mut().zip(four(words(seed, name, first + i))).for_each(|(o, x)| *o = x);
        }
    });
}

/// The norms of the rows of `w + scale·b·a` as the device holds them: a quantized weight has the norms of what it
/// decodes to.
fn row_norms(exec: &mut Exec, of: RowNorms) -> Result<Vec<f32>> {
    let ty = exec.graph.ty(of.w).clone();
    let (a, b) = (exec.download_f32(of.a)?, exec.download_f32(of.b)?);
    // Words, for a boundary that floats may begin at.
    let mut words = vec![0u32; ty.bytes().div_ceil(4)];
    let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..ty.bytes()];
    exec.read(of.w, bytes)?;
    let mut norms = vec![0.0; ty.rows()];
    dora::row_norms(stored(bytes, &ty), ty.cols(), &dora::LowRank { a: &a, b: &b, scale: of.scale }, &mut norms);
    Ok(norms)
}

/// Four random words for elements 4i.. of the tensor `name`: the draw depends on nothing else, neither the order of
/// tensors nor the number of threads.
pub(crate) fn words(seed: u64, name: &str, i: usize) -> [u32; 4] {
    // FNV-1a, to turn a name into a stream.
    let stream = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ b as u32).wrapping_mul(0x0100_0193));
    philox([i as u32, (i as u64 >> 32) as u32, stream, 0x1417], [seed as u32, (seed >> 32) as u32])
}

/// In [0, 1), 24 bits.
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / (1 << 24) as f32
}

/// Four standard normals (Box and Muller 1958).
pub(crate) fn normals(words: [u32; 4]) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * (1.0 - unit(a) as f64).ln()).sqrt();
        let angle = std::f64::consts::TAU * unit(b) as f64;
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}
