//! Softmax attention over packed sequences, without ever holding a T×T matrix (Dao et al. 2022, 2023).
//!
//! `out_t = Σ_s p_ts · v_s`, `p_ts = exp(scale · q_t·k_s − lse_t)`, `lse_t = ln Σ_s exp(scale · q_t·k_s)`, where s
//! runs over the keys that query t sees: from `key_range[t].0` up to before `key_range[t].1`; if causal, up to t; if there
//! is a window w, after t − w. Query head h reads key/value head `h / (heads / kv_heads)` (grouped-query attention).
//! A query that sees no key gets `out = 0`, `lse = −∞`.
//!
//! Queries and keys may be different tokens (a decoder's and its encoder's), of different number, unless it is causal.
//! The gradients of k and v are sums over the queries that see a key: from `query_range[s].0` up to before
//! `query_range[s].1`; if causal, from s on; if there is a window w, before s + w. `query_range` says of the keys what
//! `key_range` says of the queries: t is in `query_range[s]` exactly if s is in `key_range[t]` (where they differ, dq
//! follows `key_range` and dk and dv `query_range`, which is no gradient). So the queries that see a key must be
//! neighbours. Of tokens that see the tokens of their own sequence the two are one array.

mod cuda;
mod host;
mod reference;
mod samples;
mod wgsl;

use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::{Acts, Attention, Attr, Cost, Grad, Lower, OpDef, Tensor, check};

pub static OPS: &[&OpDef] = &[&ATTENTION, &ATTENTION_BWD];

/// `attention` [q F32[T,H·D], k F32[S,G·D], v F32[S,G·D], key_range I32[T,2], (query_range I32[S,2])] → out F32[T,H·D],
/// lse F32[H,T]. `query_range` is for the gradient alone, which needs it; the forward pass does not read it.
pub static ATTENTION: OpDef = OpDef {
    name: "attention",
    infer: infer_forward,
    reference: reference::forward,
    grad: Grad::Rule(rule),
    cost: |attr, ins, _| cost(attr, ins, 2),
    workspace: cuda::forward_workspace,
    host: host::forward,
    wgsl: wgsl::forward,
    cuda: cuda::forward,
    acts: |_| Acts { ins: &[0, 1, 2], outs: &[0] },
    samples: samples::forward,
    ..OpDef::COMPUTE
};

/// `attention_bwd` [q, k, v, key_range, query_range, out, lse, dout F32[T,H·D]] → dq F32[T,H·D], dk F32[S,G·D],
/// dv F32[S,G·D].
///
/// With `δ_t = Σ_d dout·out`: `dv_s = Σ_t p_ts·dout_t`, `ds_ts = p_ts·(dout_t·v_s − δ_t)`,
/// `dq_t = scale·Σ_s ds_ts·k_s`, `dk_s = scale·Σ_t ds_ts·q_t`.
pub static ATTENTION_BWD: OpDef = OpDef {
    name: "attention_bwd",
    infer: infer_backward,
    reference: reference::backward,
    cost: |attr, ins, _| cost(attr, ins, 7),
    // For each head and query: lse and δ.
    workspace: |attr, ins, _| 8 * (spec(attr).heads * ins[0].rows()) as u64,
    host: host::backward,
    wgsl: wgsl::backward,
    cuda: cuda::backward,
    acts: |_| Acts { ins: &[0, 1, 2, 5, 7], outs: &[0, 1, 2] },
    samples: samples::backward,
    ..OpDef::COMPUTE
};

/// Which queries see which keys.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// First and one past the last key that each query sees, I32[T,2].
    pub keys: Val,
    /// First and one past the last query that sees each key, I32[S,2]: the same relation. None: no gradient.
    pub queries: Option<Val>,
}

impl Ranges {
    /// Queries and keys are the same tokens, and `range` is the first and one past the last token of each one's sequence.
    pub fn same(range: Val) -> Ranges {
        Ranges { keys: range, queries: Some(range) }
    }
}

impl Graph {
    /// Attention of the tokens of `q` to those of `k` and `v` within `ranges`.
    pub fn attention(&mut self, q: Val, k: Val, v: Val, ranges: Ranges, spec: Attention) -> Result<Val> {
        let mut ins = vec![q, k, v, ranges.keys];
        ins.extend(ranges.queries);
        Ok(self.node(&ATTENTION, Attr::Attention(spec), &ins)?[0])
    }
}

fn spec(attr: &Attr) -> Attention {
    match attr {
        Attr::Attention(a) => *a,
        _ => unreachable!("infer refused it"),
    }
}

