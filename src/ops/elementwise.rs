//! Ops that work element by element: sums, factors, activations, dropout, casts.

mod activation;
mod cast;
mod cuda;

use crate::cpu::act::Act;
use crate::cpu::philox::{Mask, keep};
use crate::cpu::{math, par};
use crate::device::{Caps, Target};
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Val};
use crate::ops::launch::{self, bytes_of, grid, rows_of};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Dropout, Factor, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Sizes, Tensor,
    WgslDispatch, check,
};

pub use activation::{ACTIVATION, ACTIVATION_BWD, GATED_ACT, GATED_ACT_BWD};
pub use cast::{CAST, conversions};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] =
    &[&ADD, &SCALE, &ACTIVATION, &ACTIVATION_BWD, &GATED_ACT, &GATED_ACT_BWD, &DROPOUT, &ADD_ROW, &ADD_ROW_DV, &CAST];

/// `add` [a F32[..], b F32[..]] → a + b.
pub static ADD: OpDef = OpDef {
    name: "add",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [a, b]) => {
            check::float("a", a)?;
            check::is("b", b, a)?;
            Ok(vec![a.clone()])
        }
        _ => Err(check::refuse("a, b", attr, ins)),
    },
    reference: |_, ins| vec![zip(&ins[0], &ins[1], |a, b| a + b)],
    grad: Grad::Rule(|_, _, grads, wants| Ok(wants.iter().map(|&want| grads[0].filter(|_| want)).collect())),
    in_place: &[(0, 0), (1, 0)],
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: |call| call.map(0, [0, 1], |[a, b]| a + b),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        Ok(match l.shared[0] {
            Some(i) => elements(l, &ADD, vec!["ADD", "INPLACE"], &[Slot::Out(0), Slot::In(1 - i)], &[]),
            None => elements(l, &ADD, vec!["ADD"], &[Slot::Out(0), Slot::In(0), Slot::In(1)], &[]),
        })
    },
    cuda: cuda::add,
    acts: |_| Acts { ins: &[0, 1], outs: &[0] },
    samples: || samples("", SIZES, |ty| (Attr::None, vec![SampleIn::normal(ty.clone()), SampleIn::normal(ty)])),
    cases: |s| vec![Case::new("residual", Attr::None, vec![case_x(s), case_x(s)]).in_place(&[(0, 0)])],
    ..OpDef::COMPUTE
};

/// `scale` [x F32[..], s F32[1]] → x·s. There is no gradient with respect to `s`.
pub static SCALE: OpDef = OpDef {
    name: "scale",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [x, s]) => {
            check::float("x", x)?;
            check::is("s", s, &Ty::f32(&[1]))?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x, s", attr, ins)),
    },
    reference: |_, ins| vec![map(&ins[0], |x| x * ins[1].data[0])],
    grad: Grad::Rule(scale_rule),
    in_place: &[(0, 0)],
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: |call| {
        let s = call.input::<f32>(1)[0];
        call.map(0, [0], |[x]| x * s);
    },
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        Ok(match l.shared[0] {
            Some(_) => elements(l, &SCALE, vec!["SCALE", "INPLACE"], &[Slot::Out(0), Slot::Whole(1)], &[]),
            None => elements(l, &SCALE, vec!["SCALE"], &[Slot::Out(0), Slot::In(0), Slot::Whole(1)], &[]),
        })
    },
    cuda: cuda::scale,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || {
        samples("", SIZES, |ty| (Attr::None, vec![SampleIn::normal(ty), SampleIn::values(Ty::f32(&[1]), vec![-0.75])]))
    },
    cases: |s| {
        // A factor that keeps the size, however often.
        let ins = vec![case_x(s), SampleIn::constant(Ty::f32(&[1]), -1.0)];
        vec![Case::new("tokens", Attr::None, ins).in_place(&[(0, 0)])]
    },
    ..OpDef::COMPUTE
};

