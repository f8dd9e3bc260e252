//! The steps of a run: batches, updates, evaluations, checkpoints, and what is written in the end.

use std::path::{Path, PathBuf};

use super::best::Best;
use super::checkpoint::{self, About, Pace};
use super::evaluate;
use super::examined::{Examined, Written};
use super::folder::Folder;
use super::identity::{Identity, Length};
use super::job::{Job, Rows};
use super::metrics::{Event, Metrics, StepEvent};
use super::profile::Report;
use super::report;
use super::skips::Skips;
use super::svg;
use super::template;
use super::tensorboard::TensorBoard;
use super::training::Summary;
use super::watch::Watch;
use crate::backend::profile::Profile;
use crate::config::{Method, RunConfig};
use crate::cpu::gemm;
use crate::data::Dataset;
use crate::data::pack::{MicroBatch, pack_sized};
use crate::data::sampler::Sampler;
use crate::durable;
use crate::error::{Error, Result};
use crate::memory::resident;
use crate::nn::Layout;
use crate::peft;
use crate::session::Session;
use crate::system::{self, Instant};
use crate::train::schedule;
use crate::train::trainer::StepReport;

/// Keeps what a run tells in its folder, and passes it on.
pub struct Tell<'a> {
    /// `metrics.jsonl`.
    pub metrics: Metrics,
    /// TensorBoard's event file, if one is wanted.
    pub board: Option<TensorBoard>,
    /// Who else hears it.
    pub on: &'a mut dyn FnMut(Event) -> Result<()>,
}

impl Tell<'_> {
    /// Errs if the file cannot be written, or with the error of who hears it.
    pub fn event(&mut self, event: Event) -> Result<()> {
        self.metrics.write(&event)?;
        if let Some(board) = &mut self.board {
            board.write(&event)?;
        }
        (self.on)(event)
    }

    /// In words.
    pub fn note(&mut self, text: impl Into<String>) -> Result<()> {
        self.event(Event::Note(text.into()))
    }
}

/// A step that is done.
struct Stepped {
    micro: Vec<MicroBatch>,
    report: StepReport,
    event: StepEvent,
    seconds: f64,
}

/// A run with all that it needs, between two of its steps.
pub struct Course<'a> {
    /// Its settings.
    pub config: &'a RunConfig,
    /// Model and task.
    pub job: &'a Job,
    /// Where it is written.
    pub folder: &'a Folder,
    /// The model on its device.
    pub session: Session,
    /// What a micro-batch of each size holds.
    pub layouts: Vec<Layout>,
    /// What is learnt from.
    pub data: Dataset,
    /// What is evaluated on.
    pub rows: Option<Rows>,
    /// The chat template that goes along with what is trained.
    pub template: Option<String>,
    /// What is looked at before the first step and after the last.
    pub examined: Examined,
    /// Which examples come next.
    pub sampler: Sampler,
    /// Its steps.
    pub length: Length,
    /// What tells it from other runs.
    pub identity: Identity,
    /// Steps done.
    pub done: u64,
    /// Steps that were skipped.
    pub skips: Skips,
    /// Its evaluations.
    pub best: Best,
    /// Step and loss of those done.
    pub losses: Vec<(u64, f32)>,
    /// The step of the last checkpoint.
    pub saved: Option<u64>,
    /// When checkpoints are due.
    pub pace: Pace,
    /// What times the ops.
    pub profile: Option<Profile>,
}

