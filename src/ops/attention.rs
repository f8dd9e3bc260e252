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
//!
//! With a bias (T5's relative position bias, Raffel et al. 2020; ALiBi, Press et al. 2022) a score is
//! `scale · q_t·k_s + bias[r,h]` with `r = clamp(s − f_t − q_pos[t], −L, L) + L`, where f_t is the first key that query t
//! sees, and the table has a row for each distance from −L to L. So `q_pos[t]` is the place among its keys at which
//! query t is: in training its position in its sequence (after a prefix, with the prefix counted), when generating the
//! number of keys before its own.

mod cases;
mod cuda;
mod few;
mod form;
mod host;
mod reference;
mod samples;
mod wgmma;
mod wgsl;

use crate::device::{Caps, Target};
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::{Acts, Attention, Attr, Cost, Grad, Lower, OpDef, Tensor, check};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&ATTENTION, &ATTENTION_BWD, &ATTENTION_DBIAS];

/// `attention` [q F32[T,H·D], k F32[S,G·D], v F32[S,G·D], key_range I32[T,2], with a bias: bias F32[2L+1,H], q_pos I32[T];
/// (query_range I32[S,2])] → out F32[T,H·D], lse F32[H,T]. `query_range` is for the gradient alone, which needs it; the
/// forward pass does not read it.
pub static ATTENTION: OpDef = OpDef {
    name: "attention",
    infer: infer_forward,
    reference: reference::forward,
    grad: Grad::Rule(rule),
    log_sums: &[1],
    cost: |attr, ins, _| cost(attr, ins, 2),
    workspace: cuda::forward_workspace,
    host: host::forward,
    narrow: true,
    wgsl_half: wgsl::takes_half,
    wgsl: wgsl::forward,
    cuda: cuda::forward,
    acts: |_| Acts { ins: &[0, 1, 2], outs: &[0] },
    samples: samples::forward,
    cases: cases::forward,
    ..OpDef::COMPUTE
};

/// `attention_bwd` [q, k, v, key_range, with a bias: bias, q_pos; query_range, out, lse, dout F32[T,H·D]] → dq F32[T,H·D],
/// dk F32[S,G·D], dv F32[S,G·D].
///
/// With `δ_t = Σ_d dout·out`: `dv_s = Σ_t p_ts·dout_t`, `ds_ts = p_ts·(dout_t·v_s − δ_t)`,
/// `dq_t = scale·Σ_s ds_ts·k_s`, `dk_s = scale·Σ_t ds_ts·q_t`.
pub static ATTENTION_BWD: OpDef = OpDef {
    name: "attention_bwd",
    infer: infer_backward,
    reference: reference::backward,
    grad: Grad::Missing,
    cost: |attr, ins, _| cost(attr, ins, 7),
    workspace: backward_workspace,
    host: host::backward,
    narrow: true,
    wgsl_half: wgsl::takes_half,
    wgsl: wgsl::backward,
    cuda: cuda::backward,
    acts: |attr| match spec(attr).bias {
        false => Acts { ins: &[0, 1, 2, 5, 7], outs: &[0, 1, 2] },
        true => Acts { ins: &[0, 1, 2, 7, 9], outs: &[0, 1, 2] },
    },
    samples: samples::backward,
    cases: cases::backward,
    ..OpDef::COMPUTE
};

/// `attention_dbias` [q, k, v, key_range, bias, q_pos, out, lse, dout] → dbias F32[2L+1,H]: Σ of ds_ts over the t and s
/// at that distance. A row of its own, because a table that does not train needs none of it.
pub static ATTENTION_DBIAS: OpDef = OpDef {
    name: "attention_dbias",
    infer: infer_dbias,
    reference: reference::dbias,
    // The outermost distances may be those of all pairs.
    grad: Grad::Missing,
    cost: |attr, ins, _| Cost { terms: ins[0].rows() * ins[1].rows(), ..cost(attr, ins, 2) },
    workspace: dbias_workspace,
    host: host::dbias,
    wgsl_half: wgsl::takes_half,
    wgsl: wgsl::dbias,
    cuda: cuda::dbias,
    acts: |_| Acts { ins: &[0, 1, 2, 6, 8], outs: &[] },
    samples: samples::dbias,
    cases: cases::dbias,
    ..OpDef::COMPUTE
};

