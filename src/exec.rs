//! A plan on a device: allocated, compiled, and then run step after step without allocating anything.

mod held;
mod trace;

use std::collections::HashMap;

use crate::backend::{Backend, Buffer, HostSlice, Launch, Point, Recording, Slice};
use crate::error::{Error, Result};
use crate::graph::{Graph, Phase, Val};
use crate::offload::{Offload, Request, Store, Ticket, Way};
use crate::plan::{Move, Place, Plan, Step};
use crate::system;

/// A plan carried out: its buffers on a device, its launches recorded, and what it keeps off the device.
pub struct Exec {
    /// First, so that its thread has ended before the memory it writes to is gone.
    pub offload: Offload,
    /// The device, with the plan's buffers allocated.
    pub backend: Box<dyn Backend>,
    /// The graph that was planned.
    pub graph: Graph,
    /// Where everything is and what runs.
    pub plan: Plan,
    buffers: Vec<Buffer>,
    /// By size of the micro-batches, the plan's own first.
    sizes: Vec<Recorded>,
    /// Host memory that transfers go through, where the device's memory is not the process's own.
    staging: Staging,
    /// Values off the device that have staging memory of their own.
    held: HashMap<Val, HostSlice>,
    /// By move: its request under way, and the point of the launches from which on its place is free.
    requests: Vec<Ticket>,
    points: Vec<Point>,
}

/// Memory of the backend's own kind, or any.
enum Staging {
    Device(HostSlice),
    Any(Vec<u8>),
}

impl Staging {
    fn new(backend: &mut dyn Backend, bytes: u64) -> Result<Staging> {
        let own = if bytes > 0 { backend.staging(bytes)? } else { None };
        Ok(own.map_or_else(|| Staging::Any(vec![0; bytes as usize]), Staging::Device))
    }

    /// `bytes` from byte `from` on.
    fn part(&mut self, from: usize, bytes: usize) -> HostSlice {
        match self {
            Staging::Device(all) => {
                assert!(from + bytes <= all.bytes, "a transfer goes past the staging memory");
                HostSlice { ptr: all.ptr.wrapping_add(from), bytes }
            }
            Staging::Any(all) => HostSlice { ptr: all[from..from + bytes].as_mut_ptr(), bytes },
        }
    }
}

/// The launches of a plan on the device.
struct Recorded {
    /// By phase.
    phases: Vec<Vec<Stage>>,
    /// The plan's transfers.
    moves: Vec<Move>,
}

/// A piece of a phase, ready to run.
#[derive(Clone, Copy)]
enum Stage {
    Run(Recording),
    Start(usize),
    Wait(usize),
    Store(usize),
    Write(usize),
    Written(usize),
}

impl Exec {
    /// Allocates what `plan` lists and records its launches.
    pub fn new(mut backend: Box<dyn Backend>, graph: Graph, mut plan: Plan) -> Result<Exec> {
        let mut buffers = Vec::with_capacity(plan.buffers.len());
        for allocation in &plan.buffers {
            buffers.push(backend.alloc(allocation.bytes)?);
        }
        let sizes = vec![record(&mut *backend, &buffers, &mut plan, None)?];
        let staging = Staging::new(&mut *backend, plan.schedule.staging)?;
        let moves = plan.schedule.moves.len();
        let offload = Offload::new(system::temp_dir());
        let (requests, points) = (vec![Ticket::default(); moves], vec![Point::default(); moves]);
        let held = HashMap::new();
        Ok(Exec { offload, backend, graph, plan, buffers, sizes, staging, held, requests, points })
    }

    /// Records `phases` of a plan for smaller micro-batches in the memory of this one ([`Plan::narrowed`]). They are size 1,
    /// those of the next call size 2, and so on.
    pub fn add_size(&mut self, mut plan: Plan, phases: &[Phase]) -> Result<()> {
        let Exec { backend, buffers, sizes, .. } = self;
        sizes.push(record(&mut **backend, buffers, &mut plan, Some(phases))?);
        Ok(())
    }

    /// Runs the nodes of `phase`, if the graph has any.
    pub fn run(&mut self, phase: Phase) -> Result<()> {
        self.run_at(phase, 0)
    }

