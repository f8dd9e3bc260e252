//! Threads that read files and write them. A request is cut into pieces, so that one request is done by all of them.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::Store;
use crate::backend::HostSlice;

/// Bytes of a piece at least: a copy of fewer is no longer than the waking of a thread.
const LEAST: usize = 1 << 20;

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the store into memory.
    Read,
    /// From memory into the store.
    Write,
}

/// Bytes between a store, from `offset` on, and memory, as many as that has. Until it is done, the memory must be valid, and
/// nothing else may write it, or read it if the request writes there.
#[derive(Clone)]
pub struct Request {
    /// What they are for the files.
    pub way: Way,
    /// The value off the device.
    pub store: Arc<Store>,
    /// Its first byte.
    pub offset: u64,
    /// The process's side.
    pub memory: HostSlice,
}

impl Request {
    fn carry_out(&self) -> io::Result<()> {
        let HostSlice { ptr, bytes } = self.memory;
        match self.way {
            // SAFETY: who made the request keeps the range valid and to us until it has waited.
            Way::Read => self.store.read(self.offset, unsafe { std::slice::from_raw_parts_mut(ptr, bytes) }),
            // SAFETY: as above.
            Way::Write => self.store.write(self.offset, unsafe { std::slice::from_raw_parts(ptr, bytes) }),
        }
    }

    /// The same in pieces: of what is read about as many as there are threads. What is written is in small ones, since a read may
    /// have to wait for one.
    fn pieces(&self, threads: usize) -> Vec<Request> {
        let all = self.memory.bytes;
        let bytes = match self.way {
            Way::Read => all.div_ceil(threads).next_multiple_of(4096).max(LEAST),
            Way::Write => LEAST,
        };
        let piece = |from: usize| {
            let memory = HostSlice { ptr: self.memory.at(from), bytes: bytes.min(all - from) };
            Request { offset: self.offset + from as u64, memory, ..self.clone() }
        };
        (0..all).step_by(bytes).map(piece).collect()
    }
}

/// A request under way.
#[derive(Clone, Default)]
pub struct Ticket(Arc<Progress>);

#[derive(Default)]
struct Progress {
    /// Pieces that are not done, and the first that failed.
    state: Mutex<(usize, Option<io::Error>)>,
    over: Condvar,
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, (usize, Option<io::Error>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until all of the request is done.
    pub fn wait(&self) -> io::Result<()> {
        let undone = |state: &mut (usize, Option<io::Error>)| state.0 > 0;
        let waited = self.0.over.wait_while(self.0.state(), undone);
        waited.unwrap_or_else(PoisonError::into_inner).1.take().map_or(Ok(()), Err)
    }
}

/// A part of a request.
struct Piece {
    request: Request,
    progress: Arc<Progress>,
}

impl Piece {
    fn carry_out(self) {
        // After a panic, whoever waits would wait for ever.
        let done = catch_unwind(AssertUnwindSafe(|| self.request.carry_out()));
        let done = done.unwrap_or_else(|_| Err(io::Error::other("a thread for files failed")));
        let mut state = self.progress.state();
        state.0 -= 1;
        if let Err(e) = done {
            state.1.get_or_insert(e);
        }
        self.progress.over.notify_all();
    }
}

/// Pieces that wait for a thread.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// One thread at a time writes: systems let one write a file, and others would wait for it instead of reading. A thread that is
/// alone reads before it writes: kernels wait for what is read, and nobody for what is written until its memory is used again.
#[derive(Default)]
struct Waiting {
    reads: VecDeque<Piece>,
    writes: VecDeque<Piece>,
    /// A thread is writing.
    writing: bool,
    /// There is one thread only.
    alone: bool,
    /// No request comes any more.
    over: bool,
}

impl Waiting {
    fn next(&mut self) -> Option<Piece> {
        let writes = !self.writing && (!self.alone || self.reads.is_empty());
        let write = if writes { self.writes.pop_front() } else { None };
        self.writing |= write.is_some();
        write.or_else(|| self.reads.pop_front())
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, piece: Piece) {
        let mut waiting = self.waiting();
        match piece.request.way {
            Way::Read => waiting.reads.push_back(piece),
            Way::Write => waiting.writes.push_back(piece),
        }
        self.changed.notify_one();
    }

