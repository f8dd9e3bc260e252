//! Paging: the optimizer's state lies off the device and is updated a page at a time. While a page is updated, the
//! next one is on its way in; what was updated goes back. The update is elementwise, so pages change no bit.

use crate::error::Result;
use crate::graph::{Class, Def, Graph, Node, Val};

use super::transfer::part;

/// Elements of a page: 4 MiB of f32 for each piece of state, large enough for a disk's full speed.
pub const PAGE: usize = 1 << 20;

/// Sends every optimizer state of `g` that is as long as the parameters it belongs to off the device. `page` is the
/// number of elements of a page, a multiple of 64.
pub fn page(g: &mut Graph, page: usize) -> Result<()> {
    let nodes = std::mem::take(&mut g.nodes);
    let outer = (g.phase, g.site.clone(), g.block);
    for node in nodes {
        if !is_update(g, &node) {
            g.keep(node);
            continue;
        }
        (g.phase, g.block) = (node.phase, node.block);
        g.site.clone_from(&node.site);
        let whole = g.ty(node.ins[0]).clone();
        let pages = whole.len().div_ceil(page);
        let state: Vec<Val> = node.ins.iter().copied().filter(|&v| is_state(g, v)).collect();
        state.iter().for_each(|v| g.values[v.index()].away = true);
        // Input i of page k: fetched if it is state, else a view, or as it is.
        let view = |g: &mut Graph, v: Val, k: usize| match *g.ty(v) == whole {
            true => g.view(v, k * page, part(&whole, page.min(whole.len() - k * page))),
            false => v,
        };
        let bring = |g: &mut Graph, k: usize| -> Result<Vec<Val>> {
            let one = |&v: &Val| {
                let here = view(g, v, k);
                if g.away(here).is_some() { g.fetch(here) } else { Ok(here) }
            };
            node.ins.iter().map(one).collect()
        };
        // What the whole node gave is what its pages leave behind.
        for (&out, target) in node.outs.iter().zip(&node.into) {
            if let Some(of) = *target {
                g.values[out.index()].def = Def::View { of, start: 0 };
            }
        }
        let mut next = bring(g, 0)?;
        for k in 0..pages {
            let ins = next;
            next = if k + 1 < pages { bring(g, k + 1)? } else { Vec::new() };
            // State is written into its page, the rest where it was written before.
            let mut into = Vec::with_capacity(node.into.len());
            for target in &node.into {
                into.push(target.map(|t| view(g, t, k)));
            }
            let here: Vec<Option<Val>> = into.iter().map(|t| t.filter(|&t| g.away(t).is_none())).collect();
            let outs = g.node_into(node.op, node.attr.clone(), &ins, &here)?;
            for (out, target) in outs.into_iter().zip(into) {
                if let Some(t) = target.filter(|&t| g.away(t).is_some()) {
                    g.store(out, t)?;
                }
            }
        }
    }
    (g.phase, g.site, g.block) = outer;
    Ok(())
}

fn is_state(g: &Graph, v: Val) -> bool {
    matches!(g.value(v).def, Def::Leaf(Class::Optim))
}

/// An update that goes element by element: it overwrites flat parameters, and all its state is as long as they are.
fn is_update(g: &Graph, node: &Node) -> bool {
    let mut states = node.ins.iter().filter(|&&v| is_state(g, v)).peekable();
    states.peek().is_some()
        && node.into.first().copied().flatten() == node.ins.first().copied()
        && node.into.iter().all(Option::is_some)
        && states.all(|&v| g.ty(v) == g.ty(node.ins[0]))
}
