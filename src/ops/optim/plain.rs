//! Optimizers with one f32 of state a parameter, or none: SGD and Lion.

use super::{NORMS, case, clip, clip_f64, copies, each};
use crate::dtype::Ty;
use crate::ops::launch::{bytes, grid, words};
use crate::ops::{Arg, Attr, Cost, CudaLaunch, Grad, Lower, OpDef, Sample, SampleIn, Sizes, WgslDispatch, check};

/// `sgd` [p, g F32[N], sumsq F32[1], hyper F32[8]] → p′: `torch.optim.SGD` without momentum.
///
/// hyper = [lr, –, –, –, weight decay, –, –, largest norm (≤ 0: no clipping)]:
/// g ← g·min(1, largest / (√sumsq + 1e-6)) + decay·p; p ← p − lr·g. If `sumsq` is not finite, nothing changes.
pub static SGD: OpDef = OpDef {
    name: "sgd",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [p, g, rest @ ..]) => infer(&[p, g], rest, 1),
        _ => Err(check::refuse("p, g, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let [lr, _, _, _, decay, _, _, largest] = std::array::from_fn(|i| hyper.data[i]);
        let mut p = p.clone();
        if let Some(clip) = clip_f64(sumsq, largest) {
            p.data.iter_mut().zip(&g.data).for_each(|(p, g)| *p -= lr * (clip * g + decay * *p));
        }
        vec![p]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0)],
    cost: |_, ins, _| Cost { flops: 4 * ins[0].len() as u64, terms: 4 },
    host: |call| {
        let h = call.input::<f32>(3);
        let [lr, decay] = [h[0], h[4]];
        match clip(call.input::<f32>(2)[0], h[7]) {
            None => call.map(0, [0], |[p]| p),
            Some(clip) => call.map(0, [0, 1], |[p, g]| p - lr * (clip * g + decay * p)),
        }
    },
    wgsl: |l| Ok(wgsl(l, &SGD, vec!["SGD"], "sgd")),
    cuda: |l| Ok(cuda(l, "sgd", &[Arg::Out(0)])),
    samples: || samples(0, &[("", [0.01, 0.0, 0.0, 0.0, 0.1])]),
    cases: |s| case("parameters", flats(s, 2), [0.01, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0], &[(0, 0)]),
    ..OpDef::COMPUTE
};

/// `sgd_momentum` [p, g, b F32[N], sumsq F32[1], hyper F32[8]] → p′, b′: `torch.optim.SGD` with momentum
/// (Sutskever et al. 2013).
///
/// hyper = [lr, momentum, gain, nesterov (1 or 0), weight decay, –, –, largest norm (≤ 0: no clipping)]; the gain is
/// 1 in the first step, then 1 − dampening:
/// g ← g·min(1, largest / (√sumsq + 1e-6)) + decay·p; b ← momentum·b + gain·g;
/// p ← p − lr·(nesterov: g + momentum·b, else b). If `sumsq` is not finite, nothing changes.
pub static SGD_MOMENTUM: OpDef = OpDef {
    name: "sgd_momentum",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [p, g, b, rest @ ..]) => infer(&[p, g, b], rest, 2),
        _ => Err(check::refuse("p, g, b, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, b, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let [lr, momentum, gain, nesterov, decay, _, _, largest] = std::array::from_fn(|i| hyper.data[i]);
        let (mut p, mut b) = (p.clone(), b.clone());
        let Some(clip) = clip_f64(sumsq, largest) else { return vec![p, b] };
        for i in 0..p.data.len() {
            let g = clip * g.data[i] + decay * p.data[i];
            b.data[i] = momentum * b.data[i] + gain * g;
            p.data[i] -= lr * if nesterov != 0.0 { g + momentum * b.data[i] } else { b.data[i] };
        }
        vec![p, b]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0), (2, 1)],
    cost: |_, ins, _| Cost { flops: 9 * ins[0].len() as u64, terms: 6 },
    host: |call| {
        let h = call.input::<f32>(4);
        let [lr, momentum, gain, nesterov, decay] = std::array::from_fn(|i| h[i]);
        let Some(clip) = clip(call.input::<f32>(3)[0], h[7]) else { return call.map_many([0, 1], [0, 2], |pb| pb) };
        // What g and b have in the step.
        let (of_g, of_b) = if nesterov != 0.0 { (1.0, momentum) } else { (0.0, 1.0) };
        call.map_many([0, 1], [0, 1, 2], |[p, g, b]| {
            let g = clip * g + decay * p;
            let b = momentum * b + gain * g;
            [p - lr * (of_g * g + of_b * b), b]
        });
    },
    wgsl: |l| Ok(wgsl(l, &SGD_MOMENTUM, vec!["SGD", "MOMENTUM"], "sgd")),
    cuda: |l| Ok(cuda(l, "sgd_momentum", &[Arg::Out(0), Arg::Out(1)])),
    samples: || {
        let kinds = [("", [0.01, 0.9, 0.5, 0.0, 0.1]), ("nesterov, ", [0.01, 0.9, 1.0, 1.0, 0.0])];
        samples(1, &kinds)
    },
    cases: |s| case("parameters", flats(s, 3), [0.01, 0.9, 0.5, 1.0, 0.1, 0.0, 0.0], &[(0, 0), (2, 1)]),
    ..OpDef::COMPUTE
};

