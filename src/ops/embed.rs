//! Rows of a table by index: the token embedding and its gradient, and the cache of keys and values.

mod columns;
pub(super) mod cuda;
mod tokens;

pub use columns::{EMBED_COLS, EMBED_COLS_DW};
pub use tokens::{REPLACE_ROWS, TOKEN_ROWS};

use crate::cpu::act::Act;
use crate::cpu::par;
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::launch::{self, bytes, bytes_of, grid, rows, rows_of};
use crate::ops::quant::{weight_defines, weight_parts};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, EmbedGrad, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Tensor, WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&EMBED, &EMBED_DW, &CACHE_WRITE, &EMBED_COLS, &EMBED_COLS_DW, &TOKEN_ROWS, &REPLACE_ROWS];

/// `embed` [ids I32[N], table (F32|BF16|F16)[V,D], learnt? I32[N]] → y F32[N,D] = scale·table\[ids\]. An id outside 0..V
/// gives zeros. The table's gradient is that of `learnt`, if it is there, instead of `ids`.
pub static EMBED: OpDef = OpDef {
    name: "embed",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Embed { .. }, [ids, table, learnt @ ..]) if learnt.len() < 2 => {
            let (_, d) = check::matrix("the table", table)?;
            check::is("ids", ids, &Ty::i32(&[ids.len()]))?;
            learnt.iter().try_for_each(|learnt| check::is("learnt", learnt, ids))?;
            if !table.dtype.is_float() {
                return Err(format!("the table is {table}, expected f32, bf16 or f16"));
            }
            Ok(vec![Ty::f32(&[ids.len(), d])])
        }
        _ => Err(check::refuse("ids, table and Embed", attr, ins)),
    },
    reference: |attr, ins| {
        let mut y = Tensor::zeros(&[ins[0].data.len(), ins[1].cols()]);
        for (n, &id) in ins[0].data.iter().enumerate() {
            if (0.0..ins[1].rows() as f64).contains(&id) {
                for (y, x) in y.row_mut(n).iter_mut().zip(ins[1].row(id as usize)) {
                    *y = scale(attr) as f64 * x;
                }
            }
        }
        vec![y]
    },
    grad: Grad::Rule(|g, node, grads, wants| {
        let mut all = vec![None; node.ins.len()];
        let (Some(dy), true) = (grads[0], wants[1]) else { return Ok(all) };
        let attr = EmbedGrad { scale: scale(&node.attr), rows: g.shape(node.ins[1])[0], acc: false };
        let dw = g.node(&EMBED_DW, Attr::EmbedGrad(attr), &[learnt(node), dy])?[0];
        // A table that is no leaf may be activations in 16 bits.
        all[1] = Some(g.cast(dw, g.ty(node.ins[1]).dtype)?);
        Ok(all)
    }),
    indexes: |ins| Some((0, ins[1].rows())),
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    traffic: |ins, outs| ins[0].bytes() as u64 + row_bytes(&ins[1], outs[0].len()) + outs[0].bytes() as u64,
    host: host_embed,
    wgsl: wgsl_embed,
    cuda: cuda::embed,
    samples: || {
        let mut all = Vec::new();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (name, ids, v, d, scale) in IDS {
                let ins = vec![ids_in(ids), SampleIn::normal(Ty::new(dtype, &[*v, *d]))];
                all.push(Sample::new(format!("{name}, {dtype}"), Attr::Embed { scale: *scale }, ins));
            }
        }
        let (name, ids, v, d, scale) = IDS[0];
        let ins = vec![ids_in(ids), SampleIn::normal(Ty::f32(&[v, d])), ids_in(ids)];
        all.push(Sample::new(format!("{name}, learnt"), Attr::Embed { scale }, ins));
        all
    },
    cases: |s| {
        let table = SampleIn::normal(Ty::new(s.table(), &[s.vocab, s.hidden]));
        let ins = vec![SampleIn::indices(s.tokens, s.vocab), table];
        vec![Case::new(s.table().name(), Attr::Embed { scale: 1.0 }, ins)]
    },
    ..OpDef::COMPUTE
};

