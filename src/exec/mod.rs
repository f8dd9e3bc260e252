//! From a plan to a running step.

mod lower;

pub use lower::{Operands, lower};

use crate::backend::{Backend, Buffer, Launch, Recording, Slice};
use crate::error::Result;
use crate::graph::{Graph, Phase, Val};
use crate::plan::{Place, Plan};

/// A planned graph on a device: allocated, compiled, ready to run step after step without allocating anything.
pub struct Exec {
    pub backend: Box<dyn Backend>,
    pub graph: Graph,
    pub plan: Plan,
    buffers: Vec<Buffer>,
    phases: [Recording; Phase::COUNT],
}

impl Exec {
    pub fn new(mut backend: Box<dyn Backend>, graph: Graph, plan: Plan) -> Result<Exec> {
        let mut buffers = Vec::with_capacity(plan.buffers.len());
        for allocation in &plan.buffers {
            buffers.push(backend.alloc(allocation.bytes)?);
        }
        let mut lists: [Vec<Launch>; Phase::COUNT] = Default::default();
        for (index, node) in graph.nodes.iter().enumerate() {
            let slices = |vals: &[Val]| -> Result<Vec<Slice>> {
                vals.iter().map(|&v| Ok(slice(&buffers, plan.place(&graph, v)?))).collect()
            };
            let at = Operands {
                outs: slices(&node.outs)?,
                ins: slices(&node.ins)?,
                work: plan.work(index).map(|p| slice(&buffers, p)),
            };
            let tys = |vals: &[Val]| vals.iter().map(|&v| graph.ty(v).clone()).collect::<Vec<_>>();
            let (ins, outs) = (tys(&node.ins), tys(&node.outs));
            let launches = lower(node.op, &node.site, &node.attr, &ins, &outs, &at, backend.caps())?;
            lists[node.phase.0].extend(launches);
        }
        let phases = [backend.record(&lists[0])?, backend.record(&lists[1])?];
        Ok(Exec { backend, graph, plan, buffers, phases })
    }

    pub fn run(&mut self, phase: Phase) -> Result<()> {
        self.backend.replay(self.phases[phase.0])
    }

    pub fn slice(&self, v: Val) -> Result<Slice> {
        Ok(slice(&self.buffers, self.plan.place(&self.graph, v)?))
    }

    /// Writes `v` from its first byte on.
    pub fn upload(&mut self, v: Val, bytes: &[u8]) -> Result<()> {
        let to = self.slice(v)?;
        self.backend.upload(to, bytes)
    }

    pub fn download(&mut self, v: Val) -> Result<Vec<u8>> {
        let from = self.slice(v)?;
        let mut bytes = vec![0; from.bytes as usize];
        self.backend.download(from, &mut bytes)?;
        Ok(bytes)
    }

    pub fn download_f32(&mut self, v: Val) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.download(v)?))
    }
}

fn slice(buffers: &[Buffer], place: Place) -> Slice {
    Slice { buffer: buffers[place.buffer], offset: place.offset, bytes: place.bytes }
}
