//! What the CPU's attention multiplies: floats, or bf16 in pairs, where activations are kept in bf16 and the processor has an
//! instruction for two products at once. Scores, softmax and sums are f32 in either.
//!
//! In pairs, what meets in a product is two numbers to a word: neighbours in a row where features are summed over (q·k,
//! dout·v), and one below the other where rows are (p·v, ds·k). Weights p and ds are rounded to bf16 on their way there, as on
//! tensor cores.

use half::bf16;

use super::host::{CHUNK, Lanes};
use crate::cpu::act::Act;
use crate::cpu::simd::{Lane, Pairs, Simd};
use crate::cpu::tile::{Factor, Pair, Strided};

/// A chunk of rows, held for products.
pub(super) struct Packed<W> {
    /// Features of a row.
    d: usize,
    /// For sums over features: rows one after the other. In place, many may be a power of two apart and evict each other from
    /// the cache.
    rows: Vec<W>,
    /// For sums over rows, where those need another order: word (row / numbers in a word, feature).
    across: Vec<W>,
}

/// Which sums rows are packed for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum For {
    Features,
    Rows,
    Both,
}

/// How numbers are held for products.
pub(super) trait Form<S: Simd, A: Act> {
    /// What goes to all lanes at once.
    type Word: Factor<S>;
    /// Numbers in a word.
    const NUMBERS: usize;

    /// Room for a chunk of rows of `d` features.
    fn room(d: usize, purpose: For) -> Packed<Self::Word>;
    /// Packs rows `first..end`, `d` features of each from `column` on, of a matrix of `cols` columns.
    fn pack(to: &mut Packed<Self::Word>, x: &[A], cols: usize, column: usize, rows: (usize, usize));
    /// x where it is, if its numbers are words.
    fn in_place(x: &[A]) -> Option<&[Self::Word]>;
    /// Rows from number `first` on, for sums over features: element (row, words of features).
    fn rows(packed: &Packed<Self::Word>, first: usize) -> Strided<'_, Self::Word>;
    /// The same for sums over rows: element (feature, words of rows).
    fn across(packed: &Packed<Self::Word>, first: usize) -> Strided<'_, Self::Word>;
    /// Gathers the lanes' rows of `x` into a panel of words of features. Times `scale`, or else [`scale`](Form::scale) is to
    /// come.
    fn gather(lanes: &Lanes, panel: &mut [Lane], d: usize, x: &[A], cols: usize, scale: f32);
    /// Multiplies scores by what [`gather`](Form::gather) left out.
    fn scale(s: S, scores: &mut [Lane], scale: f32);
    /// Rows of floats as words of rows, in their place.
    fn words(s: S, x: &mut [Lane]) -> &[Lane];

    /// `first..end` of a chunk, widened to whole words; what is more is masked.
    fn whole((first, end): (usize, usize)) -> (usize, usize) {
        (first / Self::NUMBERS * Self::NUMBERS, end.next_multiple_of(Self::NUMBERS))
    }
    /// Rows of a panel with `d` features to a lane.
    fn panel(d: usize) -> usize {
        d.div_ceil(Self::NUMBERS)
    }
}

/// A float to a word.
pub(super) struct Floats;

impl<S: Simd, A: Act> Form<S, A> for Floats {
    type Word = f32;
    const NUMBERS: usize = 1;

    fn room(d: usize, _: For) -> Packed<f32> {
        Packed { d, rows: vec![0.0; CHUNK * d], across: Vec::new() }
    }

    #[inline(always)]
    fn pack(to: &mut Packed<f32>, x: &[A], cols: usize, column: usize, (first, end): (usize, usize)) {
        let d = to.d;
        for (to, row) in to.rows.chunks_exact_mut(d).zip(first..end) {
            let from = &x[row * cols + column..][..d];
            // SAFETY: both are of d elements.
            unsafe { A::read(from.as_ptr(), to) };
        }
    }

    fn in_place(x: &[A]) -> Option<&[f32]> {
        A::f32s(x)
    }

    #[inline(always)]
    fn rows(packed: &Packed<f32>, first: usize) -> Strided<'_> {
        Strided { data: &packed.rows[first * packed.d..], row: packed.d, col: 1 }
    }

    #[inline(always)]
    fn across(packed: &Packed<f32>, first: usize) -> Strided<'_> {
        <Self as Form<S, A>>::rows(packed, first).transposed()
    }

    #[inline(always)]
    fn gather(lanes: &Lanes, panel: &mut [Lane], d: usize, x: &[A], cols: usize, scale: f32) {
        for (l, &(token, head)) in lanes.iter().enumerate() {
            let row = &x[token * cols + head * d..][..d];
            for (lane, x) in panel.iter_mut().zip(row) {
                lane[l] = scale * x.widen();
            }
        }
    }

    #[inline(always)]
    fn scale(_: S, _: &mut [Lane], _: f32) {}

    #[inline(always)]
    fn words(_: S, x: &mut [Lane]) -> &[Lane] {
        x
    }
}

/// Two bf16 to a word.
pub(super) struct InPairs;

