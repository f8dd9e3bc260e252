//! Losses of logits that are in memory: of classes, of several labels at once, of numbers, and of positions in a text.
//!
//! Each is inv·Σ over the rows that count. Its gradient is computed on the way where it is asked for, and may take the
//! place of the logits; backward then only scales. Logits are f32 on every device: what rounding to 16 bits takes from a
//! logit of 20 changes its probability by 4 %. Logits over a language model's vocabulary for all tokens are too large to
//! keep: that loss is in `loss.rs`, fused with the head.

mod cases;
mod cuda;
mod host;
mod samples;
mod wgsl;

use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Val};
use crate::ops::{Attr, Cost, Grad, Loss, OpDef, Tensor, check};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&CROSS_ENTROPY, &BCE_WITH_LOGITS, &MSE, &RANGE_CROSS_ENTROPY];

/// `cross_entropy` [logits F32[N,C], labels I32[N], inv F32[1]]
/// → loss F32[1] = inv·Σ_n (logsumexp(logits_n) − logits\[n, label_n\]) over the n with 0 ≤ label_n < C;
/// with `grad_x` also dlogits F32[N,C] = inv·(softmax − onehot), exactly 0 in the other rows.
pub static CROSS_ENTROPY: OpDef = OpDef {
    name: "cross_entropy",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Loss(Loss { grad_x, grad_w: false }), [logits, labels, inv]) => {
            let (n, _) = check::matrix("logits", logits)?;
            check::is("labels", labels, &Ty::i32(&[n]))?;
            outputs(*grad_x, logits, inv)
        }
        _ => Err(check::refuse("logits, labels, inv and Loss", attr, ins)),
    },
    reference: |attr, ins| {
        let [logits, labels, inv] = ins else { unreachable!("infer refused it") };
        let (mut sum, mut dlogits) = (0.0, Tensor::zeros(&logits.shape));
        for (n, &label) in labels.data.iter().enumerate() {
            if (0.0..logits.cols() as f64).contains(&label) {
                let (loss, slopes) = softmax_loss(logits.row(n), label as usize);
                sum += loss;
                dlogits.row_mut(n).iter_mut().zip(slopes).for_each(|(d, s)| *d = inv.data[0] * s);
            }
        }
        results(attr, inv, sum, dlogits)
    },
    grad: Grad::Rule(rule),
    in_place: &[(0, 1)],
    indexes: |ins| Some((1, ins[0].cols())),
    cost: |_, ins, _| Cost { flops: 8 * ins[0].len() as u64, terms: ins[0].rows() + ins[0].cols() },
    workspace: |_, ins, _| 4 * ins[0].rows() as u64,
    host: host::cross_entropy,
    wgsl: wgsl::cross_entropy,
    cuda: cuda::cross_entropy,
    samples: samples::cross_entropy,
    cases: cases::cross_entropy,
    ..OpDef::COMPUTE
};

/// `bce_with_logits` [x F32[N,C], targets F32[N,C], weight F32[N], inv F32[1]]
/// → loss F32[1] = inv·Σ_n weight_n·Σ_c (max(x, 0) − x·t + ln(1 + e^−|x|)): the binary cross entropies of t and
/// sigmoid(x), written so that nothing overflows; with `grad_x` also dx F32[N,C] = inv·weight·(sigmoid(x) − t).
/// A row of weight 0 is not read: it adds nothing, whatever is in it.
pub static BCE_WITH_LOGITS: OpDef = OpDef {
    name: "bce_with_logits",
    infer: infer_elements,
    reference: |attr, ins| {
        reference_elements(attr, ins, |x, t| {
            (x.max(0.0) - x * t + (-x.abs()).exp().ln_1p(), 1.0 / (1.0 + (-x).exp()) - t)
        })
    },
    grad: Grad::Rule(rule),
    in_place: &[(0, 1)],
    cost: |_, ins, _| Cost { flops: 12 * ins[0].len() as u64, terms: ins[0].len() },
    workspace: |_, ins, _| 4 * ins[0].rows() as u64,
    host: host::bce_with_logits,
    wgsl: |l| wgsl::elements(l, "bce_with_logits", "BCE"),
    cuda: |l| cuda::elements(l, "bce_with_logits"),
    samples: samples::bce_with_logits,
    cases: cases::bce_with_logits,
    ..OpDef::COMPUTE
};

