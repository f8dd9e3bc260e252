//! The same numbers in another float type: how a graph whose activations take 16 bits begins.

use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::cpu::par;
use crate::device::Caps;
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::{
    Arg, Attr, Case, Cost, CudaLaunch, Grad, HostCall, Lower, OpDef, Sample, SampleIn, WgslDispatch, check, launch,
};

/// `cast` [x (F32|BF16|F16)[R,C]] → the same in the attribute's type, to the nearest, ties to even; too large for f16 is
/// infinite.
///
/// Its definition is the identity: rounding belongs to how the output is stored. So is its gradient, stored as x is.
pub static CAST: OpDef = OpDef {
    name: "cast",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Cast(to), [x]) => {
            check::matrix("x", x)?;
            if !x.dtype.is_float() || !to.is_float() || x.dtype == *to {
                return Err(format!("x is {x} and is cast to {to}, expected two different types of f32, bf16 and f16"));
            }
            Ok(vec![Ty::new(*to, &x.shape)])
        }
        _ => Err(check::refuse("x and Cast", attr, ins)),
    },
    reference: |_, ins| vec![ins[0].clone()],
    grad: Grad::Rule(|g, node, grads, _| {
        let to = g.ty(node.ins[0]).dtype;
        Ok(vec![grads[0].map(|dy| g.cast(dy, to)).transpose()?])
    }),
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host,
    wgsl,
    cuda,
    samples,
    cases: |s| vec![Case::new("f32 to bf16", Attr::Cast(DType::BF16), vec![SampleIn::f32(&[s.tokens, s.hidden])])],
    ..OpDef::COMPUTE
};

impl Graph {
    /// `x` in another float type; itself if it is of that type.
    pub fn cast(&mut self, x: Val, dtype: DType) -> Result<Val> {
        if self.ty(x).dtype == dtype {
            return Ok(x);
        }
        Ok(self.node(&CAST, Attr::Cast(dtype), &[x])?[0])
    }
}

fn host(call: &HostCall) {
    fn into<T: Pod + Send>(call: &HostCall, from_f32: impl Fn(f32) -> T + Sync) {
        match call.ins[0].dtype {
            DType::BF16 => map(call, |x: bf16| from_f32(x.to_f32())),
            DType::F16 => map(call, |x: f16| from_f32(x.to_f32())),
            _ => map(call, from_f32),
        }
    }
    fn map<S: Pod + Sync, T: Pod + Send>(call: &HostCall, f: impl Fn(S) -> T + Sync) {
        const GRAIN: usize = 1 << 14;
        let n = call.outs[0].len();
        // Both may hold one more element, which fills a word.
        let (x, y) = (&call.input::<S>(0)[..n], &mut call.output::<T>(0)[..n]);
        par::chunks(y, GRAIN, |i, y| y.iter_mut().zip(&x[i * GRAIN..]).for_each(|(y, &x)| *y = f(x)));
    }
    match call.outs[0].dtype {
        DType::BF16 => into(call, bf16::from_f32),
        DType::F16 => into(call, f16::from_f32),
        _ => into(call, |x| x),
    }
}

fn wgsl(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (x, y) = (|range| Arg::InPart(0, range), |range| Arg::OutPart(0, range));
    Ok(conversions([l.ins[0].dtype, l.outs[0].dtype], l.outs[0].len(), &y, &x, l.caps))
}

/// WGSL dispatches that write `n` elements of x to y in another float type, each by what binds a range of its bytes.
pub fn conversions(
    [from, to]: [DType; 2],
    n: usize,
    y: &dyn Fn(Range<u64>) -> Arg,
    x: &dyn Fn(Range<u64>) -> Arg,
    caps: &Caps,
) -> Vec<WgslDispatch> {
    const WG: usize = 64;
    let reads = match from {
        DType::BF16 => "FROM_BF16",
        DType::F16 => "FROM_F16",
        _ => "FROM_F32",
    };
    let writes = match to {
        DType::BF16 => "TO_BF16",
        DType::F16 => "TO_F16",
        _ => "TO_F32",
    };
    // Ranges of elements that fit as f32 start on a boundary, of both operands, if they are 128 elements long.
    let limit = (caps.max_binding.min(1 << 31) as usize / 4 / 128).max(1) * 128;
    let dispatch = |start: usize| {
        let len = limit.min(n - start);
        let part = |dtype: DType| dtype.bytes(start) as u64..(dtype.bytes(start) + dtype.bytes(len)) as u64;
        WgslDispatch {
            shader: "elementwise_cast",
            defines: vec![reads, writes],
            entry: "to_other",
            constants: Vec::new(),
            // An invocation takes two elements: a word of 16-bit ones.
            grid: launch::grid(len.div_ceil(2 * WG), caps),
            args: vec![y(part(to)), x(part(from))],
            params: vec![len as u32],
            flops: len as u64,
        }
    };
    (0..n).step_by(limit).map(dispatch).collect()
}

fn cuda(l: &Lower) -> Result<Vec<CudaLaunch>> {
    const BLOCK: usize = 256;
    let (x, y) = (l.ins[0].dtype, l.outs[0].dtype);
    let entry = match (x, y) {
        (DType::BF16, DType::F16) => "cast_bf16_f16",
        (DType::BF16, _) => "cast_bf16_f32",
        (DType::F16, DType::BF16) => "cast_f16_bf16",
        (DType::F16, _) => "cast_f16_f32",
        (_, DType::BF16) => "cast_f32_bf16",
        _ => "cast_f32_f16",
    };
    let n = l.outs[0].len();
    Ok(vec![CudaLaunch {
        file: "elementwise_cast",
        defines: Vec::new(),
        entry,
        // Eight elements a thread, 16 bytes of the narrower type.
        grid: launch::grid(n.div_ceil(8 * BLOCK), l.caps),
        block: BLOCK as u32,
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0)],
        params: launch::words(n).to_vec(),
        maps: Vec::new(),
        flops: n as u64,
    }])
}

fn samples() -> Vec<Sample> {
    const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
    let mut all = Vec::new();
    for from in FLOATS {
        for to in FLOATS.into_iter().filter(|&to| to != from) {
            for (name, rows, cols) in
                [("one element", 1, 1), ("odd", 3, 7), ("beyond one block of threads", 9, 257), ("long", 140, 129)]
            {
                let x = SampleIn::normal(Ty::new(from, &[rows, cols]));
                all.push(Sample::new(format!("{name}, {from} to {to}"), Attr::Cast(to), vec![x]));
            }
        }
    }
    all
}