/// `dropout` [x F32[..], rng U32[4]] → x·mask/(1−p). The mask is [`Mask`]'s, so the gradient is the same op on dy.
pub static DROPOUT: OpDef = OpDef {
    name: "dropout",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Dropout(d), [x, rng]) => {
            check::float("x", x)?;
            check::rng(rng)?;
            check::dropout(d)?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x, rng and Dropout", attr, ins)),
    },
    reference: |attr, ins| {
        let mask = Mask::new(std::array::from_fn(|i| ins[1].data[i] as u32), drop(attr));
        let mut y = ins[0].clone();
        y.data.iter_mut().enumerate().for_each(|(i, y)| *y *= mask.factor(i) as f64);
        vec![y]
    },
    grad: Grad::Rule(|g, node, grads, _| {
        let Some(dy) = grads[0] else { return Ok(vec![None, None]) };
        Ok(vec![Some(g.dropout(dy, node.ins[1], drop(&node.attr))?), None])
    }),
    in_place: &[(0, 0)],
    cost: |_, _, outs| Cost { flops: 20 * outs[0].len() as u64, terms: 1 },
    host: by_act!(host_dropout),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| {
        let (threshold, scale) = keep(drop(l.attr));
        let more = [drop(l.attr).site, threshold, scale.to_bits()];
        Ok(match l.shared[0] {
            Some(_) => elements(l, &DROPOUT, vec!["DROPOUT", "INPLACE"], &[Slot::Out(0), Slot::Whole(1)], &more),
            None => elements(l, &DROPOUT, vec!["DROPOUT"], &[Slot::Out(0), Slot::In(0), Slot::Whole(1)], &more),
        })
    },
    cuda: cuda::dropout,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || {
        samples("", SIZES, |ty| {
            let rng = SampleIn::values(Ty::u32(&[4]), vec![4_000_000_000.0, 17.0, 3.0, 1.0]);
            (Attr::Dropout(Dropout { p: 0.3, site: 5 }), vec![SampleIn::normal(ty), rng])
        })
    },
    cases: |s| {
        let rng = SampleIn::values(Ty::u32(&[4]), vec![1.0, 2.0, 3.0, 4.0]);
        vec![Case::new("tokens", Attr::Dropout(Dropout { p: 0.1, site: 1 }), vec![case_x(s), rng])]
    },
    ..OpDef::COMPUTE
};

/// `add_row` [x F32[T,N], v F32[N]] → x + f·v in each row.
pub static ADD_ROW: OpDef = OpDef {
    name: "add_row",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Factor(Factor { acc: false, .. }), [x, v]) => {
            let (_, n) = check::matrix("x", x)?;
            check::float("x", x)?;
            check::is("v", v, &Ty::f32(&[n]))?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x, v and Factor", attr, ins)),
    },
    reference: |attr, ins| {
        let (n, f) = (ins[0].cols(), factor(attr).factor as f64);
        let mut y = ins[0].clone();
        y.data.iter_mut().enumerate().for_each(|(i, y)| *y += f * ins[1].data[i % n]);
        vec![y]
    },
    grad: Grad::Rule(|g, node, grads, wants| {
        let Some(dy) = grads[0] else { return Ok(vec![None, None]) };
        let dv = match wants[1] {
            true => Some(g.node(&ADD_ROW_DV, node.attr.clone(), &[dy])?[0]),
            false => None,
        };
        Ok(vec![Some(dy), dv])
    }),
    in_place: &[(0, 0)],
    cost: |_, _, outs| Cost { flops: 2 * outs[0].len() as u64, terms: 1 },
    host: by_act!(host_add_row),
    narrow: true,
    wgsl_half: |_, ins, _| ins[0].cols().is_multiple_of(4),
    wgsl: wgsl_add_row,
    cuda: cuda::add_row,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || {
        samples("", MATRICES, |ty| {
            let v = Ty::f32(&[ty.cols()]);
            (Attr::Factor(Factor { factor: 0.5, acc: false }), vec![SampleIn::normal(ty), SampleIn::normal(v)])
        })
    },
    cases: |s| {
        let attr = Attr::Factor(Factor { factor: 0.5, acc: false });
        vec![Case::new("tokens", attr, vec![case_x(s), SampleIn::f32(&[s.hidden])]).in_place(&[(0, 0)])]
    },
    ..OpDef::COMPUTE
};

