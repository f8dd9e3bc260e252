//! Root-mean-square normalization (Zhang & Sennrich 2019) and its gradients; layer normalization is in `layer`.
//!
//! `y = x · rstd · (offset + w)` with `rstd = 1 / √(mean(x²) + eps)` for each row. The offset is 1 in the Gemma
//! family, whose weights are stored around 0.

mod cuda;
mod layer;

use crate::cpu::act::Act;
use crate::cpu::{math, par};
use crate::device::{Caps, Target};
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Grad, HostCall, Lower, Norm, OpDef, Sample, SampleIn, Sizes, Tensor, WgslDispatch,
    check, launch,
};

pub use layer::{LAYER_NORM, LAYER_NORM_DW, LAYER_NORM_DX};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&RMS_NORM, &RMS_NORM_DX, &RMS_NORM_DW, &LAYER_NORM, &LAYER_NORM_DX, &LAYER_NORM_DW];

/// `rms_norm` [x F32[R,D], w F32[D]] → y F32[R,D], rstd F32[R].
pub static RMS_NORM: OpDef = OpDef {
    name: "rms_norm",
    infer: infer_norm,
    reference: reference_norm,
    grad: Grad::Rule(norm_rule),
    cost: |_, ins, _| Cost { flops: 4 * ins[0].len() as u64, terms: ins[0].cols() },
    host: by_act!(host_norm),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: wgsl_norm,
    cuda: cuda::rms_norm,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: samples_norm,
    cases: |s| {
        let ins = vec![SampleIn::f32(&[s.tokens, s.hidden]), SampleIn::f32(&[s.hidden])];
        vec![Case::new("tokens", case_attr(false), ins)]
    },
    ..OpDef::COMPUTE
};

/// `rms_norm_dx` [dy F32[R,D], x F32[R,D], w F32[D], rstd F32[R], acc? F32[R,D]] → dx F32[R,D] (+ acc).
pub static RMS_NORM_DX: OpDef = OpDef {
    name: "rms_norm_dx",
    infer: infer_dx,
    reference: reference_dx,
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(4, 0), (0, 0)],
    cost: |_, ins, _| Cost { flops: 8 * ins[0].len() as u64, terms: ins[0].cols() },
    host: by_act!(host_dx),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: wgsl_dx,
    cuda: cuda::rms_norm_dx,
    acts: |_| Acts { ins: &[0, 1, 4], outs: &[0] },
    samples: samples_dx,
    cases: |s| {
        let x = || SampleIn::f32(&[s.tokens, s.hidden]);
        let ins = vec![x(), x(), SampleIn::f32(&[s.hidden]), case_rstd(s), x()];
        vec![Case::new("residual", case_attr(true), ins).in_place(&[(4, 0)])]
    },
    ..OpDef::COMPUTE
};

/// `rms_norm_dw` [dy F32[R,D], x F32[R,D], rstd F32[R], acc? F32[D]] → dw F32[D] = Σ_r dy·x·rstd (+ acc).
pub static RMS_NORM_DW: OpDef = OpDef {
    name: "rms_norm_dw",
    infer: infer_dw,
    reference: reference_dw,
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(3, 0)],
    cost: |_, ins, _| Cost { flops: 3 * ins[0].len() as u64, terms: ins[0].rows() },
    workspace: dw_workspace,
    host: by_act!(host_dw),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| wgsl_dw(l, vec!["DW"]),
    cuda: cuda::rms_norm_dw,
    acts: |_| Acts { ins: &[0, 1], outs: &[] },
    samples: samples_dw,
    cases: |s| {
        let x = || SampleIn::f32(&[s.tokens, s.hidden]);
        vec![Case::new("tokens", Attr::Acc(false), vec![x(), x(), case_rstd(s)])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// `y = x · (offset + w) / √(mean(x²) + eps)` over the last dimension of `x`.
    pub fn rms_norm(&mut self, x: Val, w: Val, eps: f32, offset: f32) -> Result<Val> {
        Ok(self.node(&RMS_NORM, Attr::Norm(Norm { eps, offset, acc: false }), &[x, w])?[0])
    }
}

fn norm(attr: &Attr) -> Norm {
    match attr {
        Attr::Norm(n) => *n,
        _ => unreachable!("infer refused it"),
    }
}

fn matrix(x: &Ty) -> Result<(), String> {
    if x.dtype == DType::F32 && x.shape.len() >= 2 && x.cols() > 0 {
        Ok(())
    } else {
        Err(format!("x is {x}, expected f32[rows, features]"))
    }
}

fn infer_norm(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Norm(Norm { acc: false, .. }), [x, w]) = (attr, ins) else {
        return Err(check::refuse("x, w and Norm", attr, ins));
    };
    matrix(x)?;
    check::is("w", w, &Ty::f32(&[x.cols()]))?;
    Ok(vec![x.clone(), Ty::f32(&[x.rows()])])
}

