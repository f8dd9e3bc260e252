//! What of a run, a model or an adapter goes to the hub, and the card that tells people what it is.
//!
//! Only files that whoever loads it needs go: config, weights, tokenizer, and a card. What tells of this machine stays:
//! checkpoints, settings, metrics and event files, which hold paths.

use std::path::Path;

use serde_json::Value;

use super::checkpoint;
use super::report::{REPORT_FILE, Told};
use crate::error::{Error, Result};
use crate::hub::{self, Content, Kind, Parcel};
use crate::peft::{adapterhub, files, full};
use crate::tasks::{self, TaskDef};
use crate::units::{grouped, human};

/// What is to go where.
pub struct Wanted<'a> {
    /// A run's folder, or that of an adapter or a model.
    pub folder: &'a Path,
    /// `org/name`.
    pub repo: &'a str,
    /// The base model's name on the hub, if the files do not tell it.
    pub base: Option<&'a str>,
    /// A card to take instead of one that is written here.
    pub card: Option<&'a Path>,
    /// Whether the report and the loss curve go too.
    pub report: bool,
}

/// What goes, and what stays.
#[derive(Debug)]
pub struct Packed {
    /// The files.
    pub parcels: Vec<Parcel>,
    /// The text of the card.
    pub card: String,
    /// Names in the folder that are not sent.
    pub stays: Vec<String>,
}

/// Settings that a card tells, where they are set.
const TOLD: [&str; 24] = [
    "task",
    "method",
    "quantize",
    "rank",
    "alpha",
    "dropout",
    "rslora",
    "dora",
    "bias",
    "targets",
    "train_on",
    "max_seq_len",
    "batch_size",
    "epochs",
    "steps",
    "optimizer",
    "lr",
    "schedule",
    "warmup",
    "weight_decay",
    "max_grad_norm",
    "dtype",
    "seed",
    "split",
];

/// Settings that are files: only the names of those are told.
const FILES: [&str; 3] = ["data", "eval_data", "chat_template"];

/// Files that may name a folder of this machine.
const NAMING: [&str; 4] = [files::CONFIG_FILE, "config.json", "tokenizer_config.json", adapterhub::HEAD_CONFIG];

/// Which files go, and their card.
pub fn pack(wanted: &Wanted) -> Result<Packed> {
    let Wanted { folder, .. } = wanted;
    let names = names(folder)?;
    let has = |name: &str| names.iter().any(|known| known == name);
    let adapter = has(files::CONFIG_FILE);
    let chosen = match hub::needed(&names, if adapter { Kind::Adapter } else { Kind::Model }) {
        Ok(chosen) => chosen,
        Err(found) => return Err(nothing(folder, found)),
    };
    let mut chosen: Vec<String> = chosen.into_iter().map(String::from).collect();
    if chosen.iter().any(|name| name == hub::INDEX) {
        let index = folder.join(hub::INDEX);
        let text = std::fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let shards = hub::shards(&text).unwrap_or_default();
        if let Some(lost) =
            shards.iter().find(|shard| !has(shard)).map(String::as_str).or(shards.is_empty().then_some("a weight_map"))
        {
            return Err(Error::file(index, format!("no {lost}"), "a model with all its files"));
        }
        chosen.extend(shards);
    }
    let more = full::KEPT.iter().filter(|name| has(name)).map(|name| name.to_string());
    chosen.extend(more);
    if wanted.report {
        chosen.extend([REPORT_FILE, "loss.svg"].into_iter().filter(|name| has(name)).map(String::from));
    }
    chosen.sort();
    chosen.dedup();

    let config = json(&folder.join(if adapter { files::CONFIG_FILE } else { "config.json" }))?;
    let told = Told::read(folder).unwrap_or_default();
    let base = base(wanted, adapter, &config, &told)?;
    let card = match wanted.card {
        Some(path) => std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?,
        None => card(wanted.repo, base.as_deref(), adapter, &config, &told),
    };
    let mut parcels =
        vec![Parcel { name: files::CARD_FILE.into(), content: Content::Bytes(card.clone().into_bytes()) }];
    for name in &chosen {
        let path = folder.join(name);
        let content = match NAMING.contains(&name.as_str()) {
            true => cleaned(&path, base.as_deref())?,
            false => Content::File(path),
        };
        parcels.push(Parcel { name: name.clone(), content });
    }
    let goes = |name: &String| chosen.contains(name) || *name == files::CARD_FILE;
    let stays = names.iter().filter(|name| !goes(name)).cloned().collect();
    Ok(Packed { parcels, card, stays })
}

