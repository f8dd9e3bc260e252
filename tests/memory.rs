//! What makes a step fit a budget: every choice leaves every bit of the result as it was, the plan's account is what
//! is allocated, and a budget that cannot be met is an error before anything is allocated.

mod common;
#[path = "memory/schedule.rs"]
mod schedule;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::devices::devices;
use trimtab::Error;
#[cfg(feature = "cuda")]
use trimtab::backend::Caps;
use trimtab::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use trimtab::backend::null::Null;
use trimtab::backend::{Backend, Target};
use trimtab::config::{Bytes, Setting};
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::{Dataset, Example};
use trimtab::dtype::{ALIGN, DType, Ty, align};
use trimtab::graph::{LeafKind, Phase, Val};
use trimtab::memory::budget::{PROCESS, counted};
use trimtab::memory::{self, Ahead, Choices, Fitted, Request};
use trimtab::models;
use trimtab::nn::Role;
use trimtab::ops::{Attr, OpRole, elementwise, optim};
use trimtab::peft::config::{AdapterConfig, Targets};
use trimtab::peft::{Method, full::Full, lora::Lora};
use trimtab::plan::{Plan, kind_of};
use trimtab::session::{Base, Options, Planned};
use trimtab::tasks::causal_lm::layout;
use trimtab::train::optimizer::{Bits, Rule};
use trimtab::train::step::{Micro, Step};
use trimtab::train::trainer::{StepReport, Trainer};
use trimtab::weights::{Checkpoint, load};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// What is trained, apart from how it is made to fit.
#[derive(Clone, Debug)]
struct Setup {
    folder: PathBuf,
    lora: bool,
    quantize: Option<DType>,
    dropout: f64,
    tokens: usize,
    rule: Rule,
}

impl Setup {
    fn step(&self) -> (Checkpoint, Step) {
        self.build(false)
    }

    /// The step, of one micro-batch or of any number.
    fn build(&self, single: bool) -> (Checkpoint, Step) {
        let base = Checkpoint::open(&self.folder).unwrap();
        let mut config = AdapterConfig::lora(4, 8.0, Targets::AllLinear);
        config.dropout = self.dropout;
        let method: Box<dyn Method> = if self.lora { Box::new(Lora { config }) } else { Box::new(Full) };
        let model = models::read(base.config(), self.tokens).unwrap();
        let storage = |_: &str, role: Role| match self.quantize {
            Some(dtype) if role.is_block_linear() => dtype,
            _ => DType::F32,
        };
        let (caps, micro) = (Cpu::new().caps().clone(), Micro { tokens: self.tokens, single });
        let step = Step::with(&*model, &*method, &storage, DType::F32, micro, self.rule.into(), &caps).unwrap();
        (base, step)
    }

    fn steps(&self) -> Vec<Vec<MicroBatch>> {
        let mut data = Dataset::default();
        for i in 0..6u32 {
            let n = [self.tokens, 5, self.tokens / 2, 3, 7, self.tokens - 1][i as usize].clamp(2, self.tokens) as u32;
            let ids: Vec<u32> = (0..n).map(|j| (i * 31 + j * 7) % 96).collect();
            data.push(&Example::whole(ids)).unwrap();
        }
        let step = |indices: &[usize]| pack(&data, indices, &layout(self.tokens), true).unwrap();
        vec![step(&[0, 1, 2]), step(&[3, 4, 5])]
    }
}

/// Everything a run leaves: reports and all trained values, as bits.
type Outcome = (Vec<StepReport>, Vec<u32>);

