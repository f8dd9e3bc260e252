//! `adapter_config.json` of a LoRA adapter: read, checked, written, and applied to module names.
//!
//! The rules are those of PEFT 0.21.2 (`tuners/lora/config.py`, `tuners/tuners_utils.py`
//! `check_target_module_exists`, `utils/other.py` `get_pattern_key`).

use std::fmt;
use std::sync::OnceLock;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::bias::Bias;
use super::folder;
use super::tokens::Tokens;
use crate::error::{Error, Result};
use crate::nearest::nearest;
use crate::nn::{Role, Taken};

/// The last names of the layers that PEFT adapts where `target_modules` is null, of the families here
/// (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`). No family has another's names.
const PEFT_TARGETS: [&str; 7] = ["q_proj", "v_proj", "c_attn", "query", "value", "q", "v"];

/// Larger ranks are taken for a damaged file.
pub(super) const MAX_RANK: usize = 65_536;

/// Which modules of a model something applies to.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Every linear layer but the output head.
    AllLinear,
    /// Names: a module is meant if its path is one of them or ends in a dot and one of them.
    List(Vec<String>),
    /// A regular expression that must match a whole module path.
    Regex(String),
}

impl Targets {
    /// As typed: `all-linear`, `q_proj,v_proj`, or a regular expression (whatever holds other characters).
    pub fn parse(text: &str) -> Result<Targets, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text == "all-linear" {
            return Ok(Targets::AllLinear);
        }
        if !text.chars().all(|c| plain(c) || c == ',' || c == ' ') {
            return regex_of(text, |t| format!("^(?:{t})$")).map(|_| Targets::Regex(text.into()));
        }
        let names: Vec<String> = text.split(',').map(|n| n.trim().to_owned()).collect();
        match names.iter().any(|n| n.is_empty() || n.contains(' ')) {
            true => Err("all-linear, names divided by commas, or a regular expression".into()),
            false => Ok(Targets::List(names)),
        }
    }

    /// What PEFT adapts where the file says nothing.
    fn of_peft() -> Targets {
        Targets::List(PEFT_TARGETS.map(str::to_owned).to_vec())
    }

    /// The names of the list, if it is one.
    pub fn names(&self) -> &[String] {
        match self {
            Targets::List(names) => names,
            _ => &[],
        }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Targets::AllLinear => f.write_str("all-linear"),
            Targets::List(names) => f.write_str(&names.join(",")),
            Targets::Regex(text) => f.write_str(text),
        }
    }
}

/// What LoRA does at one module: y += scale · (dropout(x) Aᵀ) Bᵀ, A `[rank, in]`, B `[out, rank]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSpec {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// What the scale is made from.
    pub alpha: f64,
    /// alpha / rank, or alpha / √rank with rsLoRA.
    pub scale: f32,
    /// Probability that an input element is dropped while training.
    pub dropout: f32,
}

