//! Every key of a config.json that transformers 5.23 reads for the families here, and keys of older files: whether it is
//! honoured, has no effect on training, is not applied (which is said), or is refused, with the reason, when it has a value
//! that would change a result. A key that is in no table is said once.
//!
//! `tests/golden/generate_config_keys.py` walks the config classes; a test holds the tables against its list.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::rope;
use crate::error::{Error, Result};

/// What a key does.
#[derive(Clone, Copy)]
pub enum Effect {
    /// Read by a family, a task, the loader or the tokenizer.
    Honoured,
    /// No value of it changes what is computed in training: metadata, other programs' caches, generation's defaults.
    Idle,
    /// A value that is not harmless changes a result, and is said not to be applied.
    Said(fn(&Value) -> bool, &'static str),
    /// A value that is not harmless is an error.
    Refused(fn(&Value) -> bool, &'static str),
}

use Effect::{Honoured, Idle, Refused, Said};

/// Keys with the same effect.
pub type Row = (&'static [&'static str], Effect);

fn off(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        v => v.as_f64() == Some(0.0),
    }
}

fn on(v: &Value) -> bool {
    matches!(v, Value::Null | Value::Bool(true))
}

const PROBABILITIES: &str = "dropout of attention's probabilities, which are never in memory, is not applied";
const OTHER: &str = "the model is not of the family that model_type names; use one whose type is known";
const DECODER: &str = "attention to later tokens is not offered in decoders";

