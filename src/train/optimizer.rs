//! The optimizers as a run names them: rules, their constants, and what of them a step's kernels are told.

use crate::error::{Error, Result};
use crate::graph::weight::Weight;
use crate::train::loraplus::{Group, LoraPlus};

/// An update rule with what all rules have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// The equation of the update.
    pub rule: Rule,
    /// AdamW, Lion and Adafactor: parameters lose this share, times the rate, apart from the gradient. SGD: times the
    /// parameter, it is added to the gradient.
    pub weight_decay: f64,
    /// Norm that gradients are scaled down to; 0: no clipping.
    pub max_grad_norm: f64,
    /// Tensors have rates of their own.
    pub loraplus: Option<LoraPlus>,
}

/// The rules. Each has an equation in its row of the op table; the defaults are those of the reference libraries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW, or bitsandbytes' AdamW8bit.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of squared gradients.
        beta2: f64,
        /// Added to the root of the second mean.
        eps: f64,
        /// How both means are kept.
        bits: Bits,
    },
    /// Chen et al. 2023, arXiv:2302.06675; bitsandbytes' Lion and Lion8bit.
    Lion {
        /// Weight of the momentum in the update whose sign is taken.
        beta1: f64,
        /// Decay of the momentum that is kept.
        beta2: f64,
        /// How the momentum is kept.
        bits: Bits,
    },
    /// torch.optim.SGD. Without momentum it has no state.
    Sgd {
        /// Factor of the earlier updates; 0: plain gradient descent.
        momentum: f64,
        /// Share of the gradient that does not join the momentum, from the second step on.
        dampening: f64,
        /// The momentum that the next step would have is used (Nesterov 1983).
        nesterov: bool,
    },
    /// Shazeer and Stern 2018, arXiv:1804.04235; transformers' Adafactor with a given rate: neither scaled by the
    /// parameter nor relative to the step, no first moment.
    Adafactor {
        /// β₂ of step t is 1 − t^decay_rate.
        decay_rate: f64,
        /// Added to the squared gradient.
        eps: f64,
        /// Largest root mean square of a tensor's update, before the rate.
        clip_threshold: f64,
    },
}

/// How AdamW and Lion keep their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// An f32 an element.
    B32,
    /// A byte an element and an f32 for 256, of tensors of at least [`MIN_8BIT`] elements.
    B8,
}

/// Smaller tensors keep f32 state: bitsandbytes' `min_8bit_size`.
pub const MIN_8BIT: usize = 4096;

impl Rule {
    /// β = 0.9 and 0.999, eps = 1e-8: the defaults of torch.optim.AdamW.
    pub const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, bits: Bits::B32 };
    /// β = 0.9 and 0.99: the defaults of bitsandbytes' Lion.
    pub const LION: Rule = Rule::Lion { beta1: 0.9, beta2: 0.99, bits: Bits::B32 };
    /// Without momentum: the default of torch.optim.SGD.
    pub const SGD: Rule = Rule::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false };
    /// The defaults of transformers' Adafactor.
    pub const ADAFACTOR: Rule = Rule::Adafactor { decay_rate: -0.8, eps: 1e-30, clip_threshold: 1.0 };

    /// The same with its state in `bits`; rules that have no such variant stay as they are.
    pub fn with_bits(mut self, to: Bits) -> Rule {
        if let Rule::AdamW { bits, .. } | Rule::Lion { bits, .. } = &mut self {
            *bits = to;
        }
        self
    }

    /// Whether a tensor of `len` elements has its state in 8 bits.
    pub fn in_8_bits(&self, len: usize) -> bool {
        matches!(self, Rule::AdamW { bits: Bits::B8, .. } | Rule::Lion { bits: Bits::B8, .. }) && len >= MIN_8BIT
    }
}

impl From<Rule> for Optimizer {
    /// No weight decay; gradients are clipped to a norm of 1.
    fn from(rule: Rule) -> Optimizer {
        Optimizer { rule, weight_decay: 0.0, max_grad_norm: 1.0, loraplus: None }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Rule::ADAMW.into()
    }
}

