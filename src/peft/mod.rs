//! Methods: what is trained, and what is added to the model for it. One file a method, hooks at sites.

pub mod adapter;
pub mod adapterhub;
mod bias;
pub mod bitfit;
pub mod bottleneck;
pub mod combine;
pub mod config;
mod dora;
mod embedding;
pub mod files;
pub mod folder;
pub mod full;
pub mod ia3;
pub mod lora;
pub mod merge;
pub mod prefix;
pub mod prompt;
pub mod selection;
mod tied;
pub mod tokens;
pub mod trainable_tokens;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::foreign;
use crate::models::Facts;
use crate::nn::{Hooks, Site, WeightRef};
use crate::weights::{HostTensor, output_bias};

pub use bias::Bias;
pub use bottleneck::Bottleneck;
pub use config::{AdapterConfig, LoraSpec, Targets};
pub use selection::Selection;
pub use tokens::Tokens;

/// A way to fine-tune. Every hook's default leaves the model as it is.
pub trait Method: Hooks {
    /// Its row of the table.
    fn def(&self) -> &'static MethodDef;

    /// Whether the method can be set on a model with these sites.
    fn check(&self, _sites: &[Site]) -> Result<()> {
        Ok(())
    }

    /// What there is to say of it on a model with these sites.
    fn notes(&self, _sites: &[Site]) -> Vec<String> {
        Vec::new()
    }

    /// Takes out of the tensors of an adapter's folder what is there twice.
    fn drop_copies(&self, _tensors: &mut BTreeMap<String, HostTensor>) {}

    /// Is told what its folder has, without copies: weights of the base model among it are the model's, trained or not.
    fn given(&mut self, _tensors: &BTreeMap<String, HostTensor>) {}

    /// Whether it can be set on a model with these weights.
    fn check_weights(&self, _weights: &[WeightRef]) -> Result<()> {
        Ok(())
    }

    /// Merges the method's tensors into a weight of the base model. Tensors that are the base model's own, trained, are in
    /// it already.
    fn merge(&self, _target: &mut merge::Target, _own: &mut merge::Own) -> Result<()> {
        let hint = "keep the adapter: what it adds is in no weight of the base model";
        Err(Error::unsupported(format!("merging method {}", self.def().name), hint))
    }

    /// Whether a head that is tied to an embedding goes with what the method puts on that, so that both stay one weight when
    /// it is merged.
    fn merges_tied(&self, _head: &str, _embedding: &str) -> Result<bool> {
        Ok(false)
    }

    /// Writes what was trained in the method's own format.
    fn save(&self, _save: &mut Save) -> Result<()> {
        Err(Error::unsupported("saving a model that was not trained", "use method lora or full"))
    }
}

/// What a new method is made from. Each takes what it knows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// LoRA's own settings.
    pub lora: AdapterConfig,
    /// IA3 and trainable tokens: the modules that are adapted; LoRA has its own in `lora`.
    pub targets: Targets,
    /// Trainable tokens: which.
    pub trainable_tokens: Option<Vec<usize>>,
    /// Prompt and prefix tuning: virtual tokens, or keys, before each sequence.
    pub virtual_tokens: usize,
    /// Prompt tuning: how the embeddings of virtual tokens start.
    pub prompt_start: prompt::Start,
    /// Of what is drawn before the first step.
    pub seed: u64,
    /// Prefix tuning: an encoder of two layers computes the prefixes.
    pub prefix_projection: bool,
    /// Features between the layers of that encoder; if not given, as many as a key has over all its heads.
    pub encoder_hidden: Option<usize>,
    /// Full training: the parts of the model that are trained; else all.
    pub train: Option<Selection>,
    /// Bottleneck adapters' own settings.
    pub bottleneck: Bottleneck,
    /// The model has an encoder and a decoder, and the task is from sequence to sequence: PEFT counts two models only then.
    pub encoder_decoder: bool,
    /// PEFT's name of the task (`CAUSAL_LM`), for the adapter's config.
    pub task_type: Option<String>,
    /// Modules of the task's head, which are trained whole.
    pub heads: &'static [&'static str],
    /// The base model's folder or name, for the adapter's config.
    pub base_model: Option<String>,
    /// Sizes and names of the base model.
    pub facts: Facts,
}

/// Most virtual tokens, or keys, before a sequence.
pub const MOST_VIRTUAL_TOKENS: usize = 4096;

impl Settings {
    fn checked_virtual_tokens(&self) -> Result<usize> {
        let fits = (1..=MOST_VIRTUAL_TOKENS).contains(&self.virtual_tokens);
        let error = || {
            let expected = format!("1 to {MOST_VIRTUAL_TOKENS}");
            Error::config("virtual-tokens", self.virtual_tokens.to_string(), expected)
        };
        fits.then_some(self.virtual_tokens).ok_or_else(error)
    }
}

