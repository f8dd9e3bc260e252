//! What an op is told besides its operands, fixed when the graph is built.

use crate::dtype::DType;

/// The attributes of a node, one variant an op family.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    None,
    /// An optional last operand is added to the result (GEMM's beta = 1); the result may take its storage.
    Acc(bool),
    Embed {
        scale: f32,
    },
    EmbedGrad(EmbedGrad),
    /// A constant factor.
    Factor(Factor),
    Linear(Linear),
    Matmul(Matmul),
    Norm(Norm),
    Rope(Rope),
    Attention(Attention),
    Activation(Activation),
    Dropout(Dropout),
    /// The float type of the result.
    Cast(DType),
    Loss(Loss),
    Rows(Rows),
    Cols(Cols),
    Nf4 {
        double: bool,
    },
}

impl Attr {
    /// What says whether an op that accumulates gets one more, last operand to add to its result.
    pub fn acc(&mut self) -> Option<&mut bool> {
        match self {
            Attr::Acc(acc) => Some(acc),
            Attr::EmbedGrad(EmbedGrad { acc, .. }) => Some(acc),
            Attr::Factor(Factor { acc, .. }) => Some(acc),
            Attr::Matmul(Matmul { acc, .. }) => Some(acc),
            Attr::Norm(Norm { acc, .. }) => Some(acc),
            Attr::Cols(Cols { acc, .. }) => Some(acc),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbedGrad {
    pub scale: f32,
    /// Rows of the table.
    pub rows: usize,
    pub acc: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    pub factor: f32,
    /// Backward only: an optional last operand is added to the result.
    pub acc: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Linear {
    pub bias: bool,
    pub lora: Option<Lora>,
}

/// The low-rank part of a linear layer: `scale · dropout(x) Aᵀ Bᵀ`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    pub scale: f32,
    /// None: no dropout, and no random-number operand.
    pub dropout: Option<Dropout>,
}

/// Each element is kept with probability 1−p and divided by 1−p. `site` tells the layers' random streams apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub p: f32,
    pub site: u32,
}

/// `C = alpha · op(A) op(B) (+ acc)`, `op` a transpose where asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    pub ta: bool,
    pub tb: bool,
    pub alpha: f32,
    pub acc: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub eps: f32,
    /// Added to the weight: 1 in the Gemma family, 0 elsewhere.
    pub offset: f32,
    /// Backward only: the gradient that reaches `x` around the norm is added in.
    pub acc: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub heads: usize,
    pub head_dim: usize,
    /// Rotate by the negative angle: the backward pass.
    pub inverse: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// Query `t` sees keys up to `t` only (queries and keys are then the same tokens).
    pub causal: bool,
    /// Query `t` sees keys after `t − window` only.
    pub window: Option<usize>,
    /// A bias by the distance of key and query is added to the scores; without a window only.
    pub bias: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// The tanh approximation (Hugging Face's `gelu_new` and `gelu_pytorch_tanh`).
    GeluTanh,
    /// The exact form with erf (`gelu`).
    Gelu,
    Relu,
    Tanh,
    /// x·σ(1.702 x) (`quick_gelu`).
    QuickGelu,
}

impl Activation {
    pub const ALL: [Activation; 6] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::Gelu,
        Activation::Relu,
        Activation::Tanh,
        Activation::QuickGelu,
    ];
}

/// Which gradients the loss computes along the way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    pub grad_x: bool,
    pub grad_w: bool,
}

/// Consecutive rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub start: usize,
    pub count: usize,
}

/// Consecutive columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cols {
    pub start: usize,
    pub count: usize,
    /// Columns of the matrix.
    pub of: usize,
    /// Backward only: an optional last operand is added to the result.
    pub acc: bool,
}
