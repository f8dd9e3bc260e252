//! The graph of a training step: forward, loss, backward, gradients added up, clipping, optimizer.

use crate::autograd;
use crate::backend::Caps;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::graph::program::Program;
use crate::graph::{Graph, LeafKind, Phase, Val};
use crate::models::Model;
use crate::nn::{Build, Hooks, Inputs, Nn, Site, StorageOf, Weight};
use crate::peft::Method;
use crate::tasks::causal_lm::CausalLm;
use crate::tasks::{Shape, Task};
use crate::train::feed::Feed;
use crate::train::gradients;
use crate::train::loraplus::Group;
use crate::train::optimizer::Optimizer;
use crate::train::update::{Table, Updated, Updates, update};

/// A step's graph and the leaves that the host writes and reads.
#[derive(Clone)]
pub struct Step {
    /// The step's graph and its leaves' first values.
    pub program: Program,
    /// What the host writes and reads.
    pub leaves: Leaves,
    /// The places of the model, for methods to check their targets against.
    pub sites: Vec<Site>,
}

/// The leaves of a step that the host writes and reads, and how.
#[derive(Clone)]
pub struct Leaves {
    /// What a micro-batch holds.
    pub inputs: Inputs,
    pub(crate) feed: Feed,
    /// Random-number key, U32[4].
    pub rng: Val,
    /// 1 / units of the whole step, F32[1].
    pub inv_count: Val,
    /// Where activations are f16: the loss scale and its inverse, F32[1] each ([`crate::train::scale`]).
    pub scale: Option<(Val, Val)>,
    /// The step's loss so far, F32[1]; the host sets it to zero first.
    pub loss: Val,
    /// Sum of squares of the gradient before clipping, F32[1].
    pub sum_squares: Val,
    /// [`Optimizer::hyper`] of the step for each group of tensors, F32[8].
    pub hypers: Vec<(Val, Group)>,
    /// Rule and constants of the update.
    pub optimizer: Optimizer,
    /// Leaves that the host writes once, before the first step.
    pub tables: Vec<Table>,
    /// The number of the graph's nodes that are of the forward pass.
    pub forward: usize,
}

/// What a step is built from.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// The base model.
    pub model: &'a dyn Model,
    /// What is computed from the model, and its loss.
    pub task: &'a dyn Task,
    /// Methods, formats of weights, and type of activations.
    pub build: Build<'a>,
    /// Largest micro-batch.
    pub shape: Shape,
    /// A step is one micro-batch, and not any number: its gradients are not added up.
    pub single: bool,
    /// Rule and constants of the update.
    pub optimizer: Optimizer,
}

/// The micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Micro {
    /// Packed tokens of each.
    pub tokens: usize,
    /// A step is one of them, and not any number: its gradients are not added up.
    pub single: bool,
}

impl Step {
    /// Builds the step of causal language modelling for any number of micro-batches of `tokens` packed tokens, activations
    /// in `act`, with AdamW and its default constants.
    pub fn new(
        model: &dyn Model,
        method: &dyn Method,
        storage: StorageOf,
        act: DType,
        tokens: usize,
        caps: &Caps,
    ) -> Result<Step> {
        Step::with(model, method, storage, act, Micro { tokens, single: false }, Optimizer::default(), caps)
    }

    /// The same for such micro-batches, and with any optimizer.
    pub fn with(
        model: &dyn Model,
        method: &dyn Method,
        storage: StorageOf,
        act: DType,
        micro: Micro,
        optimizer: Optimizer,
        caps: &Caps,
    ) -> Result<Step> {
        let Micro { tokens, single } = micro;
        let stack: &[&dyn Hooks] = &[method];
        let build = Build { stack, storage, act };
        Step::of(&Parts { model, task: &CausalLm, build, shape: Shape::of(tokens), single, optimizer }, caps)
    }

    /// The step of any task.
    pub fn of(parts: &Parts, caps: &Caps) -> Result<Step> {
        let mut nn = Nn::new(parts.build);
        let leaves = Leaves::build(&mut nn, parts, caps, &|_, _| Ok(()))?;
        Ok(Step::finish(nn, leaves))
    }

