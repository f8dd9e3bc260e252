//! Every setting of a training run, in one table. Flags, the TOML file, `--show-config`, help and the saved
//! `config.toml` are all made from it, so that none can know a setting the others do not.
//!
//! What the user typed is text in [`Flags`] and a TOML table; [`RunConfig::resolve`] turns both into meaning, and
//! remembers of each value where it came from. Flags override the file, the file overrides the defaults.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Value;

use crate::device::{Caps, Target};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::hub;
use crate::memory::Toggle;
use crate::models::config::{ACTIVATIONS, activation_named};
use crate::nearest::nearest;
use crate::paths;
use crate::peft;
use crate::peft::bottleneck::LEAST_REDUCTION;
use crate::peft::{AdapterConfig, Bias, Bottleneck, Selection, Targets, Tokens, files, tokens::distinct};
pub use crate::session::{MOST_TOKENS, Tune};
use crate::train::loraplus::LoraPlus;
use crate::train::optimizer::{Bits, Rule};

mod others;
mod uses;
mod value;

pub use others::meaning;
pub use value::{
    AdapterKind, Bytes, Columns, Device, Dtype, Format, Init, Method, Optimizer, PromptInit, Quantize, Recompute,
    SaveDtype, Schedule, Setting, Sources, Task, TooLong, TrainOn,
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The table: nobody gave it.
    Default,
    /// The TOML file at this path.
    File(PathBuf),
    /// The command line.
    Flag,
    /// `adapter_config.json` of the adapter that training starts from.
    Adapter(PathBuf),
    /// The device of this name: nobody gave it, and it depends on that.
    Device(String),
}

impl Origin {
    /// Whether someone asked for the value.
    fn given(&self) -> bool {
        matches!(self, Origin::File(_) | Origin::Flag)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Flag => f.write_str("flag"),
            Origin::Device(name) => write!(f, "auto on {name}"),
            Origin::Adapter(path) => write!(f, "{}", path.join(files::CONFIG_FILE).display()),
        }
    }
}

/// Most steps, epochs and the like: what TOML can say.
const MOST: u64 = i64::MAX as u64;
const COUNT: &str = "1 to 9223372036854775807";
/// One setting: a row of the table.
pub struct Field {
    /// With underscores. The flag and the key in the file have hyphens: [`Field::key`].
    pub name: &'static str,
    /// Heading it is under in help and files.
    pub group: &'static str,
    /// What `--help` says, without the default.
    pub help: &'static str,
    /// In place of the value in help.
    pub value_name: &'static str,
    /// The default in words, if it depends on other settings.
    pub default_note: Option<&'static str>,
    /// The words it may be, if it is one of a few.
    pub choices: &'static [&'static str],
    /// Whether the flag may be given without a value, which then is true.
    pub is_switch: bool,
    set_text: fn(&mut RunConfig, &str) -> Result<(), String>,
    set_toml: fn(&mut RunConfig, &Value) -> Result<(), String>,
    set_default: fn(&mut RunConfig),
    get: fn(&RunConfig) -> Option<Value>,
    check: fn(&RunConfig) -> Result<(), String>,
}

