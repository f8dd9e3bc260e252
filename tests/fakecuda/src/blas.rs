//! cuBLASLt's names, for a program that opens this library as `libcublasLt.so` too: square products on the card, in float64,
//! put on a stream like a kernel. What is not asked for anywhere (strides, batches, epilogues, f16) is a finding.

use std::ffi::c_void;

use crate::abi;
use crate::driver::{Answer, Driver, Handle, Refusal, found};
use crate::exports::{exports, put};
use crate::kernels::Op;

/// CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF (cublas_api.h, library_types.h).
const SUMS_F32: u32 = 68;
const F32: u32 = 0;
const BF16: u32 = 14;
/// Attributes that are set: CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES (cublasLt.h).
const TRANSPOSED_A: u32 = 3;
const WORKSPACE: u32 = 1;

/// What the library makes.
pub enum Object {
    Library,
    Product { transposed_a: bool },
    Matrix(Matrix),
    Wish { workspace: u64 },
}

/// A matrix by columns, `pitch` elements from one to the next.
#[derive(Clone, Copy)]
pub struct Matrix {
    kind: u32,
    rows: u64,
    columns: u64,
    pitch: u64,
}

impl Matrix {
    fn size(self) -> u64 {
        if self.kind == F32 { 4 } else { 2 }
    }

    fn bytes(self) -> u64 {
        (self.pitch * (self.columns - 1) + self.rows) * self.size()
    }

    fn read(self, data: &[u8], row: u64, column: u64) -> f64 {
        let at = ((column * self.pitch + row) * self.size()) as usize;
        let bits = match self.kind {
            F32 => u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]),
            _ => u32::from(u16::from_le_bytes([data[at], data[at + 1]])) << 16,
        };
        f64::from(f32::from_bits(bits))
    }

    fn write(self, data: &mut [u8], row: u64, column: u64, value: f64) {
        let (at, bits) = (((column * self.pitch + row) * self.size()) as usize, (value as f32).to_bits());
        match self.kind {
            F32 => data[at..at + 4].copy_from_slice(&bits.to_le_bytes()),
            _ => data[at..at + 2].copy_from_slice(&(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()),
        }
    }
}

/// d = op(a)·b: addresses and shapes.
#[derive(Clone, Copy)]
pub struct Product {
    transposed_a: bool,
    a: (u64, Matrix),
    b: (u64, Matrix),
    d: (u64, Matrix),
    workspace: (u64, u64),
}

impl Driver {
    fn object(&self, handle: usize) -> Answer<&Object> {
        self.blas.get(handle).handle()
    }

    fn matrix(&self, handle: usize) -> Answer<Matrix> {
        match self.object(handle)? {
            Object::Matrix(matrix) => Ok(*matrix),
            _ => found(abi::INVALID_HANDLE, format!("{handle:#x} is no matrix")),
        }
    }

    pub fn multiply(&mut self, stream: usize, p: &Product) -> Answer {
        let (view, mark) = self.step(stream, &format!("a product on stream {stream:#x}"))?;
        let text = |text| Refusal::Found(abi::INVALID_VALUE, text);
        let mut operand = |(address, matrix): (u64, Matrix)| {
            self.touch(address, matrix.bytes(), false, &view, &mark)?;
            Ok(self.memory.fetch(address, matrix.bytes() as usize).map_err(text)?.to_vec())
        };
        let (a, b) = (operand(p.a)?, operand(p.b)?);
        let mut d = vec![0; p.d.1.bytes() as usize];
        for column in 0..p.d.1.columns {
            for row in 0..p.d.1.rows {
                let a_at = |k| if p.transposed_a { p.a.1.read(&a, k, row) } else { p.a.1.read(&a, row, k) };
                let sum = (0..p.b.1.rows).map(|k| a_at(k) * p.b.1.read(&b, k, column)).sum();
                p.d.1.write(&mut d, row, column, sum);
            }
        }
        self.touch(p.workspace.0, p.workspace.1, true, &view, &mark)?;
        self.touch(p.d.0, d.len() as u64, true, &view, &mark)?;
        self.memory.store(p.d.0, &d).map_err(text)?;
        self.now += p.d.1.columns * p.d.1.rows;
        Ok(())
    }
}

/// A value of the caller's.
fn value<T: Copy>(place: *const c_void, bytes: usize) -> Answer<T> {
    if place.is_null() || bytes != size_of::<T>() {
        return found(abi::INVALID_VALUE, format!("an attribute of {bytes} bytes, not {}", size_of::<T>()));
    }
    // SAFETY: a value of this size, by the contract of the calls that take one.
    Ok(unsafe { place.cast::<T>().read_unaligned() })
}