/// Runs `step` as `plan` lays it out, and checks that what is allocated is what the plan says, before and after.
fn run(setup: &Setup, base: &Checkpoint, step: Step, plan: Plan) -> Outcome {
    let (total, host) = (plan.account.total, plan.account.host_total);
    let mut trainer = Trainer::new(Box::new(Cpu::new()), step, plan, 7).unwrap();
    assert_eq!((trainer.exec.backend.memory(), host), (total, 0), "the account is not what was allocated");
    let weights = trainer.weights().to_vec();
    let from = load::Sources { base: Some(base), std: 0.0, adapter: None, seed: 7 };
    load::load(&mut trainer.exec, &weights, &from, &mut |_, _| Ok(())).unwrap();
    let reports = setup.steps().iter().map(|micro| trainer.step(micro, 1e-2).unwrap()).collect();
    assert_eq!(trainer.exec.backend.memory(), total, "a step allocated");
    let trained = trainer.trained().unwrap();
    (reports, trained.iter().flat_map(|t| t.1.data.iter().map(|x| x.to_bits())).collect())
}

/// `step` with `choices` made.
fn chosen(step: Step, choices: &Choices) -> Step {
    Step { program: memory::apply(&step.program, choices).unwrap(), ..step }
}

fn with(setup: &Setup, choices: &Choices) -> (Outcome, Plan) {
    let (base, step) = setup.step();
    let step = chosen(step, choices);
    let caps = Cpu::new().caps().clone();
    let plan = Plan::new(&step.program.graph, &caps).unwrap();
    let again = Plan::new(&step.program.graph, &caps).unwrap();
    (run(setup, &base, step, plan), again)
}

fn setups() -> Vec<Setup> {
    let lora = |quantize, dropout| Setup {
        folder: fixture("golden/base"),
        lora: true,
        quantize,
        dropout,
        tokens: 24,
        rule: Rule::ADAMW,
    };
    let full = Setup { lora: false, ..lora(None, 0.0) };
    vec![
        lora(None, 0.0),
        lora(Some(DType::Nf4Dq), 0.1),
        Setup { folder: fixture("families/gemma"), ..full.clone() },
        full,
    ]
}

#[test]
fn no_choice_changes_a_bit() {
    for setup in setups() {
        let layers = memory::layers(&setup.step().1.program);
        let blocks = memory::blocks(&setup.step().1.program);
        assert!(layers >= 2, "{setup:?}");
        let plain = Choices::default();
        let (want, unchanged) = with(&setup, &plain);
        // The control: other data gives other bits.
        let other = Setup { tokens: 20, ..setup.clone() };
        assert!(with(&other, &plain).0 != want, "{setup:?}");
        let table = [
            Choices { selective: layers, ..plain },
            Choices { all: 1, ..plain },
            Choices { all: layers, ..plain },
            Choices { all: 1, selective: layers, ..plain },
            Choices { stream: 1, ..plain },
            Choices { stream: blocks, ..plain },
            Choices { stream: blocks, ahead: Ahead::Nothing, ..plain },
            Choices { page: 256, ..plain },
            Choices { page: 4096, ..plain },
            Choices { offload: true, ..plain },
            Choices { offload: true, all: layers, ..plain },
            Choices { selective: 0, all: layers, stream: blocks, ahead: Ahead::Nothing, offload: true, page: 1024 },
        ];
        for choices in table {
            let (got, plan) = with(&setup, &choices);
            assert!(got == want, "{choices:?} on {setup:?}: {:?} not {:?}", got.0, want.0);
            let moves = choices.page > 0 || choices.offload || choices.stream > 0 && setup.lora;
            assert_eq!(moves, !plan.schedule.moves.is_empty(), "{choices:?}");
            // It does something.
            let much = choices.all == layers || choices.page > 0;
            assert!(!much || plan.account.total < unchanged.account.total, "{choices:?} on {setup:?}");
        }
        // Everything at once takes less than nothing.
        let (_, least) = with(&setup, &table_last(layers, blocks));
        assert!(least.account.total < unchanged.account.total, "{setup:?}");
    }
}

