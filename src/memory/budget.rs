//! Who chooses: given a budget, the choices that lose least time for each byte they save.
//!
//! Each option is tried at its fullest; the one that loses least time per byte is taken, then the next, until the
//! account fits. The last one is then taken only as far as it is needed, and what turned out not to be needed is
//! undone. Times are of a rough model of the device: they order the options, and are printed as estimates.

use std::collections::HashMap;

use super::{Ahead, Choices, apply, blocks, layers, page};
use crate::backend::{Caps, Target};
use crate::error::{Error, Result};
use crate::graph::op::OpRole;
use crate::graph::program::Program;
use crate::graph::{Graph, Phase, Val};
use crate::plan::Plan;
use crate::units;

/// Whether an option is used: if the budget needs it, never, or always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Toggle {
    /// Where the budget needs it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
}

impl Toggle {
    /// Every choice, in the order in which messages name them.
    pub const ALL: &'static [Toggle] = &[Toggle::Auto, Toggle::On, Toggle::Off];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Toggle::Auto => "auto",
            Toggle::On => "on",
            Toggle::Off => "off",
        }
    }
}

impl std::fmt::Display for Toggle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Bytes there are. On the CPU, of the whole process; elsewhere, on the device.
    pub budget: Option<u64>,
    /// Bytes that a device with memory of its own has for this, where nobody gave a budget: what takes more is made to fit. What
    /// fits is planned as if nothing were known.
    pub room: Option<u64>,
    /// Recompute of all layers at this level, whether it is needed or not. None: what the budget needs; without a budget,
    /// of cheap values.
    pub recompute: Option<super::Level>,
    /// Frozen weights stay off the device and are fetched block by block.
    pub stream: Toggle,
    /// Optimizer state stays off the device and is fetched page by page.
    pub page_optimizer: Toggle,
    /// Inputs of blocks wait off the device for the backward pass.
    pub offload: Toggle,
    /// Bytes of host memory for weights that stream, on a device that copies from there.
    pub host: Option<u64>,
}

impl Request {
    /// Bytes to stay within, asked for or not.
    pub fn bytes(&self) -> Option<u64> {
        self.budget.or(self.room)
    }
}

/// A choice that was made, and what it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// What was chosen, in words.
    pub what: String,
    /// Bytes of the account that it saves, given the choices before it.
    pub saves: i64,
    /// Seconds of a micro-batch and its share of the update that it is estimated to cost.
    pub seconds: f64,
}

/// What the process takes besides its account on the CPU: code, libraries, graph and plan, data, buffers of products.
/// Measured on x86-64 Linux: 27 MB for 6 layers, 52 MB for 30 layers and micro-batches of four sizes.
pub const PROCESS: u64 = 56 << 20;

/// What a device keeps of its free memory for what is no part of the account: kernels, recorded launches, the ends of
/// allocations.
pub fn room(free: u64) -> u64 {
    free.saturating_sub(free / 64 + (256 << 20))
}

/// Bytes that count against a budget on the device with `caps`.
pub fn counted(plan: &Plan, caps: &Caps) -> u64 {
    match caps.target {
        Target::Host => plan.account.total + plan.account.host_total + PROCESS,
        _ => plan.account.total,
    }
}

/// A rough model of a device: what one can count on, not what it can do at best.
struct Rates {
    /// Floating point operations a second, and bytes a second of memory and of transfers.
    flops: f64,
    memory: f64,
    link: f64,
}

fn rates(caps: &Caps) -> Rates {
    match (caps.target, caps.software) {
        (Target::Host, _) | (_, true) => {
            Rates { flops: 40e9 * rayon::current_num_threads() as f64, memory: 10e9, link: 2e9 }
        }
        (Target::Cuda, _) => Rates { flops: 100e12, memory: 1e12, link: 20e9 },
        _ => Rates { flops: 10e12, memory: 300e9, link: 10e9 },
    }
}

/// Seconds that one run of each phase is estimated to take, transfers beside launches where they overlap. Where there is
/// training, only its phases count: the others run seldom beside them.
pub fn seconds(g: &Graph, caps: &Caps) -> f64 {
    let rates = rates(caps);
    let (mut now, mut link) = (0f64, 0f64);
    let mut ready: HashMap<Val, f64> = HashMap::new();
    let trains = g.nodes.first().is_some_and(|n| n.phase == Phase::MICRO);
    for node in g.nodes.iter().filter(|n| !trains || n.phase <= Phase::UPDATE) {
        let bytes = |vals: &[Val]| vals.iter().map(|&v| g.ty(v).bytes() as f64).sum::<f64>();
        if node.op.role == OpRole::Fetch {
            link = link.max(now) + bytes(&node.ins) / rates.link;
            ready.insert(node.outs[0], link);
            continue;
        }
        let ready_at = node.ins.iter().filter_map(|&v| ready.get(&g.root(v).0));
        now = ready_at.fold(now, |n, &r| n.max(r));
        if node.op.role == OpRole::Store {
            now += bytes(&node.ins) / rates.link;
            continue;
        }
        let tys = |vals: &[Val]| vals.iter().map(|&v| g.ty(v).clone()).collect::<Vec<_>>();
        let cost = (node.op.cost)(&node.attr, &tys(&node.ins), &tys(&node.outs));
        // An embedding reads a few rows of its table.
        let read = bytes(&node.ins).min(2.0 * cost.flops as f64 + bytes(&node.outs));
        now += (cost.flops as f64 / rates.flops).max((read + bytes(&node.outs)) / rates.memory);
    }
    now
}

