//! SentencePiece's normalizer in a tokenizer.json is a table, `precompiled_charsmap`: in base64, the bytes of a trie as u32, the
//! trie, its texts. The crate that reads it makes room for as many bytes as the table says before it looks for them.

use serde::Deserialize;
use serde_json::Value;

const KEY: &str = "precompiled_charsmap";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What of a tokenizer.json has such tables.
#[derive(Deserialize)]
struct Normalized {
    #[serde(default)]
    normalizer: Value,
}

/// Errs if the file is no JSON, or a table in it says that it is longer than it is.
pub(super) fn check(json: &[u8]) -> tokenizers::Result<()> {
    let Normalized { normalizer } = serde_json::from_slice(json)?;
    walk(&normalizer)
}

fn walk(value: &Value) -> tokenizers::Result<()> {
    match value {
        Value::Object(map) => map.iter().try_for_each(|(key, value)| match value {
            Value::String(table) if key == KEY => fits(table),
            other => walk(other),
        }),
        Value::Array(list) => list.iter().try_for_each(walk),
        _ => Ok(()),
    }
}

/// What is no base64 is left to who reads it.
fn fits(table: &str) -> tokenizers::Result<()> {
    let sixes = table.bytes().take(6).map(|c| ALPHABET.iter().position(|&a| a == c).map(|six| six as u64));
    let Some(bits) = sixes.collect::<Option<Vec<u64>>>().filter(|sixes| sixes.len() == 6) else { return Ok(()) };
    let first = bits.iter().fold(0, |all, six| all << 6 | six) >> 4;
    let (trie, all) = (u64::from((first as u32).swap_bytes()), table.len() / 4 * 3);
    match trie + 4 <= all as u64 {
        true => Ok(()),
        false => Err(format!("a {KEY} of {all} bytes with a trie of {trie}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_long_as_it_says() {
        // [4, 0, 0, 0] and a trie of one number: as base64 of Python's library has it.
        for (table, right) in
            [("BAAAAAEAAAA=", true), ("CQAAAAEAAAA=", false), ("/////wEAAAA=", false), ("no", true), ("_", true)]
        {
            let table = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": table});
            for normalizer in [table.clone(), serde_json::json!({"type": "Sequence", "normalizers": [table]})] {
                let file = serde_json::json!({"normalizer": normalizer, "model": {}}).to_string();
                assert_eq!(check(file.as_bytes()).is_ok(), right, "{file}");
            }
        }
        assert!(check(b"{\"normalizer\": {}").is_err() && check(b"{}").is_ok());
    }
}
