//! What an op is told besides its operands, fixed when the graph is built.

use crate::dtype::DType;

/// The attributes of a node, one variant an op family.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// The op has operands only.
    None,
    /// An optional last operand is added to the result (GEMM's beta = 1); the result may take its storage.
    Acc(bool),
    /// `embed`, by rows or by columns.
    Embed {
        /// Factor of every row that is taken (Gemma's √hidden; 1 elsewhere).
        scale: f32,
    },
    /// The gradient of `embed`'s table, and that of its columns.
    EmbedGrad(EmbedGrad),
    /// A constant factor.
    Factor(Factor),
    /// `linear` and its gradient with respect to x.
    Linear(Linear),
    /// `matmul`.
    Matmul(Matmul),
    /// `rms_norm`, `layer_norm` and their gradients.
    Norm(Norm),
    /// `rope`, which is its own gradient with `inverse`.
    Rope(Rope),
    /// `attention` and its gradients.
    Attention(Attention),
    /// `activation`, `gated_act` and their gradients.
    Activation(Activation),
    /// `dropout`, which is its own gradient.
    Dropout(Dropout),
    /// The float type of the result.
    Cast(DType),
    /// A loss, fused with the head or of logits that are in memory.
    Loss(Loss),
    /// `slice_rows`.
    Rows(Rows),
    /// `slice_cols` and its gradient.
    Cols(Cols),
    /// `nf4_quantize`.
    Nf4 {
        /// The absmax is quantized too: the result is Nf4Dq, not Nf4.
        double: bool,
    },
    /// `multiply_add`: how often each element is multiplied and added to.
    Rounds(u32),
}

impl Attr {
    /// What says whether an op that accumulates gets one more, last operand to add to its result.
    pub fn acc(&mut self) -> Option<&mut bool> {
        match self {
            Attr::Acc(acc) => Some(acc),
            Attr::EmbedGrad(EmbedGrad { acc, .. }) => Some(acc),
            Attr::Factor(Factor { acc, .. }) => Some(acc),
            Attr::Linear(Linear { acc, .. }) => Some(acc),
            Attr::Matmul(Matmul { acc, .. }) => Some(acc),
            Attr::Norm(Norm { acc, .. }) => Some(acc),
            Attr::Cols(Cols { acc, .. }) => Some(acc),
            _ => None,
        }
    }
}

/// The gradient of an embedding: rows of `dy` times `scale`, summed by id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbedGrad {
    /// The factor of the forward op.
    pub scale: f32,
    /// Rows of the table.
    pub rows: usize,
    /// An optional last operand is added to the result.
    pub acc: bool,
}

/// A constant factor of the op's equation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// The factor itself.
    pub factor: f32,
    /// Backward only: an optional last operand is added to the result.
    pub acc: bool,
}

/// Which optional operands `linear` has beside x and the weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Linear {
    /// A bias `[N]` is added to each row.
    pub bias: bool,
    /// The low-rank part, with A `[R, K]` and B `[N, R]` as operands.
    pub lora: Option<Lora>,
    /// Forward only: a last operand `[T, N]` is added to the result.
    pub acc: bool,
}

/// The low-rank part of a linear layer: `scale · dropout(x) Aᵀ Bᵀ`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// Factor of the product: PEFT's `scaling`, `lora_alpha / r` (`/ √r` with `use_rslora`).
    pub scale: f32,
    /// None: no dropout, and no random-number operand.
    pub dropout: Option<Dropout>,
}

/// Each element is kept with probability 1−p and divided by 1−p. `site` tells the layers' random streams apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element becomes zero, 0 ≤ p < 1.
    pub p: f32,
    /// Number of the place in the model, a word of the random generator's counter.
    pub site: u32,
}

/// `C = alpha · op(A) op(B) (+ acc)`, `op` a transpose where asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// A is stored as `[k, m]` and read transposed.
    pub ta: bool,
    /// B is stored as `[n, k]` and read transposed.
    pub tb: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// An optional last operand `[m, n]` is added to the result.
    pub acc: bool,
}

/// Root-mean-square and layer normalization, over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean square or the variance, below the root.
    pub eps: f32,
    /// Added to the weight: 1 in the Gemma family, 0 elsewhere.
    pub offset: f32,
    /// Backward only: the gradient that reaches `x` around the norm is added in.
    pub acc: bool,
}

/// Rotary position embedding of `[T, heads · head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Heads of x.
    pub heads: usize,
    /// Features of a head; the table says how many of them are rotated.
    pub head_dim: usize,
    /// Rotate by the negative angle: the backward pass.
    pub inverse: bool,
}

/// Softmax attention: shapes of its heads, and which keys a query sees beside its `key_range`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads` (grouped-query attention).
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Factor of the scores before the softmax, in most models `1 / √head_dim`.
    pub scale: f32,
    /// Query `t` sees keys up to `t` only (queries and keys are then the same tokens).
    pub causal: bool,
    /// Query `t` sees keys after `t − window` only.
    pub window: Option<usize>,
    /// A bias by the distance of key and query is added to the scores; without a window only.
    pub bias: bool,
    /// No sequence is longer, if that is known. Results do not depend on it: it is for estimates of the work.
    pub longest: Option<usize>,
}

impl Attention {
    /// Of whole sequences, without a window or a bias.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize, scale: f32, causal: bool) -> Attention {
        Attention { heads, kv_heads, head_dim, scale, causal, window: None, bias: false, longest: None }
    }
}

/// A function of each element, by the names of Hugging Face's `ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x) (`silu`, `swish`).
    Silu,
    /// The tanh approximation (Hugging Face's `gelu_new` and `gelu_pytorch_tanh`).
    GeluTanh,
    /// The exact form with erf (`gelu`).
    Gelu,
    /// max(x, 0) (`relu`).
    Relu,
    /// tanh(x) (`tanh`).
    Tanh,
    /// x·σ(1.702 x) (`quick_gelu`).
    QuickGelu,
}

impl Activation {
    /// Every activation, once.
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
    /// The gradient with respect to x (the hidden states, or the logits) is an output.
    pub grad_x: bool,
    /// The gradient with respect to the head's weight is an output; only the loss that is fused with the head has it.
    pub grad_w: bool,
}

/// Consecutive rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first row.
    pub start: usize,
    /// Number of rows.
    pub count: usize,
}

/// Consecutive columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cols {
    /// The first column.
    pub start: usize,
    /// Number of columns.
    pub count: usize,
    /// Columns of the matrix.
    pub of: usize,
    /// Backward only: an optional last operand is added to the result.
    pub acc: bool,
}
