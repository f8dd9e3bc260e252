//! A graph with what passes need to know of it.

use super::Graph;
use super::weight::Weight;

/// A graph, the leaves that are filled before its first run, and where its backward pass begins.
#[derive(Clone)]
pub struct Program {
    /// Its nodes and values.
    pub graph: Graph,
    /// The leaves that are filled from files, drawn, or computed before the first run.
    pub weights: Vec<Weight>,
    /// Number of nodes before the first backward one; all, if there is none.
    pub forward: usize,
}
