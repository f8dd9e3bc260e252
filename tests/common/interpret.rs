//! Runs a graph in float64, by the ops' definitions.

use std::collections::HashMap;

use trimtab::graph::{Def, Graph, Val};
use trimtab::ops::Tensor;

/// The values of all nodes' outputs, given those of the leaves.
pub struct Values<'a> {
    graph: &'a Graph,
    known: HashMap<Val, Tensor>,
}

impl<'a> Values<'a> {
    pub fn of(graph: &'a Graph, leaves: impl IntoIterator<Item = (Val, Tensor)>) -> Values<'a> {
        let mut values = Values { graph, known: leaves.into_iter().collect() };
        for node in &graph.nodes {
            let ins: Vec<Tensor> = node.ins.iter().map(|&v| values.get(v)).collect();
            let outs = (node.op.reference)(&node.attr, &ins);
            values.known.extend(node.outs.iter().copied().zip(outs));
        }
        values
    }

    pub fn get(&self, v: Val) -> Tensor {
        match (self.known.get(&v), &self.graph.value(v).def) {
            (Some(t), _) => t.clone(),
            (None, &Def::View { of, start }) => {
                let ty = self.graph.ty(v);
                Tensor::new(&ty.shape, self.get(of).data[start..start + ty.len()].to_vec())
            }
            (None, def) => panic!("{} ({def:?}) has no value", self.graph.value(v).name),
        }
    }
}
