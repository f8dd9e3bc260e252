//! The language model's head and its cross entropy in one op, which never holds the tokens × vocabulary logits.
//!
//! A block of trained tokens at a time: its logits into scratch memory, there turned into their own gradient
//! (p − onehot), from there into the gradients of x and w. Forward and backward thus compute the logits once. On the
//! CPU, a frozen head goes by chunks of the vocabulary instead (`frozen.rs`).

mod cuda;
mod frozen;

use crate::cpu::act::Act;
use crate::cpu::gemm::{Mat, Store, Term, gemm, gemm_narrow};
use crate::cpu::{math, par, weight::weight};
use crate::device::{Caps, Target};
use crate::dtype::{DType, Ty, align};
use crate::error::{Error, Result};
use crate::graph::{Graph, Val};
use crate::ops::dense::{Product, Split, Tiled};
use crate::ops::host::Ptr;
use crate::ops::launch::grid;
use crate::ops::quant::{WeightPart, weight_define, weight_parts};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Grad, HostCall, Loss, Lower, Matmul, OpDef, Sample, SampleIn, Sizes, Tensor,
    WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&LINEAR_CROSS_ENTROPY];

/// The label of a token that is not trained on.
pub const IGNORE: i32 = -100;

/// `linear_cross_entropy` [x F32[T,D], w (any weight type)[V,D], labels I32[T], inv F32[1]]
/// → loss F32[1] = inv·Σ_t (logsumexp(x_t·Wᵀ) − x_t·W\[label_t\]) over the t with 0 ≤ label_t < V;
/// with `grad_x` also dx F32[T,D], with `grad_w` also dw F32[V,D]: the gradients of that loss.
pub static LINEAR_CROSS_ENTROPY: OpDef = OpDef {
    name: "linear_cross_entropy",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Loss(loss), [x, w, labels, inv]) => {
            let ((t, d), (v, k)) = (check::matrix("x", x)?, check::matrix("w", w)?);
            check::float("x", x)?;
            check::is("labels", labels, &Ty::i32(&[t]))?;
            check::is("inv", inv, &Ty::f32(&[1]))?;
            if k != d || v == 0 || weight_define(w.dtype).is_none() {
                return Err(format!("w is {w}, expected a weight of shape [vocabulary, {d}]"));
            }
            let mut outs = vec![Ty::f32(&[1])];
            outs.extend(loss.grad_x.then(|| x.clone()));
            outs.extend(loss.grad_w.then(|| Ty::f32(&[v, d])));
            Ok(outs)
        }
        _ => Err(check::refuse("x, w, labels, inv and Loss", attr, ins)),
    },
    reference,
    grad: Grad::Rule(|g, node, grads, wants| {
        let (Some(dloss), Attr::Loss(loss)) = (grads[0], &node.attr) else { return Ok(vec![None; 4]) };
        // The factor is no parameter, and what the op was not built with it cannot give.
        let lacks = [wants[0] && !loss.grad_x, wants[1] && !loss.grad_w, false, wants[3]];
        if let Some(input) = lacks.iter().position(|&lacks| lacks) {
            let parameter = g.value(node.ins[input]).name.clone();
            return Err(Error::NoGradient { op: node.op.name, site: node.site.clone(), input, parameter });
        }
        let dx = if wants[0] { Some(g.scale(node.outs[1], dloss)?) } else { None };
        let dw = if wants[1] { Some(g.scale(node.outs[1 + loss.grad_x as usize], dloss)?) } else { None };
        Ok(vec![dx, dw, None, None])
    }),
    indexes: |ins| Some((2, ins[1].rows())),
    cost: |attr, ins, _| {
        let products = 1 + loss(attr).grad_x as u64 + loss(attr).grad_w as u64;
        let flops = 2 * products * ins[0].len() as u64 * ins[1].rows() as u64;
        Cost { flops, terms: ins[0].rows().max(ins[1].rows()) + ins[0].cols() }
    },
    workspace: |attr, ins, caps| match caps.target {
        Target::Wgsl => Scratch::new(ins, caps).bytes,
        Target::Cuda => cuda::Scratch::new(ins, caps).bytes,
        _ => 4 * host_floats(loss(attr), ins) as u64,
    },
    host: by_act!(host),
    narrow: true,
    wgsl,
    cuda: cuda::linear_cross_entropy,
    acts: |attr| match loss(attr).grad_x {
        true => Acts { ins: &[0], outs: &[1] },
        false => Acts { ins: &[0], outs: &[] },
    },
    samples,
    cases,
    ..OpDef::COMPUTE
};