/// The fields of a LoRA `adapter_config.json` that this engine acts on. Change none after the first `resolve`:
/// the patterns are compiled then.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// `base_model_name_or_path`: written for PEFT, not read to find the model.
    pub base_model: Option<String>,
    /// Revision of the base model on the Hugging Face hub; kept as it is.
    pub revision: Option<String>,
    /// PEFT's name of the task, which also decides what head is trained along.
    pub task_type: Option<String>,
    /// `r`, 1 to 65536, where `rank_pattern` says nothing else.
    pub rank: usize,
    /// `lora_alpha`, where `alpha_pattern` says nothing else.
    pub alpha: f64,
    /// The scale is alpha / √rank instead of alpha / rank (`use_rslora`).
    pub rslora: bool,
    /// The norms of the rows of W + scale·B·A are trained apart from their directions (DoRA).
    pub dora: bool,
    /// `lora_dropout`: probability, 0 to below 1, that an input element is dropped while training.
    pub dropout: f64,
    /// `target_modules`: the modules that are adapted.
    pub targets: Targets,
    /// `exclude_modules`: targets that are not adapted after all.
    pub exclude: Option<Targets>,
    /// `layers_to_transform`: numbers, from 0, of the layers that are adapted; none: all.
    pub layers: Option<Vec<usize>>,
    /// Names of the lists of layers that those numbers count in; empty: any list.
    pub layers_pattern: Vec<String>,
    /// Regular expression on the end of a module path, and the rank there; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for alpha.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Which biases of the base model are trained.
    pub bias: Bias,
    /// B has a bias (`lora_B.bias`, `[out]`), added after the product and scaled like it.
    pub lora_bias: bool,
    /// Modules of the base model that are trained whole, and kept in the adapter's file.
    pub modules_to_save: Vec<String>,
    /// What is put on the embedding is put on a head that is tied to it: see `tied.rs`.
    pub ensure_weight_tying: bool,
    /// Tokens whose rows of a table are trained while the rest of it stays frozen.
    pub tokens: Option<Tokens>,
    /// The adapted weights are stored as `[in, out]` (GPT-2). The model knows; it is written for PEFT.
    pub fan_in_fan_out: bool,
    /// `init_lora_weights`: how A and B started. Training from a given adapter does not use it.
    pub init: Value,
    /// Weights that the adapter's file has under the base model's own names: those of tables that are not trained take the
    /// place of the base model's.
    pub(super) whole: Vec<String>,
    /// Embeddings whose update is zero in the adapter's file.
    pub(super) idle: Vec<String>,
    /// It is a file's, whose names of layers may be those of another model too.
    given: bool,
    compiled: OnceLock<Compiled>,
}

impl AdapterConfig {
    /// A new adapter with PEFT's defaults where the arguments say nothing, for causal language models.
    pub fn lora(rank: usize, alpha: f64, targets: Targets) -> AdapterConfig {
        AdapterConfig {
            base_model: None,
            revision: None,
            task_type: Some("CAUSAL_LM".into()),
            rank,
            alpha,
            rslora: false,
            dora: false,
            dropout: 0.0,
            targets,
            exclude: None,
            layers: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            bias: Bias::None,
            lora_bias: false,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            tokens: None,
            fan_in_fan_out: false,
            init: Value::Bool(true),
            whole: Vec::new(),
            idle: Vec::new(),
            given: false,
            compiled: OnceLock::new(),
        }
    }
}

// ---- reading

const MERGE: &str = "merge it into its base with PEFT's merge_and_unload and open the merged model";
const RANDOM: &str = "its random decomposition is another one whenever it is loaded; convert it to plain LoRA: PEFT's \
    save_pretrained with path_initial_model_for_weight_conversion";
const CONVERT: &str = "convert it to plain LoRA: PEFT's save_pretrained with path_initial_model_for_weight_conversion";

/// A key of the file that changes what the adapter computes, in a way the engine does not do: the values under
/// which it changes nothing, and what to do otherwise.
struct Refused {
    key: &'static str,
    harmless: fn(&Value) -> bool,
    hint: &'static str,
}

fn idle(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Initialisations that leave the base model as it is, or what they take out of it can be computed again from it. Others
/// (corda, loftq, lora_ga) replace its weights by a residual of which neither the adapter nor the base has the rest.
fn keeps_base(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(_) => true,
        Value::String(s) => matches!(s.as_str(), "gaussian" | "eva" | "orthogonal" | PISSA) || is_olora(s),
        _ => false,
    }
}

const PISSA: &str = "pissa";

fn is_olora(s: &str) -> bool {
    s.eq_ignore_ascii_case("olora")
}

/// PiSSA by a randomized decomposition.
fn is_random(v: &Value) -> bool {
    v.as_str().is_some_and(|s| s.starts_with("pissa_niter_"))
}