/// `lion` [p, g, m F32[N], sumsq F32[1], hyper F32[8]] → p′, m′ (Chen et al. 2023, arXiv:2302.06675), in the order of
/// the authors' and bitsandbytes' code.
///
/// hyper = [lr, 1−β₁, 1−β₂, –, weight decay, –, –, largest norm (≤ 0: no clipping)]:
/// g ← g·min(1, largest / (√sumsq + 1e-6)); p ← p·(1 − lr·decay) − lr·sign(m + (1−β₁)(g − m)), sign 0 being 0;
/// m ← m + (1−β₂)(g − m). If `sumsq` is not finite, nothing changes.
pub static LION: OpDef = OpDef {
    name: "lion",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [p, g, m, rest @ ..]) => infer(&[p, g, m], rest, 2),
        _ => Err(check::refuse("p, g, m, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, m, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let (mut p, mut m) = (p.clone(), m.clone());
        let Some(clip) = clip_f64(sumsq, hyper.data[7]) else { return vec![p, m] };
        for i in 0..p.data.len() {
            (p.data[i], m.data[i]) = lion_f64(p.data[i], clip * g.data[i], m.data[i], &hyper.data);
        }
        vec![p, m]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0), (2, 1)],
    cost: |_, ins, _| Cost { flops: 10 * ins[0].len() as u64, terms: 6 },
    host: |call| {
        let h = call.input::<f32>(4);
        let Some(clip) = clip(call.input::<f32>(3)[0], h[7]) else { return call.map_many([0, 1], [0, 2], |pm| pm) };
        let h = [h[0], h[1], h[2], h[4]];
        call.map_many([0, 1], [0, 1, 2], |[p, g, m]| lion_f32(p, clip * g, m, h));
    },
    wgsl: |l| Ok(wgsl(l, &LION, vec!["LION"], "lion")),
    cuda: |l| Ok(cuda(l, "lion", &[Arg::Out(0), Arg::Out(1)])),
    samples: || samples(1, &[("", [1e-3, 0.1, 0.01, 0.0, 0.1])]),
    cases: |s| case("parameters", flats(s, 3), [1e-3, 0.1, 0.01, 0.0, 0.1, 0.0, 0.0], &[(0, 0), (2, 1)]),
    ..OpDef::COMPUTE
};