    /// The same for micro-batches of a size: 0 is the plan's own.
    pub fn run_at(&mut self, phase: Phase, size: usize) -> Result<()> {
        for i in 0..self.sizes[size].phases.get(phase.0).map_or(0, Vec::len) {
            let recorded = &self.sizes[size];
            let moved = |m: usize| (m, recorded.moves[m]);
            match recorded.phases[phase.0][i] {
                Stage::Run(recording) => self.backend.replay(recording)?,
                Stage::Start(m) => self.start(moved(m))?,
                Stage::Wait(m) => self.wait(moved(m))?,
                Stage::Store(m) => self.store(moved(m).1)?,
                Stage::Write(m) => self.write(moved(m))?,
                Stage::Written(m) => self.offload.wait(&self.requests[m])?,
            }
        }
        Ok(())
    }

    /// Where the bytes of a transfer are in this process, and whether that is the device's own memory.
    fn host_side(&mut self, m: &Move) -> Result<(HostSlice, bool)> {
        let slice = self.at(m.place);
        if let Some(own) = self.backend.host(slice)? {
            return Ok((own, true));
        }
        Ok((self.staging.part(m.staging as usize, m.place.bytes as usize), false))
    }

    fn start(&mut self, (index, m): (usize, Move)) -> Result<()> {
        if let Some(from) = self.held(&m) {
            // Copies to there and from there are most of a pass apart: the last one is over, and forgotten here.
            self.backend.settle(from)?;
            self.points[index] = self.backend.point()?;
            self.offload.moved.fetched += m.place.bytes;
            return Ok(());
        }
        let store = self.offload.store(m.leaf, self.graph.ty(m.leaf).bytes() as u64)?;
        let (to, own) = self.host_side(&m)?;
        if !own {
            self.backend.settle(to)?;
            self.points[index] = self.backend.point()?;
        }
        // SAFETY: the plan gives the fetched value's bytes, or its staging, to nothing else from here until the
        // value's first reader, before which there is a `wait`. Both outlive `offload`, which is dropped first.
        self.requests[index] =
            unsafe { self.offload.start(Request { way: Way::Read, store, offset: m.offset, memory: to }) };
        Ok(())
    }

    fn wait(&mut self, (index, m): (usize, Move)) -> Result<()> {
        let from = match self.held(&m) {
            Some(held) => held,
            None => {
                self.offload.wait(&self.requests[index])?;
                let (from, own) = self.host_side(&m)?;
                if own {
                    return Ok(());
                }
                from
            }
        };
        let slice = self.at(m.place);
        // The plan gives the place to nothing else since `start`, so that the copy may run beside the launches since.
        // SAFETY: a range of staging memory, which is filled; nothing writes it before `settle`.
        let bytes = unsafe { std::slice::from_raw_parts(from.ptr, from.bytes) };
        self.backend.upload_after(self.points[index], slice, bytes)
    }

    fn store(&mut self, m: Move) -> Result<()> {
        let held = self.held(&m).map(|held| (held, false));
        let (side, own) = held.map_or_else(|| self.host_side(&m), Ok)?;
        let began = system::Instant::now();
        if own {
            // SAFETY: a range of the arena that belongs to this value alone now.
            let bytes = unsafe { std::slice::from_raw_parts(side.ptr, side.bytes) };
            self.offload.write(m.leaf, self.graph.ty(m.leaf).bytes() as u64, m.offset, bytes)?;
            self.offload.moved.stored += bytes.len() as u64;
        } else {
            self.backend.settle(side)?;
            let slice = self.at(m.place);
            // SAFETY: a range of the staging memory that the plan gives to this value alone until its `written`, or its own.
            unsafe { self.backend.download_into(slice, side)? };
        }
        self.offload.moved.stalled += began.elapsed();
        Ok(())
    }

    fn write(&mut self, (index, m): (usize, Move)) -> Result<()> {
        if self.held(&m).is_some() {
            self.offload.moved.stored += m.place.bytes;
            return Ok(());
        }
        let store = self.offload.store(m.leaf, self.graph.ty(m.leaf).bytes() as u64)?;
        let (memory, _) = self.host_side(&m)?;
        let began = system::Instant::now();
        self.backend.settle(memory)?;
        self.offload.moved.stalled += began.elapsed();
        // SAFETY: as in `store`; it has arrived, and `offload` is dropped before the memory is.
        self.requests[index] =
            unsafe { self.offload.start(Request { way: Way::Write, store, offset: m.offset, memory }) };
        Ok(())
    }

    fn at(&self, place: Place) -> Slice {
        Slice { buffer: self.buffers[place.buffer], offset: place.offset, bytes: place.bytes }
    }

    /// Where `v` is on the device; an error if it is off it, or a value that was not placed.
    pub fn slice(&self, v: Val) -> Result<Slice> {
        Ok(self.at(self.plan.place(&self.graph, v)?))
    }

