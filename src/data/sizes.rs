//! How large micro-batches are to be: what the examples of a run's steps fill best.
//!
//! A micro-batch computes all of its rows, so its time is that of its size, and the memory of a step is that of the largest.
//! The steps' examples are put together for some capacities, as the packer would. What is left partly empty by each is
//! given one of a few smaller sizes, which take no memory of their own; the capacity that computes the fewest rows is taken.

use std::collections::BTreeMap;

use super::pack::arrange;

/// What there is to choose for.
#[derive(Clone, Debug)]
pub struct Demand<'a> {
    /// Rows of each stream that each example of each step takes, virtual tokens included.
    pub steps: &'a [Vec<Vec<usize>>],
    /// Rows of each stream that the longest sequence takes, which may be of no step.
    pub longest: Vec<usize>,
    /// Rows of each stream that no step exceeds.
    pub step: Vec<usize>,
    /// The most rows of each stream.
    pub most: Vec<usize>,
    /// The most sequences of a micro-batch.
    pub sequences: usize,
    /// Sequences keep their order.
    pub in_order: bool,
}

/// Sizes of micro-batches.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// Rows of each stream, for each size, the largest first.
    pub rows: Vec<Vec<usize>>,
    /// The share of all rows that are tokens, over the steps that were given.
    pub full: f64,
}

/// Rows that a micro-batch is taken to cost besides its own: weights are read, laid out for products, or decoded, once for each.
/// On a CPU with AMX, LoRA on SmolLM2-135M took 0.83, 1.41, 2.34 and 4.59 s for 256, 512, 1,024 and 2,048 rows.
const OVERHEAD: usize = 96;
/// Sizes are multiples of this: kernels compute rows in tiles.
const TILE: usize = 8;
/// The most sizes.
const SIZES: usize = 4;
/// Another size, or a larger one, is worth its launches and its memory if it saves this share of the rows.
const WORTH: f64 = 0.02;
/// Where micro-batches that are larger by this hold every step, gradients need no sums over them.
const SINGLE: f64 = 1.25;
/// Capacities that are tried, besides those of whole steps.
const TRIED: usize = 8;

/// The sizes to take; without any step, one that holds the longest sequence.
pub fn choose(demand: &Demand) -> Sizes {
    let Demand { steps, longest, most, step, .. } = demand;
    let streams = 0..most.len();
    let room = |rows: usize, s: usize| rows.next_multiple_of(TILE).min(most[s]).max(longest[s]).max(1);
    let between = |share: f64| -> Vec<usize> {
        let rows = |s: usize| longest[s] + (most[s].saturating_sub(longest[s]) as f64 * share) as usize;
        streams.clone().map(|s| room(rows(s), s)).collect()
    };
    // What the largest step takes, in one micro-batch or in equal parts.
    let whole = |s: usize| steps.iter().map(|step| step.iter().map(|lens| lens[s]).sum::<usize>()).max().unwrap_or(0);
    let parts = |n: usize| -> Vec<usize> { streams.clone().map(|s| room(whole(s).div_ceil(n), s)).collect() };
    let mut capacities: Vec<Vec<usize>> = (0..=TRIED).map(|k| between(k as f64 / TRIED as f64)).collect();
    capacities.extend((1..=TRIED).map(parts));
    capacities.sort();
    capacities.dedup();
    let mut best: Option<(f64, Sizes)> = None;
    for capacity in capacities {
        let (cost, sizes) = tried(demand, capacity);
        if best.as_ref().is_none_or(|(least, _)| cost < least * (1.0 - WORTH)) {
            best = Some((cost, sizes));
        }
    }
    let (_, mut sizes) = best.unwrap_or_else(|| (0.0, Sizes { rows: vec![longest.clone()], full: 1.0 }));
    let largest = &sizes.rows[0];
    let fits = |s: usize| step[s] <= most[s] && step[s] as f64 <= SINGLE * largest[s] as f64;
    if streams.clone().all(fits) && streams.clone().any(|s| step[s] > largest[s]) {
        let single = streams.map(|s| room(step[s], s).max(largest[s])).collect();
        sizes.rows.insert(0, single);
        sizes.rows.truncate(SIZES);
    }
    sizes
}

