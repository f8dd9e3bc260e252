//! `trimtab bench kernels`: every row of the op table at the sizes of a model.
//!
//! A kernel is first checked against its definition in float64, at sizes that are cut so far that the definition is quick; one that
//! is wrong has no time. Then it is timed twice. *Hot*: again and again on the same operands. *Cold*: each time after a
//! stretch twice as long as the last-level cache was read, so that its operands come from memory, as in a step of a model
//! that is larger than the cache.

use regex::Regex;
use serde_json::{Map, Value, json};

use super::ceiling::Ceiling;
use super::environment;
use super::operands::{decode, in_16_bits, operands};
use super::place::{Placed, Work};
use super::stats::{Patience, Stats};
use super::table::{Better, Column, Report, Show, column, row};
use super::truth::judge;
use super::watched::Run;
use crate::backend::{self, Backend, Device};
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::ops::{self, Attr, Case, OpDef, Sample, SampleIn, Sizes, optim};

/// Bytes of results that are looked at together.
const PIECE: usize = 1 << 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Only cases whose name matches: "linear, nf4 lora".
    pub filter: Option<Regex>,
    /// The sizes of the model.
    pub sizes: Sizes,
    /// For how long each is measured.
    pub patience: Patience,
    /// Only cases whose activations are so; else all that the device has.
    pub act: Option<DType>,
    /// Where operands are before a kernel runs.
    pub caches: Vec<Cache>,
}

/// Where the operands of a kernel are before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Wherever its last run left them.
    Hot,
    /// In memory.
    Cold,
}

impl Cache {
    /// Every one, with its name.
    pub const ALL: [(&str, Cache); 2] = [("hot", Cache::Hot), ("cold", Cache::Cold)];

    fn name(self) -> &'static str {
        Cache::ALL.iter().find(|(_, cache)| *cache == self).map_or("", |(name, _)| name)
    }
}

const COLUMNS: &[Column] = &[
    column("name", "kernel", Show::Text),
    column("median", "time", Show::Seconds),
    column("p20", "p20", Show::Seconds),
    column("p80", "p80", Show::Seconds),
    column("cv", "cv", Show::Percent),
    column("gflop_s", "GFLOP/s", Show::Number),
    column("gb_s", "GB/s", Show::Number),
    column("of_ceiling", "of ceiling", Show::Percent),
    column("limit", "limit", Show::Text),
    column("error", "error/allowed", Show::Number),
    column("operands", "operands", Show::Text),
    column("wrong", "", Show::Text),
];

/// Names of all cases that `ask` wants, in the order of the table.
pub fn names(ask: &Ask, act: Option<DType>) -> Vec<String> {
    cases(ask, act).iter().map(|c| c.name.clone()).collect()
}

/// A case and what it is called.
struct Wanted {
    name: String,
    op: &'static OpDef,
    case: Case,
    /// The same, cut.
    small: Case,
}

fn cases(ask: &Ask, compute: Option<DType>) -> Vec<Wanted> {
    let mut all = Vec::new();
    let small = ask.sizes.small();
    for op in ops::table() {
        for (case, small) in (op.cases)(&ask.sizes).into_iter().zip((op.cases)(&small)) {
            let plain = format!("{}, {}", op.name, case.sample.name);
            let narrowed = |case: &Case, dtype| {
                in_16_bits(op, &case.sample, dtype).map(|sample| Case { sample, shared: case.shared })
            };
            let narrow = compute.and_then(|dtype| {
                let name = format!("{plain}, {dtype} activations");
                Some(Wanted { name, op, case: narrowed(&case, dtype)?, small: narrowed(&small, dtype)? })
            });
            all.push(Wanted { name: plain, op, case, small });
            all.extend(narrow);
        }
    }
    let act = |w: &Wanted| op_act(w.op, &w.case.sample).unwrap_or(DType::F32);
    all.retain(|w| ask.filter.as_ref().is_none_or(|f| f.is_match(&w.name)) && ask.act.is_none_or(|a| a == act(w)));
    all
}

fn op_act(op: &OpDef, sample: &Sample) -> Option<DType> {
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    op.compute_dtype(&sample.attr, &ins)
}

