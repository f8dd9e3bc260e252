//! The planner's promises: values alive at the same time do not share bytes, sharing changes no result, nothing
//! straddles a buffer, and the account is what is allocated.

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::devices::devices;
use common::graphs;
use trimtab::Error;
use trimtab::backend::cpu::Cpu;
use trimtab::backend::null::Null;
use trimtab::backend::{Backend, Caps, recording_bytes};
#[cfg(feature = "cuda")]
use trimtab::backend::{Kernel, Launch};
use trimtab::bench::operands::{Random, encode};
use trimtab::dtype::{ALIGN, DType, Ty};
use trimtab::exec::Exec;
use trimtab::graph::{Def, Graph, LeafKind, Phase, Val};
use trimtab::models;
use trimtab::nn::Role;
use trimtab::ops::{Attr, elementwise, optim};
#[cfg(feature = "cuda")]
use trimtab::ops::{Loss, loss::LINEAR_CROSS_ENTROPY};
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::{Method, full::Full, lora::Lora};
use trimtab::plan::{Place, Plan};
use trimtab::train::optimizer::Optimizer;
use trimtab::train::step::{Micro, Step};
use trimtab::weights::Checkpoint;

const GRAPHS: u64 = 240;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Something that lies somewhere for some time.
struct Tenant {
    name: String,
    /// None: scratch memory.
    val: Option<Val>,
    place: Place,
    /// First and last node.
    live: (usize, usize),
}

/// Everything that `plan` gave a place, with the time it is needed, found without the planner's own liveness.
fn tenants(g: &Graph, plan: &Plan) -> Vec<Tenant> {
    let end = g.nodes.len();
    let overwriting = |v: Val| matches!(g.value(v).def, Def::Node { node, out } if g.nodes[node].into[out].is_some());
    let last = |v: Val, or: usize| {
        (0..end).rev().find(|&n| g.nodes[n].ins.iter().any(|&i| g.root(i).0 == v)).unwrap_or(or).max(or)
    };
    let mut all = Vec::new();
    let transient = |v: Val| g.value(g.root(v).0).transient;
    for v in (0..g.values.len() as u32).map(Val).filter(|&v| g.root(v).0 == v && !overwriting(v) && !transient(v)) {
        let live = match g.value(v).def {
            Def::Node { node, .. } => (node, last(v, node)),
            _ => (0, end),
        };
        all.push(Tenant { name: g.value(v).name.clone(), val: Some(v), place: plan.place(g, v).unwrap(), live });
    }
    // What nodes write of transient leaves, from the first that does to the end; ranges that overlap are one.
    let mut parts: Vec<(Place, usize)> = Vec::new();
    for (index, node) in g.nodes.iter().enumerate() {
        let targets = node.into.iter().flatten().filter(|&&t| transient(t));
        parts.extend(targets.map(|&t| (plan.place(g, t).unwrap(), index)));
    }
    parts.sort_by_key(|(p, first)| (p.buffer, p.offset, *first));
    let mut merged: Vec<(Place, usize)> = Vec::new();
    for (place, first) in parts {
        match merged.last_mut().filter(|(l, _)| l.buffer == place.buffer && place.offset < l.offset + l.bytes) {
            Some((last, since)) => {
                last.bytes = last.bytes.max(place.offset + place.bytes - last.offset);
                *since = first.min(*since);
            }
            None => merged.push((place, first)),
        }
    }
    let part =
        |(place, first)| Tenant { name: "part of a transient leaf".into(), val: None, place, live: (first, end) };
    all.extend(merged.into_iter().map(part));
    for node in 0..end {
        if let Some(place) = plan.work(node) {
            all.push(Tenant {
                name: format!("{}'s scratch", g.nodes[node].site),
                val: None,
                place,
                live: (node, node),
            });
        }
    }
    all
}

