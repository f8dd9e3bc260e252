"""Turns a Llama GGUF into a Hugging Face folder: float32 safetensors, config.json, tokenizer.json.

    python scripts/gguf-to-hf.py models/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-hf

Needs torch, transformers and gguf. The weights are the dequantized ones, so other engines can be compared
on exactly the numbers the GGUF holds.
"""
import sys
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

gguf, out = Path(sys.argv[1]), sys.argv[2]
folder, name = str(gguf.parent), gguf.name

quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
config = quantized.config.to_dict()
for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
    config.pop(key, None)
config["rms_norm_eps"] = round(config["rms_norm_eps"], 12)  # GGUF keeps it in float32: 9.999999747e-06
config["architectures"] = ["LlamaForCausalLM"]
# transformers refuses to save a model it read from a GGUF, so its weights move into a fresh one.
model = LlamaForCausalLM(LlamaConfig(**config)).float()
missing, unexpected = model.load_state_dict({k: v.float() for k, v in quantized.state_dict().items()}, strict=False)
assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
model.tie_weights()
model.save_pretrained(out)

tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
pre = GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()
if pre == "smollm":
    # transformers ignores this field. "smollm" splits digits off one by one before GPT-2's pattern, which
    # matters for blanks in front of a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
tokenizer.save_pretrained(out)
print(out)
