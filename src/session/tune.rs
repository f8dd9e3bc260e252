//! Tiles chosen by the device's own clock. Each distinct batch of a plan's nodes that can be launched in several ways is timed,
//! before anything of the plan is allocated, and what is chosen is kept for the next time. Results do not depend on it: the
//! ways give the same bits, which is checked of each on the device itself.

mod clock;
mod kept;
mod operands;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::Planned;
use crate::backend::{Backend, Target, Tiling};
use crate::error::Result;
use crate::plan::{Tilings, Variants};
use crate::system::Instant;
use clock::{Timed, timed};
use kept::{About, Kept};

/// Whether tiles are chosen by timing, and where the choices are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tune {
    /// Estimates decide.
    #[default]
    Off,
    /// What is not in the cache is timed, and kept there.
    Auto,
    /// The same with this file, which has to be of this device if it is there.
    File(PathBuf),
}

/// How long all of a plan's batches together are timed.
const TIME: Duration = Duration::from_secs(2);

impl Planned {
    /// Chooses tiles. Nothing but the time of a step changes: neither results nor the account. `tell` hears what is timed, and
    /// what came of it; an error of it ends the timing.
    pub fn tune(&mut self, tune: &Tune, tell: &mut dyn FnMut(String) -> Result<()>) -> Result<()> {
        if *tune == Tune::Off {
            return Ok(());
        }
        if !matches!(self.plan.caps.target, Target::Cuda | Target::Wgsl) {
            return tell(format!("tiles: there is nothing to choose on {}", self.device()));
        }
        let mut kept = Kept::open(tune, About::of(&*self.backend))?;
        let mut all = self.plan.variants(&self.program.graph)?;
        for small in &self.smaller {
            all.extend(small.plan.variants(&small.graph)?);
        }
        let mut seen = BTreeSet::new();
        all.retain(|batch| !kept.tilings.contains_key(&batch.key) && seen.insert(batch.key.clone()));
        if !all.is_empty() {
            let (count, seconds) = (all.len(), TIME.as_secs());
            tell(format!("tiles of {count} products are timed: {seconds} s, and what compiling their kernels takes"))?;
            let began = Instant::now();
            let found = measured(&mut *self.backend, &all, tell)?;
            let others = found.values().filter(|&&tiling| tiling != Tiling::Estimated).count();
            kept.tilings.extend(found);
            let (took, place) = (began.elapsed().as_secs_f64(), kept.write()?);
            tell(format!(
                "tiles: {others} of {count} products take others than estimated, found in {took:.1} s{place}"
            ))?;
        }
        self.plan.tile(&self.program.graph, &kept.tilings)?;
        self.smaller.iter_mut().try_for_each(|small| small.plan.tile(&small.graph, &kept.tilings))
    }
}

/// What is chosen for each of `all`.
fn measured(
    backend: &mut dyn Backend,
    all: &[Variants],
    tell: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Tilings> {
    let (numbers, each) = (operands::drawn(), TIME / all.len().max(1) as u32);
    let mut chosen = Tilings::new();
    for batch in all {
        let key = &batch.key;
        match timed(backend, batch, &numbers, each)? {
            Timed::Chosen(tiling) => {
                chosen.insert(key.clone(), tiling);
            }
            Timed::Other(tiling) => {
                tell(format!("tiles: {tiling:?} gives other bits on this device, and is not taken for {key}"))?;
                chosen.insert(key.clone(), Tiling::Estimated);
            }
            // It may be timed another day.
            Timed::NoMemory => tell(format!("tiles: there is no memory to time {key}"))?,
        }
    }
    Ok(chosen)
}