/// Checks q, k, v and key_range.
fn operands(a: &Attention, q: &Ty, k: &Ty, v: &Ty, key_range: &Ty) -> Result<(), String> {
    if a.head_dim == 0 || a.kv_heads == 0 || a.heads == 0 || !a.heads.is_multiple_of(a.kv_heads) {
        return Err(format!("{} heads of {} share {} of keys", a.heads, a.head_dim, a.kv_heads));
    }
    for (what, ty) in [("q", q), ("k", k)] {
        if ty.dtype != DType::F32 || ty.shape.len() != 2 {
            return Err(format!("{what} is {ty}, expected an f32 matrix"));
        }
    }
    check::is("q", q, &Ty::f32(&[q.rows(), a.heads * a.head_dim]))?;
    check::is("k", k, &Ty::f32(&[k.rows(), a.kv_heads * a.head_dim]))?;
    check::is("v", v, k)?;
    check::is("key_range", key_range, &Ty::i32(&[q.rows(), 2]))?;
    if a.causal && q.rows() != k.rows() {
        return Err(format!("{} queries and {} keys, expected as many if causal", q.rows(), k.rows()));
    }
    match a.window {
        Some(_) if !a.causal => Err("a window, expected a causal one".into()),
        Some(0) => Err("a window of 0 tokens, expected at least 1".into()),
        _ => Ok(()),
    }
}

/// The words with which every tiled kernel's parameters begin, in WGSL and in CUDA: T, S, D, H, G, scale, causal, window
/// (0: none).
fn words(l: &Lower, a: &Attention) -> [u32; 8] {
    let window = a.window.map_or(0, |w| u32::try_from(w).unwrap_or(u32::MAX));
    let counts = [l.ins[0].rows(), l.ins[1].rows(), a.head_dim, a.heads, a.kv_heads].map(|n| n as u32);
    let [t, s, d, h, g] = counts;
    [t, s, d, h, g, a.scale.to_bits(), a.causal as u32, window]
}

fn infer_forward(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Attention(a), [q, k, v, key_range, rest @ ..]) = (attr, ins) else {
        return Err(check::refuse("q, k, v, key_range and Attention", attr, ins));
    };
    operands(a, q, k, v, key_range)?;
    match rest {
        [] => {}
        [query_range] => check::is("query_range", query_range, &Ty::i32(&[k.rows(), 2]))?,
        _ => return Err(check::refuse("at most a query_range after key_range", attr, ins)),
    }
    Ok(vec![q.clone(), Ty::f32(&[a.heads, q.rows()])])
}

fn infer_backward(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Attention(a), [q, k, v, key_range, query_range, out, lse, dout]) = (attr, ins) else {
        return Err(check::refuse("q, k, v, key_range, query_range, out, lse, dout and Attention", attr, ins));
    };
    operands(a, q, k, v, key_range)?;
    check::is("query_range", query_range, &Ty::i32(&[k.rows(), 2]))?;
    check::is("out", out, q)?;
    check::is("dout", dout, q)?;
    check::is("lse", lse, &Ty::f32(&[a.heads, q.rows()]))?;
    Ok(vec![q.clone(), k.clone(), v.clone()])
}

/// `products` of each query with the keys it sees. Bounds are not known here: one sequence is assumed.
fn cost(attr: &Attr, ins: &[Ty], products: u64) -> Cost {
    let a = spec(attr);
    let (t, s) = (ins[0].rows() as u64, ins[1].rows() as u64);
    let pairs = match (a.causal, a.window) {
        (true, Some(w)) => t * (w as u64).min(t.div_ceil(2)),
        (true, None) => t * t.div_ceil(2),
        _ => t * s,
    };
    Cost {
        flops: 2 * products * pairs * (a.heads * a.head_dim) as u64,
        terms: a.head_dim.max(ins[0].rows()).max(ins[1].rows()),
    }
}

/// A range within `0..n`: first, one past the last. Bounds beyond are cut.
fn cut(range: [i64; 2], n: usize) -> (usize, usize) {
    let cut = |bound: i64| bound.clamp(0, n as i64) as usize;
    (cut(range[0]), cut(range[1]))
}

/// The keys that query `t` sees, as (first, one past the last); empty intervals are (0, 0).
fn visible(a: &Attention, t: usize, key_range: [i64; 2], keys: usize) -> (usize, usize) {
    let (mut lo, mut hi) = cut(key_range, keys);
    if a.causal {
        hi = hi.min(t + 1);
    }
    if let Some(w) = a.window {
        lo = lo.max((t + 1).saturating_sub(w));
    }
    if lo < hi { (lo, hi) } else { (0, 0) }
}

/// The queries that see key `s`, in the same way.
fn seeing(a: &Attention, s: usize, query_range: [i64; 2], queries: usize) -> (usize, usize) {
    let (mut lo, mut hi) = cut(query_range, queries);
    if a.causal {
        lo = lo.max(s);
    }
    if let Some(w) = a.window {
        hi = hi.min(s.saturating_add(w));
    }
    if lo < hi { (lo, hi) } else { (0, 0) }
}

fn rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let [q, k, v, key_range, ref rest @ ..] = node.ins[..] else { unreachable!("infer counted them") };
    let none = vec![None; node.ins.len()];
    let Some(dout) = grads[0].filter(|_| wants.contains(&true)) else { return Ok(none) };
    let &[query_range] = rest else {
        return Err(g.refuse(node.op.name, "no query_range is given, which gradients need".into()));
    };
    let (out, lse) = (node.outs[0], node.outs[1]);
    let d = g.node(&ATTENTION_BWD, node.attr.clone(), &[q, k, v, key_range, query_range, out, lse, dout])?;
    Ok((0..node.ins.len()).map(|i| d.get(i).copied().filter(|_| wants[i])).collect())
}
