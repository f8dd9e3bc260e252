//! An op that no model has: as many multiply-adds as a device can do, on what stays in registers. Benches measure with it what
//! the arithmetic of a device gives (`src/bench/ceiling.rs`); as a row it is checked like any kernel.

use std::ops::Range;

use crate::cpu::par;
use crate::cpu::simd::{self, LANES, Lane, Simd};
use crate::dtype::Ty;
use crate::error::Result;
use crate::ops::launch::{bytes, flat, grid, words};
use crate::ops::{
    Arg, Attr, Case, Cost, CudaLaunch, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Tensor, WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&MULTIPLY_ADD];

/// The factor and the summand of a round: what x was shrinks with each, so that nothing overflows.
const FACTOR: f32 = 0.75;
const SUMMAND: f32 = 0.125;

/// `multiply_add` [x F32[..]] → y, with y = x first and then, so many times as the attribute says, y ← ¾y + ⅛.
pub static MULTIPLY_ADD: OpDef = OpDef {
    name: "multiply_add",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Rounds(_), [x]) => {
            check::is("x", x, &Ty::f32(&x.shape))?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x and Rounds", attr, ins)),
    },
    reference: |attr, ins| {
        let round = |y: f64, _| y * f64::from(FACTOR) + f64::from(SUMMAND);
        let data = ins[0].data.iter().map(|&x| (0..rounds(attr)).fold(x, round)).collect();
        vec![Tensor::new(&ins[0].shape, data)]
    },
    grad: Grad::Stop,
    cost: |attr, ins, _| Cost { flops: 2 * u64::from(rounds(attr)) * ins[0].len() as u64, terms: 4 },
    host,
    wgsl,
    cuda,
    samples: || {
        [("one element", 1, 3), ("no rounds", 5, 0), ("a ragged tail", 1000, 7), ("several blocks", 5000, 2)]
            .map(|(name, n, rounds)| Sample::new(name, Attr::Rounds(rounds), vec![SampleIn::normal(Ty::f32(&[n]))]))
            .into()
    },
    cases: |s| vec![Case::new("256 rounds", Attr::Rounds(256), vec![SampleIn::f32(&[s.tokens * s.hidden])])],
    ..OpDef::COMPUTE
};

fn rounds(attr: &Attr) -> u32 {
    match attr {
        Attr::Rounds(rounds) => *rounds,
        _ => unreachable!("infer refused it"),
    }
}

/// Vectors that are taken at a time: a multiple of how many fit in the registers of every instruction set. Those overlap, which
/// hides a multiply-add's latency.
const CHAINS: usize = 24;

struct Rounds<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    rounds: u32,
}

impl simd::Kernel for Rounds<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, s: S) {
        let (factor, summand) = (s.splat(FACTOR), s.splat(SUMMAND));
        for (x, y) in self.x.chunks(CHAINS * LANES).zip(self.y.chunks_mut(CHAINS * LANES)) {
            let mut lanes = [Lane::ZERO; CHAINS];
            lanes.iter_mut().zip(x.chunks(LANES)).for_each(|(lane, x)| lane[..x.len()].copy_from_slice(x));
            for lanes in lanes.chunks_exact_mut(ROWS) {
                let mut v: [S::V; ROWS] = std::array::from_fn(|i| s.load(&lanes[i]));
                for _ in 0..self.rounds {
                    for v in &mut v {
                        *v = s.madd(*v, factor, summand);
                    }
                }
                v.into_iter().zip(lanes).for_each(|(v, lane)| s.store(v, lane));
            }
            y.chunks_mut(LANES).zip(&lanes).for_each(|(y, lane)| y.copy_from_slice(&lane[..y.len()]));
        }
    }
}

fn host(call: &HostCall) {
    let (x, rounds) = (call.input::<f32>(0), rounds(call.attr));
    par::chunks(call.output::<f32>(0), 16 * CHAINS * LANES, |i, y| {
        let x = &x[i * 16 * CHAINS * LANES..][..y.len()];
        simd::dispatch(Rounds { x, y, rounds });
    });
}

/// Elements of an invocation or a thread, whose rounds overlap.
const EACH: usize = 8;

fn wgsl(l: &Lower) -> Result<Vec<WgslDispatch>> {
    const WG: usize = 64;
    let dispatch = |range: Range<usize>| WgslDispatch {
        shader: "probe",
        defines: Vec::new(),
        entry: MULTIPLY_ADD.name,
        constants: Vec::new(),
        grid: grid(range.len().div_ceil(WG * EACH), l.caps),
        args: vec![Arg::OutPart(0, bytes(&range, 1)), Arg::InPart(0, bytes(&range, 1))],
        params: vec![range.len() as u32, rounds(l.attr)],
        flops: 2 * u64::from(rounds(l.attr)) * range.len() as u64,
    };
    Ok(flat(l.outs[0].len(), l.caps).into_iter().map(dispatch).collect())
}

fn cuda(l: &Lower) -> Result<Vec<CudaLaunch>> {
    const BLOCK: usize = 256;
    let n = l.outs[0].len();
    Ok(vec![CudaLaunch {
        file: "probe",
        defines: Vec::new(),
        entry: MULTIPLY_ADD.name,
        grid: grid(n.div_ceil(BLOCK * EACH), l.caps),
        block: BLOCK as u32,
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0)],
        params: words(n).into_iter().chain([rounds(l.attr)]).collect(),
        maps: Vec::new(),
        flops: 2 * u64::from(rounds(l.attr)) * n as u64,
    }])
}
