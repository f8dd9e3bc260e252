//! From a row of the op table to launches of a device.

use std::sync::Arc;

use super::batch::merge;
use crate::backend::{Buffer, Caps, HostSlice, Kernel, Launch, Slice, Target};
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::ops::{Arg, Attr, CudaLaunch, HostCall, Lower, OpDef, WgslDispatch, widen};

/// Where the operands of one node are.
#[derive(Clone, Debug)]
pub struct Operands {
    /// Memory of the outputs.
    pub outs: Vec<Slice>,
    /// Memory of the inputs.
    pub ins: Vec<Slice>,
    /// The scratch memory that the row's `workspace` asked for, if any.
    pub work: Option<Slice>,
}

impl Operands {
    /// For each output: the input that is in exactly the same place.
    fn shared(&self) -> Vec<Option<usize>> {
        self.outs.iter().map(|o| self.ins.iter().position(|i| i == o)).collect()
    }
}

/// The launches that compute `op` on the device with `caps`.
pub fn lower(
    op: &'static OpDef,
    site: &str,
    attr: &Attr,
    ins: &[Ty],
    outs: &[Ty],
    at: &Operands,
    caps: &Caps,
) -> Result<Vec<Launch>> {
    Ok(merge(vec![lower_alone(op, site, attr, ins, outs, at, caps)?], caps))
}

/// The same, each launch with one problem, whatever its kernel takes.
pub(super) fn lower_alone(
    op: &'static OpDef,
    site: &str,
    attr: &Attr,
    ins: &[Ty],
    outs: &[Ty],
    at: &Operands,
    caps: &Caps,
) -> Result<Vec<Launch>> {
    let name = format!("{site}:{}", op.name);
    let flops = (op.cost)(attr, ins, outs).flops;
    if let Some(dtype) = op.compute_dtype(attr, ins)
        && caps.compute_dtype != Some(dtype)
    {
        let hint = "use --dtype f32 with this device";
        return Err(Error::device(&caps.device, format!("{name}: activations in {dtype}"), hint));
    }
    match caps.target {
        Target::Null => Ok(vec![Launch { name, kernel: Kernel::Nothing, args: Vec::new(), flops }]),
        Target::Host => {
            let (attr, ins, outs) = (attr.clone(), ins.to_vec(), outs.to_vec());
            let f = move |args: &[HostSlice]| widen::host(op, &HostCall { attr: &attr, ins: &ins, outs: &outs, args });
            let args = at.outs.iter().chain(&at.ins).chain(&at.work).copied().collect();
            Ok(vec![Launch { name, kernel: Kernel::Host(Arc::new(f)), args, flops }])
        }
        Target::Wgsl => {
            let shared = at.shared();
            let dispatches = widen::wgsl(op, &Lower { attr, ins, outs, shared: &shared, caps })?;
            let launch = |mut dispatch: WgslDispatch| {
                let args = places(std::mem::take(&mut dispatch.args), at, &name)?;
                let (name, flops) = (format!("{name}/{}", dispatch.entry), dispatch.flops);
                Ok(Launch { name, kernel: Kernel::Wgsl(dispatch), args, flops })
            };
            dispatches.into_iter().map(launch).collect()
        }
        Target::Cuda => {
            let shared = at.shared();
            let launches = (op.cuda)(&Lower { attr, ins, outs, shared: &shared, caps })?;
            let launch = |mut launch: CudaLaunch| {
                let args = places(std::mem::take(&mut launch.args), at, &name)?;
                let (name, flops) = (format!("{name}/{}", launch.entry), launch.flops);
                Ok(Launch { name, kernel: Kernel::Cuda(launch), args, flops })
            };
            launches.into_iter().map(launch).collect()
        }
    }
}

fn places(args: Vec<Arg>, at: &Operands, name: &str) -> Result<Vec<Slice>> {
    args.iter().map(|arg| place(arg, at, name)).collect()
}

fn place(arg: &Arg, at: &Operands, name: &str) -> Result<Slice> {
    let (whole, part) = match arg {
        Arg::Out(i) => return Ok(at.outs[*i]),
        Arg::In(i) => return Ok(at.ins[*i]),
        Arg::Absent => return Ok(Slice { buffer: Buffer(0), offset: 0, bytes: 0 }),
        Arg::OutPart(i, r) => (at.outs[*i], r),
        Arg::InPart(i, r) => (at.ins[*i], r),
        Arg::Work(r) => match at.work {
            Some(w) => (w, r),
            None => return Err(Error::device(name, "no scratch memory was planned", "this is a bug in the op's row")),
        },
    };
    if part.start > part.end || part.end > whole.bytes {
        let found = format!("bytes {part:?} of an operand of {} bytes", whole.bytes);
        return Err(Error::device(name, found, "this is a bug in the op's lowering"));
    }
    Ok(Slice { buffer: whole.buffer, offset: whole.offset + part.start, bytes: part.end - part.start })
}
