//! What the wgmma kernels of a training step do in one pass of their main loops, counted in their machine code for an H100: the evidence
//! that issue slots do not bound them, for the rates of `examples/costs`.
//!
//! ```text
//! TRIMTAB_NVRTC=…/libnvrtc.so.13 TRIMTAB_NVDISASM=…/nvdisasm cargo run --example slots
//! ```
//!
//! nvdisasm is in the CUDA toolkit, and in `pip install nvidia-cuda-nvdisasm`. The step is that of `examples/launches.rs`.
//!
//! Cycles are those of one of a multiprocessor's four parts for one warp, if nothing waits: an instruction issued a cycle, 1,024 FLOPs of
//! tensor cores (989 TFLOP/s by 528 parts at 1.83 GHz), 4 lanes of exponentials and the like. **Counted, not measured**: waits,
//! conflicts of banks, and the memory are not in it. Two warpgroups multiply, so that two warps share a part: while one has its
//! exponentials, the other's products may run.
//!
//! Other kernels are left out: their code has paths for edges and for every activation, of which a launch runs few, and what runs
//! cannot be told from the code.

#[path = "../costs/step.rs"]
mod step;

mod sass;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use trimtab::Result;
use trimtab::backend::cuda::{self, Output, compiled};
use trimtab::backend::{Kernel, Launch};
use trimtab::error::Error;
use trimtab::graph::op::WGMMA;
use trimtab::memory::Request;

use sass::{Work, main_loops};

const ARCH: u32 = 90;
/// FLOPs of tensor cores in a cycle, and cycles of an exponential of a warp.
const TENSOR: f64 = 1024.0;
const SPECIAL: f64 = 8.0;

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let Some(tool) = std::env::var_os("TRIMTAB_NVDISASM").map(PathBuf::from) else {
        return Err(Error::config("TRIMTAB_NVDISASM", "nothing", "the path of nvdisasm"));
    };
    let mut caps = cuda::caps("an H100".into(), ARCH);
    (caps.multiprocessors, caps.memory) = (Some(132), Some(80 << 30));
    let planned = step::planned("llama-8b", 4096, 16, caps, Request::default())?;
    let (_, plan) = planned.plan();
    let call = |launch: &Launch| match &launch.kernel {
        Kernel::Cuda(call) if call.defines.contains(&WGMMA) => Some((call.file, call.entry, call.defines.clone())),
        _ => None,
    };
    let kernels: BTreeSet<_> = plan.launches.iter().flatten().filter_map(call).collect();
    println!("| kernel | cycles: issue | tensor cores | exponentials | issue, of the most |\n|---|---|---|---|---|");
    for (file, entry, defines) in kernels {
        let code = compiled(file, &defines, ARCH, Output::Cubin)?.code;
        let listing = disassembled(&tool, &code)?;
        let Some(work) = main_loops(&listing).remove(entry) else {
            return Err(Error::file(
                &tool,
                format!("no loop with products in {entry}"),
                "nvdisasm of CUDA 12 or later",
            ));
        };
        println!("| `{entry}` {} | {} |", cuda::macros(&defines), cells(&work));
    }
    Ok(())
}

fn cells(work: &Work) -> String {
    let (issue, tensor, special) = (work.slots as f64, work.tensor as f64 / TENSOR, work.special as f64 * SPECIAL);
    let share = 100.0 * issue / issue.max(tensor).max(special);
    format!("{issue:.0} | {tensor:.0} | {special:.0} | {share:.0} %")
}

/// What nvdisasm prints of machine code.
fn disassembled(tool: &Path, code: &[u8]) -> Result<String> {
    let path = std::env::temp_dir().join(format!("trimtab-slots-{}.cubin", std::process::id()));
    std::fs::write(&path, code).map_err(|e| Error::io(&path, e))?;
    let printed = Command::new(tool).arg("-c").arg(&path).output();
    let _ = std::fs::remove_file(&path);
    let printed = printed.map_err(|e| Error::io(tool, e))?;
    if !printed.status.success() {
        let said = String::from_utf8_lossy(&printed.stderr).trim().to_owned();
        return Err(Error::file(tool, said, "nvdisasm of CUDA 12 or later"));
    }
    Ok(String::from_utf8_lossy(&printed.stdout).into_owned())
}
