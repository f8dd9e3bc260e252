//! The types of settings: how each is read from a flag's text and from TOML, and written.

use std::fmt;
use std::path::PathBuf;

use toml::Value;

use crate::data::formats::{self, FormatDef};
pub use crate::data::reader::TooLong;
pub use crate::device::Device;
use crate::dtype::DType;
use crate::memory::Toggle;
use crate::peft::bottleneck::Kind;
use crate::peft::{Bias, Selection, Targets};
use crate::session::Tune;
use crate::tasks::{self, TaskDef};
pub use crate::train::schedule::Schedule;
use crate::units;

/// A type a setting may have. Errors say what was expected.
pub trait Setting: Sized {
    /// The words it may be, if it is one of a few.
    const CHOICES: &'static [&'static str] = &[];
    /// Whether its flag may be given without a value, which then is `true`.
    const IS_SWITCH: bool = false;
    /// Any value; it is overwritten before it is seen.
    fn blank() -> Self;
    /// Reads the value of a flag. An error says in words what was expected, not what was found.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Reads the value of a key in the file; errors as in `from_text`.
    fn from_toml(value: &Value) -> Result<Self, String>;
    /// None if it is not set.
    fn to_toml(&self) -> Option<Value>;
}

impl Setting for bool {
    const CHOICES: &'static [&'static str] = &["true", "false"];
    const IS_SWITCH: bool = true;
    fn blank() -> Self {
        false
    }
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "true or false".into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| "true or false".into())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

const WHOLE: &str = "a whole number, 0 to 9223372036854775807";

macro_rules! whole {
    ($($ty:ty)+) => { $(
        impl Setting for $ty {
            fn blank() -> Self {
                0
            }
            fn from_text(text: &str) -> Result<Self, String> {
                // TOML's integers end there.
                let fits = |n: &Self| i64::try_from(*n).is_ok();
                text.parse().ok().filter(fits).ok_or_else(|| WHOLE.into())
            }
            fn from_toml(value: &Value) -> Result<Self, String> {
                value.as_integer().and_then(|i| i.try_into().ok()).ok_or_else(|| WHOLE.into())
            }
            fn to_toml(&self) -> Option<Value> {
                // TOML's integers end at i64::MAX; the table's rows keep larger ones out.
                Some(Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX)))
            }
        }
    )+ };
}
whole!(u64 usize);

impl Setting for f64 {
    fn blank() -> Self {
        0.0
    }
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "a number".into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_float().or(value.as_integer().map(|i| i as f64)).ok_or_else(|| "a number".into())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl Setting for String {
    fn blank() -> Self {
        String::new()
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_str().map(String::from).ok_or_else(|| "text".into())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}

impl Setting for PathBuf {
    fn blank() -> Self {
        PathBuf::new()
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Err("a path".into()),
            false => Ok(text.into()),
        }
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string_lossy().into_owned()))
    }
}

impl<T: Setting> Setting for Option<T> {
    const CHOICES: &'static [&'static str] = T::CHOICES;
    fn blank() -> Self {
        None
    }
    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        T::from_toml(value).map(Some)
    }
    fn to_toml(&self) -> Option<Value> {
        self.as_ref().and_then(T::to_toml)
    }
}

const IDS: &str = "whole numbers divided by commas (in a file: an array of them)";

impl Setting for Vec<usize> {
    fn blank() -> Self {
        Vec::new()
    }
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(|id| id.trim().parse()).collect::<Result<_, _>>().map_err(|_| IDS.into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        let one = |v: &Value| v.as_integer().and_then(|i| i.try_into().ok());
        value.as_array().and_then(|a| a.iter().map(one).collect()).ok_or_else(|| IDS.into())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::Array(self.iter().map(|&id| Value::Integer(id as i64)).collect()))
    }
}

