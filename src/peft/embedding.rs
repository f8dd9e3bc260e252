//! LoRA on the embedding and on the output head, and trained tokens of a table that is frozen otherwise, as Hugging
//! Face PEFT has them inside LoRA adapters.
//!
//! * LoRA: `y = e·(W[id] + s·B A[:, id])`, A `[rank, vocabulary]` starting at zero, B `[hidden, rank]` normal (0, 1), `e`
//!   the model's own factor, `s = α/r`. There is no dropout. An output head that is tied to W stays as
//!   it was.
//! * LoRA on the head: the weight of the loss is `W + s·B A`, A `[rank, hidden]`, B `[vocabulary, rank]`, a copy of W in
//!   f32, because the loss wants its weight as one tensor; so there is no dropout before A. A head that is tied to the
//!   embedding has factors of its own, or those of the embedding: see `tied.rs`.
//! * Trained tokens: see `tokens.rs`.

use super::config::{AdapterConfig, LoraSpec};
use super::files;
use super::tokens::{self, Rows, Tokens};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Val;
use crate::nn::{Init, Next, Nn, Role, Site, Table, WeightRef};

const TOKENS: &str = "trainable_token_indices";
const ONE: &str = "one of the two: LoRA on the table, or trained tokens of it";

impl AdapterConfig {
    /// The trained tokens of the table at `module`.
    fn tokens_of(&self, module: &str, is_embedding: bool) -> Result<Option<&[usize]>> {
        let Some(ids) = self.tokens.as_ref().and_then(|t| t.of(module, is_embedding)) else { return Ok(None) };
        if self.saves(module) {
            let found = format!("{module}, which modules_to_save names too");
            return Err(Error::config(TOKENS, found, "a table that is not trained whole"));
        }
        Ok(Some(ids))
    }

    /// Whether a head that is tied to an embedding has the trained tokens of that: it does, unless it is given others.
    pub(super) fn ties_tokens(&self, head: &str, embedding: &str) -> Result<bool> {
        let (shared, own) = (self.tokens_of(embedding, true)?, self.tokens_of(head, false)?);
        Ok(shared.is_some() && (own.is_none() || own == shared))
    }

    /// Whether PEFT writes the table of `module`, the embedding or the head, into the adapter's file, frozen as it
    /// is: it does if it is a target, and no tokens are trained.
    pub(super) fn keeps_table(&self, module: &str) -> Result<bool> {
        Ok(self.tokens.is_none() && !self.saves(module) && self.resolve_embedding(module)?.is_some())
    }

    /// Under which name the file has the weight of a table that is not trained, if it has.
    pub(super) fn held(&self, w: WeightRef) -> Option<String> {
        let module = w.name.strip_suffix(".weight").filter(|_| matches!(w.role, Role::Embed | Role::Head))?;
        // A pattern that does not compile is an error of the table's own hook, which asks for it too.
        if self.keeps_table(module).unwrap_or(false) {
            return Some(files::base_layer(module));
        }
        Some(files::saved(w.name)).filter(|name| self.whole.contains(name))
    }

    /// An error if the table that encoder and decoder share is adapted or trained whole: in transformers each of the two has it
    /// as an embedding of its own, so that PEFT changes neither. An update of zero may be read.
    fn check_shared(&self, nn: &Nn, path: &str) -> Result<()> {
        let idle = !nn.live && self.idle.iter().any(|module| module == path);
        let adapted = self.resolve_embedding(path)?.is_some() && !idle;
        if !tokens::is_shared(path) || !(adapted || self.saves(path)) {
            return Ok(());
        }
        let key = if self.saves(path) { "modules_to_save" } else { "target_modules" };
        Err(Error::unsupported(
            format!("{key} with {path}, which PEFT changes without effect: encoder and decoder read embed_tokens"),
            format!(
                "leave {path} out of {key}; of an adapter that has it, remove the tensors of {path} too, and PEFT's result stays"
            ),
        ))
    }

    /// Errors if tokens are asked of a module that is not there.
    pub(super) fn check_tables(&self, tables: &[&str]) -> Result<()> {
        if let Some(Tokens::Modules(modules)) = &self.tokens {
            for (name, _) in modules {
                let name = std::slice::from_ref(name);
                if !tables.iter().any(|table| super::config::listed(name, table)) {
                    return Err(Error::config(TOKENS, &name[0], tables.join(" or ")));
                }
            }
        }
        Ok(())
    }
}

