//! Dense f32 products and column sums: the thin low-rank products and every weight gradient.

mod cuda;

use half::bf16;

use crate::cpu::act::{Act, convert};
use crate::cpu::gemm::{Mat, Store, Term, gemm, gemm_bf16, gemm_narrow};
use crate::cpu::par;
use crate::device::Target;
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::dense::{self, Product};
use crate::ops::tiles;
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Grad, HostCall, Lower, Matmul, OpDef, Sample, SampleIn, Tensor, WgslDispatch,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&MATMUL, &SUM_ROWS];

/// `C[m,n] = alpha · op(A)[m,k] · op(B)[k,n] (+ acc[m,n])`, all f32; `op` transposes where `ta`, `tb` say so.
pub static MATMUL: OpDef = OpDef {
    name: "matmul",
    infer: infer_matmul,
    reference: reference_matmul,
    grad: Grad::Rule(grad_matmul),
    accumulates: true,
    batched: true,
    in_place: &[(2, 0)],
    cost: |attr, ins, _| {
        let (m, n, k) = dims(matmul_attr(attr), ins);
        Cost { flops: 2 * (m * n * k) as u64, terms: k + 1 }
    },
    workspace: |attr, ins, caps| match caps.target {
        Target::Cuda => tiles::workspace(dims(matmul_attr(attr), ins), caps),
        Target::Wgsl => {
            dense::split(matmul_attr(attr), dims(matmul_attr(attr), ins), false, ins[0].dtype, caps).bytes()
        }
        // The sums of a product that is rounded.
        Target::Host if ins[0].dtype == DType::BF16 && !matmul_attr(attr).ta => {
            let (m, n, _) = dims(matmul_attr(attr), ins);
            4 * (m * n) as u64
        }
        _ => 0,
    },
    host: host_matmul,
    narrow: true,
    // All is read by fours.
    wgsl_half: |attr, ins, _| {
        let ((m, n, k), Matmul { ta, tb, .. }) = (dims(matmul_attr(attr), ins), matmul_attr(attr));
        [if ta { m } else { k }, if tb { k } else { n }, n].iter().all(|x| x.is_multiple_of(4))
    },
    wgsl: wgsl_matmul,
    cuda: cuda::matmul,
    // A sum over tokens is the gradient of a weight, and f32; else b is a weight and the product an activation.
    acts: |attr| match matmul_attr(attr).ta {
        true => Acts { ins: &[0, 1], outs: &[] },
        false => Acts { ins: &[0, 2], outs: &[0] },
    },
    samples: samples_matmul,
    cases: |s| {
        // Gradients are sums over tokens; those of low-rank factors are thin.
        let gradient = |name, m, n| {
            let attr = Matmul { ta: true, tb: false, alpha: 1.0, acc: true };
            let ins = [[s.tokens, m], [s.tokens, n], [m, n]].map(|shape| SampleIn::f32(&shape));
            Case::new(name, Attr::Matmul(attr), ins.to_vec()).in_place(&[(2, 0)])
        };
        let attr = Matmul { ta: false, tb: false, alpha: 1.0, acc: false };
        let ins = [[s.tokens, s.mlp], [s.mlp, s.rank]].map(|shape| SampleIn::f32(&shape));
        vec![
            gradient("weight gradient", s.mlp, s.hidden),
            gradient("low-rank gradient, wide", s.rank, s.mlp),
            gradient("low-rank gradient, tall", s.mlp, s.rank),
            Case::new("low-rank, down", Attr::Matmul(attr), ins.to_vec()),
        ]
    },
    ..OpDef::COMPUTE
};

