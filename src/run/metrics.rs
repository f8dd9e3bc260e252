//! What a run tells: events, for whoever shows them, and `metrics.jsonl`, which keeps the run and its steps.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::RunConfig;
use crate::durable;
use crate::error::{Error, Result};
use crate::offload::Moved;
use crate::plan::Account;
use crate::run::evaluate::Evaluated;
use crate::run::examined::Measured;
use crate::run::profile::Report;

/// The name of the metrics file in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Version of the file's format.
const FORMAT: u32 = 1;

/// Something that happened in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run begins: settings ([`RunConfig::to_json`]), device, versions, number of trained values and of all.
    Run {
        /// All settings by name; null for one that is not set.
        config: Value,
        /// Name of the device, as messages show it.
        device: String,
        /// An object: the version of trimtab and of the file's format.
        versions: Value,
        /// Number of values that are trained.
        trained_parameters: u64,
        /// Number of values of the model, trained ones included.
        parameters: u64,
    },
    /// What will be allocated, before it is.
    Plan(Account),
    /// Bytes of weights read, and of how many.
    Loading {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// An optimizer step is done, or was skipped.
    Step(StepEvent),
    /// After step `step`: mean loss and metrics on the evaluation data.
    Eval {
        /// Steps done so far.
        step: u64,
        /// Loss and metrics.
        evaluated: Evaluated,
    },
    /// Where the time of the steps went, if the run was asked for it.
    Profile(Report),
    /// The run goes on after `step`, from the checkpoint at `path`.
    Resumed {
        /// Steps done so far.
        step: u64,
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// Steps done so far.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// All is done and written.
    End {
        /// Bytes that the account said would be allocated, on the device and in host memory.
        account: u64,
        /// The most memory that the process had resident, where the system tells.
        peak_resident: Option<u64>,
        /// Bytes moved between the device and where they are kept, and the wait for them.
        moved: Moved,
        /// Tokens of the steps that were taken since the run began or went on, and their seconds.
        took: (u64, f64),
    },
    /// Losses of some examples before the first step, or after the last.
    Examples {
        /// Steps done so far.
        step: u64,
        /// The examples, at even distances in the data.
        measured: Vec<Measured>,
    },
    /// A text of the model; `when` says at which point of the run.
    Sample {
        /// Steps done so far.
        step: u64,
        /// In words.
        when: String,
        /// What the text continues.
        prompt: String,
        /// What the model wrote, without the prompt.
        text: String,
    },
    /// A file or folder was written.
    Saved {
        /// As the settings give it.
        path: PathBuf,
    },
    /// Something the user should know.
    Note(String),
}

/// An optimizer step that is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepEvent {
    /// From 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Mean cross entropy of the step's trained tokens, in nats.
    pub loss: f32,
    /// Learning rate of this step, after the schedule.
    pub lr: f64,
    /// Euclidean norm of the gradient, before clipping.
    pub grad_norm: f32,
    /// Tokens of the step, without padding.
    pub tokens: u64,
    /// Those of them that count in the loss.
    pub trained_tokens: u64,
    /// `tokens` by the step's wall time, packing included, evaluation not.
    pub tokens_per_second: f64,
    /// Steps so far, this one counted, that were skipped because loss or gradient were not finite.
    pub skipped: u64,
}

impl Event {
    /// The beginning of a run that trains `trained` of `all` values on `device`.
    pub fn run(config: &RunConfig, device: impl Into<String>, trained: usize, all: usize) -> Event {
        Event::Run {
            config: config.to_json(),
            device: device.into(),
            versions: json!({"trimtab": env!("CARGO_PKG_VERSION"), "metrics": FORMAT}),
            trained_parameters: trained as u64,
            parameters: all as u64,
        }
    }

    /// Its line in the file, if it is one that the file keeps. JSON has no NaN and no infinity: they become null.
    fn line(&self) -> Option<Value> {
        match self {
            Event::Run { config, device, versions, trained_parameters, parameters } => Some(json!({
                "event": "run",
                "config": config,
                "device": device,
                "versions": versions,
                "trained_parameters": trained_parameters,
                "parameters": parameters,
            })),
            Event::Step(s) => Some(json!({
                "event": "step",
                "step": s.step,
                "loss": shortest(s.loss),
                "lr": s.lr,
                "grad_norm": shortest(s.grad_norm),
                "tokens": s.tokens,
                "trained_tokens": s.trained_tokens,
                "tokens_per_second": s.tokens_per_second,
                "skipped": s.skipped,
            })),
            Event::Eval { step, evaluated } => Some(json!({
                "event": "eval",
                "step": step,
                "loss": evaluated.loss,
                "units": evaluated.units,
                "metrics": evaluated.metrics.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<Map<_, _>>(),
            })),
            Event::Examples { step, measured } => Some(json!({
                "event": "examples",
                "step": step,
                "examples": measured.iter().map(Measured::json).collect::<Vec<_>>(),
            })),
            Event::Sample { step, prompt, text, .. } => Some(json!({
                "event": "sample",
                "step": step,
                "prompt": prompt,
                "text": text,
            })),
            Event::Resumed { step, .. } => Some(json!({ "event": "resume", "step": step })),
            Event::Profile(report) => Some(report.json()),
            Event::End { account, peak_resident, moved, took } => Some(json!({
                "event": "end",
                "account_bytes": account,
                "peak_resident_bytes": peak_resident,
                "fetched_bytes": moved.fetched,
                "stored_bytes": moved.stored,
                "stalled_seconds": moved.stalled.as_secs_f64(),
                "tokens": took.0,
                "seconds": took.1,
            })),
            _ => None,
        }
    }
}

