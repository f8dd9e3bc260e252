//! A step's transfers beside its kernels, simulated: the plan's schedule, walked as the executor does on a CUDA card.
//!
//! There are a host thread, the stream of kernels, one of copies to the card and one of copies from it, and threads that read
//! and write files ([`Files`]). Of these others, each does its work in order and is known by the time at which it is free, so an
//! action takes place at the latest of the times that it waits for:
//!
//! ```text
//! run      kernels = max(kernels, host) + its seconds                          the host goes on at once
//! start    host    = max(host, end of the copies from or to the same memory)   point = kernels
//!          bytes / read of seconds more to read                                none if host memory holds them
//! wait     host    = max(host, its end of reading)
//!          up      = max(up, host, point) + bytes / up                         kernels = max(kernels, up)
//! store    host    = max(host, end of the copies from or to the same memory)
//!          down    = max(down, host, kernels) + bytes / down                   kernels = max(kernels, down)
//! write    host    = max(host, its end of copying)                             nothing if host memory holds them
//!          bytes / write of seconds more to write
//! written  host    = max(host, its end of writing)
//! ```
//!
//! Kernels wait for a copy from the card since the plan gives the place to others after it.
//!
//! Not modelled: that copies and kernels share the bandwidth of a memory; the host's own time to submit; the pieces that files
//! are read and written in; tokens and scalars that go to and from the card once a step.

use std::ops::Range;

use trimtab::graph::Val;
use trimtab::offload::Way;
use trimtab::plan::{Move, Step};

use crate::files::Files;

/// Bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// To the card, and from it.
    pub up: f64,
    pub down: f64,
    /// From files, by so many threads together; into them, by one.
    pub read: f64,
    pub threads: f64,
    pub write: f64,
}

/// Seconds at which each part is free, and what it has done for transfers.
pub struct Simulation<'a> {
    moves: &'a [Move],
    /// Values that host memory holds.
    held: &'a [Val],
    rates: Rates,
    host: f64,
    kernels: f64,
    up: f64,
    down: f64,
    files: Files,
    /// By move: the point of the kernels at its start.
    points: Vec<f64>,
    /// By move: the end of a store's copying.
    ends: Vec<f64>,
    /// Moves whose bytes are copied from host memory or into it, each with the end of that.
    copied: Vec<(usize, f64)>,
}

impl<'a> Simulation<'a> {
    pub fn new(moves: &'a [Move], held: &'a [Val], rates: Rates) -> Simulation<'a> {
        let none = vec![0.0; moves.len()];
        Simulation {
            moves,
            held,
            rates,
            host: 0.0,
            kernels: 0.0,
            up: 0.0,
            down: 0.0,
            files: Files::new(rates.threads),
            points: none.clone(),
            ends: none,
            copied: Vec::new(),
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
                Step::Write(m) if self.is_held(*m) => {}
                Step::Write(m) => {
                    self.host = self.host.max(self.ends[*m]);
                    self.files.add(Way::Write, *m, self.bytes(*m) / self.rates.write, self.host);
                }
                Step::Written(m) => self.host = self.files.wait(*m, self.host),
            }
        }
    }

    /// When all is done.
    pub fn end(&self) -> f64 {
        [self.kernels, self.up, self.down].into_iter().fold(self.host, f64::max)
    }

    fn bytes(&self, m: usize) -> f64 {
        self.moves[m].place.bytes as f64
    }

    fn start(&mut self, m: usize) {
        self.points[m] = self.kernels;
        self.settle(m);
        if self.is_held(m) {
            return;
        }
        self.files.add(Way::Read, m, self.bytes(m) / self.rates.read, self.host);
    }

    fn wait(&mut self, m: usize) {
        self.host = self.files.wait(m, self.host);
        self.up = self.up.max(self.host).max(self.points[m]) + self.bytes(m) / self.rates.up;
        self.kernels = self.kernels.max(self.up);
        self.copied.push((m, self.up));
    }

    fn store(&mut self, m: usize) {
        self.settle(m);
        self.down = self.down.max(self.host).max(self.kernels) + self.bytes(m) / self.rates.down;
        self.kernels = self.kernels.max(self.down);
        self.ends[m] = self.down;
        self.copied.push((m, self.down));
    }

    fn is_held(&self, m: usize) -> bool {
        self.held.contains(&self.moves[m].leaf)
    }

    /// The host waits until nothing is copied from the memory that a move goes through, or into it.
    fn settle(&mut self, m: usize) {
        let same = self.copied.iter().filter(|(other, _)| self.share(*other, m));
        self.host = same.fold(self.host, |host, (_, end)| host.max(*end));
        self.copied.retain(|(_, end)| *end > self.host);
    }

    /// Whether two moves have bytes of memory in common: what is held has its own, others have staging memory.
    fn share(&self, one: usize, other: usize) -> bool {
        let [a, b] = [&self.moves[one], &self.moves[other]];
        match (self.is_held(one), self.is_held(other)) {
            (true, true) => a.leaf == b.leaf,
            (false, false) => a.staging < b.staging + b.place.bytes && b.staging < a.staging + a.place.bytes,
            _ => false,
        }
    }
}