#[rustfmt::skip]
static REFUSED: &[Refused] = &[
    Refused { key: "target_parameters", harmless: idle, hint: MERGE },
    Refused { key: "init_lora_weights", harmless: |v| !is_random(v), hint: RANDOM },
    Refused { key: "init_lora_weights", harmless: keeps_base, hint: CONVERT },
    Refused { key: "loftq_config", harmless: idle, hint: CONVERT },
    Refused { key: "layer_replication", harmless: idle, hint: MERGE },
    Refused { key: "use_qalora", harmless: idle, hint: MERGE },
    Refused { key: "use_bdlora", harmless: idle, hint: MERGE },
    Refused { key: "alora_invocation_tokens", harmless: idle, hint: "activated LoRA needs a generation loop of its own" },
    Refused { key: "arrow_config", harmless: idle, hint: "load one of the routed adapters on its own" },
    Refused { key: "kasa_config", harmless: idle, hint: MERGE },
    Refused { key: "monteclora_config", harmless: idle, hint: MERGE },
    Refused { key: "velora_config", harmless: idle, hint: MERGE },
];

fn shown(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn bad(key: &str, found: &Value, expected: &str) -> Error {
    Error::config(format!("adapter_config.json: {key}"), shown(found), expected)
}

/// A key that is missing or null gives `default`.
fn get<T>(map: &Map<String, Value>, key: &str, expected: &str, default: T, read: fn(&Value) -> Option<T>) -> Result<T> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => read(v).ok_or_else(|| bad(key, v, expected)),
    }
}

fn text_of(v: &Value) -> Option<Option<String>> {
    v.as_str().map(|s| Some(s.to_owned()))
}

