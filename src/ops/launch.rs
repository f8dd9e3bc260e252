//! What lowerings share: long grids over two axes, long operands over several bindings, the macros of CUDA kernels.

use std::ops::Range;

use crate::backend::Caps;
use crate::dtype::{ALIGN, DType, Nf4Layout, Ty};
use crate::ops::Arg;

/// `groups` workgroups over x and y; kernels find their number by `wg.y * num_wg.x + wg.x` and skip those beyond
/// the end.
pub fn grid(groups: usize, caps: &Caps) -> [u32; 3] {
    let most = (caps.max_groups as usize).clamp(1, 65535);
    let y = groups.div_ceil(most).max(1);
    [groups.div_ceil(y).max(1) as u32, y as u32, 1]
}

/// Cuts `len` elements of four bytes into ranges that can be bound.
pub fn flat(len: usize, caps: &Caps) -> Vec<Range<usize>> {
    rows(len, 1, caps)
}

/// Cuts `rows` rows of `cols` elements of four bytes into ranges that can be bound and start on a boundary.
pub fn rows(rows: usize, cols: usize, caps: &Caps) -> Vec<Range<usize>> {
    let step = super::quant::row_step(crate::dtype::DType::F32, cols);
    let limit = caps.max_binding.min(1 << 31) as usize / ALIGN * ALIGN;
    let len = (limit / (4 * cols * step).max(1)).max(1) * step;
    (0..rows).step_by(len).map(|start| start..(start + len).min(rows)).collect()
}

/// The bytes of a range of rows of `cols` elements of four bytes.
pub fn bytes(rows: &Range<usize>, cols: usize) -> Range<u64> {
    (4 * rows.start * cols) as u64..(4 * rows.end * cols) as u64
}

/// The macro that tells a CUDA kernel what activations are kept in (`common/types.cuh`).
pub fn act(x: &Ty) -> (&'static str, i64) {
    let code = match x.dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        _ => 0,
    };
    ("ACT", code)
}

/// The macro that tells a CUDA kernel how a weight is stored, and its four pointers (`common/weight.cuh`).
pub fn weight(input: usize, w: &Ty) -> ((&'static str, i64), [Arg; 4]) {
    let plain = [Arg::In(input), Arg::Absent, Arg::Absent, Arg::Absent];
    let nf4 = |double: bool| {
        let layout = Nf4Layout::new(w.len(), double);
        let part = |r: Range<usize>| match r.is_empty() {
            true => Arg::Absent,
            false => Arg::InPart(input, r.start as u64..r.end as u64),
        };
        [part(layout.codes), part(layout.absmax), part(layout.nested), part(layout.offset)]
    };
    match w.dtype {
        DType::BF16 => (("W", 1), plain),
        DType::F16 => (("W", 2), plain),
        DType::Nf4 => (("W", 3), nf4(false)),
        DType::Nf4Dq => (("W", 4), nf4(true)),
        _ => (("W", 0), plain),
    }
}
