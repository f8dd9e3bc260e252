//! The card's own clock: events on a stream, and the time between two of them.

use std::time::Duration;

use cudarc::driver::{result, sys};

use super::driver::{fail, start};
use crate::error::Result;

/// The first driver that has the call by which the time is asked for: CUDA 12.8.
const SINCE: i32 = 12_080;

/// A point of a stream.
pub struct Event(sys::CUevent);

impl Event {
    /// Whether the driver can tell the time between two of them.
    pub fn usable() -> bool {
        start().is_ok_and(|version| version >= SINCE)
    }

    pub fn new() -> Result<Event> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Event).map_err(|e| fail("making an event", e))
    }

    /// One that tells no time, which is cheaper.
    pub fn untimed() -> Result<Event> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        event.map(Event).map_err(|e| fail("making an event", e))
    }

    /// The driver's handle, which lives as long as this value.
    pub fn get(&self) -> sys::CUevent {
        self.0
    }

    /// What the stream has been given so far is before this point.
    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream live, and are of this context.
        unsafe { result::event::record(self.0, stream) }.map_err(|e| fail("recording an event", e))
    }

    /// From `earlier` to this one, once the stream has passed both.
    pub fn since(&self, earlier: &Event) -> Result<Duration> {
        // SAFETY: both were made by `new` with timing, recorded on one stream, and live.
        let milliseconds =
            unsafe { result::event::elapsed(earlier.0, self.0) }.map_err(|e| fail("asking the clock", e))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new` and destroyed only here; the driver waits for what still uses it.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
