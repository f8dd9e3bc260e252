//! Bottleneck adapters: after or beside a part of each layer, `a(z) = s · (W_up f(W_down z + b_down) + b_up)`, W_down
//! `[d, hidden]`, W_up `[hidden, d]`, d = hidden / reduction factor. With x the output of the part, h what it is added to
//! and n the model's norm of the sum, where it has one there:
//!
//! * **Houlsby** (Houlsby et al. 2019, arXiv:1902.00751), after attention and after the feed-forward part:
//!   `n(a(x) + x + h)`.
//! * **Pfeiffer** (Pfeiffer et al. 2020, arXiv:2005.00247), after the feed-forward part: `n(a(n(x + h)) + x + h)`.
//! * **Parallel** (He et al. 2021, arXiv:2110.04366), beside the feed-forward part, s = 4: `n(x + a(h) + h)`.
//!
//! They differ in what AdapterHub's config says (`bottleneck.rs`); the files are AdapterHub's (`adapterhub.rs`). With a
//! parallel adapter the model starts as the base model, since W_up starts at zero; with the others close to it, since their
//! weights start normal (0, 0.02), as in AdapterHub's library.

use serde_json::Value;

use super::bottleneck::{Bottleneck, Input, Scaling, Skip};
use super::folder::Heads;
use super::{Method, MethodDef, Rate, Save, adapterhub, folder};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Hooks, Init, Next, Nn, Part, Residual, Role, Site, WeightRef};
use crate::ops::Dropout;

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "adapter",
    peft_type: Some(adapterhub::TYPE),
    same_at_start: false,
    rate: Rate { at_4096: 2e-4, power: 0.78, most: 2e-3 },
    new: |settings| {
        settings.bottleneck.check()?;
        Ok(Box::new(Adapter::new(settings.bottleneck.clone(), Heads::new(settings))))
    },
    read: |config| {
        let own = config.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
        let name = text("name").ok_or_else(|| Error::config("adapter_config.json: name", "nothing", "a name"))?;
        let heads = Heads { base: text("model_name").filter(|name| !name.is_empty()), ..Heads::default() };
        let head = folder::names(config, adapterhub::HEAD_KEY)?;
        Ok(Box::new(Adapter { name, config: Bottleneck::read(own, config.contains_key("version"))?, heads, head }))
    },
};

/// What a new adapter is called in its keys.
const NAME: &str = "default";

/// See the module.
pub struct Adapter {
    name: String,
    config: Bottleneck,
    heads: Heads,
    /// Tensors of the base model that the files hold.
    head: Vec<String>,
}

/// The module that AdapterHub puts into the one that adds up a part. Where that is the layer itself, whose path ends in its
/// only number (`model.layers.0`), there is one for each part; else it is that part's own (`bert.encoder.layer.0.output`).
fn module(at: &Site, part: Part) -> String {
    let is_number = |name: &&str| name.bytes().all(|b| b.is_ascii_digit());
    let numbers = at.path.split('.').filter(is_number).count();
    let last = at.path.rsplit('.').next();
    let own = match part {
        _ if numbers != 1 || !last.is_some_and(|name| is_number(&name)) => return format!("{}.adapters", at.path),
        Part::Attention => "attention_adapters",
        Part::CrossAttention => "cross_attention_adapters",
        Part::FeedForward => "output_adapters",
    };
    format!("{}.{own}.adapters", at.path)
}

/// The number of a layer, from 0: the first one in its path.
fn layer(path: &str) -> Option<usize> {
    path.split('.').find_map(|name| name.parse().ok())
}

impl Hooks for Adapter {
    fn trains(&self, w: WeightRef) -> Option<String> {
        let held = self.head.iter().any(|name| name == w.name);
        if held { Some(w.name.to_string()) } else { self.heads.trains(w, "") }
    }