/// `mse` [x F32[N,C], targets F32[N,C], weight F32[N], inv F32[1]]
/// → loss F32[1] = inv·Σ_n weight_n·Σ_c (x − t)²; with `grad_x` also dx F32[N,C] = 2·inv·weight·(x − t).
/// A row of weight 0 is not read: it adds nothing, whatever is in it.
pub static MSE: OpDef = OpDef {
    name: "mse",
    infer: infer_elements,
    reference: |attr, ins| reference_elements(attr, ins, |x, t| ((x - t).powi(2), 2.0 * (x - t))),
    grad: Grad::Rule(rule),
    in_place: &[(0, 1)],
    cost: |_, ins, _| Cost { flops: 4 * ins[0].len() as u64, terms: ins[0].len() },
    workspace: |_, ins, _| 4 * ins[0].rows() as u64,
    host: host::mse,
    wgsl: |l| wgsl::elements(l, "mse", "MSE"),
    cuda: |l| cuda::elements(l, "mse"),
    samples: samples::mse,
    cases: cases::mse,
    ..OpDef::COMPUTE
};

/// `range_cross_entropy` [logits F32[T,C], ranges I32[S,2], labels I32[S,C], inv F32[1]]: cross entropies over rows, as
/// where an answer starts and ends in a text (Devlin et al. 2018, section 4.2; C = 2).
/// → loss F32[1] = inv·Σ_s Σ_c (ln Σ_t e^logits\[t,c\] − logits\[first_s + label_sc, c\]), t over first_s..end_s, the
/// rows of sequence s; with `grad_x` also dlogits F32[T,C] = inv·(softmax over those rows − onehot).
///
/// A label that is negative or not smaller than its range adds nothing; neither does a range that is empty or not within
/// 0..T. Where nothing was added, and in rows of no range, dlogits is exactly 0. No two ranges may overlap.
pub static RANGE_CROSS_ENTROPY: OpDef = OpDef {
    name: "range_cross_entropy",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Loss(Loss { grad_x, grad_w: false }), [logits, ranges, labels, inv]) => {
            let (_, c) = check::matrix("logits", logits)?;
            let (s, _) = check::matrix("ranges", ranges)?;
            check::is("ranges", ranges, &Ty::i32(&[s, 2]))?;
            check::is("labels", labels, &Ty::i32(&[s, c]))?;
            outputs(*grad_x, logits, inv)
        }
        _ => Err(check::refuse("logits, ranges, labels, inv and Loss", attr, ins)),
    },
    reference: |attr, ins| {
        let [logits, ranges, labels, inv] = ins else { unreachable!("infer refused it") };
        let (mut sum, mut dlogits) = (0.0, Tensor::zeros(&logits.shape));
        for s in 0..ranges.rows() {
            let (first, end) = (ranges.at(s, 0), ranges.at(s, 1));
            for c in 0..logits.cols() {
                let label = labels.at(s, c);
                if 0.0 <= first && end <= logits.rows() as f64 && 0.0 <= label && label < end - first {
                    let rows = first as usize..end as usize;
                    let column: Vec<f64> = rows.clone().map(|t| logits.at(t, c)).collect();
                    let (loss, slopes) = softmax_loss(&column, label as usize);
                    sum += loss;
                    rows.zip(slopes).for_each(|(t, slope)| dlogits.row_mut(t)[c] = inv.data[0] * slope);
                }
            }
        }
        results(attr, inv, sum, dlogits)
    },
    grad: Grad::Rule(rule),
    cost: |_, ins, _| Cost { flops: 8 * ins[0].len() as u64, terms: ins[0].rows() + ins[2].len() },
    // A loss for each range and column.
    workspace: |_, ins, _| 4 * ins[2].len() as u64,
    host: host::range_cross_entropy,
    wgsl: wgsl::range_cross_entropy,
    cuda: cuda::range_cross_entropy,
    samples: samples::range_cross_entropy,
    cases: cases::range_cross_entropy,
    ..OpDef::COMPUTE
};

impl Graph {
    /// inv·Σ cross entropies of the rows of `logits` whose label is a column. The gradient is computed on the way if it
    /// is needed.
    pub fn cross_entropy(&mut self, logits: Val, labels: Val, inv: Val) -> Result<Val> {
        self.loss(&CROSS_ENTROPY, &[logits, labels, inv])
    }

