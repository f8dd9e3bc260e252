//! What a thread knows of other threads by mbarriers, and which of their writes proxy fences have passed on.
//!
//! The clocks of [`crate::shadow`] know warps; an mbarrier orders single threads. So a lane that has to do with mbarriers
//! or proxy fences keeps a time for each thread of the block besides. An arrival gives the barrier all that its thread
//! knows; who sees the phase end, gets it.

/// Times by thread, and ended phases by mbarrier. Empty: nothing is known beyond what barriers say.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// By thread: everything it did up to this time is over.
    pub threads: Vec<u32>,
    /// By thread: what it wrote up to this time is visible to the asynchronous proxy.
    pub fenced: Vec<u32>,
    /// By mbarrier: how many of its phases have been seen to end.
    pub phases: Vec<u32>,
}

/// The later of both, element by element.
fn later(into: &mut Vec<u32>, from: &[u32]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

impl Knowledge {
    pub fn join(&mut self, other: &Knowledge) {
        later(&mut self.threads, &other.threads);
        later(&mut self.fenced, &other.fenced);
        later(&mut self.phases, &other.phases);
    }

    pub fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.fenced.is_empty() && self.phases.is_empty()
    }

    /// What is known becomes visible to the asynchronous proxy.
    pub fn fence(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        later(&mut self.fenced, &threads);
        self.threads = threads;
    }

    /// Notes that a phase of an mbarrier has ended.
    pub fn passed(&mut self, barrier: usize, phase: u32) {
        if self.phases.len() <= barrier {
            self.phases.resize(barrier + 1, 0);
        }
        self.phases[barrier] = self.phases[barrier].max(phase);
    }
}

/// Whether `times` has `thread` at `time` or later.
pub fn reaches(times: &[u32], thread: usize, time: u32) -> bool {
    times.get(thread).is_some_and(|&t| t >= time)
}