fn infer_dx(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Norm(n), [dy, x, w, rstd, acc @ ..]) = (attr, ins) else {
        return Err(check::refuse("dy, x, w, rstd and Norm", attr, ins));
    };
    matrix(x)?;
    check::is("dy", dy, x)?;
    check::is("w", w, &Ty::f32(&[x.cols()]))?;
    check::is("rstd", rstd, &Ty::f32(&[x.rows()]))?;
    check::acc(n.acc, acc, x)?;
    Ok(vec![x.clone()])
}

fn infer_dw(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Acc(with), [dy, x, rstd, acc @ ..]) = (attr, ins) else {
        return Err(check::refuse("dy, x, rstd and Acc", attr, ins));
    };
    matrix(x)?;
    check::is("dy", dy, x)?;
    check::is("rstd", rstd, &Ty::f32(&[x.rows()]))?;
    let dw = Ty::f32(&[x.cols()]);
    check::acc(*with, acc, &dw)?;
    Ok(vec![dw])
}

fn reference_norm(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let Norm { eps, offset, .. } = norm(attr);
    let (x, w) = (&ins[0], &ins[1]);
    let (rows, d) = (x.rows(), x.cols());
    let mut y = Tensor::zeros(&x.shape);
    let mut rstd = Tensor::zeros(&[rows]);
    for r in 0..rows {
        let mean = x.row(r).iter().map(|v| v * v).sum::<f64>() / d as f64;
        rstd.data[r] = 1.0 / (mean + eps as f64).sqrt();
        for i in 0..d {
            y.row_mut(r)[i] = x.at(r, i) * rstd.data[r] * (offset as f64 + w.data[i]);
        }
    }
    vec![y, rstd]
}

fn reference_dx(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let Norm { offset, acc, .. } = norm(attr);
    let (dy, x, w, rstd) = (&ins[0], &ins[1], &ins[2], &ins[3]);
    let mut dx = if acc { ins[4].clone() } else { Tensor::zeros(&x.shape) };
    for r in 0..x.rows() {
        let s = rstd.data[r];
        // The gradient of x·rstd, and its part along x, which the norm takes away.
        let g: Vec<f64> = dy.row(r).iter().zip(&w.data).map(|(dy, w)| dy * (offset as f64 + w)).collect();
        let along = g.iter().zip(x.row(r)).map(|(g, x)| g * x).sum::<f64>() / x.cols() as f64;
        for (i, dx) in dx.row_mut(r).iter_mut().enumerate() {
            *dx += s * (g[i] - x.at(r, i) * s * s * along);
        }
    }
    vec![dx]
}

fn reference_dw(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let (dy, x, rstd) = (&ins[0], &ins[1], &ins[2]);
    let mut dw = if *attr == Attr::Acc(true) { ins[3].clone() } else { Tensor::zeros(&[x.cols()]) };
    for r in 0..x.rows() {
        for (i, dw) in dw.data.iter_mut().enumerate() {
            *dw += dy.at(r, i) * x.at(r, i) * rstd.data[r];
        }
    }
    vec![dw]
}

fn norm_rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let Some(dy) = grads[0] else { return Ok(vec![None, None]) };
    let (x, w, rstd) = (node.ins[0], node.ins[1], node.outs[1]);
    let dx = match wants[0] {
        true => Some(g.node(&RMS_NORM_DX, node.attr.clone(), &[dy, x, w, rstd])?[0]),
        false => None,
    };
    let dw = match wants[1] {
        true => Some(g.node(&RMS_NORM_DW, Attr::Acc(false), &[dy, x, rstd])?[0]),
        false => None,
    };
    Ok(vec![dx, dw])
}

/// Rows that one task takes: enough work to be worth a thread.
fn grain(cols: usize) -> usize {
    (1 << 14) / cols.max(1) + 1
}