/// An option of the chooser: how it changes the choices, in up to `most` steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knob {
    Selective,
    All,
    Page,
    Stream,
    StreamLate,
    Offload,
}

const KNOBS: [Knob; 6] = [Knob::Selective, Knob::All, Knob::Page, Knob::Stream, Knob::StreamLate, Knob::Offload];

impl Knob {
    fn most(self, step: &Program) -> usize {
        match self {
            Knob::Selective | Knob::All => layers(step),
            Knob::Stream => blocks(step),
            Knob::Page | Knob::StreamLate | Knob::Offload => 1,
        }
    }

    fn set(self, choices: Choices, n: usize) -> Choices {
        match self {
            Knob::Selective => Choices { selective: n, ..choices },
            Knob::All => Choices { all: n, ..choices },
            Knob::Page => Choices { page: n * page::PAGE, ..choices },
            Knob::Stream => Choices { stream: n, ..choices },
            Knob::StreamLate => Choices { ahead: if n > 0 { Ahead::Nothing } else { Ahead::Block }, ..choices },
            Knob::Offload => Choices { offload: n > 0, ..choices },
        }
    }

    fn of(self, choices: &Choices) -> usize {
        match self {
            Knob::Selective => choices.selective,
            Knob::All => choices.all,
            Knob::Page => choices.page / page::PAGE,
            Knob::Stream => choices.stream,
            Knob::StreamLate => (choices.ahead == Ahead::Nothing) as usize,
            Knob::Offload => choices.offload as usize,
        }
    }

    fn toggle(self, request: &Request) -> Toggle {
        match self {
            Knob::Selective | Knob::All => request.recompute.map_or(Toggle::Auto, |level| match (self, level) {
                (Knob::Selective, super::Level::Selective) | (Knob::All, super::Level::All) => Toggle::On,
                _ => Toggle::Off,
            }),
            Knob::Page => request.page_optimizer,
            Knob::Stream => request.stream,
            Knob::StreamLate if request.stream == Toggle::Off => Toggle::Off,
            Knob::StreamLate => Toggle::Auto,
            Knob::Offload => request.offload,
        }
    }

    fn says(self, n: usize, most: usize) -> String {
        match self {
            Knob::Selective => format!("compute cheap values of {n} of {most} layers again in the backward pass"),
            Knob::All => format!("compute {n} of {most} layers again in the backward pass"),
            Knob::Page => "keep the optimizer's state off the device, in pages".into(),
            Knob::Stream => format!("stream the frozen weights of {n} of {most} blocks"),
            Knob::StreamLate => "fetch streamed weights right before they are read, not a block ahead".into(),
            Knob::Offload => "move the layers' inputs off the device between forward and backward".into(),
        }
    }
}

/// A step with choices made, planned.
struct Tried {
    choices: Choices,
    step: Program,
    plan: Plan,
    bytes: u64,
    seconds: f64,
}

impl Tried {
    fn fitted(self, chosen: Vec<Chosen>) -> Fitted {
        Fitted { program: self.step, plan: self.plan, choices: self.choices, chosen }
    }
}

fn attempt(step: &Program, choices: Choices, caps: &Caps) -> Result<Tried> {
    let step = apply(step, &choices)?;
    let plan = Plan::new(&step.graph, caps)?;
    let (bytes, seconds) = (counted(&plan, caps), seconds(&step.graph, caps));
    Ok(Tried { choices, step, plan, bytes, seconds })
}

/// A step that fits.
pub struct Fitted {
    /// The step with the choices made.
    pub program: Program,
    /// Its plan.
    pub plan: Plan,
    /// The choices, to be made for the same step with smaller micro-batches too.
    pub choices: Choices,
    /// What they do, in words.
    pub chosen: Vec<Chosen>,
}

