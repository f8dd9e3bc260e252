//! NVIDIA GPUs, through CUDA's driver and NVRTC, both loaded when first needed: the same binary works without them.
//!
//! Kernels run on one stream, in the order of the plan, replayed as CUDA graphs; copies have a stream of their own.

mod blas;
mod cache;
mod clock;
mod compile;
mod driver;
mod kernels;
mod nvrtc;
mod owned;
mod record;
mod self_test;
mod tensor;
mod transfer;

use std::ffi::c_int;
use std::time::{Duration, Instant};

use cudarc::driver::{result, sys};

pub use cache::{compiled, folder};
pub use compile::{Compiled, NVRTC_PATH, Output, compile, options, source, version};
pub use driver::{CardInfo, cards, start, usable};
pub use kernels::{KERNELS, embedded, kernel, macros};

use super::{Backend, Buffer, Caps, HostSlice, Launch, Point, Recording, Slice, Target, Tiling, digest};
use crate::dtype::DType;
use crate::error::{Error, Result};
use clock::Event;
use driver::fail;
use owned::Stream;
use record::{Modules, Recorded};
use transfer::Transfer;

/// FLOPs of a launch for each multiprocessor: the slowest, without tensor cores, does them in half a second, and systems end
/// what takes two on a card with a display.
const LAUNCH_FLOPS: u64 = 50_000_000_000;

/// What a card of compute capability `arch` (as in `sm_80`) offers, whatever its size.
pub fn caps(device: String, arch: u32) -> Caps {
    Caps {
        device,
        target: Target::Cuda,
        max_binding: u64::MAX,
        max_buffer: u64::MAX,
        // A grid's y and z; x may be longer.
        max_groups: 65_535,
        // What a block may ask for (CUDA C++ Programming Guide, "Compute Capabilities").
        workgroup_memory: match arch {
            75 => 64 << 10,
            80 | 87 => 163 << 10,
            86 | 89 | 120 | 121 => 99 << 10,
            _ => 227 << 10,
        },
        max_invocations: 1024,
        max_bindings: u32::MAX,
        f16: true,
        compute_dtype: Some(if arch >= 80 { DType::BF16 } else { DType::F16 }),
        arch,
        // Of 9.x there is only 9.0; a stand-in for the driver calls itself 9.1, so that it is given PTX.
        wgmma: arch / 10 == 9,
        multiprocessors: None,
        memory: None,
        max_flops: LAUNCH_FLOPS * 108,
        subgroup: Some((32, 32)),
        coop: false,
        software: false,
        tiling: Tiling::default(),
    }
}

/// The card that `--device auto` takes: the first that has kernels, in the binary or by their compiler.
pub fn choose() -> Option<usize> {
    let ready = |card: &CardInfo| usable(card) && (embedded(card.arch) || version().is_ok());
    cards().ok()?.iter().position(ready)
}

/// An NVIDIA card: a stream that computes and one for transfers.
pub struct Cuda {
    caps: Caps,
    compute: Stream,
    /// Address and bytes of each allocation.
    buffers: Vec<Option<(u64, u64)>>,
    recordings: Vec<Option<Recorded>>,
    modules: Modules,
    transfer: Transfer,
    bytes: u64,
    /// Last, so that it is dropped last.
    context: Context,
}