/// Whether the op whose output `new` is may write it over `old`, which it reads.
fn takes_over(g: &Graph, new: &Tenant, old: &Tenant) -> bool {
    let (Some(out), Some(input)) = (new.val, old.val) else { return false };
    let Def::Node { node, out } = g.value(out).def else { return false };
    let node = &g.nodes[node];
    let reads = |i: usize| node.ins.get(i).is_some_and(|&v| g.root(v).0 == input);
    let once = (0..node.ins.len()).filter(|&i| reads(i)).count() == 1;
    new.live.0 == old.live.1
        && (new.place.buffer, new.place.offset, new.place.bytes)
            == (old.place.buffer, old.place.offset, old.place.bytes)
        && once
        && node.op.in_place.iter().any(|&(i, o)| o == out && reads(i))
}

/// The first two that share bytes while both are needed. `sharing`: an op may write over its input where its row
/// says so.
fn conflict(g: &Graph, tenants: &[Tenant], sharing: bool) -> Option<String> {
    for (i, a) in tenants.iter().enumerate() {
        for b in &tenants[i + 1..] {
            let apart = |x: (u64, u64), y: (u64, u64)| x.1 <= y.0 || y.1 <= x.0;
            let range = |t: &Tenant| (t.place.offset, t.place.offset + t.place.bytes);
            if a.place.buffer != b.place.buffer
                || apart(range(a), range(b))
                || a.live.1 < b.live.0
                || b.live.1 < a.live.0
                || sharing && (takes_over(g, a, b) || takes_over(g, b, a))
            {
                continue;
            }
            return Some(format!("{} {:?} and {} {:?}", a.name, a.live, b.name, b.live));
        }
    }
    None
}

/// The first tenant that does not lie within one buffer of the size allowed, or not on a boundary.
fn misplaced(plan: &Plan, tenants: &[Tenant], max_buffer: u64) -> Option<String> {
    let large = plan.buffers.iter().find(|b| b.bytes > max_buffer).map(|b| format!("a buffer of {} bytes", b.bytes));
    let outside = |p: &Place| p.offset + p.bytes > plan.buffers[p.buffer].bytes;
    let crooked = |t: &&Tenant| outside(&t.place) || !t.place.offset.is_multiple_of(ALIGN as u64);
    // Members of a gathered leaf are views, not tenants, so every tenant is aligned.
    large.or_else(|| tenants.iter().find(crooked).map(|t| format!("{} at {:?}", t.name, t.place)))
}

/// Runs both phases twice (the second time, the arena holds what the first left) and reads the results' bytes.
fn run(g: Graph, plan: Plan, results: &[Val], salt: u64) -> Vec<Vec<u8>> {
    let mut exec = Exec::new(Box::new(Cpu::new()), g, plan).unwrap();
    for v in (0..exec.graph.values.len() as u32).map(Val) {
        let value = exec.graph.value(v).clone();
        if !matches!(value.def, Def::Leaf(_)) {
            continue;
        }
        let mut random = Random::named(&value.name);
        let fill: Vec<f64> = (0..value.ty.len())
            .map(|_| if value.ty.dtype == DType::U32 { (random.word() >> 40) as f64 } else { random.normal() })
            .map(|x| x + salt as f64)
            .collect();
        exec.upload(v, &encode(&value.ty, &fill).unwrap()).unwrap();
    }
    for phase in [Phase::MICRO, Phase::UPDATE, Phase::MICRO, Phase::UPDATE] {
        exec.run(phase).unwrap();
    }
    results.iter().map(|&v| exec.download(v).unwrap()).collect()
}

