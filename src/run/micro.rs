//! The sizes of a run's micro-batches: those that are asked for, or those that its data fill.

use crate::config::RunConfig;
use crate::data::sampler::Sampler;
use crate::data::sizes::{self, Demand};
use crate::data::{Dataset, INPUT_IDS};
use crate::nn::{Hooks, StreamId};
use crate::session::Options;
use crate::tasks::{Shape, Task};

/// Steps that are looked at, and their examples: more would change little.
const LOOKED_AT: usize = 512;
const EXAMPLES: usize = 1 << 16;
/// Sequences that are shorter share a micro-batch of up to so many tokens: weights are read, and laid out for products, once
/// for each micro-batch, which from here on is a small part of its time.
const TOKENS: usize = 1024;

/// The micro-batches of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Micro {
    shape: Shape,
    smaller: Vec<usize>,
    longest: Option<usize>,
    step_tokens: Option<usize>,
    /// The share of what is computed that is tokens, where sizes were chosen for data.
    pub full: Option<f64>,
}

impl Micro {
    /// Of the size that the settings ask for, whatever there is to be learnt.
    pub fn fixed(config: &RunConfig) -> Micro {
        let step = config.batch_size.saturating_mul(config.max_seq_len);
        let tokens = config.micro_tokens.unwrap_or(TOKENS.min(step).max(config.max_seq_len));
        let targets = config.max_target_len.saturating_mul((tokens / config.max_seq_len).max(1));
        let shape = Shape { tokens, targets, sequences: config.batch_size.clamp(1, tokens.max(1)) };
        Micro { shape, smaller: Vec::new(), longest: None, step_tokens: Some(step), full: None }
    }

    /// Of the sizes that the examples of `steps` fill best, if the settings name none. `data` has those and others that are
    /// to fit; `methods` may put virtual tokens before each.
    pub fn fitted(config: &RunConfig, task: &dyn Task, methods: &[&dyn Hooks], steps: &Steps) -> Micro {
        let fixed = Micro::fixed(config);
        if config.micro_tokens.is_some() {
            return fixed;
        }
        let layout = task.layout(fixed.shape);
        // Streams have as many rows as one or the other of the two numbers says.
        let probe = task.layout(Shape { tokens: 1, targets: 2, sequences: 1 });
        let targets: Vec<bool> = probe.streams.iter().map(|stream| stream.tokens == 2).collect();
        let streams = layout.streams.len();
        let lead = |s: usize| methods.iter().map(|m| m.lead(StreamId(s), streams)).sum::<usize>();
        let leads: Vec<usize> = (0..streams).map(lead).collect();
        let rows = |data: &Dataset, i: usize| -> Vec<usize> {
            let all = layout.streams.iter().zip(&leads);
            all.map(|(stream, lead)| data.len_of(i, stream.column) + lead).collect()
        };
        let padded = |mut step: Vec<Vec<usize>>| {
            let longest = step.iter().map(|rows| rows[0]).max().unwrap_or(0);
            step.iter_mut().filter(|_| layout.padding.is_some()).for_each(|rows| rows[0] = longest);
            step
        };
        let data = steps.data;
        let looked: Vec<Vec<Vec<usize>>> =
            steps.batches.iter().map(|step| padded(step.iter().map(|&i| rows(data, i)).collect())).collect();
        let all = || std::iter::once(data).chain(steps.others);
        let longest = |s: usize| -> usize {
            all().map(|data| data.longest(layout.streams[s].column)).max().unwrap_or(0) + leads[s]
        };
        // The most that a step can take: the longest examples there are, all in one.
        let step = |s: usize| -> usize {
            let mut lens: Vec<usize> = (0..data.len()).map(|i| rows(data, i)[s]).collect();
            lens.sort_unstable();
            let largest = lens.iter().rev().take(config.batch_size);
            // Padded they are as long as the longest, and where parts of the data have shares, one may come twice.
            let alike = layout.padding.is_some() || !data.parts().is_empty();
            if alike { longest(s).saturating_mul(config.batch_size) } else { largest.sum() }
        };
        let demand = Demand {
            steps: &looked,
            longest: (0..streams).map(longest).collect(),
            step: (0..streams).map(step).collect(),
            most: (0..streams).map(|s| layout.streams[s].tokens + leads[s]).collect(),
            sequences: fixed.shape.sequences,
            in_order: !config.shuffle,
        };
        let sizes::Sizes { rows, full } = sizes::choose(&demand);
        // Without the virtual tokens that every stream has room for anyway.
        let of = |size: &[usize], target: bool| {
            let rows = size.iter().zip(&leads).zip(&targets).filter(|(_, t)| **t == target);
            rows.map(|((rows, lead), _)| rows - lead).max()
        };
        let tokens: Vec<usize> = rows.iter().filter_map(|size| of(size, false)).collect();
        let Some((&largest, smaller)) = tokens.split_first() else { return fixed };
        let shape = Shape {
            tokens: largest,
            targets: of(&rows[0], true).unwrap_or(fixed.shape.targets).max(1),
            sequences: fixed.shape.sequences.min(largest.max(1)),
        };
        let single = demand.step.iter().zip(&rows[0]).all(|(step, rows)| step <= rows);
        let longest = all().map(|data| data.longest(INPUT_IDS)).max();
        Micro { shape, smaller: smaller.to_vec(), longest, step_tokens: single.then_some(0), full: Some(full) }
    }

    /// Tokens of each size, the largest first.
    pub fn sizes(&self) -> Vec<usize> {
        std::iter::once(self.shape.tokens).chain(self.smaller.iter().copied()).collect()
    }

    /// `options` with micro-batches of these sizes.
    pub fn options(&self, options: Options) -> Options {
        Options {
            micro_tokens: self.shape.tokens,
            micro_smaller: self.smaller.clone(),
            longest: self.longest,
            micro_targets: Some(self.shape.targets),
            micro_sequences: Some(self.shape.sequences),
            step_tokens: self.step_tokens,
            ..options
        }
    }
}

/// What the steps of a run take.
pub struct Steps<'a> {
    /// What is learnt from.
    pub data: &'a Dataset,
    /// What is evaluated on along the way.
    pub others: Option<&'a Dataset>,
    /// The examples of the first steps.
    pub batches: Vec<Vec<usize>>,
}

impl<'a> Steps<'a> {
    /// Of training: the first steps that `sampler` would hand out. How many does not depend on the run's length, since a run
    /// that goes on to more steps has the sizes that it began with.
    pub fn of(config: &RunConfig, data: &'a Dataset, others: Option<&'a Dataset>, sampler: &Sampler) -> Steps<'a> {
        let mut sampler = sampler.clone();
        let steps = (EXAMPLES / config.batch_size.max(1)).clamp(1, LOOKED_AT);
        let batches = (0..steps).map(|_| sampler.next_batch(config.batch_size)).collect();
        Steps { data, others, batches }
    }

    /// Of an evaluation or predictions, some rows at a time: the examples of each.
    pub fn each(data: &'a Dataset, batches: impl Iterator<Item = Vec<usize>>) -> Steps<'a> {
        Steps { data, others: None, batches: batches.take(LOOKED_AT).collect() }
    }
}

/// In words.
pub fn describe(sizes: &[usize], full: f64) -> String {
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let list = match sizes.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => sizes.concat(),
    };
    format!("micro-batches of {list} tokens, {:.0} % full", 100.0 * full)
}
