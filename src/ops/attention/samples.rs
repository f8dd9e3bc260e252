//! What attention is tested on: packed sequences of odd lengths, grouped heads, odd head sizes, windows, caches.

use super::{Attention, Attr, Tensor, Ty, reference_forward};
use crate::ops::{Sample, SampleIn};

struct Case {
    name: &'static str,
    /// Lengths of the packed sequences; 0 stands for a token that belongs to none.
    lens: &'static [usize],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
    window: Option<usize>,
}

const CASES: [Case; 18] = [
    Case { name: "one token", lens: &[1], heads: 1, kv_heads: 1, head_dim: 1, causal: true, window: None },
    Case { name: "ragged", lens: &[7, 1, 17, 3], heads: 3, kv_heads: 1, head_dim: 8, causal: true, window: None },
    Case { name: "odd head", lens: &[33], heads: 2, kv_heads: 2, head_dim: 5, causal: true, window: None },
    Case { name: "several tiles", lens: &[65, 70], heads: 2, kv_heads: 1, head_dim: 16, causal: true, window: None },
    Case { name: "window", lens: &[40, 9], heads: 2, kv_heads: 2, head_dim: 12, causal: true, window: Some(7) },
    Case { name: "window of 1", lens: &[5], heads: 1, kv_heads: 1, head_dim: 3, causal: true, window: Some(1) },
    Case { name: "bidirectional", lens: &[20, 31], heads: 4, kv_heads: 2, head_dim: 10, causal: false, window: None },
    Case { name: "loose tokens", lens: &[6, 0, 9, 0], heads: 2, kv_heads: 1, head_dim: 7, causal: true, window: None },
    Case { name: "heads of 100", lens: &[37], heads: 1, kv_heads: 1, head_dim: 100, causal: true, window: None },
    Case { name: "heads of 131", lens: &[9, 25], heads: 2, kv_heads: 1, head_dim: 131, causal: true, window: None },
    Case { name: "heads of 67", lens: &[11], heads: 2, kv_heads: 2, head_dim: 67, causal: true, window: None },
    Case { name: "heads of 256", lens: &[3, 18], heads: 1, kv_heads: 1, head_dim: 256, causal: true, window: None },
    // Tiles of 128 queries: some that every query sees whole, some that no row of a warp meets.
    Case { name: "long", lens: &[201], heads: 1, kv_heads: 1, head_dim: 8, causal: true, window: None },
    Case {
        name: "window over tiles",
        lens: &[170],
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        causal: true,
        window: Some(70),
    },
    // Heads whose rows begin on multiples of 16 bytes.
    Case { name: "heads of 96", lens: &[40], heads: 2, kv_heads: 1, head_dim: 96, causal: true, window: None },
    Case { name: "heads of 128", lens: &[95, 5], heads: 1, kv_heads: 1, head_dim: 128, causal: true, window: None },
    Case { name: "heads of 192", lens: &[34], heads: 1, kv_heads: 1, head_dim: 192, causal: true, window: None },
    Case { name: "heads of 64", lens: &[3, 35], heads: 3, kv_heads: 1, head_dim: 64, causal: true, window: None },
];

impl Case {
    fn tokens(&self) -> usize {
        self.lens.iter().map(|&n| n.max(1)).sum()
    }

    fn attr(&self) -> Attr {
        Attr::Attention(Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            causal: self.causal,
            window: self.window,
        })
    }

    fn q(&self) -> Ty {
        Ty::f32(&[self.tokens(), self.heads * self.head_dim])
    }

    fn k(&self) -> Ty {
        Ty::f32(&[self.tokens(), self.kv_heads * self.head_dim])
    }

    fn key_range(&self) -> SampleIn {
        let mut values = Vec::new();
        let mut start = 0;
        for &n in self.lens {
            let pair = if n == 0 { [0.0, 0.0] } else { [start as f64, (start + n) as f64] };
            values.extend(std::iter::repeat_n(pair, n.max(1)).flatten());
            start += n.max(1);
        }
        SampleIn::values(Ty::i32(&[start, 2]), values)
    }
}

pub fn forward() -> Vec<Sample> {
    let packed = |c: &Case| {
        let ins = vec![SampleIn::normal(c.q()), SampleIn::normal(c.k()), SampleIn::normal(c.k()), c.key_range()];
        Sample::new(c.name, c.attr(), ins)
    };
    let mut samples: Vec<Sample> = CASES.iter().map(packed).collect();
    // Queries that are not the keys' tokens: decoding from a cache, two prompts side by side.
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    for (name, keys, key_range) in [
        ("decoding", 70, vec![0.0, 67.0]),
        ("decoding two", 50, vec![0.0, 20.0, 25.0, 50.0]),
        ("decoding from a long cache", 610, vec![30.0, 595.0, 9.0, 9.0, 1.0, 20.0]),
        ("key_range beyond the cache", 9, vec![-3.0, 5.0, 4.0, 99.0, 7.0, 2.0]),
    ] {
        let t = key_range.len() / 2;
        let k = Ty::f32(&[keys, kv_heads * head_dim]);
        let attr = Attention { heads, kv_heads, head_dim, scale: 0.3, causal: false, window: None };
        let ins = vec![
            SampleIn::normal(Ty::f32(&[t, heads * head_dim])),
            SampleIn::normal(k.clone()),
            SampleIn::normal(k),
            SampleIn::values(Ty::i32(&[t, 2]), key_range),
        ];
        samples.push(Sample::new(name, Attr::Attention(attr), ins));
    }
    samples
}

pub fn backward() -> Vec<Sample> {
    fn from_forward<const OUT: usize>(attr: &Attr, ins: &[Tensor]) -> Tensor {
        reference_forward(attr, &ins[..4]).swap_remove(OUT)
    }
    let sample = |c: &Case| {
        let (q, k) = (c.q(), c.k());
        let ins = vec![
            SampleIn::normal(q.clone()),
            SampleIn::normal(k.clone()),
            SampleIn::normal(k),
            c.key_range(),
            SampleIn::derived(q.clone(), from_forward::<0>),
            SampleIn::derived(Ty::f32(&[c.heads, c.tokens()]), from_forward::<1>),
            SampleIn::normal(q),
        ];
        Sample::new(c.name, c.attr(), ins)
    };
    // Of a query that sees one key only, dq and dk are differences of equal numbers; "ragged" and "loose tokens" have
    // such queries beside others.
    CASES.iter().filter(|c| c.tokens() > 1 && c.window != Some(1)).map(sample).collect()
}