/// `add_row_dv` [dy F32[T,N], acc? F32[N]] → f·Σ_t dy (+ acc).
pub static ADD_ROW_DV: OpDef = OpDef {
    name: "add_row_dv",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Factor(f), [dy, acc @ ..]) => {
            let (_, n) = check::matrix("dy", dy)?;
            check::float("dy", dy)?;
            check::acc(f.acc, acc, &Ty::f32(&[n]))?;
            Ok(vec![Ty::f32(&[n])])
        }
        _ => Err(check::refuse("dy and Factor", attr, ins)),
    },
    reference: |attr, ins| {
        let mut y = match factor(attr).acc {
            true => ins[1].clone(),
            false => Tensor::zeros(&[ins[0].cols()]),
        };
        for t in 0..ins[0].rows() {
            for (y, x) in y.data.iter_mut().zip(ins[0].row(t)) {
                *y += factor(attr).factor as f64 * x;
            }
        }
        vec![y]
    },
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(1, 0)],
    cost: |_, ins, _| Cost { flops: 2 * ins[0].len() as u64, terms: ins[0].rows() },
    workspace: |_, ins, caps| match caps.target {
        Target::Cuda => launch::Columns::new(&ins[0]).workspace(),
        _ => 0,
    },
    host: by_act!(host_add_row_dv),
    narrow: true,
    wgsl_half: |_, ins, _| ins[0].cols().is_multiple_of(4),
    wgsl: wgsl_add_row_dv,
    cuda: cuda::add_row_dv,
    acts: |_| Acts { ins: &[0], outs: &[] },
    samples: || {
        let mut all = Vec::new();
        for acc in [false, true] {
            all.extend(samples(if acc { ", accumulating" } else { "" }, MATRICES, |ty| {
                let v = Ty::f32(&[ty.cols()]);
                let mut ins = vec![SampleIn::normal(ty)];
                ins.extend(acc.then(|| SampleIn::normal(v)));
                (Attr::Factor(Factor { factor: -1.5, acc }), ins)
            }));
        }
        all
    },
    cases: |s| vec![Case::new("tokens", Attr::Factor(Factor { factor: 0.5, acc: false }), vec![case_x(s)])],
    ..OpDef::COMPUTE
};

impl Graph {
    /// a + b.
    pub fn add(&mut self, a: Val, b: Val) -> Result<Val> {
        Ok(self.node(&ADD, Attr::None, &[a, b])?[0])
    }

    /// x·s, `s` one number on the device; x itself if that is known to be 1.
    pub fn scale(&mut self, x: Val, s: Val) -> Result<Val> {
        if self.one == Some(s) {
            return Ok(x);
        }
        Ok(self.node(&SCALE, Attr::None, &[x, s])?[0])
    }

    /// Zeroes each element with probability p and divides the others by 1−p.
    pub fn dropout(&mut self, x: Val, rng: Val, drop: Dropout) -> Result<Val> {
        Ok(self.node(&DROPOUT, Attr::Dropout(drop), &[x, rng])?[0])
    }

    /// x + factor·v in each row.
    pub fn add_row(&mut self, x: Val, v: Val, factor: f32) -> Result<Val> {
        Ok(self.node(&ADD_ROW, Attr::Factor(Factor { factor, acc: false }), &[x, v])?[0])
    }
}

fn scale_rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    if wants[1] {
        let parameter = g.value(node.ins[1]).name.clone();
        return Err(Error::NoGradient { op: node.op.name, site: node.site.clone(), input: 1, parameter });
    }
    match grads[0] {
        Some(dy) => Ok(vec![Some(g.scale(dy, node.ins[1])?), None]),
        None => Ok(vec![None, None]),
    }
}

fn drop(attr: &Attr) -> Dropout {
    match attr {
        Attr::Dropout(d) => *d,
        _ => unreachable!("infer refused it"),
    }
}

fn factor(attr: &Attr) -> Factor {
    match attr {
        Attr::Factor(f) => *f,
        _ => unreachable!("infer refused it"),
    }
}

fn map(x: &Tensor, f: impl Fn(f64) -> f64) -> Tensor {
    Tensor::new(&x.shape, x.data.iter().map(|&x| f(x)).collect())
}

fn zip(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    Tensor::new(&a.shape, a.data.iter().zip(&b.data).map(|(&a, &b)| f(a, b)).collect())
}