impl Graph {
    /// The loss of packed tokens: inv·Σ cross entropies. What is needed of its gradients is computed on the way.
    pub fn linear_cross_entropy(&mut self, x: Val, w: Val, labels: Val, inv: Val) -> Result<Val> {
        let loss = Loss { grad_x: self.needs_grad(x), grad_w: self.needs_grad(w) };
        Ok(self.node(&LINEAR_CROSS_ENTROPY, Attr::Loss(loss), &[x, w, labels, inv])?[0])
    }
}

fn loss(attr: &Attr) -> Loss {
    match attr {
        Attr::Loss(l) => *l,
        _ => unreachable!("infer refused it"),
    }
}

fn reference(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let [x, w, labels, inv] = ins else { unreachable!("infer refused it") };
    let (vocabulary, inv) = (w.rows(), inv.data[0]);
    let (mut sum, mut dx, mut dw) = (0.0, Tensor::zeros(&x.shape), Tensor::zeros(&w.shape));
    for t in 0..x.rows() {
        let label = labels.data[t];
        if !(0.0..vocabulary as f64).contains(&label) {
            continue;
        }
        let dot = |v: usize| x.row(t).iter().zip(w.row(v)).map(|(x, w)| x * w).sum::<f64>();
        let logits: Vec<f64> = (0..vocabulary).map(dot).collect();
        let most = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let total: f64 = logits.iter().map(|l| (l - most).exp()).sum();
        sum += most + total.ln() - logits[label as usize];
        for (v, l) in logits.iter().enumerate() {
            let p = (l - most).exp() / total;
            let dlogit = inv * (p - if v == label as usize { 1.0 } else { 0.0 });
            for k in 0..x.cols() {
                dx.row_mut(t)[k] += dlogit * w.at(v, k);
                dw.row_mut(v)[k] += dlogit * x.at(t, k);
            }
        }
    }
    let mut outs = vec![Tensor::scalar(inv * sum)];
    outs.extend(loss(attr).grad_x.then_some(dx));
    outs.extend(loss(attr).grad_w.then_some(dw));
    outs
}

/// Floats of the CPU kernel's scratch memory: the indices of the trained tokens come after the blocks.
fn host_floats(loss: Loss, ins: &[Ty]) -> usize {
    let blocks = match loss.grad_w {
        true => Trained::new(ins).floats,
        false => frozen::Scratch::new(ins, loss.grad_x).floats,
    };
    blocks + ins[0].rows()
}

/// The operands of a CPU kernel: `tokens` are the rows of x that are trained on.
struct Head<'a, A> {
    x: &'a [A],
    w: Mat<'a>,
    labels: &'a [i32],
    inv: f32,
    tokens: &'a [u32],
    /// What computes logits, and what the gradients.
    products: [Multiply; 2],
}

/// A product: its term, beta, C, and C's row length.
type Multiply = fn(Term, f32, &mut [f32], usize);

impl<A: Act> Head<'_, A> {
    /// The rows of `tokens` in f32.
    fn gather(&self, tokens: &[u32], rows: &mut [f32]) {
        let d = self.w.cols();
        for (row, &t) in rows.chunks_exact_mut(d).zip(tokens) {
            row.iter_mut().zip(&self.x[t as usize * d..]).for_each(|(to, x)| *to = x.widen());
        }
    }
}

fn host<A: Act>(call: &HostCall) {
    let (x, labels, inv) = (call.input::<A>(0), call.input::<i32>(2), call.input::<f32>(3)[0]);
    let w = weight(call.input::<u8>(1), &call.ins[1]);
    let Loss { grad_x, grad_w } = loss(call.attr);
    let mut dx = grad_x.then(|| call.output::<A>(1));
    if let Some(dx) = &mut dx {
        par::chunks(dx, 1 << 16, |_, c| c.fill(A::zeroed()));
    }
    let work = call.work::<f32>();
    let (work, tokens) = work.split_at_mut(host_floats(loss(call.attr), call.ins) - labels.len());
    // Tokens that are not trained on cost nothing.
    let tokens: &mut [u32] = bytemuck::cast_slice_mut(&mut tokens[..labels.len()]);
    let mut n = 0;
    for (t, &label) in labels.iter().enumerate() {
        if usize::try_from(label).is_ok_and(|l| l < call.ins[1].rows()) {
            tokens[n] = t as u32;
            n += 1;
        }
    }
    let exact: Multiply = |term, beta, c, ldc| gemm(&[term], beta, None, c, ldc);
    let narrow: Multiply = |term, beta, c, ldc| gemm_narrow(&[term], beta, c, ldc);
    let products = match (call.ins[0].dtype, call.ins[1].dtype) {
        // A frozen head takes the label's weight from the gradient after the product, which must not have rounded it.
        (DType::BF16, stored) => [narrow, if grad_w || stored == DType::BF16 { narrow } else { exact }],
        _ => [exact; 2],
    };
    let head = Head { x, w, labels, inv, tokens: &tokens[..n], products };
    let sum = match grad_w {
        true => trained(&head, dx, call.output::<f32>(1 + grad_x as usize), &Trained::new(call.ins), work),
        false => frozen::losses(&head, dx, &frozen::Scratch::new(call.ins, grad_x), work),
    };
    call.output::<f32>(0)[0] = (inv as f64 * sum) as f32;
}

