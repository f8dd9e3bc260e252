//! The config of AdapterHub's bottleneck adapters (`adapters` 1.3.0, `BnConfig`): read, checked, and made for new ones. What
//! is not offered is refused by its key.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::models::config::{ACTIVATIONS, activation_named};
use crate::nn::{Init, Part};
use crate::ops::Activation;

/// What enters the bottleneck. x is the output of a part of a layer, h what it is added to, n the model's norm of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// h (`is_parallel`); the result is added to x.
    Residual,
    /// x; the result is added to x.
    Output,
    /// `n(x + h)`, or `x + h` where the model has no norm there (`original_ln_before`).
    Norm(Skip),
}

/// What the output of the bottleneck is added to (`residual_before_ln`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// x (`true`).
    Output,
    /// `x + h` (`"post_add"`).
    Sum,
    /// `n(x + h)` (`false`).
    Norm,
}

/// What the output of the bottleneck is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// By this number, which stays.
    Fixed(f32),
    /// By one trained number.
    Learned,
    /// By a trained number for each feature.
    Channel,
}

/// The kinds that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AdapterHub's `DoubleSeqBnConfig`: after attention and after the feed-forward part.
    Houlsby,
    /// AdapterHub's `SeqBnConfig`: after the feed-forward part.
    Pfeiffer,
    /// AdapterHub's `ParBnConfig`: beside the feed-forward part, its output times 4.
    Parallel,
}

/// How the weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Normal (0, 0.02).
    Bert,
    /// W_down uniform in ±1/√hidden (Kaiming with a = √5), W_up zero.
    Mam,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// The parts of a layer that have an adapter.
    pub parts: Vec<Part>,
    /// Layers without one, from 0.
    pub leave_out: Vec<usize>,
    /// What the adapter reads and is added to.
    pub input: Input,
    /// Whether the result is added to h and normalized as the output of the part would be (`original_ln_after`).
    pub norm_after: bool,
    /// The function between the two projections (`non_linearity`).
    pub activation: Activation,
    /// What the up projection's output is multiplied by.
    pub scaling: Scaling,
    /// Share of the adapter's output that is dropped in training.
    pub dropout: f32,
    reduction: f64,
    start: Start,
    raw: Map<String, Value>,
}

/// Keys of what is not offered unless they are null or false, and what is.
/// The least reduction factor: bottlenecks may be wider than the layer, but of a size that is one.
pub const LEAST_REDUCTION: f64 = 0.001;

const OFF: [(&str, &str); 7] = [
    ("ln_before", "an adapter without a norm of its own is"),
    ("ln_after", "an adapter without a norm of its own is"),
    ("use_gating", "an adapter without gates is"),
    ("phm_layer", "an adapter that is not Compacter's is"),
    ("inv_adapter", "one without invertible adapters is (seq_bn, not seq_bn_inv)"),
    ("invertible_adapter", "one without invertible adapters is (seq_bn, not seq_bn_inv)"),
    ("architecture", "bottleneck adapters are"),
];

fn bad(key: &str, found: Option<&Value>, expected: impl Into<String>) -> Error {
    let found = found.map_or("nothing".into(), Value::to_string);
    Error::config(format!("adapter_config.json: config.{key}"), found, expected)
}

