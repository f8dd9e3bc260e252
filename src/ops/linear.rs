//! Linear layers over a weight stored in any format, with their low-rank part inside.
//!
//! `y = x Wᵀ + bias + s·(x̃ Aᵀ) Bᵀ = [x | s·x̃Aᵀ]·[W | B]ᵀ + bias` with `x̃ = dropout(x)`: the thin product `x̃Aᵀ` first,
//! then a main loop that runs `rank` columns longer (Hu et al. 2021, arXiv:2106.09685). Quantization is how W is
//! stored, so QLoRA (Dettmers et al. 2023, arXiv:2305.14314) is this op on an NF4 weight.

pub(in crate::ops) mod cuda;

use half::bf16;

use crate::cpu::act::{Act, convert};
use crate::cpu::gemm::{Term, gemm, gemm_bf16, gemm_narrow};
use crate::cpu::par;
use crate::cpu::philox::Mask;
use crate::cpu::weight::weight;
use crate::device::{Caps, Target};
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::dense::{self, LowRank};
use crate::ops::elementwise;
use crate::ops::matmul::{mat, narrow_mat};
use crate::ops::{
    Acts, Attr, Case, Cost, Dropout, Grad, HostCall, Linear, Lora, Lower, OpDef, Sample, SampleIn, Sizes, Tensor,
    WgslDispatch,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&LINEAR, &LINEAR_DX];

/// inputs: x F32[T,K], w [N,K], bias? F32[N], a? F32[R,K], b? F32[N,R], rng? U32[4], acc? F32[T,N];
/// outputs: y F32[T,N] and, with a low-rank part, xa F32[T,R] = x̃ Aᵀ (kept for the gradient of B).
pub static LINEAR: OpDef = OpDef {
    name: "linear",
    infer: |attr, ins| {
        let s = spec(attr);
        let o = Operands::of(s, false);
        let (x, w) = check(ins, o.count, "x[T,K], w[N,K]")?;
        let (t, n, k) = (x.shape[0], w.shape[0], w.shape[1]);
        if x.shape[1] != k || o.bias.is_some_and(|i| ins[i] != Ty::f32(&[n])) {
            return Err(format!("{ins:?}; the weight takes {k} features and gives {n}"));
        }
        let mut outs = vec![Ty::f32(&[t, n])];
        if let Some((a, b)) = o.low_rank {
            let r = ins[a].shape[0];
            if ins[a] != Ty::f32(&[r, k]) || ins[b] != Ty::f32(&[n, r]) {
                return Err(format!("low-rank factors {} and {} on a weight {w}", ins[a], ins[b]));
            }
            outs.push(Ty::f32(&[t, r]));
        }
        match o.acc {
            Some(i) if ins[i] != outs[0] => Err(format!("{} to add to {}", ins[i], outs[0])),
            _ => Ok(outs),
        }
    },
    reference: reference_linear,
    grad: Grad::Rule(grad_linear),
    accumulates: true,
    batched: true,
    cost: |attr, ins, _| cost(attr, ins, ins[0].shape[0]),
    workspace: |attr, ins, caps| match caps.target {
        Target::Cuda => cuda::workspace(spec(attr), ins, caps),
        _ => scratch(attr, ins, false, caps),
    },
    host: host_linear,
    narrow: true,
    wgsl_half: |attr, ins, caps| dense::takes_half(&ins[1], rank(attr, ins, false), caps),
    wgsl: wgsl_linear,
    cuda: cuda::linear,
    acts: |attr| {
        const WITH: [&[usize]; 5] = [&[0, 2], &[0, 3], &[0, 4], &[0, 5], &[0, 6]];
        let ins = Operands::of(spec(attr), false).acc.map_or(&[0][..], |acc| WITH[acc - 2]);
        Acts { ins, outs: &[0, 1] }
    },
    samples: || samples(false),
    cases: cases_linear,
    ..OpDef::COMPUTE
};