    /// The next piece to carry out; `None` when all is done and no more comes.
    fn next(&self) -> Option<Piece> {
        let mut waiting = self.waiting();
        loop {
            if let Some(piece) = waiting.next() {
                return Some(piece);
            }
            if waiting.over && waiting.writes.is_empty() {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What a thread does until no request can come any more.
    fn work(&self) {
        while let Some(piece) = self.next() {
            let writes = piece.request.way == Way::Write;
            piece.carry_out();
            if writes {
                self.waiting().writing = false;
                // Whoever waits may write now, or end.
                self.changed.notify_all();
            }
        }
    }
}

/// The threads. Where none can be started, a request is carried out when it is made.
pub struct Threads {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// As many as copy from the system's file cache without taking the processor from the launches: a quarter of its own. One
    /// copies some 17 GB/s (docs/memory.md), so that four feed a link of PCIe 5.
    pub fn for_this_machine() -> Threads {
        let own = std::thread::available_parallelism().map_or(1, |n| n.get());
        Threads::new((own / 4).clamp(1, 8))
    }

    fn new(count: usize) -> Threads {
        let queue = Arc::new(Queue::default());
        let start = |_| {
            let queue = queue.clone();
            std::thread::Builder::new().spawn(move || queue.work()).ok()
        };
        let threads: Vec<JoinHandle<()>> = (0..count).filter_map(start).collect();
        queue.waiting().alone = threads.len() == 1;
        Threads { queue, threads }
    }

    /// Starts a request.
    ///
    /// # Safety
    /// As [`Request`] says of its memory, until [`Ticket::wait`] has returned or this value is dropped.
    pub unsafe fn start(&self, request: Request) -> Ticket {
        let pieces = request.pieces(self.threads.len().max(1));
        let ticket = Ticket::default();
        ticket.0.state().0 = pieces.len();
        for request in pieces {
            let piece = Piece { request, progress: ticket.0.clone() };
            if self.threads.is_empty() {
                piece.carry_out();
            } else {
                self.queue.add(piece);
            }
        }
        ticket
    }
}

impl Drop for Threads {
    /// Nothing is read or written any more once this returns.
    fn drop(&mut self) {
        self.queue.waiting().over = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{From, Part};

    /// Three MiB, of which a store holds the bytes from its second on, with gaps before and after.
    fn store() -> (Arc<Store>, Vec<u8>) {
        let bytes: Vec<u8> = (0..3u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let part = Part { to: 2, bytes: bytes.len() as u64, from: From::Bytes(bytes.clone()) };
        (Arc::new(Store { parts: vec![part] }), bytes)
    }

    fn ask(store: &Arc<Store>, way: Way, offset: u64, memory: &mut [u8]) -> Request {
        Request {
            way,
            store: store.clone(),
            offset,
            memory: HostSlice { ptr: memory.as_mut_ptr(), bytes: memory.len() },
        }
    }

    #[test]
    fn any_number_of_threads_reads_the_same_bytes() {
        let (store, bytes) = store();
        for threads in [0, 1, 2, 3, 8] {
            let threads = Threads::new(threads);
            let (mut first, mut second) = (vec![0; bytes.len()], vec![0; 5]);
            // SAFETY: both are waited for before they are read.
            let tickets = unsafe {
                [
                    threads.start(ask(&store, Way::Read, 0, &mut first)),
                    threads.start(ask(&store, Way::Read, 1 << 20, &mut second)),
                ]
            };
            tickets.iter().rev().for_each(|ticket| ticket.wait().unwrap());
            tickets[0].wait().unwrap();
            assert!(first[..2] == [0, 0] && first[2..] == bytes[..bytes.len() - 2]);
            assert_eq!(second, bytes[(1 << 20) - 2..][..5]);
        }
    }

    #[test]
    fn one_thread_writes_and_one_that_is_alone_reads_first() {
        let (store, _) = store();
        let mut memory = vec![0; 2 << 20];
        let mut order = |alone: bool| -> Vec<u64> {
            let (queue, ticket) = (Queue::default(), Ticket::default());
            queue.waiting().alone = alone;
            for (offset, way) in [Way::Write, Way::Read, Way::Write, Way::Read].into_iter().enumerate() {
                let request = ask(&store, way, offset as u64, &mut memory);
                queue.add(Piece { request, progress: ticket.0.clone() });
            }
            queue.waiting().over = true;
            // The one that writes is at it until nobody else has anything to do.
            let mut found = Vec::new();
            loop {
                let next = queue.waiting().next();
                match next {
                    Some(piece) => found.push(piece.request.offset),
                    None if queue.waiting().writing => queue.waiting().writing = false,
                    None => break found,
                }
            }
        };
        assert_eq!(order(false), [0, 1, 3, 2]);
        assert_eq!(order(true), [1, 3, 0, 2]);
    }

    #[test]
    fn pieces_are_the_whole_and_of_reads_no_more_than_the_threads() {
        let (store, _) = store();
        let mut memory = vec![0; (7 << 20) + 5];
        for (way, bytes, threads, count) in [
            (Way::Read, 0, 4, 0),
            (Way::Read, 1, 4, 1),
            (Way::Read, 1 << 20, 4, 1),
            (Way::Read, (1 << 20) + 1, 4, 2),
            (Way::Read, 7 << 20, 4, 4),
            (Way::Read, (7 << 20) + 5, 3, 3),
            (Way::Write, (7 << 20) + 5, 3, 8),
        ] {
            let request = ask(&store, way, 9, &mut memory[..bytes]);
            let pieces = request.pieces(threads);
            assert_eq!(pieces.len(), count, "{way:?} {bytes} bytes, {threads} threads");
            let mut at = 0;
            for piece in pieces {
                assert_eq!((piece.offset, piece.memory.ptr), (9 + at as u64, request.memory.at(at)));
                at += piece.memory.bytes;
            }
            assert_eq!(at, bytes);
        }
    }

    #[test]
    fn what_fails_is_said_once_and_the_next_request_is_done() {
        let path = std::env::temp_dir().join(format!("trimtab-threads-{}", std::process::id()));
        std::fs::write(&path, [1, 2, 3]).unwrap();
        // A file that is too short to read, and one that is not open for writing.
        let file = Arc::new(std::fs::File::open(&path).unwrap());
        let part = Part { to: 0, bytes: 3 << 20, from: From::File(file, 0) };
        let (short, (whole, _)) = (Arc::new(Store { parts: vec![part] }), store());
        let threads = Threads::new(2);
        let mut memory = vec![0; 3 << 20];
        for way in [Way::Read, Way::Write] {
            // SAFETY: waited for before the memory is used again.
            let ticket = unsafe { threads.start(ask(&short, way, 0, &mut memory)) };
            assert!(ticket.wait().is_err(), "{way:?}");
            // SAFETY: as above.
            unsafe { threads.start(ask(&whole, Way::Read, 0, &mut memory)) }.wait().unwrap();
        }
        std::fs::remove_file(&path).unwrap();
    }
}