/// `embed_dw` [ids I32[N], dy F32[N,D], acc? F32[V,D]] → F32[V,D]: row v is scale·Σ dy\[n\] over the n with
/// ids\[n\] = v, in ascending order (+ acc).
pub static EMBED_DW: OpDef = OpDef {
    name: "embed_dw",
    infer: |attr, ins| match (attr, ins) {
        (Attr::EmbedGrad(e), [ids, dy, acc @ ..]) => {
            let (n, d) = check::matrix("dy", dy)?;
            check::float("dy", dy)?;
            check::is("ids", ids, &Ty::i32(&[n]))?;
            let dw = Ty::f32(&[e.rows, d]);
            check::acc(e.acc, acc, &dw)?;
            Ok(vec![dw])
        }
        _ => Err(check::refuse("ids, dy and EmbedGrad", attr, ins)),
    },
    reference: |attr, ins| {
        let e = grad(attr);
        let mut dw = match e.acc {
            true => ins[2].clone(),
            false => Tensor::zeros(&[e.rows, ins[1].cols()]),
        };
        for (n, &id) in ins[0].data.iter().enumerate() {
            if (0.0..e.rows as f64).contains(&id) {
                for (w, y) in dw.row_mut(id as usize).iter_mut().zip(ins[1].row(n)) {
                    *w += e.scale as f64 * y;
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
    host: host_embed_dw,
    wgsl: wgsl_embed_dw,
    cuda: cuda::embed_dw,
    samples: || {
        let mut all = Vec::new();
        for acc in [false, true] {
            for (name, ids, v, d, scale) in IDS {
                let mut ins = vec![ids_in(ids), SampleIn::normal(Ty::f32(&[ids.len(), *d]))];
                ins.extend(acc.then(|| SampleIn::normal(Ty::f32(&[*v, *d]))));
                all.push(Sample::new(
                    format!("{name}, acc {acc}"),
                    Attr::EmbedGrad(EmbedGrad { scale: *scale, rows: *v, acc }),
                    ins,
                ));
            }
        }
        all
    },
    cases: |s| {
        let attr = Attr::EmbedGrad(EmbedGrad { scale: 1.0, rows: s.vocab, acc: true });
        let (dy, acc) = (SampleIn::f32(&[s.tokens, s.hidden]), SampleIn::f32(&[s.vocab, s.hidden]));
        vec![Case::new("tokens", attr, vec![SampleIn::indices(s.tokens, s.vocab), dy, acc]).in_place(&[(2, 0)])]
    },
    ..OpDef::COMPUTE
};

/// `cache_write` [cache F32[C,D], x F32[N,D], positions I32[N]] → the cache with row positions\[n\] = x\[n\].
/// Positions outside 0..C are skipped. No two positions may be the same.
pub static CACHE_WRITE: OpDef = OpDef {
    name: "cache_write",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [cache, x, positions]) => {
            let (n, d) = check::matrix("x", x)?;
            check::float("x", x)?;
            check::float("the cache", cache)?;
            let (c, _) = check::matrix("the cache", cache)?;
            check::is("the cache", cache, &Ty::f32(&[c, d]))?;
            check::is("positions", positions, &Ty::i32(&[n]))?;
            Ok(vec![cache.clone()])
        }
        _ => Err(check::refuse("cache, x, positions", attr, ins)),
    },
    reference: |_, ins| {
        let mut cache = ins[0].clone();
        for (n, &p) in ins[2].data.iter().enumerate() {
            if (0.0..cache.rows() as f64).contains(&p) {
                cache.row_mut(p as usize).copy_from_slice(ins[1].row(n));
            }
        }
        vec![cache]
    },
    grad: Grad::Stop,
    in_place: &[(0, 0)],
    cost: |_, ins, _| Cost { flops: ins[1].len() as u64, terms: 1 },
    traffic: |ins, _| 2 * ins[1].bytes() as u64 + ins[2].bytes() as u64,
    host: by_act!(host_cache_write),
    narrow: true,
    wgsl_half: |_, ins, _| ins[0].cols().is_multiple_of(4),
    wgsl: wgsl_cache_write,
    cuda: cuda::cache_write,
    acts: |_| Acts { ins: &[0, 1], outs: &[0] },
    samples: || {
        let sample = |(name, positions, c, d): (&'static str, &[i32], usize, usize)| {
            let (cache, x) = (Ty::f32(&[c, d]), Ty::f32(&[positions.len(), d]));
            Sample::new(name, Attr::None, vec![SampleIn::normal(cache), SampleIn::normal(x), ids_in(positions)])
        };
        let table: [(_, &[i32], _, _); 6] = [
            ("one token", &[0], 1, 1),
            ("out of order", &[5, 0, 3], 7, 33),
            ("positions outside the cache", &[-1, 2, 3, 1], 3, 7),
            ("a large cache", &[600, 599, 0], 601, 33),
            ("aligned rows", &[2, 1], 3, 128),
            ("a prompt", &[0, 1, 2, 3, 4, 5, 6, 7, 8], 17, 65),
        ];
        table.into_iter().map(sample).collect()
    },
    cases: |s| {
        let (cache, x) = (SampleIn::f32(&[2 * s.tokens, s.keys()]), SampleIn::f32(&[s.tokens, s.keys()]));
        vec![Case::new("tokens", Attr::None, vec![cache, x, SampleIn::positions(s.tokens)]).in_place(&[(0, 0)])]
    },
    ..OpDef::COMPUTE
};

/// Bytes of `n` elements of a table.
fn row_bytes(table: &Ty, n: usize) -> u64 {
    table.dtype.bytes(n) as u64
}

/// A gradient of a table that is added to reads and writes the rows of the tokens; one that is not, all rows.
fn scattered(ins: &[Ty], outs: &[Ty]) -> u64 {
    let read = (ins[0].bytes() + ins[1].bytes()) as u64;
    read + if ins.len() > 2 { 2 * ins[1].bytes() as u64 } else { outs[0].bytes() as u64 }
}

impl Graph {
    /// scale·table\[ids\] in f32. Of a table that is no leaf it is a gather of rows, with a gradient of the table's type;
    /// an id outside the table (−1, say) gives a row of zeros, and passes no gradient on.
    pub fn embed(&mut self, ids: Val, table: Val, scale: f32) -> Result<Val> {
        self.embed_learning([ids, ids], table, scale)
    }

    /// The same of the first ids, where the table has the gradient of the second.
    pub fn embed_learning(&mut self, ids: [Val; 2], table: Val, scale: f32) -> Result<Val> {
        Ok(self.node(&EMBED, Attr::Embed { scale }, &operands(ids, table))?[0])
    }

    /// Overwrites rows of a cache.
    pub fn cache_write(&mut self, cache: Val, x: Val, positions: Val) -> Result<Val> {
        Ok(self.node_into(&CACHE_WRITE, Attr::None, &[cache, x, positions], &[Some(cache)])?[0])
    }
}

/// What a table is read by, and which of that it learns of, if that is something else.
fn operands([ids, learnt]: [Val; 2], table: Val) -> Vec<Val> {
    [ids, table].into_iter().chain((learnt != ids).then_some(learnt)).collect()
}

fn learnt(node: &Node) -> Val {
    node.ins.get(2).copied().unwrap_or(node.ins[0])
}

fn scale(attr: &Attr) -> f32 {
    match attr {
        Attr::Embed { scale } => *scale,
        _ => unreachable!("infer refused it"),
    }
}

fn grad(attr: &Attr) -> EmbedGrad {
    match attr {
        Attr::EmbedGrad(e) => *e,
        _ => unreachable!("infer refused it"),
    }
}

fn host_embed(call: &HostCall) {
    let (v, d, scale) = (call.ins[1].rows(), call.ins[1].cols(), scale(call.attr));
    let ids = call.input::<i32>(0);
    // Rows of the table as bits, and how a row's elements widen.
    fn gather<T: bytemuck::Pod + Sync>(
        call: &HostCall,
        ids: &[i32],
        (v, d): (usize, usize),
        f: impl Fn(T) -> f32 + Sync,
    ) {
        let table = call.input::<T>(1);
        par::chunks(call.output::<f32>(0), d, |n, y| match usize::try_from(ids[n]) {
            Ok(id) if id < v => y.iter_mut().zip(&table[id * d..(id + 1) * d]).for_each(|(y, &x)| *y = f(x)),
            _ => y.fill(0.0),
        });
    }
    match call.ins[1].dtype {
        DType::BF16 => gather(call, ids, (v, d), |x: half::bf16| scale * x.to_f32()),
        DType::F16 => gather(call, ids, (v, d), |x: half::f16| scale * x.to_f32()),
        _ => gather(call, ids, (v, d), |x: f32| scale * x),
    }
}

fn host_embed_dw(call: &HostCall) {
    let EmbedGrad { scale, rows, acc } = grad(call.attr);
    let d = call.outs[0].cols();
    let (ids, dy) = (call.input::<i32>(0), call.input::<f32>(1));
    host_start_sum(call, acc);
    let dw = call.output_ptr::<f32>(0);
    // Each piece of columns walks all tokens in order, so no two threads meet and the order is fixed.
    par::ranges(d, 64, |columns| {
        for (n, &id) in ids.iter().enumerate() {
            let Some(id) = usize::try_from(id).ok().filter(|&id| id < rows) else { continue };
            for c in columns.clone() {
                // SAFETY: (id, c) is in dw; no other thread has these columns.
                unsafe { *dw.add(id * d + c) += scale * dy[n * d + c] };
            }
        }
    });
}

/// Output 0 as a table's gradient is added to it: input 2, or zeros.
fn host_start_sum<'a>(call: &HostCall<'a>, acc: bool) -> &'a mut [f32] {
    if acc {
        return call.accumulator(2, 0);
    }
    let dw = call.output::<f32>(0);
    par::chunks(dw, 1 << 16, |_, piece| piece.fill(0.0));
    dw
}

