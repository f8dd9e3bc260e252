//! What a run is about to do, in a dozen lines, before its first step.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::job::Job;
use super::learnt::Learnt;
use crate::config::{Method, Origin, RunConfig};
use crate::data::tokenizer::Tokenizer;
use crate::data::{Dataset, INPUT_IDS, LABELS};
use crate::error::Result;
use crate::session::Planned;
use crate::tasks::causal_lm;
use crate::units::{grouped, human};

/// Kinds of trained tensors that are named.
const KINDS: usize = 8;
/// Characters of the example that is shown.
const LINE: usize = 400;

/// What is learnt: lines that need a tokenizer, which is not kept.
pub fn learns(job: &Job, learnt: &Learnt, tokenizer: Option<&Tokenizer>) -> Result<Lines> {
    let (mut lines, data) = (Lines::default(), &learnt.data);
    let (lengths, trained) = (learnt.lengths(), learnt.trained(job));
    let mut about = format!("{}: {} tokens", lengths.about(), grouped(lengths.total() as u64));
    if trained > 0 {
        let share = 100.0 * trained as f64 / lengths.total().max(1) as f64;
        let _ = write!(about, ", {} of them learnt ({share:.0} %)", grouped(trained as u64));
    }
    lines.add("learns", about);
    if let Some(tokenizer) = tokenizer.filter(|_| job.task.def().name == causal_lm::DEF.name) {
        let ends = ends(data, tokenizer.eos_ids());
        lines.add("", format!("that the text ends is learnt in {} of {} examples", ends, data.len()));
    }
    if !data.is_empty() {
        let first = learnt.shown(job, 0, tokenizer)?;
        lines.add("", format!("the first, ⟦learnt⟧: {}", first.line(LINE)));
    }
    Ok(lines)
}

/// All lines, after those of what it `learns`.
pub fn text(config: &RunConfig, learns: Lines, planned: &Planned, learnt: &Learnt) -> String {
    let (mut lines, data) = (learns, &learnt.data);
    let tensors = planned.trained();
    let kinds = kinds(&tensors);
    let word = if tensors.len() == 1 { "tensor" } else { "tensors" };
    lines.add("trains", format!("{} {word}", grouped(tensors.len() as u64)));
    for Kind { name, parts, modules, values } in kinds.iter().take(KINDS) {
        let (count, parts) = (modules.len(), parts.join(", "));
        lines.add("", format!("{count:>4} × {name} ({parts})  {} parameters", grouped(*values as u64)));
    }
    if kinds.len() > KINDS {
        lines.add("", format!("and {} other kinds", kinds.len() - KINDS));
    }
    for (head, embedding) in planned.ties() {
        lines.add("tied", format!("{head} is {embedding}"));
    }
    let steps = learnt.steps(config);
    let epochs = steps as f64 / learnt.sampler.steps_per_epoch(config.batch_size).max(1) as f64;
    let epochs = if epochs == 1.0 { "1 epoch".into() } else { format!("{epochs:.2} epochs") };
    let (batch, each) = (config.batch_size.min(data.len()), data.total(INPUT_IDS) as f64 / data.len().max(1) as f64);
    lines.add(
        "takes",
        format!(
            "{} steps of {batch} examples (about {} tokens), {epochs}, learning rate {:.1e}; the time is told from the first on",
            grouped(steps),
            grouped((batch as f64 * each).round() as u64),
            config.lr.unwrap_or_default()
        ),
    );
    let account = planned.account();
    let auto = match config.origin("dtype") {
        Some(Origin::Device(_)) => " (--dtype auto)",
        _ => "",
    };
    let act = planned.activations();
    lines.add("computes", format!("in {act}{auto} on {}", planned.device()));
    let needed = account.total + account.host_total;
    let free = planned.free_memory().map_or(String::new(), |free| format!("; {} are free", human(free)));
    let most = planned.budget().map_or(String::new(), |most| format!(", of which the plan may take {}", human(most)));
    let most = if config.memory.is_none() { most } else { String::new() };
    lines.add("memory", format!("{} are needed{free}{most}", human(needed)));
    lines.text
}

/// Settings with which a run of so many steps learns nothing, or never at the rate that was asked for.
pub fn idle(config: &RunConfig, steps: u64) -> Vec<String> {
    let (lr, warmup) = (config.lr.unwrap_or_default(), config.warmup_steps(steps));
    let lora = config.method == Method::Lora;
    let rising = format!(
        "the learning rate rises for {} steps, and the run has {}: it never reaches {lr:e}",
        grouped(warmup),
        grouped(steps)
    );
    [
        (lr == 0.0, "lr is 0: nothing is learnt".to_owned()),
        (lora && config.alpha == 0.0, "alpha is 0: the adapter changes nothing and learns nothing".to_owned()),
        (lr > 0.0 && warmup >= steps && warmup > 0, rising),
    ]
    .into_iter()
    .filter_map(|(is, what)| is.then_some(what))
    .collect()
}