/// The cost of all steps with micro-batches of at most `capacity`, and their sizes.
fn tried(demand: &Demand, mut capacity: Vec<usize>) -> (f64, Sizes) {
    let mut loads: Vec<Vec<usize>> = Vec::new();
    for step in demand.steps {
        let lens: Vec<&[usize]> = step.iter().map(Vec::as_slice).collect();
        let groups = arrange(&lens, &capacity, demand.sequences, demand.in_order);
        let load = |group: &Vec<usize>, s: usize| group.iter().map(|&i| lens[i][s]).sum();
        loads.extend(groups.iter().map(|group| (0..capacity.len()).map(|s| load(group, s)).collect()));
    }
    // Micro-batches need not hold more than the fullest one does.
    for (s, rows) in capacity.iter_mut().enumerate() {
        let fullest = loads.iter().map(|load| load[s]).max().unwrap_or(0);
        *rows = fullest.next_multiple_of(TILE).min(*rows).max(demand.longest[s]).max(1);
    }
    // A size is a number of rows of the first stream, and as large a part of the others.
    let rows = |size: usize| -> Vec<usize> { capacity.iter().map(|all| (all * size).div_ceil(capacity[0])).collect() };
    let tile = (capacity[0] / 64).next_multiple_of(TILE).max(TILE);
    // How many micro-batches need a size.
    let mut needs: BTreeMap<usize, usize> = BTreeMap::new();
    for load in &loads {
        let part = |s: usize| (load[s] * capacity[0]).div_ceil(capacity[s]);
        let need = (0..capacity.len()).map(part).max().unwrap_or(0).max(1);
        *needs.entry(need.next_multiple_of(tile).min(capacity[0])).or_default() += 1;
    }
    let computed = |sizes: &[usize]| -> usize {
        let size = |need: usize| sizes.iter().copied().filter(|size| *size >= need).min().unwrap_or(capacity[0]);
        needs.iter().map(|(need, count)| count * rows(size(*need)).iter().sum::<usize>()).sum()
    };
    // One size more at a time, each time the one that saves most.
    let mut sizes = vec![capacity[0]];
    let mut all = computed(&sizes);
    while sizes.len() < SIZES {
        let with = |size: usize| computed(&[&sizes[..], &[size]].concat());
        let Some((less, size)) = needs.keys().map(|&size| (with(size), size)).min() else { break };
        if less as f64 > all as f64 * (1.0 - WORTH) {
            break;
        }
        sizes.push(size);
        all = less;
    }
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let tokens: usize = loads.iter().flatten().sum();
    let full = if all == 0 { 1.0 } else { tokens as f64 / all as f64 };
    let cost = (all + loads.len() * OVERHEAD) as f64;
    (cost, Sizes { rows: sizes.into_iter().map(rows).collect(), full })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from 0 to below 1 that look random.
    fn spread(i: usize) -> f64 {
        ((i * 7919 + i * i * 104_729) % 10_007) as f64 / 10_007.0
    }

    /// 200 examples of one stream in steps of `batch`.
    fn steps(batch: usize, len: fn(usize) -> usize) -> Vec<Vec<Vec<usize>>> {
        let lens: Vec<Vec<usize>> = (0..200).map(|i| vec![len(i)]).collect();
        lens.chunks(batch).map(<[_]>::to_vec).collect()
    }

    fn demand(steps: &[Vec<Vec<usize>>], most: usize) -> Demand<'_> {
        let mut lens: Vec<usize> = steps.iter().flatten().map(|l| l[0]).collect();
        lens.sort_unstable();
        let sequences = steps.iter().map(Vec::len).max().unwrap_or(1);
        Demand {
            steps,
            longest: vec![*lens.last().unwrap()],
            step: vec![lens.iter().rev().take(sequences).sum()],
            most: vec![most],
            sequences,
            in_order: false,
        }
    }

    /// The share of rows that are tokens if every micro-batch has the most rows.
    fn full_at_most(demand: &Demand) -> f64 {
        let pack = |step: &Vec<Vec<usize>>| {
            let lens: Vec<&[usize]> = step.iter().map(Vec::as_slice).collect();
            arrange(&lens, &demand.most, demand.sequences, false).len() * demand.most[0]
        };
        let rows: usize = demand.steps.iter().map(pack).sum();
        demand.steps.iter().flatten().map(|l| l[0]).sum::<usize>() as f64 / rows as f64
    }

    #[test]
    fn micro_batches_are_filled_by_short_long_and_mixed_examples() {
        type Lengths = (&'static str, fn(usize) -> usize);
        let lengths: [Lengths; 5] = [
            ("short", |i| 15 + i % 10),
            ("long", |i| 700 + (spread(i) * 324.0) as usize),
            ("mixed", |i| (10.0 * 100f64.powf(spread(i))) as usize),
            ("equal", |_| 1024),
            ("middling", |i| 100 + (spread(i) * 200.0) as usize),
        ];
        for (name, len) in lengths {
            for batch in [1, 2, 8, 32] {
                let steps = steps(batch, len);
                let demand = demand(&steps, 1024);
                let Sizes { rows, full } = choose(&demand);
                // Of a micro-batch of few tiles the last one is a large part, and a step of one or two examples has
                // nothing to fill up with: there it is a matter of how many sizes there are.
                let least = match (name, batch) {
                    ("mixed", 1..=2) => 0.6,
                    ("middling", 1) => 0.85,
                    _ if rows[0][0] < 8 * TILE => 0.8,
                    _ => 0.9,
                };
                eprintln!("{name}, {batch} a step: {rows:?} are {full:.3} full");
                assert!(full >= least, "{name}, {batch} a step: {rows:?} are {full:.3} full");
                assert!(rows.len() <= SIZES && rows.is_sorted_by(|a, b| a[0] > b[0]), "{name}, {batch}: {rows:?}");
                let largest = rows[0][0];
                assert!((demand.longest[0]..=1024).contains(&largest), "{name}, {batch}: {rows:?}");
            }
        }
        // The control: of one size, the largest, they are mostly empty.
        for (len, most) in [(lengths[0].1, 0.2), (lengths[2].1, 0.8)] {
            assert!(full_at_most(&demand(&steps(8, len), 1024)) < most);
        }
    }

    #[test]
    fn a_step_that_nearly_fits_is_one_micro_batch() {
        // The most that eight can take is a little more than what eight ever took.
        let steps = steps(8, |i| 16 + i % 9);
        let demand = demand(&steps, 1024);
        let Sizes { rows, .. } = choose(&demand);
        assert!(rows[0][0] >= demand.step[0] && rows[0][0] < demand.step[0] + TILE, "{rows:?} for {:?}", demand.step);
        // Where the most is less, it stays so.
        let Sizes { rows, .. } = choose(&Demand { most: vec![64], ..demand.clone() });
        assert!(rows[0][0] <= 64, "{rows:?}");
    }

    #[test]
    fn two_streams_have_a_part_each() {
        let steps: Vec<Vec<Vec<usize>>> = (0..40).map(|i| vec![vec![5 + i % 4, 40 + i % 20]; 4]).collect();
        let demand = Demand {
            steps: &steps,
            longest: vec![8, 59],
            step: vec![32, 236],
            most: vec![64, 256],
            sequences: 4,
            in_order: true,
        };
        let Sizes { rows, full } = choose(&demand);
        assert!(full > 0.8 && rows.iter().all(|r| r.len() == 2 && r[0] <= 64 && r[1] <= 256), "{rows:?}: {full}");
    }

    #[test]
    fn without_steps_the_longest_fits() {
        let demand =
            Demand { steps: &[], longest: vec![30], step: vec![0], most: vec![64], sequences: 8, in_order: false };
        assert_eq!(choose(&demand), Sizes { rows: vec![vec![30]], full: 1.0 });
    }
}
