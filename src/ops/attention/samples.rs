//! What attention is tested on: packed sequences of odd lengths, grouped heads, odd head sizes, windows, caches, and keys
//! that are other tokens than the queries.

use super::{Attention, Attr, Tensor, Ty, reference};
use crate::ops::{Sample, SampleIn};

/// What the tokens are, and which see which.
#[derive(Clone, Copy)]
enum Of {
    /// Lengths of packed sequences whose tokens see one another; 0 is a token that belongs to none.
    Own(&'static [usize]),
    /// Queries and keys of each sequence: a decoder that sees its encoder.
    Cross(&'static [(usize, usize)]),
    /// Lengths of packed sequences, each of which sees as many keys before its own: a trained prefix. A token sees the
    /// keys up to its own.
    Prefix(usize, &'static [usize]),
}
use Of::{Cross, Own, Prefix};

impl Of {
    /// The keys that each query sees, and how many keys there are.
    fn key_range(&self) -> (Vec<[usize; 2]>, usize) {
        let (mut ranges, mut start) = (Vec::new(), 0);
        match *self {
            Own(lens) => {
                for &n in lens {
                    let range = if n == 0 { [0, 0] } else { [start, start + n] };
                    ranges.extend(std::iter::repeat_n(range, n.max(1)));
                    start += n.max(1);
                }
            }
            Cross(lens) => {
                for &(queries, keys) in lens {
                    ranges.extend(std::iter::repeat_n([start, start + keys], queries));
                    start += keys;
                }
            }
            Prefix(rows, lens) => {
                for &n in lens {
                    ranges.extend((1..=n).map(|own| [start, start + rows + own]));
                    start += rows + n;
                }
            }
        }
        (ranges, start)
    }

    /// The place of each query among its keys.
    fn q_pos(&self) -> Vec<usize> {
        match *self {
            Own(lens) => lens.iter().flat_map(|&n| 0..n.max(1)).collect(),
            Cross(lens) => lens.iter().flat_map(|&(queries, _)| 0..queries).collect(),
            Prefix(rows, lens) => lens.iter().flat_map(|&n| rows..rows + n).collect(),
        }
    }
}

/// The same relation, by keys.
fn query_range(key_range: &[[usize; 2]], keys: usize) -> Vec<[usize; 2]> {
    let of = |s: usize| {
        let sees = |range: &[usize; 2]| (range[0]..range[1]).contains(&s);
        let first = key_range.iter().position(sees)?;
        Some([first, 1 + key_range.iter().rposition(sees)?])
    };
    (0..keys).map(|s| of(s).unwrap_or([0, 0])).collect()
}

struct Case {
    name: &'static str,
    of: Of,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
    window: Option<usize>,
    /// The farthest distance that a bias tells apart, if there is one.
    farthest: Option<usize>,
}

/// Causal if the tokens see one another.
const fn case(name: &'static str, of: Of, [heads, kv_heads, head_dim]: [usize; 3]) -> Case {
    Case { name, of, heads, kv_heads, head_dim, causal: matches!(of, Own(_)), window: None, farthest: None }
}

const CASES: [Case; 48] = [
    case("one token", Own(&[1]), [1, 1, 1]),
    case("ragged", Own(&[7, 1, 17, 3]), [3, 1, 8]),
    case("odd head", Own(&[33]), [2, 2, 5]),
    case("several tiles", Own(&[65, 70]), [2, 1, 16]),
    case("window", Own(&[40, 9]), [2, 2, 12]).window(7),
    case("window of 1", Own(&[5]), [1, 1, 3]).window(1),
    case("bidirectional", Own(&[20, 31]), [4, 2, 10]).both_ways(),
    case("loose tokens", Own(&[6, 0, 9, 0]), [2, 1, 7]),
    case("heads of 100", Own(&[37]), [1, 1, 100]),
    case("heads of 131", Own(&[9, 25]), [2, 1, 131]),
    case("heads of 67", Own(&[11]), [2, 2, 67]),
    case("heads of 256", Own(&[3, 18]), [1, 1, 256]),
    // Tiles of 128 queries: some that every query sees whole, some that no row of a warp meets.
    case("long", Own(&[201]), [1, 1, 8]),
    case("window over tiles", Own(&[170]), [1, 1, 4]).window(70),
    // Heads whose rows begin on multiples of 16 bytes.
    case("heads of 96", Own(&[40]), [2, 1, 96]),
    case("heads of 128", Own(&[95, 5]), [1, 1, 128]),
    case("heads of 192", Own(&[34]), [1, 1, 192]),
    case("heads of 64", Own(&[3, 35]), [3, 1, 64]),
    // On Hopper by wgmma: at least 128 queries and keys.
    case("packed, heads of 64", Own(&[37, 150, 0, 70]), [2, 1, 64]),
    case("window, heads of 128", Own(&[200, 60]), [1, 1, 128]).window(40),
    case("bidirectional, heads of 64", Own(&[130, 20]), [2, 2, 64]).both_ways(),
    case("cross, heads of 128", Cross(&[(140, 150), (3, 0), (0, 9)]), [2, 1, 128]),
    case("prefix, long, heads of 64", Prefix(20, &[160]), [1, 1, 64]),
    // Queries without keys, keys without queries.
    case("cross", Cross(&[(7, 19), (1, 3), (5, 0), (17, 2), (0, 6), (3, 40)]), [3, 1, 8]),
    case("cross, more queries", Cross(&[(70, 10), (0, 3), (65, 4)]), [2, 1, 16]),
    case("cross, more keys", Cross(&[(10, 140), (3, 0), (2, 75)]), [2, 2, 6]),
    case("cross, heads of 64", Cross(&[(9, 33), (30, 12)]), [3, 1, 64]),
    case("cross, heads of 131", Cross(&[(2, 25), (20, 17)]), [2, 1, 131]),
    case("cross, heads of 256", Cross(&[(5, 3), (7, 26)]), [1, 1, 256]),
    // So few queries that the CPU takes features for lanes.
    case("cross, three queries", Cross(&[(2, 90), (1, 30)]), [2, 1, 64]),
    case("cross, one query", Cross(&[(1, 150)]), [3, 1, 100]),
    case("prefix", Prefix(5, &[7, 1, 17, 3]), [3, 1, 8]),
    case("prefix over tiles", Prefix(30, &[70, 75]), [2, 1, 16]),
    case("prefix, long", Prefix(3, &[201]), [1, 1, 8]),
    case("prefix, heads of 128", Prefix(20, &[21, 30]), [1, 1, 128]),
    case("prefix, heads of 192", Prefix(9, &[3, 20]), [1, 1, 192]),
    case("bias", Own(&[20, 31]), [4, 2, 10]).both_ways().bias(12),
    case("bias, causal", Own(&[7, 1, 17, 3]), [3, 1, 8]).bias(40),
    case("bias of one row", Own(&[6, 0, 9, 0]), [2, 1, 7]).both_ways().bias(0),
    case("bias, cross", Cross(&[(7, 19), (5, 0), (0, 6), (9, 2)]), [2, 2, 6]).bias(5),
    case("bias, prefix", Prefix(5, &[7, 1, 17]), [3, 1, 5]).bias(9),
    case("bias over tiles", Own(&[65, 70]), [2, 1, 16]).both_ways().bias(30),
    case("bias, long", Own(&[201]), [1, 1, 8]).bias(128),
    case("bias, heads of 64", Own(&[3, 35]), [3, 1, 64]).both_ways().bias(50),
    case("bias, heads of 96", Own(&[20, 21]), [2, 1, 96]).bias(8),
    case("bias, heads of 128", Own(&[75, 5]), [1, 1, 128]).both_ways().bias(20),
    case("bias, heads of 131", Own(&[9, 25]), [2, 1, 131]).bias(3),
    case("bias, heads of 192", Own(&[34]), [1, 1, 192]).both_ways().bias(33),
];

impl Case {
    const fn window(self, window: usize) -> Case {
        Case { window: Some(window), ..self }
    }

    const fn both_ways(self) -> Case {
        Case { causal: false, ..self }
    }

    const fn bias(self, farthest: usize) -> Case {
        Case { farthest: Some(farthest), ..self }
    }

    fn attr(&self) -> Attr {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let whole = Attention::new(self.heads, self.kv_heads, self.head_dim, scale, self.causal);
        Attr::Attention(Attention { window: self.window, bias: self.farthest.is_some(), ..whole })
    }

    fn queries(&self) -> usize {
        self.of.key_range().0.len()
    }

    fn q(&self) -> SampleIn {
        SampleIn::normal(Ty::f32(&[self.queries(), self.heads * self.head_dim]))
    }

    /// q, k, v, key_range and, with a bias, bias and q_pos.
    fn operands(&self) -> Vec<SampleIn> {
        let (key_range, keys) = self.of.key_range();
        let k = || SampleIn::normal(Ty::f32(&[keys, self.kv_heads * self.head_dim]));
        let mut ins = vec![self.q(), k(), k(), ranges(&key_range)];
        if let Some(farthest) = self.farthest {
            ins.push(SampleIn::normal(Ty::f32(&[2 * farthest + 1, self.heads])));
            let q_pos: Vec<f64> = self.of.q_pos().into_iter().map(|n| n as f64).collect();
            ins.push(SampleIn::values(Ty::i32(&[q_pos.len()]), q_pos));
        }
        ins
    }

    fn query_range(&self) -> SampleIn {
        let (key_range, keys) = self.of.key_range();
        // Of tokens that see one another the array is the same, whatever causality and windows take away.
        if let Own(_) = self.of { ranges(&key_range) } else { ranges(&query_range(&key_range, keys)) }
    }
}

fn ranges(of: &[[usize; 2]]) -> SampleIn {
    SampleIn::values(Ty::i32(&[of.len(), 2]), of.iter().flatten().map(|&n| n as f64).collect())
}

pub fn forward() -> Vec<Sample> {
    let packed = |c: &Case| {
        let ins = c.operands().into_iter().chain([c.query_range()]).collect();
        Sample::new(c.name, c.attr(), ins)
    };
    let mut samples: Vec<Sample> = CASES.iter().map(packed).collect();
    // Without gradients: decoding from a cache, two prompts side by side.
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    for (name, keys, key_range, bias) in [
        ("decoding", 70, vec![0.0, 67.0], None),
        ("decoding two", 50, vec![0.0, 20.0, 25.0, 50.0], None),
        ("decoding from a long cache", 610, vec![30.0, 595.0, 9.0, 9.0, 1.0, 20.0], None),
        ("key_range beyond the cache", 9, vec![-3.0, 5.0, 4.0, 99.0, 7.0, 2.0], None),
        ("decoding, bias", 70, vec![0.0, 67.0], Some((40, vec![66.0]))),
        ("decoding two, bias", 50, vec![0.0, 20.0, 25.0, 50.0], Some((30, vec![19.0, 24.0]))),
        // Places before the first key and after the last.
        ("bias from a long cache", 610, vec![30.0, 595.0, 9.0, 9.0, -1.0, 20.0], Some((300, vec![564.0, 0.0, 26.0]))),
        ("bias beyond the cache", 9, vec![-3.0, 5.0, 4.0, 99.0, 7.0, 2.0], Some((3, vec![-2.0, 7.0, 1.0]))),
    ] {
        let t = key_range.len() / 2;
        let k = Ty::f32(&[keys, kv_heads * head_dim]);
        let attr = Attention { bias: bias.is_some(), ..Attention::new(heads, kv_heads, head_dim, 0.3, false) };
        let mut ins = vec![
            SampleIn::normal(Ty::f32(&[t, heads * head_dim])),
            SampleIn::normal(k.clone()),
            SampleIn::normal(k),
            SampleIn::values(Ty::i32(&[t, 2]), key_range),
        ];
        if let Some((farthest, q_pos)) = bias {
            ins.push(SampleIn::normal(Ty::f32(&[2 * farthest + 1, heads])));
            ins.push(SampleIn::values(Ty::i32(&[t]), q_pos));
        }
        samples.push(Sample::new(name, Attr::Attention(attr), ins));
    }
    samples
}

fn from_forward<const OUT: usize>(attr: &Attr, ins: &[Tensor]) -> Tensor {
    reference::forward(attr, ins).swap_remove(OUT)
}

/// The forward operands, with what else backward takes of `queries` queries.
fn with_gradient(c: &Case, mut ins: Vec<SampleIn>) -> Sample {
    ins.push(SampleIn::derived(c.q().ty, from_forward::<0>));
    ins.push(SampleIn::derived(Ty::f32(&[c.heads, c.queries()]), from_forward::<1>));
    ins.push(c.q());
    Sample::new(c.name, c.attr(), ins)
}

pub fn backward() -> Vec<Sample> {
    // Of a query that sees one key only, dq and dk are differences of equal numbers; "ragged" and "loose tokens" have
    // such queries beside others.
    let all_see_one = |c: &&Case| c.queries() == 1 || c.window == Some(1);
    let mut samples: Vec<Sample> = CASES
        .iter()
        .filter(|c| !all_see_one(c))
        .map(|c| with_gradient(c, c.operands().into_iter().chain([c.query_range()]).collect()))
        .collect();
    // Bounds beyond the queries and the keys are cut.
    let beyond = case("ranges beyond the tokens", Cross(&[(3, 4), (2, 5)]), [2, 1, 5]);
    let mut ins = beyond.operands();
    ins[3] = SampleIn::values(ins[3].ty.clone(), vec![-7.0, 4.0, -1.0, 4.0, 0.0, 4.0, 4.0, 9.0, 4.0, 99.0]);
    let first = [[-2.0, 3.0]; 4].into_iter();
    let query_range = first.chain([[3.0, 50.0]; 5]).flatten().collect();
    ins.push(SampleIn::values(Ty::i32(&[9, 2]), query_range));
    samples.push(with_gradient(&beyond, ins));
    samples
}

pub fn dbias() -> Vec<Sample> {
    CASES.iter().filter(|c| c.farthest.is_some()).map(|c| with_gradient(c, c.operands())).collect()
}
