//! Operands of the program's kernels for sm_90a, and their compilation.

use ptxsim::tensor::{Swizzle, TensorMap};
use ptxsim::values::f32_to_bf16;
use ptxsim::{Memory, Module, Param};

/// Quarters from -2 to 2: products and sums of some hundreds are exact in f32.
fn element(row: usize, column: usize) -> f32 {
    ((row * 5 + column * 3) % 17) as f32 / 4.0 - 2.0
}

pub struct Matrix {
    rows: usize,
    pub cols: usize,
    pub values: Vec<f32>,
    pub address: u64,
}

impl Matrix {
    pub fn new(memory: &mut Memory, name: &str, [rows, cols]: [usize; 2], shift: usize, bf16: bool) -> Matrix {
        let values: Vec<f32> = (0..rows * cols).map(|i| element(i / cols + shift, i % cols)).collect();
        let halves = || values.iter().flat_map(|v| f32_to_bf16(*v).to_le_bytes()).collect();
        let bytes = if bf16 { halves() } else { super::bytes(&values) };
        let address = memory.alloc(name, &bytes);
        memory.read_only(address);
        Matrix { rows, cols, values, address }
    }

    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.cols + column]
    }

    /// Its map, of boxes of 64 columns and so many rows.
    pub fn map(&self, height: u32) -> Param {
        let (size, stride) = (vec![self.cols as u64, self.rows as u64], vec![2 * self.cols as u64]);
        let (base, tile) = (self.address, vec![64, height]);
        Param::Bytes(TensorMap { base, size, stride, tile, element: 2, swizzle: Swizzle::B128 }.bytes())
    }

    pub fn pointer(&self) -> Param {
        Param::U64(self.address)
    }
}

/// A file of `kernels/`.
pub fn source(name: &str) -> String {
    let path = format!("{}/../../kernels/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The same with the text of one file of `kernels/common` that it includes, so that a bug can be planted in either.
pub fn with_header(name: &str, header: &str) -> String {
    source(name).replace(&format!("#include \"common/{header}\""), &source(&format!("common/{header}")))
}

/// Compiles a kernel of the program for sm_90a, with activations in bf16; `None` without NVRTC.
pub fn compile(name: &str, text: &str, defines: &[&str]) -> Option<Module> {
    let library = super::nvrtc()?;
    let folder = format!("{}/../../kernels", env!("CARGO_MANIFEST_DIR"));
    let (kernels, headers) = (format!("-I{folder}"), format!("-I{folder}/common"));
    let options = [&["-arch=compute_90a", "-DACT=1", &kernels, &headers], defines].concat();
    Some(Module::parse(&super::ptx(&library, name, text, &options)).unwrap())
}