fn strings_of(v: &Value) -> Option<Vec<String>> {
    match v {
        Value::String(s) => Some(vec![s.clone()]),
        Value::Array(items) => items.iter().map(|i| i.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn names_of(v: &Value) -> Option<Option<Targets>> {
    match v {
        Value::String(s) if s.is_empty() => Some(None),
        Value::String(s) => Some(Some(Targets::Regex(s.clone()))),
        Value::Array(a) if a.is_empty() => Some(None),
        _ => strings_of(v).map(|names| Some(Targets::List(names))),
    }
}

fn rank_of(v: &Value) -> Option<usize> {
    v.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=MAX_RANK).contains(r))
}

fn layers_of(v: &Value) -> Option<Option<Vec<usize>>> {
    let one = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    match v {
        Value::Array(a) if a.is_empty() => Some(None),
        Value::Array(a) => a.iter().map(one).collect::<Option<_>>().map(Some),
        _ => one(v).map(|n| Some(vec![n])),
    }
}

fn pattern_of<T>(v: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    v.as_object()?.iter().map(|(k, v)| Some((k.clone(), read(v)?))).collect()
}

impl AdapterConfig {
    /// Reads the text of an `adapter_config.json`. Unknown keys are let pass, as PEFT does; known ones that ask for
    /// something the engine does not do are [`Error::Unsupported`].
    pub fn parse(text: &str) -> Result<AdapterConfig> {
        let value: Value = serde_json::from_str(text)
            .map_err(|e| Error::config("adapter_config.json", e.to_string(), "a JSON object as PEFT writes it"))?;
        let Value::Object(map) = &value else {
            return Err(bad("the file", &value, "a JSON object as PEFT writes it"));
        };
        match map.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(Value::String(kind)) => {
                return Err(Error::unsupported(
                    format!("an adapter of peft_type {kind}"),
                    "this version reads LORA; other methods can be merged with PEFT's merge_and_unload where it has it",
                ));
            }
            other => return Err(bad("peft_type", other.unwrap_or(&Value::Null), "\"LORA\"")),
        }
        for Refused { key, harmless, hint } in REFUSED {
            if let Some(v) = map.get(*key).filter(|v| !harmless(v)) {
                return Err(Error::unsupported(format!("adapter_config.json: {key} = {}", shown(v)), *hint));
            }
        }
        let targets = match map.get("target_modules") {
            Some(Value::String(s)) if s.eq_ignore_ascii_case("all-linear") => Some(Targets::AllLinear),
            None | Some(Value::Null) => Some(Targets::of_peft()),
            Some(v) => names_of(v).flatten(),
        };
        let targets = targets.ok_or_else(|| {
            let found = map.get("target_modules").unwrap_or(&Value::Null);
            bad("target_modules", found, "names, a regular expression, or \"all-linear\"")
        })?;
        const RANK: &str = "a whole number from 1 to 65536";
        const FACTOR: &str = "a number";
        let config = AdapterConfig {
            base_model: get(map, "base_model_name_or_path", "text", None, text_of)?,
            revision: get(map, "revision", "text", None, text_of)?,
            task_type: get(map, "task_type", "text", None, text_of)?,
            rank: get(map, "r", RANK, 8, rank_of)?,
            alpha: get(map, "lora_alpha", FACTOR, 8.0, Value::as_f64)?,
            rslora: get(map, "use_rslora", "true or false", false, Value::as_bool)?,
            dora: get(map, "use_dora", "true or false", false, Value::as_bool)?,
            dropout: get(map, "lora_dropout", "a number from 0 to below 1", 0.0, |v| {
                v.as_f64().filter(|p| (0.0..1.0).contains(p))
            })?,
            targets,
            exclude: get(map, "exclude_modules", "names or a regular expression", None, names_of)?,
            layers: get(map, "layers_to_transform", "a number or a list of numbers", None, layers_of)?,
            layers_pattern: get(map, "layers_pattern", "a name or a list of names", Vec::new(), strings_of)?
                .into_iter()
                .filter(|p| !p.is_empty())
                .collect(),
            rank_pattern: get(map, "rank_pattern", "an object of ranks", Vec::new(), |v| pattern_of(v, rank_of))?,
            alpha_pattern: get(map, "alpha_pattern", "an object of numbers", Vec::new(), |v| {
                pattern_of(v, Value::as_f64)
            })?,
            bias: get(map, "bias", Bias::EXPECTED, Bias::None, |v| Bias::named(v.as_str()?))?,
            lora_bias: get(map, "lora_bias", "true or false", false, Value::as_bool)?,
            modules_to_save: get(map, "modules_to_save", "a list of names", Vec::new(), strings_of)?,
            ensure_weight_tying: get(map, "ensure_weight_tying", "true or false", false, Value::as_bool)?,
            tokens: get(map, "trainable_token_indices", Tokens::EXPECTED, None, Tokens::read)?,
            fan_in_fan_out: get(map, "fan_in_fan_out", "true or false", false, Value::as_bool)?,
            init: map.get("init_lora_weights").filter(|v| !v.is_null()).cloned().unwrap_or(Value::Bool(true)),
            whole: Vec::new(),
            idle: Vec::new(),
            given: true,
            compiled: OnceLock::new(),
        };
        if config.dora && config.lora_bias {
            let what = "adapter_config.json: lora_bias = true with use_dora = true";
            return Err(Error::unsupported(what, "PEFT has no such adapter either; set one of them to false"));
        }
        config.compiled()?;
        Ok(config)
    }

    /// The text of an `adapter_config.json`, laid out as PEFT does: keys sorted, two spaces, no newline at the end.
    ///
    /// Of PEFT 0.21.2's 44 keys only those are written that PEFT 0.9 and its other readers (vLLM, mistral.rs,
    /// llama.cpp's converter) know too: an older PEFT stops at a key it does not know, and every PEFT fills in the
    /// default of a key that is missing. Keys that are younger are written only if they are set.
    pub fn to_json(&self) -> String {
        let number = |x: f64| match x.fract() == 0.0 && x.abs() < 9e15 {
            true => Value::from(x as i64),
            false => Value::from(x),
        };
        let names = |t: &Targets| match t {
            Targets::AllLinear => Value::from("all-linear"),
            Targets::List(names) => Value::from(names.clone()),
            Targets::Regex(text) => Value::from(text.as_str()),
        };
        let mut pairs: Vec<(&str, Value)> = vec![
            ("alpha_pattern", self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect()),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", Value::from(self.base_model.clone())),
            ("bias", self.bias.name().into()),
        ];
        pairs.extend(self.ensure_weight_tying.then(|| ("ensure_weight_tying", Value::Bool(true))));
        pairs.extend(self.exclude.as_ref().map(|e| ("exclude_modules", names(e))));
        pairs.extend([
            ("fan_in_fan_out", self.fan_in_fan_out.into()),
            ("inference_mode", true.into()),
            ("init_lora_weights", self.init.clone()),
            (
                "layers_pattern",
                match self.layers_pattern.is_empty() {
                    true => Value::Null,
                    false => self.layers_pattern.clone().into(),
                },
            ),
            ("layers_to_transform", Value::from(self.layers.clone())),
            ("lora_alpha", number(self.alpha)),
        ]);
        pairs.extend(self.lora_bias.then(|| ("lora_bias", Value::Bool(true))));
        pairs.extend([
            ("lora_dropout", self.dropout.into()),
            (
                "modules_to_save",
                match self.modules_to_save.is_empty() {
                    true => Value::Null,
                    false => self.modules_to_save.clone().into(),
                },
            ),
            ("peft_type", "LORA".into()),
            ("r", self.rank.into()),
            ("rank_pattern", self.rank_pattern.iter().map(|(k, v)| (k.clone(), Value::from(*v))).collect()),
            ("revision", Value::from(self.revision.clone())),
            ("target_modules", names(&self.targets)),
            ("task_type", Value::from(self.task_type.clone())),
        ]);
        pairs.extend(self.tokens.as_ref().map(|t| ("trainable_token_indices", t.to_json())));
        pairs.extend([("use_dora", self.dora.into()), ("use_rslora", self.rslora.into())]);
        let map: Map<String, Value> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        format!("{:#}", Value::Object(map))
    }
}