/// Of every family.
static COMMON: &[Row] = &[
    (&["model_type", "architectures", "vocab_size", "initializer_range", "tie_word_embeddings"], Honoured),
    (&["num_labels", "id2label", "label2id", "problem_type", "_num_labels"], Honoured),
    (&["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "quantization_config"], Honoured),
    (&["rope_theta", "rope_scaling", "original_max_position_embeddings"], Honoured),
    // In decoders a value other than 1 is refused where the rotation is read.
    (&["partial_rotary_factor"], Honoured),
    (&["dtype", "torch_dtype", "transformers_version", "use_cache", "return_dict", "chunk_size_feed_forward"], Idle),
    (&["output_attentions", "output_hidden_states", "is_encoder_decoder", "per_layer_config"], Idle),
    (&["attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "experts_implementation"], Idle),
    (&["name_or_path", "_name_or_path", "_commit_hash", "_configuration_file", "_from_auto", "_from_pipeline"], Idle),
    (&["cache_dir", "commit_message", "force_download", "gguf_file", "local_files_only", "proxies", "repo_id"], Idle),
    (&["return_unused_kwargs", "revision", "subfolder", "token", "trust_remote_code", "auto_map"], Idle),
    (&["finetuning_task", "gradient_checkpointing", "language", "output_past", "prefix", "task_specific_params"], Idle),
    (
        &["tf_legacy_loss", "tokenizer_class", "torchscript", "use_bfloat16", "use_return_dict", "custom_pipelines"],
        Idle,
    ),
    (&["unsloth_version", "unsloth_fixed", "unsloth_optimized", "use_mambapy", "transformers.js_config"], Idle),
    (&["sep_token_id", "unk_token_id", "cls_token_id", "mask_token_id"], Idle),
    // Defaults of generation, in files from before generation_config.json.
    (
        &["bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size", "diversity_penalty", "do_sample"],
        Idle,
    ),
    (
        &["early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"],
        Idle,
    ),
    (&["forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beams"], Idle),
    (
        &["num_beam_groups", "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty"],
        Idle,
    ),
    (&["return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p"], Idle),
    (&["pruned_heads"], Refused(off, "heads that were cut out are not offered")),
    (&["attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling"], Refused(off, OTHER)),
    (&["num_local_experts", "num_experts", "n_routed_experts"], Refused(off, "mixtures of experts are not offered")),
];

/// Of the decoders with rotary embeddings, each of its class.
pub static LLAMA: &[Row] = &[
    (&["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"], Honoured),
    (&["intermediate_size", "rms_norm_eps", "hidden_act", "max_position_embeddings"], Honoured),
    (&["attention_bias", "mlp_bias", "rope_parameters"], Honoured),
    (&["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"], Honoured),
    // The product in pieces, for which transformers has no code any more; a name that Gemma's class read for a while.
    (&["pretraining_tp", "rope_interleaved", "hidden_activation"], Idle),
    (&["attention_dropout"], Said(off, PROBABILITIES)),
    (&["classifier_dropout", "hidden_dropout"], Said(off, "dropout before a head that tags tokens is not applied")),
    (&["is_causal"], Refused(on, DECODER)),
    (&["use_bidirectional_attention", "is_decoder_bidirectional"], Refused(off, DECODER)),
    (
        &["residual_multiplier", "embedding_multiplier", "attention_multiplier", "query_pre_attn_scalar"],
        Refused(off, OTHER),
    ),
];

/// Of GPT-2.
pub static GPT2: &[Row] = &[
    (&["n_embd", "n_head", "n_inner", "n_layer", "n_positions", "layer_norm_epsilon", "activation_function"], Honoured),
    (&["hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"], Honoured),
    (&["scale_attn_weights", "scale_attn_by_inverse_layer_idx"], Honoured),
    (&["embd_pdrop", "resid_pdrop", "classifier_dropout", "hidden_dropout", "add_cross_attention"], Honoured),
    (&["attn_pdrop"], Said(off, PROBABILITIES)),
    // The same product in another precision.
    (&["reorder_and_upcast_attn", "n_ctx"], Idle),
    // Of a head for two tasks that is not offered.
    (
        &["summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"],
        Idle,
    ),
    (&["is_causal"], Refused(on, DECODER)),
];

/// Of the BERT kind.
pub static BERT: &[Row] = &[
    (&["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"], Honoured),
    (&["max_position_embeddings", "type_vocab_size", "layer_norm_eps", "position_embedding_type"], Honoured),
    (&["hidden_dropout_prob", "classifier_dropout", "is_decoder"], Honoured),
    (
        &["dim", "hidden_dim", "n_heads", "n_layers", "activation", "dropout", "seq_classif_dropout", "qa_dropout"],
        Honoured,
    ),
    (&["attention_probs_dropout_prob", "attention_dropout"], Said(off, PROBABILITIES)),
    (&["add_cross_attention"], Refused(off, "an encoder that reads another one is not offered")),
    // How a table that the file holds was made; poolers of other checkpoints.
    (&["sinusoidal_pos_embds", "directionality", "pooler_fc_size", "pooler_num_attention_heads"], Idle),
    (&["pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"], Idle),
];

/// Of T5.
pub static T5: &[Row] = &[
    (&["d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "layer_norm_epsilon"], Honoured),
    (&["hidden_size", "head_dim", "num_hidden_layers", "num_attention_heads"], Honoured),
    (&["feed_forward_proj", "dense_act_fn", "is_gated_act", "scale_decoder_outputs", "dropout_rate"], Honoured),
    (&["relative_attention_num_buckets", "relative_attention_max_distance", "initializer_factor"], Honoured),
    (&["is_decoder"], Honoured),
    // Positions are relative; the head that classifies sequences is not offered.
    (&["n_positions", "classifier_dropout"], Idle),
];

/// The effect of a key, if it is known.
fn effect(own: &[Row], key: &str) -> Option<Effect> {
    own.iter().chain(COMMON).find(|(keys, _)| keys.contains(&key)).map(|(_, effect)| *effect)
}

/// Keys of the config with values that are not harmless.
fn harmful<'a>(
    own: &'a [Row],
    config: &'a Map<String, Value>,
) -> impl Iterator<Item = (&'a String, &'a Value, Effect)> {
    config.iter().filter_map(|(key, value)| match effect(own, key)? {
        effect @ (Said(harmless, _) | Refused(harmless, _)) if !harmless(value) => Some((key, value, effect)),
        _ => None,
    })
}

/// An error if a key of the config would change a result in a way that is not offered.
pub fn check(own: &[Row], config: &Value) -> Result<()> {
    let Some(config) = config.as_object() else { return Ok(()) };
    match harmful(own, config).find_map(|(key, value, effect)| match effect {
        Refused(_, why) => Some((key, value, why)),
        _ => None,
    }) {
        Some((key, value, why)) => Err(Error::unsupported(format!("config.json: {key} = {value}"), why)),
        None => Ok(()),
    }
}

/// What there is to say of a config: values that are not applied, and keys that nobody knows.
pub fn notes(own: &[Row], config: &Value) -> Vec<String> {
    let Some(map) = config.as_object() else { return Vec::new() };
    let mut notes: Vec<String> = harmful(own, map)
        .filter_map(|(key, value, effect)| match effect {
            Said(_, why) => Some(format!("config.json: {key} = {value}: {why}")),
            _ => None,
        })
        .collect();
    let mut unknown: Vec<String> = map.keys().filter(|key| effect(own, key).is_none()).cloned().collect();
    unknown.extend(rope::unknown(config));
    if !unknown.is_empty() {
        notes.push(format!("config.json: not read, since its meaning is not known: {}", unknown.join(", ")));
    }
    notes
}

/// Names by which transformers knows keys of these types too (`attribute_map`).
static ALIASES: &[(&str, &[(&str, &str)])] = &[
    (
        "gpt2",
        &[
            ("hidden_size", "n_embd"),
            ("max_position_embeddings", "n_positions"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ],
    ),
    ("distilbert", &[("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")]),
    (
        "t5",
        &[
            ("hidden_size", "d_model"),
            ("num_attention_heads", "num_heads"),
            ("num_hidden_layers", "num_layers"),
            ("head_dim", "d_kv"),
        ],
    ),
];

/// The config with such names put back; as in transformers they win over the keys themselves.
pub fn named<'a>(kind: &str, config: &'a Value) -> Cow<'a, Value> {
    let aliases = ALIASES.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, aliases)| aliases);
    let mut config = Cow::Borrowed(config);
    for (alias, key) in aliases {
        if let Some(value) = config.get(*alias).filter(|v| !v.is_null()).cloned()
            && let Some(map) = config.to_mut().as_object_mut()
        {
            map.insert((*key).to_owned(), value);
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::FAMILIES;
    use super::*;

    fn rows(kind: &str) -> &'static [Row] {
        FAMILIES.iter().find(|family| family.types.contains(&kind)).unwrap().keys
    }

    /// Every key of transformers' classes is in a table, and no table has a key twice.
    #[test]
    fn every_key_of_transformers_is_known() {
        let list: Map<String, Value> =
            serde_json::from_str(include_str!("../../tests/golden/config_keys.json")).unwrap();
        let keys = |name: &str| list[name].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>();
        let mut walked = 0;
        for kind in FAMILIES.iter().flat_map(|family| family.types) {
            for key in keys(kind).into_iter().chain(keys("common")) {
                assert!(effect(rows(kind), key).is_some(), "{kind}: {key}");
                walked += 1;
            }
        }
        assert!(walked > 500, "{walked}");
        for family in FAMILIES {
            let mut all: Vec<&str> = family.keys.iter().chain(COMMON).flat_map(|(keys, _)| *keys).copied().collect();
            all.sort_unstable();
            assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
        }
    }

    #[test]
    fn values_that_change_a_result_are_refused_or_said() {
        for (kind, key, value) in [
            ("llama", "is_causal", json!(false)),
            ("gemma", "use_bidirectional_attention", json!(true)),
            ("llama", "final_logit_softcapping", json!(30.0)),
            ("bert", "pruned_heads", json!({"0": [1]})),
            ("bert", "add_cross_attention", json!(true)),
        ] {
            let error = check(rows(kind), &json!({ key: value })).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let harmless = json!({"is_causal": true, "pruned_heads": {}, "final_logit_softcapping": null});
        check(LLAMA, &harmless).unwrap();
        assert!(notes(LLAMA, &harmless).is_empty());
        let said = notes(LLAMA, &json!({"attention_dropout": 0.1, "colour": "blue", "vocab_size": 3}));
        assert!(
            said.len() == 2 && said[0].contains("attention_dropout") && said[1].ends_with("known: colour"),
            "{said:?}"
        );
    }

    #[test]
    fn a_name_of_the_attribute_map_is_the_key() {
        let config = json!({"hidden_size": 32, "n_embd": 768, "n_layer": 2});
        assert_eq!(named("gpt2", &config)["n_embd"], 32);
        assert!(matches!(named("bert", &config), Cow::Borrowed(_)));
    }
}
