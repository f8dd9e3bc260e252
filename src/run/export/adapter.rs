//! A LoRA adapter alone as a GGUF file, as llama.cpp's `convert_lora_to_gguf.py` writes it: `NAME.lora_a` `[rank, in]` and
//! `NAME.lora_b` `[out, rank]` for the weight of each layer, and one alpha, which llama.cpp divides by the rank.

use std::path::Path;

use super::hyper::Hyper;
use super::{Report, files, fits, output, peft};
use crate::base::Base;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::models;
use crate::peft::AdapterConfig;
use crate::quant::ggml::GgmlType;
use crate::quant::ggml_encode;
use crate::weights::HostTensor;
use crate::weights::gguf_names::{gguf_name, heads_of, permuted_row};
use crate::weights::gguf_write::{self, Meta, Out};
use crate::weights::load::transpose;

/// Writes the LoRA adapter of the settings, in `ty`, to the GGUF file `out`. Adapters that are more than factors of linear layers,
/// of the embedding or of the head are refused.
pub fn adapter(config: &RunConfig, ty: GgmlType, overwrite: bool) -> Result<Report> {
    let (path, dir, out) = (config.need("model")?, config.need("adapter")?, config.need("out")?);
    output::check_file(out, &[("model", path), ("adapter", dir)], overwrite, output::GGUF)?;
    let base = Base::open(path)?;
    let hyper = Hyper::of(&base.config)?;
    let found = peft::def_of(dir)?.name;
    let hint = "trimtab export without --lora-only, which merges it";
    if found != "lora" {
        return Err(Error::unsupported(format!("a GGUF adapter of method {found}"), hint));
    }
    let lora = files::read_config(dir)?;
    if lora.dora {
        return Err(Error::unsupported("a GGUF adapter with DoRA", hint));
    }
    if lora.takes_from_base() {
        return Err(Error::unsupported("a GGUF adapter that starts from PiSSA or OLoRA", hint));
    }
    let mut pairs: Vec<Pair> = Vec::new();
    let mut left = files::read_tensors(dir)?;
    let modules: Vec<String> = left.keys().filter_map(|name| module_of(name)).collect();
    for module in modules {
        let embedding = left.contains_key(&files::embedding_a(&module));
        let [a, b] = match embedding {
            true => [files::embedding_a(&module), files::embedding_b(&module)],
            false => [files::lora_a(&module), files::lora_b(&module)],
        };
        // PEFT writes the table along that it adds to.
        left.remove(&files::base_layer(&module));
        if let (Some(a), Some(b)) = (left.remove(&a), left.remove(&b)) {
            pairs.push(Pair { module, a, b, embedding });
        }
    }
    if let Some(name) = left.keys().next() {
        return Err(Error::unsupported(format!("{name} in a GGUF adapter, which has low-rank factors only"), hint));
    }
    let Some(alpha) = pairs.first().map(|pair| pair.alpha(&lora)).transpose()? else {
        return Err(Error::file(dir, "no factors", "the adapter of layers"));
    };
    let tied = models::read(&base.config, 2)?.facts().tied;
    let (mut tensors, mut values) = (Vec::new(), Vec::new());
    for mut pair in pairs {
        pair.check(&base, tied, dir)?;
        let Some(name) = gguf_name(&format!("{}.weight", pair.module)) else {
            return Err(Error::unsupported(format!("{} in a GGUF file", pair.module), hint));
        };
        pair.settle(&lora, alpha, &hyper)?;
        for (factor, tensor) in [("lora_a", pair.a), ("lora_b", pair.b)] {
            tensors.push(Out { name: format!("{name}.{factor}"), shape: tensor.shape, ty });
            values.push(tensor.data);
        }
    }
    let text = |text: &str| Meta::String(text.into());
    let metadata = [
        ("general.architecture", text(hyper.architecture.name)),
        ("general.type", text("adapter")),
        ("general.file_type", Meta::Uint(if ty == GgmlType::F32 { 0 } else { 1 })),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Meta::Float(alpha)),
    ];
    let metadata: Vec<(String, Meta)> = metadata.into_iter().map(|(key, value)| (key.into(), value)).collect();
    let bytes = gguf_write::write(out, &metadata, &tensors, &mut |i, to| {
        if let Some(x) = values[i].iter().find(|x| !fits(**x, ty)) {
            return Err(Error::file(out, format!("{x} in {}", tensors[i].name), "finite numbers"));
        }
        let mut bytes = Vec::new();
        ggml_encode::quantize(ty, &values[i], &mut bytes);
        to.write_all(&bytes).map_err(|e| Error::io(out, e))
    })?;
    Ok(Report::of(&tensors, bytes, base.notes))
}

