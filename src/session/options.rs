//! What a session is asked to do.

use std::path::PathBuf;

use crate::backend::Caps;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::generate::Room;
use crate::memory::Request;
use crate::tasks::Shape;
use crate::train::optimizer::Optimizer;

/// What activations are kept in when `dtype` is asked for: 16 bits where the device can, else f32.
pub fn activations(dtype: DType, caps: &Caps) -> DType {
    match dtype {
        DType::BF16 | DType::F16 => caps.compute_dtype.unwrap_or(DType::F32),
        _ => DType::F32,
    }
}

/// What a session is, apart from the model and the method.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether it trains.
    pub train: bool,
    /// Whether it evaluates: the task's loss and outputs without dropout, on the weights as they are.
    pub evaluate: bool,
    /// Whether it generates, and how much, on the weights as they are.
    pub generate: Option<Room>,
    /// Format of the linear layers' frozen weights, if they are to be quantized.
    pub quantize: Option<DType>,
    /// Format of the other frozen weights, and of activations where the device keeps them in 16 bits.
    pub dtype: DType,
    /// Longest sequence.
    pub max_seq_len: usize,
    /// Tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Sizes of smaller micro-batches that a session takes too, in tokens, each in the same memory as the largest one.
    pub micro_smaller: Vec<usize>,
    /// The longest sequence that there is, if that is known: micro-batches may become as small where memory wants it.
    pub longest: Option<usize>,
    /// Target tokens of a micro-batch in encoder-decoders; else as many as `micro_tokens`.
    pub micro_targets: Option<usize>,
    /// The most sequences of a micro-batch; else as many as it has tokens.
    pub micro_sequences: Option<usize>,
    /// The most tokens that a step will have, if that is known. Where they fit one micro-batch, gradients take the place
    /// of activations, and a step of two micro-batches is an error.
    pub step_tokens: Option<usize>,
    /// Rule and constants of the update.
    pub optimizer: Optimizer,
    /// Seeds dropout and the first values of new tensors.
    pub seed: u64,
    /// The memory there is, and what to do about it.
    pub memory: Request,
    /// Folder for a file with what is off the device and is in no other file; else the system's for temporary files.
    pub spill: Option<PathBuf>,
}

/// Most tokens of a sequence or a micro-batch: sizes that are computed from it, squares too, fit in 64 bits.
pub const MOST_TOKENS: usize = 1 << 23;

impl Options {
    /// An error if they ask for what cannot be planned. The optimizer's constants are checked with the step.
    pub(super) fn check(&self) -> Result<()> {
        let room = self.generate.map(|room| [room.tokens, room.source.max(1), room.chunk.max(1)]);
        let room = |i: usize| room.map_or(1, |room| room[i]);
        let counts = [
            ("max_seq_len", self.max_seq_len),
            ("micro_tokens", self.micro_tokens),
            ("micro_targets", self.micro_targets.unwrap_or(1)),
            ("micro_sequences", self.micro_sequences.unwrap_or(1)),
            ("generate: tokens", room(0)),
            ("generate: source", room(1)),
            ("generate: chunk", room(2)),
        ];
        if let Some((name, n)) = counts.into_iter().find(|(_, n)| !(1..=MOST_TOKENS).contains(n)) {
            return Err(Error::config(name, n.to_string(), format!("1 to {MOST_TOKENS}")));
        }
        if self.train {
            self.optimizer.check()?;
        }
        if !self.dtype.is_float() {
            return Err(Error::config("dtype", self.dtype.name(), "f32, bf16 or f16"));
        }
        match self.quantize.filter(|q| !q.is_quantized() && !q.is_float()) {
            Some(other) => Err(Error::config("quantize", other.name(), "nf4, nf4_dq or a float type")),
            None => Ok(()),
        }
    }

    /// The same with the micro-batches of another size, which `single` says whether a step has one of.
    pub(super) fn narrowed(&self, tokens: usize, single: bool) -> Options {
        let part = |targets: usize| (targets * tokens).div_ceil(self.micro_tokens.max(1)).max(1);
        Options {
            micro_tokens: tokens,
            micro_targets: self.micro_targets.map(part),
            step_tokens: single.then_some(0),
            ..self.clone()
        }
    }

    /// Whether a step is one micro-batch.
    pub(super) fn single(&self) -> bool {
        self.step_tokens.is_some_and(|most| most <= self.micro_tokens)
    }

    /// The sizes of a micro-batch.
    pub(super) fn shape(&self) -> Shape {
        let tokens = self.micro_tokens;
        let sequences = self.micro_sequences.unwrap_or(tokens).clamp(1, tokens.max(1));
        Shape { tokens, targets: self.micro_targets.unwrap_or(tokens), sequences }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            train: true,
            evaluate: false,
            generate: None,
            quantize: None,
            dtype: DType::F32,
            max_seq_len: 1024,
            micro_tokens: 1024,
            micro_smaller: Vec::new(),
            longest: None,
            micro_targets: None,
            micro_sequences: None,
            step_tokens: None,
            optimizer: Optimizer::default(),
            seed: 42,
            memory: Request::default(),
            spill: None,
        }
    }
}
