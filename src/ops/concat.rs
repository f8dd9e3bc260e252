//! Rows of one matrix after those of another, and rows taken out again: how virtual tokens come before those of a text.

use std::ops::Range;

use crate::cpu::act::Act;
use crate::cpu::par;
use crate::dtype::{ALIGN, Ty};
use crate::error::Result;
use crate::graph::{Graph, Val};
use crate::ops::launch::{self, bytes, grid, words};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, CudaLaunch, Grad, HostCall, Lower, OpDef, Rows, Sample, SampleIn, Tensor,
    WgslDispatch, check,
};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&CONCAT_ROWS, &SLICE_ROWS];

/// `concat_rows` [a F32[A,D], b F32[B,D]] → F32[A+B,D]: the rows of a, then those of b.
pub static CONCAT_ROWS: OpDef = OpDef {
    name: "concat_rows",
    infer: |attr, ins| match (attr, ins) {
        (Attr::None, [a, b]) => {
            let ((rows, d), (more, _)) = (check::matrix("a", a)?, check::matrix("b", b)?);
            check::float("a", a)?;
            check::is("b", b, &Ty::f32(&[more, d]))?;
            Ok(vec![Ty::f32(&[rows + more, d])])
        }
        _ => Err(check::refuse("a, b", attr, ins)),
    },
    reference: |_, ins| {
        let data = ins[0].data.iter().chain(&ins[1].data).copied().collect();
        vec![Tensor::new(&[ins[0].rows() + ins[1].rows(), ins[0].cols()], data)]
    },
    grad: Grad::Rule(|g, node, grads, wants| {
        let Some(dy) = grads[0] else { return Ok(vec![None, None]) };
        let (a, b) = (g.ty(node.ins[0]).rows(), g.ty(node.ins[1]).rows());
        let da = if wants[0] { Some(g.slice_rows(dy, 0, a)?) } else { None };
        let db = if wants[1] { Some(g.slice_rows(dy, a, b)?) } else { None };
        Ok(vec![da, db])
    }),
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: by_act!(host_concat),
    narrow: true,
    wgsl: |l| {
        let first = l.ins[0].len();
        Ok([wgsl_copy(l, 0..first, 0, 0), wgsl_copy(l, first..l.outs[0].len(), 1, 0)].concat())
    },
    cuda: |l| Ok(vec![cuda(l, "concat_rows", vec![Arg::In(0), Arg::In(1)], l.ins[0].len())]),
    acts: |_| Acts { ins: &[0, 1], outs: &[0] },
    samples: || {
        let sample = |(name, a, b, d)| {
            let ins = vec![SampleIn::normal(Ty::f32(&[a, d])), SampleIn::normal(Ty::f32(&[b, d]))];
            Sample::new(name, Attr::None, ins)
        };
        SHAPES.into_iter().map(sample).collect()
    },
    cases: |s| {
        let ins = vec![SampleIn::f32(&[s.few, s.hidden]), SampleIn::f32(&[s.tokens, s.hidden])];
        vec![Case::new("virtual tokens", Attr::None, ins)]
    },
    ..OpDef::COMPUTE
};

