//! Lays the examples of a step out in micro-batches of exactly T tokens. There is no batch axis: a
//! micro-batch is one row of tokens, and each token knows the sequence it belongs to.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Dataset, IGNORE};
use crate::error::{Error, Result};

/// T packed tokens. What the examples leave free is at the end: each token of padding is a sequence of
/// its own, so that attention over padding costs nothing and is still defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids [T]; padding is 0.
    pub ids: Vec<i32>,
    /// The label of the next token of the same sequence [T]; [`IGNORE`] for the last token of a sequence
    /// and for padding.
    pub labels: Vec<i32>,
    /// Position in the sequence, from 0 [T].
    pub positions: Vec<i32>,
    /// First token of the sequence a token belongs to, and one past its last [T].
    pub key_range: Vec<[i32; 2]>,
    /// Where sequences begin, padding's included, and T at the end [sequences + 1].
    pub cu_seqlens: Vec<i32>,
    /// Tokens that are not padding: they come first.
    pub tokens: usize,
    /// Targets that are not [`IGNORE`].
    pub trained: usize,
}

impl MicroBatch {
    fn new(capacity: usize) -> MicroBatch {
        MicroBatch {
            ids: Vec::with_capacity(capacity),
            labels: Vec::with_capacity(capacity),
            positions: Vec::with_capacity(capacity),
            key_range: Vec::with_capacity(capacity),
            cu_seqlens: vec![0],
            tokens: 0,
            trained: 0,
        }
    }

    fn push(&mut self, ids: &[u32], labels: &[i32]) {
        let start = self.ids.len() as i32;
        let end = start + ids.len() as i32;
        self.ids.extend(ids.iter().map(|&id| id as i32));
        self.labels.extend(labels.iter().skip(1));
        self.labels.push(IGNORE);
        self.positions.extend(0..ids.len() as i32);
        self.key_range.extend(ids.iter().map(|_| [start, end]));
        self.cu_seqlens.push(end);
        self.trained += super::trained(labels);
    }

    fn finish(mut self, capacity: usize) -> MicroBatch {
        self.tokens = self.ids.len();
        for _ in self.tokens..capacity {
            self.push(&[0], &[IGNORE]);
        }
        self
    }
}

