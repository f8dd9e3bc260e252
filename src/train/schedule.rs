//! Learning-rate schedules, by the formulas of Hugging Face's `get_*_schedule_with_warmup`.

use std::fmt;

/// The course of the learning rate after the warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// The rate stays (`constant_with_warmup`).
    Constant,
    /// The rate falls to zero in a line.
    Linear,
    /// The rate falls to zero along half a cosine.
    Cosine,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: &'static [Schedule] = &[Schedule::Constant, Schedule::Linear, Schedule::Cosine];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::Linear => "linear",
            Schedule::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the learning rate is multiplied with at `step` (0 is the first) of `steps`, of which the first
/// `warmup` rise from zero in a line.
pub fn multiplier(schedule: Schedule, step: u64, warmup: u64, steps: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    // Past the end, where Hugging Face's cosine would rise again, all stay at their last value.
    let after = steps.saturating_sub(warmup).max(1) as f64;
    let progress = ((step - warmup) as f64 / after).min(1.0);
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_are_hugging_faces() {
        use Schedule::*;
        // From transformers' lambdas, `step, warmup, steps`.
        let table = [
            (Constant, 0, 0, 10, 1.0),
            (Constant, 1, 4, 10, 0.25),
            (Constant, 4, 4, 10, 1.0),
            (Constant, 99, 4, 10, 1.0),
            (Linear, 0, 2, 10, 0.0),
            (Linear, 1, 2, 10, 0.5),
            (Linear, 2, 2, 10, 1.0),
            (Linear, 6, 2, 10, 0.5),
            (Linear, 9, 2, 10, 0.125),
            (Linear, 10, 2, 10, 0.0),
            (Linear, 11, 2, 10, 0.0),
            (Cosine, 3, 4, 10, 0.75),
            (Cosine, 4, 4, 10, 1.0),
            (Cosine, 6, 4, 10, 0.75),
            (Cosine, 7, 4, 10, 0.5),
            (Cosine, 9, 4, 10, 0.066987298107780),
            (Cosine, 10, 4, 10, 0.0),
            (Cosine, 13, 4, 10, 0.0),
            // All warmup, and nothing to do at all.
            (Linear, 4, 5, 5, 0.8),
            (Cosine, 0, 0, 0, 1.0),
            (Linear, 7, 9, 3, 7.0 / 9.0),
        ];
        for (schedule, step, warmup, steps, want) in table {
            let got = multiplier(schedule, step, warmup, steps);
            assert!((got - want).abs() < 1e-12, "{schedule} {step} {warmup} {steps}: {got}, not {want}");
        }
    }

    #[test]
    fn multipliers_stay_between_zero_and_one() {
        for &schedule in Schedule::ALL {
            for (warmup, steps) in [(0, 0), (0, 1), (3, 10), (10, 3), (0, u64::MAX), (u64::MAX, u64::MAX)] {
                for step in [0, 1, 2, 3, 9, 10, 11, u64::MAX] {
                    let got = multiplier(schedule, step, warmup, steps);
                    assert!((0.0..=1.0).contains(&got), "{schedule} {step} {warmup} {steps}: {got}");
                }
            }
        }
    }
}
