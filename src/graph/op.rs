//! What a row of the op table is: the facts about an op that builder, autograd, planner and tests read.

use super::attr::Attr;
use super::sizes::{Case, Sizes};
use super::tensor::{Sample, Tensor};
use super::{Graph, Node, Val};
use crate::device::{Caps, HostSlice};
use crate::dtype::{DType, Ty};
use crate::error::Result;

/// A CPU kernel. It is called once a launch, and spreads its work over threads itself.
pub type Host = fn(&HostCall);

/// A launch on the CPU: attributes, types, and memory in the order outputs, inputs, scratch.
pub struct HostCall<'a> {
    /// The node's attributes.
    pub attr: &'a Attr,
    /// Types of the inputs.
    pub ins: &'a [Ty],
    /// Types of the outputs.
    pub outs: &'a [Ty],
    /// The operands' memory: outputs, inputs, and then scratch if the op has any.
    pub args: &'a [HostSlice],
}

/// A row of the table. What most ops have in common is in [`OpDef::COMPUTE`]; a row says the rest.
pub struct OpDef {
    /// Name of the op, unique in the table, as prints, profiles and errors show it.
    pub name: &'static str,
    /// How the planner treats a node of it.
    pub role: OpRole,
    /// Types of the outputs from the types of the inputs; the error says what is wrong with them.
    pub infer: fn(&Attr, &[Ty]) -> Result<Vec<Ty>, String>,
    /// The definition, in float64, written to be read. Every kernel is checked against it.
    pub reference: fn(&Attr, &[Tensor]) -> Vec<Tensor>,
    /// The gradient's rule, or why there is none.
    pub grad: Grad,
    /// Its attribute may ask for one more, last operand, which is added to its first result (GEMM's beta = 1).
    pub accumulates: bool,
    /// Neighbours of it that do not need one another make a batch ([`super::batch`]): some of its kernels take several problems.
    pub batched: bool,
    /// Pairs (input, output): the output may take over the input's storage when the input is not needed again.
    pub in_place: &'static [(usize, usize)],
    /// From the types of the inputs: the one that holds numbers of rows or classes, and how many there are. Larger numbers
    /// mean nothing, and negative ones that there is none.
    pub indexes: fn(&[Ty]) -> Option<(usize, usize)>,
    /// Outputs that hold logarithms of sums: −∞ is the one of a sum without terms, and not a number that got out of hand.
    pub log_sums: &'static [usize],
    /// What a launch costs, from the types of the inputs and of the outputs.
    pub cost: fn(&Attr, &[Ty], &[Ty]) -> Cost,
    /// Bytes that a launch reads and writes, from the types of the inputs and of the outputs: of tables only the rows taken.
    pub traffic: fn(&[Ty], &[Ty]) -> u64,
    /// Scratch bytes a launch needs beside its operands.
    pub workspace: fn(&Attr, &[Ty], &Caps) -> u64,
    /// The CPU kernel.
    pub host: Host,
    /// The CPU kernel takes activations in bf16 as well. Else they are widened into scratch memory, and results rounded.
    pub narrow: bool,
    /// Whether the WGSL kernels take these operands, of which activations are f16. Else those are widened into scratch memory, and
    /// results rounded.
    pub wgsl_half: fn(&Attr, &[Ty], &Caps) -> bool,
    /// The WGSL launches.
    pub wgsl: fn(&Lower) -> Result<Vec<WgslDispatch>>,
    /// The CUDA launches.
    pub cuda: fn(&Lower) -> Result<Vec<CudaLaunch>>,
    /// Which operands a device may keep in 16 bits.
    pub acts: fn(&Attr) -> Acts,
    /// What tests run it on; odd sizes among them.
    pub samples: fn() -> Vec<Sample>,
    /// What benches run it on, at the sizes of a model.
    pub cases: fn(&Sizes) -> Vec<Case>,
}

/// What a node of an op is to the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpRole {
    /// It computes its outputs from its inputs, by launches.
    Compute,
    /// It brings its input, which is off the device, onto it.
    Fetch,
    /// It moves its input off the device.
    Store,
    /// It writes zeros. Its one input only says where: nothing of it is read.
    Clear,
}

impl std::fmt::Debug for OpDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What autograd finds in a row.
#[derive(Clone, Copy)]
pub enum Grad {
    /// Given the node, the gradient of each output (None: nothing depends on it) and which inputs want one,
    /// appends the backward nodes and returns the gradient of each input.
    Rule(GradRule),
    /// The result does not depend on its inputs in a way that is trained through.
    Stop,
    /// Not written: a backward graph through it is an error when it is built.
    Missing,
}

/// Builds backward nodes: (graph, node, gradient of each output, which inputs want one) → gradient of each input.
pub type GradRule = fn(&mut Graph, &Node, &[Option<Val>], &[bool]) -> Result<Vec<Option<Val>>>;

/// What a launch costs, for the planner, the split over submits, and tolerances.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating point operations; a multiplication with its addition counts as two.
    pub flops: u64,
    /// Terms of the longest sum that gives one element of the output: rounding errors grow with it.
    pub terms: usize,
}

/// The operands of a row that are activations: inputs and outputs by number. `infer` speaks of them as f32; a device
/// may keep all of them in 16 bits ([`Caps::compute_dtype`]), and then only all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Acts {
    /// Numbers of the inputs.
    pub ins: &'static [usize],
    /// Numbers of the outputs.
    pub outs: &'static [usize],
}

