//! Which examples a step takes. The order of an epoch is a function of (seed, epoch) alone, so that a
//! run that is stopped and resumed from its [`Cursor`] sees the examples it would have seen.
//!
//! An epoch takes each example once. Where parts of the data have weights, it is as long as that, and each part has its share
//! of it: a part is read in an order of its own, over and over, and an epoch goes on where the one before it ended. So a
//! part that is smaller than its share is repeated, one that is larger is seen in more epochs, and no example of a part is
//! seen twice more often than another.

use serde::{Deserialize, Serialize};

use super::Share;
use crate::error::{Error, Result};

/// How far a run is; kept in checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Passes over the examples before this one.
    pub epoch: u64,
    /// Examples of this epoch already handed out.
    pub position: u64,
}

/// Hands out the numbers of examples, a batch at a time, without end: epoch after epoch.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    shuffle: bool,
    cursor: Cursor,
    parts: Vec<Part>,
    /// The order of epoch `cursor.epoch`.
    order: Vec<usize>,
}

/// Examples that follow one another, and how many of them an epoch takes.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: usize,
    examples: usize,
    taken: usize,
}

impl Sampler {
    /// `examples`: how many there are. Without `shuffle` every epoch takes them in their order.
    pub fn new(examples: usize, seed: u64, shuffle: bool) -> Result<Sampler> {
        if examples == 0 {
            return Err(Error::config("data", "no examples", "at least one"));
        }
        let mut sampler =
            Sampler { seed, shuffle, cursor: Cursor::default(), parts: Vec::new(), order: (0..examples).collect() };
        sampler.arrange();
        Ok(sampler)
    }

    /// The same where an epoch takes shares of `parts`; of none of them it takes all `examples`.
    pub fn mixed(examples: usize, parts: &[Share], seed: u64, shuffle: bool) -> Result<Sampler> {
        let mut sampler = Sampler::new(examples, seed, shuffle)?;
        let all: f64 = parts.iter().map(|part| part.weight).sum();
        let (mut first, mut before, mut weight) = (0, 0, 0.0);
        for part in parts {
            weight += part.weight;
            // Ends of shares are rounded, so that together they are an epoch.
            let end = (weight / all * examples as f64).round() as usize;
            sampler.parts.push(Part { first, examples: part.examples, taken: end.saturating_sub(before).max(1) });
            (first, before) = (first + part.examples, before.max(end));
        }
        sampler.arrange();
        Ok(sampler)
    }

    /// Where the run is, for [`Sampler::restore`].
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Continues a run from where it stood.
    pub fn restore(&mut self, cursor: Cursor) -> Result<()> {
        let examples = self.order.len();
        if cursor.position > examples as u64 {
            let found = format!("position {} in a checkpoint", cursor.position);
            let expected =
                format!("at most {examples}, the examples there are: resume with the data the run began with");
            return Err(Error::config("data", found, expected));
        }
        self.cursor = cursor;
        self.arrange();
        Ok(())
    }

    /// Steps an epoch has: its last batch may be smaller, and no batch crosses into the next epoch,
    /// as in Hugging Face's trainers.
    pub fn steps_per_epoch(&self, batch_size: usize) -> usize {
        self.order.len().div_ceil(batch_size.max(1))
    }

    /// The examples of the next step: `batch_size` of them (0 counts as 1), fewer at the end of an epoch.
    pub fn next_batch(&mut self, batch_size: usize) -> Vec<usize> {
        if self.cursor.position >= self.order.len() as u64 {
            self.cursor = Cursor { epoch: self.cursor.epoch.wrapping_add(1), position: 0 };
            self.arrange();
        }
        let start = self.cursor.position as usize;
        let batch: Vec<usize> = self.order[start..].iter().take(batch_size.max(1)).copied().collect();
        self.cursor.position += batch.len() as u64;
        batch
    }

    fn arrange(&mut self) {
        if self.parts.is_empty() {
            self.order.iter_mut().enumerate().for_each(|(i, slot)| *slot = i);
        } else {
            self.order.clear();
            for (number, part) in self.parts.iter().enumerate() {
                self.order.extend(self.taken(number as u64, part));
            }
        }
        if self.shuffle {
            shuffle(&mut self.order, self.seed, self.cursor.epoch);
        }
    }

    /// What this epoch takes of a part, which has an order of its own in each pass over it.
    fn taken(&self, number: u64, part: &Part) -> Vec<usize> {
        // A part of no examples is refused where data is read.
        let examples = part.examples.max(1) as u128;
        let start = u128::from(self.cursor.epoch) * part.taken as u128;
        let (mut taken, mut at) = (Vec::with_capacity(part.taken), start);
        let mut pass: Vec<usize> = Vec::new();
        while taken.len() < part.taken {
            if pass.is_empty() || at % examples == 0 {
                pass = (part.first..part.first + examples as usize).collect();
                if self.shuffle {
                    // An order that no epoch has: epochs are counted from 0.
                    shuffle(&mut pass, mix(self.seed.wrapping_add(number + 1)), !((at / examples) as u64));
                }
            }
            let from = (at % examples) as usize;
            let count = (part.taken - taken.len()).min(pass.len() - from);
            taken.extend_from_slice(&pass[from..from + count]);
            at += count as u128;
        }
        taken
    }
}

