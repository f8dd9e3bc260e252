//! Pinned memory, and what keeps the host from touching it while a copy is under way: its pages are protected, and a
//! fault there is a finding.

use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::clock::Clock;
use crate::history::Mark;
use crate::report;

const PAGE: u64 = 4096;

/// A copy from or to pinned memory that the host has not waited for.
pub struct Flight {
    pub range: Range<u64>,
    /// The copy writes there; else it reads.
    pub writes: bool,
    pub mark: Mark,
}

/// What the handler of faults knows.
struct Guard {
    range: Range<u64>,
    writes: bool,
    what: String,
}

static GUARDS: Mutex<Vec<Guard>> = Mutex::new(Vec::new());
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());
static FATAL: AtomicBool = AtomicBool::new(false);
/// The handler that was there before, as a number.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

/// Pages that nothing else is on; their address.
pub fn map(bytes: u64) -> Option<u64> {
    let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: asks for new pages anywhere.
    let address = unsafe { libc::mmap(null_mut(), bytes as usize, read_write, private, -1, 0) };
    (address != libc::MAP_FAILED).then_some(address as u64)
}

pub fn unmap(address: u64, bytes: u64) {
    // SAFETY: pages from `map` that nothing uses any more; touching them later is the caller's fault, and seen.
    unsafe { libc::munmap(address as *mut _, bytes as usize) };
}

/// Whether the process has this page: a read of it would not fault for want of it.
pub fn mapped(address: u64, bytes: u64) -> bool {
    let (first, end) = (address / PAGE * PAGE, address.saturating_add(bytes.max(1)));
    let mut there = vec![0u8; (end - first).div_ceil(PAGE) as usize];
    // SAFETY: writes a byte for each page; pages that are not there are an error.
    address != 0 && unsafe { libc::mincore(first as *mut _, (end - first) as usize, there.as_mut_ptr()) } == 0
}

fn protect(range: &Range<u64>, how: i32) {
    let (first, end) = (range.start / PAGE * PAGE, range.end.div_ceil(PAGE) * PAGE);
    // SAFETY: pages from `map`, whose allocation lives: flights end before it is freed.
    unsafe { libc::mprotect(first as *mut _, (end - first) as usize, how) };
}

/// Lets anyone touch these pages, for a copy that is done now.
pub fn unlock(range: &Range<u64>) {
    protect(range, libc::PROT_READ | libc::PROT_WRITE);
}

/// Protects the pages of all flights, and tells the handler of them.
pub fn guard(flights: &[Flight], fatal: bool) {
    FATAL.store(fatal, Ordering::Relaxed);
    install();
    let copies =
        flights.iter().map(|f| Guard { range: f.range.clone(), writes: f.writes, what: f.mark.what.to_string() });
    *GUARDS.lock().unwrap_or_else(PoisonError::into_inner) = copies.collect();
    // What is written may not even be read, also where a page has both.
    for writes in [false, true] {
        for flight in flights.iter().filter(|f| f.writes == writes) {
            protect(&flight.range, if writes { libc::PROT_NONE } else { libc::PROT_READ });
        }
    }
}

/// Ends the flights that the host comes after.
pub fn land(flights: &mut Vec<Flight>, host: &Clock) {
    let over = |f: &Flight| host.at(f.mark.actor) >= f.mark.time;
    if flights.iter().any(over) {
        flights.iter().for_each(|f| unlock(&f.range));
        flights.retain(|f| !over(f));
        guard(flights, FATAL.load(Ordering::Relaxed));
    }
}

/// Forgets all flights; their pages are the host's.
pub fn open_all() {
    let guards = std::mem::take(&mut *GUARDS.lock().unwrap_or_else(PoisonError::into_inner));
    guards.iter().for_each(|g| unlock(&g.range));
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// What faults have found where they do not end the process.
pub fn findings() -> Vec<String> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = fault;
        // SAFETY: plain data, of which zero is a value.
        let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: a handler of the kind that SA_SIGINFO has.
        unsafe { libc::sigaction(libc::SIGSEGV, &action, &mut before) };
        BEFORE.store(before.sa_sigaction, Ordering::Relaxed);
    });
}

/// A fault: in a page of a copy under way, at its bytes or beside them; or elsewhere, which is another's matter.
extern "C" fn fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's own record of the fault.
    let address = unsafe { (*info).si_addr() } as u64;
    let near = |range: &Range<u64>| (range.start / PAGE * PAGE..range.end.div_ceil(PAGE) * PAGE).contains(&address);
    // Nothing that holds this lock touches such pages.
    let guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(guard) = guards.iter().find(|g| g.range.contains(&address)) {
        let verb = if guard.writes { "writes" } else { "reads" };
        let text = format!(
            "the host touches byte {} of pinned memory that {} still {verb}: it has not waited for it",
            address - guard.range.start,
            guard.what
        );
        if FATAL.load(Ordering::Relaxed) {
            eprintln!("fakecuda: {text}");
            report::end();
        }
        FOUND.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        unlock(&guard.range);
    } else if let Some(guard) = guards.iter().find(|g| near(&g.range)) {
        unlock(&guard.range);
    } else {
        // SAFETY: plain data, of which zero is a value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = BEFORE.load(Ordering::Relaxed);
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler that was there; the access faults again, and it is asked.
        unsafe { libc::sigaction(libc::SIGSEGV, &action, null_mut()) };
    }
}
