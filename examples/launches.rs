//! What one training step launches on an NVIDIA card that need not be there, and a prediction of its time.
//!
//! ```text
//! cargo run --example launches -- [SHAPE [TOKENS [RANK]]]
//! ```
//!
//! SHAPE is a name that `trimtab bench --like` takes, or a config.json; `llama-8b`, 4096 tokens in one sequence and rank 16 if
//! not given. The step is QLoRA: NF4 with double quantization, factors on all linear layers, activations in bf16, one
//! micro-batch. The card is an H100 as its data sheet has it (132 multiprocessors, 80 GB, 3.35 TB/s).
//!
//! **The time is an estimate, measured nowhere.** A launch takes the longer of two times, its operations at the rate of its
//! kind of kernel and its bytes at a share of the bandwidth, and 2 µs of a CUDA graph's own. Rates and shares ([`KINDS`]) come
//! of counted instructions and of what such kernels reach elsewhere. Each operand counts once a launch, whatever a kernel reads
//! again through the caches.

use std::collections::BTreeMap;

use trimtab::backend::null::Null;
use trimtab::backend::{Kernel, Launch, cuda};
use trimtab::base::Base;
use trimtab::dtype::DType;
use trimtab::error::Error;
use trimtab::graph::op::CudaLaunch;
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::lora::Lora;
use trimtab::session::{Options, Planned};
use trimtab::{Result, synth};

/// Bytes a second from the data sheet of the H100 SXM.
const BANDWIDTH: f64 = 3.35e12;
/// Seconds of a launch of a CUDA graph beside its work.
const OVERHEAD: f64 = 2e-6;

/// A kind of kernel: its name, operations a second, and its share of the bandwidth. Estimates.
struct Kind(&'static str, f64, f64);

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
fn kind(launch: &CudaLaunch) -> &'static Kind {
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

/// What a group of launches adds up to.
#[derive(Default)]
struct Sum {
    launches: usize,
    flops: f64,
    bytes: f64,
    seconds: f64,
}

impl Sum {
    fn add(&mut self, kind: &Kind, launch: &Launch) {
        // Of a table of embeddings only the rows of the tokens at hand are read: as much as is written.
        let operands = launch.args.iter().map(|arg| arg.bytes);
        let bytes: u64 = if launch.name.ends_with(":embed/embed") { 2 * launch.args[0].bytes } else { operands.sum() };
        let (flops, bytes) = (launch.flops as f64, bytes as f64);
        self.launches += 1;
        self.flops += flops;
        self.bytes += bytes;
        self.seconds += (flops / kind.1).max(bytes / (BANDWIDTH * kind.2)) + OVERHEAD;
    }

    fn print(&self, name: &str) {
        let (gflop, gb, ms) = (self.flops / 1e9, self.bytes / 1e9, 1e3 * self.seconds);
        println!("| {name} | {} | {gflop:.0} | {gb:.1} | {ms:.1} |", self.launches);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&args) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &[String]) -> Result<()> {
    let number = |i: usize, default: usize| match args.get(i).map(|a| a.parse()) {
        None => Ok(default),
        Some(Ok(n)) => Ok(n),
        Some(Err(_)) => Err(Error::config("arguments", args.join(" "), "[SHAPE [TOKENS [RANK]]]")),
    };
    let planned = planned(args.first().map_or("llama-8b", |a| a), number(1, 4096)?, number(2, 16)?)?;
    let (_, plan) = planned.plan();
    let mut by_op: BTreeMap<String, Sum> = BTreeMap::new();
    let mut by_kind: BTreeMap<&str, Sum> = BTreeMap::new();
    let mut all = Sum::default();
    for launch in plan.launches.iter().flatten() {
        let Kernel::Cuda(call) = &launch.kernel else { continue };
        let op = launch.name.rsplit(':').next().unwrap_or_default().replace('/', ": ");
        let kind = kind(call);
        for sum in [by_op.entry(op).or_default(), by_kind.entry(kind.0).or_default(), &mut all] {
            sum.add(kind, launch);
        }
    }
    println!("{} MiB planned\n", planned.account().total >> 20);
    println!("| op: kernel | launches | GFLOP | GB | predicted ms |\n|---|---|---|---|---|");
    by_op.iter().for_each(|(name, sum)| sum.print(name));
    by_kind.iter().for_each(|(name, sum)| sum.print(name));
    all.print("all");
    Ok(())
}

/// The step, planned for an H100.
fn planned(shape: &str, tokens: usize, rank: usize) -> Result<Planned> {
    let dir = std::env::temp_dir().join(format!("trimtab-launches-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let written = std::fs::write(dir.join("config.json"), synth::config(shape)?.to_string());
    let base = written.map_err(|e| Error::io(&dir, e)).and_then(|()| Base::random(&dir));
    // What stays is in the system's folder for what may go.
    let _ = std::fs::remove_dir_all(&dir);
    let method = Lora { config: AdapterConfig::lora(rank, 2.0 * rank as f64, Targets::AllLinear) };
    let mut caps = cuda::caps("an H100".into(), 90);
    (caps.multiprocessors, caps.memory) = (Some(132), Some(80 << 30));
    let options = Options {
        quantize: Some(DType::Nf4Dq),
        dtype: DType::BF16,
        max_seq_len: tokens,
        micro_tokens: tokens,
        step_tokens: Some(tokens),
        ..Options::default()
    };
    Planned::new(&std::sync::Arc::new(base?), Box::new(method), options, Box::new(Null::like(caps)))
}