impl Bottleneck {
    /// Of the object `config` of an adapter_config.json. Files without a version are of the time when `gelu` was another
    /// function.
    pub fn read(raw: Map<String, Value>, versioned: bool) -> Result<Bottleneck> {
        for (key, hint) in OFF {
            if let Some(found) = raw.get(key).filter(|v| !v.is_null() && **v != Value::Bool(false)) {
                return Err(Error::unsupported(format!("adapter_config.json: {key} = {found}"), hint));
            }
        }
        if raw.get("stochastic_depth").and_then(Value::as_f64).is_some_and(|p| p > 0.0) {
            return Err(Error::unsupported(
                "adapter_config.json: stochastic_depth",
                "set it to 0: all layers are used",
            ));
        }
        let flag = |key: &str, default: Option<bool>| match raw.get(key) {
            None => default.ok_or_else(|| bad(key, None, "true or false")),
            Some(found) => found.as_bool().ok_or_else(|| bad(key, Some(found), "true or false")),
        };
        let mut parts = Vec::new();
        let keys = [
            ("mh_adapter", Part::Attention, None),
            ("output_adapter", Part::FeedForward, None),
            ("cross_adapter", Part::CrossAttention, Some(false)),
        ];
        for (key, part, default) in keys {
            if flag(key, default)? {
                parts.push(part);
            }
        }
        if parts.is_empty() {
            return Err(bad("output_adapter", raw.get("output_adapter"), "true here, for mh_adapter or cross_adapter"));
        }
        let before = flag("original_ln_before", Some(false))?;
        let skip = match raw.get("residual_before_ln") {
            None | Some(Value::Bool(true)) => Skip::Output,
            Some(Value::Bool(false)) => Skip::Norm,
            Some(Value::String(text)) if text == "post_add" && before => Skip::Sum,
            found => {
                return Err(bad("residual_before_ln", found, "true or false, or with original_ln_before \"post_add\""));
            }
        };
        let input = match (flag("is_parallel", Some(false))?, before) {
            (true, _) => Input::Residual,
            (false, true) => Input::Norm(skip),
            (false, false) => Input::Output,
        };
        let scaling = match raw.get("scaling") {
            None => Scaling::Fixed(1.0),
            Some(Value::String(text)) if text == "learned" => Scaling::Learned,
            Some(Value::String(text)) if text == "channel" => Scaling::Channel,
            Some(Value::Number(scale)) => Scaling::Fixed(scale.as_f64().unwrap_or(1.0) as f32),
            found => return Err(bad("scaling", found, "a number, \"learned\" or \"channel\"")),
        };
        let start = match raw.get("init_weights").and_then(Value::as_str).unwrap_or("bert") {
            "mam_adapter" => Start::Mam,
            // Weights of a file need no start: a "houlsby" one is read, but none is made.
            _ => Start::Bert,
        };
        let reduction = match raw.get("reduction_factor") {
            Some(Value::Object(_)) => {
                let what = "adapter_config.json: a reduction_factor for each layer";
                return Err(Error::unsupported(what, "an adapter with one number for all layers"));
            }
            found => found
                .and_then(Value::as_f64)
                .filter(|r| (LEAST_REDUCTION..=f64::MAX).contains(r))
                .ok_or_else(|| bad("reduction_factor", found, "a number, 0.001 or more"))?,
        };
        let named = raw.get("non_linearity").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        let name = match (named.as_str(), versioned) {
            ("gelu", false) => "gelu_new",
            ("gelu_orig", false) => "gelu",
            (name, _) => name,
        };
        let activation =
            activation_named(name).ok_or_else(|| bad("non_linearity", raw.get("non_linearity"), ACTIVATIONS))?;
        let number = |v: &Value| v.as_u64().map(|n| n as usize);
        let leave_out = match raw.get("leave_out") {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(found) => found.as_array().and_then(|list| list.iter().map(number).collect()),
        };
        let leave_out = leave_out.ok_or_else(|| bad("leave_out", raw.get("leave_out"), "numbers of layers, from 0"))?;
        let dropout = raw.get("dropout").map_or(Some(0.0), Value::as_f64).filter(|p| (0.0..1.0).contains(p));
        let dropout = dropout.ok_or_else(|| bad("dropout", raw.get("dropout"), "0 to below 1"))? as f32;
        let norm_after = flag("original_ln_after", Some(true))?;
        Ok(Bottleneck { parts, leave_out, input, norm_after, activation, scaling, dropout, reduction, start, raw })
    }

