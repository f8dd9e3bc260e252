//! Attention by wgmma on its own: packed sequences, windows, heads that share keys, queries that see nothing, under every schedule.

mod common;

use common::matrix::{Matrix, compile, source, with_header};
use ptxsim::values::bf16_to_f32;
use ptxsim::{Finding, Kind, Launch, Memory, Module, Param, Schedule, run};

/// Queries, keys, features of a head, heads, heads of keys, causal, window.
#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: usize,
    keys: usize,
    d: usize,
    heads: usize,
    kv_heads: usize,
    causal: bool,
    window: usize,
    /// Where sequences begin, each up to the next; tokens after the last see no key.
    starts: &'static [usize],
}

const CASES: &[Case] = &[
    Case { tokens: 300, keys: 300, d: 64, heads: 2, kv_heads: 1, causal: true, window: 0, starts: &[0, 37, 290] },
    Case { tokens: 260, keys: 260, d: 128, heads: 1, kv_heads: 1, causal: true, window: 40, starts: &[0, 200, 260] },
    Case { tokens: 140, keys: 310, d: 128, heads: 2, kv_heads: 2, causal: false, window: 0, starts: &[0, 310] },
    Case { tokens: 64, keys: 64, d: 64, heads: 1, kv_heads: 1, causal: true, window: 0, starts: &[0, 5] },
    Case { tokens: 130, keys: 130, d: 64, heads: 1, kv_heads: 1, causal: true, window: 0, starts: &[0] },
];

const SCALE: f32 = 0.0625;

impl Case {
    /// The first and one past the last key of a query's sequence.
    fn range(&self, t: usize) -> (usize, usize) {
        if self.tokens != self.keys {
            return (0, self.keys);
        }
        self.starts.windows(2).map(|w| (w[0], w[1])).find(|r| (r.0..r.1).contains(&t)).unwrap_or((0, 0))
    }

    fn sees(&self, t: usize, s: usize) -> bool {
        let (lo, hi) = self.range(t);
        (lo..hi).contains(&s) && (!self.causal || s <= t) && (self.window == 0 || s + self.window > t)
    }
}

struct Operands {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    out: u64,
    lse: u64,
    params: Vec<Param>,
}

fn operands(memory: &mut Memory, c: &Case) -> Operands {
    let q = Matrix::new(memory, "q", [c.tokens, c.heads * c.d], 0, true);
    let k = Matrix::new(memory, "k", [c.keys, c.kv_heads * c.d], 3, true);
    let v = Matrix::new(memory, "v", [c.keys, c.kv_heads * c.d], 7, true);
    let ranges: Vec<u8> = (0..c.tokens)
        .flat_map(|t| [c.range(t).0, c.range(t).1])
        .flat_map(|bound| (bound as i32).to_le_bytes())
        .collect();
    let range = memory.alloc("key_range", &ranges);
    let out = memory.alloc_uninit("out", 2 * c.tokens * c.heads * c.d);
    let lse = memory.alloc_uninit("lse", 4 * c.tokens * c.heads);
    let mut params = vec![Param::U64(out), Param::U64(lse), q.pointer(), k.pointer(), v.pointer(), Param::U64(range)];
    params.extend([q.map(128), k.map(128), v.map(128)]);
    params.extend([c.tokens, c.keys, c.d, c.heads, c.kv_heads].map(|n| Param::U32(n as u32)));
    params.extend([Param::F32(SCALE), Param::U32(c.causal as u32), Param::U32(c.window as u32), Param::U32(0)]);
    Operands { q, k, v, out, lse, params }
}

fn launch(module: &Module, memory: &mut Memory, c: &Case, params: &[Param], schedule: Schedule) -> Result<(), Finding> {
    let grid = [c.heads as u32, c.tokens.div_ceil(128) as u32, 1];
    let shared_bytes = (128 * 5 * c.d * 2) as u32;
    let launch = Launch { entry: "attention_wgmma", grid, block: [384, 1, 1], shared_bytes, params, schedule };
    run(module, memory, &launch).map(drop)
}

fn compiled(c: &Case, text: &str) -> Option<Module> {
    compile("attention_wgmma.cu", text, &[&format!("-DHEAD_DIM={}", c.d)])
}

