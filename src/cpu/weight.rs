//! A stored weight as an operand of the matrix product, whatever its format.

use half::{bf16, f16};

use super::gemm::{Absmax, Mat, Store};
use crate::dtype::{DType, Nf4Layout, Ty};
use crate::quant::nf4::dynamic_map;

/// The weight [rows, cols] that `bytes` hold.
pub fn weight<'a>(bytes: &'a [u8], ty: &Ty) -> Mat<'a> {
    let n = ty.len();
    let store = match ty.dtype {
        DType::BF16 => Store::Bf16(bytemuck::cast_slice::<u8, bf16>(&bytes[..2 * n])),
        DType::F16 => Store::F16(bytemuck::cast_slice::<u8, f16>(&bytes[..2 * n])),
        DType::Nf4 | DType::Nf4Dq => {
            let double = ty.dtype == DType::Nf4Dq;
            let l = Nf4Layout::new(n, double);
            let absmax = if double {
                Absmax::Double {
                    codes: &bytes[l.absmax],
                    map: dynamic_map(),
                    nested: bytemuck::cast_slice(&bytes[l.nested]),
                    first: 0,
                    offset: bytemuck::pod_read_unaligned(&bytes[l.offset]),
                }
            } else {
                Absmax::F32(bytemuck::cast_slice(&bytes[l.absmax]))
            };
            Store::Nf4 { codes: &bytes[l.codes], absmax }
        }
        _ => Store::F32(bytemuck::cast_slice(bytes)),
    };
    Mat::row_major(store, ty.rows(), ty.cols())
}