fn host_dropout<A: Act>(call: &HostCall) {
    let words = call.input::<u32>(1);
    let mask = Mask::new([words[0], words[1], words[2], words[3]], drop(call.attr));
    let (x, y) = (call.input_ptr::<A>(0), call.output_ptr::<A>(0));
    par::ranges(call.outs[0].len(), 1 << 14, |range| {
        let mut factors = [0f32; 256];
        for start in range.clone().step_by(256) {
            let f = &mut factors[..(range.end - start).min(256)];
            mask.fill(start, f);
            for (i, f) in f.iter().enumerate() {
                // SAFETY: start + i is in both operands; this thread alone writes it, after reading it.
                unsafe { *y.add(start + i) = A::round((*x.add(start + i)).widen() * f) };
            }
        }
    });
}

fn host_add_row<A: Act>(call: &HostCall) {
    let (n, f) = (call.ins[1].len(), factor(call.attr).factor);
    let (x, y, v) = (call.input_ptr::<A>(0), call.output_ptr::<A>(0), &call.input::<f32>(1)[..n]);
    par::ranges(call.ins[0].rows(), (1usize << 14).div_ceil(n.max(1)), |rows| {
        math::vectorized!({
            for t in rows {
                // SAFETY: row t of operands of one shape; `copy` allows x and y to be the same memory, x is not read
                // after it, and tasks have disjoint rows.
                let row = unsafe {
                    std::ptr::copy(x.add(t * n), y.add(t * n), n);
                    std::slice::from_raw_parts_mut(y.add(t * n), n)
                };
                for i in 0..n {
                    row[i] = A::round(row[i].widen() + f * v[i]);
                }
            }
        });
    });
}

fn host_add_row_dv<A: Act>(call: &HostCall) {
    let (n, Factor { factor: f, acc }) = (call.outs[0].len(), factor(call.attr));
    let (dy, y) = (&call.input::<A>(0)[..call.ins[0].len()], call.output_ptr::<f32>(0));
    let before = acc.then(|| call.input_ptr::<f32>(1));
    par::ranges(n, 64, |columns| {
        let mut sums = [0f32; 64];
        let sums = &mut sums[..columns.len()];
        for row in dy.chunks_exact(n) {
            for (s, x) in sums.iter_mut().zip(&row[columns.clone()]) {
                *s += x.widen();
            }
        }
        for (i, s) in columns.zip(sums) {
            // SAFETY: i is in both operands; this thread alone writes it, after reading it.
            unsafe { *y.add(i) = f * *s + before.map_or(0.0, |b| *b.add(i)) };
        }
    });
}

/// Whether there are so many elements that WGSL's kernels take them by fours.
fn by_fours(_: &Attr, ins: &[Ty], _: &Caps) -> bool {
    ins[0].len().is_multiple_of(4)
}

/// How a WGSL kernel over elements binds an operand: in step with the elements, or whole.
enum Slot {
    Out(usize),
    In(usize),
    Whole(usize),
}

/// Elements that one invocation of `shaders/elementwise.wgsl` computes.
const EACH: usize = 4;
const WG: usize = 64;

/// Dispatches over the elements of output 0. Parameters: the number of units, the index of the first element, `more`.
fn elements(l: &Lower, op: &OpDef, defines: Vec<&'static str>, slots: &[Slot], more: &[u32]) -> Vec<WgslDispatch> {
    let total = (op.cost)(l.attr, l.ins, l.outs).flops;
    let (len, dtype) = (l.outs[0].len(), l.outs[0].dtype);
    let dispatch = |range: std::ops::Range<usize>| {
        let bind = |slot: &Slot| match slot {
            Slot::Out(i) => Arg::OutPart(*i, bytes_of(dtype, &range, 1)),
            Slot::In(i) => Arg::InPart(*i, bytes_of(dtype, &range, 1)),
            Slot::Whole(i) => Arg::In(*i),
        };
        WgslDispatch {
            shader: "elementwise",
            defines: defines.iter().copied().chain(launch::half(dtype)).collect(),
            entry: op.name,
            constants: Vec::new(),
            grid: grid(range.len().div_ceil(WG * EACH), l.caps),
            args: slots.iter().map(bind).collect(),
            params: [(range.len() / launch::unit(dtype)) as u32]
                .into_iter()
                .chain(launch::words(range.start))
                .chain(more.iter().copied())
                .collect(),
            flops: total / len.max(1) as u64 * range.len() as u64,
        }
    };
    rows_of(dtype, len, 1, l.caps).into_iter().map(dispatch).collect()
}

