//! (IA)³ (Liu et al. 2022, arXiv:2205.05638): activations are rescaled by learned vectors. At a targeted layer
//! `y = (W x + b) ∘ l`, l `[out]`; at a feed-forward one `y = W (x ∘ l) + b`, l `[in]`. l starts at ones. Files are PEFT's:
//! `….ia3_l` of shape `[out, 1]` or `[1, in]`.

use serde_json::{Map, Value, json};

use super::config::{Targets, listed};
use super::folder::{self, Heads};
use super::{Method, MethodDef, Save, files, merge};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Hooks, Init, Linear, Next, Nn, Role, Site, WeightRef};

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "ia3",
    peft_type: Some("IA3"),
    same_at_start: true,
    new: |settings| {
        let layers = match &settings.targets {
            Targets::AllLinear => Layers::Roles,
            Targets::List(names) => Layers::Named { targets: names.clone(), feed_forward: Vec::new() },
            Targets::Regex(text) => return Err(Error::config("targets", text, "names of layers for ia3")),
        };
        Ok(Box::new(Ia3 { layers, heads: Heads::new(settings) }))
    },
    read: |config| {
        let targets = folder::names(config, "target_modules")?;
        let feed_forward = folder::names(config, "feedforward_modules")?;
        Ok(Box::new(Ia3 { layers: Layers::Named { targets, feed_forward }, heads: Heads::read(config)? }))
    },
};

/// Which layers are rescaled.
enum Layers {
    /// Keys, values and the second layer of the feed-forward part, as in the paper.
    Roles,
    /// Those that PEFT's lists name, by how their path ends.
    Named { targets: Vec<String>, feed_forward: Vec<String> },
}

/// See the module.
pub struct Ia3 {
    layers: Layers,
    heads: Heads,
}

impl Ia3 {
    /// Whether a layer is rescaled, and then whether its input is.
    fn at(&self, site: &Site) -> Option<bool> {
        match &self.layers {
            Layers::Roles => match site.role {
                Role::K | Role::V => Some(false),
                Role::Down => Some(true),
                _ => None,
            },
            Layers::Named { targets, feed_forward } => listed(targets, &site.path)
                .then(|| listed(feed_forward, &site.path) || (feed_forward.is_empty() && site.role == Role::Down)),
        }
    }
}

/// Name in the file of the vector of the layer `module`.
fn key(module: &str) -> String {
    format!("base_model.model.{module}.ia3_l")
}

impl Hooks for Ia3 {
    fn trains(&self, w: WeightRef) -> Option<String> {
        self.heads.trains(w, "base_model.model.")
    }

    fn keeps_ties(&self) -> bool {
        false
    }

    fn linear(&self, nn: &mut Nn, at: &Site, mut layer: Linear, next: Next) -> Result<Val> {
        let Some(input) = self.at(at) else { return next.linear(nn, at, layer) };
        let (out, features) = (nn.g.shape(layer.w)[0], nn.g.shape(layer.w)[1]);
        let shape = if input { [1, features] } else { [out, 1] };
        let l = nn.adapter(&key(&at.path), &shape, Init::Ones);
        let row = nn.g.reshape(l, &[if input { features } else { out }])?;
        if input {
            layer.x = nn.g.mul_row(layer.x, row)?;
            return next.linear(nn, at, layer);
        }
        let y = next.linear(nn, at, layer)?;
        nn.g.mul_row(y, row)
    }
}

impl Method for Ia3 {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn merge(&self, target: &mut merge::Target, own: &mut merge::Own) -> Result<()> {
        if let Some(l) = own.take(&key(target.w.module())) {
            merge::scaled(target, l);
        }
        Ok(())
    }

    fn check(&self, sites: &[Site]) -> Result<()> {
        if sites.iter().any(|s| self.at(s).is_some()) {
            return Ok(());
        }
        Err(Error::config("targets", "names that match no layer", "keys, values or feed-forward layers of the model"))
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        let tensors = save.tensors()?;
        let modules = |input: bool| -> Vec<&str> {
            let all = tensors.iter().filter(|t| (t.1.shape.len() == 2 && t.1.shape[0] == 1) == input || !input);
            all.filter_map(|t| t.0.strip_prefix("base_model.model.")?.strip_suffix(".ia3_l")).collect()
        };
        let mut config: Map<String, Value> = self.heads.config("IA3");
        config.insert("target_modules".into(), json!(modules(false)));
        config.insert("feedforward_modules".into(), json!(modules(true)));
        let turned = modules(false).iter().any(|m| save.transposed.iter().any(|t| t == m));
        config.insert("fan_in_fan_out".into(), Value::Bool(turned));
        config.insert("init_ia3_weights".into(), Value::Bool(true));
        let card = files::Card { base: self.heads.base(), method: "IA3", tag: "ia3", what: "Learned vectors." };
        folder::write(save.dir, config, &card, &tensors)
    }
}
