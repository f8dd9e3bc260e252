"""Training runs by reference optimizers, as generate.py makes them for AdamW.

    python tests/golden/generate_optim.py OUT_DIR          # OUT_DIR = tests rewrites the committed file

Needs torch, transformers and peft; the committed file was made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on a
CPU, one thread. It reads fixtures/golden/{base,lora} beside this folder and writes

  OUT_DIR/golden/parity_optim.safetensors

Data, loss and clipping as in generate.py (parity_data.jsonl: two sequences a step, gradients clipped to norm 1), 12
steps of LoRA or, in adafactor_full, 10 of every weight, constant rate. Runs, in RUNS below: torch.optim.SGD plain, with
momentum and dampening, with Nesterov momentum; Lion as written here after its paper (arXiv:2302.06675, algorithm 2);
transformers' Adafactor(scale_parameter=False, relative_step=False).
Tensors: <run>.loss, <run>.grad_norm (float32, per step), <run>.param.<name> after the last step, of float32 runs; of
adafactor_full only the tensors of layer 0 and the last norm. Each run is repeated in float64; how far the two are apart
is printed, and is what the bounds of tests/optimizers.rs come from.
"""
import sys
from pathlib import Path

import torch
from generate import FIXTURES, load_base, make_data, summed_loss
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers.optimization import Adafactor


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(beta1 * m + (1 - beta1) * p.grad))
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


def adafactor(params, **kw):
    return Adafactor(params, scale_parameter=False, relative_step=False, **kw)


# name: (optimizer, its settings, whether all weights are trained)
RUNS = {
    "sgd": (torch.optim.SGD, dict(lr=0.3, weight_decay=0.01), False),
    "sgd_momentum": (torch.optim.SGD, dict(lr=0.3, momentum=0.9, dampening=0.5, weight_decay=0.01), False),
    "sgd_nesterov": (torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True), False),
    "lion": (Lion, dict(lr=1e-3, weight_decay=0.1), False),
    "adafactor": (adafactor, dict(lr=1e-2, weight_decay=0.01), False),
    "adafactor_full": (adafactor, dict(lr=1e-3, weight_decay=0.1), True),
}


def train(name, dtype):
    make, settings, full = RUNS[name]
    model = load_base().to(dtype)
    if not full:
        model = PeftModel.from_pretrained(model, FIXTURES / "golden/lora", is_trainable=True).to(dtype)
    model.train()  # the adapter has no dropout
    params = [p for p in model.parameters() if p.requires_grad]
    opt = make(params, **settings)
    data = make_data()
    losses, norms = [], []
    for i in range(10 if full else 12):
        batch = data[2 * i:2 * i + 2]
        targets = sum(l != -100 for _, labels in batch for l in labels[1:])
        loss = sum(summed_loss(model, ids, labels) for ids, labels in batch) / targets
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, 1.0).item())
        losses.append(loss.item())
        opt.step()
        opt.zero_grad()
    named = dict(model.named_parameters()) if full else get_peft_model_state_dict(model)
    kept = {k: p.detach().clone().contiguous() for k, p in named.items()
            if not full or ".layers.0." in k or k == "model.norm.weight"}
    return losses, norms, kept


def main():
    out = Path(sys.argv[1]) / "golden"
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name in RUNS:
        losses, norms, params = train(name, torch.float32)
        tensors |= {f"{name}.loss": torch.tensor(losses), f"{name}.grad_norm": torch.tensor(norms)}
        tensors |= {f"{name}.param.{k}": v for k, v in params.items()}
        _, _, exact = train(name, torch.float64)
        apart = [(params[k].double() - exact[k]).abs() for k in params]
        print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, norm {norms[0]:.3f}; float32 is off by",
              f"{max(d.max().item() for d in apart):.1e}, in the mean of a tensor",
              f"{max(d.mean().item() for d in apart):.1e}")
    save_file(tensors, out / "parity_optim.safetensors")


main()