/// What is in a folder; of folders in it the name alone.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let end = if entry.path().is_dir() { "/" } else { "" };
        names.push(format!("{}{end}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(names)
}

/// The error of a folder that has nothing to send.
fn nothing(folder: &Path, found: String) -> Error {
    let last = checkpoint::list(folder).pop();
    let expected = match last {
        Some((_, path)) => format!(
            "a finished run, an adapter or a model in safetensors; a checkpoint may be pushed as an adapter: {}",
            path.display()
        ),
        None => "a finished run, an adapter or a model in safetensors".into(),
    };
    Error::file(folder, found, expected)
}

fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path, e.to_string(), "JSON"))
}

/// The name on the hub of the model that it was made from. An adapter is of no use without it.
fn base(wanted: &Wanted, adapter: bool, config: &Value, told: &Told) -> Result<Option<String>> {
    if let Some(base) = wanted.base {
        return Ok(Some(base.to_owned()));
    }
    let named = ["base_model_name_or_path", "model_name"].iter().find_map(|key| config.get(key)?.as_str());
    let named = named.or_else(|| told.run["config"]["model"].as_str()).unwrap_or_default();
    match hub::name(Path::new(named)) {
        Some(name) => Ok(Some(name.repo)),
        None if !adapter => Ok(None),
        None => {
            let found = match named {
                "" => "nothing, and the adapter does not name its base model".into(),
                path => format!("nothing, and the adapter's base model is {path}, which nobody else has"),
            };
            Err(Error::config("--base-model", found, "the base model's name on the hub, ORG/NAME"))
        }
    }
}

/// A config in which a path of this machine gives way to the base model's name.
fn cleaned(path: &Path, base: Option<&str>) -> Result<Content> {
    let mut config = json(path)?;
    let mut changed = false;
    for key in ["base_model_name_or_path", "tokenizer_name_or_path", "model_name", "_name_or_path", "name_or_path"] {
        let Some(old) = config.get(key).and_then(Value::as_str) else { continue };
        if hub::name(Path::new(old)).is_some() || Some(old) == base || old.is_empty() {
            continue;
        }
        // A bare word may be a model of the hub's first days.
        if !old.contains(['/', '\\']) && !Path::new(old).exists() {
            continue;
        }
        config[key] = base.map_or(Value::Null, Value::from);
        changed = true;
    }
    Ok(match changed {
        true => Content::Bytes(format!("{config:#}\n").into_bytes()),
        false => Content::File(path.into()),
    })
}

/// The text of README.md: what the hub reads, then what people do.
fn card(repo: &str, base: Option<&str>, adapter: bool, config: &Value, told: &Told) -> String {
    let task = match adapter {
        true => config["task_type"].as_str().and_then(tasks::of_peft),
        false => config["architectures"][0].as_str().and_then(tasks::of_architecture),
    };
    // A JSON string is a YAML string.
    let quoted = |text: &str| Value::from(text).to_string();
    let library = match (adapter, config.as_object().is_some_and(|config| adapterhub::kind(config).is_some())) {
        (true, true) => "adapter-transformers",
        (true, false) => "peft",
        (false, _) => "transformers",
    };
    let method = told.run["config"]["method"].as_str().map(str::to_lowercase);
    let method = config["peft_type"].as_str().map(str::to_lowercase).or(method);
    let mut text = String::from("---\n");
    if let Some(base) = base {
        text += &format!("base_model: {}\n", quoted(base));
    }
    text += &format!("library_name: {library}\n");
    if let Some(task) = task {
        text += &format!("pipeline_tag: {}\n", task.pipeline);
    }
    text += "tags:\n";
    if let Some(base) = base {
        text +=
            &format!("- {}\n", quoted(&format!("base_model:{}:{base}", if adapter { "adapter" } else { "finetune" })));
    }
    text += &method.as_deref().map_or(String::new(), |method| format!("- {}\n", quoted(method)));
    text += "- trimtab\n---\n\n";
    let what = if adapter { "An adapter of" } else { "A model made from" };
    let of = base.map_or("its base model".into(), |base| format!("[{base}](https://huggingface.co/{base})"));
    let name = repo.rsplit('/').next().unwrap_or(repo);
    text += &format!("# {name}\n\n{what} {of}, trained with Trimtab {}.\n", version(told));
    text += &training(told);
    text += &results(told);
    text += &use_of(repo, base, library, task);
    text
}

