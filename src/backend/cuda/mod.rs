//! NVIDIA GPUs, through CUDA's driver and NVRTC, both loaded when first needed.

mod compile;
mod kernels;

pub use compile::{Compiled, NVRTC_PATH, Output, compile, options, version};
pub use kernels::{KERNELS, kernel};

use super::{Caps, Target};
use crate::dtype::DType;

/// What a card of compute capability `arch` (as in `sm_80`) offers, whatever its memory.
pub fn caps(device: String, arch: u32) -> Caps {
    Caps {
        device,
        target: Target::Cuda,
        max_binding: u64::MAX,
        max_buffer: u64::MAX,
        // A grid's y and z; x may be longer.
        max_groups: 65_535,
        // What a block may ask for (CUDA C++ Programming Guide, "Compute Capabilities").
        workgroup_memory: match arch {
            75 => 64 << 10,
            80 | 87 => 163 << 10,
            86 | 89 | 120 | 121 => 99 << 10,
            _ => 227 << 10,
        },
        max_invocations: 1024,
        max_bindings: u32::MAX,
        f16: true,
        act16: Some(if arch >= 80 { DType::BF16 } else { DType::F16 }),
        arch,
        subgroup: Some((32, 32)),
        software: false,
    }
}
