//! The plan: where every value of a graph is, and the account of it, before anything is allocated.
//!
//! Leaves are stored class by class, one after the other. Everything else is in one arena: liveness gives each value an
//! interval of nodes, a value that the op's row lets take over a dead input's storage does so, and intervals get
//! offsets such that two that overlap in time never overlap in space. Shapes are fixed, so one plan serves every step.
//! What is off the device has no place here; the nodes that move it become transfers, each with its place on this side.

mod account;
mod arena;
mod batch;
mod departures;
mod held;
mod liveness;
mod lower;
mod schedule;
mod tiling;
pub mod timeline;

pub use account::{Account, Kind, class_name, kind_of};
pub use held::held;
pub use liveness::{Interval, Storage};
pub use lower::{Operands, lower};
pub use schedule::{Move, Schedule, Step};
pub use tiling::{Tilings, Variants};

use std::ops::Range;

use batch::Batches;

use crate::backend::{Buffer, Caps, Launch, Slice, Target, recording_bytes};
use crate::dtype::align;
use crate::error::{Error, Result};
use crate::graph::op::OpRole;
use crate::graph::{Def, Graph, LeafKind, Phase, Val};

/// A place in one of the plan's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into [`Plan::buffers`].
    pub buffer: usize,
    /// First byte in the buffer.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// An allocation the plan asks for. `class` None is the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Which leaves it holds.
    pub class: Option<LeafKind>,
    /// Length.
    pub bytes: u64,
}

/// Where every value of a graph is, what is launched, and what it takes.
pub struct Plan {
    /// Allocations to make, before anything runs.
    pub buffers: Vec<Allocation>,
    /// By value index: where a root (leaf or node output) is.
    places: Vec<Option<Place>>,
    /// By node index: its scratch memory.
    work: Vec<Option<Place>>,
    /// Stretches of the arena, with the nodes at which each is in use.
    pub storages: Vec<Storage>,
    /// What runs, phase by phase; a launch's buffers are indices into `buffers`.
    pub launches: Vec<Vec<Launch>>,
    /// Transfers between the device and what is off it, and where among the launches they are.
    pub schedule: Schedule,
    /// Weights among the transfers that are in host memory from the start ([`Plan::hold`]).
    pub held: Vec<Val>,
    /// What the buffers hold, by class.
    pub account: Account,
    /// The device that it is for.
    pub caps: Caps,
}

impl Plan {
    /// Plans `g` for a device with `caps`.
    pub fn new(g: &Graph, caps: &Caps) -> Result<Plan> {
        Plan::with(g, caps, true)
    }

    /// The same; without `in_place` no value takes over another's storage, for tests.
    pub fn with(g: &Graph, caps: &Caps, in_place: bool) -> Result<Plan> {
        crate::graph::verify(g)?;
        let mut buffers = Vec::new();
        let mut places = vec![None; g.values.len()];
        for class in LeafKind::ALL {
            place_leaves(g, class, caps, &mut buffers, &mut places)?;
        }
        let bases = transient_leaves(g, caps)?;
        let batches = Batches::new(g, caps);
        let mut storages = liveness::parts(g, &bases, &batches);
        storages.extend(liveness::storages(g, caps, &batches, in_place));
        let offsets = arena::assign(&storages, segment(caps), caps)?;
        let end = storages.iter().zip(&offsets).map(|(s, o)| o + s.bytes).max().unwrap_or(0);
        let first = buffers.len();
        let mut left = end;
        while left > 0 {
            let bytes = left.min(segment(caps));
            buffers.push(Allocation { class: None, bytes });
            left -= bytes;
        }
        let mut work = vec![None; g.nodes.len()];
        for (storage, &offset) in storages.iter().zip(&offsets) {
            let (buffer, offset) = (first + (offset / segment(caps)) as usize, offset % segment(caps));
            for &v in &storage.values {
                places[v.index()] = Some(Place { buffer, offset, bytes: g.ty(v).bytes() as u64 });
            }
            if let Some(node) = storage.work_of {
                work[node] = Some(Place { buffer, offset, bytes: liveness::workspace(g, node, caps) });
            }
        }
        for (leaf, base) in bases {
            let (buffer, offset) = (first + (base / segment(caps)) as usize, base % segment(caps));
            places[leaf.index()] = Some(Place { buffer, offset, bytes: g.ty(leaf).bytes() as u64 });
        }
        place_targets(g, &mut places)?;
        let account = Account::new(g, &buffers, &storages, end);
        let (launches, schedule) = (vec![Vec::new(); g.phases()], Schedule::default());
        let (held, caps_of) = (Vec::new(), caps.clone());
        let mut plan = Plan { buffers, places, work, storages, launches, schedule, held, account, caps: caps_of };
        plan.launch(g, caps, &Tilings::new())?;
        let all: Vec<Phase> = (0..g.phases()).map(Phase).collect();
        plan.account.add("launch parameters", plan.parameter_bytes(&all, caps));
        plan.account.add_host("staging", plan.schedule.staging);
        // What is uploaded waits there for the kernels before it.
        plan.account
            .add_host("the queue's copies", if caps.target == Target::Wgsl { plan.schedule.staging } else { 0 });
        Ok(plan)
    }

