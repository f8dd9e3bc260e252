//! Weights as they are stored: which parts of one a kernel binds, and the ops that make and undo 4-bit weights.

pub(in crate::ops) mod cuda;

use std::ops::Range;

use crate::cpu::par;
use crate::device::{Caps, Target};
use crate::dtype::{ALIGN, DType, Nf4Layout, Ty};
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::launch::{bytes, grid};
use crate::ops::{Arg, Attr, Case, Cost, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Tensor, WgslDispatch, check};
use crate::quant::nf4;

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&NF4_QUANTIZE, &NF4_DEQUANTIZE];

/// `nf4_quantize` [w F32[N,K]] → Nf4\[N,K\] or, with `double`, Nf4Dq\[N,K\], as bitsandbytes does it (Dettmers et al.
/// 2023). The CPU and CUDA kernels give bitsandbytes' bits ([`nf4::quantize`]). A tensor with an element that is not finite
/// has no NF4 form: it comes out as NaN everywhere on the CPU, and undefined on a GPU.
pub static NF4_QUANTIZE: OpDef = OpDef {
    name: "nf4_quantize",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Nf4 { double }, [w]) => {
            check::float("w", w)?;
            Ok(vec![Ty::new(if *double { DType::Nf4Dq } else { DType::Nf4 }, &w.shape)])
        }
        _ => Err(check::refuse("w and Nf4", attr, ins)),
    },
    reference: |attr, ins| vec![rounded(&ins[0], *attr == Attr::Nf4 { double: true })],
    grad: Grad::Stop,
    cost: |_, ins, _| Cost { flops: 20 * ins[0].len() as u64, terms: 4 },
    workspace: |attr, ins, caps| match attr {
        Attr::Nf4 { double: true } if caps.target == Target::Cuda => cuda::workspace(&ins[0]),
        Attr::Nf4 { double: true } => 4 * ins[0].len().div_ceil(Nf4Layout::BLOCK) as u64,
        _ => 0,
    },
    host: |call| {
        let double = call.outs[0].dtype == DType::Nf4Dq;
        let out = call.output::<u8>(0);
        match nf4::quantize(call.input(0), double) {
            Ok(q) => out[..q.len()].copy_from_slice(&q),
            Err(_) => out.fill(0xff), // every f32 among the scales is then a NaN
        }
    },
    wgsl: wgsl_quantize,
    cuda: cuda::quantize,
    samples: || {
        let sample =
            |(name, n, k, double)| Sample::new(name, Attr::Nf4 { double }, vec![SampleIn::normal(Ty::f32(&[n, k]))]);
        let table = [
            ("one element", 1, 1, false),
            ("an odd end", 3, 65, false),
            ("blocks", 33, 64, false),
            ("one block, double", 3, 7, true),
            ("an odd end, double", 17, 97, true),
            ("two nested blocks", 260, 65, true),
        ];
        table.into_iter().map(sample).collect()
    },
    cases: |s| vec![Case::new("double", Attr::Nf4 { double: true }, vec![SampleIn::f32(&[s.mlp, s.hidden])])],
    ..OpDef::COMPUTE
};

