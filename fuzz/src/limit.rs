//! A limit on memory: a parser may hold [`FACTOR`] times its input and [`BASE`] bytes, in one allocation or in all that
//! are alive. More ends the process, so a size that a file only claims is found, whether or not the system would give it.
//!
//! A byte of a file becomes at most a few values: an f32 of two bits, or a JSON value of two characters, is 40 bytes.
//! The base is for what does not grow with the input: buffers of 1 MiB of readers, tables of tokenizers, regular
//! expressions (whose crate allows itself 10 MiB for one).

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that may be alive for a byte of the input.
pub const FACTOR: usize = 64;
/// Bytes that may be alive whatever the input.
pub const BASE: usize = 16 << 20;

/// Bytes that are alive.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// The most that may be.
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, counted.
pub struct Limited;

/// Counts `bytes` more, and ends the process if those are too many.
fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes);
    if live > MOST.load(Relaxed) {
        // What is told must not be limited itself; the standard error stream has no buffer.
        MOST.store(usize::MAX, Relaxed);
        let _ = writeln!(std::io::stderr(), "allocation limit: {bytes} bytes more are {live}");
        std::process::abort();
    }
}

// SAFETY: every call is passed to the system's allocator as it came.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Where it moves, both are there for a while.
        add(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Calls `f` with the limit for an input of so many bytes.
pub fn within(input: usize, f: impl FnOnce()) {
    MOST.store(LIVE.load(Relaxed).saturating_add(FACTOR * input + BASE), Relaxed);
    f();
    off();
}

/// Ends the limit, for reports of a panic.
pub fn off() {
    MOST.store(usize::MAX, Relaxed);
}