/// `y[n] = Σ_t x[t,n] (+ acc[n])`: the gradient of a bias.
pub static SUM_ROWS: OpDef = OpDef {
    name: "sum_rows",
    infer: |attr, ins| {
        let acc = *attr == Attr::Acc(true);
        match ins {
            [x] if !acc && x.shape.len() == 2 && x.dtype == DType::F32 => Ok(vec![Ty::f32(&[x.cols()])]),
            [x, c] if acc && x.shape.len() == 2 && x.dtype == DType::F32 && *c == Ty::f32(&[x.cols()]) => {
                Ok(vec![c.clone()])
            }
            _ => Err(format!("{ins:?}; expected a matrix and, to accumulate, a row of its width")),
        }
    },
    reference: |_, ins| {
        let x = &ins[0];
        let mut y = ins.get(1).cloned().unwrap_or_else(|| Tensor::zeros(&[x.cols()]));
        for t in 0..x.rows() {
            for (sum, v) in y.data.iter_mut().zip(x.row(t)) {
                *sum += v;
            }
        }
        vec![y]
    },
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(1, 0)],
    cost: |_, ins, _| Cost { flops: ins[0].len() as u64, terms: ins[0].rows() + 1 },
    host: by_act!(host_sum_rows),
    narrow: true,
    wgsl: wgsl_sum_rows,
    cuda: cuda::sum_rows,
    acts: |_| Acts { ins: &[0], outs: &[] },
    samples: || {
        let m = |t, n| SampleIn::normal(Ty::f32(&[t, n]));
        vec![
            Sample::new("odd", Attr::Acc(false), vec![m(7, 33)]),
            Sample::new("one row", Attr::Acc(false), vec![m(1, 5)]),
            Sample::new("large, accumulating", Attr::Acc(true), vec![m(300, 65), SampleIn::normal(Ty::f32(&[65]))]),
            Sample::new("tall, accumulating", Attr::Acc(true), vec![m(130, 65), SampleIn::normal(Ty::f32(&[65]))]),
        ]
    },
    cases: |s| vec![Case::new("bias gradient", Attr::Acc(false), vec![SampleIn::f32(&[s.tokens, s.mlp])])],
    ..OpDef::COMPUTE
};

impl Graph {
    /// `alpha · op(a) · op(b)`.
    pub fn matmul(&mut self, a: Val, ta: bool, b: Val, tb: bool, alpha: f32) -> Result<Val> {
        Ok(self.node(&MATMUL, Attr::Matmul(Matmul { ta, tb, alpha, acc: false }), &[a, b])?[0])
    }

    /// Column sums of a matrix.
    pub fn sum_rows(&mut self, x: Val) -> Result<Val> {
        Ok(self.node(&SUM_ROWS, Attr::Acc(false), &[x])?[0])
    }
}

fn matmul_attr(attr: &Attr) -> Matmul {
    match attr {
        Attr::Matmul(m) => *m,
        _ => Matmul { ta: false, tb: false, alpha: 1.0, acc: false },
    }
}

/// (m, n, k)
fn dims(m: Matmul, ins: &[Ty]) -> (usize, usize, usize) {
    let (a, b) = (&ins[0].shape, &ins[1].shape);
    let (rows, k) = if m.ta { (a[1], a[0]) } else { (a[0], a[1]) };
    (rows, if m.tb { b[0] } else { b[1] }, k)
}

fn infer_matmul(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let m = matmul_attr(attr);
    let expected = if m.acc { 3 } else { 2 };
    if ins.len() != expected || ins.iter().any(|t| t.shape.len() != 2 || t.dtype != DType::F32) {
        return Err(format!("{ins:?}; expected {expected} f32 matrices"));
    }
    let (rows, n, k) = dims(m, ins);
    let kb = if m.tb { ins[1].shape[1] } else { ins[1].shape[0] };
    let c = Ty::f32(&[rows, n]);
    if k != kb || ins.get(2).is_some_and(|acc| *acc != c) {
        return Err(format!("shapes {:?}, {:?} with {m:?} do not fit", ins[0].shape, ins[1].shape));
    }
    Ok(vec![c])
}

fn reference_matmul(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let m = matmul_attr(attr);
    let (a, b) = (&ins[0], &ins[1]);
    let (rows, k) = if m.ta { (a.cols(), a.rows()) } else { (a.rows(), a.cols()) };
    let n = if m.tb { b.rows() } else { b.cols() };
    let mut c = ins.get(2).cloned().unwrap_or_else(|| Tensor::zeros(&[rows, n]));
    for i in 0..rows {
        for j in 0..n {
            let mut sum = 0.0;
            for p in 0..k {
                let x = if m.ta { a.at(p, i) } else { a.at(i, p) };
                let y = if m.tb { b.at(j, p) } else { b.at(p, j) };
                sum += x * y;
            }
            c.data[i * n + j] += m.alpha as f64 * sum;
        }
    }
    vec![c]
}

