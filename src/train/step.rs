//! The graph of a training step: forward, loss, backward, gradients added up, clipping, optimizer.

use crate::autograd;
use crate::backend::Caps;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::graph::{Class, Graph, Phase, Val};
use crate::models::Model;
use crate::nn::{Batch, Nn, Role, Weight};
use crate::ops::{Attr, optim};
use crate::peft::Method;

/// A step's graph and the leaves that the host writes and reads.
#[derive(Clone)]
pub struct Step {
    pub graph: Graph,
    pub batch: Batch,
    /// The token that each token is to predict, I32[T]; −100: none.
    pub labels: Val,
    /// 1 / trained tokens of the whole step, F32[1].
    pub inv_count: Val,
    /// The step's loss so far, F32[1]; the host sets it to zero first.
    pub loss: Val,
    /// Sum of squares of the gradient before clipping, F32[1].
    pub sum_squares: Val,
    /// Rate, 1 − betas, epsilon, decay, bias corrections, norm to clip to: F32[8], as [`optim::ADAMW`] reads them.
    pub hyper: Val,
    pub weights: Vec<Weight>,
    /// Number of nodes before the first backward one.
    pub forward: usize,
}

impl Step {
    /// Builds the step for micro-batches of `tokens` packed tokens.
    pub fn new(
        model: &dyn Model,
        method: &dyn Method,
        storage: &dyn Fn(&str, Role) -> DType,
        tokens: usize,
        caps: &Caps,
    ) -> Result<Step> {
        let mut nn = Nn::new(method, storage, tokens);
        let labels = nn.g.leaf(Class::Io, "labels", Ty::i32(&[tokens]));
        let [inv_count, loss, sum_squares] =
            ["inv_count", "loss", "sum_squares"].map(|name| nn.g.leaf(Class::Io, name, Ty::f32(&[1])));
        let hyper = nn.g.leaf(Class::Io, "hyper", Ty::f32(&[8]));
        let one = nn.constant("one", &[1], || vec![1.0]);

        let hidden = model.hidden(&mut nn)?;
        let head = model.head(&mut nn);
        nn.g.site = "loss".into();
        let micro_loss = nn.g.linear_cross_entropy(hidden, head, labels, inv_count)?;
        let Nn { mut g, weights, batch, .. } = nn;

        let params: Vec<Val> = weights.iter().filter(|w| w.trainable).map(|w| w.val).collect();
        if params.is_empty() {
            return Err(Error::config("method", "nothing to train", "targets that match layers of the model"));
        }
        let forward = g.nodes.len();
        let gradients = autograd::backward(&mut g, &[(micro_loss, one)], &params)?;
        g.block = 0;
        g.site = "loss".into();
        autograd::accumulate(&mut g, loss, micro_loss)?;
        let mut sums = Vec::with_capacity(params.len());
        for (&param, gradient) in params.iter().zip(gradients) {
            let name = g.value(param).name.clone();
            let Some(gradient) = gradient else {
                return Err(Error::config(
                    "method",
                    format!("{name}, on which the loss does not depend"),
                    "trainable tensors that the model uses",
                ));
            };
            let sum = g.leaf(Class::Grad, format!("grad.{name}"), g.ty(param).clone());
            g.site = format!("grad.{name}");
            autograd::accumulate(&mut g, sum, gradient)?;
            sums.push(sum);
        }
        update(&mut g, &params, &sums, sum_squares, hyper, caps)?;
        Ok(Step { graph: g, batch, labels, inv_count, loss, sum_squares, hyper, weights, forward })
    }
}

/// The optimizer's part: parameters, gradients and moments lie flat, so that a launch updates many tensors; one flat
/// stretch for all, or several where a device's largest buffer is smaller than that.
fn update(g: &mut Graph, params: &[Val], grads: &[Val], sum_squares: Val, hyper: Val, caps: &Caps) -> Result<()> {
    g.phase = Phase::UPDATE;
    g.site = "optimizer".into();
    let mut flats = Vec::new();
    let mut start = 0;
    while start < params.len() {
        let room = |v: Val| crate::dtype::align(g.ty(v).bytes()) as u64;
        let mut bytes = room(params[start]);
        let mut end = start + 1;
        while end < params.len() && bytes + room(params[end]) <= caps.max_buffer {
            bytes += room(params[end]);
            end += 1;
        }
        let i = flats.len();
        let p = g.gather(Class::Param, &format!("params.{i}"), &params[start..end]);
        let d = g.gather(Class::Grad, &format!("grads.{i}"), &grads[start..end]);
        let ty = g.ty(p).clone();
        let m = g.leaf(Class::Optim, format!("exp_avg.{i}"), ty.clone());
        let v = g.leaf(Class::Optim, format!("exp_avg_sq.{i}"), ty);
        flats.push((p, d, m, v));
        start = end;
    }
    let mut sum = None;
    for (i, &(_, d, ..)) in flats.iter().enumerate() {
        let into = (i + 1 == flats.len()).then_some(sum_squares);
        let ins: Vec<Val> = [Some(d), sum].into_iter().flatten().collect();
        sum = Some(g.node_into(&optim::SUM_SQUARES, Attr::Acc(sum.is_some()), &ins, &[into])?[0]);
    }
    for (p, d, m, v) in flats {
        if let Some(sum) = sum {
            g.adamw(p, d, m, v, sum, hyper)?;
        }
        g.zero(d)?;
    }
    Ok(())
}
