//! The state of a running block, and which of its warps goes next.

use crate::Module;
use crate::bulk::Mbarriers;
use crate::finding::{Finding, Kind};
use crate::groups::Groups;
use crate::guard::Guard;
use crate::launch::{Launch, Order, Random, Stats};
use crate::memory::{Fault, Memory};
use crate::program::{Constant, Program};
use crate::shadow::{Clocks, Who};
use crate::shared::Shared;

/// Warp-instructions of one launch; a kernel of a test needs far fewer.
const STEPS: u64 = 200_000_000;
/// Warp-instructions of one block without any of its warps waiting or ending: more is a loop without an end.
const PATIENCE: u64 = 10_000_000;

/// One copy of `cp.async`.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    pub to: usize,
    pub from: u64,
    pub bytes: usize,
    pub valid: usize,
    pub pc: u32,
}

/// 32 lanes.
pub struct Warp {
    pub regs: Vec<[u64; 32]>,
    pub pc: [u32; 32],
    /// Lanes that exist.
    pub lanes: u32,
    /// Lanes that have not ended.
    pub alive: u32,
    /// Lanes that wait in a collective.
    pub parked: u32,
    /// Lanes that wait at a barrier.
    pub blocked: u32,
    /// Each lane's asynchronous copies: closed groups, the open one last.
    pub copies: Vec<Vec<Vec<Copy>>>,
    /// Its wgmmas, and each lane's tensor stores, that nobody has waited for.
    pub products: Groups,
    pub stores: Vec<Groups>,
    /// Registers that wgmma uses, by number.
    pub guards: Vec<Guard>,
    /// Whether it has come to a `wgmma.fence`.
    pub fenced: bool,
    /// Each lane's local memory, one after another, and which of its bytes are known.
    pub local: Vec<u8>,
    pub local_known: Vec<bool>,
}

impl Warp {
    /// Lanes that can go on.
    pub fn runnable(&self) -> u32 {
        self.alive & !self.parked & !self.blocked
    }
}

/// Lanes of a warp that have come to a barrier.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub warp: usize,
    pub lanes: u32,
    pub pc: u32,
    pub id: u64,
    /// Threads that the barrier waits for; `None`: the block's.
    pub count: Option<u64>,
    /// Came, and went on.
    pub passed: bool,
}

pub struct Machine<'a> {
    pub module: &'a Module,
    pub program: &'a Program,
    pub memory: &'a mut Memory,
    pub launch: &'a Launch<'a>,
    pub params: Vec<u8>,
    /// Addresses of the module's variables.
    variables: Vec<u64>,
    pub block: u32,
    pub shared: Shared,
    pub warps: Vec<Warp>,
    pub clocks: Vec<Clocks>,
    pub arrivals: Vec<Arrival>,
    /// Thread-instructions by pc.
    pub counts: Vec<u64>,
    pub warp_instructions: u64,
    /// When a warp last had to wait or ended, in warp-instructions.
    pub progress: u64,
    /// The warp polls for something; another should go.
    pub polling: bool,
    /// Polls since something last happened at an mbarrier.
    pub polls: u64,
    pub mbarriers: Mbarriers,
    /// By warpgroup, which of its warps have come to the instruction that the others wait for, and which that is.
    pub meetings: Vec<Option<Meeting>>,
    /// By warpgroup, what `setmaxnreg` has given a thread.
    pub registers: Vec<u64>,
}

/// Warps of a warpgroup that have come to an instruction which all four do together.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    pub pc: usize,
    pub warps: u32,
}

/// Lanes of a mask.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

