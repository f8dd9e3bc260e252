//! Any Vulkan, Metal or DX12 GPU, through wgpu.
//!
//! WebGPU validates usage for whole buffers, not ranges, so all storage is bound read-write and the planner keeps the
//! ranges of a launch apart. Dispatches within a pass are ordered by WebGPU's own rules; this file adds no barriers.
//! No call panics on an error of the device: errors are collected and surface in the next verb that can return one.

mod adapters;
mod clock;
mod pace;
mod record;
mod shaders;
mod transfer;
mod trial;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pollster::block_on;
use wgpu::{BufferDescriptor, BufferUsages, ErrorFilter, Features, Limits};

pub use adapters::{AdapterInfo, adapters, choose};
pub use shaders::{SHADERS, is_checked, richest, shader};

use super::{Backend, Buffer, Caps, HostSlice, Launch, Recording, Slice, Target, Tiling, digest};
use crate::dtype::{ALIGN, DType};
use crate::error::{Error, Result};
use clock::Clock;
use pace::Pace;
use record::{Pipelines, Recorded};
use transfer::Transfer;

/// How long a submit may take before the device is taken for hung.
const PATIENCE: Duration = Duration::from_secs(600);

/// The first error that nobody was there to receive.
type Fault = Arc<Mutex<Option<String>>>;

/// A GPU through WebGPU's interface: Vulkan, Metal or Direct3D 12.
pub struct Wgpu {
    caps: Caps,
    /// Name and version of the driver.
    driver: String,
    gpu: Gpu,
    /// Each with the bytes that were asked for.
    buffers: Vec<Option<(wgpu::Buffer, u64)>>,
    recordings: Vec<Option<Recorded>>,
    pipelines: Pipelines,
    transfer: Transfer,
    /// Made when first used.
    clock: Option<Clock>,
    pace: Pace,
    bytes: u64,
}

/// The device and its queue, and what went wrong on them.
struct Gpu {
    name: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    fault: Fault,
}

impl Gpu {
    fn error(&self, found: impl Into<String>, hint: &str) -> Error {
        Error::device(&self.name, found, hint)
    }

    /// The error that was collected since the last look, if any.
    fn check(&self) -> Result<()> {
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(found) => Err(self.error(found, "if the device was lost, run again with fewer --micro-tokens")),
            None => Ok(()),
        }
    }

    /// Runs `f` and returns what the device objected to in it.
    fn scoped<T>(&self, f: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let result = f();
        let errors = [block_on(validation.pop()), block_on(memory.pop()), block_on(internal.pop())];
        match errors.into_iter().flatten().next() {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }

    /// Waits for a submit, or for everything.
    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.device
            .poll(wgpu::PollType::Wait { submission_index, timeout: Some(PATIENCE) })
            .map_err(|e| self.error(format!("waiting failed: {e}"), "the device may be hung or lost"))?;
        self.check()
    }
}

/// Which limits and optional features a device is asked for.
#[derive(Clone, Debug, Default)]
pub enum Ask {
    /// All that the adapter offers; cooperative matrices, which are experimental in wgpu, where they pass a trial, and not if
    /// `TRIMTAB_WGPU_COOP=0`.
    #[default]
    Adapter,
    /// All that the adapter offers in size, and no optional features: every kernel's plain variant.
    Plain,
    /// What every WebGPU implementation offers (128 MiB bindings, 256 MiB buffers, 8 storage buffers), and no
    /// optional features. What runs under these runs anywhere.
    Defaults,
}

impl Wgpu {
    /// Opens the adapter with this index in [`adapters`]; without one, the best hardware GPU, or, if there is none,
    /// whatever adapter there is.
    pub fn new(index: Option<usize>) -> Result<Wgpu> {
        Wgpu::with(index, Ask::Adapter)
    }

    /// The same with the limits and features that `ask` says; an error if there is no such adapter or it refuses them.
    pub fn with(index: Option<usize>, ask: Ask) -> Result<Wgpu> {
        let adapters = adapters::all();
        let infos: Vec<AdapterInfo> = adapters.iter().map(AdapterInfo::of).collect();
        let index = match index {
            Some(i) => i,
            None => choose(&infos).unwrap_or(0),
        };
        let (Some(adapter), Some(info)) = (adapters.get(index), infos.get(index)) else {
            return Err(Error::device(
                format!("gpu:{index}"),
                match infos.len() {
                    0 => "no Vulkan, Metal or DX12 adapter".into(),
                    n => format!("there are {n} adapters"),
                },
                "install the GPU's driver (`trimtab devices` lists what is seen), or use --device cpu",
            ));
        };
        Wgpu::open(adapter, info, ask)
    }

