//! (IA)³ (Liu et al. 2022, arXiv:2205.05638): activations are rescaled by learned vectors. At a targeted layer
//! `y = (W x + b) ∘ l`, l `[out]`; at a feed-forward one `y = W (x ∘ l) + b`, l `[in]`. l starts at ones. Files are PEFT's:
//! `….ia3_l` of shape `[out, 1]` or `[1, in]`. `target_modules`, `exclude_modules` and `feedforward_modules` are read as PEFT 0.21.2
//! reads them (`tuners/ia3/model.py`): a list of names, or a regular expression of whole paths. Where the first or the last is
//! null, PEFT takes its own table by model type, which the file's tensors show: the layers that have one, and its shape.

use std::collections::BTreeMap;

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::config::{Targets, listed, matches, regex_of};
use super::folder::{self, Heads};
use super::{Method, MethodDef, Rate, Save, files, merge};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Hooks, Init, Linear, Next, Nn, Role, Site, WeightRef};
use crate::weights::HostTensor;

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "ia3",
    peft_type: Some("IA3"),
    same_at_start: true,
    rate: Rate::any_width(1e-2),
    new: |settings| {
        let layers = match &settings.targets {
            Targets::AllLinear => Layers::Roles,
            Targets::List(names) => Layers::named(Names::Listed(names.clone())),
            Targets::Regex(text) => Layers::named(Names::pattern("targets", text)?),
        };
        Ok(Box::new(Ia3 { layers, heads: Heads::new(settings) }))
    },
    read: |config| {
        let [targets, excluded, feed_forward] =
            ["target_modules", "exclude_modules", "feedforward_modules"].map(|key| Names::read(config, key));
        let (targets, feed_forward) = (targets?.unwrap_or(Names::OfFile), feed_forward?.or(Some(Names::OfFile)));
        let layers = Layers::Named { targets, excluded: excluded?, feed_forward };
        Ok(Box::new(Ia3 { layers, heads: Heads::read(config)? }))
    },
};

/// Which layers are rescaled.
enum Layers {
    /// Keys, values and the second layer of the feed-forward part, as in the paper.
    Roles,
    /// Those that are named.
    Named {
        targets: Names,
        excluded: Option<Names>,
        /// Those whose input is; if none are given, by what a layer does.
        feed_forward: Option<Names>,
    },
}

impl Layers {
    fn named(targets: Names) -> Layers {
        Layers::Named { targets, excluded: None, feed_forward: None }
    }
}

/// Names of layers.
enum Names {
    /// Every linear layer of a block.
    AllLinear,
    Listed(Vec<String>),
    /// Of whole paths.
    Pattern(Box<Regex>),
    /// To be taken from the tensors of the adapter's file.
    OfFile,
}

impl Names {
    /// Those of a key of adapter_config.json, if it has any; an empty list names nothing.
    fn read(config: &Map<String, Value>, key: &str) -> Result<Option<Names>> {
        match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Ok(Some(Names::AllLinear)),
            Some(Value::String(text)) => Names::pattern(&format!("adapter_config.json: {key}"), text).map(Some),
            Some(_) => folder::names(config, key).map(|names| Some(Names::Listed(names))),
        }
    }

    fn pattern(key: &str, text: &str) -> Result<Names> {
        let regex = regex_of(text, |text| format!("^(?:{text})$"));
        regex.map(|regex| Names::Pattern(Box::new(regex))).map_err(|expected| Error::config(key, text, expected))
    }

    fn mean(&self, site: &Site) -> bool {
        match self {
            Names::AllLinear => site.role.is_block_linear(),
            Names::Listed(names) => listed(names, &site.path),
            Names::Pattern(regex) => matches(regex, &site.path),
            Names::OfFile => false,
        }
    }

    /// The modules of the tensors that count, where it is they that say.
    fn given(&mut self, tensors: &BTreeMap<String, HostTensor>, counts: fn(&HostTensor) -> bool) {
        if let Names::OfFile = self {
            let vectors = tensors.iter().filter(|(_, tensor)| counts(tensor));
            let modules = vectors.filter_map(|(name, _)| files::tensor(name).strip_suffix(".ia3_l"));
            *self = Names::Listed(modules.map(str::to_string).collect());
        }
    }
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
            Layers::Named { targets, excluded, feed_forward } => {
                let wanted = targets.mean(site)
                    && !excluded.as_ref().is_some_and(|names| names.mean(site))
                    && !folder::saves_around(&self.heads.modules, &site.path);
                let input = || feed_forward.as_ref().map_or(site.role == Role::Down, |names| names.mean(site));
                wanted.then(input)
            }
        }
    }
}

/// Name in the file of the vector of the layer `module`.
fn key(module: &str) -> String {
    format!("base_model.model.{module}.ia3_l")
}

/// Whether it rescales the input of its layer.
fn is_of_input(vector: &HostTensor) -> bool {
    vector.shape.len() == 2 && vector.shape[0] == 1
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

    fn given(&mut self, tensors: &BTreeMap<String, HostTensor>) {
        if let Layers::Named { targets, feed_forward, .. } = &mut self.layers {
            targets.given(tensors, |_| true);
            feed_forward.iter_mut().for_each(|names| names.given(tensors, is_of_input));
        }
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
            let all = tensors.iter().filter(|t| !input || is_of_input(&t.1));
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
