//! Times the ways of a batch, one after the other in turns, on scratch memory. That is never more than its plan takes, which has
//! the operands of a batch all at once.

use std::time::Duration;

use super::operands::Scratch;
use crate::backend::{Backend, Recording, Tiling};
use crate::error::{Error, Result};
use crate::plan::Variants;

/// By how much of the estimate's time another way has to be faster: less is within what clocks and neighbours change.
const MARGIN: f64 = 0.03;

/// How often each way is timed.
const LEAST: usize = 3;
const MOST: usize = 21;

/// What came of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// These tiles are to be taken.
    Chosen(Tiling),
    /// These give other bits than the estimated ones, and nothing was timed.
    Other(Tiling),
    /// The device has no room for the operands.
    NoMemory,
}

/// Times the ways of `batch` on `numbers`, for about as long as `time`. Nothing of it is left on the device.
pub fn timed(backend: &mut dyn Backend, batch: &Variants, numbers: &[f32], time: Duration) -> Result<Timed> {
    let scratch = match Scratch::new(backend, batch) {
        Ok(scratch) => scratch,
        Err(Error::Memory { .. }) => return Ok(Timed::NoMemory),
        Err(other) => return Err(other),
    };
    let mut ways = Vec::new();
    let mut run = || {
        record(backend, batch, &scratch, &mut ways)?;
        match other(backend, &scratch, &ways, numbers)? {
            Some(tiling) => Ok(Timed::Other(tiling)),
            None => race(backend, &ways, time).map(Timed::Chosen),
        }
    };
    let found = run();
    ways.into_iter().for_each(|(_, recording)| backend.forget(recording));
    scratch.free(backend);
    found
}

/// Records each way. One whose kernel cannot be had is left out: the program may have machine code of the others, and no
/// compiler.
fn record(
    backend: &mut dyn Backend,
    batch: &Variants,
    scratch: &Scratch,
    ways: &mut Vec<(Tiling, Recording)>,
) -> Result<()> {
    for (tiling, launches) in &batch.ways {
        match backend.record(&scratch.bound(launches)) {
            Ok(recording) => ways.push((*tiling, recording)),
            Err(Error::Device { .. }) if !ways.is_empty() => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Runs each way, and gives the one whose results are not those of the first, if there is one.
fn other(
    backend: &mut dyn Backend,
    scratch: &Scratch,
    ways: &[(Tiling, Recording)],
    numbers: &[f32],
) -> Result<Option<Tiling>> {
    let mut usual = None;
    for &(tiling, recording) in ways {
        scratch.fill(backend, numbers, usual.is_none())?;
        backend.replay(recording)?;
        let written = scratch.written(backend)?;
        if *usual.get_or_insert_with(|| written.clone()) != written {
            return Ok(Some(tiling));
        }
    }
    Ok(None)
}

/// Times the ways and chooses.
fn race(backend: &mut dyn Backend, ways: &[(Tiling, Recording)], time: Duration) -> Result<Tiling> {
    // A round to warm up says how long one takes.
    let once: Duration = ways.iter().map(|&(_, recording)| backend.replay_timed(recording)).sum::<Result<_>>()?;
    let rounds = (time.as_secs_f64() / once.as_secs_f64().max(1e-9)) as usize;
    let mut times: Vec<(Tiling, Vec<Duration>)> = ways.iter().map(|&(tiling, _)| (tiling, Vec::new())).collect();
    for _ in 0..rounds.clamp(LEAST, MOST) {
        for (&(_, recording), (_, times)) in ways.iter().zip(&mut times) {
            times.push(backend.replay_timed(recording)?);
        }
    }
    Ok(choice(times))
}

/// The tiles of the least median time; the first ones, which are the estimate, unless that is clearly less than theirs.
pub fn choice(times: Vec<(Tiling, Vec<Duration>)>) -> Tiling {
    let median = |(tiling, mut times): (Tiling, Vec<Duration>)| {
        times.sort();
        (tiling, times.get(times.len() / 2).copied().unwrap_or(Duration::MAX))
    };
    let medians: Vec<(Tiling, Duration)> = times.into_iter().map(median).collect();
    let (Some(usual), Some(best)) = (medians.first(), medians.iter().min_by_key(|(_, time)| *time)) else {
        return Tiling::Estimated;
    };
    let is_faster = best.1.as_secs_f64() < (1.0 - MARGIN) * usual.1.as_secs_f64();
    if is_faster { best.0 } else { usual.0 }
}
