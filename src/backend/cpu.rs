//! The CPU as a device: memory is this process's, a launch is a function call.

mod pages;

use super::{Backend, Buffer, Caps, HostFn, HostSlice, Kernel, Launch, Recording, Slice, Target, Tiling};
use crate::cpu::isa::Isa;
use crate::cpu::par;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::system;
use pages::Pages;

type Call = (HostFn, Vec<HostSlice>);

/// Bytes that a thread copies at a time.
const COPIED: usize = 1 << 20;

/// The processor this program runs on; its buffers are pages of this process's memory.
pub struct Cpu {
    caps: Caps,
    blocks: Vec<Option<Pages>>,
    recordings: Vec<Option<Vec<Call>>>,
    bytes: u64,
}

impl Cpu {
    /// [`Cpu::new`], once the settings of the environment are known to make sense.
    pub fn open() -> Result<Cpu> {
        Isa::checked().map(|_| Cpu::new())
    }

    /// The backend for the best instruction set that the processor has.
    pub fn new() -> Cpu {
        let caps = Caps {
            device: format!("cpu ({} threads, {})", rayon::current_num_threads(), Isa::best().name()),
            target: Target::Host,
            max_binding: u64::MAX,
            max_buffer: u64::MAX,
            max_groups: u32::MAX,
            workgroup_memory: 0,
            max_invocations: 0,
            max_bindings: u32::MAX,
            f16: false,
            compute_dtype: Some(DType::BF16),
            arch: 0,
            wgmma: false,
            multiprocessors: None,
            memory: None,
            max_flops: u64::MAX,
            subgroup: None,
            coop: false,
            software: false,
            tiling: Tiling::default(),
        };
        Cpu { caps, blocks: Vec::new(), recordings: Vec::new(), bytes: 0 }
    }

    fn resolve(&self, slice: Slice) -> Result<HostSlice> {
        let block = self.blocks.get(slice.buffer.0 as usize).and_then(|b| b.as_ref());
        match block {
            Some(b) if slice.offset + slice.bytes <= b.bytes() => Ok(HostSlice {
                // SAFETY: the range is within the block, checked on the line above.
                ptr: unsafe { b.start().add(slice.offset as usize) },
                bytes: slice.bytes as usize,
            }),
            _ => {
                Err(Error::device("cpu", format!("{slice:?} is not within an allocation"), "this is a bug in the plan"))
            }
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl Backend for Cpu {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        let block = Pages::new(bytes).ok_or_else(|| Error::Memory {
            needed: bytes,
            available: 0,
            hint: "the system refused the allocation; use a smaller model, --quantize nf4, or fewer --micro-tokens"
                .into(),
        })?;
        self.bytes += bytes;
        self.blocks.push(Some(block));
        Ok(Buffer(self.blocks.len() as u32 - 1))
    }

    fn free(&mut self, buffer: Buffer) {
        if let Some(block) = self.blocks[buffer.0 as usize].take() {
            self.bytes -= block.bytes();
        }
    }

    fn memory(&self) -> u64 {
        self.bytes
    }

    fn free_memory(&self) -> Option<u64> {
        system::free_memory()
    }

    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        let to = self.resolve(Slice { bytes: src.len() as u64, ..dst })?;
        // In parallel, since it may be the first time that the pages are touched, which the system has to clear then.
        par::ranges(src.len(), COPIED, |part| {
            let src = &src[part.clone()];
            // SAFETY: `to` is in an allocation of ours and `src` is borrowed elsewhere, so they cannot overlap; nor do parts.
            unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to.at(part.start), src.len()) };
        });
        Ok(())
    }

    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        let from = self.resolve(Slice { bytes: dst.len() as u64, ..src })?;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from.ptr, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn copy(&mut self, dst: Slice, src: Slice) -> Result<()> {
        let (to, from) = (self.resolve(dst)?, self.resolve(src)?);
        // SAFETY: both ranges are in allocations of ours; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from.ptr, to.ptr, from.bytes.min(to.bytes)) };
        Ok(())
    }

    fn host(&mut self, slice: Slice) -> Result<Option<HostSlice>> {
        self.resolve(slice).map(Some)
    }

    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        let mut calls = Vec::with_capacity(launches.len());
        for launch in launches {
            let Kernel::Host(f) = &launch.kernel else {
                return Err(Error::device(
                    "cpu",
                    format!("{} is no CPU kernel", launch.name),
                    "this is a bug in the lowering",
                ));
            };
            let args = launch.args.iter().map(|&s| self.resolve(s)).collect::<Result<Vec<_>>>()?;
            calls.push((f.clone(), args));
        }
        self.recordings.push(Some(calls));
        Ok(Recording(self.recordings.len() as u32 - 1))
    }

    fn replay(&mut self, recording: Recording) -> Result<()> {
        let calls = &self.recordings[recording.0 as usize];
        // On a thread of the pool: from any other one, each call that goes parallel would have to wake a thread and to
        // sleep until it is done.
        rayon::scope(|_| {
            for (f, args) in calls.iter().flatten() {
                f(args);
            }
        });
        Ok(())
    }

    fn forget(&mut self, recording: Recording) {
        self.recordings[recording.0 as usize] = None;
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