/// `nf4_dequantize` [q (Nf4|Nf4Dq)[N,K]] → F32[N,K].
pub static NF4_DEQUANTIZE: OpDef = OpDef {
    name: "nf4_dequantize",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [q]) if q.dtype.is_quantized() => Ok(vec![Ty::f32(&q.shape)]),
        _ => Err(check::refuse("a tensor in nf4 or nf4_dq", attr, ins)),
    },
    // Quantized operands arrive decoded.
    reference: |_, ins| vec![ins[0].clone()],
    grad: Grad::Stop,
    cost: |_, ins, _| Cost { flops: 4 * ins[0].len() as u64, terms: 2 },
    host: host_dequantize,
    wgsl: wgsl_dequantize,
    cuda: cuda::dequantize,
    samples: || {
        let table =
            [("one element", 1, 1), ("an odd end", 3, 65), ("blocks", 33, 64), ("nine nested blocks", 2081, 64)];
        let types = [DType::Nf4, DType::Nf4Dq];
        let sample = |(name, n, k)| {
            types.map(|dtype| {
                Sample::new(format!("{name}, {dtype}"), Attr::None, vec![SampleIn::normal(Ty::new(dtype, &[n, k]))])
            })
        };
        table.into_iter().flat_map(sample).collect()
    },
    cases: |s| {
        let q = SampleIn::normal(Ty::new(DType::Nf4Dq, &[s.mlp, s.hidden]));
        vec![Case::new("double", Attr::None, vec![q])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// A tensor in 4-bit NormalFloat.
    pub fn nf4_quantize(&mut self, w: Val, double: bool) -> Result<Val> {
        Ok(self.node(&NF4_QUANTIZE, Attr::Nf4 { double }, &[w])?[0])
    }

    /// And back.
    pub fn nf4_dequantize(&mut self, q: Val) -> Result<Val> {
        Ok(self.node(&NF4_DEQUANTIZE, Attr::None, &[q])?[0])
    }
}

/// What is left of `w` after NF4.
fn rounded(w: &Tensor, double: bool) -> Tensor {
    let nearest = |table: &[f32], x: f64| {
        let distance = |&&v: &&f32| (v as f64 - x).abs();
        table.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map_or(0.0, |&v| v as f64)
    };
    let largest = |x: &[f64]| x.iter().fold(0f64, |m, v| m.max(v.abs()));
    let mut scales: Vec<f64> = w.data.chunks(Nf4Layout::BLOCK).map(largest).collect();
    let codes =
        w.data.iter().enumerate().map(|(i, x)| nearest(&nf4::CODE, x / scales[i / Nf4Layout::BLOCK].max(1e-38)));
    let codes: Vec<f64> = codes.collect();
    if double {
        let mean = scales.iter().sum::<f64>() / scales.len().max(1) as f64;
        for group in scales.chunks_mut(Nf4Layout::NESTED_BLOCK) {
            group.iter_mut().for_each(|s| *s -= mean);
            let nested = largest(group);
            for s in group {
                // bitsandbytes looks the nearest entry up by 16 bits of the value.
                let step = ((*s / nested.max(1e-38) + 1.0) / 2.0 * 65535.0 + 0.5).floor();
                *s = nearest(nf4::dynamic_map(), -1.0 + 2.0 * step / 65535.0) * nested + mean;
            }
        }
    }
    let decoded = codes.iter().enumerate().map(|(i, c)| c * scales[i / Nf4Layout::BLOCK]);
    Tensor::new(&w.shape, decoded.collect())
}

fn host_dequantize(call: &HostCall) {
    let n = call.outs[0].len();
    let y = call.output::<f32>(0);
    let Some(q) = nf4::Nf4::new(call.input::<u8>(0), n, call.ins[0].dtype == DType::Nf4Dq) else {
        unreachable!("the planner gives an operand the bytes of its type")
    };
    const GRAIN: usize = 1 << 14;
    par::chunks(y, GRAIN, |i, y| q.dequantize(i * GRAIN..i * GRAIN + y.len(), y));
}

const WG: usize = 64;

/// A thread quantizes a block of 64; double quantization then takes the mean of their scales, and a workgroup
/// quantizes 256 of them.
fn wgsl_quantize(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let double = *l.attr == Attr::Nf4 { double: true };
    let n = l.ins[0].len();
    let blocks = n.div_ceil(Nf4Layout::BLOCK);
    let layout = Nf4Layout::new(n, double);
    let part = |r: &Range<usize>| Arg::OutPart(0, r.start as u64..r.end.next_multiple_of(4) as u64);
    let scales = || Arg::Work(0..4 * blocks as u64);
    let dispatch = |defines, entry, grid, args, params: [usize; 3], flops: usize| WgslDispatch {
        shader: "quant",
        defines,
        entry,
        constants: Vec::new(),
        grid,
        args,
        params: params.map(|p| p as u32).to_vec(),
        flops: flops as u64,
    };
    let mut all = Vec::new();
    // 512 elements are 256 bytes of codes: ranges of both start on a boundary.
    let limit = (l.caps.max_binding.min(1 << 31) as usize / 4 / 512).max(1) * 512;
    for start in (0..n).step_by(limit) {
        let range = start..(start + limit).min(n);
        let codes = part(&(range.start / 2..range.end.div_ceil(2)));
        let absmax = if double { scales() } else { part(&layout.absmax) };
        let args = vec![codes, absmax, Arg::InPart(0, bytes(&range, 1))];
        let first = range.start / Nf4Layout::BLOCK;
        let groups = range.len().div_ceil(Nf4Layout::BLOCK * WG);
        let params = [range.len(), first, 0];
        all.push(dispatch(vec!["QUANTIZE"], "quantize", grid(groups, l.caps), args, params, 20 * range.len()));
    }
    if double {
        let args = vec![part(&layout.offset), scales()];
        all.push(dispatch(vec!["MEAN"], "mean", [1, 1, 1], args, [blocks, 0, 0], blocks));
        let groups = blocks.div_ceil(Nf4Layout::NESTED_BLOCK);
        // The gap after the indices is bound up to a whole word.
        let args = vec![part(&layout.absmax), part(&layout.nested), part(&layout.offset), scales()];
        all.push(dispatch(vec!["NESTED"], "nested_blocks", grid(groups, l.caps), args, [blocks, 0, 0], 20 * blocks));
    }
    Ok(all)
}

fn wgsl_dequantize(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (ty, k) = (&l.ins[0], l.ins[0].cols());
    // The f32 output is the larger binding.
    let most = (l.caps.max_binding.min(1 << 31) as usize / (4 * k).max(1)).max(1);
    let define = weight_define(ty.dtype).unwrap_or("W_NF4");
    let dispatch = |part: WeightPart| {
        let n = part.rows.len() * k;
        let mut args = vec![Arg::OutPart(0, bytes(&part.rows, k))];
        args.extend(part.args);
        WgslDispatch {
            shader: "quant",
            defines: vec!["DEQUANTIZE", define],
            entry: "dequantize",
            constants: Vec::new(),
            grid: grid(n.div_ceil(4 * WG), l.caps),
            args,
            params: [n as u32].into_iter().chain(part.params).collect(),
            flops: 4 * n as u64,
        }
    };
    Ok(weight_parts(0, ty, l.caps.max_binding, most).into_iter().map(dispatch).collect())
}

/// A range of a weight's rows that fits into the bindings of one WGSL dispatch, as `shaders/common/weight.wgsl`
/// wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightPart {
    /// Rows of the whole weight.
    pub rows: Range<usize>,
    /// What to bind: `w`, and for NF4 `w_scales` after it.
    pub args: Vec<Arg>,
    /// The fields `w_first`, `w_nested` and `w_offset` of the shader's parameters.
    pub params: [u32; 3],
}

