//! A session before it starts: its graph, its plan, and nothing allocated.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::options::{Options, activations};
use super::{Merged, Session, phases::Phases};
use crate::backend::{Backend, Target};
use crate::base::Base;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::program::Program;
use crate::graph::{Def, Graph, LeafKind, Phase};
use crate::memory::{self, Chosen, Fitted, budget};
use crate::models::Facts;
use crate::nn::{Build, Hooks, Layout, Role, Site, Source, StreamId, Weight, WeightRef};
use crate::peft::Method;
use crate::plan::{self, Account, Plan};
use crate::tasks::Task;
use crate::tasks::causal_lm::CausalLm;
use crate::train::trainer::Trainer;
use crate::units::human;
use crate::weights::{HostTensor, load};

/// The phases whose micro-batches have several sizes.
const SIZED: [Phase; 2] = [Phase::MICRO, Phase::EVAL];

/// A session that is planned to the byte, with nothing allocated and nothing loaded.
pub struct Planned {
    base: Arc<Base>,
    methods: Vec<Box<dyn Method>>,
    pub(super) backend: Box<dyn Backend>,
    pub(super) program: Program,
    phases: Phases,
    pub(super) plan: Plan,
    pub(super) smaller: Vec<Smaller>,
    options: Options,
    facts: Facts,
    chosen: Vec<Chosen>,
    notes: Vec<String>,
}

/// Gives values off the device up to `bytes` of host memory; what there is to say if that is none.
fn hold(plan: &mut Plan, g: &Graph, bytes: u64) -> Option<String> {
    plan.hold(g, bytes);
    if !plan.held.is_empty() {
        return None;
    }
    let all = plan::held(g, &plan.schedule.moves, u64::MAX);
    let why = match all.iter().map(|&leaf| g.ty(leaf).bytes() as u64).min() {
        None => "all is on the device (--stream, --offload or --page-optimizer on, or a smaller --memory)".into(),
        Some(least) => format!("the least of what is off the device has {}", human(least)),
    };
    Some(format!("--host-memory holds nothing: {why}"))
}

/// A smaller size of micro-batches.
pub(super) struct Smaller {
    tokens: usize,
    layout: Layout,
    pub graph: Graph,
    /// Its launches, in the memory of the plan of the largest.
    pub plan: Plan,
}

impl Planned {
    /// Causal language modelling with one method.
    pub fn new(base: &Arc<Base>, method: Box<dyn Method>, options: Options, backend: Box<dyn Backend>) -> Result<Self> {
        Planned::of(base, vec![method], &CausalLm, options, backend)
    }

