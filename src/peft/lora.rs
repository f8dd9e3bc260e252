//! LoRA (Hu et al. 2021, arXiv:2106.09685): `y += s·B(A·dropout(x))` at the targeted linear layers, `s = α/r`, or
//! `α/√r` with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). A starts uniform in ±1/√in (Kaiming with a = √5, as in
//! Hugging Face PEFT), B at zero. On a quantized weight this is QLoRA; nothing here knows. With `use_dora` it is DoRA:
//! see `dora.rs`.

use super::config::{AdapterConfig, LoraSpec, Targets};
use super::{Method, Save, dora, embedding, files};
use crate::error::Result;
use crate::graph::Val;
use crate::models::Model;
use crate::nn::{Hooks, Init, Nn, Role, Site};
use crate::ops::{Dropout, Lora as LowRank};

pub struct Lora {
    pub config: AdapterConfig,
}

impl Hooks for Lora {
    fn keeps(&self, name: &str, role: Role) -> Result<Option<String>> {
        match name.strip_suffix(".weight") {
            Some(module) if matches!(role, Role::Embed | Role::Head) && self.config.keeps_table(module)? => {
                Ok(Some(files::base_layer(module)))
            }
            _ => Ok(None),
        }
    }

    fn trains(&self, name: &str, _: Role) -> bool {
        name.rsplit_once('.').is_some_and(|(module, _)| self.config.saves(module))
    }

    fn key(&self, name: &str) -> String {
        files::saved(name)
    }

    fn linear(&self, nn: &mut Nn, site: &Site, x: Val, w: Val, bias: Option<Val>) -> Result<Val> {
        let Some(LoraSpec { rank, scale, dropout, .. }) = self.config.resolve(&site.path)? else {
            return nn.base_linear(x, w, bias, None);
        };
        let (out, features) = (nn.g.shape(w)[0], nn.g.shape(w)[1]);
        let bound = 1.0 / (features as f32).sqrt();
        let a = nn.adapter(&files::lora_a(&site.path), &[rank, features], Init::Uniform { bound });
        let b = nn.adapter(&files::lora_b(&site.path), &[out, rank], Init::Zeros);
        let dropout = (nn.training && dropout > 0.0).then(|| Dropout { p: dropout, site: nn.next_dropout() });
        let low_rank = (LowRank { scale, dropout }, a, b);
        if self.config.dora {
            return dora::linear(nn, &site.path, x, w, bias, low_rank);
        }
        let y = nn.base_linear(x, w, bias, Some(low_rank))?;
        if !self.config.lora_bias {
            return Ok(y);
        }
        let bias = nn.adapter(&files::lora_bias(&site.path), &[out], Init::Zeros);
        nn.g.add_row(y, bias, scale)
    }

    fn embed(&self, nn: &mut Nn, site: &Site, table: Val, scale: f32) -> Result<Val> {
        embedding::embed(&self.config, nn, site, table, scale)
    }

    fn head(&self, nn: &mut Nn, site: &Site, tied: Option<&str>, w: Val) -> Result<Val> {
        embedding::head(&self.config, nn, site, tied, w)
    }
}

impl Method for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn check(&self, model: &dyn Model) -> Result<()> {
        self.config.check_tables(model.embedding(), model.head_path())?;
        let linears = model.linears();
        let mut modules: Vec<&str> = linears.iter().map(String::as_str).collect();
        if self.config.targets != Targets::AllLinear {
            modules.extend([model.embedding(), model.head_path()]);
        }
        self.config.resolve_all(&modules).map(drop)
    }

    fn save(&self, save: &mut Save) -> Result<()> {
        let mut trained = Vec::with_capacity(save.trained.len());
        for (i, (name, shape)) in save.trained.iter().enumerate() {
            let mut data = vec![0f32; shape.iter().product()];
            (save.read)(i, 0, &mut data)?;
            trained.push((name.clone(), shape.clone(), data));
        }
        let tensors: Vec<files::Out> =
            trained.iter().chain(save.kept).map(|(name, shape, data)| files::Out { name, shape, data }).collect();
        let adapted = tensors.iter().filter_map(|t| t.name.strip_suffix(".lora_A.weight"));
        files::write_adapter(save.dir, &self.config.spelled_out(adapted), &tensors)
    }
}
