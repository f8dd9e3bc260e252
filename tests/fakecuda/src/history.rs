//! Who touched which bytes of an allocation last, by stretches.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::clock::{Actor, Clock};

/// One piece of work.
#[derive(Clone, Debug)]
pub struct Mark {
    pub actor: Actor,
    pub time: u32,
    /// What it was, for messages.
    pub what: Arc<str>,
}

impl PartialEq for Mark {
    fn eq(&self, other: &Mark) -> bool {
        (self.actor, self.time) == (other.actor, other.time)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Span {
    end: u64,
    wrote: Option<Mark>,
    /// Reads since that write, of which none is known to come after another.
    reads: Vec<Mark>,
}

/// Two accesses that nothing orders.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    pub bytes: Range<u64>,
    pub other: Mark,
    pub wrote: bool,
}

/// The last write of each byte, and the reads since.
#[derive(Default)]
pub struct History {
    spans: BTreeMap<u64, Span>,
}

impl History {
    /// Has a span begin at `at`, if one goes across it.
    fn split(&mut self, at: u64) {
        let Some((_, span)) = self.spans.range_mut(..at).next_back().filter(|(_, span)| span.end > at) else { return };
        let rest = span.clone();
        span.end = at;
        self.spans.insert(at, rest);
    }

    /// Notes an access by what `mark` says, which comes after `view`.
    pub fn touch(&mut self, range: Range<u64>, write: bool, view: &Clock, mark: &Mark) -> Result<(), Conflict> {
        if range.is_empty() {
            return Ok(());
        }
        self.split(range.start);
        self.split(range.end);
        let ordered = |m: &Mark| view.at(m.actor) >= m.time;
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (&start, span) in self.spans.range_mut(range.clone()) {
            if at < start {
                gaps.push(at..start);
            }
            at = span.end;
            let bytes = start..span.end;
            if let Some(other) = span.wrote.as_ref().filter(|m| !ordered(m)) {
                return Err(Conflict { bytes, other: other.clone(), wrote: true });
            }
            if write {
                if let Some(other) = span.reads.iter().find(|m| !ordered(m)) {
                    return Err(Conflict { bytes, other: other.clone(), wrote: false });
                }
                (span.wrote, span.reads) = (Some(mark.clone()), Vec::new());
            } else {
                span.reads.retain(|m| !ordered(m));
                span.reads.push(mark.clone());
            }
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        for gap in gaps {
            let (wrote, reads) = if write { (Some(mark.clone()), vec![]) } else { (None, vec![mark.clone()]) };
            self.spans.insert(gap.start, Span { end: gap.end, wrote, reads });
        }
        self.merge(range);
        Ok(())
    }

    /// Makes neighbours that are alike one.
    fn merge(&mut self, range: Range<u64>) {
        let before = self.spans.range(..range.start).next_back().map_or(range.start, |(&start, _)| start);
        let starts: Vec<u64> = self.spans.range(before..=range.end).map(|(&start, _)| start).collect();
        let mut last: Option<u64> = None;
        for start in starts {
            let like = last.filter(|l| {
                let (a, b) = (&self.spans[l], &self.spans[&start]);
                a.end == start && a.wrote == b.wrote && a.reads == b.reads
            });
            match like {
                Some(l) => {
                    let end = self.spans.remove(&start).map_or(start, |s| s.end);
                    if let Some(span) = self.spans.get_mut(&l) {
                        span.end = end;
                    }
                }
                None => last = Some(start),
            }
        }
    }

    /// The first work that `view` does not come after.
    pub fn open(&self, view: &Clock) -> Option<Mark> {
        let marks = self.spans.values().flat_map(|span| span.wrote.iter().chain(&span.reads));
        marks.into_iter().find(|m| view.at(m.actor) < m.time).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(actor: Actor, time: u32) -> Mark {
        Mark { actor, time, what: format!("{actor} at {time}").into() }
    }

    /// The clock of an actor after `time` steps, which has seen `seen` of others.
    fn view(actor: Actor, time: u32, seen: &[(Actor, u32)]) -> Clock {
        let mut clock = Clock::default();
        for &(a, t) in seen.iter().chain(&[(actor, time)]) {
            (0..t).for_each(|_| {
                clock.tick(a);
            });
        }
        clock
    }

    #[test]
    fn only_bytes_that_meet_conflict() {
        let mut history = History::default();
        history.touch(0..100, true, &view(1, 1, &[]), &mark(1, 1)).unwrap();
        history.touch(100..200, true, &view(2, 1, &[]), &mark(2, 1)).unwrap();
        let found = history.touch(90..110, false, &view(2, 2, &[]), &mark(2, 2)).unwrap_err();
        assert_eq!((found.bytes, found.other, found.wrote), (90..100, mark(1, 1), true));
        history.touch(90..110, false, &view(2, 3, &[(1, 1)]), &mark(2, 3)).unwrap();
        // Written where another has read since.
        let found = history.touch(0..100, true, &view(1, 2, &[]), &mark(1, 2)).unwrap_err();
        assert_eq!((found.bytes, found.other, found.wrote), (90..100, mark(2, 3), false));
        history.touch(0..100, true, &view(1, 3, &[(2, 3)]), &mark(1, 3)).unwrap();
        assert_eq!(history.open(&view(1, 3, &[])).map(|m| m.actor), Some(2));
        assert_eq!(history.open(&view(1, 3, &[(2, 3)])), None);
    }

    #[test]
    fn neighbours_that_are_alike_become_one() {
        let mut history = History::default();
        for i in 0..50 {
            history.touch(4 * i..4 * i + 4, true, &view(1, 1, &[]), &mark(1, 1)).unwrap();
        }
        assert_eq!(history.spans.len(), 1);
        history.touch(10..20, false, &view(1, 2, &[]), &mark(1, 2)).unwrap();
        assert_eq!(history.spans.len(), 3);
        history.touch(0..200, true, &view(1, 3, &[]), &mark(1, 3)).unwrap();
        assert_eq!(history.spans.len(), 1);
    }

    /// Spans against a list of bytes, each with its last write and all reads since, under accesses drawn by a small
    /// generator: the same accesses conflict.
    #[test]
    fn spans_know_what_bytes_know() {
        const ACTORS: usize = 3;
        let (mut conflicts, mut fine) = (0, 0);
        for seed in 1..200u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |n: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 20) % n
            };
            let mut history = History::default();
            let mut bytes: Vec<(Option<Mark>, Vec<Mark>)> = vec![(None, Vec::new()); 24];
            let mut clocks = vec![Clock::default(); ACTORS];
            for _ in 0..60 {
                let actor = below(ACTORS as u64) as usize;
                if below(2) == 0 {
                    let seen = clocks[below(ACTORS as u64) as usize].clone();
                    clocks[actor].join(&seen);
                }
                let start = below(24);
                let range = start..(start + 1 + below(8)).min(24);
                let (write, time) = (below(2) == 0, clocks[actor].tick(actor));
                let (view, mark) = (clocks[actor].clone(), mark(actor, time));
                let ordered = |m: &Mark| view.at(m.actor) >= m.time;
                let touched = &mut bytes[range.start as usize..range.end as usize];
                let right = touched
                    .iter()
                    .all(|(wrote, reads)| wrote.iter().all(ordered) && (!write || reads.iter().all(ordered)));
                assert_eq!(history.touch(range, write, &view, &mark).is_ok(), right, "seed {seed}");
                if !right {
                    conflicts += 1;
                    break;
                }
                fine += 1;
                for (wrote, reads) in touched {
                    if write {
                        (*wrote, *reads) = (Some(mark.clone()), Vec::new());
                    } else {
                        reads.push(mark.clone());
                    }
                }
            }
        }
        assert!(conflicts > 100 && fine > 300, "{conflicts} conflicts, {fine} without");
    }
}