/// The card's primary context, kept open.
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Context {
    fn open(index: usize) -> Result<Context> {
        let open = || {
            let device = result::device::get(index as c_int)?;
            // SAFETY: a device from `device::get`; released when dropped.
            let handle = unsafe { result::primary_ctx::retain(device)? };
            Ok(Context { device, handle })
        };
        open().map_err(|e| fail("opening the card", e))
    }

    /// Makes it current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is open.
        unsafe { result::ctx::set_current(self.handle) }.map_err(|e| fail("entering the card's context", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

// SAFETY: the driver's handles may be used from any thread; every verb makes the context current on its own first.
unsafe impl Send for Cuda {}

impl Cuda {
    /// Opens card `index` of [`cards`], or the first that has kernels.
    pub fn new(index: Option<usize>) -> Result<Cuda> {
        let cards = cards()?;
        let index = index.or_else(|| cards.iter().position(usable)).unwrap_or(0);
        let Some(card) = cards.get(index) else {
            let hint = "`trimtab devices` lists what there is; or use --device wgpu or cpu";
            return Err(Error::device(format!("cuda:{index}"), format!("{} cards", cards.len()), hint));
        };
        if !usable(card) {
            let hint = "kernels need sm_75 (Turing) or newer; use --device wgpu or cpu";
            return Err(Error::device(&card.name, format!("sm_{}", card.arch), hint));
        }
        let mut caps = caps(format!("{} (CUDA, sm_{})", card.name, card.arch), card.arch);
        caps.workgroup_memory = caps.workgroup_memory.min(card.shared);
        caps.max_buffer = card.memory;
        caps.multiprocessors = Some(card.multiprocessors);
        caps.memory = Some(card.memory);
        caps.max_flops = LAUNCH_FLOPS * u64::from(card.multiprocessors.max(1));
        let context = Context::open(index)?;
        context.enter()?;
        let (compute, transfer) = (Stream::new()?, Transfer::new()?);
        let mut cuda = Cuda {
            caps,
            context,
            compute,
            buffers: Vec::new(),
            recordings: Vec::new(),
            modules: Modules::default(),
            transfer,
            bytes: 0,
        };
        if let Some(why) = self_test::refused(&mut cuda)? {
            cuda.caps.wgmma = false;
            cuda.caps.device += &format!(", its wgmma is not used: {why}");
        }
        Ok(cuda)
    }

    /// The address of `slice`, which must be within an allocation.
    fn address(&self, slice: Slice) -> Result<u64> {
        let buffer = self.buffers.get(slice.buffer.0 as usize).copied().flatten();
        match (buffer, slice.offset.checked_add(slice.bytes)) {
            (Some((base, bytes)), Some(end)) if end <= bytes => Ok(base + slice.offset),
            _ => Err(Error::device(
                "cuda",
                format!("{slice:?} is not within an allocation"),
                "this is a bug in the plan",
            )),
        }
    }

    /// What the driver says it allocated for `buffer`, in bytes.
    pub fn allocated(&self, buffer: Buffer) -> Result<u64> {
        self.context.enter()?;
        let address = self.address(Slice { buffer, offset: 0, bytes: 0 })?;
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: an address that the driver gave; it writes two integers.
        unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, address) }
            .result()
            .map_err(|e| fail("asking for an allocation", e))?;
        Ok(bytes as u64)
    }
}

impl Backend for Cuda {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        self.context.enter()?;
        // SAFETY: allocates; freed by `free` or when dropped. The driver gives nothing for zero bytes.
        let address = unsafe { result::malloc_sync(bytes.max(4) as usize) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory {
                needed: bytes,
                available: result::mem_get_info().map_or(0, |(free, _)| free as u64),
                hint: format!("{} has no more free memory; other programs may hold some", self.caps.device),
            },
            _ => fail("allocating", e),
        })?;
        self.bytes += bytes;
        self.buffers.push(Some((address, bytes)));
        // SAFETY: the range was allocated above.
        unsafe { result::memset_d8_async(address, 0, bytes.max(4) as usize, self.compute.get()) }
            .map_err(|e| fail("clearing memory", e))?;
        Ok(Buffer(self.buffers.len() as u32 - 1))
    }

    fn free(&mut self, buffer: Buffer) {
        if let Some((address, bytes)) = self.buffers.get_mut(buffer.0 as usize).and_then(Option::take) {
            self.bytes -= bytes;
            // SAFETY: allocated by `alloc`, forgotten just now; the driver waits for what still uses it.
            let _ = self.context.enter().map(|()| unsafe { result::free_sync(address) });
        }
    }

    fn memory(&self) -> u64 {
        self.bytes
    }

    fn free_memory(&self) -> Option<u64> {
        self.context.enter().ok()?;
        result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        self.context.enter()?;
        self.write(Slice { bytes: src.len() as u64, ..dst }, src)
    }

    fn point(&mut self) -> Result<Point> {
        self.context.enter()?;
        self.transfer.point(self.compute.get())
    }

    fn upload_after(&mut self, point: Point, dst: Slice, src: &[u8]) -> Result<()> {
        self.context.enter()?;
        self.write_after(point, Slice { bytes: src.len() as u64, ..dst }, src)
    }

    fn staging(&mut self, bytes: u64) -> Result<Option<HostSlice>> {
        self.context.enter()?;
        self.transfer.pin(bytes as usize)
    }

    fn settle(&mut self, memory: HostSlice) -> Result<()> {
        self.context.enter()?;
        self.transfer.settle(memory)
    }

    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        self.context.enter()?;
        self.read(Slice { bytes: dst.len() as u64, ..src }, dst)
    }

    unsafe fn download_into(&mut self, src: Slice, dst: HostSlice) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller gives the range.
        unsafe { self.read_into(Slice { bytes: dst.bytes as u64, ..src }, dst) }
    }

    fn copy(&mut self, dst: Slice, src: Slice) -> Result<()> {
        self.context.enter()?;
        let bytes = dst.bytes.min(src.bytes);
        let (to, from) = (self.address(dst)?, self.address(src)?);
        // SAFETY: both ranges are within allocations.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.compute.get()) }
            .map_err(|e| fail("copying", e))
    }

    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        self.context.enter()?;
        let recorded = self.capture(launches)?;
        self.recordings.push(Some(recorded));
        Ok(Recording(self.recordings.len() as u32 - 1))
    }

    fn replay(&mut self, recording: Recording) -> Result<()> {
        self.context.enter()?;
        match self.recordings.get(recording.0 as usize) {
            Some(Some(recorded)) => recorded.run(self.compute.get()),
            _ => Err(Error::device("cuda", format!("{recording:?} is not there"), "this is a bug in the executor")),
        }
    }

    fn provenance(&self) -> String {
        let driver = start().unwrap_or(0);
        let compiler = version().map_or("no NVRTC".into(), |(major, minor)| format!("NVRTC {major}.{minor}"));
        let sources = digest(KERNELS.iter().flat_map(|&(name, text)| [name, text]));
        format!("CUDA {}.{}, {compiler}, kernels {sources}", driver / 1000, driver % 1000 / 10)
    }

    fn replay_timed(&mut self, recording: Recording) -> Result<Duration> {
        self.sync()?;
        if !Event::usable() {
            let began = Instant::now();
            self.replay(recording)?;
            self.sync()?;
            return Ok(began.elapsed());
        }
        let (began, ended) = (Event::new()?, Event::new()?);
        began.record(self.compute.get())?;
        self.replay(recording)?;
        ended.record(self.compute.get())?;
        self.sync()?;
        ended.since(&began)
    }

    fn library_product(&mut self, n: usize, dtype: DType, at: [Slice; 3]) -> Result<Option<Duration>> {
        self.sync()?;
        if !blas::usable() {
            return Ok(None);
        }
        let bytes = dtype.bytes(n * n) as u64;
        let mut places = [0; 3];
        for (place, slice) in places.iter_mut().zip(at) {
            *place = self.address(Slice { bytes, ..slice })?;
        }
        let workspace = self.alloc(blas::WORKSPACE)?;
        let begins = self.address(Slice { buffer: workspace, offset: 0, bytes: blas::WORKSPACE })?;
        // SAFETY: as many bytes are there at each, and the stream is the only one with work.
        let took = unsafe { blas::product(self.compute.get(), n, dtype, places, begins) };
        self.free(workspace);
        took
    }

    fn forget(&mut self, recording: Recording) {
        let _ = self.context.enter();
        if let Some(slot) = self.recordings.get_mut(recording.0 as usize) {
            *slot = None;
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.compute.get()) }.map_err(|e| fail("waiting", e))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What failed before fails again here, and nothing can be done about it.
        let _ = self.sync();
        self.recordings.clear();
        self.modules.unload();
        for (address, _) in self.buffers.drain(..).flatten() {
            // SAFETY: allocated by `alloc` and not freed since.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}