/// Features of a head that may have a bias, at most.
const LARGEST_BIASED: usize = 192;

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

/// A bias by the distance of key and query.
#[derive(Clone, Copy, Debug)]
pub struct PositionBias {
    /// A row for each distance from −L to L, F32[2L+1,H]; nearer and farther keys have the outermost ones.
    pub table: Val,
    /// Where each query is among the keys that it sees, from 0, I32[T].
    pub q_pos: Val,
}

impl Graph {
    /// Attention of the tokens of `q` to those of `k` and `v` within `ranges`.
    pub fn attention(&mut self, q: Val, k: Val, v: Val, ranges: Ranges, spec: Attention) -> Result<Val> {
        let mut ins = vec![q, k, v, ranges.keys];
        ins.extend(ranges.queries);
        Ok(self.node(&ATTENTION, Attr::Attention(spec), &ins)?[0])
    }

    /// The same with a bias.
    pub fn attention_with_bias(
        &mut self,
        [q, k, v]: [Val; 3],
        ranges: Ranges,
        bias: PositionBias,
        spec: Attention,
    ) -> Result<Val> {
        let mut ins = vec![q, k, v, ranges.keys, bias.table, bias.q_pos];
        ins.extend(ranges.queries);
        Ok(self.node(&ATTENTION, Attr::Attention(Attention { bias: true, ..spec }), &ins)?[0])
    }
}

fn spec(attr: &Attr) -> Attention {
    match attr {
        Attr::Attention(a) => *a,
        _ => unreachable!("infer refused it"),
    }
}

/// How many operands the rows begin with alike: q, k, v, key_range and, with a bias, bias and q_pos.
fn common(a: &Attention) -> usize {
    if a.bias { 6 } else { 4 }
}

/// Checks the operands that the rows begin with alike and returns the others. `expected` names all.
fn operands<'a>(attr: &Attr, ins: &'a [Ty], expected: &str) -> Result<(Attention, &'a [Ty]), String> {
    let (&Attr::Attention(a), [q, k, v, key_range, ..]) = (attr, ins) else {
        return Err(check::refuse(expected, attr, ins));
    };
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
        Some(_) if !a.causal => return Err("a window, expected a causal one".into()),
        Some(0) => return Err("a window of 0 tokens, expected at least 1".into()),
        Some(_) if a.bias => return Err("a window and a bias, expected one of them".into()),
        _ => {}
    }
    if a.bias {
        let Some([bias, q_pos]) = ins.get(4..6) else { return Err(check::refuse(expected, attr, ins)) };
        let rows = check::matrix("bias", bias)?.0;
        check::is("bias", bias, &Ty::f32(&[rows, a.heads]))?;
        check::is("q_pos", q_pos, &Ty::i32(&[q.rows()]))?;
        if a.head_dim > LARGEST_BIASED {
            let (found, most) = (a.head_dim, LARGEST_BIASED);
            return Err(format!("a bias with heads of {found}, expected at most {most}: CUDA's registers"));
        }
        if rows.is_multiple_of(2) {
            return Err(format!("bias is {bias}, expected an odd number of distances"));
        }
    }
    Ok((a, &ins[common(&a)..]))
}

/// The largest distance, L, that the table of biases tells apart; 0 if there is none.
fn farthest(attr: &Attr, ins: &[Ty]) -> usize {
    if spec(attr).bias { ins[4].rows() / 2 } else { 0 }
}

/// The row of the table of biases for the key `distance` after the one at which the query is.
fn bias_row(distance: i64, farthest: usize) -> usize {
    (distance.clamp(-(farthest as i64), farthest as i64) + farthest as i64) as usize
}

/// The words with which most kernels' parameters begin, in WGSL and in CUDA: T, S, D, H, G, scale, causal, window (0: none).
fn words(l: &Lower, a: &Attention) -> [u32; 8] {
    let window = a.window.map_or(0, |w| u32::try_from(w).unwrap_or(u32::MAX));
    let counts = [l.ins[0].rows(), l.ins[1].rows(), a.head_dim, a.heads, a.kv_heads].map(|n| n as u32);
    let [t, s, d, h, g] = counts;
    [t, s, d, h, g, a.scale.to_bits(), a.causal as u32, window]
}