fn version(told: &Told) -> &str {
    told.run["versions"]["trimtab"].as_str().unwrap_or(env!("CARGO_PKG_VERSION"))
}

fn table(title: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let rows: String = rows.iter().map(|(name, value)| format!("| {name} | {} |\n", cell(value))).collect();
    format!("\n## {title}\n\n| | |\n|---|---|\n{rows}")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The last part of a path.
fn file_name(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(file_name).collect(),
        Value::String(path) => {
            let name = path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
            name.into()
        }
        other => other.clone(),
    }
}

fn training(told: &Told) -> String {
    let config = &told.run["config"];
    let row = |key: &str, value: Value| (key.replace('_', " "), shown(&value));
    let files = FILES.iter().map(|key| (*key, file_name(&config[*key])));
    let settings = TOLD.iter().map(|key| (*key, config[*key].clone()));
    let is_told = |value: &Value| !value.is_null() && *value != Value::Bool(false);
    let told_ones = files.chain(settings).filter(|(_, value)| is_told(value));
    let mut rows: Vec<_> = told_ones.map(|(key, value)| row(key, value)).collect();
    let count = |key: &str| told.run[key].as_u64().map(grouped);
    if let (Some(trained), Some(all)) = (count("trained_parameters"), count("parameters")) {
        rows.push(("trained parameters".into(), format!("{trained} of {all}")));
    }
    if let Some(device) = told.run["device"].as_str() {
        rows.push(("device".into(), device.into()));
        rows.push(("version".into(), format!("Trimtab {}", version(told))));
    }
    table("Training", &rows)
}

fn results(told: &Told) -> String {
    let mut rows = Vec::new();
    let loss = |event: Option<&Value>| event.and_then(|event| event["loss"].as_f64());
    if let (Some(first), Some(last)) = (loss(told.steps.first()), loss(told.steps.last())) {
        rows.push(("steps".into(), grouped(told.steps.len() as u64)));
        rows.push(("training loss, first to last step".into(), format!("{first:.4} to {last:.4}")));
    }
    if let Some(last) = told.evaluations.last() {
        let step = last["step"].as_u64().unwrap_or_default();
        rows.extend(loss(Some(last)).map(|loss| (format!("evaluation loss after step {step}"), format!("{loss:.4}"))));
        for (name, value) in last["metrics"].as_object().into_iter().flatten() {
            rows.extend(value.as_f64().map(|value| (name.replace('_', " "), format!("{value:.4}"))));
        }
    }
    if let Some(end) = &told.end {
        rows.extend(end["tokens"].as_u64().map(|tokens| ("tokens".into(), grouped(tokens))));
        rows.extend(end["peak_resident_bytes"].as_u64().map(|bytes| ("most memory".into(), human(bytes))));
    }
    table("Results", &rows)
}

fn use_of(repo: &str, base: Option<&str>, library: &str, task: Option<&'static TaskDef>) -> String {
    let class = match task.and_then(|task| task.architectures.first()) {
        Some(&"ForConditionalGeneration") => "AutoModelForSeq2SeqLM".into(),
        Some(class) => format!("AutoModel{class}"),
        None => "AutoModel".into(),
    };
    let base = base.unwrap_or("BASE_MODEL");
    let code = match library {
        "peft" => format!(
            "from peft import PeftModel\nfrom transformers import {class}\n\n\
             model = {class}.from_pretrained(\"{base}\")\nmodel = PeftModel.from_pretrained(model, \"{repo}\")\n"
        ),
        "transformers" => {
            format!("from transformers import {class}\n\nmodel = {class}.from_pretrained(\"{repo}\")\n")
        }
        _ => format!(
            "import adapters\nfrom transformers import {class}\n\nmodel = {class}.from_pretrained(\"{base}\")\n\
             adapters.init(model)\nmodel.load_adapter(\"{repo}\", set_active=True)\n"
        ),
    };
    format!("\n## Use\n\n```python\n{code}```\n")
}

/// Sends what is packed; returns what the hub made of it.
pub fn push(repo: &str, packed: &Packed, private: bool) -> Result<hub::Pushed> {
    let summary = concat!("Upload with Trimtab ", env!("CARGO_PKG_VERSION"));
    hub::Hub::of_environment()?.push(repo, &packed.parcels, private, summary)
}