fn host_norm<A: Act>(call: &HostCall) {
    let Norm { eps, offset, .. } = norm(call.attr);
    let d = call.ins[0].cols();
    let (x, w) = (call.input::<A>(0), call.input::<f32>(1));
    let w = &w[..d];
    let (y, rstd) = (call.output_ptr::<A>(0), call.output_ptr::<f32>(1));
    par::ranges(call.ins[0].rows(), grain(d), |rows| {
        let mut wide = vec![0f32; A::buffer(d)];
        math::vectorized!({
            for r in rows {
                let x = &A::row(&x[r * d..][..d], &mut wide)[..d];
                let s = 1.0 / (math::dot(x, x) / d as f32 + eps).sqrt();
                // SAFETY: row r of outputs that overlap nothing (module contract); tasks have disjoint rows.
                let y = unsafe {
                    *rstd.add(r) = s;
                    std::slice::from_raw_parts_mut(y.add(r * d), d)
                };
                for i in 0..d {
                    y[i] = A::round(x[i] * s * (offset + w[i]));
                }
            }
        });
    });
}

fn host_dx<A: Act>(call: &HostCall) {
    let Norm { offset, acc, .. } = norm(call.attr);
    let d = call.ins[1].cols();
    let (x, w, rstd) = (call.input::<A>(1), call.input::<f32>(2), call.input::<f32>(3));
    let (dx, dy) = (call.output_ptr::<A>(0), call.input_ptr::<A>(0));
    let acc = acc.then(|| call.input_ptr::<A>(4));
    par::ranges(call.ins[1].rows(), grain(d), |rows| {
        // dx may have the place of dy or acc, so a row's gradient is made apart.
        let mut g = vec![0f32; d];
        let mut sum = vec![0f32; d];
        let mut wide = vec![0f32; A::buffer(d)];
        // Lengths that the compiler sees, so that no check is in the loops.
        let (g, sum, w) = (&mut g[..d], &mut sum[..d], &w[..d]);
        math::vectorized!({
            for r in rows {
                let x = &A::row(&x[r * d..][..d], &mut wide)[..d];
                // SAFETY: row r of operands of x's shape; the copies end before dx's row is written.
                unsafe {
                    A::read(dy.add(r * d), g);
                    if let Some(acc) = acc {
                        A::read(acc.add(r * d), sum);
                    }
                }
                for i in 0..d {
                    g[i] *= offset + w[i];
                }
                let s = rstd[r];
                let along = math::dot(g, x) / d as f32 * s * s;
                for i in 0..d {
                    g[i] = s * (g[i] - x[i] * along) + sum[i];
                }
                // SAFETY: as above; tasks have disjoint rows.
                unsafe { A::write(g, dx.add(r * d)) };
            }
        });
    });
}

fn host_dw<A: Act>(call: &HostCall) {
    /// Columns of a task: the rows are summed in order, whatever the number of threads.
    const COLS: usize = 32;
    let (rows, d) = (call.ins[1].rows(), call.ins[1].cols());
    let (dy, x, rstd) = (call.input::<A>(0), call.input::<A>(1), call.input::<f32>(2));
    let dw = call.output_ptr::<f32>(0);
    let acc = (*call.attr == Attr::Acc(true)).then(|| call.input_ptr::<f32>(3));
    par::ranges(d, COLS, |cols| {
        let (start, n) = (cols.start, cols.len());
        let mut sum = [0f32; COLS];
        math::vectorized!({
            for r in 0..rows {
                let (dy, x, s) = (&dy[r * d + start..][..n], &x[r * d + start..][..n], rstd[r]);
                for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
                    *sum += dy.widen() * (x.widen() * s);
                }
            }
        });
        for (i, sum) in sum[..n].iter().enumerate() {
            // SAFETY: column start + i of dw and acc, which may be the same memory; it is read before it is
            // written, and tasks have disjoint columns.
            unsafe { *dw.add(start + i) = sum + acc.map_or(0.0, |a| *a.add(start + i)) };
        }
    });
}

/// Whether rows are so long that WGSL's kernels take them by fours.
fn by_fours(_: &Attr, ins: &[Ty], _: &Caps) -> bool {
    ins[0].cols().is_multiple_of(4)
}

/// Rows whose products a workgroup of the first pass over dw sums.
const DW_ROWS: usize = 256;