    /// Whether `v` is off the device.
    pub fn is_away(&self, v: Val) -> bool {
        self.graph.offloaded(v).is_some()
    }

    /// Says where the value of the leaf `v`, which is off the device, is to be read.
    pub fn bind(&mut self, v: Val, store: Store) {
        self.offload.bind(v, store);
    }

    /// Writes `v` from its first byte on.
    pub fn upload(&mut self, v: Val, bytes: &[u8]) -> Result<()> {
        self.upload_at(v, 0, bytes)
    }

    /// Writes `v` from byte `offset` on.
    pub fn upload_at(&mut self, v: Val, offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some((leaf, start)) = self.graph.offloaded(v) {
            if let Some(held) = self.settled(leaf, start + offset, bytes.len())? {
                // SAFETY: as many bytes of staging memory that no copy uses.
                unsafe { held.ptr.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                return Ok(());
            }
            let all = self.graph.ty(leaf).bytes() as u64;
            return self.offload.write(leaf, all, start + offset, bytes);
        }
        let to = self.slice(v)?;
        if offset + bytes.len() as u64 > to.bytes {
            let found = format!("{} bytes from {offset} on, for {} bytes", bytes.len(), to.bytes);
            return Err(Error::device(&self.backend.caps().device, found, "this is a bug in the loading of weights"));
        }
        let to = Slice { offset: to.offset + offset, bytes: bytes.len() as u64, ..to };
        self.backend.upload(to, bytes)
    }

    /// Reads `v` into `into`, which is as long as `v` is.
    pub fn read(&mut self, v: Val, into: &mut [u8]) -> Result<()> {
        self.read_at(v, 0, into)
    }

    /// Reads `into.len()` bytes of `v` from byte `offset` on.
    pub fn read_at(&mut self, v: Val, offset: u64, into: &mut [u8]) -> Result<()> {
        if let Some((leaf, start)) = self.graph.offloaded(v) {
            if let Some(held) = self.settled(leaf, start + offset, into.len())? {
                // SAFETY: as above.
                unsafe { held.ptr.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
                return Ok(());
            }
            let all = self.graph.ty(leaf).bytes() as u64;
            return self.offload.read(leaf, all, start + offset, into);
        }
        let from = self.slice(v)?;
        if offset + into.len() as u64 > from.bytes {
            let found = format!("{} bytes from {offset} on, of {}", into.len(), from.bytes);
            return Err(Error::device(&self.backend.caps().device, found, "this is a bug in the reading of weights"));
        }
        self.backend.download(Slice { offset: from.offset + offset, bytes: into.len() as u64, ..from }, into)
    }

    /// The bytes of `v` as they are stored; waits for the work that writes them.
    pub fn download(&mut self, v: Val) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.graph.ty(v).bytes()];
        self.read(v, &mut bytes)?;
        Ok(bytes)
    }

    /// The same of an F32 value, as numbers.
    pub fn download_f32(&mut self, v: Val) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.download(v)?))
    }
}

/// Records the launches of `plan`: of `phases`, or of all.
fn record(
    backend: &mut dyn Backend,
    buffers: &[Buffer],
    plan: &mut Plan,
    phases: Option<&[Phase]>,
) -> Result<Recorded> {
    let mut recorded = Vec::with_capacity(plan.launches.len());
    for (phase, mut launches) in std::mem::take(&mut plan.launches).into_iter().enumerate() {
        bind(&mut launches, buffers);
        let mut stages = Vec::new();
        let wanted = phases.is_none_or(|phases| phases.contains(&Phase(phase)));
        for step in plan.schedule.phases[phase].iter().filter(|_| wanted) {
            stages.push(match step {
                Step::Run(range) => Stage::Run(backend.record(&launches[range.clone()])?),
                Step::Start(m) => Stage::Start(*m),
                Step::Wait(m) => Stage::Wait(*m),
                Step::Store(m) => Stage::Store(*m),
                Step::Write(m) => Stage::Write(*m),
                Step::Written(m) => Stage::Written(*m),
            });
        }
        recorded.push(stages);
    }
    Ok(Recorded { phases: recorded, moves: plan.schedule.moves.clone() })
}

/// From the plan's numbers of buffers to those of the device.
fn bind(launches: &mut [Launch], buffers: &[Buffer]) {
    for arg in launches.iter_mut().flat_map(|l| &mut l.args) {
        arg.buffer = buffers[arg.buffer.0 as usize];
    }
}
