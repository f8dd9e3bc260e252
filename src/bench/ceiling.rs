//! What a device gives at most, measured beside the kernels that are held against it: bytes copied, multiply-adds on registers,
//! the engine's own matrix product at a size that suits it.

use serde_json::{Map, Value};

use super::operands::decode;
use super::place::{Placed, Work};
use super::stats::Patience;
use super::truth::{compare, rounding, tolerance};
use crate::backend::{Backend, Slice, Target};
use crate::cpu::par;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::ops::{Attr, Case, Cost, Linear, SampleIn, linear, probe};
use crate::system::Instant;

/// The measured roofs, in units a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ceiling {
    /// Bytes: those that a copy reads and those that it writes.
    pub bytes: f64,
    /// Floating-point operations of multiply-adds that never leave the registers, in f32.
    pub multiply_add: f64,
    /// Those of a product of f32 matrices.
    pub product: f64,
    /// Those of a product with activations in 16 bits, where the device has it.
    pub product_16: Option<f64>,
    /// The same of the library of the device's maker, where there is one: in f32, and in 16 bits.
    pub library: [Option<f64>; 2],
}

impl Ceiling {
    /// Measures them.
    pub fn measure(device: &mut dyn Backend, patience: &Patience) -> Result<Ceiling> {
        let narrow = device.caps().compute_dtype;
        let n = match device.caps().target {
            Target::Host => 1536,
            _ if device.caps().software => 256,
            _ => 4096,
        };
        let (product, library) = products(device, n, DType::F32, patience)?;
        let narrow = narrow.map(|dtype| products(device, n, dtype, patience)).transpose()?;
        Ok(Ceiling {
            bytes: copy(device, patience)?,
            multiply_add: multiply_add(device, patience)?,
            product,
            product_16: narrow.map(|(product, _)| product),
            library: [library, narrow.and_then(|(_, library)| library)],
        })
    }

    /// The most floating-point operations a second for a kernel; `narrow`: with an operand in 16 bits.
    pub fn flops(&self, narrow: bool) -> f64 {
        let [library, library_16] = self.library;
        let narrow = [self.product_16, library_16].map(|rate| rate.filter(|_| narrow));
        let rates = narrow.into_iter().chain([library]).flatten();
        rates.fold(self.product.max(self.multiply_add), f64::max)
    }

    /// The least seconds that so much work can take, and whether it is the memory that it takes them for.
    pub fn least(&self, flops: u64, bytes: u64, narrow: bool) -> (f64, bool) {
        let (arithmetic, memory) = (flops as f64 / self.flops(narrow).max(1.0), bytes as f64 / self.bytes.max(1.0));
        (arithmetic.max(memory), memory > arithmetic)
    }

    /// As facts of a report: GB and GFLOP a second.
    pub fn facts(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let all = [
            ("copy_gb_s", Some(self.bytes)),
            ("multiply_add_gflop_s", Some(self.multiply_add)),
            ("product_f32_gflop_s", Some(self.product)),
            ("product_16_bits_gflop_s", self.product_16),
            ("cublaslt_f32_gflop_s", self.library[0]),
            ("cublaslt_16_bits_gflop_s", self.library[1]),
        ];
        for (key, value) in all {
            map.extend(value.map(|x| (key.to_owned(), Value::from(x / 1e9))));
        }
        map
    }
}

/// Bytes that a copy of a stretch larger than any cache moves a second.
fn copy(device: &mut dyn Backend, patience: &Patience) -> Result<f64> {
    const PIECE: usize = 1 << 20;
    let bytes: u64 = match device.caps().target {
        // A process of its own may have little of a cache that many share.
        Target::Host => 256 << 20,
        _ => (512 << 20).min(device.caps().max_buffer),
    };
    let (from, to) = (device.alloc(bytes)?, device.alloc(bytes)?);
    let whole = |buffer| Slice { buffer, offset: 0, bytes };
    let hosts = (device.host(whole(from))?, device.host(whole(to))?);
    let stats = patience.measure(&mut || {
        let began = Instant::now();
        match hosts {
            (Some(from), Some(to)) => {
                // SAFETY: two allocations of this function, of as many bytes, which nothing else uses meanwhile.
                let (from, to) = unsafe {
                    (std::slice::from_raw_parts(from.ptr, from.bytes), std::slice::from_raw_parts_mut(to.ptr, to.bytes))
                };
                par::chunks(to, PIECE, |i, part| part.copy_from_slice(&from[i * PIECE..][..part.len()]));
            }
            _ => {
                device.copy(whole(to), whole(from))?;
                device.sync()?;
            }
        }
        Ok(began.elapsed().as_secs_f64())
    });
    device.free(from);
    device.free(to);
    Ok(2.0 * bytes as f64 / stats?.median)
}

