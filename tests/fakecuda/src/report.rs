//! What is told when the process ends.

use crate::driver::{Driver, summary};

/// The exit code of a process that a finding ends.
const EXIT: i32 = 86;

/// Ends the process; nothing else of it runs.
pub fn end() -> ! {
    // SAFETY: ends the process at once, without handlers that would ask for what the caller holds.
    unsafe { libc::_exit(EXIT) }
}

/// Has [`at_exit`] called when the process ends.
pub fn arrange() {
    // SAFETY: a function of this library, which is never unloaded: its handle is kept by who opened it.
    unsafe { libc::atexit(at_exit) };
}

extern "C" fn at_exit() {
    let mut left = None;
    summary(|driver| {
        if let Some(path) = &driver.settings.report
            && let Err(e) = std::fs::write(path, json(driver))
        {
            eprintln!("fakecuda: {path}: {e}");
        }
        let open = driver.contexts.iter().next().map(|(handle, _)| driver.alive(handle));
        left = open.filter(|_| driver.settings.fatal && !driver.lost);
    });
    if let Some(left) = left {
        eprintln!("fakecuda: the process ends with a context open, and in it {}", left.join(", "));
        end();
    }
}

fn json(driver: &Driver) -> String {
    let calls: Vec<String> = driver.calls.iter().map(|(name, n)| format!("\"{name}\": {n}")).collect();
    format!(
        "{{\"kernels\": {}, \"beside\": {}, \"peak\": {}, \"used\": {}, \"calls\": {{{}}}}}\n",
        driver.kernels,
        driver.beside,
        driver.peak,
        driver.used,
        calls.join(", ")
    )
}
