//! A training run from its config to its files: what `trimtab train` does.

use super::best::Best;
use super::checkpoint::{self, Checkpoint, Pace};
use super::course::{Course, Tell};
use super::data::RunData;
use super::examined::Examined;
use super::folder::{self, Folder, Start};
use super::identity::{Identity, Length};
use super::job::Job;
use super::learnt::Learnt;
use super::metrics::{Event, Metrics};
use super::micro::{self, Micro};
use super::options::options;
use super::preflight;
use super::skips::Skips;
use super::template;
use super::tensorboard::TensorBoard;
use crate::backend::profile::{Profile, Profiled};
use crate::backend::{self, Backend};
use crate::config::{Method as MethodName, PromptInit, RunConfig, SaveDtype};
use crate::data::INPUT_IDS;
use crate::error::{Error, Result};
use crate::graph::LeafKind;
use crate::memory::Chosen;
use crate::memory::{budget, resident};
use crate::peft::prompt::Start as PromptStart;
use crate::peft::{self, AdapterConfig, Method, Settings};
use crate::plan::{Account, class_name, timeline};
use crate::session::{Options, Planned};
use crate::tasks::{causal_lm, seq2seq};

/// What a finished run leaves.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps taken, skipped ones included.
    pub steps: u64,
    /// Those that were skipped, since loss or gradient were not finite.
    pub skipped: u64,
    /// Mean loss of the first step; NaN if there was none.
    pub first_loss: f32,
    /// Mean loss of the last step; NaN if there was none.
    pub last_loss: f32,
}

/// What is known of a run before anything is loaded or allocated.
pub struct Forecast {
    /// Name of the device, as messages show it.
    pub device: String,
    /// What would be allocated.
    pub account: Account,
    /// What would be done to save memory; empty if nothing.
    pub chosen: Vec<Chosen>,
    /// What there is to say of the model, the task and the method, and what to do where memory is short.
    pub notes: Vec<String>,
    /// Bytes that are free on the device, where it can tell.
    pub free: Option<u64>,
    /// A picture of the arena over a step.
    pub svg: String,
}

/// What is known of the run that `config` describes.
pub fn forecast(config: &RunConfig) -> Result<Forecast> {
    let given = RunData::of(config)?;
    let job = Job::open(config, adapts(config)?, given.as_ref().map(|given| &given.train))?;
    let backend = backend::open(&config.device)?;
    let config = &config.on(backend.caps()).settled(job.facts.hidden)?;
    let tokenizer = job.base.tokenizer().ok();
    let learnt = given.as_ref().map(|given| Learnt::read(config, &job, given, tokenizer.as_ref())).transpose()?;
    let examined = learnt.as_ref().map(|learnt| Examined::of(config, &job, learnt, tokenizer.as_ref()));
    let examined = examined.transpose()?.unwrap_or_default();
    drop(tokenizer);
    let (planned, full) = plan(config, &job, learnt.as_ref(), &examined, backend)?;
    let (graph, plan) = planned.plan();
    let about = (job.task.def().name != causal_lm::DEF.name).then(|| job.about());
    let large = preflight::too_large(&planned, config.quantized().is_some());
    let notes = about.iter().chain(&job.base.notes).chain(planned.notes()).chain(&full).chain(&large);
    Ok(Forecast {
        notes: notes.cloned().collect(),
        device: planned.device().to_owned(),
        account: planned.account().clone(),
        chosen: planned.chosen().to_vec(),
        free: planned.free_memory(),
        svg: timeline::picture(graph, plan),
    })
}

/// The plan of a run on what is `learnt`, and how full its micro-batches will be.
fn plan(
    config: &RunConfig,
    job: &Job,
    learnt: Option<&Learnt>,
    examined: &Examined,
    backend: Box<dyn Backend>,
) -> Result<(Planned, Option<String>)> {
    let method = method(config, job)?;
    let micro = learnt.map_or_else(|| Micro::fixed(config), |learnt| learnt.micro(config, job, &*method));
    let options = options(config, &micro);
    let evaluate = options.evaluate || examined.measures();
    let options = Options { evaluate, generate: examined.room(), ..options };
    let planned = Planned::of(&job.base, vec![method], &*job.task, options, backend)?;
    let full = micro.full.map(|full| micro::describe(&planned.sizes(), full));
    Ok((planned, full))
}

