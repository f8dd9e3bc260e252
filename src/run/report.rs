//! The page of a run, or of several to compare: one HTML file that needs nothing else and reads well light and dark.
//! It is made of `metrics.jsonl`, so that it can be made again, of a run that was killed too.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::metrics::METRICS_FILE;
use super::output;
use super::progress::clock;
use super::svg::{self, Line, escaped, number};
use crate::config::RunConfig;
use crate::durable;
use crate::error::{Error, Result};
use crate::units::{grouped, human};

/// Its name in a run folder.
pub const REPORT_FILE: &str = "report.html";

/// What a run told.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    path: PathBuf,
    /// The event that it began with; null if it is not there.
    pub run: Value,
    /// Events of steps.
    pub steps: Vec<Value>,
    /// Events of evaluations.
    pub evaluations: Vec<Value>,
    /// Losses of some examples, before and after.
    examples: Vec<Value>,
    /// Texts of the model, before and after.
    samples: Vec<Value>,
    /// The event that it ended with, if it did.
    pub end: Option<Value>,
}

impl Told {
    /// Reads the metrics of the run in `dir`. A last line that is cut off is none.
    pub fn read(dir: &Path) -> Result<Told> {
        let path = dir.join(METRICS_FILE);
        if !path.is_file() {
            return Err(Error::file(dir, format!("no {METRICS_FILE}"), "the folder of a run that has taken a step"));
        }
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let mut told = Told { path: dir.into(), ..Told::default() };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(|e| Error::io(&path, e))?;
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
            match event["event"].as_str() {
                Some("run") => told.run = event,
                Some("step") => told.steps.push(event),
                Some("eval") => told.evaluations.push(event),
                Some("examples") => told.examples.push(event),
                Some("sample") => told.samples.push(event),
                Some("end") => told.end = Some(event),
                _ => {}
            }
        }
        Ok(told)
    }

    fn name(&self) -> String {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// (step, value) of a number of some events.
    fn series(events: &[Value], value: impl Fn(&Value) -> Option<f64>) -> Vec<(f64, f64)> {
        events.iter().filter_map(|event| Some((event["step"].as_f64()?, value(event)?))).collect()
    }

    /// The setting of a name, as text.
    fn setting(&self, name: &str) -> String {
        shown(&self.run["config"][name])
    }

    /// Names and values for the top of the page.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let loss =
            |event: Option<&Value>| event.and_then(|e| e["loss"].as_f64()).map_or("–".into(), |l| format!("{l:.4}"));
        let tokens: f64 = self.steps.iter().filter_map(|s| s["tokens"].as_f64()).sum();
        let rate = |s: &Value| Some(s["tokens"].as_f64()? / s["tokens_per_second"].as_f64().filter(|r| *r > 0.0)?);
        let seconds: f64 = self.steps.iter().filter_map(rate).sum();
        let asked = self.run["config"]["steps"].as_u64();
        let steps = match (&self.end, asked) {
            (None, Some(asked)) => format!("{} of {asked}", self.steps.len()),
            _ => self.steps.len().to_string(),
        };
        let count = |key: &str| self.run[key].as_u64().map_or("–".into(), grouped);
        let mut facts = vec![
            ("model", self.setting("model")),
            ("data", self.setting("data")),
            ("method", self.setting("method")),
            ("device", shown(&self.run["device"])),
            ("trained parameters", format!("{} of {}", count("trained_parameters"), count("parameters"))),
            ("state", if self.end.is_some() { "finished".into() } else { "not finished".into() }),
            ("steps", steps),
            ("loss, first to last", format!("{} to {}", loss(self.steps.first()), loss(self.steps.last()))),
            ("tokens", grouped(tokens as u64)),
            ("time of the steps", clock(seconds)),
        ];
        if seconds > 0.0 {
            facts.push(("tokens a second", grouped((tokens / seconds) as u64)));
        }
        let best = self.evaluations.iter().filter_map(|e| Some((e["loss"].as_f64()?, e["step"].as_u64()?)));
        if let Some((loss, step)) = best.min_by(|a, b| a.0.total_cmp(&b.0)) {
            facts.push(("best evaluation loss", format!("{loss:.4}, after step {step}")));
        }
        if let Some(end) = &self.end {
            let bytes = |key: &str| end[key].as_u64().map(human);
            facts.extend(bytes("account_bytes").map(|b| ("planned memory", b)));
            facts.extend(bytes("peak_resident_bytes").map(|b| ("most memory of the process", b)));
        }
        let skipped = self.steps.last().and_then(|s| s["skipped"].as_u64()).filter(|n| *n > 0);
        facts.extend(skipped.map(|n| ("skipped steps", grouped(n))));
        facts
    }
}

