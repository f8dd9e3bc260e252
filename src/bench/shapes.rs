//! The sizes that kernels are timed at, by the name of a model or one by one.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::Sizes;
use crate::synth;

/// What a text may name besides models, with what it sets: m, n and k are those of a product of m rows.
const KEYS: &str = "m= (tokens), n= (mlp), k= (hidden), heads=, kv_heads=, head_dim=, vocab=, rank=, loss_tokens=, params=, few=, labels=";

/// The sizes of `smollm2`, of a shape that [`synth::LIKE`] knows, or either with some of them set: "llama-8b,m=512,rank=64".
pub fn parse(text: &str) -> Result<Sizes> {
    let mut sizes = Sizes::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || {
            let names: Vec<&str> = synth::LIKE.iter().map(|(name, _)| *name).collect();
            Error::config("--shapes", part, format!("smollm2, {}, or of {KEYS}", names.join(", ")))
        };
        let Some((key, value)) = part.split_once('=') else {
            let weights = sizes.weights;
            sizes = named(part).ok_or_else(wrong)?;
            sizes.weights = weights;
            continue;
        };
        let value = value.parse::<usize>().ok().filter(|n| (1..=1 << 28).contains(n)).ok_or_else(wrong)?;
        match key {
            "m" | "tokens" => (sizes.tokens, sizes.loss_tokens) = (value, sizes.loss_tokens.min(value)),
            "n" | "mlp" => sizes.mlp = value,
            "k" | "hidden" => sizes.hidden = value,
            "heads" => sizes.heads = value,
            "kv_heads" => sizes.kv_heads = value,
            "head_dim" => sizes.head_dim = value,
            "vocab" => sizes.vocab = value,
            "rank" => sizes.rank = value,
            "loss_tokens" => sizes.loss_tokens = value,
            "params" => sizes.params = value,
            "few" => sizes.few = value,
            "labels" => sizes.labels = value,
            _ => return Err(wrong()),
        }
    }
    check(&sizes)?;
    Ok(sizes)
}

/// Kernels are defined where heads share keys evenly, and features are whole vectors and blocks of NF4.
fn check(s: &Sizes) -> Result<()> {
    let cases = [
        (
            s.heads.is_multiple_of(s.kv_heads),
            format!("{} heads over {}", s.heads, s.kv_heads),
            "heads that kv_heads divides",
        ),
        (s.head_dim.is_multiple_of(8), format!("heads of {}", s.head_dim), "a multiple of 8"),
        (
            s.hidden.is_multiple_of(64) && s.mlp.is_multiple_of(64),
            format!("{} and {} features", s.hidden, s.mlp),
            "multiples of 64",
        ),
        (s.params >= 1024, format!("{} parameters", s.params), "1024 at least"),
    ];
    match cases.into_iter().find(|case| !case.0) {
        Some((_, found, expected)) => Err(Error::config("--shapes", found, expected)),
        None => Ok(()),
    }
}

fn named(name: &str) -> Option<Sizes> {
    if name == "smollm2" {
        return Some(Sizes::default());
    }
    let config = synth::like(name)?;
    let of = |key: &str| config.get(key).and_then(Value::as_u64).map(|n| n as usize);
    let (hidden, heads) = (of("hidden_size")?, of("num_attention_heads")?);
    Some(Sizes {
        hidden,
        mlp: of("intermediate_size")?,
        heads,
        kv_heads: of("num_key_value_heads")?,
        head_dim: hidden / heads,
        vocab: of("vocab_size")?,
        ..Sizes::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_names_and_parts() {
        assert_eq!(parse("").unwrap(), Sizes::default());
        assert_eq!(parse("smollm2").unwrap(), Sizes::default());
        let of = |text: &str| parse(text).unwrap();
        assert_eq!((of("llama-8b").hidden, of("llama-8b").head_dim, of("llama-8b").vocab), (4096, 128, 128_256));
        let set = of("llama-8b, m=64,n=128,k=64,rank=8");
        assert_eq!((set.tokens, set.mlp, set.hidden, set.rank, set.heads, set.loss_tokens), (64, 128, 64, 8, 32, 64));
        for wrong in ["llama-9b", "m=0", "m=x", "q=1", "m=99999999999", "heads=5,kv_heads=2", "k=100"] {
            let refused = parse(wrong).unwrap_err().to_string();
            assert!(refused.contains("--shapes"), "{refused}");
        }
    }
}
