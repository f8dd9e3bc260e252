//! What benches run ops on: the sizes of a model, and the cases that an op's row makes of them.

use super::attr::Attr;
use super::tensor::{Sample, SampleIn};
use crate::dtype::DType;

/// The sizes of a model and of a step of its training, from which each row of the op table makes its cases.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Features of a token between the layers.
    pub hidden: usize,
    /// Features inside the MLP.
    pub mlp: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Rank of low-rank factors.
    pub rank: usize,
    /// Tokens that the loss is taken of.
    pub loss_tokens: usize,
    /// Parameters that a step of the optimizer updates.
    pub params: usize,
    /// Virtual tokens, and tokens of the vocabulary whose rows are trained apart.
    pub few: usize,
    /// Labels of a text that has several.
    pub labels: usize,
    /// Formats of frozen weights, with each of which products are timed; from the widest to the narrowest.
    pub weights: Vec<DType>,
}

impl Default for Sizes {
    /// Those of SmolLM2-135M.
    fn default() -> Sizes {
        Sizes {
            tokens: 1024,
            hidden: 576,
            mlp: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocab: 49152,
            rank: 16,
            loss_tokens: 256,
            params: 5_000_000,
            few: 64,
            labels: 28,
            weights: vec![DType::F32, DType::BF16, DType::Nf4],
        }
    }
}

impl Sizes {
    /// The same model so small that every definition in float64 is quick. Nothing is raised: what is 1 stays 1, and heads
    /// keep their size and how many share keys, since kernels differ by them. Cut features are multiples of 64, whole
    /// blocks of quantized formats.
    pub fn small(&self) -> Sizes {
        let kv_heads = self.kv_heads.min(2);
        let group = (self.heads / self.kv_heads.max(1)).max(1);
        Sizes {
            tokens: self.tokens.min(72),
            hidden: self.hidden.min(192),
            mlp: self.mlp.min(320),
            heads: (kv_heads * group).min(self.heads),
            kv_heads,
            head_dim: self.head_dim,
            vocab: self.vocab.min(768),
            rank: self.rank,
            loss_tokens: self.loss_tokens.min(24),
            params: self.params.min(10_240),
            few: self.few.min(8),
            labels: self.labels.min(28),
            weights: self.weights.clone(),
        }
    }

    /// Features of all heads of the queries.
    pub fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Features of all heads of the keys, and of the values.
    pub fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The format of a table of embeddings, which is never quantized: the narrowest float among those of the weights.
    pub fn table(&self) -> DType {
        self.weights.iter().rev().copied().find(|dtype| dtype.is_float()).unwrap_or(DType::BF16)
    }

    /// The narrowest format of the weights.
    pub fn narrowest(&self) -> DType {
        self.weights.last().copied().unwrap_or(DType::F32)
    }
}

/// What benches run an op on. Its sample's name is the case's, and no other case of the op has it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Operands and attributes.
    pub sample: Sample,
    /// Pairs (input, output) in one place, as in a plan; only where running the op again and again on its own result
    /// leads to no infinities or denormal numbers, which would be another speed.
    pub shared: &'static [(usize, usize)],
}

impl Case {
    /// A case of these operands, each in a place of its own.
    pub fn new(name: impl Into<String>, attr: Attr, ins: Vec<SampleIn>) -> Case {
        Case { sample: Sample::new(name, attr, ins), shared: &[] }
    }

    /// The same with these pairs (input, output) in one place.
    pub fn in_place(self, shared: &'static [(usize, usize)]) -> Case {
        Case { shared, ..self }
    }
}
