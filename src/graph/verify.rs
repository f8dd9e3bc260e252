//! What must hold of every graph, whoever made it.

use std::ops::Range;

use super::op::OpRole;
use super::{Def, Graph, Phase, Val};
use crate::error::{Error, Result};

/// Checks that every operand is defined before it is used, that phases are in order and read no value of another, that types are what the op's
/// row says, and that state is not read after it was overwritten.
pub fn verify(g: &Graph) -> Result<()> {
    let mut defined = vec![false; g.values.len()];
    for (i, value) in g.values.iter().enumerate() {
        match value.def {
            Def::Leaf(_) => defined[i] = true,
            Def::View { of, start } => {
                if of.index() >= g.values.len() || start + value.ty.len() > g.ty(of).len() {
                    return Err(fail(g, "view", format!("{} reaches beyond what it views", value.name)));
                }
            }
            Def::Node { node, out } => {
                if g.nodes.get(node).and_then(|n| n.outs.get(out)) != Some(&Val(i as u32)) {
                    return Err(fail(g, "graph", format!("{} is not the output it says", value.name)));
                }
            }
        }
    }
    // Element ranges of leaves that were overwritten so far, with the value that now lives there.
    let mut written: Vec<(Val, Range<usize>, Val)> = Vec::new();
    // The same of transient leaves, through all phases.
    let mut filled: Vec<Filled> = Vec::new();
    let mut phase = Phase::MICRO;
    for node in &g.nodes {
        let error = |found: String| Error::Graph { op: node.op.name, site: node.site.clone(), found };
        if node.phase < phase {
            return Err(error("a node of an earlier phase is after one of a later".into()));
        }
        if node.phase > phase {
            // What the earlier phase wrote is state that this one reads.
            written.clear();
            phase = node.phase;
        }
        for &v in &node.ins {
            let (root, start) = g.root(v);
            if !defined[root.index()] {
                return Err(error(format!("{} is used before it is defined", g.value(v).name)));
            }
            if let Def::Node { node: by, out } = g.value(root).def
                && !g.nodes[by].phase.hands_to(node.phase)
                && g.nodes[by].into[out].is_none()
            {
                return Err(error(format!("{} is of an earlier phase, and no leaf", g.value(v).name)));
            }
            if g.offloaded(v).is_some() && node.op.role != OpRole::Fetch {
                return Err(error(format!("{} is off the device", g.value(v).name)));
            }
            let range = start..start + g.ty(v).len();
            if g.value(root).transient && node.op.role != OpRole::Clear && !covers(&filled, node.phase, root, &range) {
                return Err(error(format!("not all of {} was written before", g.value(v).name)));
            }
            // What clears a tensor does not look at what it held.
            let over = |(r, w, _): &&(Val, Range<usize>, Val)| *r == root && w.start < range.end && range.start < w.end;
            if let Some((.., by)) = written.iter().find(over).filter(|_| node.op.role != OpRole::Clear) {
                return Err(error(format!("{} was overwritten by {}", g.value(v).name, g.value(*by).name)));
            }
        }
        let tys: Vec<_> = node.ins.iter().map(|&v| g.ty(v).clone()).collect();
        let outs = node.op.types(&node.attr, &tys).map_err(error)?;
        if outs.len() != node.outs.len() || outs.iter().zip(&node.outs).any(|(t, &o)| t != g.ty(o)) {
            return Err(error("its outputs are not of the types its row gives".into()));
        }
        for (&out, target) in node.outs.iter().zip(&node.into) {
            defined[out.index()] = true;
            if let Some(t) = *target {
                let (root, start) = g.root(t);
                if !matches!(g.value(root).def, Def::Leaf(_)) {
                    return Err(error(format!("{} is no state to overwrite", g.value(t).name)));
                }
                if g.value(root).offloaded != (node.op.role == OpRole::Store) {
                    return Err(error(format!("{} is written by an op of the other side", g.value(t).name)));
                }
                if g.value(root).transient {
                    filled.push((node.phase, root, start..start + g.ty(t).len()));
                }
                written.push((root, start..start + g.ty(t).len(), out));
            }
        }
    }
    Ok(())
}

/// In which phase which elements of which transient leaf were written.
type Filled = (Phase, Val, Range<usize>);

/// Whether what was written of `root` covers `range` for a reader in `phase`.
fn covers(filled: &[Filled], phase: Phase, root: Val, range: &Range<usize>) -> bool {
    let theirs = filled.iter().filter(|f| f.1 == root && f.0.hands_to(phase));
    let mut parts: Vec<_> = theirs.map(|f| (f.2.start, f.2.end)).collect();
    parts.sort();
    let end = parts.into_iter().fold(range.start, |end, (from, to)| if from <= end { end.max(to) } else { end });
    end >= range.end
}

fn fail(g: &Graph, op: &'static str, found: String) -> Error {
    Error::Graph { op, site: g.site.clone(), found }
}
