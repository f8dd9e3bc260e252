//! Tests of `config.rs` on files that PEFT 0.21.2 wrote.

use std::path::PathBuf;

use super::*;

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name);
    std::fs::read_to_string(path.join("adapter_config.json")).unwrap()
}

fn with(changes: &[(&str, &str)]) -> Result<AdapterConfig> {
    let mut value: Value = serde_json::from_str(&fixture("lora")).unwrap();
    for (key, new) in changes {
        value[*key] = serde_json::from_str(new).unwrap();
    }
    AdapterConfig::parse(&value.to_string())
}

/// The scale at `module`, if it is adapted.
fn rank_at(config: &AdapterConfig, module: &str) -> Option<usize> {
    config.resolve(module).unwrap().map(|s| s.rank)
}

const Q0: &str = "model.layers.0.self_attn.q_proj";
const Q1: &str = "model.layers.1.self_attn.q_proj";
const Q11: &str = "model.layers.11.self_attn.q_proj";
const K0: &str = "model.layers.0.self_attn.k_proj";

#[test]
fn reads_what_peft_wrote() {
    let lora = AdapterConfig::parse(&fixture("lora")).unwrap();
    let spec = lora.resolve(Q0).unwrap().unwrap();
    assert_eq!(spec, LoraSpec { rank: 4, alpha: 8.0, scale: 2.0, dropout: 0.0 });
    assert_eq!(lora.resolve(K0).unwrap(), None);
    let rslora = AdapterConfig::parse(&fixture("rslora")).unwrap();
    assert_eq!(rslora.resolve(Q0).unwrap().unwrap().scale, 4.0); // 8 / √4
    let pattern = AdapterConfig::parse(&fixture("lora_rankpattern")).unwrap();
    assert_eq!(pattern.resolve(Q0).unwrap().unwrap(), LoraSpec { rank: 2, alpha: 3.0, scale: 1.5, dropout: 0.0 });
    assert_eq!(rank_at(&pattern, Q1), Some(4));
    assert_eq!(rank_at(&pattern, "model.layers.0.self_attn.v_proj"), Some(4));
}

/// What is written is, line for line, what PEFT writes, less the keys that older readers stop at.
#[test]
fn writes_the_lines_that_peft_writes() {
    let plain = ["lora", "rslora", "dora", "lora_rankpattern", "multi_adapter", "multi_adapter/second"];
    for name in plain.into_iter().chain(["lora_embed", "lora_lmhead"]) {
        let theirs = fixture(name);
        let ours = AdapterConfig::parse(&theirs).unwrap().to_json();
        let ours_map: Map<String, Value> = serde_json::from_str(&ours).unwrap();
        let theirs_map: Map<String, Value> = serde_json::from_str(&theirs).unwrap();
        for (key, value) in &ours_map {
            assert_eq!(Some(value), theirs_map.get(key), "{name}: {key}");
        }
        // Drop the lines of the keys that are left out; they are all one-line values.
        let left_out = |line: &str| {
            line.strip_prefix("  \"")
                .and_then(|l| l.split_once('"'))
                .is_some_and(|(key, _)| theirs_map.contains_key(key) && !ours_map.contains_key(key))
        };
        let mut lines: Vec<&str> = theirs.lines().filter(|l| !left_out(l)).collect();
        // The last key of theirs is one that is left out, so the comma before it goes too.
        let last = lines.len() - 2;
        lines[last] = lines[last].trim_end_matches(',');
        assert_eq!(ours, lines.join("\n"), "{name}");
        assert_eq!(AdapterConfig::parse(&ours).unwrap().to_json(), ours, "{name}");
    }
}

#[test]
fn a_new_config_has_the_types_of_a_real_one() {
    let mut config = AdapterConfig::lora(16, 24.5, Targets::Regex(r".*\.q_proj".into()));
    config.exclude = Some(Targets::List(vec!["x".into()]));
    config.layers = Some(vec![1, 2]);
    config.layers_pattern = vec!["layers".into()];
    let ours: Map<String, Value> = serde_json::from_str(&config.to_json()).unwrap();
    let theirs: Map<String, Value> = serde_json::from_str(&fixture("lora")).unwrap();
    let mut keys: Vec<&String> = ours.keys().collect();
    keys.sort();
    assert!(ours.keys().eq(keys), "keys are sorted");
    let nullable = ["exclude_modules", "layers_to_transform", "layers_pattern", "target_modules"];
    for (key, value) in &ours {
        let real = theirs.get(key).unwrap_or_else(|| panic!("PEFT has no {key}"));
        let same = std::mem::discriminant(real) == std::mem::discriminant(value);
        assert!(same || nullable.contains(&key.as_str()), "{key}: {value} where PEFT has {real}");
    }
    let again = AdapterConfig::parse(&config.to_json()).unwrap();
    assert_eq!((again.alpha, again.layers, again.targets), (24.5, Some(vec![1, 2]), config.targets));
}

