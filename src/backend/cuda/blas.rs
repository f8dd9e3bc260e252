//! cuBLASLt, where the loader finds it: its product, beside which `trimtab bench` puts the engine's own. Nothing else uses it.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::time::Duration;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::{self, sys::CUstream};

use super::clock::Event;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Bytes that its kernels may take for themselves: what its documentation recommends for Hopper, the most of all cards.
pub const WORKSPACE: u64 = 32 << 20;

/// Whether the library is there, which is looked for once, and the driver tells the time.
pub fn usable() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: loading it runs its initialisers, which have no preconditions.
    Event::usable() && *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

fn fail(what: &str, e: result::CublasError) -> Error {
    Error::device(
        "cuda",
        format!("cuBLASLt, {what}: {e}"),
        "take libcublasLt off the loader's path to measure without it",
    )
}

/// What the library made, and wants back.
struct Held<T: Copy> {
    it: T,
    end: unsafe fn(T) -> std::result::Result<(), result::CublasError>,
}

impl<T: Copy> Drop for Held<T> {
    fn drop(&mut self) {
        // SAFETY: made by the library, and given back only here.
        let _ = unsafe { (self.end)(self.it) };
    }
}

/// How long y = x·wᵀ takes, [n, n] matrices of `dtype` at these addresses with sums in f32; None if it has no kernel for that.
///
/// Its matrices are stored by columns, so that what is x by rows is xᵀ to it: yᵀ = w·xᵀ, of which w alone is transposed.
///
/// # Safety
/// The addresses are of n² elements each and of [`WORKSPACE`] bytes, in the current context, and nothing but work on
/// `stream` uses them.
pub unsafe fn product(
    stream: CUstream,
    n: usize,
    dtype: DType,
    [y, x, w]: [u64; 3],
    workspace: u64,
) -> Result<Option<Duration>> {
    let kind = match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        _ => return Ok(None),
    };
    let handle = result::create_handle().map_err(|e| fail("starting", e))?;
    let handle = Held { it: handle, end: result::destroy_handle };
    let (sums, factors) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
    let product = result::create_matmul_desc(sums, factors).map_err(|e| fail("describing a product", e))?;
    let product = Held { it: product, end: result::destroy_matmul_desc };
    let transposed: i32 = 1; // CUBLAS_OP_T of cublas_api.h, which cudarc's part for cuBLASLt leaves out
    let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
    // SAFETY: the attribute is of this type, and the description lives.
    unsafe {
        result::set_matmul_desc_attribute(
            product.it,
            attribute,
            (&raw const transposed).cast(),
            size_of_val(&transposed),
        )
    }
    .map_err(|e| fail("describing a product", e))?;
    let matrix = result::create_matrix_layout(kind, n as u64, n as u64, n as i64);
    let matrix = Held { it: matrix.map_err(|e| fail("describing a matrix", e))?, end: result::destroy_matrix_layout };
    let wish = result::create_matmul_pref().map_err(|e| fail("making a wish", e))?;
    let wish = Held { it: wish, end: result::destroy_matmul_pref };
    let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    let bytes = WORKSPACE as usize;
    // SAFETY: the attribute is of this type, and the wish lives.
    unsafe { result::set_matmul_pref_attribute(wish.it, attribute, (&raw const bytes).cast(), size_of_val(&bytes)) }
        .map_err(|e| fail("making a wish", e))?;
    let m = matrix.it;
    // SAFETY: all of these live.
    let found = unsafe { result::get_matmul_algo_heuristic(handle.it, product.it, m, m, m, m, wish.it) };
    let found = match found {
        Err(e) if e.0 == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(None),
        found => found.map_err(|e| fail("choosing a kernel", e))?,
    };
    let (one, zero) = (1f32, 0f32);
    let (began, ended) = (Event::new()?, Event::new()?);
    began.record(stream)?;
    // SAFETY: the caller's promise of the addresses; the factors are read before this returns, as they are the host's.
    unsafe {
        result::matmul(
            handle.it,
            product.it,
            (&raw const one).cast(),
            (&raw const zero).cast(),
            w as *const c_void,
            m,
            x as *const c_void,
            m,
            y as *const c_void,
            m,
            y as *mut c_void,
            m,
            &found.algo,
            workspace as *mut c_void,
            bytes,
            stream.cast(),
        )
    }
    .map_err(|e| fail("multiplying", e))?;
    ended.record(stream)?;
    // SAFETY: the caller's stream.
    unsafe { driver::result::stream::synchronize(stream) }
        .map_err(|e| super::driver::fail("waiting for a product", e))?;
    ended.since(&began).map(Some)
}