/// `slice_rows` [x F32[R,D]] → F32[count,D]: the rows of x from `start` on. The gradient of `concat_rows`; it has none.
pub static SLICE_ROWS: OpDef = OpDef {
    name: "slice_rows",
    infer: |attr, ins| match (attr, ins) {
        (Attr::Rows(rows), [x]) => {
            let (all, d) = check::matrix("x", x)?;
            check::float("x", x)?;
            match rows.start.checked_add(rows.count) {
                Some(end) if end <= all => Ok(vec![Ty::f32(&[rows.count, d])]),
                _ => Err(format!("x is {x}, expected {} rows from row {} on", rows.count, rows.start)),
            }
        }
        _ => Err(check::refuse("x and Rows", attr, ins)),
    },
    reference: |attr, ins| {
        let (start, len, d) = (start(attr), count(attr), ins[0].cols());
        vec![Tensor::new(&[len, d], ins[0].data[start * d..(start + len) * d].to_vec())]
    },
    grad: Grad::Missing,
    cost: |_, _, outs| Cost { flops: outs[0].len() as u64, terms: 1 },
    host: by_act!(host_slice),
    narrow: true,
    wgsl: |l| Ok(wgsl_copy(l, 0..l.outs[0].len(), 0, start(l.attr) * l.ins[0].cols())),
    cuda: |l| Ok(vec![cuda(l, "slice_rows", vec![Arg::In(0)], start(l.attr) * l.ins[0].cols())]),
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples: || {
        let sample = |(name, a, b, d): (&str, usize, usize, usize)| {
            [(0, a), (a, b), (a / 2, b)].map(|(start, count)| {
                let x = SampleIn::normal(Ty::f32(&[a + b, d]));
                Sample::new(format!("{name}, {count} from {start}"), Attr::Rows(Rows { start, count }), vec![x])
            })
        };
        SHAPES.into_iter().flat_map(sample).collect()
    },
    cases: |s| {
        let rows = Attr::Rows(Rows { start: s.few, count: s.tokens });
        vec![Case::new("after virtual tokens", rows, vec![SampleIn::f32(&[s.few + s.tokens, s.hidden])])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// The rows of `a`, then those of `b`.
    pub fn concat_rows(&mut self, a: Val, b: Val) -> Result<Val> {
        Ok(self.node(&CONCAT_ROWS, Attr::None, &[a, b])?[0])
    }

    /// `count` rows of `x` from `start` on. It has no gradient: a gather by [`Graph::embed`] has one.
    pub fn slice_rows(&mut self, x: Val, start: usize, count: usize) -> Result<Val> {
        Ok(self.node(&SLICE_ROWS, Attr::Rows(Rows { start, count }), &[x])?[0])
    }
}

fn start(attr: &Attr) -> usize {
    if let Attr::Rows(rows) = attr { rows.start } else { 0 }
}

fn count(attr: &Attr) -> usize {
    if let Attr::Rows(rows) = attr { rows.count } else { 0 }
}

fn host_concat<A: Act>(call: &HostCall) {
    let (first, second) = call.output::<A>(0)[..call.outs[0].len()].split_at_mut(call.ins[0].len());
    host_copy(first, call.input::<A>(0));
    host_copy(second, call.input::<A>(1));
}

fn host_slice<A: Act>(call: &HostCall) {
    let y = &mut call.output::<A>(0)[..call.outs[0].len()];
    host_copy(y, &call.input::<A>(0)[start(call.attr) * call.ins[0].cols()..]);
}

fn host_copy<A: Act>(to: &mut [A], from: &[A]) {
    const GRAIN: usize = 1 << 16;
    par::chunks(to, GRAIN, |i, to| to.copy_from_slice(&from[i * GRAIN..][..to.len()]));
}

/// Dispatches that make elements `to` of output 0 those of input `i` from `from` on. What is bound begins on a boundary,
/// so a range may be bound from some elements before it on.
fn wgsl_copy(l: &Lower, to: Range<usize>, i: usize, from: usize) -> Vec<WgslDispatch> {
    const WG: usize = 64;
    const EACH: usize = 4;
    const BOUNDARY: usize = ALIGN / 4;
    let most = (l.caps.max_binding.min(1 << 31) as usize / ALIGN).saturating_sub(1).max(1) * BOUNDARY;
    let bound = |range: &Range<usize>| {
        let begin = range.start / BOUNDARY * BOUNDARY;
        ((range.start - begin) as u32, bytes(&(begin..range.end), 1))
    };
    let dispatch = |start: usize| {
        let n = most.min(to.end - start);
        let (y, out) = bound(&(start..start + n));
        let (x, part) = bound(&(start - to.start + from..start - to.start + from + n));
        WgslDispatch {
            shader: "concat",
            defines: Vec::new(),
            entry: "copy",
            constants: Vec::new(),
            grid: grid(n.div_ceil(WG * EACH), l.caps),
            args: vec![Arg::OutPart(0, out), Arg::InPart(i, part)],
            params: vec![n as u32, y, x],
            flops: n as u64,
        }
    };
    to.clone().step_by(most).map(dispatch).collect()
}

/// `at`: where the one ends and the other begins, in elements.
fn cuda(l: &Lower, entry: &'static str, from: Vec<Arg>, at: usize) -> CudaLaunch {
    const BLOCK: usize = 256;
    let (y, n) = (&l.outs[0], l.outs[0].len());
    CudaLaunch {
        file: "concat",
        defines: vec![launch::act(y)],
        entry,
        grid: grid(n.div_ceil(BLOCK * launch::lanes(y)), l.caps),
        block: BLOCK as u32,
        shared: 0,
        args: [Arg::Out(0)].into_iter().chain(from).collect(),
        params: [words(n), words(at)].concat(),
        maps: Vec::new(),
        flops: n as u64,
    }
}

/// Rows of a and of b, columns.
const SHAPES: [(&str, usize, usize, usize); 7] = [
    ("one element each", 1, 1, 1),
    ("odd", 3, 7, 5),
    ("more before than after", 17, 2, 33),
    ("aligned", 8, 25, 64),
    ("aligned by element", 5, 70, 24),
    ("a long text", 20, 520, 35),
    ("more than a binding before", 500, 40, 37),
];
