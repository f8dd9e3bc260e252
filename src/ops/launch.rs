//! Geometry that WGSL lowerings share: long grids over two axes, long operands over several bindings.

use std::ops::Range;

use crate::backend::Caps;
use crate::dtype::ALIGN;

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