impl Field {
    /// As it is written after `--` and in files, where underscores are read too.
    pub fn key(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Whether all that is typed counts, not the last alone.
    pub fn is_list(&self) -> bool {
        ["data", "eval_data"].contains(&self.name)
    }

    fn is_called(&self, key: &str) -> bool {
        key.bytes().map(|b| if b == b'-' { b'_' } else { b }).eq(self.name.bytes())
    }

    /// The default as `--help` shows it.
    pub fn default_text(&self) -> Option<String> {
        match self.default_note {
            Some(note) => Some(note.to_owned()),
            None => (self.get)(&RunConfig::default()).map(|v| match v {
                Value::String(s) => s,
                other => toml_text(&other),
            }),
        }
    }
}

/// A row is `name: type = default, "VALUE"`; a default that depends on settings above it is written
/// `|c| … => "in words"`; `, |v| test => "what is expected"` limits the values.
macro_rules! settings {
    (@default $c:ident, |$d:ident| $body:expr) => { { let $d: &RunConfig = $c; $body } };
    (@default $c:ident, $body:expr) => { { let _ = $c; $body } };
    (@note) => { None };
    (@note $note:literal) => { Some($note) };
    ($( $group:literal { $(
        #[doc = $help:literal]
        $name:ident : $ty:ty = $value_name:literal, { $($default:tt)+ } $(as $note:literal)?
        $(, if |$v:ident| $test:expr => $expected:expr)?;
    )+ } )+) => {
        /// The settings of a run, as they are meant. Paths are relative to the working directory.
        #[derive(Clone, Debug)]
        pub struct RunConfig {
            $($( #[doc = $help] pub $name: $ty, )+)+
            /// In the order of [`FIELDS`].
            origins: Vec<Origin>,
        }

        impl RunConfig {
            /// All values those of the types, before the table's defaults are put in.
            fn blank() -> RunConfig {
                RunConfig { $($( $name: <$ty as Setting>::blank(), )+)+ origins: vec![Origin::Default; FIELDS.len()] }
            }
        }

        /// The table.
        pub static FIELDS: &[Field] = &[ $($( Field {
            name: stringify!($name),
            group: $group,
            help: $help,
            value_name: $value_name,
            default_note: settings!(@note $($note)?),
            choices: <$ty as Setting>::CHOICES,
            is_switch: <$ty as Setting>::IS_SWITCH,
            set_text: |c, text| { c.$name = <$ty as Setting>::from_text(text)?; Ok(()) },
            set_toml: |c, value| { c.$name = <$ty as Setting>::from_toml(value)?; Ok(()) },
            set_default: |c| {
                let value = { let d: &RunConfig = c; settings!(@default d, $($default)+) };
                c.$name = value;
            },
            get: |c| Setting::to_toml(&c.$name),
            check: |c| {
                let _ = c;
                $( let $v = &c.$name; if !$test { return Err($expected.into()); } )?
                Ok(())
            },
        }, )+)+ ];
    };
}

settings! {
    "Model and data" {
        #[doc = "Base model: a Hugging Face folder, a GGUF file, or a name on the hub (ORG/NAME[@REVISION][/FILE.gguf])"]
        model: Option<PathBuf> = "DIR|FILE.gguf|ORG/NAME", { None };
        #[doc = "Rows to learn from, of JSON, CSV or Parquet: text, prompt and completion, or input_ids; or plain text"]
        data: Option<Sources> = "FILE[:WEIGHT]", { None };
        #[doc = "What the files of data are: jsonl, json, csv, tsv, parquet or text"]
        format: Option<Format> = "FORMAT", { None } as "what they look like";
        #[doc = "What is learnt: causal-lm, sequence-classification, token-classification, question-answering, masked-lm or seq2seq"]
        task: Option<Task> = "TASK", { None } as "the adapter's, else what the model's class is for";
        #[doc = "Columns of the data that a task calls by another name, divided by commas: text=review,label=stars"]
        columns: Option<Columns> = "NAME=COLUMN", { None };
        #[doc = "Template that makes texts of chats: chatml, or a file in Jinja"]
        chat_template: Option<String> = "chatml|FILE", { None } as "the model's own";
        #[doc = "What of chats and prompts is trained: the assistant's turns and completions, or all"]
        train_on: TrainOn = "WHAT", { TrainOn::Assistant };
        #[doc = "Data to evaluate on when training is done"]
        eval_data: Option<Sources> = "FILE", { None };
        #[doc = "Hold out this share of the rows, by a hash of what is in them, and evaluate on it; excludes --eval-data"]
        split: Option<f64> = "SHARE", { None }, if |v| v.is_none_or(|v| v > 0.0 && v < 1.0) => "above 0, below 1";
        #[doc = "Evaluate every so many steps too"]
        eval_every: Option<u64> = "N", { None }, if |v| v.is_none_or(|v| (1..=MOST).contains(&v)) => COUNT;
        #[doc = "Run folder that is written"]
        out: Option<PathBuf> = "DIR", { None };
        #[doc = "A checkpoint every so many steps; 0: none"]
        save_every: Option<u64> = "N", { None } as "a tenth of the steps, or ten minutes",
            if |v| v.is_none_or(|v| v <= MOST) => "0 to 9223372036854775807";
        #[doc = "How many checkpoints are kept"]
        keep: usize = "N", { 2 }, if |v| (1..=MOST as usize).contains(v) => COUNT;
        #[doc = "Leave the weights of the evaluation with the least loss, not the last ones"]
        keep_best: bool = "BOOL", { false };
        #[doc = "Stop after so many evaluations in a row without a smaller loss"]
        patience: Option<u64> = "N", { None }, if |v| v.is_none_or(|v| (1..=MOST).contains(&v)) => COUNT;
        #[doc = "Examples whose loss is measured before and after, for the report"]
        report_examples: Option<usize> = "N", { None } as "4 to 64, at most 2 % of the time";
        #[doc = "Texts that the model writes before and after, from the first prompts of the data"]
        samples: usize = "N", { 0 }, if |v| *v <= 1000 => "0 to 1000";
        #[doc = "Start from the files' weights, or from random ones (the folder then needs only config.json)"]
        init: Init = "INIT", { Init::Pretrained };
    }
    "Method" {
        #[doc = "What is trained: low-rank factors, weights, scales, biases, keys or tokens before sequences, bottlenecks, tokens"]
        method: Method = "METHOD", { Method::Lora };
        #[doc = "How frozen weights of linear layers are stored: 4-bit NormalFloat (this is QLoRA), or as the files have them"]
        quantize: Quantize = "FORMAT", { Quantize::None };
        #[doc = "Quantize the scales of NF4 too: 4.13 bits a weight instead of 4.5"]
        double_quant: bool = "BOOL", { false };
        #[doc = "LoRA: rank of the factors"]
        rank: usize = "N", { 16 }, if |v| (1..=65536).contains(v) => "1 to 65536";
        #[doc = "LoRA: the update is scaled by alpha / rank"]
        alpha: f64 = "X", { |c| 2.0 * c.rank as f64 } as "twice the rank", if |v| v.is_finite() => "a finite number";
        #[doc = "LoRA, adapters: share of input (adapters: output) elements dropped while training"]
        dropout: f64 = "X", { 0.0 }, if |v| (0.0..1.0).contains(v) => "0 to below 1";
        #[doc = "LoRA: scale by alpha / sqrt(rank) (rsLoRA)"]
        rslora: bool = "BOOL", { false };
        #[doc = "LoRA: train the norms of the weights' rows apart from their directions (DoRA)"]
        dora: bool = "BOOL", { false };
        #[doc = "LoRA: biases of the model that are trained too: none, all, or those of adapted layers (lora_only)"]
        bias: Bias = "WHICH", { Bias::None };
        #[doc = "LoRA: adapted layers: all-linear, names divided by commas (q_proj,embed_tokens), or a regular expression"]
        targets: Targets = "LIST", { Targets::AllLinear };
        #[doc = "LoRA: an output head that is tied to the embedding gets what the embedding gets, as one"]
        ensure_weight_tying: bool = "BOOL", { false };
        #[doc = "LoRA and trainable-tokens: ids, divided by commas, of tokens whose rows of the embedding are trained"]
        trainable_tokens: Option<Vec<usize>> = "IDS", { None },
            if |v| v.as_ref().is_none_or(|v| !v.is_empty() && distinct(v)) => "token ids, each once";
        #[doc = "Prompt and prefix tuning: virtual tokens, or keys and values, before each sequence"]
        virtual_tokens: usize = "N", { 20 }, if |v| (1..=4096).contains(v) => "1 to 4096";
        #[doc = "Prompt tuning: the text of --prompt-init text, cut or repeated to fill the virtual tokens"]
        prompt_init_text: Option<String> = "TEXT", { None };
        #[doc = "Prompt tuning: virtual tokens start drawn, as a text's tokens, or as tokens drawn from the vocabulary"]
        prompt_init: PromptInit = "INIT",
            { |c| if c.prompt_init_text.is_some() { PromptInit::Text } else { PromptInit::Random } }
            as "text if there is one, else random";
        #[doc = "Prefix tuning: an encoder of two layers computes the prefixes"]
        prefix_projection: bool = "BOOL", { false };
        #[doc = "Full training: only these parts: layers.3-5, attention, mlp, norm, embed, head, weight, bias, names; / is and"]
        train: Option<Selection> = "LIST", { None };
        #[doc = "Bottleneck adapters: after each part of a layer, after its feed-forward part, or beside that (method adapter)"]
        adapter_kind: AdapterKind = "KIND", { AdapterKind::Pfeiffer };
        #[doc = "Bottleneck adapters: features of a layer to one of the bottleneck"]
        reduction_factor: f64 = "X", { |c| if c.adapter_kind == AdapterKind::Parallel { 2.0 } else { 16.0 } }
            as "16, for parallel 2", if |v| (LEAST_REDUCTION..=f64::MAX).contains(v) => "a finite number, 0.001 or more";
        #[doc = "Bottleneck adapters: the function between the projections: relu, gelu, gelu_new, silu, swish or tanh"]
        non_linearity: String = "NAME",
            { |c| if c.adapter_kind == AdapterKind::Houlsby { "swish".into() } else { "relu".into() } }
            as "relu, for houlsby swish", if |v| activation_named(v).is_some() => ACTIVATIONS;
        #[doc = "Adapter to start from, a folder or a name on the hub; its adapter_config.json sets the method"]
        adapter: Option<PathBuf> = "DIR", { None };
    }
    "Length" {
        #[doc = "Optimizer steps; excludes --epochs"]
        steps: Option<u64> = "N", { None }, if |v| v.is_none_or(|v| (1..=MOST).contains(&v)) => COUNT;
        #[doc = "Passes over the data; excludes --steps"]
        epochs: Option<u64> = "N", { None } as "as many as make 100 steps, from 1 to 10",
            if |v| v.is_none_or(|v| (1..=MOST).contains(&v)) => COUNT;
        #[doc = "Sequences an optimizer step"]
        batch_size: usize = "N", { 8 }, if |v| (1..=MOST as usize).contains(v) => COUNT;
        #[doc = "Longer sequences are cut to this many tokens"]
        max_seq_len: usize = "N", { 1024 }, if |v| (2..=MOST_TOKENS).contains(v) => "2 to 8388608";
        #[doc = "Examples of more than --max-seq-len tokens: cut them, drop them, or stop with an error"]
        too_long: TooLong = "WHAT", { TooLong::Cut };
        #[doc = "Sequence to sequence: longer targets are cut to this many tokens"]
        max_target_len: usize = "N", { |c| c.max_seq_len } as "--max-seq-len",
            if |v| (1..=MOST_TOKENS).contains(v) => "1 to 8388608";
        #[doc = "Question answering: tokens that a window of a long context shares with the one before"]
        doc_stride: usize = "N", { |c| 128.min(c.max_seq_len / 4) } as "128, or a quarter of --max-seq-len if that is less",
            if |v| *v <= MOST_TOKENS => "0 to 8388608";
        #[doc = "Masked LM: share of a text's tokens that are to be predicted"]
        mask_share: f64 = "X", { 0.15 }, if |v| *v > 0.0 && *v <= 1.0 => "above 0, at most 1";
        #[doc = "Question answering: pad sequences to the longest of their batch and let padding into the softmax, as transformers does"]
        qa_padding: bool = "BOOL", { false };
        #[doc = "Question answering: give token types to a model with an adapter, which PEFT's class does not do"]
        qa_token_types: bool = "BOOL", { false };
        #[doc = "Tokens a packed micro-batch: memory grows with it, results do not change but for rounding"]
        micro_tokens: Option<usize> = "T", { None } as "what the data fill best, at most --max-seq-len or 1,024 if that is more",
            if |v| v.is_none_or(|v| (2..=MOST_TOKENS).contains(&v)) => "2 to 8388608";
    }
    "Optimizer" {
        #[doc = "Highest learning rate"]
        lr: Option<f64> = "X", { None }
            as "by the method and the model's width; lora: 2e-4 at 4,096, 9e-4 at 576",
            if |v| v.is_none_or(|v| (0.0..=f64::from(f32::MAX)).contains(&v)) => "0 to 3.4e38";
        #[doc = "How it falls after the warmup: not at all, in a line to 0, or along half a cosine to 0"]
        schedule: Schedule = "SCHEDULE", { Schedule::Cosine };
        #[doc = "Steps in which it rises from 0; below 1, that share of all steps"]
        warmup: f64 = "N", { 0.0 },
            if |v| v.is_finite() && *v >= 0.0 && (*v < 1.0 || v.fract() == 0.0) => "a whole number of steps, or a share below 1";
        #[doc = "Update rule; 8bit: its state takes a byte a value, in tensors of 4096 values or more"]
        optimizer: Optimizer = "NAME", { Optimizer::Adamw };
        #[doc = "Decay of the trained tensors, apart from the gradient (SGD: added to it)"]
        weight_decay: f64 = "X", { 0.0 }, if |v| v.is_finite() && *v >= 0.0 => "a finite number, 0 or more";
        #[doc = "LoRA+: the rate of B (and of biases and other vectors) over that of A; PEFT's loraplus_lr_ratio"]
        loraplus_lr_ratio: Option<f64> = "X", { None },
            if |v| v.is_none_or(|v| v.is_finite() && v > 0.0) => "a finite number above 0";
        #[doc = "LoRA+: highest learning rate of the factors of an embedding"]
        loraplus_lr_embedding: f64 = "X", { 1e-6 }, if |v| v.is_finite() && *v >= 0.0 => "a finite number, 0 or more";
        #[doc = "Gradients are scaled down to this norm; 0 is off"]
        max_grad_norm: f64 = "X", { 1.0 }, if |v| v.is_finite() && *v >= 0.0 => "a finite number, 0 or more";
        #[doc = "AdamW: decay of the first moment; Lion: share of the momentum in a step"]
        adam_beta1: f64 = "X", { 0.9 }, if |v| (0.0..1.0).contains(v) => "0 to below 1";
        #[doc = "AdamW: decay of the second moment; Lion: decay of the momentum"]
        adam_beta2: f64 = "X", { |c| if c.lion() { 0.99 } else { 0.999 } } as "0.999, for lion 0.99",
            if |v| (0.0..1.0).contains(v) => "0 to below 1";
        #[doc = "AdamW: added to the root of the second moment"]
        adam_eps: f64 = "X", { 1e-8 }, if |v| v.is_finite() && *v > 0.0 => "a finite number above 0";
        #[doc = "SGD: share of the momentum that a step keeps; 0 keeps no state"]
        momentum: f64 = "X", { 0.0 }, if |v| v.is_finite() && *v >= 0.0 => "a finite number, 0 or more";
        #[doc = "SGD: share of the gradient that the momentum does not take"]
        dampening: f64 = "X", { 0.0 }, if |v| v.is_finite() => "a finite number";
        #[doc = "SGD: step by the momentum that is to come (Nesterov)"]
        nesterov: bool = "BOOL", { false };
        #[doc = "Adafactor: 1 - step ^ this is the decay of the second moment"]
        adafactor_decay_rate: f64 = "X", { -0.8 }, if |v| v.is_finite() && *v <= 0.0 => "a finite number, 0 or less";
        #[doc = "Adafactor: added to the square of the gradient"]
        adafactor_eps: f64 = "X", { 1e-30 }, if |v| v.is_finite() && *v > 0.0 => "a finite number above 0";
        #[doc = "Adafactor: largest root mean square of a tensor's update, before the rate"]
        adafactor_clip: f64 = "X", { 1.0 }, if |v| v.is_finite() && *v > 0.0 => "a finite number above 0";
    }
    "Memory" {
        #[doc = "Bytes to stay within: on the CPU those of the whole process, else the device's; chooses from what follows"]
        memory: Option<Bytes> = "BYTES", { None };
        #[doc = "What layers compute again instead of keeping it (auto: what is cheap, or what --memory needs); same results"]
        recompute: Recompute = "LEVEL", { Recompute::Auto };
        #[doc = "Frozen weights stay in files and are fetched a block ahead of use; results do not change"]
        stream: Toggle = "WHEN", { Toggle::Auto };
        #[doc = "The optimizer's state is in a file and is updated in pages; results do not change"]
        page_optimizer: Toggle = "WHEN", { Toggle::Auto };
        #[doc = "What enters a layer waits in a file for the backward pass; results do not change"]
        offload: Toggle = "WHEN", { Toggle::Auto };
        #[doc = "CUDA: bytes of host memory for what is off the device, instead of files: activations, optimizer state, weights"]
        host_memory: Option<Bytes> = "BYTES", { None };
    }
    "Run" {
        #[doc = "Seed of everything random; the same seed gives the same bits"]
        seed: u64 = "N", { 42 }, if |v| *v <= i64::MAX as u64 => "0 to 9223372036854775807";
        #[doc = "Draw the sequences of each epoch in a new order"]
        shuffle: bool = "BOOL", { true };
        #[doc = "How frozen weights that are not quantized are held, and activations on the CPU and CUDA; sums are always f32"]
        dtype: Dtype = "DTYPE", { Dtype::Auto } as "auto: bf16 on CUDA, else f32";
        #[doc = "auto, cpu, cuda, cuda:N, wgpu, wgpu:N (the N-th of `trimtab devices`), or null (plans, computes nothing)"]
        device: Device = "DEVICE", { Device::Auto };
        #[doc = "Time GPU kernels that give the same bits, once, and take the fastest: off, auto (kept in the cache), or a file"]
        tune: Tune = "off|auto|FILE", { Tune::Off };
        #[doc = "Stop after so many steps in a row whose loss or gradient is not finite; such a step changes nothing"]
        max_skips: u64 = "N", { 10 }, if |v| (1..=MOST).contains(v) => COUNT;
        #[doc = "Full training: how the trained weights are written"]
        save_dtype: SaveDtype = "DTYPE", { SaveDtype::F32 };
        #[doc = "Time each op of the steps after the first; a table at the end. On a GPU this slows them down"]
        profile: bool = "BOOL", { false };
        #[doc = "Write event files for TensorBoard into the run folder, beside metrics.jsonl"]
        log_tensorboard: bool = "BOOL", { false };
    }
}

/// What was typed as flags: field names and texts, in any order, the last of a name counting.
#[derive(Clone, Debug, Default)]
pub struct Flags(pub Vec<(&'static str, String)>);

impl Flags {
    /// For callers without a command line. An unknown name is an error.
    pub fn of(pairs: &[(&str, &str)]) -> Result<Flags> {
        let one = |(name, text): &(&str, &str)| Ok((find(name)?.name, (*text).to_owned()));
        pairs.iter().map(one).collect::<Result<_>>().map(Flags)
    }

    /// All texts of a name, as an array of TOML.
    fn list(&self, name: &str) -> Value {
        let texts = self.0.iter().filter(|(typed, _)| *typed == name);
        Value::Array(texts.map(|(_, text)| Value::from(text.as_str())).collect())
    }
}

fn find(name: &str) -> Result<&'static Field> {
    FIELDS.iter().find(|f| f.is_called(name)).ok_or_else(|| Error::config(name, "an unknown setting", near(name)))
}

fn near(name: &str) -> String {
    match meaning(name) {
        Some((ours, more)) if ours.is_empty() => return format!("no such setting: {more}"),
        Some((ours, "")) => return format!("`{ours}`, which is what {name} is called here"),
        Some((ours, more)) => return format!("`{ours}`, which is what {name} is called here: {more}"),
        None => {}
    }
    match nearest(&name.replace('-', "_"), FIELDS.iter().map(|f| f.name)) {
        Some(near) => format!("a setting; the nearest is `{}`", near.replace('_', "-")),
        None => "a setting (`trimtab train --help` lists them)".into(),
    }
}

/// The defaults, with no model, data or run folder.
impl Default for RunConfig {
    fn default() -> Self {
        let mut config = RunConfig::blank();
        for field in FIELDS {
            (field.set_default)(&mut config);
        }
        config
    }
}

impl RunConfig {
    /// Puts defaults, the file and the flags together, and checks the result. If an adapter is given, its
    /// `adapter_config.json` is read and sets what is LoRA's own.
    pub fn resolve(file: Option<&Path>, flags: &Flags) -> Result<RunConfig> {
        let (text, path) = match file {
            Some(path) => {
                const TOML: &str = "a TOML file: a line is KEY = VALUE, as --show-config prints them";
                paths::need(path, TOML, false)?;
                if let Some(kind) =
                    path.extension().and_then(|e| e.to_str()).filter(|e| ["yaml", "yml", "json"].contains(e))
                {
                    return Err(Error::file(path, format!("a .{kind} file"), TOML));
                }
                (std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?, path)
            }
            None => (String::new(), Path::new("")),
        };
        Self::resolve_text(&text, path, flags)
    }

    /// The same with the text of the file; `path` is where it is said to come from.
    pub fn resolve_text(text: &str, path: &Path, flags: &Flags) -> Result<RunConfig> {
        let table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| Error::file(path, e.to_string().trim_end(), "TOML"))?;
        let mut in_file: Vec<Option<&Value>> = vec![None; FIELDS.len()];
        for (key, value) in &table {
            let Some(i) = FIELDS.iter().position(|f| f.is_called(key)) else {
                if value.is_table() {
                    return Err(Error::file(path, format!("a table [{key}]"), "the settings alone, without tables"));
                }
                return Err(Error::file(path, format!("unknown key `{key}`"), near(key)));
            };
            if in_file[i].replace(value).is_some() {
                return Err(Error::file(path, format!("`{key}` twice, with hyphens and underscores"), "each key once"));
            }
        }
        let typed = |f: &Field| flags.0.iter().rev().find(|(name, _)| *name == f.name).map(|(_, text)| text);
        // Of steps and epochs the one that was asked for nearer counts: a flag puts the file's other one out.
        let replaced = |f: &Field| {
            let other = match f.name {
                "steps" => "epochs",
                "epochs" => "steps",
                _ => return false,
            };
            flags.0.iter().any(|(name, _)| *name == other)
        };
        let mut config = RunConfig::blank();
        for (i, field) in FIELDS.iter().enumerate() {
            if let Some(text) = typed(field) {
                match field.is_list() {
                    true => (field.set_toml)(&mut config, &flags.list(field.name)),
                    false => (field.set_text)(&mut config, text),
                }
                .map_err(|e| Error::config(format!("--{}", field.key()), format!("{text:?}"), e))?;
                config.origins[i] = Origin::Flag;
            } else if let Some(value) = in_file[i].filter(|_| !replaced(field)) {
                (field.set_toml)(&mut config, value)
                    .map_err(|e| Error::config(format!("{}: {}", path.display(), field.key()), toml_text(value), e))?;
                config.origins[i] = Origin::File(path.into());
            } else {
                (field.set_default)(&mut config);
            }
        }
        if let Some(named) = config.adapter.clone() {
            let dir = hub::local(&named, hub::Kind::Adapter)?;
            config.adapter = Some(dir.clone());
            config.follow_method(&dir)?;
            if config.method == Method::Lora {
                config.follow(&dir, &files::read_config(&dir)?)?;
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Where the value of the setting `name` (with underscores) came from; none if the table has no such row.
    pub fn origin(&self, name: &str) -> Option<&Origin> {
        FIELDS.iter().position(|f| f.name == name).map(|i| &self.origins[i])
    }

    fn index(name: &str) -> usize {
        FIELDS.iter().position(|f| f.name == name).expect("a name of the table")
    }

    /// Takes over the method of the adapter at `dir`.
    fn follow_method(&mut self, dir: &Path) -> Result<()> {
        let name = crate::peft::def_of(dir)?.name;
        let theirs = Method::from_text(name).map_err(|e| Error::config("adapter", name, e))?;
        let i = Self::index("method");
        if !self.origins[i].given() {
            self.origins[i] = Origin::Adapter(dir.into());
        } else if self.method != theirs && self.method != Method::Full {
            let expected = format!("{name} as in {}, or no --adapter", dir.display());
            return Err(Error::config("method", self.method.name(), expected));
        } else if self.method == Method::Full {
            return Ok(());
        }
        self.method = theirs;
        Ok(())
    }

    /// Takes over what the adapter at `dir` fixes. A value that was asked for and differs is an error, except the
    /// dropout, which is not part of the adapter's meaning.
    fn follow(&mut self, dir: &Path, adapter: &AdapterConfig) -> Result<()> {
        let mut theirs = self.clone();
        theirs.rank = adapter.rank;
        theirs.alpha = adapter.alpha;
        theirs.rslora = adapter.rslora;
        theirs.dora = adapter.dora;
        theirs.bias = adapter.bias;
        theirs.ensure_weight_tying = adapter.ensure_weight_tying;
        theirs.targets = adapter.targets.clone();
        theirs.trainable_tokens = match &adapter.tokens {
            Some(Tokens::Embedding(ids)) => Some(ids.clone()),
            // Of several tables: more than the setting can say, so it stays with the adapter.
            Some(Tokens::Modules(_)) | None => None,
        };
        theirs.dropout = adapter.dropout;
        for name in
            ["rank", "alpha", "rslora", "dora", "bias", "targets", "ensure_weight_tying", "trainable_tokens", "dropout"]
        {
            let (i, field) = (Self::index(name), find(name)?);
            let (ours, fixed) = ((field.get)(self), (field.get)(&theirs));
            match self.origins[i].given() {
                true if name == "dropout" => theirs.dropout = self.dropout,
                true if ours != fixed => {
                    let text = |v: Option<Value>| v.map_or("nothing".into(), |v| toml_text(&v));
                    let expected = format!("{} as in {}, or no --adapter", text(fixed), dir.display());
                    return Err(Error::config(name, format!("{} ({})", text(ours), self.origins[i]), expected));
                }
                true => {}
                false => theirs.origins[i] = Origin::Adapter(dir.into()),
            }
        }
        *self = theirs;
        Ok(())
    }

    /// Checks each value, and those that depend on one another.
    pub fn check(&self) -> Result<()> {
        for field in FIELDS {
            (field.check)(self).map_err(|expected| {
                let found = (field.get)(self).map_or("nothing".into(), |v| toml_text(&v));
                Error::config(field.key(), found, expected)
            })?;
        }
        let clash = |key: &str, found: &str, expected: &str| Err(Error::config(key, found, expected));
        if self.steps.is_some() && self.epochs.is_some() {
            return clash("steps", "steps and epochs", "one of the two");
        }
        if let Some(tokens) = self.micro_tokens.filter(|tokens| *tokens < self.max_seq_len) {
            return Err(Error::config(
                "micro-tokens",
                format!("{tokens} with max-seq-len {}", self.max_seq_len),
                format!("{} or more (or a smaller max-seq-len): a sequence is not split", self.max_seq_len),
            ));
        }
        uses::check(self)?;
        if self.method == Method::Full && self.quantize != Quantize::None {
            return clash("quantize", "nf4 with method full", "none: weights that are trained are kept as floats");
        }
        match (self.prompt_init, &self.prompt_init_text) {
            (PromptInit::Text, None) => return clash("prompt-init", "text and no text", "--prompt-init-text"),
            (PromptInit::Random | PromptInit::SampleVocab, Some(_)) => {
                return clash("prompt-init-text", "a text with another start", "prompt-init text, or no text");
            }
            _ => {}
        }
        if self.method != Method::Full && self.train.is_some() {
            return clash("train", "a list without method full", "method full, or no list (methods have targets)");
        }
        if self.method == Method::Full && self.adapter.is_some() {
            return clash("adapter", "an adapter with method full", "method lora, or no adapter");
        }
        if self.nesterov && (self.momentum <= 0.0 || self.dampening != 0.0) {
            return clash("nesterov", "true without momentum, or with dampening", "a momentum, and dampening 0");
        }
        if self.loraplus_lr_ratio.is_some() && self.method != Method::Lora {
            return clash("loraplus-lr-ratio", "a number with another method than lora", "method lora");
        }
        if self.loraplus_lr_ratio.is_some() && self.lr == Some(0.0) {
            return clash("loraplus-lr-ratio", "a number with lr 0", "a rate above 0, which others are relative to");
        }
        if self.eval_every.is_some() && self.eval_data.is_none() && self.split.is_none() {
            return clash("eval-every", "a number without eval-data", "eval-data or split, or no eval-every");
        }
        if self.split.is_some() && self.eval_data.is_some() {
            return clash("split", "a share with eval-data", "one of the two");
        }
        if self.patience.is_some() && self.eval_every.is_none() {
            return clash("patience", "a number without eval-every", "eval-every, or no patience");
        }
        if self.keep_best && self.eval_data.is_none() && self.split.is_none() {
            return clash("keep-best", "true without eval-data", "eval-data, or no keep-best");
        }
        if self.double_quant && self.quantize != Quantize::Nf4 {
            return clash("double-quant", "true with quantize none", "quantize = \"nf4\"");
        }
        Ok(())
    }

    /// The path of a setting that the command cannot do without.
    pub fn need(&self, name: &'static str) -> Result<&Path> {
        let path = match name {
            "model" => &self.model,
            "adapter" => &self.adapter,
            _ => &self.out,
        };
        path.as_deref().ok_or_else(|| Error::config(format!("--{name}"), "nothing", "a path (or a key in --config)"))
    }

    /// The data to learn from, which the command cannot do without.
    pub fn need_data(&self) -> Result<&Sources> {
        self.data.as_ref().ok_or_else(|| Error::config("--data", "nothing", "a path (or a key in --config)"))
    }

    /// The steps of a run in which the learning rate rises.
    pub fn warmup_steps(&self, steps: u64) -> u64 {
        match self.warmup < 1.0 {
            true => (self.warmup * steps as f64).ceil() as u64,
            false => self.warmup as u64,
        }
    }

    /// (name that a task reads, name in the data).
    pub fn columns(&self) -> &[(String, String)] {
        self.columns.as_ref().map_or(&[], |columns| &columns.0)
    }

    fn lion(&self) -> bool {
        matches!(self.optimizer, Optimizer::Lion | Optimizer::Lion8bit)
    }

    /// The same settings with those settled that depend on the model, which has `hidden` features: the learning rate, by the
    /// method's [`Rate`](crate::peft::Rate).
    pub fn settled(&self, hidden: usize) -> Result<RunConfig> {
        let rate = || Ok::<f64, Error>(peft::named(self.method.name())?.rate.at(hidden));
        Ok(RunConfig { lr: Some(self.lr.map_or_else(rate, Ok)?), ..self.clone() })
    }

    /// The same settings with those settled that depend on the device, which has `caps`. Of `dtype auto` there is bf16 on CUDA,
    /// whose tensor cores multiply 16 bits; cards that compute in f16 alone keep activations so. The CPU's gain depends on the
    /// processor, and wgpu's, which multiplies in f32, is one of memory: there it stays a choice.
    pub fn on(&self, caps: &Caps) -> RunConfig {
        let mut config = self.clone();
        if self.dtype == Dtype::Auto {
            let faster = caps.target == Target::Cuda && caps.compute_dtype.is_some();
            config.dtype = if faster { Dtype::Bf16 } else { Dtype::F32 };
            config.origins[Self::index("dtype")] = Origin::Device(caps.device.clone());
        }
        config
    }

    /// The optimizer with its constants.
    pub fn optimizer(&self) -> crate::train::optimizer::Optimizer {
        let bits = match self.optimizer {
            Optimizer::Adamw8bit | Optimizer::Lion8bit => Bits::B8,
            _ => Bits::B32,
        };
        let (beta1, beta2) = (self.adam_beta1, self.adam_beta2);
        let rule = match self.optimizer {
            Optimizer::Adamw | Optimizer::Adamw8bit => Rule::AdamW { beta1, beta2, eps: self.adam_eps, bits },
            Optimizer::Lion | Optimizer::Lion8bit => Rule::Lion { beta1, beta2, bits },
            Optimizer::Sgd => Rule::Sgd { momentum: self.momentum, dampening: self.dampening, nesterov: self.nesterov },
            Optimizer::Adafactor => Rule::Adafactor {
                decay_rate: self.adafactor_decay_rate,
                eps: self.adafactor_eps,
                clip_threshold: self.adafactor_clip,
            },
        };
        let (weight_decay, max_grad_norm) = (self.weight_decay, self.max_grad_norm);
        let embedding = self.loraplus_lr_embedding / self.lr.unwrap_or(peft::lora::DEF.rate.at_4096);
        let loraplus = self.loraplus_lr_ratio.map(|ratio| LoraPlus { ratio, embedding });
        crate::train::optimizer::Optimizer { rule, weight_decay, max_grad_norm, loraplus }
    }

    /// The format that frozen weights of linear layers are quantized to, if any.
    pub fn quantized(&self) -> Option<DType> {
        match (self.quantize, self.double_quant) {
            (Quantize::None, _) => None,
            (Quantize::Nf4, false) => Some(DType::Nf4),
            (Quantize::Nf4, true) => Some(DType::Nf4Dq),
        }
    }

    /// The adapter to train, if the method is LoRA: that of the folder to start from, or a new one.
    pub fn adapter_config(&self) -> Result<Option<AdapterConfig>> {
        if self.method != Method::Lora {
            return Ok(None);
        }
        let mut adapter = match &self.adapter {
            Some(dir) => files::read_config(dir)?,
            None => {
                let mut new = AdapterConfig::lora(self.rank, self.alpha, self.targets.clone());
                new.tokens = self.trainable_tokens.clone().map(Tokens::Embedding);
                new
            }
        };
        adapter.rslora = self.rslora;
        adapter.dora = self.dora;
        adapter.bias = self.bias;
        adapter.ensure_weight_tying = self.ensure_weight_tying;
        adapter.dropout = self.dropout;
        let (name, revision) = self.base_name();
        adapter.base_model = name.or(adapter.base_model);
        adapter.revision = revision.or(adapter.revision);
        Ok(Some(adapter))
    }

    /// The base model as PEFT names it, which has the revision beside the name.
    pub fn base_name(&self) -> (Option<String>, Option<String>) {
        let Some(model) = &self.model else { return (None, None) };
        match hub::name(model) {
            Some(name) if name.revision.is_some() => (Some(name.without_revision()), name.revision),
            _ => (Some(model.display().to_string()), None),
        }
    }

    /// The bottleneck adapters of the settings.
    pub fn bottleneck(&self) -> Result<Bottleneck> {
        let (reduction, activation) = (Some(self.reduction_factor), Some(self.non_linearity.as_str()));
        Bottleneck::new(self.adapter_kind.into(), reduction, activation, self.dropout)
    }

    /// The settings as TOML, each with its origin; [`RunConfig::resolve`] reads it back to the same settings.
    pub fn to_toml(&self) -> String {
        let mut text = format!("# Settings of a run of trimtab {}.\n", env!("CARGO_PKG_VERSION"));
        text += "# `trimtab train --config FILE` repeats it; flags override the file.\n";
        let mut group = "";
        for (field, origin) in FIELDS.iter().zip(&self.origins) {
            if group != field.group {
                group = field.group;
                text += &format!("\n# {group}\n");
            }
            let origin = match origin {
                Origin::Flag => format!("flag --{}", field.key()),
                other => other.to_string().replace(['\n', '\r'], " "),
            };
            let line = match (field.get)(self) {
                Some(value) => format!("{} = {}", field.key(), toml_text(&value)),
                None => format!("# {} is not set", field.key()),
            };
            text += &format!("{line:<40} # {origin}\n");
        }
        text
    }

    /// The settings as JSON, for `metrics.jsonl`. What is not set is null.
    pub fn to_json(&self) -> serde_json::Value {
        let one = |f: &Field| (f.name.to_owned(), (f.get)(self).map_or(serde_json::Value::Null, json_of));
        serde_json::Value::Object(FIELDS.iter().map(one).collect())
    }
}

fn json_of(value: Value) -> serde_json::Value {
    match value {
        Value::String(s) => s.into(),
        Value::Integer(i) => i.into(),
        Value::Float(x) => x.into(),
        Value::Boolean(b) => b.into(),
        Value::Array(items) => items.into_iter().map(json_of).collect(),
        other => other.to_string().into(),
    }
}

/// A value as TOML writes it; small numbers with an exponent, as people do.
fn toml_text(value: &Value) -> String {
    match value {
        Value::Float(x) if x.is_finite() && *x != 0.0 && !(1e-2..1e16).contains(&x.abs()) => format!("{x:e}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