fn host_cache_write<A: Act>(call: &HostCall) {
    let (rows, d) = (call.outs[0].rows(), call.outs[0].cols());
    let (old, new) = (call.input_ptr::<A>(0), call.output_ptr::<A>(0));
    let (x, positions) = (call.input::<A>(1), call.input::<i32>(2));
    if old.0 != new.0 {
        // SAFETY: both are of rows·d elements, and they do not overlap unless they are the same.
        unsafe { std::ptr::copy_nonoverlapping(old.0, new.0, rows * d) };
    }
    for (x, &p) in x.chunks_exact(d.max(1)).zip(positions) {
        if let Some(p) = usize::try_from(p).ok().filter(|&p| p < rows) {
            // SAFETY: row p is in the cache; x is another operand.
            unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), new.add(p * d), d) };
        }
    }
}

const WG: usize = 64;

/// One dispatch for each pair of a range of tokens and a range of the table's rows; the first range of rows also
/// writes the zeros of ids that are in no range.
fn wgsl_embed(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (n, v, d) = (l.ins[0].len(), l.ins[1].rows(), l.ins[1].cols());
    let mut all = Vec::new();
    for tokens in rows(n, d, l.caps) {
        for part in weight_parts(1, &l.ins[1], l.caps.max_binding, usize::MAX) {
            let mut args = vec![Arg::OutPart(0, bytes(&tokens, d)), Arg::In(0)];
            args.extend(part.args);
            all.push(WgslDispatch {
                shader: "embed",
                defines: [vec!["EMBED"], weight_defines(&l.ins[1], l.caps).unwrap_or_default()].concat(),
                entry: "embed",
                constants: Vec::new(),
                grid: grid((tokens.len() * d).div_ceil(WG), l.caps),
                args,
                params: vec![
                    tokens.len() as u32,
                    tokens.start as u32,
                    d as u32,
                    v as u32,
                    part.rows.start as u32,
                    part.rows.end as u32,
                    scale(l.attr).to_bits(),
                ],
                flops: (tokens.len() * d) as u64,
            });
        }
    }
    Ok(all)
}

