//! What a run is: all that its results depend on, to tell whether a checkpoint is of this run.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::Base;
use crate::config::RunConfig;
use crate::cpu::isa::Isa;
use crate::data::Column;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::peft::files;
use crate::train::schedule;

/// Settings that do not change what is trained. Files are compared by what is in them, not by their paths, and the number
/// of steps by the learning rates that it gives.
const FREE: [&str; 31] = [
    "report_examples",
    "samples",
    "model",
    "data",
    "format",
    "split",
    "too_long",
    "columns",
    "eval_data",
    "eval_every",
    "out",
    "adapter",
    "steps",
    "epochs",
    "warmup",
    "memory",
    "recompute",
    "stream",
    "page_optimizer",
    "offload",
    "host_memory",
    "device",
    "tune",
    "max_skips",
    "save_every",
    "keep",
    "keep_best",
    "patience",
    "save_dtype",
    "profile",
    "log_tensorboard",
];

/// What a run's results depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The device and its instruction set, or how many multiprocessors it has. Another one is no error: it rounds in
    /// another way.
    pub device: String,
    /// Hash of the base model's config and of samples of each tensor.
    pub model: String,
    /// Hash of the adapter_config.json that training starts from.
    pub adapter: Option<String>,
    /// Hash of all examples: tokens, labels, their order, and the shares of an epoch that parts of them have.
    pub data: String,
    /// How many examples there are.
    pub examples: usize,
    /// Tokens of micro-batches of each size: the order in which gradients are summed.
    pub micro_tokens: Vec<usize>,
    /// The settings that results depend on, as JSON.
    pub settings: Map<String, Value>,
}

impl Identity {
    /// Of the run of these settings on this model and these examples.
    pub fn of(
        config: &RunConfig,
        base: &Base,
        data: &Dataset,
        device: String,
        micro_tokens: Vec<usize>,
    ) -> Result<Identity> {
        let adapter = match &config.adapter {
            Some(dir) => {
                let path = dir.join(files::CONFIG_FILE);
                let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
                Some(blake3::hash(&text).to_string())
            }
            None => None,
        };
        let all = config.to_json();
        let fixed = all.as_object().into_iter().flatten().filter(|(name, _)| !FREE.contains(&name.as_str()));
        // As text: a float that is read from JSON may come back as its neighbour.
        let settings = fixed.map(|(name, value)| (name.clone(), value.to_string().into())).collect();
        Ok(Identity {
            // The number of threads changes nothing.
            device: if device.starts_with("cpu") { format!("cpu ({})", Isa::best().name()) } else { device },
            model: model(base)?,
            adapter,
            data: examples(data),
            examples: data.len(),
            micro_tokens,
            settings,
        })
    }

    /// What to say where `self`, of a checkpoint that trimtab `version` wrote, rounded in another way than `now` does.
    pub fn rounds_as(&self, version: &str, now: &Identity) -> Option<String> {
        let ours = env!("CARGO_PKG_VERSION");
        ((version, &self.device) != (ours, &now.device)).then(|| {
            format!(
                "the checkpoint is of trimtab {version} on {}, and this is {ours} on {}: from here on results may differ by \
                 rounding from a run that was not stopped",
                self.device, now.device
            )
        })
    }

    /// Errs, naming all that differs, if `self`, of the checkpoint at `path`, is not `now`.
    pub fn check(&self, path: &Path, now: &Identity) -> Result<()> {
        let mut found: Vec<(String, String, String)> = Vec::new();
        let mut differ = |name: &str, theirs: String, ours: String| {
            if theirs != ours {
                found.push((name.to_owned(), theirs, ours));
            }
        };
        let other = |same: bool, what: &str| if same { String::new() } else { format!("another {what}") };
        differ("model", String::new(), other(self.model == now.model, "model"));
        differ("adapter", String::new(), other(self.adapter == now.adapter, "adapter_config.json"));
        let count = |n: usize, other: &str| format!("{n} {other}examples");
        let strange = if self.data == now.data { "" } else { "other " };
        differ("data", count(self.examples, ""), count(now.examples, strange));
        // Other data may fill others best; that is said already.
        let tokens = |sizes: &[usize]| format!("of {sizes:?} tokens");
        if self.data == now.data {
            differ("micro-batches", tokens(&self.micro_tokens), tokens(&now.micro_tokens));
        }
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) => text.clone(),
            _ => "nothing".into(),
        };
        let new = now.settings.keys().filter(|name| !self.settings.contains_key(*name));
        for name in self.settings.keys().chain(new) {
            let theirs = text(self.settings.get(name));
            differ(&name.replace('_', "-"), theirs, text(now.settings.get(name)));
        }
        if found.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = found.iter().map(|f| f.0.as_str()).collect();
        let list = |ours: bool| {
            let one = |(name, theirs, now): &(String, String, String)| {
                let value = if ours { now } else { theirs };
                if value.is_empty() { format!("the {name} it began with") } else { format!("{name} {value}") }
            };
            found.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let expected = format!("{} as in {}; or another --out", list(false), path.display());
        Err(Error::config(format!("--resume: {}", names.join(", ")), list(true), expected))
    }
}

