//! Compiled kernels on disk, so that a second start compiles nothing. The key is everything the result depends on:
//! sources, options (architecture and constants among them) and the compiler's version. Files appear whole, by a
//! rename, so processes that start at once do each other no harm; a file that was damaged is compiled anew; without
//! a place to write, everything is compiled each time.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::compile::{Compiled, Output, compile, options, version};
use super::kernels::KERNELS;
use crate::error::Result;
use crate::system;

/// The folder, if the system has a place for caches.
pub fn folder() -> Option<PathBuf> {
    Some(system::cache_dir()?.join("cuda"))
}

/// `kernels/<file>.cu` compiled, from the folder if it is there; the log is kept with the code.
pub fn compiled(file: &str, defines: &[(&'static str, i64)], arch: u32, output: Output) -> Result<Compiled> {
    let version = version()?;
    let text = KERNELS.iter().filter(|(name, _)| name.ends_with(".cuh") || name.strip_suffix(".cu") == Some(file));
    let key = digest(&(text.collect::<Vec<_>>(), options(defines, arch, output), version));
    let folder = folder();
    let path = folder.as_deref().map(|f| f.join(format!("{file}-{key:032x}")));
    if let Some(found) = path.as_deref().and_then(read) {
        return Ok(found);
    }
    let fresh = compile(file, defines, arch, output)?;
    if let Some(path) = path {
        write(&path, &fresh);
    }
    Ok(fresh)
}

/// 128 bits of two differently started SipHashes. A change of the hash in another build only misses.
fn digest(x: &impl Hash) -> u128 {
    let half = |start: u8| {
        let mut hasher = DefaultHasher::new();
        (start, x).hash(&mut hasher);
        hasher.finish() as u128
    };
    half(1) << 64 | half(2)
}

/// The file's layout: digest of the rest (16 bytes), length of the log (8), log, code.
fn read(path: &Path) -> Option<Compiled> {
    let bytes = std::fs::read(path).ok()?;
    let (sum, rest) = bytes.split_first_chunk::<16>()?;
    if u128::from_le_bytes(*sum) != digest(&rest) {
        return None;
    }
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (log, code) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some(Compiled { code: code.to_vec(), log: String::from_utf8_lossy(log).into_owned() })
}

/// Failing to write costs time, not results, so it is passed over.
fn write(path: &Path, compiled: &Compiled) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut rest = (compiled.log.len() as u64).to_le_bytes().to_vec();
    rest.extend_from_slice(compiled.log.as_bytes());
    rest.extend_from_slice(&compiled.code);
    let mut bytes = digest(&rest.as_slice()).to_le_bytes().to_vec();
    bytes.extend(rest);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_extension(format!("{}.{number}", std::process::id()));
    let wrote = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&aside, bytes));
    if wrote.and_then(|()| std::fs::rename(&aside, path)).is_err() {
        let _ = std::fs::remove_file(&aside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_whole_or_not_at_all() {
        let dir = std::env::temp_dir().join(format!("trimtab-cache-{}", std::process::id()));
        let path = dir.join("kernel");
        assert!(read(&path).is_none());
        let kept = Compiled { code: vec![1, 2, 3], log: "7 registers".into() };
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| write(&path, &kept));
            }
        });
        let found = read(&path).expect("it was written");
        assert_eq!((found.code, found.log), (kept.code, kept.log));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "something was left beside it");
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert!(read(&path).is_none(), "the first {n} bytes were taken for the file");
            let mut flipped = whole.clone();
            flipped[n] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert!(read(&path).is_none(), "a changed byte {n} was not seen");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
