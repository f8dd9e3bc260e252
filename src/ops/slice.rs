//! Columns taken out of a matrix: how the queries, keys and values of one fused linear layer come apart.

use std::ops::Range;

use crate::cpu::act::Act;
use crate::cpu::par;
use crate::dtype::Ty;
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::launch::{self, bytes, grid};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cols, Cost, CudaLaunch, Grad, HostCall, Lower, OpDef, Sample, SampleIn, Sizes, Tensor,
    WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&SLICE_COLS, &SLICE_COLS_DX];

/// `slice_cols` [x F32[T,D]] → F32[T,count]: `count` columns of x from `start` on.
pub static SLICE_COLS: OpDef = OpDef {
    name: "slice_cols",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Cols(c @ Cols { acc: false, .. }), [x]) => {
            let (rows, d) = check::matrix("x", x)?;
            check::float("x", x)?;
            inside(c)?;
            match d == c.of {
                true => Ok(vec![Ty::f32(&[rows, c.count])]),
                false => Err(format!("x is {x}, expected {} columns", c.of)),
            }
        }
        _ => Err(check::refuse("x and Cols", attr, ins)),
    },
    reference: |attr, ins| {
        let Cols { start, count, .. } = cols(attr);
        let data = (0..ins[0].rows()).flat_map(|t| ins[0].row(t)[start..start + count].to_vec()).collect();
        vec![Tensor::new(&[ins[0].rows(), count], data)]
    },
    grad: Grad::Rule(|g, node, grads, wants| match (grads[0], wants[0]) {
        (Some(dy), true) => Ok(vec![Some(g.node(&SLICE_COLS_DX, node.attr.clone(), &[dy])?[0])]),
        _ => Ok(vec![None]),
    }),
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: by_act!(host),
    narrow: true,
    wgsl: |l| {
        let c = cols(l.attr);
        let dispatch = |rows: Range<usize>| {
            let args = vec![Arg::OutPart(0, bytes(&rows, c.count)), Arg::InPart(0, bytes(&rows, c.of))];
            wgsl(l, vec!["SLICE_COLS"], "slice_cols", rows.len(), c.count, args)
        };
        Ok(rows(l, l.ins[0].rows()).into_iter().map(dispatch).collect())
    },
    cuda: |l| {
        let c = cols(l.attr);
        Ok(vec![cuda(l, "slice_cols", vec![Arg::Out(0), Arg::In(0)], 0..c.count)])
    },
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || samples(|t, c| (Attr::Cols(c), vec![SampleIn::normal(Ty::f32(&[t, c.of]))])),
    cases: |s| vec![Case::new("keys", case_attr(s, false), vec![SampleIn::f32(&[s.tokens, 3 * s.hidden])])],
    ..OpDef::COMPUTE
};