// ---- matching

#[derive(Clone, Debug)]
struct Compiled {
    targets: Option<Regex>,
    exclude: Option<Regex>,
    layers: Vec<Regex>,
    rank: Vec<Regex>,
    alpha: Vec<Regex>,
}

pub(super) fn regex_of(text: &str, wrap: impl Fn(&str) -> String) -> Result<Regex, String> {
    Regex::new(&wrap(text)).map_err(|e| {
        let reason = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("a regular expression ({reason})")
    })
}

/// Whether it matches. One that takes too many steps matches nothing: the tensors of the file then have no place.
pub(super) fn matches(regex: &Regex, module: &str) -> bool {
    regex.is_match(module).unwrap_or(false)
}

/// Whether `module` is one of the names, or ends in a dot and one of them.
pub(super) fn listed(names: &[String], module: &str) -> bool {
    names.iter().any(|n| module.strip_suffix(n.as_str()).is_some_and(|head| head.is_empty() || head.ends_with('.')))
}

impl AdapterConfig {
    fn compiled(&self) -> Result<&Compiled> {
        if let Some(compiled) = self.compiled.get() {
            return Ok(compiled);
        }
        let compile = |key: &str, text: &str, wrap: fn(&str) -> String| {
            regex_of(text, wrap).map_err(|expected| bad(key, &text.into(), &expected))
        };
        // Python's fullmatch, and match with `(.*\.)?(KEY)$`.
        let full = |key: &str, t: &Targets| match t {
            Targets::Regex(text) => compile(key, text, |t| format!("^(?:{t})$")).map(Some),
            _ => Ok(None),
        };
        let ending = |key: &str, text: &str| compile(key, text, |t| format!(r"^(?:.*\.)?(?:{t})$"));
        let layers = match self.layers_pattern.is_empty() {
            true => vec![compile("layers_pattern", "", |_| r"^.*?\.[^.]*\.(?P<idx>\d+)\.".into())?],
            false => self
                .layers_pattern
                .iter()
                .map(|p| compile("layers_pattern", p, |p| format!(r"^(?:|.*?\.){p}\.(?P<idx>\d+)\.")))
                .collect::<Result<_>>()?,
        };
        let compiled = Compiled {
            targets: full("target_modules", &self.targets)?,
            exclude: self.exclude.as_ref().map_or(Ok(None), |e| full("exclude_modules", e))?,
            layers,
            rank: self.rank_pattern.iter().map(|(k, _)| ending("rank_pattern", k)).collect::<Result<_>>()?,
            alpha: self.alpha_pattern.iter().map(|(k, _)| ending("alpha_pattern", k)).collect::<Result<_>>()?,
        };
        Ok(self.compiled.get_or_init(|| compiled))
    }

