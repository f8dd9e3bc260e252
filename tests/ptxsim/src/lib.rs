//! ptxsim: runs PTX on the CPU and checks every memory access, so that CUDA kernels are tested without a GPU.
//!
//! NVRTC compiles a kernel to PTX without a driver; this crate parses that text ([`Module::parse`]), decodes each
//! instruction once, and runs a grid of it ([`run`]) against simulated global memory ([`Memory`]). It is the real
//! compiler's output that runs, inline PTX included, for compute_80 and, besides, the wgmma, TMA and mbarrier
//! instructions of sm_90a that 16-bit kernels use. Compile with `-lineinfo`, so that findings name lines of the source.
//!
//! # How it runs
//! Blocks run one after another, each to its end. In a block one warp runs at a time; which one goes next, and for how
//! long, is the [`Schedule`]'s. Lanes of a warp run together from the lowest instruction on, so that those which parted
//! meet again. Tests run a kernel under [`Schedule::all`] and want the same bits from each.
//!
//! # What it checks
//! The first broken rule ends the launch as a [`Finding`], which says kernel, line, block, thread, buffer and offset:
//! - **bounds**: every access lies in one buffer, or one shared array; shared arrays have gaps between them;
//! - **alignment** to the access's whole size, vectors, copies and rows of matrices too;
//! - **initialisation** by the byte, in global ([`Memory::alloc_uninit`]), shared and local memory;
//! - **races** by the byte: two threads of a block with no `__syncthreads`, named barrier, `__syncwarp` or mbarrier phase between
//!   them (shuffles, votes and matrix instructions order nothing), and two blocks of one launch, whatever is between.
//!   Atomics, volatile, relaxed, acquire and release accesses do not race with each other, only with plain ones;
//! - **asynchronous copies**: nothing touches their bytes before their own thread has waited for them; what a tensor copy
//!   brings, before the thread has seen the mbarrier's phase end, or comes after one that has;
//! - **wgmma**: four warps come to it; from issue to a `wait_group` that covers its group, nothing touches its accumulators
//!   and registers of A, or writes what it reads; a `wgmma.fence` follows what other instructions did to registers;
//! - **tensor stores**: nothing writes their source before `wait_group`, and their thread does not end before it;
//! - **proxies**: a `fence.proxy.async` is between a thread's writes and the asynchronous reads of those bytes of shared
//!   memory, and a fence between an mbarrier's initialisation and the copies that count at it;
//! - **barriers**: all threads of a block come to the same one, none has ended before; named ones get their count;
//! - **collectives**: all lanes that a mask names come to the same one, and lanes read only from those;
//! - **writes to read-only buffers**, **deadlocks**, and loops that do not end.
//!
//! An opcode or a form that is not interpreted is an error when the text is parsed, never silently skipped.
//!
//! # What it cannot tell
//! - Speed, bank conflicts, occupancy, registers, spills, and what ptxas makes of the PTX.
//! - The last bits of approximate functions (`ex2.approx`, `rcp.approx`, `tanh.approx`, …), which are correctly rounded
//!   here, and of matrix products, which are summed in f64 and rounded once: compare with a tolerance.
//! - Weak memory: accesses happen in order. Fences are accepted and order nothing, so that the pattern of the last
//!   block that sums up what the others wrote is reported as a race. Of proxies, only shared memory's are known: a tensor
//!   copy of what the same launch wrote to global memory needs a fence that is not missed here.
//! - Clusters, multicast and reducing bulk copies are not interpreted; `griddepcontrol` is, as nothing: launches follow
//!   each other here, so a read before `griddepcontrol.wait` is not seen.
//! - How many registers a thread has when `setmaxnreg` asks for others, but for all warpgroups together.
//! - Whether the layouts of fragments, tiles, descriptors and swizzles are the hardware's: they are what manuals say,
//!   as we read them.
//! - Registers read before they are written hold what an earlier block left there, or zero.
//! - A spin wait for another block, or for a lane of its own warp, runs into the step limit.
//! - Two lanes of one warp that use a named barrier apart are ordered as if their whole warp had come.

mod alu;
mod build;
mod bulk;
mod decode;
mod exec;
mod finding;
mod groups;
mod guard;
mod host;
mod launch;
mod lex;
mod machine;
mod matrix;
mod memory;
mod operand;
mod order;
mod parse;
mod program;
mod readers;
mod shadow;
mod shared;
pub mod tensor;
mod types;
pub mod values;
mod wgmma;

use std::collections::{BTreeMap, HashMap};

pub use finding::{Finding, Kind};
pub use host::Touch;
pub use launch::{Launch, Order, Param, Schedule, Stats, run};
pub use memory::Memory;

/// A PTX text, parsed and decoded.
#[derive(Debug)]
pub struct Module {
    entries: BTreeMap<String, program::Program>,
    variables: Vec<program::Variable>,
    /// Source files by their number in `.loc`.
    files: HashMap<u32, String>,
    /// The text, for messages.
    lines: Vec<String>,
}

impl Module {
    /// Parses and decodes PTX.
    ///
    /// # Errors
    /// An instruction or a form of one that is not interpreted, or text that is no PTX; the message names the line.
    pub fn parse(ptx: &str) -> Result<Module, String> {
        parse::module(ptx)
    }

    /// The kernels' names.
    pub fn entries(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// Bytes of each parameter of a kernel, in order; `None` if it is not there.
    pub fn parameters(&self, entry: &str) -> Option<Vec<usize>> {
        self.entries.get(entry).map(|program| program.params.iter().map(|slot| slot.bytes).collect())
    }

    /// Bytes of shared memory that a kernel has whatever its launch asks for.
    pub fn static_shared(&self, entry: &str) -> Option<usize> {
        self.entries.get(entry).map(|program| program.shared.iter().map(|segment| segment.bytes).sum())
    }
}
