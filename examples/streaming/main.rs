//! How fast a step trains whose weights stream: planned for an NVIDIA card that need not be there, and simulated.
//!
//! ```text
//! cargo run --example streaming -- [card=h100|rtx-4090] [shape=SHAPE] [memory=GiB] [tokens=N] [rank=N]
//!                                  [link=GB/s] [read=GB/s] [threads=N] [write=GB/s]
//! ```
//!
//! SHAPE is a name that `trimtab bench --like` takes, or a config.json. Without it and without a budget there is a row for
//! each of three models and for each budget up to the card's memory; 2,048 tokens in one sequence and rank 16 if not given.
//! The step is QLoRA as in `examples/costs/step.rs`, made to fit as `trimtab plan --memory` does.
//!
//! **Every number is a prediction, measured nowhere.** Seconds of a launch are those of `examples/costs`, which ranks kernels
//! by estimates; the order of kernels and transfers is the plan's own, and `simulation.rs` says when each takes place and
//! what is left out. Rates of transfers, in GB/s, if not given:
//!
//! * `link`, each way: 55 on an H100, as pinned copies reach on an H200 by PCIe 5, and 25 on an RTX 4090, assumed
//!   (docs/memory.md).
//! * `read`, from the system's file cache, by each thread: 17, since that is a copy by one thread of memory that is in no other
//!   cache (docs/benchmarks.md, 256 MiB "to the device" on a CPU: 17.1). A disk is slower.
//! * `threads` that read: 4, as on a machine of 16 processors (`src/offload/threads.rs`).
//! * `write`: 5, a file that is written and synced (docs/benchmarks.md: 5.09), by one of them.
//!
//! Time is lost to stores, to files and to the link, counted in this order: what a step takes less if stores take no time; what
//! less than that if besides nothing waits for files; and what is then left above the kernels' own time.

#[path = "../costs/mod.rs"]
mod costs;
mod files;
mod simulation;

use trimtab::Result;
use trimtab::backend::{Caps, Kernel, Launch, cuda};
use trimtab::error::Error;
use trimtab::graph::{Phase, Val};
use trimtab::memory::Request;
use trimtab::plan::{Plan, Step, held};
use trimtab::run::progress::human;

use costs::{BANDWIDTH, Kind, kind, seconds, step};
use simulation::{Rates, Simulation};

const SHAPES: [&str; 3] = ["llama-8b", "llama-70b", "llama-405b"];
const BUDGETS: [u64; 4] = [8, 24, 48, 80];

const COLUMNS: [&str; 9] = [
    "model",
    "budget, GiB",
    "fetched and stored a step, GB",
    "kernels alone, s",
    "a step, s (kernels' share)",
    "lost to stores, files, link, s",
    "tokens a second",
    "if one thread reads",
    "all in host memory",
];

/// A card, as its data sheet has it, and what its kernels and its link are taken to reach.
struct Card {
    name: &'static str,
    arch: u32,
    multiprocessors: u32,
    /// GiB.
    memory: u64,
    bandwidth: f64,
    /// GB/s, each way.
    link: f64,
    /// Rates of its own, by the names of the kinds that [`kind`] gives; none: those are this card's.
    kinds: Option<&'static [Kind]>,
}

const CARDS: &[Card] = &[
    Card { name: "h100", arch: 90, multiprocessors: 132, memory: 80, bandwidth: BANDWIDTH, link: 55.0, kinds: None },
    Card {
        name: "rtx-4090",
        arch: 89,
        multiprocessors: 128,
        memory: 24,
        bandwidth: 1.008e12,
        link: 25.0,
        kinds: Some(ADA),
    },
];

/// Estimates for an RTX 4090, whose published peak is 165 TFLOP/s in bf16.
const ADA: &[Kind] = &[
    Kind("product, NF4 decoded inside", 138e12, 0.7),
    Kind("product of 16 bits by mma.sync", 140e12, 0.7),
    Kind("thin product", 140e12, 0.7),
    Kind("attention by mma.sync", 140e12, 0.7),
    Kind("attention by mma.sync, backward", 100e12, 0.7),
    Kind("row by row, element by element", 30e12, 0.85),
];

impl Card {
    fn caps(&self) -> Caps {
        let mut caps = cuda::caps(self.name.into(), self.arch);
        (caps.multiprocessors, caps.memory) = (Some(self.multiprocessors), Some(self.memory << 30));
        caps
    }

    /// What a launch takes.
    fn seconds(&self, launch: &Launch) -> Result<f64> {
        let Kernel::Cuda(call) = &launch.kernel else { return Ok(0.0) };
        let like = kind(call);
        let own = match self.kinds {
            None => Some(like),
            Some(kinds) => kinds.iter().find(|kind| kind.0 == like.0),
        };
        let lacks = || Error::unsupported(format!("{} on {}", like.0, self.name), "give it a rate in this example");
        Ok(seconds(own.ok_or_else(lacks)?, launch, self.bandwidth))
    }
}

/// What the arguments ask for.
struct Wanted {
    card: &'static Card,
    shape: Option<String>,
    memory: Option<u64>,
    tokens: usize,
    rank: usize,
    link: f64,
    read: f64,
    threads: f64,
    write: f64,
}