fn multiply_add(device: &mut dyn Backend, patience: &Patience) -> Result<f64> {
    const ROUNDS: u32 = 4096;
    let n: usize = match device.caps().target {
        Target::Host => 1 << 16,
        _ if device.caps().software => 1 << 14,
        _ => 1 << 22,
    };
    let case = Case::new("roof", Attr::Rounds(ROUNDS), vec![SampleIn::normal(Ty::f32(&[n]))]);
    rate(device, &Work { op: &probe::MULTIPLY_ADD, case: &case }, patience)
}

/// Floating-point operations a second of x·Wᵀ, [n, n] matrices of `dtype`: the engine's, and
/// those of the library of the device's maker, if there is one.
pub fn products(device: &mut dyn Backend, n: usize, dtype: DType, patience: &Patience) -> Result<(f64, Option<f64>)> {
    let case = square(n, dtype);
    let work = Work { op: &linear::LINEAR, case: &case };
    let (flops, placed) = (work.flops()? as f64, work.place(device)?);
    let own = patience.measure(&mut || Ok(device.replay_timed(placed.recording)?.as_secs_f64()));
    let library = own.and_then(|own| Ok((own, library(device, &placed, (n, dtype), patience)?)));
    placed.free(device);
    let (own, library) = library?;
    Ok((flops / own.median, library.map(|seconds| flops / seconds)))
}

/// Seconds that the library of the device's maker takes for what was just run; None without one. What it gives must be what the
/// engine gave.
fn library(
    device: &mut dyn Backend,
    placed: &Placed,
    (n, dtype): (usize, DType),
    patience: &Patience,
) -> Result<Option<f64>> {
    let at = [placed.outs[0], placed.ins[0], placed.ins[1]];
    let result = |device: &mut dyn Backend| {
        let mut bytes = vec![0; dtype.bytes(n * n)];
        device.download(placed.outs[0], &mut bytes)?;
        Ok::<_, Error>(decode(&Ty::new(dtype, &[n, n]), &bytes))
    };
    let ours = result(device)?;
    // So that a library that does nothing is found.
    device.upload(placed.outs[0], &vec![0; dtype.bytes(n * n)])?;
    if device.library_product(n, dtype, at)?.is_none() {
        return Ok(None);
    }
    let (cost, act) = (Cost { flops: 0, terms: n }, Some(dtype).filter(|d| *d != DType::F32));
    let allowed = 2.0 * (tolerance(cost, dtype, &ours, 0.0) + rounding(act, &ours, 0.0));
    if let Err(found) = compare(&result(device)?, &ours, allowed) {
        let found = format!("its library's product of {n} by {n} in {dtype} is not the engine's: {found}");
        return Err(Error::device("the device", found, "one of the two is wrong: please report it"));
    }
    let took = patience.measure(&mut || Ok(device.library_product(n, dtype, at)?.unwrap_or_default().as_secs_f64()))?;
    Ok(Some(took.median))
}

/// The product of two matrices of `n` rows and columns, the second transposed.
pub fn square(n: usize, dtype: DType) -> Case {
    let matrix = || SampleIn::normal(Ty::new(dtype, &[n, n]));
    Case::new("square", Attr::Linear(Linear::default()), vec![matrix(), matrix()])
}

/// Floating-point operations a second.
fn rate(device: &mut dyn Backend, work: &Work, patience: &Patience) -> Result<f64> {
    let flops = work.flops()?;
    let placed = work.place(device)?;
    let stats = patience.measure(&mut || Ok(device.replay_timed(placed.recording)?.as_secs_f64()));
    placed.free(device);
    Ok(flops as f64 / stats?.median)
}
