//! A run's folder and its checkpoints.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Value, json};

use super::{Found, TensorLine, adapter, broken, model};
use crate::config::{Flags, RunConfig};
use crate::peft::{adapterhub, files};
use crate::run::checkpoint;
use crate::run::folder::CONFIG_FILE;
use crate::run::metrics::METRICS_FILE;
use crate::weights::safetensors::SafetensorsFile;

/// Settings that are shown.
const SHOWN: [&str; 14] = [
    "model",
    "data",
    "task",
    "method",
    "quantize",
    "rank",
    "alpha",
    "targets",
    "steps",
    "epochs",
    "batch_size",
    "max_seq_len",
    "lr",
    "optimizer",
];

/// A run's folder.
pub fn run(path: &Path) -> Found {
    let mut found = Found::new("run");
    let file = path.join(CONFIG_FILE);
    match RunConfig::resolve(Some(&file), &Flags::default()) {
        Ok(config) => {
            let all = config.to_json();
            let shown = SHOWN.iter().filter_map(|key| Some((key.to_string(), all.get(*key)?.clone())));
            found.say("settings", Value::Object(shown.filter(|(_, v)| !v.is_null()).collect()));
        }
        // An adapter or a model that it started from may be gone.
        Err(error) => found.faults.push(error.to_string()),
    }
    metrics(path, &mut found);
    let mut checkpoints = Vec::new();
    for (step, path) in checkpoint::list(path) {
        let whole = checkpoint::open(&path);
        checkpoints.push(json!({"step": step, "whole": whole.is_ok()}));
        found.faults.extend(whole.err().map(|error| error.to_string()));
    }
    found.say("checkpoints", checkpoints);
    let has = |name: &str| path.join(name).exists();
    let result = match () {
        () if has(files::CONFIG_FILE) || adapterhub::is_folder(path) => Some(adapter::folder(path)),
        () if has("config.json") => Some(model::open(path, false)),
        () => None,
    };
    found.say("finished", result.is_some());
    if let Some(result) = result {
        found.say("result", Value::Object(result.facts));
        found.tensors = result.tensors;
        found.faults.extend(result.faults);
    }
    found
}

/// What metrics.jsonl says of the steps.
fn metrics(path: &Path, found: &mut Found) {
    let path = path.join(METRICS_FILE);
    let Ok(file) = std::fs::File::open(&path) else {
        found.say("steps", 0);
        return;
    };
    let (mut last, mut evaluated, mut wrong) = (None, None, 0);
    for line in BufReader::new(file).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
        let Ok(line) = serde_json::from_str::<Value>(&line) else {
            wrong += 1;
            continue;
        };
        if line.get("loss").is_some() && line.get("step").is_some() {
            match line.get("event").and_then(Value::as_str) {
                Some("eval") => evaluated = Some(line),
                _ => last = Some(line),
            }
        }
    }
    let number = |line: &Option<Value>, key: &str| line.as_ref().and_then(|l| l.get(key).cloned()).unwrap_or_default();
    found.say("steps", if last.is_some() { number(&last, "step") } else { 0.into() });
    found.say("last loss", number(&last, "loss"));
    if evaluated.is_some() {
        found.say("last eval loss", number(&evaluated, "loss"));
    }
    // A run that was killed may have half a line at its end.
    if wrong > 1 {
        found.faults.push(format!("{}: {wrong} lines that are no JSON", path.display()));
    }
}

/// A checkpoint's folder.
pub fn checkpoint(path: &Path) -> Found {
    let mut found = Found::new("checkpoint");
    match checkpoint::open(path) {
        Ok(about) => {
            found.say("step", about.step);
            found.say("written by", format!("trimtab {}", about.trimtab));
            found.say("checksums", "hold");
        }
        Err(error) => {
            found.say("checksums", "do not hold");
            found.faults.push(error.to_string());
        }
    }
    let state = path.join(checkpoint::STATE_FILE);
    match SafetensorsFile::open(&state) {
        Ok(file) => {
            let inner = model::tensors(&file);
            found.tensors = inner.tensors;
            found.count();
        }
        Err(error) => found.faults.push(broken("state", error).faults.remove(0)),
    }
    let total: u64 = found.tensors.iter().map(|t: &TensorLine| t.bytes).sum();
    found.say("state bytes", total);
    found
}
