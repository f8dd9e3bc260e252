//! GGUF's names and conventions of the architectures that are known here, one table for reading and for writing.

/// A GGUF architecture we know the conventions of.
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// The Hugging Face class, less `ForCausalLM`.
    pub class: &'static str,
    /// What `hidden_act` is.
    pub activation: &'static str,
    /// Query and key rows are interleaved, for llama.cpp's rotary embedding of adjacent pairs.
    pub permuted: bool,
    /// Norm weights have 1 added.
    pub norm_plus_one: bool,
}

/// Those that are read and written.
pub const ARCHITECTURES: [Architecture; 4] = [
    Architecture { name: "llama", class: "Llama", activation: "silu", permuted: true, norm_plus_one: false },
    Architecture { name: "qwen2", class: "Qwen2", activation: "silu", permuted: false, norm_plus_one: false },
    Architecture { name: "qwen3", class: "Qwen3", activation: "silu", permuted: false, norm_plus_one: false },
    Architecture {
        name: "gemma",
        class: "Gemma",
        activation: "gelu_pytorch_tanh",
        permuted: false,
        norm_plus_one: true,
    },
];

/// Names outside of the blocks, GGUF's and Hugging Face's.
const NAMES: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Names in `blk.N.` and in `model.layers.N.`.
const BLOCK_NAMES: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The table of llama3's rotary frequency factors; it is in the config for us, no weight.
pub const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// A GGUF tensor name as Hugging Face has it; unknown ones stay as they are.
pub fn hugging_face_name(name: &str) -> String {
    let Some((stem, kind @ ("weight" | "bias"))) = name.rsplit_once('.') else { return name.into() };
    if let Some((_, to)) = NAMES.iter().find(|(from, _)| *from == stem) {
        return format!("{to}.{kind}");
    }
    let block = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = block else { return name.into() };
    match BLOCK_NAMES.iter().find(|(from, _)| *from == part) {
        Some((_, to)) => format!("model.layers.{layer}.{to}.{kind}"),
        None => name.into(),
    }
}

/// A Hugging Face tensor name as GGUF has it; none if it has no name for it.
pub fn gguf_name(name: &str) -> Option<String> {
    let (stem, kind @ ("weight" | "bias")) = name.rsplit_once('.')? else { return None };
    if let Some((from, _)) = NAMES.iter().find(|(_, to)| *to == stem) {
        return Some(format!("{from}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let (from, _) = BLOCK_NAMES.iter().find(|(_, to)| *to == part)?;
    Some(format!("blk.{layer}.{from}.{kind}"))
}

/// Heads whose rows are interleaved, if the tensor of a Hugging Face name is one of queries or keys.
pub fn heads_of(name: &str, heads: usize, kv_heads: usize) -> Option<usize> {
    match name.rsplit_once('.').map_or("", |(module, _)| module) {
        module if module.ends_with(".q_proj") => Some(heads),
        module if module.ends_with(".k_proj") => Some(kv_heads),
        _ => None,
    }
}

/// Where Hugging Face's row `r` of a permuted matrix of `rows` is. In each head of `d` rows,
/// Hugging Face pairs row `i` with `i + d/2` for the rotary embedding and GGUF `2i` with `2i + 1`:
/// row `j d/2 + i` is GGUF's row `2i + j`.
pub fn permuted_row(r: usize, rows: usize, heads: usize) -> usize {
    let d = rows / heads;
    let (head, within) = (r / d, r % d);
    let (j, i) = (within / (d / 2), within % (d / 2));
    head * d + 2 * i + j
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (theirs, ours) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ] {
            assert_eq!(hugging_face_name(theirs), ours);
            assert_eq!(gguf_name(ours).as_deref(), Some(theirs));
        }
        let all = NAMES.iter().map(|n| n.1.to_string());
        let all = all.chain(BLOCK_NAMES.iter().map(|n| format!("model.layers.3.{}", n.1)));
        for ours in all.map(|module| format!("{module}.weight")) {
            assert_eq!(hugging_face_name(&gguf_name(&ours).unwrap()), ours);
        }
        for none in ["score.weight", "model.layers.0.mlp.gate_up_proj.weight", "transformer.wte.weight", "weight"] {
            assert_eq!(gguf_name(none), None);
        }
    }

    /// Each row has a place of its own.
    #[test]
    fn rows_are_permuted_within_heads() {
        let places: Vec<usize> = (0..8).map(|r| permuted_row(r, 8, 2)).collect();
        assert_eq!(places, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
