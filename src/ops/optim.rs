//! The optimizers: the gradient's norm, update rules with clipping (AdamW here, a file each for the others), and
//! clearing what was summed up.

mod adafactor;
mod blocks;
mod eight_bit;
mod plain;

mod cuda;

use crate::cpu::par;
use crate::device::Target;
use crate::dtype::Ty;
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::launch::{bytes, flat, grid};
use crate::ops::{
    Arg, Attr, Case, Cost, Grad, HostCall, Lower, OpDef, OpRole, Sample, SampleIn, Tensor, WgslDispatch, check,
};

pub use adafactor::{ADAFACTOR, table};
pub use eight_bit::{ADAMW_8BIT, BLOCK, LION_8BIT};
pub use plain::{LION, SGD, SGD_MOMENTUM};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] =
    &[&SUM_SQUARES, &ADAMW, &ZERO, &SGD, &SGD_MOMENTUM, &LION, &ADAMW_8BIT, &LION_8BIT, &ADAFACTOR];

/// `sum_squares` [x F32[N], acc? F32[1]] → F32[1] = Σ x² (+ acc).
pub static SUM_SQUARES: OpDef = OpDef {
    name: "sum_squares",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Acc(with), [x, acc @ ..]) => {
            check::float("x", x)?;
            check::acc(*with, acc, &Ty::f32(&[1]))?;
            Ok(vec![Ty::f32(&[1])])
        }
        _ => Err(check::refuse("x and Acc", attr, ins)),
    },
    reference: |_, ins| {
        let sum: f64 = ins[0].data.iter().map(|x| x * x).sum();
        vec![Tensor::scalar(sum + ins.get(1).map_or(0.0, |acc| acc.data[0]))]
    },
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(1, 0)],
    // What is summed in a row: the elements of a lane, the lanes, the pieces.
    cost: |_, ins, _| Cost {
        flops: 2 * ins[0].len() as u64,
        terms: ins[0].len().min(PIECE) + ins[0].len() / PIECE + 1,
    },
    workspace: |_, ins, caps| match caps.target {
        Target::Wgsl | Target::Cuda => 4 * ins[0].len().div_ceil(PIECE) as u64,
        _ => 8 * ins[0].len().div_ceil(PIECE) as u64,
    },
    host: host_sum_squares,
    wgsl: wgsl_sum_squares,
    cuda: cuda::sum_squares,
    samples: || {
        let mut all = Vec::new();
        for (name, n) in [("one element", 1), ("odd", 33), ("a piece and one", PIECE + 1), ("pieces", 3 * PIECE + 77)] {
            all.push(Sample::new(name, Attr::Acc(false), vec![SampleIn::normal(Ty::f32(&[n]))]));
            let acc = SampleIn::uniform(Ty::f32(&[1]), 0.5, 2.0);
            all.push(Sample::new(
                format!("{name}, accumulating"),
                Attr::Acc(true),
                vec![SampleIn::normal(Ty::f32(&[n])), acc],
            ));
        }
        all
    },
    cases: |s| vec![Case::new("parameters", Attr::Acc(false), vec![SampleIn::f32(&[s.params])])],
    ..OpDef::COMPUTE
};

