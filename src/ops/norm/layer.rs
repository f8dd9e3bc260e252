//! Layer normalization (Ba, Kiros & Hinton 2016) and its gradients.
//!
//! `y = n · w + b` with `n = (x − mean) · rstd`, `mean` that of each row, `rstd = 1 / √(var + eps)` and the variance that
//! divides by the number of features. Kernels take it from deviations from the mean, never from the mean of squares, so a
//! mean far from 0 costs no digits of it. Attributes are [`Norm`]'s, with an offset of 0.
//!
//! The gradient of `b` is the sum of `dy` over the rows: `sum_rows`.

use super::{SHAPES, by_fours, case_attr, case_rstd, cuda, dw_workspace, grain, matrix, norm, over_rows, wgsl_dw};
use crate::cpu::act::Act;
use crate::cpu::{math, par};
use crate::dtype::Ty;
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Fill, Grad, HostCall, Lower, Norm, OpDef, Sample, SampleIn, Sizes, Tensor,
    WgslDispatch, check, launch,
};

/// `layer_norm` [x F32[R,D], w F32[D], b F32[D]] → y F32[R,D], mean F32[R], rstd F32[R].
pub static LAYER_NORM: OpDef = OpDef {
    name: "layer_norm",
    infer: infer_norm,
    reference: reference_norm,
    grad: Grad::Rule(norm_rule),
    cost: |_, ins, _| Cost { flops: 8 * ins[0].len() as u64, terms: ins[0].cols() },
    host: by_act!(host_norm),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: wgsl_norm,
    cuda: cuda::layer_norm,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: samples_norm,
    cases: |s| {
        let row = || SampleIn::f32(&[s.hidden]);
        vec![Case::new("tokens", case_attr(false), vec![SampleIn::f32(&[s.tokens, s.hidden]), row(), row()])]
    },
    ..OpDef::COMPUTE
};

/// `layer_norm_dx` [dy F32[R,D], x F32[R,D], w F32[D], mean F32[R], rstd F32[R], acc? F32[R,D]] → dx F32[R,D]
/// = rstd·(g − mean(g) − n·mean(g·n)) (+ acc), where g = dy·w and means are over a row.
pub static LAYER_NORM_DX: OpDef = OpDef {
    name: "layer_norm_dx",
    accumulates: true,
    infer: infer_dx,
    reference: reference_dx,
    grad: Grad::Missing,
    in_place: &[(5, 0), (0, 0)],
    cost: |_, ins, _| Cost { flops: 12 * ins[0].len() as u64, terms: ins[0].cols() },
    host: by_act!(host_dx),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: wgsl_dx,
    cuda: cuda::layer_norm_dx,
    acts: |_| Acts { ins: &[0, 1, 5], outs: &[0] },
    samples: samples_dx,
    cases: |s| {
        let x = || SampleIn::f32(&[s.tokens, s.hidden]);
        let ins = vec![x(), x(), SampleIn::f32(&[s.hidden]), case_mean(s), case_rstd(s), x()];
        vec![Case::new("residual", case_attr(true), ins).in_place(&[(5, 0)])]
    },
    ..OpDef::COMPUTE
};

