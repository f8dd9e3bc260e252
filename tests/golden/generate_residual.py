"""What PEFT computes with saved adapters of PiSSA and OLoRA, which it loads onto what is left of the base model's weights.

    python tests/golden/generate_residual.py OUT_DIR       # OUT_DIR = tests/golden/residual rewrites the committed files

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on a CPU. Adapters are made on models of fixtures/ beside this folder,
their factors moved at random as training does, saved, and loaded by PeftModel.from_pretrained on the model itself. Writes

  OUT_DIR/<case>/               the adapter, as PEFT saves it
  OUT_DIR/residual.safetensors  <case>.ids, <case>.logits in float32; of some modules <case>.bf16.<module>, what is left of the
                                weight where PEFT loads onto the model in bfloat16
"""
import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
warnings.simplefilter("ignore")
FIXTURES = Path(__file__).parent.parent / "fixtures"
LLAMA, GPT2 = "golden/base", "families2/gpt2-conv1d-lora/model"
PATTERNS = dict(rank_pattern={"layers.0.self_attn.q_proj": 2}, alpha_pattern={"v_proj": 3}, use_rslora=True)
CASES = {
    "llama-pissa": (LLAMA, dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
                                init_lora_weights="pissa", **PATTERNS)),
    "llama-olora": (LLAMA, dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
                                init_lora_weights="olora", **PATTERNS)),
    "gpt2-pissa": (GPT2, dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True,
                              init_lora_weights="pissa")),
}


def model(path, dtype):
    return AutoModelForCausalLM.from_pretrained(FIXTURES / path, dtype=dtype, attn_implementation="eager").eval()


def main(out):
    out.mkdir(exist_ok=True)
    results = {}
    for number, (name, (path, settings)) in enumerate(CASES.items()):
        shutil.rmtree(out / name, ignore_errors=True)
        made = get_peft_model(model(path, torch.float32), LoraConfig(task_type="CAUSAL_LM", **settings))
        torch.manual_seed(number)
        for key, param in made.named_parameters():
            if "lora_" in key:
                param.data += torch.randn_like(param) * 0.02
        made.save_pretrained(out / name)
        # Where the model was is of no interest.
        path_of = out / name / "adapter_config.json"
        config = json.loads(path_of.read_text())
        config["base_model_name_or_path"] = None
        path_of.write_text(json.dumps(config, indent=2))
        (out / name / "README.md").unlink()
        loaded = PeftModel.from_pretrained(model(path, torch.float32), out / name).eval()
        ids = torch.arange(3, 19)[None]
        results[f"{name}.ids"] = ids[0].contiguous()
        with torch.no_grad():
            results[f"{name}.logits"] = loaded(ids).logits[0].contiguous()
            plain = model(path, torch.float32)(ids).logits[0]
            print(name, "logits", results[f"{name}.logits"].abs().max().item(), "base apart", (plain - results[f"{name}.logits"]).abs().max().item())
        halves = PeftModel.from_pretrained(model(path, torch.bfloat16), out / name)
        layers = [(k, m) for k, m in halves.named_modules() if k.endswith("base_layer")]
        for key, module in layers[:3]:
            key = key.replace("base_model.model.", "").replace(".base_layer", "")
            results[f"{name}.bf16.{key}"] = module.weight.detach().contiguous()
    save_file(results, out / "residual.safetensors")


main(Path(sys.argv[1]))
