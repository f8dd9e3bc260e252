//! Columns of a table by index: the low-rank factor A of an embedding, which is stored as [rank, vocabulary].

use super::{WG, grad, host_start_sum, ids_in, learnt, operands, row_bytes, scale, scattered, start_sum};
use crate::cpu::par;
use crate::dtype::Ty;
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::launch::{bytes, flat, grid, rows};
use crate::ops::{
    Arg, Attr, Case, Cost, EmbedGrad, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Tensor, WgslDispatch, check,
};

/// `embed_cols` [ids I32[N], table F32[R,V], learnt? I32[N]] → y F32[N,R] = scale·table\[:, ids\]ᵀ. An id outside 0..V gives
/// zeros. The table's gradient is that of `learnt`, if it is there, instead of `ids`.
pub static EMBED_COLS: OpDef = OpDef {
    name: "embed_cols",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Embed { .. }, [ids, table, learnt @ ..]) if learnt.len() < 2 => {
            let (r, _) = check::matrix("the table", table)?;
            check::float("the table", table)?;
            check::is("ids", ids, &Ty::i32(&[ids.len()]))?;
            learnt.iter().try_for_each(|learnt| check::is("learnt", learnt, ids))?;
            Ok(vec![Ty::f32(&[ids.len(), r])])
        }
        _ => Err(check::refuse("ids, table and Embed", attr, ins)),
    },
    reference: |attr, ins| {
        let (ids, table) = (&ins[0], &ins[1]);
        let mut y = Tensor::zeros(&[ids.data.len(), table.rows()]);
        for (n, &id) in ids.data.iter().enumerate() {
            if (0.0..table.cols() as f64).contains(&id) {
                for (r, y) in y.row_mut(n).iter_mut().enumerate() {
                    *y = scale(attr) as f64 * table.at(r, id as usize);
                }
            }
        }
        vec![y]
    },
    grad: Grad::Rule(|g, node, grads, wants| {
        let mut all = vec![None; node.ins.len()];
        let (Some(dy), true) = (grads[0], wants[1]) else { return Ok(all) };
        let attr = EmbedGrad { scale: scale(&node.attr), rows: g.ty(node.ins[1]).cols(), acc: false };
        all[1] = Some(g.node(&EMBED_COLS_DW, Attr::EmbedGrad(attr), &[learnt(node), dy])?[0]);
        Ok(all)
    }),
    indexes: |ins| Some((0, ins[1].cols())),
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    traffic: |ins, outs| ins[0].bytes() as u64 + row_bytes(&ins[1], outs[0].len()) + outs[0].bytes() as u64,
    host: host_embed_cols,
    wgsl: wgsl_embed_cols,
    cuda: super::cuda::embed_cols,
    samples: || {
        let one = |(name, ids, v, r, scale): &(&str, &[i32], usize, usize, f32)| {
            let ins = vec![ids_in(ids), SampleIn::normal(Ty::f32(&[*r, *v]))];
            Sample::new(*name, Attr::Embed { scale: *scale }, ins)
        };
        let mut learnt = one(&IDS[0]);
        learnt.name += ", learnt";
        learnt.ins.push(ids_in(IDS[0].1));
        IDS.iter().map(one).chain([learnt]).collect()
    },
    cases: |s| {
        let ins = vec![SampleIn::indices(s.tokens, s.vocab), SampleIn::f32(&[s.rank, s.vocab])];
        vec![Case::new("tokens", Attr::Embed { scale: 1.0 }, ins)]
    },
    ..OpDef::COMPUTE
};

