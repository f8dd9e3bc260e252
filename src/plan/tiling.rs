//! Batches of nodes that can be launched by several kernels with the same bits, and choices among those that were made
//! elsewhere. No choice moves a value, or asks for other scratch memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::batch::Batches;
use super::{Place, Plan};
use crate::backend::{Caps, Kernel, Launch, Tiling};
use crate::dtype::Ty;
use crate::error::Result;
use crate::graph::{Graph, Phase, Val};

/// What is chosen, by the batches' keys ([`Variants::key`]); of others, the estimate.
pub type Tilings = BTreeMap<String, Tiling>;

/// A batch of nodes and its ways to be launched.
pub struct Variants {
    /// What it is: ops and types of the nodes, and the kernels by estimate. Batches with one key take the same time.
    pub key: String,
    /// The ways, the estimate first; no two are the same. Buffers are indices into [`Plan::buffers`].
    pub ways: Vec<(Tiling, Vec<Launch>)>,
    /// What it reads.
    pub reads: Vec<(Place, Ty)>,
    /// What it writes.
    pub writes: Vec<Place>,
}

impl Plan {
    /// Batches of `g` that can be launched in several ways: of each key one.
    pub fn variants(&self, g: &Graph) -> Result<Vec<Variants>> {
        let batches = Batches::new(g, &self.caps);
        let (mut seen, mut all) = (BTreeSet::new(), Vec::new());
        let mut next = 0;
        while next < g.nodes.len() {
            let nodes = next..batches.of(next).last + 1;
            next = nodes.end;
            let mut ways = vec![(Tiling::Estimated, self.launches_of(g, nodes.clone(), &self.caps)?)];
            let key = key(g, nodes.clone(), &ways[0].1);
            if !seen.insert(key.clone()) {
                continue;
            }
            for tiling in Tiling::ALL {
                let launches = self.launches_of(g, nodes.clone(), &self.caps.tiled(tiling))?;
                if ways.iter().all(|(_, known)| kernels(known) != kernels(&launches)) {
                    ways.push((tiling, launches));
                }
            }
            if ways.len() > 1 {
                let nodes = &g.nodes[nodes];
                let place = |&v: &Val| self.place(g, v);
                let reads = nodes.iter().flat_map(|node| &node.ins).map(|v| Ok((place(v)?, g.ty(*v).clone())));
                let reads = reads.collect::<Result<_>>()?;
                let writes = nodes.iter().flat_map(|node| &node.outs).map(place).collect::<Result<_>>()?;
                all.push(Variants { key, ways, reads, writes });
            }
        }
        Ok(all)
    }

    /// Launches the batches of `g`, of which this is the plan, as `chosen` says.
    pub fn tile(&mut self, g: &Graph, chosen: &Tilings) -> Result<()> {
        let phases: Vec<Phase> = (0..g.phases()).map(Phase).collect();
        let caps = self.caps.clone();
        let takes = |plan: &Plan| (plan.parameter_bytes(&phases, &caps), plan.schedule.staging);
        let before = takes(self);
        self.launches.iter_mut().for_each(Vec::clear);
        self.launch(g, &caps, chosen)?;
        match takes(self) == before {
            true => Ok(()),
            false => Err(g.refuse("plan", "other tiles take other memory, which is a bug in a lowering".into())),
        }
    }

    /// The launches of a batch, by the tiles that `chosen` has for it.
    pub(super) fn tiled(&self, g: &Graph, nodes: Range<usize>, caps: &Caps, chosen: &Tilings) -> Result<Vec<Launch>> {
        let launches = self.launches_of(g, nodes.clone(), caps)?;
        if chosen.is_empty() {
            return Ok(launches);
        }
        match chosen.get(&key(g, nodes.clone(), &launches)) {
            None | Some(Tiling::Estimated) => Ok(launches),
            Some(&tiling) => self.launches_of(g, nodes, &caps.tiled(tiling)),
        }
    }
}

/// What a batch is: its launches, in kernels and sizes, follow from it.
fn key(g: &Graph, nodes: Range<usize>, launches: &[Launch]) -> String {
    let node = |index: usize| {
        let types = |vals: &[Val]| vals.iter().map(|&v| g.ty(v).to_string()).collect::<Vec<_>>().join(" ");
        let node = &g.nodes[index];
        format!("{}({}) -> {}", node.op.name, types(&node.ins), types(&node.outs))
    };
    let mut kernels = kernels(launches);
    // Launches that are cut in time.
    kernels.dedup();
    format!("{} by {}", nodes.map(node).collect::<Vec<_>>().join(" + "), kernels.join(" + "))
}

/// The kernel of each launch, with what its code depends on.
fn kernels(launches: &[Launch]) -> Vec<String> {
    let one = |launch: &Launch| match &launch.kernel {
        Kernel::Cuda(call) => {
            let macros = call.defines.iter().map(|(name, value)| format!(" {name}={value}"));
            std::iter::once(call.entry.to_owned()).chain(macros).collect()
        }
        Kernel::Wgsl(dispatch) => {
            let constants = dispatch.constants.iter().map(|(name, value)| format!(" {name}={value}"));
            let symbols = dispatch.defines.iter().map(|symbol| format!(" {symbol}"));
            std::iter::once(dispatch.shader.to_owned()).chain(symbols).chain(constants).collect()
        }
        Kernel::Host(_) | Kernel::Nothing => String::new(),
    };
    launches.iter().map(one).collect()
}
