//! What makes a step fit the memory there is: passes over its graph, and who chooses among them.
//!
//! A value may be off the device, and moving it is a node ([`transfer`]). Every pass leaves the ops that compute a
//! result and their order as they are, so no choice changes a bit of any result.

pub mod budget;
pub mod offload;
pub mod page;
pub mod recompute;
pub mod resident;
pub mod stream;
pub use crate::graph::transfer;

use std::collections::HashSet;

use crate::error::Result;
use crate::graph::program::Program;
use crate::graph::{Def, Graph, Val};

pub use budget::{Chosen, Fitted, Request, Toggle, fit};
pub use recompute::Level;
pub use stream::Ahead;

/// What is done to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Number of layers, from the first, of which cheap values are computed again.
    pub selective: usize,
    /// Number of layers, from the first, of which all values are; it goes before `selective`.
    pub all: usize,
    /// Number of blocks, in the order of [`stream::order`], whose frozen weights are streamed.
    pub stream: usize,
    /// How early streamed weights are fetched.
    pub ahead: Ahead,
    /// Blocks' inputs wait off the device.
    pub offload: bool,
    /// Elements of a page of optimizer state that is off the device; 0: it is on it.
    pub page: usize,
}

impl Default for Choices {
    fn default() -> Self {
        Choices { selective: 0, all: 0, stream: 0, ahead: Ahead::Block, offload: false, page: 0 }
    }
}

/// Number of blocks of a step: the embedding, the layers, and what is after them.
pub fn blocks(step: &Program) -> usize {
    step.graph.nodes.iter().map(|n| n.block + 1).max().unwrap_or(0)
}

/// Number of blocks that are layers.
pub fn layers(step: &Program) -> usize {
    blocks(step).saturating_sub(2)
}

/// Values that a phase after their own reads. They stay as they are: passes move values within a phase only.
fn handed_on(g: &Graph) -> HashSet<Val> {
    let reads = g.nodes.iter().flat_map(|n| n.ins.iter().map(|&v| (n.phase, g.root(v).0)));
    reads
        .filter(|&(phase, v)| matches!(g.value(v).def, Def::Node { node, .. } if g.nodes[node].phase != phase))
        .map(|(_, v)| v)
        .collect()
}

/// `step` with `choices` made.
pub fn apply(step: &Program, choices: &Choices) -> Result<Program> {
    apply_as_in(step, step, choices)
}

/// The same so that `step` has the nodes of `like`, the same step with micro-batches of another size: what is cheap to
/// compute again depends on sizes.
pub fn apply_as_in(like: &Program, step: &Program, choices: &Choices) -> Result<Program> {
    let mut step = step.clone();
    let (blocks, layers) = (blocks(&step), layers(&step));
    let g = &mut step.graph;
    let dropped = recompute::dropped(&like.graph, like.forward, |block| match block {
        0 => Level::None,
        b if b > layers => Level::None,
        b if b <= choices.all => Level::All,
        b if b <= choices.selective => Level::Selective,
        _ => Level::None,
    });
    recompute::recompute(g, step.forward, &dropped)?;
    if choices.offload {
        let values = offload::candidates(g, step.forward);
        offload::offload(g, step.forward, &values)?;
    }
    let streamed: HashSet<usize> = stream::order(blocks).into_iter().take(choices.stream).collect();
    let weights = stream::candidates(g, &step.weights);
    let weights: HashSet<_> =
        weights.into_iter().filter(|(_, readers)| readers.is_subset(&streamed)).map(|(w, _)| w).collect();
    stream::stream(g, &weights, choices.ahead)?;
    if choices.page > 0 {
        page::page(g, choices.page)?;
    }
    Ok(step)
}
