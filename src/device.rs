//! What a device is, for whoever plans or lowers for one: its name, its kind, and what it can do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// `auto`, or which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A CUDA card if there is one, else another hardware GPU, else the CPU; never a software rasterizer.
    Auto,
    /// The CPU backend, with kernels for the instruction set found at start.
    Cpu,
    /// The N-th CUDA card, or the first that has kernels.
    Cuda(Option<usize>),
    /// The N-th adapter that `trimtab devices` lists, or the best.
    Wgpu(Option<usize>),
    /// Plans everything and computes nothing.
    Null,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(None) => f.write_str("cuda"),
            Device::Cuda(Some(n)) => write!(f, "cuda:{n}"),
            Device::Wgpu(None) => f.write_str("wgpu"),
            Device::Wgpu(Some(n)) => write!(f, "wgpu:{n}"),
            Device::Null => f.write_str("null"),
        }
    }
}

/// What kind of kernel a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Functions of this process, on the CPU.
    Host,
    /// WGSL.
    Wgsl,
    /// CUDA.
    Cuda,
    /// Nothing is computed.
    Null,
}

/// Which tile a dense product takes where it may take several, all of which give the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tiling {
    /// The one that is estimated to take less time.
    #[default]
    Estimated,
    /// The largest.
    Large,
    /// A quarter of it.
    Middle,
}

impl Tiling {
    /// Every one, the estimate first.
    pub const ALL: [Tiling; 3] = [Tiling::Estimated, Tiling::Large, Tiling::Middle];
}

/// What the planner and the lowerings may count on.
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// Name of the device, for prints and errors.
    pub device: String,
    /// Which of a row's kernels are lowered to.
    pub target: Target,
    /// Largest range that can be bound to a kernel, in bytes.
    pub max_binding: u64,
    /// Largest single allocation, in bytes.
    pub max_buffer: u64,
    /// Largest number of workgroups along one axis.
    pub max_groups: u32,
    /// Bytes of memory a workgroup shares.
    pub workgroup_memory: u32,
    /// Largest number of invocations in a workgroup.
    pub max_invocations: u32,
    /// Storage buffers one kernel may bind.
    pub max_bindings: u32,
    /// Shaders may use 16-bit floats (WGSL's `f16`) where they are of use.
    pub f16: bool,
    /// The type of 16 bits in which activations can be kept, if any.
    pub compute_dtype: Option<DType>,
    /// CUDA's compute capability as in `sm_80`; 0 elsewhere.
    pub arch: u32,
    /// CUDA's wgmma may be used: the card has it, and gave right results when it was opened.
    pub wgmma: bool,
    /// How many processors run workgroups side by side (CUDA's multiprocessors), where the device tells.
    pub multiprocessors: Option<u32>,
    /// Bytes of its memory, used or not, where that decides how much a launch's scratch memory may take.
    pub memory: Option<u64>,
    /// FLOPs of a launch where its kernel can be cut: a longer one trips the watchdogs of displays. WGSL's kernels have limits
    /// of their own.
    pub max_flops: u64,
    /// Smallest and largest subgroup, if subgroup operations are there at all.
    pub subgroup: Option<(u32, u32)>,
    /// WGSL's cooperative matrices are there, and right: with `f16` those of 16×16 whose operands are f16 and whose sums are f32, else
    /// those of 8×8 f32.
    pub coop: bool,
    /// A CPU that pretends to be a GPU.
    pub software: bool,
    /// Which tiles products are lowered to. Scratch memory and the order of sums do not depend on it.
    pub tiling: Tiling,
}

/// What a device that does not tell is taken to have, in multiprocessors: those of an A100.
const MULTIPROCESSORS: u32 = 108;

/// Scratch memory of a launch where more of it makes the launch faster: in multiples of the least, so that what a driver keeps
/// for itself does not show.
const LEAST_SCRATCH: u64 = 64 << 20;
const MOST_SCRATCH: u64 = 1 << 30;

impl Caps {
    /// How many workgroups run at once where each multiprocessor has `each` of them.
    pub fn workgroups(&self, each: usize) -> usize {
        each * self.multiprocessors.unwrap_or(MULTIPROCESSORS).max(1) as usize
    }

    /// The same device where no more than `budget` of its memory is to be used.
    pub fn within(&self, budget: Option<u64>) -> Caps {
        Caps { memory: self.memory.map(|memory| memory.min(budget.unwrap_or(memory))), ..self.clone() }
    }

    /// The same device, with products lowered to other tiles.
    pub fn tiled(&self, tiling: Tiling) -> Caps {
        Caps { tiling, ..self.clone() }
    }

    /// Bytes of scratch memory that a launch may take where more of it makes the launch faster: a 64th of the memory.
    pub fn scratch(&self) -> u64 {
        let part = self.memory.unwrap_or(0) / 64 / LEAST_SCRATCH * LEAST_SCRATCH;
        part.clamp(LEAST_SCRATCH, MOST_SCRATCH).min(self.max_binding)
    }

    /// Whether products of activations in `act` with a weight stored as `w` are by WGSL's cooperative matrices: those of f32, or
    /// those of f16 where they cut no bits off, or no more than quantizing did. (Numbers in bf16 may be beyond f16.)
    pub fn by_matrices(&self, act: DType, w: DType) -> bool {
        let narrow = w == DType::F16 || w.is_quantized();
        self.coop && self.f16 == (act == DType::F16) && (narrow || !self.f16)
    }

    /// The device as results depend on it: beside its name, what decides where long sums are cut.
    pub fn rounding(&self) -> String {
        let parts = self.multiprocessors.map(|n| format!(" with {n} multiprocessors"));
        let scratch = self.memory.map(|_| format!(", {} MiB for logits", self.scratch() >> 20));
        let matrices = self.coop.then(|| ", cooperative matrices".to_owned());
        // Its sums are rounded in another order than those of mma.sync.
        let wgmma = self.wgmma.then(|| ", wgmma".to_owned());
        [Some(self.device.clone()), parts, scratch, matrices, wgmma].into_iter().flatten().collect()
    }
}

/// A range of this process's memory that a CPU kernel may touch.
#[derive(Clone, Copy, Debug)]
pub struct HostSlice {
    /// First byte.
    pub ptr: *mut u8,
    /// Length.
    pub bytes: usize,
}

// SAFETY: it is an address and a length; the planner decides which kernel may touch which range when, and
// dereferencing it is unsafe in its own right.
unsafe impl Send for HostSlice {}
// SAFETY: as above.
unsafe impl Sync for HostSlice {}

impl HostSlice {
    /// The address of a byte.
    pub fn at(&self, byte: usize) -> *mut u8 {
        self.ptr.wrapping_add(byte)
    }
}
