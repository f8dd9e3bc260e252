//! Trimtab fine-tunes language models in little memory: LoRA, QLoRA and full fine-tuning, on the CPU, on NVIDIA GPUs by
//! CUDA, and on any GPU that speaks Vulkan, Metal or DX12. Models come in and adapters go out in Hugging Face's formats.
//!
//! # The tour
//!
//! A run is decided before it starts. A model family writes its forward pass into a [`graph`]; the method adds its
//! part at the linear layers; [`autograd`] appends the backward nodes that trainable tensors need; the planner gives
//! every value an address and says, to the byte, what will be allocated. Then the plan is allocated, the weights are
//! loaded, and every step replays the same recorded launches.
//!
//! ```
//! use std::sync::Arc;
//!
//! use trimtab::backend::cpu::Cpu;
//! use trimtab::data::{Dataset, Example, pack::pack};
//! use trimtab::dtype::DType;
//! use trimtab::peft::{AdapterConfig, Targets, lora::Lora};
//! use trimtab::session::{Base, Options, Planned};
//!
//! # fn main() -> trimtab::Result<()> {
//! // A Hugging Face folder, or a GGUF file. It is mapped; nothing is read yet.
//! let base = Arc::new(Base::open(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/base"))?);
//! let tokens = base.tokenizer()?.encode("Full fathom five thy father lies;", false)?;
//!
//! // LoRA of rank 4 at all linear layers, over a base in NF4: QLoRA.
//! let method = Lora { config: AdapterConfig::lora(4, 8.0, Targets::AllLinear) };
//! let options = Options { quantize: Some(DType::Nf4), max_seq_len: 32, micro_tokens: 32, ..Options::default() };
//! let planned = Planned::new(&base, Box::new(method), options, Box::new(Cpu::new()))?;
//! println!("{} bytes will be allocated", planned.account().total);
//!
//! // Allocates exactly that, and loads the weights, quantizing them on the way.
//! let mut session = planned.start(None, &mut |_, _| Ok(()))?;
//!
//! // A step is a list of micro-batches: tokens packed without padding between them.
//! let mut data = Dataset::default();
//! data.push(&Example::whole(tokens))?;
//! let micro = pack(&data, &[0], session.layout()?, true)?;
//! let first = session.step(&micro, 1e-3)?;
//! let second = session.step(&micro, 1e-3)?;
//! assert!(second.loss < first.loss);
//!
//! // The same weights evaluate and generate if the options `evaluate` and `generate` say so before it is planned; the
//! // state (adapter, optimizer, steps) is bytes that another session goes on from.
//! let state = session.state()?;
//! session.set_state(&state)?;
//!
//! // adapter_config.json and adapter_model.safetensors, as PEFT reads them.
//! let out = std::env::temp_dir().join(format!("trimtab-doc-{}", std::process::id()));
//! session.save(&out, DType::F32)?;
//! assert!(out.join("adapter_model.safetensors").exists());
//! # std::fs::remove_dir_all(&out).map_err(|e| trimtab::Error::io(&out, e))?;
//! # Ok(())
//! # }
//! ```
//!
//! # What always holds
//!
//! 1. **A fact about an op is in one place**, its row of the table in [`ops`]: types, float64 definition, gradient,
//!    cost, kernels. Builder, autograd, planner, executor, tests and benches read it there.
//! 2. **The account is what is allocated**, to the byte, and nothing is allocated after the first step.
//! 3. **Two values that are alive at once never share bytes**, unless the row lets an output take over a dead input.
//! 4. **The same inputs give the same bits**, whatever the number of threads: sums in an order fixed by shapes, random
//!    numbers by counter.
//! 5. **A missing gradient is an error when the graph is built**, never a silent zero. And no input a user can give
//!    panics: see [`Error`].
//!
//! # Features
//!
//! `cli`, `cuda`, `wgpu` and `mmap`, all on by default; without any there is the CPU backend, and model files are read
//! instead of mapped. `cubins` embeds compiled CUDA kernels. docs/architecture.md says what each adds.
//!
//! # Where things are
//!
//! | modules | what |
//! |---|---|
//! | [`session`], [`train`], [`generate`] | the engine as other programs use it; runs, steps, metrics; text |
//! | [`config`] | every setting of a run, and where its value came from |
//! | [`models`], [`nn`] | model families, and what they are written with |
//! | [`peft`] | methods (LoRA, full), and PEFT's files |
//! | [`graph`], [`ops`], [`autograd`] | the step as data: nodes, the op table, backward |
//! | [`memory`] | what makes a step fit a budget: recompute, streaming, paging, offload, and who chooses |
//! | [`plan`], [`exec`], [`offload`], [`backend`] | addresses and the account; a plan on a device; what is off it; the devices |
//! | [`bench`] | what judges kernels: operands, watched runs, how far from the definition they may be |
//! | [`cpu`], [`quant`], [`dtype`] | what CPU kernels are built from; storage formats |
//! | [`weights`], [`data`] | checkpoints; tokens, packing, sampling |

#![warn(missing_docs)]

pub mod autograd;
pub mod backend;
pub mod base;
pub mod bench;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod dtype;
mod durable;
pub mod error;
pub mod exec;
mod foreign;
pub mod generate;
pub mod graph;
pub mod hub;
pub mod memory;
pub mod models;
mod nearest;
pub mod nn;
pub mod offload;
pub mod ops;
mod paths;
pub mod peft;
pub mod plan;
pub mod quant;
pub mod run;
pub mod session;
pub mod synth;
mod system;
pub mod tasks;
pub mod train;
mod units;
pub mod weights;

pub use error::{Error, Result};
