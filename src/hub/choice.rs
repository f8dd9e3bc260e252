//! Which files of a repository are needed: of weights safetensors alone, and nothing that is not read.

use super::Kind;

/// The index of weights in several files.
pub const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// Files beside a model's weights.
const MODEL: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// The files of an adapter: PEFT's and AdapterHub's.
const ADAPTER: [&str; 8] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "prompt_encoder.safetensors",
    "adapter.safetensors",
    "model_head.safetensors",
    "head_config.json",
    "config.json",
    "chat_template.jinja",
];

/// Adapters as PEFT wrote them before safetensors, and as AdapterHub writes them unless asked for those.
const PICKLED: [&str; 2] = ["adapter_model.bin", "pytorch_adapter.bin"];
const PICKLED_HEAD: &str = "pytorch_model_head.bin";

/// The files to fetch of those that a repository has; an error says what it has instead.
pub fn needed(files: &[String], kind: Kind) -> Result<Vec<&str>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let wanted: &[&str] = match kind {
        Kind::Model => &MODEL,
        Kind::Adapter => &ADAPTER,
    };
    let mut chosen: Vec<&str> = files.iter().map(String::as_str).filter(|file| wanted.contains(file)).collect();
    match kind {
        Kind::Adapter if !has("adapter_config.json") => return Err("no adapter_config.json".into()),
        Kind::Adapter if ["adapter_model.safetensors", "adapter.safetensors"].into_iter().any(has) => {
            return Ok(chosen);
        }
        // Read without executing it.
        Kind::Adapter if PICKLED.into_iter().any(has) => {
            let pickled = |file: &&str| PICKLED.contains(file) || *file == PICKLED_HEAD;
            chosen.extend(files.iter().map(String::as_str).filter(pickled));
            return Ok(chosen);
        }
        Kind::Adapter => return Err("an adapter without safetensors".into()),
        Kind::Model if has("adapter_config.json") && !has("config.json") => {
            return Err("an adapter, whose base model adapter_config.json names".into());
        }
        Kind::Model => {}
    }
    if has(WHOLE) && !has(INDEX) {
        chosen.push(files.iter().map(String::as_str).find(|file| *file == WHOLE).unwrap_or_default());
    }
    if has("config.json") && (has(WHOLE) || has(INDEX)) {
        return Ok(chosen);
    }
    let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| file.ends_with(".gguf")).collect();
    const SHOWN: usize = 6;
    Err(match (ggufs.len(), files.iter().find(|file| file.ends_with(".bin"))) {
        (0, Some(pickled)) => format!("weights that are pickled ({pickled}), and no safetensors"),
        (0, None) => "no config.json with model.safetensors".into(),
        (n, _) => format!("GGUF files: {}{}", ggufs[..n.min(SHOWN)].join(", "), if n > SHOWN { ", …" } else { "" }),
    })
}

/// The files that an index of weights names.
pub fn shards(index: &[u8]) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_slice(index).ok()?;
    let mut names: Vec<String> = Vec::new();
    for name in index.get("weight_map")?.as_object()?.values() {
        let name = name.as_str()?;
        if !names.iter().any(|known| known == name) {
            names.push(name.into());
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_is_fetched() {
        let all = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let sharded = all(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            INDEX,
            "pytorch_model.bin",
            "onnx/model.onnx",
            "runs/events",
        ]);
        assert_eq!(needed(&sharded, Kind::Model).unwrap(), ["config.json", "tokenizer.json", INDEX]);
        let whole = all(&["config.json", WHOLE, "pytorch_model.bin", "chat_template.jinja", "optimizer.pt"]);
        assert_eq!(needed(&whole, Kind::Model).unwrap(), ["config.json", "chat_template.jinja", WHOLE]);
        let own = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"];
        let adapter = all(&[&own[..], &["adapter_model.bin", WHOLE]].concat());
        assert_eq!(needed(&adapter, Kind::Adapter).unwrap(), own);
        for weights in [&PICKLED[..1], &[PICKLED[1], PICKLED_HEAD]] {
            let files = [&["adapter_config.json"], weights].concat();
            let pickled = all(&[&files[..], &["optimizer.pt"]].concat());
            assert_eq!(needed(&pickled, Kind::Adapter).unwrap(), files);
        }
        for (files, kind, want) in [
            (&adapter, Kind::Model, "an adapter"),
            (&whole, Kind::Adapter, "no adapter_config.json"),
            (&all(&["adapter_config.json", "adapter.pt"]), Kind::Adapter, "without safetensors"),
            (&all(&["config.json", "pytorch_model.bin"]), Kind::Model, "pickled (pytorch_model.bin)"),
            (&all(&["a.Q4_0.gguf", "b.gguf"]), Kind::Model, "GGUF files: a.Q4_0.gguf, b.gguf"),
            (&all(&["README.md"]), Kind::Model, "no config.json"),
        ] {
            let error = needed(files, kind).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
        assert_eq!(shards(br#"{"weight_map": {"a": "1", "b": "2", "c": "1"}}"#).unwrap(), ["1", "2"]);
        assert_eq!(shards(b"{}"), None);
    }
}