/// The symbol that tells `shaders/common/weight.wgsl` how a weight is stored; None: no weight type.
pub fn weight_define(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("W_F32"),
        DType::BF16 => Some("W_BF16"),
        DType::F16 => Some("W_F16"),
        DType::Nf4 => Some("W_NF4"),
        DType::Nf4Dq => Some("W_NF4DQ"),
        DType::I32 | DType::U32 => None,
    }
}

/// The same with what the device can do: where it has the type f16, the weight is bound as that, four at a time.
pub fn weight_defines(ty: &Ty, caps: &Caps) -> Option<Vec<&'static str>> {
    let half = ty.dtype == DType::F16 && caps.f16 && ty.cols().is_multiple_of(4);
    weight_define(ty.dtype).map(|define| std::iter::once(define).chain(half.then_some("F16")).collect())
}

/// Rows come in multiples of this many where a weight of `cols` columns is cut: each part then starts on a
/// 256-byte boundary of the elements (or NF4 codes), and, NF4's 512 elements being whole blocks, on a block.
pub fn row_step(dtype: DType, cols: usize) -> usize {
    let elements = match dtype {
        DType::F32 | DType::I32 | DType::U32 => 64,
        DType::BF16 | DType::F16 => 128,
        DType::Nf4 | DType::Nf4Dq => 512,
    };
    let (mut a, mut b) = (elements, cols.max(1));
    while b != 0 {
        (a, b) = (b, a % b);
    }
    elements / a
}

