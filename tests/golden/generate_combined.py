"""What PEFT's add_weighted_adapter makes of small adapters, by every way of combining.

    python tests/golden/generate_combined.py OUT_DIR          # OUT_DIR = tests/golden/combined rewrites the committed files
    python tests/golden/generate_combined.py --load FOLDER... # PEFT loads adapters that this engine wrote for that model

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on a CPU. The model is a Llama of two layers with random weights,
which the adapters' tensors do not depend on. Writes

  OUT_DIR/<adapter>/            adapters as PEFT saves them: a, b of rank 4; c of rank 2, alpha 3, on other modules; p with
                                patterns, e on the embedding too, x with rsLoRA, r and s with regular expressions, big of
                                rank 40, more than some layers have features
  OUT_DIR/cases.json            adapters, weights and settings of each case, the rank of the result, or PEFT's error
  OUT_DIR/combined.safetensors  <case>|<name in PEFT's file>: of linear, cat, ties and magnitude_prune the factors as PEFT has
                                them; of ways that end in svd the product B·A, as `<module>`
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
ADAPTERS = {
    "a": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "b": dict(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "c": dict(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"]),
    "p": dict(r=3, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"layers.0.self_attn.q_proj": 4},
              alpha_pattern={"v_proj": 3}),
    "e": dict(r=4, lora_alpha=2, target_modules=["q_proj", "embed_tokens"]),
    "x": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True),
    "r": dict(r=4, lora_alpha=8, target_modules=r".*layers\.0.*\.(q|k)_proj"),
    "s": dict(r=4, lora_alpha=8, target_modules=r".*\.v_proj"),
    "big": dict(r=40, lora_alpha=8, target_modules=["k_proj"]),
}
AB = (["a", "b"], [0.7, 0.3])
CASES = {
    "linear": (*AB, dict(combination_type="linear")),
    "linear-negative": (["a", "b", "e"], [1.0, -0.5, 2.0], dict(combination_type="linear")),
    "linear-alone": (["a"], [-0.5], dict(combination_type="svd")),
    "linear-ranks": (["a", "c"], [1.0, 1.0], dict(combination_type="linear")),
    "linear-patterns": (["a", "p"], [1.0, 1.0], dict(combination_type="linear")),
    "linear-regex": (["r", "s"], [1.0, 2.0], dict(combination_type="linear")),
    "mixed-targets": (["a", "s"], [1.0, 2.0], dict(combination_type="linear")),
    "cat": (["a", "c", "e"], [0.7, -0.3, 1.0], dict(combination_type="cat")),
    "cat-patterns": (["p", "c"], [0.7, 0.3], dict(combination_type="cat")),
    "svd": (["a", "c", "e"], [0.7, -0.3, 1.0], dict(combination_type="svd")),
    "svd-patterns": (["p", "c"], [0.7, 0.3], dict(combination_type="svd")),
    "svd-rank": (*AB, dict(combination_type="svd", svd_rank=2)),
    # With full matrices, its default, PEFT has factors here that do not fit each other.
    "svd-more-than-there-is": (["big", "c"], [1.0, 1.0], dict(combination_type="svd", svd_full_matrices=False)),
    "svd-rslora": (["x", "b"], [0.7, 0.3], dict(combination_type="svd")),
    "ties": (["a", "b", "e"], [0.7, -0.3, 1.0], dict(combination_type="ties", density=0.4)),
    "ties-frequency": (["a", "b", "e"], [0.7, 0.3, 1.0],
                       dict(combination_type="ties", density=0.4, majority_sign_method="frequency")),
    "ties-all": (*AB, dict(combination_type="ties", density=1.0)),
    "ties-svd": (["a", "c", "e"], [0.7, -0.3, 1.0], dict(combination_type="ties_svd", density=0.3)),
    "ties-svd-frequency": (["a", "c", "b"], [0.7, 0.3, 1.0],
                           dict(combination_type="ties_svd", density=0.3, majority_sign_method="frequency", svd_rank=6)),
    "dare-linear-all": (*AB, dict(combination_type="dare_linear", density=1.0)),
    "dare-ties-all": (*AB, dict(combination_type="dare_ties", density=1.0)),
    "dare-linear-svd-all": (["a", "c"], [0.7, 0.3], dict(combination_type="dare_linear_svd", density=1.0)),
    "dare-ties-svd-all": (["a", "c"], [0.7, 0.3], dict(combination_type="dare_ties_svd", density=1.0)),
    "magnitude": (["a", "b", "e"], [0.7, -0.3, 1.0], dict(combination_type="magnitude_prune", density=0.35)),
    "magnitude-svd": (["a", "c", "e"], [0.7, -0.3, 1.0], dict(combination_type="magnitude_prune_svd", density=0.35)),
}


def base():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3,
                         num_key_value_heads=1, tie_word_embeddings=False)
    return LlamaForCausalLM(config).eval()


def write_adapters(out):
    for number, (name, settings) in enumerate(ADAPTERS.items()):
        model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **settings))
        torch.manual_seed(100 + number)
        for key, param in model.named_parameters():
            if "lora_" in key:
                param.data = torch.randn_like(param) * 0.1
        shutil.rmtree(out / name, ignore_errors=True)
        model.save_pretrained(out / name, save_embedding_layers=False)
        (out / name / "README.md").unlink()
        path = out / name / "adapter_config.json"
        config = json.loads(path.read_text())
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=1))


def combine(out, adapters, weights, settings):
    model = PeftModel.from_pretrained(base(), out / adapters[0], adapter_name=adapters[0])
    for name in adapters[1:]:
        model.load_adapter(out / name, adapter_name=name)
    model.add_weighted_adapter(adapters, weights, "combined", **settings)
    config = model.peft_config["combined"]
    tensors = get_peft_model_state_dict(model, adapter_name="combined", save_embedding_layers=False)
    return config, tensors


def main(out):
    out.mkdir(exist_ok=True)
    write_adapters(out)
    cases, results = {}, {}
    for name, (adapters, weights, settings) in CASES.items():
        cases[name] = dict(adapters=adapters, weights=weights, **settings)
        cases[name].pop("svd_full_matrices", None)
        try:
            config, tensors = combine(out, adapters, weights, settings)
        except Exception as error:
            cases[name]["error"] = str(error)
            continue
        cases[name]["rank"] = config.r
        assert config.lora_alpha == config.r and not config.rank_pattern and not config.alpha_pattern
        cases[name]["scale"] = config.r ** 0.5 if config.use_rslora else 1.0
        cases[name]["targets"] = sorted(config.target_modules) if isinstance(config.target_modules, set) else config.target_modules
        for key, tensor in tensors.items():
            if not settings["combination_type"].endswith("svd") or len(adapters) == 1:
                results[f"{name}|{key}"] = tensor.contiguous()
            elif "lora_A" in key or "lora_embedding_A" in key:
                other = tensors[key.replace("_A", "_B")]
                module = key.replace("base_model.model.", "").split(".lora_")[0]
                results[f"{name}|{module}"] = (other @ tensor).contiguous()
    save_file(results, out / "combined.safetensors")
    (out / "cases.json").write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items()) + "\n}\n")


if sys.argv[1] == "--load":
    for folder in sys.argv[2:]:
        model = PeftModel.from_pretrained(base(), folder)
        print(folder, model(torch.arange(8)[None]).logits.abs().sum().item())
else:
    main(Path(sys.argv[1]))