/// `embed_cols_dw` [ids I32[N], dy F32[N,R], acc? F32[R,V]] → F32[R,V]: column v is scale·Σ dy\[n\] over the n with
/// ids\[n\] = v, in ascending order (+ acc). The attribute's `rows` is V.
pub static EMBED_COLS_DW: OpDef = OpDef {
    name: "embed_cols_dw",
    infer: |attr, ins| match (attr, ins) {
        (Attr::EmbedGrad(e), [ids, dy, acc @ ..]) => {
            let (n, r) = check::matrix("dy", dy)?;
            check::float("dy", dy)?;
            check::is("ids", ids, &Ty::i32(&[n]))?;
            let dw = Ty::f32(&[r, e.rows]);
            check::acc(e.acc, acc, &dw)?;
            Ok(vec![dw])
        }
        _ => Err(check::refuse("ids, dy and EmbedGrad", attr, ins)),
    },
    reference: |attr, ins| {
        let e = grad(attr);
        let mut dw = match e.acc {
            true => ins[2].clone(),
            false => Tensor::zeros(&[ins[1].cols(), e.rows]),
        };
        for (n, &id) in ins[0].data.iter().enumerate() {
            if (0.0..e.rows as f64).contains(&id) {
                for (r, y) in ins[1].row(n).iter().enumerate() {
                    dw.row_mut(r)[id as usize] += e.scale as f64 * y;
                }
            }
        }
        vec![dw]
    },
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(2, 0)],
    cost: |_, ins, outs| Cost { flops: (2 * ins[1].len() + outs[0].len()) as u64, terms: ins[0].len() + 1 },
    traffic: scattered,
    host: host_embed_cols_dw,
    wgsl: wgsl_embed_cols_dw,
    cuda: super::cuda::embed_cols_dw,
    samples: || {
        let mut all = Vec::new();
        for acc in [false, true] {
            for (name, ids, v, r, scale) in IDS {
                let mut ins = vec![ids_in(ids), SampleIn::normal(Ty::f32(&[ids.len(), *r]))];
                ins.extend(acc.then(|| SampleIn::normal(Ty::f32(&[*r, *v]))));
                let attr = Attr::EmbedGrad(EmbedGrad { scale: *scale, rows: *v, acc });
                all.push(Sample::new(format!("{name}, acc {acc}"), attr, ins));
            }
        }
        all
    },
    cases: |s| {
        let attr = Attr::EmbedGrad(EmbedGrad { scale: 1.0, rows: s.vocab, acc: true });
        let (dy, acc) = (SampleIn::f32(&[s.tokens, s.rank]), SampleIn::f32(&[s.rank, s.vocab]));
        vec![Case::new("tokens", attr, vec![SampleIn::indices(s.tokens, s.vocab), dy, acc]).in_place(&[(2, 0)])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// scale·table\[:, ids\]ᵀ.
    pub fn embed_cols(&mut self, ids: [Val; 2], table: Val, scale: f32) -> Result<Val> {
        Ok(self.node(&EMBED_COLS, Attr::Embed { scale }, &operands(ids, table))?[0])
    }
}

fn host_embed_cols(call: &HostCall) {
    let (r, v, scale) = (call.ins[1].rows(), call.ins[1].cols(), scale(call.attr));
    let (ids, table) = (call.input::<i32>(0), call.input::<f32>(1));
    par::chunks(call.output::<f32>(0), r, |n, y| match usize::try_from(ids[n]) {
        Ok(id) if id < v => y.iter_mut().enumerate().for_each(|(r, y)| *y = scale * table[r * v + id]),
        _ => y.fill(0.0),
    });
}

fn host_embed_cols_dw(call: &HostCall) {
    let EmbedGrad { scale, rows: v, acc } = grad(call.attr);
    let r = call.outs[0].rows();
    let (ids, dy) = (call.input::<i32>(0), call.input::<f32>(1));
    let dw = host_start_sum(call, acc);
    // A row belongs to one thread, which walks all tokens in order.
    par::chunks(dw, v, |row, dw| {
        for (n, &id) in ids.iter().enumerate() {
            if let Some(id) = usize::try_from(id).ok().filter(|&id| id < v) {
                dw[id] += scale * dy[n * r + row];
            }
        }
    });
}

/// One dispatch for each pair of a range of tokens and a range of the table's elements; the first of the latter also
/// writes the zeros of ids that are outside.
fn wgsl_embed_cols(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (n, r, v) = (l.ins[0].len(), l.ins[1].rows(), l.ins[1].cols());
    let mut all = Vec::new();
    for tokens in rows(n, r, l.caps) {
        for part in flat(r * v, l.caps) {
            let words = [tokens.len(), tokens.start, r, v, part.start, part.end].map(|w| w as u32);
            all.push(WgslDispatch {
                shader: "embed_cols",
                defines: vec!["GATHER"],
                entry: "embed_cols",
                constants: Vec::new(),
                grid: grid((tokens.len() * r).div_ceil(WG), l.caps),
                args: vec![Arg::OutPart(0, bytes(&tokens, r)), Arg::In(0), Arg::InPart(1, bytes(&part, 1))],
                params: words.into_iter().chain([scale(l.attr).to_bits()]).collect(),
                flops: (tokens.len() * r) as u64,
            });
        }
    }
    Ok(all)
}

/// A workgroup for each token: where the token is the first of its id, it sums all of that id.
fn wgsl_embed_cols_dw(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (e, n, r) = (grad(l.attr), l.ins[0].len(), l.ins[1].cols());
    let mut all = start_sum(l, e.acc);
    for tokens in rows(n, r, l.caps) {
        for part in flat(r * e.rows, l.caps) {
            let words = [tokens.len(), tokens.start, r, e.rows, part.start, part.end].map(|w| w as u32);
            all.push(WgslDispatch {
                shader: "embed_cols",
                defines: vec!["SCATTER"],
                entry: "embed_cols_dw",
                constants: Vec::new(),
                grid: grid(tokens.len(), l.caps),
                args: vec![Arg::OutPart(0, bytes(&part, 1)), Arg::In(0), Arg::InPart(1, bytes(&tokens, r))],
                params: words.into_iter().chain([e.scale.to_bits()]).collect(),
                flops: (2 * tokens.len() * r) as u64,
            });
        }
    }
    Ok(all)
}

/// More tokens than are asked at a time, ids that come again late among them.
const MANY: [i32; 600] = {
    let mut ids = [0; 600];
    let mut n = 0;
    while n < ids.len() {
        ids[n] = n as i32 * 7 % 301;
        n += 1;
    }
    ids
};

/// Ids, columns and rows of the table, scale.
const IDS: &[(&str, &[i32], usize, usize, f32)] = &[
    ("one token", &[0], 1, 1, 1.0),
    ("a repeated id", &[2, 0, 2, 2, 1], 3, 7, 1.0),
    ("ids outside the table", &[-1, 4, 5, 2, i32::MIN, i32::MAX, 4], 5, 17, 0.5),
    ("a high rank", &[6, 6, 3], 7, 130, 2.5),
    ("many tokens", &[1; 65], 33, 3, 1.0),
    ("more tokens than threads", &MANY, 300, 5, 2.0),
    ("a rank beyond a block", &[1, 0, 1], 2, 1027, 0.5),
    ("a large table", &[1022, 3, 500, 3, 1200], 1023, 33, 0.25),
];
