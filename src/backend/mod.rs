//! What a device must be able to do: a dozen verbs about bytes and launches. A backend knows no ops, no graphs and
//! no models; what it launches was lowered from the op table by `plan`.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod null;
pub mod params;
pub mod profile;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::sync::Arc;
use std::time::Duration;

use crate::dtype::DType;
#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
use crate::error::Error;
use crate::error::Result;
use crate::graph::op::{CudaLaunch, WgslDispatch};
use crate::system::Instant;

pub use crate::device::{Caps, Device, HostSlice, Target, Tiling};

/// An allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub u32);

/// A range of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// The allocation.
    pub buffer: Buffer,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// A CPU kernel with its attributes bound; called with the launch's memory, in the order of [`Launch::args`].
pub type HostFn = Arc<dyn Fn(&[HostSlice]) + Send + Sync>;

/// What is launched, as the op's row gave it; its `args` went to the launch, each now a range of memory.
#[derive(Clone)]
pub enum Kernel {
    /// A CPU kernel.
    Host(HostFn),
    /// A compute shader's dispatch.
    Wgsl(WgslDispatch),
    /// A CUDA kernel's launch.
    Cuda(CudaLaunch),
    /// For the null backend.
    Nothing,
}

/// A kernel and the memory it runs on.
#[derive(Clone)]
pub struct Launch {
    /// Op and site, for profiles and errors.
    pub name: String,
    /// What runs.
    pub kernel: Kernel,
    /// The memory it is bound to, in the kernel's order.
    pub args: Vec<Slice>,
    /// Floating point operations, by the row's cost.
    pub flops: u64,
}

impl Launch {
    /// The parameter block, as words.
    pub fn params(&self) -> &[u32] {
        match &self.kernel {
            Kernel::Wgsl(dispatch) => &dispatch.params,
            Kernel::Cuda(launch) => &launch.params,
            Kernel::Host(_) | Kernel::Nothing => &[],
        }
    }
}

/// A recorded list of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recording(pub u32);

/// A point in what was submitted to a device, between two launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point(pub u32);

/// A device.
pub trait Backend: Send {
    /// Limits and abilities of the device.
    fn caps(&self) -> &Caps;
    /// `bytes` of zeros, aligned to [`crate::dtype::ALIGN`].
    fn alloc(&mut self, bytes: u64) -> Result<Buffer>;
    /// Gives an allocation back; nothing may use it any more.
    fn free(&mut self, buffer: Buffer);
    /// Bytes now allocated through `alloc`.
    fn memory(&self) -> u64;
    /// Bytes that may still be allocated, where the device can tell; other programs take some and give some back.
    fn free_memory(&self) -> Option<u64> {
        None
    }
    /// Writes `src` from the start of `dst` on; what was submitted before still sees the old bytes.
    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()>;
    /// The point after all that was submitted so far, for one [`upload_after`](Self::upload_after).
    fn point(&mut self) -> Result<Point> {
        Ok(Point::default())
    }
    /// Writes as [`upload`](Self::upload) does, but waits for what was submitted before `point` only: the caller knows that
    /// nothing submitted since touches `dst`. Where a device copies beside its kernels, those may run meanwhile. `src` may be
    /// of [`staging`](Self::staging) memory, and is then read after this returns.
    fn upload_after(&mut self, point: Point, dst: Slice, src: &[u8]) -> Result<()> {
        let _ = point;
        self.upload(dst, src)
    }
    /// `bytes` of this process's memory that the device copies from without passing through other memory, freed with the
    /// backend. None where any memory is as good, or no more of this kind is to be had; that there will be transfers of so many
    /// bytes is then known all the same.
    fn staging(&mut self, bytes: u64) -> Result<Option<HostSlice>> {
        let _ = bytes;
        Ok(None)
    }
    /// Starts to read `src` into as many bytes at `dst`: what was submitted before is seen, and what is submitted later may
    /// write `src` anew. [`settle`](Self::settle) waits for the end. Where a device cannot copy beside this process, or not to
    /// there, it is over when this returns.
    ///
    /// # Safety
    /// Until it has been waited for, `dst` must be valid and nothing else may read or write it.
    unsafe fn download_into(&mut self, src: Slice, dst: HostSlice) -> Result<()> {
        // SAFETY: the caller gives the range.
        self.download(src, unsafe { std::slice::from_raw_parts_mut(dst.ptr, dst.bytes) })
    }
    /// Waits until no [`upload_after`](Self::upload_after) reads `memory` any more and no
    /// [`download_into`](Self::download_into) writes it, so that it may be touched.
    fn settle(&mut self, memory: HostSlice) -> Result<()> {
        let _ = memory;
        Ok(())
    }
    /// Waits for the work that writes `src`.
    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()>;
    /// Copies `src` to `dst`, two ranges of one length, in the order of submission.
    fn copy(&mut self, dst: Slice, src: Slice) -> Result<()>;
    /// Where `slice` is in this process's memory, if the device's memory is that.
    fn host(&mut self, slice: Slice) -> Result<Option<HostSlice>> {
        let _ = slice;
        Ok(None)
    }
    /// Compiles and binds a list of launches once, so that replaying it allocates nothing.
    fn record(&mut self, launches: &[Launch]) -> Result<Recording>;
    /// Runs a recorded list in order, after everything submitted before.
    fn replay(&mut self, recording: Recording) -> Result<()>;
    /// Runs a recorded list, waits for it, and says how long it took: by the device's own clock where it has one, which
    /// knows nothing of the time until the device begins and until this process hears of the end.
    fn replay_timed(&mut self, recording: Recording) -> Result<Duration> {
        self.sync()?;
        let began = Instant::now();
        self.replay(recording)?;
        self.sync()?;
        Ok(began.elapsed())
    }
    /// What the times of launches depend on beside [`Caps`]: versions of the driver and the compiler, a digest of the kernels.
    fn provenance(&self) -> String {
        String::new()
    }
    /// How long the library of the device's maker takes for y = x·wᵀ of [n, n] matrices of `dtype`, given [y, x, w], by the
    /// device's own clock: what kernels are judged beside. None where there is no such library, or it cannot.
    fn library_product(&mut self, n: usize, dtype: DType, at: [Slice; 3]) -> Result<Option<Duration>> {
        let _ = (n, dtype, at);
        Ok(None)
    }
    /// Drops a recorded list and what it holds on the device.
    fn forget(&mut self, recording: Recording);
    /// Waits for all submitted work; an error of the device surfaces here at the latest.
    fn sync(&mut self) -> Result<()>;
}

