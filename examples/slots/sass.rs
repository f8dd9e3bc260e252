//! Machine code as nvdisasm prints it: the loops of each kernel, and what a warp does in one pass of them.

use std::collections::{BTreeMap, HashMap};

/// What a warp does in a stretch of code.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Instructions: each takes an issue slot of its scheduler.
    pub slots: u64,
    /// FLOPs of tensor cores: of a warpgroup's product a quarter.
    pub tensor: u64,
    /// Exponentials, roots and the like, which have a unit of their own.
    pub special: u64,
}

impl Work {
    fn add(&mut self, instruction: &str) {
        self.slots += 1;
        match instruction.split('.').take(2).collect::<Vec<_>>()[..] {
            ["HGMMA", shape] => self.tensor += 2 * product(shape) / 4,
            ["MUFU", _] => self.special += 1,
            _ => {}
        }
    }

    /// FLOPs of tensor cores for an instruction.
    fn density(&self) -> f64 {
        self.tensor as f64 / self.slots.max(1) as f64
    }
}

/// `64x256x16`
fn product(shape: &str) -> u64 {
    shape.split('x').map(|side| side.parse::<u64>().unwrap_or(0)).product()
}

/// The main loop of each kernel of `listing`, which nvdisasm printed with `-c`: the loop with most work of tensor cores for an
/// instruction. Kernels that have no such loop are left out.
pub fn main_loops(listing: &str) -> BTreeMap<String, Work> {
    let sections = listing.split(".section").filter_map(|text| text.trim_start().strip_prefix(".text."));
    let main = |section: &str| {
        let name = section.split([',', ' ', '\t', '\n']).next()?;
        let loops = loops(section).into_iter().filter(|work| work.tensor > 0);
        Some((name.to_owned(), loops.max_by(|a, b| a.density().total_cmp(&b.density()))?))
    };
    sections.filter_map(main).collect()
}

/// The loops of a kernel's section, in the order of their ends: from a label to a branch back to it.
fn loops(section: &str) -> Vec<Work> {
    let (mut instructions, mut labels, mut all) = (Vec::new(), HashMap::new(), Vec::new());
    for line in section.lines().map(str::trim) {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, instructions.len());
        }
        // /*0a10*/  @!P0 BRA `(.L_x_12) ;
        let Some((_, text)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else { continue };
        let Some(name) = text.split_whitespace().find(|word| !word.starts_with(['@', '{'])) else { continue };
        instructions.push(name);
        let target = text.split_once("`(").and_then(|(_, rest)| rest.split(')').next());
        if let (true, Some(&first)) = (name.starts_with("BRA"), target.and_then(|label| labels.get(label))) {
            let mut work = Work::default();
            instructions[first..].iter().for_each(|instruction| work.add(instruction));
            all.push(work);
        }
    }
    all
}
