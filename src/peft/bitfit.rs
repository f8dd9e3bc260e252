//! BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): the biases of the model are trained and nothing else but the task's
//! head. PEFT has no such method: the folder is like its others, with peft_type BITFIT, and the tensors carry the base
//! model's names, so that `load_state_dict(…, strict=False)` takes them.

use super::folder::{self, Heads};
use super::{Method, MethodDef, Rate, Save, files, merge};
use crate::error::{Error, Result};
use crate::nn::{Hooks, Site, WeightRef};

const PREFIX: &str = "base_model.model.";

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "bitfit",
    peft_type: Some("BITFIT"),
    same_at_start: true,
    rate: Rate::any_width(2e-3),
    new: |settings| Ok(Box::new(Bitfit { heads: Heads::new(settings) })),
    read: |config| Ok(Box::new(Bitfit { heads: Heads::read(config)? })),
};

/// See the module.
pub struct Bitfit {
    heads: Heads,
}

impl Hooks for Bitfit {
    fn trains(&self, w: WeightRef) -> Option<String> {
        if w.is_bias() { Some(format!("{PREFIX}{}", w.name)) } else { self.heads.trains(w, PREFIX) }
    }
}

impl Method for Bitfit {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn merge(&self, _: &mut merge::Target, _: &mut merge::Own) -> Result<()> {
        Ok(())
    }

    fn check(&self, _: &[Site]) -> Result<()> {
        Ok(())
    }

    fn check_weights(&self, weights: &[WeightRef]) -> Result<()> {
        match weights.iter().any(|&w| self.trains(w).is_some()) {
            true => Ok(()),
            false => {
                let expected = "another method, or a model that has biases, as GPT-2, BERT and Qwen2 have them";
                Err(Error::config("method", "bitfit on a model without biases", expected))
            }
        }
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        let tensors = save.tensors()?;
        let card = files::Card { base: self.heads.base(), method: "BitFit", tag: "bitfit", what: "All biases." };
        folder::write(save.dir, self.heads.config("BITFIT"), &card, &tensors)
    }
}
