//! Some tokens of an embedding that are trained although the rest of the table is frozen: which rows they are, and the
//! table with them put in.

use std::collections::HashMap;

use super::{WG, ids_in, write_rows};
use crate::cpu::par;
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::graph::{Graph, Val};
use crate::ops::launch::{bytes, flat, grid, rows};
use crate::ops::quant::{weight_define, weight_parts};
use crate::ops::{
    Arg, Attr, Case, Cost, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Sizes, Tensor, WgslDispatch, check,
};

/// `token_rows` [ids I32[N], tokens I32[K]] → rows I32[N], rest I32[N]: where ids\[n\] = tokens\[k\], rows\[n\] is
/// that k (the first) and rest\[n\] is −1; elsewhere rows\[n\] is −1 and rest\[n\] is ids\[n\]. [`super::EMBED`] gives
/// zeros for −1, so embed(rows, rows of the tokens) + embed(rest, table) reads each id where it is to be found.
pub static TOKEN_ROWS: OpDef = OpDef {
    name: "token_rows",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [ids, tokens]) => {
            check::is("ids", ids, &Ty::i32(&[ids.len()]))?;
            check::is("tokens", tokens, &Ty::i32(&[tokens.len()]))?;
            Ok(vec![ids.clone(), ids.clone()])
        }
        _ => Err(check::refuse("ids and tokens", attr, ins)),
    },
    reference: |_, ins| {
        let row = |id: &f64| ins[1].data.iter().position(|t| t == id);
        let rows = ins[0].data.iter().map(|id| row(id).map_or(-1.0, |k| k as f64)).collect();
        let rest = ins[0].data.iter().map(|id| row(id).map_or(*id, |_| -1.0)).collect();
        vec![Tensor::new(&ins[0].shape, rows), Tensor::new(&ins[0].shape, rest)]
    },
    grad: Grad::Stop,
    cost: |_, ins, _| Cost { flops: (ins[0].len() * ins[1].len()) as u64, terms: 1 },
    host: host_token_rows,
    wgsl: wgsl_token_rows,
    cuda: super::cuda::token_rows,
    samples: || {
        let table: [(_, &[i32], &[i32]); 6] = [
            ("one token", &[3], &[3]),
            ("some of them", &[5, 0, 9, 5, 2, -1, 7], &[9, 5, 1]),
            ("none of them", &[1, 2, 3], &[4]),
            ("all of them, out of order", &[2, 1, 0, 2], &[0, 2, 1]),
            ("more than a workgroup", &[1; 65], &[7, 1]),
            ("a token twice", &[5, 1, 2, 5], &[1, 9, 5, 5, 1, 7, 7, 3, 5]),
        ];
        let mut all: Vec<Sample> = table
            .into_iter()
            .map(|(name, ids, tokens)| Sample::new(name, Attr::None, vec![ids_in(ids), ids_in(tokens)]))
            .collect();
        let many: Vec<i32> = (0..20_000).map(|i| i % 301).collect();
        all.push(Sample::new("many", Attr::None, vec![ids_in(&many), ids_in(&[300, 3])]));
        all
    },
    cases: |s| vec![Case::new("tokens", Attr::None, vec![SampleIn::indices(s.tokens, s.vocab), trained(s)])],
    ..OpDef::COMPUTE
};