/// Times them all on the device; `on(done, of, name)` is called before each. Rows of kernels that are wrong have `wrong` and no
/// figure.
pub fn run(device: &Device, ask: &Ask, on: &mut dyn FnMut(usize, usize, &str)) -> Result<Report> {
    let mut backend = backend::open(device)?;
    let backend = &mut *backend;
    let wanted = cases(ask, backend.caps().compute_dtype);
    if wanted.is_empty() {
        let filter = ask.filter.as_ref().map_or(String::new(), |f| format!("--filter {f}"));
        return Err(Error::config("bench kernels", filter, "a pattern of some case: --list shows their names"));
    }
    let mut environment = environment::of(device, backend.caps());
    let before = environment::clock();
    on(0, wanted.len(), "what the device gives at most");
    let ceiling = Ceiling::measure(backend, &ask.patience)?;
    let flush = ask.caches.contains(&Cache::Cold).then(|| Flush::new(backend)).transpose()?;
    let mut rows = Vec::new();
    for (i, w) in wanted.iter().enumerate() {
        on(i, wanted.len(), &w.name);
        match judged(w.op, &w.small, backend) {
            Err(what) => rows.push(wrong(&w.name, &what)),
            Ok(error) => rows.extend(timed(w, backend, &flush, &ceiling, ask, error)?),
        }
    }
    on(wanted.len(), wanted.len(), "");
    if let Some(flush) = flush {
        flush.0.free(backend);
    }
    environment::clocks(&mut environment, before);
    let mut facts = ceiling.facts();
    facts.insert("sizes".into(), described(&ask.sizes).into());
    Ok(Report { bench: "kernels", environment, facts, columns: COLUMNS, rows })
}

fn described(s: &Sizes) -> String {
    format!(
        "{} tokens, {} features, {} in the MLP, {} heads over {} of {}, vocabulary of {}, rank {}",
        s.tokens, s.hidden, s.mlp, s.heads, s.kv_heads, s.head_dim, s.vocab, s.rank
    )
}

fn wrong(name: &str, what: &str) -> Map<String, Value> {
    let map = json!({"name": name, "wrong": format!("WRONG: {what}")});
    map.as_object().cloned().unwrap_or_default()
}

/// The largest error over what is allowed, or what is wrong.
fn judged(op: &'static OpDef, case: &Case, device: &mut dyn Backend) -> Result<f64, String> {
    let sample = &case.sample;
    let (stored, meant) = operands(op.name, sample)?;
    let ins = sample.ins.iter().map(|input| input.ty.clone()).zip(stored.iter().map(Vec::as_slice)).collect();
    let found = Run { op, attr: &sample.attr, ins, shared: case.shared }.on(device)?;
    judge(op, sample, &meant, &found)
}

/// The rows of one case: hot and cold.
fn timed(
    w: &Wanted,
    device: &mut dyn Backend,
    flush: &Option<Flush>,
    ceiling: &Ceiling,
    ask: &Ask,
    error: f64,
) -> Result<Vec<Map<String, Value>>> {
    let work = Work { op: w.op, case: &w.case };
    let (ins, outs) = work.types()?;
    let room = work.room(device)?;
    if device.free_memory().is_some_and(|free| free < room) {
        return Ok(vec![wrong(&w.name, &format!("{} are needed, which are not free", crate::units::human(room)))]);
    }
    let placed = work.place(device)?;
    let mut rows = Vec::new();
    for &cache in &ask.caches {
        let stats = ask.patience.measure(&mut || {
            if let (Cache::Cold, Some(flush)) = (cache, flush) {
                device.replay(flush.0.recording)?;
            }
            Ok(device.replay_timed(placed.recording)?.as_secs_f64())
        });
        let stats = match stats {
            Ok(stats) => stats,
            Err(error) => {
                placed.free(device);
                return Err(error);
            }
        };
        rows.push(shown(w, cache.name(), &stats, &ins, &outs, ceiling, error));
    }
    let finite = finite(device, &placed, &outs);
    placed.free(device);
    match finite? {
        true => Ok(rows),
        false => Ok(vec![wrong(&w.name, "numbers that are not finite, at the sizes that are timed")]),
    }
}

