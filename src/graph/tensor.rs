//! Float64 tensors, on which the definitions are written, and the samples that tests and benches feed to every kernel.

use super::attr::Attr;
use crate::dtype::Ty;

/// A dense float64 tensor. Integers are held exactly; quantized operands arrive decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements, as many as `shape` has.
    pub fn new(shape: &[usize], data: Vec<f64>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor { shape: shape.to_vec(), data }
    }
    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Tensor {
        Tensor::new(shape, vec![0.0; shape.iter().product()])
    }
    /// One element, of shape `[1]`: how ops return losses and norms.
    pub fn scalar(x: f64) -> Tensor {
        Tensor::new(&[1], vec![x])
    }
    /// Rows of a matrix: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }
    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }
    /// The elements of row `r`, [`Tensor::cols`] of them.
    pub fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.cols()..(r + 1) * self.cols()]
    }
    /// The same, to write.
    pub fn row_mut(&mut self, r: usize) -> &mut [f64] {
        let c = self.cols();
        &mut self.data[r * c..(r + 1) * c]
    }
    /// Element (r, c) of a matrix.
    pub fn at(&self, r: usize, c: usize) -> f64 {
        self.data[r * self.cols() + c]
    }
}

/// Operands and attributes to run an op on.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What is special about it, for messages.
    pub name: String,
    /// The op's attributes.
    pub attr: Attr,
    /// The operands, in the op's order.
    pub ins: Vec<SampleIn>,
}

/// An operand of a sample: its type, and how its elements are made.
#[derive(Clone, Debug)]
pub struct SampleIn {
    /// Element type and shape.
    pub ty: Ty,
    /// How its elements are made.
    pub fill: Fill,
}

/// How the elements of a sample's operand are made.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Normal with this standard deviation; quantized types hold such values, encoded.
    Normal(f64),
    /// Uniform in [lo, hi).
    Uniform(f64, f64),
    /// All the same.
    Constant(f64),
    /// Just these.
    Values(Vec<f64>),
    /// The named output of the op's own forward definition, run on the earlier operands: the operands that a
    /// backward op gets from its forward op (`lse`, `rstd`, `out`).
    Derived(fn(&Attr, &[Tensor]) -> Tensor),
}

impl SampleIn {
    /// An operand of standard normal elements.
    pub fn normal(ty: Ty) -> SampleIn {
        SampleIn { ty, fill: Fill::Normal(1.0) }
    }
    /// An f32 operand of standard normal elements.
    pub fn f32(shape: &[usize]) -> SampleIn {
        SampleIn::normal(Ty::f32(shape))
    }
    /// An operand whose elements are all `value`.
    pub fn constant(ty: Ty, value: f64) -> SampleIn {
        SampleIn { ty, fill: Fill::Constant(value) }
    }
    /// `n` indices below `below`, scattered, and different if there are as many.
    pub fn indices(n: usize, below: usize) -> SampleIn {
        // A prime: its multiples repeat only after all of `below`, unless that is a multiple of it.
        SampleIn::values(Ty::i32(&[n]), (0..n).map(|i| (i * 7919 % below.max(1)) as f64).collect())
    }
    /// The indices from 0 to before `n`.
    pub fn positions(n: usize) -> SampleIn {
        SampleIn::values(Ty::i32(&[n]), (0..n).map(|i| i as f64).collect())
    }
    /// An operand of these elements.
    pub fn values(ty: Ty, values: Vec<f64>) -> SampleIn {
        SampleIn { ty, fill: Fill::Values(values) }
    }
    /// An operand that `f` computes from the attributes and the operands before it.
    pub fn derived(ty: Ty, f: fn(&Attr, &[Tensor]) -> Tensor) -> SampleIn {
        SampleIn { ty, fill: Fill::Derived(f) }
    }
    /// An operand of elements uniform in [lo, hi).
    pub fn uniform(ty: Ty, lo: f64, hi: f64) -> SampleIn {
        SampleIn { ty, fill: Fill::Uniform(lo, hi) }
    }
}

impl Sample {
    /// A sample of these operands; `name` says what is special about it.
    pub fn new(name: impl Into<String>, attr: Attr, ins: Vec<SampleIn>) -> Sample {
        Sample { name: name.into(), attr, ins }
    }
}
