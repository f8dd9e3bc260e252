//! ptxsim: runs PTX on the CPU and checks every memory access, so that CUDA kernels are tested without a GPU.

mod alu;
mod build;
pub mod bulk;
mod decode;
mod exec;
mod finding;
mod launch;
mod lex;
mod machine;
mod matrix;
mod memory;
mod operand;
mod parse;
mod program;
mod shadow;
mod shared;
mod types;
pub mod values;

use std::collections::{BTreeMap, HashMap};

pub use finding::{Finding, Kind};
pub use launch::{Launch, Order, Param, Schedule, Stats, run};
pub use memory::Memory;

/// A PTX text, parsed and decoded.
#[derive(Debug)]
pub struct Module {
    entries: BTreeMap<String, program::Program>,
    variables: Vec<program::Variable>,
    /// Source files by their number in `.loc`.
    files: HashMap<u32, String>,
    /// The text, for messages.
    lines: Vec<String>,
}

impl Module {
    /// Parses and decodes PTX.
    ///
    /// # Errors
    /// An instruction or a form of one that is not interpreted, or text that is no PTX; the message names the line.
    pub fn parse(ptx: &str) -> Result<Module, String> {
        parse::module(ptx)
    }

    /// The kernels' names.
    pub fn entries(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }
}