/// Cuts the weight `ty` (operand `input`) into ranges of at most `most` rows whose bindings stay below `max_binding`
/// bytes (and whose indices fit 32 bits). Linear layers, the loss and the embedding share this.
pub fn weight_parts(input: usize, ty: &Ty, max_binding: u64, most: usize) -> Vec<WeightPart> {
    let (rows, cols) = (ty.rows(), ty.cols());
    let limit = max_binding.min(1 << 31) / ALIGN as u64 * ALIGN as u64;
    let bytes = |n: usize| match ty.dtype {
        // Whole words: the gap up to the next part of the layout is there to be bound.
        DType::Nf4 | DType::Nf4Dq => n.div_ceil(2).next_multiple_of(4),
        d => d.bytes(n),
    };
    let step = row_step(ty.dtype, cols);
    let fits = (limit as usize / bytes(cols * step).max(1)).max(1) * step;
    // An NF4 part may have 2^32 elements in 2^31 bytes: half of that is as far as 32-bit indices are safe.
    let fits = if ty.dtype.is_quantized() { fits.min(((1 << 31) / (cols * step).max(1)).max(1) * step) } else { fits };
    let len = fits.min((most / step).max(1) * step);
    let mut parts = Vec::new();
    for start in (0..rows).step_by(len) {
        let end = (start + len).min(rows);
        let range = bytes(start * cols) as u64..bytes(end * cols) as u64;
        let (mut args, mut params) = (vec![Arg::InPart(input, range)], [0; 3]);
        if ty.dtype.is_quantized() {
            let l = Nf4Layout::new(ty.len(), ty.dtype == DType::Nf4Dq);
            args.push(Arg::InPart(input, l.absmax.start as u64..l.bytes as u64));
            let word = |byte: usize| ((byte - l.absmax.start) / 4) as u32;
            params = [(start * cols / Nf4Layout::BLOCK) as u32, word(l.nested.start), word(l.offset.start)];
        }
        parts.push(WeightPart { rows: start..end, args, params });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_rows_and_start_on_boundaries() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::Nf4, DType::Nf4Dq] {
            for (rows, cols, limit) in
                [(1, 1, 256), (700, 3, 1024), (512, 64, 4096), (1000, 96, 16 << 10), (49152, 576, 128 << 20)]
            {
                let ty = Ty::new(dtype, &[rows, cols]);
                let parts = weight_parts(0, &ty, limit, usize::MAX);
                let mut next = 0;
                for part in &parts {
                    assert_eq!(part.rows.start, next);
                    next = part.rows.end;
                    let Arg::InPart(0, range) = &part.args[0] else { panic!("{part:?}") };
                    assert_eq!(range.start % 256, 0, "{ty} {part:?}");
                    assert!(
                        part.rows.len() == row_step(dtype, cols) || range.end - range.start <= limit,
                        "{ty} {part:?}"
                    );
                    if dtype.is_quantized() {
                        assert_eq!(part.rows.start * cols % 64, 0);
                        assert_eq!(part.params[0] as usize, part.rows.start * cols / 64);
                    }
                }
                assert_eq!(next, rows);
            }
        }
        // The control: a limit below one step of rows cannot be kept, and the part says so by its length.
        let ty = Ty::f32(&[64, 3]);
        assert_eq!(weight_parts(0, &ty, 256, usize::MAX)[0].rows, 0..64);
    }
}