    /// The plan of `small`, which is `g` with smaller micro-batches, in the memory of this plan of `g`: each value is at the
    /// start of the place of the same value of `g`, so that the two never need more than one of them does. Errs where `small`
    /// is not of the same nodes, or a value of it is larger.
    pub fn narrowed(&self, g: &Graph, small: &Graph, caps: &Caps) -> Result<Plan> {
        alike(g, small)?;
        let cut = |what: String, place: Option<Place>, bytes: u64| match place {
            Some(place) if bytes > place.bytes => {
                Err(small.refuse("plan", format!("{what} takes {bytes} B, of {} B planned", place.bytes)))
            }
            place => Ok(place.map(|place| Place { bytes, ..place })),
        };
        let places = self.places.iter().zip(&small.values);
        let places = places.map(|(&place, value)| cut(value.name.clone(), place, value.ty.bytes() as u64));
        let work = self.work.iter().enumerate().map(|(node, &place)| match liveness::workspace(small, node, caps) {
            0 => Ok(None),
            bytes if place.is_none() => Err(small.refuse("plan", format!("{bytes} B of scratch memory, none planned"))),
            bytes => cut(format!("the scratch memory of node {node}"), place, bytes),
        });
        let mut places = places.collect::<Result<Vec<_>>>()?;
        place_targets(small, &mut places)?;
        let mut plan = Plan {
            buffers: self.buffers.clone(),
            places,
            work: work.collect::<Result<_>>()?,
            storages: Vec::new(),
            launches: vec![Vec::new(); small.phases()],
            schedule: Schedule::default(),
            held: Vec::new(),
            account: Account::default(),
            caps: caps.clone(),
        };
        plan.launch(small, caps, &Tilings::new())?;
        if plan.schedule.staging > self.schedule.staging {
            let found = format!("{} B of staging, of {} B planned", plan.schedule.staging, self.schedule.staging);
            return Err(small.refuse("plan", found));
        }
        Ok(plan)
    }

    /// Lowers every node, by the tiles that are chosen, and puts transfers among the launches.
    fn launch(&mut self, g: &Graph, caps: &Caps, chosen: &Tilings) -> Result<()> {
        let batches = Batches::new(g, caps);
        let mut counts = vec![0; g.nodes.len()];
        let mut index = 0;
        while index < g.nodes.len() {
            let batch = batches.of(index);
            let nodes = batch.first..batch.last + 1;
            let launches = self.tiled(g, nodes.clone(), caps, chosen)?;
            // Those of a batch are its first node's.
            counts[index] = launches.len();
            self.launches[g.nodes[index].phase.0].extend(launches);
            index = nodes.end;
        }
        self.schedule = Schedule::new(g, self, &counts, caps)?;
        Ok(())
    }

    /// The launches of a batch.
    fn launches_of(&self, g: &Graph, nodes: Range<usize>, caps: &Caps) -> Result<Vec<Launch>> {
        let lowered = nodes.map(|node| match g.nodes[node].op.role {
            OpRole::Fetch | OpRole::Store => Ok(Vec::new()),
            OpRole::Compute | OpRole::Clear => self.lower_alone(g, node, caps),
        });
        Ok(batch::merge(lowered.collect::<Result<_>>()?, caps))
    }

    /// Bytes that the device needs besides the buffers to run the launches of `phases`.
    pub fn parameter_bytes(&self, phases: &[Phase], caps: &Caps) -> u64 {
        let recorded = |phase: &Phase| {
            let Some(launches) = self.launches.get(phase.0) else { return 0 };
            self.schedule.runs(phase.0).map(|r| recording_bytes(&launches[r], caps)).sum::<u64>()
        };
        phases.iter().map(recorded).sum()
    }

    /// The launches of node `index` if it shares none; their buffers are indices into [`Plan::buffers`].
    pub fn lower(&self, g: &Graph, index: usize, caps: &Caps) -> Result<Vec<Launch>> {
        Ok(batch::merge(vec![self.lower_alone(g, index, caps)?], caps))
    }

    /// The same, each launch with one problem, whatever its kernel takes.
    fn lower_alone(&self, g: &Graph, index: usize, caps: &Caps) -> Result<Vec<Launch>> {
        let node = &g.nodes[index];
        let slice = |p: Place| Slice { buffer: Buffer(p.buffer as u32), offset: p.offset, bytes: p.bytes };
        let slices = |vals: &[Val]| vals.iter().map(|&v| Ok(slice(self.place(g, v)?))).collect::<Result<Vec<_>>>();
        let at = Operands { outs: slices(&node.outs)?, ins: slices(&node.ins)?, work: self.work[index].map(slice) };
        let tys = |vals: &[Val]| vals.iter().map(|&v| g.ty(v).clone()).collect::<Vec<_>>();
        lower::lower_alone(node.op, &node.site, &node.attr, &tys(&node.ins), &tys(&node.outs), &at, caps)
    }

    /// Where `v` is.
    pub fn place(&self, g: &Graph, v: Val) -> Result<Place> {
        view(g, &self.places, v)
    }