#[test]
fn random_graphs_share_memory_without_conflict_and_without_effect() {
    let caps = Cpu::new().caps().clone();
    let (mut shared, mut smaller, mut moved) = (0, 0, 0);
    for seed in 0..GRAPHS {
        let mut plan = |caps: &Caps, in_place| {
            let sketch = graphs::random(seed);
            let plan = Plan::with(&sketch.graph, caps, in_place).unwrap();
            let mut all = tenants(&sketch.graph, &plan);
            let found = conflict(&sketch.graph, &all, in_place).or_else(|| misplaced(&plan, &all, caps.max_buffer));
            assert_eq!(found, None, "graph {seed}:\n{}", sketch.graph);
            // Where the planner's list of storages puts values together, they do lie in one place.
            for storage in &plan.storages {
                let places: Vec<Place> =
                    storage.values.iter().map(|&v| plan.place(&sketch.graph, v).unwrap()).collect();
                assert!(places.windows(2).all(|p| p[0].offset == p[1].offset && p[0].buffer == p[1].buffer));
                assert!(places.iter().all(|p| p.bytes <= storage.bytes));
            }
            shared += (in_place && conflict(&sketch.graph, &all, false).is_some()) as usize;
            // The control: one of two that are needed at once, moved onto the other, is seen.
            let pair = (0..all.len()).flat_map(|a| (0..a).map(move |b| (a, b))).find(|&(a, b)| {
                let (a, b) = (&all[a], &all[b]);
                a.live.0 < b.live.1 && b.live.0 < a.live.1 && a.live.0 > 0
            });
            if let Some((a, b)) = pair {
                all[a].place = Place { bytes: all[a].place.bytes, ..all[b].place };
                assert!(conflict(&sketch.graph, &all, in_place).is_some(), "graph {seed}: a spoiled plan passes");
                moved += 1;
            }
            (sketch, plan)
        };
        let (sketch, with) = plan(&caps, true);
        let (other, without) = plan(&caps, false);
        let (third, split) = plan(&Caps { max_buffer: 16 << 10, ..caps.clone() }, true);
        smaller += (with.account.total < without.account.total) as usize;
        let results = sketch.results;
        let got = run(sketch.graph, with, &results, 0);
        assert!(got == run(other.graph, without, &results, 0), "graph {seed}: other results in place");
        assert!(got == run(third.graph, split, &results, 0), "graph {seed}: other results in small buffers");
        if seed < 8 {
            // The control: other operands give other results.
            let again = graphs::random(seed);
            let plan = Plan::new(&again.graph, &caps).unwrap();
            assert!(got != run(again.graph, plan, &results, 1), "graph {seed}: the operands do not matter");
        }
    }
    // Otherwise the above says nothing.
    assert!(shared > GRAPHS as usize / 2, "only {shared} graphs work in place");
    assert!(smaller > GRAPHS as usize / 4, "only {smaller} graphs are smaller in place");
    assert!(moved > GRAPHS as usize, "only {moved} plans were spoiled");
}

fn lora() -> Lora {
    Lora { config: AdapterConfig::lora(4, 8.0, Targets::AllLinear) }
}

fn step(folder: &Path, method: &dyn Method, tokens: usize, caps: &Caps) -> Step {
    build(folder, method, Micro { tokens, single: false }, caps)
}

fn build(folder: &Path, method: &dyn Method, micro: Micro, caps: &Caps) -> Step {
    let base = Checkpoint::open(folder).unwrap();
    let model = models::read(base.config(), micro.tokens).unwrap();
    let storage = |_: &str, _: Role| DType::F32;
    Step::with(&*model, method, &storage, DType::F32, micro, Optimizer::default(), caps).unwrap()
}

#[test]
fn nothing_straddles_a_small_buffer() {
    for (name, method) in [("lora", Box::new(lora()) as Box<dyn Method>), ("full", Box::new(Full))] {
        let mut counts = Vec::new();
        for max_buffer in [64 << 10, 1 << 20] {
            let caps = Caps { max_buffer, ..Null::new().caps().clone() };
            let device = Null::like(caps.clone());
            for single in [false, true] {
                let micro = Micro { tokens: 32, single };
                let step = build(&fixture("golden/base"), &*method, micro, device.caps());
                let plan = Plan::new(&step.program.graph, device.caps()).unwrap();
                let all = tenants(&step.program.graph, &plan);
                assert_eq!(conflict(&step.program.graph, &all, true), None, "{name}");
                assert_eq!(misplaced(&plan, &all, max_buffer), None, "{name}");
                assert!(misplaced(&plan, &all, max_buffer / 64).is_some(), "the control: {name} passes at any limit");
                if !single {
                    counts.push(plan.buffers.len());
                }
            }
        }
        assert!(counts[0] > counts[1], "{name}: {counts:?} buffers; the smaller limit splits nothing");
    }
}