/// The blocks of a trained head: equal ones, of at most as many tokens as have 64 MiB of logits. A block costs a pass over
/// the head's weight, twice.
struct Trained {
    /// Tokens in a block.
    block: usize,
    floats: usize,
}

impl Trained {
    fn new(ins: &[Ty]) -> Trained {
        let (t, d, v) = (ins[0].rows(), ins[0].cols(), ins[1].rows());
        let most = ((16 << 20) / v).clamp(32, 512);
        let block = t.div_ceil(t.div_ceil(most).max(1));
        // Logits, gathered x, gathered dx, and the losses of the block.
        Trained { block, floats: block * (v + 2 * d + 1) }
    }
}

/// The sum of the cross entropies of a head that is trained itself, and the gradients.
fn trained<A: Act>(head: &Head<A>, mut dx: Option<&mut [A]>, dw: &mut [f32], size: &Trained, work: &mut [f32]) -> f64 {
    let [product, gradient] = head.products;
    let (d, v, size) = (head.w.cols(), head.w.rows(), size.block);
    let (logits, work) = work.split_at_mut(size * v);
    let (xb, work) = work.split_at_mut(size * d);
    let (dxb, losses) = work.split_at_mut(size * d);
    if head.tokens.is_empty() {
        par::chunks(dw, 1 << 16, |_, c| c.fill(0.0));
    }
    let mut sum = 0f64;
    for (i, block) in head.tokens.chunks(size).enumerate() {
        let m = block.len();
        let (logits, xb, dxb, losses) = (&mut logits[..m * v], &mut xb[..m * d], &mut dxb[..m * d], &mut losses[..m]);
        head.gather(block, xb);
        let xb = Mat::row_major(Store::F32(xb), m, d);
        product(Term { alpha: 1.0, a: xb, b: head.w.t() }, 0.0, logits, v);
        let out = Ptr(losses.as_mut_ptr());
        par::chunks(logits, v, |r, row| {
            let label = head.labels[block[r] as usize] as usize;
            // SAFETY: each row r writes its own element of the m losses.
            unsafe { *out.add(r) = softmax_gradient(row, label, head.inv, true) };
        });
        sum += losses.iter().map(|&l| l as f64).sum::<f64>();
        let dlogits = Mat::row_major(Store::F32(logits), m, v);
        if let Some(dx) = &mut dx {
            gradient(Term { alpha: 1.0, a: dlogits, b: head.w }, 0.0, dxb, d);
            for (row, &t) in dxb.chunks_exact(d).zip(block) {
                dx[t as usize * d..].iter_mut().zip(row).for_each(|(to, x)| *to = A::round(*x));
            }
        }
        gradient(Term { alpha: 1.0, a: dlogits.t(), b: xb }, if i == 0 { 0.0 } else { 1.0 }, dw, d);
    }
    sum
}

/// The cross entropy of one row of logits, which becomes its gradient times `inv` if `grad`.
pub(super) fn softmax_gradient(row: &mut [f32], label: usize, inv: f32, grad: bool) -> f32 {
    let at_label = row[label];
    let (most, total) = exponentials(row, f32::NEG_INFINITY);
    if grad {
        let factor = (inv as f64 / total) as f32;
        math::vectorized!(row.iter_mut().for_each(|x| *x *= factor));
        row[label] -= inv;
    }
    ((most - at_label) as f64 + total.ln()) as f32
}