#[test]
fn devices_with_memory_of_their_own_fetch_through_staging() {
    let setup = &setups()[1];
    for device in devices() {
        let mut outcomes = Vec::new();
        for all in [false, true] {
            let backend = device.open();
            let (base, step) = setup.step();
            let (layers, blocks) = (memory::layers(&step.program), memory::blocks(&step.program));
            let choices = match all {
                true => Choices {
                    all: layers,
                    stream: blocks,
                    ahead: Ahead::Block,
                    offload: true,
                    page: 1024,
                    selective: 0,
                },
                false => Choices::default(),
            };
            let step = chosen(step, &choices);
            let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
            let own = backend.caps().target == Target::Host;
            assert_eq!(plan.account.host_total > 0, all && !own, "{}", device.name);
            // WebGPU's queue copies what it is given.
            let copies = if backend.caps().target == Target::Wgsl { 2 } else { 1 };
            assert_eq!(plan.account.host_total, copies * plan.schedule.staging);
            let total = plan.account.total;
            let mut trainer = Trainer::new(backend, step, plan, 7).unwrap();
            assert_eq!(trainer.exec.backend.memory(), total, "{}", device.name);
            let weights = trainer.weights().to_vec();
            let from = load::Sources { base: Some(&base), std: 0.0, adapter: None, seed: 7 };
            load::load(&mut trainer.exec, &weights, &from, &mut |_, _| Ok(())).unwrap();
            let reports: Vec<StepReport> = setup.steps().iter().map(|m| trainer.step(m, 1e-2).unwrap()).collect();
            assert_eq!(trainer.exec.backend.memory(), total, "{}: a step allocated", device.name);
            assert_eq!(trainer.exec.offload.moved.fetched > 0, all);
            let trained = trainer.trained().unwrap();
            outcomes
                .push((reports, trained.iter().flat_map(|t| t.1.data.iter().map(|x| x.to_bits())).collect::<Vec<_>>()));
        }
        assert!(outcomes[0] == outcomes[1], "{}: {:?} not {:?}", device.name, outcomes[1].0, outcomes[0].0);
    }
}

fn table_last(layers: usize, blocks: usize) -> Choices {
    Choices { selective: 0, all: layers, stream: blocks, ahead: Ahead::Nothing, offload: false, page: 1024 }
}

const RULES: [Rule; 6] = [
    Rule::ADAMW,
    Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, bits: Bits::B8 },
    Rule::LION,
    Rule::Lion { beta1: 0.9, beta2: 0.99, bits: Bits::B8 },
    Rule::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true },
    Rule::ADAFACTOR,
];

#[test]
fn every_optimizer_is_the_same_in_pages() {
    for rule in RULES {
        let setup = Setup { rule, ..setups()[3].clone() };
        let (want, plain) = with(&setup, &Choices::default());
        for page in [256, 3072, 1 << 20] {
            let (got, plan) = with(&setup, &Choices { page, ..Choices::default() });
            assert!(got == want, "{rule:?} in pages of {page}: {:?} not {:?}", got.0, want.0);
            // Adafactor's state is small and read as a whole.
            let paged = rule != Rule::ADAFACTOR;
            assert_eq!(plan.account.files.iter().any(|f| f.0 == "optimizer state"), paged, "{rule:?}");
            assert!(!paged || page > 4096 || plan.account.total < plain.account.total, "{rule:?} in pages of {page}");
        }
    }
}

/// Runs `step` on a backend over steps of one micro-batch each.
fn run_ones(setup: &Setup, backend: Box<dyn Backend>, base: &Checkpoint, step: Step) -> (Outcome, u64) {
    let plan = Plan::new(&step.program.graph, backend.caps()).unwrap();
    let total = plan.account.total;
    let mut trainer = Trainer::new(backend, step, plan, 7).unwrap();
    assert_eq!(trainer.exec.backend.memory(), total, "the account is not what was allocated");
    let weights = trainer.weights().to_vec();
    let from = load::Sources { base: Some(base), std: 0.0, adapter: None, seed: 7 };
    load::load(&mut trainer.exec, &weights, &from, &mut |_, _| Ok(())).unwrap();
    let steps = setup.steps().concat();
    let reports = steps.chunks(1).map(|micro| trainer.step(micro, 1e-2).unwrap()).collect();
    let trained = trainer.trained().unwrap();
    ((reports, trained.iter().flat_map(|t| t.1.data.iter().map(|x| x.to_bits())).collect()), total)
}

