//! Test data: numbers drawn the same way every time, and tensors to bytes and back.

use half::{bf16, f16};
use trimtab::dtype::{DType, Ty};
use trimtab::ops::{Fill, OpDef, Sample, Tensor};
use trimtab::quant::nf4;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Seeded by a text.
    pub fn named(name: &str) -> Random {
        // FNV-1a.
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3)))
    }

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

/// `values` as a tensor of type `ty` is stored.
pub fn encode(ty: &Ty, values: &[f64]) -> Vec<u8> {
    assert_eq!(values.len(), ty.len(), "values for {ty}");
    let mut bytes: Vec<u8> = match ty.dtype {
        DType::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect(),
        DType::U32 => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        DType::Nf4 | DType::Nf4Dq => {
            let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            nf4::quantize(&floats, ty.dtype == DType::Nf4Dq).unwrap()
        }
    };
    bytes.resize(ty.bytes(), 0);
    bytes
}

/// What stored bytes mean.
pub fn decode(ty: &Ty, bytes: &[u8]) -> Vec<f64> {
    let n = ty.len();
    match ty.dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        DType::BF16 => {
            bytes.chunks_exact(2).take(n).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
        }
        DType::F16 => {
            bytes.chunks_exact(2).take(n).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
        }
        DType::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        DType::U32 => bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        DType::Nf4 | DType::Nf4Dq => {
            let mut out = vec![0f32; n];
            nf4::dequantize(bytes, ty.dtype == DType::Nf4Dq, &mut out);
            out.into_iter().map(f64::from).collect()
        }
    }
}

pub fn tensor(ty: &Ty, bytes: &[u8]) -> Tensor {
    Tensor::new(&ty.shape, decode(ty, bytes))
}

/// The operands of a sample: as stored, and what they mean.
pub fn operands(op: &str, sample: &Sample) -> (Vec<Vec<u8>>, Vec<Tensor>) {
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
        let bytes = encode(&input.ty, &values);
        meant.push(tensor(&input.ty, &bytes));
        stored.push(bytes);
    }
    (stored, meant)
}

/// The sample with its activations in 16 bits; None if it has none.
pub fn in_16_bits(op: &OpDef, sample: &Sample, dtype: DType) -> Option<Sample> {
    let mut narrow = sample.clone();
    let acts = (op.acts)(&sample.attr).ins;
    for &i in acts {
        narrow.ins.get_mut(i).iter_mut().for_each(|input| input.ty.dtype = dtype);
    }
    (!acts.is_empty()).then_some(narrow)
}