/// Bytes that recording `launches` allocates on a device with `caps`, for parameter blocks.
pub fn recording_bytes(launches: &[Launch], caps: &Caps) -> u64 {
    match caps.target {
        Target::Wgsl => params::bytes(launches),
        Target::Host | Target::Null | Target::Cuda => 0,
    }
}

/// A digest of the sources of kernels.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn digest<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Opens the device that the setting names.
pub fn open(device: &Device) -> Result<Box<dyn Backend>> {
    match device {
        Device::Cpu => Ok(Box::new(cpu::Cpu::open()?)),
        Device::Null => Ok(Box::new(null::Null::new())),
        #[cfg(feature = "wgpu")]
        Device::Wgpu(index) => Ok(Box::new(wgpu::Wgpu::new(*index)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => Ok(Box::new(cuda::Cuda::new(*index)?)),
        Device::Auto => open(&auto()),
        #[cfg(not(all(feature = "cuda", feature = "wgpu")))]
        other => Err(Error::unsupported(
            format!("the device {other}"),
            "this program was built without it: build it with `--features cuda,wgpu`, or use --device cpu",
        )),
    }
}

/// What the driver of a device says it is, where it says anything; `caps` are of the device that `device` opened.
pub fn driver(device: &Device, caps: &Caps) -> Option<String> {
    let _ = device;
    match caps.target {
        #[cfg(feature = "wgpu")]
        Target::Wgsl => {
            let index = match device {
                Device::Wgpu(Some(index)) => Some(*index),
                _ => wgpu::choose(&wgpu::adapters()),
            };
            wgpu::adapters().get(index.unwrap_or(0)).map(|adapter| adapter.driver.clone()).filter(|d| !d.is_empty())
        }
        #[cfg(feature = "cuda")]
        Target::Cuda => {
            let version = |v: i32| format!("CUDA {}.{}", v / 1000, v % 1000 / 10);
            let compiler = cuda::version().map(|(major, minor)| format!(", NVRTC {major}.{minor}")).unwrap_or_default();
            cuda::start().ok().map(|v| format!("{}{compiler}", version(v)))
        }
        _ => None,
    }
}

/// What `auto` takes: a CUDA card if there is one and its compiler, else a hardware GPU, else the CPU.
fn auto() -> Device {
    #[cfg(feature = "cuda")]
    if let Some(index) = cuda::choose() {
        return Device::Cuda(Some(index));
    }
    #[cfg(feature = "wgpu")]
    if let Some(index) = wgpu::choose(&wgpu::adapters()) {
        return Device::Wgpu(Some(index));
    }
    Device::Cpu
}
