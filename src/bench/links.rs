//! `trimtab bench links`: how fast bytes come to the device and go back, alone and beside a product, and how fast files and memory
//! are: what streaming lives on.

use std::io::{Read, Seek, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::ceiling::square;
use super::environment;
use super::place::Work;
use super::stats::{Patience, Stats};
use super::table::{Better, Column, Report, Show, column, row};
use crate::backend::{self, Backend, Device, Slice, Target};
use crate::cpu::par;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::linear;
use crate::system::Instant;
use crate::units::human;

const COLUMNS: &[Column] = &[
    column("name", "link", Show::Text),
    column("median", "GB/s", Show::Number),
    column("p20", "p20", Show::Number),
    column("p80", "p80", Show::Number),
    column("cv", "cv", Show::Percent),
    column("hidden", "hidden beside a product", Show::Percent),
];

/// Bytes of the transfers: from what fits a cache to what fits none.
const SIZES: [u64; 4] = [64 << 10, 1 << 20, 16 << 20, 256 << 20];

/// Measures them; files are written into `folder`. Nothing is larger than `most` bytes.
pub fn run(device: &Device, folder: &Path, most: u64, patience: &Patience, on: &mut dyn FnMut(&str)) -> Result<Report> {
    let mut backend = backend::open(device)?;
    let backend = &mut *backend;
    let mut environment = environment::of(device, backend.caps());
    let before = environment::clock();
    let mut rows = Vec::new();
    let most = most.clamp(SIZES[0], *SIZES.last().unwrap_or(&SIZES[0]));
    on("memory");
    rows.extend(memory(most, patience)?);
    let most_once = most.min(backend.caps().max_buffer);
    for bytes in SIZES.into_iter().filter(|&bytes| bytes <= most_once) {
        on(&format!("{} to the device and back", human(bytes)));
        rows.extend(transfers(backend, bytes, patience)?);
    }
    on("files");
    rows.extend(files(folder, most, patience)?);
    environment::clocks(&mut environment, before);
    let about = match backend.caps().target {
        Target::Host => "the device's memory is this process's: a transfer is a copy by one thread",
        Target::Cuda => "through 4 MiB of pinned memory in two halves, on a stream of its own",
        Target::Wgsl => "through the queue's staging memory, which the driver pins",
        Target::Null => "nothing is moved",
    };
    let facts = json!({"transfers": about, "files": folder.display().to_string()});
    let facts = facts.as_object().cloned().unwrap_or_default();
    Ok(Report { bench: "links", environment, facts, columns: COLUMNS, rows })
}

fn rate(name: &str, bytes: u64, stats: &Stats) -> Map<String, Value> {
    let mut map = row(name, "GB/s", Better::Higher, &stats.rate(bytes as f64 / 1e9));
    map.insert("bytes".into(), bytes.into());
    map
}

fn timed(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    f()?;
    Ok(began.elapsed().as_secs_f64())
}

/// This process's memory: read by all threads, copied by one and by all.
fn memory(bytes: u64, patience: &Patience) -> Result<Vec<Map<String, Value>>> {
    const PIECE: usize = 1 << 18;
    let n = bytes as usize / 4;
    let from = vec![1u32; n];
    let mut to = vec![0u32; n];
    let size = human(bytes);
    let read = patience.measure(&mut || {
        timed(|| {
            par::ranges(n, PIECE, |r| {
                let sum = from[r].iter().fold(0u32, |sum, x| sum.wrapping_add(*x));
                std::hint::black_box(sum);
            });
            Ok(())
        })
    })?;
    let one = patience.measure(&mut || {
        timed(|| {
            std::hint::black_box(&mut to).copy_from_slice(&from);
            Ok(())
        })
    })?;
    let all = patience.measure(&mut || {
        timed(|| {
            par::chunks(&mut to, PIECE, |i, part| part.copy_from_slice(&from[i * PIECE..][..part.len()]));
            Ok(())
        })
    })?;
    // A copy moves each byte twice.
    Ok(vec![
        rate(&format!("memory read by all threads, {size}"), 4 * n as u64, &read),
        rate(&format!("memory copied by one thread, {size}"), 8 * n as u64, &one),
        rate(&format!("memory copied by all threads, {size}"), 8 * n as u64, &all),
    ])
}

/// To the device and back: alone, and how much of the shorter time is hidden beside a product that was submitted before.
fn transfers(device: &mut dyn Backend, bytes: u64, patience: &Patience) -> Result<Vec<Map<String, Value>>> {
    let mut host = vec![1u8; bytes as usize];
    let buffer = device.alloc(bytes)?;
    let slice = Slice { buffer, offset: 0, bytes };
    let n: usize = match device.caps().target {
        _ if device.caps().software => 128,
        Target::Host => 512,
        _ => 2048,
    };
    let placed = Work { op: &linear::LINEAR, case: &square(n, DType::F32) }.place(device)?;
    let product = patience.measure(&mut || {
        timed(|| {
            device.replay(placed.recording)?;
            device.sync()
        })
    })?;
    let mut rows = Vec::new();
    for up in [true, false] {
        let mut run = |beside: bool| -> Result<Stats> {
            patience.measure(&mut || {
                timed(|| {
                    if beside {
                        device.replay(placed.recording)?;
                    }
                    match up {
                        true => device.upload(slice, &host)?,
                        false => device.download(slice, &mut host)?,
                    }
                    device.sync()
                })
            })
        };
        let (alone, both) = (run(false)?, run(true)?);
        let shorter = alone.median.min(product.median);
        let hidden = ((alone.median + product.median - both.median) / shorter).clamp(0.0, 1.0);
        let name = if up { "host to device" } else { "device to host" };
        let mut map = rate(&format!("{name}, {}", human(bytes)), bytes, &alone);
        map.insert("hidden".into(), hidden.into());
        rows.push(map);
    }
    placed.free(device);
    device.free(buffer);
    Ok(rows)
}

/// A file: written and synced; read again, from the system's cache, and where Linux lets go of that, from the disk.
fn files(folder: &Path, bytes: u64, patience: &Patience) -> Result<Vec<Map<String, Value>>> {
    let path = folder.join(format!("trimtab-bench-links-{}", crate::system::process_id()));
    let outcome = file_rows(&path, bytes, patience);
    let _ = std::fs::remove_file(&path);
    outcome
}

fn file_rows(path: &Path, bytes: u64, patience: &Patience) -> Result<Vec<Map<String, Value>>> {
    let io = |e| Error::io(path, e);
    let mut file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(io)?;
    let mut piece = vec![7u8; (4 << 20).min(bytes as usize)];
    let rounds = bytes as usize / piece.len();
    let write = patience.measure(&mut || {
        timed(|| {
            file.rewind().map_err(io)?;
            (0..rounds).try_for_each(|_| file.write_all(&piece)).map_err(io)?;
            file.sync_all().map_err(io)
        })
    })?;
    let mut rows = vec![rate(&format!("file written and synced, {}", human(bytes)), bytes, &write)];
    for cached in [true, false] {
        if !cached && !forget(&file) {
            continue;
        }
        let read = patience.measure(&mut || {
            if !cached {
                forget(&file);
            }
            timed(|| {
                file.rewind().map_err(io)?;
                (0..rounds).try_for_each(|_| file.read_exact(&mut piece)).map_err(io)
            })
        })?;
        let from = if cached { "the system's cache" } else { "the disk" };
        rows.push(rate(&format!("file read from {from}, {}", human(bytes)), bytes, &read));
    }
    Ok(rows)
}

/// Asks Linux to let go of what it has of the file; false where that cannot be asked.
fn forget(file: &std::fs::File) -> bool {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open; the call takes numbers only.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) == 0 }
    }
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    {
        let _ = file;
        false
    }
}
