//! The engine as other programs use it: open a model, choose a method, plan, step, save.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::{Backend, Caps};
pub use crate::base::Base;
use crate::data::pack::MicroBatch;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::memory::{self, Chosen, Request};
use crate::models::Facts;
use crate::nn::{Build, Hooks, Layout, Source, WeightRef};
use crate::peft::files::HostTensor;
use crate::peft::{Method, Save};
use crate::plan::{Account, Plan};
use crate::tasks::causal_lm::CausalLm;
use crate::tasks::{Shape, Task};
use crate::train::optimizer::Optimizer;
use crate::train::step::{Parts, Step};
use crate::train::trainer::{StepReport, Trainer};
use crate::weights::load;

/// What activations are kept in when `dtype` is asked for: 16 bits where the device can, else f32.
pub fn activations(dtype: DType, caps: &Caps) -> DType {
    match dtype {
        DType::BF16 | DType::F16 => caps.compute_dtype.unwrap_or(DType::F32),
        _ => DType::F32,
    }
}

/// What a run is, apart from the model and the method.
#[derive(Clone, Debug)]
pub struct Options {
    /// Format of the linear layers' frozen weights, if they are to be quantized.
    pub quantize: Option<DType>,
    /// Format of the other frozen weights, and of activations where the device keeps them in 16 bits.
    pub dtype: DType,
    /// Longest sequence.
    pub max_seq_len: usize,
    /// Tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Target tokens of a micro-batch in encoder-decoders; else as many as `micro_tokens`.
    pub micro_targets: Option<usize>,
    /// The most sequences of a micro-batch; else as many as it has tokens.
    pub micro_sequences: Option<usize>,
    /// The most tokens that a step will have, if that is known. Where they fit one micro-batch, gradients take the place
    /// of activations, and a step of two micro-batches is an error.
    pub step_tokens: Option<usize>,
    pub optimizer: Optimizer,
    pub seed: u64,
    /// The memory there is, and what to do about it.
    pub memory: Request,
    /// Folder for a file with what is off the device and is in no other file; else the system's for temporary files.
    pub spill: Option<PathBuf>,
}

impl Options {
    /// The sizes of a micro-batch.
    fn shape(&self) -> Shape {
        let tokens = self.micro_tokens;
        let sequences = self.micro_sequences.unwrap_or(tokens).clamp(1, tokens.max(1));
        Shape { tokens, targets: self.micro_targets.unwrap_or(tokens), sequences }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            quantize: None,
            dtype: DType::F32,
            max_seq_len: 1024,
            micro_tokens: 1024,
            micro_targets: None,
            micro_sequences: None,
            step_tokens: None,
            optimizer: Optimizer::default(),
            seed: 42,
            memory: Request::default(),
            spill: None,
        }
    }
}

/// A run that is planned to the byte, with nothing allocated and nothing loaded.
pub struct Planned {
    base: Arc<Base>,
    methods: Vec<Box<dyn Method>>,
    backend: Box<dyn Backend>,
    step: Step,
    plan: Plan,
    options: Options,
    facts: Facts,
    chosen: Vec<Chosen>,
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
        let model = base.model(options.max_seq_len)?;
        let storage = base.storage(options.quantize, options.dtype);
        let act = activations(options.dtype, backend.caps());
        let stack: Vec<&dyn Hooks> = methods.iter().map(|m| &**m as &dyn Hooks).collect();
        let mut options = options;
        let wanted = options.micro_tokens;
        let (step, plan, mut chosen) = loop {
            let build = Build { stack: &stack, storage: &storage, act };
            let shape = options.shape();
            let single = options.step_tokens.is_some_and(|most| most <= options.micro_tokens);
            let parts = Parts { model: &*model, task, build, shape, single, optimizer: options.optimizer };
            let step = Step::of(&parts, backend.caps())?;
            methods.iter().try_for_each(|m| m.check(&step.sites))?;
            match memory::fit(&step.program, backend.caps(), &options.memory) {
                // The last resort, since it changes rounding.
                Err(Error::Memory { .. }) if options.micro_tokens > options.max_seq_len => {
                    options.micro_tokens = (options.micro_tokens / 2).max(options.max_seq_len);
                }
                other => {
                    let (program, plan, chosen) = other?;
                    break (Step { program, ..step }, plan, chosen);
                }
            }
        };
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
        Ok(Planned { base: base.clone(), methods, backend, step, plan, options, facts, chosen })
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
    pub fn layout(&self) -> &Layout {
        &self.step.inputs.layout
    }

    /// The step's graph and where its values lie, for pictures of them.
    pub fn plan(&self) -> (&Graph, &Plan) {
        (&self.step.program.graph, &self.plan)
    }

