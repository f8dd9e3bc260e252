//! Activations in 16 bits: what runs the rows whose kernel knows f32 only, on the CPU (bf16) and by WGSL (f16). Their operands
//! are widened into scratch memory, and the results rounded. A row's [`OpDef::narrow`] says that its CPU kernel needs none of
//! this, and [`OpDef::wgsl_half`] for which operands those of WGSL need none.

mod wgsl;

use std::ops::Range;

use half::bf16;

use crate::cpu::act::convert;
use crate::device::{Caps, HostSlice, Target};
use crate::dtype::{DType, Ty, align};

use crate::ops::{Attr, HostCall, OpDef};

/// A CPU kernel that is generic over the type of activations, as a row has it: `by_act!(host_rope)`.
macro_rules! by_act {
    ($kernel:ident) => {
        |call| match crate::ops::widen::in_bf16(call) {
            true => $kernel::<half::bf16>(call),
            false => $kernel::<f32>(call),
        }
    };
}
pub(super) use by_act;
pub use wgsl::wgsl;

/// Whether activations are in bf16, in a row whose first input is one.
pub fn in_bf16(call: &HostCall) -> bool {
    call.ins[0].dtype == DType::BF16
}

/// A row's operands as its kernel sees them if it knows f32 only.
struct Wide {
    ins: Vec<Ty>,
    outs: Vec<Ty>,
    /// Where in the scratch memory each operand is, outputs first; None: where it is anyway.
    parts: Vec<Option<Range<usize>>>,
    /// The kernel's own scratch memory begins after them.
    work: usize,
}

impl Wide {
    /// None: the kernel takes the operands as they are on a device with `caps`.
    fn on(op: &OpDef, attr: &Attr, ins: &[Ty], caps: &Caps) -> Option<Wide> {
        let takes = match caps.target {
            Target::Host => op.narrow,
            Target::Wgsl => (op.wgsl_half)(attr, ins, caps),
            Target::Cuda | Target::Null => true,
        };
        Wide::new(op, attr, ins, takes)
    }

    /// None if the kernel takes the operands as they are, or they are all wide.
    fn new(op: &OpDef, attr: &Attr, ins: &[Ty], takes: bool) -> Option<Wide> {
        let dtype = op.compute_dtype(attr, ins).filter(|_| !takes)?;
        let (acts, mut end) = ((op.acts)(attr), 0);
        let mut part = |ty: &mut Ty, is: bool| {
            (is && ty.dtype == dtype).then(|| {
                ty.dtype = DType::F32;
                let start = end;
                end += align(ty.bytes());
                start..start + ty.bytes()
            })
        };
        let (mut ins, mut outs) = (ins.to_vec(), op.types(attr, ins).ok()?);
        let mut parts: Vec<_> = outs.iter_mut().enumerate().map(|(o, ty)| part(ty, acts.outs.contains(&o))).collect();
        parts.extend(ins.iter_mut().enumerate().map(|(i, ty)| part(ty, acts.ins.contains(&i))));
        Some(Wide { ins, outs, parts, work: end })
    }
}

/// Scratch bytes that a launch of `op` needs.
pub fn scratch(op: &OpDef, attr: &Attr, ins: &[Ty], caps: &Caps) -> u64 {
    match Wide::on(op, attr, ins, caps) {
        Some(wide) => wide.work as u64 + (op.workspace)(attr, &wide.ins, caps),
        None => (op.workspace)(attr, ins, caps),
    }
}

/// Runs the CPU kernel of `op`.
pub fn host(op: &OpDef, call: &HostCall) {
    let Some(wide) = Wide::new(op, call.attr, call.ins, op.narrow) else { return (op.host)(call) };
    let operands = wide.parts.len();
    let Some(scratch) = call.args.get(operands) else { return };
    let place = |(i, at): (usize, &HostSlice)| match &wide.parts[i] {
        // SAFETY: the scratch memory was planned by [`scratch`] for all parts.
        Some(part) => HostSlice { ptr: unsafe { scratch.ptr.add(part.start) }, bytes: part.len() },
        None => *at,
    };
    let mut args: Vec<HostSlice> = call.args[..operands].iter().enumerate().map(place).collect();
    if scratch.bytes > wide.work {
        // SAFETY: as above.
        args.push(HostSlice { ptr: unsafe { scratch.ptr.add(wide.work) }, bytes: scratch.bytes - wide.work });
    }
    let inner = HostCall { attr: call.attr, ins: &wide.ins, outs: &wide.outs, args: &args };
    for (i, ty) in wide.ins.iter().enumerate() {
        if wide.parts[call.outs.len() + i].is_some() {
            // SAFETY: the part holds as many f32, and nothing else refers to it yet.
            let to = unsafe { std::slice::from_raw_parts_mut(inner.input_ptr::<f32>(i).0, ty.len()) };
            convert(to, &call.input::<bf16>(i)[..ty.len()]);
        }
    }
    (op.host)(&inner);
    for (o, ty) in wide.outs.iter().enumerate() {
        if wide.parts[o].is_some() {
            convert(&mut call.output::<bf16>(o)[..ty.len()], inner.output::<f32>(o));
        }
    }
}