/// A dispatch over one range of the rows of a [rows, cols] matrix, with a workgroup for each.
fn over_rows(
    l: &Lower,
    shader: &'static str,
    entry: &'static str,
    mut defines: Vec<&'static str>,
    args: Vec<Arg>,
    range: &std::ops::Range<usize>,
) -> WgslDispatch {
    let Norm { eps, offset, .. } = norm(l.attr);
    let (dtype, cols) = (l.outs[0].dtype, l.outs[0].cols());
    defines.extend(launch::half(dtype));
    let units = cols / launch::unit(dtype);
    // A power of two that leaves few invocations idle.
    let width = units.next_power_of_two().clamp(32, 256).min(l.caps.max_invocations.max(32) as usize);
    WgslDispatch {
        shader,
        defines,
        entry,
        constants: vec![("WG", width as f64)],
        grid: launch::grid(range.len(), l.caps),
        args,
        params: vec![range.len() as u32, range.start as u32, units as u32, eps.to_bits(), offset.to_bits()],
        flops: 8 * (range.len() * cols) as u64,
    }
}

fn wgsl_norm(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let cols = l.ins[0].cols();
    let dispatch = |range: std::ops::Range<usize>| {
        let part = launch::bytes_of(l.ins[0].dtype, &range, cols);
        let args = vec![Arg::OutPart(0, part.clone()), Arg::Out(1), Arg::InPart(0, part), Arg::In(1)];
        over_rows(l, "norm", "rms_norm", vec!["FORWARD"], args, &range)
    };
    Ok(launch::rows_of(l.ins[0].dtype, l.ins[0].rows(), cols, l.caps).into_iter().map(dispatch).collect())
}

fn wgsl_dx(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (acc, cols) = (norm(l.attr).acc, l.ins[1].cols());
    let dispatch = |range: std::ops::Range<usize>| {
        let bytes = launch::bytes_of(l.ins[1].dtype, &range, cols);
        let part = |i| Arg::InPart(i, bytes.clone());
        let (mut defines, mut args) = (vec!["DX"], vec![Arg::OutPart(0, bytes.clone())]);
        match l.shared[0] {
            Some(0) => defines.push("IN_DY"),
            _ => args.push(part(0)),
        }
        args.extend([part(1), Arg::In(2), Arg::In(3)]);
        if acc {
            defines.push("ACC");
            match l.shared[0] {
                Some(4) => defines.push("IN_ACC"),
                _ => args.push(part(4)),
            }
        }
        over_rows(l, "norm", "rms_norm_dx", defines, args, &range)
    };
    Ok(launch::rows_of(l.ins[1].dtype, l.ins[1].rows(), cols, l.caps).into_iter().map(dispatch).collect())
}

/// Sums over blocks of rows, f32[blocks, D].
fn dw_workspace(_: &Attr, ins: &[Ty], caps: &Caps) -> u64 {
    match caps.target {
        Target::Wgsl => (4 * ins[1].rows().div_ceil(DW_ROWS) * ins[1].cols()) as u64,
        Target::Cuda => launch::Columns::new(&ins[1]).workspace(),
        _ => 0,
    }
}

/// The gradient of a weight, from dy, x, what the forward pass keeps of each row, and acc: `first` is the variant of the
/// pass over blocks of rows.
fn wgsl_dw(l: &Lower, first: Vec<&'static str>) -> Result<Vec<WgslDispatch>> {
    let acc = *l.attr == Attr::Acc(true);
    let kept = l.ins.len() - acc as usize;
    let (rows, cols, dtype) = (l.ins[1].rows(), l.ins[1].cols(), l.ins[1].dtype);
    let units = cols / launch::unit(dtype);
    let work = Arg::Work(0..dw_workspace(l.attr, l.ins, l.caps));
    // Ranges of whole blocks, so that a block's sum is the same however the rows are split.
    let step = launch::rows_of(dtype, rows, cols, l.caps).first().map_or(rows, |r| r.len());
    let step = if step < rows { (step / DW_ROWS).max(1) * DW_ROWS } else { rows };
    let mut dispatches: Vec<WgslDispatch> = (0..rows)
        .step_by(step)
        .map(|start| {
            let range = start..(start + step).min(rows);
            let part = |i| Arg::InPart(i, launch::bytes_of(dtype, &range, cols));
            WgslDispatch {
                shader: "norm",
                defines: first.iter().copied().chain(launch::half(dtype)).collect(),
                entry: "norm_dw",
                constants: vec![("ROWS", DW_ROWS as f64)],
                grid: [units.div_ceil(16) as u32, range.len().div_ceil(DW_ROWS) as u32, 1],
                args: [part(0), part(1)].into_iter().chain((2..kept).map(Arg::In)).chain([work.clone()]).collect(),
                params: vec![range.len() as u32, range.start as u32, units as u32, 0, 0],
                flops: 3 * (range.len() * cols) as u64,
            }
        })
        .collect();
    let apart = acc && l.shared[0].is_none();
    let (mut defines, mut args) = (vec!["DW_SUM"], vec![Arg::Out(0)]);
    if apart {
        defines.push("ACC");
        args.push(Arg::In(kept));
    }
    args.push(work);
    dispatches.push(WgslDispatch {
        shader: "norm",
        defines,
        entry: "norm_dw_sum",
        constants: vec![("ADD", (acc && !apart) as u8 as f64)],
        grid: [cols.div_ceil(16) as u32, 1, 1],
        args,
        params: vec![rows.div_ceil(DW_ROWS) as u32, 0, cols as u32, 0, 0],
        flops: (rows.div_ceil(DW_ROWS) * cols) as u64,
    });
    Ok(dispatches)
}