/// Dispatches that make output `out` a copy of input `from`, or zeros.
pub(super) fn start(l: &Lower, out: usize, from: Option<usize>) -> Vec<WgslDispatch> {
    let dispatch = |range: std::ops::Range<usize>| {
        let out = Arg::OutPart(out, bytes(&range, 1));
        let (define, args) = match from {
            Some(i) => ("COPY", vec![out, Arg::InPart(i, bytes(&range, 1))]),
            None => ("FILL", vec![out]),
        };
        WgslDispatch {
            shader: "embed",
            defines: vec![define],
            entry: "start",
            constants: Vec::new(),
            grid: grid(range.len().div_ceil(4 * WG), l.caps),
            args,
            params: vec![range.len() as u32],
            flops: range.len() as u64,
        }
    };
    // Words, whatever they hold.
    launch::flat(l.outs[out].bytes() / 4, l.caps).into_iter().map(dispatch).collect()
}

/// Dispatches that make output 0 what a table's gradient is added to: input 2, unless it is there already, or zeros.
fn start_sum(l: &Lower, acc: bool) -> Vec<WgslDispatch> {
    match (acc, l.shared[0]) {
        (true, Some(_)) => Vec::new(),
        (true, None) => start(l, 0, Some(2)),
        (false, _) => start(l, 0, None),
    }
}