/// The f64 with the fewest digits that is `x` as f32: 0.1 and not 0.10000000149011612.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::NAN)
}

/// `metrics.jsonl` of a run folder: one JSON object a line, the first of event `run`, then one of event `step` a step, one of event `eval` an evaluation,
/// one of event `examples` and one of event `sample` a text before the first step and after the last,
/// one of event `profile` where `--profile` asked for it, in the end one of event `end`; one of event `resume` where a run
/// went on from a checkpoint.
/// The file is begun at the first step, so that a run that fails before leaves an older one's alone; each line is
/// handed to the system at once, so the file can be followed.
pub struct Metrics {
    path: PathBuf,
    file: Option<File>,
    /// Lines of before the file was begun.
    waiting: String,
}

impl Metrics {
    /// For the run folder `dir`, which need not be there yet.
    pub fn new(dir: &Path) -> Metrics {
        Metrics { path: dir.join(METRICS_FILE), file: None, waiting: String::new() }
    }

    /// Goes on with the file of a run that was stopped: what it tells of steps after `step` is taken out, since they come
    /// again, and so does the evaluation after `step` if it is `owed`. Returns the losses of the others.
    pub fn resume(&mut self, step: u64, owed: bool) -> Result<Vec<(u64, f32)>> {
        let mut losses = Vec::new();
        let io = |e| Error::io(&self.path, e);
        let old = match File::open(&self.path) {
            Err(e) if step == 0 || e.kind() == std::io::ErrorKind::NotFound => return Ok(losses),
            old => BufReader::new(old.map_err(io)?),
        };
        durable::replace(&self.path, |out| {
            for line in old.lines() {
                let line = line.map_err(io)?;
                // The last line of a run that was killed may be half a line.
                let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
                let at = event["step"].as_u64();
                let kept = match event["event"].as_str() {
                    Some("eval") if owed => at.is_some_and(|at| at < step),
                    Some("step" | "eval" | "examples" | "sample" | "resume") => at.is_some_and(|at| at <= step),
                    Some("run") => true,
                    _ => false,
                };
                if let (true, Some(at)) = (event["event"] == "step" && kept, at) {
                    losses.push((at, event["loss"].as_f64().map_or(f32::NAN, |loss| loss as f32)));
                }
                if kept {
                    writeln!(out, "{line}").map_err(io)?;
                }
            }
            Ok(())
        })?;
        self.file = Some(File::options().append(true).open(&self.path).map_err(io)?);
        self.waiting.clear();
        Ok(losses)
    }

    /// Waits until the disk has the file: before a checkpoint is written, which never knows more steps than it.
    pub fn sync(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.sync_data().map_err(|e| Error::io(&self.path, e)))
    }

    /// Writes the event's line, if it has one (that of the run waits for the next); errs if the file cannot be written.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        let Some(line) = event.line() else { return Ok(()) };
        let text = format!("{}{line}\n", std::mem::take(&mut self.waiting));
        if self.file.is_none() {
            if matches!(event, Event::Run { .. }) {
                self.waiting = text;
                return Ok(());
            }
            let dir = self.path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            self.file = Some(File::create(&self.path).map_err(|e| Error::io(&self.path, e))?);
        }
        match &mut self.file {
            Some(file) => file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
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
            skipped: u64::from(!loss.is_finite()),
        })
    }

    #[test]
    fn the_file_holds_the_run_and_its_steps() {
        let dir = std::env::temp_dir().join(format!("trimtab-metrics-{}", std::process::id()));
        let mut metrics = Metrics::new(&dir);
        let run = Event::run(&RunConfig::default(), "cpu", 3, 10);
        metrics.write(&run).unwrap();
        assert!(!dir.exists(), "begun before the first step");
        let account = Account::default();
        for event in [Event::Plan(account), Event::Note("\n".into()), step(1, 0.1), step(2, f32::NAN)] {
            metrics.write(&event).unwrap();
        }
        let moved = Moved { fetched: 5, stored: 6, stalled: std::time::Duration::from_millis(1500) };
        metrics.write(&Event::End { account: 7, peak_resident: None, moved, took: (300, 2.5) }).unwrap();
        let text = std::fs::read_to_string(dir.join(METRICS_FILE)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let expected = [
            json!({"event": "run", "config": RunConfig::default().to_json(), "device": "cpu",
                   "versions": {"trimtab": env!("CARGO_PKG_VERSION"), "metrics": 1},
                   "trained_parameters": 3, "parameters": 10}),
            json!({"event": "step", "step": 1, "loss": 0.1, "lr": 2e-4, "grad_norm": null, "tokens": 100,
                   "trained_tokens": 90, "tokens_per_second": 12.5, "skipped": 0}),
            json!({"event": "step", "step": 2, "loss": null, "lr": 2e-4, "grad_norm": null, "tokens": 100,
                   "trained_tokens": 90, "tokens_per_second": 12.5, "skipped": 1}),
        ];
        let end = json!({"event": "end", "account_bytes": 7, "peak_resident_bytes": null, "fetched_bytes": 5,
                         "stored_bytes": 6, "stalled_seconds": 1.5, "tokens": 300, "seconds": 2.5});
        // Read as the file is: a float's text may be read back as its neighbour.
        let read = |v: &Value| -> Value { serde_json::from_str(&v.to_string()).unwrap() };
        assert_eq!(lines, expected.iter().chain([&end]).map(read).collect::<Vec<_>>());
        assert!(text.starts_with(r#"{"event":"run""#) && text.contains(r#"{"event":"step","step":1,"loss":0.1,"#));
    }
}