/// The learning rates of a run, which depend on its number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Length {
    /// Steps of the whole run.
    pub steps: u64,
    /// Of those, the steps in which the rate rises.
    pub warmup: u64,
}

impl Length {
    /// Errs if the first `done` steps of `self`, the run of the checkpoint at `path`, had other rates than those of `now`.
    pub fn check(self, path: &Path, now: Length, config: &RunConfig, done: u64) -> Result<()> {
        let rate = |l: Length, step| schedule::multiplier(config.schedule, step, l.warmup, l.steps);
        if self == now || (0..done.min(now.steps)).all(|step| rate(self, step) == rate(now, step)) {
            return Ok(());
        }
        let text = |l: Length| format!("{} steps, {} of them warmup", l.steps, l.warmup);
        let expected = format!(
            "{} as in {}: with schedule {} the learning rates of its {done} steps would have been others",
            text(self),
            path.display(),
            config.schedule.name()
        );
        Err(Error::config("--resume: steps", text(now), expected))
    }
}

/// A model is told from another by its config, and by the first, middle and last row of each tensor: reading all of it
/// takes as long as loading it.
fn model(base: &Base) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(base.config.to_string().as_bytes());
    let Some(checkpoint) = &base.checkpoint else { return Ok(hasher.finalize().to_string()) };
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    let mut row = Vec::new();
    for name in names {
        let Some(info) = checkpoint.info(name) else { continue };
        hasher.update(format!("{name} {:?} {}\n", info.shape, info.stored.name()).as_bytes());
        let (rows, cols) = match info.shape.split_last() {
            Some((cols, rows)) => (rows.iter().product::<usize>(), *cols),
            None => (1, 1),
        };
        row.resize(cols, 0f32);
        for at in [0, rows / 2, rows.saturating_sub(1)] {
            // What is not a weight cannot be decoded, and is not used.
            if at < rows && checkpoint.read_rows(name, at..at + 1, &mut row).is_ok() {
                hasher.update(bytemuck::cast_slice(&row));
            }
        }
    }
    Ok(hasher.finalize().to_string())
}

fn examples(data: &Dataset) -> String {
    let mut hasher = blake3::Hasher::new();
    for i in 0..data.len() {
        for (name, column) in &data.example(i).columns {
            hasher.update(name.as_bytes());
            match column {
                Column::Ints(values) => {
                    hasher.update(&(values.len() as u64).to_le_bytes());
                    hasher.update(bytemuck::cast_slice(values));
                }
                Column::Floats(values) => {
                    hasher.update(&(values.len() as u64).to_le_bytes());
                    hasher.update(bytemuck::cast_slice(values));
                }
            }
        }
        hasher.update(b"\n");
    }
    for part in data.parts() {
        hasher.update(&(part.examples as u64).to_le_bytes()).update(&part.weight.to_le_bytes());
    }
    hasher.finalize().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FIELDS;

    #[test]
    fn another_card_is_named() {
        let on = |device: &str| Identity {
            device: device.into(),
            model: String::new(),
            adapter: None,
            data: String::new(),
            examples: 1,
            micro_tokens: vec![8],
            settings: Map::new(),
        };
        let (large, small) = (on("H100 with 132 multiprocessors"), on("H100 with 114 multiprocessors"));
        let ours = env!("CARGO_PKG_VERSION");
        let said = large.rounds_as(ours, &small).unwrap();
        assert!(said.contains(&large.device) && said.contains(&small.device), "{said}");
        assert!(large.check(Path::new("a checkpoint"), &small).is_ok(), "another card is no error");
        assert_eq!(large.rounds_as(ours, &large), None);
        assert!(large.rounds_as("0.0.1", &large).unwrap().contains("0.0.1"));
    }

    #[test]
    fn what_is_free_is_a_setting() {
        let unknown = |name: &&str| FIELDS.iter().all(|field| field.name != *name);
        assert_eq!(FREE.iter().find(|name| unknown(name)), None);
        assert!(unknown(&"no_such_setting"));
    }
}