#[test]
fn gradients_of_one_micro_batch_need_no_memory_of_their_own() {
    for setup in setups() {
        for rule in RULES {
            let setup = Setup { rule, ..setup.clone() };
            let (base, plain) = setup.step();
            let (_, step) = setup.build(true);
            assert!(
                step.program
                    .graph
                    .nodes
                    .iter()
                    .all(|n| n.op.name != "add" || n.block == 0 || !n.site.starts_with("grad."))
            );
            let layers = memory::layers(&step.program);
            let (want, whole) = run_ones(&setup, Box::new(Cpu::new()), &base, plain);
            let none = Choices::default();
            let table = [
                none,
                Choices { selective: layers, ..none },
                Choices { all: layers, page: 1024, ..none },
                Choices { offload: true, stream: memory::blocks(&step.program), ..none },
            ];
            for choices in table {
                let step = chosen(step.clone(), &choices);
                let (got, total) = run_ones(&setup, Box::new(Cpu::new()), &base, step);
                assert!(got == want, "{setup:?}, {choices:?}: {:?} not {:?}", got.0, want.0);
                assert!(total < whole, "{setup:?}, {choices:?}: {total} bytes, {whole} before");
            }
            // The control: gradients of two micro-batches cannot be had from such a plan.
            let plan = Plan::new(&step.program.graph, Cpu::new().caps()).unwrap();
            let mut trainer = Trainer::new(Box::new(Cpu::new()), step, plan, 7).unwrap();
            for n in [0, 2] {
                let error = trainer.step(&setup.steps()[0][..n], 1e-2).unwrap_err().to_string();
                assert!(error.contains(&format!("{n} micro-batches")), "{error}");
            }
        }
    }
}

#[test]
fn gradients_of_one_micro_batch_are_the_same_on_every_device() {
    for device in devices() {
        for setup in [setups().remove(1), setups().remove(3)] {
            let (base, plain) = setup.step();
            let (_, step) = setup.build(true);
            let (want, whole) = run_ones(&setup, device.open(), &base, plain);
            let (got, total) = run_ones(&setup, device.open(), &base, step);
            assert!(got == want, "{}: {:?} not {:?}", device.name, got.0, want.0);
            assert!(total < whole, "{}: {total} bytes, {whole} before", device.name);
        }
    }
}

/// Appends to `step` an update that reads a value of the micro-batch, and an evaluation: the forward pass once more.
/// Returns the leaves with what the two find (a sum of squares, the loss), and that value.
fn extend(step: &mut Step) -> ([Val; 2], Val) {
    let (forward, g) = (step.program.forward, &mut step.program.graph);
    let nodes = g.nodes[..forward].to_vec();
    let [seen, loss] = ["seen", "eval.loss"].map(|name| g.leaf(LeafKind::Io, name, Ty::f32(&[1])));
    // A layer's last product, which is added to the layer's input: recompute would drop it, and no backward node has it
    // computed again.
    let inner = nodes.iter().rfind(|n| n.block == 2 && n.op.name == "linear").unwrap().outs[0];
    g.phase = Phase::UPDATE;
    g.node_into(&optim::SUM_SQUARES, Attr::Acc(false), &[inner], &[Some(seen)]).unwrap();
    g.phase = Phase::EVAL;
    let mut copies: HashMap<Val, Val> = HashMap::new();
    for node in nodes.iter().filter(|n| n.op.role == OpRole::Compute) {
        let mut ins = node.ins.clone();
        for v in &mut ins {
            let (root, start) = g.root(*v);
            if let Some(&copy) = copies.get(&root) {
                let ty = g.ty(*v).clone();
                *v = g.view(copy, start, ty);
            }
        }
        (g.site, g.block) = (format!("eval.{}", node.site), node.block);
        let outs = g.node(node.op, node.attr.clone(), &ins).unwrap();
        copies.extend(node.outs.iter().copied().zip(outs));
    }
    let found = copies[&nodes.last().unwrap().outs[0]];
    let one = g.one.unwrap();
    g.node_into(&elementwise::SCALE, Attr::None, &[found, one], &[Some(loss)]).unwrap();
    ([seen, loss], inner)
}