/// Makes a method from an adapter_config.json.
pub type ReadConfig = fn(&Map<String, Value>) -> Result<Box<dyn Method>>;

/// The learning rate of a run that is told none; docs/recipes.md has the measurements.
pub struct Rate {
    /// On a model of 4,096 features.
    pub at_4096: f64,
    /// Power of 4096 / features by which narrower models take more.
    pub power: f64,
    /// The most.
    pub most: f64,
}

impl Rate {
    /// The same for every width.
    pub const fn any_width(rate: f64) -> Rate {
        Rate { at_4096: rate, power: 0.0, most: rate }
    }

    /// For a model of `hidden` features, in two digits: powers are not of the same bits everywhere.
    pub fn at(&self, hidden: usize) -> f64 {
        let rate = self.at_4096 * (4096.0 / hidden.max(1) as f64).powf(self.power);
        format!("{:.1e}", rate.min(self.most)).parse().unwrap_or(self.at_4096)
    }
}

/// A row of the table of methods.
pub struct MethodDef {
    /// Its name on the command line.
    pub name: &'static str,
    /// PEFT's `peft_type`, in whose folders it is saved; or [`adapterhub::TYPE`].
    pub peft_type: Option<&'static str>,
    /// Whether a new one leaves what the model computes as it is.
    pub same_at_start: bool,
    /// How fast it learns.
    pub rate: Rate,
    /// Makes a new one; an error says which setting does not fit.
    pub new: fn(&Settings) -> Result<Box<dyn Method>>,
    /// The method of an adapter_config.json.
    pub read: ReadConfig,
}

/// Every method.
pub static METHODS: &[&MethodDef] = &[
    &lora::DEF,
    &full::DEF,
    &ia3::DEF,
    &bitfit::DEF,
    &prompt::DEF,
    &prefix::DEF,
    &adapter::DEF,
    &trainable_tokens::DEF,
];

/// The method of a name.
pub fn named(name: &str) -> Result<&'static MethodDef> {
    let known = || METHODS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    METHODS
        .iter()
        .copied()
        .find(|m| m.name == name)
        .ok_or_else(|| Error::config("method", name, format!("one of {}", known())))
}

/// An adapter's folder.
pub struct Opened {
    /// The method, with the settings of the folder's config.
    pub method: Box<dyn Method>,
    /// adapter_config.json.
    pub config: Map<String, Value>,
    /// By their names in the file.
    pub tensors: BTreeMap<String, HostTensor>,
}

/// The adapter_config.json of a folder, and its method.
fn read_config(dir: &Path) -> Result<(Map<String, Value>, &'static MethodDef)> {
    let text = files::read_config_text(dir)?;
    let path = dir.join(files::CONFIG_FILE);
    let wrong =
        |e: serde_json::Error| Error::file(&path, e.to_string(), "a JSON object as PEFT or AdapterHub writes it");
    let config: Map<String, Value> = serde_json::from_str(&text).map_err(|e| foreign::explain(&path, wrong(e)))?;
    let found = config.get("peft_type").and_then(Value::as_str).or(adapterhub::kind(&config)).unwrap_or("nothing");
    let Some(def) = METHODS.iter().copied().find(|m| m.peft_type == Some(found)) else {
        let known: Vec<&str> = METHODS.iter().filter_map(|m| m.peft_type).collect();
        return Err(Error::unsupported(
            format!("an adapter of peft_type {found}"),
            format!(
                "one of {}; other methods can be merged with PEFT's merge_and_unload where it has it",
                known.join(", ")
            ),
        ));
    };
    Ok((config, def))
}

/// The method of an adapter's folder.
pub fn def_of(dir: &Path) -> Result<&'static MethodDef> {
    read_config(dir).map(|(_, def)| def)
}

/// The task that an adapter's folder says it is for.
pub fn task_type(dir: &Path) -> Result<Option<String>> {
    let (config, _) = read_config(dir)?;
    Ok(config.get("task_type").and_then(Value::as_str).map(str::to_owned))
}

/// The class of the model that an adapter's folder was trained on, if it says.
pub fn model_class(dir: &Path) -> Result<Option<String>> {
    let (config, _) = read_config(dir)?;
    Ok(config.get("model_class").and_then(Value::as_str).map(str::to_owned))
}

/// The tensors of an adapter's folder, by their names in the files.
pub fn tensors(dir: &Path) -> Result<BTreeMap<String, HostTensor>> {
    if adapterhub::is_folder(dir) { adapterhub::read_tensors(dir) } else { files::read_tensors(dir) }
}

