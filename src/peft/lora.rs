//! LoRA (Hu et al. 2021, arXiv:2106.09685): `y += s·B(A·dropout(x))` at the targeted linear layers, `s = α/r`, or
//! `α/√r` with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). A starts uniform in ±1/√in (Kaiming with a = √5, as in
//! Hugging Face PEFT), B at zero. On a quantized weight this is QLoRA; nothing here knows. With `use_dora` it is DoRA:
//! see `dora.rs`.
//!
//! PiSSA (Meng et al. 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz 2024, arXiv:2406.01775) are LoRA whose factors started as a
//! part of W, on what was left of it. Files of such adapters name the way; the rest is computed again when weights are loaded.

use std::collections::BTreeMap;

use super::config::{AdapterConfig, LoraSpec, Targets};
use super::{Method, MethodDef, Rate, Save, dora, embedding, files, folder, merge};
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Hooks, Init, Linear, LowRank, Next, Nn, Role, Site, Table, Taken, WeightRef};
use crate::ops::{Dropout, Lora as Spec};
use crate::weights::HostTensor;

/// The method's row.
pub static DEF: MethodDef = MethodDef {
    name: "lora",
    peft_type: Some("LORA"),
    same_at_start: true,
    // 2e-4 and 1e-4 are what QLoRA takes at 4,096 and 8,192 features (arXiv 2305.14314, table 9).
    rate: Rate { at_4096: 2e-4, power: 0.78, most: 2e-3 },
    new: |settings| {
        let mut config = settings.lora.clone();
        if config.modules_to_save.is_empty() {
            config.modules_to_save = folder::heads(settings);
        }
        config.task_type = config.task_type.or(settings.task_type.clone());
        Ok(Box::new(Lora { config }))
    },
    read: |config| {
        let mut config = AdapterConfig::parse(&serde_json::Value::Object(config.clone()).to_string())?;
        folder::add_heads(&mut config.modules_to_save, config.task_type.as_deref());
        Ok(Box::new(Lora { config }))
    },
};

/// See the module.
pub struct Lora {
    /// What is adapted, and how.
    pub config: AdapterConfig,
}

impl Hooks for Lora {
    fn keeps(&self, w: WeightRef) -> Option<String> {
        self.config.held(w)
    }

    fn takes(&self, w: WeightRef) -> Option<Taken> {
        if w.is_bias() || !w.role.is_block_linear() || !self.config.takes_from_base() {
            return None;
        }
        // A pattern that does not compile is an error of the layer's own hook, which asks for it too.
        let spec = self.config.adapts(w.role, w.module()).ok().flatten()?;
        self.config.taken(&spec)
    }

    fn trains(&self, w: WeightRef) -> Option<String> {
        if self.config.saves(w.module()) {
            return Some(files::saved(w.name));
        }
        self.config.trains_bias(w)
    }

    fn keeps_ties(&self) -> bool {
        self.config.ties_saved()
    }

    fn linear(&self, nn: &mut Nn, site: &Site, mut layer: Linear, next: Next) -> Result<Val> {
        let Some(LoraSpec { rank, scale, dropout, .. }) = self.config.adapts(site.role, &site.path)? else {
            return next.linear(nn, site, layer);
        };
        let (out, features) = (nn.g.shape(layer.w)[0], nn.g.shape(layer.w)[1]);
        let bound = 1.0 / (features as f32).sqrt();
        let a = nn.adapter(&files::lora_a(&site.path), &[rank, features], Init::Uniform { bound });
        let b = nn.adapter(&files::lora_b(&site.path), &[out, rank], Init::Zeros);
        let dropout = (nn.training && dropout > 0.0).then(|| Dropout { p: dropout, site: nn.next_dropout() });
        let low_rank = LowRank { spec: Spec { scale, dropout }, a, b };
        if self.config.dora {
            return dora::linear(nn, site, layer, low_rank, next);
        }
        layer.low_rank.push(low_rank);
        let y = next.linear(nn, site, layer)?;
        if !self.config.lora_bias {
            return Ok(y);
        }
        let bias = nn.adapter(&files::lora_bias(&site.path), &[out], Init::Zeros);
        nn.g.add_row(y, bias, scale)
    }

