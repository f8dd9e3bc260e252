//! Paging: the optimizer's state is off the device and is updated a page at a time. While a page is updated, the
//! next one is on its way in; what was updated goes back. The update is elementwise, so pages change no bit.

use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Def, Graph, LeafKind, Node, Phase, Val};
use crate::ops::optim::BLOCK;

/// Parameters of a page: 4 MiB of f32 for each piece of state, large enough for a disk's full speed.
pub const PAGE: usize = 1 << 20;

/// Elements of the parameters that one element of a state may be of: itself, four 8-bit codes in a word, a block's
/// scale.
const SHARES: [usize; 3] = [1, 4, BLOCK];

/// Sends the optimizer state of `g` off the device, where it is updated element by element or block by block. `page`
/// is the number of parameters of a page, a multiple of [`BLOCK`].
pub fn page(g: &mut Graph, page: usize) -> Result<()> {
    let page = page.next_multiple_of(BLOCK);
    let nodes = std::mem::take(&mut g.nodes);
    let outer = (g.phase, g.site.clone(), g.block);
    for node in nodes {
        let Some(shares) = shares(g, &node) else {
            g.keep(node);
            continue;
        };
        (g.phase, g.block) = (node.phase, node.block);
        g.site.clone_from(&node.site);
        let all = g.ty(node.ins[0]).len();
        let share = |v: Val| node.ins.iter().position(|&i| i == v).and_then(|i| shares[i]);
        let state: Vec<Val> = node.ins.iter().copied().filter(|&v| is_state(g, v)).collect();
        state.iter().for_each(|v| g.values[v.index()].offloaded = true);
        // An operand of page k: a part of it, or the whole if it is none of the flat ones.
        let part = |g: &mut Graph, v: Val, k: usize| match share(v) {
            Some(share) => {
                let ty = Ty::new(g.ty(v).dtype, &[page.min(all - k * page) / share]);
                g.view(v, k * page / share, ty)
            }
            None => v,
        };
        let bring = |g: &mut Graph, k: usize| -> Result<Vec<Val>> {
            let one = |&v: &Val| {
                let here = part(g, v, k);
                if g.offloaded(here).is_some() { g.fetch(here) } else { Ok(here) }
            };
            node.ins.iter().map(one).collect()
        };
        // What the whole node gave is what its pages leave.
        for (&out, target) in node.outs.iter().zip(&node.into) {
            if let Some(of) = *target {
                g.values[out.index()].def = Def::View { of, start: 0 };
            }
        }
        let pages = all.div_ceil(page);
        let mut next = bring(g, 0)?;
        for k in 0..pages {
            let ins = next;
            next = if k + 1 < pages { bring(g, k + 1)? } else { Vec::new() };
            // State is written into its page, the rest where it was written before.
            let into: Vec<Option<Val>> = node.into.iter().map(|t| t.map(|t| part(g, t, k))).collect();
            let here: Vec<Option<Val>> = into.iter().map(|t| t.filter(|&t| g.offloaded(t).is_none())).collect();
            let outs = g.node_into(node.op, node.attr.clone(), &ins, &here)?;
            for (out, target) in outs.into_iter().zip(into) {
                if let Some(t) = target.filter(|&t| g.offloaded(t).is_some()) {
                    g.store(out, t)?;
                }
            }
        }
    }
    (g.phase, g.site, g.block) = outer;
    Ok(())
}

fn is_state(g: &Graph, v: Val) -> bool {
    matches!(g.value(v).def, Def::Leaf(LeafKind::Optim))
}

/// For each operand of an update that can be paged, how many parameters an element of it is of; None for one that
/// is not flat. The update can if it overwrites all it changes, its parameters and gradients are flat, and every state
/// has one of the [`SHARES`]; one that also reads a table of its tensors (Adafactor's) looks at more than a page.
fn shares(g: &Graph, node: &Node) -> Option<Vec<Option<usize>>> {
    let whole = g.ty(*node.ins.first()?);
    let mut any = false;
    let mut shares = Vec::with_capacity(node.ins.len());
    for &v in &node.ins {
        let ty = g.ty(v);
        let share = match () {
            () if ty == whole => Some(1),
            () if is_state(g, v) => {
                Some(SHARES.into_iter().find(|s| ty.len() * s == whole.len()).filter(|_| ty.shape.len() == 1)?)
            }
            () if ty.dtype != DType::F32 => return None,
            () => None,
        };
        any |= is_state(g, v);
        shares.push(share);
    }
    let over = node.into.first()? == &Some(node.ins[0]) && node.into.iter().all(Option::is_some);
    (any && over && node.phase == Phase::UPDATE).then_some(shares)
}
