//! A factor for each column, the same in all rows: what DoRA's magnitudes are to the outputs of a layer.

mod cuda;

use half::bf16;

use crate::cpu::act::Act;
use crate::cpu::par;
use crate::device::Target;
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Val};
use crate::ops::launch::{self, bytes, grid, rows};
use crate::ops::widen::{by_act, in_bf16};
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Sizes, Tensor, WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&MUL_ROW, &MUL_ROW_DV, &DIV_ROW];

/// `mul_row` [x F32[T,N] or F32[N], v F32[N]] → x∘v in each row.
pub static MUL_ROW: OpDef = OpDef {
    name: "mul_row",
    infer,
    reference: |_, ins| vec![each(&ins[0], &ins[1], |x, v| x * v)],
    grad: Grad::Rule(|g, node, grads, wants| {
        let Some(dy) = grads[0] else { return Ok(vec![None, None]) };
        let (x, v) = (node.ins[0], node.ins[1]);
        let dx = if wants[0] { Some(g.mul_row(dy, v)?) } else { None };
        let dv = if wants[1] { Some(g.node(&MUL_ROW_DV, Attr::Acc(false), &[dy, x])?[0]) } else { None };
        Ok(vec![dx, dv])
    }),
    in_place: &[(0, 0)],
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: |call| match in_bf16(call) {
        true => host::<bf16>(call, |x, v| x * v),
        false => host::<f32>(call, |x, v| x * v),
    },
    narrow: true,
    wgsl: |l| Ok(wgsl(l, &MUL_ROW, "MUL")),
    cuda: cuda::mul_row,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || samples(SampleIn::normal),
    cases: |s| vec![case(s)],
    ..OpDef::COMPUTE
};

/// `mul_row_dv` [dy F32[T,N] or F32[N], x of the same shape, acc? F32[N]] → Σ_t dy∘x (+ acc).
pub static MUL_ROW_DV: OpDef = OpDef {
    name: "mul_row_dv",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Acc(with), [dy, x, acc @ ..]) => {
            check::float("dy", dy)?;
            check::is("x", x, dy)?;
            let v = Ty::f32(&[dy.cols()]);
            check::acc(*with, acc, &v)?;
            Ok(vec![v])
        }
        _ => Err(check::refuse("dy, x and Acc", attr, ins)),
    },
    reference: |_, ins| {
        let n = ins[0].cols();
        let mut dv = ins.get(2).cloned().unwrap_or_else(|| Tensor::zeros(&[n]));
        for (i, (dy, x)) in ins[0].data.iter().zip(&ins[1].data).enumerate() {
            dv.data[i % n] += dy * x;
        }
        vec![dv]
    },
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(2, 0)],
    cost: |_, ins, _| Cost { flops: 2 * ins[0].len() as u64, terms: ins[0].rows() + 1 },
    workspace: |_, ins, caps| match caps.target {
        Target::Cuda => launch::Columns::new(&ins[0]).workspace(),
        _ => 0,
    },
    host: by_act!(host_dv),
    narrow: true,
    wgsl: wgsl_dv,
    cuda: cuda::mul_row_dv,
    acts: |_| Acts { ins: &[0, 1], outs: &[] },
    samples: || {
        let mut all = Vec::new();
        for acc in [false, true] {
            for (name, shape) in SHAPES {
                let ty = Ty::f32(shape);
                let mut ins = vec![SampleIn::normal(ty.clone()), SampleIn::normal(ty.clone())];
                ins.extend(acc.then(|| SampleIn::normal(Ty::f32(&[ty.cols()]))));
                let name = format!("{name}{}", if acc { ", accumulating" } else { "" });
                all.push(Sample::new(name, Attr::Acc(acc), ins));
            }
        }
        all
    },
    cases: |s| {
        let x = SampleIn::f32(&[s.tokens, s.hidden]);
        vec![Case::new("tokens", Attr::Acc(false), vec![x.clone(), x])]
    },
    ..OpDef::COMPUTE
};

/// `div_row` [x F32[T,N] or F32[N], v F32[N]] → x/v in each row. There is no gradient with respect to `v`.
pub static DIV_ROW: OpDef = OpDef {
    name: "div_row",
    infer,
    reference: |_, ins| vec![each(&ins[0], &ins[1], |x, v| x / v)],
    grad: Grad::Rule(div_rule),
    in_place: &[(0, 0)],
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: |call| host::<f32>(call, |x, v| x / v),
    wgsl: |l| Ok(wgsl(l, &DIV_ROW, "DIV")),
    cuda: cuda::div_row,
    // It is between weights, which are f32.
    samples: || samples(|ty| SampleIn::uniform(ty, 0.5, 4.0)),
    cases: |s| vec![case(s)],
    ..OpDef::COMPUTE
};

impl Graph {
    /// x∘v in each row.
    pub fn mul_row(&mut self, x: Val, v: Val) -> Result<Val> {
        Ok(self.node(&MUL_ROW, Attr::None, &[x, v])?[0])
    }

    /// x/v in each row.
    pub fn div_row(&mut self, x: Val, v: Val) -> Result<Val> {
        Ok(self.node(&DIV_ROW, Attr::None, &[x, v])?[0])
    }
}

fn infer(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    match (attr, ins) {
        (Attr::None, [x, v]) => {
            check::float("x", x)?;
            check::is("v", v, &Ty::f32(&[x.cols()]))?;
            Ok(vec![x.clone()])
        }
        _ => Err(check::refuse("x, v", attr, ins)),
    }
}

