//! Lays the examples of a step out in micro-batches of a fixed shape. There is no batch axis: a stream is one row of
//! tokens, and each token knows the sequence it belongs to. What a micro-batch holds is what the layout declares.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::Dataset;
use crate::error::{Error, Result};
use crate::nn::inputs::{Column, Item, Layout, Pad, Placed, Stream};

/// Packed sequences: the values of each field of a layout. What the sequences leave free is at the end of each stream.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatch {
    /// By name, in the layout's order.
    pub fields: Vec<(String, Column)>,
    /// Number of each sequence's example in the data set, in the order in which they were packed.
    pub examples: Vec<usize>,
    /// Where each sequence is in each stream.
    pub placed: Vec<Vec<Placed>>,
    /// Tokens of all streams that are not padding.
    pub tokens: usize,
    /// Units over whose number the loss is a mean.
    pub trained: usize,
}

impl MicroBatch {
    /// The values of a field.
    pub fn get(&self, name: &str) -> Result<&Column> {
        let found = self.fields.iter().find(|f| f.0 == name).map(|f| &f.1);
        found.ok_or_else(|| Error::config("micro-batch", format!("no field {name}"), "what the program declares"))
    }

    /// The whole numbers of a field; none if it has none.
    pub fn ints(&self, name: &str) -> &[i32] {
        self.get(name).map_or(&[], Column::ints)
    }

    /// The same with more padding: the shape of `layout`, which has the same fields and is not smaller.
    pub fn widened(&self, layout: &Layout) -> Result<MicroBatch> {
        let mut wide = self.clone();
        wide.fill(layout)?;
        Ok(wide)
    }

    /// Pads every field to the shape of `layout`.
    fn fill(&mut self, layout: &Layout) -> Result<()> {
        for (field, (_, values)) in layout.fields.iter().zip(&mut self.fields) {
            let all = layout.rows(field.axis)? * field.width;
            match (field.pad, values) {
                (Pad::Int(x), Column::Ints(v)) => v.resize(all, x),
                (Pad::Float(x), Column::Floats(v)) => v.resize(all, x),
                // Each token of padding is a sequence of its own: attention over padding costs nothing and is defined.
                (_, Column::Ints(v)) => {
                    let from = v.len() / 2;
                    v.extend((from..all / 2).flat_map(|t| [t as i32, t as i32 + 1]));
                }
                (_, Column::Floats(v)) => v.resize(all, 0.0),
            }
        }
        Ok(())
    }
}

/// A micro-batch that is being filled.
struct Bin<'a> {
    layout: &'a Layout,
    batch: MicroBatch,
    /// Rows taken of each stream, and rows of its keys.
    used: Vec<usize>,
    keys: Vec<usize>,
}

