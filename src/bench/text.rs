//! `trimtab bench generate`: how fast a prompt is read and a text is written, each from an empty cache, as llama-bench has it
//! (`pp512`, `tg128`), so that its tables can be put beside these.

use serde_json::json;

use super::environment;
use super::operands::Random;
use super::stats::Patience;
use super::step::Subject;
use super::table::{Better, Column, Report, Show, column, row};
use crate::backend;
use crate::error::{Error, Result};
use crate::generate::sample::Sampling;
use crate::generate::{Ask, Room};
use crate::memory::resident;
use crate::run::inference;
use crate::run::job::Job;
use crate::session::Options;
use crate::system::Instant;

const COLUMNS: &[Column] = &[
    column("name", "test", Show::Text),
    column("median", "tokens/s", Show::Number),
    column("p20", "p20", Show::Number),
    column("p80", "p80", Show::Number),
    column("cv", "cv", Show::Percent),
    column("samples", "runs", Show::Number),
];

/// Reads prompts of `prompt` tokens and writes texts of `written`; `on` is told what is done.
pub fn run(
    subject: &Subject,
    prompt: usize,
    written: usize,
    patience: &Patience,
    on: &mut dyn FnMut(&str),
) -> Result<Report> {
    let config = subject.config();
    let caps = backend::open(&config.device)?.caps().clone();
    let mut environment = environment::of(&config.device, &caps);
    let before = environment::clock();
    on("planning and loading");
    let job = Job::open(config, false, None)?;
    if job.facts.decoder_start.is_some() || job.facts.encoder {
        let hint = "a model that continues texts: Llama's kind, GPT-2";
        return Err(Error::unsupported("bench generate with an encoder", hint));
    }
    let tokens = prompt.max(written + 1) + 1;
    let wanted = |options| Options { max_seq_len: tokens, generate: Some(Room::of(tokens)), ..options };
    let (mut session, _) = inference::open(config, &job.base, &*job.task, None, wanted)?;
    let mut random = Random::new(1);
    let ids: Vec<u32> = (0..prompt).map(|_| (random.word() % job.facts.vocab.max(1) as u64) as u32).collect();
    // Texts have their length, whatever they say.
    let ask = |max_tokens| Ask { max_tokens, sampling: Sampling::default(), stop: &[] };

    let mut rows = Vec::new();
    if prompt > 0 {
        let name = format!("pp{prompt}");
        on(&name);
        let stats = patience.measure(&mut || {
            let began = Instant::now();
            session.generate(&ids, &ask(1), &mut |_| Ok(false))?;
            Ok(began.elapsed().as_secs_f64())
        })?;
        rows.push(row(&name, "tokens/s", Better::Higher, &stats.rate(prompt as f64)));
    }
    if written > 0 {
        let name = format!("tg{written}");
        on(&name);
        let stats = patience.measure(&mut || {
            let mut began = None;
            session.generate(&[0], &ask(written + 1), &mut |_| {
                began.get_or_insert_with(Instant::now);
                Ok(true)
            })?;
            Ok(began.map_or(0.0, |began: Instant| began.elapsed().as_secs_f64()))
        })?;
        rows.push(row(&name, "tokens/s", Better::Higher, &stats.rate(written as f64)));
    }
    environment::clocks(&mut environment, before);
    let [model, weights] = subject.about();
    let facts = json!({
        "model": model,
        "weights": weights,
        "peak_resident_bytes": resident::peak(),
    });
    let facts = facts.as_object().cloned().unwrap_or_default();
    Ok(Report { bench: "generate", environment, facts, columns: COLUMNS, rows })
}