#[test]
fn a_transient_leaf_is_not_read_where_nothing_was_written() {
    let device = Null::new();
    let step = build(&fixture("golden/base"), &Full, Micro { tokens: 32, single: true }, device.caps());
    assert!(Plan::new(&step.program.graph, device.caps()).is_ok());
    let gradient = |n: &trimtab::graph::Node| {
        n.into.iter().flatten().any(|&t| step.program.graph.value(step.program.graph.root(t).0).transient)
    };
    let writers: Vec<usize> =
        (0..step.program.graph.nodes.len()).filter(|&i| gradient(&step.program.graph.nodes[i])).collect();
    for &writer in [writers.first(), writers.last()].into_iter().flatten() {
        let mut g = step.program.graph.clone();
        g.nodes[writer].into.fill(None);
        match Plan::new(&g, device.caps()) {
            Err(Error::Graph { found, .. }) => assert!(found.contains("was written before"), "{found}"),
            other => panic!("a gradient without node {writer} passes: {}", other.is_ok()),
        }
    }
}

#[test]
fn only_leaves_outlive_a_phase() {
    let caps = Null::new().caps().clone();
    let plan = |from: Phase, to: Phase, through_a_leaf: bool| {
        let mut g = Graph::new();
        let [x, y] = ["x", "y"].map(|name| g.leaf(LeafKind::Io, name, Ty::f32(&[5])));
        g.phase = from;
        let into = through_a_leaf.then_some(y);
        let sum = g.node_into(&elementwise::ADD, Attr::None, &[x, x], &[into]).unwrap()[0];
        g.phase = to;
        g.add(sum, x).unwrap();
        Plan::new(&g, &caps).map(drop)
    };
    let phases = [Phase::MICRO, Phase::UPDATE, Phase::EVAL, Phase::ENCODE, Phase::PREFILL, Phase::DECODE];
    for (i, &from) in phases.iter().enumerate() {
        for &to in &phases[i..] {
            assert!(plan(from, to, true).is_ok(), "{from:?} {to:?}");
            match plan(from, to, false) {
                Ok(()) => assert!(from == to || (from, to) == (Phase::MICRO, Phase::UPDATE), "{from:?} {to:?}"),
                Err(e) => assert!(from != to && e.to_string().contains("of an earlier phase"), "{e}"),
            }
        }
    }
    assert!(plan(Phase::UPDATE, Phase::MICRO, true).is_err(), "phases in the wrong order");
    // A gradient that is no sum is there for the update only.
    let mut step = build(&fixture("golden/base"), &Full, Micro { tokens: 32, single: true }, &caps);
    let g = &mut step.program.graph;
    let gradient = (0..g.values.len() as u32).map(Val).find(|&v| g.value(v).transient).unwrap();
    for (phase, fits) in [(Phase::UPDATE, true), (Phase::EVAL, false)] {
        g.phase = phase;
        g.node(&optim::SUM_SQUARES, Attr::Acc(false), &[gradient]).unwrap();
        match Plan::new(g, &caps) {
            Ok(_) => assert!(fits),
            Err(e) => assert!(!fits && e.to_string().contains("was written before"), "{e}"),
        }
    }
}

#[test]
fn phases_without_nodes_cost_nothing() {
    for device in devices() {
        let backend = device.open();
        let step = step(&fixture("golden/base"), &lora(), 32, backend.caps());
        let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
        let mut later = step.program.graph.clone();
        later.nodes.iter_mut().for_each(|n| n.phase = Phase(n.phase.0 + Phase::PREFILL.0));
        let moved = Plan::new(&later, backend.caps()).unwrap();
        assert_eq!((&moved.account, &moved.buffers), (&plan.account, &plan.buffers), "{}", device.name);
        let counts = |plan: &Plan| plan.launches.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(&moved), [vec![0; Phase::PREFILL.0], counts(&plan)].concat());
        let mut exec = Exec::new(backend, later, moved).unwrap();
        assert_eq!(exec.backend.memory(), plan.account.total, "{}", device.name);
        // Nothing to do is done, in phases before and after those that have nodes.
        for phase in [Phase::MICRO, Phase::EVAL, Phase(Phase::DECODE.0 + 1)] {
            exec.run(phase).unwrap();
        }
    }
}

