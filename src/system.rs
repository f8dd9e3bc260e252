//! What not every system has: a clock, process numbers, a folder for temporary files, threads, files read by position.

use std::fs::File;
use std::io;
use std::path::PathBuf;

/// The standard library's clock, or in a browser, for which the standard library has none, the browser's.
#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
pub use std::time::Instant;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
pub use web_time::Instant;

/// The time by the clock of this place: seconds since the beginning of 1970, and the microseconds of the second. Where the
/// place is not known, as in a browser, it is Greenwich.
pub fn local_time() -> (i64, u32) {
    #[cfg(not(target_family = "wasm"))]
    {
        let now = chrono::Local::now();
        (now.naive_local().and_utc().timestamp(), now.timestamp_subsec_micros())
    }
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    let since = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH);
    #[cfg(all(target_family = "wasm", not(target_os = "unknown")))]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    #[cfg(target_family = "wasm")]
    since.map_or((0, 0), |since| (since.as_secs() as i64, since.subsec_micros()))
}

/// Seconds since the beginning of 1970, in Greenwich.
pub fn unix_time() -> f64 {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    let since = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH);
    #[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// The number of this process; 0 where there are none.
pub fn process_id() -> u32 {
    if cfg!(target_family = "wasm") { 0 } else { std::process::id() }
}

/// The folder for temporary files; none where there are no files.
pub fn temp_dir() -> PathBuf {
    if cfg!(target_family = "wasm") { PathBuf::new() } else { std::env::temp_dir() }
}

/// The folder for what can be made anew (compiled kernels, tiles that were timed), if the system has a place for caches.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("TRIMTAB_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|p| p.join("trimtab")))
        .or_else(|| var("LOCALAPPDATA").map(|p| p.join("trimtab").join("cache")))
        .or_else(|| var("HOME").map(|p| p.join(".cache").join("trimtab")))
}

/// Bytes of memory that programs can still take, if that can be known. In a container it is what the container has left.
#[cfg(not(target_family = "wasm"))]
pub fn free_memory() -> Option<u64> {
    use sysinfo::{MemoryRefreshKind, RefreshKind, System};
    let ram = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(ram)).ok()?;
    let machine = Some(system.available_memory()).filter(|free| *free > 0)?;
    Some(system.cgroup_limits().map_or(machine, |group| group.free_memory.min(machine)))
}
#[cfg(target_family = "wasm")]
pub fn free_memory() -> Option<u64> {
    None
}

/// Bytes that can still be written where `path` is, if that can be known.
#[cfg(not(target_family = "wasm"))]
pub fn free_space(path: &std::path::Path) -> Option<u64> {
    fs4::available_space(path).ok()
}
#[cfg(target_family = "wasm")]
pub fn free_space(_: &std::path::Path) -> Option<u64> {
    None
}

/// Reads `into` from byte `at` of a file on.
#[cfg(unix)]
pub fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

/// Writes `from` to a file, from byte `at` on.
#[cfg(unix)]
pub fn write_at(file: &File, from: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, from, at)
}

/// Reads `into` from byte `at` of a file on.
#[cfg(windows)]
pub fn read_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, into, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                into = &mut into[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

/// Writes `from` to a file, from byte `at` on.
#[cfg(windows)]
pub fn write_at(file: &File, mut from: &[u8], mut at: u64) -> io::Result<()> {
    while !from.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, from, at)?;
        from = &from[n..];
        at += n as u64;
    }
    Ok(())
}

/// A file has one position elsewhere: whoever moves it uses it before another does.
#[cfg(not(any(unix, windows)))]
static POSITION: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Reads `into` from byte `at` of a file on.
#[cfg(not(any(unix, windows)))]
pub fn read_at(mut file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    use std::io::{Read, Seek};
    let _held = POSITION.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    file.seek(io::SeekFrom::Start(at))?;
    file.read_exact(into)
}

/// Writes `from` to a file, from byte `at` on.
#[cfg(not(any(unix, windows)))]
pub fn write_at(mut file: &File, from: &[u8], at: u64) -> io::Result<()> {
    use std::io::{Seek, Write};
    let _held = POSITION.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    file.seek(io::SeekFrom::Start(at))?;
    file.write_all(from)
}