impl Setting for Targets {
    fn blank() -> Self {
        Targets::AllLinear
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Targets::parse(text)
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        let names: Option<Vec<String>> = match value {
            Value::String(text) => return Targets::parse(text),
            Value::Array(items) => items.iter().map(|i| i.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let names = names.filter(|n| !n.is_empty());
        names.map(Targets::List).ok_or_else(|| "\"all-linear\", an array of names, or a regular expression".into())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(match self {
            Targets::List(names) => Value::Array(names.iter().cloned().map(Value::String).collect()),
            other => Value::String(other.to_string()),
        })
    }
}

impl Setting for Selection {
    fn blank() -> Self {
        Selection::default()
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Selection::parse(text.split(','))
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        match value {
            Value::Array(items) => Selection::parse(items.iter().map(|i| i.as_str().unwrap_or_default())),
            other => Self::from_text(other.as_str().unwrap_or_default()),
        }
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::Array(self.texts().map(|text| Value::String(text.into())).collect()))
    }
}

impl Setting for Device {
    fn blank() -> Self {
        Device::Auto
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(None)),
            "wgpu" => Some(Device::Wgpu(None)),
            "null" => Some(Device::Null),
            _ => {
                let numbered = |prefix| text.strip_prefix(prefix).and_then(|n| n.parse().ok());
                let cuda = numbered("cuda:").map(|n| Device::Cuda(Some(n)));
                cuda.or_else(|| numbered("wgpu:").map(|n| Device::Wgpu(Some(n))))
            }
        }
        .ok_or_else(|| "auto, cpu, cuda, cuda:N, wgpu, wgpu:N or null".into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Setting for Tune {
    fn blank() -> Self {
        Tune::Off
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("off, auto or the path of a file".into()),
            "off" => Ok(Tune::Off),
            "auto" => Ok(Tune::Auto),
            path => Ok(Tune::File(path.into())),
        }
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(match self {
            Tune::Off => "off".into(),
            Tune::Auto => "auto".into(),
            Tune::File(path) => Value::String(path.to_string_lossy().into_owned()),
        })
    }
}

/// A task, by its name in the table.
#[derive(Clone, Copy)]
pub struct Task(pub &'static TaskDef);

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Setting for Task {
    fn blank() -> Self {
        Task(tasks::TASKS[0])
    }
    fn from_text(text: &str) -> Result<Self, String> {
        let names = || tasks::TASKS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
        tasks::named(text).map(Task).map_err(|_| format!("one of {}", names()))
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.0.name.into()))
    }
}

/// A format of data, by its name in the table.
#[derive(Clone, Copy)]
pub struct Format(pub &'static FormatDef);

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Setting for Format {
    fn blank() -> Self {
        Format(formats::FORMATS[0])
    }
    fn from_text(text: &str) -> Result<Self, String> {
        let names = || formats::FORMATS.map(|format| format.name).join(", ");
        formats::named(text).map(Format).ok_or_else(|| format!("one of {}", names()))
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.0.name.into()))
    }
}

/// Files, folders and patterns of data, each perhaps with a weight, as they were typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(pub Vec<String>);

impl Setting for Sources {
    fn blank() -> Self {
        Sources(Vec::new())
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Err("a path".into()),
            false => Ok(Sources(vec![text.into()])),
        }
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        let Value::Array(items) = value else { return Self::from_text(value.as_str().unwrap_or_default()) };
        let texts = items.iter().map(|item| item.as_str().filter(|text| !text.is_empty()).map(String::from));
        let texts: Option<Vec<String>> = texts.collect();
        texts.filter(|texts| !texts.is_empty()).map(Sources).ok_or_else(|| "a path, or an array of paths".into())
    }
    fn to_toml(&self) -> Option<Value> {
        Some(match &self.0[..] {
            [one] => Value::String(one.clone()),
            more => Value::Array(more.iter().cloned().map(Value::String).collect()),
        })
    }
}

/// Names that a task reads, each with the column of the data that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(pub Vec<(String, String)>);

impl Setting for Columns {
    fn blank() -> Self {
        Columns(Vec::new())
    }
    fn from_text(text: &str) -> Result<Self, String> {
        let pair = |pair: &str| {
            let (name, column) = pair.split_once('=')?;
            let (name, column) = (name.trim(), column.trim());
            (!name.is_empty() && !column.is_empty()).then(|| (name.to_owned(), column.to_owned()))
        };
        let pairs: Option<Vec<_>> = text.split(',').map(pair).collect();
        pairs.map(Columns).ok_or_else(|| "pairs such as text=review,label=stars".into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }
    fn to_toml(&self) -> Option<Value> {
        let pairs: Vec<String> = self.0.iter().map(|(name, column)| format!("{name}={column}")).collect();
        Some(Value::String(pairs.join(",")))
    }
}

/// Makes a type with `ALL` and `name` a setting that is one of some words.
macro_rules! word_setting {
    ($name:ident { $( $word:literal ),+ }) => {
        impl Setting for $name {
            const CHOICES: &'static [&'static str] = &[ $( $word ),+ ];
            fn blank() -> Self {
                Self::ALL[0]
            }
            fn from_text(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| Self::CHOICES.join(" or "))
            }
            fn from_toml(value: &Value) -> Result<Self, String> {
                Self::from_text(value.as_str().unwrap_or_default())
            }
            fn to_toml(&self) -> Option<Value> {
                Some(Value::String(self.name().into()))
            }
        }
    };
}

/// Makes an enum of words.
macro_rules! words {
    ($( #[doc = $doc:literal] $name:ident { $( #[doc = $help:literal] $variant:ident = $word:literal ),+ } )+) => { $(
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( #[doc = $help] $variant ),+ }

        impl $name {
            /// Every one, in the order in which help lists them.
            pub const ALL: &'static [$name] = &[ $( $name::$variant ),+ ];

            /// The word on the command line and in files.
            pub fn name(self) -> &'static str {
                match self { $( $name::$variant => $word ),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        word_setting!($name { $( $word ),+ });
    )+ };
}

const BYTES: &str = "bytes, such as 6GiB (or 6G), 700MiB, 24GB (10^9) or 1048576";

/// A number of bytes: 6GiB, 700MiB, 24GB or 1048576.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Setting for Bytes {
    fn blank() -> Self {
        Bytes(0)
    }
    fn from_text(text: &str) -> Result<Self, String> {
        units::bytes(text).map(Bytes).ok_or_else(|| BYTES.into())
    }
    fn from_toml(value: &Value) -> Result<Self, String> {
        match value {
            Value::Integer(i) => Self::from_text(&i.to_string()),
            other => Self::from_text(other.as_str().unwrap_or_default()),
        }
    }
    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(units::text(self.0)))
    }
}

