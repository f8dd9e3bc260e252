//! A training run from its config to its files: what `trimtab train` does.

use std::path::Path;

use crate::backend::profile::{Profile, Profiled};
use crate::backend::{self, Backend};
use crate::config::{Method as MethodName, PromptInit, RunConfig};
use crate::cpu::gemm;
use crate::data::INPUT_IDS;
use crate::data::pack::pack;
use crate::data::sampler::Sampler;
use crate::error::{Error, Result};
use crate::memory::Chosen;
use crate::memory::{budget, resident};
use crate::peft::prompt::Start;
use crate::peft::{self, AdapterConfig, Method, Settings};
use crate::plan::{Account, timeline};
use crate::run::evaluate;
use crate::run::job::Job;
use crate::run::metrics::{Event, StepEvent};
use crate::run::options::options;
use crate::run::profile::Report;
use crate::run::svg;
use crate::session::Planned;
use crate::system::Instant;
use crate::tasks::causal_lm;
use crate::train::schedule;
use crate::train::trainer::StepReport;

/// What a finished run leaves.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps taken, skipped ones included.
    pub steps: u64,
    /// Mean loss of the first step; NaN if there was none.
    pub first_loss: f32,
    /// Mean loss of the last step; NaN if there was none.
    pub last_loss: f32,
}

/// What is known of a run before anything is loaded or allocated.
pub struct Preview {
    /// Name of the device, as messages show it.
    pub device: String,
    /// What would be allocated.
    pub account: Account,
    /// What would be done to save memory; empty if nothing.
    pub chosen: Vec<Chosen>,
    /// A picture of the arena over a step.
    pub svg: String,
}

/// What is known of the run that `config` describes.
pub fn preview(config: &RunConfig) -> Result<Preview> {
    let job = Job::open(config, adapts(config)?, config.data.as_deref())?;
    let planned = plan(config, &job, backend::open(&config.device)?)?;
    let (graph, plan) = planned.plan();
    Ok(Preview {
        device: planned.device().to_owned(),
        account: planned.account().clone(),
        chosen: planned.chosen().to_vec(),
        svg: timeline::picture(graph, plan),
    })
}

fn plan(config: &RunConfig, job: &Job, backend: Box<dyn Backend>) -> Result<Planned> {
    Planned::of(&job.base, vec![method(config, job)?], &*job.task, options(config), backend)
}

/// Whether what is trained is an adapter that PEFT reads.
fn adapts(config: &RunConfig) -> Result<bool> {
    Ok(config.adapter.is_some() || peft::named(config.method.name())?.peft_type.is_some())
}

/// The method of the adapter that training starts from, or a new one.
pub fn method(config: &RunConfig, job: &Job) -> Result<Box<dyn Method>> {
    if let (Some(dir), true) = (&config.adapter, config.method != MethodName::Lora) {
        return peft::open(dir).map(|opened| opened.method);
    }
    let def = job.task.def();
    let mut lora = match config.adapter_config()? {
        Some(lora) => lora,
        None => AdapterConfig::lora(config.rank, config.alpha, config.targets.clone()),
    };
    if config.adapter.is_none() {
        lora.task_type = def.peft.map(str::to_owned);
    }
    let base_model = config.model.as_ref().map(|model| model.display().to_string());
    let prompt_start = match (config.prompt_init, &config.prompt_init_text) {
        (PromptInit::Text, Some(text)) if config.method == MethodName::Prompt => {
            let ids: Vec<usize> = job.base.tokenizer()?.encode(text, true)?.into_iter().map(|id| id as usize).collect();
            if ids.is_empty() {
                return Err(Error::config("prompt-init-text", format!("{text:?}"), "a text of at least one token"));
            }
            Start::Text { text: text.clone(), ids, tokenizer: base_model.clone() }
        }
        (PromptInit::SampleVocab, _) => Start::Sampled,
        _ => Start::Random,
    };
    let settings = Settings {
        targets: config.targets.clone(),
        base_model,
        lora,
        trainable_tokens: config.trainable_tokens.clone(),
        virtual_tokens: config.virtual_tokens,
        prompt_start,
        seed: config.seed,
        prefix_projection: config.prefix_projection,
        train: config.train.clone(),
        bottleneck: config.bottleneck()?,
        encoder_hidden: None,
        encoder_decoder: job.facts.decoder_start.is_some(),
        task_type: def.peft.map(str::to_owned),
        heads: def.heads,
        facts: job.facts.clone(),
    };
    (peft::named(config.method.name())?.new)(&settings)
}

/// The device, and what times it if that is asked for.
fn device(config: &RunConfig) -> Result<(Box<dyn Backend>, Option<Profile>)> {
    let backend = backend::open(&config.device)?;
    Ok(match config.profile {
        true => {
            let (profiled, profile) = Profiled::new(backend);
            (Box::new(profiled), Some(profile))
        }
        false => (backend, None),
    })
}