    /// Where node `node`'s scratch memory is.
    pub fn work(&self, node: usize) -> Option<Place> {
        self.work[node]
    }
}

/// Arena and leaves are cut at multiples of this; nothing straddles a cut.
fn segment(caps: &Caps) -> u64 {
    (caps.max_buffer / crate::dtype::ALIGN as u64 * crate::dtype::ALIGN as u64).max(crate::dtype::ALIGN as u64)
}

/// What overwrites a leaf is where the leaf is.
fn place_targets(g: &Graph, places: &mut [Option<Place>]) -> Result<()> {
    for node in &g.nodes {
        for (&out, target) in node.outs.iter().zip(&node.into) {
            if let Some(t) = target.filter(|&t| g.offloaded(t).is_none()) {
                places[out.index()] = Some(view(g, places, t)?);
            }
        }
    }
    Ok(())
}

/// An error unless `small` has the nodes of `g`, each of the same op on the same values.
fn alike(g: &Graph, small: &Graph) -> Result<()> {
    let other = g.nodes.iter().zip(&small.nodes).find(|(a, b)| {
        !std::ptr::eq(a.op, b.op) || (a.phase, &a.ins, &a.outs, &a.into) != (b.phase, &b.ins, &b.outs, &b.into)
    });
    if let Some((a, b)) = other {
        let found = format!("{} at {} where the largest have {} at {}", b.op.name, b.site, a.op.name, a.site);
        return Err(small.refuse("plan", found));
    }
    // Where a part of a value begins may depend on the size of the whole.
    let source = |def: &Def| match *def {
        Def::View { of, .. } => Def::View { of, start: 0 },
        ref other => other.clone(),
    };
    let other = g.values.iter().zip(&small.values).find(|(a, b)| {
        (source(&a.def), a.ty.dtype, a.offloaded, a.transient) != (source(&b.def), b.ty.dtype, b.offloaded, b.transient)
    });
    if let Some((a, b)) = other {
        return Err(small.refuse("plan", format!("the value {} where the largest have {}", b.name, a.name)));
    }
    match (g.nodes.len(), g.values.len()) == (small.nodes.len(), small.values.len()) {
        true => Ok(()),
        false => Err(small.refuse("plan", format!("{} nodes, of the largest {}", small.nodes.len(), g.nodes.len()))),
    }
}

/// A view is within what it views.
fn view(g: &Graph, places: &[Option<Place>], v: Val) -> Result<Place> {
    let (root, start) = g.root(v);
    let place = places[root.index()].ok_or_else(|| g.refuse("plan", format!("{} has no place", g.value(v).name)))?;
    let ty = g.ty(v);
    let offset = match start {
        0 => 0,
        // The parts of a quantized tensor are apart: a piece of it is no range of bytes.
        _ if ty.dtype.is_quantized() => return Err(g.refuse("view", format!("a part of the quantized {ty}"))),
        _ => ty.dtype.bytes(start) as u64,
    };
    Ok(Place { offset: place.offset + offset, bytes: ty.bytes() as u64, ..place })
}

/// The transient leaves, at the start of the arena, one after the other: each with its offset.
fn transient_leaves(g: &Graph, caps: &Caps) -> Result<Vec<(Val, u64)>> {
    let mut bases = Vec::new();
    let mut end = 0;
    for (i, value) in g.values.iter().enumerate().filter(|(_, v)| v.transient && matches!(v.def, Def::Leaf(_))) {
        let bytes = align(value.ty.bytes()) as u64;
        if bytes > segment(caps) {
            return Err(too_large(&value.name, bytes, caps));
        }
        let base = arena::fits(end, bytes, segment(caps));
        bases.push((Val(i as u32), base));
        end = base + bytes;
    }
    Ok(bases)
}

fn place_leaves(
    g: &Graph,
    class: LeafKind,
    caps: &Caps,
    buffers: &mut Vec<Allocation>,
    places: &mut [Option<Place>],
) -> Result<()> {
    let mut open: Option<usize> = None;
    for (i, value) in g.values.iter().enumerate() {
        if value.def != Def::Leaf(class) || value.offloaded || value.transient {
            continue;
        }
        let bytes = value.ty.bytes() as u64;
        let room = align(bytes as usize) as u64;
        if room > segment(caps) {
            return Err(too_large(&value.name, bytes, caps));
        }
        let buffer = match open {
            Some(b) if buffers[b].bytes + room <= segment(caps) => b,
            _ => {
                buffers.push(Allocation { class: Some(class), bytes: 0 });
                buffers.len() - 1
            }
        };
        open = Some(buffer);
        places[i] = Some(Place { buffer, offset: buffers[buffer].bytes, bytes });
        buffers[buffer].bytes += room;
    }
    Ok(())
}

fn too_large(name: &str, bytes: u64, caps: &Caps) -> Error {
    Error::Memory {
        needed: bytes,
        available: caps.max_buffer,
        hint: format!(
            "{name} is larger than the largest buffer of {}: quantize it (--quantize nf4), use fewer --micro-tokens, \
             or another --device",
            caps.device
        ),
    }
}
