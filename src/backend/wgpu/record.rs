//! A list of launches, compiled and bound once, and run as often as wanted.

use std::collections::HashMap;
use std::time::Duration;

use wgpu::{
    BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry,
    BindingResource, BindingType, BufferBinding, BufferBindingType, BufferUsages, CommandEncoder,
    ComputePassDescriptor, ComputePassTimestampWrites, ComputePipeline, ComputePipelineDescriptor,
    PipelineCompilationOptions, PipelineLayout, PipelineLayoutDescriptor, ShaderModule, ShaderModuleDescriptor,
    ShaderRuntimeChecks, ShaderSource, ShaderStages, SubmissionIndex,
};

use super::clock::Clock;
use super::pace::Pace;
use super::{Gpu, Wgpu, is_checked, richest, shader};
use crate::backend::{Caps, Kernel, Launch, params};
use crate::dtype::ALIGN;
use crate::error::Result;
use crate::graph::op::WgslDispatch;

/// Most words in a parameter block.
const PARAM_WORDS: usize = 16;

/// A recorded launch.
struct Step {
    pipeline: ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 3],
    work: f64,
}

pub struct Recorded {
    steps: Vec<Step>,
    params: Option<wgpu::Buffer>,
}

/// A pipeline's key: shader, symbols, entry point, the constants as bits, and what is bound: storage buffers, and
/// whether parameters follow.
type Key = (&'static str, Vec<&'static str>, &'static str, Vec<(&'static str, u64)>, (usize, bool));

/// What was compiled so far. Plans repeat the same few pipelines for every layer.
#[derive(Default)]
pub struct Pipelines {
    modules: HashMap<(&'static str, Vec<&'static str>), ShaderModule>,
    pipelines: HashMap<Key, ComputePipeline>,
    /// By number of storage buffers, and whether parameters follow.
    layouts: HashMap<(usize, bool), (BindGroupLayout, PipelineLayout)>,
    /// Accesses of all shaders are checked, also of those that do without ([`is_checked`]).
    pub check_all: bool,
}

/// What a launch is reckoned to take, in floating-point operations: a byte of its operands counts as a few, so that
/// kernels that only move memory count too.
fn work(launch: &Launch) -> f64 {
    launch.flops as f64 + 4.0 * launch.args.iter().map(|a| a.bytes as f64).sum::<f64>()
}

impl Pipelines {
    fn layout(&mut self, gpu: &Gpu, storage: usize, params: bool) -> (BindGroupLayout, PipelineLayout) {
        let make = || {
            let entry = |binding: usize, ty: BufferBindingType| BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: ShaderStages::COMPUTE,
                ty: BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            };
            let mut entries: Vec<_> =
                (0..storage).map(|i| entry(i, BufferBindingType::Storage { read_only: false })).collect();
            if params {
                entries.push(entry(storage, BufferBindingType::Uniform));
            }
            let group =
                gpu.device.create_bind_group_layout(&BindGroupLayoutDescriptor { label: None, entries: &entries });
            let pipeline = gpu.device.create_pipeline_layout(&PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            (group, pipeline)
        };
        self.layouts.entry((storage, params)).or_insert_with(make).clone()
    }