    fn embed(&self, nn: &mut Nn, site: &Site, table: Table, next: Next) -> Result<Val> {
        embedding::embed(&self.config, nn, site, table, next)
    }

    fn head(&self, nn: &mut Nn, site: &Site, tied: Option<&str>, w: Val, next: Next) -> Result<Val> {
        let w = embedding::head(&self.config, nn, site, tied, w)?;
        next.head(nn, site, tied, w)
    }
}

impl Method for Lora {
    fn def(&self) -> &'static MethodDef {
        &DEF
    }

    fn merge(&self, target: &mut merge::Target, own: &mut merge::Own) -> Result<()> {
        merge::low_rank(&self.config, target, own)
    }

    fn merges_tied(&self, head: &str, embedding: &str) -> Result<bool> {
        Ok(self.config.ties_factors()? || self.config.ties_tokens(head, embedding)?)
    }

    fn notes(&self, sites: &[Site]) -> Vec<String> {
        let modules: Vec<&str> = sites.iter().map(|s| s.path.as_str()).collect();
        self.config.note(&modules).into_iter().collect()
    }

    fn check(&self, sites: &[Site]) -> Result<()> {
        let of = |wanted: fn(Role) -> bool| sites.iter().filter(move |s| wanted(s.role)).map(|s| s.path.as_str());
        let tables: Vec<&str> = of(|r| matches!(r, Role::Embed | Role::Head)).collect();
        self.config.check_tables(&tables)?;
        let mut modules: Vec<&str> = of(Role::is_block_linear).collect();
        if self.config.targets != Targets::AllLinear {
            modules.extend(tables);
            modules.extend(of(|r| r == Role::Classifier));
        }
        let found = self.config.resolve_all(&modules)?;
        let linear = |module: &str| sites.iter().any(|s| s.path == module && s.role.is_block_linear());
        match found.iter().find(|(module, _)| self.config.takes_from_base() && !linear(module)) {
            Some((module, _)) => {
                let what = format!("adapter_config.json: init_lora_weights = {} at {module}", self.config.init);
                Err(Error::unsupported(what, "PEFT starts so at linear layers of blocks; convert it to plain LoRA"))
            }
            None => Ok(()),
        }
    }

    fn given(&mut self, tensors: &BTreeMap<String, HostTensor>) {
        let whole = |name: &&String| name.ends_with(".weight") && !name.contains(".lora_");
        self.config.whole = tensors.keys().filter(whole).cloned().collect();
        let zero = tensors.iter().filter(|(_, tensor)| tensor.data.iter().all(|x| *x == 0.0));
        let factors = zero.filter_map(|(name, _)| files::tensor(name).rsplit_once(".lora_embedding_"));
        self.config.idle = factors.map(|(module, _)| module.to_string()).collect();
    }

    fn drop_copies(&self, tensors: &mut BTreeMap<String, HostTensor>) {
        self.config.drop_copies_of_biases(tensors);
        self.config.drop_tied_copies(tensors);
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        // Of those that are trained in large numbers no copy is made.
        let tied = if self.config.copies_trained()? { save.tensors()? } else { Vec::new() };
        let mut copies = self.config.tied_copies(save.ties, &tied, save.kept)?;
        copies.extend(save.output_biases()?);
        let Save { trained, kept, read, .. } = save;
        let more = [*kept, &copies].map(files::by_name).concat();
        let held = more.iter().map(|(name, t)| (name.to_string(), t.shape.clone()));
        let names: Vec<(String, Vec<usize>)> = trained.iter().cloned().chain(held).collect();
        let adapted = || names.iter().filter_map(|t| t.0.strip_suffix(".lora_A.weight"));
        let mut config = self.config.spelled_out(adapted());
        config.fan_in_fan_out = adapted().any(|name| save.transposed.iter().any(|m| *name == files::saved(m)));
        let (count, mut held) = (trained.len(), files::Tensors::held(more));
        let read = |i: usize, first: usize, into: &mut [f32]| match i < count {
            true => read(i, first, into),
            false => (held.read)(i - count, first, into),
        };
        files::write_adapter(save.dir, &config, files::Tensors { names, read: Box::new(read) })
    }
}