    fn open(adapter: &wgpu::Adapter, info: &AdapterInfo, ask: Ask) -> Result<Wgpu> {
        let coop = (info.has_coop || info.has_coop16)
            && matches!(ask, Ask::Adapter)
            && std::env::var_os("TRIMTAB_WGPU_COOP").is_none_or(|v| v != "0");
        let useful = Features::SHADER_F16 | Features::SUBGROUP | Features::TIMESTAMP_QUERY;
        let useful = if coop { useful | Features::EXPERIMENTAL_COOPERATIVE_MATRIX } else { useful };
        let (limits, features) = match ask {
            Ask::Adapter => (adapter.limits(), adapter.features() & useful),
            Ask::Plain => (adapter.limits(), Features::empty()),
            Ask::Defaults => (Limits::default(), Features::empty()),
        };
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("trimtab"),
            required_features: features,
            required_limits: limits,
            experimental_features: match coop {
                // SAFETY: what is asked of the user is to expect bugs in wgpu; the kernels stay within its rules.
                true => unsafe { wgpu::ExperimentalFeatures::enabled() },
                false => wgpu::ExperimentalFeatures::disabled(),
            },
            // The planner allocates a few large arenas: the allocator must not round them up.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        });
        let (device, queue) = block_on(request)
            .map_err(|e| Error::device(&info.name, e.to_string(), "the driver may be too old for wgpu"))?;
        let fault = Fault::default();
        let note = |fault: &Fault, what: String| {
            fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        };
        let uncaptured = fault.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&uncaptured, e.to_string())));
        let lost = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&lost, format!("the device was lost: {message}"));
            }
        });
        let limits = device.limits();
        let align = ALIGN as u64;
        if !align.is_multiple_of(u64::from(limits.min_storage_buffer_offset_alignment)) {
            let found = format!("ranges must be aligned to {} bytes", limits.min_storage_buffer_offset_alignment);
            return Err(Error::device(&info.name, found, "256 is the most that WebGPU allows"));
        }
        let features = device.features();
        let caps = Caps {
            device: format!("{} ({})", info.name, info.backend),
            target: Target::Wgsl,
            max_binding: limits.max_storage_buffer_binding_size / align * align,
            max_buffer: limits.max_buffer_size / align * align,
            max_groups: limits.max_compute_workgroups_per_dimension,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_bindings: limits.max_storage_buffers_per_shader_stage,
            // By kernels that compute in f32 and know of f16 how it is stored, which takes no feature of the adapter.
            compute_dtype: Some(DType::F16),
            arch: 0,
            wgmma: false,
            multiprocessors: None,
            memory: None,
            max_flops: u64::MAX,
            f16: features.contains(Features::SHADER_F16),
            subgroup: features.contains(Features::SUBGROUP).then_some(info.subgroup),
            coop: false,
            software: info.software,
            tiling: Tiling::default(),
        };
        let gpu = Gpu { name: caps.device.clone(), device, queue, fault };
        let mut gpu = Wgpu {
            pace: Pace::new(caps.software),
            caps,
            driver: info.driver.clone(),
            gpu,
            buffers: Vec::new(),
            recordings: Vec::new(),
            pipelines: Pipelines::default(),
            transfer: Transfer::new(),
            clock: None,
            bytes: 0,
        };
        if features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            trial::matrices(&mut gpu, info);
        }
        Ok(gpu)
    }

    /// The same device, but saying (and enforcing) that no binding may be larger than this: tests run the paths that
    /// split large operands without large operands.
    pub fn limit_binding(mut self, bytes: u64) -> Wgpu {
        self.caps.max_binding = self.caps.max_binding.min(bytes);
        self
    }

    /// The same device, but saying that it has no subgroup operations: what is left differs in no bit from the plain
    /// variants.
    pub fn without_subgroups(mut self) -> Wgpu {
        self.caps.subgroup = None;
        self
    }

    /// The same device, checking the accesses of every shader.
    pub fn with_checks(mut self) -> Wgpu {
        self.pipelines.check_all = true;
        self
    }

    /// The same device, but with products lowered to other tiles.
    pub fn with_tiling(mut self, tiling: Tiling) -> Wgpu {
        self.caps.tiling = tiling;
        self
    }

    fn allocate(&self, label: &str, bytes: u64, usage: BufferUsages) -> Result<wgpu::Buffer> {
        if bytes > self.caps.max_buffer {
            let found = format!("a buffer of {bytes} bytes for {label}");
            return Err(self.gpu.error(found, &format!("this device's largest is {}", self.caps.max_buffer)));
        }
        let descriptor = BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        self.gpu.scoped(|| self.gpu.device.create_buffer(&descriptor)).map_err(|e| match e {
            wgpu::Error::OutOfMemory { .. } => Error::Memory {
                needed: bytes,
                available: 0,
                hint: format!("{} refused the allocation; set --memory lower, so that the plan fits", self.gpu.name),
            },
            e => self.gpu.error(e.to_string(), "allocation failed"),
        })
    }

    /// The buffer of `slice`, which must be within it.
    fn buffer(&self, slice: Slice) -> Result<&wgpu::Buffer> {
        match self.buffers.get(slice.buffer.0 as usize) {
            Some(Some((b, _))) if slice.offset.checked_add(slice.bytes).is_some_and(|end| end <= b.size()) => Ok(b),
            _ => Err(self.gpu.error(format!("{slice:?} is not within an allocation"), "this is a bug in the plan")),
        }
    }
}

