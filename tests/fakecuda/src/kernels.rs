//! What streams and graphs do: kernels, copies on the card, sets.

use std::ffi::c_void;

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::{Launch, Param, Schedule};

use crate::abi;
use crate::blas::Product;
use crate::clock::Clock;
use crate::driver::{Answer, Driver, Handle, Refusal, found};
use crate::history::Mark;
use crate::pages;

/// One piece of work.
#[derive(Clone)]
pub enum Op {
    Kernel { function: usize, grid: [u32; 3], block: [u32; 3], shared: u32, params: Vec<Vec<u8>> },
    Set { to: u64, value: u8, bytes: u64 },
    Copy { to: u64, from: u64, bytes: u64 },
    Product(Product),
}

impl Driver {
    /// Notes that work by `mark` touches device memory.
    pub fn touch(&mut self, address: u64, bytes: u64, write: bool, view: &Clock, mark: &Mark) -> Answer {
        let block = self.blocks.range_mut(..=address).next_back();
        let Some((&base, block)) = block.filter(|(base, b)| address + bytes <= *base + b.bytes) else {
            let verb = if write { "writes" } else { "reads" };
            let text = format!("{} {verb} {bytes} bytes at {address:#x}, which are not in one allocation", mark.what);
            return found(abi::INVALID_VALUE, text);
        };
        let at = address - base;
        let place = format!("the allocation of {} bytes at {base:#x}", block.bytes);
        block.history.touch(at..at + bytes, write, view, mark).map_err(|c| race(mark, write, &place, &c))
    }

    /// Does a piece of work now, or writes it down if its stream is captured.
    pub fn submit(&mut self, stream: usize, op: Op) -> Answer {
        if let Some(capture) = &mut self.stream(stream)?.capture {
            if capture.broken {
                return Err(Refusal::Code(abi::CAPTURE_INVALIDATED));
            }
            capture.ops.push(op);
            return Ok(());
        }
        let schedule = self.schedule();
        self.perform(stream, &op, schedule)
    }

    /// The next of the interpreter's schedules.
    pub fn schedule(&mut self) -> Schedule {
        let all = Schedule::all();
        self.replays += 1;
        all[(self.replays - 1) % all.len()]
    }

    pub fn perform(&mut self, stream: usize, op: &Op, schedule: Schedule) -> Answer {
        match op {
            Op::Kernel { function, grid, block, shared, params } => {
                self.run(stream, *function, (*grid, *block, *shared), params, schedule)
            }
            Op::Product(product) => self.multiply(stream, product),
            &Op::Set { to, value, bytes } => {
                let (view, mark) = self.step(stream, &format!("a set on stream {stream:#x}"))?;
                self.touch(to, bytes, true, &view, &mark)?;
                let text = |text| Refusal::Found(abi::INVALID_VALUE, text);
                self.memory.store(to, &vec![value; bytes as usize]).map_err(text)
            }
            &Op::Copy { to, from, bytes } => {
                let (view, mark) = self.step(stream, &format!("a copy on stream {stream:#x}"))?;
                if from < to + bytes && to < from + bytes {
                    return found(abi::INVALID_VALUE, format!("{bytes} bytes at {from:#x} and {to:#x} overlap"));
                }
                self.touch(from, bytes, false, &view, &mark)?;
                self.touch(to, bytes, true, &view, &mark)?;
                let text = |text| Refusal::Found(abi::INVALID_VALUE, text);
                let data = self.memory.fetch(from, bytes as usize).map_err(text)?.to_vec();
                self.memory.store(to, &data).map_err(text)
            }
        }
    }

    fn run(
        &mut self,
        stream: usize,
        function: usize,
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        params: &[Vec<u8>],
        schedule: Schedule,
    ) -> Answer {
        if self.settings.lose.is_some_and(|(after, _)| self.kernels >= after) {
            self.lost = true;
            return Ok(());
        }
        let function = self.functions.get(function).handle()?;
        let (entry, module) = (function.entry.clone(), function.module);
        let (view, mark) = self.step(stream, &format!("kernel {entry} on stream {stream:#x}"))?;
        let loaded = self.modules.get_mut(module).map_err(|text| {
            Refusal::Found(abi::INVALID_HANDLE, format!("kernel {entry} is of a module that is gone: {text}"))
        })?;
        loaded.ran.join(&view);
        let code = loaded.code.clone();
        let params: Vec<Param> = params.iter().map(|p| Param::Bytes(p.clone())).collect();
        let launch = Launch { entry: &entry, grid, block, shared_bytes: shared, params: &params, schedule };
        let ran = ptxsim::run(&code, &mut self.memory, &launch);
        let touched = self.memory.touched();
        let stats = ran.map_err(|finding| Refusal::Found(abi::ILLEGAL_ADDRESS, finding.to_string()))?;
        self.kernels += 1;
        self.now += stats.thread_instructions.max(1);
        touched.iter().try_for_each(|t| self.touch(t.address, t.bytes, t.write, &view, &mark))
    }

