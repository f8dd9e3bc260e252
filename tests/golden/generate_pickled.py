"""Adapters that are pickled, as torch.save writes them and PEFT wrote them before safetensors.

    python tests/golden/generate_pickled.py OUT_DIR        # OUT_DIR = tests/golden/pickled rewrites the committed files

Made with torch 2.15.0, safetensors of the same tensors beside each. Cases: f32; every type of floats, turned views, views that
share values, parameters, in an ordered dictionary with metadata (`state`); an integer tensor (`ints`); a function that a program
would call when it is loaded (`calls`); the format before PyTorch 1.6 (`old`); an adapter and head of AdapterHub as its library
saves them (`adapterhub_…`: `torch.save` of the tensors of `tests/fixtures/adapterhub/bert-pfeiffer`).
"""
import os
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

torch.manual_seed(0)
HUB = Path(__file__).parent.parent / "fixtures/adapterhub/bert-pfeiffer/adapter"
A, B = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
C, D = (name.replace("q_proj", "v_proj") for name in (A, B))


class Calls:
    def __reduce__(self):
        return os.system, ("echo called",)


def main(out):
    out.mkdir(exist_ok=True)
    plain = {A: torch.randn(2, 5), B: torch.randn(3, 2)}
    table = torch.randn(6, 7)
    state = OrderedDict({A: torch.randn(5, 2).t(), B: torch.randn(3, 2).half(), C: table[1:3, ::2], D: table[:, 3:5].bfloat16(),
                         "double": torch.randn(2, 2, 2).double().transpose(0, 2), "scalar": torch.tensor(1.5),
                         "whole": torch.nn.Parameter(table)})
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(plain, out / "plain.bin")
    torch.save(state, out / "state.bin")
    torch.save({A: torch.arange(4)}, out / "ints.bin")
    torch.save({A: plain[A], B: Calls()}, out / "calls.bin")
    torch.save(plain, out / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(plain, out / "protocol4.bin", pickle_protocol=4)
    for file in ("adapter", "model_head"):
        torch.save(load_file(HUB / f"{file}.safetensors"), out / f"adapterhub_{file}.bin")
    save_file(plain, out / "plain.safetensors")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, out / "state.safetensors")


main(Path(sys.argv[1]))