#[test]
fn phases_after_the_update_change_no_bit_of_training() {
    for setup in setups() {
        for single in [false, true] {
            let (base, plain) = setup.build(single);
            let mut step = plain.clone();
            let (leaves, inner) = extend(&mut step);
            let (layers, blocks) = (memory::layers(&step.program), memory::blocks(&step.program));
            assert_eq!(blocks, memory::blocks(&plain.program));
            let mut steps = setup.steps();
            if single {
                // Each micro-batch twice.
                steps = steps.concat().into_iter().flat_map(|m| [vec![m.clone()], vec![m]]).collect();
            }
            let run = |step: Step, evaluates: bool| {
                let plan = Plan::new(&step.program.graph, Cpu::new().caps()).unwrap();
                let total = plan.account.total;
                let mut trainer = Trainer::new(Box::new(Cpu::new()), step, plan, 7).unwrap();
                let weights = trainer.weights().to_vec();
                let from = load::Sources { base: Some(&base), std: 0.0, adapter: None, seed: 7 };
                load::load(&mut trainer.exec, &weights, &from, &mut |_, _| Ok(())).unwrap();
                let (mut reports, mut found) = (Vec::new(), Vec::new());
                for micro in &steps {
                    reports.push(trainer.step(micro, 1e-2).unwrap());
                    for _ in 0..2 * evaluates as usize {
                        trainer.exec.run(Phase::EVAL).unwrap();
                        found.push(leaves.map(|v| trainer.exec.download_f32(v).unwrap()[0]));
                    }
                }
                assert_eq!(trainer.exec.backend.memory(), total, "the account is not what was allocated");
                let trained = trainer.trained().unwrap();
                let bits: Vec<u32> = trained.iter().flat_map(|t| t.1.data.iter().map(|x| x.to_bits())).collect();
                (reports, bits, found, total)
            };
            let (reports, bits, _, whole) = run(plain, false);
            let none = Choices::default();
            let table = [
                none,
                Choices { selective: layers, ..none },
                Choices { all: layers, page: 1024, ..none },
                Choices { offload: true, stream: blocks, ..none },
                Choices { all: layers, offload: true, stream: blocks, ahead: Ahead::Nothing, page: 256, ..none },
            ];
            let mut all = Vec::new();
            for choices in table {
                let (got, trained, found, total) = run(chosen(step.clone(), &choices), true);
                assert!(got == reports && trained == bits, "{choices:?} on {setup:?}: {got:?} not {reports:?}");
                // Beside the two scalars, and the value that waits for the update, the memory of the training is enough.
                let more = (2 * ALIGN + align(step.program.graph.ty(inner).bytes())) as u64;
                assert!(choices != none || total <= whole + more, "{total} bytes, {whole} without: {setup:?}");
                assert!(found.chunks(2).all(|f| f[0] == f[1]), "evaluated again, it is another loss: {found:?}");
                all.push(found);
            }
            assert!(all.iter().all(|found| found == &all[0]), "{setup:?}: {all:?}");
            // An evaluation after a step finds what the next step on the same tokens finds; the control: not what the
            // step itself found. (Dropout is drawn anew in every step.)
            for (i, at) in (0..steps.len()).step_by(2).enumerate().filter(|_| single && setup.dropout == 0.0) {
                let (own, next, eval) = (reports[at].loss, reports[at + 1].loss, all[0][2 * at][1]);
                assert!(eval == next && eval != own, "{setup:?}, micro-batch {i}: {eval}, {next} and before {own}");
            }
            assert!(all[0].iter().all(|f| f[0] > 0.0));
        }
    }
}

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