/// `layer_norm_dw` [dy F32[R,D], x F32[R,D], mean F32[R], rstd F32[R], acc? F32[D]] → dw F32[D] = Σ_r dy·n (+ acc).
pub static LAYER_NORM_DW: OpDef = OpDef {
    name: "layer_norm_dw",
    accumulates: true,
    infer: infer_dw,
    reference: reference_dw,
    grad: Grad::Missing,
    in_place: &[(4, 0)],
    cost: |_, ins, _| Cost { flops: 4 * ins[0].len() as u64, terms: ins[0].rows() },
    workspace: dw_workspace,
    host: by_act!(host_dw),
    narrow: true,
    wgsl_half: by_fours,
    wgsl: |l| wgsl_dw(l, vec!["DW", "MEAN"]),
    cuda: cuda::layer_norm_dw,
    acts: |_| Acts { ins: &[0, 1], outs: &[] },
    samples: samples_dw,
    cases: |s| {
        let x = || SampleIn::f32(&[s.tokens, s.hidden]);
        vec![Case::new("tokens", Attr::Acc(false), vec![x(), x(), case_mean(s), case_rstd(s)])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// `y = (x − mean) · w / √(var + eps) + b` over the last dimension of `x`.
    pub fn layer_norm(&mut self, x: Val, w: Val, b: Val, eps: f32) -> Result<Val> {
        let attr = Attr::Norm(Norm { eps, offset: 0.0, acc: false });
        Ok(self.node(&LAYER_NORM, attr, &[x, w, b])?[0])
    }
}

fn infer_norm(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Norm(Norm { offset: 0.0, acc: false, .. }), [x, w, b]) = (attr, ins) else {
        return Err(check::refuse("x, w, b and Norm without an offset", attr, ins));
    };
    matrix(x)?;
    check::is("w", w, &Ty::f32(&[x.cols()]))?;
    check::is("b", b, &Ty::f32(&[x.cols()]))?;
    Ok(vec![x.clone(), Ty::f32(&[x.rows()]), Ty::f32(&[x.rows()])])
}

fn infer_dx(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Norm(Norm { offset: 0.0, acc: with, .. }), [dy, x, w, mean, rstd, acc @ ..]) = (attr, ins) else {
        return Err(check::refuse("dy, x, w, mean, rstd and Norm without an offset", attr, ins));
    };
    matrix(x)?;
    check::is("dy", dy, x)?;
    check::is("w", w, &Ty::f32(&[x.cols()]))?;
    check::is("mean", mean, &Ty::f32(&[x.rows()]))?;
    check::is("rstd", rstd, &Ty::f32(&[x.rows()]))?;
    check::acc(*with, acc, x)?;
    Ok(vec![x.clone()])
}

fn infer_dw(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Acc(with), [dy, x, mean, rstd, acc @ ..]) = (attr, ins) else {
        return Err(check::refuse("dy, x, mean, rstd and Acc", attr, ins));
    };
    matrix(x)?;
    check::is("dy", dy, x)?;
    check::is("mean", mean, &Ty::f32(&[x.rows()]))?;
    check::is("rstd", rstd, &Ty::f32(&[x.rows()]))?;
    let dw = Ty::f32(&[x.cols()]);
    check::acc(*with, acc, &dw)?;
    Ok(vec![dw])
}

fn average(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len() as f64;
    x.sum::<f64>() / n
}

fn reference_norm(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let (x, w, b) = (&ins[0], &ins[1], &ins[2]);
    let mut y = Tensor::zeros(&x.shape);
    let (mut mean, mut rstd) = (Tensor::zeros(&[x.rows()]), Tensor::zeros(&[x.rows()]));
    for r in 0..x.rows() {
        let m = average(x.row(r).iter().copied());
        let s = 1.0 / (average(x.row(r).iter().map(|x| (x - m) * (x - m))) + norm(attr).eps as f64).sqrt();
        (mean.data[r], rstd.data[r]) = (m, s);
        for (i, y) in y.row_mut(r).iter_mut().enumerate() {
            *y = (x.at(r, i) - m) * s * w.data[i] + b.data[i];
        }
    }
    vec![y, mean, rstd]
}

fn reference_dx(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let (dy, x, w, mean, rstd) = (&ins[0], &ins[1], &ins[2], &ins[3], &ins[4]);
    let mut dx = if norm(attr).acc { ins[5].clone() } else { Tensor::zeros(&x.shape) };
    for r in 0..x.rows() {
        let (m, s) = (mean.data[r], rstd.data[r]);
        let n: Vec<f64> = x.row(r).iter().map(|x| (x - m) * s).collect();
        let g: Vec<f64> = dy.row(r).iter().zip(&w.data).map(|(dy, w)| dy * w).collect();
        // The gradient's parts along the row of ones and along n, which the norm takes away.
        let all = average(g.iter().copied());
        let along = average(g.iter().zip(&n).map(|(g, n)| g * n));
        for (i, dx) in dx.row_mut(r).iter_mut().enumerate() {
            *dx += s * (g[i] - all - n[i] * along);
        }
    }
    vec![dx]
}

fn reference_dw(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let (dy, x, mean, rstd) = (&ins[0], &ins[1], &ins[2], &ins[3]);
    let mut dw = if *attr == Attr::Acc(true) { ins[4].clone() } else { Tensor::zeros(&[x.cols()]) };
    for r in 0..x.rows() {
        for (i, dw) in dw.data.iter_mut().enumerate() {
            *dw += dy.at(r, i) * (x.at(r, i) - mean.data[r]) * rstd.data[r];
        }
    }
    vec![dw]
}