    /// Whether the base model's module (its path in the Hugging Face model) is trained whole.
    pub fn saves(&self, module: &str) -> bool {
        folder::saves(&self.modules_to_save, module)
    }

    /// Whether the module, or one that it is in, is trained whole: no adapter goes there.
    fn saves_around(&self, module: &str) -> bool {
        folder::saves_around(&self.modules_to_save, module)
    }

    /// What PEFT takes out of the base model's weight when it makes or loads the adapter, whose factors started as that.
    pub(super) fn taken(&self, spec: &LoraSpec) -> Option<Taken> {
        let &LoraSpec { rank, scale, .. } = spec;
        match self.init.as_str()? {
            PISSA => Some(Taken::Singular { rank }),
            name if is_olora(name) => Some(Taken::Columns { rank, scale }),
            _ => None,
        }
    }

    /// Whether the adapter belongs to what is left of the base model's weights.
    pub(crate) fn takes_from_base(&self) -> bool {
        self.init.as_str().is_some_and(|name| name == PISSA || is_olora(name))
    }

    /// What LoRA does at the linear layer `module` (its path in the Hugging Face model:
    /// `model.layers.0.self_attn.q_proj`), if anything.
    pub fn resolve(&self, module: &str) -> Result<Option<LoraSpec>> {
        let compiled = self.compiled()?;
        let excluded = match &self.exclude {
            Some(Targets::List(names)) => listed(names, module),
            Some(_) => compiled.exclude.as_ref().is_some_and(|r| matches(r, module)),
            None => false,
        };
        let wanted = !excluded
            && !self.saves_around(module)
            && match &self.targets {
                Targets::AllLinear => module.rsplit('.').next() != Some("lm_head"),
                // As in PEFT, a whole path in the list counts whatever `layers_to_transform` says.
                Targets::List(names) if names.iter().any(|n| n == module) => true,
                Targets::List(names) => listed(names, module) && self.wants_layer(compiled, module),
                Targets::Regex(_) => compiled.targets.as_ref().is_some_and(|r| matches(r, module)),
            };
        if wanted { self.spec(module).map(Some) } else { Ok(None) }
    }