#[test]
fn a_budget_is_kept_or_refused_before_anything_is_allocated() {
    let caps = Cpu::new().caps().clone();
    let folders = ["golden/base", "families/gemma", "families/qwen2", "families/qwen3", "families/mistral"];
    let (ran, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for n in 0..300u64 {
        let mut dice = Dice(n * 77 + 1);
        let lora = dice.below(3) > 0;
        let setup = Setup {
            folder: fixture(folders[dice.below(folders.len())]),
            lora,
            quantize: [None, Some(DType::Nf4), Some(DType::Nf4Dq)][if lora { dice.below(3) } else { 0 }],
            dropout: [0.0, 0.1][dice.below(2)],
            tokens: 8 + dice.below(40),
            rule: RULES[dice.below(RULES.len())],
        };
        let (base, step) = setup.step();
        let plain = Plan::new(&step.program.graph, &caps).unwrap();
        let whole = counted(&plain, &caps);
        // From far too little to more than enough.
        let budget = PROCESS + (whole - PROCESS) * (5 + dice.below(110) as u64) / 100;
        let request = Request { budget: Some(budget), ..Request::default() };
        match memory::fit(&step.program, &caps, &request) {
            Ok(Fitted { program: fitted, plan, chosen, .. }) => {
                assert!(counted(&plan, &caps) <= budget, "{setup:?}");
                assert_eq!(chosen.is_empty(), whole <= budget, "{setup:?} in {budget}: {chosen:?}");
                let want = run(&setup, &base, step.clone(), plain);
                assert!(
                    run(&setup, &base, Step { program: fitted, ..step.clone() }, plan) == want,
                    "{setup:?}: {chosen:?}"
                );
                ran.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::Memory { needed, available, hint }) => {
                assert!(available == budget && needed > budget, "{needed} {available}");
                // What it says would do, does; and less does not.
                let said = hint.split("would do is ").nth(1).and_then(|rest| rest.split(';').next()).unwrap();
                let said = Bytes::from_text(said).unwrap().0;
                let enough = |bytes| memory::fit(&step.program, &caps, &Request { budget: Some(bytes), ..request });
                assert!(said >= needed && enough(said).is_ok(), "{setup:?}: {said} bytes are not enough: {hint}");
                assert!(enough(needed).is_ok(), "{setup:?}: {needed} bytes are not enough");
                assert!(enough(needed - 1).is_err(), "{setup:?}: {needed} bytes are not the least");
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => panic!("{e}"),
        }
    }
    let (ran, refused) = (ran.into_inner(), refused.into_inner());
    assert!(ran > 100 && refused > 20, "{ran} ran, {refused} were refused");
}

#[test]
fn what_is_fetched_is_there_before_it_is_read() {
    let setup = &setups()[1];
    let (_, step) = setup.step();
    let (layers, blocks) = (memory::layers(&step.program), memory::blocks(&step.program));
    let caps = Cpu::new().caps().clone();
    for ahead in [Ahead::Block, Ahead::Nothing] {
        let choices = Choices { all: layers, stream: blocks, ahead, ..Choices::default() };
        let step = chosen(step.clone(), &choices);
        let plan = Plan::new(&step.program.graph, &caps).unwrap();
        let early = step.program.graph.nodes.iter().filter(|n| n.op.name == "fetch").count();
        assert_eq!(early, plan.schedule.moves.len());
        let streamed = plan.storages.iter().filter(|s| kind_of(&step.program.graph, s) == trimtab::plan::Kind::Weight);
        assert_eq!(streamed.count(), early);
        // A fetch a block ahead stands well before its reader.
        let gap = |i: usize| {
            let out = step.program.graph.nodes[i].outs[0];
            let reader = step
                .program
                .graph
                .nodes
                .iter()
                .position(|n| n.ins.iter().any(|&v| step.program.graph.root(v).0 == out));
            reader.unwrap() - i
        };
        let gaps: Vec<usize> = (0..step.program.graph.nodes.len())
            .filter(|&i| step.program.graph.nodes[i].op.name == "fetch")
            .map(gap)
            .collect();
        let far = gaps.iter().filter(|&&g| g > 10).count();
        assert_eq!(far > early / 2, ahead == Ahead::Block, "{ahead:?}: {gaps:?}");
    }
}

#[test]
fn smaller_micro_batches_are_the_last_resort_and_said() {
    let base = Arc::new(Base::open(fixture("golden/base")).unwrap());
    let plan = |max_seq_len, micro_tokens, budget| {
        let method = Box::new(Lora { config: AdapterConfig::lora(4, 8.0, Targets::AllLinear) });
        let memory = Request { budget: Some(budget), ..Request::default() };
        let options = Options { max_seq_len, micro_tokens, memory, ..Options::default() };
        Planned::new(&base, method, options, Box::new(Cpu::new()))
    };
    let least = |tokens| match plan(tokens, tokens, 1) {
        Err(Error::Memory { needed, .. }) => needed,
        other => panic!("a byte is enough: {}", other.is_ok()),
    };
    let (small, large) = (least(64), least(128));
    assert!(small < large);
    // What others can do is not done by this.
    let planned = plan(16, 128, large).unwrap();
    assert_eq!(planned.micro_tokens(), 128);
    assert!(planned.chosen().iter().all(|c| !c.what.contains("rounding")));
    let planned = plan(16, 128, small).unwrap();
    assert!((16..128).contains(&planned.micro_tokens()));
    assert!(planned.chosen()[0].what.contains("rounding"), "{:?}", planned.chosen());
    assert!(plan(128, 128, small).is_err(), "the control: a sequence is not split");
}

/// Without a budget, what is free on a card is one: a plan that fits it is the one without a number, and another is made to
/// fit, or refused before anything is allocated.
#[cfg(feature = "cuda")]
#[test]
fn what_is_free_on_a_card_is_its_budget() {
    let base = Arc::new(Base::open(fixture("golden/base")).unwrap());
    let plan = |free: Option<u64>, budget: Option<u64>, target: Target| {
        let method = Box::new(Lora { config: AdapterConfig::lora(4, 8.0, Targets::AllLinear) });
        let memory = Request { budget, ..Request::default() };
        let options = Options { max_seq_len: 128, micro_tokens: 128, memory, ..Options::default() };
        let caps = Caps { target, ..trimtab::backend::cuda::caps("a card".into(), 80) };
        let mut device = Null::like(caps);
        device.free = free;
        Planned::new(&base, method, options, Box::new(device))
    };
    let free = |room: u64| Some((room + (256 << 20)) * 64 / 63 + 2);
    let untold = plan(None, None, Target::Cuda).unwrap();
    let whole = untold.account().total;
    assert!(untold.budget().is_none() && untold.chosen().is_empty());
    // What fits is planned as if nothing were known.
    let planned = plan(free(whole), None, Target::Cuda).unwrap();
    assert!(planned.budget().is_some_and(|most| most >= whole) && planned.chosen().is_empty());
    assert_eq!(planned.account(), untold.account());
    // What does not is made to fit.
    let least = match plan(Some(0), None, Target::Cuda) {
        Err(Error::Memory { needed, .. }) => needed,
        other => panic!("nothing is enough: {}", other.is_ok()),
    };
    let planned = plan(free((least + whole) / 2), None, Target::Cuda).unwrap();
    assert!(planned.account().total <= planned.budget().unwrap() && planned.budget().unwrap() < whole);
    assert!(!planned.chosen().is_empty());
    let most = planned.budget().unwrap();
    let asked = plan(None, Some(most), Target::Cuda).unwrap();
    assert_eq!(planned.account(), asked.account(), "as --memory of as much does it");
    // Or refused.
    for nothing in [0, 1 << 20, 256 << 20] {
        match plan(Some(nothing), None, Target::Cuda) {
            Err(Error::Memory { available, hint, .. }) => {
                assert!(available == 0 && hint.contains("a card") && !hint.contains("--memory"), "{hint}");
            }
            other => panic!("{nothing} bytes are enough: {}", other.is_ok()),
        }
    }
    // What is asked for counts, whatever is free; and on the CPU nothing but that.
    let planned = plan(Some(0), Some(whole), Target::Cuda).unwrap();
    assert!(planned.budget() == Some(whole) && planned.account().total <= whole);
    assert!(plan(Some(0), None, Target::Null).unwrap().budget().is_none());
}
