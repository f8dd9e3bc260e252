//! Shows a run's events on standard error: a progress bar on a terminal, plain lines elsewhere. Nothing is coloured,
//! so there is nothing for NO_COLOR to turn off.

use std::io::Write;
use std::time::Duration;

use super::bar::Bar;
use super::metrics::{Event, StepEvent};
use crate::plan::Account;
use crate::system::Instant;
pub use crate::units::{grouped, human};

/// Plain lines about steps come at most this often, besides the first and the last.
const PAUSE: Duration = Duration::from_secs(5);

/// Shows events as they come.
pub struct Progress {
    out: Out,
    device: String,
    last: Option<Instant>,
    mean: Mean,
}

/// Means over the steps that were shown.
#[derive(Default)]
struct Mean {
    /// Losses and their weights, each step's a tenth less than the next one's.
    loss: (f64, f64),
    /// The first step's time, which has more to do than others.
    first: f64,
    /// Steps after the first, and their seconds.
    others: (f64, f64),
}

impl Mean {
    const KEPT: f64 = 0.9;

    fn add(&mut self, loss: f32, seconds: f64) {
        if loss.is_finite() {
            self.loss.0 = Mean::KEPT * self.loss.0 + f64::from(loss);
            self.loss.1 = Mean::KEPT * self.loss.1 + 1.0;
        }
        match (self.first > 0.0, seconds.is_finite()) {
            (_, false) => {}
            (false, true) => self.first = seconds,
            (true, true) => self.others = (self.others.0 + 1.0, self.others.1 + seconds),
        }
    }

    /// NaN if there was none.
    fn loss(&self) -> f64 {
        self.loss.0 / self.loss.1
    }

    /// Seconds of a step.
    fn step(&self) -> f64 {
        if self.others.0 > 0.0 { self.others.1 / self.others.0 } else { self.first }
    }
}

enum Out {
    Terminal(Bar),
    Lines(Box<dyn Write + Send>),
}

impl Progress {
    /// On standard error: a bar if it is a terminal.
    pub fn stderr() -> Progress {
        match Bar::on_stderr() {
            Some(bar) => Progress::new(Out::Terminal(bar)),
            None => Progress::lines(Box::new(std::io::stderr())),
        }
    }

    /// Plain lines into `out`.
    pub fn lines(out: Box<dyn Write + Send>) -> Progress {
        Progress::new(Out::Lines(out))
    }

    fn new(out: Out) -> Progress {
        Progress { out, device: String::new(), last: None, mean: Mean::default() }
    }

    /// Shows one event; errors of writing are dropped.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Run { device, trained_parameters, parameters, .. } => {
                self.device.clone_from(device);
                let (trained, all) = (grouped(*trained_parameters), grouped(*parameters));
                let version = env!("CARGO_PKG_VERSION");
                self.say(&format!("trimtab {version} on {device}: trains {trained} of {all} parameters"));
            }
            Event::Plan(account) => self.say(table(account, &self.device).trim_end()),
            Event::Loading { done, total } => self.loading(*done, *total),
            Event::Step(step) => self.step(step),
            Event::Eval { step, evaluated } => {
                let metrics = evaluated.metrics.iter().map(|(name, value)| format!("  {name} {value:.4}"));
                self.say(&format!("after step {step}: loss {:.4}{}", evaluated.loss, metrics.collect::<String>()));
            }
            Event::Examples { .. } => {}
            Event::Sample { when, prompt, text, .. } => self.say(&format!("\n--- {when}\n{prompt}{text}\n---")),
            Event::Profile(report) => self.say(&report.to_string()),
            Event::Resumed { step, path } => self.say(&format!("goes on after step {step}, from {}", path.display())),
            Event::Checkpoint { .. } => {}
            Event::End { peak_resident, took: (tokens, seconds), .. } => {
                let rate = grouped((*tokens as f64 / seconds).round() as u64);
                let memory = peak_resident.map(|bytes| format!(", at most {} of memory", human(bytes)));
                self.say(&format!("{} for the steps, {rate} tokens/s{}", clock(*seconds), memory.unwrap_or_default()));
            }
            Event::Saved { path } => self.say(&format!("wrote {}", path.display())),
            Event::Note(text) => self.say(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Out::Terminal(bar) = &self.out {
            bar.finish();
        }
    }

    /// A broken pipe ends the talk, not the run.
    fn say(&mut self, text: &str) {
        match &mut self.out {
            Out::Terminal(bar) => bar.say(text),
            Out::Lines(out) => drop(writeln!(out, "{text}")),
        }
    }

    fn loading(&mut self, done: u64, total: u64) {
        if let Out::Terminal(bar) = &mut self.out {
            bar.loading(done, total);
        }
    }

    fn step(&mut self, event: &StepEvent) {
        let &StepEvent { step, steps, loss, lr, tokens, tokens_per_second, skipped, .. } = event;
        self.mean.add(loss, tokens as f64 / tokens_per_second);
        let mean = self.mean.loss();
        let mut numbers = format!("loss {mean:.4}  {} tokens/s", grouped(tokens_per_second.round() as u64));
        if skipped > 0 {
            numbers += &format!("  {} skipped", grouped(skipped));
        }
        match &mut self.out {
            Out::Terminal(bar) => bar.step(step, steps, numbers),
            Out::Lines(_) => {
                let ends = step == 1 || step == steps;
                if ends || self.last.is_none_or(|last| last.elapsed() >= PAUSE) {
                    self.last = Some(Instant::now());
                    let left = steps.saturating_sub(step) as f64 * self.mean.step();
                    let eta = match left > 0.0 && step < steps {
                        true => format!("  {} left", clock(left)),
                        false => String::new(),
                    };
                    self.say(&format!("step {step}/{steps}  {numbers}  lr {lr:.2e}{eta}"));
                }
            }
        }
    }
}