    /// Any task, with a stack of methods, the first one outermost.
    pub fn of(
        base: &Arc<Base>,
        methods: Vec<Box<dyn Method>>,
        task: &dyn Task,
        options: Options,
        backend: Box<dyn Backend>,
    ) -> Result<Self> {
        options.check()?;
        // What methods put before a sequence has positions too.
        let streams = task.layout(options.shape()).streams.len();
        let ahead = |id| methods.iter().map(move |m| m.lead(id, streams).saturating_add(m.prefix(id, streams)));
        let ahead = (0..streams).map(|i| ahead(StreamId(i)).fold(0, usize::saturating_add)).max().unwrap_or(0);
        let model = base.model(options.max_seq_len.saturating_add(ahead))?;
        let storage = base.storage(options.quantize, options.dtype);
        let act = activations(options.dtype, backend.caps());
        let stack: Vec<&dyn Hooks> = methods.iter().map(|m| &**m as &dyn Hooks).collect();
        let mut options = options;
        // The CPU's memory is the system's, which lends more than there is, and wgpu does not tell.
        if backend.caps().target == Target::Cuda {
            options.memory.room = backend.free_memory().map(budget::room);
        }
        let wanted = options.micro_tokens;
        let check = |sites: &[Site], weights: &[Weight]| -> Result<()> {
            methods.iter().try_for_each(|m| m.check(sites))?;
            let base = weights.iter().filter_map(|w| match &w.source {
                Source::Base { tensor, role, .. } => Some(WeightRef { name: tensor, role: *role }),
                _ => None,
            });
            let base: Vec<WeightRef> = base.collect();
            methods.iter().try_for_each(|m| m.check_weights(&base))
        };
        // Where less of the device's memory is to be used, launches get by with less.
        let caps = &backend.caps().within(options.memory.budget);
        let written = |options: &Options| {
            let build = Build { stack: &stack, storage: &storage, act };
            Phases::build(&*model, task, build, options, caps, &check)
        };
        let least = options.longest.unwrap_or(options.max_seq_len);
        let (whole, Fitted { program, mut plan, choices, mut chosen }, mut phases, mut notes) = loop {
            let (whole, sites, phases) = written(&options)?;
            let notes: Vec<String> = methods.iter().flat_map(|m| m.notes(&sites)).collect();
            match memory::fit(&whole, caps, &options.memory) {
                // The last resort, since it changes rounding; of no use where there are no micro-batches.
                Err(Error::Memory { .. }) if options.micro_tokens > least && phases.layout().is_ok() => {
                    let fewer = (options.micro_tokens / 2).max(least);
                    options.micro_targets = options.narrowed(fewer, false).micro_targets;
                    options.micro_tokens = fewer;
                }
                other => break (whole, other?, phases, notes),
            }
        };
        let mut smaller = Vec::new();
        for &tokens in options.micro_smaller.iter().filter(|&&tokens| tokens < options.micro_tokens) {
            let (step, _, small) = written(&options.narrowed(tokens, options.single()))?;
            let step = memory::apply_as_in(&whole, &step, &choices)?;
            let narrowed = match plan.narrowed(&program.graph, &step.graph, caps) {
                Ok(narrowed) => narrowed,
                Err(error) => {
                    notes.push(format!("no micro-batches of {tokens} tokens in the memory of the largest: {error}"));
                    continue;
                }
            };
            let bytes = narrowed.parameter_bytes(&SIZED, caps);
            if options.memory.bytes().is_some_and(|budget| budget::counted(&plan, caps) + bytes > budget) {
                notes.push(format!("no micro-batches of {tokens} tokens: no memory is left for their launches"));
                continue;
            }
            plan.account.add("launch parameters", bytes);
            let layout = small.layout()?.clone();
            smaller.push(Smaller { tokens, layout, graph: step.graph, plan: narrowed });
            phases.add(small);
        }
        if let Some(bytes) = options.memory.host {
            notes.extend(match caps.target {
                Target::Cuda => hold(&mut plan, &program.graph, bytes),
                _ => Some("--host-memory is for CUDA: elsewhere the system's file cache is that memory".into()),
            });
        }
        if options.micro_tokens < wanted {
            let what = format!(
                "micro-batches of {} tokens, not {wanted}: gradients are summed in another order, so results differ \
                 by rounding",
                options.micro_tokens
            );
            chosen.insert(0, Chosen { what, saves: 0, seconds: 0.0 });
        }
        drop(storage);
        let facts = model.facts().clone();
        let base = base.clone();
        Ok(Planned { base, methods, backend, program, phases, plan, smaller, options, facts, chosen, notes })
    }

    /// What the methods have to say of the model.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was chosen to make it fit.
    pub fn chosen(&self) -> &[Chosen] {
        &self.chosen
    }

    /// Tokens of a micro-batch: those of the options, or fewer if the budget wanted it.
    pub fn micro_tokens(&self) -> usize {
        self.options.micro_tokens
    }

    /// What a micro-batch holds: what the packer needs.
    pub fn layout(&self) -> Result<&Layout> {
        self.phases.layout()
    }

    /// Tokens of each size of micro-batches, the largest first.
    pub fn sizes(&self) -> Vec<usize> {
        std::iter::once(self.options.micro_tokens).chain(self.smaller.iter().map(|s| s.tokens)).collect()
    }

