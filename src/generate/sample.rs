//! The next token from its logits: greedy, or drawn after temperature, top-k and top-p, in Hugging Face's order.
//!
//! A draw depends on (seed, index of the token) alone, so a text can be continued or repeated bit for bit.

use std::cmp::Ordering;

use crate::cpu::philox::philox;
use crate::error::{Error, Result};

/// Keeps these draws apart from those of dropout under the same seed.
const STREAM: u32 = 0x5341_4d50;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only this many likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 is all.
    pub top_p: f64,
    /// Seeds the draws; the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// An error for a number that makes no sense, named by its flag.
    pub fn check(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(Error::config("--temperature", self.temperature.to_string(), "a finite number, 0 or more"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::config("--top-p", self.top_p.to_string(), "above 0, at most 1"));
        }
        Ok(())
    }

    /// The token that follows, where it is the `index`-th of its text.
    pub fn next(&self, logits: &[f32], index: u64) -> Result<u32> {
        let refuse = |found: &str| Error::Graph { op: "sample", site: "logits".into(), found: found.into() };
        if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
            return Err(refuse("not finite: the weights or the adapter are damaged"));
        }
        let mut best = None;
        for (id, &x) in logits.iter().enumerate() {
            if best.is_none_or(|(_, most)| x > most) {
                best = Some((id as u32, x));
            }
        }
        let Some((likeliest, most)) = best.filter(|(_, most)| most.is_finite()) else {
            return Err(refuse("no token is possible"));
        };
        if self.temperature == 0.0 {
            return Ok(likeliest);
        }
        // Unnormalized probabilities of the candidates, the likeliest 1; f64, since they are summed over a vocabulary.
        let weight = |x: f32| ((x as f64 - most as f64) / self.temperature).exp();
        let mut candidates: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, &x)| (id as u32, weight(x))).filter(|c| c.1 > 0.0).collect();
        let falling = |a: &(u32, f64), b: &(u32, f64)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
        if (1..candidates.len()).contains(&self.top_k) {
            candidates.select_nth_unstable_by(self.top_k, falling);
            candidates.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            candidates.sort_unstable_by(falling);
            let wanted = self.top_p * candidates.iter().map(|c| c.1).sum::<f64>();
            let mut sum = 0.0;
            let before = candidates.iter().map(|c| {
                sum += c.1;
                sum - c.1
            });
            let kept = before.take_while(|&mass| mass < wanted).count();
            candidates.truncate(kept.max(1));
        }
        // In the vocabulary's order, so that the draw does not depend on how the selection left them.
        candidates.sort_unstable_by_key(|c| c.0);
        let mut left = self.uniform(index) * candidates.iter().map(|c| c.1).sum::<f64>();
        for &(id, w) in &candidates {
            left -= w;
            if left < 0.0 {
                return Ok(id);
            }
        }
        // Rounding may leave a crumb at the end of the sum.
        Ok(candidates.last().map_or(likeliest, |c| c.0))
    }

    /// The `index`-th number of the seed's sequence, in [0, 1), with 53 random bits.
    fn uniform(&self, index: u64) -> f64 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let words = philox([index as u32, (index >> 32) as u32, STREAM, 0], key);
        let bits = (words[0] as u64) << 21 ^ (words[1] as u64) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [0.5, 2.0, f32::NEG_INFINITY, 1.0, 2.0, -3.0];

    fn at(temperature: f64) -> Sampling {
        Sampling { temperature, seed: 3, ..Sampling::default() }
    }

    /// How often each token is drawn.
    fn shares(how: &Sampling, draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; LOGITS.len()];
        for i in 0..draws {
            counts[how.next(&LOGITS, i).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(at(0.0).next(&LOGITS, 9).unwrap(), 1);
        assert_eq!(Sampling { top_k: 1, ..at(5.0) }.next(&LOGITS, 9).unwrap(), 1);
        assert_eq!(Sampling { top_p: 1e-9, ..at(5.0) }.next(&LOGITS, 9).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        const DRAWS: u64 = 20_000;
        for temperature in [0.5, 1.0, 3.0] {
            let exp: Vec<f64> = LOGITS.iter().map(|&x| (x as f64 / temperature).exp()).collect();
            let sum: f64 = exp.iter().sum();
            for (share, e) in shares(&at(temperature), DRAWS).iter().zip(&exp) {
                let p = e / sum;
                // Five standard deviations of a binomial share.
                let bound = 5.0 * (p * (1.0 - p) / DRAWS as f64).sqrt();
                assert!((share - p).abs() <= bound, "{share} for {p} at {temperature}");
            }
        }
        // The control: a wrong temperature is not let pass.
        let (hot, cold) = (shares(&at(3.0), DRAWS), shares(&at(0.5), DRAWS));
        assert!((hot[1] - cold[1]).abs() > 0.1);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let possible = |how: Sampling| -> Vec<usize> {
            let shares = shares(&how, 2000);
            (0..LOGITS.len()).filter(|&i| shares[i] > 0.0).collect()
        };
        // Probabilities at temperature 1: 0.086, 0.385, 0, 0.142, 0.385, 0.003 of tokens 0 to 5.
        assert_eq!(possible(Sampling { top_k: 2, ..at(1.0) }), [1, 4]);
        assert_eq!(possible(Sampling { top_k: 3, ..at(1.0) }), [1, 3, 4]);
        assert_eq!(possible(Sampling { top_k: 600, ..at(1.0) }).len(), possible(at(1.0)).len());
        assert_eq!(possible(Sampling { top_p: 0.3, ..at(1.0) }), [1]);
        assert_eq!(possible(Sampling { top_p: 0.5, ..at(1.0) }), [1, 4]);
        assert_eq!(possible(Sampling { top_p: 0.9, ..at(1.0) }), [1, 3, 4]);
        // Top-p counts what top-k left: of two equal tokens, the first has half.
        assert_eq!(possible(Sampling { top_k: 2, top_p: 0.5, ..at(1.0) }), [1]);
    }

    #[test]
    fn a_draw_is_a_function_of_seed_and_index() {
        let text = |seed| (0..64).map(|i| Sampling { seed, ..at(1.0) }.next(&LOGITS, i).unwrap()).collect::<Vec<_>>();
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        assert_ne!(text(7), text(7 + (1 << 32)));
        let mean = (0..10_000).map(|i| at(1.0).uniform(i)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 5.0 / (12.0 * 1e4f64).sqrt(), "{mean}");
    }

    #[test]
    fn damaged_logits_are_an_error() {
        for logits in [&[][..], &[f32::NAN, 1.0], &[f32::INFINITY], &[f32::NEG_INFINITY]] {
            assert!(at(1.0).next(logits, 0).is_err(), "{logits:?}");
            assert!(at(0.0).next(logits, 0).is_err(), "{logits:?}");
        }
        for how in [at(-1.0), at(f64::NAN), Sampling { top_p: 0.0, ..at(1.0) }, Sampling { top_p: 1.1, ..at(1.0) }] {
            assert!(how.check().is_err());
        }
        at(0.7).check().unwrap();
    }
}
