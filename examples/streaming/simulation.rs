//! A step's transfers beside its kernels, simulated: the plan's schedule, walked as the executor does on a CUDA card.
//!
//! There are a host thread, the stream of kernels, a stream of copies to the card, the thread that reads files and, where
//! stores do not block, a stream of copies from the card and a thread that writes files. Each does its work in order and is
//! known by the time at which it is free, so an action takes place at the latest of the times that it waits for:
//!
//! ```text
//! run     kernels = max(kernels, host) + its seconds                          the host goes on at once
//! start   host    = max(host, end of the copies that read the same staging)   point = kernels
//!         reader  = max(reader, host, end of the writing of the same bytes) + bytes / read
//! wait    host    = max(host, its end of reading)
//!         up      = max(up, host, point) + bytes / up                         kernels = max(kernels, up)
//! store   host    = max(host, kernels, up) + bytes / down + bytes / copy + bytes / write
//! beside  down    = max(down, host, kernels) + bytes / down                   kernels = max(kernels, down)
//!         writer  = max(writer, down) + bytes / write                         the host goes on at once
//! ```
//!
//! Every one of these is a maximum of sums in an order that the plan fixes, so that no step is slower for a faster part.
//! Kernels wait for a copy from the card since the plan gives the place to others after it.
//!
//! Not modelled: that copies and kernels share the bandwidth of a memory; the host's own time to submit, and that at most 1,024
//! reads are under way; tokens and scalars that go to and from the card once a step; the limit of the memory that copies from
//! the card would go to.

use std::ops::Range;

use trimtab::plan::{Move, Step};

/// Bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// To the card, and from it.
    pub up: f64,
    pub down: f64,
    /// Within the host's memory, by one thread.
    pub copy: f64,
    /// From files, and into them.
    pub read: f64,
    pub write: f64,
}

/// How values leave the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// The host waits for the kernels, copies, and writes the file.
    Blocking,
    /// Another stream copies, and a thread writes.
    Beside,
}

/// Seconds at which each part is free, and what it has done for transfers.
pub struct Simulation<'a> {
    moves: &'a [Move],
    rates: Rates,
    stores: Stores,
    host: f64,
    kernels: f64,
    up: f64,
    down: f64,
    reader: f64,
    writer: f64,
    /// By move: the point of the kernels and the end of reading.
    started: Vec<(f64, f64)>,
    /// Moves whose bytes are copied from staging memory, and those whose bytes are written, each with the end of that.
    copied: Vec<(usize, f64)>,
    written: Vec<(usize, f64)>,
}

impl<'a> Simulation<'a> {
    pub fn new(moves: &'a [Move], rates: Rates, stores: Stores) -> Simulation<'a> {
        Simulation {
            moves,
            rates,
            stores,
            host: 0.0,
            kernels: 0.0,
            up: 0.0,
            down: 0.0,
            reader: 0.0,
            writer: 0.0,
            started: vec![(0.0, 0.0); moves.len()],
            copied: Vec::new(),
            written: Vec::new(),
        }
    }

    /// Does what a phase does; `seconds` are those of launches of the phase, by their numbers.
    pub fn phase(&mut self, steps: &[Step], seconds: &dyn Fn(Range<usize>) -> f64) {
        for step in steps {
            match step {
                Step::Run(launches) => self.kernels = self.kernels.max(self.host) + seconds(launches.clone()),
                Step::Start(m) => self.start(*m),
                Step::Wait(m) => self.wait(*m),
                Step::Store(m) => self.store(*m),
            }
        }
    }

    /// When all is done.
    pub fn end(&self) -> f64 {
        [self.kernels, self.up, self.down, self.reader, self.writer].into_iter().fold(self.host, f64::max)
    }

    fn bytes(&self, m: usize) -> f64 {
        self.moves[m].place.bytes as f64
    }

    fn start(&mut self, m: usize) {
        self.settle(m);
        let own = &self.moves[m];
        let whole = self.latest(&self.written, |w| w.leaf == own.leaf && overlap((w.offset, w), (own.offset, own)));
        self.reader = self.reader.max(self.host).max(whole) + self.bytes(m) / self.rates.read;
        self.started[m] = (self.kernels, self.reader);
    }

    fn wait(&mut self, m: usize) {
        let (point, read) = self.started[m];
        self.host = self.host.max(read);
        self.up = self.up.max(self.host).max(point) + self.bytes(m) / self.rates.up;
        self.kernels = self.kernels.max(self.up);
        self.copied.push((m, self.up));
    }

    fn store(&mut self, m: usize) {
        let (bytes, Rates { down, copy, write, .. }) = (self.bytes(m), self.rates);
        if self.stores == Stores::Blocking {
            self.settle(m);
            self.host = self.host.max(self.kernels).max(self.up) + bytes / down + bytes / copy + bytes / write;
            return;
        }
        self.down = self.down.max(self.host).max(self.kernels) + bytes / down;
        self.kernels = self.kernels.max(self.down);
        self.writer = self.writer.max(self.down) + bytes / write;
        self.written.push((m, self.writer));
    }

    /// The host waits until no copy reads the staging memory of a move.
    fn settle(&mut self, m: usize) {
        let own = &self.moves[m];
        let free = self.latest(&self.copied, |c| overlap((c.staging, c), (own.staging, own)));
        self.host = self.host.max(free);
        self.copied.retain(|(_, end)| *end > self.host);
    }

    /// The last end among those of moves that are `such`.
    fn latest(&self, ends: &[(usize, f64)], such: impl Fn(&Move) -> bool) -> f64 {
        ends.iter().filter(|(m, _)| such(&self.moves[*m])).fold(0.0, |last, (_, end)| last.max(*end))
    }
}

/// Whether two moves, each with its first byte in the same memory, have bytes in common.
fn overlap((a, one): (u64, &Move), (b, other): (u64, &Move)) -> bool {
    a < b + other.place.bytes && b < a + one.place.bytes
}
