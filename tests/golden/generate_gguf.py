"""GGUF goldens: random blocks of every type with the gguf package's own decoding, and two small models.

    python tests/golden/generate_gguf.py          # needs numpy, gguf and safetensors; rewrites what lies beside it

The committed files were made with gguf 0.19.0.

  gguf_blocks.safetensors   <TYPE>.bytes (uint8, whole blocks) and <TYPE>.values (float32)
  gguf_llama.gguf           one layer with permuted queries and keys, llama3 rotary factors, mixed types, biases on
                            queries and keys, a SentencePiece-like vocabulary with byte tokens
  gguf_gemma.gguf           one layer, norms with 1 added, a byte-level BPE vocabulary with merges
  gguf_<model>.safetensors  what their tensors are under Hugging Face's names, float32

The permutation and the rotary factors are written here as llama.cpp's convert_hf_to_gguf.py has them.
"""
import math
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES
from safetensors.numpy import save_file

HERE = Path(__file__).parent
rng = np.random.default_rng(20)

# Where the f16 scales of a block lie; random bytes there could be NaN.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}


# The same of types that came later: with numbers of their own, so that what was there stays.
LATER = {T.Q2_K: [80, 82], T.Q3_K: [108], T.IQ4_NL: [0], T.IQ4_XS: [0]}


def random_blocks(kind, n, rng=rng):
    _, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in (SCALES | LATER).get(kind, []):
        blocks[:, at : at + 2] = rng.normal(0, 0.05, n).astype(np.float16).view(np.uint8).reshape(n, 2)
    return blocks


def blocks():
    out = {}
    for kind in (T.F32, T.F16, T.BF16, *SCALES):
        if kind in SCALES:
            data = random_blocks(kind, 9)
        else:
            values = rng.normal(0, 1, 77).astype(np.float32)
            data = {
                T.F32: lambda: values.view(np.uint8),
                T.F16: lambda: values.astype(np.float16).view(np.uint8),
                T.BF16: lambda: quants.quantize(values, T.BF16),
            }[kind]()
        out[f"{kind.name}.bytes"] = np.ascontiguousarray(data.reshape(-1))
        out[f"{kind.name}.values"] = quants.dequantize(data, kind).reshape(-1).astype(np.float32)
    for kind in LATER:
        data = random_blocks(kind, 9, np.random.default_rng(kind.value))
        out[f"{kind.name}.bytes"] = np.ascontiguousarray(data.reshape(-1))
        out[f"{kind.name}.values"] = quants.dequantize(data, kind).reshape(-1).astype(np.float32)
    save_file(out, HERE / "gguf_blocks.safetensors")