/// Whether the outputs that are floats have finite numbers only.
fn finite(device: &mut dyn Backend, placed: &Placed, outs: &[Ty]) -> Result<bool> {
    for (slice, ty) in placed.outs.iter().zip(outs) {
        if !ty.dtype.is_float() {
            continue;
        }
        let mut bytes = vec![0; slice.bytes as usize];
        device.download(*slice, &mut bytes)?;
        // A piece at a time: as float64 all of them would take twice their memory and more.
        let piece = |bytes: &[u8]| decode(&Ty::new(ty.dtype, &[bytes.len() / (ty.dtype.bytes(2) / 2)]), bytes);
        if bytes.chunks(PIECE).flat_map(piece).take(ty.len()).any(|x| !x.is_finite()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn shown(
    w: &Wanted,
    cache: &str,
    stats: &Stats,
    ins: &[Ty],
    outs: &[Ty],
    ceiling: &Ceiling,
    error: f64,
) -> Map<String, Value> {
    let flops = (w.op.cost)(&w.case.sample.attr, ins, outs).flops;
    let bytes = (w.op.traffic)(ins, outs);
    // An operand of 16 bits may be multiplied faster, whatever the others are.
    let narrow = ins.iter().any(|ty| matches!(ty.dtype, DType::BF16 | DType::F16));
    let (least, memory) = ceiling.least(flops, bytes, narrow);
    let mut map = row(&format!("{}, {cache}", w.name), "s", Better::Lower, stats);
    let operands: Vec<String> = ins.iter().map(|ty| ty.to_string()).collect();
    let more = json!({
        "op": w.op.name,
        "case": w.case.sample.name,
        "cache": cache,
        "operands": operands.join(" "),
        "flops": flops,
        "bytes": bytes,
        "gflop_s": flops as f64 / stats.median / 1e9,
        "gb_s": bytes as f64 / stats.median / 1e9,
        "of_ceiling": least / stats.median,
        "limit": if memory { "memory" } else { "arithmetic" },
        "error": error,
    });
    map.extend(more.as_object().cloned().unwrap_or_default());
    map
}

/// Reads a stretch of memory that no cache holds, so that nothing else is in them.
struct Flush(Placed);

impl Flush {
    fn new(device: &mut dyn Backend) -> Result<Flush> {
        // A cache of hundreds of MiB is shared by so many that a process has little of it.
        const MOST: u64 = 256 << 20;
        let free = device.free_memory().unwrap_or(u64::MAX);
        let caps = device.caps();
        let wanted = 2 * environment::last_level_cache(caps);
        let bytes = wanted.min(free / 4).min(caps.max_binding).clamp(1 << 20, MOST);
        let long = SampleIn::constant(Ty::f32(&[(bytes / 4) as usize]), 1.0);
        let case = Case::new("long", Attr::Acc(false), vec![long]);
        Work { op: &optim::SUM_SQUARES, case: &case }.place(device).map(Flush)
    }
}

/// How many cases have no time, since their kernel is wrong or there is no memory for them.
pub fn failures(report: &Report) -> usize {
    report.rows.iter().filter(|row| row.contains_key("wrong")).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn a_kernel_that_is_wrong_is_seen_before_it_is_timed() {
        static WRONG: OpDef = OpDef { host: |call| call.map(0, [0], |[x]| 1.0001 * x), ..elementwise_copy() };
        static RIGHT: OpDef = elementwise_copy();
        const fn elementwise_copy() -> OpDef {
            OpDef {
                name: "copy",
                infer: |_, ins| Ok(vec![ins[0].clone()]),
                reference: |_, ins| vec![ins[0].clone()],
                cost: |_, _, _| crate::ops::Cost { flops: 1, terms: 1 },
                host: |call| call.map(0, [0], |[x]| x),
                ..OpDef::COMPUTE
            }
        }
        let case = Case::new("control", Attr::None, vec![SampleIn::normal(Ty::f32(&[37]))]);
        let seen = judged(&WRONG, &case, &mut Cpu::new()).unwrap_err();
        assert!(seen.contains("off by"), "{seen}");
        assert_eq!(judged(&RIGHT, &case, &mut Cpu::new()), Ok(0.0));
    }
}