fn norm_rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let Some(dy) = grads[0] else { return Ok(vec![None; 3]) };
    let (x, w, mean, rstd) = (node.ins[0], node.ins[1], node.outs[1], node.outs[2]);
    let dx = match wants[0] {
        true => Some(g.node(&LAYER_NORM_DX, node.attr.clone(), &[dy, x, w, mean, rstd])?[0]),
        false => None,
    };
    let dw = match wants[1] {
        true => Some(g.node(&LAYER_NORM_DW, Attr::Acc(false), &[dy, x, mean, rstd])?[0]),
        false => None,
    };
    let db = match wants[2] {
        true => {
            let shape = [g.ty(x).rows(), g.ty(x).cols()];
            let dy = if g.shape(dy) == shape { dy } else { g.reshape(dy, &shape)? };
            Some(g.sum_rows(dy)?)
        }
        false => None,
    };
    Ok(vec![dx, dw, db])
}

fn host_norm<A: Act>(call: &HostCall) {
    let eps = norm(call.attr).eps;
    let d = call.ins[0].cols();
    let (x, w, b) = (call.input::<A>(0), call.input::<f32>(1), call.input::<f32>(2));
    let (w, b) = (&w[..d], &b[..d]);
    let (y, mean, rstd) = (call.output_ptr::<A>(0), call.output_ptr::<f32>(1), call.output_ptr::<f32>(2));
    par::ranges(call.ins[0].rows(), grain(d), |rows| {
        let (mut wide, mut c) = (vec![0f32; A::buffer(d)], vec![0f32; d]);
        let c = &mut c[..d];
        math::vectorized!({
            for r in rows {
                let x = &A::row(&x[r * d..][..d], &mut wide)[..d];
                // SAFETY: row r of an output that overlaps nothing (module contract); tasks have disjoint rows.
                let y = unsafe { std::slice::from_raw_parts_mut(y.add(r * d), d) };
                // The mean but for the rounding of its sum; what that took away is the mean of the deviations.
                let about = math::sum(x) / d as f32;
                for i in 0..d {
                    c[i] = x[i] - about;
                }
                let above = math::sum(c) / d as f32;
                let variance = math::dot(c, c) / d as f32 - above * above;
                let s = 1.0 / (variance.max(0.0) + eps).sqrt();
                for i in 0..d {
                    y[i] = A::round((c[i] - above) * s * w[i] + b[i]);
                }
                // SAFETY: as above.
                unsafe {
                    *mean.add(r) = about + above;
                    *rstd.add(r) = s;
                }
            }
        });
    });
}