impl Optimizer {
    /// An error if a constant is none that the kernels, which have them in f32, can use.
    pub fn check(&self) -> Result<()> {
        const ANY: (&str, fn(f32) -> bool) = ("a finite number", |_| true);
        const COUNTS: (&str, fn(f32) -> bool) = ("a finite number, 0 or more", |x| x >= 0.0);
        const ABOVE: (&str, fn(f32) -> bool) = ("a finite number above 0", |x| x > 0.0);
        const BELOW: (&str, fn(f32) -> bool) = ("a finite number, 0 or less", |x| x <= 0.0);
        const SHARE: (&str, fn(f32) -> bool) = ("0 to below 1", |x| (0.0..1.0).contains(&x));
        let mut all = vec![("weight_decay", self.weight_decay, COUNTS), ("max_grad_norm", self.max_grad_norm, COUNTS)];
        match self.rule {
            Rule::AdamW { beta1, beta2, eps, .. } => {
                all.extend([("beta1", beta1, SHARE), ("beta2", beta2, SHARE), ("eps", eps, ABOVE)]);
            }
            Rule::Lion { beta1, beta2, .. } => all.extend([("beta1", beta1, SHARE), ("beta2", beta2, SHARE)]),
            Rule::Sgd { momentum, dampening, .. } => {
                all.extend([("momentum", momentum, COUNTS), ("dampening", dampening, ANY)]);
            }
            Rule::Adafactor { decay_rate, eps, clip_threshold } => {
                all.extend([
                    ("decay_rate", decay_rate, BELOW),
                    ("eps", eps, ABOVE),
                    ("clip_threshold", clip_threshold, ABOVE),
                ]);
            }
        }
        if let Some(plus) = self.loraplus {
            all.extend([("loraplus ratio", plus.ratio, ABOVE), ("loraplus embedding", plus.embedding, COUNTS)]);
        }
        match all.into_iter().find(|(_, x, (_, fits))| !((*x as f32).is_finite() && fits(*x as f32))) {
            Some((name, x, (expected, _))) => {
                let found = format!("{x:e}, as f32 {:e}", x as f32);
                Err(Error::config(format!("optimizer: {name}"), found, expected))
            }
            None => Ok(()),
        }
    }

    /// The group of `of`, a trained tensor of so many axes and one of a model's weights `all`.
    pub fn group(&self, of: &Weight, axes: usize, all: &[Weight]) -> Group {
        let group = self.loraplus.map_or(Group::PLAIN, |plus| plus.group(of, axes, all));
        // PEFT asks it of AdamW alone.
        Group { wide: group.wide && matches!(self.rule, Rule::AdamW { bits: Bits::B8, .. }), ..group }
    }

    /// What the kernels are told of a group in step `t`, counted from 1, of a run at rate `lr`: `hyper` of the rule's row.
    /// In every row the rate comes first, and the decay fifth.
    pub fn hyper(&self, group: Group, lr: f64, t: u64) -> [f32; 8] {
        let Optimizer { rule, max_grad_norm: largest, .. } = *self;
        let (lr, decay) = (group.rate * lr, if group.decays { self.weight_decay } else { 0.0 });
        let t_i = t.min(i32::MAX as u64) as i32;
        let hyper = match rule {
            Rule::AdamW { beta1, beta2, eps, .. } => {
                [lr, 1.0 - beta1, 1.0 - beta2, eps, decay, 1.0 - beta1.powi(t_i), 1.0 - beta2.powi(t_i), largest]
            }
            Rule::Lion { beta1, beta2, .. } => [lr, 1.0 - beta1, 1.0 - beta2, 0.0, decay, 0.0, 0.0, largest],
            Rule::Sgd { momentum, dampening, nesterov } => {
                let gain = if t == 1 { 1.0 } else { 1.0 - dampening };
                [lr, momentum, gain, nesterov as u8 as f64, decay, 0.0, 0.0, largest]
            }
            Rule::Adafactor { decay_rate, eps, clip_threshold } => {
                [lr, (t as f64).powf(decay_rate), eps, clip_threshold, decay, 0.0, 0.0, largest]
            }
        };
        hyper.map(|x| x as f32)
    }
}