/// What to add to the settings where the plan takes more memory than is free.
pub fn too_large(planned: &Planned, quantized: bool) -> Option<String> {
    let needed = planned.account().total;
    let free = planned.free_memory().filter(|free| *free < needed)?;
    // Some is left to the system and to what is no part of the plan.
    let budget = free / 10 * 9;
    let smaller = if quantized { "" } else { "--quantize nf4, " };
    Some(format!(
        "the plan takes {} on {}, of which {} are free: add {smaller}--memory {} (what does not fit is computed again, \
         streamed or paged), or a smaller --max-seq-len or --batch-size",
        human(needed),
        planned.device(),
        human(free),
        human(budget).replace(' ', "")
    ))
}

/// Lines with a word in front of some.
#[derive(Default)]
pub struct Lines {
    text: String,
}

impl Lines {
    fn add(&mut self, word: &str, line: String) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        let _ = write!(self.text, "{gap}{word:<8} {line}");
    }
}

/// Examples in which a token that ends texts is learnt: after a conversation's last turn a template may write more.
fn ends(data: &Dataset, eos: &[u32]) -> usize {
    let ends = |i: usize| -> bool {
        let labels = data.column(i, LABELS);
        labels.is_some_and(|labels| labels.ints().iter().skip(1).any(|&id| eos.contains(&(id as u32))))
    };
    (0..data.len()).filter(|&i| ends(i)).count()
}

/// Trained tensors of modules that have one name but for numbers.
#[derive(Default)]
struct Kind {
    name: String,
    /// What is trained of a module.
    parts: Vec<String>,
    modules: BTreeSet<String>,
    values: usize,
}

/// The kinds of `tensors`, as `model.layers.*.self_attn.q_proj` with `lora_A` and `lora_B`, in their order.
fn kinds(tensors: &[(String, Vec<usize>)]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for (tensor, shape) in tensors {
        let (module, part) = parted(tensor);
        let any = |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { part.to_owned() };
        let name = module.split('.').map(any).collect::<Vec<String>>().join(".");
        let at = kinds.iter().position(|kind| kind.name == name).unwrap_or_else(|| {
            kinds.push(Kind { name, ..Kind::default() });
            kinds.len() - 1
        });
        let kind = &mut kinds[at];
        if !kind.parts.contains(&part) {
            kind.parts.push(part);
        }
        kind.modules.insert(module);
        kind.values += shape.iter().product::<usize>();
    }
    kinds
}

/// The module of a tensor, and what it is in it: `…q_proj` and `lora_A`, or `…q_proj` and `weight`.
fn parted(name: &str) -> (String, String) {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let short = name.strip_suffix(".weight").filter(|short| short.contains(".lora_")).unwrap_or(name);
    match short.rsplit_once('.') {
        Some((module, part)) => (module.into(), part.into()),
        None => (short.into(), "values".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    #[test]
    fn settings_that_learn_nothing_are_told() {
        for (flags, told) in [
            (&[("lr", "0"), ("warmup", "3")][..], &["lr is 0"][..]),
            (&[("alpha", "0")], &["alpha is 0"]),
            (&[("alpha", "0"), ("method", "bitfit")], &[]),
            (&[("lr", "1e-3"), ("warmup", "10")], &["rises for 10 steps, and the run has 10"]),
            (&[("lr", "1e-3"), ("warmup", "9")], &[]),
            (&[("lr", "1e-3"), ("warmup", "0.999")], &["never reaches 1e-3"]),
        ] {
            // An alpha is refused where it has no effect, so that one is set.
            let typed: Vec<_> = flags.iter().filter(|(name, _)| *name != "alpha").copied().collect();
            let mut config = RunConfig::resolve(None, &Flags::of(&typed).unwrap()).unwrap();
            if flags.len() > typed.len() {
                config.alpha = 0.0;
            }
            config.lr = config.lr.or(Some(1e-3));
            let found = idle(&config, 10);
            assert_eq!(found.len(), told.len(), "{flags:?}: {found:?}");
            assert!(found.iter().zip(told).all(|(found, told)| found.contains(told)), "{flags:?}: {found:?}");
        }
    }

    #[test]
    fn tensors_are_told_by_kind() {
        let tensor = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
        let tensors = [
            tensor("base_model.model.layers.0.q_proj.lora_A.weight", &[8, 64]),
            tensor("base_model.model.layers.0.q_proj.lora_B.weight", &[32, 8]),
            tensor("base_model.model.layers.11.q_proj.lora_A.weight", &[8, 64]),
            tensor("base_model.model.layers.11.q_proj.lora_B.weight", &[32, 8]),
            tensor("score.weight", &[2, 64]),
            tensor("prompt", &[5, 64]),
        ];
        let told: Vec<_> = kinds(&tensors)
            .iter()
            .map(|kind| (format!("{} ({})", kind.name, kind.parts.join(", ")), kind.modules.len(), kind.values))
            .collect();
        let want = [
            ("layers.*.q_proj (lora_A, lora_B)", 2, 2 * (8 * 64 + 32 * 8)),
            ("score (weight)", 1, 128),
            ("prompt (values)", 1, 320),
        ];
        assert_eq!(told, want.map(|(name, modules, values)| (name.to_owned(), modules, values)));
    }
}
