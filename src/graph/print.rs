//! A graph as text, one node a line: for reading a graph, and what tests snapshot.

use std::fmt;

use super::{Def, Graph, Val};

impl Graph {
    fn label(&self, v: Val) -> String {
        let value = self.value(v);
        match value.def {
            Def::Node { .. } => format!("%{}", v.0),
            Def::Leaf(_) => value.name.clone(),
            Def::View { of, start: 0 } => self.label(of),
            Def::View { of, start } => format!("{}[{start}..]", self.label(of)),
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let outs: Vec<String> = node.outs.iter().map(|&o| format!("%{}: {}", o.0, self.ty(o))).collect();
            let ins: Vec<String> = node.ins.iter().map(|&i| self.label(i)).collect();
            write!(f, "{} = {}({})", outs.join(", "), node.op.name, ins.join(", "))?;
            for target in node.into.iter().flatten() {
                write!(f, " -> {}", self.label(*target))?;
            }
            writeln!(f, "  # {}", node.site)?;
        }
        Ok(())
    }
}