    /// What a micro-batch of each size holds, the largest first.
    pub fn layouts(&self) -> Result<Vec<Layout>> {
        Ok(std::iter::once(self.phases.layout()?).chain(self.smaller.iter().map(|s| &s.layout)).cloned().collect())
    }

    /// The step's graph and where its values are, for pictures of them.
    pub fn plan(&self) -> (&Graph, &Plan) {
        (&self.program.graph, &self.plan)
    }

    /// What will be allocated.
    pub fn account(&self) -> &Account {
        &self.plan.account
    }

    /// The device it is planned for.
    pub fn device(&self) -> &str {
        &self.backend.caps().device
    }

    /// The same with what results depend on, [`crate::backend::Caps::rounding`].
    pub fn rounding(&self) -> String {
        self.plan.caps.rounding()
    }

    /// What activations are kept in.
    pub fn activations(&self) -> DType {
        activations(self.options.dtype, self.backend.caps())
    }

    /// Bytes that are free on the device, where that can be known.
    pub fn free_memory(&self) -> Option<u64> {
        self.backend.free_memory()
    }

    /// Bytes that the plan stays within, where that was asked for or the device tells.
    pub fn budget(&self) -> Option<u64> {
        self.options.memory.bytes()
    }

    /// Output heads whose weight is an embedding's, each with that.
    pub fn ties(&self) -> &[(String, String)] {
        &self.phases.ties
    }

    /// Number of trained values, and of all.
    pub fn parameters(&self) -> (usize, usize) {
        let count = |trained: bool| -> usize {
            let weights = self.program.weights.iter().filter(|w| w.trainable || !trained);
            weights
                .filter(|w| !matches!(w.source, Source::Data(_) | Source::Computed(_)))
                .map(|w| self.program.graph.ty(w.val).len())
                .sum()
        };
        (count(true), count(false))
    }

    /// Bytes of [`Session::state`], but for its header.
    pub fn state_bytes(&self) -> u64 {
        let graph = &self.program.graph;
        let optimizer = graph.values.iter().filter(|v| v.def == Def::Leaf(LeafKind::Optim)).map(|v| v.ty.bytes());
        let trained = self.program.weights.iter().filter(|w| w.trainable).map(|w| graph.ty(w.val).bytes());
        optimizer.chain(trained).map(|bytes| bytes as u64).sum()
    }

    /// Names and shapes of what is trained.
    pub fn trained(&self) -> Vec<(String, Vec<usize>)> {
        let trained = self.program.weights.iter().filter(|w| w.trainable);
        trained.map(|w| (w.name.clone(), w.stored(self.program.graph.shape(w.val)))).collect()
    }

    /// Names and shapes of what an adapter's folder of these tensors is to hold: what is trained, and those of the base model's
    /// weights that it has. An error if it has two values of one weight.
    pub fn expected(&self, tensors: &BTreeMap<String, HostTensor>) -> Result<Vec<(String, Vec<usize>)>> {
        let mut expected = self.trained();
        for weight in self.program.weights.iter().filter(|w| !w.trainable) {
            let Source::Base { held: Some(held), .. } = &weight.source else { continue };
            let names: Vec<String> = [held.clone()].into_iter().chain(self.held_as_head(weight)).collect();
            let mut found = names.into_iter().filter(|name| tensors.contains_key(name)).collect::<Vec<_>>();
            found.dedup();
            if let [one, other] = &found[..]
                && tensors[one] != tensors[other]
            {
                let what = format!("{one} and {other} of the adapter");
                let expected = "the same values: this model has one weight for both";
                return Err(Error::config(what, "different values", expected));
            }
            let shape = weight.stored(self.program.graph.shape(weight.val));
            expected.extend(found.into_iter().map(|name| (name, shape.clone())));
        }
        Ok(expected)
    }