/// `step` as `request` wants it. If nothing fits: [`Error::Memory`] with the smallest budget that would.
pub fn fit(step: &Program, caps: &Caps, request: &Request) -> Result<Fitted> {
    let mut chosen = Vec::new();
    let forced = |choices: Choices, knob: &Knob| match knob.toggle(request) {
        Toggle::On => knob.set(choices, knob.most(step)),
        _ => choices,
    };
    if request.budget.is_none() {
        let usual = match request.recompute {
            None => Choices { selective: layers(step), ..Choices::default() },
            Some(_) => Choices::default(),
        };
        let choices = KNOBS.iter().fold(usual, forced);
        let tried = attempt(step, choices, caps)?;
        if request.room.is_none_or(|room| tried.bytes <= room) {
            if choices != usual {
                describe(&mut chosen, attempt(step, usual, caps).ok(), step, choices, caps);
            }
            return Ok(tried.fitted(chosen));
        }
    }
    let budget = request.bytes().unwrap_or(u64::MAX);
    let choices = KNOBS.iter().fold(Choices::default(), forced);
    let mut open: Vec<Knob> = KNOBS.into_iter().filter(|k| k.toggle(request) == Toggle::Auto).collect();
    let mut order: Vec<Knob> = Vec::new();
    let mut now = attempt(step, choices, caps)?;
    let mut least = (now.bytes, now.choices);
    while now.bytes > budget && !open.is_empty() {
        let mut best: Option<(f64, usize, Tried)> = None;
        for (i, knob) in open.iter().enumerate() {
            let tried = attempt(step, knob.set(now.choices, knob.most(step)), caps)?;
            if tried.bytes < least.0 {
                least = (tried.bytes, tried.choices);
            }
            if tried.bytes >= now.bytes {
                continue;
            }
            let price = (tried.seconds - now.seconds).max(0.0) / (now.bytes - tried.bytes) as f64;
            if best.as_ref().is_none_or(|b| price < b.0) {
                best = Some((price, i, tried));
            }
        }
        let Some((_, i, tried)) = best else { break };
        order.push(open.remove(i));
        now = tried;
    }
    if now.bytes > budget && least.0 <= budget {
        now = attempt(step, least.1, caps)?;
        order = KNOBS.into_iter().filter(|k| k.toggle(request) == Toggle::Auto && k.of(&now.choices) > 0).collect();
    }
    if now.bytes > budget {
        let least = least.0;
        let smaller = "quantize (--quantize nf4), use a smaller rank, fewer --micro-tokens or a smaller --max-seq-len";
        let hint = match request.budget {
            Some(_) => {
                let enough = units::text(least.next_multiple_of(1 << 20));
                format!("the smallest --memory that would do is {enough}; or {smaller}")
            }
            None => format!("{} has no more that is free; end what else holds some, or {smaller}", caps.device),
        };
        return Err(Error::Memory { needed: least, available: budget, hint });
    }
    // What was taken first may not be needed any more; and nothing further than needed.
    for knob in order.iter().rev() {
        let most = knob.most(step);
        let (mut low, mut high) = (0, knob.of(&now.choices).min(most));
        // A plan is not quite monotone in a knob; what is kept did fit.
        while low < high {
            let middle = (low + high) / 2;
            let tried = attempt(step, knob.set(now.choices, middle), caps)?;
            if tried.bytes <= budget {
                high = middle;
                now = tried;
            } else {
                low = middle + 1;
            }
        }
    }
    let plain = attempt(step, Choices::default(), caps).ok();
    describe(&mut chosen, plain, step, now.choices, caps);
    Ok(now.fitted(chosen))
}

/// Says what each choice does, one after the other.
fn describe(chosen: &mut Vec<Chosen>, plain: Option<Tried>, step: &Program, choices: Choices, caps: &Caps) {
    let Some(mut before) = plain else { return };
    for knob in KNOBS {
        let n = match knob {
            Knob::Selective if choices.all >= choices.selective => 0,
            Knob::StreamLate if choices.stream == 0 => 0,
            _ => knob.of(&choices),
        };
        if n == knob.of(&before.choices) {
            continue;
        }
        let Ok(after) = attempt(step, knob.set(before.choices, n), caps) else { return };
        chosen.push(Chosen {
            what: knob.says(n, knob.most(step)),
            saves: before.bytes as i64 - after.bytes as i64,
            seconds: after.seconds - before.seconds,
        });
        before = after;
    }
}

/// What is chosen, for people: a line each.
pub fn text(chosen: &[Chosen]) -> String {
    let mut text = String::new();
    for Chosen { what, saves, seconds } in chosen {
        let saves = match *saves {
            s if s < 0 => format!("takes {} B more", -s),
            s => format!("saves {:.1} MiB", s as f64 / (1 << 20) as f64),
        };
        text += &format!("  {what}: {saves}, costs about {:.2} s a micro-batch\n", seconds.max(0.0));
    }
    text
}