impl Course<'_> {
    /// All steps that are left, and the files.
    pub fn run(mut self, tell: &mut Tell) -> Result<Summary> {
        let account = self.session.trainer.exec.plan.account.total + self.session.trainer.exec.plan.account.host_total;
        let scale = |session: &Session| session.trainer.loss_scale().map(|scale| scale.factor());
        let mut watch = Watch::new(scale(&self.session));
        let mut timed = Report::default();
        let first = self.done;
        let mut took = (0, 0.0);
        if first == 0 {
            self.examine("before the first step", tell)?;
        }
        // A run that was asked to stop may have left one out.
        if is_stop(self.evaluate(tell))? && self.done < self.length.steps {
            return Err(self.stop(tell));
        }
        while self.done < self.length.steps && !self.best.is_over(self.config.patience) {
            let Stepped { micro, report, event, seconds } = self.step()?;
            took = (took.0 + event.tokens, took.1 + seconds);
            timed = Report { steps: timed.steps + 1, seconds: timed.seconds + seconds, ..timed };
            if let Some(profile) = self.profile.as_ref().filter(|_| self.done == first + 1 && event.step < event.steps)
            {
                // The first step touches its memory for the first time.
                profile.reset();
                timed = Report::default();
            }
            let stopped = match is_stop(tell.event(Event::Step(event))) {
                Err(error @ Error::Io { .. }) => {
                    // Whoever hears it may: the file could not be written.
                    let _ = (tell.on)(Event::Note(self.rescue()));
                    return Err(error);
                }
                answer => answer?,
            };
            for note in watch.after(self.done, &report, scale(&self.session)) {
                tell.note(note)?;
            }
            let last = self.done == self.length.steps;
            let (most, session) = (self.config.max_skips, &mut self.session);
            self.skips.check(most, (self.done, last), &report, || session.first_not_finite(&micro))?;
            // Whoever asks to stop does not wait for an evaluation: the checkpoint says that it is owed.
            let stopped = stopped && !last || is_stop(self.evaluate(tell))?;
            if stopped && !last {
                return Err(self.stop(tell));
            }
            if self.pace.is_due(self.done, self.length.steps) {
                // The disk may have room again when the next one is due.
                if let Err(error) = self.checkpoint(tell) {
                    tell.note(format!("no checkpoint after step {}, the run goes on: {error}", self.done))?;
                }
            }
        }
        if let Some(profile) = &self.profile {
            tell.event(Event::Profile(Report { ops: profile.ops(), ..timed }))?;
        }
        self.settle(tell)?;
        self.examine("after the last step", tell)?;
        let (steps, skipped) = (self.done, self.skips.all);
        if skipped > 0 {
            tell.note(format!("{skipped} of {steps} steps were skipped: loss or gradient were not finite"))?;
        }
        if let Err(error) = self.write() {
            // What is not finite is worth no rescue.
            if matches!(error, Error::Io { .. }) {
                tell.note(self.rescue())?;
            }
            return Err(error);
        }
        let moved = self.session.trainer.exec.offload.moved;
        tell.event(Event::End { account, peak_resident: resident::peak(), moved, took })?;
        let run = self.folder.path();
        report::write(&[run.into()], &run.join(report::REPORT_FILE))?;
        tell.event(Event::Saved { path: self.folder.path().into() })?;
        let loss = |i: Option<&(u64, f32)>| i.map_or(f32::NAN, |l| l.1);
        Ok(Summary { steps, skipped, first_loss: loss(self.losses.first()), last_loss: loss(self.losses.last()) })
    }

    fn step(&mut self) -> Result<Stepped> {
        let Length { steps, warmup } = self.length;
        let began = Instant::now();
        let batch = self.sampler.next_batch(self.config.batch_size);
        let micro = pack_sized(&self.data, &batch, &self.layouts, !self.config.shuffle)?;
        let lr =
            self.config.lr.unwrap_or_default() * schedule::multiplier(self.config.schedule, self.done, warmup, steps);
        let report = self.session.step(&micro, lr)?;
        let seconds = began.elapsed().as_secs_f64();
        self.done += 1;
        let every = self.config.eval_every.is_some_and(|every| self.done.is_multiple_of(every));
        self.best.owe(self.rows.is_some() && (every || self.done == steps));
        self.losses.push((self.done, report.loss));
        self.skips.count(&report);
        let event = StepEvent {
            step: self.done,
            steps,
            loss: report.loss,
            lr,
            grad_norm: report.grad_norm,
            tokens: report.tokens as u64,
            trained_tokens: report.trained as u64,
            tokens_per_second: report.tokens as f64 / seconds.max(1e-9),
            skipped: self.skips.all,
        };
        Ok(Stepped { micro, report, event, seconds })
    }

    /// Evaluates, if that is due after the last step.
    fn evaluate(&mut self, tell: &mut Tell) -> Result<()> {
        let Some(rows) = self.rows.as_ref().filter(|_| self.best.is_owed()) else { return Ok(()) };
        let evaluated = evaluate::evaluate(&mut self.session, self.job, rows, self.config.batch_size)?;
        let better = self.best.count(self.done, evaluated.loss);
        // A checkpoint of this step that is there already does not know of it.
        self.saved = self.saved.filter(|&saved| saved < self.done);
        let answer = tell.event(Event::Eval { step: self.done, evaluated });
        if better && self.config.keep_best {
            self.checkpoint(tell)?;
        }
        answer
    }

    /// Looks at some examples with the weights as they are.
    fn examine(&mut self, when: &str, tell: &mut Tell) -> Result<()> {
        let step = self.done;
        if self.examined.measures() {
            let measured = self.examined.measure(&mut self.session, &self.data, &self.layouts)?;
            tell.event(Event::Examples { step, measured })?;
        }
        for Written { prompt, text } in self.examined.write(&mut self.session, self.job)? {
            tell.event(Event::Sample { step, when: when.into(), prompt, text })?;
        }
        Ok(())
    }

    /// After the last step: why it was the last, and the weights of the best evaluation, if those are wanted.
    fn settle(&mut self, tell: &mut Tell) -> Result<()> {
        let Course { config: RunConfig { patience, keep_best, .. }, done, length, .. } = self;
        if let (true, Some(patience)) = (*done < length.steps, *patience) {
            tell.note(format!(
                "ends after step {done} of {}: {patience} evaluations without a better one",
                length.steps
            ))?;
            if self.saved != Some(self.done) && self.config.save_every != Some(0) {
                self.checkpoint(tell)?;
            }
        }
        let Some(best) = self.best.step().filter(|best| *keep_best && *best != self.done) else { return Ok(()) };
        let state = checkpoint::of(self.folder.path(), best).join(checkpoint::STATE_FILE);
        self.session.load_state(&state)?;
        tell.note(format!("the weights are those after step {best}, whose evaluation was the best"))
    }

    fn checkpoint(&mut self, tell: &mut Tell) -> Result<()> {
        tell.metrics.sync()?;
        let path = self.write_checkpoint(self.folder.path())?;
        checkpoint::prune(self.folder.path(), self.done, self.config.keep, self.best.step());
        self.saved = Some(self.done);
        self.pace.written();
        tell.event(Event::Checkpoint { step: self.done, path })
    }

    fn write_checkpoint(&mut self, run: &Path) -> Result<PathBuf> {
        let about =
            About::new(self.done, self.length, self.sampler.cursor(), self.skips, self.best, self.identity.clone());
        let adapter = peft::named(self.config.method.name())?.peft_type.is_some();
        let (config, job, template) = (self.config, self.job, self.template.as_deref());
        checkpoint::write(run, &mut self.session, &about, &mut |session, dir| match adapter {
            true => write_trained(session, dir, config, job, template),
            false => Ok(()),
        })
    }

    /// Writes a checkpoint and says how to go on. Returns the error that ends the run.
    fn stop(&mut self, tell: &mut Tell) -> Error {
        let at = format!("stopped after step {} of {}", self.done, self.length.steps);
        let written = match self.saved == Some(self.done) {
            true => Ok(()),
            false => self.checkpoint(tell),
        };
        let said = match written {
            Ok(()) => tell.note(format!("{at}; `trimtab train --resume {}` goes on", self.folder.path().display())),
            Err(error) => tell.note(format!("{at}; {}", self.rescue())).and(Err(error)),
        };
        said.err().unwrap_or(Error::Cancelled)
    }

    /// What the run leaves in its folder.
    fn write(&mut self) -> Result<()> {
        // Saving copies the trained tensors; the buffers of products make room for that.
        gemm::free_buffers();
        resident::give_back();
        write_trained(&mut self.session, self.folder.path(), self.config, self.job, self.template.as_deref())?;
        self.folder.write("loss.svg", &svg::loss_curve("training loss", &self.losses))?;
        durable::sync_folder(self.folder.path());
        Ok(())
    }

    /// What was computed is not lost where the folder cannot be written: says where it is.
    fn rescue(&mut self) -> String {
        let run = self.folder.path().display().to_string();
        let again = format!("`trimtab train --resume {run}` goes on");
        if self.saved == Some(self.done) {
            return format!("{run} could not be written; its last checkpoint has all, and when there is room, {again}");
        }
        let elsewhere = system::temp_dir().join(format!("trimtab-rescued-{}", system::process_id()));
        match self.write_checkpoint(&elsewhere) {
            Ok(path) => format!(
                "{run} could not be written; the checkpoint of step {} is {}: move it to {run}/{}, and {again}",
                self.done,
                path.display(),
                checkpoint::FOLDER
            ),
            Err(error) => format!(
                "{run} could not be written, nor a checkpoint elsewhere ({error}); {again} from its last checkpoint"
            ),
        }
    }
}

/// The adapter or the model, and the chat template that goes along.
fn write_trained(
    session: &mut Session,
    dir: &Path,
    config: &RunConfig,
    job: &Job,
    template: Option<&str>,
) -> Result<()> {
    session.save(dir, config.save_dtype.into())?;
    template::write(template, dir)?;
    if config.method != Method::Full && !job.task.def().label.is_empty() {
        // PEFT's files do not say what labels are called.
        let path = dir.join("config.json");
        durable::write(&path, format!("{:#}\n", job.base.config).as_bytes())?;
    }
    Ok(())
}

/// Whether an event was answered with the wish to stop.
fn is_stop(answer: Result<()>) -> Result<bool> {
    match answer {
        Err(Error::Cancelled) => Ok(true),
        other => other.map(|()| false),
    }
}
