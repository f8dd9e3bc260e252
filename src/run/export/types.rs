//! Which tensor of a GGUF file is stored as what, as llama.cpp's `llama-quantize` decides without an importance matrix.
//!
//! Vectors and norms are f32. `q4_k` is the mix Q4_K_M: Q6_K for the output head, and for the values and the last feed-forward
//! layer of about half of the layers. In quantized files the head (where it is tied: the embedding) is Q6_K, but with q8_0.
//! Rows that are not whole blocks are stored as llama-quantize stores them: Q4_K as Q5_0, Q6_K as Q8_0, and f16 where blocks of
//! 32 do not fit either.

use crate::quant::ggml::GgmlType;

/// What a file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    F16,
    /// 2 bytes a value.
    Bf16,
    /// 8.5 bits a value.
    Q8_0,
    /// 4.5 bits a value.
    Q4_0,
    /// 4.5 bits a value, some tensors 6.56.
    Q4K,
    /// 6.56 bits a value.
    Q6K,
}

impl FileType {
    /// Its names on the command line.
    pub const NAMES: [(&'static str, FileType); 7] = [
        ("f32", FileType::F32),
        ("f16", FileType::F16),
        ("bf16", FileType::Bf16),
        ("q8_0", FileType::Q8_0),
        ("q4_0", FileType::Q4_0),
        ("q4_k", FileType::Q4K),
        ("q6_k", FileType::Q6K),
    ];

    /// `general.file_type` (`enum llama_ftype`).
    pub fn number(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q4_0 => 2,
            FileType::Q8_0 => 7,
            FileType::Q4K => 15,
            FileType::Q6K => 18,
            FileType::Bf16 => 32,
        }
    }

    /// How a tensor of llama.cpp's `name` and of `shape` is stored in a file of so many layers; `head` if its values are the
    /// output head's.
    pub fn of(self, name: &str, shape: &[usize], layers: usize, head: bool) -> GgmlType {
        if shape.len() < 2 || name.ends_with("_norm.weight") {
            return GgmlType::F32;
        }
        let wanted = match self {
            FileType::F32 => GgmlType::F32,
            FileType::F16 => GgmlType::F16,
            FileType::Bf16 => GgmlType::BF16,
            FileType::Q8_0 => GgmlType::Q8_0,
            _ if head => GgmlType::Q6_K,
            FileType::Q4_0 => GgmlType::Q4_0,
            FileType::Q6K => GgmlType::Q6_K,
            FileType::Q4K if more_bits(name, layers) => GgmlType::Q6_K,
            FileType::Q4K => GgmlType::Q4_K,
        };
        let fits = |ty: GgmlType| shape.last().is_some_and(|row| row.is_multiple_of(ty.block()));
        let instead = match wanted {
            GgmlType::Q4_K => GgmlType::Q5_0,
            GgmlType::Q6_K => GgmlType::Q8_0,
            _ => GgmlType::F16,
        };
        [wanted, instead].into_iter().find(|ty| fits(*ty)).unwrap_or(GgmlType::F16)
    }
}

/// Whether Q4_K_M gives a tensor more bits: values and the last feed-forward layer in the first and last eighth of the layers, and
/// in every third between.
fn more_bits(name: &str, layers: usize) -> bool {
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { return false };
    let Ok(layer) = layer.parse::<usize>() else { return false };
    let eighth = layers / 8;
    matches!(part, "attn_v.weight" | "ffn_down.weight")
        && (layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama-quantize's choices for a model of 30 layers and rows of 2048, and for rows that K blocks do not fit.
    #[test]
    fn tensors_are_stored_as_llama_quantize_stores_them() {
        use GgmlType::*;
        let wide = [512, 2048];
        for (ty, name, shape, head, want) in [
            (FileType::Q4K, "blk.0.attn_q.weight", &wide[..], false, Q4_K),
            (FileType::Q4K, "blk.0.attn_v.weight", &wide, false, Q6_K),
            (FileType::Q4K, "blk.3.attn_v.weight", &wide, false, Q4_K),
            (FileType::Q4K, "blk.5.ffn_down.weight", &wide, false, Q6_K),
            (FileType::Q4K, "blk.26.ffn_down.weight", &wide, false, Q6_K),
            (FileType::Q4K, "output.weight", &wide, true, Q6_K),
            (FileType::Q4K, "token_embd.weight", &wide, false, Q4_K),
            (FileType::Q4K, "blk.0.attn_q.weight", &[576, 576], false, Q5_0),
            (FileType::Q4K, "token_embd.weight", &[49152, 576], true, Q8_0),
            (FileType::Q4_0, "blk.0.attn_q.weight", &[576, 576], false, Q4_0),
            (FileType::Q4_0, "output.weight", &wide, true, Q6_K),
            (FileType::Q8_0, "output.weight", &wide, true, Q8_0),
            (FileType::Q6K, "blk.0.attn_q.weight", &[576, 576], false, Q8_0),
            (FileType::Q8_0, "blk.0.attn_q.weight", &[40, 40], false, F16),
            (FileType::Q4K, "blk.0.attn_q.weight", &[40, 40], false, F16),
            (FileType::Q4_0, "blk.0.attn_norm.weight", &[2048], false, F32),
            (FileType::F16, "blk.0.attn_q.bias", &[2048], false, F32),
            (FileType::Bf16, "blk.0.attn_q.weight", &[40, 40], false, BF16),
        ] {
            assert_eq!(ty.of(name, shape, 30, head), want, "{ty:?} {name} {shape:?}");
        }
    }
}
