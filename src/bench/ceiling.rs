//! What a device gives at most, measured beside the kernels that are held against it: bytes copied, multiply-adds on registers,
//! the engine's own matrix product at a size that suits it.

use serde_json::{Map, Value};

use super::place::Work;
use super::stats::Patience;
use crate::backend::{Backend, Slice, Target};
use crate::cpu::par;
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::ops::{Attr, Case, Linear, SampleIn, linear, probe};
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
}

impl Ceiling {
    /// Measures them.
    pub fn measure(device: &mut dyn Backend, patience: &Patience) -> Result<Ceiling> {
        let narrow = device.caps().compute_dtype;
        let product_16 = narrow.map(|dtype| product(device, dtype, patience)).transpose()?;
        Ok(Ceiling {
            bytes: copy(device, patience)?,
            multiply_add: multiply_add(device, patience)?,
            product: product(device, DType::F32, patience)?,
            product_16,
        })
    }

    /// The most floating-point operations a second for a kernel; `narrow`: with an operand in 16 bits.
    pub fn flops(&self, narrow: bool) -> f64 {
        let product_16 = self.product_16.filter(|_| narrow).unwrap_or(0.0);
        product_16.max(self.product).max(self.multiply_add)
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

/// x Wᵀ with activations and weight in `dtype`, all three sizes equal.
fn product(device: &mut dyn Backend, dtype: DType, patience: &Patience) -> Result<f64> {
    let n: usize = match device.caps().target {
        Target::Host => 1536,
        _ if device.caps().software => 256,
        _ => 4096,
    };
    rate(device, &Work { op: &linear::LINEAR, case: &square(n, dtype) }, patience)
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