pub(super) fn embed(config: &AdapterConfig, nn: &mut Nn, site: &Site, table: Table, next: Next) -> Result<Val> {
    let path = &site.path;
    config.check_shared(nn, path)?;
    let Table { w, ids, scale, .. } = table;
    match (config.resolve_embedding(path)?, config.tokens_of(path, true)?) {
        (None, None) => next.embed(nn, site, table),
        (Some(_), Some(_)) => Err(Error::config(TOKENS, format!("{path}, which is a target too"), ONE)),
        (Some(_), None) if config.dora => {
            Err(Error::unsupported(format!("DoRA on {path}"), "leave the embedding out of the targets"))
        }
        (Some(_), None) if config.lora_bias => {
            Err(Error::unsupported(format!("lora_bias on {path}"), "leave the embedding out of the targets"))
        }
        (Some(spec), None) => {
            let (vocab, dim) = (nn.g.shape(w)[0], nn.g.shape(w)[1]);
            let (a, b) = factors_of(config, nn, path, vocab, dim)?;
            let y = next.embed(nn, site, table)?;
            let learnt = table.learnt(nn)?;
            let columns = nn.g.embed_cols([ids, learnt], a, 1.0)?;
            let update = nn.g.matmul(columns, false, b, true, spec.scale * scale)?;
            nn.g.add(y, update)
        }
        (None, Some(tokens)) => {
            let rows = Rows { ids: tokens, module: path, owner: path, key: files::tokens(path) };
            tokens::embed(&rows, nn, site, table, next)
        }
    }
}

pub(super) fn head(config: &AdapterConfig, nn: &mut Nn, site: &Site, tied: Option<&str>, w: Val) -> Result<Val> {
    if let Some(embedding) = tied {
        config.check_tied(&site.path, embedding)?;
    }
    let lora = match tied {
        Some(embedding) if config.ties_factors()? => Some(Factors::Of(embedding)),
        _ => config.resolve_embedding(&site.path)?.map(|_| Factors::Own),
    };
    let own = config.tokens_of(&site.path, false)?;
    let shared = match tied {
        Some(embedding) => config.tokens_of(embedding, true)?.map(|ids| (embedding, ids)),
        None => None,
    };
    // A tied head goes with the embedding, unless the adapter gives it tokens of its own.
    let (module, ids) = match (shared, own) {
        (Some((embedding, ids)), own) if own.is_none_or(|own| own == ids) => (embedding, ids),
        (Some(_), Some(_)) if config.ensure_weight_tying => {
            let found = format!("{} with other tokens than its embedding, and ensure_weight_tying", site.path);
            return Err(Error::config(TOKENS, found, "the same tokens for both"));
        }
        (_, Some(ids)) => (site.path.as_str(), ids),
        (_, None) => {
            return match lora {
                Some(factors) => adapted_head(config, nn, &site.path, factors, w),
                None => Ok(w),
            };
        }
    };
    if lora.is_some() {
        return Err(Error::config(TOKENS, format!("{}, which is a target too", site.path), ONE));
    }
    let rows = Rows { ids, module, owner: tied.unwrap_or(&site.path), key: files::tokens(module) };
    tokens::head(&rows, nn, w)
}

/// Whose factors a head has.
enum Factors<'a> {
    Own,
    /// Those of the embedding of this name, transposed.
    Of(&'a str),
}

/// W + s·B A.
fn adapted_head(config: &AdapterConfig, nn: &mut Nn, path: &str, factors: Factors, w: Val) -> Result<Val> {
    let LoraSpec { rank, scale, dropout, .. } = config.spec(path)?;
    let refuse = |what: &str, hint: &str| Err(Error::unsupported(format!("{what} on {path}"), hint));
    match () {
        _ if config.dora => return refuse("DoRA", "leave the head out of the targets"),
        _ if config.lora_bias => return refuse("lora_bias", "leave the head out of the targets"),
        _ if nn.training && dropout > 0.0 => {
            return refuse("dropout", "set it to 0, or leave the head out of the targets");
        }
        _ => {}
    }
    let (vocab, dim) = (nn.g.shape(w)[0], nn.g.shape(w)[1]);
    let wide = match nn.g.ty(w).dtype {
        DType::F32 => w,
        dtype if dtype.is_quantized() => nn.g.nf4_dequantize(w)?,
        _ => {
            let rows: Vec<i32> = (0..vocab as i32).collect();
            let rows = nn.constant_i32(&format!("{path}.rows"), &rows);
            nn.g.embed(rows, w, 1.0)?
        }
    };
    let update = match factors {
        Factors::Own => {
            let bound = 1.0 / (dim as f32).sqrt();
            let a = nn.adapter(&files::lora_a(path), &[rank, dim], Init::Uniform { bound });
            let b = nn.adapter(&files::lora_b(path), &[vocab, rank], Init::Zeros);
            nn.g.matmul(b, false, a, false, scale)?
        }
        Factors::Of(embedding) => {
            let (a, b) = factors_of(config, nn, embedding, vocab, dim)?;
            nn.g.matmul(a, true, b, true, scale)?
        }
    };
    nn.g.add(wide, update)
}

/// A `[rank, vocabulary]` and B `[hidden, rank]` of the embedding `path`.
fn factors_of(config: &AdapterConfig, nn: &mut Nn, path: &str, vocab: usize, dim: usize) -> Result<(Val, Val)> {
    let rank = config.spec(path)?.rank;
    let a = nn.adapter(&files::embedding_a(path), &[rank, vocab], Init::Zeros);
    let b = nn.adapter(&files::embedding_b(path), &[dim, rank], Init::Normal { std: 1.0 });
    Ok((a, b))
}