    /// inv·Σ binary cross entropies of `targets` and sigmoid(`logits`), each row times its weight.
    pub fn bce_with_logits(&mut self, logits: Val, targets: Val, weight: Val, inv: Val) -> Result<Val> {
        self.loss(&BCE_WITH_LOGITS, &[logits, targets, weight, inv])
    }

    /// inv·Σ (`x` − `targets`)², each row times its weight.
    pub fn mse(&mut self, x: Val, targets: Val, weight: Val, inv: Val) -> Result<Val> {
        self.loss(&MSE, &[x, targets, weight, inv])
    }

    /// inv·Σ cross entropies of the columns of `logits`, over the rows of each range.
    pub fn range_cross_entropy(&mut self, logits: Val, ranges: Val, labels: Val, inv: Val) -> Result<Val> {
        self.loss(&RANGE_CROSS_ENTROPY, &[logits, ranges, labels, inv])
    }

    fn loss(&mut self, op: &'static OpDef, ins: &[Val]) -> Result<Val> {
        let loss = Loss { grad_x: self.needs_grad(ins[0]), grad_w: false };
        Ok(self.node(op, Attr::Loss(loss), ins)?[0])
    }
}

fn grad_x(attr: &Attr) -> bool {
    matches!(attr, Attr::Loss(Loss { grad_x: true, .. }))
}

fn infer_elements(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    match (attr, ins) {
        (Attr::Loss(Loss { grad_x, grad_w: false }), [x, targets, weight, inv]) => {
            let (n, _) = check::matrix("x", x)?;
            check::is("the targets", targets, x)?;
            check::is("the weight", weight, &Ty::f32(&[n]))?;
            outputs(*grad_x, x, inv)
        }
        _ => Err(check::refuse("x, targets, weight, inv and Loss", attr, ins)),
    }
}

/// The loss, and the gradient if it is asked for.
fn outputs(grad_x: bool, x: &Ty, inv: &Ty) -> Result<Vec<Ty>, String> {
    check::float("x", x)?;
    check::is("inv", inv, &Ty::f32(&[1]))?;
    let loss = Ty::f32(&[1]);
    Ok([loss].into_iter().chain(grad_x.then(|| x.clone())).collect())
}

fn results(attr: &Attr, inv: &Tensor, sum: f64, dx: Tensor) -> Vec<Tensor> {
    let loss = Tensor::scalar(inv.data[0] * sum);
    [loss].into_iter().chain(grad_x(attr).then_some(dx)).collect()
}

/// The cross entropy of one softmax, and its slopes p − onehot.
fn softmax_loss(logits: &[f64], label: usize) -> (f64, Vec<f64>) {
    let most = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let total: f64 = logits.iter().map(|l| (l - most).exp()).sum();
    let mut slopes: Vec<f64> = logits.iter().map(|l| (l - most).exp() / total).collect();
    slopes[label] -= 1.0;
    (most + total.ln() - logits[label], slopes)
}

/// `f`: the loss of an element x with its target t, and the slope.
fn reference_elements(attr: &Attr, ins: &[Tensor], f: impl Fn(f64, f64) -> (f64, f64)) -> Vec<Tensor> {
    let [x, targets, weight, inv] = ins else { unreachable!("infer refused it") };
    let (mut sum, mut dx) = (0.0, Tensor::zeros(&x.shape));
    for (n, &weight) in weight.data.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
        for c in 0..x.cols() {
            let (loss, slope) = f(x.at(n, c), targets.at(n, c));
            sum += weight * loss;
            dx.row_mut(n)[c] = inv.data[0] * weight * slope;
        }
    }
    results(attr, inv, sum, dx)
}

/// dx = the gradient computed on the way, times dloss. Labels, targets, weights and factor are no parameters.
fn rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let mut gradients = vec![None; node.ins.len()];
    let Some(dloss) = grads[0] else { return Ok(gradients) };
    let lacks = |i: usize| wants[i] && !(i == 0 && grad_x(&node.attr));
    if let Some(input) = (0..wants.len()).find(|&i| lacks(i)) {
        let parameter = g.value(node.ins[input]).name.clone();
        return Err(Error::NoGradient { op: node.op.name, site: node.site.clone(), input, parameter });
    }
    gradients[0] = Some(g.scale(node.outs[1], dloss)?);
    Ok(gradients)
}