    fn residual(&self, nn: &mut Nn, at: &Site, sum: Residual, next: Next) -> Result<Val> {
        let config = &self.config;
        if !config.parts.contains(&sum.part) || self.left_out(nn, at)? {
            return next.residual(nn, at, sum);
        }
        let Residual { x, h, .. } = sum;
        // z, which enters the bottleneck, and what its output is added to.
        let (z, skip) = match config.input {
            Input::Residual => (h, x),
            Input::Output => (x, x),
            Input::Norm(skip) => {
                let z = nn.base_residual(at, sum.clone())?;
                match skip {
                    Skip::Output => (z, x),
                    Skip::Sum => (z, nn.base_residual(at, Residual { norm: None, ..sum.clone() })?),
                    Skip::Norm => (z, z),
                }
            }
        };
        let up = self.bottleneck(nn, &format!("{}.{}", module(at, sum.part), self.name), z)?;
        let x = nn.g.add(up, skip)?;
        if config.norm_after { next.residual(nn, at, Residual { x, ..sum }) } else { Ok(x) }
    }
}

impl Adapter {
    /// A new one.
    pub fn new(config: Bottleneck, heads: Heads) -> Adapter {
        Adapter { name: NAME.into(), config, heads, head: Vec::new() }
    }

    fn left_out(&self, nn: &Nn, at: &Site) -> Result<bool> {
        if self.config.leave_out.is_empty() {
            return Ok(false);
        }
        if nn.layout.streams.len() > 1 {
            let hint = "leave_out = [] in adapter_config.json, if no layer is left out";
            return Err(Error::unsupported("adapters in some layers of an encoder-decoder", hint));
        }
        Ok(layer(&at.path).is_some_and(|layer| self.config.leave_out.contains(&layer)))
    }

    /// `s · (W_up f(W_down z + b_down) + b_up)`
    fn bottleneck(&self, nn: &mut Nn, module: &str, z: Val) -> Result<Val> {
        let config = &self.config;
        let hidden = nn.g.ty(z).cols();
        let d = config.width(hidden);
        let (down, up) = config.init(hidden);
        nn.g.site = module.to_string();
        let w = nn.adapter(&format!("{module}.adapter_down.0.weight"), &[d, hidden], down);
        let b = nn.adapter(&format!("{module}.adapter_down.0.bias"), &[d], Init::Zeros);
        let y = nn.g.linear(z, w, Some(b), None)?;
        let y = nn.g.activation(y, config.activation)?;
        let w = nn.adapter(&format!("{module}.adapter_up.weight"), &[hidden, d], up);
        let b = nn.adapter(&format!("{module}.adapter_up.bias"), &[hidden], Init::Zeros);
        let mut y = nn.g.linear(y, w, Some(b), None)?;
        let key = format!("{module}.scaling");
        match config.scaling {
            Scaling::Fixed(1.0) => {}
            Scaling::Fixed(scale) => {
                let factor = nn.constant(&format!("factor.{scale}"), &[1], || vec![scale]);
                y = nn.g.scale(y, factor)?;
            }
            Scaling::Learned => {
                let scale = nn.adapter(&key, &[1], Init::Ones);
                // The number as a row, so that its gradient is the row's sum.
                let ones = nn.constant(&format!("ones.{hidden}"), &[hidden, 1], || vec![1.0; hidden]);
                let scale = nn.g.reshape(scale, &[1, 1])?;
                let row = nn.g.matmul(ones, false, scale, false, 1.0)?;
                let row = nn.g.reshape(row, &[hidden])?;
                y = nn.g.mul_row(y, row)?;
            }
            Scaling::Channel => {
                let row = nn.adapter(&key, &[hidden], Init::Ones);
                y = nn.g.mul_row(y, row)?;
            }
        }
        if nn.training && config.dropout > 0.0 {
            let spec = Dropout { p: config.dropout, site: nn.next_dropout() };
            let rng = nn.rng();
            y = nn.g.dropout(y, rng, spec)?;
        }
        Ok(y)
    }
}

impl Method for Adapter {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn check(&self, sites: &[Site]) -> Result<()> {
        let layers = sites.iter().filter(|s| s.role == Role::Down).filter_map(|s| layer(&s.path)).max();
        let wrong = self.config.leave_out.iter().find(|&&out| layers.is_none_or(|last| out > last));
        match (wrong, layers) {
            (Some(out), Some(last)) => {
                Err(Error::config("adapter_config.json: leave_out", out.to_string(), format!("0 to {last}")))
            }
            _ => Ok(()),
        }
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        adapterhub::write(save, self.heads.base(), &self.name, self.config.raw())
    }
}
