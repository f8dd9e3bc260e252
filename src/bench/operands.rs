//! The operands of a sample: numbers drawn the same way every time, and tensors to bytes and back.

use half::{bf16, f16};

use crate::dtype::{DType, Ty};
use crate::ops::{Fill, OpDef, Sample, Tensor};
use crate::quant::nf4;

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
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
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
    let mut bytes: Vec<u8> = match ty.dtype {
        DType::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect(),
        DType::U32 => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        DType::Nf4 | DType::Nf4Dq => {
            let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            nf4::quantize(&floats, ty.dtype == DType::Nf4Dq).map_err(|e| format!("{ty}: {e}"))?
        }
    };
    bytes.resize(ty.bytes(), 0);
    Ok(bytes)
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
        let mut random = Random::named(&format!("{op}/{}/{:?}/{i}", sample.name, sample.attr));
        let n = input.ty.len();
        let values = match &input.fill {
            Fill::Normal(deviation) => (0..n).map(|_| random.normal() * deviation).collect(),
            Fill::Uniform(lo, hi) => (0..n).map(|_| lo + (hi - lo) * random.uniform()).collect(),
            Fill::Constant(value) => vec![*value; n],
            Fill::Values(values) => values.clone(),
            Fill::Derived(f) => f(&sample.attr, &meant).data,
        };
        let bytes = encode(&input.ty, &values).map_err(|e| format!("operand {i} of {op} ({}): {e}", sample.name))?;
        meant.push(Tensor::new(&input.ty.shape, decode(&input.ty, &bytes)));
        stored.push(bytes);
    }
    Ok((stored, meant))
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