    /// What will be allocated.
    pub fn account(&self) -> &Account {
        &self.plan.account
    }

    /// The device it is planned for.
    pub fn device(&self) -> &str {
        &self.backend.caps().device
    }

    /// Number of trained values, and of all.
    pub fn parameters(&self) -> (usize, usize) {
        let count = |trained: bool| -> usize {
            let weights = self.step.program.weights.iter().filter(|w| w.trainable || !trained);
            weights
                .filter(|w| !matches!(w.source, Source::Data(_)))
                .map(|w| self.step.program.graph.ty(w.val).len())
                .sum()
        };
        (count(true), count(false))
    }

    /// Names and shapes of what is trained.
    pub fn trained(&self) -> Vec<(String, Vec<usize>)> {
        let trained = self.step.program.weights.iter().filter(|w| w.trainable);
        trained.map(|w| (w.name.clone(), w.stored(self.step.program.graph.shape(w.val)))).collect()
    }

    /// Allocates, compiles and loads. `adapter` holds the tensors of an adapter to start from;
    /// `progress(bytes loaded, of)` is called along the way.
    pub fn start(
        self,
        adapter: Option<&BTreeMap<String, HostTensor>>,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Session> {
        let Planned { base, methods, backend, step, plan, options, facts, .. } = self;
        let mut trainer = Trainer::new(backend, step, plan, options.seed)?;
        if let Some(dir) = &options.spill {
            trainer.exec.offload.set_dir(dir);
        }
        let weights = trainer.weights().to_vec();
        let from = load::Sources { base: base.checkpoint.as_ref(), std: facts.init_std, adapter, seed: options.seed };
        load::load(&mut trainer.exec, &weights, &from, progress)?;
        Ok(Session { base, methods, facts, trainer })
    }
}

/// A run under way.
pub struct Session {
    base: Arc<Base>,
    methods: Vec<Box<dyn Method>>,
    facts: Facts,
    pub trainer: Trainer,
}

impl Session {
    /// What a micro-batch holds: what the packer needs.
    pub fn layout(&self) -> &Layout {
        self.trainer.layout()
    }

    /// One optimizer step over packed micro-batches (`data::pack`).
    pub fn step(&mut self, micro: &[MicroBatch], lr: f64) -> Result<StepReport> {
        self.trainer.step(micro, lr)
    }

    /// Writes what was trained: a PEFT adapter, or a whole model with its weights in `dtype`.
    pub fn save(&mut self, dir: &Path, dtype: DType) -> Result<()> {
        let weights = self.trainer.weights().to_vec();
        let exec = &mut self.trainer.exec;
        let (mut kept, mut transposed) = (Vec::new(), Vec::new());
        let (mut trained, mut leaves) = (Vec::new(), Vec::new());
        for weight in weights {
            let ty = exec.graph.ty(weight.val).clone();
            let turned = weight.source.is_transposed() && ty.shape.len() == 2;
            if let Source::Base { tensor, .. } = &weight.source
                && turned
            {
                transposed.push(tensor.strip_suffix(".weight").unwrap_or(tensor).to_string());
            }
            if weight.trainable {
                trained.push((weight.name.clone(), weight.stored(&ty.shape)));
                leaves.push((weight.val, turned));
                continue;
            }
            let Source::Base { tensor, role, .. } = &weight.source else { continue };
            let w = WeightRef { name: tensor, role: *role };
            let held = self.methods.iter().find_map(|m| m.keeps(w));
            if let Some(name) = held {
                kept.push((name, ty.shape.clone(), load::decode(&exec.download(weight.val)?, &ty)?));
            }
        }
        // A tensor that files have transposed is read whole, once, since its rows there are columns here.
        let mut whole: (usize, Vec<f32>) = (usize::MAX, Vec::new());
        let read = &mut |i: usize, first: usize, into: &mut [f32]| {
            let (val, turned) = leaves[i];
            if !turned {
                return exec.read_at(val, 4 * first as u64, bytemuck::cast_slice_mut(into));
            }
            if whole.0 != i {
                let data = exec.download_f32(val)?;
                whole = (i, load::transpose(&data, exec.graph.ty(val).cols()));
            }
            into.copy_from_slice(&whole.1[first..first + into.len()]);
            Ok(())
        };
        let base = &self.base;
        let tokenizer = &|path: &Path| base.tokenizer()?.save(path);
        let (config, base) = (&base.config, base.path.as_path());
        let (trained, transposed, kept) = (&trained[..], &transposed[..], &kept[..]);
        let mut save =
            Save { dir, base, config, tokenizer, dtype, trained, transposed, read, kept, facts: &self.facts };
        self.methods.iter().try_for_each(|m| m.save(&mut save))
    }
}