    /// Under which name an adapter's file has the embedding `weight` as the head that is tied to it.
    fn held_as_head(&self, weight: &Weight) -> Option<String> {
        let module = weight.name.strip_suffix(".weight")?;
        let (head, _) = self.phases.ties.iter().find(|(_, embedding)| embedding == module)?;
        let head = WeightRef { name: &format!("{head}.weight"), role: Role::Embed };
        self.methods.iter().find_map(|m| m.keeps(head))
    }

    /// A tensor of a task's head that neither the base model nor an adapter of these tensors has, and that would be drawn.
    pub fn drawn(&self, adapter: Option<&BTreeMap<String, HostTensor>>) -> Option<&str> {
        let base = self.base.checkpoint.as_ref();
        let missing = |w: &&Weight| match &w.source {
            Source::Base { tensor, fresh: Some(_), .. } => {
                base.is_none_or(|base| base.info(tensor).is_none())
                    && adapter.is_none_or(|tensors| !tensors.contains_key(&w.name))
            }
            _ => false,
        };
        self.program.weights.iter().find(missing).map(|w| w.name.as_str())
    }

    /// A tensor that the base model's files lack, and that is drawn and not trained: what is learnt depends on it, and an
    /// adapter's files do not have it.
    pub fn drawn_and_kept(&self) -> Option<&str> {
        let base = self.base.checkpoint.as_ref()?;
        let missing = |w: &&Weight| match &w.source {
            Source::Base { tensor, fresh: Some(_), .. } => !w.trainable && base.info(tensor).is_none(),
            _ => false,
        };
        self.program.weights.iter().find(missing).map(|w| w.name.as_str())
    }

    /// The base model with the methods merged into its weights, to be read piece by piece: nothing is loaded. `adapter` holds
    /// the tensors of an adapter. An error if the methods cannot be merged (prompts, prefixes, bottlenecks).
    pub fn merged(self, adapter: BTreeMap<String, HostTensor>) -> Result<Merged> {
        let mut adapter = adapter;
        for weight in &self.program.weights {
            let Source::Base { held: Some(held), .. } = &weight.source else { continue };
            // The head's copy of a table that is both.
            if let Some(copy) = self.held_as_head(weight).filter(|copy| copy != held && adapter.contains_key(held)) {
                adapter.remove(&copy);
            }
        }
        let Planned { base, methods, program, phases, facts, .. } = self;
        let shaped = |w: Weight| {
            let shape = program.graph.shape(w.val).to_vec();
            (w, shape)
        };
        let weights: Vec<(Weight, Vec<usize>)> = program.weights.into_iter().map(shaped).collect();
        Merged::new(base, methods, facts, &weights, &phases.ties, adapter)
    }

    /// Allocates, compiles and loads. `adapter` holds the tensors of an adapter to start from;
    /// `progress(bytes loaded, of)` is called along the way, and an error of it ends the loading.
    pub fn start(
        self,
        adapter: Option<&BTreeMap<String, HostTensor>>,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Session> {
        let layouts = self.layouts().unwrap_or_default();
        let Planned { base, methods, backend, program, phases, plan, smaller, options, facts, .. } = self;
        let Phases { train, evaluation, generation, ties } = phases;
        let mut trainer = Trainer::of(backend, program, train, plan, options.seed)?;
        for Smaller { plan, .. } in smaller {
            trainer.exec.add_size(plan, &SIZED)?;
        }
        if let Some(dir) = &options.spill {
            trainer.exec.offload.set_dir(dir);
        }
        let weights = trainer.weights().to_vec();
        let from = load::Sources { base: base.checkpoint.as_ref(), std: facts.init_std, adapter, seed: options.seed };
        load::load(&mut trainer.exec, &weights, &from, progress)?;
        trainer.exec.hold(progress)?;
        Ok(Session { base, methods, facts, ties, layouts, trainer, evaluation, generation })
    }
}
