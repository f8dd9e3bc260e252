//! A plan on a device: allocated, compiled, and then run step after step without allocating anything.

use crate::backend::{Backend, Buffer, Launch, Recording, Slice};
use crate::error::Result;
use crate::graph::{Graph, Phase, Val};
use crate::plan::Plan;

pub struct Exec {
    pub backend: Box<dyn Backend>,
    pub graph: Graph,
    pub plan: Plan,
    buffers: Vec<Buffer>,
    phases: [Recording; Phase::COUNT],
}

impl Exec {
    /// Allocates what `plan` lists and records its launches.
    pub fn new(mut backend: Box<dyn Backend>, graph: Graph, mut plan: Plan) -> Result<Exec> {
        let mut buffers = Vec::with_capacity(plan.buffers.len());
        for allocation in &plan.buffers {
            buffers.push(backend.alloc(allocation.bytes)?);
        }
        let mut record = |mut launches: Vec<Launch>| {
            for arg in launches.iter_mut().flat_map(|l| &mut l.args) {
                arg.buffer = buffers[arg.buffer.0 as usize];
            }
            backend.record(&launches)
        };
        let [first, second] = std::mem::take(&mut plan.launches);
        let phases = [record(first)?, record(second)?];
        Ok(Exec { backend, graph, plan, buffers, phases })
    }

    pub fn run(&mut self, phase: Phase) -> Result<()> {
        self.backend.replay(self.phases[phase.0])
    }

    pub fn slice(&self, v: Val) -> Result<Slice> {
        let place = self.plan.place(&self.graph, v)?;
        Ok(Slice { buffer: self.buffers[place.buffer], offset: place.offset, bytes: place.bytes })
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
