"""Reference values ("goldens") that the tests compare Trimtab with.

    python tests/golden/generate.py OUT_DIR [SMOLLM2]      # OUT_DIR = tests rewrites the committed files

SMOLLM2 is the folder that scripts/gguf-to-hf.py makes; without it smollm2_* are left out. Needs torch, transformers, peft and bitsandbytes. The committed files were made with
torch 2.15.0, transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2 on a CPU, one thread, float32.
It reads fixtures/golden/{base,lora} and fixtures/tiny_llama_bnb4{,_dq} beside this folder and writes

  OUT_DIR/golden/parity_data.jsonl              24 sequences, {"input_ids", "labels"}; labels as Hugging
                                                Face has them: not shifted, -100 = not trained
  OUT_DIR/golden/parity_lora.safetensors        12 AdamW steps of LoRA, constant rate
  OUT_DIR/golden/parity_lora_linear.safetensors the same with 2 warm-up steps and linear decay
  OUT_DIR/golden/parity_full.safetensors        10 AdamW steps of every weight, constant rate
  OUT_DIR/golden/tiny_bnb4_logits.safetensors   logits of two NF4 checkpoints
  OUT_DIR/fixtures/families/<name>/             tiny random models of other families, with golden.safetensors
  OUT_DIR/fixtures/base_sharded/                fixtures/golden/base in several files with an index
  OUT_DIR/golden/smollm2_tokenization.json      [{"text", "ids"}]: special tokens in the text are recognized,
                                                none are added
  SMOLLM2/../smollm2_ref.json                   not committed: greedy continuations and last logits

Training (parity_*):
  Step i takes sequences 2i and 2i+1. Each runs alone, without padding, so a packed batch must give the
  same: position ids restart, and no token sees another sequence. Token t predicts token t+1; the first
  label of a sequence is never a target, whatever it says. The loss of a step is the sum of the cross
  entropies of its targets over both sequences, divided by the number of those targets.
  torch.optim.AdamW(betas=(0.9, 0.999), eps=1e-8), decoupled decay on every trained tensor, norms too.
  The gradient is clipped with clip_grad_norm_(max_norm=1.0): scaled by min(1, 1 / (norm + 1e-6)).
  LoRA: lr 1e-2, weight_decay 0.01. Full: lr 1e-3, weight_decay 0.1.
  Linear decay, step i counted from 0, W = 2 warm-up steps, T = 12 steps (transformers'
  get_linear_schedule_with_warmup): lr * i / W while i < W, then lr * (T - i) / (T - W). Step 0 has rate 0
  (it still updates the moments).
  Tensors: input_ids, labels, cu_seqlens (int64, sequences one after another); per step loss, grad_norm
  (before clipping), lr (float32) and n_targets (int64); param.<name> = the weights after the last step,
  named as in adapter_model.safetensors or model.safetensors.
"""
import copy
import json
import random
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, GemmaConfig, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          Qwen2Config, Qwen3Config, get_linear_schedule_with_warmup)

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
# One thread and the plain attention: the same order of additions on every machine.
torch.set_num_threads(1)


def load_base():
    return LlamaForCausalLM.from_pretrained(FIXTURES / "golden/base", dtype=torch.float32, attn_implementation="eager")


# ---- training parity -------------------------------------------------------------------------------------

def make_data():
    """24 sequences of 3 to 17 tokens; most with a masked prompt, some with holes or a masked end."""
    rng = random.Random(5)
    data = []
    for i in range(24):
        n = rng.randint(3, 17)
        ids = [rng.randrange(128) for _ in range(n)]
        labels = list(ids)
        if i % 4:  # every fourth sequence is trained from its first token on
            prompt = rng.randint(1, n - 2)
            labels[:prompt] = [-100] * prompt
        if i % 5 == 2:
            labels[-2] = -100
            labels[-1] = ids[-1]
        if i % 6 == 3 and n > 6:
            labels[-1] = -100
        assert any(l != -100 for l in labels[1:])  # something to learn in each
        data.append((ids, labels))
    return data


def summed_loss(model, ids, labels):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum")


def train(model, data, steps, lr, weight_decay, linear_decay=False):
    model.train()  # the adapter has no dropout
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    schedule = get_linear_schedule_with_warmup(opt, 2, steps) if linear_decay else None
    log = {"loss": [], "grad_norm": [], "lr": [], "n_targets": []}
    for i in range(steps):
        batch = data[2 * i:2 * i + 2]
        targets = sum(l != -100 for _, labels in batch for l in labels[1:])
        loss = sum(summed_loss(model, ids, labels) for ids, labels in batch) / targets
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        for key, value in (("loss", loss.item()), ("grad_norm", norm.item()),
                           ("lr", opt.param_groups[0]["lr"]), ("n_targets", targets)):
            log[key].append(value)
        opt.step()
        opt.zero_grad()
        if schedule:
            schedule.step()
    return {k: torch.tensor(v) for k, v in log.items()}