    /// Rank, alpha and scale of a module, whether LoRA adapts it or not.
    pub fn spec(&self, module: &str) -> Result<LoraSpec> {
        let compiled = self.compiled()?;
        fn first<T: Copy>(patterns: &[Regex], values: &[(String, T)], module: &str, default: T) -> T {
            patterns.iter().zip(values).find(|(r, _)| matches(r, module)).map_or(default, |(_, (_, v))| *v)
        }
        let rank = first(&compiled.rank, &self.rank_pattern, module, self.rank);
        let alpha = first(&compiled.alpha, &self.alpha_pattern, module, self.alpha);
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(Error::config("rank", format!("{rank} at {module}"), format!("1 to {MAX_RANK}")));
        }
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        let (scale, dropout) = ((alpha / divisor) as f32, self.dropout as f32);
        if !scale.is_finite() {
            return Err(Error::config("alpha", format!("{alpha} at {module}"), "a finite number of f32"));
        }
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::config("dropout", self.dropout.to_string(), "0 to below 1"));
        }
        Ok(LoraSpec { rank, alpha, scale, dropout })
    }

    /// The same at a module of a role: `all-linear` leaves heads out.
    pub(super) fn adapts(&self, role: Role, module: &str) -> Result<Option<LoraSpec>> {
        match self.targets {
            Targets::AllLinear if !role.is_block_linear() => Ok(None),
            _ => self.resolve(module),
        }
    }

    /// The same for the embedding or the output head, which `all-linear` does not mean.
    pub fn resolve_embedding(&self, module: &str) -> Result<Option<LoraSpec>> {
        match self.targets {
            Targets::AllLinear => Ok(None),
            _ => self.resolve(module),
        }
    }

    fn wants_layer(&self, compiled: &Compiled, module: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let found = compiled.layers.iter().find_map(|r| r.captures(module).ok().flatten());
        found.and_then(|c| c.name("idx")?.as_str().parse().ok()).is_some_and(|index: usize| layers.contains(&index))
    }

    /// Resolves every linear layer of a model. An error if nothing is adapted, or if a listed name is nowhere.
    pub fn resolve_all<'a>(&self, modules: &[&'a str]) -> Result<Vec<(&'a str, LoraSpec)>> {
        let mut found = Vec::new();
        for &module in modules {
            found.extend(self.resolve(module)?.map(|spec| (module, spec)));
        }
        let ends = || {
            let mut ends: Vec<&str> = modules.iter().map(|m| m.rsplit('.').next().unwrap_or(m)).collect();
            ends.sort_unstable();
            ends.dedup();
            ends
        };
        if let Some(name) = self.unmatched(modules).next().filter(|_| !self.given) {
            let near = nearest(name, ends()).map_or(String::new(), |n| format!("{n}? "));
            return Err(Error::config(
                "targets",
                format!("{name}, which no layer of the model is called"),
                format!("{near}one of {}", ends().join(", ")),
            ));
        }
        if found.is_empty() {
            let expected = format!("something that matches; the model's linear layers are {}", ends().join(", "));
            return Err(Error::config("targets", format!("{}, which matches no layer", self.targets), expected));
        }
        Ok(found)
    }

    /// Names of the list that no layer has.
    fn unmatched<'a>(&'a self, modules: &'a [&str]) -> impl Iterator<Item = &'a String> {
        let has = |name: &String| modules.iter().any(|m| listed(std::slice::from_ref(name), m));
        self.targets.names().iter().filter(move |name| !has(name))
    }

    /// What there is to say of a file's targets on a model with these layers.
    pub(super) fn note(&self, modules: &[&str]) -> Option<String> {
        let names: Vec<&str> = self.unmatched(modules).map(String::as_str).collect();
        (self.given && !names.is_empty() && self.targets != Targets::of_peft()).then(|| {
            format!(
                "adapter_config.json: target_modules has {}, which no layer of the model is called",
                names.join(", ")
            )
        })
    }

    /// This config with `all-linear` spelled out as the last names of the `adapted` modules, as PEFT saves it, so
    /// that readers that do not know the word understand the file.
    pub fn spelled_out<'a>(&self, adapted: impl IntoIterator<Item = &'a str>) -> AdapterConfig {
        let mut config = self.clone();
        if self.targets == Targets::AllLinear || self.targets == Targets::of_peft() {
            let mut names: Vec<String> = Vec::new();
            for module in adapted {
                let last = module.rsplit('.').next().unwrap_or(module);
                if !names.iter().any(|n| n == last) {
                    names.push(last.to_owned());
                }
            }
            config.targets = Targets::List(names);
        }
        config.changed()
    }

    /// This config after its fields were changed: patterns are compiled anew.
    pub(super) fn changed(self) -> AdapterConfig {
        AdapterConfig { compiled: OnceLock::new(), ..self }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