    /// The step whose graph is that of `nn`.
    pub fn finish(nn: Nn, leaves: Leaves) -> Step {
        let Nn { g: graph, weights, sites, .. } = nn;
        Step { program: Program { graph, weights, forward: leaves.forward }, leaves, sites }
    }
}

/// Whether methods fit the sites and weights of a model.
pub type Check<'a> = &'a dyn Fn(&[Site], &[Weight]) -> Result<()>;

impl Leaves {
    /// Appends the phases MICRO and UPDATE of the step to an empty graph. `check` is asked when the model is written, before
    /// what it trains is looked for.
    pub fn build(nn: &mut Nn, parts: &Parts, caps: &Caps, check: Check) -> Result<Leaves> {
        let Parts { model, task, build, shape, single, optimizer } = *parts;
        let act = build.act;
        optimizer.check()?;
        nn.begin(Phase::MICRO, task.layout(shape))?;
        let [inv_count, loss, sum_squares] =
            ["inv_count", "loss", "sum_squares"].map(|name| nn.g.leaf(LeafKind::Io, name, Ty::f32(&[1])));
        let hyper = nn.g.leaf(LeafKind::Io, "hyper", Ty::f32(&[8]));
        let one = nn.one();

        // Gradients of activations in f16 are kept where f16 is fine-grained; a power of two changes no other bit.
        let scale = match act {
            DType::F16 => {
                let [up, down] =
                    ["loss_scale", "loss_unscale"].map(|name| nn.g.leaf(LeafKind::Io, name, Ty::f32(&[1])));
                Some((up, down))
            }
            _ => None,
        };
        let inv = scale.map_or(Ok(inv_count), |(up, _)| nn.g.scale(inv_count, up))?;
        let micro_loss = task.forward(nn, model, inv)?.loss;
        check(&nn.sites, &nn.weights)?;
        let (rng, inputs) = (nn.rng(), nn.inputs());
        let params: Vec<Val> = nn.weights.iter().filter(|w| w.trainable).map(|w| w.val).collect();
        let g = &mut nn.g;
        if params.is_empty() {
            return Err(Error::config("method", "nothing to train", "targets that match layers of the model"));
        }
        let mut forward = g.nodes.len();
        let gradients = autograd::backward(g, &[(micro_loss, one)], &params)?;
        g.block = 0;
        g.site = "loss".into();
        let lower = |g: &mut Graph, x: Val| scale.map_or(Ok(x), |(_, down)| g.scale(x, down));
        let shown = lower(g, micro_loss)?;
        autograd::accumulate(g, loss, shown)?;
        let mut leaves = Vec::with_capacity(params.len());
        for (&param, gradient) in params.iter().zip(gradients) {
            let name = g.value(param).name.clone();
            let Some(gradient) = gradient else {
                return Err(Error::config(
                    "method",
                    format!("{name}, on which the loss does not depend"),
                    "trainable tensors that the model uses",
                ));
            };
            let leaf = g.leaf(LeafKind::Grad, format!("grad.{name}"), g.ty(param).clone());
            g.site = format!("grad.{name}");
            let gradient = lower(g, gradient)?;
            if single {
                gradients::write(g, leaf, gradient)?;
            } else {
                autograd::accumulate(g, leaf, gradient)?;
            }
            leaves.push(leaf);
        }
        let groups = nn.weights.iter().filter(|w| w.trainable);
        let groups = groups.map(|w| optimizer.group(w, g.shape(w.val).len(), &nn.weights));
        let pairs = params.iter().zip(&leaves);
        let trained: Vec<Updated> = pairs.zip(groups).map(|((&p, &leaf), group)| (p, leaf, group)).collect();
        let Updates { tables, hypers } = update(g, &trained, (sum_squares, hyper), !single, &optimizer, caps)?;
        if single {
            forward += gradients::make_transient(g, &leaves, forward)?;
        }
        let feed = Feed::new(&nn.g, &inputs);
        Ok(Leaves { inputs, feed, rng, inv_count, scale, loss, sum_squares, hypers, optimizer, tables, forward })
    }
}
