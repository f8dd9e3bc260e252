//! One kernel, decoded: instructions over numbered registers, and how its memory is laid out.

use crate::decode::Op;

/// A register of a warp: 32 values, one a lane. Constants and special registers are registers too, filled when a
/// block starts, so that every source operand is one.
pub type Reg = u32;

/// Generic addresses of shared, local and parameter memory begin here.
pub const SHARED_WINDOW: u64 = 0x7f00_0000_0000_0000;
pub const LOCAL_WINDOW: u64 = 0x7e00_0000_0000_0000;
pub const PARAM_WINDOW: u64 = 0x7d00_0000_0000_0000;
/// Parameters of device functions lie in local memory; in the parameter space their addresses begin here.
pub const FRAME: u64 = 1 << 20;
/// The first shared array's address. Not 0, so that a null pointer is no shared address.
pub const SHARED_START: usize = 1024;
/// Bytes between two shared arrays that belong to neither: an overrun is seen, not taken for the neighbour.
pub const SHARED_GAP: usize = 256;

/// A value that a register has from the start of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    Value(u64),
    /// Axis 0, 1 or 2 of `threadIdx`, `blockDim`, `blockIdx`, `gridDim`.
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Warps,
    /// Lanes below this one, up to it, this one, from it, above it.
    LanesBelow,
    LanesUpTo,
    LaneBit,
    LanesFrom,
    LanesAbove,
    DynamicSharedBytes,
    /// Where dynamic shared memory begins, plus an offset.
    DynamicShared(i64),
    /// An address in a variable of the module.
    Variable(usize, i64),
}

/// One decoded instruction.
#[derive(Debug)]
pub struct Inst {
    /// Runs only in lanes where this predicate is true (or, with `true`, false).
    pub guard: Option<(Reg, bool)>,
    pub op: Op,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Index into [`Program::places`].
    pub place: u32,
    /// Registers it reads or writes that a wgmma of the kernel uses asynchronously.
    pub guarded: Vec<Reg>,
}

/// A place in CUDA source, and the place its function was inlined at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    pub file: u32,
    pub line: u32,
    pub column: u32,
    pub inlined_at: Option<(u32, u32, u32)>,
}

/// A named range of shared memory.
#[derive(Clone, Debug)]
pub struct Segment {
    pub name: String,
    pub start: usize,
    pub bytes: usize,
}

/// A `.global` or `.const` variable of a module.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub bytes: Vec<u8>,
    pub constant: bool,
}

/// A kernel parameter: its offset and size in the parameter block.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub offset: usize,
    pub bytes: usize,
}

/// A kernel with the device functions it calls.
#[derive(Debug)]
pub struct Program {
    pub name: String,
    pub insts: Vec<Inst>,
    /// Where the kernel itself begins in `insts`.
    pub start: usize,
    pub registers: usize,
    pub constants: Vec<(Reg, Constant)>,
    pub params: Vec<Slot>,
    pub param_bytes: usize,
    /// Static shared arrays.
    pub shared: Vec<Segment>,
    /// Where dynamic shared memory begins.
    pub dynamic_at: usize,
    pub dynamic_name: String,
    /// Local memory of a thread: arrays, and frames of device functions.
    pub local_bytes: usize,
    /// Registers that a wgmma uses asynchronously.
    pub guarded: Vec<Reg>,
    pub places: Vec<Place>,
}

impl Program {
    /// The opcode that runs at `pc`, from the PTX text.
    pub fn text<'t>(&self, pc: usize, lines: &'t [String]) -> &'t str {
        let line = self.insts.get(pc).map_or(0, |i| i.line);
        lines.get((line as usize).wrapping_sub(1)).map_or("", |l| l.trim())
    }

    /// `file.cu:12 (inlined at file.cu:30)` for the instruction at `pc`; `kernel` without line information.
    pub fn place(&self, pc: usize, files: &std::collections::HashMap<u32, String>) -> String {
        let spell = |file: u32, line: u32| {
            let name = files.get(&file).map_or("?", |f| f.rsplit('/').next().unwrap_or(f));
            format!("{name}:{line}")
        };
        let Some(place) = self.insts.get(pc).and_then(|i| self.places.get(i.place as usize)) else {
            return "no line".into();
        };
        if place.file == 0 {
            return "no line (compile with -lineinfo)".into();
        }
        let mut text = spell(place.file, place.line);
        let mut at = place.inlined_at;
        for _ in 0..8 {
            let Some((file, line, column)) = at else { break };
            text += &format!(", inlined at {}", spell(file, line));
            let outer = self.places.iter().find(|p| (p.file, p.line, p.column) == (file, line, column));
            at = outer.and_then(|p| p.inlined_at).filter(|&next| Some(next) != at);
        }
        text
    }
}
