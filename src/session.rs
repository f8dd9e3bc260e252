//! The engine as other programs use it: open a model, choose a method, plan, step, save.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::backend::{Backend, Caps};
pub use crate::base::Base;
use crate::data::pack::MicroBatch;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::memory::{self, Chosen, Request};
use crate::nn::Source;
use crate::peft::files::AdapterTensor;
use crate::peft::{Method, Save};
use crate::plan::{Account, Plan};
use crate::train::optimizer::Optimizer;
use crate::train::step::Step;
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
    /// The most tokens that a step will have, if that is known. Where they fit one micro-batch, gradients take the place
    /// of activations, and a step of two micro-batches is an error.
    pub step_tokens: Option<usize>,
    pub optimizer: Optimizer,
    pub seed: u64,
    /// The memory there is, and what to do about it.
    pub memory: Request,
    /// Folder for a file with what lies off the device and is in no other file; else the system's for temporary files.
    pub spill: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            quantize: None,
            dtype: DType::F32,
            max_seq_len: 1024,
            micro_tokens: 1024,
            step_tokens: None,
            optimizer: Optimizer::default(),
            seed: 42,
            memory: Request::default(),
            spill: None,
        }
    }
}

/// A run that is planned to the byte, with nothing allocated and nothing loaded.
pub struct Planned<'a> {
    base: &'a Base,
    method: Box<dyn Method>,
    backend: Box<dyn Backend>,
    step: Step,
    plan: Plan,
    options: Options,
    init_std: f32,
    chosen: Vec<Chosen>,
}

impl<'a> Planned<'a> {
    pub fn new(base: &'a Base, method: Box<dyn Method>, options: Options, backend: Box<dyn Backend>) -> Result<Self> {
        let model = base.model(options.max_seq_len)?;
        method.check(&*model)?;
        let storage = base.storage(options.quantize, options.dtype);
        let act = activations(options.dtype, backend.caps());
        let mut options = options;
        let wanted = options.micro_tokens;
        let (step, plan, mut chosen) = loop {
            let tokens = options.micro_tokens;
            let mut step = Step::with(&*model, &*method, &storage, act, tokens, options.optimizer, backend.caps())?;
            if options.step_tokens.is_some_and(|most| most <= tokens) {
                memory::once::once(&mut step.program)?;
            }
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
        let init_std = model.init_std();
        Ok(Planned { base, method, backend, step, plan, options, init_std, chosen })
    }

    /// What was chosen to make it fit.
    pub fn chosen(&self) -> &[Chosen] {
        &self.chosen
    }

    /// Tokens of a micro-batch: those of the options, or fewer if the budget wanted it.
    pub fn micro_tokens(&self) -> usize {
        self.options.micro_tokens
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
        trained.map(|w| (w.name.clone(), self.step.program.graph.shape(w.val).to_vec())).collect()
    }

    /// Allocates, compiles and loads. `adapter` holds the tensors of an adapter to start from;
    /// `progress(bytes loaded, of)` is called along the way.
    pub fn start(
        self,
        adapter: Option<&BTreeMap<String, AdapterTensor>>,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Session<'a>> {
        let Planned { base, method, backend, step, plan, options, init_std, .. } = self;
        let mut trainer = Trainer::new(backend, step, plan, options.seed)?;
        if let Some(dir) = &options.spill {
            trainer.exec.offload.set_dir(dir);
        }
        let weights = trainer.weights().to_vec();
        let from = load::Sources { base: base.checkpoint.as_ref(), std: init_std, adapter, seed: options.seed };
        load::load(&mut trainer.exec, &weights, &from, progress)?;
        Ok(Session { base, method, trainer })
    }
}

/// A run under way.
pub struct Session<'a> {
    base: &'a Base,
    method: Box<dyn Method>,
    pub trainer: Trainer,
}

impl Session<'_> {
    /// One optimizer step over packed micro-batches (`data::pack`).
    pub fn step(&mut self, micro: &[MicroBatch], lr: f64) -> Result<StepReport> {
        self.trainer.step(micro, lr)
    }

    /// Writes what was trained: a PEFT adapter, or a whole model with its weights in `dtype`.
    pub fn save(&mut self, dir: &Path, dtype: DType) -> Result<()> {
        let weights = self.trainer.weights().to_vec();
        let exec = &mut self.trainer.exec;
        let mut kept = Vec::new();
        let (mut trained, mut vals) = (Vec::new(), Vec::new());
        for weight in weights {
            let ty = exec.graph.ty(weight.val).clone();
            if weight.trainable {
                trained.push((weight.name.clone(), ty.shape));
                vals.push(weight.val);
                continue;
            }
            let Source::Base { tensor, role, .. } = &weight.source else { continue };
            if let Some(name) = self.method.keeps(tensor, *role)? {
                kept.push((name, ty.shape.clone(), load::decode(&exec.download(weight.val)?, &ty)?));
            }
        }
        let read = &mut |i: usize, first: usize, into: &mut [f32]| {
            exec.read_at(vals[i], 4 * first as u64, bytemuck::cast_slice_mut(into))
        };
        let base = self.base;
        let tokenizer = &|path: &Path| base.tokenizer()?.save(path);
        let (config, base) = (&base.config, base.path.as_path());
        self.method.save(&mut Save { dir, base, config, tokenizer, dtype, trained: &trained, read, kept: &kept })
    }
}
