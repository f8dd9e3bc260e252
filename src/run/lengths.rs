//! How long examples are.

use std::fmt::Write;

use crate::units::grouped;

/// Lengths in tokens, the shortest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths(Vec<usize>);

/// Characters of the longest bar.
const WIDTH: usize = 40;
/// Bars at most.
const BARS: usize = 12;

impl Lengths {
    /// Of these, in any order.
    pub fn of(lengths: impl Iterator<Item = usize>) -> Lengths {
        let mut all: Vec<usize> = lengths.collect();
        all.sort_unstable();
        Lengths(all)
    }

    /// How many tokens in all.
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }

    /// The length that a share of them does not go beyond.
    pub fn quantile(&self, share: f64) -> usize {
        let last = self.0.len().saturating_sub(1);
        self.0.get((share * last as f64).round() as usize).copied().unwrap_or(0)
    }

    /// `60 examples of 23 to 61 tokens, half of them up to 39`.
    pub fn about(&self) -> String {
        let (n, least, most) = (self.0.len(), self.quantile(0.0), self.quantile(1.0));
        let what = if n == 1 { "example" } else { "examples" };
        match least == most {
            true => format!("{} {what} of {} tokens", grouped(n as u64), grouped(most as u64)),
            false => format!(
                "{} {what} of {} to {} tokens, half of them up to {}",
                grouped(n as u64),
                grouped(least as u64),
                grouped(most as u64),
                grouped(self.quantile(0.5) as u64)
            ),
        }
    }

    /// How many are of which length: lower end, upper end, count.
    pub fn bins(&self) -> Vec<(usize, usize, usize)> {
        let (Some(&least), Some(&most)) = (self.0.first(), self.0.last()) else { return Vec::new() };
        // Ends at round numbers.
        let wanted = (most - least + 1).div_ceil(BARS).max(1);
        let digit = 10usize.pow(wanted.ilog10());
        let width = [1, 2, 5, 10].iter().map(|n| n * digit).find(|width| *width >= wanted).unwrap_or(wanted);
        let mut bins: Vec<(usize, usize, usize)> = Vec::new();
        for &length in &self.0 {
            let start = length / width * width;
            while bins.last().is_none_or(|last| last.0 < start) {
                let next = bins.last().map_or(start, |last| last.0 + width);
                bins.push((next, next + width - 1, 0));
            }
            if let Some(last) = bins.last_mut() {
                last.2 += 1;
            }
        }
        bins
    }

    /// A bar a bin.
    pub fn histogram(&self) -> String {
        let bins = self.bins();
        let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1);
        let name = |&(from, to, _): &(usize, usize, usize)| match from == to {
            true => grouped(from as u64),
            false => format!("{} to {}", grouped(from as u64), grouped(to as u64)),
        };
        let names: Vec<String> = bins.iter().map(name).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        let mut text = String::new();
        for (name, (_, _, count)) in names.iter().zip(&bins) {
            // Eighths of a block, so that one of thousands is seen too.
            let eighths = (count * 8 * WIDTH).div_ceil(most);
            let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
            let bar = "█".repeat(eighths / 8) + rest;
            let _ = writeln!(text, "  {name:>width$} │{bar} {}", grouped(*count as u64));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_every_length_once() {
        let table: &[&[usize]] = &[&[5], &[1, 1, 1], &[1, 100], &[23, 39, 61, 24], &[7, 9000, 12, 13, 4000], &[]];
        for lengths in table {
            let all = Lengths::of(lengths.iter().copied());
            let bins = all.bins();
            assert_eq!(bins.iter().map(|bin| bin.2).sum::<usize>(), lengths.len());
            for &(from, to, count) in &bins {
                assert_eq!(lengths.iter().filter(|l| (from..=to).contains(*l)).count(), count, "{lengths:?} {bins:?}");
            }
            assert!(bins.windows(2).all(|two| two[0].1 + 1 == two[1].0), "{bins:?}");
            assert!(bins.len() <= BARS + 1, "{bins:?}");
            assert_eq!(all.histogram().lines().count(), bins.len());
        }
    }

    #[test]
    fn in_words() {
        let of = |lengths: &[usize]| Lengths::of(lengths.iter().copied()).about();
        assert_eq!(of(&[1200]), "1 example of 1,200 tokens");
        assert_eq!(of(&[9, 3, 5]), "3 examples of 3 to 9 tokens, half of them up to 5");
        assert_eq!(Lengths::of([3, 5, 9].into_iter()).total(), 17);
    }

    #[test]
    fn the_longest_bar_is_of_the_commonest_length() {
        let text = Lengths::of([10, 10, 10, 10, 20].into_iter()).histogram();
        let bars: Vec<usize> = text.lines().map(|line| line.matches('█').count()).collect();
        assert_eq!((bars[0], bars.last()), (WIDTH, Some(&(WIDTH / 4))), "{text}");
    }
}
