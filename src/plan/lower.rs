//! From a row of the op table to launches of a device.

use std::sync::Arc;

use crate::backend::{Buffer, Caps, HostSlice, Kernel, Launch, Slice, Target};
use crate::dtype::Ty;
use crate::error::{Error, Result};
use crate::ops::{Arg, Attr, HostCall, Lower, OpDef};

/// Where the operands of one node lie.
#[derive(Clone, Debug)]
pub struct Operands {
    pub outs: Vec<Slice>,
    pub ins: Vec<Slice>,
    /// The scratch memory that the row's `workspace` asked for, if any.
    pub work: Option<Slice>,
}

impl Operands {
    /// For each output: the input that lies in exactly the same place.
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
    let name = format!("{site}:{}", op.name);
    let flops = (op.cost)(attr, ins, outs).flops;
    if let Some(dtype) = op.compute_dtype(attr, ins)
        && caps.compute_dtype != Some(dtype)
    {
        let hint = "use --dtype f32 with this device";
        return Err(Error::device(&caps.device, format!("{name}: activations in {dtype}"), hint));
    }
    match caps.target {
        Target::Null => Ok(vec![Launch { name, kernel: Kernel::Nothing, args: Vec::new(), params: Vec::new(), flops }]),
        Target::Host => {
            let (attr, ins, outs) = (attr.clone(), ins.to_vec(), outs.to_vec());
            let host = op.host;
            let f = move |args: &[HostSlice]| host(&HostCall { attr: &attr, ins: &ins, outs: &outs, args });
            let args = at.outs.iter().chain(&at.ins).chain(&at.work).copied().collect();
            Ok(vec![Launch { name, kernel: Kernel::Host(Arc::new(f)), args, params: Vec::new(), flops }])
        }
        Target::Wgsl => {
            let shared = at.shared();
            let dispatches = (op.wgsl)(&Lower { attr, ins, outs, shared: &shared, caps })?;
            dispatches
                .into_iter()
                .map(|d| {
                    let args = d.args.iter().map(|a| place(a, at, &name)).collect::<Result<Vec<_>>>()?;
                    Ok(Launch {
                        name: format!("{name}/{}", d.entry),
                        kernel: Kernel::Wgsl {
                            shader: d.shader,
                            defines: d.defines,
                            entry: d.entry,
                            constants: d.constants,
                            grid: d.grid,
                        },
                        args,
                        params: d.params,
                        flops: d.flops,
                    })
                })
                .collect()
        }
        Target::Cuda => {
            let shared = at.shared();
            let launches = (op.cuda)(&Lower { attr, ins, outs, shared: &shared, caps })?;
            launches
                .into_iter()
                .map(|c| {
                    let args = c.args.iter().map(|a| place(a, at, &name)).collect::<Result<Vec<_>>>()?;
                    let (file, defines, entry, grid) = (c.file, c.defines, c.entry, c.grid);
                    Ok(Launch {
                        name: format!("{name}/{entry}"),
                        kernel: Kernel::Cuda { file, defines, entry, grid, block: c.block, shared: c.shared },
                        args,
                        params: c.params,
                        flops: c.flops,
                    })
                })
                .collect()
        }
    }
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