/// Seconds as 1:02:03 or 2:03.
pub fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

/// The memory account as a table: class, size for people, bytes.
pub fn table(account: &Account, device: &str) -> String {
    const TOTAL: &str = "total";
    let rows = account.rows.iter().chain(&account.host).chain(&account.files);
    let names = rows.map(|r| r.0.as_str()).chain([TOTAL]);
    let width = names.map(|n| n.chars().count()).max().unwrap_or(0);
    let digits = grouped(account.total).len();
    let line =
        |name: &str, bytes: u64| format!("  {name:<width$}  {:>10}  {:>digits$}\n", human(bytes), grouped(bytes));
    let mut text = format!("memory on {}, in bytes\n", if device.is_empty() { "the device" } else { device });
    for (name, bytes) in &account.rows {
        text += &line(name, *bytes);
    }
    text += &line(TOTAL, account.total);
    if !account.peak_site.is_empty() {
        text += &format!("  most is in use at {}\n", account.peak_site);
    }
    for (what, rows) in [("in host memory", &account.host), ("in files", &account.files)] {
        if !rows.is_empty() {
            text += &format!("{what}\n");
        }
        rows.iter().for_each(|(name, bytes)| text += &line(name, *bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn step(step: u64, tokens_per_second: f64) -> Event {
        Event::Step(StepEvent {
            step,
            steps: 4,
            loss: 2.5,
            lr: 2e-4,
            grad_norm: 1.0,
            tokens: 1000,
            trained_tokens: 900,
            tokens_per_second,
            skipped: 0,
        })
    }

    #[test]
    fn plain_lines_where_there_is_no_terminal() {
        let heard = Heard::default();
        let mut progress = Progress::lines(Box::new(heard.clone()));
        let run = Event::run(&Default::default(), "cpu", 12, 3456);
        let account = Account {
            rows: vec![("frozen weights".into(), 1536)],
            total: 1536,
            peak_site: "layers.0:linear".into(),
            ..Account::default()
        };
        progress.show(&run);
        progress.show(&Event::Plan(account));
        progress.show(&Event::Loading { done: 1, total: 2 });
        for n in 1..=4 {
            progress.show(&step(n, if n == 1 { 10.0 } else { 12345.6 }));
        }
        progress.show(&Event::Saved { path: "runs/x".into() });
        progress.finish();
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        let expected = format!(
            "trimtab {} on cpu: trains 12 of 3,456 parameters\n\
             memory on cpu, in bytes\n  frozen weights     1.5 KiB  1,536\n  total              1.5 KiB  1,536\n  \
             most is in use at layers.0:linear\n\
             step 1/4  loss 2.5000  10 tokens/s  lr 2.00e-4  5:00 left\n\
             step 4/4  loss 2.5000  12,346 tokens/s  lr 2.00e-4\n\
             wrote runs/x\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text, expected);
        assert!(!text.contains('\x1b'), "no escape sequences");
    }

    #[test]
    fn numbers_that_are_not_there_do_no_harm() {
        let heard = Heard::default();
        let mut progress = Progress::lines(Box::new(heard.clone()));
        for rate in [0.0, f64::NAN, f64::INFINITY] {
            progress.last = None;
            progress.show(&step(2, rate));
        }
        assert_eq!(heard.0.lock().unwrap().iter().filter(|&&b| b == b'\n').count(), 3);
    }

    #[test]
    fn times_for_people() {
        assert_eq!([0.0, 59.6, 3723.0].map(clock), ["0:00", "1:00", "1:02:03"]);
    }
}
