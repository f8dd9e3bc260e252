//! LoRA+ (Hayou, Ghosh and Yu 2024, arXiv:2402.12354): B learns faster than A, `η_B = ratio · η_A`.
//!
//! Tensors are sorted as Hugging Face PEFT 0.21.2 sorts them (`optimizers/loraplus.py`): the factors of embeddings have a
//! rate of their own; B and whatever has one axis have B's rate, without weight decay if it is a bias or a layer norm's;
//! the rest has A's. Where PEFT has the factors of an embedding a second time, for a tied head, they are one tensor here
//! and have the embedding's rate.

use crate::graph::weight::{Role, Source, Weight};

/// Rates apart from that of A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPlus {
    /// The rate of B, in rates of A.
    pub ratio: f64,
    /// The rate of the factors of embeddings, in rates of A.
    pub embedding: f64,
}

/// What tensors have in common that are updated alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Their rate, in rates of the run.
    pub rate: f64,
    /// Whether weights decay.
    pub decays: bool,
    /// Their state is in 32 bits, whatever the rule says.
    pub wide: bool,
}

impl Group {
    /// The run's rate and decay.
    pub const PLAIN: Group = Group { rate: 1.0, decays: true, wide: false };
}

impl LoraPlus {
    /// The group of `of`, a tensor of so many axes and one of a model's weights `all`.
    pub fn group(&self, of: &Weight, axes: usize, all: &[Weight]) -> Group {
        let name = of.name.as_str();
        if name.contains(".lora_embedding_") {
            return Group { rate: self.embedding, ..Group::PLAIN };
        }
        if name.contains("lora_B") || axes == 1 {
            let decays = !name.contains("bias") && !is_layer_norm(of, all);
            return Group { rate: self.ratio, decays, wide: false };
        }
        // PEFT tells bitsandbytes so of the weights of embeddings.
        let table = matches!(of.source, Source::Base { role: Role::Embed | Role::Position, .. });
        Group { wide: table, ..Group::PLAIN }
    }
}

/// Whether a weight is that of a layer norm: other norms have no bias.
fn is_layer_norm(of: &Weight, all: &[Weight]) -> bool {
    let Source::Base { tensor, role: Role::Norm, .. } = &of.source else { return false };
    let bias = tensor.strip_suffix(".weight").map(|module| format!("{module}.bias"));
    let is = |w: &Weight| matches!(&w.source, Source::Base { tensor, .. } if Some(tensor) == bias.as_ref());
    all.iter().any(is)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Val;
    use crate::nn::Init;

    fn base(tensor: &str, role: Role) -> Weight {
        let source =
            Source::Base { tensor: tensor.into(), role, held: None, transposed: false, fresh: None, less: None };
        Weight { val: Val(0), name: format!("base_model.model.{tensor}"), source, trainable: true }
    }

    fn adapter(name: &str) -> Weight {
        Weight { val: Val(0), name: name.into(), source: Source::Adapter { init: Init::Zeros }, trainable: true }
    }

    #[test]
    fn tensors_are_sorted_as_peft_sorts_them() {
        let plus = LoraPlus { ratio: 16.0, embedding: 0.25 };
        let (b, plain) = (Group { rate: 16.0, ..Group::PLAIN }, Group::PLAIN);
        let table = [
            (adapter("q.lora_A.weight"), 2, plain),
            (adapter("q.lora_B.weight"), 2, b),
            (adapter("q.lora_B.bias"), 1, Group { decays: false, ..b }),
            (adapter("q.lora_magnitude_vector"), 1, b),
            (adapter("embed.lora_embedding_A"), 2, Group { rate: 0.25, ..plain }),
            (adapter("embed.lora_embedding_B"), 2, Group { rate: 0.25, ..plain }),
            (adapter("embed.token_adapter.trainable_tokens_delta"), 2, plain),
            (base("classifier.weight", Role::Classifier), 2, plain),
            (base("q.base_layer.bias", Role::Q), 1, Group { decays: false, ..b }),
            (base("embed.weight", Role::Embed), 2, Group { wide: true, ..plain }),
            // A layer norm, and a norm without a bias.
            (base("ln.weight", Role::Norm), 1, Group { decays: false, ..b }),
            (base("ln.bias", Role::Norm), 1, Group { decays: false, ..b }),
            (base("rms.weight", Role::Norm), 1, b),
        ];
        let all: Vec<Weight> = table.iter().map(|row| row.0.clone()).collect();
        for (weight, axes, want) in &table {
            assert_eq!(plus.group(weight, *axes, &all), *want, "{}", weight.name);
        }
    }
}