/// Opens an adapter's folder of any method.
pub fn open(dir: &Path) -> Result<Opened> {
    let (mut config, def) = read_config(dir)?;
    let mut tensors = tensors(dir)?;
    if adapterhub::is_folder(dir) {
        let head = tensors.keys().filter(|name| !adapterhub::is_adapter(name)).cloned().map(Value::String);
        config.insert(adapterhub::HEAD_KEY.into(), Value::Array(head.collect()));
    }
    if let Some(encoder) = prefix::encoder(dir)? {
        tensors.remove(prompt::KEY);
        tensors.extend(encoder);
        config.insert("trimtab_encoder".into(), Value::Bool(true));
    }
    let mut method = (def.read)(&config)?;
    method.drop_copies(&mut tensors);
    files::settle_biases(&mut tensors);
    method.given(&tensors);
    Ok(Opened { method, config, tensors })
}

/// What there is to save.
pub struct Save<'a> {
    /// The folder that is written.
    pub dir: &'a Path,
    /// The base model's folder or file.
    pub base: &'a Path,
    /// The base model's config.json.
    pub config: &'a serde_json::Value,
    /// Writes the files of the base model's tokenizer into a folder.
    pub tokenizer: &'a dyn Fn(&Path) -> Result<()>,
    /// How whole models are written; adapters are always f32.
    pub dtype: DType,
    /// Names and shapes of what was trained, as files have it.
    pub trained: &'a [(String, Vec<usize>)],
    /// Modules of the base model whose weights files have as `[in, out]`.
    pub transposed: &'a [String],
    /// The same of the base model's tensors that were not trained.
    pub frozen: &'a [(String, Vec<usize>)],
    /// Reads values of the tensor of a number in `trained`, or in `frozen` after those, from one of a number on: a whole
    /// model is read piece by piece, so that saving it needs no memory that training did not need.
    pub read: &'a mut Read<'a>,
    /// What [`Hooks::keeps`] named.
    pub kept: &'a [(String, HostTensor)],
    /// Output heads, each with the embedding that it is tied to.
    pub ties: &'a [(String, String)],
    /// Sizes and names of the base model.
    pub facts: &'a Facts,
}

/// Checks that the tensors of an adapter's folder are exactly `expected`: see [`files::check`].
pub fn check(dir: &Path, tensors: &BTreeMap<String, HostTensor>, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let file = if adapterhub::is_folder(dir) { adapterhub::WEIGHTS_FILE } else { files::WEIGHTS_FILE };
    files::check(&dir.join(file), tensors, expected)
}

impl Opened {
    /// See [`check`].
    pub fn check(&self, dir: &Path, expected: &[(String, Vec<usize>)]) -> Result<()> {
        check(dir, &self.tensors, expected)
    }
}

impl Save<'_> {
    /// Trained biases of heads under the names that they have where head and embedding are apart, if they are.
    fn output_biases(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let apart = self.config.get("tie_word_embeddings").is_some_and(|tied| tied == false);
        let mut copies = Vec::new();
        for (i, (name, shape)) in self.trained.iter().enumerate().filter(|_| apart) {
            let Some(own) = output_bias(files::tensor(name)) else { continue };
            let mut data = vec![0f32; shape.iter().product()];
            (self.read)(i, 0, &mut data)?;
            copies.push((files::saved(own), HostTensor { shape: shape.clone(), data }));
        }
        Ok(copies)
    }

    /// All that was trained.
    pub fn tensors(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let mut tensors = Vec::with_capacity(self.trained.len());
        for (i, (name, shape)) in self.trained.iter().enumerate() {
            let mut data = vec![0f32; shape.iter().product()];
            (self.read)(i, 0, &mut data)?;
            tensors.push((name.clone(), HostTensor { shape: shape.clone(), data }));
        }
        Ok(tensors)
    }
}

/// (tensor, first value, where to)
pub type Read<'a> = dyn FnMut(usize, usize, &mut [f32]) -> Result<()> + 'a;

static NONE: MethodDef = MethodDef {
    name: "none",
    peft_type: None,
    same_at_start: true,
    rate: Rate::any_width(0.0),
    new: |_| Ok(Box::new(Frozen)),
    read: |_| Ok(Box::new(Frozen)),
};

/// Nothing is trained: the base model as it is.
pub struct Frozen;

impl Hooks for Frozen {}

impl Method for Frozen {
    fn def(&self) -> &'static MethodDef {
        &NONE
    }

    fn merge(&self, _: &mut merge::Target, _: &mut merge::Own) -> Result<()> {
        Ok(())
    }
}