    /// A tensor map, as the interpreter has it.
    pub fn tensor_map(
        &mut self,
        data: u32,
        base: u64,
        [size, stride]: [&[u64]; 2],
        tile: &[u32],
        swizzle: u32,
    ) -> Answer<[u8; 128]> {
        self.current()?;
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let kinds = abi::TENSOR_ELEMENTS.iter().find(|(kind, _)| *kind == data);
        let (Some(&swizzle), Some(&(_, element))) = (swizzles.get(swizzle as usize), kinds) else {
            return found(abi::INVALID_VALUE, format!("a tensor map of type {data} with swizzle {swizzle}"));
        };
        let (size, stride, tile) = (size.to_vec(), stride.to_vec(), tile.to_vec());
        let map = TensorMap { base, size, stride, tile, element, swizzle };
        map.check().or_else(|text| found(abi::INVALID_VALUE, format!("a tensor map with {text}")))?;
        map.bytes().try_into().or_else(|_| found(abi::INVALID_VALUE, "a tensor map of another size"))
    }

    /// Reads and checks what `cuLaunchKernel` is given.
    pub fn launch(
        &mut self,
        function: usize,
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        stream: usize,
        params: *mut *mut c_void,
    ) -> Answer {
        let known = self.functions.get(function).handle()?;
        let loaded = self.modules.get(known.module).handle()?;
        let (entry, asked, context) = (known.entry.clone(), known.shared, loaded.context);
        let sizes = loaded.code.parameters(&entry).unwrap_or_default();
        let fixed = loaded.code.static_shared(&entry).unwrap_or_default() as u32;
        self.own(&format!("kernel {entry}"), context)?;
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        let limits = [(grid[0], i32::MAX as u32), (grid[1], 65_535), (grid[2], 65_535), (block[2], 64)];
        if grid.contains(&0) || !(1..=1024).contains(&threads) || limits.iter().any(|&(n, most)| n > most) {
            return found(abi::INVALID_VALUE, format!("kernel {entry}: a grid of {grid:?} blocks of {block:?}"));
        }
        if fixed + shared > abi::SHARED_BY_DEFAULT && shared > asked {
            let text = format!("kernel {entry}: {shared} bytes of dynamic shared memory and {fixed} of its own");
            return found(abi::INVALID_VALUE, format!("{text}, of which it was allowed {asked}"));
        }
        let params = values(&entry, params, &sizes)?;
        self.submit(stream, Op::Kernel { function, grid, block, shared, params })
    }
}

/// A race in words.
pub fn race(mark: &Mark, write: bool, place: &str, c: &crate::history::Conflict) -> Refusal {
    let verb = |write| if write { "writes" } else { "reads" };
    let text = format!(
        "{} {} bytes {} to {} of {place}, which {} {}, and nothing orders the two",
        mark.what,
        verb(write),
        c.bytes.start,
        c.bytes.end,
        c.other.what,
        verb(c.wrote)
    );
    Refusal::Found(abi::UNKNOWN, text)
}

/// The parameters of these sizes, which `list` points to.
fn values(entry: &str, list: *mut *mut c_void, sizes: &[usize]) -> Answer<Vec<Vec<u8>>> {
    let wrong = |text: String| found(abi::INVALID_VALUE, format!("kernel {entry}: {text}"));
    if !sizes.is_empty() && !pages::mapped(list as u64, 8 * sizes.len() as u64) {
        return wrong(format!("the list of its {} parameters is not in memory", sizes.len()));
    }
    // SAFETY: the list's pages are there; that it is as long as the kernel has parameters is the caller's contract.
    let places: Vec<u64> = (0..sizes.len()).map(|i| unsafe { list.add(i).read() } as u64).collect();
    for (i, (&place, &bytes)) in places.iter().zip(sizes).enumerate() {
        if !pages::mapped(place, bytes as u64) || place % bytes.clamp(1, 8) as u64 != 0 {
            return wrong(format!("parameter {i} of {bytes} bytes is at {place:#x}, where no such value is"));
        }
        // The caller's values are apart: where two of these sizes meet, one of its values is smaller than that.
        if let Some(other) = (0..places.len()).find(|&j| (place + 1..place + bytes as u64).contains(&places[j])) {
            return wrong(format!("parameter {i} has {bytes} bytes, but within them is parameter {other}"));
        }
    }
    let read = |(&place, &bytes): (&u64, &usize)| {
        // SAFETY: the pages are there, and the value is the caller's.
        unsafe { std::slice::from_raw_parts(place as *const u8, bytes) }.to_vec()
    };
    Ok(places.iter().zip(sizes).map(read).collect())
}