/// The result of a query and head: its features, and the logarithm of its sum.
fn definition(c: &Case, o: &Operands, t: usize, head: usize) -> (Vec<f64>, f64) {
    let kv = head / (c.heads / c.kv_heads);
    let scores: Vec<(usize, f64)> = (0..c.keys)
        .filter(|&s| c.sees(t, s))
        .map(|s| {
            let dot: f64 =
                (0..c.d).map(|f| f64::from(o.q.at(t, head * c.d + f)) * f64::from(o.k.at(s, kv * c.d + f))).sum();
            (s, f64::from(SCALE) * dot)
        })
        .collect();
    let top = scores.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s.1 - top).exp()).sum();
    let feature = |f: usize| {
        scores.iter().map(|(s, score)| (score - top).exp() / total * f64::from(o.v.at(*s, kv * c.d + f))).sum()
    };
    ((0..c.d).map(feature).collect(), if scores.is_empty() { f64::NEG_INFINITY } else { top + total.ln() })
}

#[test]
fn queries_attend_to_the_keys_they_see() {
    for c in CASES {
        let Some(module) = compiled(c, &source("attention_wgmma.cu")) else { return };
        let mut first: Option<Vec<u8>> = None;
        for schedule in Schedule::all() {
            let mut memory = Memory::new();
            let o = operands(&mut memory, c);
            launch(&module, &mut memory, c, &o.params, schedule).unwrap_or_else(|f| panic!("{c:?} {schedule:?}: {f}"));
            let (out, lse) = (memory.read(o.out).to_vec(), common::floats(memory.read(o.lse)));
            let known = first.get_or_insert_with(|| out.clone());
            assert!(*known == out, "{c:?} {schedule:?}: other bits");
            if known.len() != out.len() || schedule != Schedule::all()[0] {
                continue;
            }
            for (t, head) in (0..c.tokens).flat_map(|t| (0..c.heads).map(move |head| (t, head))) {
                let (want, log) = definition(c, &o, t, head);
                let (got, place) = (lse[head * c.tokens + t], format!("{c:?}: query {t} head {head}"));
                assert!(f64::from(got) == log || (f64::from(got) - log).abs() < 1e-4, "{place}: lse {got}, not {log}");
                for (f, want) in want.iter().enumerate() {
                    let at = 2 * ((t * c.heads + head) * c.d + f);
                    let got = f64::from(bf16_to_f32(u16::from_le_bytes([out[at], out[at + 1]])));
                    // Weights and the result are rounded to 8 bits.
                    assert!((got - want).abs() < 2.0 * 2f64.powi(-7), "{place}, feature {f}: {got}, not {want}");
                }
            }
        }
    }
}

/// What is taken out, and what is then found, of every schedule.
const PLANTED: &[(&str, &str, &[Kind])] = &[
    // Scores are read while products add to them.
    ("            wgmma_wait<1>();\n", "", &[Kind::AsyncInFlight]),
    // Sums are scaled, and the weights of the next tile written, while products use both.
    ("            wgmma_wait<0>();\n", "", &[Kind::AsyncInFlight]),
    // Keys are overwritten while products read them.
    (
        "            wgmma_wait<1>();\n            ring.free(of_keys);",
        "            ring.free(of_keys);\n            wgmma_wait<1>();",
        &[Kind::Race, Kind::AsyncInFlight],
    ),
    // Queries that are not there yet.
    ("        mbarrier_wait(queries_there, 0);\n", "", &[Kind::AsyncInFlight, Kind::Uninitialised, Kind::Race]),
    // Sums that threads have scaled since.
    (
        "    wgmma_fence();\n#pragma unroll\n    for (int i = 0; i < COLS / 16",
        "#pragma unroll\n    for (int i = 0; i < COLS / 16",
        &[Kind::Unfenced],
    ),
];

#[test]
fn each_bug_planted_in_it_is_found() {
    let text = with_header("attention_wgmma.cu", "attention_wgmma.cuh");
    let case = Case { tokens: 520, keys: 520, starts: &[0, 520], ..CASES[0] };
    let mut missed = Vec::new();
    for (right, wrong, kinds) in PLANTED {
        assert_eq!(text.matches(right).count(), 1, "{right}");
        let Some(module) = compiled(&case, &text.replace(right, wrong)) else { return };
        for schedule in Schedule::all() {
            let mut memory = Memory::new();
            let params = operands(&mut memory, &case).params;
            match launch(&module, &mut memory, &case, &params, schedule) {
                Err(f) if kinds.contains(&f.kind) => {}
                Err(f) => missed.push(format!("{right} {schedule:?}: {f}")),
                Ok(()) => missed.push(format!("{right} {schedule:?}: nothing")),
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