/// Plans, loads, trains and saves, telling `on` what happens.
pub fn run(config: &RunConfig, on: &mut dyn FnMut(Event) -> Result<()>) -> Result<Summary> {
    let out = config.need("out")?;
    let data = config.need("data")?;
    let job = Job::open(config, adapts(config)?, Some(data))?;
    if job.task.def().name != causal_lm::DEF.name {
        on(Event::Note(job.about()))?;
    }
    let (backend, profile) = device(config)?;
    let planned = plan(config, &job, backend)?;
    for note in job.base.notes.iter().chain(planned.notes()) {
        on(Event::Note(note.clone()))?;
    }
    let (trained, all) = planned.parameters();
    on(Event::run(config, planned.device(), trained, all))?;
    on(Event::Plan(planned.account().clone()))?;
    if !planned.chosen().is_empty() {
        on(Event::Note(format!("to save memory:\n{}", budget::text(planned.chosen()).trim_end())))?;
    }
    let layout = planned.layout()?.clone();
    let account = planned.account().total + planned.account().host_total;

    let (data, warnings) = job.examples(config, data)?;
    let rows = config.eval_data.as_deref().map(|path| job.rows(config, path, false)).transpose()?;
    resident::give_back();
    for warning in warnings {
        on(Event::Note(warning))?;
    }
    let positions = job.facts.max_positions;
    if data.longest(INPUT_IDS) > positions {
        on(Event::Note(format!(
            "sequences of up to {} tokens; the base model was made for {positions}",
            data.longest(INPUT_IDS)
        )))?;
    }
    let mut sampler = Sampler::new(data.len(), config.seed, config.shuffle)?;
    let steps = match (config.steps, config.epochs) {
        (Some(steps), _) => steps,
        (None, epochs) => epochs.unwrap_or(1).saturating_mul(sampler.steps_per_epoch(config.batch_size) as u64),
    };

    let adapter = match &config.adapter {
        Some(dir) => {
            let adapter = peft::open(dir)?;
            adapter.check(dir, &planned.trained())?;
            Some(adapter)
        }
        None => None,
    };
    let tensors = adapter.as_ref().map(|a| &a.tensors);
    let mut session = planned.start(tensors, &mut |done, total| on(Event::Loading { done, total }))?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    write(&out.join("config.toml"), &config.to_toml())?;

    let warmup = config.warmup_steps(steps);
    let mut losses: Vec<(u64, f32)> = Vec::new();
    let mut skips = Skips::default();
    let mut timed = Report::default();
    for step in 0..steps {
        let began = Instant::now();
        let batch = sampler.next_batch(config.batch_size);
        let micro = pack(&data, &batch, &layout, !config.shuffle)?;
        let lr = config.lr * schedule::multiplier(config.schedule, step, warmup, steps);
        let report = session.step(&micro, lr)?;
        let seconds = began.elapsed().as_secs_f64();
        timed = Report { steps: timed.steps + 1, seconds: timed.seconds + seconds, ..timed };
        if let Some(profile) = profile.as_ref().filter(|_| step == 0 && steps > 1) {
            // The first step touches its memory for the first time.
            profile.reset();
            timed = Report::default();
        }
        losses.push((step + 1, report.loss));
        skips.count(&report);
        on(Event::Step(StepEvent {
            step: step + 1,
            steps,
            loss: report.loss,
            lr,
            grad_norm: report.grad_norm,
            tokens: report.tokens as u64,
            trained_tokens: report.trained as u64,
            tokens_per_second: report.tokens as f64 / seconds.max(1e-9),
            skipped: skips.all,
        }))?;
        skips.check(config.max_skips, step + 1, &report)?;
        let done = step + 1;
        let due = done == steps || config.eval_every.is_some_and(|every| done.is_multiple_of(every));
        if let Some(rows) = rows.as_ref().filter(|_| due) {
            let evaluated = evaluate::evaluate(&mut session, &job, rows, config.batch_size)?;
            on(Event::Eval { step: done, evaluated })?;
        }
    }
    if let Some(profile) = profile {
        on(Event::Profile(Report { ops: profile.ops(), ..timed }))?;
    }
    if skips.all > 0 {
        on(Event::Note(format!("{} of {steps} steps were skipped: loss or gradient were not finite", skips.all)))?;
    }
    on(Event::End { account, peak_resident: resident::peak(), moved: session.trainer.exec.offload.moved })?;
    // Saving copies the trained tensors; the buffers of products make room for that.
    gemm::free_buffers();
    resident::give_back();
    session.save(out, config.save_dtype.into())?;
    if config.method != MethodName::Full && !job.task.def().label.is_empty() {
        // PEFT's files do not say what labels are called.
        write(&out.join("config.json"), &format!("{:#}\n", job.base.config))?;
    }
    write(&out.join("loss.svg"), &svg::loss_curve("training loss", &losses))?;
    on(Event::Saved { path: out.into() })?;
    let loss = |i: Option<&(u64, f32)>| i.map_or(f32::NAN, |l| l.1);
    Ok(Summary { steps, first_loss: loss(losses.first()), last_loss: loss(losses.last()) })
}

/// Steps whose loss or gradient was not finite. The update leaves everything as it was where the gradient is not finite.
#[derive(Default)]
struct Skips {
    all: u64,
    /// Since the last one that was not skipped.
    in_a_row: u64,
}

impl Skips {
    fn count(&mut self, report: &StepReport) {
        let skipped = !report.is_finite();
        self.all += u64::from(skipped);
        self.in_a_row = if skipped { self.in_a_row + 1 } else { 0 };
    }

    fn check(&self, most: u64, step: u64, report: &StepReport) -> Result<()> {
        if self.in_a_row < most {
            return Ok(());
        }
        let found = format!(
            "{} steps in a row, up to step {step}, whose loss or gradient is not finite (loss {}, gradient norm {})",
            self.in_a_row, report.loss, report.grad_norm
        );
        let expected = "finite numbers: try a lower lr, a longer warmup, or --dtype f32 or bf16; nothing was written";
        Err(Error::config("max-skips", found, expected))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}