/// Turns each x of the row into exp(x − m), m the largest of the row and `most`: m, and the sum of the row.
fn exponentials(row: &mut [f32], most: f32) -> (f32, f64) {
    const LANES: usize = 32;
    math::vectorized!({
        let mut lanes = [most; LANES];
        let (body, tail) = row.as_chunks::<LANES>();
        for chunk in body {
            for (m, &x) in lanes.iter_mut().zip(chunk) {
                *m = if x > *m { x } else { *m };
            }
        }
        let most = lanes.iter().chain(tail).fold(most, |a, &b| a.max(b));
        let mut sums = [0f32; LANES];
        let (body, tail) = row.as_chunks_mut::<LANES>();
        for chunk in body {
            for (s, x) in sums.iter_mut().zip(chunk) {
                *x = math::exp(*x - most);
                *s += *x;
            }
        }
        let mut total: f64 = sums.iter().map(|&s| s as f64).sum();
        for x in tail {
            *x = math::exp(*x - most);
            total += *x as f64;
        }
        (most, total)
    })
}

/// Most FLOPs of a dispatch: a long one trips the watchdogs of operating systems.
const DISPATCH: u64 = 16_000_000_000;
const TILE: usize = 64;

/// The scratch memory of the WGSL kernels: a block of logits, and the loss of each token.
struct Scratch {
    block: usize,
    logits: std::ops::Range<u64>,
    losses: std::ops::Range<u64>,
    bytes: u64,
}

impl Scratch {
    fn new(ins: &[Ty], caps: &Caps) -> Scratch {
        let (t, d, v) = (ins[0].rows(), ins[0].cols(), ins[1].rows());
        // Rows of x are bound by blocks as well, so blocks start on a boundary.
        let step = crate::ops::quant::row_step(DType::F32, d);
        let most = |row: usize, bytes: u64| (bytes / (4 * row as u64).max(1)) as usize;
        let fits = most(v, caps.scratch()).min(most(d, caps.max_binding));
        let fits = if fits >= TILE { fits / TILE * TILE } else { (fits / step).max(1) * step };
        let block = fits.min(t);
        let end = 4 * (block * v) as u64;
        let start = align(end as usize) as u64;
        Scratch { block, logits: 0..end, losses: start..start + 4 * t as u64, bytes: start + 4 * t as u64 }
    }
}

fn wgsl(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (t, d, v) = (l.ins[0].rows(), l.ins[0].cols(), l.ins[1].rows());
    let Loss { grad_x, grad_w } = loss(l.attr);
    let scratch = Scratch::new(l.ins, l.caps);
    let w = &l.ins[1];
    let dispatch = |shader, entry, defines, constants, grid, args, params: Vec<usize>, flops: usize| WgslDispatch {
        shader,
        defines,
        entry,
        constants,
        grid,
        args,
        params: params.into_iter().map(|p| p as u32).collect(),
        flops: flops as u64,
    };
    let logits = || Arg::Work(scratch.logits.clone());
    let losses = || Arg::Work(scratch.losses.clone());
    let mut all = Vec::new();
    for start in (0..t).step_by(scratch.block.max(1)) {
        let m = scratch.block.min(t - start);
        let (first, bytes) = (4 * (start * d) as u64, 4 * (start * d) as u64..4 * ((start + m) * d) as u64);
        let most = (DISPATCH / (2 * m * d).max(1) as u64).clamp(TILE as u64, 1 << 31) as usize;
        let parts = weight_parts(1, &l.ins[1], l.caps.max_binding, most);
        // The parameters of linear.wgsl and linear_dx.wgsl have these in common: logits are y in the one, dy in the
        // other.
        let common = |part: &WeightPart| vec![m, part.rows.len(), part.rows.start, v, d, 0];
        let scales = |part: &WeightPart| part.params.map(|p| p as usize);
        for part in &parts {
            let n = part.rows.len();
            let args = [logits(), Arg::InPart(0, bytes.clone())].into_iter().chain(part.args.clone()).collect();
            let ends = [Split::none(d).step];
            let params = common(part).into_iter().chain([0]).chain(scales(part)).chain(ends).collect();
            let Tiled { defines, grid } = Tiled::forward(w, &[], (m, DType::F32), n, l.caps)?;
            all.push(dispatch("linear", "tile", defines, vec![], grid, args, params, 2 * m * n * d));
        }
        let args = vec![logits(), losses(), Arg::In(2), Arg::In(3)];
        let rows = grid(m, l.caps);
        all.push(dispatch("loss", "softmax", vec!["SOFTMAX"], vec![], rows, args, vec![m, v, start], 5 * m * v));
        for part in parts.iter().filter(|_| grad_x) {
            let n = part.rows.len();
            let args = [Arg::OutPart(1, bytes.clone()), logits()].into_iter().chain(part.args.clone()).collect();
            let ends = [0, 0, 0, 0, Split::none(n).step];
            let params = common(part).into_iter().chain(scales(part)).chain(ends).collect();
            let add = (part.rows.start > 0).then_some(("ADD", 1.0));
            let Tiled { defines, grid } = Tiled::backward(w, &[], (m, DType::F32), &part.rows, l.caps)?;
            let constants = add.into_iter().collect();
            all.push(dispatch("linear_dx", "tile", defines, constants, grid, args, params, 2 * m * n * d));
        }
        if grad_w {
            let dw = Product {
                spec: Matmul { ta: true, tb: false, alpha: 1.0, acc: false },
                dims: (v, d, m),
                c: &|r| Arg::OutPart(1 + grad_x as usize, r),
                a: &Arg::Work,
                b: &|r| Arg::InPart(0, first + r.start..first + r.end),
                acc: None,
                acc_in_c: start > 0,
                dropout: None,
                act: DType::F32,
                // The scratch memory holds the logits.
                split: Split::none(m),
            };
            all.extend(dw.dispatches(l.caps));
        }
    }
    let args = vec![Arg::Out(0), losses(), Arg::In(3)];
    all.push(dispatch("loss", "total", vec!["TOTAL"], vec![], [1, 1, 1], args, vec![t], t));
    Ok(all)
}

