//! Where and with what something was measured: what a number means nothing without.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::backend::{self, Caps, Device};
use crate::system;

/// Device, driver, processor, threads, system, version, commit, time; clocks are added by [`clocks`].
pub fn of(device: &Device, caps: &Caps) -> Map<String, Value> {
    let object = json!({
        "device": caps.device,
        "driver": backend::driver(device, caps),
        "processor": processor(),
        "threads": rayon::current_num_threads(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(),
        "unix_time": system::unix_time() as u64,
    });
    match object {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The processor's clock now, in MHz, on the fastest core: Linux tells it. A GPU's is not asked for.
pub fn clock() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let of = |line: &str| line.strip_prefix("cpu MHz")?.split(':').nth(1)?.trim().parse::<f64>().ok();
    text.lines().filter_map(of).reduce(f64::max)
}

/// Notes the clock before and after.
pub fn clocks(environment: &mut Map<String, Value>, before: Option<f64>) {
    if let (Some(before), Some(after)) = (before, clock()) {
        environment.insert("mhz_before_and_after".into(), format!("{before:.0}, {after:.0}").into());
    }
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split(':').nth(1)?.trim().to_owned())
}

/// The commit of the repository that this program is in, if it is in one: a program that was built there. It says nothing of
/// changes that were not committed.
fn commit() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    program.ancestors().find_map(|folder| head(&folder.join(".git")))
}

/// The commit of HEAD by git's files (gitrepository-layout): a hash, or the name of a reference that has one.
fn head(git: &Path) -> Option<String> {
    let head = std::fs::read_to_string(git.join("HEAD")).ok()?;
    let hash = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(name) => match std::fs::read_to_string(git.join(name)) {
            Ok(hash) => hash.trim().to_owned(),
            Err(_) => {
                let packed = std::fs::read_to_string(git.join("packed-refs")).ok()?;
                packed.lines().find_map(|line| line.strip_suffix(name))?.trim().to_owned()
            }
        },
    };
    (hash.len() >= 40 && hash.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hash[..12].to_owned())
}

/// Bytes of the largest cache between the processor and its memory: what Linux says, else 32 MiB. For a GPU, more than
/// today's have: 128 MiB.
pub fn last_level_cache(caps: &Caps) -> u64 {
    if caps.target != backend::Target::Host {
        return 128 << 20;
    }
    let size = |i: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).ok()?;
        crate::units::bytes(text.trim())
    };
    (0..8).filter_map(size).max().unwrap_or(32 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_read_from_gits_files() {
        let dir = std::env::temp_dir().join(format!("trimtab-bench-git-{}", std::process::id()));
        let git = dir.join(".git");
        std::fs::create_dir_all(git.join("refs/heads")).unwrap();
        let hash = "0123456789abcdef0123456789abcdef01234567";
        let write = |name: &str, text: &str| std::fs::write(git.join(name), text).unwrap();
        write("HEAD", hash);
        assert_eq!(head(&git).as_deref(), Some("0123456789ab"));
        write("HEAD", "ref: refs/heads/main\n");
        assert_eq!(head(&git), None);
        write("packed-refs", &format!("# pack-refs\n{hash} refs/heads/main\n"));
        assert_eq!(head(&git).as_deref(), Some("0123456789ab"));
        write("refs/heads/main", "not a hash\n");
        assert_eq!(head(&git), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