fn host_dx<A: Act>(call: &HostCall) {
    let d = call.ins[1].cols();
    let (x, w) = (call.input::<A>(1), call.input::<f32>(2));
    let (mean, rstd) = (call.input::<f32>(3), call.input::<f32>(4));
    let (dx, dy) = (call.output_ptr::<A>(0), call.input_ptr::<A>(0));
    let acc = norm(call.attr).acc.then(|| call.input_ptr::<A>(5));
    par::ranges(call.ins[1].rows(), grain(d), |rows| {
        // dx may have the place of dy or acc, so a row's gradient is made apart.
        let mut wide = vec![0f32; A::buffer(d)];
        let (mut g, mut n, mut sum) = (vec![0f32; d], vec![0f32; d], vec![0f32; d]);
        // Lengths that the compiler sees, so that the loops have no checks.
        let (g, n, sum, w) = (&mut g[..d], &mut n[..d], &mut sum[..d], &w[..d]);
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
                let (m, s) = (mean[r], rstd[r]);
                for i in 0..d {
                    g[i] *= w[i];
                    n[i] = (x[i] - m) * s;
                }
                let all = math::sum(g) / d as f32;
                let along = math::dot(g, n) / d as f32;
                for i in 0..d {
                    g[i] = s * (g[i] - all - n[i] * along) + sum[i];
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
    let (dy, x) = (call.input::<A>(0), call.input::<A>(1));
    let (mean, rstd) = (call.input::<f32>(2), call.input::<f32>(3));
    let dw = call.output_ptr::<f32>(0);
    let acc = (*call.attr == Attr::Acc(true)).then(|| call.input_ptr::<f32>(4));
    par::ranges(d, COLS, |cols| {
        let (start, n) = (cols.start, cols.len());
        let mut sum = [0f32; COLS];
        math::vectorized!({
            for r in 0..rows {
                let (dy, x) = (&dy[r * d + start..][..n], &x[r * d + start..][..n]);
                let (m, s) = (mean[r], rstd[r]);
                for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
                    *sum += dy.widen() * ((x.widen() - m) * s);
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

fn wgsl_norm(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let cols = l.ins[0].cols();
    let dispatch = |range: std::ops::Range<usize>| {
        let part = launch::bytes_of(l.ins[0].dtype, &range, cols);
        let outs = [Arg::OutPart(0, part.clone()), Arg::Out(1), Arg::Out(2)];
        let args = outs.into_iter().chain([Arg::InPart(0, part), Arg::In(1), Arg::In(2)]).collect();
        over_rows(l, "norm_layer", "layer_norm", vec!["FORWARD"], args, &range)
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
        args.extend([part(1), Arg::In(2), Arg::In(3), Arg::In(4)]);
        if acc {
            defines.push("ACC");
            match l.shared[0] {
                Some(5) => defines.push("IN_ACC"),
                _ => args.push(part(5)),
            }
        }
        over_rows(l, "norm_layer", "layer_norm_dx", defines, args, &range)
    };
    Ok(launch::rows_of(l.ins[1].dtype, l.ins[1].rows(), cols, l.caps).into_iter().map(dispatch).collect())
}

/// What the samples have in common: a name, eps, and `x`.
fn shapes() -> Vec<(&'static str, f32, SampleIn)> {
    // Rows, features, and the numbers between which all values are. A row of 128 takes a warp that keeps it, one of 257
    // is read in each pass, one of 1032 takes a block.
    let far = [
        ("a mean of some deviations", 5, 96, 8.0, 12.0),
        ("a mean of thousands of deviations", 9, 128, 1000.0, 1001.0),
        ("a mean of thousands of deviations, crooked", 6, 257, 1000.0, 1001.0),
        ("a mean of thousands of deviations, wide", 2, 1032, -1001.0, -1000.0),
    ];
    let near = SHAPES.iter().filter(|s| s.4 == 0.0);
    near.map(|&(name, r, d, eps, _)| (name, eps, SampleIn::normal(Ty::f32(&[r, d]))))
        .chain(far.map(|(name, r, d, lo, hi)| (name, 1e-5, SampleIn::uniform(Ty::f32(&[r, d]), lo, hi))))
        .collect()
}

fn samples_norm() -> Vec<Sample> {
    let sample = |(name, eps, x): (&'static str, f32, SampleIn)| {
        let row = SampleIn::normal(Ty::f32(&[x.ty.cols()]));
        Sample::new(name, Attr::Norm(Norm { eps, offset: 0.0, acc: false }), vec![x, row.clone(), row])
    };
    shapes().into_iter().map(sample).collect()
}

/// Output `out` of the forward op on the second operand, x.
fn forward(attr: &Attr, ins: &[Tensor], out: usize) -> Tensor {
    let eps = if let Attr::Norm(n) = attr { n.eps } else { 1e-6 };
    let row = Tensor::zeros(&[ins[1].cols()]);
    reference_norm(&Attr::Norm(Norm { eps, offset: 0.0, acc: false }), &[ins[1].clone(), row.clone(), row])
        .swap_remove(out)
}

/// What the forward op keeps of x.
fn kept(x: &Ty) -> [SampleIn; 2] {
    let row = Ty::f32(&[x.rows()]);
    [
        SampleIn::derived(row.clone(), |attr, ins| forward(attr, ins, 1)),
        SampleIn::derived(row, |attr, ins| forward(attr, ins, 2)),
    ]
}

fn samples_dx() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (name, eps, x) in shapes() {
        for acc in [false, true] {
            let dy = SampleIn::normal(x.ty.clone());
            let mut ins = vec![dy.clone(), x.clone(), SampleIn::normal(Ty::f32(&[x.ty.cols()]))];
            ins.extend(kept(&x.ty));
            ins.extend(acc.then_some(dy));
            samples.push(Sample::new(name, Attr::Norm(Norm { eps, offset: 0.0, acc }), ins));
        }
    }
    samples
}

fn samples_dw() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (name, _, x) in shapes() {
        for acc in [false, true] {
            let mut ins = vec![SampleIn::normal(x.ty.clone()), x.clone()];
            ins.extend(kept(&x.ty));
            ins.extend(acc.then(|| SampleIn::normal(Ty::f32(&[x.ty.cols()]))));
            samples.push(Sample::new(name, Attr::Acc(acc), ins));
        }
    }
    samples
}

/// About what the forward op gives for standard normal rows.
fn case_mean(s: &Sizes) -> SampleIn {
    SampleIn { ty: Ty::f32(&[s.tokens]), fill: Fill::Normal(0.1) }
}