/// `adamw` [p, g, m, v F32[N], sumsq F32[1], hyper F32[8]] → p′, m′, v′ (Loshchilov & Hutter 2019), in the order of
/// PyTorch's `torch.optim.AdamW` and `clip_grad_norm_`.
///
/// hyper = [lr, 1−β₁, 1−β₂, eps, weight decay, 1−β₁ᵗ, 1−β₂ᵗ, largest norm (≤ 0: no clipping)]:
/// g ← g·min(1, largest / (√sumsq + 1e-6)); p ← p·(1 − lr·decay); m ← m + (1−β₁)(g − m); v ← v + (1−β₂)(g² − v);
/// p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps). If `sumsq` is not finite, nothing changes.
/// The rates come as 1−β because f32 holds 0.001 well, and 1 − 0.999 badly.
pub static ADAMW: OpDef = OpDef {
    name: "adamw",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [p, g, m, v, sumsq, hyper]) => {
            check::float("p", p)?;
            check::is("g", g, p)?;
            check::is("m", m, p)?;
            check::is("v", v, p)?;
            check::is("sumsq", sumsq, &Ty::f32(&[1]))?;
            check::is("hyper", hyper, &Ty::f32(&[8]))?;
            Ok(vec![p.clone(), p.clone(), p.clone()])
        }
        _ => Err(check::refuse("p, g, m, v, sumsq, hyper", attr, ins)),
    },
    reference: |_, ins| {
        let [p, g, m, v, sumsq, hyper] = ins else { unreachable!("infer refused it") };
        let [lr, rate1, rate2, eps, decay, bc1, bc2, largest] = std::array::from_fn(|i| hyper.data[i]);
        let (mut p, mut m, mut v) = (p.clone(), m.clone(), v.clone());
        let Some(clip) = clip_f64(sumsq, largest) else { return vec![p, m, v] };
        for i in 0..p.data.len() {
            let g = clip * g.data[i];
            m.data[i] += rate1 * (g - m.data[i]);
            v.data[i] += rate2 * (g * g - v.data[i]);
            let step = lr / bc1 * m.data[i] / (v.data[i].sqrt() / bc2.sqrt() + eps);
            p.data[i] = p.data[i] * (1.0 - lr * decay) - step;
        }
        vec![p, m, v]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0), (2, 1), (3, 2)],
    cost: |_, ins, _| Cost { flops: 16 * ins[0].len() as u64, terms: 8 },
    host: host_adamw,
    wgsl: wgsl_adamw,
    cuda: cuda::adamw,
    samples: || {
        let hyper = |decay: f64, largest: f64| vec![1e-3, 0.1, 0.001, 1e-8, decay, 0.271, 0.002997, largest];
        let table = [
            ("one element", 1, 4.0, hyper(0.1, 1.0)),
            ("no clipping", 33, 9.0, hyper(0.0, 0.0)),
            ("below the largest norm", 65, 0.25, hyper(0.01, 1.0)),
            ("clipped", 16411, 1e4, hyper(0.01, 0.5)),
            ("an infinite gradient is skipped", 17, f64::INFINITY, hyper(0.1, 1.0)),
            ("a gradient that is no number is skipped", 17, f64::NAN, hyper(0.1, 1.0)),
        ];
        let sample = |(name, n, sumsq, hyper)| {
            let ty = Ty::f32(&[n]);
            let mut ins = vec![SampleIn::normal(ty.clone()); 3];
            ins.push(SampleIn::uniform(ty, 0.1, 1.0));
            ins.push(SampleIn::values(Ty::f32(&[1]), vec![sumsq]));
            ins.push(SampleIn::values(Ty::f32(&[8]), hyper));
            Sample::new(name, Attr::None, ins)
        };
        table.into_iter().map(sample).collect()
    },
    cases: |s| {
        let flat = Ty::f32(&[s.params]);
        let mut ins = vec![SampleIn::normal(flat.clone()); 3];
        ins.push(SampleIn::uniform(flat, 0.1, 1.0));
        case("parameters", ins, [1e-3, 0.1, 0.001, 1e-8, 0.1, 0.5, 0.05], &[(0, 0), (2, 1), (3, 2)])
    },
    ..OpDef::COMPUTE
};

/// `zero` [x F32[..]] → zeros, over x.
pub static ZERO: OpDef = OpDef {
    name: "zero",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [x]) => {
            check::float("x", x)?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x", attr, ins)),
    },
    reference: |_, ins| vec![Tensor::zeros(&ins[0].shape)],
    role: OpRole::Clear,
    grad: Grad::Stop,
    in_place: &[(0, 0)],
    cost: |_, ins, _| Cost { flops: ins[0].len() as u64, terms: 0 },
    host: |call| {
        let y = call.output_ptr::<f32>(0);
        par::ranges(call.outs[0].len(), 1 << 16, |range| {
            // SAFETY: the range is in the output and is this thread's alone; all bits zero are the number zero.
            unsafe { std::ptr::write_bytes(y.add(range.start), 0, range.len()) };
        });
    },
    wgsl: |l| Ok(over(l, "ZERO", "zero", |r| vec![Arg::OutPart(0, bytes(r, 1))])),
    cuda: cuda::zero,
    samples: || {
        let sample = |(name, n)| Sample::new(name, Attr::None, vec![SampleIn::normal(Ty::f32(&[n]))]);
        [("one element", 1), ("odd", 33), ("many", 16411)].into_iter().map(sample).collect()
    },
    cases: |s| vec![Case::new("parameters", Attr::None, vec![SampleIn::f32(&[s.params])]).in_place(&[(0, 0)])],
    ..OpDef::COMPUTE
};

