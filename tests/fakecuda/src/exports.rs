//! libcuda's names: each reads what it is given, and asks the driver.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::abi::{self, Code};
use crate::driver::{Answer, Handle, found};
use crate::report;

/// Writes a result.
pub(crate) fn put<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return found(abi::INVALID_VALUE, "no place for the result");
    }
    // SAFETY: a place of the caller's for this result: the contract of every call.
    unsafe { place.write(value) };
    Ok(())
}

/// A text that ends in a zero.
fn bytes<'a>(text: *const c_char) -> Answer<&'a CStr> {
    if text.is_null() {
        return found(abi::INVALID_VALUE, "no text");
    }
    // SAFETY: a text of the caller's: the contract of the calls that take one.
    Ok(unsafe { CStr::from_ptr(text) })
}

macro_rules! exports {
    ($(fn $name:ident($d:pat $(, $arg:ident: $ty:ty)*) $body:block)*) => {$(
        /// As in NVIDIA's driver API.
        ///
        /// # Safety
        /// Pointers are as its documentation asks for.
        // SAFETY: no other code in a process that has this library has the name.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::abi::Code {
            $crate::driver::enter(stringify!($name), |$d| $body)
        }
    )*};
}
pub(crate) use exports;

exports! {
    fn cuInit(d, flags: c_uint) {
        if flags != 0 {
            return found(abi::INVALID_VALUE, format!("flags {flags}"));
        }
        if !d.started {
            report::arrange();
        }
        d.started = true;
        Ok(())
    }
    fn cuDriverGetVersion(d, version: *mut c_int) { put(version, d.settings.version) }

    fn cuDeviceGetCount(d, count: *mut c_int) { put(count, d.settings.cards) }
    fn cuDeviceGet(d, device: *mut c_int, index: c_int) {
        d.card(index)?;
        put(device, index)
    }
    fn cuDeviceGetName(d, name: *mut c_char, room: c_int, device: c_int) {
        d.card(device)?;
        let text = c"Fake card";
        if (room as usize) < text.count_bytes() + 1 {
            return found(abi::INVALID_VALUE, format!("{room} bytes for a card's name"));
        }
        // SAFETY: the caller's room, which is large enough.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name, text.count_bytes() + 1) };
        Ok(())
    }
    fn cuDeviceTotalMem_v2(d, bytes: *mut usize, device: c_int) {
        d.card(device)?;
        put(bytes, d.settings.memory as usize)
    }
    fn cuDeviceGetAttribute(d, value: *mut c_int, which: c_int, device: c_int) {
        let found = d.attribute(which, device)?;
        put(value, found)
    }
    fn cuDevicePrimaryCtxRetain(d, context: *mut usize, device: c_int) {
        let handle = d.retain(device)?;
        put(context, handle)
    }
    fn cuDevicePrimaryCtxRelease_v2(d, device: c_int) { d.release(device) }
    fn cuCtxSetCurrent(d, context: usize) { d.set_current(context) }
    fn cuCtxSynchronize(d) {
        d.current()?;
        d.host_after_all();
        Ok(())
    }

    fn cuMemGetInfo_v2(d, free: *mut usize, total: *mut usize) {
        d.current()?;
        put(free, (d.settings.memory - d.used) as usize)?;
        put(total, d.settings.memory as usize)
    }
    fn cuMemAlloc_v2(d, address: *mut u64, bytes: usize) {
        let given = d.allocate(bytes as u64)?;
        put(address, given)
    }
    fn cuMemFree_v2(d, address: u64) { d.free(address) }
    fn cuMemGetAddressRange_v2(d, base: *mut u64, size: *mut usize, address: u64) {
        d.current()?;
        let block = d.blocks.range(..=address).next_back();
        let Some((&first, block)) = block.filter(|(first, b)| address < *first + b.bytes) else {
            return found(abi::INVALID_VALUE, format!("{address:#x} is in no allocation"));
        };
        put(base, first)?;
        put(size, block.bytes as usize)
    }
    fn cuMemHostAlloc(d, address: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let given = d.pin(bytes as u64)?;
        put(address, given as *mut c_void)
    }
    fn cuMemFreeHost(d, address: *mut c_void) { d.unpin(address as u64) }
    fn cuMemsetD8Async(d, to: u64, value: u8, bytes: usize, stream: usize) {
        d.submit(stream, crate::kernels::Op::Set { to, value, bytes: bytes as u64 })
    }
    fn cuMemcpyDtoDAsync_v2(d, to: u64, from: u64, bytes: usize, stream: usize) {
        d.submit(stream, crate::kernels::Op::Copy { to, from, bytes: bytes as u64 })
    }
    fn cuMemcpyHtoDAsync_v2(d, to: u64, from: *const c_void, bytes: usize, stream: usize) {
        d.transfer(stream, from as u64, to, bytes as u64, false)
    }
    fn cuMemcpyDtoHAsync_v2(d, to: *mut c_void, from: u64, bytes: usize, stream: usize) {
        d.transfer(stream, to as u64, from, bytes as u64, true)
    }

    fn cuStreamCreate(d, stream: *mut usize, flags: c_uint) {
        let handle = d.new_stream(flags)?;
        put(stream, handle)
    }
    fn cuStreamDestroy_v2(d, stream: usize) { d.end_stream(stream) }
    fn cuStreamSynchronize(d, stream: usize) { d.wait_stream(stream) }
    fn cuStreamWaitEvent(d, stream: usize, event: usize, _flags: c_uint) { d.wait_event(stream, event) }
    fn cuStreamBeginCapture_v2(d, stream: usize, mode: c_uint) { d.begin_capture(stream, mode) }
    fn cuStreamEndCapture(d, stream: usize, graph: *mut usize) {
        let handle = d.end_capture(stream)?;
        put(graph, handle)
    }

    fn cuEventCreate(d, event: *mut usize, flags: c_uint) {
        let handle = d.new_event(flags)?;
        put(event, handle)
    }
    fn cuEventDestroy_v2(d, event: usize) { d.end_event(event) }
    fn cuEventRecord(d, event: usize, stream: usize) { d.record(event, stream) }
    fn cuEventSynchronize(d, event: usize) { d.wait_for(event) }
    fn cuEventElapsedTime_v2(d, milliseconds: *mut f32, start: usize, end: usize) {
        let time = d.elapsed(start, end)?;
        put(milliseconds, time)
    }

    fn cuModuleLoadData(d, module: *mut usize, image: *const c_void) {
        let handle = d.load(bytes(image.cast())?.to_bytes())?;
        put(module, handle)
    }
    fn cuModuleUnload(d, module: usize) { d.unload(module) }
    fn cuModuleGetFunction(d, function: *mut usize, module: usize, name: *const c_char) {
        let entry = bytes(name)?.to_string_lossy();
        let handle = d.function(module, &entry)?;
        put(function, handle)
    }
    fn cuFuncSetAttribute(d, function: usize, attribute: c_int, value: c_int) {
        d.set_attribute(function, attribute, value)
    }

    fn cuLaunchKernel(
        d,
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: usize,
        params: *mut *mut c_void,
        extra: *mut *mut c_void
    ) {
        if !extra.is_null() {
            return found(abi::INVALID_VALUE, "parameters as one buffer are not modelled");
        }
        d.launch(function, ([grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared), stream, params)
    }
    fn cuTensorMapEncodeTiled(
        d,
        map: *mut [u8; 128],
        data: c_uint,
        rank: c_uint,
        base: u64,
        size: *const u64,
        stride: *const u64,
        tile: *const c_uint,
        every: *const c_uint,
        interleave: c_uint,
        swizzle: c_uint,
        _promotion: c_uint,
        fill: c_uint
    ) {
        if map.is_null() || !(map as usize).is_multiple_of(64) || !(1..=5).contains(&rank) {
            return found(abi::INVALID_VALUE, format!("a tensor map at {map:p} of {rank} dimensions"));
        }
        let rank = rank as usize;
        // SAFETY: arrays of the caller's, as long as it said.
        let (size, stride, tile, every) = unsafe {
            let (size, stride) = (std::slice::from_raw_parts(size, rank), std::slice::from_raw_parts(stride, rank - 1));
            (size, stride, std::slice::from_raw_parts(tile, rank), std::slice::from_raw_parts(every, rank))
        };
        if interleave != 0 || fill != 0 || every.iter().any(|&e| e != 1) {
            return found(abi::INVALID_VALUE, "interleaved, strided and filled tensor maps are not modelled");
        }
        let encoded = d.tensor_map(data, base, [size, stride], tile, swizzle)?;
        // SAFETY: the caller's place, which is aligned.
        unsafe { map.write(encoded) };
        Ok(())
    }
    fn cuGraphInstantiateWithFlags(d, exec: *mut usize, graph: usize, _flags: u64) {
        let handle = d.instantiate(graph)?;
        put(exec, handle)
    }
    fn cuGraphUpload(d, exec: usize, stream: usize) {
        d.execs.get(exec).handle()?;
        d.outside(stream)
    }
    fn cuGraphLaunch(d, exec: usize, stream: usize) { d.replay(exec, stream) }
    fn cuGraphDestroy(d, graph: usize) { d.graphs.take(graph).handle().map(|_| ()) }
    fn cuGraphExecDestroy(d, exec: usize) { d.execs.take(exec).handle().map(|_| ()) }
}

/// Neither asks for a card, nor fails with one that is lost.
fn describe(
    error: Code,
    text: *mut *const c_char,
    which: fn(&(Code, &'static str, &'static str)) -> &'static str,
) -> Code {
    let row = abi::ERRORS.iter().find(|row| row.0 == error);
    if !text.is_null() {
        // SAFETY: a place of the caller's; the text is a constant that ends in a zero.
        unsafe { text.write(row.map_or(std::ptr::null(), |row| which(row).as_ptr().cast())) };
    }
    if row.is_some() { abi::SUCCESS } else { abi::INVALID_VALUE }
}

/// As in NVIDIA's driver API.
///
/// # Safety
/// Pointers are as its documentation asks for.
// SAFETY: no other code in a process that has this library has the name.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorString(error: Code, text: *mut *const c_char) -> Code {
    describe(error, text, |row| row.2)
}

/// As in NVIDIA's driver API.
///
/// # Safety
/// Pointers are as its documentation asks for.
// SAFETY: no other code in a process that has this library has the name.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorName(error: Code, text: *mut *const c_char) -> Code {
    describe(error, text, |row| row.1)
}