/// `replace_rows` [table (F32|BF16|F16)[V,D], x F32[K,D], tokens I32[K]] → F32[V,D]: the table, with row tokens\[k\]
/// = x\[k\]. Tokens outside 0..V are skipped; no two may be the same. There is no gradient with respect to the table.
pub static REPLACE_ROWS: OpDef = OpDef {
    name: "replace_rows",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [table, x, tokens]) => {
            let (v, d) = check::matrix("the table", table)?;
            if !table.dtype.is_float() {
                return Err(format!("the table is {table}, expected f32, bf16 or f16"));
            }
            check::is("tokens", tokens, &Ty::i32(&[tokens.len()]))?;
            check::is("x", x, &Ty::f32(&[tokens.len(), d]))?;
            Ok(vec![Ty::f32(&[v, d])])
        }
        _ => Err(check::refuse("table, x and tokens", attr, ins)),
    },
    reference: |_, ins| {
        let mut y = ins[0].clone();
        for (k, &token) in ins[2].data.iter().enumerate() {
            if (0.0..y.rows() as f64).contains(&token) {
                y.row_mut(token as usize).copy_from_slice(ins[1].row(k));
            }
        }
        vec![y]
    },
    grad: Grad::Rule(|g, node, grads, wants| {
        if wants[0] {
            let parameter = g.value(node.ins[0]).name.clone();
            return Err(Error::NoGradient { op: node.op.name, site: node.site.clone(), input: 0, parameter });
        }
        // The row of x that went to each token's place comes back from there.
        let dx = grads[0].map(|dy| g.embed(node.ins[2], dy, 1.0)).transpose()?;
        Ok(vec![None, dx, None])
    }),
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: host_replace_rows,
    wgsl: wgsl_replace_rows,
    cuda: super::cuda::replace_rows,
    samples: || {
        let table: [(_, &[i32], usize, usize); 5] = [
            ("one row", &[0], 1, 1),
            ("out of order", &[5, 0, 3], 7, 33),
            ("tokens outside the table", &[-1, 2, 3, 1], 3, 8),
            ("a large table", &[600, 599, 0], 601, 66),
            ("wide rows", &[1], 2, 130),
        ];
        let mut all = Vec::new();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (name, tokens, v, d) in table {
                let (table, x) = (Ty::new(dtype, &[v, d]), Ty::f32(&[tokens.len(), d]));
                let ins = vec![SampleIn::normal(table), SampleIn::normal(x), ids_in(tokens)];
                all.push(Sample::new(format!("{name}, {dtype}"), Attr::None, ins));
            }
        }
        all
    },
    cases: |s| {
        let (table, tokens) = (SampleIn::normal(Ty::new(s.table(), &[s.vocab, s.hidden])), trained(s));
        let x = SampleIn::f32(&[tokens.ty.len(), s.hidden]);
        vec![Case::new(s.table().name(), Attr::None, vec![table, x, tokens])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// For each id its place in `tokens`, or −1; and the ids that are not among them, −1 for those that are.
    pub fn token_rows(&mut self, ids: Val, tokens: Val) -> Result<(Val, Val)> {
        let outs = self.node(&TOKEN_ROWS, Attr::None, &[ids, tokens])?;
        Ok((outs[0], outs[1]))
    }

    /// `table` in f32 with the rows `tokens` replaced by those of `x`.
    pub fn replace_rows(&mut self, table: Val, x: Val, tokens: Val) -> Result<Val> {
        Ok(self.node(&REPLACE_ROWS, Attr::None, &[table, x, tokens])?[0])
    }
}

fn host_token_rows(call: &HostCall) {
    let (ids, tokens) = (call.input::<i32>(0), call.input::<i32>(1));
    let mut places: HashMap<i32, i32> = HashMap::with_capacity(tokens.len());
    for (k, &token) in tokens.iter().enumerate() {
        places.entry(token).or_insert(k as i32);
    }
    let outs = call.output::<i32>(0).iter_mut().zip(call.output::<i32>(1));
    for (&id, (row, rest)) in ids.iter().zip(outs) {
        (*row, *rest) = match places.get(&id) {
            Some(&k) => (k, -1),
            None => (-1, id),
        };
    }
}

fn host_replace_rows(call: &HostCall) {
    let (v, d) = (call.outs[0].rows(), call.outs[0].cols());
    let y = call.output::<f32>(0);
    fn widen<T: bytemuck::Pod + Sync>(y: &mut [f32], table: &[T], f: impl Fn(T) -> f32 + Sync) {
        const PIECE: usize = 1 << 16;
        par::chunks(y, PIECE, |i, y| y.iter_mut().zip(&table[i * PIECE..]).for_each(|(y, &x)| *y = f(x)));
    }
    match call.ins[0].dtype {
        DType::BF16 => widen(y, call.input(0), |x: half::bf16| x.to_f32()),
        DType::F16 => widen(y, call.input(0), |x: half::f16| x.to_f32()),
        _ => widen(y, call.input(0), |x: f32| x),
    }
    let (x, tokens) = (call.input::<f32>(1), call.input::<i32>(2));
    for (x, &token) in x.chunks_exact(d.max(1)).zip(tokens) {
        if let Some(token) = usize::try_from(token).ok().filter(|&t| t < v) {
            y[token * d..(token + 1) * d].copy_from_slice(x);
        }
    }
}

fn wgsl_token_rows(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let one = |part: std::ops::Range<usize>| WgslDispatch {
        shader: "embed_tokens",
        defines: vec!["TOKEN_ROWS"],
        entry: "token_rows",
        constants: Vec::new(),
        grid: grid(part.len().div_ceil(WG), l.caps),
        args: vec![
            Arg::OutPart(0, bytes(&part, 1)),
            Arg::OutPart(1, bytes(&part, 1)),
            Arg::InPart(0, bytes(&part, 1)),
            Arg::In(1),
        ],
        params: vec![part.len() as u32, l.ins[1].len() as u32],
        flops: (part.len() * l.ins[1].len()) as u64,
    };
    Ok(flat(l.ins[0].len(), l.caps).into_iter().map(one).collect())
}

/// The table widened, part by part; then the rows over it, as a cache is written.
fn wgsl_replace_rows(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (v, d) = (l.outs[0].rows(), l.outs[0].cols());
    // As many rows as can be bound when they are f32.
    let most = rows(v, d, l.caps).first().map_or(v, |r| r.len());
    let mut all = Vec::new();
    for part in weight_parts(0, &l.ins[0], l.caps.max_binding, most) {
        let n = part.rows.len() * d;
        let mut args = vec![Arg::OutPart(0, bytes(&part.rows, d))];
        args.extend(part.args);
        all.push(WgslDispatch {
            shader: "embed_tokens",
            defines: vec!["WIDEN", weight_define(l.ins[0].dtype).unwrap_or("W_F32")],
            entry: "widen",
            constants: Vec::new(),
            grid: grid(n.div_ceil(4 * WG), l.caps),
            args,
            params: vec![n as u32],
            flops: n as u64,
        });
    }
    all.extend(write_rows(l, 1, 2));
    Ok(all)
}

/// Tokens that are trained apart, no two the same.
fn trained(s: &Sizes) -> SampleIn {
    SampleIn::indices(s.few.min(s.vocab), s.vocab)
}
