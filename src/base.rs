//! A base model as a user names it: a folder or a file, its config, its tokenizer, its structure.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::tokenizer::Tokenizer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::hub;
use crate::models::{self, Facts, Model};
use crate::nn::Role;
use crate::weights::{Checkpoint, Storage};

/// What an encoder-decoder's embedding is called in its two parts.
const SHARED: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

/// A base model: its config, and its weights unless they are to be drawn at random.
pub struct Base {
    /// The folder or file.
    pub path: PathBuf,
    /// Its config.json, or that which a GGUF file's metadata amount to.
    pub config: Value,
    /// The mapped files; None: weights are drawn at random.
    pub checkpoint: Option<Checkpoint>,
    /// What there is to say of it.
    pub notes: Vec<String>,
}

impl Base {
    /// A Hugging Face folder, a GGUF file, or a name on the hub, which is fetched if it is not there yet. It is mapped;
    /// nothing is read yet, unless the file has a head beside the embedding that its config ties it to.
    pub fn open(path: impl AsRef<Path>) -> Result<Base> {
        let path = hub::local(path.as_ref(), hub::Kind::Model)?;
        let checkpoint = Checkpoint::open(&path)?;
        let mut config = checkpoint.config().clone();
        let mut notes = models::notes(&config);
        // What is wrong with a config is said when the model is asked for.
        let facts = models::read(&config, 1).map_or(Facts::default(), |model| model.facts().clone());
        let checkpoint = checkpoint.under(facts.prefix);
        let [head, table] = facts.head.each_ref().map(|module| format!("{module}.weight"));
        let shared = if facts.decoder_start.is_some() { &SHARED[..] } else { &[] };
        let head = facts.tied.then_some(head.as_str());
        let checkpoint = checkpoint.or(&table, &[shared, head.as_slice()].concat());
        notes.extend(settle_tie(&checkpoint, &facts, &mut config)?);
        check_shared(&checkpoint, &facts)?;
        Ok(Base { path, config, checkpoint: Some(checkpoint), notes })
    }

    /// The model of a folder's config.json with random weights.
    pub fn random(path: impl AsRef<Path>) -> Result<Base> {
        let path = hub::local(path.as_ref(), hub::Kind::Model)?;
        let config = crate::weights::read_config(&path)?;
        let notes = models::notes(&config);
        Ok(Base { path, config, checkpoint: None, notes })
    }

    /// The tokenizer that came with the model.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.checkpoint {
            Some(checkpoint) => Tokenizer::open(checkpoint),
            None => Tokenizer::from_folder(&self.path),
        }
    }

    /// The model's structure, for sequences of at most `positions` tokens.
    pub fn model(&self, positions: usize) -> Result<Box<dyn Model>> {
        models::read(&self.config, positions)
    }

    /// How a frozen weight is kept: as NF4 if the file has it so or `quantize` asks for it, in 16 bits if the file
    /// does (widening is exact) or `dtype` asks for it, else in f32.
    pub fn storage(&self, quantize: Option<DType>, dtype: DType) -> impl Fn(&str, Role) -> DType + '_ {
        move |name, role| {
            let stored = self.checkpoint.as_ref().and_then(|c| c.info(name)).map(|i| i.stored);
            match (stored, quantize) {
                (Some(Storage::As(d)), _) if d.is_quantized() => d,
                (_, Some(q)) if role.is_block_linear() => q,
                (_, _) if dtype != DType::F32 => dtype,
                (Some(Storage::As(d @ (DType::BF16 | DType::F16))), _) => d,
                _ => DType::F32,
            }
        }
    }
}

/// Where a file has a head of its own although its config ties it to the embedding, the file counts, as in transformers; and
/// T5's head is the embedding where the file has none. Returns what there is to say.
fn settle_tie(checkpoint: &Checkpoint, facts: &Facts, config: &mut Value) -> Result<Option<String>> {
    let [head, table] = facts.head.each_ref().map(|module| format!("{module}.weight"));
    let held = |name: &str| checkpoint.info(name).is_some();
    match (facts.tied, held(&head), held(&table)) {
        (true, true, true) if !same(checkpoint, &head, &table)? => {
            models::set_tied(config, false);
            Ok(Some(format!(
                "config.json ties the output head to the embedding, but the file has {head} with other values: that is the head"
            )))
        }
        (false, false, true) if facts.decoder_start.is_some() => {
            models::set_tied(config, true);
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// An error if the encoder or the decoder has another embedding in the file than the one that they share: transformers computes
/// with it then.
fn check_shared(checkpoint: &Checkpoint, facts: &Facts) -> Result<()> {
    let table = format!("{}.weight", facts.head[1]);
    for own in SHARED {
        let held = [own, &table].iter().all(|name| checkpoint.info(name).is_some());
        if facts.decoder_start.is_some() && held && !same(checkpoint, own, &table)? {
            let found = format!("{}: {own} with other values than {table}", checkpoint.path().display());
            return Err(Error::unsupported(found, "a model whose encoder and decoder share their embedding"));
        }
    }
    Ok(())
}

/// Whether two tensors of a file have the same values.
fn same(checkpoint: &Checkpoint, a: &str, b: &str) -> Result<bool> {
    /// Values that are decoded at a time.
    const PIECE: usize = 1 << 20;
    let shape = |name: &str| checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
    let (ours, theirs) = (shape(a), shape(b));
    if ours != theirs {
        return Ok(false);
    }
    let equal = match (checkpoint.raw(a), checkpoint.raw(b)) {
        (Some((x, left)), Some((y, right))) if x == y => left == right,
        _ => {
            let cols = ours.last().copied().unwrap_or(1).max(1);
            let rows: usize = ours[..ours.len().saturating_sub(1)].iter().product();
            let step = (PIECE / cols).max(1);
            let read = |name: &str, first: usize| {
                let rows = first..rows.min(first + step);
                let mut values = vec![0.0; rows.len() * cols];
                checkpoint.read_rows(name, rows, &mut values).map(|()| values)
            };
            let mut equal = true;
            for first in (0..rows).step_by(step) {
                equal &= read(a, first)? == read(b, first)?;
            }
            equal
        }
    };
    checkpoint.release();
    Ok(equal)
}
