//! Which settings count with which others. One that was asked for and would change nothing is refused, since whoever asked
//! expects something of it.

use super::{FIELDS, Field, Method, Optimizer, Origin, RunConfig, toml_text};
use crate::error::{Error, Result};

/// Settings that count with some values of another alone.
struct Uses {
    names: &'static [&'static str],
    /// The setting that decides.
    decides: &'static str,
    /// With which of its values they count.
    of: &'static str,
    counts: fn(&RunConfig) -> bool,
}

const USES: &[Uses] = &[
    Uses {
        names: &["rank", "alpha", "rslora", "dora", "bias", "ensure_weight_tying"],
        decides: "method",
        of: "lora",
        counts: |c| c.method == Method::Lora,
    },
    Uses {
        names: &["targets"],
        decides: "method",
        of: "lora, ia3 or trainable-tokens",
        counts: |c| matches!(c.method, Method::Lora | Method::Ia3 | Method::TrainableTokens),
    },
    Uses {
        names: &["dropout"],
        decides: "method",
        of: "lora or adapter",
        counts: |c| matches!(c.method, Method::Lora | Method::Adapter),
    },
    Uses {
        names: &["trainable_tokens"],
        decides: "method",
        of: "lora or trainable-tokens",
        counts: |c| matches!(c.method, Method::Lora | Method::TrainableTokens),
    },
    Uses {
        names: &["virtual_tokens"],
        decides: "method",
        of: "prompt or prefix",
        counts: |c| matches!(c.method, Method::Prompt | Method::Prefix),
    },
    Uses {
        names: &["prompt_init", "prompt_init_text"],
        decides: "method",
        of: "prompt",
        counts: |c| c.method == Method::Prompt,
    },
    Uses { names: &["prefix_projection"], decides: "method", of: "prefix", counts: |c| c.method == Method::Prefix },
    Uses {
        names: &["adapter_kind", "reduction_factor", "non_linearity"],
        decides: "method",
        of: "adapter",
        counts: |c| c.method == Method::Adapter,
    },
    Uses { names: &["save_dtype"], decides: "method", of: "full", counts: |c| c.method == Method::Full },
    Uses {
        names: &["momentum", "dampening", "nesterov"],
        decides: "optimizer",
        of: "sgd",
        counts: |c| c.optimizer == Optimizer::Sgd,
    },
    Uses {
        names: &["adam_beta1", "adam_beta2"],
        decides: "optimizer",
        of: "adamw or lion",
        counts: |c| !matches!(c.optimizer, Optimizer::Sgd | Optimizer::Adafactor),
    },
    Uses {
        names: &["adam_eps"],
        decides: "optimizer",
        of: "adamw",
        counts: |c| matches!(c.optimizer, Optimizer::Adamw | Optimizer::Adamw8bit),
    },
    Uses {
        names: &["adafactor_decay_rate", "adafactor_eps", "adafactor_clip"],
        decides: "optimizer",
        of: "adafactor",
        counts: |c| c.optimizer == Optimizer::Adafactor,
    },
];

/// An error if a setting was asked for that has no effect. The default asks for nothing; nor does a file, if what decides was
/// changed by a flag. An adapter of another method than LoRA, whose settings are compared, has its own.
pub(super) fn check(config: &RunConfig) -> Result<()> {
    let origin = |name| config.origin(name).unwrap_or(&Origin::Default);
    let fixed = config.adapter.is_some() && config.method != Method::Lora;
    for uses in USES.iter().filter(|uses| fixed && uses.decides == "method" || !(uses.counts)(config)) {
        let flag = *origin(uses.decides) == Origin::Flag;
        let asked = |field: &&Field| match origin(field.name) {
            Origin::Flag => true,
            Origin::File(_) => !flag,
            _ => false,
        };
        let named = FIELDS.iter().filter(|field| uses.names.contains(&field.name));
        for field in named.filter(asked) {
            let text = |value: Option<toml::Value>| value.map_or("nothing".into(), |v| toml_text(&v));
            let mut usual = config.clone();
            (field.set_default)(&mut usual);
            let (found, usual) = ((field.get)(config), (field.get)(&usual));
            if found != usual {
                if (uses.counts)(config) {
                    let found = format!("{} with --adapter, which has its own", text(found));
                    return Err(Error::config(field.key(), found, format!("no {}", field.key())));
                }
                let decides = FIELDS.iter().find(|f| f.name == uses.decides).and_then(|f| (f.get)(config));
                return Err(Error::config(
                    field.key(),
                    format!("{} with {} {}, where it has no effect", text(found), uses.decides, text(decides)),
                    format!("{} {}, or no {}", uses.decides, uses.of, field.key()),
                ));
            }
        }
    }
    Ok(())
}