    /// The pipeline of a launch; compiled if it is new.
    fn get(&mut self, gpu: &Gpu, caps: &Caps, launch: &Launch) -> Result<ComputePipeline> {
        let Kernel::Wgsl(WgslDispatch { shader: stem, defines, entry, constants, .. }) = &launch.kernel else {
            return Err(gpu.error(format!("{} is no WGSL kernel", launch.name), "this is a bug in the lowering"));
        };
        let bits = constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let bound = (launch.args.len(), !launch.params().is_empty());
        let defines = richest(stem, defines, entry, caps);
        let key: Key = (stem, defines.clone(), entry, bits, bound);
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let what = || format!("{}: shader {stem} {defines:?} entry {entry}", launch.name);
        let (_, layout) = self.layout(gpu, bound.0, bound.1);
        let module = match self.modules.get(&(*stem, defines.clone())) {
            Some(module) => module.clone(),
            None => {
                let Some(text) = shader(stem, &defines) else {
                    return Err(gpu.error(what(), "there is no such variant: declare it in the shader's header"));
                };
                let descriptor = ShaderModuleDescriptor { label: Some(stem), source: ShaderSource::Wgsl(text.into()) };
                let bounds_checks = self.check_all || is_checked(stem);
                let checks =
                    ShaderRuntimeChecks { bounds_checks, force_loop_bounding: false, ..ShaderRuntimeChecks::checked() };
                let module = gpu
                    // SAFETY: the texts are this crate's own and every loop in them counts up to a bound; accesses
                    // are still checked, unless they keep within bounds by themselves.
                    .scoped(|| unsafe { gpu.device.create_shader_module_trusted(descriptor, checks) })
                    .map_err(|e| gpu.error(format!("{}: {e}", what()), "this is a bug in the shader"))?;
                self.modules.entry((*stem, defines.clone())).or_insert(module).clone()
            }
        };
        let descriptor = ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: PipelineCompilationOptions {
                constants,
                // Every kernel writes what it reads of it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        };
        let pipeline = gpu.scoped(|| gpu.device.create_compute_pipeline(&descriptor)).map_err(|e| {
            gpu.error(format!("{} with {constants:?}: {e}", what()), "the driver's compiler refused it")
        })?;
        Ok(self.pipelines.entry(key).or_insert(pipeline).clone())
    }
}

impl Wgpu {
    /// What must hold of a launch before it is bound; the messages name it.
    fn verify(&self, launch: &Launch) -> Result<()> {
        let bug = |found: String| Err(self.gpu.error(format!("{}: {found}", launch.name), "this is a bug in the plan"));
        let Kernel::Wgsl(WgslDispatch { grid, params, .. }) = &launch.kernel else {
            return bug("no WGSL kernel".into());
        };
        if grid.iter().any(|&g| g > self.caps.max_groups) {
            return bug(format!("a grid of {grid:?}; {} along an axis is the most", self.caps.max_groups));
        }
        if launch.args.len() > self.caps.max_bindings as usize {
            return bug(format!("{} storage buffers; {} is the most", launch.args.len(), self.caps.max_bindings));
        }
        if params.len() > PARAM_WORDS {
            return bug(format!("{} words of parameters; {PARAM_WORDS} is the most", params.len()));
        }
        for (i, a) in launch.args.iter().enumerate() {
            if a.bytes == 0 {
                return bug(format!("operand {i} is empty"));
            }
            if a.bytes > self.caps.max_binding {
                return bug(format!("operand {i} has {} bytes; {} is the most", a.bytes, self.caps.max_binding));
            }
            if !a.offset.is_multiple_of(ALIGN as u64) {
                return bug(format!("operand {i} begins at {}, no multiple of {ALIGN}", a.offset));
            }
            self.buffer(*a)?;
            for (j, b) in launch.args[..i].iter().enumerate() {
                if a.buffer == b.buffer && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes {
                    return bug(format!("operands {j} and {i} overlap"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn compile(&mut self, launches: &[Launch]) -> Result<Recorded> {
        self.gpu.check()?;
        let (offsets, blocks) = params::place(launches);
        let params = if blocks.is_empty() {
            None
        } else {
            let bytes = (blocks.len() * ALIGN) as u64;
            let buffer = self.allocate("parameters", bytes, BufferUsages::UNIFORM | BufferUsages::COPY_DST)?;
            let mut words = vec![0u32; blocks.len() * ALIGN / 4];
            for (room, block) in words.chunks_mut(ALIGN / 4).zip(blocks) {
                let n = block.len().min(PARAM_WORDS);
                room[..n].copy_from_slice(&block[..n]);
            }
            self.gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
            Some(buffer)
        };
        let mut steps = Vec::with_capacity(launches.len());
        for (launch, offset) in launches.iter().zip(offsets) {
            self.verify(launch)?;
            let Kernel::Wgsl(WgslDispatch { grid, .. }) = launch.kernel else { continue };
            if grid.contains(&0) {
                continue;
            }
            let pipeline = self.pipelines.get(&self.gpu, &self.caps, launch)?;
            let (layout, _) = self.pipelines.layout(&self.gpu, launch.args.len(), offset.is_some());
            let mut entries = Vec::with_capacity(launch.args.len() + 1);
            for a in &launch.args {
                let buffer = self.buffer(*a)?;
                // Ranges are bound in whole words.
                let bytes = a.bytes.next_multiple_of(4).min(buffer.size() - a.offset);
                entries.push((buffer, a.offset, bytes));
            }
            if let (Some(offset), Some(buffer)) = (offset, &params) {
                entries.push((buffer, offset, (PARAM_WORDS * 4) as u64));
            }
            let entries: Vec<BindGroupEntry> = entries
                .into_iter()
                .enumerate()
                .map(|(i, (buffer, offset, bytes))| BindGroupEntry {
                    binding: i as u32,
                    resource: BindingResource::Buffer(BufferBinding {
                        buffer,
                        offset,
                        size: std::num::NonZeroU64::new(bytes),
                    }),
                })
                .collect();
            let descriptor = BindGroupDescriptor { label: Some(&launch.name), layout: &layout, entries: &entries };
            let group = self
                .gpu
                .scoped(|| self.gpu.device.create_bind_group(&descriptor))
                .map_err(|e| self.gpu.error(format!("{}: {e}", launch.name), "binding failed"))?;
            steps.push(Step { pipeline, group, grid, work: work(launch) });
        }
        self.gpu.check()?;
        Ok(Recorded { steps, params })
    }
}

impl Recorded {
    pub fn bytes(&self) -> u64 {
        self.params.as_ref().map_or(0, |p| p.size())
    }

    /// Submits all launches in order, so many at a time as the pace allows.
    pub fn run(&self, gpu: &Gpu, pace: &mut Pace) -> Result<()> {
        let mut rest = self.steps.as_slice();
        while !rest.is_empty() {
            let (now, work) = first(rest, pace.budget());
            let index = submit(gpu, now, None, |_| {});
            pace.submitted(gpu, index, work)?;
            rest = &rest[now.len()..];
        }
        gpu.check()
    }

    /// The same, each submit waited for; the sum of their times by the device's clock.
    pub fn run_timed(&self, gpu: &Gpu, pace: &Pace, clock: &Clock) -> Result<Duration> {
        let mut ticks = 0;
        let mut rest = self.steps.as_slice();
        while !rest.is_empty() {
            let (now, _) = first(rest, pace.budget());
            submit(gpu, now, Some(clock.writes()), |encoder| clock.resolve(encoder));
            ticks += clock.read(gpu)?;
            rest = &rest[now.len()..];
        }
        gpu.check()?;
        Ok(Duration::from_nanos((ticks as f64 * f64::from(gpu.queue.get_timestamp_period())) as u64))
    }
}

/// The steps that go into the next submit, at least one, and their work.
fn first(steps: &[Step], budget: f64) -> (&[Step], f64) {
    let (mut work, mut n) = (0.0, 0);
    while n < steps.len() && (n == 0 || work + steps[n].work <= budget) {
        work += steps[n].work;
        n += 1;
    }
    (&steps[..n], work)
}

/// One pass of these steps; `after` appends to its commands.
fn submit(
    gpu: &Gpu,
    steps: &[Step],
    timestamp_writes: Option<ComputePassTimestampWrites>,
    after: impl FnOnce(&mut CommandEncoder),
) -> SubmissionIndex {
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor { label: None, timestamp_writes });
        for step in steps {
            let [x, y, z] = step.grid;
            pass.set_pipeline(&step.pipeline);
            pass.set_bind_group(0, &step.group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
    }
    after(&mut encoder);
    gpu.queue.submit([encoder.finish()])
}