impl Graph {
    /// Overwrites x with zeros.
    pub fn zero(&mut self, x: Val) -> Result<Val> {
        Ok(self.node_into(&ZERO, Attr::None, &[x], &[Some(x)])?[0])
    }
}

/// Elements of which one partial sum is made, on every backend.
const PIECE: usize = 1 << 13;
const WG: usize = 64;
/// Elements that one invocation of the elementwise kernels takes.
const EACH: usize = 4;

fn host_sum_squares(call: &HostCall) {
    const LANES: usize = 32;
    let x = call.input::<f32>(0);
    let partial = &mut call.work::<f64>()[..x.len().div_ceil(PIECE)];
    par::chunks(partial, 1, |i, sum| {
        crate::cpu::math::vectorized!({
            let (body, tail) = x[i * PIECE..((i + 1) * PIECE).min(x.len())].as_chunks::<LANES>();
            let mut lanes = [0f32; LANES];
            for chunk in body {
                for (s, x) in lanes.iter_mut().zip(chunk) {
                    *s += x * x;
                }
            }
            sum[0] = lanes.iter().map(|&s| s as f64).sum::<f64>() + tail.iter().map(|&x| (x * x) as f64).sum::<f64>();
        });
    });
    let before = match call.attr {
        // SAFETY: the operand has one element; nothing writes it before it is read here.
        Attr::Acc(true) => unsafe { *call.input_ptr::<f32>(1).0 as f64 },
        _ => 0.0,
    };
    let sum = before + partial.iter().sum::<f64>();
    // SAFETY: the output has one element, and the input that may share it was read above.
    unsafe { *call.output_ptr::<f32>(0).0 = sum as f32 };
}

fn host_adamw(call: &HostCall) {
    let (sumsq, h) = (call.input::<f32>(4)[0], call.input::<f32>(5));
    let [lr, rate1, rate2, eps, decay, bc1, bc2, largest] = std::array::from_fn(|i| h[i]);
    let Some(clip) = clip(sumsq, largest) else { return call.map_many([0, 1, 2], [0, 2, 3], |pmv| pmv) };
    let (keep, step, root) = (1.0 - lr * decay, lr / bc1, bc2.sqrt());
    call.map_many([0, 1, 2], [0, 1, 2, 3], |[p, g, m, v]| {
        let g = clip * g;
        let m = m + rate1 * (g - m);
        let v = v + rate2 * (g * g - v);
        [p * keep - step * (m / (v.sqrt() / root + eps)), m, v]
    });
}

/// What gradients are multiplied by, `min(1, largest / (√sumsq + 1e-6))` (PyTorch's `clip_grad_norm_`), or None: the
/// step is skipped.
fn clip(sumsq: f32, largest: f32) -> Option<f32> {
    let clip = if largest > 0.0 { (largest / (sumsq.sqrt() + 1e-6)).min(1.0) } else { 1.0 };
    sumsq.is_finite().then_some(clip)
}

/// The same of the definitions.
fn clip_f64(sumsq: &Tensor, largest: f64) -> Option<f64> {
    let sumsq = sumsq.data[0];
    let clip = if largest > 0.0 { (largest / (sumsq.sqrt() + 1e-6)).min(1.0) } else { 1.0 };
    sumsq.is_finite().then_some(clip)
}

/// Checks the operands after the flat ones: sumsq F32[1], hyper F32[8].
fn scalars(ins: &[Ty]) -> Result<(), String> {
    match ins {
        [sumsq, hyper] => {
            check::is("sumsq", sumsq, &Ty::f32(&[1]))?;
            check::is("hyper", hyper, &Ty::f32(&[8]))
        }
        _ => Err(format!("{} operands after the state, expected sumsq and hyper", ins.len())),
    }
}

/// Norms, largest norms and what they are samples of.
const NORMS: [(&str, f64, f64); 5] = [
    ("no clipping", 9.0, 0.0),
    ("below the largest norm", 0.25, 1.0),
    ("clipped", 1e4, 0.5),
    ("an infinite gradient is skipped", f64::INFINITY, 1.0),
    ("a gradient that is no number is skipped", f64::NAN, 1.0),
];

/// Dispatches of a kernel of the shader `optim` over the elements of output 0.
fn over(
    l: &Lower,
    define: &'static str,
    entry: &'static str,
    args: impl Fn(&std::ops::Range<usize>) -> Vec<Arg>,
) -> Vec<WgslDispatch> {
    each(l.outs[0].len(), l, ("optim", vec![define], entry), args)
}

