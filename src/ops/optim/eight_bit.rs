//! AdamW and Lion with their state in 8 bits: bitsandbytes' `AdamW8bit` and `Lion8bit`, block by block.

pub use super::blocks::BLOCK;
use super::blocks::{decode, encode, host, infer};
use super::plain::{lion_f32, lion_f64};
use super::{NORMS, case, clip_f64, copies};
use crate::dtype::{ALIGN, Ty};
use crate::ops::launch::{bytes, grid};
use crate::ops::{Arg, Attr, Cost, CudaLaunch, Grad, Lower, OpDef, Sample, SampleIn, Sizes, WgslDispatch, check};
use crate::quant::dynamic::{signed, unsigned};

/// `adamw_8bit` [p, g F32[N], m U32[N/4], m_absmax F32[N/256], v, v_absmax likewise, sumsq F32[1], hyper F32[8]]
/// → p′, m′, m_absmax′, v′, v_absmax′. N is a whole number of blocks of 256.
///
/// The state is decoded (m by the signed map, v by the unsigned one), then [`super::ADAMW`]'s equations hold, hyper
/// included; the parameters move by the new moments as they are, and these are encoded again: each block's absmax is
/// its largest |x|, each code that of the map's value nearest to x / absmax. That is what bitsandbytes 0.50 computes on
/// the CPU, weight decay first; its CUDA kernels decay last and never let a nonzero m become 0.
pub static ADAMW_8BIT: OpDef = OpDef {
    name: "adamw_8bit",
    infer: |attr, ins| match attr {
        Attr::None => infer(ins, 2),
        _ => Err(check::refuse("p, g, m, m_absmax, v, v_absmax, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, m, ma, v, va, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let [lr, rate1, rate2, eps, decay, bc1, bc2, largest] = std::array::from_fn(|i| hyper.data[i]);
        let Some(clip) = clip_f64(sumsq, largest) else {
            return [p, m, ma, v, va].map(Clone::clone).to_vec();
        };
        let (mut p, mut m, mut v) = (p.clone(), decode(m, ma, signed()), decode(v, va, unsigned()));
        for (((p, g), m), v) in p.data.iter_mut().zip(&g.data).zip(&mut m).zip(&mut v) {
            let g = clip * g;
            *m += rate1 * (g - *m);
            *v += rate2 * (g * g - *v);
            *p = *p * (1.0 - lr * decay) - lr / bc1 * *m / (v.sqrt() / bc2.sqrt() + eps);
        }
        let ([m, ma], [v, va]) = (encode(&m, signed()), encode(&v, unsigned()));
        vec![p, m, ma, v, va]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0), (2, 1), (3, 2), (4, 3), (5, 4)],
    cost: |_, ins, _| Cost { flops: 80 * ins[0].len() as u64, terms: 8 },
    host: |call| {
        let h = call.input::<f32>(7);
        let [lr, rate1, rate2, eps, decay, bc1, bc2] = std::array::from_fn(|i| h[i]);
        let (keep, step, root) = (1.0 - lr * decay, lr / bc1, bc2.sqrt());
        host(call, [signed(), unsigned()], |p, g, [m, v]| {
            let m = m + rate1 * (g - m);
            let v = v + rate2 * (g * g - v);
            (p * keep - step * (m / (v.sqrt() / root + eps)), [m, v])
        });
    },
    wgsl: |l| Ok(wgsl(l, &ADAMW_8BIT, "ADAMW")),
    cuda: |l| Ok(cuda(l, "adamw_8bit")),
    samples: || {
        let hyper = |decay| [1e-3, 0.1, 0.001, 1e-8, decay, 0.271, 0.002997];
        samples(2, hyper(0.1), hyper(0.0))
    },
    cases: |s| {
        let hyper = [1e-3, 0.1, 0.001, 1e-8, 0.1, 0.5, 0.05];
        case("parameters", operands(s, 2), hyper, &[(0, 0), (2, 1), (3, 2), (4, 3), (5, 4)])
    },
    ..OpDef::COMPUTE
};

/// `lion_8bit` [p, g F32[N], m U32[N/4], m_absmax F32[N/256], sumsq F32[1], hyper F32[8]] → p′, m′, m_absmax′:
/// [`super::LION`] with m kept as in [`ADAMW_8BIT`].
pub static LION_8BIT: OpDef = OpDef {
    name: "lion_8bit",
    infer: |attr, ins| match attr {
        Attr::None => infer(ins, 1),
        _ => Err(check::refuse("p, g, m, m_absmax, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, m, ma, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let Some(clip) = clip_f64(sumsq, hyper.data[7]) else { return [p, m, ma].map(Clone::clone).to_vec() };
        let (mut p, mut m) = (p.clone(), decode(m, ma, signed()));
        for ((p, g), m) in p.data.iter_mut().zip(&g.data).zip(&mut m) {
            (*p, *m) = lion_f64(*p, clip * g, *m, &hyper.data);
        }
        let [m, ma] = encode(&m, signed());
        vec![p, m, ma]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0), (2, 1), (3, 2)],
    cost: |_, ins, _| Cost { flops: 45 * ins[0].len() as u64, terms: 6 },
    host: |call| {
        let h = call.input::<f32>(5);
        let h = [h[0], h[1], h[2], h[4]];
        host(call, [signed()], |p, g, [m]| {
            let [p, m] = lion_f32(p, g, m, h);
            (p, [m])
        });
    },
    wgsl: |l| Ok(wgsl(l, &LION_8BIT, "LION")),
    cuda: |l| Ok(cuda(l, "lion_8bit")),
    samples: || {
        let hyper = |decay| [1e-3, 0.1, 0.01, 0.0, decay, 0.0, 0.0];
        samples(1, hyper(0.1), hyper(0.0))
    },
    cases: |s| case("parameters", operands(s, 1), [1e-3, 0.1, 0.01, 0.0, 0.1, 0.0, 0.0], &[(0, 0), (2, 1), (3, 2)]),
    ..OpDef::COMPUTE
};

/// A workgroup a block, four elements (a word of codes) an invocation; in place, after copies where it is not.
fn wgsl(l: &Lower, op: &OpDef, define: &'static str) -> Vec<WgslDispatch> {
    // Ranges of which codes and absmax too begin on a boundary.
    const STEP: usize = ALIGN / 4 * BLOCK;
    let (n, ins) = (l.outs[0].len(), l.ins.len());
    let most = (l.caps.max_binding.min(1 << 31) as usize / 4 / STEP).max(1) * STEP;
    let mut all = copies(l, op.in_place);
    for start in (0..n).step_by(most) {
        let r = start..(start + most).min(n);
        let words = r.start / 4..r.end / 4;
        let blocks = r.start / BLOCK..r.end / BLOCK;
        let part = |out: usize| {
            let range = match out {
                0 => &r,
                o if o % 2 == 1 => &words,
                _ => &blocks,
            };
            Arg::OutPart(out, bytes(range, 1))
        };
        let mut args: Vec<Arg> = (0..l.outs.len()).map(part).collect();
        args.extend([Arg::InPart(1, bytes(&r, 1)), Arg::In(ins - 2), Arg::In(ins - 1)]);
        all.push(WgslDispatch {
            shader: "optim_8bit",
            defines: vec![define],
            entry: "update",
            constants: Vec::new(),
            grid: grid(blocks.len(), l.caps),
            args,
            params: vec![blocks.len() as u32],
            flops: 80 * r.len() as u64,
        });
    }
    all
}

/// A warp a block, eight elements a lane.
fn cuda(l: &Lower, entry: &'static str) -> Vec<CudaLaunch> {
    const WARPS: usize = 8;
    let blocks = l.outs[0].len() / BLOCK;
    let mut args: Vec<Arg> = (0..l.outs.len()).map(Arg::Out).collect();
    args.extend((0..l.ins.len()).map(Arg::In));
    vec![CudaLaunch {
        file: "optim_8bit",
        defines: Vec::new(),
        entry,
        grid: grid(blocks.div_ceil(WARPS), l.caps),
        block: 32 * WARPS as u32,
        shared: 0,
        args,
        params: vec![blocks as u32],
        maps: Vec::new(),
        flops: 80 * l.outs[0].len() as u64,
    }]
}

/// Samples with one state (signed) or two (the second unsigned): random codes, blocks of zeros among them.
fn samples(states: usize, decaying: [f64; 7], plain: [f64; 7]) -> Vec<Sample> {
    let mut all = Vec::new();
    let sizes = [1, 3, 65, 5, 1];
    for (i, ((name, sumsq, largest), blocks)) in NORMS.into_iter().zip(sizes).enumerate() {
        let n = blocks * BLOCK;
        let mut ins = vec![SampleIn::normal(Ty::f32(&[n])); 2];
        for state in 0..states {
            // Codes like those of a run: all of them occur, none more often than others.
            let word = |w: usize| (w as u32 ^ (state as u32) << 20).wrapping_mul(2_654_435_761).rotate_left(7) as f64;
            ins.push(SampleIn::values(Ty::u32(&[n / 4]), (0..n / 4).map(word).collect()));
            let absmax = |b: usize| if b % 4 == 3 { 0.0 } else { 0.25 + b as f64 / 16.0 };
            ins.push(SampleIn::values(Ty::f32(&[blocks]), (0..blocks).map(absmax).collect()));
        }
        let hyper = if i % 2 == 0 { decaying } else { plain };
        ins.push(SampleIn::values(Ty::f32(&[1]), vec![sumsq]));
        ins.push(SampleIn::values(Ty::f32(&[8]), [&hyper[..], &[largest]].concat()));
        all.push(Sample::new(name, Attr::None, ins));
    }
    let zero = |shape: &[usize]| SampleIn::values(Ty::f32(shape), vec![0.0; shape[0]]);
    let mut nothing: Vec<SampleIn> = vec![zero(&[BLOCK]), zero(&[BLOCK])];
    for state in 0..states {
        let code = if state == 0 { 0x7f7f_7f7fu32 } else { 0 };
        nothing.extend([SampleIn::values(Ty::u32(&[BLOCK / 4]), vec![code as f64; BLOCK / 4]), zero(&[1])]);
    }
    nothing.push(zero(&[1]));
    nothing.push(SampleIn::values(Ty::f32(&[8]), [&plain[..], &[1.0]].concat()));
    all.push(Sample::new("zeros, as in the gaps between tensors", Attr::None, nothing));
    all
}

/// Parameters, gradients and `states` of a bench, in whole blocks.
fn operands(s: &Sizes, states: usize) -> Vec<SampleIn> {
    let n = s.params.next_multiple_of(BLOCK);
    let mut ins = vec![SampleIn::f32(&[n]); 2];
    for _ in 0..states {
        ins.push(SampleIn::constant(Ty::u32(&[n / 4]), 0x9080_4020u32 as f64));
        ins.push(SampleIn::constant(Ty::f32(&[n / BLOCK]), 1.0));
    }
    ins
}