/// What the samples have in common: a name, rows, features, eps and offset.
const SHAPES: [(&str, usize, usize, f32, f32); 10] = [
    ("one element", 1, 1, 0.5, 0.0),
    ("one row", 1, 33, 1e-5, 0.0),
    ("odd", 7, 65, 1e-6, 0.0),
    ("Gemma's offset", 5, 96, 1e-6, 1.0),
    ("large eps", 3, 17, 0.5, 0.0),
    ("many short rows", 129, 8, 1e-5, 0.0),
    ("several blocks of rows", 600, 35, 1e-5, 0.0),
    ("aligned heads", 9, 128, 1e-6, 0.0),
    ("wider than a warp keeps", 3, 1032, 1e-5, 0.0),
    ("wider than a warp keeps, crooked", 2, 1030, 1e-5, 0.0),
];

fn samples_norm() -> Vec<Sample> {
    let sample = |(name, r, d, eps, offset)| {
        let ins = vec![SampleIn::normal(Ty::f32(&[r, d])), SampleIn::normal(Ty::f32(&[d]))];
        Sample::new(name, Attr::Norm(Norm { eps, offset, acc: false }), ins)
    };
    SHAPES.into_iter().map(sample).collect()
}

/// rstd of the second operand, x.
fn rstd_of(attr: &Attr, ins: &[Tensor]) -> Tensor {
    let eps = if let Attr::Norm(n) = attr { n.eps } else { 1e-6 };
    let x = &ins[1];
    let ones = Tensor::new(&[x.cols()], vec![1.0; x.cols()]);
    let forward = Attr::Norm(Norm { eps, offset: 0.0, acc: false });
    reference_norm(&forward, &[x.clone(), ones]).swap_remove(1)
}

fn samples_dx() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (name, r, d, eps, offset) in SHAPES {
        for acc in [false, true] {
            let x = Ty::f32(&[r, d]);
            let mut ins = vec![
                SampleIn::normal(x.clone()),
                SampleIn::normal(x.clone()),
                SampleIn::normal(Ty::f32(&[d])),
                SampleIn::derived(Ty::f32(&[r]), rstd_of),
            ];
            ins.extend(acc.then(|| SampleIn::normal(x)));
            samples.push(Sample::new(name, Attr::Norm(Norm { eps, offset, acc }), ins));
        }
    }
    samples
}

fn samples_dw() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (name, r, d, ..) in SHAPES {
        for acc in [false, true] {
            let x = Ty::f32(&[r, d]);
            let mut ins =
                vec![SampleIn::normal(x.clone()), SampleIn::normal(x), SampleIn::derived(Ty::f32(&[r]), rstd_of)];
            ins.extend(acc.then(|| SampleIn::normal(Ty::f32(&[d]))));
            samples.push(Sample::new(name, Attr::Acc(acc), ins));
        }
    }
    samples
}

fn case_attr(acc: bool) -> Attr {
    Attr::Norm(Norm { eps: 1e-5, offset: 0.0, acc })
}

/// What the forward op gives for standard normal rows.
fn case_rstd(s: &Sizes) -> SampleIn {
    SampleIn::constant(Ty::f32(&[s.tokens]), 1.0)
}