fn infer_forward(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    const EXPECTED: &str = "q, k, v, key_range, bias and q_pos if there is a bias, maybe query_range, and Attention";
    let (a, rest) = operands(attr, ins, EXPECTED)?;
    match rest {
        [] => {}
        [query_range] => check::is("query_range", query_range, &Ty::i32(&[ins[1].rows(), 2]))?,
        _ => return Err(check::refuse(EXPECTED, attr, ins)),
    }
    Ok(vec![ins[0].clone(), Ty::f32(&[a.heads, ins[0].rows()])])
}

fn infer_backward(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    const EXPECTED: &str =
        "q, k, v, key_range, bias and q_pos if there is a bias, query_range, out, lse, dout, and Attention";
    let (a, [query_range, rest @ ..]) = operands(attr, ins, EXPECTED)? else {
        return Err(check::refuse(EXPECTED, attr, ins));
    };
    check::is("query_range", query_range, &Ty::i32(&[ins[1].rows(), 2]))?;
    results(&a, &ins[0], rest, || check::refuse(EXPECTED, attr, ins))?;
    Ok(ins[..3].to_vec())
}

fn infer_dbias(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    const EXPECTED: &str = "q, k, v, key_range, bias, q_pos, out, lse, dout, and Attention with a bias";
    let (a, rest) = operands(attr, ins, EXPECTED)?;
    if !a.bias {
        return Err(check::refuse(EXPECTED, attr, ins));
    }
    results(&a, &ins[0], rest, || check::refuse(EXPECTED, attr, ins))?;
    Ok(vec![ins[4].clone()])
}

/// Checks that `rest` is what the forward pass gave, out and lse, and the gradient of out.
fn results(a: &Attention, q: &Ty, rest: &[Ty], refuse: impl Fn() -> String) -> Result<(), String> {
    let [out, lse, dout] = rest else { return Err(refuse()) };
    check::is("out", out, q)?;
    check::is("dout", dout, q)?;
    check::is("lse", lse, &Ty::f32(&[a.heads, q.rows()]))
}

/// Bytes of lse and δ of each head and query, and on GPUs of what their kernels want of a bias.
fn backward_workspace(attr: &Attr, ins: &[Ty], caps: &Caps) -> u64 {
    let stats = 8 * (spec(attr).heads * ins[0].rows()) as u64;
    match caps.target {
        Target::Wgsl => wgsl::stats(attr, ins),
        Target::Cuda => cuda::after(stats, attr, ins).end,
        _ => stats,
    }
}

fn dbias_workspace(attr: &Attr, ins: &[Ty], caps: &Caps) -> u64 {
    match caps.target {
        Target::Wgsl => wgsl::stats(attr, ins),
        _ => 0,
    }
}

/// `products` of each query with the keys it sees. Bounds are not known here: of the longest sequence that there can be, as
/// many as fill the rows are assumed.
fn cost(attr: &Attr, ins: &[Ty], products: u64) -> Cost {
    let a = spec(attr);
    let (t, s) = (ins[0].rows() as u64, ins[1].rows() as u64);
    let seen = s.min(a.longest.map_or(u64::MAX, |longest| longest as u64));
    let pairs = match (a.causal, a.window) {
        (true, Some(w)) => t * (w as u64).min(seen.div_ceil(2)),
        (true, None) => t * seen.div_ceil(2),
        _ => t * seen,
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
    let mut gradients = vec![None; node.ins.len()];
    let Some(dout) = grads[0] else { return Ok(gradients) };
    let (ins, rest) = node.ins.split_at(common(&spec(&node.attr)));
    let results = [node.outs[0], node.outs[1], dout];
    if wants[..3].contains(&true) {
        let Some(&query_range) = rest.first() else {
            return Err(g.refuse(node.op.name, "no query_range is given, which gradients need".into()));
        };
        let d = g.node(&ATTENTION_BWD, node.attr.clone(), &[ins, &[query_range], &results].concat())?;
        (0..3).filter(|&i| wants[i]).for_each(|i| gradients[i] = Some(d[i]));
    }
    if ins.len() > 4 && wants[4] {
        gradients[4] = Some(g.node(&ATTENTION_DBIAS, node.attr.clone(), &[ins, &results].concat())?[0]);
    }
    Ok(gradients)
}
