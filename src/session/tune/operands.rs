//! The operands of a batch, on scratch memory that is laid out as its plan's is.

use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};

use crate::backend::{Backend, Buffer, Launch, Slice};
use crate::cpu::philox::philox;
use crate::dtype::{ALIGN, DType, Nf4Layout, Ty};
use crate::error::Result;
use crate::plan::{Place, Variants};

/// How much of each output is compared: sums in another order show in the first tiles.
const COMPARED: u64 = 4 << 20;

/// Numbers that are drawn, to be repeated. Odd, so that rows of a matrix differ.
const DRAWN: usize = (1 << 16) + 1;

/// How often they are repeated in what is uploaded at a time, so that it is whole words of any type.
const TIMES: usize = 16;

/// Memory for the operands of a batch.
pub struct Scratch {
    /// By the number of the plan's buffer: ranges that are used of it, each an allocation.
    rooms: BTreeMap<u32, Vec<(Range<u64>, Buffer)>>,
    reads: Vec<(Slice, Ty)>,
    writes: Vec<Slice>,
}

impl Scratch {
    /// Allocates it, or nothing.
    pub fn new(backend: &mut dyn Backend, batch: &Variants) -> Result<Scratch> {
        let slice =
            |place: &Place| Slice { buffer: Buffer(place.buffer as u32), offset: place.offset, bytes: place.bytes };
        let reads: Vec<(Slice, Ty)> = batch.reads.iter().map(|(place, ty)| (slice(place), ty.clone())).collect();
        let writes: Vec<Slice> = batch.writes.iter().map(slice).collect();
        let args = batch.ways.iter().flat_map(|(_, launches)| launches).flat_map(|launch| &launch.args);
        let mut scratch = Scratch { rooms: BTreeMap::new(), reads: Vec::new(), writes: Vec::new() };
        for (buffer, ranges) in apart(args.chain(reads.iter().map(|(read, _)| read)).chain(&writes)) {
            for range in ranges {
                match backend.alloc(range.end - range.start) {
                    Ok(room) => scratch.rooms.entry(buffer).or_default().push((range, room)),
                    Err(error) => {
                        scratch.free(backend);
                        return Err(error);
                    }
                }
            }
        }
        scratch.reads = reads.into_iter().map(|(read, ty)| (scratch.at(read), ty)).collect();
        scratch.writes = writes.into_iter().map(|write| scratch.at(write)).collect();
        Ok(scratch)
    }

    /// Gives the memory back.
    pub fn free(self, backend: &mut dyn Backend) {
        self.rooms.into_values().flatten().for_each(|(_, room)| backend.free(room));
    }

    /// Where a range of the plan's is.
    fn at(&self, slice: Slice) -> Slice {
        let is_in = |range: &Range<u64>| range.start <= slice.offset && slice.offset + slice.bytes <= range.end;
        let mut rooms = self.rooms.get(&slice.buffer.0).into_iter().flatten();
        match rooms.find(|(range, _)| slice.bytes > 0 && is_in(range)) {
            Some((range, room)) => Slice { buffer: *room, offset: slice.offset - range.start, ..slice },
            // An operand that a kernel does without: nothing of any buffer.
            None => {
                let any = self.rooms.values().flatten().next().map_or(slice.buffer, |(_, room)| *room);
                Slice { buffer: any, offset: 0, bytes: 0 }
            }
        }
    }

    /// Launches of the plan, on this memory.
    pub fn bound(&self, launches: &[Launch]) -> Vec<Launch> {
        let mut launches = launches.to_vec();
        launches.iter_mut().flat_map(|launch| &mut launch.args).for_each(|arg| *arg = self.at(*arg));
        launches
    }