impl Wanted {
    fn of(args: &[String]) -> Result<Wanted> {
        let pairs: Vec<(&str, &str)> = args.iter().map(|arg| arg.split_once('=').unwrap_or((arg, ""))).collect();
        const NAMES: [&str; 9] = ["card", "shape", "memory", "tokens", "rank", "link", "read", "threads", "write"];
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !NAMES.contains(name)) {
            return Err(Error::config("arguments", *name, NAMES.join("=, ") + "="));
        }
        let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        let number = |name: &str| match value(name).map(|text| (text, text.parse::<f64>())) {
            None => Ok(None),
            Some((_, Ok(n))) if n > 0.0 && n.is_finite() => Ok(Some(n)),
            Some((text, _)) => Err(Error::config(name, text, "a number above 0")),
        };
        let card = value("card").unwrap_or(CARDS[0].name);
        let Some(card) = CARDS.iter().find(|c| c.name == card) else {
            return Err(Error::config("card", card, CARDS.iter().map(|c| c.name).collect::<Vec<_>>().join(" or ")));
        };
        Ok(Wanted {
            card,
            shape: value("shape").map(str::to_owned),
            memory: number("memory")?.map(|gib| gib as u64),
            tokens: number("tokens")?.map_or(2048, |n| n as usize),
            rank: number("rank")?.map_or(16, |n| n as usize),
            link: number("link")?.unwrap_or(card.link),
            read: number("read")?.unwrap_or(17.0),
            threads: number("threads")?.unwrap_or(4.0),
            write: number("write")?.unwrap_or(5.0),
        })
    }

    fn rates(&self, threads: f64) -> Rates {
        let link = self.link * 1e9;
        Rates { up: link, down: link, read: threads * self.read * 1e9, threads, write: self.write * 1e9 }
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
    let wanted = Wanted::of(args)?;
    println!(
        "predicted for {}, link {}, read {} by each of {} threads, write {} GB/s",
        wanted.card.name, wanted.link, wanted.read, wanted.threads, wanted.write
    );
    println!("\n| {} |\n|{}", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    let shapes = wanted.shape.as_deref().map_or(SHAPES.to_vec(), |shape| vec![shape]);
    let budgets = BUDGETS.into_iter().filter(|gib| *gib <= wanted.card.memory);
    let budgets: Vec<u64> = wanted.memory.map_or(budgets.collect(), |gib| vec![gib]);
    for shape in shapes {
        budgets.iter().try_for_each(|&gib| row(&wanted, shape, gib))?;
    }
    Ok(())
}

/// Prints what a step of a model is predicted to be in a budget.
fn row(wanted: &Wanted, shape: &str, gib: u64) -> Result<()> {
    let Wanted { card, tokens, rank, .. } = *wanted;
    let memory = Request { budget: Some(gib << 30), ..Request::default() };
    let planned = match step::planned(shape, tokens, rank, card.caps(), memory) {
        Err(Error::Memory { needed, .. }) => {
            let rest = "| ".repeat(COLUMNS.len() - 3);
            println!("| {shape} | {gib} | does not fit: the smallest budget is {} {rest}|", human(needed));
            return Ok(());
        }
        planned => planned?,
    };
    let (graph, plan) = planned.plan();
    let launches = launches(card, plan)?;
    let kernels: f64 = launches.iter().flatten().sum();
    let took = |rates| simulated(plan, &launches, &[], rates);
    let (rates, never) = (wanted.rates(wanted.threads), f64::INFINITY);
    let now = took(rates);
    let unstored = took(Rates { down: never, write: never, ..rates });
    let unread = took(Rates { down: never, write: never, read: never, ..rates });
    let lost = [now - unstored, unstored - unread, unread - kernels];
    let (fetched, stored) = moved(plan);
    let rate = |seconds: f64| format!("{:.0}", tokens as f64 / seconds);
    let cells = [
        format!("{fetched:.1}, {stored:.1}"),
        format!("{kernels:.2}"),
        format!("{now:.2} ({:.0} %)", 100.0 * kernels / now),
        lost.map(|seconds| format!("{:.2}", seconds.max(0.0))).join(", "),
        rate(now),
        rate(took(wanted.rates(1.0))),
        rate(simulated(plan, &launches, &held(graph, &plan.schedule.moves, u64::MAX), rates)),
    ];
    println!("| {shape} | {gib} | {} |", cells.join(" | "));
    Ok(())
}

/// GB that a step fetches and stores.
fn moved(plan: &Plan) -> (f64, f64) {
    let gb = |m: usize| plan.schedule.moves[m].place.bytes as f64 / 1e9;
    let steps = plan.schedule.phases[..=Phase::UPDATE.0].iter().flatten();
    steps.fold((0.0, 0.0), |(fetched, stored), step| match step {
        Step::Start(m) => (fetched + gb(*m), stored),
        Step::Store(m) => (fetched, stored + gb(*m)),
        Step::Run(_) | Step::Wait(_) | Step::Write(_) | Step::Written(_) => (fetched, stored),
    })
}

/// Seconds of each launch, by phase.
fn launches(card: &Card, plan: &Plan) -> Result<Vec<Vec<f64>>> {
    plan.launches.iter().map(|phase| phase.iter().map(|launch| card.seconds(launch)).collect()).collect()
}

/// Seconds of a step of one micro-batch, if host memory holds these weights.
fn simulated(plan: &Plan, launches: &[Vec<f64>], held: &[Val], rates: Rates) -> f64 {
    let mut simulation = Simulation::new(&plan.schedule.moves, held, rates);
    for Phase(phase) in [Phase::MICRO, Phase::UPDATE] {
        simulation.phase(&plan.schedule.phases[phase], &|r| launches[phase][r].iter().sum());
    }
    simulation.end()
}