impl OpDef {
    /// An op that computes: it adds nothing to its result, never works in place, has no scratch memory and no operand in 16 bits. Its facts that no two
    /// ops share (from `infer` on) are refused or do nothing; tests see to it that each row says its own.
    pub const COMPUTE: OpDef = OpDef {
        name: "",
        role: OpRole::Compute,
        infer: |_, _| Err("its row has no rule for types".into()),
        reference: |_, _| Vec::new(),
        grad: Grad::Missing,
        accumulates: false,
        batched: false,
        in_place: &[],
        indexes: |_| None,
        log_sums: &[],
        cost: |_, _, _| Cost::default(),
        traffic: |ins, outs| ins.iter().chain(outs).map(|ty| ty.bytes() as u64).sum(),
        workspace: |_, _, _| 0,
        host: |_| {},
        narrow: false,
        wgsl_half: |_, _, _| false,
        wgsl: |_| Ok(Vec::new()),
        cuda: |_| Ok(Vec::new()),
        acts: |_| Acts::default(),
        samples: Vec::new,
        cases: |_| Vec::new(),
    };

    /// The 16-bit type in which the activations among `ins` are kept, if they are.
    pub fn compute_dtype(&self, attr: &Attr, ins: &[Ty]) -> Option<DType> {
        let first = ins.get(*(self.acts)(attr).ins.first()?)?.dtype;
        matches!(first, DType::BF16 | DType::F16).then_some(first)
    }

    /// `attr` such that a last operand is added to the result, or is not; None if the op cannot, or `attr` is so.
    pub fn accumulating(&self, attr: &Attr, acc: bool) -> Option<Attr> {
        let mut attr = attr.clone();
        let flag = attr.acc().filter(|flag| self.accumulates && **flag != acc)?;
        *flag = acc;
        Some(attr)
    }

    /// Types of the outputs from the types of the inputs; the error says what is wrong with them.
    pub fn types(&self, attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
        let Some(dtype) = self.compute_dtype(attr, ins) else { return (self.infer)(attr, ins) };
        let acts = (self.acts)(attr);
        let mut wide = ins.to_vec();
        for &i in acts.ins.iter().filter(|&&i| i < ins.len()) {
            if ins[i].dtype != dtype {
                return Err(format!("{ins:?}: activations of two types; cast operand {i} to {dtype}"));
            }
            wide[i].dtype = DType::F32;
        }
        let mut outs = (self.infer)(attr, &wide)?;
        for &o in acts.outs {
            if let Some(out) = outs.get_mut(o) {
                out.dtype = dtype;
            }
        }
        Ok(outs)
    }
}

/// What a row's lowering knows.
pub struct Lower<'a> {
    /// The node's attributes.
    pub attr: &'a Attr,
    /// Types of the inputs.
    pub ins: &'a [Ty],
    /// Types of the outputs.
    pub outs: &'a [Ty],
    /// For each output: the input in whose storage it is, if any. WebGPU forbids binding a range twice,
    /// so such a pair is bound once there.
    pub shared: &'a [Option<usize>],
    /// Limits and abilities of the device.
    pub caps: &'a Caps,
}

/// One dispatch of a WGSL entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct WgslDispatch {
    /// File stem in `shaders/`: names the text in the table that `build.rs` made.
    pub shader: &'static str,
    /// Symbols the shader text is preprocessed with (`#if NAME`), in the order its header declares them.
    pub defines: Vec<&'static str>,
    /// Name of the `@compute` function in the shader.
    pub entry: &'static str,
    /// Values of `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
    /// What is bound to @group(0) @binding(0..).
    pub args: Vec<Arg>,
    /// The parameter block, bound as a uniform after the last argument; at most 16 words.
    pub params: Vec<u32>,
    /// Floating point operations, by which a list of launches is split over submits.
    pub flops: u64,
}

/// The macro of kernels that use wgmma: they are compiled for sm_90a.
pub const WGMMA: (&str, i64) = ("WGMMA", 1);

/// A matrix of 16-bit floats as CUDA's tensor copies see it: a parameter of a kernel, encoded when the launch is recorded.
/// Copies bring boxes of 64 columns, with the 128-byte swizzle; what is outside the matrix is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixMap {
    /// Which of the launch's arguments begins with it.
    pub arg: usize,
    /// Its rows.
    pub rows: u32,
    /// Its columns.
    pub cols: u32,
    /// Elements from row to row, a multiple of 8.
    pub ld: u32,
    /// Rows of a box.
    pub height: u32,
}

impl MatrixMap {
    /// Columns of a box: rows of 128 bytes.
    pub const WIDTH: u32 = 64;
}

/// One launch of a CUDA kernel. A kernel's parameters are its pointers, in the order of `args`, then tensor maps, then 32-bit
/// words.
#[derive(Clone, Debug, PartialEq)]
pub struct CudaLaunch {
    /// File stem in `kernels/`: names the file in the table that `build.rs` made.
    pub file: &'static str,
    /// Macros the file is compiled with. One set is one compilation, so they hold what shapes code, not sizes.
    pub defines: Vec<(&'static str, i64)>,
    /// Name of the `extern "C"` kernel in the file.
    pub entry: &'static str,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The kernel's pointers.
    pub args: Vec<Arg>,
    /// The kernel's tensor maps.
    pub maps: Vec<MatrixMap>,
    /// The kernel's 32-bit words, floats by their bits.
    pub params: Vec<u32>,
    /// Floating point operations.
    pub flops: u64,
}

/// Something to bind.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// The whole of the output of this number.
    Out(usize),
    /// The whole of the input of this number.
    In(usize),
    /// A range of bytes of the same.
    OutPart(usize, std::ops::Range<u64>),
    /// A range of bytes of the input of this number.
    InPart(usize, std::ops::Range<u64>),
    /// A range of bytes of the scratch memory.
    Work(std::ops::Range<u64>),
    /// CUDA only: a null pointer, where the kernel has an operand that this launch does without.
    Absent,
}
