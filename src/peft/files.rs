//! The folder of a PEFT LoRA adapter: `adapter_config.json`, `adapter_model.safetensors`, `README.md`.
//!
//! Tensors are named `base_model.model.<module>.lora_A.weight` `[rank, in]` and `….lora_B.weight` `[out, rank]`
//! (DoRA: also `….lora_magnitude_vector` `[out]`), f32, in a safetensors file with the metadata `{"format": "pt"}`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Read;
use super::config::AdapterConfig;
use crate::durable;
use crate::error::{Error, Result};
use crate::foreign;
use crate::nearest::nearest;
use crate::paths;
use crate::weights::safetensors::damage;
use crate::weights::{HostTensor, OUTPUT_BIASES, pickle, write_safetensors_with};

/// What an adapter is, in its folder; written last, so that a folder with it is complete.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The adapter's tensors in its folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const LEGACY_FILE: &str = "adapter_model.bin";
/// What the folder says of itself.
pub const CARD_FILE: &str = "README.md";
const PREFIX: &str = "base_model.model.";

/// Name in the file of A, `[rank, in]`, of the linear layer `module`.
pub fn lora_a(module: &str) -> String {
    format!("{PREFIX}{module}.lora_A.weight")
}

/// Name in the file of B, `[out, rank]`, of the linear layer `module`.
pub fn lora_b(module: &str) -> String {
    format!("{PREFIX}{module}.lora_B.weight")
}

/// Name in the file of the bias of B, `[out]`, of the linear layer `module`.
pub fn lora_bias(module: &str) -> String {
    format!("{PREFIX}{module}.lora_B.bias")
}

/// Name in the file of DoRA's magnitudes, `[out]`, of the linear layer `module`.
pub fn magnitude(module: &str) -> String {
    format!("{PREFIX}{module}.lora_magnitude_vector")
}

/// Name in the file of A, `[rank, vocabulary]`, of the embedding `module`.
pub fn embedding_a(module: &str) -> String {
    format!("{PREFIX}{module}.lora_embedding_A")
}

/// Name in the file of B, `[hidden, rank]`, of the embedding `module`.
pub fn embedding_b(module: &str) -> String {
    format!("{PREFIX}{module}.lora_embedding_B")
}

/// Name in the file of the weight that LoRA is added to. PEFT writes it along if `module` is the embedding or the head,
/// and loads it as the base's.
pub fn base_layer(module: &str) -> String {
    format!("{PREFIX}{module}.base_layer.weight")
}

/// Name in the file of a trained bias of the base model, `[out]`, of the adapted layer `module`.
pub fn base_bias(module: &str) -> String {
    format!("{PREFIX}{module}.base_layer.bias")
}

/// Name in the file of the trained rows, `[tokens, hidden]`, of the table `module`.
pub fn tokens(module: &str) -> String {
    format!("{PREFIX}{module}.token_adapter.trainable_tokens_delta")
}

/// Name in the file of a tensor of the base model that is trained whole.
pub fn saved(tensor: &str) -> String {
    format!("{PREFIX}{tensor}")
}

/// The tensor of the base model that a file has under this name.
pub fn tensor(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The module of a tensor of the base model under its name in the file.
pub fn module(name: &str) -> &str {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// An adapter as its folder holds it.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its adapter_config.json.
    pub config: AdapterConfig,
    /// By their names in the file.
    pub tensors: BTreeMap<String, HostTensor>,
}

// ---- reading

/// Reads `adapter_config.json` of a folder.
pub fn read_config(dir: &Path) -> Result<AdapterConfig> {
    AdapterConfig::parse(&read_config_text(dir)?)
}

/// The text of `adapter_config.json` of a folder.
pub(super) fn read_config_text(dir: &Path) -> Result<String> {
    const WANTED: &str = "the folder of an adapter, with adapter_config.json";
    paths::need(dir, WANTED, true)?;
    let path = dir.join(CONFIG_FILE);
    if path.exists() || !dir.is_dir() {
        return std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e));
    }
    let found = match dir.join("config.json").exists() {
        true => "the folder of a model",
        false => "a folder without adapter_config.json",
    };
    Err(Error::file(dir, found, WANTED))
}

/// Reads a whole adapter. Weights may be f64, f32, bf16 or f16.
pub fn read_adapter(dir: &Path) -> Result<Adapter> {
    Ok(Adapter { config: read_config(dir)?, tensors: read_tensors(dir)? })
}