/// Dispatches of a kernel (shader, symbols, entry) over `len` elements.
fn each(
    len: usize,
    l: &Lower,
    (shader, defines, entry): (&'static str, Vec<&'static str>, &'static str),
    args: impl Fn(&std::ops::Range<usize>) -> Vec<Arg>,
) -> Vec<WgslDispatch> {
    let dispatch = |range: std::ops::Range<usize>| WgslDispatch {
        shader,
        defines: defines.clone(),
        entry,
        constants: Vec::new(),
        grid: grid(range.len().div_ceil(WG * EACH), l.caps),
        args: args(&range),
        params: vec![range.len() as u32],
        flops: 16 * range.len() as u64,
    };
    flat(len, l.caps).into_iter().map(dispatch).collect()
}

/// A workgroup sums a piece; one more sums the pieces.
fn wgsl_sum_squares(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let n = l.ins[0].len();
    let pieces = n.div_ceil(PIECE);
    let partial = || Arg::Work(0..4 * pieces as u64);
    let dispatch = |defines, entry, grid, args, params, flops| WgslDispatch {
        shader: "optim",
        defines,
        entry,
        constants: Vec::new(),
        grid,
        args,
        params,
        flops,
    };
    let mut all = Vec::new();
    let limit = (l.caps.max_binding.min(1 << 31) as usize / (4 * PIECE)).max(1) * PIECE;
    for start in (0..n).step_by(limit) {
        let range = start..(start + limit).min(n);
        let params = vec![range.len() as u32, (range.start / PIECE) as u32];
        let grid = grid(range.len().div_ceil(PIECE), l.caps);
        let args = vec![partial(), Arg::InPart(0, bytes(&range, 1))];
        all.push(dispatch(vec!["SUM_SQUARES"], "partial_sums", grid, args, params, 2 * range.len() as u64));
    }
    let acc = *l.attr == Attr::Acc(true);
    let (defines, args) = match (acc, l.shared[0]) {
        (true, Some(_)) => (vec!["SUM", "INPLACE"], vec![Arg::Out(0), partial()]),
        (true, None) => (vec!["SUM", "ACC"], vec![Arg::Out(0), partial(), Arg::In(1)]),
        (false, _) => (vec!["SUM"], vec![Arg::Out(0), partial()]),
    };
    all.push(dispatch(defines, "sum", [1, 1, 1], args, vec![pieces as u32], pieces as u64));
    Ok(all)
}

/// Parameters and state that are not updated in place, copied, so that a kernel need not bind them twice: it may bind
/// eight operands. `pairs` are those of the row: (input, output).
fn copies(l: &Lower, pairs: &[(usize, usize)]) -> Vec<WgslDispatch> {
    let apart = pairs.iter().filter(|&&(_, out)| out < l.outs.len() && l.shared[out].is_none());
    let copy = |&(from, out): &(usize, usize)| {
        each(l.outs[out].len(), l, ("optim", vec!["COPY"], "copy"), move |r| {
            vec![Arg::OutPart(out, bytes(r, 1)), Arg::InPart(from, bytes(r, 1))]
        })
    };
    apart.flat_map(copy).collect()
}

fn wgsl_adamw(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let mut all = copies(l, ADAMW.in_place);
    all.extend(over(l, "ADAMW", "adamw", |r| {
        let mut args: Vec<Arg> = (0..3).map(|o| Arg::OutPart(o, bytes(r, 1))).collect();
        args.extend([Arg::InPart(1, bytes(r, 1)), Arg::In(4), Arg::In(5)]);
        args
    }));
    Ok(all)
}

/// What benches run an optimizer on: what comes before sumsq and hyper, and all of hyper but the largest norm. The
/// gradient is twice as long as it may be. Weight decay keeps parameters within bounds, however many steps are timed.
fn case(name: &str, mut ins: Vec<SampleIn>, hyper: [f64; 7], shared: &'static [(usize, usize)]) -> Vec<Case> {
    ins.push(SampleIn::constant(Ty::f32(&[1]), 4.0));
    ins.push(SampleIn::values(Ty::f32(&[8]), [&hyper[..], &[1.0]].concat()));
    vec![Case::new(name, Attr::None, ins).in_place(shared)]
}