/// With C = α·op(A)·op(B): dA = α·dC·op(B)ᵀ and dB = α·op(A)ᵀ·dC, each transposed back where A or B was.
fn grad_matmul(g: &mut Graph, node: &Node, dys: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let m = matmul_attr(&node.attr);
    let (a, b) = (node.ins[0], node.ins[1]);
    let Some(dc) = dys[0] else { return Ok(vec![None; node.ins.len()]) };
    let da = match (wants[0], m.ta) {
        (false, _) => None,
        (true, false) => Some(g.matmul(dc, false, b, !m.tb, m.alpha)?),
        (true, true) => Some(g.matmul(b, m.tb, dc, true, m.alpha)?),
    };
    let db = match (wants[1], m.tb) {
        (false, _) => None,
        (true, false) => Some(g.matmul(a, !m.ta, dc, false, m.alpha)?),
        (true, true) => Some(g.matmul(dc, true, a, m.ta, m.alpha)?),
    };
    let mut grads = vec![da, db];
    if m.acc {
        grads.push(wants[2].then_some(dc));
    }
    Ok(grads)
}

/// An f32 operand, transposed if `t`.
pub fn mat(data: &[f32], rows: usize, cols: usize, t: bool) -> Mat<'_> {
    let m = Mat::row_major(Store::F32(data), rows, cols);
    if t { m.t() } else { m }
}

/// The same in bf16; there may be half a word after it.
pub fn narrow_mat(data: &[bf16], rows: usize, cols: usize, t: bool) -> Mat<'_> {
    let m = Mat::row_major(Store::Bf16(&data[..rows * cols]), rows, cols);
    if t { m.t() } else { m }
}

fn host_matmul(call: &HostCall) {
    let m = matmul_attr(call.attr);
    if call.ins[0].dtype == DType::BF16 {
        return narrow_matmul(call, m);
    }
    let (a, b) = (&call.ins[0], &call.ins[1]);
    let c = if m.acc { call.accumulator(2, 0) } else { call.output::<f32>(0) };
    let term = Term {
        alpha: m.alpha,
        a: mat(call.input(0), a.shape[0], a.shape[1], m.ta),
        b: mat(call.input(1), b.shape[0], b.shape[1], m.tb),
    };
    gemm(&[term], if m.acc { 1.0 } else { 0.0 }, None, c, call.outs[0].cols());
}

/// The product of activations in bf16, which is one where it is no sum over tokens.
fn narrow_matmul(call: &HostCall, m: Matmul) {
    let (a, b, n) = (&call.ins[0], &call.ins[1], call.outs[0].cols());
    let (beta, a) = (m.acc as u8 as f32, narrow_mat(call.input(0), a.shape[0], a.shape[1], m.ta));
    if m.ta {
        let c = if m.acc { call.accumulator(2, 0) } else { call.output::<f32>(0) };
        let b = narrow_mat(call.input(1), b.shape[0], b.shape[1], m.tb);
        return gemm_narrow(&[Term { alpha: m.alpha, a, b }], beta, c, n);
    }
    let (c, sums) = (call.output::<bf16>(0), &mut call.work::<f32>()[..call.outs[0].len()]);
    if m.acc {
        convert(sums, call.input::<bf16>(2));
    }
    let b = mat(call.input(1), b.shape[0], b.shape[1], m.tb);
    gemm_bf16(&[Term { alpha: m.alpha, a, b }], beta, None, sums, c, n);
}

fn host_sum_rows<A: Act>(call: &HostCall) {
    let x = call.input::<A>(0);
    let n = call.ins[0].cols();
    let y = match call.attr {
        Attr::Acc(true) => call.accumulator(1, 0),
        _ => {
            let y = call.output::<f32>(0);
            y.fill(0.0);
            y
        }
    };
    par::chunks(y, 256, |piece, sums| {
        let first = piece * 256;
        for row in x.chunks_exact(n) {
            for (sum, v) in sums.iter_mut().zip(&row[first..]) {
                *sum += v.widen();
            }
        }
    });
}

