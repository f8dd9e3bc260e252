//! A CUDA card without a card: launches are compiled by NVRTC to PTX, as on a real one, and the PTX is interpreted,
//! every access of every thread watched. Each replay runs under the next of the interpreter's schedules, so results
//! that depend on who comes first show as different bits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::{Launch as Grid, Memory, Module, Param, Schedule, run};
use trimtab::backend::cuda::{Output, caps, compile};
use trimtab::backend::{Backend, Buffer, Caps, Kernel, Launch, Recording, Slice};
use trimtab::bench::watched::POISON;
use trimtab::ops::{CudaLaunch, MatrixMap};
use trimtab::{Error, Result};

type Key = (&'static str, Vec<(&'static str, i64)>, u32);

/// The module of a launch; compiled once in this process.
fn module(file: &'static str, defines: &[(&'static str, i64)], arch: u32) -> Result<Arc<Module>> {
    static MODULES: OnceLock<Mutex<HashMap<Key, Arc<Module>>>> = OnceLock::new();
    let key = (file, defines.to_vec(), arch);
    let modules = MODULES.get_or_init(Mutex::default);
    if let Some(module) = modules.lock().unwrap().get(&key) {
        return Ok(module.clone());
    }
    let ptx = compile(file, defines, arch, Output::Ptx)?.code;
    let text = String::from_utf8(ptx).map_err(|e| fail(file, e.to_string()))?;
    let module = Arc::new(Module::parse(&text).map_err(|e| fail(file, e))?);
    modules.lock().unwrap().insert(key, module.clone());
    Ok(module)
}

fn fail(name: &str, found: String) -> Error {
    Error::device(name, found, "the interpreter found this in the kernel's PTX")
}

/// A matrix of 16-bit floats at an address, as the backend has the driver encode it.
fn tensor(map: &MatrixMap, base: u64) -> TensorMap {
    TensorMap {
        base,
        size: vec![u64::from(map.cols), u64::from(map.rows)],
        stride: vec![2 * u64::from(map.ld)],
        tile: vec![MatrixMap::WIDTH, map.height],
        element: 2,
        swizzle: Swizzle::B128,
    }
}

pub struct Ptx {
    caps: Caps,
    buffers: Vec<Option<Vec<u8>>>,
    recordings: Vec<Option<Vec<Launch>>>,
    replays: usize,
    /// Instructions run so far, all threads together.
    pub instructions: u64,
}

impl Ptx {
    pub fn new(arch: u32, max_binding: u64) -> Ptx {
        Ptx::like(Caps { max_binding, ..caps(format!("interpreted sm_{arch}"), arch) })
    }

    /// A card with these caps.
    pub fn like(caps: Caps) -> Ptx {
        Ptx { caps, buffers: Vec::new(), recordings: Vec::new(), replays: 0, instructions: 0 }
    }

    fn bytes(&mut self, slice: Slice) -> &mut [u8] {
        let buffer = self.buffers[slice.buffer.0 as usize].as_mut().unwrap();
        &mut buffer[slice.offset as usize..][..slice.bytes as usize]
    }

    fn launch(&mut self, launch: &Launch, schedule: Schedule) -> Result<()> {
        let Kernel::Cuda(CudaLaunch { file, defines, entry, grid, block, shared, maps, .. }) = &launch.kernel else {
            return Err(fail(&launch.name, "no CUDA kernel".into()));
        };
        if grid.contains(&0) {
            return Ok(());
        }
        let module = module(file, defines, self.caps.arch)?;
        // Every operand is an allocation of its own, so that reading past its end is found; operands that lie in the
        // same place are one.
        let mut memory = Memory::new();
        let mut places: Vec<(Slice, u64)> = Vec::new();
        let mut params = Vec::new();
        for (i, &arg) in launch.args.iter().enumerate() {
            if arg.bytes == 0 {
                params.push(Param::U64(0));
                continue;
            }
            let same = places.iter().find(|(s, _)| *s == arg).map(|p| p.1);
            let meets = |s: &Slice| {
                s.buffer == arg.buffer && s.offset < arg.offset + arg.bytes && arg.offset < s.offset + s.bytes
            };
            if same.is_none() && places.iter().any(|(s, _)| meets(s)) {
                return Err(fail(&launch.name, format!("operand {i} overlaps another in part")));
            }
            let address = match same {
                Some(address) => address,
                None => {
                    let name = format!("operand {i}");
                    let bytes = self.bytes(arg);
                    let fresh = bytes.iter().zip(POISON.to_le_bytes().iter().cycle()).all(|(b, p)| b == p);
                    match fresh {
                        true => memory.alloc_uninit(&name, bytes.len()),
                        false => memory.alloc(&name, bytes),
                    }
                }
            };
            if same.is_none() {
                places.push((arg, address));
            }
            params.push(Param::U64(address));
        }
        for map in maps {
            let Some(Param::U64(base)) = params.get(map.arg) else {
                return Err(fail(&launch.name, format!("{map:?} of no operand")));
            };
            params.push(Param::Bytes(tensor(map, *base).bytes()));
        }
        params.extend(launch.params().iter().map(|&word| Param::U32(word)));
        let grid = Grid { entry, grid: *grid, block: [*block, 1, 1], shared_bytes: *shared, params: &params, schedule };
        let stats = run(&module, &mut memory, &grid).map_err(|f| fail(&launch.name, f.to_string()))?;
        self.instructions += stats.thread_instructions;
        for (slice, address) in places {
            self.bytes(slice).copy_from_slice(memory.read(address));
        }
        Ok(())
    }
}

impl Backend for Ptx {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        self.buffers.push(Some(vec![0; bytes as usize]));
        Ok(Buffer(self.buffers.len() as u32 - 1))
    }
    fn free(&mut self, buffer: Buffer) {
        self.buffers[buffer.0 as usize] = None;
    }
    fn memory(&self) -> u64 {
        self.buffers.iter().flatten().map(|b| b.len() as u64).sum()
    }
    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        self.bytes(dst)[..src.len()].copy_from_slice(src);
        Ok(())
    }
    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        dst.copy_from_slice(&self.bytes(src)[..dst.len()]);
        Ok(())
    }
    fn copy(&mut self, dst: Slice, src: Slice) -> Result<()> {
        let bytes = self.bytes(src).to_vec();
        self.bytes(dst).copy_from_slice(&bytes);
        Ok(())
    }
    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        self.recordings.push(Some(launches.to_vec()));
        Ok(Recording(self.recordings.len() as u32 - 1))
    }
    fn replay(&mut self, recording: Recording) -> Result<()> {
        let launches = self.recordings[recording.0 as usize].take().unwrap();
        let schedules = Schedule::all();
        let schedule = schedules[self.replays % schedules.len()];
        self.replays += 1;
        let ran = launches.iter().try_for_each(|l| self.launch(l, schedule));
        self.recordings[recording.0 as usize] = Some(launches);
        ran
    }
    fn forget(&mut self, recording: Recording) {
        self.recordings[recording.0 as usize] = None;
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