/// Reads the tensors of a folder: of safetensors, else of a pickle, of which nothing is executed.
pub fn read_tensors(dir: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let Some((path, held)) = read_either(dir, [WEIGHTS_FILE, LEGACY_FILE])? else {
        return Err(Error::file(dir, format!("a folder without {WEIGHTS_FILE}"), "the whole folder of an adapter"));
    };
    let mut tensors: BTreeMap<String, HostTensor> = BTreeMap::new();
    for (name, tensor) in held {
        // With `bias="all"` PEFT has the biases of a module that is trained whole under two names.
        let other = tensors.insert(usual(&name), tensor);
        if other.is_some_and(|other| other != tensors[&usual(&name)]) {
            return Err(Error::file(&path, format!("two tensors of different values for {}", usual(&name)), "one"));
        }
    }
    Ok(tensors)
}

/// Of a head that is trained whole and has two biases, which a file may both have, the one that is added is the one that counts.
pub(super) fn settle_biases(tensors: &mut BTreeMap<String, HostTensor>) {
    for (shared, own) in OUTPUT_BIASES {
        if let Some(bias) = tensors.remove(&saved(own)) {
            tensors.insert(saved(shared), bias);
        }
    }
}

/// The tensors of a file of safetensors in a folder, else of a pickle, of which nothing is executed, and which of the two it was;
/// none if neither is there.
pub fn read_either(dir: &Path, [file, pickle]: [&str; 2]) -> Result<Option<(PathBuf, BTreeMap<String, HostTensor>)>> {
    let (path, pickled) = (dir.join(file), dir.join(pickle));
    if path.exists() {
        let tensors = read_file(&path)?;
        return Ok(Some((path, tensors)));
    }
    if !pickled.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(&pickled).map_err(|e| Error::io(&pickled, e))?;
    // An archive is what it should be; of anything else it is said what it is.
    let explained = |e| if bytes.starts_with(b"PK") { e } else { foreign::explain(&pickled, e) };
    let tensors = pickle::read(&pickled, &bytes).map_err(explained)?;
    Ok(Some((pickled, tensors)))
}

/// A name as PEFT writes it: state dictionaries that were saved by hand have the adapter's name in it, or lack the prefix.
fn usual(name: &str) -> String {
    const MARKS: [&str; 4] = [".lora_A.", ".lora_B.", ".lora_embedding_", ".lora_magnitude_vector"];
    if !MARKS.iter().any(|mark| name.contains(mark)) {
        return name.replace(".modules_to_save.default.", ".");
    }
    let mut name = name.replace(".default.", ".");
    name.truncate(name.strip_suffix(".default").unwrap_or(&name).len());
    if let Some(module) = name.strip_suffix(".lora_magnitude_vector.weight") {
        name = format!("{module}.lora_magnitude_vector");
    }
    if name.starts_with(PREFIX) { name } else { format!("{PREFIX}{name}") }
}

/// Reads the tensors of a safetensors file, widened to f32.
pub fn read_file(path: &Path) -> Result<BTreeMap<String, HostTensor>> {
    read_bytes(path, &std::fs::read(path).map_err(|e| Error::io(path, e))?)
}

/// The same of its bytes; errors name `path`.
pub fn read_bytes(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, HostTensor>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| damage(path, bytes, &e))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = widen(&view).ok_or_else(|| {
            Error::file(path, format!("{name} of dtype {:?}", view.dtype()), "tensors of f64, f32, bf16 or f16")
        })?;
        tensors.insert(name, HostTensor { shape: view.shape().to_vec(), data });
    }
    Ok(tensors)
}

