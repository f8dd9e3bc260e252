"""A Qwen2 whose layers have different windows: fixtures/field/mixed_windows, with transformers' loss and greedy text.

Made with transformers 5.23.0 and torch 2.15.0.
"""

import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

folder = pathlib.Path(__file__).parents[1] / "fixtures/field/mixed_windows"
base = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, use_sliding_window=True, sliding_window=5, max_window_layers=1,
    bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
)
torch.manual_seed(3)
model = Qwen2ForCausalLM(Qwen2Config(**base)).float().eval()
with torch.no_grad():
    for p in model.parameters():
        p.copy_((torch.randn_like(p) * 0.25 + (1.0 if p.dim() == 1 and "norm" in str(p.shape) else 0.0)).bfloat16())
model.bfloat16().save_pretrained(folder)
rows = [[(7 * i + 3 * j * j + 1) % 64 for j in range(24)] for i in range(3)]
(folder / "data.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))


def measure(**changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v is not ...}
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, config=Qwen2Config(**config), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor(rows)
    with torch.no_grad():
        loss = loaded(ids, labels=ids).loss.item()
        text = loaded.generate(ids[:1], max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=None)
    return {"changes": {k: v for k, v in changes.items() if v is not ...}, "loss": loss, "text": text[0, 24:].tolist()}


types = lambda *names: [f"{name}_attention" for name in names]
cases = [
    measure(),
    measure(layer_types=types("sliding", "full", "sliding")),
    measure(layer_types=types("full", "full", "full")),
    measure(layer_types=types("sliding", "sliding", "sliding")),
    measure(layer_types=None, max_window_layers=2),
]
for case in cases:
    print(case)
path = folder / "expected.json"
path.write_text(json.dumps(cases, indent=1) + "\n")