def flat(data):
    lengths = torch.tensor([0] + [len(ids) for ids, _ in data])
    return {"input_ids": torch.tensor([t for ids, _ in data for t in ids]),
            "labels": torch.tensor([l for _, labels in data for l in labels]),
            "cu_seqlens": lengths.cumsum(0)}


def save_run(path, data, log, params):
    params = {"param." + k: v.detach().clone().contiguous() for k, v in params.items()}
    save_file({**flat(data), **log, **params}, path)
    print(path.name, "loss", [round(x, 4) for x in log["loss"].tolist()],
          "norm", [round(x, 3) for x in log["grad_norm"].tolist()])


def parity(out):
    data = make_data()
    with open(out / "parity_data.jsonl", "w") as f:
        for ids, labels in data:
            f.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    for name, linear in (("parity_lora", False), ("parity_lora_linear", True)):
        model = PeftModel.from_pretrained(load_base(), FIXTURES / "golden/lora", is_trainable=True)
        log = train(model, data, 12, 1e-2, 0.01, linear)
        save_run(out / f"{name}.safetensors", data, log, get_peft_model_state_dict(model))
    model = load_base()
    log = train(model, data[:20], 10, 1e-3, 0.1)
    save_run(out / "parity_full.safetensors", data[:20], log, dict(model.named_parameters()))


# ---- NF4 checkpoints -------------------------------------------------------------------------------------

def bnb4(out):
    """The logits of a float32 Llama whose weights are the dequantized ones.

    <name>.logits: NF4 value times absmax, kept in float32. <name>.logits_rounded: those products rounded
    to bfloat16, the checkpoint's own type, as bitsandbytes hands them to the matrix product.
    """
    import bitsandbytes as bnb
    ids = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(3))
    tensors = {"input_ids": ids}
    for name in ("bnb4", "bnb4_dq"):
        folder = FIXTURES / f"tiny_llama_{name}"
        quantized = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
        for key, dtype in (("logits", torch.float32), ("logits_rounded", torch.bfloat16)):
            weights = {k: p.detach().float() for k, p in quantized.named_parameters()}
            for k, m in quantized.named_modules():
                if isinstance(m, bnb.nn.Linear4bit):
                    state = copy.copy(m.weight.quant_state)
                    # As one long row: blocks run across rows, but bitsandbytes' AVX-512 kernel starts a
                    # new block at each row and is wrong when 64 does not divide it (down_proj here: 96).
                    state.dtype, state.shape = dtype, torch.Size([state.shape.numel()])
                    w = bnb.functional.dequantize_4bit(m.weight.data, state)
                    weights[k + ".weight"] = w.reshape(m.weight.quant_state.shape).float()
            config = json.loads((folder / "config.json").read_text())
            del config["quantization_config"], config["dtype"]
            twin = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).float().eval()
            twin.load_state_dict(weights)
            with torch.no_grad():
                tensors[f"{name}.{key}"] = twin(input_ids=ids).logits.contiguous()
    save_file(tensors, out / "tiny_bnb4_logits.safetensors")


# ---- model families --------------------------------------------------------------------------------------

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
# Two heads of 16 instead of four of 8: enough frequencies for llama3 and yarn to leave some alone, blend
# some and stretch the rest.
WIDE = dict(SMALL, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
STRETCHED = dict(WIDE, max_position_embeddings=256)


def rope(kind, **more):
    return dict(rope_type=kind, rope_theta=10000.0, **more)


# name: (config, tokens in the golden input)
FAMILIES = {
    "mistral": (MistralConfig(**SMALL, head_dim=8, sliding_window=4), 12),
    "qwen2": (Qwen2Config(**dict(SMALL, tie_word_embeddings=True)), 12),
    # head_dim x heads = 48, not the hidden size
    "qwen3": (Qwen3Config(**dict(SMALL, num_attention_heads=3, num_key_value_heads=1), head_dim=16), 12),
    "gemma": (GemmaConfig(**dict(SMALL, num_key_value_heads=1, tie_word_embeddings=True), head_dim=16,
                          hidden_act="gelu_pytorch_tanh"), 12),
    "llama3_rope": (LlamaConfig(**STRETCHED, rope_parameters=rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)), 24),
    "linear_rope": (LlamaConfig(**WIDE, rope_parameters=rope("linear", factor=2.0)), 12),
    # Longer than max_position_embeddings, without which dynamic scaling does nothing. The length in its
    # formula is that of the input: 20.
    "dynamic_rope": (LlamaConfig(**dict(WIDE, max_position_embeddings=8), rope_parameters=rope("dynamic", factor=2.0)), 20),
    "yarn_rope": (LlamaConfig(**STRETCHED, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=64)), 24),
}


