//! What was measured often, in a few numbers, and for how long to measure.

use std::time::Duration;

use crate::error::Result;
use crate::system::Instant;

/// Samples of one figure. Quantiles, since a machine that does other things too makes few samples much longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// How many samples.
    pub samples: usize,
    /// The median.
    pub median: f64,
    /// A fifth of the samples is below.
    pub p20: f64,
    /// A fifth of the samples is above.
    pub p80: f64,
    /// Coefficient of variation: standard deviation over mean.
    pub cv: f64,
}

/// z of the normal distribution with a fifth above.
const Z80: f64 = 0.841_621;

impl Stats {
    /// Of these samples; None if there are none, or one is not finite.
    pub fn of(samples: &[f64]) -> Option<Stats> {
        if samples.is_empty() || samples.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / n;
        let variance = sorted.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Some(Stats {
            samples: sorted.len(),
            median: quantile(&sorted, 0.5),
            p20: quantile(&sorted, 0.2),
            p80: quantile(&sorted, 0.8),
            cv: if mean == 0.0 { 0.0 } else { variance.sqrt() / mean.abs() },
        })
    }

    /// The standard deviation of a normal distribution with these quantiles, over the median: few samples that are far off
    /// do not count.
    pub fn noise(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.p80 - self.p20) / (2.0 * Z80) / self.median.abs() }
    }

    /// How far the median may be from that of endless samples, over the median: π/2 of the variance of a mean.
    pub fn uncertainty(&self) -> f64 {
        self.noise() * (std::f64::consts::FRAC_PI_2 / self.samples as f64).sqrt()
    }

    /// The same of `amount` over each sample: rates from times.
    pub fn rate(&self, amount: f64) -> Stats {
        let over = |x: f64| if x > 0.0 { amount / x } else { 0.0 };
        Stats { median: over(self.median), p20: over(self.p80), p80: over(self.p20), ..*self }
    }
}

/// By linear interpolation between the two samples next to it.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * at.fract()
}

/// For how long something is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// It is run for as long before it counts, and once at least.
    pub warm_up: Duration,
    /// The longest time, once it counts.
    pub time: Duration,
    /// The median is known well enough if its uncertainty is as small a part of it.
    pub noise: f64,
    /// The fewest samples, whatever the time.
    pub least: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { warm_up: Duration::from_millis(100), time: Duration::from_millis(500), noise: 0.003, least: 5 }
    }
}

impl Patience {
    /// The samples that `run` gives.
    pub fn measure(&self, run: &mut dyn FnMut() -> Result<f64>) -> Result<Stats> {
        let began = Instant::now();
        while {
            run()?;
            began.elapsed() < self.warm_up
        } {}
        let (began, mut samples) = (Instant::now(), Vec::new());
        let least = self.least.max(1);
        // A few samples may agree by chance. Later it is asked ever more seldom: an answer sorts all of them.
        let mut next = 2 * least;
        loop {
            samples.push(run()?);
            let over = samples.len() >= least && began.elapsed() >= self.time;
            if !over && samples.len() < next {
                continue;
            }
            next += (samples.len() / 8).max(1);
            let Some(stats) = Stats::of(&samples) else {
                return Err(crate::Error::config("bench", format!("{samples:?}"), "times that are finite"));
            };
            if over || stats.uncertainty() < self.noise {
                return Ok(stats);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([1, 2, 4, 8, 16], [0.2, 0.5, 0.8]) and std(ddof=1) / mean.
        let stats = Stats::of(&[16.0, 1.0, 8.0, 2.0, 4.0]).unwrap();
        assert_eq!((stats.samples, stats.median), (5, 4.0));
        assert!((stats.p20 - 1.8).abs() < 1e-12 && (stats.p80 - 9.6).abs() < 1e-12, "{stats:?}");
        assert!((stats.cv - 0.983_738_8).abs() < 1e-6, "{stats:?}");
        let rate = stats.rate(8.0);
        assert!((rate.median, rate.p80) == (2.0, 8.0 / 1.8), "{rate:?}");
        assert_eq!(Stats::of(&[]), None);
        assert_eq!(Stats::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn measuring_ends_when_it_is_sure_or_out_of_time() {
        let patience = Patience { warm_up: Duration::ZERO, time: Duration::from_secs(60), noise: 0.01, least: 3 };
        let mut runs = 0;
        let steady = patience.measure(&mut || {
            runs += 1;
            Ok(1.0 + 1e-3 * f64::from(runs % 2))
        });
        // One to warm up, and twice the fewest.
        assert_eq!((steady.unwrap().samples, runs), (6, 7));
        // The control: what never settles runs until the time is over.
        let mut wild = 0.0;
        let hurried = Patience { time: Duration::from_millis(20), ..patience };
        let began = Instant::now();
        let stats = hurried.measure(&mut || {
            wild += 1.0;
            std::thread::sleep(Duration::from_millis(1));
            Ok(wild)
        });
        assert!(stats.unwrap().samples > 6 && began.elapsed() >= hurried.time);
        assert!(patience.measure(&mut || Err(crate::Error::Cancelled)).is_err());
    }
}