/// `dx = dy·W + mask∘(dyb·A)/(1−p)`, where `dyb = s·dy·B` was computed before.
/// inputs: dy F32[T,N], w [N,K], dyb? F32[T,R], a? F32[R,K], rng? U32[4]; output: dx F32[T,K].
pub static LINEAR_DX: OpDef = OpDef {
    name: "linear_dx",
    infer: |attr, ins| {
        let o = Operands::of(spec(attr), true);
        let (dy, w) = check(ins, o.count, "dy[T,N], w[N,K]")?;
        let (t, n, k) = (dy.shape[0], w.shape[0], w.shape[1]);
        if dy.shape[1] != n {
            return Err(format!("{ins:?}; the weight gives {n} features"));
        }
        if let Some((dyb, a)) = o.low_rank {
            let r = ins[a].shape[0];
            if ins[a] != Ty::f32(&[r, k]) || ins[dyb] != Ty::f32(&[t, r]) {
                return Err(format!("low-rank operands {} and {} on a weight {w}", ins[dyb], ins[a]));
            }
        }
        Ok(vec![Ty::f32(&[t, k])])
    },
    reference: reference_linear_dx,
    grad: Grad::Missing,
    batched: true,
    cost: |attr, ins, _| cost(attr, ins, ins[0].shape[0]),
    workspace: |attr, ins, caps| match caps.target {
        Target::Cuda => cuda::workspace_dx(ins, caps),
        _ => scratch(attr, ins, true, caps),
    },
    host: host_linear_dx,
    narrow: true,
    wgsl_half: |attr, ins, caps| dense::takes_half(&ins[1], rank(attr, ins, true), caps),
    wgsl: wgsl_linear_dx,
    cuda: cuda::linear_dx,
    acts: |_| Acts { ins: &[0, 2], outs: &[0] },
    samples: || samples(true),
    cases: cases_linear_dx,
    ..OpDef::COMPUTE
};

impl Graph {
    /// A linear layer; `low_rank` is (spec, A, B, random-number operand if it drops out).
    pub fn linear(
        &mut self,
        x: Val,
        w: Val,
        bias: Option<Val>,
        low_rank: Option<(Lora, Val, Val, Option<Val>)>,
    ) -> Result<Val> {
        let attr = Linear { bias: bias.is_some(), lora: low_rank.map(|l| l.0), acc: false };
        let mut ins = vec![x, w];
        ins.extend(bias);
        if let Some((lora, a, b, rng)) = low_rank {
            if lora.dropout.is_some() != rng.is_some() {
                return Err(self.refuse("linear", "dropout and its random numbers go together".into()));
            }
            ins.extend([a, b]);
            ins.extend(rng);
        }
        Ok(self.node(&LINEAR, Attr::Linear(attr), &ins)?[0])
    }
}

fn spec(attr: &Attr) -> Linear {
    match attr {
        Attr::Linear(l) => *l,
        _ => Linear::default(),
    }
}

/// Positions of the optional operands.
struct Operands {
    bias: Option<usize>,
    /// (a, b) of the forward op, (dyb, a) of the backward op.
    low_rank: Option<(usize, usize)>,
    /// The random-number operand and what is dropped.
    dropout: Option<(usize, Dropout)>,
    /// What is added to the forward op's result.
    acc: Option<usize>,
    count: usize,
}

impl Operands {
    fn of(s: Linear, backward: bool) -> Operands {
        let mut count = 2;
        let mut take = |n: usize| {
            count += n;
            count - n
        };
        let bias = (s.bias && !backward).then(|| take(1));
        let low_rank = s.lora.map(|_| take(2)).map(|i| (i, i + 1));
        let dropout = s.lora.and_then(|l| l.dropout).map(|d| (take(1), d));
        let acc = (s.acc && !backward).then(|| take(1));
        Operands { bias, low_rank, dropout, acc, count }
    }
}

fn check<'a>(ins: &'a [Ty], count: usize, expected: &str) -> Result<(&'a Ty, &'a Ty), String> {
    match ins {
        [x, w, ..]
            if ins.len() == count
                && x.dtype == DType::F32
                && x.shape.len() == 2
                && w.shape.len() == 2
                && (w.dtype.is_float() || w.dtype.is_quantized()) =>
        {
            Ok((x, w))
        }
        _ => Err(format!("{ins:?}; expected {count} operands, {expected}, …")),
    }
}

