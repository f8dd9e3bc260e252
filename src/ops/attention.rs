//! Softmax attention over packed sequences, without ever holding a T×T matrix (Dao et al. 2022, 2023).
//!
//! `out_t = Σ_s p_ts · v_s`, `p_ts = exp(scale · q_t·k_s − lse_t)`, `lse_t = ln Σ_s exp(scale · q_t·k_s)`, where s
//! runs over the keys that query t sees: from `key_range[t].0` up to before `key_range[t].1`; if causal, up to t; if there
//! is a window w, after t − w. Query head h reads key/value head `h / (heads / kv_heads)` (grouped-query attention).
//! A query that sees no key gets `out = 0`, `lse = −∞`.

mod cuda;
mod host;
mod samples;
mod wgsl;

use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::{Acts, Attention, Attr, Cost, Grad, Lower, OpDef, Tensor, check};

pub static OPS: &[&OpDef] = &[&ATTENTION, &ATTENTION_BWD];

/// `attention` [q F32[T,H·D], k F32[S,G·D], v F32[S,G·D], key_range I32[T,2]] → out F32[T,H·D], lse F32[H,T].
pub static ATTENTION: OpDef = OpDef {
    name: "attention",
    infer: infer_forward,
    reference: reference_forward,
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

/// `attention_bwd` [q, k, v, key_range, out, lse, dout F32[T,H·D]] → dq F32[T,H·D], dk F32[T,G·D], dv F32[T,G·D].
///
/// With `δ_t = Σ_d dout·out`: `dv_s = Σ_t p_ts·dout_t`, `ds_ts = p_ts·(dout_t·v_s − δ_t)`,
/// `dq_t = scale·Σ_s ds_ts·k_s`, `dk_s = scale·Σ_t ds_ts·q_t`. Queries and keys are the same T tokens, and the tokens
/// that `key_range` shows to one another are sequences: `key_range[s]` also says which queries may see key s.
pub static ATTENTION_BWD: OpDef = OpDef {
    name: "attention_bwd",
    infer: infer_backward,
    reference: reference_backward,
    grad: Grad::Missing,
    cost: |attr, ins, _| cost(attr, ins, 7),
    // For each head and query: lse and δ.
    workspace: |attr, ins, _| 8 * (spec(attr).heads * ins[0].rows()) as u64,
    host: host::backward,
    wgsl: wgsl::backward,
    cuda: cuda::backward,
    acts: |_| Acts { ins: &[0, 1, 2, 4, 6], outs: &[0, 1, 2] },
    samples: samples::backward,
    ..OpDef::COMPUTE
};

impl Graph {
    /// Attention of the tokens of `q` to those of `k` and `v` within `key_range` (first and one past the last key of
    /// each query).
    pub fn attention(&mut self, q: Val, k: Val, v: Val, key_range: Val, spec: Attention) -> Result<Val> {
        Ok(self.node(&ATTENTION, Attr::Attention(spec), &[q, k, v, key_range])?[0])
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
    let (Attr::Attention(a), [q, k, v, key_range]) = (attr, ins) else {
        return Err(check::refuse("q, k, v, key_range and Attention", attr, ins));
    };
    operands(a, q, k, v, key_range)?;
    Ok(vec![q.clone(), Ty::f32(&[a.heads, q.rows()])])
}

fn infer_backward(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Attention(a), [q, k, v, key_range, out, lse, dout]) = (attr, ins) else {
        return Err(check::refuse("q, k, v, key_range, out, lse, dout and Attention", attr, ins));
    };
    operands(a, q, k, v, key_range)?;
    if q.rows() != k.rows() {
        return Err(format!("{} queries and {} keys, expected the same tokens", q.rows(), k.rows()));
    }
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
    Cost { flops: 2 * products * pairs * (a.heads * a.head_dim) as u64, terms: a.head_dim.max(ins[1].rows()) }
}

/// The keys that query `t` sees, as (first, one past the last); empty intervals are (0, 0). Bounds beyond the keys
/// are cut.
fn visible(a: &Attention, t: usize, key_range: [i64; 2], keys: usize) -> (usize, usize) {
    let mut lo = key_range[0].clamp(0, keys as i64) as usize;
    let mut hi = key_range[1].clamp(0, keys as i64) as usize;
    if a.causal {
        hi = hi.min(t + 1);
    }
    if let Some(w) = a.window {
        lo = lo.max((t + 1).saturating_sub(w));
    }
    if lo < hi { (lo, hi) } else { (0, 0) }
}

fn reference_forward(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let a = spec(attr);
    let (q, k, v, key_range) = (&ins[0], &ins[1], &ins[2], &ins[3]);
    let d = a.head_dim;
    let mut out = Tensor::zeros(&q.shape);
    let mut lse = Tensor::zeros(&[a.heads, q.rows()]);
    for h in 0..a.heads {
        let of_q = h * d..(h + 1) * d;
        let g = h / (a.heads / a.kv_heads);
        let of_k = g * d..(g + 1) * d;
        for t in 0..q.rows() {
            let (lo, hi) = visible(&a, t, [key_range.at(t, 0) as i64, key_range.at(t, 1) as i64], k.rows());
            let q = &q.row(t)[of_q.clone()];
            let score =
                |s: usize| a.scale as f64 * q.iter().zip(&k.row(s)[of_k.clone()]).map(|(q, k)| q * k).sum::<f64>();
            let scores: Vec<f64> = (lo..hi).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse.row_mut(h)[t] = if lo < hi { max + sum.ln() } else { f64::NEG_INFINITY };
            for (s, score) in (lo..hi).zip(&scores) {
                let p = (score - lse.at(h, t)).exp();
                for (out, v) in out.row_mut(t)[of_q.clone()].iter_mut().zip(&v.row(s)[of_k.clone()]) {
                    *out += p * v;
                }
            }
        }
    }
    vec![out, lse]
}

fn reference_backward(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let a = spec(attr);
    let [q, k, v, key_range, out, lse, dout] = ins else { unreachable!("infer counted them") };
    let (d, scale) = (a.head_dim, a.scale as f64);
    let (mut dq, mut dk, mut dv) = (Tensor::zeros(&q.shape), Tensor::zeros(&k.shape), Tensor::zeros(&v.shape));
    for h in 0..a.heads {
        let of_q = |i: usize| h * d + i;
        let of_k = |i: usize| h / (a.heads / a.kv_heads) * d + i;
        for t in 0..q.rows() {
            let (lo, hi) = visible(&a, t, [key_range.at(t, 0) as i64, key_range.at(t, 1) as i64], k.rows());
            let delta: f64 = (0..d).map(|i| dout.at(t, of_q(i)) * out.at(t, of_q(i))).sum();
            for s in lo..hi {
                let score = scale * (0..d).map(|i| q.at(t, of_q(i)) * k.at(s, of_k(i))).sum::<f64>();
                let p = (score - lse.at(h, t)).exp();
                let dp: f64 = (0..d).map(|i| dout.at(t, of_q(i)) * v.at(s, of_k(i))).sum();
                let ds = scale * p * (dp - delta);
                for i in 0..d {
                    dq.row_mut(t)[of_q(i)] += ds * k.at(s, of_k(i));
                    dk.row_mut(s)[of_k(i)] += ds * q.at(t, of_q(i));
                    dv.row_mut(s)[of_k(i)] += p * dout.at(t, of_q(i));
                }
            }
        }
    }
    vec![dq, dk, dv]
}

fn rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let [q, k, v, key_range] = node.ins[..] else { unreachable!("infer counted them") };
    let Some(dout) = grads[0] else { return Ok(vec![None; 4]) };
    if !wants.contains(&true) {
        return Ok(vec![None; 4]);
    }
    let (out, lse) = (node.outs[0], node.outs[1]);
    let d = g.node(&ATTENTION_BWD, node.attr.clone(), &[q, k, v, key_range, out, lse, dout])?;
    Ok((0..4).map(|i| d.get(i).copied().filter(|_| wants[i])).collect())
}
