//! A graph with what passes need to know of it.

use super::Graph;
use super::weight::Weight;

/// A graph, the leaves that are filled before its first run, and where its backward pass begins.
#[derive(Clone)]
pub struct Program {
    pub graph: Graph,
    pub weights: Vec<Weight>,
    /// Number of nodes before the first backward one; all, if there is none.
    pub forward: usize,
}
