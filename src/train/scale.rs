//! The loss scale (Micikevicius et al. 2018, arXiv:1710.03740): where activations are f16, the loss is multiplied by it
//! before its gradients are taken, and the gradients of parameters, which are f32, are divided by it. A mean over some
//! thousand tokens has gradients near 1e-3 and smaller, and f16 becomes coarse below 6e-5.
//!
//! It is a power of two, so it changes no bit where nothing overflows or becomes coarse. A gradient that overflows makes
//! the norm infinite; such a step is skipped, and the scale is halved for the next one.

use serde_json::{Map, Value, json};

/// The scale of a run's first step, and the largest.
const FIRST: f32 = 1024.0;
/// The smallest: at it, gradients are as they are.
const LEAST: f32 = 1.0;
/// After so many steps in a row without an overflow the scale is doubled again, as PyTorch does (`GradScaler`).
const PATIENCE: u32 = 2000;
/// Keys of a session's state.
const KEYS: [&str; 2] = ["loss_scale", "steps_at_loss_scale"];

/// The scale of the next step, and what decides on the one after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    factor: f32,
    /// Steps without an overflow since the factor changed.
    calm: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { factor: FIRST, calm: 0 }
    }
}

impl LossScale {
    /// What the loss is multiplied by.
    pub fn factor(&self) -> f32 {
        self.factor
    }

    /// After a step with this norm of the gradient.
    pub(super) fn after(&mut self, grad_norm: f32) {
        self.calm += 1;
        let next = match grad_norm.is_finite() {
            false => (self.factor / 2.0).max(LEAST),
            true if self.calm >= PATIENCE => (self.factor * 2.0).min(FIRST),
            true => return,
        };
        *self = LossScale { factor: next, calm: 0 };
    }

    /// Adds it to what a session's state says.
    pub(crate) fn save(&self, about: &mut Map<String, Value>) {
        about.insert(KEYS[0].into(), json!(self.factor));
        about.insert(KEYS[1].into(), json!(self.calm));
    }

    /// The one of such a state; the first if it has none. None if it is no scale.
    pub(crate) fn load(about: &Map<String, Value>) -> Option<LossScale> {
        if !KEYS.iter().any(|key| about.contains_key(*key)) {
            return Some(LossScale::default());
        }
        let factor = about.get(KEYS[0])?.as_f64()?;
        let calm = about.get(KEYS[1])?.as_u64().filter(|&n| n < PATIENCE.into())?;
        let is_scale = (f64::from(LEAST)..=f64::from(FIRST)).contains(&factor) && factor.log2().fract() == 0.0;
        is_scale.then_some(LossScale { factor: factor as f32, calm: calm as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(of: LossScale) -> Map<String, Value> {
        let mut map = Map::new();
        of.save(&mut map);
        map
    }

    #[test]
    fn overflows_halve_it_and_calm_doubles_it() {
        let of = |factor, calm| LossScale { factor, calm };
        // (before, the step's norm, after)
        let table = [
            (of(1024.0, 0), 1.0, of(1024.0, 1)),
            (of(1024.0, 7), f32::INFINITY, of(512.0, 0)),
            (of(512.0, 0), f32::NAN, of(256.0, 0)),
            (of(256.0, 1998), 1.0, of(256.0, 1999)),
            (of(256.0, 1999), 1.0, of(512.0, 0)),
            (of(256.0, 1999), f32::INFINITY, of(128.0, 0)),
            (of(1024.0, 1999), 0.0, of(1024.0, 0)),
            (of(1.0, 3), f32::INFINITY, of(1.0, 0)),
        ];
        for (mut scale, norm, want) in table {
            let was = scale;
            scale.after(norm);
            assert_eq!(scale, want, "{was:?} after {norm}");
            assert_eq!(LossScale::load(&about(scale)), Some(scale));
        }
    }

    #[test]
    fn what_is_no_scale_is_refused() {
        let with = |factor: Value, calm: Value| {
            let map = [(KEYS[0].to_string(), factor), (KEYS[1].to_string(), calm)];
            LossScale::load(&map.into_iter().collect())
        };
        for (factor, calm) in [
            (json!(0), json!(0)),
            (json!(2048), json!(0)),
            (json!(3), json!(0)),
            (json!(-4), json!(0)),
            (json!(4), json!(2000)),
        ] {
            assert_eq!(with(factor.clone(), calm.clone()), None, "{factor} {calm}");
        }
        for (factor, calm) in [(Value::Null, json!(0)), (json!("4"), json!(0)), (json!(4), Value::Null)] {
            assert_eq!(with(factor.clone(), calm.clone()), None, "{factor} {calm}");
        }
        // The controls: one that is a scale, and a state without any.
        assert_eq!(with(json!(4.0), json!(5)), Some(LossScale { factor: 4.0, calm: 5 }));
        assert_eq!(LossScale::load(&Map::new()), Some(LossScale::default()));
    }
}
