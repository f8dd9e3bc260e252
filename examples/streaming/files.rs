//! The threads that read and write files, simulated as `src/offload/threads.rs` has them: requests of a kind are done in order, by
//! all threads; while there is something to write, one of them writes and does not read, and a thread that is alone reads first.

use std::collections::VecDeque;

use trimtab::offload::Way;

/// Requests under way, each a number and its seconds of work that are left: of a read, if all threads read.
pub struct Files {
    threads: f64,
    now: f64,
    reads: VecDeque<(usize, f64)>,
    writes: VecDeque<(usize, f64)>,
}

impl Files {
    pub fn new(threads: f64) -> Files {
        Files { threads, now: 0.0, reads: VecDeque::new(), writes: VecDeque::new() }
    }

    /// A request that comes at `time`, no earlier than those before.
    pub fn add(&mut self, way: Way, number: usize, seconds: f64, time: f64) {
        self.work(time, None);
        self.now = self.now.max(time);
        match way {
            Way::Read => self.reads.push_back((number, seconds)),
            Way::Write => self.writes.push_back((number, seconds)),
        }
    }

    /// When request `number` is done for someone who waits from `time` on, and until then adds none.
    pub fn wait(&mut self, number: usize, time: f64) -> f64 {
        self.work(time, None);
        if self.reads.iter().chain(&self.writes).any(|(other, _)| *other == number) {
            self.work(f64::INFINITY, Some(number));
        }
        self.now.max(time)
    }

    /// Works until `time`, until nothing is left, or until a request is done.
    fn work(&mut self, time: f64, wanted: Option<usize>) {
        while self.now < time {
            let (reading, writing) = self.shares();
            let end = |first: Option<&(usize, f64)>, share: f64| match first {
                Some((_, seconds)) if share > 0.0 => seconds / share,
                _ => f64::INFINITY,
            };
            let [read, write] = [end(self.reads.front(), reading), end(self.writes.front(), writing)];
            let step = read.min(write).min(time - self.now);
            if step == f64::INFINITY {
                return;
            }
            self.now += step;
            // What ends is taken away, not counted down: there is no rounding of a sum to nothing.
            let spend = |requests: &mut VecDeque<(usize, f64)>, ends: f64, share: f64| {
                if ends <= step {
                    return requests.pop_front().map(|(number, _)| number);
                }
                requests.iter_mut().take(1).for_each(|(_, seconds)| *seconds -= step * share);
                None
            };
            let done = [spend(&mut self.reads, read, reading), spend(&mut self.writes, write, writing)];
            if wanted.is_some() && done.contains(&wanted) {
                return;
            }
        }
    }

    /// Of all that threads could read, how much they do, and of all that one could write.
    fn shares(&self) -> (f64, f64) {
        let writes = !self.writes.is_empty();
        match (writes, self.threads > 1.0) {
            (false, _) => (1.0, 0.0),
            (true, true) => (1.0 - 1.0 / self.threads, 1.0),
            (true, false) if self.reads.is_empty() => (0.0, 1.0),
            (true, false) => (1.0, 0.0),
        }
    }
}
