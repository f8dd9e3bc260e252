//! `trimtab bench step`: whole training steps of a model on random tokens, by the same path as `train`: rows, micro-batches, plan,
//! launches.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::ceiling::Ceiling;
use super::environment;
use super::operands::Random;
use super::stats::{Patience, Stats};
use super::table::{Better, Column, Report, Show, column, row};
use crate::backend::profile::{OpTime, Profiled};
use crate::backend::{self, Backend, Target};
use crate::config::{Init, RunConfig, Sources};
use crate::data::pack::{MicroBatch, pack_sized};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::resident;
use crate::run::data::RunData;
use crate::run::job::{Job, base, task};
use crate::run::learnt::Learnt;
use crate::run::options::options;
use crate::run::training::{adapts, method};
use crate::session::{Planned, Session, activations};
use crate::synth::{self, Format};
use crate::system::{self, Instant};
#[cfg(test)]
use crate::tasks;

/// A rate at which steps can go on for ever on the same tokens.
const RATE: f64 = 1e-5;
/// Steps whose launches are timed one by one.
const PROFILED: usize = 3;
/// Characters of the longest bar.
const BAR: f64 = 24.0;

const COLUMNS: &[Column] = &[
    column("name", "op", Show::Text),
    column("launches", "launches", Show::Number),
    column("median", "time", Show::Seconds),
    column("cv", "cv", Show::Percent),
    column("share", "share", Show::Percent),
    column("bar", "", Show::Text),
    column("gflop_s", "GFLOP/s", Show::Number),
    column("gb_s", "GB/s", Show::Number),
];

/// Files that last as long as the bench.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let name = format!("trimtab-bench-{}-{:.0}", system::process_id(), 1e6 * system::unix_time());
        let dir = system::temp_dir().join(name);
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is in the system's folder for what may go.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The model that a bench runs: that of the settings, or one of random weights with this config.json.
pub struct Subject {
    config: RunConfig,
    scratch: Scratch,
}

impl Subject {
    /// With `like`, the config.json of a shape, no model is read and its weights are drawn.
    pub fn new(config: &RunConfig, like: Option<&Value>) -> Result<Subject> {
        let (scratch, mut config) = (Scratch::new()?, config.clone());
        if let Some(like) = like {
            let format = Format { dtype: DType::F32, quantize: None, seed: config.seed, shard: 0 };
            synth::write_config(&scratch.0, like, &format)?;
            config.model = Some(scratch.0.clone());
            config.init = Init::Random;
        }
        config.need("model")?;
        Ok(Subject { config, scratch })
    }

    /// The settings.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What a report says of the model: its path, and how frozen weights are kept.
    pub fn about(&self) -> [String; 2] {
        let path = self.config.model.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        let model = if self.config.init == Init::Random { "random weights".to_owned() } else { path };
        [model, self.config.quantized().map_or("as the file has them".into(), |dtype| dtype.to_string())]
    }

    /// Writes rows of random tokens, as many as a step takes, each as long as the settings allow, and names them as the data.
    fn learns(&mut self) -> Result<()> {
        let RunConfig { batch_size, max_seq_len, max_target_len, .. } = self.config;
        let base = base(&self.config)?;
        let task = task(&self.config, &base.config)?.name;
        let vocab = base.model(1)?.facts().vocab;
        let path = self.scratch.0.join("rows.jsonl");
        std::fs::write(&path, rows(task, vocab, batch_size, max_seq_len, max_target_len))
            .map_err(|e| Error::io(&path, e))?;
        self.config.data = Some(Sources(vec![path.to_string_lossy().into_owned()]));
        self.config.eval_data = None;
        self.config.split = None;
        Ok(())
    }
}

/// Rows of random tokens as `task` reads them.
fn rows(task: &str, vocab: usize, count: usize, tokens: usize, targets: usize) -> String {
    let mut random = Random::new(1);
    let mut ids = |n: usize| -> Vec<u64> { (0..n).map(|_| random.word() % vocab.max(1) as u64).collect() };
    let row = |i: usize| {
        let input = ids(tokens);
        match task {
            "sequence-classification" => json!({"input_ids": input, "label": i % 2}),
            "token-classification" => {
                json!({"input_ids": input, "labels": (0..tokens).map(|t| t % 3).collect::<Vec<_>>()})
            }
            "question-answering" => json!({"input_ids": input, "start_position": 0, "end_position": tokens / 2}),
            "seq2seq" => json!({"input_ids": input, "labels": ids(targets)}),
            _ => json!({"input_ids": input}),
        }
        .to_string()
            + "\n"
    };
    (0..count).map(row).collect()
}

/// A session that is about to make its first step.
struct Ready {
    session: Session,
    micro: Vec<MicroBatch>,
    account: u64,
    parameters: (usize, usize),
    tokens: usize,
    chosen: usize,
    planned: Duration,
    loaded: Duration,
    act: DType,
}

fn ready(config: &RunConfig, backend: Box<dyn Backend>) -> Result<Ready> {
    let began = Instant::now();
    let given = RunData::open(config)?;
    let job = Job::open(config, adapts(config)?, Some(&given.train))?;
    let config = &config.on(backend.caps()).settled(job.facts.hidden)?;
    let mut learnt = Learnt::read(config, &job, &given, None)?;
    let method = method(config, &job)?;
    let micro = learnt.micro(config, &job, &*method);
    let act = activations(config.dtype.into(), backend.caps());
    let mut planned = Planned::of(&job.base, vec![method], &*job.task, options(config, &micro), backend)?;
    let (account, parameters, chosen) = (planned.account().total, planned.parameters(), planned.chosen().len());
    planned.tune(&config.tune, &mut |_| Ok(()))?;
    let took = began.elapsed();
    let session = planned.start(None, &mut |_, _| Ok(()))?;
    let batch = learnt.sampler.next_batch(config.batch_size);
    let micro = pack_sized(&learnt.data, &batch, session.layouts(), !config.shuffle)?;
    let tokens = batch.iter().map(|&i| learnt.data.len_of(i, crate::data::INPUT_IDS)).sum();
    let loaded = began.elapsed() - took;
    Ok(Ready { session, micro, account, parameters, tokens, chosen, planned: took, loaded, act })
}

