"""The PyTorch + transformers + PEFT (+ bitsandbytes) side of bench_peers.py, which starts it: a process of its own.

Its argument is a JSON object: model, data, work, batch, threads, warmup, steps, written, and check (time MKL first). It
prints a JSON object a line.
"""
import json
import sys
import time

import torch

job = json.loads(sys.argv[1])


def one_thread():
    """GFLOP/s of a 1024 x 1024 product on one thread: whether MKL keeps to the instruction set it was told."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(12):
        start = time.thread_time()
        a @ b
        best = min(best, time.thread_time() - start)
    return 2 * 1024 ** 3 / best / 1e9


def say(**fields):
    print(json.dumps(fields), flush=True)


def load():
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    if job["work"] == "classify":
        return AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32, num_labels=2)
    quantized = {}
    if job["work"] == "qlora":
        from transformers import BitsAndBytesConfig
        quantized = {"quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32), "device_map": "cpu"}
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, **quantized)


def batch(rows):
    """The model's arguments; rows of several lengths are padded to the longest, as transformers' collators do."""
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda values, filler: torch.tensor([v + [filler] * (longest - len(v)) for v in values])
    ids = [row["input_ids"] for row in rows]
    labels = torch.tensor([row["label"] for row in rows]) if "label" in rows[0] else pad(ids, -100)
    return {"input_ids": pad(ids, 0), "attention_mask": pad([[1] * len(i) for i in ids], 0), "labels": labels}


def train(model, rows):
    model.config.use_cache = False
    if job["work"] == "full":
        model.train()
    else:
        from peft import LoraConfig, get_peft_model
        task = "SEQ_CLS" if job["work"] == "classify" else "CAUSAL_LM"
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear",
                                                 task_type=task)).train()
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    for i in range(0, len(rows), job["batch"]):
        inputs = batch(rows[i:i + job["batch"]])
        start = time.perf_counter()
        loss = model(**inputs).loss
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        value = loss.item()
        say(loss=value, seconds=time.perf_counter() - start)


@torch.no_grad()
def text(model, rows):
    ids = torch.tensor([rows[0]["input_ids"]])
    for _ in range(job["warmup"] + job["steps"]):
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        read = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(job["written"]):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        wrote = time.perf_counter() - start
        say(read=ids.shape[1] / read, wrote=job["written"] / wrote)


if job["check"]:
    say(note=f"{torch.backends.cpu.get_cpu_capability()}; 1024^3 product, one thread: {one_thread():.0f} GFLOP/s")
torch.set_num_threads(job["threads"])
torch.manual_seed(0)
rows = [json.loads(line) for line in open(job["data"])]
if job["work"] == "text":
    text(load().eval(), rows)
else:
    train(load(), rows)
