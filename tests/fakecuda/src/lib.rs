//! fakecuda: NVIDIA's driver, for tests. The library has libcuda's names; a program that opens it in the place of
//! `libcuda.so` runs whole trainings through its own driver code, on a card whose kernels are PTX, interpreted by
//! ptxsim, and whose every call is checked. Linux only; elsewhere this crate is empty.
//!
//! # How it runs
//! What is put on a stream is done at once, in the order of the calls. That nothing but luck of timing made it right is
//! checked apart: each stream and the host has a vector clock, which events, waits and synchronizing join; each byte of
//! device and pinned memory knows who touched it last, and when. Launches of graphs run under ptxsim's schedules in turn.
//!
//! # What it checks
//! The first broken rule ends the process with exit code 86 and a line `fakecuda: …`; a test that calls it as a library
//! gets the error that a driver would give, and finds the text in [`findings`]:
//! - **order**: two accesses of a byte, one of them a write, that no event, wait or synchronization orders;
//! - **the host's own accesses** to pinned memory while a copy is under way there (its pages are protected);
//! - **bounds**: copies, sets and kernels within one live allocation; freed memory, destroyed handles, unloaded modules;
//! - **bytes that nothing wrote**, read by a kernel or copied to the host;
//! - **contexts**: one is current on the calling thread, and it is the one that stream, event and function are of;
//! - **captures**: calls that are not allowed, ends by another thread, waits for what is outside;
//! - **launches**: number and size of parameters as far as host memory shows them, limits of grid and block, dynamic
//!   shared memory that was not asked for;
//! - **leaks**: all that a context's last release finds alive, and a context that the process ends with;
//! - everything that ptxsim checks inside kernels, with allocations as bounds.
//!
//! # What it is told by environment variables
//! See [`Settings`]. Calls that it has no name for end a program of cudarc's in a panic that tells the name.
//!
//! It has the names of cuBLASLt's product too: a program that opens the same file as `libcublasLt.so` multiplies on this card.
//!
//! # What it cannot tell
//! Whether NVIDIA's driver does as its documentation says, and what goes wrong between processes. The default stream is not
//! modelled, nor are captures of more than one stream: using them is a finding.
#![cfg(target_os = "linux")]

mod abi;
mod blas;
mod calls;
mod capture;
mod clock;
mod copies;
mod driver;
mod exports;
mod history;
mod kernels;
mod pages;
mod report;
mod settings;
mod table;

pub use blas::*;
pub use driver::{findings, fresh};
pub use exports::*;
pub use settings::{Failure, Settings};