fn cost(attr: &Attr, ins: &[Ty], t: usize) -> Cost {
    let s = spec(attr);
    let (n, k) = (ins[1].shape[0], ins[1].shape[1]);
    let r = match s.lora {
        Some(_) => ins[2 + s.bias as usize..].iter().take(2).map(|ty| ty.shape[0].min(ty.cols())).min().unwrap_or(0),
        None => 0,
    };
    Cost { flops: 2 * (t * (n * k + r * (n + k))) as u64, terms: n.max(k) + r + 2 }
}

/// On the CPU, with dropout (GPUs drop out while they load): the dropped input (or its gradient) [T,K]. In bf16, sums as well.
/// In WGSL, the parts of a sum that is split.
fn scratch(attr: &Attr, ins: &[Ty], backward: bool, caps: &Caps) -> u64 {
    if caps.target == Target::Wgsl {
        let (x, w, o) = (&ins[0], &ins[1], Operands::of(spec(attr), backward));
        let rank = rank(attr, ins, backward);
        return match backward {
            false => dense::linear_scratch(x, w, o.low_rank.map(|_| (rank, o.dropout.is_some())), caps),
            true => dense::linear_dx_scratch(x, w, rank, caps),
        };
    }
    let sums = if ins[0].dtype == DType::BF16 { 4 * sums(attr, ins, backward) } else { 0 };
    // Forward, what is dropped out is an activation; backward, it becomes a part of the sums.
    let dtype = if backward { DType::F32 } else { ins[0].dtype };
    let dropped = match Operands::of(spec(attr), backward).dropout {
        Some(_) => dtype.bytes(ins[0].shape[0] * ins[1].shape[1]),
        None => 0,
    };
    (sums + dropped) as u64
}

/// The rank of the low-rank part; 0 if there is none.
fn rank(attr: &Attr, ins: &[Ty], backward: bool) -> usize {
    let low_rank = Operands::of(spec(attr), backward).low_rank;
    low_rank.map_or(0, |(first, _)| ins[first].shape[backward as usize])
}

/// Elements of the largest product.
fn sums(attr: &Attr, ins: &[Ty], backward: bool) -> usize {
    let rank = Operands::of(spec(attr), false).low_rank.map_or(0, |(a, _)| ins[a].shape[0]);
    ins[0].shape[0] * if backward { ins[1].shape[1] } else { ins[1].shape[0].max(rank) }
}

fn reference_linear(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let s = spec(attr);
    let o = Operands::of(s, false);
    let (x, w) = (&ins[0], &ins[1]);
    let (t, n) = (x.rows(), w.rows());
    let mut y = Tensor::zeros(&[t, n]);
    for i in 0..t {
        for j in 0..n {
            let more = o.bias.map_or(0.0, |b| ins[b].data[j]) + o.acc.map_or(0.0, |acc| ins[acc].at(i, j));
            y.data[i * n + j] = dot(x.row(i), w.row(j)) + more;
        }
    }
    let (Some(lora), Some((a, b))) = (s.lora, o.low_rank) else { return vec![y] };
    let (a, b) = (&ins[a], &ins[b]);
    let dropped = match o.dropout {
        Some((rng, d)) => keep(d, &ins[rng], x),
        None => x.clone(),
    };
    let r = a.rows();
    let mut xa = Tensor::zeros(&[t, r]);
    for i in 0..t {
        for p in 0..r {
            xa.data[i * r + p] = dot(dropped.row(i), a.row(p));
        }
        for j in 0..n {
            y.data[i * n + j] += lora.scale as f64 * dot(xa.row(i), b.row(j));
        }
    }
    vec![y, xa]
}

