//! An op with its operands on a device, ready to be run again and again.

use super::operands::stored;
use crate::backend::{Backend, Buffer, Recording, Slice};
use crate::dtype::{ALIGN, Ty, align};
use crate::error::{Error, Result};
use crate::ops::{Case, OpDef, widen};
use crate::plan::{Operands, lower};

/// What is on the device: to be given back with [`Placed::free`].
pub struct Placed {
    buffer: Buffer,
    /// The launches.
    pub recording: Recording,
    /// Where the outputs are.
    pub outs: Vec<Slice>,
    /// Where the inputs are.
    pub ins: Vec<Slice>,
}

/// An op, and what it is run on.
pub struct Work<'a> {
    /// The row.
    pub op: &'static OpDef,
    /// Operands and attributes, and which of them are in one place.
    pub case: &'a Case,
}

impl Work<'_> {
    /// Types of inputs and outputs.
    pub fn types(&self) -> Result<(Vec<Ty>, Vec<Ty>)> {
        let ins: Vec<Ty> = self.case.sample.ins.iter().map(|input| input.ty.clone()).collect();
        let outs = self.op.types(&self.case.sample.attr, &ins).map_err(|found| self.refused(found))?;
        Ok((ins, outs))
    }

    fn refused(&self, found: String) -> Error {
        Error::Graph { op: self.op.name, site: "bench".into(), found }
    }

    /// Floating-point operations.
    pub fn flops(&self) -> Result<u64> {
        let (ins, outs) = self.types()?;
        Ok((self.op.cost)(&self.case.sample.attr, &ins, &outs).flops)
    }

    /// Bytes that it takes on the device.
    pub fn room(&self, device: &dyn Backend) -> Result<u64> {
        let (ins, outs) = self.types()?;
        let work = widen::scratch(self.op, &self.case.sample.attr, &ins, device.caps());
        let alone =
            outs.iter().enumerate().filter(|(o, _)| self.case.shared.iter().all(|s| s.1 != *o)).map(|(_, ty)| ty);
        let rooms: u64 = ins.iter().chain(alone).map(|ty| align(ty.bytes()) as u64).sum();
        Ok(rooms + work.next_multiple_of(ALIGN as u64))
    }

    /// Places it, with its inputs filled.
    pub fn place(&self, device: &mut dyn Backend) -> Result<Placed> {
        let (ins, outs) = self.types()?;
        let buffer = device.alloc(self.room(device)?)?;
        let placed = self.record(device, buffer, &ins, &outs);
        if placed.is_err() {
            device.free(buffer);
        }
        placed
    }

    fn record(&self, device: &mut dyn Backend, buffer: Buffer, ins: &[Ty], outs: &[Ty]) -> Result<Placed> {
        let attr = &self.case.sample.attr;
        let work = widen::scratch(self.op, attr, ins, device.caps());
        let mut end = 0;
        let mut room = |bytes: u64| {
            let slice = Slice { buffer, offset: end, bytes };
            end += bytes.next_multiple_of(ALIGN as u64);
            slice
        };
        let in_slices: Vec<Slice> = ins.iter().map(|ty| room(ty.bytes() as u64)).collect();
        let out_slices = outs.iter().enumerate().map(|(o, ty)| match self.case.shared.iter().find(|s| s.1 == o) {
            Some(&(i, _)) => in_slices[i],
            None => room(ty.bytes() as u64),
        });
        let out_slices: Vec<Slice> = out_slices.collect();
        let work = (work > 0).then(|| room(work));
        let operands = stored(self.op.name, &self.case.sample).map_err(|found| self.refused(found))?;
        for (slice, bytes) in in_slices.iter().zip(operands) {
            device.upload(Slice { bytes: bytes.len() as u64, ..*slice }, &bytes)?;
        }
        let at = Operands { outs: out_slices.clone(), ins: in_slices.clone(), work };
        let launches = lower(self.op, "bench", attr, ins, outs, &at, device.caps())?;
        let recording = device.record(&launches)?;
        Ok(Placed { buffer, recording, outs: out_slices, ins: in_slices })
    }
}

impl Placed {
    /// Gives the memory back.
    pub fn free(self, device: &mut dyn Backend) {
        device.forget(self.recording);
        device.free(self.buffer);
    }
}