words! {
    #[doc = "How much of the forward pass is computed again in the backward pass instead of kept."]
    Recompute {
        /// What is cheap, or with `--memory` as much as the limit needs.
        Auto = "auto",
        /// Nothing: all that the backward pass reads is kept.
        None = "none",
        /// What is cheap to compute from values that are kept anyway.
        Selective = "selective",
        /// Everything but the inputs of a block.
        All = "all"
    }
    #[doc = "What of conversations and prompts is trained."]
    TrainOn {
        /// The assistant's turns, and completions.
        Assistant = "assistant",
        /// Every token.
        All = "all"
    }
    #[doc = "Where the base weights come from."]
    Init {
        /// The model's files.
        Pretrained = "pretrained",
        /// The seed: the folder needs only config.json.
        Random = "random"
    }
    #[doc = "What is trained."]
    Method {
        /// Low-rank factors beside frozen weights.
        Lora = "lora",
        /// The model's own weights, all or some.
        Full = "full",
        /// Vectors that scale activations.
        Ia3 = "ia3",
        /// The model's biases.
        Bitfit = "bitfit",
        /// Keys and values before each sequence, in every layer.
        Prefix = "prefix",
        /// Embeddings of virtual tokens before each sequence.
        Prompt = "prompt",
        /// Bottleneck adapters in or beside the layers.
        Adapter = "adapter",
        /// Rows of the embedding, of chosen tokens.
        TrainableTokens = "trainable-tokens"
    }
    #[doc = "How virtual tokens start."]
    PromptInit {
        /// Drawn from a standard normal.
        Random = "random",
        /// As the tokens of a text, over and over.
        Text = "text",
        /// As tokens drawn from the vocabulary.
        SampleVocab = "sample-vocab"
    }
    #[doc = "Where bottleneck adapters are."]
    AdapterKind {
        /// After attention and after the feed-forward part.
        Houlsby = "houlsby",
        /// After the feed-forward part.
        Pfeiffer = "pfeiffer",
        /// Beside the feed-forward part.
        Parallel = "parallel"
    }
    #[doc = "How frozen weights are stored."]
    Quantize {
        /// As `dtype` says.
        None = "none",
        /// 4-bit NormalFloat, in linear layers.
        Nf4 = "nf4"
    }
    #[doc = "The update rule."]
    Optimizer {
        /// AdamW.
        Adamw = "adamw",
        /// AdamW; its state takes a byte a value in tensors of 4096 values or more.
        Adamw8bit = "adamw8bit",
        /// Lion.
        Lion = "lion",
        /// Lion, with the state of `adamw8bit`.
        Lion8bit = "lion8bit",
        /// SGD.
        Sgd = "sgd",
        /// Adafactor.
        Adafactor = "adafactor"
    }
    #[doc = "Storage of frozen weights that are not quantized, and of activations, which are f16 where a device has no bf16."]
    Dtype {
        /// 16 bits on CUDA, else f32.
        Auto = "auto",
        /// 4 bytes a value.
        F32 = "f32",
        /// 2 bytes a value, with the exponent of f32.
        Bf16 = "bf16"
    }
    #[doc = "Storage of the weights that full training writes."]
    SaveDtype {
        /// 4 bytes a value.
        F32 = "f32",
        /// 2 bytes a value, with the exponent of f32.
        Bf16 = "bf16",
        /// 2 bytes a value, IEEE half precision.
        F16 = "f16"
    }
}

word_setting!(TooLong { "cut", "drop", "error" });
word_setting!(Bias { "none", "all", "lora_only" });
word_setting!(Toggle { "auto", "on", "off" });
word_setting!(Schedule { "constant", "linear", "cosine" });

impl From<AdapterKind> for Kind {
    fn from(kind: AdapterKind) -> Kind {
        match kind {
            AdapterKind::Houlsby => Kind::Houlsby,
            AdapterKind::Pfeiffer => Kind::Pfeiffer,
            AdapterKind::Parallel => Kind::Parallel,
        }
    }
}

/// [`Dtype::Auto`] is f32: [`super::RunConfig::on`] has put another in its place where it is not.
impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> DType {
        match dtype {
            Dtype::Auto | Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
        }
    }
}

impl From<SaveDtype> for DType {
    fn from(dtype: SaveDtype) -> DType {
        match dtype {
            SaveDtype::F32 => DType::F32,
            SaveDtype::Bf16 => DType::BF16,
            SaveDtype::F16 => DType::F16,
        }
    }
}
