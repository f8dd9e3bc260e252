//! The operands of a sample: numbers drawn the same way every time, and tensors to bytes and back.

use std::ops::Range;

use half::{bf16, f16};

use crate::cpu::par;
use crate::dtype::{DType, Ty};
use crate::ops::{Fill, OpDef, Sample, SampleIn, Tensor};
use crate::quant::nf4;

/// What SplitMix64 adds for each word.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Elements that a thread draws at a time.
const PIECE: usize = 1 << 12;

/// Random numbers that are the same on every machine: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Numbers that follow from a text.
    pub fn named(name: &str) -> Random {
        // FNV-1a.
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3)))
    }

    /// The next 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The same numbers without the next `words` words of them.
    pub fn after(&self, words: usize) -> Random {
        Random(self.0.wrapping_add(STEP.wrapping_mul(words as u64)))
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// `values` as a tensor of type `ty` is stored. The error says what is wrong with them.
pub fn encode(ty: &Ty, values: &[f64]) -> Result<Vec<u8>, String> {
    if values.len() != ty.len() {
        return Err(format!("found {} values for {ty}, expected {}", values.len(), ty.len()));
    }
    if ty.dtype.is_quantized() {
        let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        return nf4::quantize(&floats, ty.dtype == DType::Nf4Dq).map_err(|e| format!("{ty}: {e}"));
    }
    let mut bytes = vec![0; ty.bytes()];
    store(ty.dtype, values, &mut bytes);
    Ok(bytes)
}

/// Writes numbers as `dtype`, which is no quantized type.
fn store(dtype: DType, values: &[f64], bytes: &mut [u8]) {
    fn each<const N: usize>(values: &[f64], bytes: &mut [u8], of: impl Fn(f64) -> [u8; N]) {
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, &v)| *bytes = of(v));
    }
    match dtype {
        DType::BF16 => each(values, bytes, |v| bf16::from_f64(v).to_le_bytes()),
        DType::F16 => each(values, bytes, |v| f16::from_f64(v).to_le_bytes()),
        DType::I32 => each(values, bytes, |v| (v as i32).to_le_bytes()),
        DType::U32 => each(values, bytes, |v| (v as u32).to_le_bytes()),
        DType::F32 | DType::Nf4 | DType::Nf4Dq => each(values, bytes, |v| (v as f32).to_le_bytes()),
    }
}

/// What stored bytes mean: the elements of which all bytes are there.
pub fn decode(ty: &Ty, bytes: &[u8]) -> Vec<f64> {
    let n = ty.len();
    let words = || bytes.as_chunks::<4>().0.iter().take(n);
    let halves = || bytes.as_chunks::<2>().0.iter().take(n);
    match ty.dtype {
        DType::F32 => words().map(|&b| f32::from_le_bytes(b) as f64).collect(),
        DType::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f64()).collect(),
        DType::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f64()).collect(),
        DType::I32 => words().map(|&b| i32::from_le_bytes(b) as f64).collect(),
        DType::U32 => words().map(|&b| u32::from_le_bytes(b) as f64).collect(),
        // Without all of the scales no code means anything.
        DType::Nf4 | DType::Nf4Dq if bytes.len() < ty.bytes() => Vec::new(),
        DType::Nf4 | DType::Nf4Dq => {
            let mut out = vec![0f32; n];
            nf4::dequantize(bytes, ty.dtype == DType::Nf4Dq, &mut out);
            out.into_iter().map(f64::from).collect()
        }
    }
}

/// The operands of a sample of the op of this name: as stored, and what they mean.
pub fn operands(op: &str, sample: &Sample) -> Result<(Vec<Vec<u8>>, Vec<Tensor>), String> {
    let (mut stored, mut meant): (Vec<Vec<u8>>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for (i, input) in sample.ins.iter().enumerate() {
        let bytes = fill(op, sample, i, &meant)?;
        meant.push(Tensor::new(&input.ty.shape, decode(&input.ty, &bytes)));
        stored.push(bytes);
    }
    Ok((stored, meant))
}

/// The operands as stored alone, which is less work and takes less memory where they are large.
pub fn stored(op: &str, sample: &Sample) -> Result<Vec<Vec<u8>>, String> {
    if sample.ins.iter().any(|input| matches!(input.fill, Fill::Derived(_))) {
        return Ok(operands(op, sample)?.0);
    }
    (0..sample.ins.len()).map(|i| fill(op, sample, i, &[])).collect()
}

/// Operand `i` as stored; `before` is what those before it mean.
fn fill(op: &str, sample: &Sample, i: usize, before: &[Tensor]) -> Result<Vec<u8>, String> {
    let SampleIn { ty, fill } = &sample.ins[i];
    let random = Random::named(&format!("{op}/{}/{:?}/{i}", sample.name, sample.attr));
    let drawn = match *fill {
        Fill::Normal(deviation) => draw(ty, &random, 2, |random| random.normal() * deviation),
        Fill::Uniform(lo, hi) => draw(ty, &random, 1, |random| lo + (hi - lo) * random.uniform()),
        Fill::Constant(value) => draw(ty, &random, 0, |_| value),
        Fill::Values(ref values) => encode(ty, values),
        Fill::Derived(f) => encode(ty, &f(&sample.attr, before).data),
    };
    drawn.map_err(|e| format!("operand {i} of {op} ({}): {e}", sample.name))
}

/// A tensor of elements that each take `words` words of `random`, one after the other; drawn by all threads.
fn draw(
    ty: &Ty,
    random: &Random,
    words: usize,
    element: impl Fn(&mut Random) -> f64 + Sync,
) -> Result<Vec<u8>, String> {
    let n = ty.len();
    let piece = |range: Range<usize>| -> Vec<f64> {
        let mut random = random.after(words * range.start);
        range.map(|_| element(&mut random)).collect()
    };
    if !ty.dtype.is_quantized() {
        let size = ty.dtype.bytes(2) / 2;
        let mut bytes = vec![0; ty.bytes()];
        par::chunks(&mut bytes, PIECE * size, |i, bytes| {
            store(ty.dtype, &piece(i * PIECE..n.min((i + 1) * PIECE)), bytes);
        });
        return Ok(bytes);
    }
    let mut quantizer = nf4::Quantizer::new(n, ty.dtype == DType::Nf4Dq);
    // So many that every thread has some.
    const MANY: usize = 64 * PIECE;
    for start in (0..n).step_by(MANY) {
        let mut floats = vec![0f32; MANY.min(n - start)];
        par::chunks(&mut floats, PIECE, |i, floats| {
            let first = start + i * PIECE;
            let values = piece(first..first + floats.len());
            floats.iter_mut().zip(values).for_each(|(x, v)| *x = v as f32);
        });
        quantizer.push(&floats);
    }
    quantizer.finish().map_err(|e| format!("{ty}: {e}"))
}

/// The sample with its activations in `dtype`, a type of 16 bits; None if it has none.
pub fn in_16_bits(op: &OpDef, sample: &Sample, dtype: DType) -> Option<Sample> {
    let mut narrow = sample.clone();
    let acts = (op.acts)(&sample.attr).ins;
    for &i in acts {
        narrow.ins.get_mut(i).iter_mut().for_each(|input| input.ty.dtype = dtype);
    }
    (!acts.is_empty()).then_some(narrow)
}
