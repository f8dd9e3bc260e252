"""Training runs with LoRA+ (arXiv:2402.12354) by PEFT's create_loraplus_optimizer over torch.optim.AdamW.

    python tests/golden/generate_loraplus.py OUT_DIR       # OUT_DIR = tests/golden rewrites the committed file

Needs torch, transformers and peft; the committed file was made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on a
CPU, one thread. It reads two cases of fixtures/families2 beside this folder: llama-loraplus has factors on an embedding,
bert-dora-bias-lora_only has magnitudes, biases and a head that is trained whole. Each trains 12 steps on its rows, all
of them in each step, gradients clipped to norm 1, at a constant rate, and writes

  OUT_DIR/loraplus.safetensors   <case>.loss, <case>.grad_norm (float32, per step), <case>.param.<name in PEFT's file>

Each run is repeated in float64; how far the two are apart is printed, and is what the bounds of tests/loraplus.rs come
from.
"""
import json
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file

torch.set_num_threads(1)
CASES = Path(__file__).parent.parent / "fixtures/families2"
RUNS = {
    "llama-loraplus": dict(lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1, loraplus_lr_embedding=2e-4),
    "bert-dora-bias-lora_only": dict(lr=2e-4, loraplus_lr_ratio=8, loraplus_weight_decay=0.2),
}


def pad(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def batch(case):
    rows = [json.loads(line) for line in (CASES / case / "batch.jsonl").open()]
    ids = [row["input_ids"] for row in rows]
    out = dict(input_ids=pad(ids, 0), attention_mask=pad([[1] * len(row) for row in ids], 0))
    if "token_type_ids" in rows[0]:
        out["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
    whole = "label" in rows[0]
    out["labels"] = torch.tensor([row["label"] for row in rows]) if whole else pad([row["labels"] for row in rows], -100)
    return out


def train(case, settings, dtype):
    facts = json.loads((CASES / case / "case.json").read_text())
    model = getattr(transformers, facts["model_class"]).from_pretrained(
        CASES / case / "model", dtype=dtype, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, CASES / case / "adapter", is_trainable=True).to(dtype).eval()
    opt = create_loraplus_optimizer(model, torch.optim.AdamW, **settings)
    params = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for _ in range(12):
        loss = model(**batch(case)).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, 1.0).item())
        losses.append(loss.item())
        opt.step()
        opt.zero_grad()
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return losses, norms, {k: p.detach().clone().contiguous() for k, p in state.items()}


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for case, settings in RUNS.items():
        losses, norms, params = train(case, settings, torch.float32)
        tensors |= {f"{case}.loss": torch.tensor(losses), f"{case}.grad_norm": torch.tensor(norms)}
        tensors |= {f"{case}.param.{k}": v for k, v in params.items()}
        exact_losses, exact_norms, exact = train(case, settings, torch.float64)
        far = max(abs(a - b) / abs(b) for a, b in zip(losses + norms, exact_losses + exact_norms))
        apart = max((params[k].double() - exact[k]).abs().max().item() for k in params)
        print(f"{case}: loss {losses[0]:.4f} to {losses[-1]:.4f}, norm {norms[0]:.3f}; float32 is off by {apart:.1e}, "
              f"losses and norms by {far:.1e} of themselves")
    save_file(tensors, out / "loraplus.safetensors")


main()