#[test]
fn matches_modules_as_peft_does() {
    // target_modules and friends, and which of Q0, Q1, Q11, K0 are adapted
    type Changes<'a> = &'a [(&'a str, &'a str)];
    let table: &[(Changes, [bool; 4])] = &[
        (&[("target_modules", r#"["q_proj"]"#)], [true, true, true, false]),
        (&[("target_modules", r#"["_proj"]"#)], [false; 4]),
        (&[("target_modules", r#"["0.self_attn.q_proj"]"#)], [true, false, false, false]),
        (&[("target_modules", r#""all-linear""#)], [true; 4]),
        (&[("target_modules", r#""All-Linear""#)], [true; 4]),
        (&[("target_modules", r#"".*q_proj""#)], [true, true, true, false]),
        (&[("target_modules", r#""q_proj""#)], [false; 4]), // a full match
        (&[("target_modules", r#"".*\\.1\\..*|.*k_proj""#)], [false, true, false, true]),
        (&[("exclude_modules", r#"["q_proj"]"#), ("target_modules", r#""all-linear""#)], [false, false, false, true]),
        (&[("exclude_modules", r#"".*layers\\.1+\\..*""#)], [true, false, false, false]),
        (&[("layers_to_transform", "1")], [false, true, false, false]),
        (&[("layers_to_transform", "[0, 11]")], [true, false, true, false]),
        (&[("layers_to_transform", "[]")], [true, true, true, false]),
        (&[("layers_to_transform", "[0]"), ("layers_pattern", r#""layers""#)], [true, false, false, false]),
        (&[("layers_to_transform", "[0]"), ("layers_pattern", r#"["h"]"#)], [false; 4]),
        (&[("layers_to_transform", "[0]"), ("layers_pattern", r#"["model|layers"]"#)], [false; 4]),
        (
            &[("layers_to_transform", "0"), ("target_modules", r#"["model.layers.1.self_attn.q_proj"]"#)],
            [false, true, false, false],
        ),
    ];
    for (changes, expected) in table {
        let config = with(changes).unwrap();
        let found = [Q0, Q1, Q11, K0].map(|m| config.resolve(m).unwrap().is_some());
        assert_eq!(found, *expected, "{changes:?}");
    }
    let all = with(&[("target_modules", r#""all-linear""#)]).unwrap();
    assert_eq!(rank_at(&all, "lm_head"), None);
    // The embedding is no linear layer: it must be named.
    let table = [(r#""all-linear""#, false), (r#"["q_proj", "embed_tokens"]"#, true), (r#"["q_proj"]"#, false)];
    for (targets, expected) in table {
        let config = with(&[("target_modules", targets)]).unwrap();
        assert_eq!(config.resolve_embedding("model.embed_tokens").unwrap().is_some(), expected, "{targets}");
    }
}

#[test]
fn the_first_pattern_that_matches_counts() {
    let config =
        with(&[("rank_pattern", r#"{"layers\\.1\\..*": 2, "q_proj": 3, "attn.q_proj": 5, "proj": 7}"#)]).unwrap();
    let found = [Q0, Q1, Q11, K0, "model.layers.0.self_attn.v_proj"].map(|m| rank_at(&config, m));
    assert_eq!(found, [Some(3), Some(2), Some(3), None, Some(4)]);
}

#[test]
fn says_no_to_what_it_cannot_do_and_names_the_key() {
    let table = [("lora_target_parameters", "target_parameters"), ("ia3", "IA3"), ("adalora", "ADALORA")];
    for (name, key) in table {
        match AdapterConfig::parse(&fixture(name)) {
            Err(Error::Unsupported { what, hint }) => {
                assert!(what.contains(key), "{name}: {what}");
                assert!(!hint.is_empty());
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    for (init, word) in
        [("pissa_niter_4", "random"), ("corda", "convert"), ("loftq", "convert"), ("lora_ga", "convert")]
    {
        match with(&[("init_lora_weights", &format!("{init:?}"))]) {
            Err(Error::Unsupported { what, hint }) => {
                assert!(what.contains(init) && hint.contains(word), "{what}: {hint}")
            }
            other => panic!("{init}: {other:?}"),
        }
    }
    for name in ["pissa", "olora"] {
        assert!(AdapterConfig::parse(&fixture(name)).unwrap().takes_from_base(), "{name}");
    }
    assert!(!AdapterConfig::parse(&fixture("lora")).unwrap().takes_from_base());
    let both = with(&[("use_dora", "true"), ("lora_bias", "true")]);
    assert!(matches!(both, Err(Error::Unsupported { what, .. }) if what.contains("lora_bias")));
    assert!(with(&[("init_lora_weights", "\"gaussian\""), ("a_key_of_tomorrow", "[1]")]).is_ok());
}

#[test]
fn trained_tokens_are_written_as_they_were_read() {
    let theirs: Map<String, Value> = serde_json::from_str(&fixture("lora_trainable_tokens")).unwrap();
    let ours = AdapterConfig::parse(&fixture("lora_trainable_tokens")).unwrap().to_json();
    let ours: Map<String, Value> = serde_json::from_str(&ours).unwrap();
    assert_eq!(ours["trainable_token_indices"], theirs["trainable_token_indices"]);
    let modules = with(&[("trainable_token_indices", r#"{"lm_head": [3], "embed_tokens": [7, 1]}"#)]).unwrap();
    assert_eq!(AdapterConfig::parse(&modules.to_json()).unwrap().tokens, modules.tokens);
    // Older readers stop at a key that they do not know, so it is there only if it says something.
    assert!(!with(&[("trainable_token_indices", "[]")]).unwrap().to_json().contains("trainable_token"));
}

#[test]
fn damaged_configs_are_errors_that_name_the_key() {
    let table = [
        ("r", "0"),
        ("r", "-3"),
        ("r", "99999999999999999999"),
        ("r", "1.5"),
        ("lora_alpha", "\"8\""),
        ("lora_dropout", "1.0"),
        ("target_modules", "[]"),
        ("target_modules", "[1]"),
        ("target_modules", "\"(\""),
        ("target_modules", r#""^(?!.*vision.*q_proj$""#),
        ("rank_pattern", r#"{"q_proj": 0}"#),
        ("rank_pattern", r#"{"(": 1}"#),
        ("layers_to_transform", "[-1]"),
        ("trainable_token_indices", "[5, 5]"),
        ("trainable_token_indices", r#"{"embed_tokens": 5}"#),
        ("peft_type", "7"),
    ];
    for (key, value) in table {
        match with(&[(key, value)]) {
            Err(Error::Config { key: named, .. }) => assert!(named.contains(key), "{named} for {key} = {value}"),
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
    for text in ["", "[]", "{", "null", "{}"] {
        assert!(matches!(AdapterConfig::parse(text), Err(Error::Config { .. })), "{text:?}");
    }
}

#[test]
fn targets_as_typed() {
    let list = |names: &[&str]| Targets::List(names.iter().map(|n| n.to_string()).collect());
    let table = [
        ("all-linear", Ok(Targets::AllLinear)),
        ("q_proj", Ok(list(&["q_proj"]))),
        ("q_proj, v_proj", Ok(list(&["q_proj", "v_proj"]))),
        (r".*\.q_proj", Ok(Targets::Regex(r".*\.q_proj".into()))),
        ("q_proj,", Err(())),
        ("", Err(())),
        ("q proj", Err(())),
        ("*", Err(())),
    ];
    for (text, expected) in table {
        assert_eq!(Targets::parse(text).map_err(|_| ()), expected, "{text:?}");
    }
}

#[test]
fn resolving_a_model_finds_typing_errors() {
    let model = [Q0, K0, Q1, "lm_head"];
    let named = |t: &str| AdapterConfig::lora(8, 16.0, Targets::parse(t).unwrap());
    let all = named("all-linear").resolve_all(&model).unwrap();
    assert_eq!(all.iter().map(|(m, _)| *m).collect::<Vec<_>>(), [Q0, K0, Q1]);
    let spelled = named("all-linear").spelled_out(all.iter().map(|(m, _)| *m));
    assert_eq!(spelled.targets, Targets::parse("q_proj,k_proj").unwrap());
    assert_eq!(spelled.resolve_all(&model).unwrap(), all);
    let error = named("q_proj,kproj").resolve_all(&model).unwrap_err().to_string();
    assert!(error.contains("kproj") && error.contains("k_proj?"), "{error}");
    assert!(named(".*mlp.*").resolve_all(&model).unwrap_err().to_string().contains("lm_head"));
}
