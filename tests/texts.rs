//! A few hundred lines (code, emoji, scripts, combining marks, control characters, runs, special tokens) with every
//! tokenizer among the fixtures: ids and texts are the `tokenizers` library's (golden/generate_texts.py), and what is
//! streamed is the whole text.

use std::path::{Path, PathBuf};

use serde_json::Value;
use trimtab::data::tokenizer::Tokenizer;
use trimtab::weights::gguf::Gguf;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// FNV-1a with 64 bits.
fn sum(bytes: impl IntoIterator<Item = u8>) -> String {
    let step = |value: u64, byte: u8| (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    format!("{:016x}", bytes.into_iter().fold(0xCBF2_9CE4_8422_2325, step))
}

/// Fails unless the pieces of `ids` are together the text of all, after any first part of them too, and the special tokens
/// that are hidden leave no gap.
fn streams(tokenizer: &Tokenizer, ids: &[u32], what: &str) {
    for skip in [false, true] {
        let whole = tokenizer.decode(ids, skip).unwrap();
        for before in [0, 1, ids.len() / 3, ids.len() / 2] {
            let (before, after) = ids.split_at(before.min(ids.len()));
            let begun = tokenizer.decode(before, skip).unwrap();
            // A text that ends within a character, or within a run of bytes, is no text that a prompt can have.
            let Some(rest) = whole.strip_prefix(&begun).filter(|_| !begun.ends_with('\u{FFFD}')) else {
                assert!(!before.is_empty());
                continue;
            };
            let mut stream = tokenizer.decode_stream(before, skip).unwrap();
            let mut text = String::new();
            for &id in after {
                text += &stream.push(id).unwrap();
                assert!(rest.starts_with(&text), "{what}: {text:?} is taken back in {rest:?}");
            }
            text += &stream.finish().unwrap();
            assert_eq!(text, rest, "{what}, after {} of {} ids", before.len(), ids.len());
        }
    }
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(tests().join("golden/texts.json")).unwrap()).unwrap()
}

fn lines(golden: &Value) -> Vec<&str> {
    let lines: Vec<&str> = golden["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(lines.len() > 300);
    lines
}

#[test]
fn lines_are_those_of_the_library() {
    let golden = golden();
    let folder = std::env::temp_dir().join(format!("trimtab-texts-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for case in golden["tokenizers"].as_array().unwrap() {
        let path = case["path"].as_str().unwrap();
        let bytes = std::fs::read(tests().join(path)).unwrap();
        std::fs::write(folder.join("tokenizer.json"), &bytes).unwrap();
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let added = json["added_tokens"].as_array().unwrap().iter();
        let mut added: Vec<_> = added.map(|t| (t["id"].as_u64().unwrap(), t["content"].as_str().unwrap())).collect();
        added.sort_unstable_by(|a, b| b.cmp(a));
        let special = added.iter().map(|(_, text)| *text).collect::<Vec<_>>().join(" ");
        for (line, sums) in lines(&golden).iter().zip(case["sums"].as_array().unwrap()) {
            let text = line.replace("{special}", &special);
            let what = format!("{path}: {text:?}");
            let ids = tokenizer.encode(&text, true).unwrap();
            assert_eq!(sums[0], sum(ids.iter().flat_map(|id| id.to_le_bytes())), "{what}");
            for (want, skip) in [(&sums[1], false), (&sums[2], true)] {
                let decoded = tokenizer.decode(&ids, skip).unwrap();
                assert_eq!(*want, sum(decoded.bytes()), "{what}, {decoded:?}, {skip}");
            }
            seen.insert(sums[0].to_string());
            streams(&tokenizer, &ids, &what);
        }
    }
    assert!(seen.len() > 1000, "the control: {} different lists of ids", seen.len());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Tokenizers that are made of other files have no golden ids here (tests/tokenizer.rs and encoders.rs have some).
#[test]
fn streams_of_other_tokenizers_add_up() {
    let golden = golden();
    let gguf = |name: &str| Tokenizer::from_gguf(&Gguf::open(tests().join(format!("golden/{name}.gguf"))).unwrap());
    let folder = Tokenizer::from_folder(tests().join("golden/tokenizers/roberta"));
    for (name, tokenizer) in [("llama", gguf("gguf_llama")), ("gemma", gguf("gguf_gemma")), ("roberta", folder)] {
        let tokenizer = tokenizer.unwrap();
        for line in lines(&golden) {
            streams(&tokenizer, &tokenizer.encode(line, true).unwrap(), &format!("{name}: {line:?}"));
        }
    }
}