/// `slice_cols_dx` [dy F32[T,count], acc? F32[T,D]] → F32[T,D]: the columns of dy from `start` on, zeros elsewhere
/// (+ acc). Slices of one matrix add up in place, so each but the first touches its own columns only.
pub static SLICE_COLS_DX: OpDef = OpDef {
    name: "slice_cols_dx",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Cols(c), [dy, acc @ ..]) => {
            let (rows, _) = check::matrix("dy", dy)?;
            check::is("dy", dy, &Ty::f32(&[rows, c.count]))?;
            inside(c)?;
            let dx = Ty::f32(&[rows, c.of]);
            check::acc(c.acc, acc, &dx)?;
            Ok(vec![dx])
        }
        _ => Err(check::refuse("dy and Cols", attr, ins)),
    },
    reference: |attr, ins| {
        let Cols { start, of, acc, .. } = cols(attr);
        let mut dx = if acc { ins[1].clone() } else { Tensor::zeros(&[ins[0].rows(), of]) };
        for t in 0..ins[0].rows() {
            for (dx, dy) in dx.row_mut(t)[start..].iter_mut().zip(ins[0].row(t)) {
                *dx += dy;
            }
        }
        vec![dx]
    },
    grad: Grad::Missing,
    accumulates: true,
    in_place: &[(1, 0)],
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 2 },
    host: by_act!(host_dx),
    narrow: true,
    wgsl: |l| {
        let c = cols(l.attr);
        let shared = l.shared[0].is_some();
        let dispatch = |rows: Range<usize>| {
            let dx = bytes(&rows, c.of);
            let mut args = vec![Arg::OutPart(0, dx.clone()), Arg::InPart(0, bytes(&rows, c.count))];
            let (defines, width) = match (c.acc, shared) {
                (true, true) => (vec!["SLICE_COLS_DX", "INPLACE"], c.count),
                (true, false) => {
                    args.push(Arg::InPart(1, dx));
                    (vec!["SLICE_COLS_DX", "ACC"], c.of)
                }
                (false, _) => (vec!["SLICE_COLS_DX"], c.of),
            };
            wgsl(l, defines, "slice_cols_dx", rows.len(), width, args)
        };
        Ok(rows(l, l.ins[0].rows()).into_iter().map(dispatch).collect())
    },
    cuda: |l| {
        let c = cols(l.attr);
        let acc = if c.acc { Arg::In(1) } else { Arg::Absent };
        let all = if l.shared[0].is_some() { c.start..c.start + c.count } else { 0..c.of };
        Ok(vec![cuda(l, "slice_cols_dx", vec![Arg::Out(0), Arg::In(0), acc], all)])
    },
    acts: |_| Acts { ins: &[0, 1], outs: &[0] },
    samples: || {
        let with = |acc: bool| {
            samples(move |t, c| {
                let mut ins = vec![SampleIn::normal(Ty::f32(&[t, c.count]))];
                ins.extend(acc.then(|| SampleIn::normal(Ty::f32(&[t, c.of]))));
                (Attr::Cols(Cols { acc, ..c }), ins)
            })
        };
        [with(false), with(true)].concat()
    },
    cases: |s| {
        let ins = vec![SampleIn::f32(&[s.tokens, s.hidden]), SampleIn::f32(&[s.tokens, 3 * s.hidden])];
        vec![Case::new("keys", case_attr(s, true), ins).in_place(&[(1, 0)])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// `count` columns of `x` from `start` on.
    pub fn slice_cols(&mut self, x: Val, start: usize, count: usize) -> Result<Val> {
        let of = self.ty(x).cols();
        Ok(self.node(&SLICE_COLS, Attr::Cols(Cols { start, count, of, acc: false }), &[x])?[0])
    }
}

/// Rows that a task takes.
const GRAIN: usize = 64;

fn cols(attr: &Attr) -> Cols {
    match attr {
        Attr::Cols(c) => *c,
        _ => unreachable!("infer refused it"),
    }
}

fn inside(c: &Cols) -> Result<(), String> {
    match c.start.checked_add(c.count) {
        Some(end) if end <= c.of && c.count > 0 => Ok(()),
        _ => Err(format!("{} columns from {} on of {}", c.count, c.start, c.of)),
    }
}

fn host<A: Act>(call: &HostCall) {
    let Cols { start, count, of, .. } = cols(call.attr);
    let x = call.input::<A>(0);
    par::chunks(&mut call.output::<A>(0)[..call.outs[0].len()], GRAIN * count, |i, y| {
        for (y, x) in y.chunks_exact_mut(count).zip(x[i * GRAIN * of..].chunks_exact(of)) {
            y.copy_from_slice(&x[start..start + count]);
        }
    });
}

fn host_dx<A: Act>(call: &HostCall) {
    let Cols { start, count, of, acc } = cols(call.attr);
    let dy = call.input::<A>(0);
    let dx = if acc { call.accumulator(1, 0) } else { &mut call.output::<A>(0)[..call.outs[0].len()] };
    par::chunks(dx, GRAIN * of, |i, dx| {
        for (dx, dy) in dx.chunks_exact_mut(of).zip(dy[i * GRAIN * count..].chunks_exact(count)) {
            if !acc {
                dx.fill(A::zeroed());
            }
            dx[start..start + count].iter_mut().zip(dy).for_each(|(x, y)| *x = A::round(x.widen() + y.widen()));
        }
    });
}

/// Ranges of rows that begin on a boundary in the wide matrix and in the narrow one, and of which both can be bound.
fn rows(l: &Lower, all: usize) -> Vec<Range<usize>> {
    const STEP: usize = 64;
    let limit = l.caps.max_binding.min(1 << 31) as usize;
    let len = (limit / (4 * cols(l.attr).of * STEP)).max(1) * STEP;
    (0..all).step_by(len).map(|start| start..(start + len).min(all)).collect()
}

/// A dispatch over `width` elements of each of `rows` rows.
fn wgsl(
    l: &Lower,
    defines: Vec<&'static str>,
    entry: &'static str,
    rows: usize,
    width: usize,
    args: Vec<Arg>,
) -> WgslDispatch {
    const WG: usize = 64;
    let c = cols(l.attr);
    WgslDispatch {
        shader: "slice",
        defines,
        entry,
        constants: Vec::new(),
        grid: grid((rows * width).div_ceil(WG), l.caps),
        args,
        params: [rows * width, width, c.of, c.start, c.count].map(|w| w as u32).to_vec(),
        flops: (rows * width) as u64,
    }
}

/// A block a row, over `range` of its columns.
fn cuda(l: &Lower, entry: &'static str, args: Vec<Arg>, range: Range<usize>) -> CudaLaunch {
    let (c, rows, lanes) = (cols(l.attr), l.ins[0].rows(), launch::lanes(&l.ins[0]));
    let words = [rows, c.of, c.start, c.count, range.start, range.end];
    CudaLaunch {
        file: "slice",
        defines: vec![launch::act(&l.ins[0])],
        entry,
        grid: grid(rows, l.caps),
        block: range.len().div_ceil(lanes).next_multiple_of(32).clamp(32, 256) as u32,
        shared: 0,
        args,
        params: words.map(|w| w as u32).to_vec(),
        maps: Vec::new(),
        flops: (rows * range.len()) as u64,
    }
}

fn samples(make: impl Fn(usize, Cols) -> (Attr, Vec<SampleIn>)) -> Vec<Sample> {
    // Rows, the matrix's columns, the first of the slice, their number.
    const SHAPES: [(&str, usize, usize, usize, usize); 8] = [
        ("one element", 1, 1, 0, 1),
        ("the first columns", 7, 15, 0, 5),
        ("the middle ones", 7, 15, 5, 5),
        ("the last ones", 17, 33, 20, 13),
        ("aligned", 33, 96, 32, 32),
        ("aligned, narrow", 130, 24, 8, 8),
        ("wide", 3, 2100, 1024, 1030),
        ("more rows than small limits bind", 700, 60, 16, 20),
    ];
    let sample = |(name, t, of, start, count)| {
        let (attr, ins) = make(t, Cols { start, count, of, acc: false });
        let what = if matches!(attr, Attr::Cols(Cols { acc: true, .. })) { ", accumulating" } else { "" };
        Sample::new(format!("{name}{what}"), attr, ins)
    };
    SHAPES.into_iter().map(sample).collect()
}

/// The middle third: of queries, keys and values side by side, as GPT-2 has them, the keys.
fn case_attr(s: &Sizes, acc: bool) -> Attr {
    Attr::Cols(Cols { start: s.hidden, count: s.hidden, of: 3 * s.hidden, acc })
}
