//! How much work one submit holds.
//!
//! Systems reset a GPU whose submit runs for seconds, and a desktop freezes during one; many tiny submits waste time.
//! So the work in a submit starts small and follows what submits were seen to take. What is computed does not depend
//! on where the list is cut.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Gpu;
use crate::error::Result;

/// Submits in flight: enough to keep the device busy while the next one is written.
const IN_FLIGHT: usize = 3;

pub struct Pace {
    /// Work of a submit, in the unit of [`super::record::work`].
    budget: f64,
    target: Duration,
    queue: VecDeque<(wgpu::SubmissionIndex, f64, Instant)>,
    last_done: Instant,
}

impl Pace {
    pub fn new(software: bool) -> Pace {
        // At the first guess, a weak integrated GPU and a rasterizer on two cores both take some 20 ms.
        let budget = if software { 5e7 } else { 4e9 };
        let target = Duration::from_millis(if software { 250 } else { 100 });
        Pace { budget, target, queue: VecDeque::new(), last_done: Instant::now() }
    }

    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// Notes a submit; waits for an older one if too many are in flight.
    pub fn submitted(&mut self, gpu: &Gpu, index: wgpu::SubmissionIndex, work: f64) -> Result<()> {
        self.queue.push_back((index, work, Instant::now()));
        while self.queue.len() > IN_FLIGHT {
            let Some((index, work, since)) = self.queue.pop_front() else { break };
            let asked = Instant::now();
            gpu.wait(Some(index))?;
            let done = Instant::now();
            self.learn(work, done - since.max(self.last_done), done - asked);
            self.last_done = done;
        }
        Ok(())
    }

    /// `took` key_range the time of a submit from above, and is it if we were `blocked` for it.
    fn learn(&mut self, work: f64, took: Duration, blocked: Duration) {
        if took < self.target / 2 && work > self.budget / 2.0 {
            self.budget *= 1.5;
        } else if took > self.target && blocked > took / 4 {
            self.budget *= (self.target.as_secs_f64() / took.as_secs_f64()).max(0.25);
        }
        self.budget = self.budget.clamp(1e6, 1e15);
    }

    /// All submits are done.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_settles_where_a_submit_takes_the_target() {
        for rate in [1e9, 1e12, 1e14] {
            let mut pace = Pace::new(false);
            for _ in 0..100 {
                let took = Duration::from_secs_f64(pace.budget() / rate);
                pace.learn(pace.budget(), took, took);
            }
            let took = pace.budget() / rate;
            assert!((0.04..=0.11).contains(&took), "{rate}: {took} s");
        }
    }

    #[test]
    fn a_device_that_waits_for_us_is_not_taken_for_slow() {
        let mut pace = Pace::new(false);
        let before = pace.budget();
        pace.learn(before, Duration::from_secs(1), Duration::ZERO);
        assert_eq!(pace.budget(), before);
    }
}