impl<'a> Machine<'a> {
    pub fn new(
        module: &'a Module,
        program: &'a Program,
        memory: &'a mut Memory,
        launch: &'a Launch<'a>,
        params: Vec<u8>,
        variables: Vec<u64>,
    ) -> Machine<'a> {
        let threads = launch.block.iter().product::<u32>() as usize;
        let warp = |w: usize| {
            let n = (threads - 32 * w).min(32);
            let lanes = if n == 32 { u32::MAX } else { (1 << n) - 1 };
            Warp {
                regs: vec![[0; 32]; program.registers],
                pc: [0; 32],
                lanes,
                alive: 0,
                parked: 0,
                blocked: 0,
                copies: Vec::new(),
                products: Groups::default(),
                stores: vec![Groups::default(); 32],
                guards: vec![Guard::default(); if program.guarded.is_empty() { 0 } else { program.registers }],
                fenced: false,
                local: vec![0; 32 * program.local_bytes],
                local_known: vec![false; 32 * program.local_bytes],
            }
        };
        let count = threads.div_ceil(32);
        Machine {
            module,
            program,
            memory,
            launch,
            params,
            variables,
            block: 0,
            shared: Shared::new(program, launch.shared_bytes as usize),
            warps: (0..count).map(warp).collect(),
            clocks: vec![Clocks::new(); count],
            arrivals: Vec::new(),
            counts: vec![0; program.insts.len()],
            warp_instructions: 0,
            progress: 0,
            polling: false,
            polls: 0,
            mbarriers: Mbarriers::new(),
            meetings: vec![None; count.div_ceil(4)],
            registers: vec![0; count.div_ceil(4)],
        }
    }

    pub fn stats(&self) -> Stats {
        let mut stats = Stats { warp_instructions: self.warp_instructions, ..Stats::default() };
        for (pc, &n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            stats.thread_instructions += n;
            let text = self.program.text(pc, &self.module.lines);
            let opcode = text.split_whitespace().find(|w| !w.starts_with('@')).unwrap_or("?");
            *stats.opcodes.entry(opcode.trim_end_matches(';').to_owned()).or_default() += n;
        }
        stats
    }

    fn block_index(&self, block: u32) -> [u32; 3] {
        let [x, y, _] = self.launch.grid;
        [block % x, block / x % y, block / (x * y)]
    }

    fn thread_index(&self, thread: u32) -> [u32; 3] {
        let [x, y, _] = self.launch.block;
        [thread % x, thread / x % y, thread / (x * y)]
    }

    fn constant(&self, c: Constant, warp: usize, lane: usize) -> u64 {
        let thread = (32 * warp + lane) as u32;
        let bit = 1u64 << lane;
        match c {
            Constant::Value(v) => v,
            Constant::Tid(i) => u64::from(self.thread_index(thread)[i]),
            Constant::Ntid(i) => u64::from(self.launch.block[i]),
            Constant::Ctaid(i) => u64::from(self.block_index(self.block)[i]),
            Constant::Nctaid(i) => u64::from(self.launch.grid[i]),
            Constant::Lane => lane as u64,
            Constant::Warp => warp as u64,
            Constant::Warps => self.warps.len() as u64,
            Constant::LanesBelow => bit - 1,
            Constant::LanesUpTo => bit | (bit - 1),
            Constant::LaneBit => bit,
            Constant::LanesFrom => 0xffff_ffff & !(bit - 1),
            Constant::LanesAbove => 0xffff_ffff & !(bit | (bit - 1)),
            Constant::DynamicSharedBytes => u64::from(self.launch.shared_bytes),
            Constant::DynamicShared(o) => (self.program.dynamic_at as u64).wrapping_add_signed(o),
            Constant::Variable(i, o) => self.variables[i].wrapping_add_signed(o),
        }
    }

    /// Runs one block to its end.
    pub fn block(&mut self, block: u32) -> Result<(), Finding> {
        self.block = block;
        self.shared.clear();
        self.arrivals.clear();
        self.mbarriers.clear();
        self.meetings.fill(None);
        self.registers.fill(0);
        self.polls = 0;
        let program = self.program;
        for w in 0..self.warps.len() {
            self.clocks[w] = Clocks::new();
            for &(r, c) in &program.constants {
                let values = std::array::from_fn(|lane| self.constant(c, w, lane));
                self.warps[w].regs[r as usize] = values;
            }
            let warp = &mut self.warps[w];
            warp.pc = [program.start as u32; 32];
            (warp.alive, warp.parked, warp.blocked) = (warp.lanes, 0, 0);
            warp.copies = vec![vec![Vec::new()]; 32];
            (warp.products, warp.fenced) = (Groups::default(), false);
            warp.stores.fill(Groups::default());
            warp.guards.fill(Guard::default());
            warp.local_known.fill(false);
        }
        let seed = match self.launch.schedule.order {
            Order::Random(seed) => seed ^ u64::from(block) << 32,
            _ => 0,
        };
        let mut random = Random::new(seed);
        let mut turn = 0;
        loop {
            let ready: Vec<usize> = (0..self.warps.len()).filter(|&w| self.warps[w].runnable() != 0).collect();
            let (Some(&first), Some(&last)) = (ready.first(), ready.last()) else {
                if self.warps.iter().all(|w| w.alive == 0) {
                    return Ok(());
                }
                return Err(self.stuck());
            };
            // A warp that polls lets the others go, whatever the order says.
            let order = if std::mem::take(&mut self.polling) { Order::RoundRobin } else { self.launch.schedule.order };
            let (warp, steps) = match order {
                Order::Lowest => (first, u64::MAX),
                Order::Highest => (last, u64::MAX),
                Order::RoundRobin => (ready.iter().copied().find(|&w| w > turn).unwrap_or(first), 24),
                Order::Random(_) => (ready[random.below(ready.len())], 1 + random.below(48) as u64),
            };
            turn = warp;
            self.warp(warp, steps)?;
        }
    }

    /// Whether the launch has run too long.
    pub fn limit(&self) -> Result<(), Box<Fault>> {
        if self.warp_instructions > STEPS || self.warp_instructions - self.progress > PATIENCE {
            let text =
                format!("{} warp-instructions without an end: a loop that does not stop", self.warp_instructions);
            return Err(Fault::new(Kind::Limit, text));
        }
        Ok(())
    }

    /// Every warp waits for another.
    fn stuck(&self) -> Finding {
        let mut waits = Vec::new();
        for (w, warp) in self.warps.iter().enumerate() {
            for (mask, what) in [(warp.blocked, "a barrier or its warpgroup"), (warp.parked, "a collective")] {
                if let Some(l) = lanes(mask).next() {
                    let at = self.place(warp.pc[l] as usize);
                    waits.push(format!("warp {w} lanes {mask:#010x} wait for {what} at {at}"));
                }
            }
        }
        let block = self.block_index(self.block);
        let text = format!("kernel {}, block {block:?}: no thread can go on: {}", self.program.name, waits.join("; "));
        Finding::new(Kind::Deadlock, text)
    }

    /// `file.cu:12`, by pc.
    pub fn place(&self, pc: usize) -> String {
        self.program.place(pc, &self.module.files)
    }

    /// A fault with its place, as a finding.
    pub fn finding(&self, fault: &Fault, warp: usize, lane: usize, pc: usize) -> Finding {
        let lane = fault.lane.unwrap_or(lane);
        let thread = (32 * warp + lane) as u32;
        let mut text = format!(
            "kernel {}, {}, PTX line {} `{}`, block {:?}, thread {:?}: {}",
            self.program.name,
            self.place(pc),
            self.program.insts.get(pc).map_or(0, |i| i.line),
            self.program.text(pc, &self.module.lines),
            self.block_index(self.block),
            self.thread_index(thread),
            fault.text,
        );
        if let Some(c) = fault.conflict {
            let verb = if c.wrote { "wrote" } else { "read" };
            text += &format!(
                "; block {:?}, thread {:?} {verb} it",
                self.block_index(c.block as u32),
                self.thread_index(c.thread as u32)
            );
            if let Some(pc) = c.pc {
                text += &format!(" at {}", self.place(pc as usize));
            }
            text += if c.block == u64::from(self.block) { ", with no barrier between" } else { ", in the same launch" };
        }
        Finding::new(fault.kind, text)
    }

    /// A lane as the race checker knows it, and the shared memory, to touch at once.
    pub fn who(clocks: &'_ [Clocks], block: u32, warp: usize, lane: usize, pc: usize) -> Who<'_> {
        Who { block: u64::from(block), warp, lane, pc: pc as u32, clocks: &clocks[warp] }
    }
}