impl<'a> Bin<'a> {
    fn new(layout: &'a Layout) -> Bin<'a> {
        let empty = |pad: Pad| match pad {
            Pad::Float(_) => Column::Floats(Vec::new()),
            _ => Column::Ints(Vec::new()),
        };
        let fields = layout.fields.iter().map(|f| (f.name.clone(), empty(f.pad))).collect();
        let batch = MicroBatch { fields, examples: Vec::new(), placed: Vec::new(), tokens: 0, trained: 0 };
        let none = vec![0; layout.streams.len()];
        Bin { layout, batch, used: none.clone(), keys: none }
    }

    fn push(&mut self, data: &Dataset, example: usize, lens: &[usize]) -> Result<()> {
        let mut placed = Vec::with_capacity(lens.len());
        for (i, (stream, &len)) in self.layout.streams.iter().zip(lens).enumerate() {
            let Stream { lead, prefix, .. } = *stream;
            let pad = len - lead - data.len_of(example, stream.column);
            placed.push(Placed { start: self.used[i], len, key: self.keys[i], lead, prefix, pad });
            self.used[i] += len;
            self.keys[i] += prefix + len;
        }
        let padding = self.layout.padding.iter().flat_map(|p| &p.columns);
        let columns = |name: &str| {
            let mut column = data.column(example, name)?;
            let pad = padding.clone().find(|(padded, _)| *padded == name);
            if let (Some((_, value)), Column::Ints(values)) = (pad, &mut column) {
                values.extend(std::iter::repeat_n(value, if values.is_empty() { 0 } else { placed[0].pad }));
            }
            Some(column)
        };
        let item = Item { columns: &columns, index: self.batch.examples.len(), placed: &placed };
        for (field, (name, values)) in self.layout.fields.iter().zip(&mut self.batch.fields) {
            let part = (field.fill)(&item);
            let rows = match field.axis {
                crate::nn::Axis::Token(s) => item.at(s).len,
                crate::nn::Axis::Key(s) => item.at(s).len + item.at(s).prefix,
                crate::nn::Axis::Sequence => 1,
            };
            if part.len() != rows * field.width {
                let found = format!("{} values of {name} for {rows} rows of {}", part.len(), field.width);
                return Err(Error::config("example", found, "as many as its tokens, and one label for each"));
            }
            values.extend(&part);
        }
        self.batch.trained += (self.layout.weight)(&item);
        self.batch.tokens += placed.iter().map(|p| p.len - p.pad).sum::<usize>();
        self.batch.examples.push(example);
        self.batch.placed.push(placed);
        Ok(())
    }

    /// The micro-batch, in the smallest of `layouts` that holds it; the first holds all.
    fn finish(mut self, layouts: &[Layout]) -> Result<MicroBatch> {
        let holds = |layout: &&Layout| {
            let mut streams = layout.streams.iter().zip(&self.used);
            self.batch.examples.len() <= layout.sequences && streams.all(|(stream, used)| *used <= stream.tokens)
        };
        self.batch.fill(layouts.iter().rfind(holds).unwrap_or(self.layout))?;
        Ok(self.batch)
    }
}

/// Packs the examples `step` of `data`. In order, an example goes into the last micro-batch or begins a
/// new one; otherwise the longest come first and each goes where it leaves the least room (best fit
/// decreasing), which seldom needs more micro-batches than there must be. The same input gives the same
/// output. The step's trained units are the sum of the micro-batches' `trained`.
pub fn pack(data: &Dataset, step: &[usize], layout: &Layout, in_order: bool) -> Result<Vec<MicroBatch>> {
    pack_sized(data, step, std::slice::from_ref(layout), in_order)
}

/// The same where micro-batches have several sizes, the largest first: those that the largest leaves partly empty become
/// the smallest that holds them.
pub fn pack_sized(data: &Dataset, step: &[usize], layouts: &[Layout], in_order: bool) -> Result<Vec<MicroBatch>> {
    let layout = layouts.first().ok_or_else(|| Error::config("layouts", "none", "at least one"))?;
    let mut examples = Vec::with_capacity(step.len());
    let longest = step.iter().map(|&i| data.len_of(i, layout.streams[0].column)).max().unwrap_or(0);
    for &i in step {
        if i >= data.len() {
            return Err(Error::config("step", format!("example {i}"), format!("one of {}", data.len())));
        }
        let mut lens: Vec<usize> = layout.streams.iter().map(|s| data.len_of(i, s.column) + s.lead).collect();
        if let (Some(_), Some(len), Some(stream)) = (&layout.padding, lens.first_mut(), layout.streams.first()) {
            *len = longest + stream.lead;
        }
        for (stream, &len) in layout.streams.iter().zip(&lens) {
            let most = stream.tokens;
            if len > most || most > i32::MAX as usize {
                let found = format!("{most}, but example {i} has {len} tokens");
                let expected = format!("{len} to {}: raise --micro-tokens or lower --max-seq-len", i32::MAX);
                return Err(Error::config("micro_tokens", found, expected));
            }
        }
        examples.push((i, lens));
    }
    let lens: Vec<&[usize]> = examples.iter().map(|(_, lens)| lens.as_slice()).collect();
    let capacity: Vec<usize> = layout.streams.iter().map(|stream| stream.tokens).collect();
    let fill = |members: Vec<usize>| {
        let mut bin = Bin::new(layout);
        members.into_iter().try_for_each(|m| bin.push(data, examples[m].0, &examples[m].1))?;
        bin.finish(layouts)
    };
    arrange(&lens, &capacity, layout.sequences, in_order).into_iter().map(fill).collect()
}

/// Puts sequences of `lens` rows of each stream together, at most `sequences` of them and `capacity` rows of each stream,
/// which no sequence exceeds: numbers of sequences, group by group.
pub(super) fn arrange(lens: &[&[usize]], capacity: &[usize], sequences: usize, in_order: bool) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    if !in_order {
        order.sort_by_key(|&i| Reverse(lens[i][0]));
    }
    let mut bins: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
    // Micro-batches by the room that they have left in the first stream: finding one takes the logarithm of their number.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in order {
        let fits = |(used, members): &(Vec<usize>, Vec<usize>)| {
            let mut streams = used.iter().zip(capacity).zip(lens[i]);
            members.len() < sequences && streams.all(|((used, most), len)| used + len <= *most)
        };
        let fitting = rooms.range((lens[i][0], 0)..).find(|(_, bin)| fits(&bins[*bin])).copied();
        let (room, bin) = fitting.unwrap_or((capacity[0], bins.len()));
        if fitting.is_none() {
            bins.push((vec![0; capacity.len()], Vec::new()));
            if in_order {
                rooms.clear();
            }
        }
        rooms.remove(&(room, bin));
        rooms.insert((room - lens[i][0], bin));
        let (used, members) = &mut bins[bin];
        used.iter_mut().zip(lens[i]).for_each(|(used, len)| *used += len);
        members.push(i);
    }
    bins.into_iter().map(|(_, members)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Example, IGNORE, INPUT_IDS, LABELS};
    use super::*;
    use crate::tasks::causal_lm::layout;

    #[test]
    fn sequences_are_padded_to_the_longest_where_the_layout_says_so() {
        use crate::nn::inputs::{MAIN, Padding, padded_query_range};
        let mut layout = layout(16);
        layout.padding = Some(Padding { columns: vec![(INPUT_IDS, 7), (LABELS, 0)] });
        layout.fields.push(padded_query_range("query_range", MAIN));
        let data = dataset(&[3, 5]);
        let batch = &pack(&data, &[0, 1], &layout, true).unwrap()[0];
        assert_eq!(batch.ints(INPUT_IDS)[..12], [1, 2, 3, 7, 7, 4, 5, 6, 7, 8, 0, 0]);
        assert_eq!(batch.ints("positions")[..10], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
        // Padding sees the sequence, and nothing sees padding.
        assert_eq!(batch.ints("key_range")[..10], [0, 3, 0, 3, 0, 3, 0, 3, 0, 3]);
        assert_eq!(batch.ints("query_range")[..10], [0, 5, 0, 5, 0, 5, 0, 0, 0, 0]);
        assert_eq!(batch.ints("key_range")[18..24], [5, 10, 10, 11, 11, 12]);
        assert_eq!(batch.ints("query_range")[18..24], [5, 10, 10, 11, 11, 12]);
        assert_eq!(batch.tokens, 8);
        assert_eq!(
            batch.placed.iter().map(|p| (p[0].start, p[0].len, p[0].pad)).collect::<Vec<_>>(),
            [(0, 5, 2), (5, 5, 0)]
        );
        // Alone it is as long as it is.
        let alone = &pack(&data, &[0], &layout, true).unwrap()[0];
        assert_eq!((alone.placed[0][0].len, alone.placed[0][0].pad), (3, 0));
    }

    /// Examples of the given lengths whose tokens are all different; every third label is masked.
    fn dataset(lengths: &[usize]) -> Dataset {
        let mut data = Dataset::default();
        let mut next = 1u32;
        for &length in lengths {
            let mut example = Example::whole((next..next + length as u32).collect());
            next += length as u32;
            example.ints_mut(LABELS).iter_mut().skip(2).step_by(3).for_each(|label| *label = IGNORE);
            data.push(&example).unwrap();
        }
        data
    }

    /// Says what is wrong with a packing, from the definitions alone.
    fn verify(data: &Dataset, step: &[usize], capacity: usize, bins: &[MicroBatch]) -> Result<(), String> {
        let ints = |i: usize, name| data.column(i, name).unwrap().ints().to_vec();
        let mut left: Vec<(Vec<i32>, Vec<i32>)> = step.iter().map(|&i| (ints(i, INPUT_IDS), ints(i, LABELS))).collect();
        for (b, bin) in bins.iter().enumerate() {
            let [ids, targets, positions] = [INPUT_IDS, LABELS, "positions"].map(|name| bin.ints(name));
            let ranges = bin.ints("key_range");
            let sizes = [ids.len(), targets.len(), positions.len(), ranges.len() / 2];
            if sizes != [capacity; 4] {
                return Err(format!("micro-batch {b} has sizes {sizes:?}"));
            }
            let (mut trained, mut start) = (0, 0);
            while start < capacity {
                let end = ranges[2 * start + 1] as usize;
                if end <= start || end > capacity {
                    return Err(format!("sequence at {start} of {b} ends at {end}"));
                }
                for t in start..end {
                    if ranges[2 * t..][..2] != [start as i32, end as i32] || positions[t] != (t - start) as i32 {
                        return Err(format!("token {t} of {b}: {:?} at {}", &ranges[2 * t..][..2], positions[t]));
                    }
                }
                let own = ids[start..end].to_vec();
                if start >= bin.tokens {
                    if (own.as_slice(), targets[start]) != (&[0], IGNORE) {
                        return Err(format!("padding {start} of {b}: {own:?}"));
                    }
                    start = end;
                    continue;
                }
                let Some(i) = left.iter().position(|(want, _)| *want == own) else {
                    return Err(format!("{own:?} is no example, or was there before"));
                };
                let labels = left.remove(i).1;
                for t in 0..own.len() {
                    let want = labels.get(t + 1).copied().unwrap_or(IGNORE);
                    if targets[start + t] != want {
                        return Err(format!("target {t} of {own:?}: {}, not {want}", targets[start + t]));
                    }
                    trained += (want != IGNORE) as usize;
                }
                start = end;
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
                let bins = pack(&data, &step, &layout(capacity), in_order).unwrap();
                verify(&data, &step, capacity, &bins).unwrap();
                assert_eq!(bins, pack(&data, &step, &layout(capacity), in_order).unwrap());
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
        let good = pack(&data, &step, &layout(16), false).unwrap();
        verify(&data, &step, 16, &good).unwrap();
        type Spoil = fn(&mut [i32]);
        let spoils: [(&str, &str, Spoil); 6] = [
            ("a target across a boundary", LABELS, |v| v[4] = 6),
            ("an unmasked target", LABELS, |v| v[1] = 3),
            ("trained padding", LABELS, |v| v[15] = 1),
            ("a position that runs on", "positions", |v| v[5] = 5),
            ("a range over two sequences", "key_range", |v| v[1] = 9),
            ("a token lost", INPUT_IDS, |v| v[3] = v[2]),
        ];
        for (what, name, spoil) in spoils {
            let mut bad = good.clone();
            let field = bad[0].fields.iter_mut().find(|f| f.0 == name).unwrap();
            let Column::Ints(values) = &mut field.1 else { panic!("{name}") };
            spoil(values);
            assert!(verify(&data, &step, 16, &bad).is_err(), "{what}");
        }
        let mut bad = good.clone();
        bad[0].trained += 1;
        assert!(verify(&data, &step, 16, &bad).is_err(), "a wrong count");
        assert!(verify(&data, &step, 16, &[]).is_err());
    }

    #[test]
    fn in_order_keeps_the_order() {
        let data = dataset(&[6, 5, 3, 8, 1]);
        let lengths = |in_order| -> Vec<Vec<usize>> {
            let bins = pack(&data, &[0, 1, 2, 3, 4], &layout(10), in_order).unwrap();
            bins.iter().map(|b| b.examples.iter().map(|&i| data.len_of(i, INPUT_IDS)).collect()).collect()
        };
        assert_eq!(lengths(true), [vec![6], vec![5, 3], vec![8, 1]]);
        assert_eq!(lengths(false), [vec![8], vec![6, 3, 1], vec![5]]);
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let data = dataset(&[5, 9]);
        for (step, capacity, want) in [(vec![0, 1], 8, "example 1 has 9 tokens"), (vec![2], 8, "example 2")] {
            let error = pack(&data, &step, &layout(capacity), false).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        for bad in [Example::default(), Example::whole(vec![1 << 31])] {
            assert!(Dataset::default().push(&bad).is_err());
        }
        let mut ragged = Dataset::default();
        ragged.push(&Example::labelled(vec![1, 2], vec![1])).unwrap();
        let error = pack(&ragged, &[0], &layout(8), true).unwrap_err().to_string();
        assert!(error.contains("labels"), "{error}");
    }
}