fn samples() -> Vec<Sample> {
    let mut all = Vec::new();
    let shapes: [(&str, DType, usize, usize, usize); 11] = [
        ("one token", DType::F32, 1, 1, 2),
        ("odd", DType::F32, 7, 17, 33),
        ("more than one tile", DType::F32, 65, 24, 130),
        ("bf16 weights", DType::BF16, 17, 33, 65),
        // CUDA's tensor copies read whole pieces of 16 bytes.
        ("bf16 weights, even rows", DType::BF16, 20, 40, 264),
        ("f16 weights", DType::F16, 5, 20, 67),
        ("nf4 weights", DType::Nf4, 9, 36, 65),
        ("nf4_dq weights", DType::Nf4Dq, 3, 64, 300),
        ("several blocks of tokens", DType::F32, 50, 36, 520),
        ("a large vocabulary", DType::Nf4Dq, 2, 66, 2101),
        ("several chunks of the vocabulary", DType::F32, 19, 32, 1411),
    ];
    for (name, dtype, t, d, v) in shapes {
        for (grad_x, grad_w) in [(false, false), (true, false), (true, true), (false, true)] {
            // Every third token is not trained on, and one label is beyond the vocabulary.
            let label = |t: usize| match t {
                4 => v as f64,
                t if t % 3 == 1 => IGNORE as f64,
                t => (t * 7 % v) as f64,
            };
            let ins = vec![
                SampleIn::normal(Ty::f32(&[t, d])),
                SampleIn::normal(Ty::new(dtype, &[v, d])),
                SampleIn::values(Ty::i32(&[t]), (0..t).map(label).collect()),
                SampleIn::values(Ty::f32(&[1]), vec![0.25]),
            ];
            all.push(Sample::new(
                format!("{name}, dx {grad_x}, dw {grad_w}"),
                Attr::Loss(Loss { grad_x, grad_w }),
                ins,
            ));
        }
    }
    let ins = vec![
        SampleIn::normal(Ty::f32(&[3, 5])),
        SampleIn::normal(Ty::f32(&[4, 5])),
        SampleIn::values(Ty::i32(&[3]), vec![IGNORE as f64; 3]),
        SampleIn::values(Ty::f32(&[1]), vec![1.0]),
    ];
    all.push(Sample::new("nothing trained", Attr::Loss(Loss { grad_x: true, grad_w: true }), ins));
    all
}

fn cases(s: &Sizes) -> Vec<Case> {
    let t = s.loss_tokens;
    let case = |name, dtype, grad_w| {
        let ins = vec![
            SampleIn::f32(&[t, s.hidden]),
            SampleIn::normal(Ty::new(dtype, &[s.vocab, s.hidden])),
            SampleIn::indices(t, s.vocab),
            SampleIn::constant(Ty::f32(&[1]), 1.0 / t as f64),
        ];
        Case::new(name, Attr::Loss(Loss { grad_x: true, grad_w }), ins)
    };
    // A head that is trained is f32.
    let frozen = s.weights.first().copied().unwrap_or(DType::F32);
    vec![case("frozen head", frozen, false), case("trained head", DType::F32, true)]
}