    /// An error if a number is none that can be computed with.
    pub(super) fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("bottleneck: dropout", self.dropout.to_string(), "0 to below 1"));
        }
        match self.scaling {
            Scaling::Fixed(x) if !x.is_finite() => {
                Err(Error::config("bottleneck: scaling", x.to_string(), "a finite number"))
            }
            _ => Ok(()),
        }
    }

    /// A new one, with the values of AdapterHub's `DoubleSeqBnConfig`, `SeqBnConfig` and `ParBnConfig` where none is given.
    pub fn new(kind: Kind, reduction: Option<f64>, activation: Option<&str>, dropout: f64) -> Result<Bottleneck> {
        let parallel = kind == Kind::Parallel;
        let reduction = reduction.unwrap_or(if parallel { 2.0 } else { 16.0 });
        // As Python writes it: a whole number without a point.
        let reduction = if reduction.fract() == 0.0 { json!(reduction as u64) } else { json!(reduction) };
        let activation = activation.unwrap_or(if kind == Kind::Houlsby { "swish" } else { "relu" });
        let config = json!({
            "adapter_residual_before_ln": false,
            "cross_adapter": false,
            "dropout": dropout,
            "factorized_phm_W": true,
            "factorized_phm_rule": false,
            "hypercomplex_nonlinearity": "glorot-uniform",
            "init_weights": if parallel { "mam_adapter" } else { "bert" },
            "init_weights_seed": null,
            "inv_adapter": null,
            "inv_adapter_reduction_factor": null,
            "is_parallel": parallel,
            "learn_phm": true,
            "leave_out": [],
            "ln_after": false,
            "ln_before": false,
            "mh_adapter": kind == Kind::Houlsby,
            "non_linearity": activation,
            "original_ln_after": true,
            "original_ln_before": kind == Kind::Pfeiffer,
            "output_adapter": true,
            "phm_bias": true,
            "phm_c_init": "normal",
            "phm_dim": 4,
            "phm_init_range": 0.0001,
            "phm_layer": false,
            "phm_rank": 1,
            "reduction_factor": reduction,
            "residual_before_ln": true,
            "scaling": if parallel { 4.0 } else { 1.0 },
            "shared_W_phm": false,
            "shared_phm_rule": true,
            "stochastic_depth": 0.0,
            "use_gating": false,
        });
        Bottleneck::read(config.as_object().cloned().unwrap_or_default(), true)
    }

    /// As the file has it.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Features of the bottleneck, `hidden // reduction` as Python divides floats, and at least one.
    pub fn width(&self, hidden: usize) -> usize {
        let hidden = hidden as f64;
        (((hidden - hidden % self.reduction) / self.reduction).round() as usize).max(1)
    }

    /// How W_down and W_up start.
    pub fn init(&self, hidden: usize) -> (Init, Init) {
        match self.start {
            Start::Bert => (Init::Normal { std: 0.02 }, Init::Normal { std: 0.02 }),
            Start::Mam => (Init::Uniform { bound: 1.0 / (hidden as f32).sqrt() }, Init::Zeros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: (&str, Value)) -> Result<Bottleneck> {
        let mut raw = Bottleneck::new(Kind::Pfeiffer, None, None, 0.0)?.raw;
        raw.insert(change.0.into(), change.1);
        Bottleneck::read(raw, true)
    }

    #[test]
    fn the_kinds_are_adapterhubs() {
        let of = |kind| Bottleneck::new(kind, None, None, 0.0).unwrap();
        let (houlsby, pfeiffer, parallel) = (of(Kind::Houlsby), of(Kind::Pfeiffer), of(Kind::Parallel));
        assert_eq!(houlsby.parts, [Part::Attention, Part::FeedForward]);
        assert_eq!((&pfeiffer.parts, &parallel.parts), (&vec![Part::FeedForward], &vec![Part::FeedForward]));
        assert_eq!([houlsby.input, pfeiffer.input], [Input::Output, Input::Norm(Skip::Output)]);
        assert_eq!((parallel.input, parallel.scaling), (Input::Residual, Scaling::Fixed(4.0)));
        assert_eq!((houlsby.activation, pfeiffer.activation), (Activation::Silu, Activation::Relu));
        assert_eq!((houlsby.width(768), parallel.width(768)), (48, 384));
        // What `int(hidden // factor)` gives in Python.
        let width = |hidden, factor| Bottleneck::new(Kind::Pfeiffer, Some(factor), None, 0.0).unwrap().width(hidden);
        assert_eq!([width(1, 0.1), width(32, 7.5), width(8, 100.0), width(10, 0.5)], [9, 4, 1, 20]);
    }

    #[test]
    fn what_is_not_offered_is_named() {
        let unsupported = [
            ("ln_before", json!(true)),
            ("ln_after", json!(true)),
            ("use_gating", json!(true)),
            ("phm_layer", json!(true)),
            ("inv_adapter", json!("nice")),
            ("architecture", json!("lora")),
            ("stochastic_depth", json!(0.1)),
            ("reduction_factor", json!({"1": 8, "default": 16})),
        ];
        for (key, value) in unsupported {
            match read((key, value)) {
                Err(Error::Unsupported { what, .. }) => assert!(what.contains(key), "{what}"),
                other => panic!("{key}: {other:?}"),
            }
        }
        let wrong = [
            ("non_linearity", json!("leakyrelu")),
            ("scaling", json!("none")),
            ("reduction_factor", json!(0)),
            ("reduction_factor", json!(1e-300)),
            ("residual_before_ln", json!("before")),
            ("output_adapter", json!(false)),
            ("leave_out", json!([-1])),
            ("dropout", json!(1)),
            ("mh_adapter", json!("yes")),
        ];
        for (key, value) in wrong {
            let error = read((key, value)).unwrap_err().to_string();
            assert!(error.contains(&format!("config.{key}: found")), "{error}");
        }
        // The control.
        assert_eq!(read(("leave_out", json!([1]))).unwrap().leave_out, [1]);
    }

    #[test]
    fn gelu_was_another_function_in_files_without_a_version() {
        let mut raw = Bottleneck::new(Kind::Pfeiffer, None, Some("gelu"), 0.0).unwrap().raw;
        let of = |raw: &Map<String, Value>, versioned| Bottleneck::read(raw.clone(), versioned).unwrap().activation;
        assert_eq!((of(&raw, true), of(&raw, false)), (Activation::Gelu, Activation::GeluTanh));
        raw.insert("non_linearity".into(), "gelu_orig".into());
        assert_eq!(of(&raw, false), Activation::Gelu);
    }
}