/// A value of JSON for people.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;background:#fff;color:#24292f}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:1rem}\
figure{margin:0;border:1px solid #d0d7de;border-radius:6px;padding:.5rem}\
.scroll{overflow-x:auto}table{border-collapse:collapse}\
th,td{text-align:left;padding:.2rem .8rem;border-bottom:1px solid #d0d7de;vertical-align:top;overflow-wrap:anywhere}\
th{font-weight:600}.texts td{white-space:pre-wrap;min-width:14rem}td.n{text-align:right;font-variant-numeric:tabular-nums}summary{cursor:pointer}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#f0f6fc}figure,th,td{border-color:#3d444d}}";

/// Writes the page of the runs in `dirs` to `out`.
pub fn write(dirs: &[PathBuf], out: &Path) -> Result<()> {
    output::check_replaces(out, output::HTML)?;
    let runs = dirs.iter().map(|dir| Told::read(dir)).collect::<Result<Vec<_>>>()?;
    durable::write(out, page(&runs).as_bytes())
}

/// The page of `runs`.
fn page(runs: &[Told]) -> String {
    let names: Vec<String> = runs.iter().map(Told::name).collect();
    let title = escaped(&names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n<style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n"
    );
    page += &facts(runs, &names);
    page += "<h2>Curves</h2>\n<div class=\"charts\">\n";
    for svg in charts(runs, &names) {
        writeln!(page, "<figure>{svg}</figure>").ok();
    }
    page += "</div>\n";
    page += &evaluations(runs, &names);
    page += &samples(runs, &names);
    page += &examples(runs, &names);
    page += &settings(runs, &names);
    page + "</body></html>\n"
}

fn row(head: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!("<td>{}</td>", escaped(&cell))).collect();
    format!("<tr><th>{}</th>{cells}</tr>\n", escaped(head))
}

fn header(names: &[String]) -> String {
    match names {
        [_] => String::new(),
        names => row("", names.iter().cloned()),
    }
}

fn facts(runs: &[Told], names: &[String]) -> String {
    let all: Vec<Vec<(&'static str, String)>> = runs.iter().map(Told::facts).collect();
    let mut heads: Vec<&'static str> = Vec::new();
    for (head, _) in all.iter().flatten() {
        if !heads.contains(head) {
            heads.push(head);
        }
    }
    let cell = |run: &Vec<(&'static str, String)>, head: &str| {
        run.iter().find(|(name, _)| *name == head).map_or("–".into(), |(_, value)| value.clone())
    };
    let rows: String = heads.iter().map(|head| row(head, all.iter().map(|run| cell(run, head)))).collect();
    format!("<div class=\"scroll\"><table>{}{rows}</table></div>\n", header(names))
}

fn charts(runs: &[Told], names: &[String]) -> Vec<String> {
    let step = |key: &'static str| move |event: &Value| event[key].as_f64();
    let lines = |suffix: &str, noisy: bool, points: &dyn Fn(&Told) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line = |(run, name): (&Told, &String)| {
            let name = if names.len() == 1 { suffix.to_owned() } else { format!("{name} {suffix}") };
            Line { name, points: points(run), noisy }
        };
        runs.iter().zip(names).map(line).filter(|line| !line.points.is_empty()).collect()
    };
    let mut loss = lines("training", true, &|run| Told::series(&run.steps, step("loss")));
    loss.extend(lines("evaluation", false, &|run| Told::series(&run.evaluations, step("loss"))));
    let mut charts = vec![svg::chart("loss", &loss)];
    for (title, key, noisy) in [
        ("gradient norm", "grad_norm", true),
        ("learning rate", "lr", false),
        ("tokens a second", "tokens_per_second", true),
    ] {
        charts.push(svg::chart(title, &lines("", noisy, &|run| Told::series(&run.steps, step(key)))));
    }
    let mut metrics: Vec<String> = Vec::new();
    let all = runs.iter().flat_map(|run| &run.evaluations).filter_map(|e| e["metrics"].as_object());
    for key in all.flat_map(|metrics| metrics.keys()) {
        if !metrics.contains(key) {
            metrics.push(key.clone());
        }
    }
    for metric in metrics {
        let of = |run: &Told| Told::series(&run.evaluations, |e| e["metrics"][&metric].as_f64());
        charts.push(svg::chart(&metric, &lines("", false, &of)));
    }
    charts
}

fn evaluations(runs: &[Told], names: &[String]) -> String {
    let mut text = String::new();
    for (run, name) in runs.iter().zip(names).filter(|(run, _)| !run.evaluations.is_empty()) {
        let last = run.evaluations.last().and_then(|e| e["metrics"].as_object());
        let keys: Vec<&String> = last.into_iter().flat_map(|metrics| metrics.keys()).collect();
        let heads: String = keys.iter().map(|key| format!("<th>{}</th>", escaped(key))).collect();
        write!(
            text,
            "<h2>Evaluations{}</h2>\n<div class=\"scroll\"><table><tr><th>step</th><th>loss</th>{heads}</tr>\n",
            of(runs, name)
        )
        .ok();
        for event in &run.evaluations {
            let cell = |value: &Value| {
                let value = value.as_f64().map_or("–".into(), number);
                format!("<td class=\"n\">{value}</td>")
            };
            let metrics: String = keys.iter().map(|key| cell(&event["metrics"][key.as_str()])).collect();
            writeln!(text, "<tr>{}{}{metrics}</tr>", cell(&event["step"]), cell(&event["loss"])).ok();
        }
        text += "</table></div>\n";
    }
    text
}

/// ` of NAME`, where there are several runs.
fn of(runs: &[Told], name: &str) -> String {
    if runs.len() == 1 { String::new() } else { format!(" of {}", escaped(name)) }
}

/// What the model wrote before and after, beside each other.
fn samples(runs: &[Told], names: &[String]) -> String {
    let mut page = String::new();
    for (run, name) in runs.iter().zip(names).filter(|(run, _)| !run.samples.is_empty()) {
        let (before, after): (Vec<&Value>, Vec<&Value>) = run.samples.iter().partition(|s| s["step"] == 0);
        let heads = "<tr><th>prompt</th><th>before</th><th>after</th></tr>";
        write!(page, "<h2>Texts{}</h2>\n<div class=\"scroll\"><table class=\"texts\">{heads}\n", of(runs, name)).ok();
        for first in &before {
            let prompt = first["prompt"].as_str().unwrap_or_default();
            let last = after.iter().find(|s| s["prompt"] == first["prompt"]).and_then(|s| s["text"].as_str());
            let cells = [prompt, first["text"].as_str().unwrap_or_default(), last.unwrap_or("–")];
            let cells: String = cells.map(|cell| format!("<td>{}</td>", escaped(cell))).concat();
            writeln!(page, "<tr>{cells}</tr>").ok();
        }
        page += "</table></div>\n";
    }
    page
}

/// Examples with their losses at start and end, those that became easier by most first.
fn examples(runs: &[Told], names: &[String]) -> String {
    let mut page = String::new();
    for (run, name) in runs.iter().zip(names) {
        let [Some(first), Some(last)] = [run.examples.first(), run.examples.last()] else { continue };
        let all = |event: &Value| event["examples"].as_array().cloned().unwrap_or_default();
        let (before, after) = (all(first), all(last));
        let pair = |one: &Value| -> Option<(f64, f64, String)> {
            let then = after.iter().find(|e| e["example"] == one["example"])?;
            Some((one["loss"].as_f64()?, then["loss"].as_f64()?, one["text"].as_str()?.to_owned()))
        };
        let mut pairs: Vec<(f64, f64, String)> = before.iter().filter_map(pair).collect();
        if pairs.is_empty() || first["step"] == last["step"] {
            continue;
        }
        pairs.sort_by(|a, b| (b.0 - b.1).total_cmp(&(a.0 - a.1)));
        write!(
            page,
            "<h2>Examples{}</h2>\n<p>{} of the examples, with their losses before the first step and after the last: what \
             was learnt most comes first, what was learnt least or forgotten last.</p>\n<div class=\"scroll\"><table>\
             <tr><th>before</th><th>after</th><th>change</th><th>example, ⟦learnt⟧</th></tr>\n",
            of(runs, name),
            pairs.len()
        )
        .ok();
        for (before, after, text) in &pairs {
            let numbers = format!("<td class=\"n\">{before:.3}</td><td class=\"n\">{after:.3}</td>");
            let change = format!("<td class=\"n\">{:+.3}</td>", after - before);
            writeln!(page, "<tr>{numbers}{change}<td>{}</td></tr>", escaped(text)).ok();
        }
        page += "</table></div>\n";
    }
    page
}

/// The settings: those that are not the defaults, or differ between runs, and then all.
fn settings(runs: &[Told], names: &[String]) -> String {
    let defaults = RunConfig::default().to_json();
    let mut keys: Vec<&String> = Vec::new();
    for key in runs.iter().filter_map(|run| run.run["config"].as_object()).flat_map(|config| config.keys()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let line = |key: &&String| row(key, runs.iter().map(|run| run.setting(key)));
    let usual = |key: &&String| runs.iter().all(|run| run.run["config"][key.as_str()] == defaults[key.as_str()]);
    let own: String = keys.iter().filter(|key| !usual(key)).map(line).collect();
    let all: String = keys.iter().map(line).collect();
    let header = header(names);
    format!(
        "<h2>Settings</h2>\n<div class=\"scroll\"><table>{header}{own}</table></div>\n\
         <details><summary>all settings</summary>\n<div class=\"scroll\"><table>{header}{all}</table></div></details>\n"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(name: &str, end: bool) -> Told {
        let mut config = RunConfig::default();
        config.rank = 64;
        let config = config.to_json();
        let step = |n: u64| {
            json!({"event": "step", "step": n, "loss": 3.0 / n as f64, "lr": 1e-4, "grad_norm": null,
                                    "tokens": 100, "tokens_per_second": 50.0, "skipped": 0})
        };
        Told {
            path: name.into(),
            run: json!({"config": config, "device": "cpu <2>", "trained_parameters": 1234, "parameters": 5678}),
            steps: (1..=4).map(step).collect(),
            evaluations: vec![json!({"event": "eval", "step": 4, "loss": 0.5, "metrics": {"accuracy": 0.75}})],
            examples: vec![
                json!({"step": 0, "examples": [{"example": 3, "text": "a <b>", "loss": 4.0}, {"example": 7, "text": "c", "loss": 2.0}]}),
                json!({"step": 4, "examples": [{"example": 3, "text": "a <b>", "loss": 3.5}, {"example": 7, "text": "c", "loss": 0.5}]}),
            ],
            samples: vec![
                json!({"step": 0, "prompt": "Who?", "text": " Me & you."}),
                json!({"step": 4, "prompt": "Who?", "text": " Them."}),
            ],
            end: end.then(|| json!({"account_bytes": 1 << 20, "peak_resident_bytes": null})),
        }
    }

    #[test]
    fn a_page_says_what_the_run_told() {
        let page = page(&[told("runs/a", true)]);
        for part in [
            "<h1>a</h1>",
            "cpu &lt;2>",
            "1,234 of 5,678",
            "3.0000 to 0.7500",
            "0:08",
            "0.5000, after step 4",
            "1.0 MiB",
            "accuracy",
            "<th>rank</th><td>64</td>",
            "finished",
        ] {
            assert!(page.contains(part), "no {part} in {page}");
        }
        // What was learnt most comes first.
        let (most, least) = (page.find("<td class=\"n\">-1.500</td><td>c</td>"), page.find("<td>a &lt;b></td>"));
        assert!(most.is_some() && most < least, "{page}");
        assert!(page.contains("<td>Who?</td><td> Me &amp; you.</td><td> Them.</td>"), "{page}");
        // What is as by default is among all settings only, and nothing is fetched.
        assert_eq!(page.matches("<th>batch_size</th>").count(), 1);
        assert_eq!(page.matches("<th>rank</th>").count(), 2);
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"));
    }

    #[test]
    fn runs_are_compared() {
        let page = page(&[told("runs/a", true), told("runs/b<c", false)]);
        assert!(page.contains("<tr><th></th><td>a</td><td>b&lt;c</td></tr>"), "{page}");
        assert!(page.contains("a training") && page.contains("b&lt;c evaluation") && page.contains("not finished"));
    }

    #[test]
    fn a_run_that_told_nothing_has_a_page() {
        let page = page(&[Told { path: "x".into(), ..Told::default() }]);
        assert!(page.contains("not finished") && !page.contains("NaN"), "{page}");
    }
}