def families(out):
    for seed, (name, (config, length)) in enumerate(FAMILIES.items()):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        rng = torch.Generator().manual_seed(100 + seed)
        with torch.no_grad():
            for key, p in model.named_parameters():
                noise = torch.randn(p.shape, generator=rng)
                if key.endswith("bias"):
                    p.copy_(0.05 * noise)
                elif p.dim() == 1:  # norms; Gemma stores theirs minus one
                    p.copy_((0 if name == "gemma" else 1) + 0.1 * noise)
                else:
                    p.copy_(0.08 * noise)
        model.save_pretrained(out / name)
        ids = torch.randint(0, config.vocab_size, (1, length), generator=rng)
        labels = ids.clone()
        labels[:, :3] = -100
        result = model(input_ids=ids, labels=labels)
        result.loss.backward()
        tensors = {"input_ids": ids, "labels": labels, "logits": result.logits.detach().contiguous(),
                   "loss": result.loss.detach().reshape(1)}
        # A tied embedding is one parameter; its gradient holds both uses.
        tensors |= {"grad." + key: p.grad.contiguous() for key, p in model.named_parameters()}
        save_file(tensors, out / name / "golden.safetensors")
        print(name, "loss", round(result.loss.item(), 5))


# ---- SmolLM2-135M ----------------------------------------------------------------------------------------

TEXTS = [
    "", " ", "Hello world", " Hello  world ", "The year 1999, 2,048 tokens, 3.14159 and 0x1F", "x  1   22    y",
    "line\nline\n\nline\r\n\n\n  indented", "\ttab\t\ttabs \t mixed", "It's we'll they've I'm you'd don't he're",
    "IT'S WE'LL DON'T", "caf\u00e9 cafe\u0301 na\u00efve \u00dcber stra\u00dfe", "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002 \u4e2d\u6587",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ec\U0001f1e7", "\u00bd cup, x\u00b2, \u0661\u0662\u0663, \uff11\uff12, \u2167",
    "no\u00a0break\u3000wide\u2003em\u200bzero", "def f(x):\n    return x ** 2  # square\n\n\nprint(f(12))\n",
    "for (int i = 0; i < 10; ++i) { a[i] += b[i]->c; }", "https://example.com/a_b?c=d&e=%20f#g", "$1,000.00 (50% off!!!) ... --- ===",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b <|im_end|> c",
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "trailing blanks   ", "   leading blanks",
    "MixedCase camelCase snake_case kebab-case", "\u201cquoted\u201d \u2018single\u2019 \u2014 dash \u2026",
]


def smollm2(out, folder):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [{"text": t, "ids": tokenizer(t)["input_ids"]} for t in TEXTS]
    with open(out / "smollm2_tokenization.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    messages = [{"role": "user", "content": "Name three colours."}]
    prompts = {"plain": "The capital of France is",
               "chat": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)}
    reference = {"messages": messages}
    for name, prompt in prompts.items():
        ids = tokenizer(prompt)["input_ids"]
        tokens, margins = [], []
        with torch.no_grad():
            for _ in range(16):  # does not stop at an end token
                last = model(input_ids=torch.tensor([ids + tokens])).logits[0, -1]
                if not tokens:
                    first = last
                top = last.topk(2)
                tokens.append(top.indices[0].item())
                margins.append(round((top.values[0] - top.values[1]).item(), 4))
        reference[name] = {"prompt": prompt, "ids": ids, "greedy_ids": tokens, "greedy_text": tokenizer.decode(tokens),
                           "margin_to_second": margins, "last_logits": [round(x, 5) for x in first.tolist()]}
        print(name, repr(reference[name]["greedy_text"]), "smallest margin", min(margins))
    (folder.parent / "smollm2_ref.json").write_text(json.dumps(reference))


def main():
    out = Path(sys.argv[1])
    for folder in ("golden", "fixtures/families", "fixtures/base_sharded"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    parity(out / "golden")
    bnb4(out / "golden")
    families(out / "fixtures/families")
    load_base().save_pretrained(out / "fixtures/base_sharded", max_shard_size="140KB")
    if len(sys.argv) > 2:
        smollm2(out / "golden", Path(sys.argv[2]))


if __name__ == "__main__":
    main()