#[test]
fn what_fits_in_no_buffer_is_an_error_before_anything_is_allocated() {
    let whole = Null::new().caps().clone();
    let step = step(&fixture("golden/base"), &lora(), 32, &whole);
    let leaves =
        step.program.graph.values.iter().filter(|v| matches!(v.def, Def::Leaf(_))).map(|v| v.ty.bytes() as u64);
    let storages = Plan::new(&step.program.graph, &whole).unwrap().storages;
    let limit = leaves.chain(storages.iter().map(|s| s.bytes)).max().unwrap().next_multiple_of(ALIGN as u64);
    for (max_buffer, fits) in [(limit, true), (limit - 1, false), (4 << 10, false), (0, false)] {
        match Plan::new(&step.program.graph, &Caps { max_buffer, ..whole.clone() }) {
            Ok(_) => assert!(fits, "{max_buffer} bytes are enough for {limit}"),
            Err(Error::Memory { needed, available, hint }) => {
                assert!(!fits, "{limit} bytes are not enough: {needed} are needed");
                assert!(needed + ALIGN as u64 > max_buffer && available == max_buffer, "{needed} of {available}");
                assert!(hint.contains("--device"), "{hint}");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn plans_of_the_fixtures_are_as_recorded() {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(fixture("families")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.push(fixture("golden/base"));
    folders.sort();
    assert!(folders.len() >= 9, "fixtures are missing");
    let mut text = String::from(
        "# Plans of a step of 32 tokens on the null device: nodes and launches by phase, bytes by class.\n\
         # Rewritten by: TRIMTAB_BLESS=1 cargo test --test plan\n",
    );
    let device = Null::new();
    for folder in folders {
        let family = folder.strip_prefix(fixture("")).unwrap().display().to_string();
        for (name, method) in [("lora r=4", Box::new(lora()) as Box<dyn Method>), ("full", Box::new(Full))] {
            let step = step(&folder, &*method, 32, device.caps());
            let plan = Plan::new(&step.program.graph, device.caps()).unwrap();
            writeln!(text, "\n{family}, {name}").unwrap();
            for (phase, label) in [(Phase::MICRO, "micro"), (Phase::UPDATE, "update")] {
                let nodes = step.program.graph.nodes.iter().filter(|n| n.phase == phase).count();
                let launches = plan.launches[phase.0].len();
                writeln!(text, "  {label:<24} {nodes:>12} nodes, {launches} launches").unwrap();
            }
            for (row, bytes) in &plan.account.rows {
                writeln!(text, "  {row:<24} {bytes:>12}").unwrap();
            }
            writeln!(text, "  {:<24} {:>12}, most at {}", "total", plan.account.total, plan.account.peak_site).unwrap();
            let step = build(&folder, &*method, Micro { tokens: 32, single: true }, device.caps());
            let single = Plan::new(&step.program.graph, device.caps()).unwrap().account;
            writeln!(text, "  {:<24} {:>12}, most at {}", "as one micro-batch", single.total, single.peak_site)
                .unwrap();
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/plans.txt");
    if std::env::var_os("TRIMTAB_BLESS").is_some_and(|v| v == "1") {
        std::fs::write(&path, &text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    let differs = want.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(want.lines().count().min(text.lines().count()));
    assert!(
        want == text,
        "line {} of {}: recorded {:?}, now {:?}. If that is meant: TRIMTAB_BLESS=1 cargo test --test plan",
        line + 1,
        path.display(),
        want.lines().nth(line),
        text.lines().nth(line),
    );
}

#[test]
fn the_account_is_what_is_allocated() {
    for device in devices() {
        for (name, method) in [("lora", Box::new(lora()) as Box<dyn Method>), ("full", Box::new(Full))] {
            let backend = device.open();
            let step = step(&fixture("golden/base"), &*method, 32, backend.caps());
            let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
            let what = format!("{name} on {}", device.name);
            let buffers: u64 = plan.buffers.iter().map(|b| b.bytes).sum();
            let params: u64 = plan.launches.iter().map(|l| recording_bytes(l, backend.caps())).sum();
            let total = plan.account.total;
            assert_eq!(total, buffers + params, "{what}");
            assert_eq!(total, plan.account.rows.iter().map(|r| r.1).sum::<u64>(), "{what}");
            let before = backend.memory();
            let exec = Exec::new(backend, step.program.graph, plan).unwrap();
            assert_eq!(exec.backend.memory() - before, total, "{what}");
            // The control: the account is of this run and not of another.
            let caps = exec.backend.caps();
            let longer = self::step(&fixture("golden/base"), &*method, 33, caps);
            assert_ne!(Plan::new(&longer.program.graph, caps).unwrap().account.total, total, "{what}");
        }
    }
}

/// Of the loss of 4,096 tokens over 128,256 words: launches that read the head, bytes of it that they read, the smallest grid
/// of those that write dx, and the account.
#[cfg(feature = "cuda")]
fn loss(memory: Option<u64>, multiprocessors: u32) -> (usize, u64, u32, u64) {
    // By mma.sync: the blocks of products by wgmma take tiles in turns, so that their number says less.
    let caps = trimtab::backend::cuda::caps("a card".into(), 80);
    let caps = Caps { memory, multiprocessors: Some(multiprocessors), ..caps };
    let (t, d, v) = (4096, 4096, 128_256);
    let mut g = Graph::new();
    let head = Ty::new(DType::BF16, &[v, d]);
    let ins = [
        g.leaf(LeafKind::Io, "x", Ty::new(DType::BF16, &[t, d])),
        g.leaf(LeafKind::Frozen, "head", head.clone()),
        g.leaf(LeafKind::Io, "labels", Ty::i32(&[t])),
        g.leaf(LeafKind::Io, "inv", Ty::f32(&[1])),
    ];
    let attr = Attr::Loss(Loss { grad_x: true, grad_w: false });
    g.node(&LINEAR_CROSS_ENTROPY, attr, &ins).unwrap();
    let plan = Plan::new(&g, &caps).unwrap();
    let place = plan.place(&g, ins[1]).unwrap();
    let reads = |l: &&Launch| l.args.iter().any(|a| (a.buffer.0 as usize, a.offset) == (place.buffer, place.offset));
    let readers: Vec<&Launch> = plan.launches[Phase::MICRO.0].iter().filter(reads).collect();
    let grids = readers.iter().filter_map(|l| match &l.kernel {
        Kernel::Cuda(c) if c.entry == "linear_dx" => Some(c.grid.iter().product()),
        _ => None,
    });
    (readers.len(), readers.len() as u64 * head.bytes() as u64, grids.min().unwrap(), plan.account.total)
}

#[cfg(feature = "cuda")]
#[test]
fn the_loss_takes_the_scratch_memory_that_the_card_has() {
    const GIB: u64 = 1 << 30;
    // Without a number: blocks of 128 tokens, and dx on fewer blocks than a large card has multiprocessors.
    let (launches, bytes, grid, least) = loss(None, 132);
    assert_eq!((launches, bytes, grid), (64, 67_243_081_728, 128));
    // (memory, multiprocessors), and how often the head is read.
    for (memory, multiprocessors, expected) in [(80 * GIB, 132, 4), (23 * GIB, 128, 14), (8 * GIB, 36, 32)] {
        let (launches, bytes, grid, account) = loss(Some(memory), multiprocessors);
        assert_eq!((launches, bytes), (expected, 1_050_673_152 * expected as u64), "{memory}");
        assert!(grid >= multiprocessors, "{grid} blocks on {multiprocessors} multiprocessors");
        // What it takes is in the account.
        assert!(account > least && account - least <= (memory / 64).min(GIB), "{account} of {memory}");
    }
    let few = loss(Some(3 * GIB), 132);
    assert_eq!(few, loss(None, 132), "a small card");
}
