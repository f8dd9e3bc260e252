//! How stores end where the device's memory is not the process's own.
//!
//! A store only starts at its node, and the device's side of it is free from there on. At the next store with launches in
//! between, those launches have had their time to run, and the bytes theirs to arrive in the staging memory: the writing of the
//! file begins, beside what follows. At the next but one it has to be over, and the staging memory is free. So two rounds of
//! stores are under way, and the host is one round ahead of what it waits for. What is fetched again is waited for before that;
//! at the end of a phase, everything is.

use super::schedule::Step;

/// A store that has not ended.
struct Leaving {
    store: usize,
    /// The launches of the phase before it, and those before its writing.
    at: usize,
    writing: Option<usize>,
}

/// The stores of a phase that have not ended, the oldest first.
#[derive(Default)]
pub struct Departures(Vec<Leaving>);

impl Departures {
    /// A store has started after `at` launches. Adds the steps for those before it, and returns the ones that ended.
    pub fn store(&mut self, store: usize, at: usize, steps: &mut Vec<Step>) -> Vec<usize> {
        let over = self.end(|_, writing| writing.is_some_and(|then| then < at), steps);
        for leaving in self.0.iter_mut().filter(|l| l.writing.is_none() && l.at < at) {
            steps.push(Step::Write(leaving.store));
            leaving.writing = Some(at);
        }
        self.0.push(Leaving { store, at, writing: None });
        over
    }

    /// Ends the stores that are `due`, given their number and when their writing began, and returns them.
    pub fn end(&mut self, due: impl Fn(usize, Option<usize>) -> bool, steps: &mut Vec<Step>) -> Vec<usize> {
        let (over, rest): (Vec<_>, _) = std::mem::take(&mut self.0).into_iter().partition(|l| due(l.store, l.writing));
        self.0 = rest;
        steps.extend(over.iter().filter(|l| l.writing.is_none()).map(|l| Step::Write(l.store)));
        steps.extend(over.iter().map(|l| Step::Written(l.store)));
        over.into_iter().map(|l| l.store).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Write, Written};
    use super::*;

    #[test]
    fn a_store_is_written_a_round_later_and_over_two_rounds_later() {
        let mut departures = Departures::default();
        // Two stores after each of some launches: the steps that the first and the second of them add.
        let table: [(usize, [&[Step]; 2]); 4] = [
            (3, [&[], &[]]),
            (5, [&[Write(0), Write(1)], &[]]),
            (6, [&[Written(0), Written(1), Write(2), Write(3)], &[]]),
            (9, [&[Written(2), Written(3), Write(4), Write(5)], &[]]),
        ];
        for (round, (at, expected)) in table.into_iter().enumerate() {
            for (i, expected) in expected.into_iter().enumerate() {
                let mut steps = Vec::new();
                let over = departures.store(2 * round + i, at, &mut steps);
                assert_eq!(steps, expected, "store {}", 2 * round + i);
                let written = steps.into_iter().filter(|step| matches!(step, Written(_)));
                assert!(over.into_iter().map(Written).eq(written));
            }
        }
        // One that is asked for ends at once, with those of its kind only; at the end, all do.
        let mut steps = Vec::new();
        assert_eq!(departures.end(|store, _| store == 7, &mut steps), [7]);
        assert_eq!(departures.end(|_, _| true, &mut steps), [4, 5, 6]);
        assert_eq!(steps, [Write(7), Written(7), Write(6), Written(4), Written(5), Written(6)]);
        assert!(departures.end(|_, _| true, &mut steps).is_empty());
    }
}