/// Fisher–Yates; the i-th draw is a hash of (seed, epoch, i), with no state to save.
fn shuffle(order: &mut [usize], seed: u64, epoch: u64) {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let key = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(epoch));
    for i in 0..order.len() {
        let left = (order.len() - i) as u128;
        let draw = mix(key.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN)));
        // The high half of the product is in 0..left, with a bias below left/2^64.
        order.swap(i, i + ((draw as u128 * left) >> 64) as usize);
    }
}

/// SplitMix64's finalizer (Steele, Lea and Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_takes_every_example_once() {
        for (examples, batch, shuffle) in [(1, 1, true), (7, 3, true), (7, 3, false), (64, 64, true), (5, 99, true)] {
            let mut sampler = Sampler::new(examples, 42, shuffle).unwrap();
            for epoch in 0..3 {
                let mut seen: Vec<usize> = Vec::new();
                for step in 0..sampler.steps_per_epoch(batch) {
                    let taken = sampler.next_batch(batch);
                    assert_eq!(taken.len(), batch.min(examples - step * batch), "{examples} {batch}");
                    assert_eq!(sampler.cursor().epoch, epoch);
                    seen.extend(taken);
                }
                if !shuffle {
                    assert!(seen.is_sorted());
                }
                seen.sort();
                assert_eq!(seen, (0..examples).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_resumed_run_sees_what_it_would_have_seen() {
        for stop in 0..9 {
            let mut whole = Sampler::new(10, 7, true).unwrap();
            for _ in 0..stop {
                whole.next_batch(4);
            }
            let mut resumed = Sampler::new(10, 7, true).unwrap();
            resumed.restore(whole.cursor()).unwrap();
            for _ in 0..6 {
                assert_eq!(resumed.next_batch(4), whole.next_batch(4), "stopped after {stop}");
            }
        }
        let cursor = Cursor { epoch: 3, position: 11 };
        let error = Sampler::new(10, 7, true).unwrap().restore(cursor).unwrap_err().to_string();
        assert!(error.contains("position 11"), "{error}");
    }

    #[test]
    fn orders_differ_by_seed_and_epoch_and_never_change() {
        let order = |seed, epoch| {
            let mut order: Vec<usize> = (0..8).collect();
            shuffle(&mut order, seed, epoch);
            order
        };
        // Written down: a changed shuffle would break the resuming of older runs.
        assert_eq!(order(0, 0), [2, 0, 3, 5, 6, 4, 1, 7]);
        for (a, b) in [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (0, 1))] {
            assert_ne!(order(a.0, a.1), order(b.0, b.1));
        }
    }

    #[test]
    fn parts_have_their_shares_and_their_examples_are_seen_alike() {
        let share = |examples, weight| Share { examples, weight };
        // 6 of 20 examples with the weight of 3 in 4; weights need no sum of 1.
        for (parts, want) in [
            (vec![share(6, 0.75), share(14, 0.25)], vec![15, 5]),
            (vec![share(6, 3.0), share(14, 1.0)], vec![15, 5]),
            (vec![share(1, 1e-9), share(19, 1.0)], vec![1, 20]),
            (vec![share(5, 1.0), share(5, 1.0), share(3, 1.0)], vec![4, 5, 4]),
        ] {
            let examples: usize = parts.iter().map(|part| part.examples).sum();
            let part_of = |example: usize| {
                let ends = parts.iter().scan(0, |end, part| {
                    *end += part.examples;
                    Some(*end)
                });
                ends.take_while(|end| *end <= example).count()
            };
            for shuffle in [true, false] {
                let mut sampler = Sampler::mixed(examples, &parts, 7, shuffle).unwrap();
                let mut seen = vec![0u32; examples];
                for epoch in 0..12 {
                    let mut counts = vec![0; parts.len()];
                    let mut position = 0;
                    for _ in 0..sampler.steps_per_epoch(4) {
                        // A sampler that is resumed goes on in the same way.
                        let mut resumed = Sampler::mixed(examples, &parts, 7, shuffle).unwrap();
                        resumed.restore(sampler.cursor()).unwrap();
                        let batch = sampler.next_batch(4);
                        assert_eq!(resumed.next_batch(4), batch);
                        assert_eq!(sampler.cursor().epoch, epoch);
                        position += batch.len();
                        for example in batch {
                            counts[part_of(example)] += 1;
                            seen[example] += 1;
                        }
                    }
                    assert_eq!(counts, want, "{parts:?}");
                    assert_eq!(position, want.iter().sum::<usize>());
                }
                let mut first = 0;
                for part in &parts {
                    let seen = &seen[first..first + part.examples];
                    let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
                    assert!(most - least <= 1, "{seen:?}");
                    first += part.examples;
                }
            }
        }
        // The control: without weights each example is taken once.
        let mut plain = Sampler::mixed(5, &[], 7, true).unwrap();
        let mut seen = plain.next_batch(9);
        seen.sort();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn every_example_comes_first_about_equally_often() {
        let mut first = [0u32; 8];
        for epoch in 0..8000 {
            let mut order: Vec<usize> = (0..8).collect();
            shuffle(&mut order, 3, epoch);
            first[order[0]] += 1;
        }
        // Five standard deviations of a binomial with n = 8000, p = 1/8.
        assert!(first.iter().all(|&n| n.abs_diff(1000) < 150), "{first:?}");
    }
}