/// Dispatches that add input `i` to output 0, which is of its type.
pub fn add_to(l: &Lower, i: usize) -> Vec<WgslDispatch> {
    elements(l, &ADD, vec!["ADD", "INPLACE"], &[Slot::Out(0), Slot::In(i)], &[])
}

fn wgsl_add_row(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (n, f, dtype) = (l.ins[1].len(), factor(l.attr).factor, l.ins[0].dtype);
    let unit = launch::unit(dtype);
    let dispatch = |range: std::ops::Range<usize>| {
        let part = bytes_of(dtype, &range, n);
        let out = Arg::OutPart(0, part.clone());
        let (mut defines, args) = match l.shared[0] {
            Some(_) => (vec!["ADD_ROW", "INPLACE"], vec![out, Arg::In(1)]),
            None => (vec!["ADD_ROW"], vec![out, Arg::InPart(0, part), Arg::In(1)]),
        };
        defines.extend(launch::half(dtype));
        WgslDispatch {
            shader: "elementwise",
            defines,
            entry: "add_row",
            constants: Vec::new(),
            grid: grid((range.len() * n).div_ceil(WG * EACH), l.caps),
            args,
            params: vec![(range.len() * n / unit) as u32, 0, 0, (n / unit) as u32, f.to_bits()],
            flops: 2 * (range.len() * n) as u64,
        }
    };
    Ok(rows_of(dtype, l.ins[0].rows(), n, l.caps).into_iter().map(dispatch).collect())
}

fn wgsl_add_row_dv(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (n, Factor { factor: f, acc }) = (l.outs[0].len(), factor(l.attr));
    let (dtype, unit) = (l.ins[0].dtype, launch::unit(l.ins[0].dtype));
    let dispatch = |range: std::ops::Range<usize>| {
        let part = bytes_of(dtype, &range, n);
        let (mut defines, mut args) = (vec!["ADD_ROW_DV"], vec![Arg::Out(0), Arg::InPart(0, part)]);
        // Later ranges of rows add to what the earlier ones wrote.
        if range.start > 0 || (acc && l.shared[0].is_some()) {
            defines.push("INPLACE");
        } else if acc {
            defines.push("ACC");
            args.push(Arg::In(1));
        }
        defines.extend(launch::half(dtype));
        WgslDispatch {
            shader: "elementwise",
            defines,
            entry: "add_row_dv",
            constants: Vec::new(),
            // A workgroup sums 16 columns of units.
            grid: grid((n / unit).div_ceil(16), l.caps),
            args,
            params: vec![range.len() as u32, 0, 0, (n / unit) as u32, f.to_bits()],
            flops: 2 * (range.len() * n) as u64,
        }
    };
    Ok(rows_of(dtype, l.ins[0].rows(), n, l.caps).into_iter().map(dispatch).collect())
}

const SIZES: &[(&str, &[usize])] = &[
    ("one element", &[1, 1]),
    ("odd", &[3, 7]),
    ("a ragged tail", &[17, 33]),
    ("by fours", &[9, 36]),
    ("beyond one block of threads", &[65, 257]),
];
const MATRICES: &[(&str, &[usize])] = &[
    ("one element", &[1, 1]),
    ("one row", &[1, 33]),
    ("one column", &[65, 1]),
    ("odd", &[7, 17]),
    ("wide", &[33, 129]),
    ("by fours", &[9, 36]),
    ("long", &[520, 35]),
];

/// `what` is added to the samples' names.
fn samples(what: &str, shapes: &[(&'static str, &[usize])], make: impl Fn(Ty) -> (Attr, Vec<SampleIn>)) -> Vec<Sample> {
    let sample = |(name, shape): &(&'static str, &[usize])| {
        let (attr, ins) = make(Ty::f32(shape));
        Sample::new(format!("{name}{what}"), attr, ins)
    };
    shapes.iter().map(sample).collect()
}

/// What benches run most of these ops on.
fn case_x(s: &Sizes) -> SampleIn {
    SampleIn::f32(&[s.tokens, s.hidden])
}
