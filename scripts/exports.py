"""Folders that Trimtab writes, opened by transformers: merged models against PEFT's own merge, bitsandbytes folders against the
values that Trimtab quantized.

usage: exports.py TRIMTAB FOLDER        needs torch, transformers, peft, safetensors, bitsandbytes

Each check has a control that must fail: the base model's weights in place of the merged ones, another weight's codes.
"""
import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests" / "fixtures" / "families2"
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def trimtab(*args):
    return subprocess.run([sys.argv[1], *map(str, args)], check=True, capture_output=True, text=True).stdout


def merged(name, work):
    """The weights of PEFT's merge_and_unload, to a few roundings."""
    case, out = CASES / name, work / f"{name}-merged"
    trimtab("merge", "--model", case / "model", "--adapter", case / "adapter", "--out", out, "--shard-size", "60KB",
            "--device", "cpu")
    base = AutoModelForCausalLM.from_pretrained(case / "model", dtype=torch.float32)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    theirs = PeftModel.from_pretrained(base, case / "adapter").merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys(), (name, ours.keys() ^ theirs.keys())
    apart = lambda a, b: max(float((a[k] - b[k]).abs().max()) for k in ours)
    worst = apart(ours, theirs)
    assert worst < 1e-6, (name, worst)
    assert apart(before, theirs) > 1e-3, f"{name}: the control"
    print(f"{name}: merged, {len(list(out.glob('*.safetensors')))} files, weights within {worst:.1e} of PEFT's")


def quantized(fmt, work):
    """transformers dequantizes to what Trimtab's own reader has; and generates."""
    out, back = work / fmt, work / f"{fmt}-back"
    trimtab("quantize", "--model", ROOT / "assets" / "base", "--format", fmt, "--out", out, "--shard-size", "400KB",
            "--dtype", "f32")
    model = AutoModelForCausalLM.from_pretrained(out, device_map={"": "cpu"})
    import bitsandbytes as bnb
    linears = {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(linears) == 42, len(linears)
    # What Trimtab reads of the folder: merged with an adapter of zeros would be the same, so the GGUF export is taken.
    trimtab("export", "--model", out, "--type", "f32", "--out", f"{back}.gguf")
    import gguf
    reader = gguf.GGUFReader(f"{back}.gguf")
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
             "up_proj": "ffn_up", "down_proj": "ffn_down"}
    tensors = {t.name: torch.tensor(t.data.copy()) for t in reader.tensors}
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    worst = control = 0
    for name, module in linears.items():
        layer, part = name.split(".")[2], names[name.split(".")[-1]]
        ours = tensors[f"blk.{layer}.{part}.weight"]
        if part in heads:
            n, d = heads[part], ours.shape[0] // heads[part]
            ours = ours.reshape(n, d // 2, 2, -1).swapaxes(1, 2).reshape(ours.shape)
        theirs = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        worst = max(worst, float((ours - theirs).abs().max()))
        control = max(control, float((ours.flip(0) - theirs).abs().max()))
    assert worst == 0 and control > 0.01, (fmt, worst, control)
    ids = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    print(f"{fmt}: transformers opens it; {len(linears)} layers dequantize to the same bits; it writes {ids[0].tolist()}")


def main():
    work = Path(sys.argv[2])
    for name in ("llama-lora-all-linear", "llama-lora-patterns", "llama-lora-bias-all", "llama-lora-trainable-tokens",
                 "gpt2-conv1d-lora", "gpt2-dora"):
        merged(name, work)
    for fmt in ("nf4", "nf4-dq"):
        quantized(fmt, work)


main()