/// cublasLtMatmulHeuristicResult_t.
#[repr(C)]
pub struct Found {
    algorithm: [u64; 8],
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [u32; 4],
}

exports! {
    fn cublasLtCreate(d, handle: *mut usize) {
        d.current()?;
        put(handle, d.blas.add(Object::Library))
    }
    fn cublasLtDestroy(d, handle: usize) { d.blas.take(handle).handle().map(drop) }
    fn cublasLtMatmulDescCreate(d, handle: *mut usize, sums: u32, factors: u32) {
        if (sums, factors) != (SUMS_F32, F32) {
            return found(abi::INVALID_VALUE, format!("sums of kind {sums} and factors of kind {factors}"));
        }
        put(handle, d.blas.add(Object::Product { transposed_a: false }))
    }
    fn cublasLtMatmulDescSetAttribute(d, handle: usize, which: u32, from: *const c_void, bytes: usize) {
        match (d.blas.get_mut(handle).handle()?, which) {
            (Object::Product { transposed_a }, TRANSPOSED_A) => *transposed_a = value::<i32>(from, bytes)? == 1,
            _ => return found(abi::INVALID_VALUE, format!("attribute {which} of {handle:#x} is not modelled")),
        }
        Ok(())
    }
    fn cublasLtMatmulDescDestroy(d, handle: usize) { d.blas.take(handle).handle().map(drop) }
    fn cublasLtMatrixLayoutCreate(d, handle: *mut usize, kind: u32, rows: u64, columns: u64, pitch: i64) {
        if !(kind == F32 || kind == BF16) || rows == 0 || columns == 0 || pitch < rows as i64 {
            return found(abi::INVALID_VALUE, format!("{rows} by {columns} of kind {kind}, {pitch} apart"));
        }
        put(handle, d.blas.add(Object::Matrix(Matrix { kind, rows, columns, pitch: pitch as u64 })))
    }
    fn cublasLtMatrixLayoutDestroy(d, handle: usize) { d.blas.take(handle).handle().map(drop) }
    fn cublasLtMatmulPreferenceCreate(d, handle: *mut usize) { put(handle, d.blas.add(Object::Wish { workspace: 0 })) }
    fn cublasLtMatmulPreferenceSetAttribute(d, handle: usize, which: u32, from: *const c_void, bytes: usize) {
        match (d.blas.get_mut(handle).handle()?, which) {
            (Object::Wish { workspace }, WORKSPACE) => *workspace = value(from, bytes)?,
            _ => return found(abi::INVALID_VALUE, format!("attribute {which} of {handle:#x} is not modelled")),
        }
        Ok(())
    }
    fn cublasLtMatmulPreferenceDestroy(d, handle: usize) { d.blas.take(handle).handle().map(drop) }
    fn cublasLtMatmulAlgoGetHeuristic(
        d, _library: usize, _product: usize, _a: usize, _b: usize, _c: usize, _d: usize, wish: usize, _most: i32,
        to: *mut Found, count: *mut i32
    ) {
        let workspace = match d.object(wish)? {
            Object::Wish { workspace } => *workspace as usize,
            _ => return found(abi::INVALID_HANDLE, format!("{wish:#x} is no wish")),
        };
        put(to, Found { algorithm: [1; 8], workspace, state: 0, waves: 1.0, reserved: [0; 4] })?;
        put(count, 1)
    }
    fn cublasLtMatmul(
        d, library: usize, product: usize, one: *const f32, a: u64, a_is: usize, b: u64, b_is: usize, zero: *const f32,
        _c: u64, _c_is: usize, to: u64, to_is: usize, _algorithm: *const c_void, workspace: u64, bytes: usize,
        stream: usize
    ) {
        let (Object::Library, &Object::Product { transposed_a }) = (d.object(library)?, d.object(product)?) else {
            return found(abi::INVALID_HANDLE, "neither a library nor a product");
        };
        let (one, zero): (f32, f32) = (value(one.cast(), 4)?, value(zero.cast(), 4)?);
        let (a, b, to) = ((a, d.matrix(a_is)?), (b, d.matrix(b_is)?), (to, d.matrix(to_is)?));
        let (rows, inner) = if transposed_a { (a.1.columns, a.1.rows) } else { (a.1.rows, a.1.columns) };
        let fits = (rows, inner, b.1.columns) == (to.1.rows, b.1.rows, to.1.columns);
        let of_a_kind = a.1.kind == b.1.kind && a.1.kind == to.1.kind;
        if !fits || !of_a_kind || (one, zero) != (1.0, 0.0) {
            return found(abi::INVALID_VALUE, "matrices that do not fit each other, or other factors than 1 and 0");
        }
        let workspace = (workspace, bytes as u64);
        d.submit(stream, Op::Product(Product { transposed_a, a, b, d: to, workspace }))
    }
}