fn wgsl_matmul(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let spec = matmul_attr(l.attr);
    let act = l.ins[0].dtype;
    let in_c = spec.acc && l.shared[0] == Some(2);
    let product = Product {
        spec,
        dims: dims(spec, l.ins),
        c: &|r| Arg::OutPart(0, r),
        a: &|r| Arg::InPart(0, r),
        b: &|r| Arg::InPart(1, r),
        acc: (spec.acc && !in_c).then_some(&|r| Arg::InPart(2, r)),
        acc_in_c: in_c,
        dropout: None,
        act,
        split: dense::split(spec, dims(spec, l.ins), false, act, l.caps),
    };
    Ok(product.dispatches(l.caps))
}

fn wgsl_sum_rows(l: &Lower) -> Result<Vec<WgslDispatch>> {
    Ok(dense::sum_rows(l, *l.attr == Attr::Acc(true)))
}

fn samples_matmul() -> Vec<Sample> {
    let m = |r, c| SampleIn::normal(Ty::f32(&[r, c]));
    let attr = |ta, tb, alpha, acc| Attr::Matmul(Matmul { ta, tb, alpha, acc });
    vec![
        Sample::new("plain", attr(false, false, 1.0, false), vec![m(3, 7), m(7, 5)]),
        Sample::new("nt", attr(false, true, 0.5, false), vec![m(33, 17), m(65, 17)]),
        Sample::new("tn", attr(true, false, 1.0, false), vec![m(17, 33), m(17, 9)]),
        Sample::new("tt", attr(true, true, 2.0, false), vec![m(17, 3), m(9, 17)]),
        Sample::new("accumulating", attr(true, false, 1.0, true), vec![m(31, 16), m(31, 65), m(16, 65)]),
        Sample::new("one by one", attr(false, false, 1.0, false), vec![m(1, 1), m(1, 1)]),
        Sample::new("thin n", attr(false, true, 1.0, false), vec![m(70, 100), m(4, 100)]),
        Sample::new("thin k", attr(false, false, 2.0, true), vec![m(67, 4), m(4, 70), m(67, 70)]),
        Sample::new("tiles", attr(false, true, 1.0, false), vec![m(128, 64), m(64, 64)]),
        // More than 64 KiB each: tests set a device's largest binding to that.
        Sample::new("large nn", attr(false, false, 1.0, true), vec![m(200, 100), m(100, 180), m(200, 180)]),
        Sample::new("large nt", attr(false, true, 1.0, false), vec![m(200, 100), m(180, 100)]),
        Sample::new("large tn", attr(true, false, 0.5, true), vec![m(100, 200), m(100, 180), m(200, 180)]),
        Sample::new("large tt", attr(true, true, 1.0, false), vec![m(100, 200), m(180, 100)]),
        Sample::new("thin m", attr(true, false, 1.0, false), vec![m(90, 5), m(90, 130)]),
        Sample::new("thin m by fours", attr(true, false, 1.0, false), vec![m(90, 8), m(90, 132)]),
        // Sums so long that CUDA splits them where tiles are not thin, and so many tiles that it takes the large ones.
        Sample::new("long, few tiles", attr(false, true, 2.0, true), vec![m(70, 600), m(40, 600), m(70, 40)]),
        Sample::new("long, few tiles tn", attr(true, false, 0.5, true), vec![m(600, 40), m(600, 72), m(40, 72)]),
        Sample::new("long thin m", attr(true, false, 0.5, true), vec![m(600, 5), m(600, 72), m(5, 72)]),
        Sample::new("long thin n", attr(false, true, 2.0, true), vec![m(70, 600), m(8, 600), m(70, 8)]),
        Sample::new("many tiles", attr(false, true, 1.0, true), vec![m(904, 40), m(1000, 40), m(904, 1000)]),
        Sample::new("many tiles tn", attr(true, false, 1.0, false), vec![m(33, 904), m(33, 1000)]),
        // CUDA's tiles for wgmma, of which half a card's multiprocessors have one.
        Sample::new("many wide tiles tn", attr(true, false, 0.5, true), vec![m(33, 904), m(33, 1544), m(904, 1544)]),
    ]
}
