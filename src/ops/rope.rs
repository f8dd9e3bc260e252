//! Rotary position embeddings (Su et al. 2021).
//!
//! Each head's first `2h` features are rotated in pairs (i, i + h), by the convention of transformers'
//! `rotate_half`: `y₁ = x₁·cos − x₂·sin`, `y₂ = x₂·cos + x₁·sin`. Features after them pass (partial rotary).

mod cuda;
mod table;

use crate::cpu::act::Act;
use crate::cpu::{math, par};
use crate::dtype::{DType, Ty};
use crate::error::Result;
use crate::graph::{Graph, Node, Val};
use crate::ops::widen::by_act;
use crate::ops::{
    Acts, Arg, Attr, Case, Cost, Grad, HostCall, Lower, OpDef, Rope, Sample, SampleIn, Tensor, WgslDispatch, check,
    launch,
};

pub use table::{RopeScaling, RopeSpec, Yarn, rope_rows, rope_table};

/// The family's rows of the op table.
pub static OPS: &[&OpDef] = &[&ROPE];

/// `rope` [x F32[T, heads·head_dim], table F32[P, 2h], positions I32[T]] → y F32[T, heads·head_dim].
///
/// Row p of the table holds the h cosines of position p, then the h sines; 2h ≤ head_dim. Positions outside the
/// table take its nearest row.
pub static ROPE: OpDef = OpDef {
    name: "rope",
    infer,
    reference,
    grad: Grad::Rule(rule),
    batched: true,
    in_place: &[(0, 0)],
    indexes: |ins| Some((2, ins[1].rows())),
    cost: |_, ins, _| Cost { flops: 3 * ins[0].len() as u64, terms: 2 },
    host: by_act!(host),
    narrow: true,
    wgsl_half: |attr, ins, _| rope(attr).head_dim.is_multiple_of(4) && ins[1].cols().is_multiple_of(8),
    wgsl,
    cuda: cuda::launches,
    acts: |_| Acts { ins: &[0], outs: &[0] },
    samples,
    cases: |s| {
        let rotated = s.head_dim / 2 * 2;
        let table = rope_table(&RopeSpec::new(10_000.0, rotated, s.tokens), s.tokens).unwrap_or_default();
        let table = SampleIn::values(Ty::f32(&[s.tokens, rotated]), table.iter().map(|&v| v as f64).collect());
        let ins = vec![SampleIn::f32(&[s.tokens, s.queries()]), table, SampleIn::positions(s.tokens)];
        let attr = Rope { heads: s.heads, head_dim: s.head_dim, inverse: false };
        vec![Case::new("queries", Attr::Rope(attr), ins).in_place(&[(0, 0)])]
    },
    ..OpDef::COMPUTE
};

impl Graph {
    /// Rotates each head of `x` by the angles of its token's position; `table` is from [`rope_table`].
    pub fn rope(&mut self, x: Val, table: Val, positions: Val, heads: usize, head_dim: usize) -> Result<Val> {
        Ok(self.node(&ROPE, Attr::Rope(Rope { heads, head_dim, inverse: false }), &[x, table, positions])?[0])
    }
}

fn rope(attr: &Attr) -> Rope {
    match attr {
        Attr::Rope(r) => *r,
        _ => unreachable!("infer refused it"),
    }
}

fn infer(attr: &Attr, ins: &[Ty]) -> Result<Vec<Ty>, String> {
    let (Attr::Rope(a), [x, table, positions]) = (attr, ins) else {
        return Err(check::refuse("x, table, positions and Rope", attr, ins));
    };
    if x.dtype != DType::F32 || x.shape.len() != 2 || x.cols() != a.heads * a.head_dim || x.cols() == 0 {
        return Err(format!("x is {x}, expected f32[tokens, {} heads of {}]", a.heads, a.head_dim));
    }
    let rotated = table.cols();
    if table.dtype != DType::F32 || table.shape.len() != 2 || table.is_empty() {
        return Err(format!("table is {table}, expected f32[positions, rotated features]"));
    }
    if rotated % 2 != 0 || rotated > a.head_dim {
        return Err(format!("{rotated} features are rotated, expected an even number up to {}", a.head_dim));
    }
    if *positions != Ty::i32(&[x.rows()]) {
        return Err(format!("positions are {positions}, expected {}", Ty::i32(&[x.rows()])));
    }
    Ok(vec![x.clone()])
}

fn reference(attr: &Attr, ins: &[Tensor]) -> Vec<Tensor> {
    let Rope { heads, head_dim, inverse } = rope(attr);
    let (x, table, positions) = (&ins[0], &ins[1], &ins[2]);
    let half = table.cols() / 2;
    let mut y = x.clone();
    for t in 0..x.rows() {
        let angles = table.row(positions.data[t].clamp(0.0, table.rows() as f64 - 1.0) as usize);
        for h in 0..heads {
            for i in 0..half {
                let (first, second) = (h * head_dim + i, h * head_dim + half + i);
                let (cos, sin) = (angles[i], if inverse { -angles[half + i] } else { angles[half + i] });
                y.row_mut(t)[first] = x.at(t, first) * cos - x.at(t, second) * sin;
                y.row_mut(t)[second] = x.at(t, second) * cos + x.at(t, first) * sin;
            }
        }
    }
    vec![y]
}

/// The transpose of a rotation is the rotation by the negative angle.
fn rule(g: &mut Graph, node: &Node, grads: &[Option<Val>], wants: &[bool]) -> Result<Vec<Option<Val>>> {
    let a = rope(&node.attr);
    let dx = match grads[0] {
        Some(dy) if wants[0] => {
            let attr = Attr::Rope(Rope { inverse: !a.inverse, ..a });
            Some(g.node(&ROPE, attr, &[dy, node.ins[1], node.ins[2]])?[0])
        }
        _ => None,
    };
    Ok(vec![dx, None, None])
}