/// The elements of a stored tensor as f32; safetensors keeps them little-endian.
fn widen(view: &TensorView) -> Option<Vec<f32>> {
    let half = |convert: fn([u8; 2]) -> f32| view.data().as_chunks().0.iter().map(|&b| convert(b)).collect();
    match view.dtype() {
        Dtype::F32 => Some(view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        Dtype::F64 => Some(view.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect()),
        Dtype::BF16 => Some(half(|b| half::bf16::from_le_bytes(b).to_f32())),
        Dtype::F16 => Some(half(|b| half::f16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

impl Adapter {
    /// See [`check`].
    pub fn check(&self, dir: &Path, expected: &[(String, Vec<usize>)]) -> Result<()> {
        check(&dir.join(WEIGHTS_FILE), &self.tensors, expected)
    }
}

/// Checks that the file holds exactly the tensors `expected` (name and shape), and names every one that is
/// missing, left over, or of another shape: an adapter that fits only in part is never applied. The weight that
/// an adapted module adds to (PEFT writes it for the embedding and the head) may be there.
pub fn check(path: &Path, tensors: &BTreeMap<String, HostTensor>, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let wanted: HashMap<&str, &[usize]> = expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let missing: Vec<&str> = expected.iter().map(|(n, _)| n.as_str()).filter(|n| !tensors.contains_key(*n)).collect();
    let adapted = |m: &str| ["lora_embedding_A", "lora_A.weight"].map(|a| wanted.contains_key(&*format!("{m}.{a}")));
    let table = |n: &str| n.strip_suffix(".base_layer.weight").is_some_and(|m| adapted(m).contains(&true));
    let placed = |n: &str| wanted.contains_key(n) || table(n);
    let left: Vec<&str> = tensors.keys().map(String::as_str).filter(|n| !placed(n)).collect();
    if !missing.is_empty() || !left.is_empty() {
        let mut found = Vec::new();
        if !left.is_empty() {
            found.push(format!("{} the model has no place for ({})", count(left.len()), some(&left, &missing)));
        }
        if !missing.is_empty() {
            found.push(format!("{} missing ({})", count(missing.len()), some(&missing, &left)));
        }
        return Err(Error::file(path, found.join("; "), "the adapter of this model"));
    }
    for (name, shape) in expected {
        let held = &tensors[name];
        if held.shape != *shape {
            let (found, expected) = mismatch(name, &held.shape, shape);
            return Err(Error::file(path, found, expected));
        }
    }
    Ok(())
}

/// What is found and expected of a tensor that has another shape; a table of other tokens is said to be that.
pub fn mismatch(name: &str, found: &[usize], expected: &[usize]) -> (String, String) {
    let table =
        [".embed_tokens.", ".lm_head.", ".wte.", ".word_embeddings.", ".shared."].iter().any(|t| name.contains(t));
    let differ: Vec<usize> = (0..found.len().min(expected.len())).filter(|&i| found[i] != expected[i]).collect();
    match (&differ[..], found.len() == expected.len()) {
        (&[at], true) if table => (
            format!("{name} of shape {found:?}: a vocabulary of {} tokens", found[at]),
            format!(
                "{expected:?}, the vocabulary of {} of this model; resize the base model first (transformers' \
                 resize_token_embeddings) and save it",
                expected[at]
            ),
        ),
        _ => (format!("{name} of shape {found:?}"), format!("{expected:?}")),
    }
}

fn count(n: usize) -> String {
    format!("{n} tensor{}", if n == 1 { "" } else { "s" })
}

/// The first few names, each with the nearest of the other side.
fn some(names: &[&str], others: &[&str]) -> String {
    const SHOWN: usize = 4;
    let line = |name: &&str| match nearest(name, others.iter().copied()) {
        Some(near) => format!("{name}, nearest {near}"),
        None => (*name).to_owned(),
    };
    let mut text: Vec<String> = names.iter().take(SHOWN).map(line).collect();
    if names.len() > SHOWN {
        text.push(format!("and {} more", names.len() - SHOWN));
    }
    text.join("; ")
}

// ---- writing

/// Values that are read and written at a time.
const PIECE: usize = 1 << 18;

/// Tensors to be written, which need not be in memory.
pub struct Tensors<'a> {
    /// Names in the file, and shapes.
    pub names: Vec<(String, Vec<usize>)>,
    /// Reads values of the tensor of a number in `names`, from one of a number on.
    pub read: Box<Read<'a>>,
}

impl<'a> Tensors<'a> {
    /// Those that are in memory.
    pub fn held(tensors: Vec<(&'a str, &'a HostTensor)>) -> Tensors<'a> {
        let names = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.shape.clone())).collect();
        let read = move |i: usize, first: usize, into: &mut [f32]| {
            let (name, tensor) = tensors[i];
            let values = tensor.data.get(first..first + into.len());
            let values = values.ok_or_else(|| {
                Error::config(name, format!("{} elements", tensor.data.len()), format!("those of {:?}", tensor.shape))
            })?;
            into.copy_from_slice(values);
            Ok(())
        };
        Tensors { names, read: Box::new(read) }
    }
}

/// Writes the three files. Each appears whole or not at all, the config last: a folder with an
/// `adapter_config.json` is complete. A value that is not finite is an error.
pub fn write_adapter(dir: &Path, config: &AdapterConfig, tensors: Tensors) -> Result<()> {
    let what = what(config);
    write_folder(dir, &config.to_json(), &lora_card(config, &what), tensors)
}

/// The same of an adapter that was made of others, as `of` says.
pub fn write_combined(dir: &Path, config: &AdapterConfig, of: &str, tensors: Tensors) -> Result<()> {
    let what = format!("{} {of}", what(config));
    write_folder(dir, &config.to_json(), &lora_card(config, &what), tensors)
}

fn what(config: &AdapterConfig) -> String {
    format!("Rank {}, alpha {}, on {}.", config.rank, config.alpha, config.targets)
}

fn lora_card<'a>(config: &'a AdapterConfig, what: &'a str) -> Card<'a> {
    Card { base: config.base_model.as_deref(), method: "LoRA", tag: "lora", what }
}

/// The same for any method: the text of its config and what its card says.
pub fn write_folder(dir: &Path, config: &str, card: &Card, tensors: Tensors) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    write_weights(&dir.join(WEIGHTS_FILE), tensors)?;
    durable::write(&dir.join(CARD_FILE), card.text().as_bytes())?;
    durable::write(&dir.join(CONFIG_FILE), config.as_bytes())
}

