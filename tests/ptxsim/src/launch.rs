//! A launch: what the caller says, and the walk over its blocks.

use std::collections::BTreeMap;

use crate::Module;
use crate::finding::{Finding, Kind};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::shadow::BLOCKS;

/// One kernel parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    U64(u64),
    U32(u32),
    F32(f32),
    /// A parameter passed by value: a struct, with the layout that the kernel declares.
    Bytes(Vec<u8>),
}

impl Param {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Param::U64(v) => v.to_le_bytes().to_vec(),
            Param::U32(v) => v.to_le_bytes().to_vec(),
            Param::F32(v) => v.to_le_bytes().to_vec(),
            Param::Bytes(v) => v.clone(),
        }
    }
}

/// Which of the warps that can go on does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first, until it has to wait; blocks in order.
    Lowest,
    /// The last, until it has to wait; blocks in reverse.
    Highest,
    /// Each for a few instructions.
    RoundRobin,
    /// Any, for any number of instructions, by this seed; blocks in any order.
    Random(u64),
}

/// How a launch is interleaved. A right kernel gives the same bits under every schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub order: Order,
    /// An asynchronous copy lands when it is issued; else when it is waited for.
    pub eager_async: bool,
}

impl Schedule {
    /// The schedules that a kernel is tried under.
    pub fn all() -> Vec<Schedule> {
        let with = |order, eager_async| Schedule { order, eager_async };
        vec![
            with(Order::Lowest, false),
            with(Order::Highest, true),
            with(Order::RoundRobin, false),
            with(Order::Random(1), true),
            with(Order::Random(2), false),
        ]
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    pub entry: &'a str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory, in bytes.
    pub shared_bytes: u32,
    pub params: &'a [Param],
    pub schedule: Schedule,
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub warp_instructions: u64,
    pub thread_instructions: u64,
    /// Thread-instructions by opcode.
    pub opcodes: BTreeMap<String, u64>,
}

/// A small generator for schedules.
#[derive(Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n.max(1)
    }
}

/// The parameter block, with each parameter at the offset that the kernel declares.
fn parameters(module: &Module, launch: &Launch) -> Result<Vec<u8>, String> {
    let program = module
        .entries
        .get(launch.entry)
        .ok_or_else(|| format!("the module has no kernel '{}', only {}", launch.entry, module.entries().join(", ")))?;
    if program.params.len() != launch.params.len() {
        let (found, expected) = (launch.params.len(), program.params.len());
        return Err(format!("kernel '{}' is given {found} parameters, declares {expected}", launch.entry));
    }
    let mut block = vec![0; program.param_bytes];
    for (i, (slot, param)) in program.params.iter().zip(launch.params).enumerate() {
        let bytes = param.bytes();
        if bytes.len() != slot.bytes {
            let (found, expected) = (bytes.len(), slot.bytes);
            return Err(format!("parameter {i} of kernel '{}' has {found} bytes, declares {expected}", launch.entry));
        }
        block[slot.offset..slot.offset + slot.bytes].copy_from_slice(&bytes);
    }
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
    if !(1..=1024).contains(&threads) || !(1..BLOCKS).contains(&blocks) {
        return Err(format!("a launch of {blocks} blocks of {threads} threads"));
    }
    Ok(block)
}

/// The order of `n` blocks.
fn block_order(order: Order, n: u32) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..n).collect();
    match order {
        Order::Highest => blocks.reverse(),
        Order::Random(seed) => {
            let mut random = Random::new(seed);
            for i in (1..blocks.len()).rev() {
                blocks.swap(i, random.below(i + 1));
            }
        }
        Order::Lowest | Order::RoundRobin => {}
    }
    blocks
}

/// Runs a kernel over its grid, block after block; the first broken rule ends it.
///
/// # Errors
/// The finding, with its place. A kernel that is not there, and parameters that do not fit it, are findings too.
pub fn run(module: &Module, memory: &mut Memory, launch: &Launch) -> Result<Stats, Finding> {
    let params = parameters(module, launch).map_err(|e| Finding::new(Kind::UnknownOpcode, e))?;
    let program = &module.entries[launch.entry];
    let before = memory.count();
    let variables: Vec<u64> = module
        .variables
        .iter()
        .map(|v| {
            let address = memory.alloc(&v.name, &v.bytes);
            if v.constant {
                memory.read_only(address);
            }
            address
        })
        .collect();
    let mut machine = Machine::new(module, program, memory, launch, params, variables);
    let blocks = launch.grid.iter().product();
    let done = block_order(launch.schedule.order, blocks).into_iter().try_for_each(|b| machine.block(b));
    let stats = machine.stats();
    memory.finish(before);
    done.map(|()| stats)
}