fn host<A: Act>(call: &HostCall) {
    let Rope { head_dim, inverse, .. } = rope(call.attr);
    let (tokens, cols) = (call.ins[0].rows(), call.ins[0].cols());
    let (table, positions) = (call.input::<f32>(1), call.input::<i32>(2));
    let (last, rotated) = (call.ins[1].rows() as i32 - 1, call.ins[1].cols());
    let half = rotated / 2;
    let sign = if inverse { -1.0 } else { 1.0 };
    let (x, y) = (call.input_ptr::<A>(0), call.output_ptr::<A>(0));
    par::ranges(tokens, (1 << 14) / cols + 1, |range| {
        math::vectorized!({
            for t in range {
                // SAFETY: row t of operands of one shape; `copy` allows x and y to be the same memory, x is not
                // read after it, and tasks have disjoint rows.
                let row = unsafe {
                    std::ptr::copy(x.add(t * cols), y.add(t * cols), cols);
                    std::slice::from_raw_parts_mut(y.add(t * cols), cols)
                };
                let angles = &table[positions[t].clamp(0, last) as usize * rotated..][..rotated];
                let (cos, sin) = angles.split_at(half);
                for head in row.chunks_exact_mut(head_dim) {
                    let (first, second) = head[..rotated].split_at_mut(half);
                    turn(first, second, cos, sin, sign);
                }
            }
        });
    });
}

/// Rotates the pairs of a head's halves: a' = a·cos − b·sin, b' = b·cos + a·sin.
#[inline(always)]
fn turn<A: Act>(first: &mut [A], second: &mut [A], cos: &[f32], sin: &[f32], sign: f32) {
    /// A vector's worth, of a length that the compiler knows: a head has few of them.
    const LANES: usize = 16;
    #[inline(always)]
    fn pairs<A: Act>(first: &mut [A], second: &mut [A], cos: &[f32], sin: &[f32], sign: f32) {
        for i in 0..first.len() {
            let (a, b, s) = (first[i].widen(), second[i].widen(), sign * sin[i]);
            first[i] = A::round(a * cos[i] - b * s);
            second[i] = A::round(b * cos[i] + a * s);
        }
    }
    let (first, first_rest) = first.as_chunks_mut::<LANES>();
    let (second, second_rest) = second.as_chunks_mut::<LANES>();
    let ((cos, cos_rest), (sin, sin_rest)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        pairs(first, second, cos, sin, sign);
    }
    pairs(first_rest, second_rest, cos_rest, sin_rest, sign);
}

fn wgsl(l: &Lower) -> Result<Vec<WgslDispatch>> {
    const WG: usize = 64;
    let Rope { heads, head_dim, inverse } = rope(l.attr);
    let (cols, half, dtype) = (l.ins[0].cols(), l.ins[1].cols() / 2, l.ins[0].dtype);
    let unit = launch::unit(dtype);
    let dispatch = |range: std::ops::Range<usize>| {
        let part = launch::bytes_of(dtype, &range, cols);
        let (mut defines, mut args) = (vec![], vec![Arg::OutPart(0, part.clone())]);
        match l.shared[0] {
            Some(_) => defines.push("INPLACE"),
            None => args.push(Arg::InPart(0, part)),
        }
        defines.extend(launch::half(dtype));
        args.extend([Arg::In(1), Arg::In(2)]);
        let sign = if inverse { -1.0f32 } else { 1.0 };
        let words = [range.len(), range.start, heads, head_dim / unit, half / unit, l.ins[1].rows()];
        WgslDispatch {
            shader: "rope",
            defines,
            entry: "rope",
            constants: vec![("WG", WG as f64)],
            grid: launch::grid((range.len() * heads * (head_dim - half) / unit).div_ceil(WG), l.caps),
            args,
            params: words.into_iter().map(|w| w as u32).chain([sign.to_bits()]).collect(),
            flops: 3 * (range.len() * cols) as u64,
        }
    };
    Ok(launch::rows_of(dtype, l.ins[0].rows(), cols, l.caps).into_iter().map(dispatch).collect())
}

fn samples() -> Vec<Sample> {
    // Name, tokens, heads, head_dim, rotated features, positions in the table, inverse.
    let cases = [
        ("one token", 1, 1, 2, 2, 1, false),
        ("ragged", 7, 3, 6, 6, 9, false),
        ("backward", 17, 2, 64, 64, 33, true),
        ("partial", 33, 2, 10, 4, 17, false),
        ("partial, aligned", 5, 3, 48, 32, 5, true),
        ("more than small limits bind", 140, 2, 64, 64, 99, false),
        ("positions beyond the table", 9, 1, 8, 8, 5, false),
    ];
    let sample = |(name, t, heads, head_dim, rotated, rows, inverse): (_, usize, _, _, usize, usize, _)| {
        let table = rope_table(&RopeSpec::new(100.0, rotated, rows), rows).unwrap_or_default();
        // Two sequences, the first of ⌈2t/3⌉ tokens.
        let first = (2 * t).div_ceil(3);
        let positions = (0..t).map(|i| if i < first { i } else { i - first } as f64).collect();
        Sample::new(
            name,
            Attr::Rope(Rope { heads, head_dim, inverse }),
            vec![
                SampleIn::normal(Ty::f32(&[t, heads * head_dim])),
                SampleIn::values(Ty::f32(&[rows, rotated]), table.iter().map(|&v| v as f64).collect()),
                SampleIn::values(Ty::i32(&[t]), positions),
            ],
        )
    };
    cases.into_iter().map(sample).collect()
}