/// Writes tensors by name into a safetensors file.
pub fn write_tensors(path: &Path, tensors: &[(String, HostTensor)]) -> Result<()> {
    write_weights(path, Tensors::held(by_name(tensors)))
}

/// Such pairs, borrowed.
pub(super) fn by_name(tensors: &[(String, HostTensor)]) -> Vec<(&str, &HostTensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

fn write_weights(path: &Path, tensors: Tensors) -> Result<()> {
    let Tensors { names, mut read } = tensors;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let infos = names.iter().map(|(name, shape)| (name.clone(), Dtype::F32, shape.clone())).collect();
    let mut values = vec![0f32; PIECE];
    write_safetensors_with(path, &metadata, infos, &mut |i, out| {
        let (name, shape) = &names[i];
        let len: usize = shape.iter().product();
        for first in (0..len).step_by(PIECE) {
            let values = &mut values[..PIECE.min(len - first)];
            read(i, first, values)?;
            if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                let found = format!("{x} in {name}: the run diverged");
                return Err(Error::file(path, found, "finite numbers; nothing was written (try a lower lr)"));
            }
            out.write_all(bytemuck::cast_slice(values)).map_err(|e| Error::io(path, e))?;
        }
        Ok(())
    })
}

/// The model card: the header by which the Hugging Face hub files an adapter, and how to load it.
pub struct Card<'a> {
    /// The base model's folder or its name on the hub.
    pub base: Option<&'a str>,
    /// The method's name, for readers.
    pub method: &'a str,
    /// The hub's tag for it.
    pub tag: &'a str,
    /// A sentence about its settings.
    pub what: &'a str,
}

impl Card<'_> {
    fn text(&self) -> String {
        let Card { base, method, tag, what } = self;
        // A JSON string is a YAML string.
        let quoted = |s: &str| serde_json::Value::from(s).to_string();
        let mut text = String::from("---\n");
        if let Some(base) = base {
            text += &format!("base_model: {}\n", quoted(base));
        }
        text += "library_name: peft\npipeline_tag: text-generation\ntags:\n";
        if let Some(base) = base {
            text += &format!("- {}\n", quoted(&format!("base_model:adapter:{base}")));
        }
        let article = if method.starts_with(['A', 'E', 'I', 'O']) { "An" } else { "A" };
        text += &format!("- {tag}\n- trimtab\n---\n\n# {article} {method} adapter\n\n");
        text += &format!(
            "{what} Written by Trimtab {}; the files are those of Hugging Face PEFT.\n\n",
            env!("CARGO_PKG_VERSION")
        );
        text += &format!(
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
             model = AutoModelForCausalLM.from_pretrained({})\nmodel = PeftModel.from_pretrained(model, \"PATH_OF_THIS_FOLDER\")\n```\n",
            quoted(base.unwrap_or("BASE_MODEL"))
        );
        text
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