/// Times steps of the settings. `on` is told what is done.
pub fn run(subject: &mut Subject, patience: &Patience, on: &mut dyn FnMut(&str)) -> Result<Report> {
    subject.learns()?;
    let config = &subject.config;

    on("what the device gives at most");
    let mut device = backend::open(&config.device)?;
    let mut environment = environment::of(&config.device, device.caps());
    let before = environment::clock();
    let short = Patience::default();
    let ceiling = Ceiling::measure(&mut *device, &short)?;
    let host = device.caps().target == Target::Host;

    on("planning and loading");
    let began = Instant::now();
    let Ready { mut session, micro, account, parameters, tokens, chosen, planned, loaded, act } =
        ready(config, device)?;
    on("the first step");
    let first = Instant::now();
    session.step(&micro, RATE)?;
    let (first, to_first) = (first.elapsed(), began.elapsed());
    on("steps");
    let stats = patience.measure(&mut || {
        let began = Instant::now();
        session.step(&micro, RATE)?;
        Ok(began.elapsed().as_secs_f64())
    })?;
    let peak = host.then(resident::peak).flatten();
    drop(session);

    on("steps, each launch timed");
    let (times, steps) = profiled(config)?;
    environment::clocks(&mut environment, before);
    let flops: u64 = times.iter().map(|(op, _)| op.flops).sum();
    let launches: u64 = times.iter().map(|(op, _)| op.launches).sum();
    let working: f64 = times.iter().map(|(_, stats)| stats.median).sum();
    let most = ceiling.product_16.filter(|_| act != DType::F32).unwrap_or(ceiling.product);

    let mut rows = vec![
        row("tokens a second", "tokens/s", Better::Higher, &stats.rate(tokens as f64)),
        row("step", "s", Better::Lower, &stats),
    ];
    let longest = times.first().map_or(1.0, |t| t.1.median);
    for (op, time) in &times {
        let mut line = row(&op.op, "s", Better::Lower, time);
        let more = json!({
            "launches": op.launches,
            "share": time.median / working.max(1e-12),
            "bar": "█".repeat((BAR * time.median / longest).round() as usize),
            "gflop_s": op.flops as f64 / time.median / 1e9,
            "gb_s": op.bytes as f64 / time.median / 1e9,
        });
        line.extend(more.as_object().cloned().unwrap_or_default());
        rows.push(line);
    }
    let rate = stats.rate(tokens as f64);
    let seconds = |d: Duration| d.as_secs_f64();
    let [model, storage] = subject.about();
    let mut facts = ceiling.facts();
    let more = json!({
        "model": model,
        "method": config.method.name(),
        "frozen_weights": storage,
        "activations": act.to_string(),
        "parameters_and_trained": format!("{}, {}", parameters.1, parameters.0),
        "tokens_a_step": tokens,
        "tokens_per_second": rate.median,
        "tokens_per_second_p20_p80": format!("{:.1}, {:.1}", rate.p20, rate.p80),
        "gflop_a_step": flops as f64 / 1e9,
        "model_flop_utilisation": flops as f64 / stats.median / most,
        "seconds_to_plan_to_load_and_of_the_first_step":
            format!("{:.2}, {:.2}, {:.2}", seconds(planned), seconds(loaded), seconds(first)),
        "seconds_to_the_end_of_the_first_step": seconds(to_first),
        "launches_a_step": launches,
        "device_works": (working / stats.median).min(1.0),
        "profiled_steps": steps,
        "account_bytes": account,
        "peak_resident_bytes": peak,
        "choices_to_save_memory": chosen,
    });
    facts.extend(more.as_object().cloned().unwrap_or_default());
    Ok(Report { bench: "step", environment, facts, columns: COLUMNS, rows })
}

/// What each op does in a step, and the seconds of its launches in some of them; the longest first.
fn profiled(config: &RunConfig) -> Result<(Vec<(OpTime, Stats)>, usize)> {
    let (device, profile) = Profiled::new(backend::open(&config.device)?);
    let Ready { mut session, micro, .. } = ready(config, Box::new(device))?;
    session.step(&micro, RATE)?;
    let mut steps: Vec<Vec<OpTime>> = Vec::new();
    for _ in 0..PROFILED {
        profile.reset();
        session.step(&micro, RATE)?;
        steps.push(profile.ops());
    }
    let mut all = Vec::new();
    for op in steps.first().into_iter().flatten() {
        let times: Vec<f64> = steps.iter().flatten().filter(|o| o.op == op.op).map(|o| o.time.as_secs_f64()).collect();
        all.extend(Stats::of(&times).map(|stats| (op.clone(), stats)));
    }
    all.sort_by(|a, b| b.1.median.total_cmp(&a.1.median));
    Ok((all, steps.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_tasks_read() {
        for task in tasks::TASKS {
            let text = rows(task.name, 50, 3, 8, 4);
            let parsed: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(parsed.len(), 3, "{}", task.name);
            for row in parsed {
                let ids = row["input_ids"].as_array().unwrap();
                assert!(ids.len() == 8 && ids.iter().all(|id| id.as_u64().unwrap() < 50), "{row}");
            }
        }
    }
}
