//! Which settings count with which others. One that was asked for and would change nothing is refused, since whoever asked
//! expects something of it.

use super::{FIELDS, Method, Origin, RunConfig, toml_text};
use crate::error::{Error, Result};

/// Settings, the setting that decides over them, and with which of its values they count.
type Uses = (&'static [&'static str], &'static str, &'static [&'static str]);

const USES: &[Uses] = &[
    (&["rank", "alpha", "rslora", "dora", "bias", "ensure_weight_tying"], "method", &["lora"]),
    (&["targets"], "method", &["lora", "ia3", "trainable-tokens"]),
    (&["dropout"], "method", &["lora", "adapter"]),
    (&["trainable_tokens"], "method", &["lora", "trainable-tokens"]),
    (&["virtual_tokens"], "method", &["prompt", "prefix"]),
    (&["prompt_init", "prompt_init_text"], "method", &["prompt"]),
    (&["prefix_projection"], "method", &["prefix"]),
    (&["adapter_kind", "reduction_factor", "non_linearity"], "method", &["adapter"]),
    (&["save_dtype"], "method", &["full"]),
    (&["momentum", "dampening", "nesterov"], "optimizer", &["sgd"]),
    (&["adam_beta1", "adam_beta2"], "optimizer", &["adamw", "adamw8bit", "lion", "lion8bit"]),
    (&["adam_eps"], "optimizer", &["adamw", "adamw8bit"]),
    (&["adafactor_decay_rate", "adafactor_eps", "adafactor_clip"], "optimizer", &["adafactor"]),
];

/// An error if a setting was asked for that has no effect. The default asks for nothing; nor does a file, if what decides was
/// changed by a flag. An adapter of another method than LoRA, whose settings are compared, has its own.
pub(super) fn check(config: &RunConfig) -> Result<()> {
    let origin = |name| config.origin(name).unwrap_or(&Origin::Default);
    let own = config.adapter.is_some() && config.method != Method::Lora;
    for (names, decides, of) in USES {
        let chosen = if *decides == "method" { config.method.name() } else { config.optimizer.name() };
        let fixed = own && *decides == "method";
        let counts = of.contains(&chosen);
        if counts && !fixed {
            continue;
        }
        let flag = *origin(decides) == Origin::Flag;
        for field in FIELDS.iter().filter(|field| names.contains(&field.name)) {
            let asked = match origin(field.name) {
                Origin::Flag => true,
                Origin::File(_) => !flag,
                _ => false,
            };
            let mut usual = config.clone();
            (field.set_default)(&mut usual);
            let found = (field.get)(config);
            if !asked || found == (field.get)(&usual) {
                continue;
            }
            let (key, found) = (field.key(), found.map_or("nothing".into(), |value| toml_text(&value)));
            return Err(match counts {
                true => Error::config(&key, format!("{found} with --adapter, which has its own"), format!("no {key}")),
                false => Error::config(
                    &key,
                    format!("{found} with {decides} {chosen}, where it has no effect"),
                    format!("{decides} {}, or no {key}", of.join(" or ")),
                ),
            });
        }
    }
    Ok(())
}
