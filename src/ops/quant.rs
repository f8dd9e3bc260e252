//! Weights as they are stored: which parts of one a kernel binds, and the ops that make and undo 4-bit weights.

use std::ops::Range;

use crate::dtype::{DType, Nf4Layout, Ty};
use crate::ops::{Arg, OpDef};

pub static OPS: &[&OpDef] = &[];

/// A range of a weight's rows that fits into the bindings of one WGSL dispatch, as `shaders/common/weight.wgsl`
/// wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightPart {
    pub rows: Range<usize>,
    /// What to bind: `w`, and for NF4 `w_scales` behind it.
    pub args: Vec<Arg>,
    /// The fields `w_first`, `w_nested` and `w_offset` of the shader's parameters.
    pub params: [u32; 3],
}

/// The symbol that tells `shaders/common/weight.wgsl` how a weight is stored; None: no weight type.
pub fn weight_define(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("W_F32"),
        DType::BF16 => Some("W_BF16"),
        DType::F16 => Some("W_F16"),
        DType::Nf4 => Some("W_NF4"),
        DType::Nf4Dq => Some("W_NF4DQ"),
        DType::I32 | DType::U32 => None,
    }
}

/// Rows come in multiples of this many where a weight of `cols` columns is cut: each part then starts on a
/// 256-byte boundary of the elements (or NF4 codes), and, NF4's 512 elements being whole blocks, on a block.
pub fn row_step(dtype: DType, cols: usize) -> usize {
    let elements = match dtype {
        DType::F32 | DType::I32 | DType::U32 => 64,
        DType::BF16 | DType::F16 => 128,
        DType::Nf4 | DType::Nf4Dq => 512,
    };
    let (mut a, mut b) = (elements, cols.max(1));
    while b != 0 {
        (a, b) = (b, a % b);
    }
    elements / a
}

/// Cuts the weight `ty` (operand `input`) into ranges of at most `most` rows whose bindings stay below `max_binding`
/// bytes (and whose indices fit 32 bits). Linear layers, the loss and the embedding share this.
pub fn weight_parts(input: usize, ty: &Ty, max_binding: u64, most: usize) -> Vec<WeightPart> {
    let (rows, cols) = (ty.rows(), ty.cols());
    let limit = max_binding.min(1 << 31) / crate::dtype::ALIGN as u64 * crate::dtype::ALIGN as u64;
    let bytes = |n: usize| match ty.dtype {
        // Whole words: the gap up to the next part of the layout is there to be bound.
        DType::Nf4 | DType::Nf4Dq => n.div_ceil(2).next_multiple_of(4),
        d => d.bytes(n),
    };
    let step = row_step(ty.dtype, cols);
    let fits = (limit as usize / bytes(cols * step).max(1)).max(1) * step;
    // An NF4 part may have 2^32 elements in 2^31 bytes: half of that is as far as 32-bit indices are safe.
    let fits = if ty.dtype.is_quantized() { fits.min(((1 << 31) / (cols * step).max(1)).max(1) * step) } else { fits };
    let len = fits.min((most / step).max(1) * step);
    let mut parts = Vec::new();
    for start in (0..rows).step_by(len) {
        let end = (start + len).min(rows);
        let range = bytes(start * cols) as u64..bytes(end * cols) as u64;
        let (mut args, mut params) = (vec![Arg::InPart(input, range)], [0; 3]);
        if ty.dtype.is_quantized() {
            let l = Nf4Layout::new(ty.len(), ty.dtype == DType::Nf4Dq);
            args.push(Arg::InPart(input, l.absmax.start as u64..l.bytes as u64));
            let word = |byte: usize| ((byte - l.absmax.start) / 4) as u32;
            params = [(start * cols / Nf4Layout::BLOCK) as u32, word(l.nested.start), word(l.offset.start)];
        }
        parts.push(WeightPart { rows: start..end, args, params });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_rows_and_start_on_boundaries() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::Nf4, DType::Nf4Dq] {
            for (rows, cols, limit) in
                [(1, 1, 256), (700, 3, 1024), (512, 64, 4096), (1000, 96, 16 << 10), (49152, 576, 128 << 20)]
            {
                let ty = Ty::new(dtype, &[rows, cols]);
                let parts = weight_parts(0, &ty, limit, usize::MAX);
                let mut next = 0;
                for part in &parts {
                    assert_eq!(part.rows.start, next);
                    next = part.rows.end;
                    let Arg::InPart(0, range) = &part.args[0] else { panic!("{part:?}") };
                    assert_eq!(range.start % 256, 0, "{ty} {part:?}");
                    assert!(
                        part.rows.len() == row_step(dtype, cols) || range.end - range.start <= limit,
                        "{ty} {part:?}"
                    );
                    if dtype.is_quantized() {
                        assert_eq!(part.rows.start * cols % 64, 0);
                        assert_eq!(part.params[0] as usize, part.rows.start * cols / 64);
                    }
                }
                assert_eq!(next, rows);
            }
        }
        // The control: a limit below one step of rows cannot be kept, and the part says so by its length.
        let ty = Ty::f32(&[64, 3]);
        assert_eq!(weight_parts(0, &ty, 256, usize::MAX)[0].rows, 0..64);
    }
}
