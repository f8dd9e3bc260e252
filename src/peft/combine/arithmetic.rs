//! Tensors of several adapters made into one, value by value, in f32 as PEFT 0.21.2 has it (`utils/merge_utils.py`).

use super::How;
use crate::cpu::philox::philox;

/// Which values are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// The smallest of each adapter's tensor.
    Magnitude,
    /// Any; what is kept grows, so that the mean stays (DARE: Yu et al. 2024, arXiv:2311.03099).
    Random,
}

/// How the sign of the most is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Of the sum of the values.
    Total,
    /// By counting.
    Frequency,
}

/// How tensors are put together.
#[derive(Clone, Copy)]
pub(super) struct Mix<'a> {
    /// The way and its settings.
    pub how: &'a How,
    /// Number of the module, and of the tensor in it: no two tensors have the same values left out.
    pub tensor: [u32; 2],
}

/// One tensor of several, as many values each: their sum by weights. With elected signs, of each value the mean over the
/// adapters whose sign it has.
pub(super) fn mix(mut tensors: Vec<Vec<f32>>, weights: &[f32], mix: &Mix) -> Vec<f32> {
    let Mix { how, tensor } = mix;
    for (number, values) in tensors.iter_mut().enumerate() {
        match (how.way.prune, how.density.filter(|density| *density < 1.0)) {
            (Some(Prune::Magnitude), Some(density)) => keep_largest(values, density),
            (Some(Prune::Random), Some(density)) => {
                keep_some(values, density, how.seed, [tensor[0], tensor[1], number as u32]);
            }
            _ => {}
        }
    }
    let len = tensors.first().map_or(0, Vec::len);
    let one = |i: usize| {
        let values = || tensors.iter().map(|values| values[i]);
        if !how.way.elect {
            return values().zip(weights).map(|(x, w)| x * w).sum();
        }
        let most: f32 = match how.sign.unwrap_or(Sign::Total) {
            Sign::Total => values().sum(),
            Sign::Frequency => values().map(sign).sum(),
        };
        let elected = if most >= 0.0 { 1.0 } else { -1.0 };
        let (mut sum, mut count) = (0.0, 0.0f32);
        for (x, w) in values().zip(weights).filter(|(x, _)| sign(*x) == elected) {
            (sum, count) = (sum + x * w, count + 1.0);
        }
        sum / count.max(1.0)
    };
    (0..len).map(one).collect()
}

/// −1, 0 or 1.
fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Sets all but the share `density` of largest magnitude to zero; of equals the first are kept.
fn keep_largest(values: &mut [f32], density: f64) {
    let kept = (density * values.len() as f64) as usize;
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let size = |i: u32| values[i as usize].abs();
    if kept > 0 && kept < order.len() {
        order.select_nth_unstable_by(kept, |&i, &j| size(j).total_cmp(&size(i)).then(i.cmp(&j)));
    }
    order.into_iter().skip(kept).for_each(|i| values[i as usize] = 0.0);
}

/// Keeps each value by chance, so that the share `density` is expected to stay, and divides it by that share.
fn keep_some(values: &mut [f32], density: f64, seed: u64, stream: [u32; 3]) {
    let below = (density * 4_294_967_296.0) as u64;
    let [module, tensor, number] = stream;
    for (quad, values) in values.chunks_mut(4).enumerate() {
        let counter = [quad as u32, module, tensor, number];
        let words = philox(counter, [seed as u32, (seed >> 32) as u32]);
        for (x, word) in values.iter_mut().zip(words) {
            *x = if u64::from(word) < below { *x / density as f32 } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(name: &str, density: f64, sign: Sign) -> How {
        How { density: Some(density), sign: Some(sign), ..How::named(name).unwrap() }
    }

    fn mixed(tensors: &[&[f32]], weights: &[f32], how: &How) -> Vec<f32> {
        mix(tensors.iter().map(|t| t.to_vec()).collect(), weights, &Mix { how, tensor: [0, 0] })
    }

    #[test]
    fn values_of_small_tensors() {
        let (one, other, third) =
            (&[4.0, -1.0, 3.0, -2.0][..], &[-1.0, -5.0, 2.0, 0.0][..], &[-1.0, 2.0, 0.0, 1.0][..]);
        let all = [one, other, third];
        let table = [
            ("magnitude_prune", 1.0, Sign::Total, [2.0 - 1.0 - 1.0, -0.5 - 5.0 + 2.0, 1.5 + 2.0, -1.0 + 1.0]),
            // Half of each: 4 and 3; −5 and 2; 2 and the first of two that are as large.
            ("magnitude_prune", 0.5, Sign::Total, [2.0 - 1.0, -5.0 + 2.0, 1.5 + 2.0, 0.0]),
            ("ties", 1.0, Sign::Total, [2.0, (-0.5 - 5.0) / 2.0, 3.5 / 2.0, -1.0]),
            ("ties", 1.0, Sign::Frequency, [(-1.0 - 1.0) / 2.0, (-0.5 - 5.0) / 2.0, 3.5 / 2.0, 1.0]),
            ("ties", 0.5, Sign::Total, [2.0, -5.0, 3.5 / 2.0, 0.0]),
        ];
        for (name, density, sign, wanted) in table {
            let found = mixed(&all, &[0.5, 1.0, 1.0], &how(name, density, sign));
            assert_eq!(found, wanted, "{name} {density} {sign:?}");
        }
    }

    /// By chance: the share that stays and the mean, within five standard deviations; the seed and the tensor decide.
    #[test]
    fn what_is_left_out_by_chance() {
        let ones = vec![1.0; 40_000];
        let way = how("dare_linear", 0.3, Sign::Total);
        let found = mixed(&[&ones], &[1.0], &way);
        let kept = found.iter().filter(|x| **x != 0.0).count() as f64;
        assert!((kept - 12_000.0).abs() < 5.0 * (40_000.0f64 * 0.3 * 0.7).sqrt(), "{kept}");
        assert!(found.iter().all(|x| *x == 0.0 || *x == 1.0 / 0.3));
        assert_eq!(found, mixed(&[&ones], &[1.0], &way));
        assert_ne!(found, mixed(&[&ones], &[1.0], &How { seed: 1, ..way }));
        assert_ne!(found, mix(vec![ones.clone()], &[1.0], &Mix { how: &way, tensor: [0, 1] }));
        // Two adapters have other values left out: both stay at 0.09 of the places, not at 0.3.
        let both = mixed(&[&ones, &ones], &[1.0, 1.0], &way).iter().filter(|x| **x > 1.5 / 0.3).count() as f64;
        assert!((both - 3_600.0).abs() < 5.0 * (40_000.0f64 * 0.09 * 0.91).sqrt(), "{both}");
        // All: nothing is left out, and nothing grows.
        assert_eq!(mixed(&[&ones], &[1.0], &how("dare_linear", 1.0, Sign::Total)), ones);
    }
}