/// Whether what is trained is an adapter that PEFT reads.
pub fn adapts(config: &RunConfig) -> Result<bool> {
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
    let (base_model, revision) = config.base_name();
    lora.revision = revision.or(lora.revision);
    let prompt_start = match (config.prompt_init, &config.prompt_init_text) {
        (PromptInit::Text, Some(text)) if config.method == MethodName::Prompt => {
            let ids: Vec<usize> = job.base.tokenizer()?.encode(text, true)?.into_iter().map(|id| id as usize).collect();
            if ids.is_empty() {
                return Err(Error::config("prompt-init-text", format!("{text:?}"), "a text of at least one token"));
            }
            PromptStart::Text { text: text.clone(), ids, tokenizer: base_model.clone() }
        }
        (PromptInit::SampleVocab, _) => PromptStart::Sampled,
        _ => PromptStart::Random,
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
        encoder_decoder: job.facts.decoder_start.is_some() && def.name == seq2seq::DEF.name,
        task_type: def.peft.map(str::to_owned),
        heads: def.heads,
        facts: job.facts.clone(),
    };
    let mut method = (peft::named(config.method.name())?.new)(&settings)?;
    if let Some(dir) = &config.adapter {
        method.given(&peft::open(dir)?.tensors);
    }
    Ok(method)
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

/// A run that is planned, with all that it will learn: nothing is loaded or allocated.
struct Ready {
    /// The settings with what depends on the device.
    given: RunConfig,
    /// And on the model.
    settled: RunConfig,
    job: Job,
    learnt: Learnt,
    examined: Examined,
    /// The chat template that goes along.
    template: Option<String>,
    planned: Planned,
    profile: Option<Profile>,
}

impl Ready {
    /// Reads the data and plans, and tells all that is known.
    fn of(config: &RunConfig, tell: &mut Tell) -> Result<Ready> {
        let given = RunData::open(config)?;
        let job = Job::open(config, adapts(config)?, Some(&given.train))?;
        let (backend, profile) = device(config)?;
        let asked = config.on(backend.caps());
        let settled = asked.settled(job.facts.hidden)?;
        let config = &settled;
        if job.task.def().name != causal_lm::DEF.name {
            tell.note(job.about())?;
        }
        let tokenizer = job.base.tokenizer().ok();
        let learnt = Learnt::read(config, &job, &given, tokenizer.as_ref())?;
        let examined = Examined::of(config, &job, &learnt, tokenizer.as_ref())?;
        let learns = preflight::learns(&job, &learnt, tokenizer.as_ref())?;
        let template = tokenizer.as_ref().map(|t| template::kept(config, t)).transpose()?.flatten();
        drop(tokenizer);
        resident::give_back();
        let (planned, full) = plan(config, &job, Some(&learnt), &examined, backend)?;
        for note in job.base.notes.iter().chain(planned.notes()) {
            tell.note(note.clone())?;
        }
        if let Some(name) = planned.drawn_and_kept() {
            tell.note(format!(
                "{name} is not in the model's files: it is drawn and not trained, and an adapter does not have it, so that \
                 the adapter is of no use without it (with --method full it is trained and saved)"
            ))?;
        }
        let (trained, all) = planned.parameters();
        tell.event(Event::run(config, planned.device(), trained, all))?;
        tell.event(Event::Plan(planned.account().clone()))?;
        if !planned.chosen().is_empty() {
            tell.note(format!("to save memory:\n{}", budget::text(planned.chosen()).trim_end()))?;
        }
        tell.note(given.about())?;
        for warning in learnt.warnings(config).into_iter().chain(full) {
            tell.note(warning)?;
        }
        let longest = learnt.data.longest(INPUT_IDS);
        let positions = job.facts.max_positions;
        if longest > positions {
            tell.note(format!("sequences of up to {longest} tokens; the base model was made for {positions}"))?;
        }
        tell.note(preflight::text(config, learns, &planned, &learnt))?;
        for idle in preflight::idle(config, learnt.steps(config)) {
            tell.note(idle)?;
        }
        if let Some(large) = preflight::too_large(&planned, config.quantized().is_some()) {
            tell.note(large)?;
        }
        Ok(Ready { given: asked, settled, job, learnt, examined, template, planned, profile })
    }
}

/// Does all that a run does before anything is loaded or written, telling `on` what is found: what is wrong with a run is
/// known then. `start` says what would be done with a run folder that holds something.
pub fn rehearse(config: &RunConfig, start: Start, on: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
    config.need_data()?;
    let out = folder::admit(config, start)?;
    let mut tell = Tell { metrics: Metrics::new(&out), board: None, on };
    let ready = Ready::of(config, &mut tell)?;
    folder::has_room(&out, written(config, &ready.planned))
}

/// Plans, loads, trains and saves, telling `on` what happens. `start` says what is to be done with a run folder that holds
/// something. Where `on` answers a step or an evaluation with [`Error::Cancelled`], a checkpoint is written, and that error
/// returned.
pub fn run(config: &RunConfig, start: Start, on: &mut dyn FnMut(Event) -> Result<()>) -> Result<Summary> {
    config.need_data()?;
    let mut folder = Folder::claim(config, start)?;
    let board = config.log_tensorboard.then(|| TensorBoard::new(folder.path()));
    let mut tell = Tell { metrics: Metrics::new(folder.path()), board, on };
    let Ready { given, settled, job, learnt, examined, template, mut planned, profile } = Ready::of(config, &mut tell)?;
    let config = &settled;
    folder::has_room(folder.path(), written(config, &planned))?;
    let steps = learnt.steps(config);
    let Learnt { data, rows, mut sampler, .. } = learnt;
    let length = Length { steps, warmup: config.warmup_steps(steps) };
    let identity = Identity::of(config, &job.base, &data, planned.rounding(), planned.sizes())?;
    let resumed = match start {
        Start::Resume => resumed(config, &folder, length, &identity, &mut tell)?,
        Start::New | Start::Overwrite => None,
    };

    let adapter = match &config.adapter {
        Some(dir) => {
            let adapter = peft::open(dir)?;
            adapter.check(dir, &planned.expected(&adapter.tensors)?)?;
            Some(adapter)
        }
        None => None,
    };
    let tensors = adapter.as_ref().map(|a| &a.tensors);
    let layouts = planned.layouts()?;
    planned.tune(&config.tune, &mut |text| tell.note(text))?;
    let mut session = planned.start(tensors, &mut |done, total| tell.event(Event::Loading { done, total }))?;
    let (mut done, mut skips, mut best) = (0, Skips::default(), Best::default());
    if let Some(Checkpoint { path, about }) = &resumed {
        session.load_state(&path.join(checkpoint::STATE_FILE))?;
        sampler.restore(about.cursor)?;
        (done, skips, best) = (about.step, about.skips, about.best);
    }
    let losses = if start == Start::Resume { tell.metrics.resume(done, best.is_owed())? } else { Vec::new() };
    if let Some(board) = &mut tell.board {
        board.resume(done);
    }
    folder.begin(&given, start != Start::Resume)?;
    if let Some(Checkpoint { path, .. }) = resumed {
        tell.event(Event::Resumed { step: done, path })?;
    }
    let (saved, pace) = ((done > 0).then_some(done), Pace::new(config.save_every, steps));
    let (job, folder) = (&job, &folder);
    let course = Course {
        config,
        job,
        folder,
        session,
        layouts,
        data,
        rows,
        template,
        examined,
        sampler,
        length,
        identity,
        done,
        skips,
        best,
        losses,
        saved,
        pace,
        profile,
    };
    course.run(&mut tell)
}

/// The last checkpoint of the run in `folder`, if it is of this run.
fn resumed(
    config: &RunConfig,
    folder: &Folder,
    length: Length,
    identity: &Identity,
    tell: &mut Tell,
) -> Result<Option<Checkpoint>> {
    let Some(last) = checkpoint::last(folder.path(), &mut |text| tell.note(text))? else {
        folder.check_unfinished()?;
        tell.note("no checkpoint yet: from the beginning")?;
        return Ok(None);
    };
    let about = &last.about;
    about.identity.check(&last.path, identity)?;
    about.length.check(&last.path, length, config, about.step)?;
    if about.step > length.steps {
        let found = format!("{} steps, of which {} has {}", length.steps, last.path.display(), about.step);
        return Err(Error::config("--resume: steps", found, format!("{} or more", about.step)));
    }
    if let Some(rounding) = about.identity.rounds_as(&about.trimtab, identity) {
        tell.note(rounding)?;
    }
    Ok(Some(last))
}

/// Bytes that a run writes into its folder at most: checkpoints, one of them before an older one is deleted, what was
/// trained, and what is off the device.
fn written(config: &RunConfig, planned: &Planned) -> u64 {
    let checkpoints = if config.save_every == Some(0) { 0 } else { config.keep as u64 + 1 };
    let checkpoints = checkpoints + u64::from(config.keep_best);
    let (trained, all) = planned.parameters();
    let saved = match (config.method, config.save_dtype) {
        (MethodName::Full, SaveDtype::F32) => 4 * all,
        (MethodName::Full, _) => 2 * all,
        _ => 4 * trained,
    };
    let files = planned.account().files.iter().filter(|(name, _)| name != class_name(LeafKind::Frozen));
    let one = planned.state_bytes() + if config.method == MethodName::Full { 0 } else { saved as u64 };
    let parts = [checkpoints.saturating_mul(one), saved as u64].into_iter().chain(files.map(|(_, bytes)| *bytes));
    parts.fold(0, u64::saturating_add)
}
