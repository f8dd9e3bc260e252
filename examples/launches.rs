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
//! **The time is an estimate, measured nowhere**: `examples/costs` has the rates and where they come from.

mod costs;

use std::collections::BTreeMap;

use trimtab::Result;
use trimtab::backend::{Kernel, Launch, cuda};
use trimtab::error::Error;
use trimtab::memory::Request;
use trimtab::session::Planned;

use costs::{BANDWIDTH, Kind, bytes, kind, seconds, step};

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
        self.launches += 1;
        self.flops += launch.flops as f64;
        self.bytes += bytes(launch) as f64;
        self.seconds += seconds(kind, launch, BANDWIDTH);
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
    let mut caps = cuda::caps("an H100".into(), 90);
    (caps.multiprocessors, caps.memory) = (Some(132), Some(80 << 30));
    step::planned(shape, tokens, rank, caps, Request::default())
}