fn each(x: &Tensor, v: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let n = v.data.len();
    Tensor::new(&x.shape, x.data.iter().enumerate().map(|(i, &x)| f(x, v.data[i % n])).collect())
}

fn div_rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    if wants[1] {
        let parameter = g.value(node.ins[1]).name.clone();
        return Err(Error::NoGradient { op: node.op.name, site: node.site.clone(), input: 1, parameter });
    }
    match grads[0] {
        Some(dy) => Ok(vec![Some(g.div_row(dy, node.ins[1])?), None]),
        None => Ok(vec![None, None]),
    }
}

fn host<A: Act>(call: &HostCall, f: impl Fn(f32, f32) -> f32 + Sync) {
    let n = call.ins[1].len();
    let (x, y, v) = (call.input_ptr::<A>(0), call.output_ptr::<A>(0), call.input::<f32>(1));
    par::ranges(call.ins[0].rows(), (1usize << 14).div_ceil(n.max(1)), |rows| {
        for t in rows {
            for (i, v) in v[..n].iter().enumerate() {
                // SAFETY: t·n + i is in both operands; this thread alone writes it, after reading it.
                unsafe { *y.add(t * n + i) = A::round(f((*x.add(t * n + i)).widen(), *v)) };
            }
        }
    });
}

fn host_dv<A: Act>(call: &HostCall) {
    let n = call.outs[0].len();
    let (dy, x, dv) = (call.input::<A>(0), call.input::<A>(1), call.output_ptr::<f32>(0));
    let before = (*call.attr == Attr::Acc(true)).then(|| call.input_ptr::<f32>(2));
    par::ranges(n, 64, |columns| {
        let mut sums = [0f32; 64];
        let sums = &mut sums[..columns.len()];
        for (dy, x) in dy.chunks_exact(n).zip(x.chunks_exact(n)) {
            for ((sum, dy), x) in sums.iter_mut().zip(&dy[columns.clone()]).zip(&x[columns.clone()]) {
                *sum += dy.widen() * x.widen();
            }
        }
        for (i, sum) in columns.zip(sums) {
            // SAFETY: i is in both operands; this thread alone writes it, after reading it.
            unsafe { *dv.add(i) = *sum + before.map_or(0.0, |b| *b.add(i)) };
        }
    });
}

/// Elements of a workgroup of `shaders/row_factor.wgsl`, and columns of one that sums.
const GROUP: usize = 256;
const COLUMNS: usize = 16;

fn wgsl(l: &Lower, op: &OpDef, define: &'static str) -> Vec<WgslDispatch> {
    let n = l.ins[1].len();
    let dispatch = |range: std::ops::Range<usize>| {
        let (mut defines, mut args) = (vec![define], vec![Arg::OutPart(0, bytes(&range, n))]);
        match l.shared[0] {
            Some(_) => defines.push("INPLACE"),
            None => args.push(Arg::InPart(0, bytes(&range, n))),
        }
        args.push(Arg::In(1));
        let elements = range.len() * n;
        WgslDispatch {
            shader: "row_factor",
            defines,
            entry: op.name,
            constants: Vec::new(),
            grid: grid(elements.div_ceil(GROUP), l.caps),
            args,
            params: vec![elements as u32, n as u32],
            flops: elements as u64,
        }
    };
    rows(l.ins[0].rows(), n, l.caps).into_iter().map(dispatch).collect()
}

fn wgsl_dv(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (n, acc) = (l.outs[0].len(), *l.attr == Attr::Acc(true));
    let dispatch = |range: std::ops::Range<usize>| {
        let part = |i| Arg::InPart(i, bytes(&range, n));
        let (mut defines, mut args) = (vec!["DV"], vec![Arg::Out(0), part(0), part(1)]);
        // Later ranges of rows add to what the earlier ones wrote.
        if range.start > 0 || (acc && l.shared[0].is_some()) {
            defines.push("INPLACE");
        } else if acc {
            defines.push("ACC");
            args.push(Arg::In(2));
        }
        WgslDispatch {
            shader: "row_factor",
            defines,
            entry: "mul_row_dv",
            constants: Vec::new(),
            grid: grid(n.div_ceil(COLUMNS), l.caps),
            args,
            params: vec![range.len() as u32, n as u32],
            flops: 2 * (range.len() * n) as u64,
        }
    };
    Ok(rows(l.ins[0].rows(), n, l.caps).into_iter().map(dispatch).collect())
}

const SHAPES: &[(&str, &[usize])] = &[
    ("one element", &[1, 1]),
    ("one row", &[1, 33]),
    ("a vector", &[65]),
    ("one column", &[65, 1]),
    ("odd", &[7, 17]),
    ("wide", &[33, 129]),
    ("long", &[520, 35]),
    ("aligned", &[270, 24]),
    ("wider than a block", &[3, 2056]),
];

fn samples(factors: impl Fn(Ty) -> SampleIn) -> Vec<Sample> {
    let sample = |(name, shape): &(&'static str, &[usize])| {
        let ty = Ty::f32(shape);
        let v = factors(Ty::f32(&[ty.cols()]));
        Sample::new(*name, Attr::None, vec![SampleIn::normal(ty), v])
    };
    SHAPES.iter().map(sample).collect()
}

/// Factors that keep the size, however often: 1, and −1 in every third column.
fn case(s: &Sizes) -> Case {
    let factors = (0..s.hidden).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
    let ins = vec![SampleIn::f32(&[s.tokens, s.hidden]), SampleIn::values(Ty::f32(&[s.hidden]), factors)];
    Case::new("tokens", Attr::None, ins).in_place(&[(0, 0)])
}
