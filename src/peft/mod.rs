//! Methods that train a small part of a model, and the files Hugging Face PEFT keeps them in.

pub mod config;
pub mod files;

pub use config::{AdapterConfig, LoraSpec, Targets};