impl Backend for Wgpu {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let buffer = self.allocate("arena", bytes.max(4).next_multiple_of(4), usage)?;
        self.bytes += bytes;
        self.buffers.push(Some((buffer, bytes)));
        Ok(Buffer(self.buffers.len() as u32 - 1))
    }

    fn free(&mut self, buffer: Buffer) {
        if let Some((b, bytes)) = self.buffers.get_mut(buffer.0 as usize).and_then(Option::take) {
            self.bytes -= bytes;
            // What was submitted still finishes; then the memory goes back, whoever still names the buffer.
            b.destroy();
        }
    }

    fn memory(&self) -> u64 {
        self.bytes
    }

    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        self.write(Slice { bytes: src.len() as u64, ..dst }, src)
    }

    fn staging(&mut self, bytes: u64) -> Result<Option<HostSlice>> {
        self.transfer.make_room(bytes);
        Ok(None)
    }

    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        self.read(Slice { bytes: dst.len() as u64, ..src }, dst)
    }

    fn copy(&mut self, dst: Slice, src: Slice) -> Result<()> {
        self.duplicate(dst, src)
    }

    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        let recorded = self.compile(launches)?;
        self.bytes += recorded.bytes();
        self.recordings.push(Some(recorded));
        Ok(Recording(self.recordings.len() as u32 - 1))
    }

    fn replay(&mut self, recording: Recording) -> Result<()> {
        match self.recordings.get(recording.0 as usize) {
            Some(Some(recorded)) => recorded.run(&self.gpu, &mut self.pace),
            _ => Err(self.gpu.error(format!("{recording:?} is not there"), "this is a bug in the executor")),
        }
    }

    fn provenance(&self) -> String {
        let sources = digest(SHADERS.iter().flat_map(|&(stem, symbols, text)| [stem, symbols, text]));
        format!("{}, shaders {sources}", self.driver)
    }

    fn replay_timed(&mut self, recording: Recording) -> Result<Duration> {
        self.sync()?;
        let Some(Some(recorded)) = self.recordings.get(recording.0 as usize) else {
            return Err(self.gpu.error(format!("{recording:?} is not there"), "this is a bug in the executor"));
        };
        match self.gpu.device.features().contains(Features::TIMESTAMP_QUERY) {
            true => {
                let clock = self.clock.get_or_insert_with(|| Clock::new(&self.gpu));
                recorded.run_timed(&self.gpu, &self.pace, clock)
            }
            false => {
                let began = Instant::now();
                recorded.run(&self.gpu, &mut self.pace)?;
                self.sync()?;
                Ok(began.elapsed())
            }
        }
    }

    fn forget(&mut self, recording: Recording) {
        if let Some(r) = self.recordings.get_mut(recording.0 as usize).and_then(Option::take) {
            self.bytes -= r.bytes();
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.pace.clear();
        self.gpu.wait(None)
    }
}
