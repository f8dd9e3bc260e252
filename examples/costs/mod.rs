//! What a launch on an NVIDIA card is predicted to take: the examples that predict times share it.
//!
//! **Estimates, measured nowhere.** A launch takes the longer of two times, its operations at the rate of its kind of kernel
//! and its bytes at a share of the bandwidth, and 2 µs of a CUDA graph's own. Rates and shares ([`KINDS`]) come of counted
//! instructions and of what such kernels reach elsewhere. Each operand counts once a launch, whatever a kernel reads again
//! through the caches.

pub mod step;

use trimtab::backend::Launch;
use trimtab::graph::op::CudaLaunch;

/// Bytes a second from the data sheet of the H100 SXM.
pub const BANDWIDTH: f64 = 3.35e12;
/// Seconds of a launch of a CUDA graph beside its work.
const OVERHEAD: f64 = 2e-6;

/// A kind of kernel: its name, operations a second, and its share of the bandwidth. Estimates.
pub struct Kind(pub &'static str, pub f64, pub f64);

const KINDS: &[Kind] = &[
    Kind("product, NF4 decoded inside", 265e12, 0.7),
    Kind("product of 16 bits by mma.sync", 400e12, 0.7),
    // Published kernels of this shape reach 720 to 770 at these sizes, with clusters that share loads and stores by tensor copies,
    // which these have not.
    Kind("product of 16 bits by wgmma", 680e12, 0.7),
    Kind("thin product", 400e12, 0.6),
    Kind("attention by mma.sync", 285e12, 0.7),
    Kind("attention by mma.sync, backward", 160e12, 0.7),
    // Published: 520 to 590 forward, 420 to 474 backward, at 4,096 tokens, causal; that backward pass has five products
    // where these kernels have seven.
    Kind("attention by wgmma", 520e12, 0.7),
    Kind("attention by wgmma, backward", 400e12, 0.7),
    Kind("row by row, element by element", 30e12, 0.8),
];

/// Which of [`KINDS`] a launch is of.
pub fn kind(launch: &CudaLaunch) -> &'static Kind {
    let define = |name| launch.defines.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let thin = matches!(define("TILE"), Some(2..=3));
    let number = match launch.entry {
        "linear" | "linear_dx" | "matmul" if thin => 3,
        "linear" | "linear_dx" if define("W").is_some_and(|w| w >= 3) => 0,
        "linear" | "linear_dx" | "matmul" => 1,
        "linear_wgmma" | "linear_dx_wgmma" | "matmul_wgmma" => 2,
        "attention" => 4,
        "attention_dq" | "attention_dkv" | "attention_dk" | "attention_dv" => 5,
        "attention_wgmma" => 6,
        "attention_dq_wgmma" | "attention_dkv_wgmma" => 7,
        _ => 8,
    };
    &KINDS[number]
}

/// Bytes that a launch moves.
pub fn bytes(launch: &Launch) -> u64 {
    // Of a table of embeddings only the rows of the tokens at hand are read: as much as is written.
    let operands = launch.args.iter().map(|arg| arg.bytes);
    if launch.name.ends_with(":embed/embed") { 2 * launch.args[0].bytes } else { operands.sum() }
}

/// Seconds of a launch of a kind on a card of this bandwidth.
pub fn seconds(kind: &Kind, launch: &Launch, bandwidth: f64) -> f64 {
    (launch.flops as f64 / kind.1).max(bytes(launch) as f64 / (bandwidth * kind.2)) + OVERHEAD
}
