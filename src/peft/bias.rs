//! `bias` of a LoRA adapter: which biases of the base model are trained along.
//!
//! As Hugging Face PEFT has it (0.21.2, `tuners/tuners_utils.py`, `_mark_only_adapters_as_trainable` and
//! `_get_learnable_bias_state_dict`): all of the model, or those of the layers that LoRA adapts. A file has a bias under
//! its name in the model, that of an adapted layer under `….base_layer.bias`.

use std::collections::BTreeMap;

use super::config::AdapterConfig;
use super::files;
use crate::nn::{Role, WeightRef};
use crate::weights::HostTensor;

/// Which biases of the base model are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bias {
    /// None of them.
    #[default]
    None,
    /// Every one.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

impl Bias {
    /// Every choice, the default first.
    pub const ALL: &'static [Bias] = &[Bias::None, Bias::All, Bias::LoraOnly];

    /// What the key may be, for messages.
    pub const EXPECTED: &'static str = "none, all or lora_only";

    /// PEFT's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Bias::None => "none",
            Bias::All => "all",
            Bias::LoraOnly => "lora_only",
        }
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Bias> {
        Bias::ALL.iter().copied().find(|bias| bias.name() == name)
    }
}

impl AdapterConfig {
    /// Under which name the file has a bias of the base model, if it is trained.
    pub(super) fn trains_bias(&self, w: WeightRef) -> Option<String> {
        if self.bias == Bias::None || !w.is_bias() {
            return None;
        }
        // A pattern that does not compile is an error of the layer's own hook, which asks for it too.
        let adapted =
            |module: &str| w.role != Role::Norm && self.adapts(w.role, module).is_ok_and(|spec| spec.is_some());
        let module = w.module();
        // Encoders have the bias of their head over the vocabulary beside its layer, where PEFT sees it twice.
        let decoder = format!("{module}.decoder");
        match self.bias {
            _ if adapted(module) => Some(files::base_bias(module)),
            Bias::All => Some(files::saved(w.name)),
            _ if w.role == Role::Head && adapted(&decoder) => Some(files::base_bias(&decoder)),
            _ => None,
        }
    }

    /// Takes out of a file's tensors the biases that it has twice: of a module that is trained whole, as PEFT holds it
    /// and as it was before; and of a head over the vocabulary, which is one with that of its layer.
    pub(super) fn drop_copies_of_biases(&self, tensors: &mut BTreeMap<String, HostTensor>) {
        if self.bias != Bias::All {
            return;
        }
        let copy = |name: &str| {
            let ends = |end: &str| name.strip_suffix(end);
            let parts = [".modules_to_save.", ".original_module."].into_iter().find_map(|part| name.split_once(part));
            if let Some((module, rest)) = parts.filter(|_| name.ends_with(".bias")) {
                return tensors.contains_key(&format!("{module}.{rest}"));
            }
            let module = ends(".decoder.bias").or(ends(".decoder.base_layer.bias"));
            module.is_some_and(|module| tensors.get(&format!("{module}.bias")) == tensors.get(name))
        };
        let copies: Vec<String> = tensors.keys().filter(|name| copy(name)).cloned().collect();
        copies.iter().for_each(|name| drop(tensors.remove(name)));
    }
}
