//! What the driver gives and wants back: streams and pinned memory, which end when dropped.

use cudarc::driver::{result, sys};

use super::driver::fail;
use crate::backend::HostSlice;
use crate::error::Result;

/// A stream that does not wait for the default stream.
pub struct Stream(sys::CUstream);

impl Stream {
    pub fn new() -> Result<Stream> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        stream.map(Stream).map_err(|e| fail("making a stream", e))
    }

    /// The driver's handle, which lives as long as this value.
    pub fn get(&self) -> sys::CUstream {
        self.0
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new` and destroyed only here; the driver ends what is still on it.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// Host memory that copies go to and come from without the driver's help. No copy may be under way when it is dropped.
pub struct Pinned(HostSlice);

impl Pinned {
    pub fn new(bytes: usize) -> Result<Pinned> {
        Pinned::try_new(bytes).map_err(|e| fail("pinning memory", e))
    }

    /// None if the system has no more that may be pinned.
    pub fn some(bytes: usize) -> Result<Option<Pinned>> {
        match Pinned::try_new(bytes) {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            made => made.map(Some).map_err(|e| fail("pinning memory", e)),
        }
    }

    fn try_new(bytes: usize) -> std::result::Result<Pinned, result::DriverError> {
        // SAFETY: allocates; the memory is freed when dropped.
        let host = unsafe { result::malloc_host(bytes, 0) }?;
        Ok(Pinned(HostSlice { ptr: host.cast(), bytes }))
    }

    /// Where it is.
    pub fn get(&self) -> HostSlice {
        self.0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed only here.
        let _ = unsafe { result::free_host(self.0.ptr.cast()) };
    }
}