fn pair(low: bf16, high: bf16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

impl<S: Pairs> Form<S, bf16> for InPairs {
    type Word = Pair;
    const NUMBERS: usize = 2;

    fn room(d: usize, purpose: For) -> Packed<Pair> {
        let words = |wanted, n| vec![Pair(0); if wanted { n } else { 0 }];
        Packed {
            d,
            rows: words(purpose != For::Rows, CHUNK * d.div_ceil(2)),
            across: words(purpose != For::Features, CHUNK / 2 * d),
        }
    }

    #[inline(always)]
    fn pack(to: &mut Packed<Pair>, x: &[bf16], cols: usize, column: usize, (first, end): (usize, usize)) {
        let d = to.d;
        let row = |row: usize| &x[row * cols + column..][..d];
        for (i, to) in to.rows.chunks_exact_mut(d.div_ceil(2)).enumerate().take((end - first).next_multiple_of(2)) {
            // A row beyond the last one has no weight, but zero times what an earlier chunk left may be NaN.
            let from = if first + i < end { row(first + i) } else { &[] };
            let (whole, rest) = from.as_chunks::<2>();
            for (to, &[low, high]) in to.iter_mut().zip(whole) {
                *to = Pair(pair(low, high));
            }
            if let &[last] = rest {
                to[whole.len()] = Pair(pair(last, bf16::ZERO));
            }
            to[from.len().div_ceil(2)..].fill(Pair(0));
        }
        for (to, i) in to.across.chunks_exact_mut(d).zip((first..end).step_by(2)) {
            if i + 1 < end {
                for ((to, &low), &high) in to.iter_mut().zip(row(i)).zip(row(i + 1)) {
                    *to = Pair(pair(low, high));
                }
            } else {
                for (to, &low) in to.iter_mut().zip(row(i)) {
                    *to = Pair(pair(low, bf16::ZERO));
                }
            }
        }
    }

    fn in_place(_: &[bf16]) -> Option<&[Pair]> {
        None
    }

    #[inline(always)]
    fn rows(packed: &Packed<Pair>, first: usize) -> Strided<'_, Pair> {
        let words = packed.d.div_ceil(2);
        Strided { data: &packed.rows[first * words..], row: words, col: 1 }
    }

    #[inline(always)]
    fn across(packed: &Packed<Pair>, first: usize) -> Strided<'_, Pair> {
        Strided { data: &packed.across[first / 2 * packed.d..], row: 1, col: packed.d }
    }

    /// As they are: times `scale` they would be rounded once more.
    #[inline(always)]
    fn gather(lanes: &Lanes, panel: &mut [Lane], d: usize, x: &[bf16], cols: usize, _: f32) {
        for (l, &(token, head)) in lanes.iter().enumerate() {
            let (whole, rest) = x[token * cols + head * d..][..d].as_chunks::<2>();
            for (lane, &[low, high]) in panel.iter_mut().zip(whole) {
                lane[l] = f32::from_bits(pair(low, high));
            }
            if let &[last] = rest {
                panel[whole.len()][l] = f32::from_bits(pair(last, bf16::ZERO));
            }
        }
    }

    #[inline(always)]
    fn scale(s: S, scores: &mut [Lane], scale: f32) {
        let scale = s.splat(scale);
        for row in scores {
            s.store(s.mul(s.load(row), scale), row);
        }
    }

    /// In place: words go where rows were read before.
    #[inline(always)]
    fn words(s: S, x: &mut [Lane]) -> &[Lane] {
        for i in 0..x.len() / 2 {
            let word = s.pair(s.load(&x[2 * i]), s.load(&x[2 * i + 1]));
            s.store(word, &mut x[i]);
        }
        &x[..x.len() / 2]
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::cpu::simd::Avx512;

    type Here = Avx512<true>;

    /// What a chunk leaves is not in the words of a shorter one after it.
    #[test]
    fn words_beyond_the_last_row_are_zero() {
        const D: usize = 3;
        for (purpose, rows, across) in [(For::Features, true, false), (For::Rows, false, true), (For::Both, true, true)]
        {
            let mut packed = <InPairs as Form<Here, bf16>>::room(D, purpose);
            let x = |v: f32| vec![bf16::from_f32(v); 6 * (D + 1)];
            <InPairs as Form<Here, bf16>>::pack(&mut packed, &x(f32::NAN), D + 1, 1, (0, 6));
            <InPairs as Form<Here, bf16>>::pack(&mut packed, &x(2.0), D + 1, 1, (1, 4));
            let two = u32::from(bf16::from_f32(2.0).to_bits());
            let words = |w: &[Pair]| w.iter().map(|w| w.0).collect::<Vec<_>>();
            let (both, low) = (two | two << 16, two);
            if rows {
                assert_eq!(words(&packed.rows[..8]), [both, low, both, low, both, low, 0, 0]);
            }
            if across {
                assert_eq!(words(&packed.across[..6]), [both, both, both, low, low, low]);
            }
            assert_eq!((packed.rows.is_empty(), packed.across.is_empty()), (!rows, !across));
        }
    }

    #[test]
    fn ranges_are_of_whole_words() {
        let whole = <InPairs as Form<Here, bf16>>::whole;
        assert_eq!([whole((3, 8)), whole((2, 7)), whole((5, 6))], [(2, 8), (2, 8), (4, 6)]);
        assert_eq!(<Floats as Form<Here, bf16>>::whole((3, 8)), (3, 8));
    }
}
