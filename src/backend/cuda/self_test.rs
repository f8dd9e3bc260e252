//! Small launches by wgmma when a card is opened. What tensor copies, descriptors, swizzles and fragments are is known from manuals: a
//! card that gives anything else than the exact results of whole numbers keeps to mma.sync, and says so in its name.

mod attention;
mod products;

use super::Cuda;
use crate::backend::{Backend, Buffer, Kernel, Launch, Slice};
use crate::error::Result;
use crate::graph::op::CudaLaunch;

/// `TRIMTAB_WGMMA=0` turns wgmma off, untried.
const SWITCH: &str = "TRIMTAB_WGMMA";

/// Why a card that has wgmma does not use it, if it does not.
pub fn refused(card: &mut Cuda) -> Result<Option<String>> {
    if !card.caps.wgmma {
        return Ok(None);
    }
    if std::env::var_os(SWITCH).is_some_and(|v| v == "0") {
        return Ok(Some(format!("{SWITCH}=0")));
    }
    if !super::embedded(card.caps.arch) && super::version().is_err() {
        return Ok(Some("there is no compiler to try it".into()));
    }
    let agrees = products::agree(card)? && attention::agrees(card)?;
    Ok((!agrees).then(|| "it failed the test at the start".into()))
}

/// An argument of a launch: what is in it, or the bytes that come out.
enum Operand {
    In(Vec<u8>),
    Out(usize),
    Absent,
}

/// What comes out of a launch with these arguments.
fn run(card: &mut Cuda, launch: CudaLaunch, operands: &[Operand]) -> Result<Vec<Vec<u8>>> {
    let mut args = Vec::new();
    for operand in operands {
        let bytes = match operand {
            Operand::In(bytes) => bytes.len() as u64,
            Operand::Out(bytes) => *bytes as u64,
            Operand::Absent => 0,
        };
        // Of an argument without bytes no address is passed on.
        let absent = Slice { buffer: Buffer(0), offset: 0, bytes: 0 };
        args.push(if bytes == 0 { absent } else { Slice { buffer: card.alloc(bytes)?, offset: 0, bytes } });
        if let (Operand::In(content), Some(&arg)) = (operand, args.last()) {
            card.upload(arg, content)?;
        }
    }
    let name = format!("{}: self-test", launch.entry);
    let recording =
        card.record(&[Launch { name, flops: launch.flops, kernel: Kernel::Cuda(launch), args: args.clone() }])?;
    card.replay(recording)?;
    let mut outs = Vec::new();
    for (operand, &arg) in operands.iter().zip(&args) {
        if let Operand::Out(bytes) = operand {
            let mut out = vec![0; *bytes];
            card.download(arg, &mut out)?;
            outs.push(out);
        }
    }
    card.forget(recording);
    args.iter().filter(|arg| arg.bytes > 0).for_each(|arg| card.free(arg.buffer));
    Ok(outs)
}

/// A whole number that bf16 has, from -4 to 4.
fn element(i: usize) -> f32 {
    (i * 7 % 9) as f32 - 4.0
}

fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
}
