//! The phases of a session: those that train, evaluate and generate, over the same weights.

use super::options::Options;
use crate::backend::Caps;
use crate::error::{Error, Result};
use crate::generate::Generation;
use crate::graph::program::Program;
use crate::models::Model;
use crate::nn::{Build, Layout, Nn, Site};
use crate::tasks::Task;
use crate::train::eval::Evaluation;
use crate::train::step::{Check, Leaves, Parts};

/// The leaves of the phases that there are.
pub(super) struct Phases {
    pub train: Option<Leaves>,
    pub evaluation: Option<Evaluation>,
    pub generation: Option<Generation>,
    /// Output heads, each with the embedding that it is tied to.
    pub ties: Vec<(String, String)>,
}

impl Phases {
    /// One graph with the phases that `options` ask for, and the sites of its model. `check` is told of sites and
    /// weights when the model is written.
    pub fn build(
        model: &dyn Model,
        task: &dyn Task,
        build: Build,
        options: &Options,
        caps: &Caps,
        check: Check,
    ) -> Result<(Program, Vec<Site>, Phases)> {
        let mut nn = Nn::new(build);
        let shape = options.shape();
        nn.longest = Some(options.longest.unwrap_or(options.max_seq_len));
        let train = match options.train {
            true => {
                let single = options.single();
                let parts = Parts { model, task, build, shape, single, optimizer: options.optimizer };
                Some(Leaves::build(&mut nn, &parts, caps, check)?)
            }
            false => None,
        };
        let evaluation = match options.evaluate {
            true => Some(Evaluation::build(&mut nn, model, task, shape)?),
            false => None,
        };
        nn.longest = None;
        let generation = match options.generate {
            Some(room) => Some(Generation::build(&mut nn, model, room)?),
            None => None,
        };
        let Nn { g: graph, weights, sites, ties, .. } = nn;
        let forward = train.as_ref().map_or(graph.nodes.len(), |leaves| leaves.forward);
        if train.is_none() {
            check(&sites, &weights)?;
        }
        Ok((Program { graph, weights, forward }, sites, Phases { train, evaluation, generation, ties }))
    }

    /// Takes micro-batches of the size of `smaller`, which are the phases of the same model, too.
    pub fn add(&mut self, smaller: Phases) {
        if let (Some(train), Some(other)) = (&mut self.train, smaller.train) {
            train.feed.add(other.feed);
        }
        if let (Some(evaluation), Some(other)) = (&mut self.evaluation, smaller.evaluation) {
            evaluation.feed.add(other.feed);
        }
    }

    /// What a micro-batch holds.
    pub fn layout(&self) -> Result<&Layout> {
        layout(self.train.as_ref(), self.evaluation.as_ref())
    }
}

/// What a micro-batch holds: the same in training and in evaluation.
pub(super) fn layout<'a>(train: Option<&'a Leaves>, evaluation: Option<&'a Evaluation>) -> Result<&'a Layout> {
    let inputs = train.map(|leaves| &leaves.inputs).or(evaluation.map(|e| &e.inputs));
    inputs.map(|inputs| &inputs.layout).ok_or_else(|| lacks("micro-batches", "train or evaluate"))
}

/// What a session cannot do since its plan has it not.
pub(super) fn lacks(what: &str, option: &str) -> Error {
    let hint = format!("set the option {option} before the session is planned, since memory is planned with it");
    Error::unsupported(format!("{what} in a session that was planned without"), hint)
}
