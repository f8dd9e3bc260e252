//! What the process holds beside its account: how much that was at most, and giving back what is free.

/// The most memory that this process had resident so far, in bytes: `VmHWM` of Linux.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|k| k * 1024)
}

/// Hands memory that was freed back to the system. glibc keeps it for the next allocation of its kind, but what a
/// tokenizer took (some 50 MB) is needed by nobody once the data is read, and the device's memory comes from the
/// system, not from there.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc's own function; it may be called at any time and touches free memory only.
        let _ = unsafe { malloc_trim(0) };
    }
}