/// The module that a tensor is the first factor of.
fn module_of(name: &str) -> Option<String> {
    let end = [".lora_A.weight", ".lora_embedding_A"].iter().find_map(|end| name.strip_suffix(end))?;
    Some(files::tensor(end).to_string())
}

/// The factors of a module.
struct Pair {
    module: String,
    a: HostTensor,
    b: HostTensor,
    embedding: bool,
}

impl Pair {
    fn rank(&self) -> usize {
        self.a.shape.first().copied().unwrap_or(0)
    }

    /// The alpha with which llama.cpp scales as the adapter does.
    fn alpha(&self, lora: &AdapterConfig) -> Result<f32> {
        Ok(lora.spec(&self.module)?.scale * self.rank() as f32)
    }

    /// Whether the factors fit the base model's weight.
    fn check(&self, base: &Base, tied: bool, dir: &Path) -> Result<()> {
        let name = format!("{}.weight", self.module);
        let info = base.checkpoint.as_ref().and_then(|checkpoint| checkpoint.info(&name));
        if tied && ["lm_head", "model.embed_tokens"].contains(&self.module.as_str()) {
            let what = format!("a GGUF adapter of {}, where head and embedding are one weight", self.module);
            return Err(Error::unsupported(what, "trimtab merge"));
        }
        let rank = self.rank();
        let shapes = match self.embedding {
            true => info.map(|i| ([rank, i.shape[0]], [i.shape[1], rank])),
            false => info.map(|i| ([rank, i.shape[1]], [i.shape[0], rank])),
        };
        match shapes {
            Some((a, b)) if rank > 0 && self.a.shape == a && self.b.shape == b => Ok(()),
            _ => {
                let found = format!("factors {:?} and {:?} of {}", self.a.shape, self.b.shape, self.module);
                Err(Error::file(dir, found, "the adapter of this model"))
            }
        }
    }

    /// Brings the factors into llama.cpp's order, and makes its one alpha theirs.
    fn settle(&mut self, lora: &AdapterConfig, alpha: f32, hyper: &Hyper) -> Result<()> {
        let own = self.alpha(lora)?;
        if own != alpha {
            self.b.data.iter_mut().for_each(|b| *b = (f64::from(*b) * f64::from(own) / f64::from(alpha)) as f32);
        }
        if self.embedding {
            // Rows of A are taken by token.
            let (rank, vocab) = (self.a.shape[0], self.a.shape[1]);
            self.a = HostTensor { shape: vec![vocab, rank], data: transpose(&self.a.data, vocab) };
        }
        let heads = heads_of(&format!("{}.weight", self.module), hyper.heads.0, hyper.heads.1);
        if let Some(heads) = heads.filter(|_| hyper.architecture.permuted) {
            let (rows, cols) = (self.b.shape[0], self.b.shape[1]);
            let mut permuted = vec![0f32; self.b.data.len()];
            for (r, row) in self.b.data.chunks_exact(cols).enumerate() {
                permuted[permuted_row(r, rows, heads) * cols..][..cols].copy_from_slice(row);
            }
            self.b.data = permuted;
        }
        Ok(())
    }
}
