//! What a run tells: events, for whoever shows them, and `metrics.jsonl`, which keeps the run and its steps.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::plan::Account;

pub const METRICS_FILE: &str = "metrics.jsonl";

/// Something that happened in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run begins: settings ([`crate::config::RunConfig::to_json`]), device, versions of what computes.
    Run { config: serde_json::Value, device: String, versions: serde_json::Value },
    /// What will be allocated, before it is.
    Plan(Account),
    /// Bytes of weights read, and of how many.
    Loading { done: u64, total: u64 },
    Step(StepEvent),
    /// A text of the model; `when` says at which point of the run.
    Sample { when: String, prompt: String, text: String },
    /// A file or folder was written.
    Saved { path: PathBuf },
    /// Something the user should know.
    Note(String),
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepEvent {
    /// From 1.
    pub step: u64,
    /// Of how many.
    #[serde(skip)]
    pub steps: u64,
    /// Mean cross entropy of the step's trained tokens, in nats.
    pub loss: f32,
    pub lr: f64,
    /// Euclidean norm of the gradient, before clipping.
    pub grad_norm: f32,
    /// Tokens of the step, without padding.
    pub tokens: u64,
    /// Those of them that count in the loss.
    pub trained_tokens: u64,
    pub tokens_per_second: f64,
}

/// An object of the file. JSON has no NaN and no infinity: serde_json writes null for them.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Run { config: &'a serde_json::Value, device: &'a str, versions: &'a serde_json::Value },
    Step(StepEvent),
}

/// `metrics.jsonl` of a run folder: one JSON object a line, the first of event `run`, then one of event `step` a step.
/// Each line is handed to the system at once, so the file can be followed.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Starts the file of the run folder `dir` anew.
    pub fn create(dir: &Path) -> Result<Metrics> {
        let path = dir.join(METRICS_FILE);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Metrics { path, file })
    }

    /// Writes the event, if it is one that the file keeps.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        let line = match event {
            Event::Run { config, device, versions } => Line::Run { config, device, versions },
            Event::Step(step) => Line::Step(*step),
            _ => return Ok(()),
        };
        let mut text = serde_json::to_string(&line).map_err(|e| Error::file(&self.path, e.to_string(), "JSON"))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step(n: u64, loss: f32) -> Event {
        Event::Step(StepEvent {
            step: n,
            steps: 2,
            loss,
            lr: 2e-4,
            grad_norm: f32::INFINITY,
            tokens: 100,
            trained_tokens: 90,
            tokens_per_second: 12.5,
        })
    }

    #[test]
    fn the_file_holds_the_run_and_its_steps() {
        let dir = std::env::temp_dir().join(format!("trimtab-metrics-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut metrics = Metrics::create(&dir).unwrap();
        let run = Event::Run { config: json!({"rank": 4}), device: "cpu".into(), versions: json!({"trimtab": "0"}) };
        let account = Account { rows: Vec::new(), total: 0, peak_site: String::new() };
        for event in [run, Event::Plan(account), Event::Note("\n".into()), step(1, 0.1), step(2, f32::NAN)] {
            metrics.write(&event).unwrap();
        }
        let text = std::fs::read_to_string(dir.join(METRICS_FILE)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let expected = [
            json!({"event": "run", "config": {"rank": 4}, "device": "cpu", "versions": {"trimtab": "0"}}),
            json!({"event": "step", "step": 1, "loss": 0.1, "lr": 2e-4, "grad_norm": null, "tokens": 100,
                   "trained_tokens": 90, "tokens_per_second": 12.5}),
            json!({"event": "step", "step": 2, "loss": null, "lr": 2e-4, "grad_norm": null, "tokens": 100,
                   "trained_tokens": 90, "tokens_per_second": 12.5}),
        ];
        assert_eq!(lines, expected);
        assert!(text.starts_with(r#"{"event":"run""#) && text.contains(r#"{"event":"step","step":1,"loss":0.1,"#));
    }
}
