//! Tensor maps: how the driver encodes a matrix for tensor copies.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::driver::fail;
use crate::error::Result;
use crate::graph::op::MatrixMap;

/// An encoded map, where the driver wants it.
#[repr(C, align(64))]
pub struct Encoded(pub sys::CUtensorMap);

/// The map of a matrix that begins at a device address.
pub fn encode(map: &MatrixMap, address: u64, what: &str) -> Result<Encoded> {
    let mut encoded = Encoded(sys::CUtensorMap { opaque: [0; 16] });
    let size = [u64::from(map.cols), u64::from(map.rows)];
    let stride = [2 * u64::from(map.ld)];
    let (tile, every) = ([MatrixMap::WIDTH, map.height], [1, 1]);
    // SAFETY: the driver reads arrays of the rank's length (of one less for strides) and writes the map, which is aligned; it
    // does not touch the matrix.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded.0,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address as *mut c_void,
            size.as_ptr(),
            stride.as_ptr(),
            tile.as_ptr(),
            every.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    code.result().map_err(|e| fail(&format!("{what}: a tensor map of {map:?}"), e))?;
    Ok(encoded)
}