/// One element's p′ and m′ by Lion; hyper as in [`LION`].
pub(super) fn lion_f64(p: f64, g: f64, m: f64, hyper: &[f64]) -> (f64, f64) {
    let (lr, rate1, rate2, decay) = (hyper[0], hyper[1], hyper[2], hyper[4]);
    let toward = m + rate1 * (g - m);
    let sign = if toward == 0.0 { 0.0 } else { toward.signum() };
    (p * (1.0 - lr * decay) - lr * sign, m + rate2 * (g - m))
}

/// The same on the CPU; h = lr, 1−β₁, 1−β₂, decay.
#[inline(always)]
pub(super) fn lion_f32(p: f32, g: f32, m: f32, [lr, rate1, rate2, decay]: [f32; 4]) -> [f32; 2] {
    let toward = m + rate1 * (g - m);
    let sign = (toward > 0.0) as i32 - (toward < 0.0) as i32;
    [p * (1.0 - lr * decay) - lr * sign as f32, m + rate2 * (g - m)]
}

/// Checks `flats` (parameters first) and what is after them, sumsq and hyper; `outs` of their type come out.
fn infer(flats: &[&Ty], rest: &[Ty], outs: usize) -> Result<Vec<Ty>, String> {
    let p = flats[0];
    check::float("p", p)?;
    for (name, flat) in ["p", "g", "the state"].iter().zip(flats) {
        check::is(name, flat, p)?;
    }
    super::scalars(rest)?;
    Ok(vec![p.clone(); outs])
}

/// Dispatches of `entry`: outputs, then the gradient, sumsq and hyper, which come after the state.
fn wgsl(l: &Lower, op: &OpDef, defines: Vec<&'static str>, entry: &'static str) -> Vec<WgslDispatch> {
    let mut all = copies(l, op.in_place);
    let n = l.ins.len();
    all.extend(each(l.outs[0].len(), l, ("optim_plain", defines, entry), |r| {
        let mut args: Vec<Arg> = (0..l.outs.len()).map(|o| Arg::OutPart(o, bytes(r, 1))).collect();
        args.extend([Arg::InPart(1, bytes(r, 1)), Arg::In(n - 2), Arg::In(n - 1)]);
        args
    }));
    all
}

/// The launch of `entry`: four elements a thread.
fn cuda(l: &Lower, entry: &'static str, outs: &[Arg]) -> Vec<CudaLaunch> {
    const BLOCK: usize = 256;
    let n = l.outs[0].len();
    let mut args = outs.to_vec();
    args.extend((0..l.ins.len()).map(Arg::In));
    vec![CudaLaunch {
        file: "optim_plain",
        defines: Vec::new(),
        entry,
        grid: grid(n.div_ceil(4 * BLOCK), l.caps),
        block: BLOCK as u32,
        shared: 0,
        args,
        params: words(n).to_vec(),
        maps: Vec::new(),
        flops: 10 * n as u64,
    }]
}

/// Samples with `state` flat states: each of the first five `hyper` with each of [`NORMS`].
fn samples(state: usize, hyper: &[(&str, [f64; 5])]) -> Vec<Sample> {
    let sizes = [1, 33, 16411, 65, 7];
    let mut all = Vec::new();
    for (kind, hyper) in hyper {
        for ((name, sumsq, largest), n) in NORMS.into_iter().zip(sizes) {
            let mut ins = vec![SampleIn::normal(Ty::f32(&[n])); 2 + state];
            ins.push(SampleIn::values(Ty::f32(&[1]), vec![sumsq]));
            ins.push(SampleIn::values(Ty::f32(&[8]), [&hyper[..], &[0.0, 0.0, largest]].concat()));
            all.push(Sample::new(format!("{kind}{name}"), Attr::None, ins));
        }
    }
    all
}

/// Parameters, gradients and states of a bench.
fn flats(s: &Sizes, number: usize) -> Vec<SampleIn> {
    vec![SampleIn::f32(&[s.params]); number]
}