fn reference_linear_dx(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let o = Operands::of(spec(attr), true);
    let (dy, w) = (&ins[0], &ins[1]);
    let product = |x: &Tensor, m: &Tensor| {
        let (t, k) = (x.rows(), m.cols());
        let mut y = Tensor::zeros(&[t, k]);
        for i in 0..t {
            for j in 0..m.rows() {
                for c in 0..k {
                    y.data[i * k + c] += x.at(i, j) * m.at(j, c);
                }
            }
        }
        y
    };
    let mut dx = product(dy, w);
    if let Some((dyb, a)) = o.low_rank {
        let mut low = product(&ins[dyb], &ins[a]);
        if let Some((rng, d)) = o.dropout {
            low = keep(d, &ins[rng], &low);
        }
        for (x, l) in dx.data.iter_mut().zip(&low.data) {
            *x += l;
        }
    }
    vec![dx]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn keep(d: Dropout, rng: &Tensor, x: &Tensor) -> Tensor {
    let rng = std::array::from_fn(|i| rng.data[i] as u32);
    let mask = Mask::new(rng, d);
    Tensor::new(&x.shape, x.data.iter().enumerate().map(|(i, v)| v * mask.factor(i) as f64).collect())
}

/// With dyb = s·dy·B: dx as in [`LINEAR_DX`], dW = dyᵀ·x, dbias = Σ_t dy, dA = dybᵀ·x̃, dB = s·dyᵀ·xa.
fn grad_linear(g: &mut Graph, node: &Node, dys: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let s = spec(&node.attr);
    let o = Operands::of(s, false);
    let mut grads = vec![None; node.ins.len()];
    let Some(dy) = dys[0] else { return Ok(grads) };
    let (x, w) = (node.ins[0], node.ins[1]);
    let mut dx_ins = vec![dy, w];
    if let (Some(lora), Some((ia, ib))) = (s.lora, o.low_rank) {
        let (a, b) = (node.ins[ia], node.ins[ib]);
        if wants[0] || wants[ia] {
            let dyb = g.matmul(dy, false, b, false, lora.scale)?;
            dx_ins.extend([dyb, a]);
            if wants[ia] {
                let dropped = match o.dropout {
                    Some((rng, d)) => g.dropout(x, node.ins[rng], d)?,
                    None => x,
                };
                grads[ia] = Some(g.matmul(dyb, true, dropped, false, 1.0)?);
            }
            dx_ins.extend(o.dropout.map(|(rng, _)| node.ins[rng]));
        }
        if wants[ib] {
            grads[ib] = Some(g.matmul(dy, true, node.outs[1], false, lora.scale)?);
        }
    }
    if wants[0] {
        let attr = Linear { bias: false, acc: false, ..s };
        grads[0] = Some(g.node(&LINEAR_DX, Attr::Linear(attr), &dx_ins)?[0]);
    }
    if wants[1] {
        grads[1] = Some(g.matmul(dy, true, x, false, 1.0)?);
    }
    if let Some(bias) = o.bias
        && wants[bias]
    {
        grads[bias] = Some(g.sum_rows(dy)?);
    }
    if let Some(acc) = o.acc.filter(|&acc| wants[acc]) {
        grads[acc] = Some(dy);
    }
    Ok(grads)
}

fn host_linear(call: &HostCall) {
    if call.ins[0].dtype == DType::BF16 {
        return narrow_linear(call);
    }
    let s = spec(call.attr);
    let o = Operands::of(s, false);
    let (t, n, k) = (call.ins[0].shape[0], call.ins[1].shape[0], call.ins[1].shape[1]);
    let x = call.input::<f32>(0);
    let main = Term { alpha: 1.0, a: mat(x, t, k, false), b: weight(call.input(1), &call.ins[1]).t() };
    let bias = o.bias.map(|i| call.input::<f32>(i));
    let (y, beta) = match o.acc {
        Some(acc) => (call.accumulator(acc, 0), 1.0),
        None => (call.output::<f32>(0), 0.0),
    };
    let (Some(lora), Some((a, b))) = (s.lora, o.low_rank) else { return gemm(&[main], beta, bias, y, n) };
    let r = call.ins[a].shape[0];
    let dropped: &[f32] = match o.dropout {
        Some((rng, d)) => {
            let to = call.work::<f32>();
            masked(d, call.input(rng), x, to, |to, x| *to = x);
            to
        }
        None => x,
    };
    let xa = call.output::<f32>(1);
    let down = Term { alpha: 1.0, a: mat(dropped, t, k, false), b: mat(call.input(a), r, k, true) };
    gemm(&[down], 0.0, None, xa, r);
    let up = Term { alpha: lora.scale, a: mat(xa, t, r, false), b: mat(call.input(b), n, r, true) };
    gemm(&[main, up], beta, bias, y, n);
}

/// The same on activations in bf16: sums in f32 in the scratch memory, rounded once.
fn narrow_linear(call: &HostCall) {
    let s = spec(call.attr);
    let o = Operands::of(s, false);
    let (t, n, k) = (call.ins[0].shape[0], call.ins[1].shape[0], call.ins[1].shape[1]);
    let x = &call.input::<bf16>(0)[..t * k];
    let main = Term { alpha: 1.0, a: narrow_mat(x, t, k, false), b: weight(call.input(1), &call.ins[1]).t() };
    let bias = o.bias.map(|i| call.input::<f32>(i));
    let (y, work) = (call.output::<bf16>(0), call.work::<f32>());
    let (sums, work) = work.split_at_mut(sums(call.attr, call.ins, false));
    // Where the sums begin: xa has the same memory before.
    let begin = |sums: &mut [f32]| match o.acc {
        Some(acc) => {
            convert(sums, call.input::<bf16>(acc));
            1.0
        }
        None => 0.0,
    };
    let (Some(lora), Some((a, b))) = (s.lora, o.low_rank) else {
        let beta = begin(&mut sums[..t * n]);
        return gemm_bf16(&[main], beta, bias, &mut sums[..t * n], y, n);
    };
    let r = call.ins[a].shape[0];
    let dropped = match o.dropout {
        Some((rng, d)) => {
            let to = &mut bytemuck::cast_slice_mut(work)[..t * k];
            masked(d, call.input(rng), x, to, |to, x| *to = bf16::round(x));
            to
        }
        None => x,
    };
    let xa = call.output::<bf16>(1);
    let down = Term { alpha: 1.0, a: narrow_mat(dropped, t, k, false), b: mat(call.input(a), r, k, true) };
    gemm_bf16(&[down], 0.0, None, &mut sums[..t * r], xa, r);
    let up = Term { alpha: lora.scale, a: narrow_mat(xa, t, r, false), b: mat(call.input(b), n, r, true) };
    let beta = begin(&mut sums[..t * n]);
    gemm_bf16(&[main, up], beta, bias, &mut sums[..t * n], y, n);
}

fn host_linear_dx(call: &HostCall) {
    if call.ins[0].dtype == DType::BF16 {
        return narrow_linear_dx(call);
    }
    let o = Operands::of(spec(call.attr), true);
    let (t, n, k) = (call.ins[0].shape[0], call.ins[1].shape[0], call.ins[1].shape[1]);
    let dx = call.output::<f32>(0);
    let main = Term { alpha: 1.0, a: mat(call.input(0), t, n, false), b: weight(call.input(1), &call.ins[1]) };
    let Some((dyb, a)) = o.low_rank else { return gemm(&[main], 0.0, None, dx, k) };
    let r = call.ins[a].shape[0];
    let low = Term { alpha: 1.0, a: mat(call.input(dyb), t, r, false), b: mat(call.input(a), r, k, false) };
    let Some((rng, d)) = o.dropout else { return gemm(&[main, low], 0.0, None, dx, k) };
    gemm(&[main], 0.0, None, dx, k);
    let grad = call.work::<f32>();
    gemm(&[low], 0.0, None, grad, k);
    masked(d, call.input(rng), grad, dx, |dx, low| *dx += low);
}

/// The same on activations in bf16.
fn narrow_linear_dx(call: &HostCall) {
    let o = Operands::of(spec(call.attr), true);
    let (t, n, k) = (call.ins[0].shape[0], call.ins[1].shape[0], call.ins[1].shape[1]);
    let (dx, work) = (call.output::<bf16>(0), call.work::<f32>());
    let (sums, grad) = work.split_at_mut(t * k);
    let main = Term { alpha: 1.0, a: narrow_mat(call.input(0), t, n, false), b: weight(call.input(1), &call.ins[1]) };
    let Some((dyb, a)) = o.low_rank else { return gemm_bf16(&[main], 0.0, None, sums, dx, k) };
    let r = call.ins[a].shape[0];
    let low = Term { alpha: 1.0, a: narrow_mat(call.input(dyb), t, r, false), b: mat(call.input(a), r, k, false) };
    let Some((rng, d)) = o.dropout else { return gemm_bf16(&[main, low], 0.0, None, sums, dx, k) };
    gemm_narrow(&[low], 0.0, &mut grad[..t * k], k);
    masked(d, call.input(rng), grad, sums, |sum, low| *sum = low);
    gemm_bf16(&[main], 1.0, None, sums, dx, k);
}

/// `f(to[i], mask[i]·x[i])`
fn masked<A: Act, B: Send>(d: Dropout, rng: &[u32], x: &[A], to: &mut [B], f: impl Fn(&mut B, f32) + Sync) {
    let mask = Mask::new(std::array::from_fn(|i| rng[i]), d);
    const PIECE: usize = 1 << 12;
    par::chunks(to, PIECE, |piece, to| {
        let mut factors = [0f32; PIECE];
        mask.fill(piece * PIECE, &mut factors[..to.len()]);
        for ((v, x), m) in to.iter_mut().zip(&x[piece * PIECE..]).zip(factors) {
            f(v, x.widen() * m);
        }
    });
}

fn wgsl_linear(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let s = spec(l.attr);
    let o = Operands::of(s, false);
    let mut all = dense::linear(l, o.bias, low_rank(l, s, &o, 0))?;
    if let Some(acc) = o.acc {
        all.extend(elementwise::add_to(l, acc));
    }
    Ok(all)
}

fn wgsl_linear_dx(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let s = spec(l.attr);
    let o = Operands::of(s, true);
    dense::linear_dx(l, low_rank(l, s, &o, 1))
}

/// The low-rank operands for [`dense`]; dimension `axis` of the first of them is the rank.
fn low_rank(l: &Lower, s: Linear, o: &Operands, axis: usize) -> Option<LowRank> {
    let ((first, second), lora) = (o.low_rank?, s.lora?);
    let dropout = o.dropout.map(|(rng, d)| (d, rng));
    Some(LowRank { first, second, rank: l.ins[first].shape[axis], scale: lora.scale, dropout })
}

fn samples(backward: bool) -> Vec<Sample> {
    let mut all = Vec::new();
    let plain = Linear::default();
    let lora = |dropout| Linear { lora: Some(Lora { scale: 2.0, dropout }), ..plain };
    let added = |s: Linear| Linear { acc: true, ..s };
    let dropout = Some(Dropout { p: 0.25, site: 3 });
    let shapes = [
        ("odd", 7, 33, 17, DType::F32, Linear { bias: true, ..plain }),
        ("odd, accumulating", 7, 33, 17, DType::F32, added(plain)),
        ("one token, accumulating", 1, 65, 64, DType::BF16, added(lora(None))),
        ("all operands", 19, 48, 40, DType::F32, added(Linear { bias: true, ..lora(dropout) })),
        ("bias, accumulating", 67, 70, 64, DType::Nf4Dq, added(Linear { bias: true, ..plain })),
        ("one token", 1, 65, 64, DType::F32, plain),
        ("tiles", 65, 128, 96, DType::F32, plain),
        ("low rank", 19, 48, 40, DType::F32, lora(None)),
        ("low rank by fours", 19, 48, 40, DType::F32, added(Linear { bias: true, ..lora(dropout) })),
        ("low rank by fours, one token", 1, 48, 40, DType::F32, lora(None)),
        ("low rank, bias, dropout", 9, 24, 40, DType::F32, Linear { bias: true, ..lora(dropout) }),
        ("bf16", 5, 33, 31, DType::BF16, plain),
        ("f16", 5, 33, 31, DType::F16, lora(None)),
        ("f16 by fours", 66, 35, 44, DType::F16, Linear { bias: true, ..lora(dropout) }),
        ("f16 by fours, one token", 1, 35, 44, DType::F16, lora(None)),
        ("nf4", 9, 40, 64, DType::Nf4, lora(None)),
        ("nf4, blocks across rows", 3, 35, 30, DType::Nf4, plain),
        ("nf4 double", 6, 64, 96, DType::Nf4Dq, lora(dropout)),
        ("nf4 by fours, rows from within words", 9, 40, 68, DType::Nf4, lora(None)),
        ("nf4 by fours, rows from within words, one token", 1, 36, 76, DType::Nf4, lora(None)),
        ("nf4 double, long rows from within blocks", 20, 24, 604, DType::Nf4Dq, lora(dropout)),
        ("nf4 double, odd", 5, 7, 9, DType::Nf4Dq, Linear { bias: true, ..plain }),
        ("nf4 one token", 1, 96, 128, DType::Nf4, lora(None)),
        // More than 64 KiB of weights, and of activations: tests set a device's largest binding to that.
        ("large weight", 5, 300, 72, DType::F32, lora(dropout)),
        ("large weight, one token", 1, 300, 72, DType::F32, lora(None)),
        ("large nf4 double", 7, 520, 256, DType::Nf4Dq, lora(dropout)),
        ("many tokens", 200, 88, 96, DType::BF16, lora(dropout)),
        ("long rows", 70, 16, 600, DType::BF16, lora(dropout)),
        ("all operands, bf16", 72, 72, 64, DType::BF16, added(Linear { bias: true, ..lora(dropout) })),
        // So many that CUDA decodes the weight first where that is faster; large tiles, forward and backward.
        ("decoded first", 1030, 1000, 40, DType::Nf4Dq, lora(None)),
        ("decoded first, back", 1030, 40, 1000, DType::Nf4Dq, lora(None)),
        ("decoded first, bias, dropout", 1030, 40, 32, DType::Nf4, Linear { bias: true, ..lora(dropout) }),
        // CUDA's large tiles, forward and backward.
        ("many tiles", 904, 1000, 40, DType::Nf4Dq, lora(dropout)),
        ("many tiles back", 904, 40, 1000, DType::Nf4, lora(dropout)),
        ("many tiles, bf16", 904, 1000, 40, DType::BF16, lora(dropout)),
        // CUDA's tiles for wgmma, of which half a card's multiprocessors have one, forward and backward, of weights decoded first.
        ("many wide tiles", 1030, 1544, 72, DType::Nf4Dq, Linear { bias: true, ..lora(dropout) }),
        ("many wide tiles back", 1030, 72, 1544, DType::Nf4, lora(dropout)),
    ];
    for (name, t, n, k, dtype, mut s) in shapes {
        let normal = |shape: &[usize]| SampleIn::normal(Ty::f32(shape));
        // The long ones in whole boundaries after few rows, for devices that bind small ranges.
        let r = if n.max(k) >= 600 || name.contains("by fours") { 8 } else { 5 };
        let mut ins = vec![normal(&[t, if backward { n } else { k }]), SampleIn::normal(Ty::new(dtype, &[n, k]))];
        s.bias &= !backward;
        s.acc &= !backward;
        if s.bias {
            ins.push(normal(&[n]));
        }
        if let Some(l) = s.lora {
            ins.extend(if backward { [normal(&[t, r]), normal(&[r, k])] } else { [normal(&[r, k]), normal(&[n, r])] });
            if l.dropout.is_some() {
                ins.push(SampleIn::values(Ty::u32(&[4]), vec![11.0, 7.0, 3.0, 1.0]));
            }
        }
        ins.extend(s.acc.then(|| normal(&[t, n])));
        all.push(Sample::new(name, Attr::Linear(s), ins));
    }
    all
}

/// A product with the MLP's weight in `dtype`; `x` is how many rows and columns the activations have.
fn case(name: impl Into<String>, s: &Sizes, x: [usize; 2], dtype: DType) -> Case {
    let w = SampleIn::normal(Ty::new(dtype, &[s.mlp, s.hidden]));
    Case::new(name, Attr::Linear(Linear::default()), vec![SampleIn::f32(&x), w])
}

fn cases_linear(s: &Sizes) -> Vec<Case> {
    let mut all: Vec<Case> = s.weights.iter().map(|&w| case(w.name(), s, [s.tokens, s.hidden], w)).collect();
    let dtype = s.narrowest();
    let mut low_rank = case(format!("{dtype} lora"), s, [s.tokens, s.hidden], dtype);
    low_rank.sample.attr = Attr::Linear(Linear { lora: Some(Lora { scale: 2.0, dropout: None }), ..Linear::default() });
    low_rank.sample.ins.extend([SampleIn::f32(&[s.rank, s.hidden]), SampleIn::f32(&[s.mlp, s.rank])]);
    all.push(low_rank);
    let double = (dtype == DType::Nf4).then_some(DType::Nf4Dq);
    let one = |&w: &DType| case(format!("{w} one token"), s, [1, s.hidden], w);
    all.extend(s.weights.iter().chain(&double).map(one));
    all
}

fn cases_linear_dx(s: &Sizes) -> Vec<Case> {
    s.weights.iter().map(|&w| case(w.name(), s, [s.tokens, s.mlp], w)).collect()
}