    /// Writes zeros to what of the outputs is compared, then what is read: of floats `numbers`, and zeros for integers, which
    /// are fine as numbers of rows and classes. Without `all`, only what a launch may have written over.
    pub fn fill(&self, backend: &mut dyn Backend, numbers: &[f32], all: bool) -> Result<()> {
        for write in &self.writes {
            let bytes = write.bytes.min(COMPARED);
            backend.upload(Slice { bytes, ..*write }, &vec![0; bytes as usize])?;
        }
        let meets = |a: &Slice, b: &Slice| {
            a.buffer == b.buffer && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
        };
        for (read, ty) in self.reads.iter().filter(|(read, _)| all || self.writes.iter().any(|w| meets(w, read))) {
            for (part, bytes) in parts(ty, numbers) {
                for start in part.clone().step_by(bytes.len()) {
                    let piece = &bytes[..bytes.len().min(part.end - start)];
                    let to = Slice { offset: read.offset + start as u64, bytes: piece.len() as u64, ..*read };
                    backend.upload(to, piece)?;
                }
            }
        }
        Ok(())
    }

    /// What of the outputs is compared.
    pub fn written(&self, backend: &mut dyn Backend) -> Result<Vec<Vec<u8>>> {
        let read = |write: &Slice| {
            let bytes = write.bytes.min(COMPARED);
            let mut found = vec![0; bytes as usize];
            backend.download(Slice { bytes, ..*write }, &mut found).map(|()| found)
        };
        self.writes.iter().map(read).collect()
    }
}

/// The bytes of each buffer that `slices` name, in ranges that begin and end where allocations do, and do not meet.
fn apart<'a>(slices: impl Iterator<Item = &'a Slice>) -> BTreeMap<u32, Vec<Range<u64>>> {
    const STEP: u64 = ALIGN as u64;
    let mut all: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
    for slice in slices.filter(|slice| slice.bytes > 0) {
        let range = slice.offset / STEP * STEP..(slice.offset + slice.bytes).next_multiple_of(STEP);
        all.entry(slice.buffer.0).or_default().push(range);
    }
    for ranges in all.values_mut() {
        ranges.sort_by_key(|range| range.start);
        let mut apart: Vec<Range<u64>> = Vec::new();
        for range in ranges.drain(..) {
            match apart.last_mut() {
                Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                _ => apart.push(range),
            }
        }
        *ranges = apart;
    }
    all
}

/// Standard normal numbers (Box and Muller 1958).
pub fn drawn() -> Vec<f32> {
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let one = |i: usize| {
        let [u, v, ..] = philox([i as u32, 0, 0, 0], [0, 0]);
        ((-2.0 * unit(u).ln()).sqrt() * (std::f64::consts::TAU * unit(v)).cos()) as f32
    };
    (0..DRAWN).map(one).collect()
}

/// The parts of a value of type `ty`, each with the bytes that are repeated in it.
fn parts(ty: &Ty, numbers: &[f32]) -> Vec<(Range<usize>, Vec<u8>)> {
    fn each<const N: usize>(numbers: &[f32], of: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        numbers.iter().flat_map(|&x| of(x)).collect::<Vec<u8>>().repeat(TIMES)
    }
    let whole = 0..ty.bytes();
    // Of the fraction.
    let noise = || each(numbers, |x| [(x.to_bits() >> 3) as u8]);
    let scales = || each(numbers, |x| x.abs().to_le_bytes());
    match ty.dtype {
        DType::F32 => vec![(whole, each(numbers, f32::to_le_bytes))],
        DType::BF16 => vec![(whole, each(numbers, |x| bf16::from_f32(x).to_le_bytes()))],
        DType::F16 => vec![(whole, each(numbers, |x| f16::from_f32(x).to_le_bytes()))],
        DType::Nf4 | DType::Nf4Dq => {
            let double = ty.dtype == DType::Nf4Dq;
            let layout = Nf4Layout::new(ty.len(), double);
            let absmax = if double { noise() } else { scales() };
            vec![(layout.codes, noise()), (layout.absmax, absmax), (layout.nested, scales()), (layout.offset, scales())]
        }
        DType::I32 | DType::U32 => vec![(whole, vec![0; 4 * DRAWN])],
    }
}