/// A workgroup for each token: where the token is the first of its id, it sums all of that id.
fn wgsl_embed_dw(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let (e, n, d) = (grad(l.attr), l.ins[0].len(), l.ins[1].cols());
    let mut all = start_sum(l, e.acc);
    for tokens in rows(n, d, l.caps) {
        for part in rows(e.rows, d, l.caps) {
            let words = [tokens.len(), tokens.start, d, part.start, part.end].map(|w| w as u32);
            all.push(WgslDispatch {
                shader: "embed",
                defines: vec!["EMBED_DW"],
                entry: "embed_dw",
                constants: Vec::new(),
                grid: grid(tokens.len(), l.caps),
                args: vec![Arg::OutPart(0, bytes(&part, d)), Arg::In(0), Arg::InPart(1, bytes(&tokens, d))],
                params: words.into_iter().chain([e.scale.to_bits()]).collect(),
                flops: (2 * tokens.len() * d) as u64,
            });
        }
    }
    Ok(all)
}

fn wgsl_cache_write(l: &Lower) -> Result<Vec<WgslDispatch>> {
    let mut all = match l.shared[0] {
        Some(_) => Vec::new(),
        None => start(l, 0, Some(0)),
    };
    all.extend(write_rows(l, 1, 2));
    Ok(all)
}

/// Dispatches that write the rows of input `x` into output 0 at the rows that input `positions` says.
fn write_rows(l: &Lower, x: usize, positions: usize) -> Vec<WgslDispatch> {
    let (n, c, d) = (l.ins[positions].len(), l.outs[0].rows(), l.outs[0].cols());
    let (dtype, units) = (l.outs[0].dtype, d / launch::unit(l.outs[0].dtype));
    let mut all = Vec::new();
    for tokens in rows_of(dtype, n, d, l.caps) {
        for part in rows_of(dtype, c, d, l.caps) {
            let to = Arg::OutPart(0, bytes_of(dtype, &part, d));
            all.push(WgslDispatch {
                shader: "embed",
                defines: ["CACHE_WRITE"].into_iter().chain(launch::half(dtype)).collect(),
                entry: "cache_write",
                constants: Vec::new(),
                grid: grid((tokens.len() * units).div_ceil(WG), l.caps),
                args: vec![to, Arg::InPart(x, bytes_of(dtype, &tokens, d)), Arg::In(positions)],
                params: [tokens.len(), tokens.start, units, part.start, part.end].map(|w| w as u32).to_vec(),
                flops: (tokens.len() * d) as u64,
            });
        }
    }
    all
}

/// 0, 1, 2, 3, 0, 1, … : each id many times, over more tokens than a kernel asks at once.
const FAR: [i32; 300] = {
    let mut ids = [0; 300];
    let mut i = 0;
    while i < 300 {
        ids[i] = (i % 4) as i32;
        i += 1;
    }
    ids
};

/// Ids, rows of the table, columns, scale.
const IDS: &[(&str, &[i32], usize, usize, f32)] = &[
    ("one token", &[0], 1, 1, 1.0),
    ("a repeated id", &[2, 0, 2, 2, 1], 3, 7, 1.0),
    ("ids outside the table", &[-1, 4, 5, 2, i32::MIN, i32::MAX, 4], 5, 18, 0.5),
    ("wide rows", &[6, 6, 3], 7, 130, 11.3),
    ("many tokens", &[1; 65], 33, 3, 1.0),
    ("rows of fours", &[4, 0, 2], 5, 12, 1.5),
    ("a large table", &[1023, 3, 500, 3, 1200], 1024, 34, 0.25),
    ("an id far after its first", &FAR, 5, 36, -2.0),
    ("rows of several strips", &[1, 0, 1], 3, 1029, 1.0),
];

fn ids_in(ids: &[i32]) -> SampleIn {
    SampleIn::values(Ty::i32(&[ids.len()]), ids.iter().map(|&i| i as f64).collect())
}
