//! What is off the device: files that are read and written by position, not mapped, so that their bytes are in the
//! system's cache and not in this process. Threads read ahead and write what left the device while launches run.

mod threads;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::graph::Val;
use crate::system::{self, Instant, read_at, write_at};

use threads::Threads;
pub use threads::{Request, Ticket, Way};

/// A stretch of a value.
#[derive(Clone, Debug)]
pub struct Part {
    /// First byte of the value that it holds.
    pub to: u64,
    /// Length.
    pub bytes: u64,
    /// Where they are.
    pub from: From,
}

/// Where the bytes of a part are.
#[derive(Clone, Debug)]
pub enum From {
    /// In a file, from this byte on.
    File(Arc<File>, u64),
    /// In memory.
    Bytes(Vec<u8>),
}

/// A value off the device. Bytes that no part holds are padding that nothing reads.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Stretches of the value; none overlaps another.
    pub parts: Vec<Part>,
}

impl Store {
    /// Reads the value's bytes from `offset` on.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        for part in &self.parts {
            let (first, last) = (part.to.max(offset), (part.to + part.bytes).min(end));
            if first >= last {
                continue;
            }
            let into = &mut into[(first - offset) as usize..(last - offset) as usize];
            match &part.from {
                From::File(file, at) => read_at(file, into, at + first - part.to)?,
                From::Bytes(bytes) => into.copy_from_slice(&bytes[(first - part.to) as usize..][..into.len()]),
            }
        }
        Ok(())
    }

    /// Writes the value's bytes from `offset` on.
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let end = offset + from.len() as u64;
        for part in &self.parts {
            let (first, last) = (part.to.max(offset), (part.to + part.bytes).min(end));
            if let (true, From::File(file, at)) = (first < last, &part.from) {
                let from = &from[(first - offset) as usize..(last - offset) as usize];
                write_at(file, from, at + first - part.to)?;
            }
        }
        Ok(())
    }
}

/// What was moved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// Bytes to the device.
    pub fetched: u64,
    /// Bytes off the device, to where they are kept.
    pub stored: u64,
    /// Time in which nothing ran because bytes were not there yet, or were being stored.
    pub stalled: Duration,
}

/// All that is off the device, and the threads that move it.
pub struct Offload {
    stores: HashMap<Val, Arc<Store>>,
    /// Where the file for what is in no file yet is made.
    dir: PathBuf,
    spill: Option<Spill>,
    threads: Option<Threads>,
    /// Counts of what was moved.
    pub moved: Moved,
}

/// A file for values that are in no file in the form they are needed in. It is gone when it is closed, however the process ends.
struct Spill {
    file: Arc<File>,
    path: PathBuf,
    bytes: u64,
}

impl Offload {
    /// Nothing is off the device yet; `dir` is for the file of what is in no file yet.
    pub fn new(dir: PathBuf) -> Offload {
        Offload { stores: HashMap::new(), dir, spill: None, threads: None, moved: Moved::default() }
    }

    /// Where the file for what is in no file yet is to be made, if it is not made yet.
    pub fn set_dir(&mut self, dir: &Path) {
        self.dir = dir.into();
    }

    /// Says where the value of a leaf is.
    pub fn bind(&mut self, leaf: Val, store: Store) {
        self.stores.insert(leaf, Arc::new(store));
    }

    /// Whether it was said where the value of a leaf is, or some of it was written.
    pub fn has(&self, leaf: Val) -> bool {
        self.stores.contains_key(&leaf)
    }

    /// The store of a leaf of `bytes` bytes; zeros in the spill file if it has none yet.
    pub fn store(&mut self, leaf: Val, bytes: u64) -> Result<Arc<Store>> {
        if let Some(store) = self.stores.get(&leaf) {
            return Ok(store.clone());
        }
        if self.spill.is_none() {
            self.spill = Some(spill(&self.dir)?);
        }
        let Some(spill) = &mut self.spill else { return Ok(Arc::default()) };
        let at = spill.bytes;
        spill.bytes = (at + bytes).next_multiple_of(4096);
        spill.file.set_len(spill.bytes).map_err(|e| Error::io(&spill.path, e))?;
        let part = Part { to: 0, bytes, from: From::File(spill.file.clone(), at) };
        let store = Arc::new(Store { parts: vec![part] });
        self.stores.insert(leaf, store.clone());
        Ok(store)
    }

    /// Reads from `offset` on of a leaf that has `bytes` bytes; waits.
    pub fn read(&mut self, leaf: Val, bytes: u64, offset: u64, into: &mut [u8]) -> Result<()> {
        let read = self.store(leaf, bytes)?.read(offset, into);
        read.map_err(|e| self.failed(e))
    }

    /// Writes from `offset` on into a leaf that has `bytes` bytes; waits. What of it is in memory stays as it was.
    pub fn write(&mut self, leaf: Val, bytes: u64, offset: u64, from: &[u8]) -> Result<()> {
        let written = self.store(leaf, bytes)?.write(offset, from);
        written.map_err(|e| self.failed(e))
    }

    /// Starts to read a store, or to write it, beside what follows.
    ///
    /// # Safety
    /// As [`Request`] says of its memory, until [`Offload::wait`] has returned for the ticket or this value is dropped.
    pub unsafe fn start(&mut self, request: Request) -> Ticket {
        let began = Instant::now();
        let bytes = request.memory.bytes as u64;
        match request.way {
            Way::Read => self.moved.fetched += bytes,
            Way::Write => self.moved.stored += bytes,
        }
        let threads = self.threads.get_or_insert_with(Threads::for_this_machine);
        // SAFETY: the caller keeps the memory as the threads need it.
        let ticket = unsafe { threads.start(request) };
        self.moved.stalled += began.elapsed();
        ticket
    }

    /// Waits until a request is done.
    pub fn wait(&mut self, ticket: &Ticket) -> Result<()> {
        let began = Instant::now();
        let done = ticket.wait();
        self.moved.stalled += began.elapsed();
        done.map_err(|e| self.failed(e))
    }

    fn failed(&self, e: io::Error) -> Error {
        Error::io(self.spill.as_ref().map_or(&self.dir, |s| &s.path), e)
    }
}

fn spill(dir: &Path) -> Result<Spill> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!(".trimtab-spill-{}-{number}", system::process_id()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    // FILE_FLAG_DELETE_ON_CLOSE; elsewhere an open file can lose its name.
    #[cfg(windows)]
    std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, 0x0400_0000);
    let file = options.open(&path).map_err(|e| Error::io(&path, e))?;
    #[cfg(unix)]
    std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
    Ok(Spill { file: Arc::new(file), path, bytes: 0 })
}