/// Packs the examples `step` of `data`. In order, an example goes into the last micro-batch or begins a
/// new one; otherwise the longest come first and each goes where it leaves the least room (best fit
/// decreasing), which seldom needs more micro-batches than there must be. The same input gives the same
/// output. The step's trained tokens are the sum of the micro-batches' `trained`.
pub fn pack(data: &Dataset, step: &[usize], micro_tokens: usize, in_order: bool) -> Result<Vec<MicroBatch>> {
    let mut examples = Vec::with_capacity(step.len());
    for &i in step {
        let Some(example) = data.get(i) else {
            return Err(Error::config("step", format!("example {i}"), format!("one of {}", data.len())));
        };
        let length = example.0.len();
        if length > micro_tokens || micro_tokens > i32::MAX as usize {
            let found = format!("{micro_tokens}, but example {i} has {length} tokens");
            let expected = format!("{length} to {}: raise --micro-tokens or lower --max-seq-len", i32::MAX);
            return Err(Error::config("micro_tokens", found, expected));
        }
        examples.push(example);
    }
    if !in_order {
        examples.sort_by_key(|(ids, _)| Reverse(ids.len()));
    }
    let mut bins: Vec<MicroBatch> = Vec::new();
    // Micro-batches by the room they have left: finding one takes the logarithm of their number.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (ids, labels) in examples {
        let fitting = rooms.range((ids.len(), 0)..).next().copied();
        let (room, bin) = fitting.unwrap_or((micro_tokens, bins.len()));
        if fitting.is_none() {
            bins.push(MicroBatch::new(micro_tokens));
            if in_order {
                rooms.clear();
            }
        }
        rooms.remove(&(room, bin));
        rooms.insert((room - ids.len(), bin));
        bins[bin].push(ids, labels);
    }
    Ok(bins.into_iter().map(|bin| bin.finish(micro_tokens)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Example;
    use super::*;

    /// Examples of the given lengths whose tokens are all different; every third label is masked.
    fn dataset(lengths: &[usize]) -> Dataset {
        let mut data = Dataset::default();
        let mut next = 1u32;
        for &length in lengths {
            let mut example = Example::whole((next..next + length as u32).collect());
            next += length as u32;
            example.labels.iter_mut().skip(2).step_by(3).for_each(|label| *label = IGNORE);
            data.push(&example).unwrap();
        }
        data
    }

    /// Says what is wrong with a packing, from the definitions alone.
    fn verify(data: &Dataset, step: &[usize], capacity: usize, bins: &[MicroBatch]) -> Result<(), String> {
        let mut left: Vec<(&[u32], &[i32])> = step.iter().map(|&i| data.get(i).unwrap()).collect();
        for (b, bin) in bins.iter().enumerate() {
            let sizes = [bin.ids.len(), bin.labels.len(), bin.positions.len(), bin.key_range.len()];
            if sizes != [capacity; 4] || bin.cu_seqlens.last() != Some(&(capacity as i32)) || bin.cu_seqlens[0] != 0 {
                return Err(format!("micro-batch {b} has sizes {sizes:?}"));
            }
            let mut trained = 0;
            for pair in bin.cu_seqlens.windows(2) {
                let (start, end) = (pair[0] as usize, pair[1] as usize);
                for t in start..end {
                    if bin.key_range[t] != [pair[0], pair[1]] || bin.positions[t] != (t - start) as i32 {
                        return Err(format!("token {t} of {b}: {:?} at {}", bin.key_range[t], bin.positions[t]));
                    }
                }
                let ids: Vec<u32> = bin.ids[start..end].iter().map(|&id| id as u32).collect();
                if start >= bin.tokens {
                    if (ids.as_slice(), bin.labels[start]) != (&[0], IGNORE) {
                        return Err(format!("padding {start} of {b}: {ids:?}"));
                    }
                    continue;
                }
                let Some(i) = left.iter().position(|(want, _)| *want == ids) else {
                    return Err(format!("{ids:?} is no example, or was there before"));
                };
                let labels = left.remove(i).1;
                for t in 0..ids.len() {
                    let want = labels.get(t + 1).copied().unwrap_or(IGNORE);
                    if bin.labels[start + t] != want {
                        return Err(format!("target {t} of {ids:?}: {}, not {want}", bin.labels[start + t]));
                    }
                    trained += (want != IGNORE) as usize;
                }
            }
            if trained != bin.trained {
                return Err(format!("micro-batch {b}: {trained} trained, not {}", bin.trained));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{} examples were left out", left.len())) }
    }

    #[test]
    fn every_token_is_there_once_with_the_right_target() {
        let mut lengths: Vec<usize> = (0..200).map(|i| 1 + (i * i * 7 + i * 3) % 61).collect();
        lengths.extend([64, 64, 1, 63]);
        let data = dataset(&lengths);
        for (step, capacity) in [
            ((0..204).collect::<Vec<_>>(), 64),
            ((0..204).rev().collect(), 100),
            (vec![5], 64),
            (vec![200, 203, 202, 201], 64),
            (vec![], 64),
        ] {
            for in_order in [false, true] {
                let bins = pack(&data, &step, capacity, in_order).unwrap();
                verify(&data, &step, capacity, &bins).unwrap();
                assert_eq!(bins, pack(&data, &step, capacity, in_order).unwrap());
                let tokens: usize = step.iter().map(|&i| lengths[i]).sum();
                assert_eq!(bins.iter().map(|bin| bin.tokens).sum::<usize>(), tokens);
                if !in_order {
                    assert!(bins.len() <= tokens.div_ceil(capacity) * 11 / 9 + 1);
                }
            }
        }
    }

    #[test]
    fn a_spoilt_packing_is_found() {
        let data = dataset(&[5, 4, 3]);
        let step = [0, 1, 2];
        let good = pack(&data, &step, 16, false).unwrap();
        verify(&data, &step, 16, &good).unwrap();
        type Spoil = fn(&mut MicroBatch);
        let spoils: [(&str, Spoil); 7] = [
            ("a target across a boundary", |b| b.labels[4] = b.ids[5]),
            ("an unmasked target", |b| b.labels[1] = b.ids[2]),
            ("a position that runs on", |b| b.positions[5] = 5),
            ("key_range over two sequences", |b| b.key_range[0][1] = 9),
            ("a token lost", |b| b.ids[3] = b.ids[2]),
            ("a wrong count", |b| b.trained += 1),
            ("trained padding", |b| b.labels[15] = 1),
        ];
        for (what, spoil) in spoils {
            let mut bad = good.clone();
            spoil(&mut bad[0]);
            assert!(verify(&data, &step, 16, &bad).is_err(), "{what}");
        }
        assert!(verify(&data, &step, 16, &[]).is_err());
    }

    #[test]
    fn in_order_keeps_the_order() {
        let data = dataset(&[6, 5, 3, 8, 1]);
        let lengths = |in_order| -> Vec<Vec<i32>> {
            let bins = pack(&data, &[0, 1, 2, 3, 4], 10, in_order).unwrap();
            let real = |b: &MicroBatch| {
                b.cu_seqlens.windows(2).filter(|w| w[0] < b.tokens as i32).map(|w| w[1] - w[0]).collect()
            };
            bins.iter().map(real).collect()
        };
        assert_eq!(lengths(true), [vec![6], vec![5, 3], vec![8, 1]]);
        assert_eq!(lengths(false), [vec![8], vec![6, 3, 1], vec![5]]);
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let data = dataset(&[5, 9]);
        for (step, capacity, want) in [(vec![0, 1], 8, "example 1 has 9 tokens"), (vec![2], 8, "example 2")] {
            let error = pack(&data, &step, capacity, false).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        let ragged = Example { input_ids: vec![1, 2], labels: vec![1] };
        for bad in [ragged, Example::default(), Example::whole(vec![1 << 31])] {
            assert!(Dataset::default().push(&bad).is_err());
        }
    }
}
