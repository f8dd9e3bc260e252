//! A list of launches as a CUDA graph: compiled and captured once, replayed with one call.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult as Code};
use rayon::prelude::*;

use super::cache::compiled;
use super::compile::Output;
use super::driver::{fail, said};
use super::kernels::cubin;
use super::tensor::{self, Encoded};
use super::{Cuda, compile};
use crate::backend::{Kernel, Launch};
use crate::error::{Error, Result};
use crate::graph::op::{CudaLaunch, MatrixMap};

/// Dynamic shared memory that a kernel has without asking.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// A file of `kernels/` and the macros it was compiled with.
type Unit = (&'static str, Vec<(&'static str, i64)>);

/// What was compiled and loaded so far. Plans repeat the same few kernels for every layer.
#[derive(Default)]
pub struct Modules {
    modules: HashMap<Unit, sys::CUmodule>,
    functions: HashMap<(Unit, &'static str), sys::CUfunction>,
}

impl Modules {
    /// Compiles what `launches` need and is not there, on all cores, and loads it.
    pub fn load(&mut self, launches: &[Launch], arch: u32) -> Result<()> {
        let mut missing: Vec<Unit> = Vec::new();
        for launch in launches {
            let Kernel::Cuda(CudaLaunch { file, defines, .. }) = &launch.kernel else {
                return Err(bug(launch, "no CUDA kernel".into()));
            };
            let unit = (*file, defines.clone());
            if !self.modules.contains_key(&unit) && !missing.contains(&unit) {
                missing.push(unit);
            }
        }
        let (mut code, mut unknown) = (Vec::new(), Vec::new());
        for unit in missing {
            match cubin(unit.0, &unit.1, arch) {
                Some(machine_code) => code.push((unit, machine_code.to_vec())),
                None => unknown.push(unit),
            }
        }
        let (arch, output) = match unknown.is_empty() {
            true => (arch, Output::Cubin),
            false => compile::target(arch)?,
        };
        let fresh = unknown
            .into_par_iter()
            .map(|unit| compiled(unit.0, &unit.1, arch, output).map(|c| (unit, c.code)))
            .collect::<Result<Vec<_>>>()?;
        code.extend(fresh);
        for (unit, mut image) in code {
            if output == Output::Ptx {
                image.push(0);
            }
            // SAFETY: an image that NVRTC made: machine code, which knows its length, or text that ends in a zero.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            let module = module.map_err(|e| {
                let what = format!("loading kernels/{}.cu", unit.0);
                let hint = "a driver older than the compiler does that: update the driver, or name an older NVRTC";
                match e.0 {
                    Code::CUDA_ERROR_INVALID_IMAGE
                    | Code::CUDA_ERROR_INVALID_PTX
                    | Code::CUDA_ERROR_NO_BINARY_FOR_GPU
                    | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::device("cuda", said(&what, e), hint),
                    _ => fail(&what, e),
                }
            })?;
            self.modules.insert(unit, module);
        }
        Ok(())
    }

    /// The function of a launch whose module is loaded.
    fn function(&mut self, launch: &Launch) -> Result<sys::CUfunction> {
        let Kernel::Cuda(CudaLaunch { file, defines, entry, shared, .. }) = &launch.kernel else {
            return Err(bug(launch, "no CUDA kernel".into()));
        };
        let unit = (*file, defines.clone());
        let Some(&module) = self.modules.get(&unit) else {
            return Err(bug(launch, "its module is not loaded".into()));
        };
        let function = match self.functions.get(&(unit.clone(), *entry)) {
            Some(&function) => function,
            None => {
                let name = CString::new(*entry).map_err(|e| bug(launch, e.to_string()))?;
                // SAFETY: a loaded module.
                let found = unsafe { result::module::get_function(module, name) };
                let function = found.map_err(|e| fail(&format!("looking for {entry} in kernels/{file}.cu"), e))?;
                self.functions.insert((unit, entry), function);
                function
            }
        };
        // Equal counts too: a kernel's static shared memory comes on top.
        if *shared >= SHARED_BY_DEFAULT {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let set = unsafe { result::function::set_function_attribute(function, attribute, *shared as i32) };
            set.map_err(|e| fail(&format!("{}: {shared} bytes of shared memory", launch.name), e))?;
        }
        Ok(function)
    }

    /// Unloads everything; no kernel may be running.
    pub fn unload(&mut self) {
        self.functions.clear();
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded by `load` and unloaded only here.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

fn bug(launch: &Launch, found: String) -> Error {
    Error::device("cuda", format!("{}: {found}", launch.name), "this is a bug in the op's lowering")
}

/// A launch's tensor maps, of the matrices at these addresses.
fn maps(launch: &Launch, pointers: &[u64]) -> Result<Vec<Encoded>> {
    let Kernel::Cuda(CudaLaunch { maps, .. }) = &launch.kernel else {
        return Err(bug(launch, "no CUDA kernel".into()));
    };
    let encode = |map: &MatrixMap| match pointers.get(map.arg) {
        Some(&address) => tensor::encode(map, address, &launch.name),
        None => Err(bug(launch, format!("{map:?} of no argument"))),
    };
    maps.iter().map(encode).collect()
}

/// A recorded list; `None` if it has no launches.
pub struct Recorded(Option<sys::CUgraphExec>);

impl Recorded {
    pub fn run(&self, stream: sys::CUstream) -> Result<()> {
        let Some(graph) = self.0 else { return Ok(()) };
        // SAFETY: the graph lives as long as this value, and what it points to as long as the plan's buffers, which
        // the executor frees after its recordings.
        unsafe { result::graph::launch(graph, stream) }.map_err(|e| fail("replaying", e))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if let Some(graph) = self.0.take() {
            // SAFETY: made by `capture` and destroyed only here; a graph that still runs is freed after its run.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }
}

impl Cuda {
    /// Compiles `launches` and captures them into a graph.
    pub(super) fn capture(&mut self, launches: &[Launch]) -> Result<Recorded> {
        if launches.is_empty() {
            return Ok(Recorded(None));
        }
        self.modules.load(launches, self.caps.arch)?;
        let mut calls = Vec::with_capacity(launches.len());
        for launch in launches {
            let pointers = self.pointers(launch)?;
            calls.push((self.modules.function(launch)?, maps(launch, &pointers)?, pointers));
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and captures nothing yet.
        unsafe { result::stream::begin_capture(self.compute.get(), mode) }.map_err(|e| fail("recording", e))?;
        let mut outcome = Ok(());
        for (launch, (function, maps, pointers)) in launches.iter().zip(&mut calls) {
            outcome = self.call(launch, *function, pointers, maps);
            if outcome.is_err() {
                break;
            }
        }
        // SAFETY: capturing began above. It is ended whatever happened, or the stream could not be used again.
        let graph = unsafe { result::stream::end_capture(self.compute.get()) };
        // A launch that was refused names the cause; that the capture failed too does not.
        let exec = match (outcome, graph) {
            (Ok(()), graph) => {
                let graph = graph.map_err(|e| fail("recording", e))?;
                // SAFETY: a captured graph; it is not needed once instantiated.
                unsafe {
                    let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                    let _ = result::graph::destroy(graph);
                    exec.map_err(|e| fail("instantiating a graph", e))?
                }
            }
            (Err(refused), graph) => {
                // SAFETY: a captured graph that nothing uses.
                let _ = graph.map(|graph| unsafe { result::graph::destroy(graph) });
                return Err(refused);
            }
        };
        let recorded = Recorded(Some(exec));
        if let Some(exec) = recorded.0 {
            // SAFETY: graph and stream live. Uploading now keeps the first step from paying for it.
            unsafe { result::graph::upload(exec, self.compute.get()) }.map_err(|e| fail("uploading a graph", e))?;
        }
        Ok(recorded)
    }

    /// The addresses of a launch's operands.
    fn pointers(&self, launch: &Launch) -> Result<Vec<u64>> {
        launch
            .args
            .iter()
            .map(|&arg| match arg.bytes {
                0 => Ok(0),
                _ => self.address(arg),
            })
            .collect()
    }

    fn call(
        &self,
        launch: &Launch,
        function: sys::CUfunction,
        pointers: &mut [u64],
        maps: &mut [Encoded],
    ) -> Result<()> {
        let Kernel::Cuda(CudaLaunch { grid, block, shared, params: words, .. }) = &launch.kernel else {
            return Err(bug(launch, "no CUDA kernel".into()));
        };
        if grid.contains(&0) {
            return Ok(());
        }
        let mut words = words.clone();
        let mut params: Vec<*mut c_void> = pointers.iter_mut().map(|p| (p as *mut u64).cast()).collect();
        params.extend(maps.iter_mut().map(|m| (m as *mut Encoded).cast::<c_void>()));
        params.extend(words.iter_mut().map(|w| (w as *mut u32).cast::<c_void>()));
        let (grid, block) = ((grid[0], grid[1], grid[2]), (*block, 1, 1));
        // SAFETY: the kernel takes these pointers, maps and words (the op matrix checks each lowering); the driver copies
        // them before it returns; the memory that the pointers are to is the plan's.
        unsafe { result::launch_kernel(function, grid, block, *shared, self.compute.get(), &mut params) }
            .map_err(|e| fail(&launch.name, e))
    }
}