def permute(weights, heads):
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def undo(weights, heads):
    return (
        weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


class Model:
    """Writes tensors to a GGUF and remembers what they are in Hugging Face's convention."""

    def __init__(self, name, arch):
        self.name, self.expected = name, {}
        self.writer = GGUFWriter(HERE / f"gguf_{name}.gguf", arch)

    def add(self, gguf, hf, shape, kind=T.F32, heads=None, plus_one=False):
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        if plus_one:
            values = values + np.float32(1)
        if heads:
            values = permute(values, heads)
        data = random_blocks(kind, values.size // GGML_QUANT_SIZES[kind][0]) if kind in SCALES else None
        if data is None:
            data = quants.quantize(values, kind)
        else:  # random bytes reach every scale and bit, which quantizing would not
            data = data.reshape(*shape[:-1], -1)
        self.writer.add_tensor(gguf, data, raw_dtype=kind)
        values = quants.dequantize(data, kind).reshape(shape)
        if heads:
            values = undo(values, heads)
        if plus_one:
            values = values - np.float32(1)
        if hf:
            self.expected[hf] = np.ascontiguousarray(values.astype(np.float32))

    def block(self, n, hidden, inner, heads, kv_heads, head_dim, permuted, plus_one, kinds):
        layer, q, kv = f"model.layers.{n}", heads * head_dim, kv_heads * head_dim
        norm = dict(plus_one=plus_one)
        self.add(f"blk.{n}.attn_norm.weight", f"{layer}.input_layernorm.weight", (hidden,), **norm)
        for part, to, shape, h in (
            ("attn_q", "self_attn.q_proj", (q, hidden), heads),
            ("attn_k", "self_attn.k_proj", (kv, hidden), kv_heads),
            ("attn_v", "self_attn.v_proj", (kv, hidden), None),
            ("attn_output", "self_attn.o_proj", (hidden, q), None),
            ("ffn_gate", "mlp.gate_proj", (inner, hidden), None),
            ("ffn_up", "mlp.up_proj", (inner, hidden), None),
            ("ffn_down", "mlp.down_proj", (hidden, inner), None),
        ):
            self.add(f"blk.{n}.{part}.weight", f"{layer}.{to}.weight", shape, next(kinds), heads=h if permuted else None)
            if permuted and h:
                self.add(f"blk.{n}.{part}.bias", f"{layer}.{to}.bias", shape[:1], heads=h)
        self.add(f"blk.{n}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", (hidden,), **norm)

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        save_file(self.expected, HERE / f"gguf_{self.name}.safetensors")


def llama():
    m = Model("llama", "llama")
    w = m.writer
    hidden, inner, heads, kv, head_dim, theta = 256, 32, 2, 1, 32, 500000.0
    w.add_context_length(131072)
    w.add_embedding_length(hidden)
    w.add_block_count(1)
    w.add_feed_forward_length(inner)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(theta)
    w.add_vocab_size(300)

    # <unk>, <s>, </s>, the 256 bytes, then letters and their merges by falling score.
    tokens, scores, types = ["<unk>", "<s>", "</s>"], [0.0] * 3, [2, 3, 3]
    for byte in range(256):
        tokens.append(f"<0x{byte:02X}>")
        scores.append(0.0)
        types.append(6)
    pieces = ["\u2581t", "he", "\u2581the", "in", "er", "\u2581cat", "at", "\u2581c", "ca", "\u2581\u2581"]
    pieces += list("\u2581etainhrcsé") + ["\u2581s", "\u2581sat", "sa"]
    for i, piece in enumerate(pieces):
        tokens.append(piece)
        scores.append(-float(i))
        types.append(1)
    tokens.append("<|user|>")
    scores.append(0.0)
    types.append(4)
    while len(tokens) < 300:
        tokens.append(f"[UNUSED{len(tokens)}]")
        scores.append(-1000.0)
        types.append(5)
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template("{{ messages }}")

    m.add("token_embd.weight", "model.embed_tokens.weight", (300, hidden), T.Q8_0)
    m.add("output_norm.weight", "model.norm.weight", (hidden,))
    m.add("output.weight", "lm_head.weight", (300, hidden), T.Q6_K)
    # generate_extra_tensors of convert_hf_to_gguf.py, for Llama 3.2's parameters
    factor, low, high, length = 32.0, 1.0, 4.0, 8192
    factors = []
    for i in range(0, head_dim, 2):
        freq = 1.0 / theta ** (i / head_dim)
        wavelen = 2 * math.pi / freq
        if wavelen < length / high:
            factors.append(1.0)
        elif wavelen > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelen - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    w.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    kinds = iter([T.Q4_K, T.Q4_1, T.Q5_K, T.Q4_0, T.BF16, T.Q5_1, T.Q5_0])
    m.block(0, hidden, inner, heads, kv, head_dim, True, False, kinds)
    m.close()


def gemma():
    m = Model("gemma", "gemma")
    w = m.writer
    hidden, inner, heads, kv, head_dim = 32, 48, 2, 1, 24
    w.add_context_length(8192)
    w.add_embedding_length(hidden)
    w.add_block_count(1)
    w.add_feed_forward_length(inner)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(1e-6)

    # GPT-2's characters for bytes, a few merges, two special tokens.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    merges = ["h e", "l l", "he ll", "hell o", "\u0120 w", "1 2", "\u00f0 \u0141"]
    tokens = alphabet + [m.replace(" ", "") for m in merges] + ["<|im_start|>", "<|im_end|>"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_merges(merges)
    w.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    w.add_bos_token_id(len(tokens) - 2)
    w.add_eos_token_id(len(tokens) - 1)

    m.add("token_embd.weight", "model.embed_tokens.weight", (len(tokens), hidden), T.F16)
    m.add("output_norm.weight", "model.norm.weight", (hidden,), plus_one=True)
    m.block(0, hidden, inner, heads, kv, head_dim, False, True, iter([T.F16, T.BF16, T.F32, T.F16, T.BF16, T.F32, T.F16]))
    m.close()


if __name__ == "__main__":
    blocks()
    llama()
    gemma()
